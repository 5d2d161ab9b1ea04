/* SPDX-License-Identifier: MIT */
/* What the two halves of malloc-family share. */
#ifndef PERCPU_TESTS_MALLOC_FAMILY_H
#define PERCPU_TESTS_MALLOC_FAMILY_H

#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "subject.h"

#define KIB                   ((size_t)1024)
#define MIB                   (KIB * KIB)
#define ERRNO_MARK            1234 /* no error has this number */
#define assert_aligned(p, to) assert_int_equal((uintptr_t)(p) % (to), 0)

/* Leaves the test if the subject has no such function and may lack it. */
#define need(symbol)                                                                                                   \
	do {                                                                                                           \
		if (!subject_has(symbol) && !subject_is_ours())                                                        \
			skip();                                                                                        \
		assert_true(subject_has(symbol));                                                                      \
	} while (0)

static inline void check_object(void *object, size_t size, uint64_t seed)
{
	size_t usable = malloc_usable_size(object);

	assert_non_null(object);
	assert_aligned(object, subject_alignment(size));
	assert_true(usable >= size);
	/* All of it is the caller's. */
	subject_fill(object, usable, seed);
	assert_int_equal(subject_damage(object, usable, seed, usable), usable);
}

/* family-heap.c */
void test_trim(void **state);
void test_mallinfo(void **state);
void test_malloc_info(void **state);
void test_malloc_stats(void **state);
void test_mallopt(void **state);
void test_trim_threshold(void **state);
void test_reuse(void **state);
/* How many of 64 MiB are kept once they are freed; the exit status of a program that does nothing else. */
int family_left_over(int threshold);

#endif
