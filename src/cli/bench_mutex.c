/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: one mutex that several threads want.
 *
 * Each thread locks it, adds to what it guards, holds it for a time by the processor's clock, unlocks it, and spends as
 * long outside. A round lasts for a given time, and what counts is how much all of them have done in it: with a fixed
 * number of operations for each thread, an unfair lock would have the last of them run alone. How long each call of lock
 * took is kept, too. mutex_pair is the other thing: a mutex for each thread, that nobody else wants.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/bench.h"

#define CROWD      16
#define MIN_ROUNDS 3
#define MAX_ROUNDS 200
#define BUCKETS    1024

struct locks {
	BENCH_ALIGNED struct percpu_mutex percpu;
	BENCH_ALIGNED pthread_mutex_t normal;
	BENCH_ALIGNED pthread_mutex_t adaptive;
	BENCH_ALIGNED pthread_spinlock_t spin;
	BENCH_ALIGNED uint64_t guarded;
};

static struct locks *locks; /* of each thread, or the first for all */

static int make_locks(unsigned count)
{
	pthread_mutexattr_t attr;

	locks = aligned_alloc(_Alignof(struct locks), count * sizeof *locks);
	if (!locks)
		return -ENOMEM;
	memset(locks, 0, count * sizeof *locks);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
	for (unsigned i = 0; i < count; i++) {
		percpu_mutex_init(&locks[i].percpu, 0);
		pthread_mutex_init(&locks[i].normal, NULL);
		pthread_mutex_init(&locks[i].adaptive, &attr);
		pthread_spin_init(&locks[i].spin, PTHREAD_PROCESS_PRIVATE);
	}
	pthread_mutexattr_destroy(&attr);
	return 0;
}

static void free_locks(void)
{
	free(locks);
	locks = NULL;
}

BENCH_LOOP pair_percpu(struct bench_worker *worker, uint64_t n)
{
	struct percpu_mutex *lock = &locks[worker->id].percpu;

	for (; n; n--) {
		percpu_mutex_lock(lock);
		percpu_mutex_unlock(lock);
	}
}

BENCH_LOOP pair_normal(struct bench_worker *worker, uint64_t n)
{
	pthread_mutex_t *lock = &locks[worker->id].normal;

	for (; n; n--) {
		pthread_mutex_lock(lock);
		pthread_mutex_unlock(lock);
	}
}

BENCH_LOOP pair_adaptive(struct bench_worker *worker, uint64_t n)
{
	pthread_mutex_t *lock = &locks[worker->id].adaptive;

	for (; n; n--) {
		pthread_mutex_lock(lock);
		pthread_mutex_unlock(lock);
	}
}

BENCH_LOOP pair_spin(struct bench_worker *worker, uint64_t n)
{
	pthread_spinlock_t *lock = &locks[worker->id].spin;

	for (; n; n--) {
		pthread_spin_lock(lock);
		pthread_spin_unlock(lock);
	}
}

/* One thread of a round. */
struct contender {
	BENCH_ALIGNED pthread_t thread;
	unsigned id, threads;
	const struct bench_subject *subject;
	double start, end;       /* of this round, in ns */
	uint64_t done;           /* in all rounds of the subject, as the next */
	uint32_t waits[BUCKETS]; /* of lock, by bucket */
};

static struct {
	pthread_mutex_t gate; /* held until it is known whether all threads could be made */
	pthread_barrier_t barrier;
	bool cancelled;
	double ticks_per_ns;
	uint64_t hold; /* ticks */
	bool stop;
} contest = { .gate = PTHREAD_MUTEX_INITIALIZER };

static inline uint64_t ticks(void)
{
#if defined __x86_64__
	return __builtin_ia32_rdtsc();
#else
	return percpu__ticks();
#endif
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* 16 buckets for each power of two. */
static unsigned bucket_of(uint64_t value)
{
	unsigned shift;

	if (value < 32)
		return (unsigned)value;
	shift = 59U - (unsigned)__builtin_clzll(value);
	return 16 * shift + (unsigned)(value >> shift) < BUCKETS ? 16 * shift + (unsigned)(value >> shift)
								 : BUCKETS - 1;
}

static double bucket_middle(unsigned bucket)
{
	unsigned shift = bucket < 32 ? 0 : bucket / 16 - 1;

	return ((double)(bucket - 16 * shift) + (shift ? 0.5 : 0)) * (double)(1ULL << shift);
}

static inline void spend(uint64_t since, uint64_t time)
{
	while (ticks() - since < time)
		;
}

/* The loop of each subject, with its own calls inlined. */
#define CONTEND(NAME, FIELD, LOCK, UNLOCK)                                                                             \
	BENCH_LOOP NAME(struct bench_worker *worker, uint64_t n)                                                       \
	{                                                                                                              \
		struct contender *me = (struct contender *)worker;                                                     \
		const uint64_t hold = contest.hold;                                                                    \
		uint64_t done = 0;                                                                                     \
                                                                                                                       \
		(void)n;                                                                                               \
		while (!__atomic_load_n(&contest.stop, __ATOMIC_RELAXED)) {                                            \
			uint64_t before = ticks(), at;                                                                 \
                                                                                                                       \
			LOCK(&locks->FIELD);                                                                           \
			at = ticks();                                                                                  \
			*(volatile uint64_t *)&locks->guarded += 1;                                                    \
			spend(at, hold);                                                                               \
			UNLOCK(&locks->FIELD);                                                                         \
			me->waits[bucket_of(at - before)]++;                                                           \
			done++;                                                                                        \
		}                                                                                                      \
		me->done += done;                                                                                      \
	}

CONTEND(contend_percpu, percpu, percpu_mutex_lock, percpu_mutex_unlock)
CONTEND(contend_normal, normal, pthread_mutex_lock, pthread_mutex_unlock)
CONTEND(contend_adaptive, adaptive, pthread_mutex_lock, pthread_mutex_unlock)
CONTEND(contend_spin, spin, pthread_spin_lock, pthread_spin_unlock)

/* As many as the threads, but two for a crowd: the @nth of those that this process may use, or all of them. */
static void stay(unsigned nth, unsigned threads)
{
	unsigned count = threads < CROWD ? threads : 2, seen = 0;
	cpu_set_t allowed, own;

	if (bench_cpus() < count || sched_getaffinity(0, sizeof allowed, &allowed))
		return;
	CPU_ZERO(&own);
	for (size_t cpu = 0; cpu < CPU_SETSIZE && seen < count; cpu++)
		if (CPU_ISSET(cpu, &allowed) && (seen++ == nth || count < threads))
			CPU_SET(cpu, &own);
	sched_setaffinity(0, sizeof own, &own);
}

static void *contend(void *arg)
{
	struct contender *me = arg;

	pthread_mutex_lock(&contest.gate);
	pthread_mutex_unlock(&contest.gate);
	if (contest.cancelled)
		return NULL;
	stay(me->id, me->threads);
	pthread_barrier_wait(&contest.barrier);
	me->start = now();
	me->subject->loop((struct bench_worker *)me, 0);
	me->end = now();
	return NULL;
}

static uint64_t all_done(const struct contender *them, unsigned threads)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < threads; i++)
		sum += them[i].done;
	return sum;
}

/* Returns ns per operation and thread, or 0 if the threads could not be made. */
static double one_round(struct contender *them, unsigned threads, double round_ns)
{
	struct timespec time = { .tv_sec = (time_t)(round_ns / 1e9),
				 .tv_nsec = (long)(round_ns - (double)(time_t)(round_ns / 1e9) * 1e9) };
	uint64_t before = all_done(them, threads);
	unsigned made = 0;
	double start = 0, end = 0;

	__atomic_store_n(&contest.stop, false, __ATOMIC_RELAXED);
	if (pthread_barrier_init(&contest.barrier, NULL, threads + 1))
		return 0;
	pthread_mutex_lock(&contest.gate);
	while (made < threads && pthread_create(&them[made].thread, NULL, contend, &them[made]) == 0)
		made++;
	contest.cancelled = made < threads;
	pthread_mutex_unlock(&contest.gate);
	if (!contest.cancelled)
		pthread_barrier_wait(&contest.barrier);
	if (made == threads)
		nanosleep(&time, NULL);
	__atomic_store_n(&contest.stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < made; i++) {
		pthread_join(them[i].thread, NULL);
		start = i == 0 || them[i].start < start ? them[i].start : start;
		end = i == 0 || them[i].end > end ? them[i].end : end;
	}
	pthread_barrier_destroy(&contest.barrier);
	before = all_done(them, threads) - before;
	return made == threads ? (end - start) * threads / (double)(before ? before : 1) : 0;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void sum_up(struct bench_cell *cell, double *times, size_t rounds, const struct contender *them,
		   unsigned threads)
{
	uint64_t most = 0, least = UINT64_MAX, all = all_done(them, threads), seen = 0;
	unsigned bucket = BUCKETS;

	qsort(times, rounds, sizeof *times, by_size);
	cell->best = times[0];
	cell->median = (times[(rounds - 1) / 2] + times[rounds / 2]) / 2;
	for (unsigned i = 0; i < threads; i++) {
		most = them[i].done > most ? them[i].done : most;
		least = them[i].done < least ? them[i].done : least;
	}
	cell->unfairness = (double)most / (double)(least ? least : 1);
	while (bucket && seen <= all / 1000) {
		bucket--;
		for (unsigned i = 0; i < threads; i++)
			seen += them[i].waits[bucket];
	}
	cell->p999 = bucket_middle(bucket) / contest.ticks_per_ns;
	if (cell->p999 <= 0)
		cell->p999 = 0.5 / contest.ticks_per_ns;
}

static void set_clock(double hold_ns)
{
	contest.ticks_per_ns = 1e9 / (double)percpu_timed_ns(1000000000);
	contest.hold = (uint64_t)(hold_ns * contest.ticks_per_ns);
}

static int contest_run(const struct bench *bench, unsigned threads, double seconds, double round_ns, double hold_ns,
		       struct bench_cell *cells, const char **error)
{
	size_t subjects = bench_subjects(bench), rounds = 0;
	double until = now() + seconds * 1e9, least = threads < CROWD ? 1e6 : 8e6,
	       longest = threads < CROWD ? 3e7 : 1.5e8;
	struct contender *them = aligned_alloc(_Alignof(struct contender), subjects * threads * sizeof *them);
	double *times = calloc(subjects * MAX_ROUNDS, sizeof *times);
	int rc = make_locks(1);

	/* Long, so that everybody has had a CPU several times; but there must be some of them. */
	round_ns = seconds * 1e9 / (double)(subjects * 8);
	round_ns = round_ns < least ? least : round_ns > longest ? longest : round_ns;
	*error = "no memory";
	if (!them || !times || rc) {
		rc = -ENOMEM;
		goto out;
	}
	memset(them, 0, subjects * threads * sizeof *them);
	set_clock(hold_ns);
	for (size_t s = 0; s < subjects; s++) {
		cells[s] = (struct bench_cell){ .bench = bench, .subject = &bench->subjects[s], .threads = threads };
		for (unsigned i = 0; i < threads; i++) {
			them[s * threads + i].id = i;
			them[s * threads + i].threads = threads;
			them[s * threads + i].subject = &bench->subjects[s];
		}
	}
	for (; rounds < MIN_ROUNDS || (rounds < MAX_ROUNDS && now() < until); rounds++) {
		for (size_t i = 0; i < subjects; i++) {
			size_t s = (rounds + i) % subjects;
			double time = one_round(&them[s * threads], threads, round_ns);

			*error = "cannot start the threads";
			rc = -EAGAIN;
			if (time == 0)
				goto out;
			times[s * MAX_ROUNDS + rounds] = time;
		}
	}
	for (size_t s = 0; s < subjects; s++)
		sum_up(&cells[s], &times[s * MAX_ROUNDS], rounds, &them[s * threads], threads);
	*error = "not every addition under the lock is there";
	rc = locks->guarded == all_done(them, (unsigned)subjects * threads) ? 0 : -EIO;
out:
	free_locks();
	free(times);
	free(them);
	return rc;
}

static int run_50ns(const struct bench *bench, unsigned threads, double seconds, double round_ns,
		    struct bench_cell *cells, const char **error)
{
	return contest_run(bench, threads, seconds, round_ns, 50, cells, error);
}

static int run_1us(const struct bench *bench, unsigned threads, double seconds, double round_ns,
		   struct bench_cell *cells, const char **error)
{
	return contest_run(bench, threads, seconds, round_ns, 1000, cells, error);
}

static const struct bench_subject pair_subjects[] = {
	{ .name = "percpu", .what = "percpu_mutex_lock() and percpu_mutex_unlock()", .loop = pair_percpu },
	{ .name = "pthread_mutex", .what = "a normal pthread mutex", .loop = pair_normal },
	{ .name = "pthread_adaptive", .what = "one of PTHREAD_MUTEX_ADAPTIVE_NP", .loop = pair_adaptive },
	{ .name = "pthread_spin", .what = "a pthread spinlock", .loop = pair_spin },
	{ .name = NULL },
};

static const struct bench_subject contest_subjects[] = {
	{ .name = "percpu", .what = "percpu_mutex_lock() and percpu_mutex_unlock()", .loop = contend_percpu },
	{ .name = "pthread_mutex", .what = "a normal pthread mutex", .loop = contend_normal },
	{ .name = "pthread_adaptive", .what = "one of PTHREAD_MUTEX_ADAPTIVE_NP", .loop = contend_adaptive },
	{ .name = "pthread_spin", .what = "a pthread spinlock", .loop = contend_spin },
	{ .name = NULL },
};

const struct bench bench_mutex_pair = {
	.name = "mutex_pair",
	.what = "lock and unlock a mutex that nobody else wants",
	.subjects = pair_subjects,
	.setup = make_locks,
	.teardown = free_locks,
};

const struct bench bench_mutex_50ns = {
	.name = "mutex_50ns",
	.what = "one mutex for two threads, held for 50 ns, then 50 ns without it",
	.subjects = contest_subjects,
	.threads = 2,
	.run = run_50ns,
};

const struct bench bench_mutex_1us = {
	.name = "mutex_1us",
	.what = "one mutex for two threads, held for 1 us, then 1 us without it",
	.subjects = contest_subjects,
	.threads = 2,
	.run = run_1us,
};

const struct bench bench_mutex_crowd = {
	.name = "mutex_crowd",
	.what = "one mutex for 16 threads on two CPUs, held for 50 ns, then 50 ns without it",
	.subjects = contest_subjects,
	.threads = CROWD,
	.weight = 4,
	.run = run_50ns,
};
