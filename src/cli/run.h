/* SPDX-License-Identifier: MIT */
/*
 * percpu run, inside.
 *
 *   run.c         options, and the program without statistics: the command becomes the program
 *   run_stats.c   staying with the program, and reading its statistics
 *   run_show.c    telling them: tables for people, JSON
 */
#ifndef PERCPU_CLI_RUN_H
#define PERCPU_CLI_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "malloc/stats.h"

struct run_options {
	bool malloc; /* the allocator is preloaded; */
	bool libc;   /* functions of the C library, too */
	bool stats;
	unsigned interval_ms; /* between tables while it runs; 0: only at the end */
	const char *json;     /* a file's name, "-" for standard output; NULL: tables, on standard error */
	char **argv;          /* the program and its arguments */
};

/* The statistics at some moment. */
struct run_sample {
	double seconds; /* since the program started */
	char mode[16], index_kind[32];
	bool counted; /* hits of magazines */
	bool last;    /* of the program's end, as it told itself */
	struct percpu__stats_process process;
	struct percpu__stats_class classes[CLASSES + 1];
	unsigned top; /* indexes */
	struct percpu__stats_index *indexes;
};

/* run_stats.c: runs the program at @path with @allocator preloaded, and tells. Returns what the command exits with. */
int run_with_stats(const struct run_options *options, const char *path, const char *allocator);

/* run_show.c. Lines are lost if nobody takes them; false: JSON could not be written, and it has complained. */
void run_show(const struct run_sample *sample, const char *program, bool all);
bool run_write_json(const char *name, const struct run_sample *sample, const struct run_options *options, int pid,
		    const int *status);

#endif
