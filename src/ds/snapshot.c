/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of histograms: ordinary arithmetic on ordinary memory.
 */
#include <errno.h>
#include <stdlib.h>

#include <percpu/histogram.h>

int percpu_snapshot_init(struct percpu_snapshot *snapshot, unsigned precision)
{
	size_t buckets;
	uint64_t *counts;

	if (!snapshot || precision < PERCPU_HISTOGRAM_MIN_PRECISION || precision > PERCPU_HISTOGRAM_MAX_PRECISION)
		return -EINVAL;
	buckets = PERCPU_HISTOGRAM_BUCKETS(precision);
	counts = calloc(buckets, sizeof *counts);
	if (!counts)
		return -ENOMEM;
	*snapshot = (struct percpu_snapshot){ .precision = precision, .buckets = buckets, .counts = counts };
	return 0;
}

void percpu_snapshot_destroy(struct percpu_snapshot *snapshot)
{
	if (!snapshot)
		return;
	free(snapshot->counts);
	snapshot->counts = NULL;
}

int percpu_snapshot_merge(struct percpu_snapshot *to, const struct percpu_snapshot *from)
{
	if (!to || !from || to->precision != from->precision)
		return -EINVAL;
	for (size_t bucket = 0; bucket < to->buckets; bucket++)
		to->counts[bucket] += from->counts[bucket];
	to->total += from->total;
	return 0;
}

uint64_t percpu_bucket_low(size_t bucket, unsigned precision)
{
	size_t whole = (size_t)1 << precision;
	size_t shift = bucket >> precision;

	/* The first two runs of buckets hold one value each. */
	if (shift <= 1)
		return bucket;
	return (uint64_t)(whole + (bucket & (whole - 1))) << (shift - 1);
}

uint64_t percpu_bucket_high(size_t bucket, unsigned precision)
{
	size_t shift = bucket >> precision;

	if (shift <= 1)
		return bucket;
	return percpu_bucket_low(bucket, precision) + ((UINT64_C(1) << (shift - 1)) - 1);
}

static uint64_t middle(size_t bucket, unsigned precision)
{
	uint64_t low = percpu_bucket_low(bucket, precision);

	return low + (percpu_bucket_high(bucket, precision) - low) / 2;
}

uint64_t percpu_snapshot_percentile(const struct percpu_snapshot *snapshot, double percent)
{
	uint64_t rank, seen = 0;
	long double exact;

	if (!snapshot || snapshot->total == 0 || !(percent >= 0 && percent <= 100))
		return 0;
	exact = (long double)snapshot->total * (long double)percent / 100;
	rank = (uint64_t)exact;
	rank += (long double)rank < exact;
	rank = rank ? rank : 1;
	for (size_t bucket = 0; bucket < snapshot->buckets; bucket++) {
		seen += snapshot->counts[bucket];
		if (seen >= rank)
			return middle(bucket, snapshot->precision);
	}
	return 0;
}

double percpu_snapshot_mean(const struct percpu_snapshot *snapshot)
{
	long double sum = 0;

	if (!snapshot || snapshot->total == 0)
		return 0;
	for (size_t bucket = 0; bucket < snapshot->buckets; bucket++)
		sum += (long double)snapshot->counts[bucket] * (long double)middle(bucket, snapshot->precision);
	return (double)(sum / (long double)snapshot->total);
}
