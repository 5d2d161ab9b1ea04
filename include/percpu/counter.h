/* SPDX-License-Identifier: MIT */
/*
 * Counters: 64 bits, one word for each index, added to without a lock, an atomic instruction or a shared cache line.
 *
 * Where a section cannot run the addition is an atomic instruction on the remainder's copy, which no section touches (in
 * mode none: on any copy): additions never block, whatever the mode. Words are never set back: a drain is the sum now
 * less the sum at the last drain, so each addition is in exactly one drain without stopping or even disturbing anybody.
 */
#ifndef PERCPU_COUNTER_H
#define PERCPU_COUNTER_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** A counter, in the caller's storage or the library's. Fields belong to the library. */
struct percpu_counter {
	uint64_t *words;  /* per-CPU: one word a copy; constant after init, read by every add */
	uint64_t drained; /* sum of all drains; written by drain */
	uint32_t by_cpu;  /* words lie in an area shared between processes */
	uint32_t users;   /* of an entry of the registry; guarded by its lock, as the rest */
	const char *name; /* NULL unless in the registry */
	struct percpu_counter *next;
};

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
	percpu__count(counter->words, n, PERCPU__BY_ID);
}

/** percpu_counter_inc - percpu_counter_add() of one. */
PERCPU__INLINE void percpu_counter_inc(struct percpu_counter *counter)
{
	percpu_counter_add(counter, 1);
}

/**
 * percpu_counter_read - the sum now, without stopping anybody.
 *
 * Additions that run meanwhile may be in it or not; each addition that happened before the call is. Counts from the last
 * drain. Reads one word of each copy. Wait-free, async-signal-safe.
 */
PERCPU_API uint64_t percpu_counter_read(const struct percpu_counter *counter);

/** percpu_counter_read_index - one copy's part, counted from init; 0 for an index out of range. Wait-free. */
PERCPU_API uint64_t percpu_counter_read_index(const struct percpu_counter *counter, unsigned index);

/**
 * percpu_counter_drain - take the sum and set the counter to 0, exactly.
 *
 * @out: set to the sum. Every addition is in exactly one drain's result, however many threads keep adding.
 * Returns 0, or -EINVAL for NULL. Lock-free (another drain at the same time makes it read again). Async-signal-safe.
 * For a shared counter each process drains for itself.
 */
PERCPU_API int percpu_counter_drain(struct percpu_counter *counter, uint64_t *out);

/**
 * percpu_counter_init_shared - make a counter on words in a shared area, indexed by CPU number.
 *
 * @word: a per-CPU pointer into an area from percpu_area_map(); 8 bytes of each copy, not zeroed
 * Processes that map the same file and name the same place in it count together. Starts from what is there already
 * (read and drain give the whole sum). Returns 0 or -EINVAL.
 */
PERCPU_API int percpu_counter_init_shared(struct percpu_counter *counter, uint64_t *word);

/** percpu_counter_add_shared - percpu_counter_add() for such a counter. A kill at any instruction loses nothing. */
PERCPU__INLINE void percpu_counter_add_shared(struct percpu_counter *counter, uint64_t n)
{
	percpu__count(counter->words, n, PERCPU__BY_CPU);
}

PERCPU_END_DECLS

#endif
