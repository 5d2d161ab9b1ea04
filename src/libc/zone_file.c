/* SPDX-License-Identifier: MIT */
/*
 * Zone files, RFC 8536: versions 1 (moments of 32 bits) and later (a second part, of 64 bits, and text for the future).
 *
 * A file is taken as it is or not at all; whatever it says, nothing outside of it is read.
 */
#include <string.h>

#include "libc/zone.h"

#define HEADER    44
#define TYPE_SIZE 6

static uint64_t number(const unsigned char *at, unsigned width)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < width; i++)
		value = value << 8 | at[i];
	return value;
}

static int32_t number32(const unsigned char *at)
{
	return (int32_t)(uint32_t)number(at, 4);
}

static int64_t moment(const unsigned char *at, unsigned width)
{
	return width == 4 ? number32(at) : (int64_t)number(at, 8);
}

int64_t percpu__zone_file_when(const struct percpu__zone_file *file, size_t i)
{
	return moment(file->when + i * file->width, file->width);
}

int32_t percpu__zone_file_offset(const struct percpu__zone_file *file, size_t type)
{
	return number32(file->type + type * TYPE_SIZE);
}

bool percpu__zone_file_isdst(const struct percpu__zone_file *file, size_t type)
{
	return file->type[type * TYPE_SIZE + 4];
}

size_t percpu__zone_file_name(const struct percpu__zone_file *file, size_t type)
{
	return file->type[type * TYPE_SIZE + 5];
}

struct percpu__zone_leap percpu__zone_file_leap(const struct percpu__zone_file *file, size_t i)
{
	const unsigned char *at = file->leap + i * (file->width + 4);

	return (struct percpu__zone_leap){ moment(at, file->width), number32(at + file->width) };
}

/* One part: its header and what that counts. Returns its size, 0 if it is not whole. */
static size_t parse_part(const unsigned char *bytes, size_t size, unsigned width, struct percpu__zone_file *file)
{
	const unsigned char *at = bytes + HEADER;
	uint64_t need;

	if (size < HEADER || memcmp(bytes, "TZif", 4))
		return 0;
	file->width = width;
	file->universals = (size_t)number(bytes + 20, 4);
	file->standards = (size_t)number(bytes + 24, 4);
	file->leaps = (size_t)number(bytes + 28, 4);
	file->changes = (size_t)number(bytes + 32, 4);
	file->types = (size_t)number(bytes + 36, 4);
	file->letters = (size_t)number(bytes + 40, 4);
	need = HEADER + (uint64_t)file->changes * (width + 1) + (uint64_t)file->types * TYPE_SIZE + file->letters +
	       (uint64_t)file->leaps * (width + 4) + file->standards + file->universals;
	if (need > size)
		return 0;
	file->when = at;
	file->which = file->when + file->changes * width;
	file->type = file->which + file->changes;
	file->names = (const char *)file->type + file->types * TYPE_SIZE;
	file->leap = (const unsigned char *)file->names + file->letters;
	file->standard = file->leap + file->leaps * (width + 4);
	file->universal = file->standard + file->standards;
	return (size_t)need;
}

static bool sound(const struct percpu__zone_file *file)
{
	if (!file->types || file->types > 256 || file->standards > file->types || file->universals > file->types)
		return false;
	for (size_t i = 0; i < file->types; i++)
		if (file->type[i * TYPE_SIZE + 4] > 1 || file->type[i * TYPE_SIZE + 5] > file->letters)
			return false;
	for (size_t i = 0; i < file->changes; i++)
		if (file->which[i] >= file->types ||
		    (i && percpu__zone_file_when(file, i) <= percpu__zone_file_when(file, i - 1)))
			return false;
	return true;
}

bool percpu__zone_file_parse(const void *start, size_t size, struct percpu__zone_file *file)
{
	const unsigned char *bytes = start;
	size_t part = parse_part(bytes, size, 4, file);

	file->footer = NULL;
	if (!part)
		return false;
	if (bytes[4]) {
		bytes += part;
		size -= part;
		part = parse_part(bytes, size, 8, file);
		if (!part)
			return false;
		/* Between two ends of lines, of which the last is the file's last byte. */
		if (size < part + 2)
			return false;
		if (size - part >= 3 && bytes[part] == '\n') {
			file->footer = (const char *)bytes + part + 1;
			file->footer_length = strnlen(file->footer, size - part - 2);
			if (!file->footer_length)
				file->footer = NULL;
		}
	}
	return sound(file);
}
