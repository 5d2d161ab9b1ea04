/* SPDX-License-Identifier: MIT */
/*
 * The page heap: one reserved range of addresses, cut into pages of 8 KiB, which come in regions of 2 MiB as huge pages do.
 *
 * A *span* is a run of pages that holds either objects of one class or one large block. For each page there are two tables:
 * the class of its objects, as free() needs it, and the span's number.
 */
#ifndef PERCPU_SRC_MALLOC_HEAP_H
#define PERCPU_SRC_MALLOC_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <percpu/base.h>

#include "malloc/classes.h"

#define PAGE_LOG     13U
#define PAGE         ((size_t)1 << PAGE_LOG)
#define REGION_LOG   21U
#define REGION       ((size_t)1 << REGION_LOG)
#define REGION_PAGES 256U /* of a region */
#define SPAN_OBJECTS 512U /* at most, of a small class */

/* A run of pages. Fields belong to the heap up to `number`, then to who has the span. */
struct percpu__span {
	struct percpu__span *next,
		*previous; /* in the list of spans of its class with free objects, or of spare structs */
	uint64_t page;     /* its first, counted from the start of the heap */
	uint64_t pages;
	uint32_t number; /* in the table of spans */
	uint16_t objects, free;
	uint8_t class; /* 0: one large block */
	bool listed;
	bool moved;    /* its memory came from another place, so the kernel has a mapping of its own for it */
	bool roomy;    /* the pages behind it are held */
	uint8_t node;  /* of memory */
	uint64_t size; /* of an object, or of the block as it was asked for */
	void *sample;  /* of a large block: where it was allocated, for the heap profile; NULL: nobody knows */
	union {
		uint64_t is_free[SPAN_OBJECTS / 64]; /* a bit for each object */
		struct {
			uint64_t dirty,
				dirty_end; /* of a new large block, pages that may be other than zero: from, to */
		};
	};
};

/*
 * The table of distances does not begin where a page of the system does, as objects often do: a load from the table that
 * has the low 12 bits of an object's address waits for what was stored there last.
 */
#define HEAP_SKEW ((size_t)2048)

struct percpu__heap {
	char *base;
	size_t bytes;        /* of the range */
	uint16_t *distances; /* of each page: its class's magazine in the front; 0: no small objects */
	uint32_t *numbers;   /* of each page: its span's */
};
extern PERCPU_HIDDEN struct percpu__heap percpu__heap;

/* What the heap holds, in bytes; under its lock, or roughly. */
struct percpu__heap_stats {
	uint64_t used, most_used;    /* in spans */
	uint64_t free;               /* in regions, and backed by memory as far as known */
	uint64_t released;           /* given back to the kernel so far */
	uint64_t large, large_bytes; /* spans that hold one block: how many, and their bytes, of those used */
	uint64_t metadata;           /* tables and structs of spans, as far as in use */
};
extern PERCPU_HIDDEN struct percpu__heap_stats percpu__heap_stats;

/* Reserves the range and its tables; 0 or -errno. Once, under the caller's lock. */
PERCPU_HIDDEN int percpu__heap_start(void);

/* The node of the CPU that runs the caller, below 64, or what it pretends to be by option. */
PERCPU_HIDDEN unsigned percpu__heap_node(void);

/*
 * A run of @pages, its address a multiple of @align pages (a power of two). NULL: no memory. @class goes into the table; large
 * blocks have 0. @node: of memory, as the kernel counts them.
 */
PERCPU_HIDDEN struct percpu__span *percpu__span_new(size_t pages, size_t align, unsigned class, unsigned node);
/*
 * For a large block that grows: more pages for it where it is, or pages for it to move to, with free ones behind them if there
 * are such. @fresh: how many of these have no memory yet. False, NULL: it cannot, nothing has changed.
 */
PERCPU_HIDDEN bool percpu__span_grow(struct percpu__span *span, size_t pages);
PERCPU_HIDDEN struct percpu__span *percpu__span_new_roomy(size_t pages, unsigned node, size_t *fresh);
/* The memory of @pages at the start of one block becomes that of another, as far as the kernel does that. Returns how many. */
PERCPU_HIDDEN size_t percpu__span_move(struct percpu__span *to, struct percpu__span *from, size_t pages);
/* A large block loses its last pages. */
PERCPU_HIDDEN void percpu__span_cut(struct percpu__span *span, size_t pages);
PERCPU_HIDDEN void percpu__span_free(struct percpu__span *span);

/* Bytes of free memory that stay in any case, but for percpu__heap_release(). Anybody sets it, to at most HEAP_KEEP_ALL. */
extern PERCPU_HIDDEN uint64_t percpu__heap_keep;
#define HEAP_KEEP_ALL ((uint64_t)1 << 60)

/*
 * Under the lock, which it leaves in between: gives free pages back to the kernel, up to @most bytes or a region more, but not
 * the last @keep ones. Returns how many bytes.
 */
PERCPU_HIDDEN size_t percpu__heap_release(size_t most, size_t keep);

PERCPU_HIDDEN void percpu__heap_lock(void);
PERCPU_HIDDEN void percpu__heap_unlock(void);
/* In a forked child. */
PERCPU_HIDDEN void percpu__heap_relock(void);

static inline bool percpu__heap_has(const void *p)
{
	return (size_t)((const char *)p - percpu__heap.base) < percpu__heap.bytes;
}

static inline size_t percpu__page_of(const void *p)
{
	return (size_t)((const char *)p - percpu__heap.base) >> PAGE_LOG;
}

static inline char *percpu__page_address(uint64_t page)
{
	return percpu__heap.base + (page << PAGE_LOG);
}

/* NULL: no span is there. */
PERCPU_HIDDEN struct percpu__span *percpu__span_of(const void *p);

#endif
