/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: one flavour of liburcu, with its read side inlined. Compiled once for each: BENCH_URCU is its name and
 * BENCH_URCU_HEADER what declares it.
 */
#define _LGPL_SOURCE /* as its licence allows for functions of ten lines: they are what is measured */
#include BENCH_URCU_HEADER

#include <stdlib.h>

#include "cli/bench_rcu.h"

#define PASTE2(a, b, c) a##b##c
#define PASTE(a, b, c)  PASTE2(a, b, c)
#define NAME(what)      PASTE(bench_, BENCH_URCU, what)
#define LOOP            __attribute__((noinline, aligned(64))) void
#define USE(value)      __asm__ __volatile__("" : : "r"(value))

/* How often threads of the QSBR flavour say that they are quiescent: as seldom as a program would. */
#define QUIET_EVERY 1024

#ifdef BENCH_URCU_QSBR
#define quiescent(n)                                                                                                   \
	do {                                                                                                           \
		if ((n) % QUIET_EVERY == 0)                                                                            \
			rcu_quiescent_state();                                                                         \
	} while (0)
#else
#define quiescent(n) ((void)(n))
#endif

/* Threads of the bp flavour need not be registered: they are at their first read section, and until they end. */
#ifdef BENCH_URCU_BP
#define enlist()   ((void)0)
#define withdraw() ((void)0)
#else
#define enlist()   rcu_register_thread()
#define withdraw() rcu_unregister_thread()
#endif

static inline void read_once(void)
{
	struct bench_rcu_word *p;

#ifdef __clang_analyzer__ /* does not see that bp registers the thread */
	p = bench_rcu_shared;
	USE(p->word);
#else
	rcu_read_lock();
	p = rcu_dereference(bench_rcu_shared);
	USE(*(volatile uint64_t *)&p->word);
	rcu_read_unlock();
#endif
}

LOOP NAME(_read)(uint64_t n)
{
	enlist();
	for (; n; n--) {
		read_once();
		quiescent(n);
	}
	withdraw();
}

LOOP NAME(_read_until)(const uint32_t *over)
{
	enlist();
	for (uint64_t n = 1; !__atomic_load_n(over, __ATOMIC_RELAXED); n++) {
		read_once();
		quiescent(n);
	}
	withdraw();
}

LOOP NAME(_synchronize)(uint64_t n)
{
	enlist();
	for (; n; n--)
		synchronize_rcu();
	withdraw();
}

struct node {
	struct rcu_head head;
};

static void free_node(struct rcu_head *head)
{
	free(head);
}

LOOP NAME(_call)(uint64_t n)
{
	enlist();
	for (n *= BENCH_RCU_CALLS; n; n--) {
		struct node *node = malloc(sizeof *node);

		if (!node)
			break;
		call_rcu(&node->head, free_node);
		quiescent(n);
	}
	rcu_barrier();
	withdraw();
}
