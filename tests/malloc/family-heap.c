/* SPDX-License-Identifier: MIT */
/*
 * The functions of the malloc family that are about the heap as a whole: what it has, what it gives back, what is used again.
 */
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "family.h"

void test_trim(void **state)
{
	static void *objects[2000];

	(void)state;
	need("malloc_trim");
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++) {
		objects[i] = malloc(10000);
		subject_fill(objects[i], 10000, i);
	}
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i += 2)
		free(objects[i]);
	errno = ERRNO_MARK;
	assert_in_range(malloc_trim(0), 0, 1);
	assert_in_range(malloc_trim(MIB), 0, 1);
	for (size_t i = 1; i < SUBJECT_COUNT(objects); i += 2) {
		assert_int_equal(subject_damage(objects[i], 10000, i, 10000), 10000);
		free(objects[i]);
	}
	assert_in_range(malloc_trim(0), 0, 1);
	/* What was given back is there again. */
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
		assert_non_null(objects[i] = calloc(100, 100));
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++) {
		assert_int_equal(subject_not_zero(objects[i], 10000), 10000);
		free(objects[i]);
	}
}

static size_t in_use(void)
{
	struct mallinfo2 info = mallinfo2();

	return info.uordblks + info.hblkhd;
}

void test_mallinfo(void **state)
{
	static void *objects[1000];
	size_t before, large;
	void *object;

	(void)state;
	need("mallinfo2");
	before = in_use();
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
		assert_non_null(objects[i] = malloc(8000));
	assert_true(in_use() >= before + 7000 * SUBJECT_COUNT(objects));
	large = in_use();
	assert_non_null(object = malloc(20 * MIB));
	assert_true(in_use() >= large + 20 * MIB);
	free(object);
	assert_true(in_use() < large + 10 * MIB);
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
		free(objects[i]);
	assert_true(in_use() < before + 4 * MIB);
}

void test_malloc_info(void **state)
{
	char *text = NULL;
	size_t length = 0;
	FILE *stream = open_memstream(&text, &length);

	(void)state;
	assert_non_null(stream);
	need("malloc_info");
	assert_int_equal(malloc_info(0, stream), 0);
	assert_int_equal(fflush(stream), 0);
	assert_true(length > 16);
	assert_memory_equal(text, "<malloc", 7);
	assert_non_null(strstr(text, "</malloc>"));
	/* There are no options. */
	assert_int_equal(malloc_info(1, stream), EINVAL);
	fclose(stream);
	free(text);
}

void test_malloc_stats(void **state)
{
	char text[4096];
	int out[2], saved;
	ssize_t length;

	(void)state;
	need("malloc_stats");
	assert_int_equal(pipe2(out, O_NONBLOCK), 0);
	saved = dup(STDERR_FILENO);
	dup2(out[1], STDERR_FILENO);
	malloc_stats();
	dup2(saved, STDERR_FILENO);
	close(saved);
	length = read(out[0], text, sizeof text);
	close(out[0]);
	close(out[1]);
	assert_true(length > 10);
	assert_non_null(memchr(text, '\n', (size_t)length));
}

void test_mallopt(void **state)
{
	static const int parameters[] = { M_MXFAST,     M_TRIM_THRESHOLD,
					  M_TOP_PAD,    M_MMAP_THRESHOLD,
					  M_MMAP_MAX,   M_PERTURB,
					  M_ARENA_TEST, M_ARENA_MAX,
					  12345,        -12345 };

	(void)state;
	need("mallopt");
	for (size_t i = 0; i < SUBJECT_COUNT(parameters); i++) {
		void *object = malloc(100);

		/* (Zero bytes by M_PERTURB are none.) */
		assert_in_range(mallopt(parameters[i], parameters[i] == M_PERTURB ? 0 : 65536), 0, 1);
		check_object(object, 100, 1);
		free(object);
	}
	if (subject_is_ours())
		assert_int_equal(mallopt(-12345, 1), 0);
}

int family_left_over(int threshold)
{
	static void *objects[64];

	if (mallopt(M_TRIM_THRESHOLD, threshold) != 1)
		return 100;
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++) {
		objects[i] = malloc(MIB);
		if (!objects[i])
			return 101;
		memset(objects[i], 1, MIB);
	}
	/* What has only just been taken is kept for a moment. */
	usleep(1500000);
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
		free(objects[i]);
	return (int)(mallinfo2().fordblks / MIB);
}

static int left_over_in_child(const char *threshold)
{
	int status = -1;
	pid_t child = fork();

	if (child == 0) {
		execl("/proc/self/exe", "malloc-family", "--left-over", threshold, (char *)NULL);
		_exit(102);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

void test_trim_threshold(void **state)
{
	(void)state;
	need("mallopt");
	if (!subject_is_ours())
		skip();
	assert_in_range(left_over_in_child("1000000"), 0, 30);
	assert_in_range(left_over_in_child("-1"), 60, 70);
}

/* Twice and a half what fits: whoever does not give back runs out. */
void test_reuse(void **state)
{
	static const size_t sizes[] = { 16, 24, 100, 1000, 3000, 20000, 100000, 300000, MIB, 10 * MIB };
	pid_t child = fork();
	int status = -1;

	(void)state;
	assert_true(child >= 0);
	if (child == 0) {
		struct rlimit limit = { subject_address_space() + 3000 * MIB, RLIM_INFINITY };
		static void *objects[4 * KIB];

		alarm(100);
		for (size_t i = 0; i < SUBJECT_COUNT(sizes); i++) {
			size_t n = 8 * MIB / sizes[i] < 1 ? 1 : 8 * MIB / sizes[i];

			n = n > SUBJECT_COUNT(objects) ? SUBJECT_COUNT(objects) : n;
			if (i == 1)
				setrlimit(RLIMIT_AS, &limit);
			for (size_t done = 0; done < 7500 * MIB /
							     (sizes[i] < 4096  ? 64
							      : sizes[i] < MIB ? 4
									       : 1);
			     done += n * sizes[i]) {
				for (size_t j = 0; j < n; j++) {
					objects[j] = malloc(sizes[i]);
					if (!objects[j])
						_exit((int)i + 1);
					*(char *)objects[j] = 1;
				}
				for (size_t j = 0; j < n; j++)
					free(objects[j]);
			}
		}
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}
