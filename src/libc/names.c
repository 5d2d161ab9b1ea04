/* SPDX-License-Identifier: MIT */
/* The calendar's functions by the C library's names. */
#include <time.h>

#include "libc/calendar.h"

#define API __attribute__((visibility("default")))

API struct tm *localtime_r(const time_t *restrict t, struct tm *restrict tm)
{
	return percpu__localtime_r(t, tm);
}

API struct tm *localtime(const time_t *t)
{
	return percpu__localtime(t);
}

API struct tm *gmtime_r(const time_t *restrict t, struct tm *restrict tm)
{
	return percpu__gmtime_r(t, tm);
}

/* The C library has it by this name, too. */
API struct tm *__gmtime_r(const time_t *restrict t, struct tm *restrict tm) __attribute__((nothrow, leaf));
API struct tm *__gmtime_r(const time_t *restrict t, struct tm *restrict tm)
{
	return percpu__gmtime_r(t, tm);
}

API struct tm *gmtime(const time_t *t)
{
	return percpu__gmtime(t);
}

API time_t mktime(struct tm *tm)
{
	return percpu__mktime(tm);
}

API time_t timelocal(struct tm *tm)
{
	return percpu__mktime(tm);
}

API time_t timegm(struct tm *tm)
{
	return percpu__timegm(tm);
}

API void tzset(void)
{
	percpu__tzset();
}

/* Text from fields is the C library's: it takes no lock. */
API char *ctime(const time_t *t)
{
	return asctime(percpu__localtime(t));
}

API char *ctime_r(const time_t *t, char *text)
{
	struct tm tm;

	return asctime_r(percpu__localtime_r(t, &tm), text);
}
