/* SPDX-License-Identifier: MIT */
/*
 * The mutex: waiting for it, and unlocking one that somebody waits for.
 *
 * `word` holds the owner's CPU (0: free) and what unlocking must know:
 *
 *   SLEEPERS   somebody may sleep. Who wakes one clears it, and the one who is woken sets it again when it takes the mutex or
 *              goes back to sleep, as it cannot know whether it was the last. So at most one is on its way at a time.
 *   WANTED     a spinner has waited long: others who come leave a free mutex to it, but only for a moment, as it may have
 *              been preempted. Whoever takes the mutex clears it.
 *   LEFT       a spinner has given up since the mutex was taken: unlocking wakes somebody, whoever spins.
 *   ASKED      the owner has asked for a longer time slice (sync/slice.h); owner.
 *
 * While somebody spins, unlocking wakes nobody (but for one time in many, so that sleepers get their turn): few threads
 * then pass the mutex between them, and the others sleep. `spinners` is not in the word, where it would send the owner to
 * the slow path at each turn. So who unlocks reads the word, then `spinners`, and releases by compare-and-swap; who gives up
 * counts itself out, then sets LEFT, or takes the mutex if it is free by now. So if a release that relied on a spinner has
 * succeeded, that spinner will find the mutex free, or taken by somebody who will see LEFT.
 *
 * A spinner that has not waited long leaves no trace in the word: the owner may unlock and lock it again by the fast
 * path, and keeps the cache line while nobody looks. That, and asking after a while, is what makes short holds cheap.
 *
 * Nothing is written to a mutex after it was released: by then it may have been freed. A child of fork inherits the number
 * of spinners that do not exist there: so that says in which generation of forks it was counted. Between processes nobody
 * relies on spinners, which may have been killed, nor are they counted.
 */
#include <percpu/mutex.h>

#include "gate/gate.h"
#include "sync/park.h"
#include "sync/slice.h"

#define OWNER    PERCPU__MUTEX_OWNER
#define LEFT     0x00010000U
#define WANTED   0x01000000U
#define ASKED    0x02000000U
#define SLEEPERS 0x80000000U

/* In microseconds. Sleeping and being woken costs about as much as the longest spin. */
#define GAP    1 / 2 /* between two looks, at most: each takes the owner's cache line away */
#define POLITE 3     /* from then on it is wanted, and looks all the time */
#define SPIN   10    /* then asleep */
#define LEAVE  1 / 2 /* to leave a free mutex to who wants it */
#define SKIPS  200   /* not in microseconds: times in a row that nobody is woken because of spinners */

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

/* 0 in other generations' numbers, and where nobody counts. */
static uint32_t count_spinners(uint16_t spinners)
{
	return spinners >> 8 == (percpu__fork_count & 0xff) ? spinners & 0xff : 0;
}

static bool count_one(struct percpu_mutex *mutex, uint16_t *was, uint32_t now)
{
	return __atomic_compare_exchange_n(&mutex->spinners, was, (uint16_t)((percpu__fork_count & 0xff) << 8 | now), 0,
					   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/*
 * Returns whether it may spin: then there is a CPU for it, as far as can be told. Who was woken may although another spins:
 * that one does not run if it was here. A spinner that has just got the mutex is about to count itself out.
 */
static bool join(struct percpu_mutex *mutex, uint32_t keep)
{
	const struct percpu__spinning *how = percpu__spinning();
	uint32_t limit = (how->cpus > 2 ? how->cpus - 1 : 1) + (keep ? 1 : 0); /* the owner's is another one */
	uint32_t turns = how->pauses_per_us * LEAVE;
	uint16_t was = __atomic_load_n(&mutex->spinners, __ATOMIC_RELAXED);

	if (is_shared(mutex))
		return true;
	for (;;) {
		uint32_t count = count_spinners(was);

		if (count >= limit || count == 0xff) {
			if (!turns--)
				return false;
			percpu__pause();
			was = __atomic_load_n(&mutex->spinners, __ATOMIC_RELAXED);
		} else if (count_one(mutex, &was, count + 1)) {
			return true;
		}
	}
}

static void leave(struct percpu_mutex *mutex)
{
	uint16_t was = __atomic_load_n(&mutex->spinners, __ATOMIC_RELAXED);

	while (!is_shared(mutex) && count_spinners(was) && !count_one(mutex, &was, count_spinners(was) - 1))
		;
}

/* Spins while it is held and that may help. Returns whether it took it. @keep: SLEEPERS if it has waited long already. */
static bool spin(struct percpu_mutex *mutex, uint32_t keep)
{
	const uint32_t us = percpu__spinning()->pauses_per_us, polite = keep ? 0 : POLITE * us;
	uint32_t word, spent = 0, gap = 1;

	do {
		for (uint32_t i = 0; i < gap; i++)
			percpu__pause();
		spent += gap;
		word = load(mutex);
		if (!(word & OWNER)) {
			if (take(mutex, &word, (word & SLEEPERS) | keep)) {
				leave(mutex);
				return true;
			}
		} else if (spent < polite) {
			gap = gap * 2 < us * GAP ? gap * 2 : us * GAP + 1;
		} else {
			gap = 1;
			if (!(word & WANTED))
				swap(mutex, &word, word | WANTED, __ATOMIC_RELAXED);
		}
	} while (!owner_was_here(word) && spent < SPIN * us);
	leave(mutex);
	for (word = load(mutex);;) {
		if (!(word & OWNER)) {
			if (take(mutex, &word, (word & SLEEPERS) | keep))
				return true;
		} else if (swap(mutex, &word, (word & ~WANTED) | LEFT, __ATOMIC_SEQ_CST)) {
			return false;
		}
	}
}

/* Waits until it has it. Returns 0 or -ETIMEDOUT. */
static int wait_for(struct percpu_mutex *mutex, int clock, const struct timespec *moment)
{
	uint32_t keep = 0, word = load(mutex);

	for (;;) {
		if (take_free(mutex, &word, keep))
			return 0;
		if (!owner_was_here(word) && percpu__worth(&mutex->doubts) && join(mutex, keep)) {
			bool helped = spin(mutex, keep);

			percpu__learn(&mutex->doubts, helped);
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
		if (percpu__park(&mutex->word, word, is_shared(mutex), clock, moment) == -ETIMEDOUT)
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

int percpu_mutex_timedlock(struct percpu_mutex *mutex, int clock, const struct timespec *moment)
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
	bool shared = is_shared(mutex), sleepers, wakes;
	uint32_t word = __atomic_load_n(&mutex->word, __ATOMIC_ACQUIRE), to;

	do {
		sleepers = word & SLEEPERS;
		wakes = sleepers && ((word & LEFT) || mutex->skipped >= SKIPS ||
				     !count_spinners(__atomic_load_n(&mutex->spinners, __ATOMIC_SEQ_CST)));
		to = word & WANTED;
		if (sleepers && !wakes)
			to |= SLEEPERS;
		/* While it is ours. */
		mutex->skipped = to & SLEEPERS ? mutex->skipped + 1 : 0;
	} while (!__atomic_compare_exchange_n(&mutex->word, &word, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE));
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
	mutex->skipped = 0;
	__atomic_store_n(&mutex->word, 0, __ATOMIC_RELAXED);
	return 0;
}
