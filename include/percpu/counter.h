/* SPDX-License-Identifier: MIT */
/*
 * Counters: 64 bits, one word for each index, added to without a lock, an atomic instruction or a shared cache line.
 *
 * Each copy holds two words, "sets". Additions go to the set that `offset` names, read inside the section. A drain turns
 * `offset` over and fences: then nobody adds to the old set any more, and what is in it is taken exactly once. Where a
 * section cannot run the addition is an atomic instruction on the remainder's copy, which no section touches (in mode
 * none: on any copy): additions never block, whatever the mode.
 */
#ifndef PERCPU_COUNTER_H
#define PERCPU_COUNTER_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** A counter, in the caller's storage or the library's. Fields belong to the library. */
struct percpu_counter {
	uint64_t *words;  /* per-CPU: two words a copy; constant after init */
	ptrdiff_t offset; /* of the set in use, in bytes; written by drain, read by every add */
	uint32_t draining; /* a lock: one drain at a time */
	uint32_t shared;  /* words lie in an area shared between processes */
	const char *name; /* NULL unless in the registry */
	struct percpu_counter *next; /* in the registry; guarded by its lock */
};

PERCPU_API void percpu__slow_count(uint64_t *words, const ptrdiff_t *offset, uint64_t n, enum percpu__by by) PERCPU__COLD;

/**
 * percpu_counter_init - make a counter in the caller's storage; it counts from 0.
 *
 * @counter: must not lie in a cache line that is written often: every addition reads it
 * Returns 0, -EINVAL (@counter is NULL) or -ENOMEM. May block. Async-signal-safe.
 */
PERCPU_API int percpu_counter_init(struct percpu_counter *counter);

/** percpu_counter_destroy - free what percpu_counter_init() allocated. No thread may use the counter any more. */
PERCPU_API void percpu_counter_destroy(struct percpu_counter *counter);

/**
 * percpu_counter_create - make a counter with a name, and enter it in the process's registry.
 *
 * @name: 1 to 255 bytes, copied; @out: set to the counter
 * If the name is there already, gives that counter again (and percpu_counter_put() must be called once more).
 * Returns 0, -EINVAL for a bad argument, -ENOMEM. May block. Not async-signal-safe (it allocates).
 */
PERCPU_API int percpu_counter_create(const char *name, struct percpu_counter **out);

/**
 * percpu_counter_put - give up a counter from percpu_counter_create(); the last one to do so frees it.
 * NULL does nothing. May block. Not async-signal-safe.
 */
PERCPU_API void percpu_counter_put(struct percpu_counter *counter);

/** percpu_counter_find - the counter of that name, or NULL. Takes no reference. May block. */
PERCPU_API struct percpu_counter *percpu_counter_find(const char *name);

/**
 * percpu_counter_for_each - call a function for every counter in the registry, oldest first.
 *
 * @visit: gets the counter and @arg; stops the walk by returning non-zero. It must not create or put counters.
 * Returns what the last @visit returned, 0 if there was none, -EINVAL if @visit is NULL.
 */
PERCPU_API int percpu_counter_for_each(int (*visit)(struct percpu_counter *counter, void *arg), void *arg);

/** percpu_counter_name - the name it was created with, NULL if it has none. */
PERCPU_API const char *percpu_counter_name(const struct percpu_counter *counter);

/**
 * percpu_counter_add - add to a counter.
 *
 * @n: any number; subtract by adding a negative one: sums are modulo 2^64
 * Wait-free, async-signal-safe, correct in every mode and every thread, after fork (the child counts on its own copy)
 * and in a child of vfork (which counts for its parent, as it shares its memory).
 */
PERCPU__INLINE void percpu_counter_add(struct percpu_counter *counter, uint64_t n)
{
	uint64_t *words = counter->words;

	if (PERCPU__UNLIKELY(PERCPU__TRY(
		    percpu__try_add_offset(words, &counter->offset, n, PERCPU__BY_ID, PERCPU__RELAXED))))
		percpu__slow_count(words, &counter->offset, n, PERCPU__BY_ID);
}

/** percpu_counter_inc - percpu_counter_add() of one. */
PERCPU__INLINE void percpu_counter_inc(struct percpu_counter *counter)
{
	percpu_counter_add(counter, 1);
}

/**
 * percpu_counter_read - the sum now, without stopping anybody.
 *
 * Additions that run meanwhile may be in it or not; each addition that happened before the call is. While another thread
 * drains, what it is taking may be missing. Reads one word of each copy. Wait-free, async-signal-safe.
 */
PERCPU_API uint64_t percpu_counter_read(const struct percpu_counter *counter);

/** percpu_counter_read_index - one copy's part of the sum; 0 for an index out of range. As percpu_counter_read(). */
PERCPU_API uint64_t percpu_counter_read_index(const struct percpu_counter *counter, unsigned index);

/**
 * percpu_counter_drain - take the sum and set the counter to 0, exactly.
 *
 * @out: set to the sum. Every addition is in exactly one drain's result, however many threads keep adding.
 * Returns 0; -EINVAL (also for a shared counter: a fence does not reach other processes); -errno of membarrier(2) if the
 * kernel has begun to refuse it (nothing is taken then). One fence. May block on other drains. Async-signal-safe.
 */
PERCPU_API int percpu_counter_drain(struct percpu_counter *counter, uint64_t *out);

/**
 * percpu_counter_init_shared - make a counter on words in a shared area, indexed by CPU number.
 *
 * @word: a per-CPU pointer into an area from percpu_area_map(); 8 bytes of each copy, not zeroed
 * Processes that map the same file and name the same offset count together. Returns 0 or -EINVAL.
 */
PERCPU_API int percpu_counter_init_shared(struct percpu_counter *counter, uint64_t *word);

/** percpu_counter_add_shared - percpu_counter_add() for such a counter. A kill at any instruction loses nothing. */
PERCPU__INLINE void percpu_counter_add_shared(struct percpu_counter *counter, uint64_t n)
{
	uint64_t *words = counter->words;

	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_add(words, n, PERCPU__BY_CPU, PERCPU__RELAXED))))
		percpu__slow_count(words, &counter->offset, n, PERCPU__BY_CPU);
}

PERCPU_END_DECLS

#endif
