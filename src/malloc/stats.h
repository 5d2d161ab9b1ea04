/* SPDX-License-Identifier: MIT */
/*
 * Statistics of the allocator: what they are (stats.c), and how they are told (stats_print.c).
 *
 * All words are read without a lock, so that a signal handler may do it: while nobody allocates the sums are exact, else each
 * word is as it was at some moment. Hits of magazines are counted only with the option `count`.
 */
#ifndef PERCPU_SRC_MALLOC_STATS_H
#define PERCPU_SRC_MALLOC_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include <percpu/base.h>

#include "malloc/central.h"

/* Of one class. objects = live + cached + stock + free. */
struct percpu__stats_class {
	uint64_t size; /* of an object, in bytes */
	uint64_t spans, span_bytes, objects;
	uint64_t live, cached, stock, free; /* objects: of the program, in magazines, in the stock, in spans */
	uint64_t hits, misses;              /* of magazines, by allocations; each miss asks the stock for a batch */
	uint64_t flushes;                   /* of magazines, by frees: a batch for the stock */
	uint64_t stock_misses;              /* batches for which spans had to be asked */
	uint64_t new_spans;                 /* so far: each was a miss of the spans */
};

/* Of the magazines of one index. */
struct percpu__stats_index {
	uint64_t cached; /* in bytes */
	uint64_t hits, misses, flushes;
	uint64_t drains; /* how often they were emptied because nobody used them, or memory was short */
};

/* Of the process, in bytes where nothing else is said. used = the spans of all classes + large_bytes. */
struct percpu__stats_process {
	uint64_t live;               /* objects and large blocks of the program */
	uint64_t cached, stock;      /* objects in magazines, in stocks */
	uint64_t used, most_used;    /* the heap's spans */
	uint64_t free, released;     /* of the heap: free and in memory, given back to the kernel */
	uint64_t large, large_bytes; /* large blocks: how many, and their bytes */
	uint64_t metadata;           /* that the allocator itself takes: tables, spans, magazines */
	uint64_t resident;           /* of the whole process; 0: unknown */
	uint64_t guarded, profiled;  /* samples: on guarded pages so far, and live ones of the heap profile */
};

/* The words that all this is made of, as they were in another process. */
struct percpu__front;
struct percpu__stats_words {
	struct percpu__heap_stats heap;
	struct percpu__class_stats classes[CLASSES + 1];
	uint64_t guarded, profiled, resident;
	unsigned top;                 /* so many indexes */
	struct percpu__front *fronts; /* of each, one after another */
};

/* From @words; NULL: of this process. */
PERCPU_HIDDEN void percpu__stats_class(const struct percpu__stats_words *words, unsigned class,
				       struct percpu__stats_class *out);
/* False: no thread has been there. */
PERCPU_HIDDEN bool percpu__stats_index(const struct percpu__stats_words *words, unsigned index,
				       struct percpu__stats_index *out);
PERCPU_HIDDEN void percpu__stats_process(const struct percpu__stats_words *words, struct percpu__stats_process *out);

/* When the options are known: a handler for stats-signal, a copy of stderr for the end, the parent of `percpu run --stats`. */
PERCPU_HIDDEN void percpu__stats_start(void);

/* The first lines of the table, or all of it, on stderr: what malloc_stats() tells. */
PERCPU_HIDDEN void percpu__stats_short(void);
/* Returns 0 or -errno. */
PERCPU_HIDDEN int percpu__stats_table(int fd, bool all);
PERCPU_HIDDEN int percpu__stats_json(int fd);
/* What malloc_info() tells, piece by piece. */
PERCPU_HIDDEN void percpu__stats_xml(void (*put)(void *arg, const char *text, size_t n), void *arg);

#endif
