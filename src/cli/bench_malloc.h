/* SPDX-License-Identifier: MIT */
/*
 * percpu bench malloc, inside: what the command and its children agree on.
 *
 * A process has one allocator, so allocators cannot be compared inside one. Each round is a process of its own: this
 * program again, with the allocator preloaded, and what is to be done as its arguments. It prints one line of results, or
 * fails with one line on stderr. Nothing on the way may allocate more than it must, for the child's resident memory is
 * what is measured: that of all children alike has the program's own in it.
 */
#ifndef PERCPU_CLI_BENCH_MALLOC_H
#define PERCPU_CLI_BENCH_MALLOC_H

#include <stdlib.h>

#include "cli/bench.h"

/* What a child is told: its arguments, in this order. */
struct malloc_task {
	enum bench_malloc_row row;
	unsigned threads;
	double seconds; /* about so long, where the time is what limits a round */
	uint64_t size;  /* and how much there is to do, where it is not */
	double rest;    /* before the idle memory is looked at, in seconds; 0: it is not */
};

/* What it answers, in one line, with the path of the object in which it found malloc at the end. */
struct malloc_report {
	double best, median, p9999, ratio;
	uint64_t peak, idle; /* KiB */
};

#define MALLOC_PROBE "probe" /* instead of a row: only the path */

/* The rows that bench_run() runs; those without a loop are in bench_malloc_memory.c. */
struct malloc_loop {
	void (*loop)(struct bench_worker *worker, uint64_t n);
	void (*begin)(struct bench_worker *worker);
	void (*finish)(struct malloc_report *report); /* what there is besides times; may be NULL */
	double least_ns;                              /* a shorter round would not mean the same; 0: any */
};
extern const struct malloc_loop malloc_loops[BENCH_MALLOC_ROWS];

/* bench_malloc_memory.c: each does all of its row. */
void malloc_run_burst(const struct malloc_task *task, struct malloc_report *report);
void malloc_run_threads(const struct malloc_task *task, struct malloc_report *report);
void malloc_run_fragmentation(const struct malloc_task *task, struct malloc_report *report);
/* bench_malloc_redis.c: the same in a server that the child starts. */
void malloc_run_redis(const struct malloc_task *task, struct malloc_report *report);
/* Why it cannot; NULL if it can. */
const char *malloc_skip_redis(void);
/* How often a burst is repeated in a round. */
#define MALLOC_BURSTS 2
/* Of a cycle of drifting sizes. */
#define MALLOC_PHASES 8

/* A number in KiB from /proc/PID/@file, 0 if there is none. @pid may be 0 for ourselves. */
uint64_t malloc_kib(int pid, const char *file, const char *key);
/* Resident memory now: exact, where the kernel walks the tables for it. */
uint64_t malloc_resident(int pid);
/* The largest that it was in this process. */
uint64_t malloc_peak(void);
double malloc_now(void); /* ns */
/* The object in which this process has its malloc. */
const char *malloc_path(void);
void malloc_rest(double seconds);

/* One line on stderr, and the end of the child. */
_Noreturn void malloc_give_up(const char *why);

static inline void *malloc_checked(size_t size)
{
	void *pointer = malloc(size);

	if (__builtin_expect(!pointer, 0))
		malloc_give_up("no memory");
	return pointer;
}

/* Marsaglia's xorshift; never 0. */
static inline uint64_t malloc_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* From a random word's upper half. */
static inline uint32_t malloc_between(uint64_t random, uint32_t low, uint32_t high)
{
	return low + (uint32_t)((random >> 32) * (high - low + 1) >> 32);
}

/* From its lower half: less than @limit. */
static inline uint32_t malloc_below(uint64_t random, uint32_t limit)
{
	return (uint32_t)((uint64_t)(uint32_t)random * limit >> 32);
}

static inline uint64_t malloc_seed(unsigned id)
{
	return 0x9e3779b97f4a7c15ULL * (id + 1);
}

#endif
