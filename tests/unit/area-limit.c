/* SPDX-License-Identifier: MIT */
/* Out of address space: everything that allocates says so, nothing breaks, and all works again when there is some. */
#include "unit.h"

#include <sys/mman.h>
#include <sys/resource.h>

/* Address space in use, in bytes. */
static size_t used(void)
{
	FILE *file = fopen("/proc/self/statm", "re");
	size_t pages = 0;

	if (file) {
		if (fscanf(file, "%zu", &pages) != 1)
			pages = 0;
		fclose(file);
	}
	return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void allow(size_t more)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_AS, &limit), 0);
	limit.rlim_cur = more == SIZE_MAX ? limit.rlim_max : used() + more;
	assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
}

static size_t areas(void)
{
	struct percpu_area_stats now;

	assert_int_equal(percpu_area_stats(&now), 0);
	return now.areas;
}

#define MOST 65536

static void exhaustion(void **state)
{
	static void *objects[MOST];
	struct percpu_area_stats old, now;
	struct percpu_counter counter, *named = NULL;
	struct percpu_histogram histogram;
	struct percpu_stack stack;
	size_t count = 0;
	int fd = memfd_create("area", MFD_CLOEXEC);
	void *base = NULL;

	(void)state;
	percpu_area_stats(&old);
	allow(((size_t)percpu_copies() * 8 + 16) << 20);
	while (count < MOST && (objects[count] = percpu_alloc(PERCPU_ALLOC_MAX, 8)))
		count++;
	assert_true(count > 0 && count < MOST);
	/* What is left of the areas that there are. */
	while (count < MOST && (objects[count] = percpu_alloc(4096, 8)))
		count++;
	while (count < MOST && (objects[count] = percpu_alloc(8, 8)))
		count++;
	assert_true(count < MOST);
	assert_int_equal(percpu_counter_init(&counter), -ENOMEM);
	assert_int_equal(percpu_stack_init(&stack), -ENOMEM);
	assert_int_equal(percpu_histogram_init(&histogram, 2), -ENOMEM);
	assert_int_equal(percpu_counter_create("exhausted", &named), -ENOMEM);
	assert_null(named);
	assert_null(percpu_counter_find("exhausted"));
	assert_int_equal(percpu_area_map(fd, &base), -ENOMEM);
	assert_null(base);
	percpu_area_stats(&now);
	assert_int_equal(now.objects, old.objects + count);
	assert_int_equal(now.bytes_free, 0);

	/* One back is one more. */
	assert_int_equal(percpu_free(objects[count - 1]), 0);
	objects[count - 1] = percpu_alloc(8, 8);
	assert_non_null(objects[count - 1]);
	assert_int_equal(percpu_free(objects[0]), 0);
	assert_int_equal(percpu_counter_init(&counter), 0);
	percpu_counter_add(&counter, 3);
	assert_int_equal(percpu_counter_read(&counter), 3);
	percpu_counter_destroy(&counter);
	for (size_t i = 1; i < count; i++)
		assert_int_equal(percpu_free(objects[i]), 0);
	percpu_area_stats(&now);
	assert_memory_equal(&now, &old, sizeof old);

	/* And with the limit gone. */
	allow(SIZE_MAX);
	for (count = 0; count < 40; count++) {
		objects[count] = percpu_alloc(PERCPU_ALLOC_MAX, 8);
		assert_non_null(objects[count]);
	}
	while (count)
		assert_int_equal(percpu_free(objects[--count]), 0);
	close(fd);
}

/* The words are there, but not the memory that a drain needs. */
static void half_a_histogram(void **state)
{
	struct percpu_area_stats old, now;
	struct percpu_histogram histogram;
	void *block;

	(void)state;
	percpu_area_stats(&old);
	/* The C library's allocator must not have address space to give back in between. */
	block = percpu_alloc(8, 8);
	assert_non_null(block);
	allow(0);
	assert_int_equal(percpu_histogram_init(&histogram, 8), -ENOMEM);
	allow(SIZE_MAX);
	assert_int_equal(percpu_free(block), 0);
	percpu_area_stats(&now);
	assert_memory_equal(&now, &old, sizeof old);
	assert_int_equal(percpu_histogram_init(&histogram, 8), 0);
	percpu_histogram_destroy(&histogram);
}

/* Room for the description of an area but not for the area, and for neither. */
static void no_new_area(void **state)
{
	void *first = percpu_alloc(PERCPU_ALLOC_MAX, 8);
	size_t old = areas(), space;

	(void)state;
	assert_non_null(first);
	space = used();
	for (size_t more = 0; more < (size_t)percpu_copies() << 20; more += 16384) {
		allow(more);
		assert_null(percpu_alloc(PERCPU_ALLOC_MAX, 8));
		assert_int_equal(areas(), old);
	}
	assert_int_equal(used(), space);
	allow(SIZE_MAX);
	assert_int_equal(percpu_free(first), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(exhaustion),
		cmocka_unit_test(half_a_histogram),
		cmocka_unit_test(no_new_area),
	};
	void *keeps_the_first_area;
	const char *preloaded = getenv("LD_PRELOAD") ? getenv("LD_PRELOAD") : "";

	/* Valgrind shows itself so. */
	if (UNIT_ASAN || strstr(preloaded, "vgpreload")) {
		puts("skipped: the tool around this test needs its address space");
		return UNIT_SKIPPED;
	}
	keeps_the_first_area = percpu_alloc(8, 8);
	if (!keeps_the_first_area)
		return 1;
	return unit_main(tests);
}
