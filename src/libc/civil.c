/* SPDX-License-Identifier: MIT */
/* Civil time where it is not fast: far years, and from years to days. */
#include "libc/civil.h"

static int64_t floor_div(int64_t a, int64_t b)
{
	return a / b - (a % b < 0);
}

bool percpu__civil_far(int64_t seconds, struct tm *tm)
{
	int64_t days = floor_div(seconds, DAY), of_day = seconds - days * DAY;
	/* (No overflow: a day less than 2^63 / DAY.) */
	int64_t shifted = days + EPOCH_DAYS, era = floor_div(shifted, ERA_DAYS);
	struct tm day;

	percpu__civil_day((uint32_t)(shifted - era * ERA_DAYS), -1900, &day);
	if (__builtin_add_overflow(era * 400, (int64_t)day.tm_year, &days) || days != (int)days)
		return false;
	tm->tm_sec = (int)(of_day % 60);
	tm->tm_min = (int)(of_day / 60 % 60);
	tm->tm_hour = (int)(of_day / 3600);
	tm->tm_mday = day.tm_mday;
	tm->tm_mon = day.tm_mon;
	tm->tm_year = (int)days;
	tm->tm_wday = day.tm_wday;
	tm->tm_yday = day.tm_yday;
	return true;
}

bool percpu__leap_year(int64_t year)
{
	return !(year & 3) && (year % 100 || !(year % 400));
}

int64_t percpu__year_start(int64_t year)
{
	int64_t before = year - 1;

	return 365 * (year - 1970) + floor_div(before, 4) - floor_div(before, 100) + floor_div(before, 400) - 477;
}
