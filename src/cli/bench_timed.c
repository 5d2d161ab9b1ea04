/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: measure how long a piece of code took, here none; and read a performance counter.
 *
 * Of the ways to measure, only ours and the system call's counts tell whether anything came in between.
 */
#include <errno.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

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

/* ---- perf_read: a thread's instructions, or, where the machine counts none, its time on a CPU */

static struct percpu_perf counted[BENCH_MAX_THREADS]; /* by worker */
static int64_t perf_failures;

static const char *skip_perf(enum percpu_perf_event event, bool by_page)
{
	const char *reason;
	struct percpu_perf perf;

	if (percpu_perf_open(&perf, event, PERCPU_PERF_THREAD, &reason))
		return reason;
	percpu_perf_close(&perf);
	return by_page ? reason : NULL;
}

static const char *skip_perf_page(void)
{
	return skip_perf(PERCPU_PERF_INSTRUCTIONS, true);
}

static const char *skip_perf_read(void)
{
	return skip_perf(PERCPU_PERF_TASK_CLOCK, false);
}

static int perf_setup(unsigned threads)
{
	struct rlimit files;

	perf_failures = 0;
	/* One for each thread. */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < threads + 100) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	return 0;
}

static void perf_begin(struct bench_worker *worker)
{
	struct percpu_perf *mine = &counted[worker->id];

	if (percpu_perf_open(mine, PERCPU_PERF_INSTRUCTIONS, PERCPU_PERF_THREAD, NULL))
		percpu_perf_open(mine, PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD, NULL);
}

BENCH_LOOP perf_percpu(struct bench_worker *worker, uint64_t n)
{
	const struct percpu_perf *mine = &counted[worker->id];

	for (; n; n--) {
		struct percpu_perf_value value;

		if (percpu_perf_read(mine, &value) == 0)
			BENCH_USE(value.count);
	}
}

BENCH_LOOP perf_syscall(struct bench_worker *worker, uint64_t n)
{
	int file = counted[worker->id].file;

	for (; n; n--) {
		uint64_t value[3];

		if (read(file, value, sizeof(value)) != sizeof(value))
			__atomic_fetch_add(&perf_failures, 1, __ATOMIC_RELAXED);
	}
}

static const char *perf_check(const uint64_t *done)
{
	(void)done;
	return perf_failures ? "read(2) of a counter failed (too many open files?)" : NULL;
}

static void perf_teardown(void)
{
	for (size_t i = 0; i < BENCH_MAX_THREADS; i++)
		percpu_perf_close(&counted[i]);
}

static const struct bench_subject perf_subjects[] = {
	{ .name = "percpu", .what = "percpu_perf_read(), as this machine lets it", .loop = perf_percpu },
	{ .name = "percpu_page",
	  .what = "the same, only where no system call is needed",
	  .loop = perf_percpu,
	  .skip = skip_perf_page },
	{ .name = "syscall", .what = "read(2) of the same event", .loop = perf_syscall, .skip = skip_perf_read },
	{ .name = NULL },
};

const struct bench bench_perf_read = {
	.name = "perf_read",
	.what = "read a performance counter of the own thread",
	.subjects = perf_subjects,
	.setup = perf_setup,
	.begin = perf_begin,
	.check = perf_check,
	.teardown = perf_teardown,
};
