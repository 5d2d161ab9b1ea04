/* SPDX-License-Identifier: MIT */
/*
 * The mutex: waiting for it, and unlocking one that somebody waits for.
 *
 * `word` holds the owner's CPU (0: free) and what unlocking must know:
 *
 *   SLEEPERS   somebody may sleep. Who wakes one clears it, and the one who is woken sets it again when it takes the mutex or
 *              goes back to sleep, as it cannot know whether it was the last. So at most one is on its way at a time.
 *   WANTED     a spinner has waited long. Others who come leave a free mutex to it, but only for a moment (it may have
 *              been preempted), and unlocking wakes nobody: the spinner takes the mutex, or clears this while the mutex
 *              is held, so that the next to unlock sees that. Whoever takes the mutex clears it, too.
 *   ASKED      the owner has asked for a longer time slice (sync/slice.h); owner.
 *
 * Nothing is written to a mutex after it was released: by then it may have been freed.
 *
 * A spinner that has not waited long leaves no trace in the word: its owner may unlock and lock it again by the fast
 * path, and keeps the cache line while nobody looks. That, and asking after a while, is what makes short holds cheap.
 *
 * A child of fork inherits WANTED, and the number of spinners, of threads that do not exist there, a mutex between processes
 * those of killed ones. So who falls asleep while it is wanted looks again soon, and clears both. For a spinner that is
 * there all the same that only means that others do not rely on it. Between processes nobody does.
 */
#include <percpu/mutex.h>

#include "sync/park.h"
#include "sync/slice.h"

#define OWNER    PERCPU__MUTEX_OWNER
#define WANTED   0x01000000U
#define ASKED    0x02000000U
#define SLEEPERS 0x80000000U

/* In microseconds. Sleeping and being woken costs about as much as the longest spin. */
#define GAP    1 / 2  /* between two looks, at most: each takes the owner's cache line away */
#define POLITE 4      /* from then on it is wanted, and looks all the time */
#define SPIN   10     /* then asleep */
#define LEAVE  1 / 2  /* to leave a free mutex to who wants it */
#define STALE_NS 10000000

/* Spins that did not help count 2, others -1. From DOUBTS on, only one in PROBE tries. */
#define DOUBTS 8
#define PROBE  16

static bool swap(struct percpu_mutex *mutex, uint32_t *word, uint32_t to, int order)
{
	return __atomic_compare_exchange_n(&mutex->word, word, to, 0, order, __ATOMIC_RELAXED);
}

static uint32_t load(struct percpu_mutex *mutex)
{
	return __atomic_load_n(&mutex->word, __ATOMIC_RELAXED);
}

static bool is_shared(const struct percpu_mutex *mutex)
{
	return mutex->flags & PERCPU_MUTEX_SHARED;
}

/* @word is free. Takes it if it still is so; @rest: what else shall be in it. */
static bool take(struct percpu_mutex *mutex, uint32_t *word, uint32_t rest)
{
	uint32_t mine = percpu__mutex_mine() | rest;

	if (!swap(mutex, word, mine, __ATOMIC_ACQUIRE))
		return false;
	if (percpu__slice_ask())
		__atomic_fetch_or(&mutex->word, ASKED, __ATOMIC_RELAXED);
	return true;
}

/*
 * Takes it if it is free, or becomes so while it is left to who wants it. *@word: what was seen, held if it failed.
 * @keep: SLEEPERS, or 0.
 */
static bool take_free(struct percpu_mutex *mutex, uint32_t *word, uint32_t keep)
{
	uint32_t turns = percpu__spinning()->pauses_per_us * LEAVE;

	while (!(*word & OWNER)) {
		if ((*word & WANTED) && turns) {
			turns--;
			percpu__pause();
			*word = load(mutex);
		} else if (take(mutex, word, (*word & SLEEPERS) | keep)) {
			return true;
		}
	}
	return false;
}

/* Such an owner has been preempted, or moved. */
static bool owner_was_here(uint32_t word)
{
	uint32_t mine = percpu__mutex_mine();

	return (word & OWNER) == mine && mine != 0x8000;
}

static bool is_worth_it(struct percpu_mutex *mutex)
{
	uint8_t doubts = __atomic_load_n(&mutex->doubts, __ATOMIC_RELAXED);

	if (doubts < DOUBTS)
		return true;
	__atomic_store_n(&mutex->doubts, (uint8_t)(doubts + 1 < DOUBTS + PROBE ? doubts + 1 : DOUBTS - 1),
			 __ATOMIC_RELAXED);
	return false;
}

static void learn(struct percpu_mutex *mutex, bool helped)
{
	uint8_t doubts = __atomic_load_n(&mutex->doubts, __ATOMIC_RELAXED), now = doubts;

	if (!helped)
		now = (uint8_t)(doubts + 2 < DOUBTS ? doubts + 2 : DOUBTS);
	else if (doubts)
		now = (uint8_t)(doubts < DOUBTS ? doubts - 1 : 0);
	if (now != doubts)
		__atomic_store_n(&mutex->doubts, now, __ATOMIC_RELAXED);
}

/*
 * Returns whether it is counted: then there is a CPU for it, as far as can be told. A spinner that has just got the mutex is
 * about to count itself out.
 */
static bool join(struct percpu_mutex *mutex)
{
	const struct percpu__spinning *how = percpu__spinning();
	uint32_t others = how->cpus > 2 ? how->cpus - 1 : 1; /* the owner's is another one */
	uint32_t turns = how->pauses_per_us * LEAVE;
	uint16_t count = __atomic_load_n(&mutex->spinners, __ATOMIC_RELAXED);

	for (;;) {
		if (count >= others || count == UINT16_MAX) {
			if (!turns--)
				return false;
			percpu__pause();
			count = __atomic_load_n(&mutex->spinners, __ATOMIC_RELAXED);
		} else if (__atomic_compare_exchange_n(&mutex->spinners, &count, (uint16_t)(count + 1), 0,
						       __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
			return true;
		}
	}
}

/* Somebody may have set the count to 0 meanwhile. */
static void leave(struct percpu_mutex *mutex)
{
	uint16_t count = __atomic_load_n(&mutex->spinners, __ATOMIC_RELAXED);

	while (count && !__atomic_compare_exchange_n(&mutex->spinners, &count, (uint16_t)(count - 1), 0, __ATOMIC_RELAXED,
						     __ATOMIC_RELAXED))
		;
}

/* Spins while it is held and that may help. Returns whether it took it. @keep: SLEEPERS if it has waited long already. */
static bool spin(struct percpu_mutex *mutex, uint32_t keep)
{
	const uint32_t us = percpu__spinning()->pauses_per_us, polite = keep ? 0 : POLITE * us;
	uint32_t word, spent = 0, gap = 1;
	bool wants = false;

	for (;;) {
		for (uint32_t i = 0; i < gap; i++)
			percpu__pause();
		spent += gap;
		word = load(mutex);
		if (!(word & OWNER)) {
			if (take(mutex, &word, (word & SLEEPERS) | keep))
				return true;
			continue;
		}
		if (owner_was_here(word) || spent >= SPIN * us)
			break;
		if (spent < polite) {
			gap = gap * 2 < us * GAP ? gap * 2 : us * GAP + 1;
		} else {
			gap = 1;
			if (!(word & WANTED) && swap(mutex, &word, word | WANTED, __ATOMIC_RELAXED))
				wants = true;
		}
	}
	/* While it is held; else nobody might wake anybody. */
	while (wants && (word & WANTED)) {
		if (!(word & OWNER)) {
			if (take(mutex, &word, (word & SLEEPERS) | keep))
				return true;
		} else if (swap(mutex, &word, word & ~WANTED, __ATOMIC_RELAXED)) {
			break;
		}
	}
	return false;
}

/* Whoever set these does not exist, or is of no use. */
static void forget_spinners(struct percpu_mutex *mutex)
{
	__atomic_store_n(&mutex->spinners, 0, __ATOMIC_RELAXED);
	__atomic_fetch_and(&mutex->word, ~WANTED, __ATOMIC_RELAXED);
}

/* Whether the moment comes before those spinners are suspect. */
static bool is_soon(clockid_t clock, const struct timespec *moment)
{
	struct timespec before = *moment;

	before.tv_nsec -= STALE_NS;
	if (before.tv_nsec < 0) {
		before.tv_nsec += 1000000000;
		before.tv_sec--;
	}
	return percpu__is_over(clock, &before);
}

/* Sleeps on *@word, which is held and says SLEEPERS, until something has happened. Returns -ETIMEDOUT or another number. */
static int sleep_on(struct percpu_mutex *mutex, uint32_t word, clockid_t clock, const struct timespec *moment)
{
	struct timespec soon;

	if (!(word & WANTED) || (moment && is_soon(clock, moment)))
		return percpu__park(&mutex->word, word, is_shared(mutex), clock, moment);
	percpu__moment_in(STALE_NS, &soon);
	if (percpu__park(&mutex->word, word, is_shared(mutex), CLOCK_MONOTONIC, &soon) == -ETIMEDOUT)
		forget_spinners(mutex);
	return 0;
}

/* Waits until it has it. Returns 0 or -ETIMEDOUT. */
static int wait_for(struct percpu_mutex *mutex, clockid_t clock, const struct timespec *moment)
{
	uint32_t keep = 0, word = load(mutex);

	for (;;) {
		if (take_free(mutex, &word, keep))
			return 0;
		if (!owner_was_here(word) && is_worth_it(mutex) && join(mutex)) {
			bool helped = spin(mutex, keep);

			leave(mutex);
			learn(mutex, helped);
			if (helped)
				return 0;
			word = load(mutex);
		}
		if (!(word & OWNER))
			continue;
		if (!(word & SLEEPERS)) {
			if (!swap(mutex, &word, word | SLEEPERS, __ATOMIC_RELAXED))
				continue;
			word |= SLEEPERS;
		}
		/* From here on it may be the one that was woken for all that sleep. */
		keep = SLEEPERS;
		if (sleep_on(mutex, word, clock, moment) == -ETIMEDOUT)
			break;
		word = load(mutex);
	}
	for (word = load(mutex);;) {
		if (!(word & OWNER)) {
			if (take(mutex, &word, (word & SLEEPERS) | keep))
				return 0;
		} else if ((word & SLEEPERS) || swap(mutex, &word, word | SLEEPERS, __ATOMIC_RELAXED)) {
			return -ETIMEDOUT;
		}
	}
}

void percpu__mutex_lock_slow(struct percpu_mutex *mutex)
{
	percpu__thread_start(); /* so that the next time it knows where it is */
	wait_for(mutex, CLOCK_MONOTONIC, NULL);
}

int percpu__mutex_trylock_slow(struct percpu_mutex *mutex)
{
	uint32_t word = load(mutex);

	while (!(word & OWNER))
		if (take(mutex, &word, word & SLEEPERS))
			return 0;
	return -EBUSY;
}

int percpu_mutex_timedlock(struct percpu_mutex *mutex, clockid_t clock, const struct timespec *moment)
{
	if (percpu_mutex_trylock(mutex) == 0)
		return 0;
	if (percpu__check_moment(clock, moment))
		return -EINVAL;
	if (percpu__is_over(clock, moment))
		return -ETIMEDOUT;
	percpu__thread_start();
	return wait_for(mutex, clock, moment);
}

void percpu__mutex_unlock_slow(struct percpu_mutex *mutex)
{
	bool shared = is_shared(mutex), wakes;
	uint32_t word = load(mutex), to;

	do {
		wakes = (word & SLEEPERS) && (shared || !(word & WANTED));
		to = word & (WANTED | SLEEPERS);
		if (wakes)
			to &= ~SLEEPERS;
	} while (!swap(mutex, &word, to, __ATOMIC_RELEASE));
	if (wakes)
		percpu__unpark(&mutex->word, 1, shared);
	if (word & ASKED)
		percpu__slice_end();
}

int percpu_mutex_init(struct percpu_mutex *mutex, unsigned flags)
{
	if (!mutex || (flags & ~(unsigned)PERCPU_MUTEX_SHARED))
		return -EINVAL;
	mutex->spinners = 0;
	mutex->flags = (uint8_t)flags;
	mutex->doubts = 0;
	__atomic_store_n(&mutex->word, 0, __ATOMIC_RELAXED);
	return 0;
}
