/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: read a value of 64 bytes that is changed rarely.
 *
 * Nobody writes while it is measured. Rivals are what a careful program has: the value beside its lock in cache lines of
 * their own, and a seqlock whose reader copies by plain vector moves between its two looks.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "cli/bench.h"

struct value {
	uint64_t words[8];
};

static struct {
	BENCH_ALIGNED struct value plain;
	BENCH_ALIGNED pthread_rwlock_t rwlock;
	BENCH_ALIGNED struct value under_rwlock;
	BENCH_ALIGNED pthread_mutex_t mutex; /* in one line with the next, as far as it goes */
	struct value under_mutex;
	BENCH_ALIGNED uint64_t sequence;
	struct value under_sequence;
	struct percpu_seqdata *seqdata;
	struct percpu_cached cached;
} here = { .rwlock = PTHREAD_RWLOCK_INITIALIZER, .mutex = PTHREAD_MUTEX_INITIALIZER };

/* The copy is really made, each time. */
#define USE_COPY(value) __asm__ __volatile__("" : : "r"(&(value)) : "memory")

BENCH_LOOP read_percpu(struct bench_worker *worker, uint64_t n)
{
	const struct percpu_seqdata *seqdata = here.seqdata;

	(void)worker;
	for (; n; n--) {
		struct value value;

		percpu_seqdata_read(seqdata, &value, sizeof(value));
		USE_COPY(value);
	}
}

BENCH_LOOP read_version(struct bench_worker *worker, uint64_t n)
{
	const struct percpu_seqdata *seqdata = here.seqdata;

	(void)worker;
	for (; n; n--)
		BENCH_USE(percpu_seqdata_version(seqdata));
}

BENCH_LOOP read_cached(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct value value;

		percpu_cached_read(&here.cached, &value, sizeof(value));
		USE_COPY(value);
	}
}

BENCH_LOOP read_plain(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct value value = here.plain;

		USE_COPY(value);
	}
}

BENCH_LOOP read_seqlock(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct value value;
		uint64_t before;

		do {
			while ((before = __atomic_load_n(&here.sequence, __ATOMIC_ACQUIRE)) & 1)
				;
			value = here.under_sequence;
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
		} while (__atomic_load_n(&here.sequence, __ATOMIC_RELAXED) != before);
		USE_COPY(value);
	}
}

BENCH_LOOP read_rwlock(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct value value;

		pthread_rwlock_rdlock(&here.rwlock);
		value = here.under_rwlock;
		pthread_rwlock_unlock(&here.rwlock);
		USE_COPY(value);
	}
}

BENCH_LOOP read_mutex(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct value value;

		pthread_mutex_lock(&here.mutex);
		value = here.under_mutex;
		pthread_mutex_unlock(&here.mutex);
		USE_COPY(value);
	}
}

static const struct bench_subject seqdata_subjects[] = {
	{ .name = "percpu", .what = "percpu_seqdata_read() of 64 bytes", .loop = read_percpu },
	{ .name = "plain", .what = "a plain copy of 64 bytes, as a measure", .loop = read_plain },
	{ .name = "version", .what = "percpu_seqdata_version(): has it changed?", .loop = read_version },
	{ .name = "cached", .what = "percpu_cached_read(): what was made of it, for each index", .loop = read_cached },
	{ .name = "seqlock", .what = "a seqlock, whose readers wait for a writer", .loop = read_seqlock },
	{ .name = "rwlock", .what = "a copy under a pthread rwlock", .loop = read_rwlock },
	{ .name = "mutex", .what = "a copy under a pthread mutex", .loop = read_mutex },
	{ .name = NULL },
};

static int64_t copy(const struct percpu_seqdata *from, void *out, void *arg)
{
	(void)arg;
	return percpu_seqdata_read(from, out, sizeof(struct value));
}

static int seqdata_setup(unsigned threads)
{
	int rc;

	(void)threads;
	for (size_t i = 0; i < 8; i++)
		here.plain.words[i] = i;
	here.under_rwlock = here.under_mutex = here.under_sequence = here.plain;
	rc = percpu_seqdata_create(sizeof(struct value), &here.plain, &here.seqdata);
	return rc ? rc : percpu_cached_init(&here.cached, here.seqdata, sizeof(struct value), copy, NULL);
}

static const char *seqdata_check(const uint64_t *done)
{
	struct value value;

	(void)done;
	if (percpu_cached_read(&here.cached, &value, sizeof(value)) != 1 ||
	    memcmp(&value, &here.plain, sizeof(value)) != 0)
		return "the value that was read is wrong";
	return NULL;
}

static void seqdata_teardown(void)
{
	percpu_cached_destroy(&here.cached);
	percpu_seqdata_free(here.seqdata);
	here.seqdata = NULL;
}

const struct bench bench_seqdata_read = {
	.name = "seqdata_read",
	.what = "copy a value of 64 bytes that changes rarely",
	.subjects = seqdata_subjects,
	.setup = seqdata_setup,
	.check = seqdata_check,
	.teardown = seqdata_teardown,
};
