/* SPDX-License-Identifier: MIT */
/* percpu info: what this machine and kernel give, how the library works with it, and what is missing. */
#include <getopt.h>
#include <jansson.h>
#include <libsmartcols.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include <percpu/rseq.h>

#include "cli/cli.h"

static const char help_text[] = "Usage: percpu info [--json]\n"
				"\n"
				"Tells how libpercpu works on this machine and kernel, why, and what is missing.\n"
				"\n"
				"  --json  as a JSON object\n";

/* What a kernel may lack, and what that costs. */
static size_t find_missing(const struct percpu_description *is, const char *missing[static 5])
{
	size_t n = 0;

	if (is->mode == PERCPU_MODE_NONE)
		missing[n++] = "restartable sequences: counters add with an atomic instruction (some 10 times slower), "
			       "other operations take a lock";
	if (!is->concurrency_id)
		missing[n++] = "the concurrency id: data is indexed by CPU number, so a program with few threads on "
			       "many CPUs uses more copies";
	if (!is->fence)
		missing[n++] = "the fence (membarrier for restartable sequences): without it no sections are used, "
			       "as nobody could drain or steal";
	if (!is->node_id)
		missing[n++] = "the NUMA node in memory: to read it costs a call of getcpu (some 10 times slower)";
	if (!is->slice_extension)
		missing[n++] = "the time-slice extension (Linux 7.0): a lock holder may be preempted at any moment; "
			       "nothing of this version uses it";
	return n;
}

struct field {
	const char *name;
	const char *label;
	enum { TEXT, NUMBER, TRUTH } kind;
	const char *text;
	unsigned number;
};

static int print_json(const struct field *fields, size_t n, const char *const *missing, size_t missed)
{
	json_t *root = json_object();
	json_t *list = json_array();
	int rc;

	for (size_t i = 0; i < n; i++) {
		const struct field *field = &fields[i];

		json_object_set_new(root, field->name,
				    field->kind == TEXT     ? json_string(field->text)
				    : field->kind == NUMBER ? json_integer(field->number)
							    : json_boolean(field->number));
	}
	for (size_t i = 0; i < missed; i++)
		json_array_append_new(list, json_string(missing[i]));
	json_object_set_new(root, "missing", list);
	rc = json_dumpf(root, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(root);
	return rc ? (cli_close_stdout(), EXIT_FAILED) : cli_close_stdout();
}

static int print_table(const struct field *fields, size_t n, const char *const *missing, size_t missed)
{
	struct libscols_table *table = scols_new_table();
	char *text = NULL;

	if (table) {
		scols_table_set_termforce(table, SCOLS_TERMFORCE_NEVER);
		scols_table_enable_noheadings(table, 1);
		scols_table_new_column(table, "WHAT", 0, 0);
		scols_table_new_column(table, "IS", 0, 0);
	}
	for (size_t i = 0; table && i < n + missed; i++) {
		struct libscols_line *line = scols_table_new_line(table, NULL);
		char number[16];

		if (!line)
			break;
		if (i >= n) {
			scols_line_set_data(line, 0, i == n ? "missing" : "");
			scols_line_set_data(line, 1, missing[i - n]);
			continue;
		}
		snprintf(number, sizeof(number), "%u", fields[i].number);
		scols_line_set_data(line, 0, fields[i].label);
		scols_line_set_data(line, 1,
				    fields[i].kind == TEXT     ? fields[i].text
				    : fields[i].kind == NUMBER ? number
				    : fields[i].number         ? "yes"
							       : "no");
	}
	if (!table || scols_print_table_to_string(table, &text) || !text) {
		scols_unref_table(table);
		cli_complain("no memory");
		return EXIT_FAILED;
	}
	puts(text);
	free(text);
	scols_unref_table(table);
	return cli_close_stdout();
}

int percpu_info_main(int argc, char **argv)
{
	static const struct option known[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct percpu_description is;
	struct utsname system;
	const char *missing[5];
	bool json = false;
	size_t missed;
	int option;

	opterr = 0;
	while ((option = getopt_long(argc, argv, ":h", known, NULL)) != -1) {
		switch (option) {
		case 'j':
			json = true;
			break;
		case 'h':
			fputs(help_text, stdout);
			return cli_close_stdout();
		default:
			return cli_bad_option("info", option, argv);
		}
	}
	if (optind != argc)
		return cli_usage("info", "unexpected argument %s", argv[optind]);
	percpu_describe(&is);
	if (uname(&system))
		strcpy(system.release, "unknown");
	missed = find_missing(&is, missing);

	const struct field fields[] = {
		{ "version", "version", TEXT, percpu_version(), 0 },
		{ "kernel", "kernel", TEXT, system.release, 0 },
		{ "arch", "port", TEXT, is.arch, 0 },
		{ "mode", "mode", TEXT, is.mode_name, 0 },
		{ "reason", "why", TEXT, is.reason, 0 },
		{ "index_kind", "index", TEXT, is.index_kind, 0 },
		{ "possible_cpus", "possible CPUs", NUMBER, NULL, is.possible_cpus },
		{ "topology", "read from", TEXT, is.topology, 0 },
		{ "feature_size", "rseq feature size", NUMBER, NULL, is.feature_size },
		{ "registered_size", "registered size", NUMBER, NULL, is.registered_size },
		{ "v2", "rseq version 2", TRUTH, NULL, is.v2 },
		{ "fence", "fence", TRUTH, NULL, is.fence },
		{ "concurrency_id", "concurrency id", TRUTH, NULL, is.concurrency_id },
		{ "node_id", "node id", TRUTH, NULL, is.node_id },
		{ "slice_extension", "slice extension", TRUTH, NULL, is.slice_extension },
		{ "thread_registered", "thread registered", TRUTH, NULL, is.thread_registered },
	};

	return (json ? print_json : print_table)(fields, sizeof(fields) / sizeof(fields[0]), missing, missed);
}
