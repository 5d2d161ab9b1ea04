/* SPDX-License-Identifier: MIT */
/*
 * What is between the magazines and the page heap: for each class a stock of free objects, and its spans.
 *
 * Objects come and go in batches. The stock hands on what others gave back, without touching it; behind it are the spans
 * with free objects, in whose bitmaps an object that is free twice shows.
 */
#ifndef PERCPU_SRC_MALLOC_CENTRAL_H
#define PERCPU_SRC_MALLOC_CENTRAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "malloc/heap.h"

#define BATCH_MOST 64U

struct percpu__class_stats {
	uint64_t spans, objects; /* in spans: objects in all */
	uint64_t free, stock;    /* of these, in spans and in the stock */
	uint64_t taken, given;   /* batches, so far */
	uint64_t stock_misses;   /* batches for which spans had to be asked */
	uint64_t new_spans;      /* so far */
	uint64_t pages;          /* of a span */
};

PERCPU_HIDDEN void percpu__central_start(void);

/* How many objects of a class travel together. */
PERCPU_HIDDEN unsigned percpu__batch_of(unsigned class);

/* Up to @n objects of @class (@n <= BATCH_MOST) into @out. Returns how many; 0 if there is no memory. */
PERCPU_HIDDEN unsigned percpu__central_take(unsigned class, void **out, unsigned n);
/* Dies with a line on stderr if one of them is no object, or is free already, and that shows. */
PERCPU_HIDDEN void percpu__central_give(unsigned class, void *const *objects, unsigned n);
/* Dies if this is no object of the class; with @what if it is free, in its span or in the stock. */
PERCPU_HIDDEN void percpu__central_check(unsigned class, const void *object, const char *what);
/*
 * From now on objects that are given go to their spans at once. Where there are no magazines either, each free object is so
 * known as one, and whoever frees what is none is found out.
 */
PERCPU_HIDDEN void percpu__central_without_stocks(void);
/* All of the stock back to the spans, so that these may become free. */
PERCPU_HIDDEN void percpu__central_trim(void);

/* Objects of a class that are neither in spans nor in stocks, roughly. */
PERCPU_HIDDEN uint64_t percpu__central_in_use(unsigned class);

/* Of all nodes together; without a lock: exact while nobody is at work here. */
PERCPU_HIDDEN void percpu__central_stats(unsigned class, struct percpu__class_stats *stats);

/* Where these words are, for who reads them from another process. */
struct percpu__central_words {
	uint64_t nodes, count;  /* an array of so many pointers, of which the first is not NULL; what each points to: */
	uint64_t first, stride; /* how far the struct percpu__class_stats of class 0 is, and from one to the next */
};
PERCPU_HIDDEN void percpu__central_words(struct percpu__central_words *words);
/* Adds them up. */
PERCPU_HIDDEN void percpu__class_stats_add(struct percpu__class_stats *sum, const struct percpu__class_stats *stats);

/* All locks of this layer. */
PERCPU_HIDDEN void percpu__central_lock_all(void);
PERCPU_HIDDEN void percpu__central_unlock_all(void);
PERCPU_HIDDEN void percpu__central_relock_all(void);

/* "percpu-malloc: WHAT: 0xADDRESS" on stderr, and abort(). */
PERCPU_HIDDEN void percpu__malloc_die(const char *what, const void *address) __attribute__((noreturn)) PERCPU__COLD;

#endif
