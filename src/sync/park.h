/* SPDX-License-Identifier: MIT */
/*
 * Waiting, for the objects of this layer: how long a pause is, how many threads can run at once, sleeping on a word that
 * may be shared between processes until a moment of either clock.
 */
#ifndef PERCPU_SRC_PARK_H
#define PERCPU_SRC_PARK_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

#include <percpu/rseq.h>

#include "base/sys.h"

/* Hints. */
struct percpu__spinning {
	uint32_t pauses_per_us; /* from the first use on; 0: not yet */
	uint32_t cpus;          /* that this process may use, as far as that is known; or 0 */
};

PERCPU_HIDDEN const struct percpu__spinning *percpu__spinning(void);

/* Returns 0 or -EINVAL. */
static inline int percpu__check_moment(int clock, const struct timespec *moment)
{
	if ((clock != CLOCK_MONOTONIC && clock != CLOCK_REALTIME) || !moment || moment->tv_nsec < 0 ||
	    moment->tv_nsec >= 1000000000)
		return -EINVAL;
	return 0;
}

/* Sleeps while *word == value. @moment: NULL for ever. Returns what futex(2) says; a moment before 1970 has come. */
static inline int percpu__park(uint32_t *word, uint32_t value, bool shared, int clock, const struct timespec *moment)
{
	int op = FUTEX_WAIT_BITSET | (shared ? 0 : FUTEX_PRIVATE_FLAG) |
		 (clock == CLOCK_REALTIME ? FUTEX_CLOCK_REALTIME : 0);

	if (moment && moment->tv_sec < 0)
		return -ETIMEDOUT;
	return (int)percpu__sys6(SYS_futex, (long)word, op, (long)value, (long)moment, 0, (long)FUTEX_BITSET_MATCH_ANY);
}

/* Returns how many it woke, or an error where the memory is gone by now. */
static inline int percpu__unpark(uint32_t *word, int how_many, bool shared)
{
	return (int)percpu__sys4(SYS_futex, (long)word, FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG), how_many, 0);
}

/* Whether the moment has come. */
static inline bool percpu__is_over(int clock, const struct timespec *moment)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec > moment->tv_sec || (now.tv_sec == moment->tv_sec && now.tv_nsec >= moment->tv_nsec);
}

/* Spins that did not help count 2, others -1. From so many on, only one in PROBE is tried. */
#define PERCPU__DOUBTS 8
#define PERCPU__PROBE  16
#define PERCPU__LONGER 8

/*
 * How long to spin, as a multiple of what is usual: 0, 1, or more for a probe. Two threads that wait for each other by
 * sleeping find each other's answer late, and so would never learn that spinning helps as soon as both do it.
 */
static inline uint32_t percpu__worth(uint8_t *doubts)
{
	unsigned now = __atomic_load_n(doubts, __ATOMIC_RELAXED);

	if (now < PERCPU__DOUBTS)
		return 1;
	now = now + 1 < PERCPU__DOUBTS + PERCPU__PROBE ? now + 1 : PERCPU__DOUBTS;
	__atomic_store_n(doubts, (uint8_t)now, __ATOMIC_RELAXED);
	return now == PERCPU__DOUBTS ? PERCPU__LONGER : 0;
}

static inline void percpu__learn(uint8_t *doubts, bool helped)
{
	unsigned was = __atomic_load_n(doubts, __ATOMIC_RELAXED), now = was;

	if (!helped)
		now = was + 2 < PERCPU__DOUBTS ? was + 2 : PERCPU__DOUBTS;
	else if (was)
		now = was < PERCPU__DOUBTS ? was - 1 : 0;
	if (now != was)
		__atomic_store_n(doubts, (uint8_t)now, __ATOMIC_RELAXED);
}

/* Whether it comes within @ns (less than a second) from now. */
static inline bool percpu__is_soon(int clock, const struct timespec *moment, long ns)
{
	struct timespec before = *moment;

	if (moment->tv_sec < 1)
		return true;
	before.tv_nsec -= ns;
	if (before.tv_nsec < 0) {
		before.tv_nsec += 1000000000;
		before.tv_sec--;
	}
	return percpu__is_over(clock, &before);
}

#endif
