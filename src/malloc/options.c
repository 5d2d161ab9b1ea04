/* SPDX-License-Identifier: MIT */
/*
 * Options of the allocator: PERCPU_MALLOC="name=value,name,...". Read by a constructor: before it everything is as usual.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <percpu/malloc.h>

#include "base/sys.h"
#include "malloc/front.h"

#define LEAST_ROOM ((uint64_t)64 << 10)
#define MOST_ROOM  ((uint64_t)1 << 30)

static bool at_exit;

static void warn(const char *what, const char *option, size_t length)
{
	char line[256] = "percpu-malloc: PERCPU_MALLOC: ", *end = line + strlen(line);
	size_t room = sizeof(line) - strlen(line) - strlen(what) - 4;

	if (length > room)
		length = room;
	memcpy(end, option, length);
	end = stpcpy(stpcpy(end + length, ": "), what);
	*end++ = '\n';
	percpu__sys4(SYS_write, STDERR_FILENO, (long)line, end - line, 0);
}

/* Digits, then perhaps K, M or G. UINT64_MAX: it is no size. */
static uint64_t size_of(const char *text, size_t length)
{
	uint64_t value = 0;
	size_t i = 0;

	for (; i < length && text[i] >= '0' && text[i] <= '9' && value < UINT64_MAX / 4096; i++)
		value = value * 10 + (uint64_t)(text[i] - '0');
	if (!i || i + 1 < length)
		return UINT64_MAX;
	if (i == length)
		return value;
	switch (text[i]) {
	case 'K':
		return value << 10;
	case 'M':
		return value << 20;
	case 'G':
		return value << 30;
	}
	return UINT64_MAX;
}

static void read_option(const char *option, size_t length)
{
	const char *equals = memchr(option, '=', length);
	size_t name = equals ? (size_t)(equals - option) : length;
	uint64_t size;

	if (!equals && name == 5 && !memcmp(option, "stats", 5)) {
		at_exit = true;
	} else if (equals && name == 5 && !memcmp(option, "cache", 5)) {
		size = size_of(equals + 1, length - name - 1);
		if (size >= LEAST_ROOM && size <= MOST_ROOM)
			percpu__front_room = size;
		else
			warn("the size must be 64K to 1G", option, length);
	} else {
		warn("there is no such option (cache=SIZE, stats)", option, length);
	}
}

__attribute__((constructor)) static void read_options(void)
{
	const char *at = getenv("PERCPU_MALLOC");

	while (at && *at) {
		size_t length = strcspn(at, ",");

		if (length)
			read_option(at, length);
		at += length + (at[length] == ',');
	}
}

__attribute__((destructor)) static void tell(void)
{
	if (at_exit)
		percpu_malloc_stats();
}
