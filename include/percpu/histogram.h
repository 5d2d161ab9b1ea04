/* SPDX-License-Identifier: MIT */
/*
 * Histograms: log-linear buckets for each index, recorded into without a lock, an atomic instruction or a shared line.
 *
 * Values below 2^precision have a bucket each; above, every power of two is cut into 2^precision equal buckets. So a
 * bucket is never wider than its lower bound / 2^precision, and the middle of a bucket is off by at most
 * 2^-(precision + 1) of the true value, for every value up to 2^64 - 1. Recording is one section: the increment.
 * The layout is that of Gil Tene's HdrHistogram. Drained as counters are (see <percpu/counter.h>).
 */
#ifndef PERCPU_HISTOGRAM_H
#define PERCPU_HISTOGRAM_H

#include <percpu/counter.h>

PERCPU_BEGIN_DECLS

#define PERCPU_HISTOGRAM_MIN_PRECISION 2
#define PERCPU_HISTOGRAM_MAX_PRECISION 8

/** A histogram, in the caller's storage. Fields belong to the library. */
struct percpu_histogram {
	uint64_t *buckets; /* per-CPU; constant after init */
	uint64_t *drained; /* ordinary memory: sum of all drains, a word for each bucket; written by drain */
	uint32_t precision;
	uint32_t count; /* buckets */
	uint32_t by_cpu;
};

/** percpu_histogram_buckets - how many buckets a histogram of that precision has. */
#define PERCPU_HISTOGRAM_BUCKETS(precision) ((size_t)(65 - (precision)) << (precision))

/**
 * percpu_histogram_init - make an empty histogram in the caller's storage.
 *
 * @precision: 2 to 8. Percentiles are then within 12.5 % (2), 6.25 %, 3.1 %, 1.6 %, 0.8 %, 0.4 %, 0.2 % (8) of the true
 *             value; each copy takes 8 * PERCPU_HISTOGRAM_BUCKETS(precision) bytes (2 KiB for 2, 114 KiB for 8), of which
 *             the pages that are counted in become real.
 * Returns 0, -EINVAL, -ENOMEM. May block. Async-signal-safe.
 */
PERCPU_API int percpu_histogram_init(struct percpu_histogram *histogram, unsigned precision);

/** percpu_histogram_destroy - free what percpu_histogram_init() allocated. No thread may use it any more. */
PERCPU_API void percpu_histogram_destroy(struct percpu_histogram *histogram);

PERCPU__INLINE size_t percpu__bucket_of(uint64_t value, unsigned precision)
{
	unsigned shift = 63U - precision - (unsigned)__builtin_clzll(value | ((uint64_t)1 << precision));

	return ((size_t)shift << precision) + (size_t)(value >> shift);
}

/**
 * percpu_histogram_record - count one value.
 *
 * Wait-free, async-signal-safe; as percpu_counter_add().
 */
PERCPU__INLINE void percpu_histogram_record(struct percpu_histogram *histogram, uint64_t value)
{
	percpu__count(histogram->buckets + percpu__bucket_of(value, histogram->precision), 1, PERCPU__BY_ID);
}

/**
 * percpu_histogram_init_shared - make a histogram on words in a shared area, indexed by CPU number.
 *
 * @buckets: a per-CPU pointer into an area from percpu_area_map(): 8 * PERCPU_HISTOGRAM_BUCKETS(precision) bytes
 * Returns 0 or -EINVAL.
 */
PERCPU_API int percpu_histogram_init_shared(struct percpu_histogram *histogram, uint64_t *buckets, unsigned precision);

/** percpu_histogram_record_shared - percpu_histogram_record() for such a histogram. */
PERCPU__INLINE void percpu_histogram_record_shared(struct percpu_histogram *histogram, uint64_t value)
{
	percpu__count(histogram->buckets + percpu__bucket_of(value, histogram->precision), 1, PERCPU__BY_CPU);
}

/** The sum of histograms at some moment: ordinary memory, for one thread at a time. Fields may be read. */
struct percpu_snapshot {
	unsigned precision;
	size_t buckets;   /**< how many */
	uint64_t total;   /**< values counted */
	uint64_t *counts; /**< allocated by percpu_snapshot_init() */
};

/** percpu_snapshot_init - make an empty snapshot. Returns 0, -EINVAL, -ENOMEM. Not async-signal-safe. */
PERCPU_API int percpu_snapshot_init(struct percpu_snapshot *snapshot, unsigned precision);
/** percpu_snapshot_destroy - free it; NULL does nothing. */
PERCPU_API void percpu_snapshot_destroy(struct percpu_snapshot *snapshot);
/** percpu_snapshot_merge - add all counts of @from to @to. Returns 0, or -EINVAL if their precisions differ. */
PERCPU_API int percpu_snapshot_merge(struct percpu_snapshot *to, const struct percpu_snapshot *from);

/**
 * percpu_histogram_read - add what was counted to a snapshot, without stopping anybody.
 *
 * @index: -1 for all copies, counted from the last drain; or one copy, counted from init
 * Returns 0, or -EINVAL (NULL, index out of range, another precision). Wait-free, async-signal-safe.
 */
PERCPU_API int percpu_histogram_read(struct percpu_histogram *histogram, int index, struct percpu_snapshot *snapshot);

/**
 * percpu_histogram_drain - move all that was counted to a snapshot (added to it), exactly.
 *
 * Every value is in exactly one drain's result, however many threads keep recording. Returns 0, or -EINVAL. Lock-free,
 * async-signal-safe. Works on shared histograms too; each process drains for itself.
 */
PERCPU_API int percpu_histogram_drain(struct percpu_histogram *histogram, struct percpu_snapshot *snapshot);

/**
 * percpu_snapshot_percentile - the value below or at which @percent of all values lie.
 *
 * @percent: 0 to 100. Returns the middle of the bucket where it falls: within 2^-(precision + 1) of a value that was
 * recorded. 0 if the snapshot is empty or an argument is out of range.
 */
PERCPU_API uint64_t percpu_snapshot_percentile(const struct percpu_snapshot *snapshot, double percent);

/** percpu_snapshot_mean - the mean of all values, with the same relative error; 0 if there are none. */
PERCPU_API double percpu_snapshot_mean(const struct percpu_snapshot *snapshot);

/** percpu_bucket_low, percpu_bucket_high - the smallest and largest value that falls into a bucket. */
PERCPU_API uint64_t percpu_bucket_low(size_t bucket, unsigned precision);
PERCPU_API uint64_t percpu_bucket_high(size_t bucket, unsigned precision);

PERCPU_END_DECLS

#endif
