/* SPDX-License-Identifier: MIT */
/*
 * The fast paths of malloc and free: a section on a magazine, and what finds the magazine. Inlined where they are called
 * from outside, and nowhere else.
 */
#ifndef PERCPU_SRC_MALLOC_FAST_H
#define PERCPU_SRC_MALLOC_FAST_H

#include <percpu/ops.h>

#include "malloc/front.h"
#include "malloc/large.h"

/* For sizes from 1 to TABLE_MOST, by percpu__units_of(): the distance of the class's magazine in the front. */
extern PERCPU_HIDDEN const uint16_t percpu__distance_table[TABLE_MOST / QUANTUM];

/* One less than how many times QUANTUM it is, so that what has no place in the table, 0 too, has none by one comparison. */
PERCPU__INLINE size_t percpu__units_of(size_t size)
{
	size_t units = (size - 1) / QUANTUM;

	/* Else the compiler compares the size, and its instruction is longer. */
	__asm__("" : "+r"(units));
	return units;
}

/* For who may be called by several threads before there is a heap. */
static inline const struct percpu__malloc_ready *percpu__hot(void)
{
	return __atomic_load_n(&percpu__malloc_hot, __ATOMIC_ACQUIRE);
}

/* @size: 1 to SMALL_MOST */
static inline unsigned percpu__class_for(size_t size)
{
	return size <= TABLE_MOST ? percpu__distance_table[percpu__units_of(size)] >> DISTANCE_LOG
				  : percpu__class_of(size);
}

static inline struct percpu__magazine *percpu__magazine_at(struct percpu__front *front, size_t distance)
{
	return (struct percpu__magazine *)(void *)((char *)front + distance);
}

/* @distance: of a magazine. At most PERCPU__LEFT_WORD: the slow path is to be taken. */
PERCPU__INLINE uintptr_t percpu__fast_try(const struct percpu__malloc_ready *ready, size_t distance)
{
	uintptr_t object = PERCPU__TRY_WORD(
		(uintptr_t)percpu__try_take(ready->take_index, percpu__magazine_at(ready->take, distance)));

	(void)ready, (void)distance;
	return object;
}

/* @distance: of the magazine of a class for @size, whose objects all are at multiples of @align. */
PERCPU__INLINE void *percpu__fast_take(const struct percpu__malloc_ready *ready, size_t size, size_t distance,
				       size_t align)
{
	uintptr_t object = percpu__fast_try(ready, distance);

	if (PERCPU__UNLIKELY(object <= PERCPU__LEFT_WORD))
		return percpu__take_slow(size, (unsigned)(distance >> DISTANCE_LOG), align);
	return (void *)object;
}

/* Of sizes that the table knows but the fast path has not got, and of all others. */
PERCPU_HIDDEN void *percpu__malloc_missed(size_t size) PERCPU__COLD;
PERCPU_HIDDEN void *percpu__malloc_medium(size_t size);

PERCPU__INLINE void *percpu__fast_malloc(const struct percpu__malloc_ready *ready, size_t size)
{
	size_t units = percpu__units_of(size);
	uintptr_t object;

	if (PERCPU__UNLIKELY(units >= TABLE_MOST / QUANTUM))
		return percpu__malloc_medium(size);
	object = percpu__fast_try(ready, percpu__distance_table[units]);
	if (PERCPU__UNLIKELY(object <= PERCPU__LEFT_WORD))
		return percpu__malloc_missed(size);
	return (void *)object;
}

/* Addresses that are no multiple of QUANTUM have their low bits on top here, and so are too large. */
static inline uintptr_t percpu__unit_of(const struct percpu__malloc_ready *ready, const void *p)
{
	uintptr_t distance = (uintptr_t)p - ready->base;

	return distance >> QUANTUM_LOG | distance << (64 - QUANTUM_LOG);
}

PERCPU__INLINE void percpu__fast_free(const struct percpu__malloc_ready *ready, void *p)
{
	uintptr_t unit = percpu__unit_of(ready, p);
	size_t distance;

	if (PERCPU__UNLIKELY(unit >= ready->units)) {
		percpu__free_other(p);
		return;
	}
	distance = ready->pages[unit >> (PAGE_LOG - QUANTUM_LOG)];
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_put(ready->put_index, percpu__magazine_at(ready->put, distance),
							 p)) != PERCPU__DONE))
		percpu__put_slow(p, (unsigned)(distance >> DISTANCE_LOG));
}

#endif
