/* SPDX-License-Identifier: MIT */
/* percpu-lint: options, files, exit status. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <percpu/base.h>

#include "lint/input.h"
#include "lint/report.h"

enum { EXIT_CLEAN = 0, EXIT_FINDINGS = 1, EXIT_TROUBLE = 2 };

static const char help_text[] = "Usage: percpu-lint [OPTION...] OBJECT...\n"
				"\n"
				"Looks at every restartable-sequence section in object files, archives, libraries\n"
				"and programs for x86-64 and aarch64, and tells what would break it.\n"
				"\n"
				"  -v, --verbose           list every section\n"
				"      --json              the same as a JSON object\n"
				"      --allow store[:SYMBOL]\n"
				"                          do not count findings of this rule (of this section)\n"
				"      --require-sections  to find no section at all is a failure\n"
				"      --version           the version\n"
				"      --help              this text\n"
				"\n"
				"Exit status: 0 nothing found, 1 something found, 2 something could not be read.\n"
				"The rules, and what to do when one is broken: percpu-lint(1).\n";

enum { OPTION_JSON = 256, OPTION_ALLOW, OPTION_REQUIRE, OPTION_VERSION };

static const struct option options[] = {
	{ "verbose", no_argument, NULL, 'v' },
	{ "json", no_argument, NULL, OPTION_JSON },
	{ "allow", required_argument, NULL, OPTION_ALLOW },
	{ "require-sections", no_argument, NULL, OPTION_REQUIRE },
	{ "version", no_argument, NULL, OPTION_VERSION },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

static int usage(const char *what, const char *which)
{
	fprintf(stderr, "percpu-lint: %s%s; see \"percpu-lint --help\"\n", what, which);
	return EXIT_TROUBLE;
}

/* "store" or "store:SYMBOL": the one rule that guesses. */
static bool parse_allowance(char *text, struct allowance *out)
{
	char *colon = strchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : strlen(text);

	if (length != strlen(lint_rule_names[RULE_STORE]) || strncmp(text, lint_rule_names[RULE_STORE], length))
		return false;
	*out = (struct allowance){ .rule = RULE_STORE, .symbol = colon ? colon + 1 : NULL };
	return !colon || colon[1];
}

static int judge_object(void *context, const char *name, void *bytes, size_t size)
{
	struct report *report = context;
	struct image image;
	const char *why = NULL;
	int r = image_open(&image, name, bytes, size, &why);

	if (!r) {
		r = report_image(report, &image);
		why = "there is not enough memory";
	}
	image_close(&image);
	if (r) {
		fflush(stdout);
		fprintf(stderr, "percpu-lint: %s: %s\n", name, why);
	}
	return r == -ENOMEM ? r : r ? 1 : 0;
}

/* Whether all of it could be read. */
static bool judge_file(struct report *report, const char *file)
{
	const char *why;
	int r = input_read(file, judge_object, report, &why);

	if (r < 0) {
		fflush(stdout);
		fprintf(stderr, "percpu-lint: %s: %s\n", file, why ? why : strerror(-r));
	}
	return r == 0;
}

struct settings {
	struct report report;
	bool require;
};

/* The exit status if that was all, or -1. */
static int read_options(int argc, char **argv, struct allowance *allowed, struct settings *settings)
{
	int option;

	opterr = 0;
	while ((option = getopt_long(argc, argv, ":hv", options, NULL)) != -1) {
		switch (option) {
		case 'v':
			settings->report.verbose = true;
			break;
		case OPTION_JSON:
			settings->report.json = true;
			break;
		case OPTION_REQUIRE:
			settings->require = true;
			break;
		case OPTION_ALLOW:
			if (!parse_allowance(optarg, &allowed[settings->report.allowed_count++]))
				return usage("only store or store:SYMBOL can be allowed, not ", optarg);
			break;
		case OPTION_VERSION:
			printf("percpu-lint %d.%d.%d\n", PERCPU_VERSION_MAJOR, PERCPU_VERSION_MINOR,
			       PERCPU_VERSION_PATCH);
			return fflush(stdout) ? EXIT_TROUBLE : EXIT_CLEAN;
		case 'h':
			fputs(help_text, stdout);
			return fflush(stdout) ? EXIT_TROUBLE : EXIT_CLEAN;
		case ':':
			return usage("a value is missing after ", argv[optind - 1]);
		default:
			return usage("unknown option ", argv[optind - 1]);
		}
	}
	return optind < argc ? -1 : usage("which objects?", "");
}

static int judge_files(int argc, char **argv, struct settings *settings)
{
	struct report *report = &settings->report;
	bool trouble = false;

	if (elf_version(EV_CURRENT) == EV_NONE || disasm_open() || report_begin(report)) {
		fputs("percpu-lint: libelf, capstone or jansson do not work here\n", stderr);
		return EXIT_TROUBLE;
	}
	for (int i = optind; i < argc; i++)
		trouble |= !judge_file(report, argv[i]);
	if (report_end(report) || fflush(stdout) || ferror(stdout)) {
		fputs("percpu-lint: cannot write to standard output\n", stderr);
		trouble = true;
	}
	disasm_close();
	if (trouble)
		return EXIT_TROUBLE;
	if (settings->require && !report->sections) {
		fputs("percpu-lint: there is no section in these objects\n", stderr);
		return EXIT_FINDINGS;
	}
	return report->findings ? EXIT_FINDINGS : EXIT_CLEAN;
}

int main(int argc, char **argv)
{
	struct allowance *allowed = calloc((size_t)argc + 1, sizeof(*allowed));
	struct settings settings = { .report = { .allowed = allowed } };
	int status = EXIT_TROUBLE;

	if (allowed) {
		status = read_options(argc, argv, allowed, &settings);
		if (status < 0)
			status = judge_files(argc, argv, &settings);
		free(allowed);
	}
	return status;
}
