/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: the calendar of libpercpu-libc beside the C library's, both called directly.
 *
 * Moments are spread over a year, as the lines of a log are: neither date nor offset is the last one's. localtime_r is
 * measured in two zones, the one a process has without TZ and one with summer time; the others with summer time only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/bench.h"
#include "libc/calendar.h"

#define BEGINNING 1700000000
#define STEP      997
#define YEAR      31556952
#define SUMMER    "Europe/Paris"

static char *before; /* TZ as it was */

static inline time_t next(time_t t)
{
	return t < BEGINNING + YEAR ? t + STEP : BEGINNING;
}

static time_t first(const struct bench_worker *worker)
{
	return BEGINNING + (time_t)worker->id * 12345;
}

#define LOCALTIME_R(name, function)                                                                                    \
	BENCH_LOOP name(struct bench_worker *worker, uint64_t n)                                                       \
	{                                                                                                              \
		time_t t = first(worker);                                                                              \
		struct tm tm;                                                                                          \
                                                                                                                       \
		for (; n; n--, t = next(t)) {                                                                          \
			function(&t, &tm);                                                                             \
			BENCH_USE(tm.tm_mday);                                                                         \
		}                                                                                                      \
	}
LOCALTIME_R(reentrant_percpu, percpu__localtime_r)
LOCALTIME_R(reentrant_glibc, localtime_r)

/* Which thread's fields are read does not matter here. */
#define LOCALTIME(name, function)                                                                                      \
	BENCH_LOOP name(struct bench_worker *worker, uint64_t n)                                                       \
	{                                                                                                              \
		time_t t = first(worker);                                                                              \
                                                                                                                       \
		for (; n; n--, t = next(t))                                                                            \
			BENCH_USE(function(&t));                                                                       \
	}
LOCALTIME(shared_percpu, percpu__localtime)
LOCALTIME(shared_glibc, localtime)

#define MKTIME(name, function)                                                                                         \
	BENCH_LOOP name(struct bench_worker *worker, uint64_t n)                                                       \
	{                                                                                                              \
		struct tm tm = { .tm_year = 124, .tm_mday = 1, .tm_hour = (int)worker->id, .tm_isdst = -1 };           \
                                                                                                                       \
		for (; n; n--) {                                                                                       \
			tm.tm_min += STEP / 60;                                                                        \
			tm.tm_year = 124;                                                                              \
			tm.tm_isdst = -1;                                                                              \
			BENCH_USE(function(&tm));                                                                      \
		}                                                                                                      \
	}
MKTIME(back_percpu, percpu__mktime)
MKTIME(back_glibc, mktime)

static int settle(const char *zone)
{
	const char *old = getenv("TZ");

	before = old ? strdup(old) : NULL;
	if ((old && !before) || (zone ? setenv("TZ", zone, 1) : unsetenv("TZ")))
		return -ENOMEM;
	tzset();
	percpu__tzset();
	return 0;
}

static int setup_default(unsigned threads)
{
	(void)threads;
	return settle(NULL);
}

static int setup_summer(unsigned threads)
{
	(void)threads;
	return settle(SUMMER);
}

static void teardown(void)
{
	if (before)
		setenv("TZ", before, 1);
	else
		unsetenv("TZ");
	free(before);
	before = NULL;
}

static const struct bench_subject reentrant_subjects[] = {
	{ .name = "percpu", .what = "localtime_r() of libpercpu-libc", .loop = reentrant_percpu },
	{ .name = "glibc", .what = "localtime_r()", .loop = reentrant_glibc },
	{ .name = NULL },
};

static const struct bench_subject shared_subjects[] = {
	{ .name = "percpu", .what = "localtime() of libpercpu-libc", .loop = shared_percpu },
	{ .name = "glibc", .what = "localtime()", .loop = shared_glibc },
	{ .name = NULL },
};

static const struct bench_subject back_subjects[] = {
	{ .name = "percpu", .what = "mktime() of libpercpu-libc", .loop = back_percpu },
	{ .name = "glibc", .what = "mktime()", .loop = back_glibc },
	{ .name = NULL },
};

const struct bench bench_localtime_r = {
	.name = "localtime_r",
	.what = "fields of a moment, where TZ is not set",
	.subjects = reentrant_subjects,
	.setup = setup_default,
	.teardown = teardown,
};

const struct bench bench_localtime_r_summer = {
	.name = "localtime_r_summer",
	.what = "the same in a zone with summer time, TZ=" SUMMER,
	.subjects = reentrant_subjects,
	.setup = setup_summer,
	.teardown = teardown,
};

const struct bench bench_localtime = {
	.name = "localtime",
	.what = "the same by localtime(), which reads TZ",
	.subjects = shared_subjects,
	.setup = setup_summer,
	.teardown = teardown,
};

const struct bench bench_mktime = {
	.name = "mktime",
	.what = "a moment of local fields, TZ=" SUMMER,
	.subjects = back_subjects,
	.setup = setup_summer,
	.teardown = teardown,
};
