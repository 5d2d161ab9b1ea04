/* SPDX-License-Identifier: MIT */
/* The counts for other programs: JSON when the program has ended, OpenMetrics text again and again. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/file.h"
#include "cli/stat.h"

static json_t *by_index(const struct sample *now, const uint64_t *table, unsigned row)
{
	json_t *object = json_object();
	char text[16];

	for (unsigned index = 0; index < now->copies; index++) {
		uint64_t value = table[(size_t)row * now->copies + index];

		if (value)
			json_object_set_new(object, sample_index_name(now, index, text), file_number(value));
	}
	return object;
}

static json_t *counters(const struct sample *now)
{
	json_t *object = json_object();

	for (unsigned row = 0; row < ROWS; row++) {
		uint64_t sum = sample_sum(now, now->rows, row);
		json_t *counter = json_object();

		json_object_set_new(counter, "total", file_number(sum));
		json_object_set_new(counter, "per_second",
				    json_real(now->seconds > 0 ? (double)sum / now->seconds : 0));
		json_object_set_new(counter, "by_index", by_index(now, now->rows, row));
		json_object_set_new(object, stat_rows[row].name, counter);
	}
	return object;
}

static json_t *sizes(const struct sample *now)
{
	json_t *array = json_array();

	for (unsigned class = 0; class < SESSION_CLASSES; class ++) {
		json_t *size;

		if (!sample_sum(now, now->class_calls, class))
			continue;
		size = json_object();
		json_object_set_new(size, "low", file_number(class_low(class)));
		json_object_set_new(size, "high", file_number(class_high(class)));
		json_object_set_new(size, "calls", file_number(sample_sum(now, now->class_calls, class)));
		json_object_set_new(size, "bytes", file_number(sample_sum(now, now->class_bytes, class)));
		json_object_set_new(size, "calls_by_index", by_index(now, now->class_calls, class));
		json_object_set_new(size, "bytes_by_index", by_index(now, now->class_bytes, class));
		json_array_append_new(array, size);
	}
	return array;
}

bool file_write_json(const char *name, const struct sample *now, const struct run *run, char **argv)
{
	json_t *root = json_object();

	json_object_set_new(root, "command", file_command(argv));
	json_object_set_new(root, "seconds", json_real(now->seconds));
	file_set_end(root, run->child.status);
	json_object_set_new(root, "programs", json_integer(session_header(run->base)->images));
	json_object_set_new(root, "possible_cpus", json_integer(now->copies - 1));
	json_object_set_new(root, "counters", counters(now));
	json_object_set_new(root, "allocation_sizes", sizes(now));
	return file_put_json(name, root);
}

bool file_write_openmetrics(const char *name, const struct sample *now)
{
	char *text = NULL;
	size_t n = 0;
	FILE *file = open_memstream(&text, &n);
	char index_name[16];
	uint64_t sum = 0;
	bool done;

	if (!file)
		return file_failed(name, errno);
	for (unsigned row = 0; row < ROWS; row++) {
		const char *metric = stat_rows[row].name;

		fprintf(file, "# TYPE percpu_%s counter\n", metric);
		if (stat_rows[row].bytes)
			fprintf(file, "# UNIT percpu_%s bytes\n", metric);
		fprintf(file, "# HELP percpu_%s %s.\n", metric, stat_rows[row].help);
		for (unsigned index = 0; index < now->copies; index++)
			fprintf(file, "percpu_%s_total{cpu=\"%s\"} %llu\n", metric,
				sample_index_name(now, index, index_name),
				(unsigned long long)now->rows[(size_t)row * now->copies + index]);
	}
	fputs("# TYPE percpu_alloc_size_bytes histogram\n# UNIT percpu_alloc_size_bytes bytes\n"
	      "# HELP percpu_alloc_size_bytes Sizes that allocation calls asked for.\n",
	      file);
	for (unsigned class = 0; class < SESSION_CLASSES - 1; class ++) {
		sum += sample_sum(now, now->class_calls, class);
		fprintf(file, "percpu_alloc_size_bytes_bucket{le=\"%llu\"} %llu\n",
			(unsigned long long)class_high(class), (unsigned long long)sum);
	}
	sum += sample_sum(now, now->class_calls, SESSION_CLASSES - 1);
	fprintf(file, "percpu_alloc_size_bytes_bucket{le=\"+Inf\"} %llu\npercpu_alloc_size_bytes_count %llu\n",
		(unsigned long long)sum, (unsigned long long)sum);
	fprintf(file, "percpu_alloc_size_bytes_sum %llu\n# EOF\n",
		(unsigned long long)sample_sum(now, now->rows, ROW_ALLOC_BYTES));
	if (fclose(file)) {
		free(text);
		return file_failed(name, ENOMEM);
	}
	done = file_put(name, text, n);
	free(text);
	return done;
}
