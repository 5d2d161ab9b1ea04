/* SPDX-License-Identifier: MIT */
/*
 * The percpu command: its subcommands, and what they share.
 *
 * Everything that goes wrong is told in one line on stderr that begins with "percpu: ".
 */
#ifndef PERCPU_CLI_CLI_H
#define PERCPU_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>

/* What the command itself exits with; a program under `percpu stat` has its own. */
enum {
	EXIT_FAILED = 1,      /* could not write what was asked for */
	EXIT_USAGE = 2,       /* a mistake on the command line */
	EXIT_REFUSED = 125,   /* the program was not started */
	EXIT_NOT_EXEC = 126,  /* found, but cannot be executed */
	EXIT_NOT_FOUND = 127, /* not found */
};

/* Each takes the arguments from the subcommand's own name on, and returns an exit status. */
int percpu_info_main(int argc, char **argv);
int percpu_run_main(int argc, char **argv);
int percpu_heap_profile_main(int argc, char **argv);
int percpu_stat_main(int argc, char **argv);
int percpu_bench_main(int argc, char **argv);
/* One round of one row of `percpu bench malloc`, under the allocator that the command preloaded. */
int percpu_bench_malloc_child_main(int argc, char **argv);

/* Print "percpu: ", the text and a newline on stderr, in one write. */
void cli_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Flush stdout; tells in a line, and by EXIT_FAILED, if anything printed there was lost. Otherwise returns 0. */
int cli_close_stdout(void);

/* The text for a wrong command line: what is wrong, and where help is. Returns EXIT_USAGE. */
int cli_usage(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As cli_usage(), for what getopt_long() returned ('?' or ':'). */
int cli_bad_option(const char *command, int result, char **argv);

/*
 * The path of an object to preload: in the build tree it lies at @in_tree, seen from the command's folder; once installed,
 * at @installed in the folder for libraries. Returns 0; -errno; or -EINVAL with the path, when that has characters at which
 * LD_PRELOAD would be split.
 */
int cli_find_object(const char *in_tree, const char *installed, char *path, size_t size);

#endif
