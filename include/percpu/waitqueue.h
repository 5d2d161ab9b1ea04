/* SPDX-License-Identifier: MIT */
/*
 * Wait queues: threads wait, each on a place of its own, and are woken in the order in which they came.
 *
 *     waiting:                                             waking:
 *         struct percpu_waiter me;                             ready = true;
 *         percpu_waitqueue_add(&queue, &me);                   percpu_waitqueue_wake_all(&queue);
 *         if (ready)
 *             percpu_waitqueue_cancel(&queue, &me);
 *         else
 *             percpu_waitqueue_wait(&queue, &me, CLOCK_MONOTONIC, NULL);
 *
 * Whoever makes the condition true before it wakes, and looks at the condition only after it was added, cannot miss the
 * other: no mutex is needed for that. (The condition itself is read and written by atomic operations, or under a lock.)
 * A waiter spins for some microseconds as long as that has lately helped, then sleeps.
 *
 * Adding is one compare-and-swap on a stack; there is no lock that a waiter or waker waits for. Whoever wakes while
 * another thread is at it leaves the work to that one and returns: so what it asked for may happen a little later, and may
 * reach a waiter who came a little later. A waiter may therefore be woken for nothing, and looks at its condition again.
 *
 * A struct percpu_waiter is on the waiter's stack, and belongs to the queue from percpu_waitqueue_add() until
 * percpu_waitqueue_wait() or percpu_waitqueue_cancel() returns, which one of must be called. After that nobody touches it.
 *
 * Between processes (PERCPU_WAITQUEUE_SHARED) the queue and the waiters lie in one mapping, which each process may have at
 * another address: the list is one of distances from the queue. A process that is killed in the middle of one of these
 * calls may leave the queue of no use to the others (as a condition variable); one that is killed while it waits does not.
 *
 * fork: a child has the queue as it was, with waiters that do not exist there: percpu_waitqueue_init() empties it.
 *
 * Sources: a stack of waiters that the waker takes as a whole, after liburcu's urcu_wait (Mathieu Desnoyers); leaving work
 * to who is at it already after flat combining (Hendler, Incze, Shavit, Tzafrir, 2010).
 */
#ifndef PERCPU_WAITQUEUE_H
#define PERCPU_WAITQUEUE_H

#include <stdint.h>
#include <time.h>

#include <percpu/base.h>

PERCPU_BEGIN_DECLS

/** A queue. Fields belong to the library; src/sync/waitqueue.c opens with the protocol. */
struct percpu_waitqueue {
	uint32_t control;    /* who is at it, and what is left to it */
	uint32_t waiters;    /* added, and not yet taken out */
	int64_t added;       /* the last one added; any waiter */
	int64_t first, last; /* in the order of their coming; who is at it */
	uint8_t flags;       /* PERCPU_WAITQUEUE_*; constant */
	uint8_t doubts;      /* how often spinning has lately not helped; a hint */
};

/** An empty queue for the threads of one process; so is memory that is all 0. */
#define PERCPU_WAITQUEUE_INIT                                                                                          \
	{                                                                                                              \
		0, 0, 0, 0, 0, 0, 0                                                                                    \
	}

/** Flags of percpu_waitqueue_init(). */
enum {
	PERCPU_WAITQUEUE_SHARED = 1, /**< lies with its waiters in memory that several processes map */
};

/** One who waits. Needs no initialisation; fields belong to the library. */
struct percpu_waiter {
	int64_t next, previous;
	uint32_t state;
	uint32_t unused;
};

PERCPU_API void percpu__waitqueue_wake_slow(struct percpu_waitqueue *queue, uint32_t how_many) PERCPU__COLD;

/**
 * percpu_waitqueue_init - make an empty queue, whoever is in it.
 *
 * @flags: 0 or PERCPU_WAITQUEUE_SHARED
 * Nobody may use @queue meanwhile. Returns 0, or -EINVAL for other flags or NULL. There is nothing to destroy.
 * Wait-free, async-signal-safe.
 */
PERCPU_API int percpu_waitqueue_init(struct percpu_waitqueue *queue, unsigned flags);

/**
 * percpu_waitqueue_add - from now on @waiter will be woken.
 *
 * A full memory barrier: what the caller reads afterwards is newer than that. Lock-free. Not async-signal-safe, as nothing
 * that waits is.
 */
PERCPU_API void percpu_waitqueue_add(struct percpu_waitqueue *queue, struct percpu_waiter *waiter);

/**
 * percpu_waitqueue_wait - wait until @waiter is woken.
 *
 * @clock, @moment: until then at most; CLOCK_MONOTONIC or CLOCK_REALTIME, NULL for ever
 * Returns 0 (everything that was written before waking is visible), also for nothing; -ETIMEDOUT; -EINVAL for another clock
 * or nanoseconds out of [0, 999999999]. In any case @waiter is out of the queue. May block. Not a cancellation point.
 */
PERCPU_API int percpu_waitqueue_wait(struct percpu_waitqueue *queue, struct percpu_waiter *waiter, int clock,
				     const struct timespec *moment);

/**
 * percpu_waitqueue_cancel - do not wait after all.
 *
 * A wake-up that had reached @waiter is passed on to the next. May wait for who is just taking it out.
 */
PERCPU_API void percpu_waitqueue_cancel(struct percpu_waitqueue *queue, struct percpu_waiter *waiter);

/**
 * percpu_waitqueue_wake - wake those who have waited longest.
 *
 * @how_many: at most; waking more than 2^29 is waking all. A full memory barrier and a load if nobody waits.
 * Lock-free (it does all that was left to it meanwhile). Async-signal-safe.
 */
PERCPU__INLINE void percpu_waitqueue_wake(struct percpu_waitqueue *queue, uint32_t how_many)
{
	/* Pairs with adding: either the waiter is seen here, or it sees what the caller has written before. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (PERCPU__UNLIKELY(__atomic_load_n(&queue->waiters, __ATOMIC_RELAXED)))
		percpu__waitqueue_wake_slow(queue, how_many);
}

/** percpu_waitqueue_wake_all - wake all who wait. As percpu_waitqueue_wake(). */
PERCPU__INLINE void percpu_waitqueue_wake_all(struct percpu_waitqueue *queue)
{
	percpu_waitqueue_wake(queue, UINT32_MAX);
}

PERCPU_END_DECLS

#endif
