/* SPDX-License-Identifier: MIT */
/*
 * Event counts: wait for any condition, without a mutex around it.
 *
 *     waiting:                                                     making it true:
 *         while (!ready) {                                             ready = true;
 *             uint32_t key = percpu_eventcount_prepare(&event);        percpu_eventcount_notify_all(&event);
 *             if (ready)
 *                 percpu_eventcount_cancel(&event);
 *             else
 *                 percpu_eventcount_wait(&event, key, CLOCK_MONOTONIC, NULL);
 *         }
 *
 * In place of a condition variable where notifying is frequent and waiting is not, or not for long: notifying costs a
 * memory barrier and a load while nobody waits, and no lock is held by who makes the condition true. Who waits spins for
 * some microseconds as long as that has lately helped, then sleeps. The condition is read and written by atomic operations.
 *
 * All who wait sleep on one word: so waking all is one system call, however many they are, and who stops waiting has
 * nothing to take back but a count. (Where each waiter needs a place of its own, and the order counts: percpu/waitqueue.h.)
 *
 * Between processes: PERCPU_EVENTCOUNT_SHARED. A process that is killed while it waits only makes notifying a little slower
 * from then on. The same holds for the child of a fork, with regard to those who waited then; percpu_eventcount_init() mends
 * both. 2^32 notifications between prepare and wait are taken for none.
 *
 * Source: event counts after Dmitry Vyukov; the name is Reed and Kanodia's (1979).
 */
#ifndef PERCPU_EVENTCOUNT_H
#define PERCPU_EVENTCOUNT_H

#include <stdint.h>
#include <time.h>

#include <percpu/base.h>

PERCPU_BEGIN_DECLS

/** An event count. Fields belong to the library. */
struct percpu_eventcount {
	uint32_t epoch;    /* of notifications while somebody waited; any thread */
	uint32_t waiters;  /* who have prepared to wait; any thread */
	uint32_t sleepers; /* those of them who sleep, or are about to; any thread */
	uint8_t flags;     /* PERCPU_EVENTCOUNT_*; constant */
	uint8_t doubts;    /* how often spinning has lately not helped; a hint */
};

/** One for the threads of one process; so is memory that is all 0. */
#define PERCPU_EVENTCOUNT_INIT                                                                                         \
	{                                                                                                              \
		0, 0, 0, 0, 0                                                                                          \
	}

/** Flags of percpu_eventcount_init(). */
enum {
	PERCPU_EVENTCOUNT_SHARED = 1, /**< lies in memory that several processes map */
};

PERCPU_API void percpu__eventcount_notify_slow(struct percpu_eventcount *event, int how_many) PERCPU__COLD;

/**
 * percpu_eventcount_init - make one that nobody waits for.
 *
 * @flags: 0 or PERCPU_EVENTCOUNT_SHARED
 * Nobody may use @event meanwhile. Returns 0, or -EINVAL for other flags or NULL. There is nothing to destroy.
 * Wait-free, async-signal-safe.
 */
PERCPU_API int percpu_eventcount_init(struct percpu_eventcount *event, unsigned flags);

/**
 * percpu_eventcount_prepare - from now on no notification is missed.
 *
 * Returns a key for percpu_eventcount_wait(). That, or percpu_eventcount_cancel(), must follow, after a look at the
 * condition. A full memory barrier: what the caller reads afterwards is newer. Wait-free, async-signal-safe.
 */
PERCPU__INLINE uint32_t percpu_eventcount_prepare(struct percpu_eventcount *event)
{
	__atomic_fetch_add(&event->waiters, 1, __ATOMIC_SEQ_CST);
	/* The key is older than what the caller reads, so that no notification in between goes unseen. */
	return __atomic_load_n(&event->epoch, __ATOMIC_SEQ_CST);
}

/** percpu_eventcount_cancel - do not wait after all. Wait-free, async-signal-safe. */
PERCPU__INLINE void percpu_eventcount_cancel(struct percpu_eventcount *event)
{
	__atomic_fetch_sub(&event->waiters, 1, __ATOMIC_RELEASE);
}

/**
 * percpu_eventcount_wait - wait until somebody notifies.
 *
 * @key: from percpu_eventcount_prepare()
 * @clock, @moment: until then at most; CLOCK_MONOTONIC or CLOCK_REALTIME, NULL for ever
 * Returns 0 if somebody has notified since that (at least, one of those whom a notification was for); -ETIMEDOUT; -EINVAL
 * for another clock or nanoseconds out of [0, 999999999]. May block. Not a cancellation point. Async-signal-safe, if
 * somebody else notifies.
 */
PERCPU_API int percpu_eventcount_wait(struct percpu_eventcount *event, uint32_t key, int clock,
				      const struct timespec *moment);

/**
 * percpu_eventcount_notify_one - wake one at least who waits, if anybody does.
 *
 * The one who sleeps longest, and any who do not sleep yet. Wait-free apart from the system call, async-signal-safe.
 */
PERCPU__INLINE void percpu_eventcount_notify_one(struct percpu_eventcount *event)
{
	/* Pairs with preparing: either the waiter is seen here, or it sees what the caller has written before. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (PERCPU__UNLIKELY(__atomic_load_n(&event->waiters, __ATOMIC_RELAXED)))
		percpu__eventcount_notify_slow(event, 1);
}

/** percpu_eventcount_notify_all - wake all who wait. As percpu_eventcount_notify_one(). */
PERCPU__INLINE void percpu_eventcount_notify_all(struct percpu_eventcount *event)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (PERCPU__UNLIKELY(__atomic_load_n(&event->waiters, __ATOMIC_RELAXED)))
		percpu__eventcount_notify_slow(event, INT32_MAX);
}

PERCPU_END_DECLS

#endif
