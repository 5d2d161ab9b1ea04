/* SPDX-License-Identifier: MIT */
/*
 * What the allocator takes for itself is at most a fiftieth of the heap, whatever is in it: of each class in turn enough objects
 * for the fixed part not to matter; large blocks; and all together. Counted twice: as the statistics have it, which must be at
 * least what tables and spans add up to here. (Structs of spans that were are kept for those to come: the largest heap is the
 * last one here.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <percpu/malloc.h>

#include "malloc/stats.h"

#define FILL     ((size_t)16 << 20)
#define OF_PAGE  (sizeof(*percpu__heap.distances) + sizeof(*percpu__heap.numbers))
#define FIFTIETH 50

static uint64_t worst; /* in millionths of the heap */

/* A list through the objects: no memory of another allocator is in the way. */
static void *fill(size_t size, size_t most)
{
	void *list = NULL;

	for (size_t bytes = 0; bytes < most; bytes += size) {
		void **object = percpu_malloc(size);

		assert_non_null(object);
		*object = list;
		list = object;
	}
	return list;
}

static void empty(void *list)
{
	while (list) {
		void *next = *(void **)list;

		percpu_malloc_free(list);
		list = next;
	}
	percpu_malloc_trim(0);
}

static void check(size_t size, uint64_t spans)
{
	struct percpu__stats_process all;
	uint64_t least;

	percpu__stats_process(NULL, &all);
	assert_true(all.used >= FILL);
	least = all.used / PAGE * OF_PAGE + spans * sizeof(struct percpu__span);
	if (all.metadata < least || all.metadata * FIFTIETH > all.used)
		fail_msg("blocks of %zu bytes: %llu of %llu bytes are the allocator's own, at least %llu", size,
			 (unsigned long long)all.metadata, (unsigned long long)all.used, (unsigned long long)least);
	if (all.metadata * 1000000 / all.used > worst)
		worst = all.metadata * 1000000 / all.used;
}

static void test_classes(void **state)
{
	(void)state;
	for (unsigned class = 1; class <= CLASSES; class ++) {
		size_t size = percpu__class_size(class);
		void *list = fill(size, FILL);
		struct percpu__stats_class stats;

		percpu__stats_class(NULL, class, &stats);
		assert_true(stats.live >= FILL / size);
		check(size, stats.spans);
		empty(list);
	}
	print_message("worst: %llu millionths\n", (unsigned long long)worst);
}

/* All of them at once. */
static void test_mixture(void **state)
{
	void *lists[CLASSES + 1];

	(void)state;
	for (unsigned class = 1; class <= CLASSES; class ++)
		lists[class] = fill(percpu__class_size(class), FILL / 16);
	check(0, 0);
	for (unsigned class = 1; class <= CLASSES; class ++)
		empty(lists[class]);
}

static void test_large(void **state)
{
	void *list;

	(void)state;
	list = fill(SMALL_MOST + 1, FILL);
	check(SMALL_MOST + 1, FILL / (SMALL_MOST + PAGE));
	empty(list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_large),
		cmocka_unit_test(test_classes),
		cmocka_unit_test(test_mixture),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
