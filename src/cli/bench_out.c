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

/* Columns that only some benches fill: where none of these was measured, they are not there. */
struct extras {
	bool talk, tail, p999, unfair, resident, peak, idle;
};

static struct extras extras_of(const struct bench_results *results)
{
	struct extras extras = { false };

	for (size_t i = 0; i < results->count; i++) {
		const struct bench_cell *cell = &results->cells[i];

		extras.talk = extras.talk || !cell->bench->group;
		extras.tail = extras.tail || cell->p9999 > 0;
		extras.p999 = extras.p999 || cell->p999 > 0;
		extras.unfair = extras.unfair || cell->unfairness > 0;
		extras.resident = extras.resident || cell->resident_ratio > 0;
		extras.peak = extras.peak || cell->peak_kib;
		extras.idle = extras.idle || cell->idle_kib;
	}
	return extras;
}

static void format_ratio(char text[32], double ratio)
{
	snprintf(text, 32, ratio < 10 ? "%.2fx" : ratio < 100 ? "%.1fx" : "%.0fx", ratio);
}

enum {
	COL_BENCH,
	COL_SUBJECT,
	COL_TALK_NS,
	COL_TALK_RATIO,
	COL_THREADS,
	COL_BEST,
	COL_MEDIAN,
	COL_RATIO,
	COL_P999,
	COL_TAIL,
	COL_UNFAIR,
	COL_RESIDENT,
	COL_PEAK,
	COL_IDLE,
	COLUMNS
};

static int set_extra(struct libscols_line *line, size_t column, const char *format, double value)
{
	char text[32];

	if (!(value > 0))
		return 0;
	snprintf(text, sizeof(text), format, value);
	return scols_line_set_data(line, column, text);
}

/* @places: the columns' numbers in this table. */
static int add_extras(struct libscols_line *line, const struct bench_cell *cell, const size_t *places)
{
	int rc = 0;

	if (places[COL_P999])
		rc = set_extra(line, places[COL_P999], "%.0f", cell->p999);
	if (places[COL_TAIL])
		rc = rc ? rc : set_extra(line, places[COL_TAIL], "%.0f", cell->p9999);
	if (places[COL_UNFAIR])
		rc = rc ? rc : set_extra(line, places[COL_UNFAIR], "%.2f", cell->unfairness);
	if (places[COL_RESIDENT])
		rc = rc ? rc : set_extra(line, places[COL_RESIDENT], "%.2f", cell->resident_ratio);
	if (places[COL_PEAK])
		rc = rc ? rc : set_extra(line, places[COL_PEAK], "%.0f", (double)cell->peak_kib);
	if (places[COL_IDLE])
		rc = rc ? rc : set_extra(line, places[COL_IDLE], "%.0f", (double)cell->idle_kib);
	return rc;
}

static int add_row(struct libscols_table *table, const struct bench_results *results, const struct bench_cell *cell,
		   const size_t *places)
{
	struct libscols_line *line = scols_table_new_line(table, NULL);
	char text[32];
	int rc;

	if (!line)
		return -ENOMEM;
	rc = scols_line_set_data(line, places[COL_BENCH], cell->bench->name);
	rc = rc ? rc : scols_line_set_data(line, places[COL_SUBJECT], cell->subject->name);
	snprintf(text, sizeof(text), "%u", cell->threads);
	rc = rc ? rc : scols_line_set_data(line, places[COL_THREADS], text);
	if (cell->threads == 1 && cell->subject->published_ns > 0) {
		snprintf(text, sizeof(text), "%.1f", cell->subject->published_ns);
		rc = rc ? rc : scols_line_set_data(line, places[COL_TALK_NS], text);
		rc = rc ? rc : scols_line_set_data(line, places[COL_TALK_RATIO], cell->subject->published_ratio);
	}
	if (cell->skipped || *cell->failed) {
		rc = rc ? rc : scols_line_set_data(line, places[COL_BEST], cell->skipped ? "-" : "failed");
		rc = rc ? rc : scols_line_set_data(line, places[COL_MEDIAN], "-");
		return rc ? rc : scols_line_set_data(line, places[COL_RATIO], "-");
	}
	format_ns(text, cell->best);
	rc = rc ? rc : scols_line_set_data(line, places[COL_BEST], text);
	format_ns(text, cell->median);
	rc = rc ? rc : scols_line_set_data(line, places[COL_MEDIAN], text);
	if (measure_of(results, cell) > 0)
		format_ratio(text, cell->best / measure_of(results, cell));
	else
		strcpy(text, "-");
	rc = rc ? rc : scols_line_set_data(line, places[COL_RATIO], text);
	return rc ? rc : add_extras(line, cell, places);
}

/* Whether the same reason stands before. */
static bool told(const struct bench_results *results, size_t at)
{
	for (size_t i = 0; i < at; i++)
		if (results->cells[i].skipped == results->cells[at].skipped)
			return true;
	return false;
}

/* Whether nobody could run, for the same reason. */
static bool is_for_all(const struct bench_results *results, const struct bench_cell *one)
{
	for (size_t i = 0; i < results->count; i++)
		if (results->cells[i].bench == one->bench && results->cells[i].skipped != one->skipped)
			return false;
	return true;
}

/* Each rival that could not run, once, with the reason: it is the same for every number of threads and of its group. */
static void tell_skipped(FILE *out, const struct bench_results *results)
{
	for (size_t i = 0; i < results->count; i++) {
		const struct bench_cell *cell = &results->cells[i];

		if (*cell->failed)
			fprintf(out, "failed: %s %s, %u thread%s: %s\n", cell->bench->name, cell->subject->name,
				cell->threads, cell->threads > 1 ? "s" : "", cell->failed);
		else if (cell->skipped && cell->bench->group && is_for_all(results, cell)) {
			if (cell->subject == cell->bench->subjects)
				fprintf(out, "not measured: %s: %s\n", cell->bench->name, cell->skipped);
		} else if (cell->skipped && cell->bench->group && !told(results, i))
			fprintf(out, "not measured: %s %s: %s\n", cell->bench->group, cell->subject->name,
				cell->skipped);
		else if (cell->skipped && !cell->bench->group && cell->threads == 1)
			fprintf(out, "not measured: %s %s: %s\n", cell->bench->name, cell->subject->name,
				cell->skipped);
	}
}

/* How benches were done for want of time. */
static void tell_notes(FILE *out, const struct bench_results *results)
{
	const struct bench_cell *last = NULL;

	for (size_t i = 0; i < results->count; i++) {
		const struct bench_cell *cell = &results->cells[i];

		if (!*cell->note || (last && last->bench == cell->bench && last->threads == cell->threads))
			continue;
		fprintf(out, "%s, %u thread%s: %s\n", cell->bench->name, cell->threads, cell->threads > 1 ? "s" : "",
			cell->note);
		last = cell;
	}
}

/* The allocators over all rows, where there are several. */
static void tell_means(FILE *out, const struct bench_results *results)
{
	double time = bench_malloc_beside_best(results, false), memory = bench_malloc_beside_best(results, true);
	const struct bench_subject *subject = bench_malloc[BENCH_MALLOC_RANDOM].subjects;
	size_t count = 0, here;

	for (; subject->name; subject++) {
		double ns, kib;

		here = bench_malloc_means(results, subject->name, &ns, &kib);
		if (here < 2)
			continue;
		if (!count)
			fprintf(out, "geometric means of %zu malloc results, time and peak memory:", here);
		fprintf(out, "%s %s %.1f ns %.1f MiB", count ? "," : "", subject->name, ns, kib / 1024);
		count = here;
	}
	if (count)
		fputc('\n', out);
	if (count && time > 0)
		fprintf(out, "percpu beside the best rival of each: %.2fx in time, %.2fx in peak memory\n", time,
			memory);
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
		[COL_P999] = { "P99.9 NS", SCOLS_FL_RIGHT },
		[COL_TAIL] = { "P99.99 NS", SCOLS_FL_RIGHT },
		[COL_UNFAIR] = { "MAX/MIN", SCOLS_FL_RIGHT },
		[COL_RESIDENT] = { "RSS/LIVE", SCOLS_FL_RIGHT },
		[COL_PEAK] = { "PEAK KIB", SCOLS_FL_RIGHT },
		[COL_IDLE] = { "IDLE KIB", SCOLS_FL_RIGHT },
	};
	struct extras extras = extras_of(results);
	const bool there[COLUMNS] = {
		[COL_BENCH] = true,          [COL_SUBJECT] = true,
		[COL_TALK_NS] = extras.talk, [COL_TALK_RATIO] = extras.talk,
		[COL_THREADS] = true,        [COL_BEST] = true,
		[COL_MEDIAN] = true,         [COL_RATIO] = true,
		[COL_P999] = extras.p999,    [COL_UNFAIR] = extras.unfair,
		[COL_TAIL] = extras.tail,    [COL_RESIDENT] = extras.resident,
		[COL_PEAK] = extras.peak,    [COL_IDLE] = extras.idle,
	};
	size_t places[COLUMNS] = { 0 }, used = 0;
	struct libscols_table *table = scols_new_table();
	char machine[320];
	int rc = table ? 0 : -ENOMEM;

	bench_machine(machine, sizeof(machine));
	fprintf(out, "%s\nns per operation and thread%s\n\n", machine,
		extras.talk ? "; columns 2018: the restartable-sequences talk of that year, Xeon E5-2630 v3, 1 thread"
			    : "");
	for (size_t i = 0; i < COLUMNS && !rc; i++) {
		if (!there[i])
			continue;
		places[i] = used++;
		rc = scols_table_new_column(table, columns[i].name, 0, columns[i].flags) ? 0 : -ENOMEM;
	}
	for (size_t i = 0; i < results->count && !rc; i++)
		rc = add_row(table, results, &results->cells[i], places);
	if (!rc) {
		scols_table_set_stream(table, out);
		rc = scols_print_table(table);
	}
	scols_unref_table(table);
	if (!rc) {
		tell_means(out, results);
		tell_notes(out, results);
		tell_skipped(out, results);
	}
	if (!rc && (fflush(out) || ferror(out)))
		rc = errno ? -errno : -EIO;
	return rc;
}

/* Three decimals: a picosecond is far below what can be measured. */
static json_t *json_ns(double ns)
{
	return json_real((double)(uint64_t)(ns * 1000 + 0.5) / 1000);
}

/* What an allocator said before it failed need not be UTF-8. */
static json_t *json_text(const char *text)
{
	json_t *string = json_string(text);

	return string ? string : json_string("fails, and says so in no UTF-8");
}

static int json_extras(json_t *object, const struct bench_cell *cell)
{
	int rc = 0;

	if (cell->p9999 > 0)
		rc = json_object_set_new(object, "p9999_ns", json_ns(cell->p9999));
	if (cell->p999 > 0)
		rc = rc ? rc : json_object_set_new(object, "p999_ns", json_ns(cell->p999));
	if (cell->unfairness > 0)
		rc = rc ? rc : json_object_set_new(object, "max_per_min", json_ns(cell->unfairness));
	if (cell->resident_ratio > 0)
		rc = rc ? rc : json_object_set_new(object, "resident_per_live", json_ns(cell->resident_ratio));
	if (cell->peak_kib)
		rc = rc ? rc : json_object_set_new(object, "peak_kib", json_integer((json_int_t)cell->peak_kib));
	if (cell->idle_kib)
		rc = rc ? rc : json_object_set_new(object, "idle_kib", json_integer((json_int_t)cell->idle_kib));
	if (*cell->note)
		rc = rc ? rc : json_object_set_new(object, "note", json_string(cell->note));
	return rc;
}

static json_t *json_cell(const struct bench_cell *cell)
{
	json_t *object = json_pack("{s:s, s:s, s:i}", "bench", cell->bench->name, "subject", cell->subject->name,
				   "threads", (int)cell->threads);
	int rc = !object;

	if (cell->skipped) {
		rc = rc ? rc : json_object_set_new(object, "skipped", json_string(cell->skipped));
	} else if (*cell->failed) {
		rc = rc ? rc : json_object_set_new(object, "failed", json_text(cell->failed));
	} else {
		rc = rc ? rc : json_object_set_new(object, "best_ns", json_ns(cell->best));
		rc = rc ? rc : json_object_set_new(object, "median_ns", json_ns(cell->median));
		rc = rc ? rc : json_extras(object, cell);
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
