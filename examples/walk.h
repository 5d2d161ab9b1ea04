/* SPDX-License-Identifier: MIT */
/* walk: what its work and its queues know of each other. */
#ifndef EXAMPLES_WALK_H
#define EXAMPLES_WALK_H

#include <stdbool.h>

#include <percpu/runqueue.h>
#ifdef HAVE_CK
#include <ck_stack.h>
#endif
#ifdef HAVE_URCU_CDS
#define _LGPL_SOURCE
#include <urcu/wfcqueue.h>
#endif

/* One directory to list, or one file to hash. */
struct item {
	/* In whichever queue it is. */
	union {
		struct percpu_task task;
		struct item *next;
#ifdef HAVE_CK
		struct ck_stack_entry ck;
#endif
#ifdef HAVE_URCU_CDS
		struct cds_wfcq_node wfcq;
#endif
	} link;
	struct item *kept; /* after it is finished */
	bool is_directory;
	char path[];
};

/* A place for items, used by all threads. */
struct queue {
	const char *name;
	/* Returns 0 or -errno. */
	int (*init)(void);
	void (*push)(struct item *item);
	/* NULL if it found none. */
	struct item *(*pop)(void);
	/* Sleeps until there may be something. */
	void (*wait)(void);
	/* There will be nothing any more: lets all @threads return from wait(), now and later. */
	void (*finish)(unsigned threads);
	/* A slow pop() may look at an item that another one has given already: so none is freed before the end. */
	bool keeps;
};
extern const struct queue queues[]; /* ends with a NULL name; the first is the default */

#endif
