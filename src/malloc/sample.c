/* SPDX-License-Identifier: MIT */
/*
 * Which allocations are samples.
 */
#include <string.h>
#include <sys/auxv.h>
#include <time.h>

#include "malloc/guard.h"
#include "malloc/options.h"
#include "malloc/profile.h"
#include "malloc/sample.h"

/*
 * Unless told otherwise: one in so many of the allocations that find an empty magazine, but never two within so many
 * milliseconds. One takes 20 to 40 microseconds, so it is two thousandths of the time at most, and nothing in a program that
 * allocates little.
 */
#define USUAL_RATE 256U
#define USUAL_MS   20U

/* Of each thread: allocations up to the next one that is guarded. 0: not drawn yet. */
static __thread uint32_t guard_left __attribute__((tls_model("initial-exec")));

/* The numbers of splitmix64 (Steele, Lea, Flood 2014). They may repeat in a forked child. */
uint64_t percpu__sample_random(void)
{
	static uint64_t state;
	uint64_t x;

	if (!__atomic_load_n(&state, __ATOMIC_RELAXED)) {
		const void *given = (const void *)getauxval(AT_RANDOM);
		uint64_t seed[2] = { (uintptr_t)&x, 0 };

		/* At any address. */
		if (given)
			memcpy(seed, given, sizeof(seed));
		__atomic_fetch_add(&state, (seed[0] ^ seed[1]) | 1, __ATOMIC_RELAXED);
	}
	x = __atomic_add_fetch(&state, UINT64_C(0x9e3779b97f4a7c15), __ATOMIC_RELAXED);
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* Whether it is the turn of this one of a thread, of which one in @rate is wanted: from 1 to twice that less 1, by chance. */
static bool is_turn(uint64_t rate)
{
	uint32_t left = guard_left;
	bool turn;

	if (rate > INT32_MAX)
		rate = INT32_MAX;
	if (!left)
		left = 1 + (uint32_t)(percpu__sample_random() % (2 * rate - 1));
	turn = left == 1;
	guard_left = turn ? 0 : left - 1;
	return turn;
}

/* Whether the last one of the process was long enough ago. */
static bool is_time(void)
{
	static uint64_t last;
	struct timespec now = { 0, 0 };
	uint64_t ms, was = __atomic_load_n(&last, __ATOMIC_RELAXED);

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
	return ms - was >= USUAL_MS &&
	       __atomic_compare_exchange_n(&last, &was, ms, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) && was;
}

bool percpu__sample_start(void)
{
	uint64_t rate = percpu__malloc_options.guard;

	return (rate && rate != PERCPU__GUARD_USUAL) || percpu__malloc_options.profile;
}

void *percpu__sample_new(size_t size, size_t align, bool watched)
{
	uint64_t rate = percpu__malloc_options.guard;
	void *object = NULL;

	if (watched && percpu__malloc_options.profile)
		object = percpu__profile_new(size, align, percpu__malloc_options.profile);
	if (object)
		return object;
	if (!rate)
		return NULL;
	if (rate != PERCPU__GUARD_USUAL)
		return is_turn(rate) ? percpu__guard_new(size, align, true) : NULL;
	return is_turn(USUAL_RATE) && is_time() ? percpu__guard_new(size, align, false) : NULL;
}

void percpu__sample_freed(struct percpu__span *span)
{
	percpu__profile_freed(span);
}

void percpu__sample_large(struct percpu__span *span)
{
	if (percpu__malloc_options.profile)
		percpu__profile_large(span, percpu__malloc_options.profile);
}

void percpu__sample_lock_all(void)
{
	percpu__profile_lock();
	percpu__guard_lock();
}

void percpu__sample_unlock_all(void)
{
	percpu__guard_unlock();
	percpu__profile_unlock();
}

void percpu__sample_relock_all(void)
{
	percpu__profile_relock();
	percpu__guard_relock();
}
