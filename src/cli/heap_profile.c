/* SPDX-License-Identifier: MIT */
/*
 * percpu heap-profile: what a heap profile of the allocator says, with names in place of addresses.
 *
 * Names come from the files that the profile says were mapped, and from their debugging information where that is installed.
 */
#include <elfutils/libdwfl.h>
#include <errno.h>
#include <getopt.h>
#include <libsmartcols/libsmartcols.h>
#include <math.h>
#include <search.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

#define MOST_FRAMES 256

static const char help_text[] =
	"Usage: percpu heap-profile [OPTION...] FILE\n"
	"\n"
	"Says which functions have allocated what is in use, according to FILE, which \"percpu run --heap-profile FILE\" wrote.\n"
	"\n"
	"      --allocated  all that was allocated so far instead, whether it was freed or not\n"
	"      --folded     stacks, outermost function first, and their bytes: what programs for flame graphs read\n"
	"      --most N     no more than N functions (default 30; 0: all)\n"
	"  -h, --help       this text\n";

/* By function, or by stack. */
struct row {
	char *name;
	double bytes, objects;
};

static struct {
	bool allocated, folded;
	unsigned long most;
} options = { .most = 30 };

static struct row *rows;
static size_t row_count;
static Dwfl *modules;

struct place {
	uintptr_t address;
	char *name;
};

static int by_address(const void *a, const void *b)
{
	const struct place *one = a, *other = b;

	return (one->address > other->address) - (one->address < other->address);
}

static char *find_name(uintptr_t address)
{
	Dwfl_Module *module = modules ? dwfl_addrmodule(modules, address) : NULL;
	const char *name = module ? dwfl_module_addrname(module, address) : NULL, *file;
	Dwarf_Addr start;
	char *text = NULL;

	/* Without its version. */
	if (name)
		return strndup(name, strcspn(name, "@"));
	file = module ? dwfl_module_info(module, NULL, &start, NULL, NULL, NULL, NULL, NULL) : NULL;
	if (file && strrchr(file, '/'))
		file = strrchr(file, '/') + 1;
	if ((file ? asprintf(&text, "%s+0x%lx", file, (unsigned long)(address - start))
		  : asprintf(&text, "0x%lx", (unsigned long)address)) < 0)
		return NULL;
	return text;
}

/* The function at an address; NULL: no memory. */
static const char *name_of(uintptr_t address)
{
	static void *known;
	struct place *place = malloc(sizeof(*place)), **found;

	if (!place)
		return NULL;
	place->address = address;
	found = tsearch(place, &known, by_address);
	if (!found) {
		free(place);
		return NULL;
	}
	if (*found != place)
		free(place);
	else
		place->name = find_name(address);
	return (*found)->name;
}

/* Outermost function first, or only the innermost. NULL: no memory. */
static char *name_stack(const uintptr_t *frames, unsigned n)
{
	size_t size = 0;
	char *text = NULL;
	FILE *out;

	if (!options.folded)
		return n && name_of(frames[0]) ? strdup(name_of(frames[0])) : strdup("(unknown)");
	out = open_memstream(&text, &size);
	if (!out)
		return NULL;
	for (unsigned i = n; i > 0; i--)
		fprintf(out, "%s%s", i < n ? ";" : "", name_of(frames[i - 1]) ? name_of(frames[i - 1]) : "?");
	if (!n)
		fputs("(unknown)", out);
	if (fclose(out)) {
		free(text);
		return NULL;
	}
	return text;
}

static bool add_row(const uintptr_t *frames, unsigned n, double bytes, double objects)
{
	struct row *more = rows;

	if (!(row_count & (row_count + 1)))
		more = realloc(rows, (2 * row_count + 2) * sizeof(*rows));
	if (!more)
		return false;
	rows = more;
	rows[row_count] = (struct row){ name_stack(frames, n), bytes, objects };
	return rows[row_count++].name != NULL;
}

/* "LIVE: BYTES [ALL: BYTES] @ ADDRESS...": @interval bytes are between samples. False: no memory. */
static bool read_site(const char *line, double interval, bool *valid)
{
	unsigned long long counts[4], objects, bytes;
	uintptr_t frames[MOST_FRAMES];
	unsigned n = 0;
	char *at, *end;
	int length = 0;
	double scale;

	*valid = sscanf(line, " %llu: %llu [ %llu: %llu] @%n", &counts[0], &counts[1], &counts[2], &counts[3],
			&length) == 4 &&
		 length;
	if (!*valid)
		return true;
	for (at = (char *)(uintptr_t)line + length; n < MOST_FRAMES; at = end) {
		uintptr_t address = strtoull(at, &end, 16);

		if (end == at)
			break;
		/* But for the first they are return addresses. */
		frames[n] = address - (n != 0);
		n++;
	}
	objects = counts[options.allocated ? 2 : 0];
	bytes = counts[options.allocated ? 3 : 1];
	if (!objects)
		return true;
	/* How many such objects stand behind each that became a sample. */
	scale = 1 / -expm1(-((double)bytes / (double)objects) / interval);
	/* (Of no bytes at all: as if each were one.) */
	if (!bytes)
		scale = interval;
	return add_row(frames, n, (double)bytes * scale, (double)objects * scale);
}

static int open_modules(FILE *in)
{
	static char *path;
	static const Dwfl_Callbacks callbacks = { .find_elf = dwfl_linux_proc_find_elf,
						  .find_debuginfo = dwfl_standard_find_debuginfo,
						  .debuginfo_path = &path };

	modules = dwfl_begin(&callbacks);
	if (!modules || dwfl_linux_proc_maps_report(modules, in) || dwfl_report_end(modules, NULL, NULL))
		return -EINVAL;
	return 0;
}

/* Two passes: the maps are behind the stacks. Returns 0, -errno, or 1: this is no heap profile. */
static int read_profile(FILE *in)
{
	static const char maps[] = "MAPPED_LIBRARIES:\n";
	unsigned long long interval = 0;
	char *line = NULL;
	size_t size = 0;
	int rc = 1;

	if (getline(&line, &size, in) > 0 && !strncmp(line, "heap profile:", 13) && strstr(line, "heap_v2/"))
		interval = strtoull(strstr(line, "heap_v2/") + 8, NULL, 10);
	while (interval && getline(&line, &size, in) > 0 && rc)
		if (!strcmp(line, maps))
			rc = open_modules(in);
	rewind(in);
	if (!rc && getline(&line, &size, in) < 0)
		rc = 1;
	while (!rc && getline(&line, &size, in) > 0 && *line != '\n') {
		bool valid = false;

		if (!read_site(line, (double)interval, &valid))
			rc = -ENOMEM;
		else if (!valid)
			rc = 1;
	}
	free(line);
	return rc;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct row *)a)->name, ((const struct row *)b)->name);
}

static int by_bytes(const void *a, const void *b)
{
	double one = ((const struct row *)a)->bytes, other = ((const struct row *)b)->bytes;

	return one != other ? (one < other) - (one > other) : by_name(a, b);
}

/* Rows of one name become one. */
static void merge(void)
{
	size_t kept = 0;

	if (!row_count)
		return;
	qsort(rows, row_count, sizeof(*rows), by_name);
	for (size_t i = 1; i < row_count; i++) {
		if (strcmp(rows[kept].name, rows[i].name)) {
			rows[++kept] = rows[i];
			continue;
		}
		rows[kept].bytes += rows[i].bytes;
		rows[kept].objects += rows[i].objects;
		free(rows[i].name);
	}
	row_count = kept + 1;
}

static void put_folded(void)
{
	for (size_t i = 0; i < row_count; i++)
		if (rows[i].bytes >= 0.5)
			printf("%s %.0f\n", rows[i].name, rows[i].bytes);
}

static bool put_cell(struct libscols_line *line, size_t column, const char *format, double value)
{
	char text[40];

	snprintf(text, sizeof(text), format, value);
	return !scols_line_set_data(line, column, text);
}

/* False: no memory. */
static bool put_table(void)
{
	struct libscols_table *table = scols_new_table();
	double all = 0, so_far = 0;
	char *text = NULL;
	bool ok;

	qsort(rows, row_count, sizeof(*rows), by_bytes);
	for (size_t i = 0; i < row_count; i++)
		all += rows[i].bytes;
	ok = table && !scols_table_set_termforce(table, SCOLS_TERMFORCE_NEVER) &&
	     scols_table_new_column(table, options.allocated ? "ALLOCATED" : "IN USE", 0, SCOLS_FL_RIGHT) &&
	     scols_table_new_column(table, "OBJECTS", 0, SCOLS_FL_RIGHT) &&
	     scols_table_new_column(table, "SHARE", 0, SCOLS_FL_RIGHT) &&
	     scols_table_new_column(table, "SO FAR", 0, SCOLS_FL_RIGHT) && scols_table_new_column(table, "BY", 0, 0);
	for (size_t i = 0; ok && i < row_count && (!options.most || i < options.most); i++) {
		struct libscols_line *line = scols_table_new_line(table, NULL);

		so_far += rows[i].bytes;
		ok = line && put_cell(line, 0, "%.0f", rows[i].bytes) && put_cell(line, 1, "%.0f", rows[i].objects) &&
		     put_cell(line, 2, "%.1f%%", 100 * rows[i].bytes / all) &&
		     put_cell(line, 3, "%.1f%%", 100 * so_far / all) && !scols_line_set_data(line, 4, rows[i].name);
	}
	ok = ok && !scols_print_table_to_string(table, &text);
	if (ok)
		printf("%.0f bytes %s, estimated\n\n%s\n", all, options.allocated ? "allocated" : "in use", text);
	free(text);
	scols_unref_table(table);
	return ok;
}

/* 0: FILE is argv[optind]; else the exit status, or -1: done. */
static int parse(int argc, char **argv)
{
	enum { ALLOCATED = 256, FOLDED, MOST };
	static const struct option known[] = { { "allocated", no_argument, NULL, ALLOCATED },
					       { "folded", no_argument, NULL, FOLDED },
					       { "most", required_argument, NULL, MOST },
					       { "help", no_argument, NULL, 'h' },
					       { NULL, 0, NULL, 0 } };
	char *end;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":h", known, NULL)) != -1) {
		switch (c) {
		case ALLOCATED:
			options.allocated = true;
			break;
		case FOLDED:
			options.folded = true;
			break;
		case MOST:
			errno = 0;
			options.most = strtoul(optarg, &end, 10);
			if (*optarg < '0' || *optarg > '9' || *end || errno)
				return cli_usage("heap-profile", "--most needs a number, not \"%s\"", optarg);
			break;
		case 'h':
			fputs(help_text, stdout);
			c = cli_close_stdout();
			return c ? c : -1;
		default:
			return cli_bad_option("heap-profile", c, argv);
		}
	}
	if (optind + 1 != argc)
		return cli_usage("heap-profile", optind < argc ? "only one FILE" : "which FILE?");
	return 0;
}

int percpu_heap_profile_main(int argc, char **argv)
{
	int rc = parse(argc, argv);
	FILE *in;

	if (rc)
		return rc < 0 ? 0 : rc;
	in = fopen(argv[optind], "re");
	if (!in) {
		cli_complain("cannot read %s: %s", argv[optind], strerror(errno));
		return EXIT_FAILED;
	}
	rc = read_profile(in);
	fclose(in);
	if (rc) {
		cli_complain("cannot read %s: %s", argv[optind], rc < 0 ? strerror(-rc) : "it is no heap profile");
		return EXIT_FAILED;
	}
	merge();
	if (options.folded) {
		put_folded();
	} else if (!put_table()) {
		cli_complain("%s", strerror(ENOMEM));
		return EXIT_FAILED;
	}
	return cli_close_stdout();
}
