/* SPDX-License-Identifier: MIT */
/*
 * Which allocations are looked at closely: put on guarded pages (guard.h), or noted for the heap profile (profile.h).
 */
#ifndef PERCPU_SRC_MALLOC_SAMPLE_H
#define PERCPU_SRC_MALLOC_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>

#include <percpu/base.h>

#include "malloc/heap.h"

/* Once, when the options are known. Says whether every allocation must ask. */
PERCPU_HIDDEN bool percpu__sample_start(void) PERCPU__COLD;

/*
 * The object, if this allocation is a sample; NULL: go on as usual. @align: a power of two. @watched: every allocation asks;
 * else only those that found an empty magazine do. The caller holds no lock. Leaves errno alone.
 */
PERCPU_HIDDEN void *percpu__sample_new(size_t size, size_t align, bool watched) PERCPU__COLD;

/* A large block is new, or has another size now; in watched mode. */
PERCPU_HIDDEN void percpu__sample_large(struct percpu__span *span) PERCPU__COLD;
/* A span whose `sample` is not NULL is about to be freed, or to have another size. */
PERCPU_HIDDEN void percpu__sample_freed(struct percpu__span *span) PERCPU__COLD;

/* For who needs chance, not secrecy. */
PERCPU_HIDDEN uint64_t percpu__sample_random(void);

/* All locks of this layer, around fork: before those of the heap. */
PERCPU_HIDDEN void percpu__sample_lock_all(void);
PERCPU_HIDDEN void percpu__sample_unlock_all(void);
PERCPU_HIDDEN void percpu__sample_relock_all(void); /* in the child: as if it had taken them */

#endif
