/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: one reader-writer lock that all threads take, and one reference count that all of them use.
 *
 * Each kind of lock guards a word of its own that readers read. The writer's bench is one thread's (the others only keep
 * their CPUs busy): what a writer pays when no reader is in its way.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "cli/bench.h"

/*
 * BRAVO (Dice and Kogan, 2019): readers of any lock announce themselves in one table for all, at a place that is hashed
 * from lock and thread, while the lock is biased to them. A writer takes the lock under it, ends the bias, waits until no
 * place names this lock, and keeps the bias off for some multiple of what that took.
 */
#define BRAVO_PLACES 4096
#define BRAVO_TIMES  9

struct bravo {
	BENCH_ALIGNED pthread_rwlock_t under;
	bool biased;
	double unbiased_until; /* in ns */
};

static BENCH_ALIGNED struct bravo *bravo_places[BRAVO_PLACES];

struct guarded {
	BENCH_ALIGNED uint64_t word;
};

static struct {
	struct percpu_rwlock *percpu;
	BENCH_ALIGNED pthread_rwlock_t pthread;
	struct bravo bravo;
	struct guarded guarded[3];
} locks = { .pthread = PTHREAD_RWLOCK_INITIALIZER, .bravo = { .under = PTHREAD_RWLOCK_INITIALIZER } };

enum { GUARDED_PERCPU, GUARDED_PTHREAD, GUARDED_BRAVO };

static inline void use(unsigned which)
{
	BENCH_USE(*(volatile uint64_t *)&locks.guarded[which].word);
}

static inline void change(unsigned which)
{
	*(volatile uint64_t *)&locks.guarded[which].word = locks.guarded[which].word + 1;
}

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static inline struct bravo **bravo_place(const struct bravo *lock)
{
	uintptr_t mixed = ((uintptr_t)lock >> 7) + (uintptr_t)__builtin_thread_pointer() / 64;

	return &bravo_places[(mixed * UINT64_C(0x9e3779b97f4a7c15)) >> 52];
}

/* Returns the place to be cleared, or NULL if the lock under it is held. */
static inline struct bravo **bravo_read_lock(struct bravo *lock)
{
	if (__atomic_load_n(&lock->biased, __ATOMIC_ACQUIRE)) {
		struct bravo **place = bravo_place(lock), *none = NULL;

		if (__atomic_compare_exchange_n(place, &none, lock, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
			if (__atomic_load_n(&lock->biased, __ATOMIC_SEQ_CST))
				return place;
			__atomic_store_n(place, NULL, __ATOMIC_RELEASE);
		}
	}
	pthread_rwlock_rdlock(&lock->under);
	if (!lock->biased && now_ns() >= lock->unbiased_until)
		__atomic_store_n(&lock->biased, true, __ATOMIC_RELEASE);
	return NULL;
}

static inline void bravo_read_unlock(struct bravo *lock, struct bravo **place)
{
	if (place)
		__atomic_store_n(place, NULL, __ATOMIC_RELEASE);
	else
		pthread_rwlock_unlock(&lock->under);
}

static inline void bravo_write_lock(struct bravo *lock)
{
	pthread_rwlock_wrlock(&lock->under);
	if (lock->biased) {
		double start = now_ns(), end;

		__atomic_store_n(&lock->biased, false, __ATOMIC_SEQ_CST);
		for (unsigned i = 0; i < BRAVO_PLACES; i++)
			while (__atomic_load_n(&bravo_places[i], __ATOMIC_SEQ_CST) == lock)
				sched_yield();
		end = now_ns();
		lock->unbiased_until = end + (end - start) * BRAVO_TIMES;
	}
}

/* Reading. */

BENCH_LOOP read_percpu(struct bench_worker *worker, uint64_t n)
{
	struct percpu_rwlock *lock = locks.percpu;

	(void)worker;
	for (; n; n--) {
		percpu_rwlock_read_lock(lock);
		use(GUARDED_PERCPU);
		percpu_rwlock_read_unlock(lock);
	}
}

BENCH_LOOP read_pthread(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		pthread_rwlock_rdlock(&locks.pthread);
		use(GUARDED_PTHREAD);
		pthread_rwlock_unlock(&locks.pthread);
	}
}

BENCH_LOOP read_bravo(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct bravo **place = bravo_read_lock(&locks.bravo);

		use(GUARDED_BRAVO);
		bravo_read_unlock(&locks.bravo, place);
	}
}

BENCH_LOOP read_plain_add(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--)
		BENCH_PLAIN_ADD(worker->plain, 1);
}

static const struct bench_subject read_subjects[] = {
	{ .name = "percpu", .what = "percpu_rwlock_read_lock() and _read_unlock()", .loop = read_percpu },
	{ .name = "plain_add", .what = "one plain add to memory, as a measure", .loop = read_plain_add },
	{ .name = "bravo", .what = "a table of readers in front of a pthread_rwlock_t (BRAVO)", .loop = read_bravo },
	{ .name = "pthread_rwlock", .what = "pthread_rwlock_rdlock() and _unlock()", .loop = read_pthread },
	{ .name = NULL },
};

/* Writing. */

BENCH_LOOP write_percpu(struct bench_worker *worker, uint64_t n)
{
	struct percpu_rwlock *lock = locks.percpu;

	(void)worker;
	for (; n; n--) {
		/* Each time with a copy open, as where readers are many: else there would be nothing to fence. */
		percpu_rwlock_read_lock(lock);
		percpu_rwlock_read_unlock(lock);
		if (percpu_rwlock_write_lock(lock))
			return;
		change(GUARDED_PERCPU);
		percpu_rwlock_write_unlock(lock);
	}
}

BENCH_LOOP write_pthread(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		pthread_rwlock_wrlock(&locks.pthread);
		change(GUARDED_PTHREAD);
		pthread_rwlock_unlock(&locks.pthread);
	}
}

/* Each time with the bias on, as where readers are many: this is what its readers' speed costs. */
BENCH_LOOP write_bravo(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		__atomic_store_n(&locks.bravo.biased, true, __ATOMIC_RELEASE);
		bravo_write_lock(&locks.bravo);
		change(GUARDED_BRAVO);
		pthread_rwlock_unlock(&locks.bravo.under);
	}
}

static const struct bench_subject write_subjects[] = {
	{ .name = "percpu",
	  .what = "percpu_rwlock_write_lock() and _write_unlock(), behind a reader",
	  .loop = write_percpu,
	  .alone = true },
	{ .name = "bravo", .what = "BRAVO's writer, where readers had the bias", .loop = write_bravo, .alone = true },
	{ .name = "pthread_rwlock",
	  .what = "pthread_rwlock_wrlock() and _unlock()",
	  .loop = write_pthread,
	  .alone = true },
	{ .name = NULL },
};

static int locks_setup(unsigned threads)
{
	(void)threads;
	memset(locks.guarded, 0, sizeof locks.guarded);
	memset(bravo_places, 0, sizeof bravo_places);
	locks.bravo.biased = true;
	locks.bravo.unbiased_until = 0;
	locks.percpu = percpu_alloc(sizeof(*locks.percpu), 64);
	return locks.percpu ? percpu_rwlock_init(locks.percpu) : -ENOMEM;
}

static void locks_teardown(void)
{
	percpu_free(locks.percpu);
	locks.percpu = NULL;
}

static const char *check_free(void)
{
	if (percpu_rwlock_write_trylock(locks.percpu))
		return "a lock is not free in the end";
	percpu_rwlock_write_unlock(locks.percpu);
	for (unsigned i = 0; i < BRAVO_PLACES; i++)
		if (bravo_places[i])
			return "a reader is left in the table";
	return NULL;
}

static const char *read_check(const uint64_t *done)
{
	(void)done;
	return check_free();
}

static const char *write_check(const uint64_t *done)
{
	if (locks.guarded[GUARDED_PERCPU].word != done[0] || locks.guarded[GUARDED_BRAVO].word != done[1] ||
	    locks.guarded[GUARDED_PTHREAD].word != done[2])
		return "a writer's change is lost";
	return check_free();
}

const struct bench bench_rwlock_read_pair = {
	.name = "rwlock_read_pair",
	.what = "enter a lock as a reader, and leave",
	.subjects = read_subjects,
	.setup = locks_setup,
	.check = read_check,
	.teardown = locks_teardown,
};

const struct bench bench_rwlock_write_pair = {
	.name = "rwlock_write_pair",
	.what = "enter a lock as the writer, and leave",
	.subjects = write_subjects,
	.setup = locks_setup,
	.check = write_check,
	.teardown = locks_teardown,
};

/* Reference counts. */

static struct {
	struct percpu_ref percpu;
	BENCH_ALIGNED uint64_t shared;
	unsigned released;
} refs;

static void on_release(struct percpu_ref *ref)
{
	refs.released += ref == &refs.percpu;
}

BENCH_LOOP ref_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		percpu_ref_get(&refs.percpu);
		percpu_ref_put(&refs.percpu);
	}
}

BENCH_LOOP ref_thread_atomic(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--) {
		__atomic_fetch_add(&worker->plain, 1, __ATOMIC_RELAXED);
		__atomic_fetch_sub(&worker->plain, 1, __ATOMIC_RELEASE);
	}
}

BENCH_LOOP ref_shared_atomic(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		__atomic_fetch_add(&refs.shared, 1, __ATOMIC_RELAXED);
		if (__atomic_fetch_sub(&refs.shared, 1, __ATOMIC_ACQ_REL) == 1)
			refs.released++;
	}
}

static const struct bench_subject ref_subjects[] = {
	{ .name = "percpu", .what = "percpu_ref_get() and percpu_ref_put()", .loop = ref_percpu },
	{ .name = "plain_add", .what = "one plain add to memory, as a measure", .loop = read_plain_add },
	{ .name = "thread_atomic",
	  .what = "atomic instructions on a private word: no count can be shared for less",
	  .loop = ref_thread_atomic },
	{ .name = "shared_atomic", .what = "one atomic count for all", .loop = ref_shared_atomic },
	{ .name = NULL },
};

BENCH_LOOP kill_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		if (percpu_ref_kill(&refs.percpu) || percpu_ref_reinit(&refs.percpu))
			return;
}

static const struct bench_subject kill_subjects[] = {
	{ .name = "percpu",
	  .what = "percpu_ref_kill() with its release, and percpu_ref_reinit()",
	  .loop = kill_percpu,
	  .alone = true },
	{ .name = NULL },
};

static int ref_setup(unsigned threads)
{
	(void)threads;
	refs.shared = 1;
	refs.released = 0;
	return percpu_ref_init(&refs.percpu, on_release, 0);
}

static const char *ref_check(const uint64_t *done)
{
	(void)done;
	if (refs.released || percpu_ref_kill(&refs.percpu) || refs.released != 1 || refs.shared != 1)
		return "a count is not what it was";
	return NULL;
}

static const char *kill_check(const uint64_t *done)
{
	return refs.released == done[0] && !percpu_ref_is_dying(&refs.percpu) ? NULL
									      : "not released once for each life";
}

static void ref_teardown(void)
{
	percpu_ref_destroy(&refs.percpu);
}

const struct bench bench_ref_pair = {
	.name = "ref_pair",
	.what = "get a reference and put it back",
	.subjects = ref_subjects,
	.setup = ref_setup,
	.check = ref_check,
	.teardown = ref_teardown,
};

const struct bench bench_ref_kill = {
	.name = "ref_kill",
	.what = "end a reference count's life, and begin another",
	.subjects = kill_subjects,
	.setup = ref_setup,
	.check = kill_check,
	.teardown = ref_teardown,
};
