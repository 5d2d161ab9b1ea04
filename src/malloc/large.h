/* SPDX-License-Identifier: MIT */
/*
 * Large blocks, each a span of its own, and what is to be done with a pointer that is no small object.
 *
 * All of it is cold beside malloc and free of small objects, and may be called by any thread at any time.
 */
#ifndef PERCPU_SRC_MALLOC_LARGE_H
#define PERCPU_SRC_MALLOC_LARGE_H

#include <stdbool.h>
#include <stddef.h>

#include <percpu/base.h>

/* @align: a power of two. @zero: all bytes are to be 0. NULL: there is no memory, and errno is ENOMEM. */
PERCPU_HIDDEN void *percpu__large_new(size_t size, size_t align, bool zero) PERCPU__COLD;

/* From this size on what grows is a large block, with free pages behind it to grow into, as far as there are such. */
#define GROW_LEAST ((size_t)32 << 10)
PERCPU_HIDDEN void *percpu__large_new_roomy(size_t size) PERCPU__COLD;

/*
 * Of anything that is no small object: NULL, a large block, or what nobody may hand us: then they die with a line. The first
 * leaves errno alone; the second leaves the block alone if it returns NULL, and sets errno to ENOMEM.
 */
PERCPU_HIDDEN void percpu__free_other(void *p) PERCPU__COLD;
PERCPU_HIDDEN void *percpu__realloc_other(void *p, size_t size) PERCPU__COLD; /* neither of them is 0 */
PERCPU_HIDDEN size_t percpu__room_other(void *p) PERCPU__COLD;

#endif
