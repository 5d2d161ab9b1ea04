/* SPDX-License-Identifier: MIT */
/*
 * percpu run: a program on the per-CPU allocator, and on functions of the C library without its locks.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/child.h"
#include "cli/cli.h"
#include "cli/file.h"
#include "cli/run.h"
#include "cli/target.h"
#include "malloc/options.h"

#define VARIABLE  "PERCPU_MALLOC"
#define LEAST_SEC 0.01
#define MOST_SEC  86400.0

static const char help_text[] =
	"Usage: percpu run [OPTION...] [--] PROGRAM [ARGUMENT...]\n"
	"\n"
	"Runs a program whose memory comes from percpu's allocator, and so do those that it starts.\n"
	"\n"
	"      --stats[=SECONDS]    tell on standard error at the end what memory it had; with SECONDS also while\n"
	"                           it runs, each time so many have passed (0.01 to 86400)\n"
	"      --json FILE          write the statistics to FILE as JSON instead; \"-\" is standard output, at the end\n"
	"      --heap-profile FILE  write a profile of who allocated what is in use to FILE\n"
	"      --option NAME=VALUE  an option of the allocator, see libpercpu-malloc(7): cache, cache-total, check,\n"
	"                           count, decay, guard, huge, keep, nodes, profile, profile-interval, random, stats,\n"
	"                           stats-json, stats-signal, zero\n"
	"      --libc[=parallel]    also functions of the C library that take no lock, see libpercpu-libc(7); with\n"
	"                           \"parallel\" also where callbacks then run in several threads at once\n"
	"      --no-malloc          those only: memory as without percpu\n"
	"  -h, --help               this text\n"
	"\n"
	"Exits as the program does; with 125, 126 or 127 if it was not started, 1 if FILE could not be written.\n";

/* One more option for the allocator; it holds against those before it. */
static int add_option(const char *name, const char *value)
{
	const char *old = getenv(VARIABLE);
	char *list = NULL;
	bool ok;

	ok = asprintf(&list, "%s%s%s%s%s", old ? old : "", old && *old ? "," : "", name, value ? "=" : "",
		      value ? value : "") >= 0 &&
	     !setenv(VARIABLE, list, 1);
	free(list);
	if (!ok)
		cli_complain("%s", strerror(ENOMEM));
	return ok ? 0 : EXIT_REFUSED;
}

/* Each of a list: the program would only say so, and go on without it. */
static int check_options(const char *list)
{
	char why[512];

	while (*list) {
		size_t length = strcspn(list, ",");

		if (length && !percpu__malloc_try_option(list, length, why, sizeof(why)))
			return cli_usage("run", "--option %s", why);
		list += length + (list[length] == ',');
	}
	return 0;
}

static int set_interval(const char *text, struct run_options *options)
{
	char *end;
	double seconds;

	options->stats = true;
	if (!text)
		return 0;
	errno = 0;
	seconds = strtod(text, &end);
	if (*text < '0' || *text > '9' || *end || errno || !(seconds >= LEAST_SEC && seconds <= MOST_SEC))
		return cli_usage("run", "--stats needs a number of seconds from %g to %g, not \"%s\"", LEAST_SEC,
				 MOST_SEC, text);
	options->interval_ms = (unsigned)lround(seconds * 1000);
	return 0;
}

static int set_libc(const char *text, struct run_options *options)
{
	options->libc = true;
	if (text && strcmp(text, "parallel") != 0)
		return cli_usage("run", "--libc may have the value \"parallel\", not \"%s\"", text);
	if (!text || !setenv("PERCPU_LIBC_PHDR", text, 1))
		return 0;
	cli_complain("%s", strerror(ENOMEM));
	return EXIT_REFUSED;
}

/* Sets the program to run; where there is none, returns the exit status. */
static int parse(int argc, char **argv, struct run_options *options)
{
	enum { STATS = 256, JSON, PROFILE, OPTION, LIBC, NO_MALLOC };
	static const struct option known[] = { { "stats", optional_argument, NULL, STATS },
					       { "json", required_argument, NULL, JSON },
					       { "heap-profile", required_argument, NULL, PROFILE },
					       { "option", required_argument, NULL, OPTION },
					       { "libc", optional_argument, NULL, LIBC },
					       { "no-malloc", no_argument, NULL, NO_MALLOC },
					       { "help", no_argument, NULL, 'h' },
					       { NULL, 0, NULL, 0 } };
	bool about_malloc = false, no_malloc = false;
	int c, rc;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "+:h", known, NULL)) != -1) {
		rc = 0;
		about_malloc |= c >= STATS && c <= OPTION;
		switch (c) {
		case STATS:
			rc = set_interval(optarg, options);
			break;
		case JSON:
			if (!*optarg)
				return cli_usage("run", "the name of a file is empty");
			options->json = optarg;
			options->stats = true;
			break;
		case PROFILE:
			if (!*optarg || strchr(optarg, ','))
				return cli_usage("run", "the name of a file is empty or has a comma in it");
			rc = add_option("profile", optarg);
			break;
		case OPTION:
			rc = check_options(optarg);
			if (!rc)
				rc = add_option(optarg, NULL);
			break;
		case LIBC:
			rc = set_libc(optarg, options);
			break;
		case NO_MALLOC:
			no_malloc = true;
			break;
		case 'h':
			fputs(help_text, stdout);
			return cli_close_stdout();
		default:
			return cli_bad_option("run", c, argv);
		}
		if (rc)
			return rc;
	}
	if (no_malloc && !options->libc)
		return cli_usage("run", "--no-malloc without --libc leaves nothing to do");
	if (no_malloc && about_malloc)
		return cli_usage("run", "--no-malloc does not go with options about the allocator");
	if (optind == argc)
		return cli_usage("run", "which program?");
	options->malloc = !no_malloc;
	options->argv = argv + optind;
	return 0;
}

/* In the build tree an object lies in a folder of its own. */
static int find_object(const char *what, const char *in_tree, const char *installed, char *path, size_t size)
{
	int rc = cli_find_object(in_tree, installed, path, size);

	if (rc == -EINVAL)
		cli_complain("%s has a space or a colon in its name: it cannot be preloaded", path);
	else if (rc)
		cli_complain("cannot find %s, %s: %s", what, path, strerror(-rc));
	return rc ? EXIT_REFUSED : 0;
}

/* Behind the allocator, which comes to the front later. */
static int preload_libc(void)
{
	char path[4096];
	int rc = find_object("the functions of the C library", "../libc/libpercpu-libc.so", "libpercpu-libc.so", path,
			     sizeof(path));

	if (!rc && !child_preload(path)) {
		cli_complain("%s", strerror(ENOMEM));
		rc = EXIT_REFUSED;
	}
	return rc;
}

static int become(const char *path, char **argv, const char *allocator)
{
	int error = ENOMEM;

	if (!*allocator || child_preload(allocator)) {
		execvp(path, argv);
		error = errno;
	}
	cli_complain("%s: %s", argv[0], strerror(error));
	return error == ENOENT ? EXIT_NOT_FOUND : error == ENOMEM ? EXIT_REFUSED : EXIT_NOT_EXEC;
}

int percpu_run_main(int argc, char **argv)
{
	struct run_options options = { 0 };
	char allocator[4096] = "", *path;
	int rc = parse(argc, argv, &options);

	if (!options.argv)
		return rc;
	if (options.malloc)
		rc = find_object("the allocator", "../malloc/libpercpu-malloc.so", "libpercpu-malloc.so", allocator,
				 sizeof(allocator));
	if (!rc)
		rc = target_find(options.argv[0], options.malloc ? TARGET_ALLOCATE : TARGET_LIBC, &path);
	if (rc)
		return rc;
	if (options.libc)
		rc = preload_libc();
	if (!rc && options.json && !file_check(options.json))
		rc = EXIT_REFUSED;
	else if (!rc && options.stats)
		rc = run_with_stats(&options, path, allocator);
	else if (!rc)
		rc = become(path, options.argv, allocator);
	free(path);
	return rc;
}
