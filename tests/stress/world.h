/* SPDX-License-Identifier: MIT */
/*
 * The data that all threads of the stress test work on, one step of work, and the check that nothing was lost.
 *
 * Every context (a thread, or a thread's signal handler) keeps books: what it is about to do in `begun`, what it has done
 * in `done`, both written by itself alone. When nobody runs, the data must equal the sum of all books. In a forked child,
 * where other threads have stopped anywhere, it must lie between the two sums: fork shows each thread's writes up to some
 * moment, in their order.
 */
#ifndef STRESS_WORLD_H
#define STRESS_WORLD_H

#include <percpu.h>

#define MOST_CONTEXTS 160
#define NODES         256 /* of each pool */
#define HAND          4   /* nodes of each pool that a context may keep */

/* What is counted, once for each kind of index. */
enum sum { SUM_ADD, SUM_OFFSET, SUM_EQ, SUM_EQ2, SUM_RECORD, SUM_OF_LANE };
enum { LANE_BY_ID, LANE_BY_CPU, LANES };
#define SUM_COUNTER   (LANES * SUM_OF_LANE)
#define SUM_HISTOGRAM (SUM_COUNTER + 1)
#define SUMS          (SUM_COUNTER + 2)

/* Pools of nodes: the library's stack; lists that end in NULL; lists that end in a word of their own. */
enum { POOL_STACK, POOL_LIST, POOL_RING = POOL_LIST + LANES, POOLS = POOL_RING + LANES };

struct node {
	struct percpu_stack_node link; /* first, so that a node's address is its link's */
	uint32_t taken;                /* by whoever took it off a list */
	uint32_t pool;
};

struct context {
	uint64_t begun[SUMS], done[SUMS];
	uint64_t random;
	uint64_t steps, opv_moves, steals, allocations, chains;
	struct node *hand[POOLS][HAND];
	uint64_t token[LANES]; /* 0 for none */
	bool is_handler;
} __attribute__((aligned(128)));

struct books {
	uint64_t actual[SUMS];
	bool present[POOLS][NODES]; /* in a list */
	bool token[LANES][MOST_CONTEXTS + 1];
};

extern struct context contexts[MOST_CONTEXTS];
extern bool mode_none;

/* Says what is wrong and ends the process with status 1. */
void violation(const char *what, ...) __attribute__((format(printf, 1, 2), noreturn));

void world_create(void);
void world_destroy(void);
void context_init(struct context *me, unsigned number, bool is_handler);
uint64_t draw(struct context *me, uint64_t below);

/* One operation, chosen at random. */
void step(struct context *me);
/* Takes all of one index's nodes and puts them on the caller's own list. */
void steal_from(struct context *me, unsigned index);
void drain_counters(void);
/* What the thread does that watches over guarded words and records. */
void keep(struct context *me);

/* Reads everything; only valid while no other thread runs. Walks the lists and checks what it meets. */
void read_books(struct books *books);
/* No thread runs any more: all must be exact. */
void check_exact(const struct books *books);
/* In a forked child: other threads stopped anywhere. */
void check_plausible(const struct books *books);
/* After the child worked on for itself, from @before to @after, with the books of then and now. */
void check_change(const struct books *before, const uint64_t done_before[SUMS], const struct books *after,
		  const uint64_t done_after[SUMS]);
void sum_books(uint64_t begun[SUMS], uint64_t done[SUMS]);

#endif
