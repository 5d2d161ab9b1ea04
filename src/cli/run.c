/* SPDX-License-Identifier: MIT */
/*
 * percpu run: a program on the per-CPU allocator.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/stat.h"

static const char help_text[] =
	"Usage: percpu run [OPTION...] [--] PROGRAM [ARGUMENT...]\n"
	"Run a program whose memory comes from percpu's allocator, and those that it starts.\n"
	"\n"
	"      --stats         tell on standard error at the end how much memory it had\n"
	"      --option OPTION hand an option to the allocator: cache=SIZE is what the magazines of one CPU may hold\n"
	"  -h, --help          this text\n"
	"\n"
	"Exits as the program does; with 125 if it was not started, 126 if it cannot be executed, 127 if it was not found.\n";

/* @name becomes "@value@between@itself". False: no memory. */
static bool prepend(const char *name, const char *value, const char *between)
{
	const char *old = getenv(name);
	char *list = NULL;
	bool ok;

	if (!old || !*old)
		return !setenv(name, value, 1);
	ok = asprintf(&list, "%s%s%s", value, between, old) >= 0 && !setenv(name, list, 1);
	free(list);
	return ok;
}

int percpu_run_main(int argc, char **argv)
{
	enum { OPTION_STATS = 256, OPTION_OPTION };
	static const struct option options[] = { { "stats", no_argument, NULL, OPTION_STATS },
						 { "option", required_argument, NULL, OPTION_OPTION },
						 { "help", no_argument, NULL, 'h' },
						 { NULL, 0, NULL, 0 } };
	char allocator[4096], *path;
	bool ok = true;
	int c, rc;

	while ((c = getopt_long(argc, argv, "+:h", options, NULL)) != -1) {
		switch (c) {
		case OPTION_STATS:
			ok &= prepend("PERCPU_MALLOC", "stats", ",");
			break;
		case OPTION_OPTION:
			ok &= prepend("PERCPU_MALLOC", optarg, ",");
			break;
		case 'h':
			fputs(help_text, stdout);
			return cli_close_stdout();
		default:
			return cli_bad_option("run", c, argv);
		}
	}
	if (optind == argc)
		return cli_usage("run", "no program given");
	rc = cli_find_object("../malloc/libpercpu-malloc.so", "libpercpu-malloc.so", allocator, sizeof(allocator));
	if (rc) {
		cli_complain("cannot find the allocator %s: %s", allocator, strerror(-rc));
		return EXIT_REFUSED;
	}
	rc = target_find(argv[optind], &path);
	if (rc)
		return rc;
	if (!ok || !prepend("LD_PRELOAD", allocator, ":")) {
		cli_complain("%s", strerror(ENOMEM));
		return EXIT_REFUSED;
	}
	execv(path, argv + optind);
	rc = errno;
	cli_complain("cannot execute %s: %s", path, strerror(rc));
	return rc == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXEC;
}
