/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: measure how long a piece of code took, here none.
 *
 * Only ours and the system call's counts tell whether anything came in between.
 */
#include <errno.h>
#include <sys/resource.h>
#include <time.h>

#include "cli/bench.h"

BENCH_LOOP timed_percpu(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--) {
		struct percpu_timed timed;
		struct percpu_timed_result result;

		percpu_timed_begin(&timed);
		percpu_timed_end(&timed, &result);
		worker->plain += result.flags == 0;
		BENCH_USE(result.ticks);
	}
}

BENCH_LOOP timed_ticks(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		uint64_t start = percpu__ticks();

		BENCH_USE(percpu__ticks() - start);
	}
}

BENCH_LOOP timed_clock(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct timespec start, end;

		clock_gettime(CLOCK_MONOTONIC, &start);
		clock_gettime(CLOCK_MONOTONIC, &end);
		BENCH_USE(end.tv_nsec - start.tv_nsec);
	}
}

BENCH_LOOP timed_getrusage(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct rusage before, after;
		uint64_t start, ticks;

		getrusage(RUSAGE_THREAD, &before);
		start = percpu__ticks();
		ticks = percpu__ticks() - start;
		getrusage(RUSAGE_THREAD, &after);
		BENCH_USE(ticks);
		BENCH_USE(after.ru_nivcsw - before.ru_nivcsw + after.ru_nvcsw - before.ru_nvcsw);
	}
}

static const struct bench_subject timed_subjects[] = {
	{ .name = "percpu", .what = "percpu_timed_begin() and percpu_timed_end()", .loop = timed_percpu },
	{ .name = "ticks", .what = "the processor's clock twice, with the same fences", .loop = timed_ticks },
	{ .name = "clock_gettime", .what = "clock_gettime() twice", .loop = timed_clock },
	{ .name = "getrusage",
	  .what = "the processor's clock twice, between two getrusage() that count switches",
	  .loop = timed_getrusage },
	{ .name = NULL },
};

const struct bench bench_timed_pair = {
	.name = "timed_pair",
	.what = "begin and end to measure a piece of code",
	.subjects = timed_subjects,
};
