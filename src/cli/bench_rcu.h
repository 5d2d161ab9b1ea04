/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: what each flavour of RCU has to offer to bench_rcu.c. liburcu's are compiled one by one from bench_urcu.c,
 * since their headers define the same names.
 */
#ifndef PERCPU_CLI_BENCH_RCU_H
#define PERCPU_CLI_BENCH_RCU_H

#include <stdint.h>

struct bench_rcu_word {
	uint64_t word;
};

/* Read by all subjects, through this pointer. */
extern struct bench_rcu_word *bench_rcu_shared;
/* Callbacks in one operation of their bench: many, so that what the last of them waits for does not matter. */
#define BENCH_RCU_CALLS 100000
/* Read sections of a thread, registered for that time; all, or until told. */
#define BENCH_RCU_FLAVOUR(name)                                                                                        \
	void bench_##name##_read(uint64_t n);                                                                          \
	void bench_##name##_read_until(const uint32_t *over);                                                          \
	void bench_##name##_synchronize(uint64_t n);                                                                   \
	void bench_##name##_call(uint64_t n)

BENCH_RCU_FLAVOUR(urcu_memb);
BENCH_RCU_FLAVOUR(urcu_mb);
BENCH_RCU_FLAVOUR(urcu_qsbr);
BENCH_RCU_FLAVOUR(urcu_bp);

#endif
