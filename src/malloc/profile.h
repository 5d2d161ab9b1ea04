/* SPDX-License-Identifier: MIT */
/*
 * The heap profile: who has allocated what is in use, and what has been so far.
 *
 * Of the bytes that a thread allocates, one is chosen at random, on average once in an interval, and the block that it is in
 * becomes a sample: a span of its own, which leads to the *site* where it was allocated (a stack trace and a class of sizes).
 * A block of s bytes is a sample with the probability 1 - exp(-s / interval), whatever was allocated before it, so each
 * sample stands for s / (1 - exp(-s / interval)) bytes; the sum of these is right on average. The file has the samples
 * themselves, and the interval: who reads it scales them up, as pprof does with any profile of this kind.
 */
#ifndef PERCPU_SRC_MALLOC_PROFILE_H
#define PERCPU_SRC_MALLOC_PROFILE_H

#include <stddef.h>

#include <percpu/base.h>

#include "malloc/heap.h"

/* If it is the turn of one of these bytes, a block that is a sample; else NULL. */
PERCPU_HIDDEN void *percpu__profile_new(size_t size, size_t align, uint64_t interval) PERCPU__COLD;
/* The same for a large block that has its span, and its size in there. */
PERCPU_HIDDEN void percpu__profile_large(struct percpu__span *span, uint64_t interval) PERCPU__COLD;
/* A span whose `sample` is not NULL is freed, or will have another size. */
PERCPU_HIDDEN void percpu__profile_freed(struct percpu__span *span) PERCPU__COLD;

/* Samples that are in use. Any process may read it. */
extern PERCPU_HIDDEN uint64_t percpu__profile_live;

/*
 * Writes the profile, as gperftools' heap profiler does (heap_v2), to @path; NULL: to the file that the option names, and in a
 * forked child to one with its number at the end. Takes no lock: any thread may do it at any time, a signal handler too.
 * Returns 0 or -errno.
 */
PERCPU_HIDDEN int percpu__profile_write(const char *path);
/* If the option asks for one; complains where it cannot be written. */
PERCPU_HIDDEN void percpu__profile_tell(void);

PERCPU_HIDDEN void percpu__profile_lock(void);
PERCPU_HIDDEN void percpu__profile_unlock(void);
/* In a forked child, which thereby is known as one. */
PERCPU_HIDDEN void percpu__profile_relock(void);

#endif
