/* SPDX-License-Identifier: MIT */
/* What the C library calls localtime() and so on, under names of our own. */
#ifndef PERCPU_SRC_LIBC_CALENDAR_H
#define PERCPU_SRC_LIBC_CALENDAR_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include <percpu/base.h>

PERCPU_HIDDEN struct tm *percpu__localtime_r(const time_t *t, struct tm *tm);
PERCPU_HIDDEN struct tm *percpu__localtime(const time_t *t);
PERCPU_HIDDEN struct tm *percpu__gmtime_r(const time_t *t, struct tm *tm);
PERCPU_HIDDEN struct tm *percpu__gmtime(const time_t *t);
PERCPU_HIDDEN time_t percpu__mktime(struct tm *tm);
PERCPU_HIDDEN time_t percpu__timegm(struct tm *tm);
PERCPU_HIDDEN void percpu__tzset(void);

/* The fields of a moment, local or universal. False: its year does not fit. */
struct percpu__zone;
PERCPU_HIDDEN bool percpu__fields_of(const struct percpu__zone *zone, bool local, int64_t t, struct tm *tm);

#endif
