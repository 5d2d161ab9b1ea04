/* SPDX-License-Identifier: MIT */
/*
 * Every function of the malloc family, as glibc documents it: results, errno, alignment, contents, sizes. One thread.
 *
 *   malloc-family [PATTERN]     only the tests whose names match
 *
 * What they say about the heap as a whole, and do with it, is in family-heap.c.
 */
#include <errno.h>
#include <malloc.h>

#include "family.h"

#define EXHAUSTIVE (300 * KIB)
#define LARGEST    (64 * MIB)
#define HUGE_SIZE  subject_opaque(PTRDIFF_MAX)
#define OVER_SIZE  subject_opaque((size_t)PTRDIFF_MAX + 1)
#define EVERYTHING subject_opaque(SIZE_MAX)

/* Sizes at which an allocator may change its mind: around each eighth of each power of two. */
static size_t borders[600];
static size_t n_borders;

static void make_borders(void)
{
	for (unsigned power = 4; power < 20; power++)
		for (size_t eighth = 8; eighth < 16; eighth++)
			for (int off = -1; off <= 1; off++)
				borders[n_borders++] = (eighth << power >> 3) + (size_t)off;
	assert_true(n_borders <= SUBJECT_COUNT(borders));
}

/* From one size to the next of those looked at: each up to 4 KiB, then some of every remainder. */
static size_t step(size_t size)
{
	return size < 4 * KIB ? 1 : size < 64 * KIB ? 61 : 509;
}

static void test_sizes(void **state)
{
	(void)state;
	for (size_t size = 0; size <= EXHAUSTIVE; size += step(size)) {
		void *one = malloc(size), *two = malloc(size);

		check_object(one, size, size);
		check_object(two, size, size + 1);
		assert_int_equal(subject_damage(one, malloc_usable_size(one), size, size), size);
		free(one);
		free(two);
	}
	for (size_t size = 512 * KIB; size <= LARGEST; size *= 2) {
		for (int off = -1; off <= 1; off++) {
			void *object = malloc(size + (size_t)off);

			check_object(object, size + (size_t)off, size);
			free(object);
		}
	}
}

/* All live at once: none lies in another. */
static void test_disjoint(void **state)
{
	enum { OBJECTS = 30000 };
	static void *objects[OBJECTS];
	static size_t sizes[OBJECTS];
	uint64_t dice = 42;

	(void)state;
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < OBJECTS; i++) {
			if (objects[i])
				continue;
			sizes[i] = subject_size(&dice);
			objects[i] = malloc(sizes[i]);
			assert_non_null(objects[i]);
			sizes[i] = malloc_usable_size(objects[i]);
			subject_fill(objects[i], sizes[i], i);
		}
		for (size_t i = 0; i < OBJECTS; i++) {
			assert_int_equal(subject_damage(objects[i], sizes[i], i, sizes[i]), sizes[i]);
			if (round < 2 && subject_random(&dice) % 2)
				continue;
			free(objects[i]);
			objects[i] = NULL;
		}
	}
}

static void test_zero_size(void **state)
{
	void *objects[9];

	(void)state;
	objects[0] = malloc(0);
	objects[1] = malloc(0);
	objects[2] = calloc(0, 8);
	objects[3] = calloc(8, 0);
	objects[4] = realloc(NULL, 0);
	objects[5] = reallocarray(NULL, 0, 8);
	objects[6] = aligned_alloc(64, 0);
	objects[7] = memalign(32, 0);
	assert_int_equal(posix_memalign(&objects[8], 128, 0), 0);
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++) {
		assert_non_null(objects[i]);
		assert_aligned(objects[i], subject_alignment(0));
		for (size_t j = 0; j < i; j++)
			assert_ptr_not_equal(objects[i], objects[j]);
	}
	if (subject_is_strict()) {
		assert_aligned(objects[6], 64);
		assert_aligned(objects[7], 32);
		assert_aligned(objects[8], 128);
	}
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
		free(objects[i]);
}

static void test_too_much(void **state)
{
	size_t sizes[] = { HUGE_SIZE,       HUGE_SIZE - 4096,  OVER_SIZE,           EVERYTHING,
			   EVERYTHING - 15, EVERYTHING - 4095, EVERYTHING - 2 * MIB };

	(void)state;
	for (size_t i = 0; i < SUBJECT_COUNT(sizes); i++) {
		void *old = malloc(100), *out = &sizes;

		subject_fill(old, 100, i);
#define refused(call)                                                                                                  \
	do {                                                                                                           \
		errno = ERRNO_MARK;                                                                                    \
		assert_null(call);                                                                                     \
		if (subject_is_strict())                                                                               \
			assert_int_equal(errno, ENOMEM);                                                               \
	} while (0)
		refused(malloc(sizes[i]));
		refused(calloc(1, sizes[i]));
		refused(calloc(sizes[i], 1));
		refused(realloc(NULL, sizes[i]));
		refused(realloc(old, sizes[i]));
		refused(reallocarray(old, 1, sizes[i]));
		refused(aligned_alloc(64, sizes[i]));
		refused(memalign(4096, sizes[i]));
		refused(valloc(sizes[i]));
		if (subject_has("pvalloc"))
			refused(pvalloc(sizes[i]));
		errno = ERRNO_MARK;
		assert_int_equal(posix_memalign(&out, 64, sizes[i]), ENOMEM);
		assert_ptr_equal(out, &sizes);
		/* (glibc's changes it, against its manual.) */
		if (subject_is_ours())
			assert_int_equal(errno, ERRNO_MARK);
		assert_int_equal(subject_damage(old, 100, i, 100), 100);
		free(old);
	}
}

static void test_overflow(void **state)
{
	size_t half = subject_opaque((size_t)1 << 32);
	void *old = malloc(50);

	(void)state;
	subject_fill(old, 50, 7);
	refused(calloc(half, half));
	refused(calloc(half + 1, half));
	refused(calloc(EVERYTHING, 2));
	refused(calloc(EVERYTHING / 2 + 2, 2));
	refused(calloc(EVERYTHING / 16 + 1, 17));
	refused(reallocarray(old, half, half));
	refused(reallocarray(old, half + 1, half));
	refused(reallocarray(old, EVERYTHING / 2 + 2, 2));
	refused(reallocarray(NULL, EVERYTHING, EVERYTHING));
	assert_int_equal(subject_damage(old, 50, 7, 50), 50);
	free(old);
}

static void test_free_keeps_errno(void **state)
{
	static const size_t sizes[] = { 0, 1, 16, 100, 1000, 5000, 40000, 300000, 3000000, 40000000 };

	(void)state;
	errno = ERRNO_MARK;
	free(NULL);
	assert_int_equal(errno, ERRNO_MARK);
	for (int round = 0; round < 100; round++) {
		for (size_t i = 0; i < SUBJECT_COUNT(sizes); i++) {
			void *one = malloc(sizes[i]), *two = memalign(8192, sizes[i]);

			assert_true(one && two);
			errno = round % 2 ? 0 : ERRNO_MARK;
			free(one);
			free(two);
			assert_int_equal(errno, round % 2 ? 0 : ERRNO_MARK);
		}
	}
}

static void test_calloc_is_zero(void **state)
{
	(void)state;
	for (size_t size = 0; size <= EXHAUSTIVE; size += 4 * step(size) + (size > 4 * KIB ? 2 * KIB + 7 : 0)) {
		void *objects[8];

		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++) {
			assert_non_null(objects[i] = malloc(size));
			memset(objects[i], 0xa5, malloc_usable_size(objects[i]));
		}
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			free(objects[i]);
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++) {
			assert_non_null(objects[i] = i % 2 ? calloc(size, 1) : calloc(1, size));
			assert_aligned(objects[i], subject_alignment(size));
			assert_int_equal(subject_not_zero(objects[i], size), size);
		}
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			free(objects[i]);
	}
	/* Large ones too, in the place of smaller ones and of larger ones. */
	for (size_t size = 64 * KIB; size <= 16 * MIB; size *= 2) {
		for (size_t part = 1; part <= 4; part *= 2) {
			void *dirty = malloc(size), *clean;

			assert_non_null(dirty);
			memset(dirty, 0x5a, size);
			free(dirty);
			assert_non_null(clean = calloc(size / part / 8, 8));
			assert_int_equal(subject_not_zero(clean, size / part), size / part);
			memset(clean, 0xff, size / part);
			free(clean);
		}
	}
}

/* From every border to every other. */
static void test_realloc_keeps(void **state)
{
	(void)state;
	for (size_t from = 0; from < n_borders; from++) {
		for (size_t to = from % 3; to<n_borders; to += borders[from]> 64 * KIB ? 7 : 3) {
			size_t kept = borders[from] < borders[to] ? borders[from] : borders[to];
			uint64_t seed = from * 1000 + to;
			unsigned char *object = malloc(borders[from]);

			assert_non_null(object);
			subject_fill(object, borders[from], seed);
			/* The last byte that must be kept. */
			object[kept - 1] = subject_byte(seed, kept - 1);
			object = realloc(object, borders[to]);
			assert_non_null(object);
			assert_aligned(object, subject_alignment(borders[to]));
			assert_true(malloc_usable_size(object) >= borders[to]);
			assert_int_equal(subject_damage(object, borders[from], seed, kept), kept);
			assert_int_equal(object[kept - 1], subject_byte(seed, kept - 1));
			memset(object, 0xcc, borders[to]);
			free(object);
		}
	}
}

/* One object that grows to 64 MiB and shrinks to nothing, among others that stand in its way. */
static void test_realloc_walk(void **state)
{
	unsigned char *object = NULL;
	void *others[200] = { NULL };
	size_t size = 0, n = 0;

	(void)state;
	while (size < LARGEST) {
		size_t more = size + size / 5 + 1;

		object = realloc(object, more);
		assert_non_null(object);
		assert_int_equal(subject_damage(object, size, 99, size), size);
		subject_fill(object, more, 99);
		size = more;
		if (n < SUBJECT_COUNT(others))
			assert_non_null(others[n++] = malloc(size < MIB ? size : MIB));
	}
	while (size > 1) {
		size_t less = size - size / 7 - 1;

		if (less > 0)
			object[less - 1] = subject_byte(99, less - 1);
		object = reallocarray(object, less, 1);
		if (less == 0)
			break;
		assert_non_null(object);
		assert_int_equal(subject_damage(object, size, 99, less), less);
		subject_fill(object, less, 99);
		size = less;
	}
	free(size > 1 ? NULL : object);
	for (size_t i = 0; i < n; i++)
		free(others[i]);
}

static void test_realloc_to_nothing(void **state)
{
	static const size_t sizes[] = { 1, 100, 5000, 100000, MIB };

	(void)state;
	for (size_t i = 0; i < SUBJECT_COUNT(sizes); i++) {
		/* It frees, as glibc's does: 4 GiB of them fit. */
		for (size_t times = 4096 * MIB / (sizes[i] < 4096 ? 4096 : sizes[i]) / 8; times > 0; times--) {
			unsigned char *object = malloc(sizes[i]);

			assert_non_null(object);
			object[0] = object[sizes[i] - 1] = 1;
			errno = ERRNO_MARK;
			assert_null(times % 2 ? realloc(object, subject_opaque(0))
					      : reallocarray(object, 3, subject_opaque(0)));
			assert_int_equal(errno, ERRNO_MARK);
		}
	}
}

static void test_realloc_of_aligned(void **state)
{
	(void)state;
	for (size_t alignment = 16; alignment <= MIB; alignment *= 4) {
		for (size_t size = 1; size < 4 * MIB; size = size * 5 + 3) {
			void *object = memalign(alignment, size);

			assert_non_null(object);
			subject_fill(object, size, size);
			assert_non_null(object = realloc(object, 3 * size));
			assert_int_equal(subject_damage(object, size, size, size), size);
			subject_fill(object, 3 * size, size);
			assert_non_null(object = realloc(object, size));
			/* Only what bears the pattern for a size of 3 * size. */
			assert_int_equal(subject_damage(object, 3 * size, size, size), size);
			free(object);
		}
	}
}

static void test_alignment(void **state)
{
	static const size_t sizes[] = { 0,   1,    8,    15,   16,   17,    48,     100,
					500, 1000, 3000, 4096, 5000, 40000, 300000, 2000000 };

	(void)state;
	for (size_t alignment = 1; alignment <= 8 * MIB; alignment *= 2) {
		for (size_t i = 0; i < SUBJECT_COUNT(sizes); i++) {
			size_t size = sizes[i];
			void *objects[5];

			objects[0] = memalign(alignment, size);
			objects[1] = aligned_alloc(alignment, size);
			objects[2] = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
			objects[3] = memalign(alignment, size);
			objects[4] = NULL;
			if (alignment >= sizeof(void *))
				assert_int_equal(posix_memalign(&objects[4], alignment, size), 0);
			for (size_t j = 0; j < SUBJECT_COUNT(objects); j++) {
				if (j == 4 && alignment < sizeof(void *))
					continue;
				if (size || subject_is_strict())
					assert_aligned(objects[j], alignment);
				check_object(objects[j], size, alignment + j);
			}
			for (size_t j = 0; j < SUBJECT_COUNT(objects); j++) {
				size_t usable = malloc_usable_size(objects[j]);

				if (objects[j])
					assert_int_equal(subject_damage(objects[j], usable, alignment + j, usable),
							 usable);
				free(objects[j]);
			}
		}
	}
	/* What no power of two is, is rounded up. */
	for (size_t alignment = 17; alignment < 10000 && subject_is_strict(); alignment += 331) {
		void *object = memalign(alignment, 100);

		assert_non_null(object);
		assert_aligned(object, (size_t)1 << (64 - __builtin_clzl(alignment - 1)));
		free(object);
	}
}

static void test_bad_alignment(void **state)
{
	static const size_t bad[] = { 0, 1, 2, 3, 4, 6, 7, 9, 12, 24, 40, 100, 4095, SIZE_MAX };
	size_t most = subject_opaque(SIZE_MAX / 2 + 2);

	(void)state;
	for (size_t i = 0; i < SUBJECT_COUNT(bad); i++) {
		void *out = &out;

		errno = ERRNO_MARK;
		assert_int_equal(posix_memalign(&out, subject_opaque(bad[i]), 100), EINVAL);
		assert_ptr_equal(out, &out);
		assert_int_equal(errno, ERRNO_MARK);
	}
	if (!subject_is_strict())
		return;
	errno = ERRNO_MARK;
	assert_null(memalign(most, 100));
	assert_int_equal(errno, EINVAL);
	errno = ERRNO_MARK;
	assert_null(aligned_alloc(most, 100));
	assert_int_equal(errno, EINVAL);
	/* A power of two that no address space holds. */
	errno = ERRNO_MARK;
	assert_null(memalign(subject_opaque(SIZE_MAX / 2 + 1), 100));
	assert_int_equal(errno, ENOMEM);
}

static void test_pages(void **state)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	(void)state;
	need("valloc");
	need("pvalloc");
	for (size_t size = 0; size < 5 * page; size += page / 4 + 1) {
		void *plain = valloc(size), *rounded = pvalloc(size);

		assert_aligned(plain, page);
		assert_aligned(rounded, page);
		check_object(plain, size, 1);
		check_object(rounded, (size + page - 1) / page * page, 2);
		free(plain);
		free(rounded);
	}
}

static void test_usable_size(void **state)
{
	(void)state;
	assert_int_equal(malloc_usable_size(NULL), 0);
	for (size_t i = 0; i < n_borders; i++) {
		void *object = malloc(borders[i]);
		size_t usable = malloc_usable_size(object);

		assert_true(usable >= borders[i]);
		assert_int_equal(usable, malloc_usable_size(object));
		/* What ours may waste in a size class, from 128 bytes on. */
		if (subject_is_ours() && borders[i] >= 128)
			assert_true(usable - borders[i] <= borders[i] / 7 + 16);
		free(object);
	}
}

/* C23's, which few C libraries have yet. */
static void test_free_sized(void **state)
{
	union {
		void *symbol;
		void (*sized)(void *, size_t);
		void (*aligned_sized)(void *, size_t, size_t);
	} plain, aligned;

	(void)state;
	need("free_sized");
	need("free_aligned_sized");
	plain.symbol = dlsym(RTLD_DEFAULT, "free_sized");
	aligned.symbol = dlsym(RTLD_DEFAULT, "free_aligned_sized");
	errno = ERRNO_MARK;
	plain.sized(NULL, 100);
	aligned.aligned_sized(NULL, 64, 128);
	for (size_t i = 0; i < n_borders; i++) {
		void *objects[4] = { malloc(borders[i]), calloc(1, borders[i]), realloc(malloc(1), borders[i]), NULL };

		for (size_t j = 0; j < 3; j++) {
			check_object(objects[j], borders[i], j);
			plain.sized(objects[j], borders[i]);
		}
		for (size_t alignment = 8; alignment <= 64 * KIB; alignment *= 8) {
			size_t size = (borders[i] + alignment - 1) / alignment * alignment;

			objects[3] = aligned_alloc(alignment, size);
			check_object(objects[3], size, i);
			aligned.aligned_sized(objects[3], alignment, size);
		}
	}
	assert_int_equal(errno, ERRNO_MARK);
}

static void test_has_all(void **state)
{
	static const char *const functions[] = { "malloc",
						 "calloc",
						 "realloc",
						 "reallocarray",
						 "free",
						 "free_sized",
						 "free_aligned_sized",
						 "aligned_alloc",
						 "posix_memalign",
						 "memalign",
						 "valloc",
						 "pvalloc",
						 "malloc_usable_size",
						 "malloc_trim",
						 "mallinfo2",
						 "malloc_info",
						 "malloc_stats",
						 "mallopt" };

	(void)state;
	for (size_t i = 0; i < SUBJECT_COUNT(functions); i++) {
		if (subject_has(functions[i]))
			continue;
		print_message("%s is not the subject's\n", functions[i]);
		assert_false(subject_is_ours());
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_has_all),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_disjoint),
		cmocka_unit_test(test_zero_size),
		cmocka_unit_test(test_too_much),
		cmocka_unit_test(test_overflow),
		cmocka_unit_test(test_free_keeps_errno),
		cmocka_unit_test(test_calloc_is_zero),
		cmocka_unit_test(test_realloc_keeps),
		cmocka_unit_test(test_realloc_walk),
		cmocka_unit_test(test_realloc_to_nothing),
		cmocka_unit_test(test_realloc_of_aligned),
		cmocka_unit_test(test_alignment),
		cmocka_unit_test(test_bad_alignment),
		cmocka_unit_test(test_pages),
		cmocka_unit_test(test_usable_size),
		cmocka_unit_test(test_trim),
		cmocka_unit_test(test_mallinfo),
		cmocka_unit_test(test_malloc_info),
		cmocka_unit_test(test_malloc_stats),
		cmocka_unit_test(test_mallopt),
		cmocka_unit_test(test_trim_threshold),
		cmocka_unit_test(test_free_sized),
		cmocka_unit_test(test_reuse),
	};

	subject_begin();
	if (argc == 3 && strcmp(argv[1], "--left-over") == 0)
		return family_left_over(atoi(argv[2]));
	make_borders();
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
