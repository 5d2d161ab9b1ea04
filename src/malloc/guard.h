/* SPDX-License-Identifier: MIT */
/*
 * Guarded objects: each alone on a page between two that nobody may touch, and nobody may touch it after it was freed. Who
 * does is told about on stderr, with the stacks of who allocated and who freed it; then the program dies as it would anyway.
 *
 * The idea is that of LLVM's GWP-ASan, and of Electric Fence before it: few allocations are guarded, but a program that runs
 * long or often shows its errors, at next to no cost.
 *
 * These objects are in a range of addresses of their own, outside of the heap.
 */
#ifndef PERCPU_SRC_MALLOC_GUARD_H
#define PERCPU_SRC_MALLOC_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <percpu/base.h>

/* An object, or NULL: it is too large, all places are taken, or there can be none. @many: as many places as there are. */
PERCPU_HIDDEN void *percpu__guard_new(size_t size, size_t align, bool many) PERCPU__COLD;

/* Objects so far. Any process may read it. */
extern PERCPU_HIDDEN uint64_t percpu__guard_taken;

/* Whether it is an address in that range, of an object or not. */
PERCPU_HIDDEN bool percpu__guard_has(const void *p);
/* Dies with a report if it is no object, or freed already, or bytes beside it were written to. Leaves errno alone. */
PERCPU_HIDDEN void percpu__guard_free(void *p) PERCPU__COLD;
/* As asked for. Dies like percpu__guard_free(). */
PERCPU_HIDDEN size_t percpu__guard_size(const void *p) PERCPU__COLD;

PERCPU_HIDDEN void percpu__guard_lock(void);
PERCPU_HIDDEN void percpu__guard_unlock(void);
PERCPU_HIDDEN void percpu__guard_relock(void);

#endif
