/* SPDX-License-Identifier: MIT */
/* Reading the counts of a session. Nothing is stopped for it: each word is as it was at some moment. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/stat.h"

#define X_ROW(id, unit, name, help) { name, help, UNIT_##unit },
#define UNIT_CALLS                  false
#define UNIT_BYTES                  true

const struct stat_row stat_rows[ROWS] = { { "alloc_calls", "Calls of malloc, calloc, realloc and their kin", false },
					  { "alloc_bytes", "Bytes that these asked for", true },
					  SESSION_COUNTERS(X_ROW) };

int sample_init(struct sample *sample)
{
	unsigned copies = percpu_copies();

	*sample = (struct sample){
		.copies = copies,
		.rows = calloc((size_t)ROWS * copies, sizeof(uint64_t)),
		.class_calls = calloc((size_t)SESSION_CLASSES * copies, sizeof(uint64_t)),
		.class_bytes = calloc((size_t)SESSION_CLASSES * copies, sizeof(uint64_t)),
	};
	if (sample->rows && sample->class_calls && sample->class_bytes)
		return 0;
	sample_destroy(sample);
	return -ENOMEM;
}

void sample_destroy(struct sample *sample)
{
	free(sample->rows);
	free(sample->class_calls);
	free(sample->class_bytes);
	*sample = (struct sample){ 0 };
}

static void take_sizes(struct sample *sample, unsigned index, void *base, struct percpu_snapshot *sizes)
{
	struct percpu_histogram histogram = session_sizes(base);

	memset(sizes->counts, 0, sizes->buckets * sizeof(sizes->counts[0]));
	sizes->total = 0;
	percpu_histogram_read(&histogram, (int)index, sizes);
	/* A bucket never lies in two classes: each power of two begins a bucket. */
	for (size_t bucket = 0; bucket < sizes->buckets; bucket++)
		if (sizes->counts[bucket]) {
			unsigned class = session_class(percpu_bucket_low(bucket, SESSION_PRECISION));

			sample->class_calls[class * sample->copies + index] += sizes->counts[bucket];
		}
	for (unsigned class = 0; class < SESSION_CLASSES; class ++) {
		struct percpu_counter bytes = session_bytes(base, class);
		size_t at = (size_t) class * sample->copies + index;

		sample->class_bytes[at] = percpu_counter_read_index(&bytes, index);
		sample->rows[ROW_ALLOC_CALLS * sample->copies + index] += sample->class_calls[at];
		sample->rows[ROW_ALLOC_BYTES * sample->copies + index] += sample->class_bytes[at];
	}
}

int sample_take(struct sample *sample, void *base, double seconds)
{
	struct percpu_snapshot sizes;
	int rc = percpu_snapshot_init(&sizes, SESSION_PRECISION);

	if (rc)
		return rc;
	sample->seconds = seconds;
	memset(sample->class_calls, 0, (size_t)SESSION_CLASSES * sample->copies * sizeof(uint64_t));
	memset(sample->rows, 0, (size_t)ROWS * sample->copies * sizeof(uint64_t));
	for (unsigned index = 0; index < sample->copies; index++) {
		take_sizes(sample, index, base, &sizes);
		for (unsigned i = 0; i < SESSION_COUNTS; i++) {
			struct percpu_counter counter = session_counter(base, (enum session_count)i);

			sample->rows[(ROW_COUNTERS + i) * sample->copies + index] =
				percpu_counter_read_index(&counter, index);
		}
	}
	percpu_snapshot_destroy(&sizes);
	return 0;
}

uint64_t sample_sum(const struct sample *sample, const uint64_t *table, unsigned row)
{
	uint64_t sum = 0;

	for (unsigned index = 0; index < sample->copies; index++)
		sum += table[(size_t)row * sample->copies + index];
	return sum;
}

const char *sample_index_name(const struct sample *sample, unsigned index, char text[static 16])
{
	if (index == sample->copies - 1)
		return "other";
	snprintf(text, 16, "%u", index);
	return text;
}

uint64_t class_low(unsigned class)
{
	return class ? (uint64_t)1 << class : 0;
}

uint64_t class_high(unsigned class)
{
	return class < 63 ? ((uint64_t)2 << class) - 1 : UINT64_MAX;
}
