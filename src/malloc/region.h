/* SPDX-License-Identifier: MIT */
/*
 * The page heap, inside: regions and runs of pages in them. Everything here under the heap's lock.
 *
 * Regions are taken from the start of the range in rising order and never given up. A region is *free* if none of its pages
 * is in use; free ones that follow each other form runs, coalesced by what is noted in their first and last. The others are
 * listed by node and by their longest free run, so that a request takes the region where it fits best: small holes are filled
 * first, and regions that are nearly free may become so. Free regions with memory are listed besides, those freed last in front.
 */
#ifndef PERCPU_SRC_MALLOC_REGION_H
#define PERCPU_SRC_MALLOC_REGION_H

#include "malloc/bits.h"
#include "malloc/heap.h"

#define NO_REGION UINT32_MAX
#define NO_PAGE   UINT64_MAX
#define NODES     64U

enum advice {
	ADVICE_NONE,
	ADVICE_HUGE,
	ADVICE_SMALL,
};

struct region {
	uint64_t used[REGION_WORDS];    /* pages in spans */
	uint64_t backed[REGION_WORDS];  /* pages that may have memory */
	uint64_t written[REGION_WORDS]; /* pages that may be other than zero: some of these */
	uint32_t next, previous;        /* in a list by longest run; of the first of a run: in a list of these */
	uint32_t run;                   /* of free regions, in the first and last of a run; 0 in others */
	uint32_t idle_next, idle_previous;
	uint32_t released_at; /* when memory was last given back, in ms; 0: never */
	uint16_t count;       /* of pages in use */
	uint16_t longest;     /* free run; 0 if it is not listed */
	uint8_t node;         /* whose memory it has */
	uint8_t advice;       /* that the kernel was given */
	bool free : 1;        /* it is in a run */
	bool first : 1;       /* of that */
	bool idle : 1;        /* free, with memory: listed */
	bool held : 1;        /* what follows the last block in here waits for that to grow */
};

/* Pages as they were when they were taken. */
struct pages {
	uint64_t first;            /* NO_PAGE: none */
	uint64_t fresh;            /* how many of them have no memory */
	bool huge;                 /* the first touch of the first brings a huge page */
	uint64_t dirty, dirty_end; /* of those that may be other than zero: from here to here, counted from the first */
};

/* Fixed once the heap has started, but for `top`. */
extern PERCPU_HIDDEN struct percpu__regions {
	struct region *all;
	uint32_t top, most; /* regions in use so far, and in the range */
	uint32_t nodes;     /* that have been asked for so far, at least 1 */
} percpu__regions;

PERCPU_HIDDEN void *percpu__heap_map(size_t bytes, int protection); /* NULL: no memory */
PERCPU_HIDDEN void percpu__heap_unmap(void *p, size_t bytes);
PERCPU_HIDDEN bool percpu__heap_writable(void *p, size_t bytes);

/* Milliseconds of a clock that is cheap to read; never 0. */
PERCPU_HIDDEN uint32_t percpu__heap_ms(void);

PERCPU_HIDDEN void percpu__regions_start(void);

/* @pages that follow each other; none: no memory. @small: for objects that will fill them. */
PERCPU_HIDDEN struct pages percpu__pages_take(uint64_t pages, unsigned node, bool small);
/* The same at the start of a region, with free ones behind it, for a block that will probably grow. None: not worth it. */
PERCPU_HIDDEN struct pages percpu__pages_take_roomy(uint64_t pages, unsigned node);
/* The @more pages from @page on, if they are free. */
PERCPU_HIDDEN bool percpu__pages_extend(uint64_t page, uint64_t more, unsigned node);
/* Pages in use that have lost their memory. */
PERCPU_HIDDEN void percpu__pages_dropped(uint64_t page, uint64_t pages);
PERCPU_HIDDEN void percpu__pages_free(uint64_t page, uint64_t pages);
/* Whether free pages behind @page (in use) in its region are kept from others. */
PERCPU_HIDDEN void percpu__pages_hold(uint64_t page, bool hold);

/* A free region leaves its run, and comes back. */
PERCPU_HIDDEN void percpu__region_take_out(uint32_t i);
PERCPU_HIDDEN void percpu__region_put_back(uint32_t i);
/* A region that is partly in use changed: lists it anew. */
PERCPU_HIDDEN void percpu__region_relist(uint32_t i);
/* The free region of the node whose memory has been idle for longest; NO_REGION. */
PERCPU_HIDDEN uint32_t percpu__region_idle(unsigned node);

/* huge.c */

PERCPU_HIDDEN void percpu__region_advise(uint32_t i, enum advice advice);
/* Whether a region that has a new user, and no memory, should have a huge page. @small: for objects that will fill it. */
PERCPU_HIDDEN bool percpu__region_wants_huge(bool small);
/* What the first touch of a huge page cost, in ns of processor time. */
PERCPU_HIDDEN void percpu__region_huge_took(uint64_t ns);

/* release.c */

/* Memory is taken that the kernel has yet to give; @released_at: when it was given back, in ms; 0: never. */
PERCPU_HIDDEN void percpu__release_fresh(uint32_t released_at, uint64_t bytes);
/* Gives back some of what is too much; @freed: bytes that the caller has just freed. Leaves the lock in between. */
PERCPU_HIDDEN void percpu__release_excess(uint64_t freed);
/* The same, of what was kept for a while only. False: nothing is, or none of it can go. */
PERCPU_HIDDEN bool percpu__release_decayed(void);
/* All memory of a free region that is in no run, at once. */
PERCPU_HIDDEN void percpu__release_region(uint32_t i);
/* In a forked child: what others were giving back there is free. */
PERCPU_HIDDEN void percpu__release_after_fork(void);

#endif
