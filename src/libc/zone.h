/* SPDX-License-Identifier: MIT */
/*
 * A time zone, compiled: what local time is at any moment, for ever the same.
 *
 *   zone_rule.c   text in the form of POSIX, "CET-1CEST,M3.5.0,M10.5.0/3", and what it says about a year
 *   zone_file.c   the contents of a zone file (RFC 8536)
 *   zone_make.c   both to the tables below
 *   zone_set.c    which zones there are, and which one is the process's
 *
 * A zone is one block of memory that nobody writes once others can see it, and that is never freed: readers need no lock, and
 * the names in it may be kept by whoever got them in tm_zone, as with the C library. What was compiled once is found again
 * by what it was compiled from, byte by byte; so memory is bounded by how many different zones a process ever used.
 *
 * Moments at which something changes divide time into segments. For the years that programs ask for, the high bits of a moment
 * find an entry of a table with the one change there, and what is before and after it. A rule for all future is written out
 * for the same years.
 */
#ifndef PERCPU_SRC_LIBC_ZONE_H
#define PERCPU_SRC_LIBC_ZONE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <percpu/base.h>

#include "libc/civil.h"

/* What tzname, timezone and daylight are. */
struct percpu__zone_vars {
	const char *name[2];
	long west; /* of Greenwich, seconds */
	int daylight;
};

/* What local time is in a segment. */
struct percpu__zone_info {
	int64_t offset; /* east of Greenwich, seconds */
	const char *name;
	int isdst;
	struct percpu__zone_vars vars; /* after localtime() of a moment in it */
};

struct percpu__zone_leap {
	int64_t when;
	int32_t sum; /* how many seconds were put in since, and before */
};

/* Some weeks. Both NULL: more than one change, to be searched. */
struct percpu__zone_bucket {
	int64_t change;
	const struct percpu__zone_info *before, *after;
};

/* A day in each year, and a time of it. */
enum percpu__zone_day { DAY_FROM_0, DAY_WITHOUT_LEAP, DAY_OF_MONTH };
struct percpu__zone_change {
	enum percpu__zone_day kind;
	uint16_t month, week, day;
	int32_t seconds;
};

/* Standard time and the other: its name, where it is, and when it begins in a year. */
struct percpu__zone_rule {
	struct percpu__zone_half {
		const char *name;
		size_t length;
		int32_t offset;
		struct percpu__zone_change begin;
	} half[2];
	bool incomplete; /* two kinds of time, and the text does not say when which */
};

struct percpu__zone {
	/*
	 * The segment that was the present when the zone was made: most of what is asked for, and all where there is no other. It
	 * is known before the moment is, so a processor that guesses the answer right loses no time here.
	 */
	int64_t present;
	uint64_t present_length;
	const struct percpu__zone_info *present_info;
	int64_t base; /* of the table: @buckets of 2^@shift seconds each */
	const struct percpu__zone_bucket *table;
	uint32_t shift, buckets, leaps, changes;
	const int64_t *when; /* @changes moments, ascending */
	const uint16_t *seg; /* one more than changes: the segment's index in info */
	const struct percpu__zone_info *info;
	const struct percpu__zone_leap *leap;
	bool only_rule; /* there is no file */
	bool ruled;     /* from rule_from on there is a rule; */
	int64_t rule_from;
	int64_t rule_table, rule_end; /* between these it is in the tables, else it is asked */
	struct percpu__zone_rule rule;
	uint16_t rule_info[2], last_info; /* what its halves are; after the file's last change */
	struct percpu__zone_vars vars;    /* after tzset() */
	struct percpu__zone *next;        /* of those of the same sum */
	uint64_t sum;
	size_t source_size;
	const unsigned char *source; /* what it was compiled from */
};

/* A zone file's contents, checked. */
struct percpu__zone_file {
	size_t changes, types, leaps, letters;
	unsigned width; /* of a moment, bytes */
	const unsigned char *when, *which, *type, *leap, *standard, *universal;
	size_t standards, universals;
	const char *names;  /* @letters of them, not all ended by a zero */
	const char *footer; /* text for what comes after the last change; NULL: there is none */
	size_t footer_length;
};

/* What is behind an index of @file; a name as its place in names. */
PERCPU_HIDDEN int64_t percpu__zone_file_when(const struct percpu__zone_file *file, size_t i);
PERCPU_HIDDEN int32_t percpu__zone_file_offset(const struct percpu__zone_file *file, size_t type);
PERCPU_HIDDEN bool percpu__zone_file_isdst(const struct percpu__zone_file *file, size_t type);
PERCPU_HIDDEN size_t percpu__zone_file_name(const struct percpu__zone_file *file, size_t type);
PERCPU_HIDDEN struct percpu__zone_leap percpu__zone_file_leap(const struct percpu__zone_file *file, size_t i);
/* False: it is not one, or it is damaged. */
PERCPU_HIDDEN bool percpu__zone_file_parse(const void *bytes, size_t size, struct percpu__zone_file *file);

/* As much as can be understood of a text; what cannot is Universal Time. The names point into the text. */
PERCPU_HIDDEN void percpu__zone_rule_parse(const char *text, size_t length, struct percpu__zone_rule *rule);
/* When a half begins in a year of Universal Time, and which half a moment of that year is in. */
PERCPU_HIDDEN int64_t percpu__zone_rule_begin(const struct percpu__zone_rule *rule, int which, int64_t year);
PERCPU_HIDDEN bool percpu__zone_rule_isdst(const struct percpu__zone_rule *rule, int64_t t, int64_t year);

/*
 * Compile into memory from @get; NULL: there is none, or the file makes no sense. With a file, @rule is for time after its last
 * change (NULL: none); with @as_rule, the file only says when the rule's halves begin. Not filled in: next, sum, source.
 */
typedef void *percpu__zone_get(size_t size);
PERCPU_HIDDEN struct percpu__zone *percpu__zone_make(const struct percpu__zone_file *file,
						     const struct percpu__zone_rule *rule,
						     const struct percpu__zone_rule *as_rule, percpu__zone_get *get);

/* Where the table does not reach. For moments in no year of an int it may be anything. */
PERCPU_HIDDEN const struct percpu__zone_info *percpu__zone_at_far(const struct percpu__zone *zone, int64_t t);

static inline const struct percpu__zone_info *percpu__zone_at(const struct percpu__zone *zone, int64_t t)
{
	const struct percpu__zone_info *info = NULL;
	uint64_t bucket;

	if ((uint64_t)t - (uint64_t)zone->present < zone->present_length)
		return zone->present_info;
	bucket = ((uint64_t)t - (uint64_t)zone->base) >> zone->shift;
	if (__builtin_expect(bucket < zone->buckets, 1)) {
		const struct percpu__zone_bucket *found = &zone->table[bucket];

		info = t < found->change ? found->before : found->after;
	}
	return __builtin_expect(info != NULL, 1) ? info : percpu__zone_at_far(zone, t);
}

/* How many leap seconds to take off; @hit: how many of them are just now, beyond second 59. */
PERCPU_HIDDEN int32_t percpu__zone_leaps(const struct percpu__zone *zone, int64_t t, int *hit);

#endif
