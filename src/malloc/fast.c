/* SPDX-License-Identifier: MIT */
/*
 * What the fast paths look up, and medium sizes.
 */
#include "malloc/fast.h"

/* Classes of sizes up to TABLE_MOST, by 16 bytes; made by the compiler. */
#define LOG(n)   ((n) < 16 ? 3 : (n) < 32 ? 4 : 5)
#define CLASS(n) ((n) <= 8 ? (n) : 9 + (LOG((n)-1) - 3) * 8 + ((((n)-1) >> (LOG((n)-1) - 3)) & 7))
#define C1(n)    (uint16_t)(CLASS(n) << DISTANCE_LOG)
#define C4(n)    C1(n), C1((n) + 1), C1((n) + 2), C1((n) + 3)
#define C16(n)   C4(n), C4((n) + 4), C4((n) + 8), C4((n) + 12)
const uint16_t percpu__distance_table[TABLE_MOST / QUANTUM] = { C16(1), C16(17), C16(33), C16(49) };

void *percpu__malloc_missed(size_t size)
{
	return percpu__take_slow(size, percpu__class_of(size), QUANTUM);
}

void *percpu__malloc_medium(size_t size)
{
	if (PERCPU__UNLIKELY(size > SMALL_MOST))
		return percpu__large_new(size, QUANTUM, false);
	return percpu__fast_take(percpu__hot(), size, (size_t)percpu__class_of(size + !size) << DISTANCE_LOG, QUANTUM);
}
