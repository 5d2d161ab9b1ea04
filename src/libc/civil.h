/* SPDX-License-Identifier: MIT */
/*
 * Seconds to the fields of a civil time, and back, in the proleptic Gregorian calendar, for every year that an int holds.
 *
 * Source of the divisions: Neri and Schneider, "Euclidean affine functions and their application to calendar algorithms",
 * 2022. Years begin in March inside, so that the leap day is the last of a year, and months are a linear function.
 */
#ifndef PERCPU_SRC_LIBC_CIVIL_H
#define PERCPU_SRC_LIBC_CIVIL_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include <percpu/base.h>

#define DAY      86400
#define ERA_DAYS 146097 /* 400 years, also a number of whole weeks */
/* From 1 March of the year 0 to 1 January 1970. */
#define EPOCH_DAYS 719468

/* Eras before the year 0 that the fast half reaches back, and its first and last second: years -1400000 to 1000000 or so. */
#define FAST_ERAS  3670
#define FAST_SHIFT (FAST_ERAS * (int64_t)ERA_DAYS + EPOCH_DAYS)
#define FAST_FIRST (-FAST_SHIFT * DAY)
#define FAST_DAYS  ((INT64_C(1) << 30) - 1) /* four times as many fit in 32 bits */

/* For seconds that the fast half does not reach; false: the year does not fit. */
PERCPU_HIDDEN bool percpu__civil_far(int64_t seconds, struct tm *tm);

/* The day's fields; @day counts from FAST_SHIFT days before 1970, below 2^30. @year is the one that tm_year counts from. */
static inline void percpu__civil_day(uint32_t day, int64_t year, struct tm *tm)
{
	uint32_t quarters = 4 * day + 3, century = quarters / ERA_DAYS;
	uint32_t in_century = quarters % ERA_DAYS | 3;
	uint64_t product = (uint64_t)2939745 * in_century;
	uint32_t of_century = (uint32_t)(product >> 32), of_year = (uint32_t)product / 2939745 / 4;
	uint32_t linear = 2141 * of_year + 197913;
	bool leap = !((of_century ? of_century : century) & 3), next = of_year >= 306;

	tm->tm_wday = (int)((day + 3) % 7);
	tm->tm_mday = (int)((linear & 0xffff) / 2141) + 1;
	tm->tm_mon = (int)(linear >> 16) - (next ? 13 : 1);
	tm->tm_year = (int)(year + 100 * (int64_t)century + of_century + next);
	tm->tm_yday = next ? (int)of_year - 306 : (int)of_year + 59 + leap;
}

/* The fields of @seconds since 1970 where the clock itself is set; not tm_isdst, tm_gmtoff, tm_zone. False: as above. */
static inline bool percpu__civil(int64_t seconds, struct tm *tm)
{
	uint64_t shifted = (uint64_t)seconds - (uint64_t)FAST_FIRST;
	uint32_t day, of_day;

	if (__builtin_expect(shifted >= (uint64_t)FAST_DAYS * DAY, 0))
		return percpu__civil_far(seconds, tm);
	day = (uint32_t)(shifted / DAY);
	of_day = (uint32_t)(shifted % DAY);
	tm->tm_hour = (int)(of_day / 3600);
	tm->tm_min = (int)(of_day / 60 % 60);
	tm->tm_sec = (int)(of_day % 60);
	percpu__civil_day(day, -400 * (int64_t)FAST_ERAS - 1900, tm);
	return true;
}

/* Days from 1970 to the first day of a year; for years that fit an int and some around. */
PERCPU_HIDDEN int64_t percpu__year_start(int64_t year);
PERCPU_HIDDEN bool percpu__leap_year(int64_t year);

#endif
