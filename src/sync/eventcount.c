/* SPDX-License-Identifier: MIT */
/*
 * Event counts, cold half.
 *
 * Waiter: waiters + 1, read the epoch, look at the condition; sleepers + 1, sleep while the epoch is the same.
 * Notifier: make the condition true, read waiters; epoch + 1, read sleepers, wake.
 * Each writes, then reads what the other writes, with a full barrier in between: so one of them sees the other, twice. The
 * kernel compares the epoch under the lock that waking takes.
 */
#include <percpu/eventcount.h>

#include "sync/park.h"

#define SPIN 10 /* us */

/* Returns whether the epoch has changed. */
static bool spin(struct percpu_eventcount *event, uint32_t key)
{
	const struct percpu__spinning *how = percpu__spinning();
	uint32_t longer;
	bool changed = __atomic_load_n(&event->epoch, __ATOMIC_ACQUIRE) != key;

	if (changed)
		return true;
	/* No more than can run. (One of those that are counted may just have been notified by this very thread.) */
	if (__atomic_load_n(&event->waiters, __ATOMIC_RELAXED) > how->cpus)
		return false;
	longer = percpu__worth(&event->doubts);
	if (!longer)
		return false;
	for (uint32_t i = 0; i < longer * SPIN * how->pauses_per_us && !changed; i++) {
		percpu__pause();
		changed = __atomic_load_n(&event->epoch, __ATOMIC_ACQUIRE) != key;
	}
	percpu__learn(&event->doubts, changed);
	return changed;
}

int percpu_eventcount_wait(struct percpu_eventcount *event, uint32_t key, int clock, const struct timespec *moment)
{
	int rc = moment ? percpu__check_moment(clock, moment) : 0;

	if (rc == 0 && !spin(event, key)) {
		__atomic_fetch_add(&event->sleepers, 1, __ATOMIC_SEQ_CST);
		do
			rc = percpu__park(&event->epoch, key, event->flags & PERCPU_EVENTCOUNT_SHARED, clock, moment);
		while (rc == -EINTR && __atomic_load_n(&event->epoch, __ATOMIC_RELAXED) == key);
		__atomic_fetch_sub(&event->sleepers, 1, __ATOMIC_RELAXED);
		/* Who was woken says so, even if it came later than the notification: it may have been in another's place. */
		if (__atomic_load_n(&event->epoch, __ATOMIC_ACQUIRE) != key || rc != -ETIMEDOUT)
			rc = 0;
	}
	percpu_eventcount_cancel(event);
	return rc;
}

void percpu__eventcount_notify_slow(struct percpu_eventcount *event, int how_many)
{
	bool shared = event->flags & PERCPU_EVENTCOUNT_SHARED;

	__atomic_fetch_add(&event->epoch, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&event->sleepers, __ATOMIC_SEQ_CST))
		percpu__unpark(&event->epoch, how_many, shared);
}

int percpu_eventcount_init(struct percpu_eventcount *event, unsigned flags)
{
	if (!event || (flags & ~(unsigned)PERCPU_EVENTCOUNT_SHARED))
		return -EINVAL;
	*event = (struct percpu_eventcount){ .flags = (uint8_t)flags };
	return 0;
}
