/* SPDX-License-Identifier: MIT */
/*
 * Mutexes: one word, an inline fast path, and waiting that does not make a convoy of the waiters.
 *
 *     static struct percpu_mutex lock = PERCPU_MUTEX_INIT;
 *     percpu_mutex_lock(&lock);
 *     ...
 *     percpu_mutex_unlock(&lock);
 *
 * While a mutex is locked its word names the CPU that its owner was on when it locked it. Who finds it locked spins, but
 * only while that may help: never if the owner was last seen on the waiter's own CPU (then it is not running), never more
 * threads at once than there are other CPUs, for about 10 us at most, and hardly ever on a mutex where that has lately not
 * helped. Then it sleeps (futex). While somebody spins, unlocking wakes nobody. A mutex is not fair from one moment to the
 * next: a thread may lock it several times in a row while others wait; but a spinning thread that has waited for some
 * microseconds asks for it, and then others let it go first. On kernels that offer it, who had to wait for a mutex asks
 * for a longer time slice while it holds it.
 *
 * A mutex that is locked again by its owner waits for ever, one that is unlocked by a thread that has not locked it is
 * unlocked all the same (both are mistakes). percpu_mutex_trylock() and percpu_mutex_unlock() are async-signal-safe, what
 * waits is not. An unlocked mutex may be freed as soon as nobody else will use it, also by who has unlocked it last.
 *
 * PERCPU_MUTEX_SHARED is for memory that several processes map. Robust mutexes (struct percpu_robust_mutex) can be
 * locked by somebody else when their owner has died.
 *
 * fork: the child has the mutexes as they were. Those that the forking thread holds, it may unlock there; what other
 * threads held stays locked until percpu_mutex_init().
 *
 * Sources: a futex word with a bit for sleepers after Ulrich Drepper ("Futexes are tricky"); few who circulate and many
 * who sleep after Dave Dice (Malthusian locks, 2017). Asking, and naming the CPU, are our own.
 */
#ifndef PERCPU_MUTEX_H
#define PERCPU_MUTEX_H

#include <time.h>

#include <percpu/rseq.h>

PERCPU_BEGIN_DECLS

/** A mutex. Fields belong to the library; src/sync/mutex.c opens with the protocol. */
struct percpu_mutex {
	uint32_t word;     /* 0: free. Changed by atomic instructions only */
	uint16_t spinners; /* threads that spin, and in which generation of forks */
	uint8_t flags;     /* PERCPU_MUTEX_*; constant */
	uint8_t doubts;    /* how often spinning has lately not helped; a hint */
	uint32_t skipped;  /* how often nobody was woken as somebody span; owner */
};

/** An unlocked mutex for the threads of one process; so is memory that is all 0. */
#define PERCPU_MUTEX_INIT                                                                                              \
	{                                                                                                              \
		0, 0, 0, 0, 0                                                                                          \
	}
#define PERCPU__MUTEX_OWNER 0xffffu /* of `word`: 0 if free, else 1 + the CPU or 0x8000 */

/** Flags of percpu_mutex_init(). */
enum {
	PERCPU_MUTEX_SHARED = 1, /**< lies in memory that several processes map */
};

/**
 * A robust mutex: if the thread that holds it ends, or its process is killed, the next one to lock it is told. Fields
 * belong to the library and the kernel.
 */
struct percpu_robust_mutex {
	uint32_t state; /* 0 not initialised, else as in src/sync/robust_mutex.c; owner */
	uint32_t flags;
	uint32_t cpu; /* as percpu_mutex.word names it; owner, a hint */
	uint32_t doubts;
	uint32_t words[2]; /* one of them: where the C library's list has it */
	uint64_t unused[2];
	void *previous, *next; /* in the owner's list, which the kernel reads when it dies */
	uint64_t end;
};

PERCPU_API void percpu__mutex_lock_slow(struct percpu_mutex *mutex) PERCPU__COLD;
PERCPU_API int percpu__mutex_trylock_slow(struct percpu_mutex *mutex) PERCPU__COLD;
PERCPU_API void percpu__mutex_unlock_slow(struct percpu_mutex *mutex) PERCPU__COLD;

/* What `word` says while the calling thread holds it: its CPU, or 0x8000 for a thread that the kernel does not serve. */
PERCPU__INLINE uint32_t percpu__mutex_mine(void)
{
	return (*(const volatile uint32_t *)&percpu__self->cpu_id_start & 0x7fff) + 1;
}

/**
 * percpu_mutex_init - make a mutex.
 *
 * @flags: 0 or PERCPU_MUTEX_SHARED
 * Also makes one free again in the child of a fork. Nobody may use @mutex meanwhile. Returns 0, or -EINVAL for other flags
 * or NULL. There is nothing to destroy. Wait-free, async-signal-safe.
 */
PERCPU_API int percpu_mutex_init(struct percpu_mutex *mutex, unsigned flags);

/**
 * percpu_mutex_lock - lock it, waiting until it is free.
 *
 * Never fails. One atomic instruction if it is free and nobody waits for it. May block. Not async-signal-safe; not a
 * cancellation point.
 */
PERCPU__INLINE void percpu_mutex_lock(struct percpu_mutex *mutex)
{
	uint32_t none = 0;

	if (PERCPU__UNLIKELY(!__atomic_compare_exchange_n(&mutex->word, &none, percpu__mutex_mine(), 0,
							  __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)))
		percpu__mutex_lock_slow(mutex);
}

/**
 * percpu_mutex_trylock - lock it if it is free.
 *
 * Returns 0, or -EBUSY if somebody holds it. Lock-free, async-signal-safe.
 */
PERCPU__INLINE int percpu_mutex_trylock(struct percpu_mutex *mutex)
{
	uint32_t none = 0;

	if (PERCPU__LIKELY(__atomic_compare_exchange_n(&mutex->word, &none, percpu__mutex_mine(), 0, __ATOMIC_ACQUIRE,
						       __ATOMIC_RELAXED)))
		return 0;
	return percpu__mutex_trylock_slow(mutex);
}

/**
 * percpu_mutex_timedlock - lock it, waiting until a moment at most.
 *
 * @clock: CLOCK_MONOTONIC, or CLOCK_REALTIME (then setting the clock moves the moment, too)
 * @moment: of that clock; one that is over makes it percpu_mutex_trylock() with another error
 * Returns 0; -ETIMEDOUT; -EINVAL for another clock or nanoseconds out of [0, 999999999], which is looked at only if the
 * mutex is not free. As percpu_mutex_lock() otherwise.
 */
PERCPU_API int percpu_mutex_timedlock(struct percpu_mutex *mutex, int clock, const struct timespec *moment);

/**
 * percpu_mutex_unlock - unlock what the calling thread has locked.
 *
 * One atomic instruction if nobody waits; else it may wake one. Lock-free. Async-signal-safe.
 */
PERCPU__INLINE void percpu_mutex_unlock(struct percpu_mutex *mutex)
{
	uint32_t word = __atomic_load_n(&mutex->word, __ATOMIC_RELAXED) & PERCPU__MUTEX_OWNER;

	if (PERCPU__UNLIKELY(
		    !__atomic_compare_exchange_n(&mutex->word, &word, 0, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)))
		percpu__mutex_unlock_slow(mutex);
}

/**
 * percpu_robust_mutex_init - make a robust mutex.
 *
 * @flags: 0 or PERCPU_MUTEX_SHARED
 * Memory that is all 0 is not one. Nobody may use @mutex meanwhile. Returns 0, or -EINVAL for other flags or NULL.
 * Wait-free, async-signal-safe.
 */
PERCPU_API int percpu_robust_mutex_init(struct percpu_robust_mutex *mutex, unsigned flags);

/**
 * percpu_robust_mutex_lock - lock it, waiting until it is free or its owner is dead.
 *
 * Returns 0; -EOWNERDEAD: locked all the same, but its last owner has died with it, and what it guards may be half
 * changed: mend that and call percpu_robust_mutex_consistent(); -ENOTRECOVERABLE: somebody was told so and unlocked it
 * without that call, from then on nobody gets it; -EDEADLK if the calling thread holds it; -EINVAL if it was not
 * initialised; -ENOTSUP if the kernel keeps no list of such mutexes for this thread, or the C library another kind of list.
 * May block. Not async-signal-safe, nor usable in a child of vfork. It shares the C library's list of robust mutexes.
 */
PERCPU_API int percpu_robust_mutex_lock(struct percpu_robust_mutex *mutex);

/** percpu_robust_mutex_trylock - the same without waiting: -EBUSY if somebody holds it, who may be the caller. */
PERCPU_API int percpu_robust_mutex_trylock(struct percpu_robust_mutex *mutex);

/** percpu_robust_mutex_timedlock - the same until a moment at most: -ETIMEDOUT, -EINVAL as percpu_mutex_timedlock(). */
PERCPU_API int percpu_robust_mutex_timedlock(struct percpu_robust_mutex *mutex, int clock,
					     const struct timespec *moment);

/**
 * percpu_robust_mutex_consistent - what it guards is whole again.
 *
 * For who got -EOWNERDEAD, while it holds it. Returns 0, or -EINVAL if @mutex is not in that state, or not the caller's.
 * Wait-free, async-signal-safe.
 */
PERCPU_API int percpu_robust_mutex_consistent(struct percpu_robust_mutex *mutex);

/** percpu_robust_mutex_unlock - unlock it. Returns 0, or -EPERM if the calling thread does not hold it. Lock-free. */
PERCPU_API int percpu_robust_mutex_unlock(struct percpu_robust_mutex *mutex);

PERCPU_END_DECLS

#endif
