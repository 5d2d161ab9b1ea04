/* SPDX-License-Identifier: MIT */
/* The statistics of the allocator for people, on stderr, as the program's standard output is its own; and as JSON. */
#include <errno.h>
#include <libsmartcols.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/file.h"
#include "cli/run.h"

/* While the program runs, classes with the most memory only. */
#define FEW_CLASSES 8

static void put(const char *text)
{
	size_t n = strlen(text);

	while (n) {
		ssize_t done = write(STDERR_FILENO, text, n);

		if (done >= 0) {
			text += done;
			n -= (size_t)done;
		} else if (errno == EAGAIN) { /* the program made it non-blocking */
			poll(&(struct pollfd){ STDERR_FILENO, POLLOUT, 0 }, 1, 100);
		} else if (errno != EINTR) {
			return;
		}
	}
}

/* As 1023, 4.2K, 10M. */
static void size_text(char text[static 24], uint64_t bytes)
{
	static const char units[] = " KMGTPE";
	double value = (double)bytes;
	unsigned unit = 0;

	for (; value >= 1023.5 && unit < 6; unit++)
		value /= 1024;
	if (!unit)
		snprintf(text, 24, "%llu", (unsigned long long)bytes);
	else
		snprintf(text, 24, "%.*f%c", value < 9.95, value, units[unit]);
}

static void set_size(struct libscols_line *line, unsigned column, uint64_t bytes)
{
	char text[24];

	size_text(text, bytes);
	scols_line_set_data(line, column, text);
}

static void set_number(struct libscols_line *line, unsigned column, uint64_t value)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	scols_line_set_data(line, column, text);
}

static struct libscols_table *new_table(const char *const *heads, unsigned n)
{
	struct libscols_table *table = scols_new_table();

	if (!table)
		return NULL;
	scols_table_set_termforce(table, SCOLS_TERMFORCE_NEVER);
	for (unsigned i = 0; i < n; i++)
		if (!scols_table_new_column(table, heads[i], 0, SCOLS_FL_RIGHT)) {
			scols_unref_table(table);
			return NULL;
		}
	return table;
}

/* Not one without lines. */
static void put_table(struct libscols_table *table)
{
	char *text = NULL;

	if (table && scols_table_get_nlines(table) && !scols_print_table_to_string(table, &text)) {
		put("\n");
		put(text);
		put("\n");
		free(text);
	}
	scols_unref_table(table);
}

static void put_size(const char *name, uint64_t bytes)
{
	char line[128], size[24];

	size_text(size, bytes);
	snprintf(line, sizeof(line), "%8s %s\n", size, name);
	put(line);
}

static void put_process(const struct percpu__stats_process *is)
{
	char line[128], size[24];

	put_size("in use by the program", is->live);
	put_size("in magazines", is->cached);
	put_size("in stocks", is->stock);
	put_size("in spans, which hold all of these", is->used);
	put_size("in spans at most so far", is->most_used);
	put_size("free in the heap", is->free);
	put_size("given back to the system", is->released);
	put_size("for the allocator itself", is->metadata);
	if (is->resident)
		put_size("in memory, of the whole process", is->resident);
	if (is->large) {
		size_text(size, is->large_bytes);
		snprintf(line, sizeof(line), "%8s in %llu large block%s\n", size, (unsigned long long)is->large,
			 is->large == 1 ? "" : "s");
		put(line);
	}
	if (is->guarded || is->profiled) {
		snprintf(line, sizeof(line),
			 "%8llu objects on guarded pages so far, %llu live samples of the heap profile\n",
			 (unsigned long long)is->guarded, (unsigned long long)is->profiled);
		put(line);
	}
}

/* Whether a class is among the @most of those with the most memory. */
static bool is_large(const struct run_sample *sample, unsigned class, unsigned most)
{
	unsigned larger = 0;

	for (unsigned i = 1; i <= CLASSES; i++)
		larger += sample->classes[i].span_bytes > sample->classes[class].span_bytes ||
			  (sample->classes[i].span_bytes == sample->classes[class].span_bytes && i < class);
	return larger < most;
}

static void put_classes(const struct run_sample *sample, unsigned most)
{
	static const char *const heads[] = { "SIZE",         "IN USE",    "MAGAZINES", "STOCK",  "FREE",
					     "SPANS",        "MEMORY",    "PER USE",   "MISSES", "FLUSHES",
					     "STOCK MISSES", "NEW SPANS", "HITS" };
	unsigned n = sizeof(heads) / sizeof(heads[0]) - !sample->counted;
	struct libscols_table *table = new_table(heads, n);

	for (unsigned i = 1; table && i <= CLASSES; i++) {
		const struct percpu__stats_class *class = &sample->classes[i];
		struct libscols_line *line;
		char text[24] = "-";

		if (!class->new_spans || !is_large(sample, i, most))
			continue;
		line = scols_table_new_line(table, NULL);
		if (!line)
			break;
		if (class->live)
			snprintf(text, sizeof(text), "%.2f",
				 (double)class->span_bytes / ((double)class->live * (double)class->size));
		set_number(line, 0, class->size);
		set_number(line, 1, class->live);
		set_number(line, 2, class->cached);
		set_number(line, 3, class->stock);
		set_number(line, 4, class->free);
		set_number(line, 5, class->spans);
		set_size(line, 6, class->span_bytes);
		scols_line_set_data(line, 7, text);
		set_number(line, 8, class->misses);
		set_number(line, 9, class->flushes);
		set_number(line, 10, class->stock_misses);
		set_number(line, 11, class->new_spans);
		if (sample->counted)
			set_number(line, 12, class->hits);
	}
	put_table(table);
}

static bool index_used(const struct percpu__stats_index *index)
{
	return index->cached || index->misses || index->flushes || index->drains;
}

static void put_indexes(const struct run_sample *sample)
{
	static const char *const heads[] = { "INDEX", "IN MAGAZINES", "MISSES", "FLUSHES", "DRAINS", "HITS" };
	unsigned n = sizeof(heads) / sizeof(heads[0]) - !sample->counted;
	struct libscols_table *table = new_table(heads, n);

	for (unsigned i = 0; table && i < sample->top; i++) {
		const struct percpu__stats_index *index = &sample->indexes[i];
		struct libscols_line *line = index_used(index) ? scols_table_new_line(table, NULL) : NULL;

		if (!line)
			continue;
		set_number(line, 0, i);
		set_size(line, 1, index->cached);
		set_number(line, 2, index->misses);
		set_number(line, 3, index->flushes);
		set_number(line, 4, index->drains);
		if (sample->counted)
			set_number(line, 5, index->hits);
	}
	put_table(table);
}

void run_show(const struct run_sample *sample, const char *program, bool all)
{
	char line[256];

	snprintf(line, sizeof(line), "\npercpu: %.3f s, %.100s: mode %s, index: %s\n\n", sample->seconds, program,
		 sample->mode, sample->index_kind);
	put(line);
	put_process(&sample->process);
	put_classes(sample, all ? CLASSES : FEW_CLASSES);
	if (all)
		put_indexes(sample);
}

static json_t *process_json(const struct percpu__stats_process *is)
{
	json_t *object = json_object();

#define SET(name) json_object_set_new(object, #name, file_number(is->name))
	SET(live), SET(cached), SET(stock), SET(used), SET(most_used), SET(free), SET(released), SET(large);
	SET(large_bytes), SET(metadata), SET(resident), SET(guarded), SET(profiled);
	return object;
}

static json_t *class_json(const struct percpu__stats_class *is)
{
	json_t *object = json_object();

	SET(size), SET(spans), SET(span_bytes), SET(objects), SET(live), SET(cached), SET(stock), SET(free), SET(hits);
	SET(misses), SET(flushes), SET(stock_misses), SET(new_spans);
	json_object_set_new(object, "fragmentation",
			    is->live ? json_real((double)is->span_bytes / ((double)is->live * (double)is->size))
				     : json_null());
	return object;
}

static json_t *index_json(const struct percpu__stats_index *is, unsigned index)
{
	json_t *object = json_object();

	json_object_set_new(object, "index", file_number(index));
	SET(cached), SET(hits), SET(misses), SET(flushes), SET(drains);
#undef SET
	return object;
}

bool run_write_json(const char *name, const struct run_sample *sample, const struct run_options *options, int pid,
		    const int *status)
{
	json_t *root = json_object(), *classes = json_array(), *indexes = json_array();

	json_object_set_new(root, "command", file_command(options->argv));
	json_object_set_new(root, "process", json_integer(pid));
	if (status)
		file_set_end(root, *status);
	if (!sample)
		return file_put_json(name, root);
	json_object_set_new(root, "seconds", json_real(sample->seconds));
	json_object_set_new(root, "last", json_boolean(sample->last));
	json_object_set_new(root, "mode", json_string(sample->mode));
	json_object_set_new(root, "index_kind", json_string(sample->index_kind));
	json_object_set_new(root, "hits_counted", json_boolean(sample->counted));
	json_object_set_new(root, "total", process_json(&sample->process));
	for (unsigned i = 1; i <= CLASSES; i++)
		if (sample->classes[i].new_spans)
			json_array_append_new(classes, class_json(&sample->classes[i]));
	for (unsigned i = 0; i < sample->top; i++)
		if (index_used(&sample->indexes[i]))
			json_array_append_new(indexes, index_json(&sample->indexes[i], i));
	json_object_set_new(root, "classes", classes);
	json_object_set_new(root, "indexes", indexes);
	return file_put_json(name, root);
}
