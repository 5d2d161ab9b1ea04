/* SPDX-License-Identifier: MIT */
/*
 * Wait queues.
 *
 * Waiters push themselves onto a stack (`added`). One thread at a time is *at it* (LOCKED in `control`): it moves the stack
 * into the list, oldest first, takes out whom it shall, unlocks, and wakes those. Who comes while another is at it adds to
 * `control` what it wants (a number of wakes, or that there is somebody who cancels) and goes; the other cannot unlock
 * before it has done that. So nobody who wakes ever waits, also not a handler that has interrupted the one who is at it.
 *
 * A waiter's state says who may touch it. WAITING, SLEEPING, CANCELLING: it is in the queue, or in the hands of a thread
 * that will set WOKEN or GONE, which is the last that this thread does to it (a futex is woken by its address, which may be
 * anything by then). Only then does the waiter return. One that cancels, or whose time is over, cannot take itself out of
 * a stack, so it says CANCELLING, leaves word, and waits for the answer; mostly it is itself that finds nobody at it.
 *
 * `waiters` goes up before a waiter is pushed and down when it was taken out of the list: 0 means that there is nobody to
 * wake whose look at its condition might be over.
 */
#include <percpu/waitqueue.h>

#include "sync/park.h"

#define LOCKED  1U
#define CANCELS 2U
#define WAKE    4U /* as often as shall be woken */
#define ALL     (UINT32_MAX / WAKE / 2)

#define SPIN 10 /* us */

/* With bit 0 set, the waiter sleeps. */
enum { WAITING = 0, SLEEPING = 1, CANCELLING = 2, CANCELLING_ASLEEP = 3, WOKEN = 4, GONE = 6 };

static struct percpu_waiter *at(struct percpu_waitqueue *queue, int64_t distance)
{
	return (struct percpu_waiter *)(void *)((char *)queue + distance);
}

static int64_t distance_of(struct percpu_waitqueue *queue, struct percpu_waiter *waiter)
{
	return (int64_t)((intptr_t)waiter - (intptr_t)queue);
}

static bool is_shared(const struct percpu_waitqueue *queue)
{
	return queue->flags & PERCPU_WAITQUEUE_SHARED;
}

/* Lets the waiter go. Nothing of it is touched afterwards. */
static void tell(struct percpu_waiter *waiter, uint32_t state, bool shared)
{
	if (__atomic_exchange_n(&waiter->state, state, __ATOMIC_ACQ_REL) & 1)
		percpu__unpark(&waiter->state, 1, shared);
}

/* Leaves word of what is wanted. Returns whether the caller is at it now. */
static bool enter(struct percpu_waitqueue *queue, uint32_t wakes, uint32_t cancels)
{
	uint32_t was = __atomic_load_n(&queue->control, __ATOMIC_RELAXED), wanted;

	do {
		wanted = was / WAKE + wakes;
		wanted = (wanted < ALL ? wanted : ALL) * WAKE | (was & CANCELS) | cancels | LOCKED;
	} while (!__atomic_compare_exchange_n(&queue->control, &was, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	return !(was & LOCKED);
}

/* From the stack to the end of the list, turning it round. At it. */
static void collect(struct percpu_waitqueue *queue)
{
	int64_t next = __atomic_exchange_n(&queue->added, 0, __ATOMIC_ACQUIRE), newest = next, newer = 0;

	if (!next)
		return;
	while (next) {
		struct percpu_waiter *waiter = at(queue, next);
		int64_t older = waiter->next;

		waiter->next = newer;
		waiter->previous = older ? older : queue->last;
		newer = next;
		next = older;
	}
	if (queue->last)
		at(queue, queue->last)->next = newer;
	else
		queue->first = newer;
	queue->last = newest;
}

static void take_out(struct percpu_waitqueue *queue, struct percpu_waiter *waiter)
{
	if (waiter->previous)
		at(queue, waiter->previous)->next = waiter->next;
	else
		queue->first = waiter->next;
	if (waiter->next)
		at(queue, waiter->next)->previous = waiter->previous;
	else
		queue->last = waiter->previous;
	__atomic_fetch_sub(&queue->waiters, 1, __ATOMIC_RELAXED);
}

static bool cancels(struct percpu_waiter *waiter)
{
	return __atomic_load_n(&waiter->state, __ATOMIC_ACQUIRE) & CANCELLING;
}

static void let_go(struct percpu_waitqueue *queue)
{
	for (int64_t next = queue->first; next;) {
		struct percpu_waiter *waiter = at(queue, next);

		next = waiter->next;
		if (cancels(waiter)) {
			take_out(queue, waiter);
			tell(waiter, GONE, is_shared(queue));
		}
	}
}

/* Takes out whom to wake, and strings them together at *end. Returns the new end. */
static int64_t *take_oldest(struct percpu_waitqueue *queue, uint32_t wakes, int64_t *end)
{
	for (; wakes && queue->first; wakes--) {
		struct percpu_waiter *waiter = at(queue, queue->first);

		*end = queue->first;
		take_out(queue, waiter);
		end = &waiter->next;
		*end = 0;
	}
	return end;
}

/* Until nothing is left to do. */
static void serve(struct percpu_waitqueue *queue)
{
	bool shared = is_shared(queue);
	int64_t woken = 0, *end = &woken;
	uint32_t wanted;

	do {
		wanted = __atomic_exchange_n(&queue->control, LOCKED, __ATOMIC_SEQ_CST);
		collect(queue);
		if (wanted & CANCELS)
			let_go(queue);
		end = take_oldest(queue, wanted / WAKE, end);
		wanted = LOCKED;
	} while (!__atomic_compare_exchange_n(&queue->control, &wanted, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	while (woken) {
		struct percpu_waiter *waiter = at(queue, woken);

		woken = waiter->next;
		tell(waiter, WOKEN, shared);
	}
}

void percpu_waitqueue_add(struct percpu_waitqueue *queue, struct percpu_waiter *waiter)
{
	int64_t distance = distance_of(queue, waiter);

	waiter->state = WAITING;
	__atomic_fetch_add(&queue->waiters, 1, __ATOMIC_SEQ_CST);
	waiter->next = __atomic_load_n(&queue->added, __ATOMIC_RELAXED);
	while (!__atomic_compare_exchange_n(&queue->added, &waiter->next, distance, 0, __ATOMIC_SEQ_CST,
					    __ATOMIC_RELAXED))
		;
	/* Pairs with waking. Without it the condition might be read before the waiter is there to be seen. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void percpu__waitqueue_wake_slow(struct percpu_waitqueue *queue, uint32_t how_many)
{
	if (how_many && enter(queue, how_many < ALL ? how_many : ALL, 0))
		serve(queue);
}

/* Returns the state in the end: WOKEN or GONE. */
static uint32_t come_out(struct percpu_waitqueue *queue, struct percpu_waiter *waiter)
{
	uint32_t state = __atomic_load_n(&waiter->state, __ATOMIC_ACQUIRE);
	uint32_t turns = percpu__spinning()->pauses_per_us;

	while (!(state & WOKEN))
		if (__atomic_compare_exchange_n(&waiter->state, &state, CANCELLING, 0, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE)) {
			if (enter(queue, 0, CANCELS))
				serve(queue);
			break;
		}
	while (!((state = __atomic_load_n(&waiter->state, __ATOMIC_ACQUIRE)) & WOKEN)) {
		uint32_t awake = CANCELLING;

		if (turns) {
			turns--;
			percpu__pause();
		} else if (state == CANCELLING_ASLEEP ||
			   __atomic_compare_exchange_n(&waiter->state, &awake, CANCELLING_ASLEEP, 0, __ATOMIC_RELAXED,
						       __ATOMIC_RELAXED)) {
			percpu__park(&waiter->state, CANCELLING_ASLEEP, is_shared(queue), CLOCK_MONOTONIC, NULL);
		}
	}
	return state;
}

static bool spin(struct percpu_waitqueue *queue, struct percpu_waiter *waiter)
{
	const struct percpu__spinning *how = percpu__spinning();
	uint32_t longer;
	bool woken = __atomic_load_n(&waiter->state, __ATOMIC_ACQUIRE) == WOKEN;

	if (woken)
		return true;
	/* No more than the CPUs that others leave, where one of them runs who will wake. */
	if (__atomic_load_n(&queue->waiters, __ATOMIC_RELAXED) >= how->cpus)
		return false;
	longer = percpu__worth(&queue->doubts);
	if (!longer)
		return false;
	for (uint32_t i = 0; i < longer * SPIN * how->pauses_per_us && !woken; i++) {
		percpu__pause();
		woken = __atomic_load_n(&waiter->state, __ATOMIC_ACQUIRE) == WOKEN;
	}
	percpu__learn(&queue->doubts, woken);
	return woken;
}

int percpu_waitqueue_wait(struct percpu_waitqueue *queue, struct percpu_waiter *waiter, int clock,
			  const struct timespec *moment)
{
	int rc = moment ? percpu__check_moment(clock, moment) : 0;
	uint32_t state = WAITING;

	if (rc) {
		percpu_waitqueue_cancel(queue, waiter);
		return rc;
	}
	if (spin(queue, waiter) ||
	    !__atomic_compare_exchange_n(&waiter->state, &state, SLEEPING, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE))
		return 0;
	while (__atomic_load_n(&waiter->state, __ATOMIC_ACQUIRE) == SLEEPING)
		if (percpu__park(&waiter->state, SLEEPING, is_shared(queue), clock, moment) == -ETIMEDOUT)
			return come_out(queue, waiter) == WOKEN ? 0 : -ETIMEDOUT;
	return 0;
}

void percpu_waitqueue_cancel(struct percpu_waitqueue *queue, struct percpu_waiter *waiter)
{
	if (come_out(queue, waiter) == WOKEN)
		percpu_waitqueue_wake(queue, 1);
}

int percpu_waitqueue_init(struct percpu_waitqueue *queue, unsigned flags)
{
	if (!queue || (flags & ~(unsigned)PERCPU_WAITQUEUE_SHARED))
		return -EINVAL;
	*queue = (struct percpu_waitqueue){ .flags = (uint8_t)flags };
	return 0;
}
