/* SPDX-License-Identifier: MIT */
/*
 * Which zone is the process's: what TZ says, or else /etc/localtime.
 */
#ifndef PERCPU_SRC_LIBC_ZONE_SET_H
#define PERCPU_SRC_LIBC_ZONE_SET_H

#include "libc/zone.h"

/* What was once asked for, and what that gave. Never freed. */
struct percpu__zone_setting {
	const struct percpu__zone *zone;
	struct percpu__zone_setting *next; /* of those that are asked for likewise */
	const char *text;                  /* TZ without a colon; NULL: it was not set */
	const char *path;                  /* where a file of that name would be; "": nowhere */
	const char *rules;                 /* "posixrules", if they are needed; or "" */
	uint64_t identity; /* of the files, when zone was made from them; whoever finds them touched writes */
	bool watched;      /* the files are looked at each time, not only when TZ changes */
};

/* What localtime_r() goes by. NULL: nobody has asked yet. */
PERCPU_HIDDEN extern const struct percpu__zone *percpu__zone_published;

/* As tzset(): looks at TZ, and at files that are watched. */
PERCPU_HIDDEN const struct percpu__zone_setting *percpu__zone_settle(void);

/* Sets tzname, timezone and daylight to those of a moment, if the setting is still the process's. */
PERCPU_HIDDEN void percpu__zone_tell(const struct percpu__zone_setting *setting, const struct percpu__zone_vars *vars);

/* Whether a program that gained rights by being executed may have a file read. */
PERCPU_HIDDEN bool percpu__zone_path_trusted(const char *path);

static inline const struct percpu__zone *percpu__zone_now(void)
{
	const struct percpu__zone *zone = __atomic_load_n(&percpu__zone_published, __ATOMIC_ACQUIRE);

	return __builtin_expect(zone != NULL, 1) ? zone : percpu__zone_settle()->zone;
}

#endif
