/* SPDX-License-Identifier: MIT */
/*
 * Size classes: multiples of 16 up to 128, then eight to each doubling, up to 128 KiB. So a block is at most an eighth larger
 * than what was asked for, from 128 bytes on.
 *
 * A class is known by its number, 1 to CLASSES; 0 stands for what is no small object.
 */
#ifndef PERCPU_SRC_MALLOC_CLASSES_H
#define PERCPU_SRC_MALLOC_CLASSES_H

#include <stdint.h>
#include <stddef.h>

#define CLASSES      88U
#define SMALL_MOST   ((size_t)128 << 10)
#define TABLE_MOST   ((size_t)1024) /* up to here a table tells the class */
#define QUANTUM      16U
#define QUANTUM_LOG  4U
#define DISTANCE_LOG 4U /* of the magazines of neighbouring classes in the front */

/* @size: 1 to SMALL_MOST */
static inline unsigned percpu__class_of(size_t size)
{
	unsigned log;

	if (size <= 128)
		return (unsigned)((size + QUANTUM - 1) >> QUANTUM_LOG);
	log = 63U - (unsigned)__builtin_clzl(size - 1);
	return 9 + (log - 7) * 8 + (((size - 1) >> (log - 3)) & 7);
}

static inline size_t percpu__class_size(unsigned number)
{
	unsigned log;

	if (number <= 8)
		return (size_t)number << QUANTUM_LOG;
	log = (number - 9) / 8 + 7;
	return ((size_t)1 << log) + ((size_t)((number - 9) % 8 + 1) << (log - 3));
}

#endif
