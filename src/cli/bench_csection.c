/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: what it costs to write a section's body in C. A node is taken off a list and put back, by two sections in
 * C and by the two of <percpu/stack.h>.
 *
 * Both lists start with nodes for every thread. A thread that was moved in between may find its list empty: it then goes
 * without a node for one turn.
 */
#include <errno.h>
#include <stdlib.h>

#include <percpu/csection.h>

#include "cli/bench.h"

#define DEPTH 64 /* nodes for each copy at the start */

struct node {
	BENCH_ALIGNED struct percpu_stack_node link;
};

struct head {
	struct percpu_stack_node *first;
};

static struct {
	struct head *c; /* per-CPU */
	struct percpu_stack builtin;
	struct node *nodes; /* all of both lists */
	size_t count;
} lists;

PERCPU_SECTION(pop, struct head, head, struct percpu_stack_node *, out)
{
	*out = head->first;
	if (!*out)
		return percpu_no_commit();
	return percpu_commit(&head->first, (*out)->next);
}

PERCPU_SECTION(push, struct head, head, struct percpu_stack_node, node)
{
	node->next = head->first;
	return percpu_commit(&head->first, node);
}

BENCH_LOOP pair_in_c(struct bench_worker *worker, uint64_t n)
{
	struct head *head = lists.c;
	struct percpu_stack_node *node = NULL;

	(void)worker;
	for (; n; n--)
		if (__builtin_expect(pop(head, &node), 1))
			push(head, node);
}

BENCH_LOOP pair_builtin(struct bench_worker *worker, uint64_t n)
{
	struct percpu_stack *stack = &lists.builtin;
	struct percpu_stack_node *node;

	(void)worker;
	for (; n; n--) {
		node = percpu_stack_pop(stack);
		if (__builtin_expect(node != NULL, 1))
			percpu_stack_push(stack, node);
	}
}

static int setup(unsigned threads)
{
	size_t copies = percpu_copies();
	int rc = -ENOMEM;

	(void)threads;
	lists.count = 2 * copies * DEPTH;
	lists.nodes = aligned_alloc(_Alignof(struct node), lists.count * sizeof(*lists.nodes));
	lists.c = percpu_alloc(sizeof(*lists.c), 64);
	if (lists.nodes && lists.c)
		rc = percpu_stack_init(&lists.builtin);
	if (rc) {
		free(lists.nodes);
		percpu_free(lists.c);
		return rc;
	}
	/* Nobody runs yet: each copy gets its nodes by plain stores, both lists in the same order. */
	for (size_t i = 0; i < lists.count; i++) {
		struct percpu_stack_node *node = &lists.nodes[i].link;
		unsigned index = (unsigned)(i / 2 / DEPTH);
		void **head = i % 2 ? percpu_ptr(lists.builtin.head, index)
				    : (void **)(void *)&percpu_ptr(lists.c, index)->first;

		node->next = *head;
		*head = node;
	}
	return 0;
}

static const char *check(const uint64_t *done)
{
	size_t found = 0;

	(void)done;
	percpu_for_each_index(i) {
		for (struct percpu_stack_node *node = percpu_ptr(lists.c, i)->first; node; node = node->next)
			found++;
		for (struct percpu_stack_node *node = *percpu_ptr(lists.builtin.head, i); node; node = node->next)
			found++;
	}
	return found == lists.count ? NULL : "a list has lost or doubled a node";
}

static void teardown(void)
{
	percpu_stack_destroy(&lists.builtin);
	percpu_free(lists.c);
	free(lists.nodes);
}

static const struct bench_subject subjects[] = {
	{ .name = "percpu", .what = "two sections with bodies in C", .loop = pair_in_c },
	{ .name = "builtin", .what = "percpu_stack_pop and _push: the same in assembly", .loop = pair_builtin },
	{ 0 },
};

const struct bench bench_c_section_pair = {
	.name = "c_section_pair",
	.what = "take a node off a list and put it back, bodies in C and in assembly",
	.subjects = subjects,
	.setup = setup,
	.check = check,
	.teardown = teardown,
};
