/* SPDX-License-Identifier: MIT */
/*
 * Histograms, cold half: reading and draining. Each bucket is drained by itself, as a counter is (sum.h); `drained` is
 * ordinary memory, a word for each bucket.
 */
#include <errno.h>
#include <sys/mman.h>

#include <percpu/histogram.h>

#include "base/sys.h"
#include "ds/sum.h"
#include "rseq/thread.h"

static bool fits(unsigned precision)
{
	return precision >= PERCPU_HISTOGRAM_MIN_PRECISION && precision <= PERCPU_HISTOGRAM_MAX_PRECISION;
}

static int make(struct percpu_histogram *histogram, uint64_t *buckets, unsigned precision, bool by_cpu)
{
	size_t count = PERCPU_HISTOGRAM_BUCKETS(precision);
	/* From the system, not from malloc: histograms serve in programs whose malloc is being counted. */
	long drained = percpu__sys6(SYS_mmap, 0, (long)(count * sizeof(uint64_t)), PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (drained < 0 && drained > -4096)
		return -ENOMEM;
	*histogram = (struct percpu_histogram){ .buckets = buckets,
						.drained = (uint64_t *)drained,
						.precision = precision,
						.count = (uint32_t)count,
						.by_cpu = by_cpu };
	return 0;
}

int percpu_histogram_init(struct percpu_histogram *histogram, unsigned precision)
{
	uint64_t *buckets;
	int rc;

	if (!histogram || !fits(precision))
		return -EINVAL;
	buckets = percpu_alloc(PERCPU_HISTOGRAM_BUCKETS(precision) * sizeof *buckets, sizeof *buckets);
	if (!buckets)
		return -ENOMEM;
	rc = make(histogram, buckets, precision, false);
	if (rc)
		percpu_free(buckets);
	return rc;
}

int percpu_histogram_init_shared(struct percpu_histogram *histogram, uint64_t *buckets, unsigned precision)
{
	if (!histogram || !buckets || !fits(precision))
		return -EINVAL;
	percpu__init();
	return make(histogram, buckets, precision, true);
}

void percpu_histogram_destroy(struct percpu_histogram *histogram)
{
	if (!histogram || !histogram->buckets)
		return;
	percpu__sys4(SYS_munmap, (long)histogram->drained, (long)(histogram->count * sizeof(uint64_t)), 0, 0);
	if (!histogram->by_cpu)
		percpu_free(histogram->buckets);
	histogram->buckets = NULL;
}

int percpu_histogram_read(struct percpu_histogram *histogram, int index, struct percpu_snapshot *snapshot)
{
	if (!histogram || !snapshot || snapshot->precision != histogram->precision || index < -1 ||
	    (index >= 0 && (unsigned)index > percpu__remainder))
		return -EINVAL;
	for (size_t bucket = 0; bucket < histogram->count; bucket++) {
		uint64_t *words = histogram->buckets + bucket, n;

		if (index < 0)
			n = percpu__sum_left(words, &histogram->drained[bucket]);
		else
			n = __atomic_load_n(percpu_ptr(words, index), __ATOMIC_RELAXED);
		snapshot->counts[bucket] += n;
		snapshot->total += n;
	}
	return 0;
}

int percpu_histogram_drain(struct percpu_histogram *histogram, struct percpu_snapshot *snapshot)
{
	if (!histogram || !snapshot || snapshot->precision != histogram->precision)
		return -EINVAL;
	for (size_t bucket = 0; bucket < histogram->count; bucket++) {
		uint64_t n = percpu__sum_take(histogram->buckets + bucket, &histogram->drained[bucket]);

		snapshot->counts[bucket] += n;
		snapshot->total += n;
	}
	return 0;
}
