/* SPDX-License-Identifier: MIT */
/*
 * Options of the allocator: PERCPU_MALLOC="name=value,name,...", read once, when it starts.
 *
 * Nothing here allocates. What is wrong is told in a line on stderr and left out; the others hold.
 */
#ifndef PERCPU_SRC_MALLOC_OPTIONS_H
#define PERCPU_SRC_MALLOC_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <percpu/base.h>

#define PERCPU__PROFILE_INTERVAL ((uint64_t)512 << 10)
#define PERCPU__GUARD_USUAL      UINT64_MAX /* not given: few enough to cost next to nothing */

enum percpu__when { PERCPU__WHEN_AUTO, PERCPU__WHEN_NEVER, PERCPU__WHEN_ALWAYS };

/* Written before there is a front, then only read. */
struct percpu__malloc_options {
	uint64_t cache;       /* bytes of objects that the magazines of one index may hold; 0: not given */
	uint64_t cache_total; /* the same for all indexes together; 0: not given */
	uint64_t guard;       /* one in so many allocations lies on guarded pages; 0: none */
	uint64_t profile;     /* bytes between samples of the heap profile; 0: no profile */
	uint64_t nodes;       /* of memory, as if the machine had so many; 0: those it has */
	uint64_t stats_signal;
	uint64_t huge, decay; /* enum percpu__when */
	uint64_t keep;        /* bytes of free memory that stay in any case; 0: not given */
	bool zero, random, check, count, stats;
	const char *profile_file, *stats_file, *json_file; /* absolute names; NULL: none */
};
extern PERCPU_HIDDEN struct percpu__malloc_options percpu__malloc_options;

/*
 * False: there is no environment yet, as the loader is still at work; to be called again. Sets percpu__front_room and
 * percpu__malloc_watched. Under the lock of percpu__malloc_start().
 */
PERCPU_HIDDEN bool percpu__malloc_read_options(void);

/* As PERCPU_MALLOC would be. */
PERCPU_HIDDEN void percpu__malloc_parse_options(const char *text);
/* One option, for who hands it on. False: it is wrong, and @why says how, as far as there is room. */
PERCPU_HIDDEN bool percpu__malloc_try_option(const char *text, size_t length, char *why, size_t size);

#endif
