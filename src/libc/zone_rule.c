/* SPDX-License-Identifier: MIT */
/*
 * Zones as text: "CET-1CEST,M3.5.0,M10.5.0/3" and all other forms of POSIX.1-2017 and RFC 8536.
 *
 * Programs meet texts that are not quite right, and depend on what the C library makes of them: reading stops at the first
 * thing that is not understood, what was read holds, and numbers that are too large are cut.
 */
#include <limits.h>

#include "libc/zone.h"

struct text {
	const char *at, *end;
};

static char peek(const struct text *text)
{
	return (char)(text->at < text->end ? *text->at : '\0');
}

static bool digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool skip(struct text *text, char c)
{
	bool there = peek(text) == c && text->at < text->end;

	text->at += there;
	return there;
}

/* A number of 16 bits as scanf() reads it: after blanks, with a sign, and what is too large wraps around. */
static bool scan(struct text *text, uint16_t *out)
{
	struct text from = *text;
	unsigned long value = 0;
	bool minus;

	while (peek(&from) == ' ' || (peek(&from) >= '\t' && peek(&from) <= '\r'))
		from.at++;
	minus = peek(&from) == '-';
	if (minus || peek(&from) == '+')
		from.at++;
	if (!digit(peek(&from)))
		return false;
	for (bool large = false; digit(peek(&from)); from.at++) {
		large |= __builtin_mul_overflow(value, 10UL, &value) ||
			 __builtin_add_overflow(value, (unsigned long)(peek(&from) - '0'), &value);
		if (large)
			value = ULONG_MAX;
	}
	*out = (uint16_t)(minus && value != ULONG_MAX ? -value : value);
	*text = from;
	return true;
}

/* Hours, minutes and seconds, as far as they are there: how many are. */
static int scan_time(struct text *text, uint16_t part[3])
{
	int n = 0;

	while (n < 3) {
		struct text from = *text;

		if ((n && !skip(&from, ':')) || !scan(&from, &part[n]))
			break;
		*text = from;
		n++;
	}
	return n;
}

static bool parse_name(struct text *text, struct percpu__zone_half *half)
{
	struct text from = *text;
	bool quoted = skip(&from, '<');
	const char *start = from.at;

	while (letter(peek(&from)) || (quoted && (digit(peek(&from)) || peek(&from) == '+' || peek(&from) == '-')))
		from.at++;
	if (from.at - start < 3)
		return false;
	half->name = start;
	half->length = (size_t)(from.at - start);
	if (quoted && !skip(&from, '>')) {
		half->name = "";
		half->length = 0;
		return false;
	}
	*text = from;
	return true;
}

static int32_t least(uint16_t value, int32_t limit)
{
	return value < limit ? value : limit;
}

/* Texts count westwards. False: none is there; then standard time is Universal Time, the other an hour more than that. */
static bool parse_offset(struct text *text, struct percpu__zone_half half[2], int which)
{
	uint16_t part[3] = { 0, 0, 0 };
	char c = peek(text);
	bool east = false;

	if (!which && c != '+' && c != '-' && !digit(c))
		return false;
	if (c == '+' || c == '-') {
		east = c == '-';
		text->at++;
	}
	if (!scan_time(text, part)) {
		half[which].offset = which ? half[0].offset + 3600 : 0;
		return false;
	}
	half[which].offset = least(part[0], 24) * 3600 + least(part[1], 59) * 60 + least(part[2], 59);
	if (!east)
		half[which].offset = -half[which].offset;
	return true;
}

static bool parse_day(struct text *text, struct percpu__zone_change *change, int which)
{
	static const struct percpu__zone_change usual[2] = { { DAY_OF_MONTH, 3, 2, 0, 0 },
							     { DAY_OF_MONTH, 11, 1, 0, 0 } };
	struct percpu__zone_change found = { DAY_OF_MONTH, 0, 0, 0, 0 };

	if (text->at == text->end) {
		*change = usual[which];
		return true;
	}
	if (skip(text, 'M')) {
		if (!scan(text, &found.month) || !skip(text, '.') || !scan(text, &found.week) || !skip(text, '.') ||
		    !scan(text, &found.day) || found.month < 1 || found.month > 12 || found.week < 1 ||
		    found.week > 5 || found.day > 6)
			return false;
	} else {
		unsigned long day = 0;

		found.kind = skip(text, 'J') ? DAY_WITHOUT_LEAP : DAY_FROM_0;
		if (found.kind == DAY_FROM_0 && !digit(peek(text)))
			return false;
		change->kind = found.kind;
		if (!digit(peek(text)))
			return false;
		for (; digit(peek(text)); text->at++)
			day = day > 365 ? day : day * 10 + (unsigned long)(peek(text) - '0');
		if (day > 365 || (!day && found.kind == DAY_WITHOUT_LEAP))
			return false;
		found.day = (uint16_t)day;
	}
	*change = found;
	return true;
}

static bool parse_change(struct text *text, struct percpu__zone_change *change, int which)
{
	uint16_t part[3] = { 2, 0, 0 };
	bool minus;

	skip(text, ',');
	if (!parse_day(text, change, which) || (text->at != text->end && peek(text) != '/' && peek(text) != ','))
		return false;
	if (skip(text, '/')) {
		if (text->at == text->end)
			return false;
		minus = skip(text, '-');
		scan_time(text, part);
		change->seconds = part[0] * 3600 + part[1] * 60 + part[2];
		if (minus)
			change->seconds = -change->seconds;
	} else {
		change->seconds = 7200;
	}
	return true;
}

void percpu__zone_rule_parse(const char *string, size_t length, struct percpu__zone_rule *rule)
{
	struct text text = { string, string + length };
	struct percpu__zone_half *half = rule->half;

	*rule = (struct percpu__zone_rule){ .half = { { .name = "" }, { .name = "" } } };
	if (!parse_name(&text, &half[0]) || !parse_offset(&text, half, 0))
		return;
	if (text.at == text.end) {
		half[1] = half[0];
		return;
	}
	if (parse_name(&text, &half[1])) {
		parse_offset(&text, half, 1);
		rule->incomplete = text.at == text.end || (*text.at == ',' && text.at + 1 == text.end);
	}
	if (parse_change(&text, &half[0].begin, 0))
		parse_change(&text, &half[1].begin, 1);
}

/* Days from the year's first to the one that is meant. */
static int64_t day_of(const struct percpu__zone_change *change, int64_t year)
{
	static const uint16_t before[13] = { 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365 };
	bool leap = percpu__leap_year(year);
	int64_t first, length, weekday, day;

	switch (change->kind) {
	case DAY_FROM_0:
		return change->day;
	case DAY_WITHOUT_LEAP:
		return change->day - 1 + (change->day >= 60 && leap);
	case DAY_OF_MONTH:
		break;
	}
	first = before[change->month - 1] + (change->month > 2 && leap);
	length = before[change->month] + (change->month > 1 && leap) - first;
	/* 1 January 1970 was a Thursday; years of 400 are whole weeks. */
	weekday = (percpu__year_start((year % 400 + 400) % 400 + 2000) + first + 4) % 7;
	day = (change->day - weekday + 7) % 7 + INT64_C(7) * (change->week - 1);
	return first + (day < length ? day : day - 7);
}

/*
 * (The C library counts from 1 January 1970 for all years before that, so at negative moments it is always the half that a
 * year begins with. Texts rarely hold for such times, and programs must not see other results with us.)
 */
int64_t percpu__zone_rule_begin(const struct percpu__zone_rule *rule, int which, int64_t year)
{
	const struct percpu__zone_half *half = &rule->half[which];
	int64_t start = year > 1970 ? percpu__year_start(year) : 0;

	return (start + day_of(&half->begin, year)) * DAY + half->begin.seconds - half->offset;
}

bool percpu__zone_rule_isdst(const struct percpu__zone_rule *rule, int64_t t, int64_t year)
{
	int64_t summer = percpu__zone_rule_begin(rule, 0, year), winter = percpu__zone_rule_begin(rule, 1, year);

	return summer > winter ? t < winter || t >= summer : t >= summer && t < winter;
}
