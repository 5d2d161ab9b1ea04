/* SPDX-License-Identifier: MIT */
/* Every operation once or more, on objects of the calling thread's own, with results that can be told exactly. */
#ifndef EVERYTHING_H
#define EVERYTHING_H

#include <percpu.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPECT(condition)                                                                                              \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                        \
			_exit(1);                                                                                      \
		}                                                                                                      \
	} while (0)
#define ROUNDS 100U

struct thing {
	struct percpu_stack_node link;
	uint64_t a, b, text[8];
};

static inline uint64_t sum_of_copies(const uint64_t *word)
{
	uint64_t sum = 0;

	percpu_for_each_index(i)
		sum += *percpu_ptr(word, i);
	return sum;
}

/* A thread alone may be moved between copies at any time, so a comparison is tried with what each copy holds. */
#define THIS_KIND(kind)                                                                                                \
	static inline void use_##kind(void)                                                                            \
	{                                                                                                              \
		uint64_t *word = percpu_alloc(64, 64), *pair = word + 2, from[3] = { 1, 2, 3 }, stored = 0;            \
		struct thing things[3] = { 0 };                                                                        \
		void **list = percpu_alloc(sizeof *list, sizeof *list);                                                \
		ptrdiff_t offset = 8;                                                                                  \
		uintptr_t out;                                                                                         \
                                                                                                                       \
		EXPECT(word &&list);                                                                                   \
		for (unsigned i = 0; i < ROUNDS; i++) {                                                                \
			kind##_add(word, 1);                                                                           \
			kind##_add_release(word, 2);                                                                   \
			kind##_add_offset(word, &offset, 3);                                                           \
			kind##_add_offset_release(word, &offset, 4);                                                   \
			percpu_for_each_index(copy) {                                                                  \
				uint64_t old = *percpu_ptr(pair, copy);                                                \
                                                                                                                       \
				stored += kind##_store_if_eq(pair, old, old + 1);                                      \
				old = *percpu_ptr(pair, copy);                                                         \
				stored += kind##_store_if_eq2_release(pair, old, pair + 1, 0, old + 1);                \
				EXPECT(!kind##_store_if_eq2(pair, old, pair + 1, 7, old + 1));                         \
				old = *percpu_ptr(pair, copy);                                                         \
				stored += kind##_copy_store(pair, old, pair + 2, from, sizeof from, old + 1);          \
			}                                                                                              \
		}                                                                                                      \
		EXPECT(stored > 0 && sum_of_copies(pair) == stored);                                                   \
		EXPECT(sum_of_copies(word) == 3 * ROUNDS && sum_of_copies(word + 1) == 7 * ROUNDS);                    \
		kind##_push(list, &things[0], 0);                                                                      \
		things[1].link.next = &things[2].link;                                                                 \
		kind##_push_chain_release(list, &things[1], &things[2], 0);                                            \
		for (unsigned got = 0, tries = 0; got < 3; tries++) {                                                  \
			got += kind##_pop(list, 0) != NULL;                                                            \
			if (got < 3)                                                                                   \
				got += kind##_follow((uintptr_t *)(void *)list, 0, 0, &out);                           \
			EXPECT(tries < 10000000);                                                                      \
		}                                                                                                      \
		EXPECT(sum_of_copies((uint64_t *)(void *)list) == 0);                                                  \
		EXPECT(kind##_xchg((uint64_t *)(void *)list, 0) == 0);                                                 \
		EXPECT(percpu_free(word) == 0 && percpu_free(list) == 0);                                              \
	}
THIS_KIND(percpu_this)
THIS_KIND(percpu_this_cpu)

/* What acts on a named index is expected to give @targeted: 0, or the error of a fence that is refused. */
static inline void everything(int targeted)
{
	struct percpu_histogram histogram;
	struct percpu_snapshot snapshot;
	struct percpu_counter counter;
	struct percpu_stack stack;
	struct percpu_stack_node node, *got = NULL;
	struct percpu_gate gate;
	uint64_t sum, before;
	struct percpu_op op;
	int rc;

	use_percpu_this();
	use_percpu_this_cpu();
	EXPECT(percpu_counter_init(&counter) == 0 && percpu_histogram_init(&histogram, 4) == 0);
	EXPECT(percpu_stack_init(&stack) == 0 && percpu_snapshot_init(&snapshot, 4) == 0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		percpu_counter_add(&counter, i);
		percpu_histogram_record(&histogram, i);
	}
	EXPECT(percpu_counter_read(&counter) == ROUNDS * (ROUNDS - 1) / 2);
	EXPECT(percpu_counter_drain(&counter, &sum) == 0 && sum == ROUNDS * (ROUNDS - 1) / 2);
	EXPECT(percpu_histogram_drain(&histogram, &snapshot) == 0 && snapshot.total == ROUNDS);
	EXPECT(percpu_fence() == targeted);
	percpu_for_each_index(i) {
		/* The remainder needs no fence. */
		int expected = i == percpu_copies() - 1 ? 0 : targeted;

		before = sum_of_copies(counter.words);
		op = (struct percpu_op){
			.op = PERCPU_OP_ADD, .len = 8, .dst = percpu_ptr(counter.words, i), .value = 5
		};
		rc = percpu_opv(&op, 1, i);
		EXPECT(rc == expected && sum_of_copies(counter.words) == before + (rc ? 0 : 5));
		EXPECT(percpu_gate_lock(counter.words, i, &gate) == expected);
		if (!expected)
			percpu_gate_unlock(&gate);
	}
	percpu_stack_push(&stack, &node);
	percpu_for_each_index(i) {
		struct percpu_stack_node *here = NULL;

		rc = percpu_stack_steal(&stack, i, &here);
		EXPECT(rc == 0 || (rc == targeted && !here));
		got = here ? here : got;
	}
	EXPECT(got == &node || targeted);
	for (unsigned tries = 0; !got && tries < 1000000; tries++)
		got = percpu_stack_pop(&stack);
	EXPECT(got == &node);
	EXPECT(percpu_cpu() >= 0 && percpu_cpu() < (int)percpu_possible_cpus());
	EXPECT(percpu_cid() >= 0 && percpu_cid() < (int)percpu_possible_cpus() && percpu_node() >= 0);
	percpu_counter_destroy(&counter);
	percpu_histogram_destroy(&histogram);
	percpu_snapshot_destroy(&snapshot);
	percpu_stack_destroy(&stack);
}

#endif
