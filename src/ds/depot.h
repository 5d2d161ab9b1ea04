/* SPDX-License-Identifier: MIT */
/*
 * The memory of a pool: chunks of objects, a bit for each object that is free here. Not thread-safe: the pool has a lock.
 *
 * All books lie outside the objects. Chunks come from regions, mappings that double in size, so that there are few and an
 * address is found in them by a division; a chunk's memory becomes real by use, and goes back when it is released.
 */
#ifndef PERCPU_SRC_DEPOT_H
#define PERCPU_SRC_DEPOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <percpu/base.h>

struct percpu__chunk;
struct percpu__region;

struct percpu__store {
	size_t stride, per_chunk, chunk_bytes; /* constant, as is max */
	size_t max;                            /* most objects that may be taken at once */
	size_t taken, free, strays;
	size_t chunks, used_chunks, table_bytes;
	struct percpu__region *regions; /* newest first */
	struct percpu__chunk *partial;  /* in use, with free objects */
	struct percpu__chunk *released; /* were in use */
};

/* @max: 0 for no limit. */
PERCPU_HIDDEN void percpu__store_init(struct percpu__store *store, size_t size, size_t align, size_t max);
PERCPU_HIDDEN void percpu__store_destroy(struct percpu__store *store);
/* Up to @n objects; fewer if the maximum is taken or there is no memory. */
PERCPU_HIDDEN size_t percpu__store_take(struct percpu__store *store, void **out, size_t n);
/* Gives objects back. What is none, or is not taken, is counted as a stray. */
PERCPU_HIDDEN void percpu__store_give(struct percpu__store *store, void *const *objects, size_t n);
/* Gives chunks back to the system, as long as @keep free objects stay. Returns how many bytes. */
PERCPU_HIDDEN size_t percpu__store_trim(struct percpu__store *store, size_t keep);

#endif
