/* SPDX-License-Identifier: MIT */
/*
 * What the unit tests share. Assertions leave a test by longjmp, so only the main thread of a process may make them:
 * other threads count what they find wrong, and the main thread asserts that it is nothing.
 */
#ifndef PERCPU_TESTS_UNIT_H
#define PERCPU_TESTS_UNIT_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <percpu.h>

#if defined __SANITIZE_ADDRESS__
#define UNIT_ASAN 1
#elif defined __has_feature
#if __has_feature(address_sanitizer)
#define UNIT_ASAN 1
#endif
#endif
#ifndef UNIT_ASAN
#define UNIT_ASAN 0
#endif

#define UNIT_SKIPPED      77 /* what Meson takes for a skip */
#define UNIT_COUNT(array) (sizeof(array) / sizeof *(array))

static inline bool unit_in_mode(enum percpu_mode mode)
{
	struct percpu_description about;

	return percpu_describe(&about) == 0 && about.mode == mode;
}

/* Binds the calling thread to one CPU. */
static inline int unit_pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	return sched_setaffinity(0, sizeof set, &set);
}

/* The same numbers in every run. */
static inline uint64_t unit_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	*state = x;
	return x;
}

/*
 * Runs `what` in a forked child. Returns what it returned (0 to 99), 100 + the signal that killed it, or 99 where there
 * was no child. A child that hangs is killed by SIGALRM.
 */
static inline int unit_in_child(int (*what)(void))
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		alarm(20);
		_exit(what());
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		return 99;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
}

/* Runs threads 0 to n - 1 to their end. */
static inline void unit_threads(unsigned n, void *(*body)(void *), void *args, size_t size)
{
	pthread_t threads[64];

	assert_true(n <= UNIT_COUNT(threads));
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, body, (char *)args + i * size), 0);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
}

/* Whether the tests run in the mode that the build wants them to run in; says so if not. */
static inline bool unit_mode_is_wrong(void)
{
	const char *wanted = getenv("PERCPU_UNIT_MODE");
	struct percpu_description about;

	if (!wanted || percpu_describe(&about) || strcmp(wanted, about.mode_name) == 0)
		return false;
	printf("skipped: this is mode %s, not %s: %s\n", about.mode_name, wanted, about.reason);
	return true;
}

#define unit_main(tests) (unit_mode_is_wrong() ? UNIT_SKIPPED : cmocka_run_group_tests(tests, NULL, NULL))

#endif
