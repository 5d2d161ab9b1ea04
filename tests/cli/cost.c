/* SPDX-License-Identifier: MIT */
/*
 * What one call costs, in a tight loop: a line "name nanoseconds" for each, the best of several rounds.
 * cost.py runs it with and without `percpu stat`, in turns.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 15

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *volatile kept;
static int null;

static void malloc_free(unsigned n)
{
	while (n--) {
		void *block = malloc(64);

		kept = block;
		free(block);
	}
}

static void lock_unlock(unsigned n)
{
	while (n--) {
		pthread_mutex_lock(&mutex);
		pthread_mutex_unlock(&mutex);
	}
}

static void gmtime_once(unsigned n)
{
	time_t when = 1000000000;
	struct tm fields;

	while (n--)
		kept = gmtime_r(&when, &fields);
}

static void localtime_once(unsigned n)
{
	time_t when = 1000000000;
	struct tm fields;

	while (n--)
		kept = localtime_r(&when, &fields);
}

static void write_once(unsigned n)
{
	while (n--)
		if (write(null, "x", 1) != 1)
			exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static const struct {
	const char *name;
	void (*run)(unsigned);
	unsigned calls, n; /* counted calls in a turn; turns in a round */
} loops[] = {
	{ "malloc+free", malloc_free, 2, 1000000 }, { "lock+unlock", lock_unlock, 2, 1000000 },
	{ "gmtime_r", gmtime_once, 1, 300000 },     { "localtime_r", localtime_once, 1, 300000 },
	{ "write", write_once, 1, 100000 },
};

static void *idle(void *arg)
{
	pause();
	return arg;
}

static void measure(const char *suffix)
{
	for (size_t i = 0; i < sizeof(loops) / sizeof(loops[0]); i++) {
		double best = 1e30;

		for (int round = 0; round < ROUNDS; round++) {
			double start = now();

			loops[i].run(loops[i].n);
			start = (now() - start) / loops[i].n / loops[i].calls;
			if (start < best)
				best = start;
		}
		printf("%s%s %.3f\n", loops[i].name, suffix, best);
	}
}

int main(void)
{
	pthread_t thread;

	null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	measure("");
	/* The C library does less while there is one thread only. */
	if (pthread_create(&thread, NULL, idle, NULL))
		return 1;
	measure(",threads");
	return 0;
}
