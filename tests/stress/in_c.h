/* SPDX-License-Identifier: MIT */
/* The same operations on the same data as sections in C, by concurrency id (lane 0) and by CPU number (lane 1). */
#ifndef STRESS_IN_C_H
#define STRESS_IN_C_H

#include "world.h"

/* A chain of nodes: what to push, or how many to take and what was got. */
struct chain {
	struct node *first, *last;
	unsigned count;
};

#define IN_C(SECTION, lane)                                                                                            \
	SECTION(in_c_add_##lane, uint64_t, word, uint64_t, n)                                                          \
	{                                                                                                              \
		return percpu_commit(word, *word + *n);                                                                \
	}                                                                                                              \
	SECTION(in_c_take_##lane, void *, head, struct chain, chain)                                                   \
	{                                                                                                              \
		struct node *node = (struct node *)*head, *last = NULL;                                                \
		unsigned count = 0;                                                                                    \
                                                                                                                       \
		for (; node && count < chain->count; count++) {                                                        \
			last = node;                                                                                   \
			node = (struct node *)(void *)node->link.next;                                                 \
		}                                                                                                      \
		chain->first = (struct node *)*head;                                                                   \
		chain->last = last;                                                                                    \
		if (!last)                                                                                             \
			return percpu_no_commit();                                                                     \
		return percpu_commit(head, node);                                                                      \
	}                                                                                                              \
	SECTION(in_c_push_##lane, void *, head, struct chain, chain)                                                   \
	{                                                                                                              \
		chain->last->link.next = (struct percpu_stack_node *)*head;                                            \
		return percpu_commit(head, chain->first);                                                              \
	}
IN_C(PERCPU_SECTION, 0)
IN_C(PERCPU_SECTION_BY_CPU, 1)

static inline void in_c_add(unsigned lane, uint64_t *word, uint64_t n)
{
	if (lane ? !in_c_add_1(word, &n) : !in_c_add_0(word, &n))
		violation("an addition in C did not commit");
}

static inline void in_c_push(unsigned lane, void **list, struct node *first, struct node *last)
{
	struct chain chain = { first, last, 0 };

	if (lane ? !in_c_push_1(list, &chain) : !in_c_push_0(list, &chain))
		violation("a push in C did not commit");
}

/* Takes up to count nodes, linked from the first to *last; NULL if there were none. */
static inline struct node *in_c_take(unsigned lane, void **list, unsigned count, struct node **last)
{
	struct chain chain = { NULL, NULL, count };
	bool took = lane ? in_c_take_1(list, &chain) : in_c_take_0(list, &chain);

	*last = chain.last;
	return took ? chain.first : NULL;
}

#endif
