/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: a lock of one's own, and somebody else's.
 *
 * spinlock_pair is lock and unlock with nothing in between, and nobody else who wants the lock. Rivals have a lock for each
 * thread, or for each CPU, in a cache line of its own. spinlock_remote is a lock that is another index's or thread's, taken
 * by the first thread of a run while the others keep their CPUs busy.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "cli/bench.h"

struct spin {
	BENCH_ALIGNED pthread_spinlock_t lock;
};

struct mutex {
	BENCH_ALIGNED pthread_mutex_t lock;
};

static struct {
	struct percpu_spinlock *percpu, *remote;
	struct spin *by_cpu, *spins;
	struct mutex *mutexes;
	unsigned cpus, threads;
} locks;

BENCH_LOOP pair_percpu(struct bench_worker *worker, uint64_t n)
{
	struct percpu_spinlock *lock = locks.percpu;

	(void)worker;
	for (; n; n--)
		percpu_spinlock_unlock(percpu_spinlock_lock(lock));
}

BENCH_LOOP pair_pthread_spin(struct bench_worker *worker, uint64_t n)
{
	pthread_spinlock_t *lock = &locks.spins[worker->id].lock;

	for (; n; n--) {
		pthread_spin_lock(lock);
		pthread_spin_unlock(lock);
	}
}

BENCH_LOOP pair_pthread_spin_percpu(struct bench_worker *worker, uint64_t n)
{
	struct spin *by_cpu = locks.by_cpu;

	(void)worker;
	for (; n; n--) {
		pthread_spinlock_t *lock = &by_cpu[percpu_cpu()].lock;

		pthread_spin_lock(lock);
		pthread_spin_unlock(lock);
	}
}

BENCH_LOOP pair_pthread_mutex(struct bench_worker *worker, uint64_t n)
{
	pthread_mutex_t *lock = &locks.mutexes[worker->id].lock;

	for (; n; n--) {
		pthread_mutex_lock(lock);
		pthread_mutex_unlock(lock);
	}
}

/* Whose threads run elsewhere, as far as there are any: with one index, the remainder. */
static unsigned another_index(void)
{
	unsigned mine = (unsigned)percpu_cid();

	return mine ? 0 : 1;
}

BENCH_LOOP remote_percpu(struct bench_worker *worker, uint64_t n)
{
	struct percpu_spinlock *lock = locks.remote;
	unsigned index = another_index();

	(void)worker;
	for (; n; n--) {
		if (percpu_spinlock_lock_index(lock, index))
			return;
		percpu_spinlock_unlock(percpu_ptr(lock, index));
	}
}

/* No thread runs sections on this lock, so nobody minds that the bias is given back like this. */
static void give_bias(struct percpu_spinlock *lock, unsigned index)
{
	struct percpu_description how;

	if (percpu_describe(&how) == 0 && how.mode != PERCPU_MODE_NONE && index + 1 < percpu_copies())
		percpu_ptr(lock, index)->bias = 1;
}

BENCH_LOOP remote_percpu_biased(struct bench_worker *worker, uint64_t n)
{
	struct percpu_spinlock *lock = locks.remote;
	unsigned index = another_index();

	(void)worker;
	for (; n; n--) {
		give_bias(lock, index);
		if (percpu_spinlock_lock_index(lock, index))
			return;
		percpu_spinlock_unlock(percpu_ptr(lock, index));
	}
}

BENCH_LOOP remote_percpu_all(struct bench_worker *worker, uint64_t n)
{
	struct percpu_spinlock *lock = locks.remote;
	unsigned index = another_index();

	(void)worker;
	for (; n; n--) {
		give_bias(lock, index);
		if (percpu_spinlock_lock_all(lock))
			return;
		percpu_spinlock_unlock_all(lock);
	}
}

BENCH_LOOP remote_pthread_spin(struct bench_worker *worker, uint64_t n)
{
	pthread_spinlock_t *lock = &locks.spins[(worker->id + 1) % locks.threads].lock;

	for (; n; n--) {
		pthread_spin_lock(lock);
		pthread_spin_unlock(lock);
	}
}

static const struct bench_subject pair_subjects[] = {
	{ .name = "percpu", .what = "percpu_spinlock_lock() and percpu_spinlock_unlock()", .loop = pair_percpu },
	{ .name = "pthread_spin", .what = "a pthread spinlock for each thread", .loop = pair_pthread_spin },
	{ .name = "pthread_spin_percpu",
	  .what = "one for each CPU, by percpu_cpu()",
	  .loop = pair_pthread_spin_percpu },
	{ .name = "pthread_mutex", .what = "a pthread mutex for each thread", .loop = pair_pthread_mutex },
	{ .name = NULL },
};

static const struct bench_subject remote_subjects[] = {
	{ .name = "percpu",
	  .what = "percpu_spinlock_lock_index() and unlock, the bias ended before",
	  .loop = remote_percpu,
	  .alone = true },
	{ .name = "percpu_biased",
	  .what = "the same, with a bias to end each time",
	  .loop = remote_percpu_biased,
	  .alone = true },
	{ .name = "percpu_all",
	  .what = "percpu_spinlock_lock_all() and unlock, with a bias to end",
	  .loop = remote_percpu_all,
	  .alone = true },
	{ .name = "pthread_spin",
	  .what = "another thread's pthread spinlock",
	  .loop = remote_pthread_spin,
	  .alone = true },
	{ .name = NULL },
};

static void teardown(void)
{
	percpu_free(locks.percpu);
	percpu_free(locks.remote);
	free(locks.by_cpu);
	free(locks.spins);
	free(locks.mutexes);
	locks.percpu = locks.remote = NULL;
	locks.by_cpu = locks.spins = NULL;
	locks.mutexes = NULL;
}

static int setup(unsigned threads)
{
	locks.threads = threads;
	locks.cpus = percpu_possible_cpus();
	locks.percpu = percpu_alloc(64, 64);
	locks.remote = percpu_alloc(64, 64);
	locks.by_cpu = aligned_alloc(_Alignof(struct spin), locks.cpus * sizeof *locks.by_cpu);
	locks.spins = aligned_alloc(_Alignof(struct spin), threads * sizeof *locks.spins);
	locks.mutexes = aligned_alloc(_Alignof(struct mutex), threads * sizeof *locks.mutexes);
	if (!locks.percpu || !locks.remote || !locks.by_cpu || !locks.spins || !locks.mutexes)
		return -ENOMEM;
	for (unsigned i = 0; i < locks.cpus; i++)
		pthread_spin_init(&locks.by_cpu[i].lock, PTHREAD_PROCESS_PRIVATE);
	for (unsigned i = 0; i < threads; i++) {
		pthread_spin_init(&locks.spins[i].lock, PTHREAD_PROCESS_PRIVATE);
		pthread_mutex_init(&locks.mutexes[i].lock, NULL);
	}
	return 0;
}

static const char *check(const uint64_t *done)
{
	(void)done;
	percpu_for_each_index(index)
		if (percpu_ptr(locks.percpu, index)->held || percpu_ptr(locks.remote, index)->held)
			return "a lock is held at the end";
	return NULL;
}

const struct bench bench_spinlock_pair = {
	.name = "spinlock_pair",
	.what = "lock and unlock what nobody else wants",
	.subjects = pair_subjects,
	.setup = setup,
	.check = check,
	.teardown = teardown,
};

const struct bench bench_spinlock_remote = {
	.name = "spinlock_remote",
	.what = "lock and unlock what is another CPU's (one thread does, others run)",
	.subjects = remote_subjects,
	.setup = setup,
	.check = check,
	.teardown = teardown,
};
