/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: the table for people, the JSON for programs.
 */
#include <errno.h>
#include <jansson.h>
#include <libsmartcols/libsmartcols.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "cli/bench.h"

static void cpu_model(char *model, size_t size)
{
	FILE *file = fopen("/proc/cpuinfo", "re");
	char *line = NULL;
	size_t room = 0;

	snprintf(model, size, "%s", PERCPU__ARCH_NAME);
	while (file && getline(&line, &room, file) > 0) {
		char *colon = strchr(line, ':');

		if (!strncmp(line, "model name", 10) && colon) {
			snprintf(model, size, "%s", colon + 1 + strspn(colon + 1, " \t"));
			model[strcspn(model, "\n")] = '\0';
			break;
		}
	}
	free(line);
	if (file)
		fclose(file);
}

void bench_machine(char *line, size_t size)
{
	struct percpu_description how = { .mode_name = "?" };
	struct utsname system = { .release = "?" };
	char model[128];
	unsigned cpus = bench_cpus();

	cpu_model(model, sizeof(model));
	uname(&system);
	percpu_describe(&how);
	snprintf(line, size, "%s, %u CPU%s, Linux %s, mode %s", model, cpus, cpus == 1 ? "" : "s", system.release,
		 how.mode_name);
}

/* The time of the subject that ratios are relative to: the first of the same bench and number of threads. */
static double measure_of(const struct bench_results *results, const struct bench_cell *cell)
{
	for (size_t i = 0; i < results->count; i++) {
		const struct bench_cell *other = &results->cells[i];

		if (other->bench == cell->bench && other->threads == cell->threads &&
		    other->subject == cell->bench->subjects)
			return other->best;
	}
	return 0;
}

static void format_ns(char text[32], double ns)
{
	snprintf(text, 32, ns < 10 ? "%.2f" : ns < 100 ? "%.1f" : "%.0f", ns);
}

static void format_ratio(char text[32], double ratio)
{
	snprintf(text, 32, ratio < 10 ? "%.2fx" : ratio < 100 ? "%.1fx" : "%.0fx", ratio);
}

enum { COL_BENCH, COL_SUBJECT, COL_TALK_NS, COL_TALK_RATIO, COL_THREADS, COL_BEST, COL_MEDIAN, COL_RATIO };

static int add_row(struct libscols_table *table, const struct bench_results *results, const struct bench_cell *cell)
{
	struct libscols_line *line = scols_table_new_line(table, NULL);
	char text[32];
	int rc;

	if (!line)
		return -ENOMEM;
	rc = scols_line_set_data(line, COL_BENCH, cell->bench->name);
	rc = rc ? rc : scols_line_set_data(line, COL_SUBJECT, cell->subject->name);
	snprintf(text, sizeof(text), "%u", cell->threads);
	rc = rc ? rc : scols_line_set_data(line, COL_THREADS, text);
	if (cell->threads == 1 && cell->subject->published_ns > 0) {
		snprintf(text, sizeof(text), "%.1f", cell->subject->published_ns);
		rc = rc ? rc : scols_line_set_data(line, COL_TALK_NS, text);
		rc = rc ? rc : scols_line_set_data(line, COL_TALK_RATIO, cell->subject->published_ratio);
	}
	if (cell->skipped) {
		rc = rc ? rc : scols_line_set_data(line, COL_BEST, "-");
		rc = rc ? rc : scols_line_set_data(line, COL_MEDIAN, "-");
		return rc ? rc : scols_line_set_data(line, COL_RATIO, "-");
	}
	format_ns(text, cell->best);
	rc = rc ? rc : scols_line_set_data(line, COL_BEST, text);
	format_ns(text, cell->median);
	rc = rc ? rc : scols_line_set_data(line, COL_MEDIAN, text);
	format_ratio(text, cell->best / measure_of(results, cell));
	return rc ? rc : scols_line_set_data(line, COL_RATIO, text);
}

/* Each rival that could not run, once, with the reason: it is the same for every number of threads. */
static void tell_skipped(FILE *out, const struct bench_results *results)
{
	for (size_t i = 0; i < results->count; i++) {
		const struct bench_cell *cell = &results->cells[i];

		if (cell->skipped && cell->threads == 1)
			fprintf(out, "not measured: %s %s: %s\n", cell->bench->name, cell->subject->name,
				cell->skipped);
	}
}

int bench_write_table(FILE *out, const struct bench_results *results)
{
	static const struct {
		const char *name;
		int flags;
	} columns[] = {
		[COL_BENCH] = { "BENCH", 0 },
		[COL_SUBJECT] = { "SUBJECT", 0 },
		[COL_TALK_NS] = { "2018 NS", SCOLS_FL_RIGHT },
		[COL_TALK_RATIO] = { "2018 RATIO", SCOLS_FL_RIGHT },
		[COL_THREADS] = { "THREADS", SCOLS_FL_RIGHT },
		[COL_BEST] = { "BEST NS", SCOLS_FL_RIGHT },
		[COL_MEDIAN] = { "MEDIAN NS", SCOLS_FL_RIGHT },
		[COL_RATIO] = { "x PERCPU", SCOLS_FL_RIGHT },
	};
	struct libscols_table *table = scols_new_table();
	char machine[320];
	int rc = table ? 0 : -ENOMEM;

	bench_machine(machine, sizeof(machine));
	fprintf(out, "%s\nns per operation and thread; columns 2018: %s\n\n", machine,
		"the restartable-sequences talk of that year, Xeon E5-2630 v3, 1 thread");
	for (size_t i = 0; i < sizeof(columns) / sizeof(columns[0]) && !rc; i++)
		rc = scols_table_new_column(table, columns[i].name, 0, columns[i].flags) ? 0 : -ENOMEM;
	for (size_t i = 0; i < results->count && !rc; i++)
		rc = add_row(table, results, &results->cells[i]);
	if (!rc) {
		scols_table_set_stream(table, out);
		rc = scols_print_table(table);
	}
	scols_unref_table(table);
	if (!rc)
		tell_skipped(out, results);
	if (!rc && (fflush(out) || ferror(out)))
		rc = errno ? -errno : -EIO;
	return rc;
}

/* Three decimals: a picosecond is far below what can be measured. */
static json_t *json_ns(double ns)
{
	return json_real((double)(uint64_t)(ns * 1000 + 0.5) / 1000);
}

static json_t *json_cell(const struct bench_cell *cell)
{
	json_t *object = json_pack("{s:s, s:s, s:i}", "bench", cell->bench->name, "subject", cell->subject->name,
				   "threads", (int)cell->threads);
	int rc = !object;

	if (cell->skipped) {
		rc = rc ? rc : json_object_set_new(object, "skipped", json_string(cell->skipped));
	} else {
		rc = rc ? rc : json_object_set_new(object, "best_ns", json_ns(cell->best));
		rc = rc ? rc : json_object_set_new(object, "median_ns", json_ns(cell->median));
	}
	if (!rc)
		return object;
	json_decref(object);
	return NULL;
}

/* An array, one cell in a line. */
int bench_write_json(FILE *out, const struct bench_results *results)
{
	int rc = 0;

	for (size_t i = 0; i < results->count && !rc; i++) {
		json_t *object = json_cell(&results->cells[i]);

		errno = 0;
		if (!object)
			rc = -ENOMEM;
		else if (fputs(i ? ",\n" : "[\n", out) == EOF || json_dumpf(object, out, JSON_REAL_PRECISION(10)))
			rc = errno ? -errno : -EIO;
		json_decref(object);
	}
	errno = 0;
	if (!rc && (fputs("\n]\n", out) == EOF || fflush(out)))
		rc = errno ? -errno : -EIO;
	return rc;
}
