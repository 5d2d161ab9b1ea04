/* SPDX-License-Identifier: MIT */
/* Conversions of time: the C library takes one lock for all of them. */
#include <time.h>

#include "preload/count.h"

REAL(struct tm *, localtime, (const time_t *when), (when))
REAL(struct tm *, localtime_r, (const time_t *when, struct tm *out), (when, out))
REAL(struct tm *, gmtime, (const time_t *when), (when))
REAL(struct tm *, gmtime_r, (const time_t *when, struct tm *out), (when, out))
REAL(time_t, mktime, (struct tm * fields), (fields))

EXPORT struct tm *localtime(const time_t *when)
{
	count(COUNT_LOCALTIME_CALLS, 1);
	return real_localtime(when);
}

EXPORT struct tm *localtime_r(const time_t *restrict when, struct tm *restrict out)
{
	count(COUNT_LOCALTIME_CALLS, 1);
	return real_localtime_r(when, out);
}

EXPORT struct tm *gmtime(const time_t *when)
{
	count(COUNT_GMTIME_CALLS, 1);
	return real_gmtime(when);
}

EXPORT struct tm *gmtime_r(const time_t *restrict when, struct tm *restrict out)
{
	count(COUNT_GMTIME_CALLS, 1);
	return real_gmtime_r(when, out);
}

EXPORT time_t mktime(struct tm *fields)
{
	count(COUNT_MKTIME_CALLS, 1);
	return real_mktime(fields);
}
