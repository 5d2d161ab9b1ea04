/* SPDX-License-Identifier: MIT */
/*
 * Fields to a moment: the function that gives the fields of a moment is turned around by trying.
 *
 * Where there is none or more than one such moment, POSIX leaves open what comes out; programs know what the C library does,
 * so that is followed: it starts from how far local time was from Universal Time when it was asked last. It has one such
 * memory for the whole process; here each thread has its own, so threads neither disturb nor slow each other down.
 */
#include <errno.h>
#include <stdlib.h>

#include "libc/calendar.h"
#include "libc/civil.h"
#include "libc/zone_set.h"

/* No rule that was ever in force changes more often; nor is a kind of time that is an odd number of hours away farther. */
#define STRIDE 601200
#define REACH  (457243209 / 2 + STRIDE)
/* Seconds from 1970 to years that fit in any case. */
#define NEAR (INT64_C(1) << 44)
/* Steps to a moment: zones need three. */
#define STEPS 6

struct search {
	const struct percpu__zone *zone;
	bool local;
	int64_t wanted; /* seconds since 1970 on the clock that shows the fields */
	int64_t t;
	bool near;    /* of tm, there are only tm_isdst and tm_gmtoff */
	struct tm tm; /* of t */
};

static __thread int64_t last_local __attribute__((tls_model("initial-exec")));
static __thread int64_t last_universal __attribute__((tls_model("initial-exec")));

/* What a clock shows, as seconds; leap seconds are the next minute's. */
static int64_t shown(const struct tm *tm)
{
	return (percpu__year_start(tm->tm_year + INT64_C(1900)) + tm->tm_yday) * DAY + tm->tm_hour * INT64_C(3600) +
	       tm->tm_min * INT64_C(60) + tm->tm_sec;
}

static int64_t asked(const struct tm *tm, int seconds)
{
	static const uint16_t before[12] = { 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334 };
	int month = tm->tm_mon % 12;
	int64_t year = tm->tm_year + INT64_C(1900) + tm->tm_mon / 12;
	int64_t days;

	if (month < 0) {
		month += 12;
		year--;
	}
	days = percpu__year_start(year) + before[month] + (month > 1 && percpu__leap_year(year)) + tm->tm_mday - 1;
	return days * DAY + tm->tm_hour * INT64_C(3600) + tm->tm_min * INT64_C(60) + seconds;
}

/*
 * The fields of t; or of the nearest moment that has any, which t becomes. Where a clock is only as far from Universal Time as
 * its zone, that is all that is needed on the way.
 */
static void look(struct search *search)
{
	int64_t good = 0, bad = search->t;

	search->near = !search->zone->leaps && bad > -NEAR && bad < NEAR;
	if (search->near) {
		const struct percpu__zone_info *info = search->local ? percpu__zone_at(search->zone, bad) : NULL;

		search->tm.tm_isdst = info ? info->isdst : 0;
		search->tm.tm_gmtoff = info ? (long)info->offset : 0;
		return;
	}
	if (percpu__fields_of(search->zone, search->local, search->t, &search->tm))
		return;
	while (good + 1 != bad && good - 1 != bad) {
		int64_t middle = good + (bad - good) / 2;

		if (percpu__fields_of(search->zone, search->local, middle, &search->tm))
			good = middle;
		else
			bad = middle;
	}
	search->t = good;
	percpu__fields_of(search->zone, search->local, good, &search->tm);
}

/* Where the fields would be if the clock were as far from Universal Time as it is at t. */
static int64_t next(const struct search *search)
{
	int64_t now = search->near ? search->t + search->tm.tm_gmtoff : shown(&search->tm);

	return search->t + (search->wanted - now);
}

/*
 * Follows next() to where it stays. In a gap, which no clock shows, it goes to and fro between the times before and after
 * that; one of them is taken then: of the kind that was not asked for, or else, of summer time.
 */
static bool follow(struct search *search, int isdst)
{
	int64_t before = search->t, before_that = search->t;
	bool was_dst = false;

	for (int step = 0; step < STEPS; step++) {
		int64_t to;
		bool dst;

		look(search);
		to = next(search);
		if (to == search->t)
			return true;
		dst = search->tm.tm_isdst != 0;
		if (search->t == before_that && search->t != before &&
		    (isdst < 0 ? was_dst <= dst : (isdst != 0) != dst))
			return true;
		before_that = before;
		before = search->t;
		search->t = to;
		was_dst = dst;
	}
	return false;
}

/* The other kind of time, as it was or will be nearest; where there is none, an hour away. */
static bool other_kind(struct search *search, int isdst)
{
	struct search from = *search;
	int64_t t = search->t;

	for (int64_t delta = STRIDE; delta < REACH; delta += STRIDE)
		for (int side = -1; side <= 1; side += 2) {
			from.t = t + side * delta;
			look(&from);
			if (!from.tm.tm_isdst != !isdst)
				continue;
			search->t = next(&from);
			look(search);
			return true;
		}
	search->t += isdst ? -3600 : 3600;
	search->near = false;
	return percpu__fields_of(search->zone, search->local, search->t, &search->tm);
}

static bool find(struct search *search, const struct tm *tm, int isdst, int64_t *last)
{
	/* Minutes of 61 seconds are found by their last but one. */
	int seconds = tm->tm_sec < 0 ? 0 : tm->tm_sec > 59 ? 59 : tm->tm_sec;

	search->wanted = asked(tm, seconds);
	search->t = search->wanted + *last;
	if (!follow(search, isdst))
		return false;
	if (isdst >= 0 && search->tm.tm_isdst >= 0 && !isdst != !search->tm.tm_isdst && next(search) == search->t &&
	    !other_kind(search, isdst))
		return false;
	*last = search->t - search->wanted;
	if (search->near)
		percpu__fields_of(search->zone, search->local, search->t, &search->tm);
	if (search->tm.tm_sec == tm->tm_sec)
		return true;
	search->t += (seconds == 0 && search->tm.tm_sec == 60) + (int64_t)tm->tm_sec - seconds;
	return percpu__fields_of(search->zone, search->local, search->t, &search->tm);
}

static time_t answer(const struct search *search, bool found, struct tm *tm)
{
	if (!found) {
		errno = EOVERFLOW;
		return -1;
	}
	*tm = search->tm;
	return search->t;
}

time_t percpu__mktime(struct tm *tm)
{
	const struct percpu__zone_setting *setting = percpu__zone_settle();
	struct search search = { .zone = setting->zone, .local = true };
	bool found = find(&search, tm, tm->tm_isdst, &last_local);

	if (found)
		percpu__zone_tell(setting, &percpu__zone_at(setting->zone, search.t)->vars);
	return answer(&search, found, tm);
}

time_t percpu__timegm(struct tm *tm)
{
	struct search search = { .zone = percpu__zone_now() };
	bool found = find(&search, tm, 0, &last_universal);

	return answer(&search, found, tm);
}
