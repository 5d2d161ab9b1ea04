/* SPDX-License-Identifier: MIT */
/*
 * Threads that ask for the time while others change TZ, fork, and are interrupted by handlers that ask, too: each answer is right
 * for one of the zones, and the right one where nobody else is at work. An ordinary program, with the library preloaded.
 *
 *   race [SECONDS]
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define READERS 4
#define MOMENTS 512

static const char *const zones[] = { "Europe/Paris", "Asia/Kathmandu", "<-03>3<-02>,M3.5.0/-2,M10.5.0/-1",
				     "right/America/New_York", "Australia/Lord_Howe" };
#define ZONES (sizeof(zones) / sizeof(zones[0]))

static time_t moment[MOMENTS];
static struct tm expected[ZONES][MOMENTS];
static volatile bool stop;
static long wrong, asked;

static bool same(const struct tm *a, const struct tm *b)
{
	return a->tm_sec == b->tm_sec && a->tm_min == b->tm_min && a->tm_hour == b->tm_hour &&
	       a->tm_mday == b->tm_mday && a->tm_mon == b->tm_mon && a->tm_year == b->tm_year &&
	       a->tm_wday == b->tm_wday && a->tm_yday == b->tm_yday && a->tm_isdst == b->tm_isdst &&
	       a->tm_gmtoff == b->tm_gmtoff && !strcmp(a->tm_zone, b->tm_zone);
}

/* Any of the zones will do. */
static bool right(const struct tm *tm, int i)
{
	for (size_t z = 0; z < ZONES; z++)
		if (same(tm, &expected[z][i]))
			return true;
	return false;
}

static void *read_times(void *arg)
{
	long n = 0, bad = 0;
	struct tm tm;

	for (unsigned i = (unsigned)(uintptr_t)arg; !stop; i++, n++) {
		int which = (int)(i % MOMENTS);

		bad += !localtime_r(&moment[which], &tm) || !right(&tm, which);
		if (i % 16 == 0) {
			time_t back;

			tm.tm_isdst = -1;
			back = mktime(&tm);
			/* In which zone, nobody knows; a day more or less is all that zones differ. */
			bad += back < moment[which] - 100000 || back > moment[which] + 100000;
		}
		if (i % 64 == 0)
			tzset();
	}
	__atomic_fetch_add(&wrong, bad, __ATOMIC_RELAXED);
	__atomic_fetch_add(&asked, n, __ATOMIC_RELAXED);
	return NULL;
}

static void handler(int number)
{
	int saved = errno;
	struct tm tm;

	(void)number;
	/* More than the C library allows. */
	tzset();
	if (!localtime_r(&moment[1], &tm) || !right(&tm, 1))
		__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	errno = saved;
}

static void child(size_t z)
{
	struct tm *tm;

	alarm(30);
	setenv("TZ", zones[z], 1);
	tm = localtime(&moment[3]);
	_exit(!tm || !same(tm, &expected[z][3]));
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 2;
	struct itimerval often = { { 0, 300 }, { 0, 300 } };
	struct timespec start, now;
	pthread_t reader[READERS];
	long changes = 0, children = 0;

	for (int i = 0; i < MOMENTS; i++)
		moment[i] = 1600000000 + i * 777777L;
	for (size_t z = 0; z < ZONES; z++) {
		setenv("TZ", zones[z], 1);
		tzset();
		for (int i = 0; i < MOMENTS; i++)
			localtime_r(&moment[i], &expected[z][i]);
	}
	for (size_t z = 0; z < ZONES; z++)
		for (size_t y = 0; y < z; y++)
			if (expected[z][0].tm_gmtoff == expected[y][0].tm_gmtoff) {
				printf("two zones are alike: %s, %s\n", zones[y], zones[z]);
				return 1;
			}
	signal(SIGALRM, handler);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < READERS; i++)
		if (pthread_create(&reader[i], NULL, read_times, (void *)(uintptr_t)i))
			return 2;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		size_t z = (size_t)(changes % (long)ZONES);
		struct tm tm;

		setenv("TZ", zones[z], 1);
		tzset();
		/* Readers call tzset() themselves, but nobody else changes TZ: what was set holds. */
		if (!localtime_r(&moment[2], &tm) || !same(&tm, &expected[z][2]))
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
		if (++changes % 256 == 0) {
			int status;
			pid_t pid = fork();

			if (!pid)
				child((z + 1) % ZONES);
			while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
				;
			children++;
			if (pid < 0 || status) {
				printf("a child ended with status %x\n", pid < 0 ? -1 : status);
				wrong++;
			}
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) * 1e-9 < seconds);
	stop = true;
	for (int i = 0; i < READERS; i++)
		pthread_join(reader[i], NULL);
	printf("%ld times asked, %ld changes, %ld children, %ld wrong\n", asked, changes, children, wrong);
	return wrong != 0;
}
