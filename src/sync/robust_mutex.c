/* SPDX-License-Identifier: MIT */
/*
 * Robust mutexes: the kernel tells the next one when the owner has died.
 *
 * The word is the kernel's to write, too, so it has the kernel's form: the owner's task id, FUTEX_WAITERS if somebody may
 * sleep, FUTEX_OWNER_DIED once the kernel has found it in the list of a dead task. Each task has one such list. It belongs
 * to the C library, whose own robust mutexes are in it, so ours are linked as those are: the list leads from the address of
 * one `next` to that of another, with a pointer back in front of it, and the word lies at the distance that the library
 * told the kernel. (glibc's and musl's lists agree in this; the distances differ, hence two words.)
 *
 * While the list does not say whether the mutex is held, list_op_pending names it. It stays so while a thread waits: if that
 * dies after it was woken, and the mutex is free, the kernel wakes another. Not, if somebody else has just taken it without
 * knowing of sleepers. So nobody sleeps for longer than SLICE_NS without a look.
 */
#include <percpu/mutex.h>

#include "rseq/thread.h"
#include "sync/park.h"

#define SPIN     5 /* us */
#define SLICE_NS 100000000

enum { WHOLE = 0x726f6231, DAMAGED, LOST }; /* struct percpu_robust_mutex.state */

_Static_assert(offsetof(struct percpu_robust_mutex, next) - offsetof(struct percpu_robust_mutex, words) == 32,
	       "glibc's");
_Static_assert(offsetof(struct percpu_robust_mutex, next) - offsetof(struct percpu_robust_mutex, previous) == 8,
	       "both's");

/* What the kernel reads when the thread dies must be in memory in the order of the program. */
static void in_order(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* The calling thread's, and its task id. NULL where there is none. */
static struct robust_list_head *own_list(uint32_t *id)
{
	struct percpu__private *me = &percpu__private;
	size_t size = 0;

	percpu__thread_start();
	*id = me->id;
	if (!me->robust && (percpu__sys4(SYS_get_robust_list, 0, (long)&me->robust, (long)&size, 0) ||
			    size != sizeof(struct robust_list_head)))
		me->robust = NULL;
	return me->robust;
}

/* NULL if the C library has the word elsewhere. */
static uint32_t *word_of(struct percpu_robust_mutex *mutex, const struct robust_list_head *list)
{
	uint32_t *word = (uint32_t *)(void *)((char *)&mutex->next + list->futex_offset);

	return word == &mutex->words[0] || word == &mutex->words[1] ? word : NULL;
}

/* Its lowest bit is the kernel's. */
static void **link_at(void *link)
{
	return (void **)((uintptr_t)link & ~(uintptr_t)1);
}

static void announce(struct robust_list_head *list, struct percpu_robust_mutex *mutex)
{
	in_order();
	list->list_op_pending = mutex ? (struct robust_list *)(void *)&mutex->next : NULL;
	in_order();
}

static void link_in(struct robust_list_head *list, struct percpu_robust_mutex *mutex)
{
	void *first = list->list.next;

	mutex->next = first;
	mutex->previous = list;
	in_order();
	if (link_at(first) != (void **)(void *)list)
		link_at(first)[-1] = &mutex->next;
	list->list.next = (struct robust_list *)(void *)&mutex->next;
}

static void link_out(struct robust_list_head *list, struct percpu_robust_mutex *mutex)
{
	void *next = mutex->next, *previous = mutex->previous;

	if (link_at(next) != (void **)(void *)list)
		link_at(next)[-1] = previous;
	in_order();
	*link_at(previous) = next;
	mutex->next = mutex->previous = NULL;
}

static bool is_free(uint32_t word)
{
	return !(word & FUTEX_TID_MASK);
}

/* @keep: FUTEX_WAITERS if it has slept. Returns 0 or -EOWNERDEAD with the word taken; -EBUSY, and *seen is what it says. */
static int take(struct percpu_robust_mutex *mutex, uint32_t *word, uint32_t id, uint32_t keep, uint32_t *seen)
{
	*seen = __atomic_load_n(word, __ATOMIC_RELAXED);
	while (is_free(*seen)) {
		bool died = *seen & FUTEX_OWNER_DIED;

		if (!__atomic_compare_exchange_n(word, seen, id | (*seen & FUTEX_WAITERS) | keep, 0, __ATOMIC_ACQUIRE,
						 __ATOMIC_RELAXED))
			continue;
		if (died && mutex->state == WHOLE)
			mutex->state = DAMAGED;
		__atomic_store_n(&mutex->cpu, percpu__mutex_mine(), __ATOMIC_RELAXED);
		return died ? -EOWNERDEAD : 0;
	}
	return -EBUSY;
}

static int spin(struct percpu_robust_mutex *mutex, uint32_t *word, uint32_t id, uint32_t keep, uint32_t *seen)
{
	uint32_t us = percpu__spinning()->pauses_per_us, gap = 1;

	for (uint32_t spent = 0; spent < SPIN * us; spent += gap, gap = gap * 2 < us ? gap * 2 : gap) {
		int rc = take(mutex, word, id, keep, seen);
		uint32_t mine = percpu__mutex_mine();

		if (rc != -EBUSY)
			return rc;
		/* Then the owner does not run. */
		if (mine != 0x8000 && __atomic_load_n(&mutex->cpu, __ATOMIC_RELAXED) == mine)
			break;
		for (uint32_t i = 0; i < gap; i++)
			percpu__pause();
	}
	return take(mutex, word, id, keep, seen);
}

/* Sleeps for a while. Returns -ETIMEDOUT if the moment has come. */
static int sleep_on(struct percpu_robust_mutex *mutex, uint32_t *word, uint32_t seen, int clock,
		    const struct timespec *moment)
{
	struct timespec soon = { 0 };

	if (!(seen & FUTEX_WAITERS)) {
		if (!__atomic_compare_exchange_n(word, &seen, seen | FUTEX_WAITERS, 0, __ATOMIC_RELAXED,
						 __ATOMIC_RELAXED))
			return 0;
		seen |= FUTEX_WAITERS;
	}
	if (moment && percpu__is_soon(clock, moment, SLICE_NS))
		return percpu__park(word, seen, mutex->flags & PERCPU_MUTEX_SHARED, clock, moment);
	percpu__moment_in(SLICE_NS, &soon);
	percpu__park(word, seen, mutex->flags & PERCPU_MUTEX_SHARED, CLOCK_MONOTONIC, &soon);
	return 0;
}

static int wait_for(struct percpu_robust_mutex *mutex, uint32_t *word, uint32_t id, int clock,
		    const struct timespec *moment)
{
	uint32_t keep = 0, seen;
	int rc;

	while ((rc = spin(mutex, word, id, keep, &seen)) == -EBUSY) {
		if ((seen & FUTEX_TID_MASK) == id)
			return -EDEADLK;
		keep = FUTEX_WAITERS;
		if (sleep_on(mutex, word, seen, clock, moment) != -ETIMEDOUT)
			continue;
		/* It may have been woken for all that sleep. */
		while ((rc = take(mutex, word, id, keep, &seen)) == -EBUSY && !(seen & FUTEX_WAITERS))
			if (__atomic_compare_exchange_n(word, &seen, seen | FUTEX_WAITERS, 0, __ATOMIC_RELAXED,
							__ATOMIC_RELAXED))
				return -ETIMEDOUT;
		return rc == -EBUSY ? -ETIMEDOUT : rc;
	}
	return rc;
}

static void release(struct percpu_robust_mutex *mutex, uint32_t *word)
{
	bool shared = mutex->flags & PERCPU_MUTEX_SHARED, lost = mutex->state == LOST;

	/* Nothing is written to it after this. */
	if (__atomic_exchange_n(word, 0, __ATOMIC_RELEASE) & FUTEX_WAITERS)
		percpu__unpark(word, lost ? INT32_MAX : 1, shared);
}

/* @waits: else @clock and @moment are not looked at. */
static int lock(struct percpu_robust_mutex *mutex, bool waits, int clock, const struct timespec *moment)
{
	struct robust_list_head *list;
	uint32_t id, seen, *word;
	int rc;

	if (!mutex || mutex->state < WHOLE || mutex->state > LOST)
		return -EINVAL;
	list = own_list(&id);
	word = list ? word_of(mutex, list) : NULL;
	if (!word)
		return -ENOTSUP;
	announce(list, mutex);
	rc = take(mutex, word, id, 0, &seen);
	if (rc == -EBUSY && waits)
		rc = moment && percpu__check_moment(clock, moment) ? -EINVAL : wait_for(mutex, word, id, clock, moment);
	if (rc == 0 || rc == -EOWNERDEAD) {
		if (mutex->state == LOST) {
			release(mutex, word);
			rc = -ENOTRECOVERABLE;
		} else {
			link_in(list, mutex);
		}
	}
	announce(list, NULL);
	return rc;
}

int percpu_robust_mutex_lock(struct percpu_robust_mutex *mutex)
{
	return lock(mutex, true, CLOCK_MONOTONIC, NULL);
}

int percpu_robust_mutex_trylock(struct percpu_robust_mutex *mutex)
{
	return lock(mutex, false, CLOCK_MONOTONIC, NULL);
}

int percpu_robust_mutex_timedlock(struct percpu_robust_mutex *mutex, int clock, const struct timespec *moment)
{
	return moment ? lock(mutex, true, clock, moment) : -EINVAL;
}

/* Whether the calling thread holds it. */
static uint32_t *held_word(struct percpu_robust_mutex *mutex, struct robust_list_head **list)
{
	uint32_t id, *word = NULL;

	*list = mutex ? own_list(&id) : NULL;
	if (*list)
		word = word_of(mutex, *list);
	return word && (__atomic_load_n(word, __ATOMIC_RELAXED) & FUTEX_TID_MASK) == id ? word : NULL;
}

int percpu_robust_mutex_consistent(struct percpu_robust_mutex *mutex)
{
	struct robust_list_head *list;

	if (!held_word(mutex, &list) || mutex->state != DAMAGED)
		return -EINVAL;
	mutex->state = WHOLE;
	return 0;
}

int percpu_robust_mutex_unlock(struct percpu_robust_mutex *mutex)
{
	struct robust_list_head *list;
	uint32_t *word = held_word(mutex, &list);

	if (!word)
		return -EPERM;
	if (mutex->state == DAMAGED)
		mutex->state = LOST;
	announce(list, mutex);
	link_out(list, mutex);
	in_order();
	release(mutex, word);
	announce(list, NULL);
	return 0;
}

int percpu_robust_mutex_init(struct percpu_robust_mutex *mutex, unsigned flags)
{
	if (!mutex || (flags & ~(unsigned)PERCPU_MUTEX_SHARED))
		return -EINVAL;
	*mutex = (struct percpu_robust_mutex){ .state = WHOLE, .flags = flags };
	return 0;
}
