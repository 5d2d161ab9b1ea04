/* SPDX-License-Identifier: MIT */
/* percpu stat: the options, and the order of things; see stat.h. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/file.h"
#include "cli/stat.h"

#define INTERVAL_MIN 10
#define INTERVAL_MAX 3600000

static const char help_text[] =
	"Usage: percpu stat [OPTION...] [--] PROGRAM [ARGUMENT...]\n"
	"\n"
	"Runs the program and counts, per CPU: allocations by size, frees, mutex operations, condition waits,\n"
	"conversions of time, threads, reads and writes. Children are counted too. Counts go to standard error:\n"
	"live while it runs (a table in a terminal, else lines), and as a table when it has ended.\n"
	"\n"
	"  -i, --interval MS       refresh every MS milliseconds, 10 to 3600000 (1000)\n"
	"  -t, --top               live table also where the program prints on the terminal; busiest first;\n"
	"                          in lines, each CPU too\n"
	"  -q, --quiet             nothing live, only the final table; not even that if the counts go to a FILE\n"
	"      --json FILE         write the final counts to FILE as JSON; \"-\" is standard output\n"
	"      --openmetrics FILE  keep the counts in FILE as OpenMetrics text, renewed while the program runs\n"
	"\n"
	"Exits as the program does; with 125, 126 or 127 if it was not started, 1 if FILE could not be written.\n";

struct state {
	const struct stat_options *options;
	struct run run;
	struct show show;
	struct sample now, before;
	bool failed; /* a file could not be written; said once */
};

static bool parse_interval(const char *text, unsigned *ms)
{
	char *end;
	unsigned long value;

	errno = 0;
	value = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value < INTERVAL_MIN || value > INTERVAL_MAX)
		return false;
	*ms = (unsigned)value;
	return true;
}

/* Sets the program to run; where there is none, returns the exit status. */
static int parse(int argc, char **argv, struct stat_options *options)
{
	enum { JSON = 256, OPENMETRICS };
	static const struct option known[] = {
		{ "interval", required_argument, NULL, 'i' },
		{ "top", no_argument, NULL, 't' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "json", required_argument, NULL, JSON },
		{ "openmetrics", required_argument, NULL, OPENMETRICS },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	opterr = 0;
	while ((option = getopt_long(argc, argv, "+:i:tqh", known, NULL)) != -1) {
		switch (option) {
		case 'i':
			if (!parse_interval(optarg, &options->interval_ms))
				return cli_usage("stat", "-i needs a number of milliseconds from %d to %d, not \"%s\"",
						 INTERVAL_MIN, INTERVAL_MAX, optarg);
			options->interval_given = true;
			break;
		case 't':
			options->top = true;
			break;
		case 'q':
			options->quiet = true;
			break;
		case JSON:
		case OPENMETRICS:
			/* "--json -- PROGRAM": no file means standard output. */
			if (!strcmp(optarg, "--")) {
				optarg = "-";
				optind--;
			}
			if (!*optarg)
				return cli_usage("stat", "the name of a file is empty");
			*(option == JSON ? &options->json : &options->openmetrics) = optarg;
			break;
		case 'h':
			fputs(help_text, stdout);
			return cli_close_stdout();
		default:
			return cli_bad_option("stat", option, argv);
		}
	}
	if (optind == argc)
		return cli_usage("stat", "which program?");
	options->argv = argv + optind;
	return 0;
}

static void tick(void *arg)
{
	struct state *state = arg;
	struct sample swap = state->before;

	state->before = state->now;
	state->now = swap;
	if (sample_take(&state->now, state->run.base, child_seconds(&state->run.child)))
		return;
	show_live(&state->show, &state->now, &state->before);
	/* On standard output once is enough. */
	if (state->options->openmetrics && strcmp(state->options->openmetrics, "-") && !state->failed &&
	    !file_write_openmetrics(state->options->openmetrics, &state->now))
		state->failed = true;
}

static void before_stop(void *arg)
{
	show_clear(&((struct state *)arg)->show);
}

static int report(struct state *state)
{
	const struct stat_options *options = state->options;

	show_clear(&state->show);
	if (sample_take(&state->now, state->run.base, child_seconds(&state->run.child))) {
		cli_complain("no memory for the final counts");
		return EXIT_FAILED;
	}
	if (!session_header(state->run.base)->images)
		cli_complain("%s did not load the counting object: nothing was counted", options->argv[0]);
	if (!options->quiet || (!options->json && !options->openmetrics))
		show_final(&state->show, &state->now);
	if (options->json && !file_write_json(options->json, &state->now, &state->run, options->argv))
		state->failed = true;
	if (options->openmetrics && !state->failed && !file_write_openmetrics(options->openmetrics, &state->now))
		state->failed = true;
	return state->failed ? EXIT_FAILED : child_end(&state->run.child);
}

int percpu_stat_main(int argc, char **argv)
{
	struct stat_options options = { .interval_ms = 1000 };
	struct state state = { .options = &options };
	char *path;
	int rc = parse(argc, argv, &options);

	if (!options.argv)
		return rc;
	rc = target_find(options.argv[0], TARGET_COUNT, &path);
	if (rc)
		return rc;
	if ((options.json && !file_check(options.json)) || (options.openmetrics && !file_check(options.openmetrics))) {
		free(path);
		return EXIT_REFUSED;
	}
	if (sample_init(&state.now) || sample_init(&state.before)) {
		cli_complain("no memory");
		rc = EXIT_REFUSED;
	} else {
		rc = run_prepare(&state.run);
	}
	if (!rc)
		rc = run_start(&state.run, path, options.argv);
	free(path);
	if (!rc) {
		show_init(&state.show, &options);
		child_follow(&state.run.child, options.interval_ms, tick, before_stop, &state);
		rc = report(&state);
	}
	sample_destroy(&state.now);
	sample_destroy(&state.before);
	return rc;
}
