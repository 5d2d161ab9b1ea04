/* SPDX-License-Identifier: MIT */
/* Per-CPU memory: what is given, what is refused, how it packs, and that it comes back; areas shared between processes. */
#include "unit.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include "area/area.h"

struct wide {
	uint64_t first, second;
} __attribute__((aligned(64)));

PERCPU_DEFINE(uint64_t, hits);
PERCPU_DEFINE(struct wide, wides);

static struct percpu_area_stats stats(void)
{
	struct percpu_area_stats now;

	memset(&now, 0xaa, sizeof now);
	assert_int_equal(percpu_area_stats(&now), 0);
	return now;
}

static size_t rounded(size_t size)
{
	return (size + 7) / 8 * 8;
}

static void assert_zero(const void *object, size_t size)
{
	percpu_for_each_index(index) {
		const unsigned char *copy = percpu_ptr((const unsigned char *)object, index);

		if (copy[0] || memcmp(copy, copy + 1, size - 1) != 0)
			fail_msg("%zu bytes of copy %u are not all zero", size, index);
	}
}

static void fill(void *object, size_t size, int byte)
{
	percpu_for_each_index(index)
		memset(percpu_ptr((char *)object, index), byte, size);
}

static bool is_filled(const void *object, size_t size, int byte)
{
	bool good = true;

	percpu_for_each_index(index) {
		const unsigned char *copy = percpu_ptr((const unsigned char *)object, index);

		good &= copy[0] == byte && memcmp(copy, copy + 1, size - 1) == 0;
	}
	return good;
}

static void arguments(void **state)
{
	const struct percpu_area_stats old = stats();
	/* Not constants, for the compiler knows what sizes make no sense. */
	static const volatile size_t sizes[] = { 0, PERCPU_ALLOC_MAX + 1, PERCPU_STRIDE, SIZE_MAX, SIZE_MAX - 6 };
	static const volatile size_t aligns[] = { 0, 3, 6, 24, 65535, 65537, 131072, SIZE_MAX, (size_t)1 << 63 };
	struct percpu_area_stats now;

	(void)state;
	for (size_t i = 0; i < UNIT_COUNT(sizes); i++)
		assert_null(percpu_alloc(sizes[i], 8));
	for (size_t i = 0; i < UNIT_COUNT(aligns); i++)
		assert_null(percpu_alloc(8, aligns[i]));
	assert_int_equal(percpu_area_stats(NULL), -EINVAL);
	now = stats();
	assert_memory_equal(&now, &old, sizeof old);
}

static void alignments_and_sizes(void **state)
{
	static const size_t sizes[] = { 1,
					2,
					3,
					7,
					8,
					9,
					15,
					16,
					17,
					63,
					64,
					65,
					127,
					128,
					255,
					256,
					257,
					1000,
					4095,
					4096,
					4097,
					8192,
					8193,
					65536,
					65537,
					200000,
					500000,
					983040,
					PERCPU_ALLOC_MAX };
	const struct percpu_area_stats old = stats();
	struct percpu_area_stats now;

	(void)state;
	for (size_t align = 1; align <= 65536; align *= 2) {
		void *objects[UNIT_COUNT(sizes)];
		size_t bytes = 0, count = 0;

		for (size_t i = 0; i < UNIT_COUNT(sizes); i++) {
			objects[i] = percpu_alloc(sizes[i], align);
			/* The start of each copy is taken, so the largest objects cannot have the largest alignments. */
			if (align > 4096 && sizes[i] > PERCPU_STRIDE - align) {
				assert_null(objects[i]);
				continue;
			}
			assert_non_null(objects[i]);
			assert_int_equal((uintptr_t)objects[i] % align, 0);
			/* One object never crosses the end of its copy. */
			assert_true(((uintptr_t)objects[i] & (PERCPU_STRIDE - 1)) + sizes[i] <= PERCPU_STRIDE);
			assert_zero(objects[i], sizes[i]);
			fill(objects[i], sizes[i], (int)i + 1);
			bytes += rounded(sizes[i]);
			count++;
		}
		now = stats();
		assert_int_equal(now.objects, old.objects + count);
		assert_int_equal(now.bytes_allocated, old.bytes_allocated + bytes);
		assert_int_equal((now.bytes_free + now.bytes_allocated) % now.areas, 0);
		for (size_t i = 0; i < UNIT_COUNT(sizes); i++) {
			if (objects[i])
				assert_true(is_filled(objects[i], sizes[i], (int)i + 1));
			assert_int_equal(percpu_free(objects[i]), 0);
		}
		now = stats();
		assert_int_equal(now.objects, old.objects);
		assert_int_equal(now.bytes_allocated, old.bytes_allocated);
	}
}

/* A request that no area can ever meet must not make areas. */
static void hopeless_requests_leave_nothing(void **state)
{
	const struct percpu_area_stats old = stats();
	struct percpu_area_stats now;

	(void)state;
	for (int i = 0; i < 5; i++) {
		assert_null(percpu_alloc(PERCPU_ALLOC_MAX, 65536));
		assert_null(percpu_alloc(PERCPU_ALLOC_MAX, 8192));
	}
	now = stats();
	assert_int_equal(now.areas, old.areas);
}

static void reused_memory_is_zero(void **state)
{
	uint64_t seed = 7;

	(void)state;
	for (int turn = 0; turn < 300; turn++) {
		size_t sizes[6];
		void *objects[6];

		for (size_t i = 0; i < 6; i++) {
			sizes[i] = 1 + unit_random(&seed) % (turn % 10 ? 700 : 40000);
			objects[i] = percpu_alloc(sizes[i], (size_t)1 << unit_random(&seed) % 8);
			assert_non_null(objects[i]);
			assert_zero(objects[i], sizes[i]);
			fill(objects[i], sizes[i], 0xff);
		}
		/* In another order than they were made, so that pieces of several become one of the next. */
		for (size_t i = 0; i < 6; i++)
			assert_int_equal(percpu_free(objects[(i * 5 + 3) % 6]), 0);
	}
}

/* How many of these pages are there, or -1 if the kernel cannot tell. */
static long pages_of(void *start, size_t bytes)
{
	static unsigned char present[PERCPU_STRIDE / 4096];
	long count = 0;

	assert_true(bytes <= PERCPU_STRIDE);
	/* Where a whole area was unmapped there are none. */
	if (mincore(start, bytes, present))
		return errno == ENOMEM ? 0 : -1;
	for (size_t i = 0; i < (bytes + 4095) / 4096; i++)
		count += present[i] & 1;
	return count;
}

/* Some kernels, and some that stand in for one, say that all pages are there. */
static bool kernel_tells_pages(void)
{
	void *fresh = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long none = pages_of(fresh, 65536), one;

	*(volatile char *)fresh = 1;
	one = pages_of(fresh, 65536);
	munmap(fresh, 65536);
	return sysconf(_SC_PAGESIZE) == 4096 && none == 0 && one == 1;
}

static char *copy_start(void *object, unsigned index)
{
	uintptr_t start = (uintptr_t)object & ~(uintptr_t)(PERCPU_STRIDE - 1);

	return percpu_ptr((char *)start, index);
}

#define COUNTERS 50000

static void counters_pack(void **state)
{
	static uint64_t *counters[COUNTERS];
	const struct percpu_area_stats old = stats();
	struct percpu_area_stats now;
	const unsigned touched = 0;

	(void)state;
	for (size_t i = 0; i < COUNTERS; i++) {
		counters[i] = percpu_alloc(sizeof *counters[i], sizeof *counters[i]);
		assert_non_null(counters[i]);
	}
	now = stats();
	assert_int_equal(now.objects, old.objects + COUNTERS);
	assert_int_equal(now.bytes_allocated, old.bytes_allocated + COUNTERS * sizeof(uint64_t));
	assert_true(now.areas <= old.areas + 1);
	if (kernel_tells_pages() && now.areas == 1) {
		long before[64];

		assert_true(percpu_copies() <= UNIT_COUNT(before));
		percpu_for_each_index(index)
			before[index] = pages_of(copy_start(counters[0], index), PERCPU_STRIDE);
		for (size_t i = 0; i < COUNTERS; i++)
			*(volatile uint64_t *)percpu_ptr(counters[i], touched) += 1;
		percpu_for_each_index(index) {
			long pages = pages_of(copy_start(counters[0], index), PERCPU_STRIDE);

			/* 98 are full of counters; the first also has the gate, and what else the test holds is little. */
			if (index == touched)
				assert_true(pages >= 97 && pages <= 100 + before[index]);
			else
				assert_int_equal(pages, before[index]);
		}
	}
	for (size_t i = 0; i < COUNTERS; i++)
		assert_int_equal(percpu_free(counters[i]), 0);
	now = stats();
	assert_int_equal(now.objects, old.objects);
	assert_int_equal(now.bytes_allocated, old.bytes_allocated);
	if (kernel_tells_pages() && now.areas == 1)
		percpu_for_each_index(index)
			assert_true(pages_of(copy_start(hits, index), PERCPU_STRIDE) <= 4);
}

static void freed_areas_are_unmapped(void **state)
{
	const struct percpu_area_stats old = stats();
	struct percpu_area_stats now;
	void *objects[8];

	(void)state;
	for (size_t i = 0; i < UNIT_COUNT(objects); i++) {
		objects[i] = percpu_alloc(PERCPU_ALLOC_MAX, 8);
		assert_non_null(objects[i]);
		fill(objects[i], PERCPU_ALLOC_MAX, 0x11);
	}
	now = stats();
	assert_true(now.areas >= old.areas + UNIT_COUNT(objects) - 1);
	for (size_t i = 0; i < UNIT_COUNT(objects); i++) {
		size_t areas = stats().areas;

		assert_int_equal(percpu_free(objects[i]), 0);
		if (stats().areas == areas)
			continue;
		/* None of its copies is mapped any more. */
		percpu_for_each_index(index) {
			unsigned char present;

			assert_int_equal(mincore(copy_start(objects[i], index), 1, &present), -1);
			assert_int_equal(errno, ENOMEM);
		}
	}
	now = stats();
	assert_int_equal(now.areas, old.areas);
	assert_int_equal(now.bytes_free, old.bytes_free);
}

static void freed_pages_go_back(void **state)
{
	/* In the middle of a page, so that the pages at both ends must stay. */
	char *before = percpu_alloc(1000, 8), *object, *behind;
	const size_t size = 400000;

	(void)state;
	object = percpu_alloc(size, 8);
	behind = percpu_alloc(1000, 8);
	assert_true(before && object && behind);
	fill(before, 1000, 1);
	fill(object, size, 2);
	fill(behind, 1000, 3);
	assert_int_equal(percpu_free(object), 0);
	assert_true(is_filled(before, 1000, 1));
	assert_true(is_filled(behind, 1000, 3));
	if (kernel_tells_pages())
		percpu_for_each_index(index) {
			uintptr_t start = ((uintptr_t)percpu_ptr(object, index) + 4095) & ~(uintptr_t)4095;
			uintptr_t end = ((uintptr_t)percpu_ptr(object, index) + size) & ~(uintptr_t)4095;

			assert_int_equal(pages_of((void *)start, end - start), 0);
		}
	/* Many small ones, freed in a bad order, give their pages back too. */
	for (int round = 0; round < 2; round++) {
		char *small[1000];

		for (size_t i = 0; i < UNIT_COUNT(small); i++) {
			small[i] = percpu_alloc(200, 8);
			assert_non_null(small[i]);
			assert_zero(small[i], 200);
			fill(small[i], 200, 4);
		}
		for (size_t i = 0; i < UNIT_COUNT(small); i++)
			assert_int_equal(percpu_free(small[i * 7 % UNIT_COUNT(small)]), 0);
		if (kernel_tells_pages())
			percpu_for_each_index(index) {
				uintptr_t start = ((uintptr_t)percpu_ptr(object, index) + 4095) & ~(uintptr_t)4095;

				assert_int_equal(pages_of((void *)start, 4096 * 40), 0);
			}
	}
	assert_true(is_filled(before, 1000, 1));
	assert_true(is_filled(behind, 1000, 3));
	assert_int_equal(percpu_free(before), 0);
	assert_int_equal(percpu_free(behind), 0);
}

static void bad_frees(void **state)
{
	char *object = percpu_alloc(64, 8), *other = percpu_alloc(8, 8), *freed = percpu_alloc(48, 8);
	struct percpu_area_stats old, now;
	uint64_t local = 0;
	static uint64_t global;
	uint64_t *heap = malloc(sizeof *heap);
	void *base;
	int fd;

	(void)state;
	assert_true(object && other && freed && heap);
	assert_int_equal(percpu_free(freed), 0);
	old = stats();
	assert_int_equal(percpu_free(NULL), 0);
	assert_int_equal(percpu_free(freed), -EINVAL);
	for (int i = 1; i < 64; i++)
		assert_int_equal(percpu_free(object + i), -EINVAL);
	for (unsigned index = 1; index < percpu_copies(); index++)
		assert_int_equal(percpu_free(percpu_ptr(object, index)), -EINVAL);
	assert_int_equal(percpu_free(percpu_ptr(object, percpu_copies())), -EINVAL);
	/* The start of the area, where its gates are. */
	for (int i = 0; i < 64; i += 8)
		assert_int_equal(percpu_free(copy_start(object, 0) + i), -EINVAL);
	/* Free memory in it, and its end. */
	assert_int_equal(percpu_free(copy_start(object, 0) + PERCPU_STRIDE - 8), -EINVAL);
	assert_int_equal(percpu_free(&local), -EINVAL);
	assert_int_equal(percpu_free(&global), -EINVAL);
	assert_int_equal(percpu_free(heap), -EINVAL);
	assert_int_equal(percpu_free((void *)(uintptr_t)8), -EINVAL);
	assert_int_equal(percpu_free((void *)UINTPTR_MAX), -EINVAL);
	fd = memfd_create("area", MFD_CLOEXEC);
	assert_int_equal(percpu_area_map(fd, &base), 0);
	assert_int_equal(percpu_free(base), -EINVAL);
	assert_int_equal(percpu_free((char *)base + 64), -EINVAL);
	assert_int_equal(percpu_area_unmap(base), 0);
	close(fd);
	now = stats();
	assert_memory_equal(&now, &old, sizeof old);
	assert_int_equal(percpu_free(object), 0);
	assert_int_equal(percpu_free(object), -EINVAL);
	assert_int_equal(percpu_free(other), 0);
	free(heap);
}

/* Random allocations and frees beside a simple model of them. */
struct entry {
	char *object;
	size_t size;
	int byte;
};

static struct entry make(uint64_t *seed)
{
	static const size_t limits[] = { 8, 64, 64, 512, 512, 4096, 20000 };
	struct entry e = { .size = 1 + unit_random(seed) % limits[unit_random(seed) % UNIT_COUNT(limits)],
			   .byte = 1 + (int)(unit_random(seed) % 255) };
	size_t align = (size_t)1 << unit_random(seed) % (unit_random(seed) % 16 ? 7 : 14);

	e.object = percpu_alloc(e.size, align);
	if (e.object && (uintptr_t)e.object % align)
		e.object = NULL;
	return e;
}

static void allocations_follow_a_model(void **state)
{
	static struct entry live[400];
	const struct percpu_area_stats old = stats();
	struct percpu_area_stats now;
	size_t count = 0, bytes = 0;
	uint64_t seed = 99;

	(void)state;
	for (int step = 0; step < 6000; step++) {
		/* It grows and shrinks by turns. */
		bool grow = unit_random(&seed) % 8 < (step / 1000 % 2 ? 3 : 5);

		if (count < UNIT_COUNT(live) && (grow || !count)) {
			struct entry e = make(&seed);

			assert_non_null(e.object);
			for (size_t i = 0; i < count; i++)
				assert_true(e.object + rounded(e.size) <= live[i].object ||
					    live[i].object + rounded(live[i].size) <= e.object);
			assert_zero(e.object, e.size);
			fill(e.object, e.size, e.byte);
			bytes += rounded(e.size);
			live[count++] = e;
		} else {
			size_t i = unit_random(&seed) % count;

			assert_true(is_filled(live[i].object, live[i].size, live[i].byte));
			assert_int_equal(percpu_free(live[i].object), 0);
			bytes -= rounded(live[i].size);
			live[i] = live[--count];
		}
		now = stats();
		assert_int_equal(now.objects, old.objects + count);
		assert_int_equal(now.bytes_allocated, old.bytes_allocated + bytes);
	}
	while (count) {
		assert_true(is_filled(live[count - 1].object, live[count - 1].size, live[count - 1].byte));
		assert_int_equal(percpu_free(live[--count].object), 0);
	}
	now = stats();
	assert_memory_equal(&now, &old, sizeof old);
}

#define THREADS 4

static void *churn(void *arg)
{
	struct entry live[50] = { { .object = NULL } };
	uint64_t seed = *(uint64_t *)arg;
	size_t wrong = 0;

	for (int step = 0; step < 3000; step++) {
		struct entry *e = &live[unit_random(&seed) % UNIT_COUNT(live)];

		if (e->object) {
			wrong += !is_filled(e->object, e->size, e->byte);
			wrong += percpu_free(e->object) != 0;
			e->object = NULL;
		} else {
			*e = make(&seed);
			wrong += !e->object;
			if (e->object) {
				wrong += !is_filled(e->object, e->size, 0);
				fill(e->object, e->size, e->byte);
			}
		}
	}
	for (size_t i = 0; i < UNIT_COUNT(live); i++)
		wrong += percpu_free(live[i].object) != 0;
	*(uint64_t *)arg = wrong;
	return NULL;
}

static void threads_allocate_at_once(void **state)
{
	uint64_t seeds[THREADS] = { 1, 2, 3, 4 };
	const struct percpu_area_stats old = stats();
	struct percpu_area_stats now;

	(void)state;
	unit_threads(THREADS, churn, seeds, sizeof *seeds);
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(seeds[i], 0);
	now = stats();
	assert_memory_equal(&now, &old, sizeof old);
}

static void static_variables(void **state)
{
	uint64_t sums[2] = { 0, 0 };

	(void)state;
	assert_non_null(hits);
	assert_non_null(wides);
	assert_int_equal((uintptr_t)wides % 64, 0);
	assert_zero(wides, sizeof *wides);
	percpu_this_add(hits, 5);
	percpu_this_add(&wides->second, 6);
	percpu_for_each_index(index) {
		sums[0] += *(volatile uint64_t *)percpu_ptr(hits, index);
		sums[1] += *(volatile uint64_t *)&percpu_ptr(wides, index)->second;
	}
	assert_int_equal(sums[0], 5);
	assert_int_equal(sums[1], 6);
	assert_true(percpu_this_ptr(hits) >= percpu_ptr(hits, 0));
	assert_true(percpu_this_ptr(hits) < percpu_ptr(hits, percpu_possible_cpus()));
}

/* Address space that does not begin at a multiple of the stride is trimmed at both ends. */
static int reserve_odd_sizes(void)
{
	for (uint32_t more = 1; more < 12; more++) {
		long error = 0;
		char *base;
		unsigned char present;

		percpu__remainder = more;
		base = percpu__reserve(-1, &error);
		if (!base || (uintptr_t)base % PERCPU_STRIDE)
			return 1;
		/* All of it is there, to be written to, and its last gate is shut. */
		for (uint32_t index = 0; index <= more; index++)
			*(volatile char *)(percpu_ptr(base, index) + PERCPU_STRIDE - 1) = 1;
		if (percpu__header_of(base, more)->by_id.word != PERCPU__SHUT ||
		    percpu__header_of(base, more)->by_cpu.word != PERCPU__SHUT ||
		    percpu__header_of(base, 0)->by_id.word)
			return 2;
		if (munmap(base, (size_t)(more + 1) * PERCPU_STRIDE) || mincore(base, 1, &present) == 0)
			return 3;
		/* So that the next one begins elsewhere. */
		if (mmap(NULL, 4096 * more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
			return 4;
	}
	return 0;
}

static void reservations_are_aligned(void **state)
{
	(void)state;
	assert_int_equal(unit_in_child(reserve_odd_sizes), 0);
}

static void iteration(void **state)
{
	unsigned next = 0;

	(void)state;
	percpu_for_each_index(index) {
		assert_int_equal(index, next++);
		assert_ptr_equal(percpu_ptr(hits, index), (char *)hits + index * PERCPU_STRIDE);
	}
	assert_int_equal(next, percpu_copies());
	assert_int_equal(next, percpu_possible_cpus() + 1);
}

/* Shared areas. */
#define SHARED_ADDS 200000

static int count_in_file(int fd)
{
	struct percpu_counter counter;
	void *base;

	if (percpu_area_map(fd, &base) || percpu_counter_init_shared(&counter, (uint64_t *)base + 8))
		return 1;
	for (int i = 0; i < SHARED_ADDS; i++)
		percpu_counter_add_shared(&counter, 3);
	percpu_counter_destroy(&counter);
	return percpu_area_unmap(base) ? 2 : 0;
}

static void processes_count_together(void **state)
{
	static const char *const environments[][3] = { { NULL },
						       { "GLIBC_TUNABLES=glibc.pthread.rseq=0", NULL },
						       { "PERCPU_RSEQ=off", NULL },
						       { "ASAN_OPTIONS=detect_leaks=0", NULL } };
	char path[4096] = "", number[16];
	struct percpu_counter counter;
	pid_t children[UNIT_COUNT(environments)];
	uint64_t sum, *word;
	void *base;
	int fd = memfd_create("area", 0);
	struct stat info;

	(void)state;
	assert_true(fd >= 0);
	assert_true(readlink("/proc/self/exe", path, sizeof path - 1) > 0);
	assert_int_equal(percpu_area_map(fd, &base), 0);
	assert_int_equal((uintptr_t)base % PERCPU_STRIDE, 0);
	word = (uint64_t *)base + 8;
	assert_int_equal(fstat(fd, &info), 0);
	assert_int_equal(info.st_size, percpu_copies() * PERCPU_STRIDE);
	assert_true(info.st_blocks < 1024);
	assert_zero(word, PERCPU_STRIDE - 64);
	snprintf(number, sizeof number, "%d", fd);
	for (size_t i = 0; i < UNIT_COUNT(children); i++) {
		children[i] = fork();
		if (children[i] == 0) {
			execve(path, (char *[]){ path, (char *)"--count", number, NULL },
			       (char **)(uintptr_t)environments[i]);
			_exit(98);
		}
	}
	/* This process counts too, and so does a child that was forked without exec. */
	assert_int_equal(percpu_counter_init_shared(&counter, word), 0);
	for (int i = 0; i < SHARED_ADDS; i++)
		percpu_counter_add_shared(&counter, 3);
	for (size_t i = 0; i < UNIT_COUNT(children); i++) {
		int status;

		assert_int_equal(waitpid(children[i], &status, 0), children[i]);
		assert_int_equal(status, 0);
	}
	assert_int_equal(percpu_counter_read(&counter), (UNIT_COUNT(children) + 1) * 3 * SHARED_ADDS);
	assert_int_equal(percpu_counter_drain(&counter, &sum), 0);
	assert_int_equal(sum, (UNIT_COUNT(children) + 1) * 3 * SHARED_ADDS);
	percpu_counter_destroy(&counter);
	assert_int_equal(percpu_area_unmap(base), 0);
	/* The file keeps it; a longer file stays so. */
	assert_int_equal(ftruncate(fd, (off_t)(percpu_copies() + 3) * (off_t)PERCPU_STRIDE), 0);
	assert_int_equal(percpu_area_map(fd, &base), 0);
	assert_int_equal(fstat(fd, &info), 0);
	assert_int_equal(info.st_size, (percpu_copies() + 3) * PERCPU_STRIDE);
	assert_int_equal(percpu_counter_init_shared(&counter, (uint64_t *)base + 8), 0);
	assert_int_equal(percpu_counter_read(&counter), (UNIT_COUNT(children) + 1) * 3 * SHARED_ADDS);
	assert_int_equal(percpu_area_unmap(base), 0);
	close(fd);
}

static void shared_areas_refuse(void **state)
{
	void *untouched = &untouched, *base = untouched;
	int fds[2], fd = memfd_create("area", MFD_CLOEXEC | MFD_ALLOW_SEALING), reader;
	char path[64];

	(void)state;
	assert_int_equal(percpu_area_map(fd, NULL), -EINVAL);
	assert_int_equal(percpu_area_map(-1, &base), -EBADF);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(percpu_area_map(fds[0], &base), -EINVAL);
	close(fds[0]);
	close(fds[1]);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	reader = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(reader >= 0);
	assert_true(percpu_area_map(reader, &base) < 0);
	assert_int_equal(ftruncate(fd, (off_t)percpu_copies() * (off_t)PERCPU_STRIDE), 0);
	assert_int_equal(percpu_area_map(reader, &base), -EACCES);
	close(reader);
	assert_int_equal(ftruncate(fd, 4096), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), 0);
	assert_int_equal(percpu_area_map(fd, &base), -EPERM);
	close(fd);
	assert_ptr_equal(base, untouched);
	assert_int_equal(percpu_area_unmap(NULL), -EINVAL);
	assert_int_equal(percpu_area_unmap((void *)(uintptr_t)4096), -EINVAL);
	assert_int_equal(percpu_area_unmap((void *)((uintptr_t)-1 << PERCPU_STRIDE_SHIFT)), -EINVAL);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arguments),
		cmocka_unit_test(alignments_and_sizes),
		cmocka_unit_test(hopeless_requests_leave_nothing),
		cmocka_unit_test(reused_memory_is_zero),
		cmocka_unit_test(counters_pack),
		cmocka_unit_test(freed_areas_are_unmapped),
		cmocka_unit_test(freed_pages_go_back),
		cmocka_unit_test(bad_frees),
		cmocka_unit_test(allocations_follow_a_model),
		cmocka_unit_test(threads_allocate_at_once),
		cmocka_unit_test(static_variables),
		cmocka_unit_test(reservations_are_aligned),
		cmocka_unit_test(iteration),
		cmocka_unit_test(processes_count_together),
		cmocka_unit_test(shared_areas_refuse),
	};

	if (argc > 2 && strcmp(argv[1], "--count") == 0)
		return count_in_file(atoi(argv[2]));
	return unit_main(tests);
}
