/* SPDX-License-Identifier: MIT */
/*
 * Moments to fields in the process's zone. No lock is taken and nothing shared is written while the zone stays what it is.
 *
 * As in the C library, localtime_r() goes by what tzset() found last; localtime(), mktime() and ctime() do what tzset() does
 * before. In zones that count leap seconds, Universal Time is without them, too.
 */
#include <errno.h>

#include "libc/calendar.h"
#include "libc/civil.h"
#include "libc/zone_set.h"

/* Of gmtime() and localtime(), which share it. */
static struct tm shared;

/* In zones with leap seconds, which are few. */
__attribute__((noinline)) static bool with_leaps(const struct percpu__zone *zone, int64_t t, int64_t offset,
						 struct tm *tm)
{
	int hit;
	int32_t sum = percpu__zone_leaps(zone, t, &hit);
	bool ok = percpu__civil((int64_t)((uint64_t)t + (uint64_t)offset - (uint64_t)(int64_t)sum), tm);

	tm->tm_sec += hit;
	return ok;
}

/* (Whose sum wraps around is in no year of an int, nor is where it gets to.) */
static inline bool convert(const struct percpu__zone *zone, int64_t t, int64_t offset, struct tm *tm)
{
	if (__builtin_expect(zone->leaps, 0))
		return with_leaps(zone, t, offset, tm);
	return percpu__civil((int64_t)((uint64_t)t + (uint64_t)offset), tm);
}

__attribute__((always_inline)) static inline const struct percpu__zone_info *to_local(const struct percpu__zone *zone,
										      int64_t t, struct tm *tm)
{
	const struct percpu__zone_info *info = percpu__zone_at(zone, t);

	tm->tm_isdst = info->isdst;
	tm->tm_gmtoff = (long)info->offset;
	tm->tm_zone = info->name;
	return __builtin_expect(convert(zone, t, info->offset, tm), 1) ? info : NULL;
}

static inline bool to_universal(const struct percpu__zone *zone, int64_t t, struct tm *tm)
{
	tm->tm_isdst = 0;
	tm->tm_gmtoff = 0;
	tm->tm_zone = "GMT";
	return __builtin_expect(convert(zone, t, 0, tm), 1);
}

bool percpu__fields_of(const struct percpu__zone *zone, bool local, int64_t t, struct tm *tm)
{
	return local ? to_local(zone, t, tm) != NULL : to_universal(zone, t, tm);
}

static struct tm *overflow(void)
{
	errno = EOVERFLOW;
	return NULL;
}

struct tm *percpu__localtime_r(const time_t *t, struct tm *tm)
{
	return to_local(percpu__zone_now(), *t, tm) ? tm : overflow();
}

struct tm *percpu__localtime(const time_t *t)
{
	const struct percpu__zone_setting *setting = percpu__zone_settle();
	const struct percpu__zone_info *info = to_local(setting->zone, *t, &shared);

	if (!info)
		return overflow();
	percpu__zone_tell(setting, &info->vars);
	return &shared;
}

struct tm *percpu__gmtime_r(const time_t *t, struct tm *tm)
{
	return to_universal(percpu__zone_now(), *t, tm) ? tm : overflow();
}

struct tm *percpu__gmtime(const time_t *t)
{
	return percpu__gmtime_r(t, &shared);
}

void percpu__tzset(void)
{
	percpu__zone_settle();
}
