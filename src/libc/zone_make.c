/* SPDX-License-Identifier: MIT */
/*
 * A zone file, or a rule, to the tables of a zone: in scratch memory first, then in a block that is just large enough.
 */
#include <string.h>

#include "libc/pages.h"
#include "libc/zone.h"

/* The table covers what is asked for often, from 1970 to 2106 at most, in buckets of 97 days. */
#define BUCKET_SHIFT 23
#define TABLE_FIRST  INT64_C(0)
#define TABLE_LAST   (INT64_C(1) << 32)
/* A rule is written out for so long, and asked about other years when these are. */
#define RULE_FIRST   1970
#define RULE_LAST    2105
#define RULE_CHANGES (3 * (RULE_LAST - RULE_FIRST + 1) + 1)
#define TYPES        256
/* Different segments; no file has so many. */
#define INFOS 65000

struct maker {
	const struct percpu__zone_rule *rule; /* NULL: none */
	size_t changes, infos, letters, types, bytes;
	/* Of the file. */
	struct percpu__zone_info type[TYPES];
	uint16_t info_of[TYPES][TYPES + 1]; /* by type and by the type that gives the other name; infos from 1 on */
	struct percpu__zone zone;
	/* Scratch. */
	int64_t *when;
	uint16_t *seg; /* of the time before a change; one more than these */
	unsigned char *which;
	struct percpu__zone_info *info;
	char *text;
};

static const char *add_name(struct maker *maker, const char *name, size_t length)
{
	char *copy = maker->text + maker->letters;

	/* One that is there has the same address for who compares. */
	for (char *at = maker->text; at < copy; at += strlen(at) + 1)
		if (strlen(at) == length && !memcmp(at, name, length))
			return at;
	memcpy(copy, name, length);
	copy[length] = '\0';
	maker->letters += length + 1;
	return copy;
}

static uint16_t add_info(struct maker *maker, const struct percpu__zone_info *info)
{
	maker->info[maker->infos] = *info;
	maker->infos += maker->infos < INFOS;
	return (uint16_t)(maker->infos - 1);
}

static void add_change(struct maker *maker, int64_t when, uint16_t seg)
{
	maker->when[maker->changes++] = when;
	maker->seg[maker->changes] = seg;
}

static bool year_of(int64_t t, int64_t *year)
{
	struct tm tm;

	if (!percpu__civil(t, &tm))
		return false;
	*year = tm.tm_year + INT64_C(1900);
	return true;
}

/* How the rule's two halves appear outside. */
static void add_rule_infos(struct maker *maker)
{
	const struct percpu__zone_half *half = maker->rule->half;
	struct percpu__zone_info info = { 0 };

	info.vars.name[0] = add_name(maker, half[0].name, half[0].length);
	info.vars.name[1] = add_name(maker, half[1].name, half[1].length);
	info.vars.west = -half[0].offset;
	info.vars.daylight = half[0].offset != half[1].offset;
	for (int i = 0; i < 2; i++) {
		info.offset = half[i].offset;
		info.name = info.vars.name[i];
		info.isdst = i;
		maker->zone.rule_info[i] = add_info(maker, &info);
	}
}

/*
 * What the rule says from a moment on. It is asked about each year of Universal Time by itself, as the C library does: a
 * half that begins outside of its year begins or ends with the year.
 */
static void write_out(struct maker *maker, int64_t from, int64_t first)
{
	uint16_t last = 0;
	bool fresh = true;

	for (int64_t year = first; year <= RULE_LAST; year++) {
		int64_t start = percpu__year_start(year) * DAY, limit = percpu__year_start(year + 1) * DAY;
		int64_t at[3] = { start < from ? from : start, percpu__zone_rule_begin(maker->rule, 0, year),
				  percpu__zone_rule_begin(maker->rule, 1, year) };

		if (at[1] > at[2]) {
			int64_t swap = at[1];

			at[1] = at[2];
			at[2] = swap;
		}
		for (int i = 0; i < 3; i++) {
			uint16_t seg;

			if (at[i] < at[0] || at[i] >= limit)
				continue;
			seg = maker->zone.rule_info[percpu__zone_rule_isdst(maker->rule, at[i], year)];
			if (!fresh && seg == last)
				continue;
			add_change(maker, at[i], seg);
			last = seg;
			fresh = false;
		}
	}
}

/* Whether it is the same the whole year: then it needs no more than one segment. */
static bool constant(const struct percpu__zone_rule *rule)
{
	const struct percpu__zone_change *a = &rule->half[0].begin, *b = &rule->half[1].begin;

	return a->kind == b->kind && a->month == b->month && a->week == b->week && a->day == b->day &&
	       a->seconds == b->seconds && rule->half[0].offset == rule->half[1].offset;
}

/* From the last change of a file on, which may be too late for any calendar; or always. */
static void add_rule(struct maker *maker, int64_t from)
{
	struct percpu__zone *zone = &maker->zone;
	int64_t year = RULE_FIRST;

	if (!zone->only_rule && !year_of(from, &year))
		return;
	add_rule_infos(maker);
	if (zone->only_rule)
		maker->seg[0] = zone->rule_info[0];
	if (!constant(maker->rule)) {
		zone->ruled = true;
		zone->rule_from = from;
		zone->rule = *maker->rule;
		zone->rule.half[0].name = zone->rule.half[1].name = NULL;
		zone->rule_table = from < 0 ? 0 : from;
		zone->rule_end = percpu__year_start(RULE_LAST + 1) * DAY;
		write_out(maker, zone->rule_table, from < 0 ? RULE_FIRST : year);
	} else if (!zone->only_rule) {
		add_change(maker, from, zone->rule_info[0]);
	}
}

/* When each kind of time was in force last, and what they were called, which is what tzset() tells. */
static void file_vars(struct maker *maker)
{
	struct percpu__zone_vars *vars = &maker->zone.vars;
	bool found[2] = { false, false };

	vars->west = 0;
	for (size_t i = maker->changes; i-- && !(found[0] && found[1]);) {
		const struct percpu__zone_info *type = &maker->type[maker->which[i]];

		if (found[type->isdst])
			continue;
		found[type->isdst] = true;
		vars->name[type->isdst] = type->name;
		if (!type->isdst)
			vars->west = (long)-type->offset;
	}
	if (!maker->changes) {
		vars->west = (long)-maker->type[0].offset;
		vars->name[0] = maker->type[0].name;
	}
	for (int i = 0; i < 2; i++)
		if (!vars->name[i])
			vars->name[i] = vars->name[!i];
	vars->daylight = found[1];
}

static void read_file(struct maker *maker, const struct percpu__zone_file *file)
{
	maker->types = file->types;
	memcpy(maker->text, file->names, file->letters);
	maker->letters = file->letters + 1;
	for (size_t i = 0; i < file->types; i++) {
		maker->type[i].offset = percpu__zone_file_offset(file, i);
		maker->type[i].isdst = percpu__zone_file_isdst(file, i);
		maker->type[i].name = maker->text + percpu__zone_file_name(file, i);
	}
	for (size_t i = 0; i < file->changes; i++) {
		maker->when[i] = percpu__zone_file_when(file, i);
		maker->which[i] = file->which[i];
	}
	maker->changes = file->changes;
}

/*
 * A file that says for any zone when summer time is in force ("posixrules"), for one of which the text does not say it. Moments
 * that are meant in standard time are moved, to where the C library moves them. Those that are meant in summer time it moves by
 * what the last such zone was away from this one, so by nothing as soon as tzset() is called twice: here, by nothing.
 */
static void move_to(struct maker *maker, const struct percpu__zone_file *file, const struct percpu__zone_rule *rule)
{
	int64_t by = rule->half[0].offset + maker->zone.vars.west;

	bool isdst = false;

	for (size_t i = 0; i < maker->changes; i++) {
		size_t type = maker->which[i];
		bool universal = type < file->universals && file->universal[type];
		bool standard = type < file->standards && file->standard[type];
		bool from = isdst && !standard;

		isdst = maker->type[type].isdst;
		maker->which[i] = isdst;
		if (!universal && !from)
			maker->when[i] += by;
	}
	maker->types = 2;
	for (int i = 0; i < 2; i++) {
		maker->type[i].offset = rule->half[i].offset;
		maker->type[i].isdst = i;
		maker->type[i].name = add_name(maker, rule->half[i].name, rule->half[i].length);
		maker->zone.vars.name[i] = maker->type[i].name;
	}
	maker->zone.vars.west = -rule->half[0].offset;
}

/* After localtime(): the name of the type in force, and of the next of the other kind. */
static uint16_t file_info(struct maker *maker, size_t type, size_t other)
{
	uint16_t *known = &maker->info_of[type][other];
	struct percpu__zone_info info = maker->type[type];

	if (*known)
		return (uint16_t)(*known - 1);
	info.vars = maker->zone.vars;
	info.vars.name[0] = info.vars.name[1] = info.name;
	if (other < TYPES)
		info.vars.name[!info.isdst] = maker->type[other].name;
	*known = add_info(maker, &info);
	return (*known)++;
}

/* Before the first change: the first type of standard time, and the first of the other. */
static uint16_t file_before(struct maker *maker)
{
	size_t type = 0, other = 0;

	while (type < maker->types && maker->type[type].isdst)
		type++;
	while (other < maker->types && !maker->type[other].isdst)
		other++;
	if (type == maker->types)
		return file_info(maker, 0, TYPES);
	return file_info(maker, type, other < maker->types ? other : TYPES);
}

static void add_file(struct maker *maker)
{
	size_t next[2] = { TYPES, TYPES };

	maker->seg[0] = file_before(maker);
	for (size_t i = maker->changes; i--;) {
		size_t type = maker->which[i];
		int isdst = maker->type[type].isdst;

		maker->seg[i + 1] = file_info(maker, type, next[!isdst]);
		next[isdst] = type;
	}
	maker->zone.last_info = maker->seg[maker->changes];
}

/* Buckets reach from where the tables begin to say it all to where they end. */
static void plan_table(struct maker *maker)
{
	struct percpu__zone *zone = &maker->zone;
	int64_t last;

	zone->changes = (uint32_t)maker->changes;
	zone->base = TABLE_FIRST;
	last = zone->ruled && zone->rule_end < TABLE_LAST ? zone->rule_end : TABLE_LAST;
	zone->shift = BUCKET_SHIFT;
	/* (Without changes all is present.) */
	zone->buckets = maker->changes && last > zone->base ? (uint32_t)((last - zone->base) >> BUCKET_SHIFT) : 0;
}

static void fill_table(const struct percpu__zone *zone, struct percpu__zone_bucket *table)
{
	uint32_t i = 0;

	for (uint32_t bucket = 0; bucket < zone->buckets; bucket++) {
		int64_t start = (int64_t)((uint64_t)zone->base + ((uint64_t)bucket << zone->shift));
		int64_t end = (int64_t)((uint64_t)start + (UINT64_C(1) << zone->shift));
		uint32_t before;

		while (i < zone->changes && zone->when[i] <= start)
			i++;
		before = i;
		while (i < zone->changes && zone->when[i] < end)
			i++;
		if (i - before < 2) {
			table[bucket].change = i > before ? zone->when[before] : INT64_MAX;
			table[bucket].before = &zone->info[zone->seg[before]];
			table[bucket].after = &zone->info[zone->seg[i]];
		}
	}
}

static void find_present(struct percpu__zone *zone)
{
	int64_t last = INT64_MAX;
	struct timespec now = { 0, 0 };
	uint32_t i = 0;

	percpu__sys4(SYS_clock_gettime, CLOCK_REALTIME, (long)&now, 0, 0);
	while (i < zone->changes && zone->when[i] <= now.tv_sec)
		i++;
	if (zone->ruled) {
		if (now.tv_sec < zone->rule_table || now.tv_sec >= zone->rule_end)
			return;
		last = zone->rule_end;
	}
	if (i < zone->changes)
		last = zone->when[i];
	zone->present = i ? zone->when[i - 1] : INT64_MIN;
	zone->present_length = (uint64_t)last - (uint64_t)zone->present;
	zone->present_info = &zone->info[zone->seg[i]];
}

static const char *moved(const char *name, const struct maker *maker, const char *text)
{
	return text + (name - maker->text);
}

static void move_vars(struct percpu__zone_vars *vars, const struct maker *maker, const char *text)
{
	for (int i = 0; i < 2; i++)
		vars->name[i] = moved(vars->name[i], maker, text);
}

/* (Beyond the year 5 million the C library's arithmetic wraps around; ours does not.) */
static const struct percpu__zone_info *by_rule(const struct percpu__zone *zone, int64_t t)
{
	struct tm tm;

	if (!percpu__civil(t, &tm))
		return &zone->info[zone->last_info];
	return &zone->info[zone->rule_info[percpu__zone_rule_isdst(&zone->rule, t, tm.tm_year + INT64_C(1900))]];
}

const struct percpu__zone_info *percpu__zone_at_far(const struct percpu__zone *zone, int64_t t)
{
	uint32_t low = 0, high = zone->changes;

	if (zone->ruled && t >= zone->rule_from && (t < zone->rule_table || t >= zone->rule_end))
		return by_rule(zone, t);
	/* How many changes were before: between low and high. */
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (zone->when[middle] <= t)
			low = middle + 1;
		else
			high = middle;
	}
	return &zone->info[zone->seg[low]];
}

int32_t percpu__zone_leaps(const struct percpu__zone *zone, int64_t t, int *hit)
{
	const struct percpu__zone_leap *leap = zone->leap;
	uint32_t i = zone->leaps;
	int32_t sum;

	*hit = 0;
	while (i && t < leap[i - 1].when)
		i--;
	if (!i--)
		return 0;
	sum = leap[i].sum;
	if (t == leap[i].when && sum > (i ? leap[i - 1].sum : 0)) {
		/* Several in a row are one after the other. */
		for (*hit = 1; i && leap[i].when == leap[i - 1].when + 1 && leap[i].sum == leap[i - 1].sum + 1; i--)
			++*hit;
	}
	return sum;
}

/* The block: the zone, then what is aligned most. */
static struct percpu__zone *put_together(struct maker *maker, const struct percpu__zone_file *file,
					 percpu__zone_get *get)
{
	size_t leaps = file ? file->leaps : 0, n = maker->changes + 1;
	struct percpu__zone *zone;
	struct percpu__zone_info *info;
	struct percpu__zone_leap *leap;
	struct percpu__zone_bucket *table;
	int64_t *when;
	uint16_t *seg;
	char *text;

	if (maker->infos == INFOS || maker->changes > UINT16_MAX)
		return NULL;
	plan_table(maker);
	zone = get(sizeof(*zone) + n * sizeof(*when) + maker->infos * sizeof(*info) + leaps * sizeof(*leap) +
		   maker->zone.buckets * sizeof(*table) + n * sizeof(*seg) + maker->letters);
	if (!zone)
		return NULL;
	when = (void *)(zone + 1);
	info = (void *)(when + n);
	leap = (void *)(info + maker->infos);
	table = (void *)(leap + leaps);
	seg = (void *)(table + maker->zone.buckets);
	text = (void *)(seg + n);
	*zone = maker->zone;
	memcpy(when, maker->when, maker->changes * sizeof(*when));
	memcpy(seg, maker->seg, n * sizeof(*seg));
	memcpy(text, maker->text, maker->letters);
	for (size_t i = 0; i < maker->infos; i++) {
		info[i] = maker->info[i];
		info[i].name = moved(info[i].name, maker, text);
		move_vars(&info[i].vars, maker, text);
	}
	move_vars(&zone->vars, maker, text);
	for (size_t i = 0; i < leaps; i++)
		leap[i] = percpu__zone_file_leap(file, i);
	zone->when = when;
	zone->seg = seg;
	zone->table = table;
	zone->info = info;
	zone->leap = leap;
	zone->leaps = (uint32_t)leaps;
	fill_table(zone, table);
	find_present(zone);
	return zone;
}

static struct maker *start(size_t changes, size_t letters)
{
	size_t bytes =
		sizeof(struct maker) + changes * (sizeof(int64_t) + sizeof(struct percpu__zone_info) + 3) + letters;
	struct maker *maker = percpu__pages_get(bytes);

	if (!maker)
		return NULL;
	maker->bytes = bytes;
	maker->info = (void *)(maker + 1);
	maker->when = (void *)(maker->info + changes);
	maker->seg = (void *)(maker->when + changes);
	maker->which = (void *)(maker->seg + changes);
	maker->text = (void *)(maker->which + changes);
	return maker;
}

struct percpu__zone *percpu__zone_make(const struct percpu__zone_file *file, const struct percpu__zone_rule *rule,
				       const struct percpu__zone_rule *as_rule, percpu__zone_get *get)
{
	const struct percpu__zone_half *more[2] = { rule ? rule->half : NULL, as_rule ? as_rule->half : NULL };
	size_t letters = file ? file->letters + 1 : 0;
	struct percpu__zone *zone;
	struct maker *maker;

	for (int i = 0; i < 2; i++)
		letters += more[i] ? more[i][0].length + more[i][1].length + 2 : 0;
	maker = start((file ? file->changes : 0) + RULE_CHANGES, letters);
	if (!maker)
		return NULL;
	maker->rule = rule;
	if (file) {
		read_file(maker, file);
		file_vars(maker);
		if (as_rule)
			move_to(maker, file, as_rule);
		add_file(maker);
		if (rule && maker->changes)
			add_rule(maker, maker->when[maker->changes - 1]);
	} else if (rule) {
		maker->zone.only_rule = true;
		add_rule(maker, INT64_MIN);
		maker->zone.vars = maker->info[0].vars;
	}
	zone = put_together(maker, file, get);
	percpu__pages_put(maker, maker->bytes);
	return zone;
}
