/* SPDX-License-Identifier: MIT */
/*
 * percpu stat, inside: how its parts meet.
 *
 *   stat.c          options, and the order of things
 *   stat_run.c      the session's memory, and how the program finds it
 *   stat_sample.c   reading the counts, as a table of numbers
 *   stat_show.c     people's output: live tables and lines, the final table
 *   stat_file.c     other programs' output: JSON and OpenMetrics
 *
 * One thread does it all. Its only asynchronous guests are signals, which it reads from a descriptor.
 */
#ifndef PERCPU_CLI_STAT_H
#define PERCPU_CLI_STAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/child.h"
#include "cli/session.h"
#include "cli/target.h"

struct stat_options {
	unsigned interval_ms;
	bool interval_given;
	bool top;
	bool quiet;              /* no live output */
	const char *json;        /* file name, "-" for standard output, NULL for none */
	const char *openmetrics; /* the same */
	char **argv;             /* the program and its arguments */
};

/* The rows of every output: two that are sums over the size classes, then the counters of the session. */
enum { ROW_ALLOC_CALLS, ROW_ALLOC_BYTES, ROW_COUNTERS, ROWS = ROW_COUNTERS + SESSION_COUNTS };
struct stat_row {
	const char *name;
	const char *help;
	bool bytes;
};
extern const struct stat_row stat_rows[ROWS];

/* All counts at some moment: word [row * copies + index]. */
struct sample {
	double seconds; /* since the program started */
	unsigned copies;
	uint64_t *rows;
	uint64_t *class_calls;
	uint64_t *class_bytes;
};

/* stat_sample.c */
int sample_init(struct sample *sample);
void sample_destroy(struct sample *sample);
/* Reads what has been counted until now. Returns 0 or -ENOMEM. */
int sample_take(struct sample *sample, void *base, double seconds);
/* The sum of one row of rows, class_calls or class_bytes. */
uint64_t sample_sum(const struct sample *sample, const uint64_t *table, unsigned row);
/* "0", "1", ... or "other", for the copy of threads that the kernel does not serve. */
const char *sample_index_name(const struct sample *sample, unsigned index, char text[static 16]);
/* The smallest and largest size of a class. */
uint64_t class_low(unsigned class);
uint64_t class_high(unsigned class);

/* stat_run.c */
struct run {
	void *base;    /* the session's memory, mapped */
	int fd;        /* the same, as a file */
	char path[64]; /* where the program finds that */
	struct child child;
};
/* Make the memory. Returns 0, or an exit status when it has complained. */
int run_prepare(struct run *run);
/* Start the program. Returns 0, or an exit status when it has complained. */
int run_start(struct run *run, const char *path, char **argv);

/* stat_show.c */
struct show {
	const struct stat_options *options;
	enum { SHOW_NOTHING, SHOW_TABLE, SHOW_LINES } live;
	bool drawn;  /* a table is on the terminal, below the cursor */
	bool broken; /* stderr takes nothing any more */
};
void show_init(struct show *show, const struct stat_options *options);
void show_live(struct show *show, const struct sample *now, const struct sample *before);
/* Take the live table off the terminal. */
void show_clear(struct show *show);
void show_final(struct show *show, const struct sample *now);

/* stat_file.c: each returns false when it has complained. */
bool file_write_json(const char *name, const struct sample *now, const struct run *run, char **argv);
bool file_write_openmetrics(const char *name, const struct sample *now);

#endif
