/* SPDX-License-Identifier: MIT */
/* Fields of a civil time against the C library's gmtime_r(), which is not replaced here. */
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <string.h>

#include <cmocka.h>

#include "libc/civil.h"

static void check(int64_t seconds)
{
	struct tm ours, theirs;
	time_t t = seconds;
	bool fits;

	memset(&ours, 0, sizeof(ours));
	memset(&theirs, 0, sizeof(theirs));
	fits = percpu__civil(seconds, &ours);
	assert_int_equal(fits, gmtime_r(&t, &theirs) != NULL);
	if (fits && (ours.tm_sec != theirs.tm_sec || ours.tm_min != theirs.tm_min || ours.tm_hour != theirs.tm_hour ||
		     ours.tm_mday != theirs.tm_mday || ours.tm_mon != theirs.tm_mon || ours.tm_year != theirs.tm_year ||
		     ours.tm_wday != theirs.tm_wday || ours.tm_yday != theirs.tm_yday))
		fail_msg("second %jd differs", (intmax_t)seconds);
}

static void all_lengths(void **state)
{
	uint64_t x = 88172645463325252;

	(void)state;
	for (int i = 0; i < 2000000; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		check((int64_t)x >> i % 62);
	}
}

static void every_day(void **state)
{
	(void)state;
	for (int64_t day = -ERA_DAYS * 6; day < ERA_DAYS * 6; day++) {
		check(day * DAY);
		check(day * DAY - 1);
	}
}

static void limits(void **state)
{
	(void)state;
	/* Where the fast half ends, where the years of an int do, and where the seconds do. */
	for (int64_t d = -2; d < 3; d++) {
		check(FAST_FIRST + d);
		check(FAST_FIRST + FAST_DAYS * DAY + d);
		check(percpu__year_start(INT32_MAX + INT64_C(1901)) * DAY + d);
		check(percpu__year_start(INT32_MIN + INT64_C(1900)) * DAY + d);
	}
	for (int64_t d = 0; d < 100; d++) {
		check(INT64_MAX - d);
		check(INT64_MIN + d);
	}
}

static void years(void **state)
{
	(void)state;
	for (int year = -6000; year < 6000; year++) {
		struct tm tm = { .tm_year = year - 1900, .tm_mday = 1 };

		assert_int_equal(percpu__year_start(year) * DAY, timegm(&tm));
		tm = (struct tm){ .tm_year = year - 1900, .tm_mon = 1, .tm_mday = 29 };
		timegm(&tm);
		assert_int_equal(percpu__leap_year(year), tm.tm_mday == 29);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(all_lengths), cmocka_unit_test(every_day),
					    cmocka_unit_test(limits), cmocka_unit_test(years) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
