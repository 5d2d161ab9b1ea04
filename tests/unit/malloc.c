/* SPDX-License-Identifier: MIT */
/*
 * The allocator by names of its own, in a program that keeps the C library's: what each function promises, that the two do
 * not meet, and percpu_free(), which takes per-CPU objects too. What is common to all mallocs tests/malloc has.
 */
#include <malloc.h>

#include "unit.h"

#define ERRNO_MARK 1234
#define MANY       5000

static size_t opaque(size_t size)
{
	__asm__("" : "+r"(size));
	return size;
}

static size_t in_use(void)
{
	struct percpu_malloc_info info;

	assert_int_equal(percpu_malloc_info(&info), 0);
	return info.in_use;
}

/* Before anything is allocated. */
static void nothing_yet(void **state)
{
	struct percpu_malloc_info info;

	(void)state;
	memset(&info, 0x5a, sizeof info);
	assert_int_equal(percpu_malloc_info(NULL), -EINVAL);
	assert_int_equal(percpu_malloc_info(&info), 0);
	assert_int_equal(info.in_use + info.cached + info.free + info.released + info.peak, 0);
	assert_int_equal(percpu_malloc_trim(0), 0);
	assert_int_equal(percpu_malloc_usable_size(NULL), 0);
	errno = ERRNO_MARK;
	percpu_malloc_free(NULL);
	percpu_free_sized(NULL, 10);
	percpu_free_aligned_sized(NULL, 64, 64);
	assert_int_equal(errno, ERRNO_MARK);
}

static void check(void *p, size_t size, size_t align)
{
	size_t room = percpu_malloc_usable_size(p);

	assert_non_null(p);
	assert_int_equal((uintptr_t)p % align, 0);
	assert_true(room >= size);
	assert_true(room <= size + size / 7 + 16 || size > 128 << 10 || align > 16);
	memset(p, 0x77, room);
}

static void each_function(void **state)
{
	(void)state;
	for (size_t size = 0; size < 600000; size = size * 5 / 4 + 1) {
		void *out = &out, *more[3];
		unsigned char *p;

		errno = ERRNO_MARK;
		p = percpu_malloc(size);
		check(p, size, 16);
		percpu_malloc_free(p);
		p = percpu_calloc(size, 1);
		for (size_t i = 0; i < size; i++)
			assert_int_equal(p[i], 0);
		check(p, size, 16);
		percpu_free_sized(p, size);
		check(p = percpu_aligned_alloc(256, size), size, 256);
		percpu_free_aligned_sized(p, 256, size);
		for (int i = 0; i < 3; i++)
			check(more[i] = percpu_aligned_alloc(opaque(48), size), size, 64);
		for (int i = 0; i < 3; i++)
			percpu_malloc_free(more[i]);
		check(p = percpu_memalign(8192, size), size, 8192);
		assert_int_equal(percpu_free(p), 0);
		assert_int_equal(percpu_posix_memalign(&out, 64, size), 0);
		check(out, size, 64);
		percpu_malloc_free(out);
		check(p = percpu_valloc(size), size, 4096);
		percpu_malloc_free(p);
		check(p = percpu_pvalloc(size), (size + 4095) / 4096 * 4096, 4096);
		percpu_malloc_free(p);
		check(p = percpu_realloc(NULL, size), size, 16);
		p = percpu_reallocarray(p, size + 1, 3);
		for (size_t i = 0; i < size; i++)
			assert_int_equal(p[i], 0x77);
		check(p, 3 * size + 3, 16);
		p = percpu_realloc(p, size / 2 + 1);
		for (size_t i = 0; i < size / 2 + 1; i++)
			assert_int_equal(p[i], 0x77);
		assert_null(percpu_realloc(p, 0));
		assert_int_equal(errno, ERRNO_MARK);
	}
}

#define refused(call, error)                                                                                           \
	do {                                                                                                           \
		errno = ERRNO_MARK;                                                                                    \
		assert_null(call);                                                                                     \
		assert_int_equal(errno, error);                                                                        \
	} while (0)

static void errors(void **state)
{
	size_t most = opaque(SIZE_MAX), half = opaque((size_t)1 << 32);
	void *out = &out, *old = percpu_malloc(100);

	(void)state;
	memset(old, 0x33, 100);
	refused(percpu_malloc(most), ENOMEM);
	refused(percpu_malloc(most / 2 + 1), ENOMEM);
	refused(percpu_malloc(most / 2), ENOMEM);
	refused(percpu_calloc(half, half), ENOMEM);
	refused(percpu_realloc(old, most), ENOMEM);
	refused(percpu_reallocarray(old, half, half), ENOMEM);
	refused(percpu_aligned_alloc(64, most), ENOMEM);
	refused(percpu_aligned_alloc(most / 2 + 2, 1), EINVAL);
	refused(percpu_memalign(most / 2 + 2, 1), EINVAL);
	refused(percpu_memalign(most / 2 + 1, 1), ENOMEM);
	refused(percpu_valloc(most), ENOMEM);
	refused(percpu_pvalloc(most), ENOMEM);
	for (size_t i = 0; i < 100; i++)
		assert_int_equal(((unsigned char *)old)[i], 0x33);
	percpu_malloc_free(old);
	errno = ERRNO_MARK;
	assert_int_equal(percpu_posix_memalign(&out, 4, 1), EINVAL);
	assert_int_equal(percpu_posix_memalign(&out, 48, 1), EINVAL);
	assert_int_equal(percpu_posix_memalign(&out, 0, 1), EINVAL);
	assert_int_equal(percpu_posix_memalign(&out, 64, most), ENOMEM);
	assert_ptr_equal(out, &out);
	assert_int_equal(errno, ERRNO_MARK);
}

/* Neither lies in the other's memory, and each keeps its own books. */
static void beside_libc(void **state)
{
	static unsigned char *ours[MANY], *theirs[MANY];
	size_t before = in_use(), libc_before = mallinfo2().uordblks;

	(void)state;
	for (size_t i = 0; i < MANY; i++) {
		size_t size = i % 700 + 1;

		assert_non_null(ours[i] = percpu_malloc(size));
		assert_non_null(theirs[i] = malloc(size));
		memset(ours[i], 0xaa, percpu_malloc_usable_size(ours[i]));
		memset(theirs[i], 0x55, malloc_usable_size(theirs[i]));
	}
	assert_in_range(in_use(), before + MANY * 350, before + MANY * 450);
	/* (That of the sanitizers says nothing.) */
	if (!UNIT_ASAN)
		assert_in_range(mallinfo2().uordblks, libc_before + MANY * 300, libc_before + MANY * 450);
	for (size_t i = 0; i < MANY; i++) {
		for (size_t k = 0; k <= i % 700; k++)
			assert_true(ours[i][k] == 0xaa && theirs[i][k] == 0x55);
		percpu_malloc_free(ours[i]);
		free(theirs[i]);
	}
	assert_int_equal(in_use(), before);
}

static void free_takes_both(void **state)
{
	size_t before = in_use();
	struct percpu_area_stats stats, after;
	void *small = percpu_malloc(10), *large = percpu_malloc(1 << 20), *object;

	(void)state;
	assert_int_equal(percpu_area_stats(&stats), 0);
	object = percpu_alloc(64, 64);
	assert_non_null(object);
	assert_int_equal(percpu_free(small), 0);
	assert_int_equal(percpu_free(large), 0);
	assert_int_equal(percpu_free(object), 0);
	assert_int_equal(percpu_free(&stats), -EINVAL);
	assert_int_equal(in_use(), before);
	assert_int_equal(percpu_area_stats(&after), 0);
	assert_int_equal(after.objects, stats.objects);
}

static void info_and_trim(void **state)
{
	struct percpu_malloc_info full, empty, trimmed;
	static void *blocks[MANY];

	(void)state;
	for (size_t i = 0; i < MANY; i++) {
		assert_non_null(blocks[i] = percpu_malloc(1000));
		memset(blocks[i], 1, 1000);
	}
	assert_int_equal(percpu_malloc_info(&full), 0);
	for (size_t i = 0; i < MANY; i++)
		percpu_malloc_free(blocks[i]);
	assert_int_equal(percpu_malloc_info(&empty), 0);
	assert_int_equal(percpu_malloc_trim(0), 1);
	assert_int_equal(percpu_malloc_info(&trimmed), 0);
	assert_true(full.in_use >= MANY * 1000);
	assert_true(full.peak >= full.in_use);
	assert_true(empty.in_use <= full.in_use - MANY * 1000);
	assert_true(empty.cached + empty.free + empty.released >= full.cached + full.free + MANY * 1000);
	assert_int_equal(trimmed.in_use, empty.in_use);
	assert_int_equal(trimmed.free, 0);
	assert_true(trimmed.cached < 1 << 20);
	assert_true(trimmed.released >= MANY * 900);
	assert_true(trimmed.peak >= full.in_use);
}

static void stats_are_text(void **state)
{
	char text[100000];
	FILE *file = tmpfile();
	int saved = dup(STDERR_FILENO);
	size_t length;

	(void)state;
	assert_non_null(file);
	assert_int_equal(dup2(fileno(file), STDERR_FILENO), STDERR_FILENO);
	percpu_malloc_stats();
	dup2(saved, STDERR_FILENO);
	close(saved);
	rewind(file);
	length = fread(text, 1, sizeof text, file);
	fclose(file);
	assert_true(length > 20 && text[length - 1] == '\n');
}

struct worker {
	uint64_t dice;
	void *blocks[300];
	unsigned wrong;
};

/* Threads whose first call may be this one, and who free what others have. */
static void *work(void *arg)
{
	static void *shared[64];
	struct worker *me = arg;

	for (int i = 0; i < 100000; i++) {
		uint64_t dice = unit_random(&me->dice);
		size_t at = dice % UNIT_COUNT(me->blocks), size = (dice >> 20) % (i % 50 ? 400 : 40000) + 8;
		size_t *block = me->blocks[at];

		me->wrong += block && block[0] != at;
		percpu_malloc_free(block);
		block = me->blocks[at] = percpu_malloc(size);
		if (!block) {
			me->wrong++;
			continue;
		}
		block[0] = at;
		if (i % 3 == 0) {
			me->blocks[at] = NULL;
			percpu_malloc_free(
				__atomic_exchange_n(&shared[dice >> 40 & 63], (void *)block, __ATOMIC_ACQ_REL));
		}
	}
	for (size_t i = 0; i < UNIT_COUNT(me->blocks); i++)
		percpu_malloc_free(me->blocks[i]);
	for (size_t i = 0; i < UNIT_COUNT(shared); i++)
		percpu_malloc_free(__atomic_exchange_n(&shared[i], NULL, __ATOMIC_ACQ_REL));
	return NULL;
}

static void threads(void **state)
{
	static struct worker workers[8];

	(void)state;
	for (unsigned i = 0; i < 8; i++)
		workers[i].dice = i + 1;
	unit_threads(8, work, workers, sizeof workers[0]);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(workers[i].wrong, 0);
}

static int child(void)
{
	static struct worker worker = { .dice = 9 };

	work(&worker);
	return worker.wrong != 0;
}

static void *until_told(void *arg)
{
	struct worker *me = arg;

	while (!__atomic_load_n(&me->wrong, __ATOMIC_RELAXED)) {
		void *block = percpu_malloc(unit_random(&me->dice) % 3000);

		percpu_malloc_free(block);
	}
	return NULL;
}

static void children(void **state)
{
	static struct worker busy = { .dice = 5 };
	pthread_t thread;
	int rc = 0;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, until_told, &busy), 0);
	for (int i = 0; i < 20 && !rc; i++)
		rc = unit_in_child(child);
	__atomic_store_n(&busy.wrong, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	assert_int_equal(rc, 0);
}

/* Wrong pointers end the process. */

static void *wrong;

static int free_wrong(void)
{
	dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
	percpu_malloc_free(wrong);
	return 0;
}

/* (Free objects of the parent may lie with another index than the child's.) */
static int free_twice(void)
{
	percpu_malloc_free(wrong);
	return free_wrong();
}

static int free_wrong_anyhow(void)
{
	dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
	return percpu_free(wrong) == -EINVAL ? 50 : 0;
}

static void wrong_pointers(void **state)
{
	char *block = percpu_malloc(100), *large = percpu_malloc(1 << 20);

	(void)state;
	wrong = block + 8;
	assert_int_equal(unit_in_child(free_wrong), 100 + SIGABRT);
	assert_int_equal(unit_in_child(free_wrong_anyhow), 100 + SIGABRT);
	wrong = large + 8192;
	assert_int_equal(unit_in_child(free_wrong), 100 + SIGABRT);
	wrong = malloc(100);
	assert_int_equal(unit_in_child(free_wrong), 100 + SIGABRT);
	assert_int_equal(unit_in_child(free_wrong_anyhow), 50);
	free(wrong);
	wrong = percpu_alloc(64, 64);
	assert_int_equal(unit_in_child(free_wrong), 100 + SIGABRT);
	percpu_free(wrong);
	wrong = block;
	assert_int_equal(unit_in_child(free_twice), 100 + SIGABRT);
	wrong = large;
	assert_int_equal(unit_in_child(free_twice), 100 + SIGABRT);
	percpu_malloc_free(block);
	percpu_malloc_free(large);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_yet),    cmocka_unit_test(each_function),   cmocka_unit_test(errors),
		cmocka_unit_test(beside_libc),    cmocka_unit_test(free_takes_both), cmocka_unit_test(info_and_trim),
		cmocka_unit_test(stats_are_text), cmocka_unit_test(threads),         cmocka_unit_test(children),
		cmocka_unit_test(wrong_pointers),
	};

	return unit_main(tests);
}
