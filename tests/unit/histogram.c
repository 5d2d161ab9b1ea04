/* SPDX-License-Identifier: MIT */
/* Histograms: the shape of buckets, percentiles against sorted values, and drains while threads record. */
#include "unit.h"

#include <math.h>
#include <sys/mman.h>

#include "rseq/thread.h"

#define EACH_PRECISION(p) (unsigned p = PERCPU_HISTOGRAM_MIN_PRECISION; p <= PERCPU_HISTOGRAM_MAX_PRECISION; p++)

static void buckets_cover_all_values_once(void **state)
{
	(void)state;
	for
		EACH_PRECISION(p)
		{
			size_t count = PERCPU_HISTOGRAM_BUCKETS(p);
			uint64_t next = 0;

			for (size_t bucket = 0; bucket < count; bucket++) {
				uint64_t low = percpu_bucket_low(bucket, p), high = percpu_bucket_high(bucket, p);

				/* They follow each other without a gap. */
				assert_int_equal(low, next);
				assert_true(low <= high);
				assert_int_equal(percpu__bucket_of(low, p), bucket);
				assert_int_equal(percpu__bucket_of(high, p), bucket);
				assert_int_equal(percpu__bucket_of(low + (high - low) / 2, p), bucket);
				/* Never wider than 2^-p of where it starts. */
				assert_true(high - low + 1 <= (low >> p ? low >> p : 1));
				if (low < (uint64_t)1 << p)
					assert_int_equal(low, high);
				next = high + 1;
			}
			assert_int_equal(percpu_bucket_high(count - 1, p), UINT64_MAX);
			assert_int_equal(next, 0);
		}
}

static uint64_t any_value(uint64_t *seed)
{
	return unit_random(seed) >> unit_random(seed) % 64;
}

static void random_values_fall_into_their_buckets(void **state)
{
	uint64_t seed = 11;

	(void)state;
	for
		EACH_PRECISION(p)
	for (int i = 0; i < 20000; i++) {
		uint64_t value = any_value(&seed);
		size_t bucket = percpu__bucket_of(value, p);

		assert_true(bucket < PERCPU_HISTOGRAM_BUCKETS(p));
		assert_true(percpu_bucket_low(bucket, p) <= value && value <= percpu_bucket_high(bucket, p));
	}
}

static void arguments(void **state)
{
	struct percpu_histogram histogram;
	struct percpu_snapshot snapshot, other;
	uint64_t *words;

	(void)state;
	assert_int_equal(percpu_histogram_init(NULL, 4), -EINVAL);
	assert_int_equal(percpu_histogram_init(&histogram, 1), -EINVAL);
	assert_int_equal(percpu_histogram_init(&histogram, 9), -EINVAL);
	assert_int_equal(percpu_histogram_init(&histogram, UINT32_MAX), -EINVAL);
	words = percpu_alloc(PERCPU_HISTOGRAM_BUCKETS(4) * sizeof *words, 8);
	assert_int_equal(percpu_histogram_init_shared(NULL, words, 4), -EINVAL);
	assert_int_equal(percpu_histogram_init_shared(&histogram, NULL, 4), -EINVAL);
	assert_int_equal(percpu_histogram_init_shared(&histogram, words, 1), -EINVAL);
	assert_int_equal(percpu_histogram_init_shared(&histogram, words, 9), -EINVAL);
	assert_int_equal(percpu_free(words), 0);
	assert_int_equal(percpu_snapshot_init(NULL, 4), -EINVAL);
	assert_int_equal(percpu_snapshot_init(&snapshot, 1), -EINVAL);
	assert_int_equal(percpu_snapshot_init(&snapshot, 9), -EINVAL);

	assert_int_equal(percpu_histogram_init(&histogram, 4), 0);
	assert_int_equal(percpu_snapshot_init(&snapshot, 4), 0);
	assert_int_equal(percpu_snapshot_init(&other, 5), 0);
	assert_int_equal(snapshot.precision, 4);
	assert_int_equal(snapshot.buckets, PERCPU_HISTOGRAM_BUCKETS(4));
	assert_int_equal(snapshot.total, 0);
	percpu_histogram_record(&histogram, 3);
	assert_int_equal(percpu_histogram_read(NULL, -1, &snapshot), -EINVAL);
	assert_int_equal(percpu_histogram_read(&histogram, -1, NULL), -EINVAL);
	assert_int_equal(percpu_histogram_read(&histogram, -2, &snapshot), -EINVAL);
	assert_int_equal(percpu_histogram_read(&histogram, (int)percpu_copies(), &snapshot), -EINVAL);
	assert_int_equal(percpu_histogram_read(&histogram, -1, &other), -EINVAL);
	assert_int_equal(percpu_histogram_drain(NULL, &snapshot), -EINVAL);
	assert_int_equal(percpu_histogram_drain(&histogram, NULL), -EINVAL);
	assert_int_equal(percpu_histogram_drain(&histogram, &other), -EINVAL);
	assert_int_equal(percpu_snapshot_merge(NULL, &snapshot), -EINVAL);
	assert_int_equal(percpu_snapshot_merge(&snapshot, NULL), -EINVAL);
	assert_int_equal(percpu_snapshot_merge(&snapshot, &other), -EINVAL);
	assert_int_equal(snapshot.total, 0);
	assert_int_equal(other.total, 0);
	assert_int_equal(percpu_histogram_drain(&histogram, &snapshot), 0);
	assert_int_equal(snapshot.total, 1);

	assert_int_equal(percpu_snapshot_percentile(NULL, 50), 0);
	assert_int_equal(percpu_snapshot_percentile(&other, 50), 0);
	assert_int_equal(percpu_snapshot_percentile(&snapshot, 50), 3);
	assert_int_equal(percpu_snapshot_percentile(&snapshot, -0.001), 0);
	assert_int_equal(percpu_snapshot_percentile(&snapshot, 100.001), 0);
	assert_int_equal(percpu_snapshot_percentile(&snapshot, (double)NAN), 0);
	assert_true(percpu_snapshot_mean(NULL) == 0);
	assert_true(percpu_snapshot_mean(&other) == 0);
	assert_true(percpu_snapshot_mean(&snapshot) == 3);

	percpu_snapshot_destroy(&other);
	percpu_snapshot_destroy(&snapshot);
	percpu_snapshot_destroy(&snapshot);
	percpu_snapshot_destroy(NULL);
	percpu_histogram_destroy(&histogram);
	percpu_histogram_destroy(&histogram);
	percpu_histogram_destroy(NULL);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x, y;

	memcpy(&x, a, sizeof x);
	memcpy(&y, b, sizeof y);
	return x < y ? -1 : x > y;
}

/* Whether `got` is within 2^-(p + 1) of `exact`. */
static bool is_near(uint64_t got, uint64_t exact, unsigned p)
{
	uint64_t off = got > exact ? got - exact : exact - got;

	return off <= exact >> (p + 1);
}

#define VALUES 5000

static void percentiles_are_as_near_as_stated(void **state)
{
	static const double percents[] = { 0, 0.01, 1, 10, 25, 33.3, 50, 75, 90, 95, 99, 99.9, 99.99, 100 };
	static uint64_t values[VALUES];
	uint64_t seed = 12;

	(void)state;
	for
		EACH_PRECISION(p)
		{
			for (int shape = 0; shape < 4; shape++) {
				size_t count = shape == 3 ? 7 : VALUES;
				struct percpu_histogram histogram;
				struct percpu_snapshot snapshot;
				long double sum = 0;
				double mean;

				assert_int_equal(percpu_histogram_init(&histogram, p), 0);
				assert_int_equal(percpu_snapshot_init(&snapshot, p), 0);
				for (size_t i = 0; i < count; i++) {
					uint64_t value = any_value(&seed);

					/* All magnitudes, times of a service, small ones with many ties, and a few. */
					values[i] = shape == 1   ? 1000 + value % 100000
						    : shape == 2 ? value % 40
								 : value;
					sum += (long double)values[i];
					percpu_histogram_record(&histogram, values[i]);
				}
				qsort(values, count, sizeof *values, by_value);
				assert_int_equal(percpu_histogram_read(&histogram, -1, &snapshot), 0);
				assert_int_equal(snapshot.total, count);
				for (size_t i = 0; i < UNIT_COUNT(percents); i++) {
					uint64_t got = percpu_snapshot_percentile(&snapshot, percents[i]);
					size_t rank =
						(size_t)ceill((long double)count * (long double)percents[i] / 100);

					/* The nearest rank: the smallest value that so many do not exceed. */
					rank = rank ? rank - 1 : 0;
					if (!is_near(got, values[rank], p))
						fail_msg("precision %u: percentile %g is %lu, not %lu", p, percents[i],
							 got, values[rank]);
				}
				mean = percpu_snapshot_mean(&snapshot);
				assert_true(fabsl((long double)mean * (long double)count - sum) <=
					    sum / (long double)(UINT64_C(2) << p) * 1.000001L);
				percpu_snapshot_destroy(&snapshot);
				percpu_histogram_destroy(&histogram);
			}
		}
}

static void every_bucket_counts(void **state)
{
	(void)state;
	for
		EACH_PRECISION(p)
		{
			struct percpu_histogram histogram;
			struct percpu_snapshot all, part;
			size_t count = PERCPU_HISTOGRAM_BUCKETS(p);

			assert_int_equal(percpu_histogram_init(&histogram, p), 0);
			assert_int_equal(percpu_snapshot_init(&all, p), 0);
			assert_int_equal(percpu_snapshot_init(&part, p), 0);
			/* The lowest value of each bucket, and the highest twice; some by way of the remainder. */
			for (size_t bucket = 0; bucket < count; bucket++) {
				percpu__thread_force(bucket % 3 ? PERCPU__FORCE_OFF : PERCPU__FORCE_REMAINDER);
				percpu_histogram_record(&histogram, percpu_bucket_low(bucket, p));
				percpu_histogram_record(&histogram, percpu_bucket_high(bucket, p));
				percpu_histogram_record(&histogram, percpu_bucket_high(bucket, p));
				percpu__thread_force(PERCPU__FORCE_OFF);
			}
			assert_int_equal(percpu_histogram_read(&histogram, -1, &all), 0);
			percpu_for_each_index(index)
				assert_int_equal(percpu_histogram_read(&histogram, (int)index, &part), 0);
			assert_int_equal(all.total, 3 * count);
			assert_int_equal(part.total, 3 * count);
			for (size_t bucket = 0; bucket < count; bucket++) {
				assert_int_equal(all.counts[bucket], 3);
				assert_int_equal(part.counts[bucket], 3);
			}
			/* A drain adds to what is in the snapshot; afterwards there is nothing. */
			assert_int_equal(percpu_histogram_drain(&histogram, &all), 0);
			assert_int_equal(all.total, 6 * count);
			assert_int_equal(percpu_histogram_drain(&histogram, &all), 0);
			assert_int_equal(percpu_histogram_read(&histogram, -1, &all), 0);
			assert_int_equal(all.total, 6 * count);
			/* Each copy's part is counted from init. */
			percpu_for_each_index(index)
				assert_int_equal(percpu_histogram_read(&histogram, (int)index, &part), 0);
			assert_int_equal(part.total, 6 * count);
			assert_int_equal(percpu_snapshot_merge(&all, &part), 0);
			assert_int_equal(all.total, 12 * count);
			assert_int_equal(percpu_snapshot_merge(&all, &all), 0);
			assert_int_equal(all.total, 24 * count);
			for (size_t bucket = 0; bucket < count; bucket++)
				assert_int_equal(all.counts[bucket], 24);
			percpu_snapshot_destroy(&all);
			percpu_snapshot_destroy(&part);
			percpu_histogram_destroy(&histogram);
		}
}

#define RECORDERS 4
#define RECORDS   100000

static struct percpu_histogram common;
static uint32_t recording;

static void *record_many(void *arg)
{
	unsigned me = *(unsigned *)arg;

	if (me == 1)
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
	for (unsigned i = 0; i < RECORDS; i++) {
		if (me & 4)
			percpu_histogram_record_shared(&common, i % 100);
		else
			percpu_histogram_record(&common, i % 100);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	__atomic_fetch_sub(&recording, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void *drain_often(void *arg)
{
	while (__atomic_load_n(&recording, __ATOMIC_ACQUIRE))
		percpu_histogram_drain(&common, arg);
	return NULL;
}

static void *read_often(void *arg)
{
	struct percpu_snapshot now;

	if (percpu_snapshot_init(&now, 5)) {
		*(unsigned *)arg += 1;
		return NULL;
	}
	while (__atomic_load_n(&recording, __ATOMIC_ACQUIRE)) {
		now.total = 0;
		percpu_histogram_read(&common, -1, &now);
		/* What was drained is not there any more: never more than all, nor less than nothing. */
		*(unsigned *)arg += now.total > RECORDERS * RECORDS;
	}
	percpu_snapshot_destroy(&now);
	return NULL;
}

static void drain_exactly(bool shared)
{
	unsigned numbers[RECORDERS], wrong = 0;
	pthread_t threads[RECORDERS], drainers[2], reader;
	struct percpu_snapshot drained[2];

	recording = RECORDERS;
	for (unsigned i = 0; i < RECORDERS; i++) {
		numbers[i] = i | (shared ? 4 : 0);
		assert_int_equal(pthread_create(&threads[i], NULL, record_many, &numbers[i]), 0);
	}
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(percpu_snapshot_init(&drained[i], 5), 0);
		assert_int_equal(pthread_create(&drainers[i], NULL, drain_often, &drained[i]), 0);
	}
	assert_int_equal(pthread_create(&reader, NULL, read_often, &wrong), 0);
	for (size_t i = 0; i < RECORDERS; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(pthread_join(drainers[i], NULL), 0);
	assert_int_equal(pthread_join(reader, NULL), 0);
	assert_int_equal(wrong, 0);
	assert_int_equal(percpu_histogram_drain(&common, &drained[0]), 0);
	assert_int_equal(percpu_snapshot_merge(&drained[0], &drained[1]), 0);
	assert_int_equal(drained[0].total, RECORDERS * RECORDS);
	for (uint64_t value = 0; value < 64; value++)
		assert_int_equal(drained[0].counts[percpu__bucket_of(value, 5)], RECORDERS * RECORDS / 100);
	for (size_t i = 0; i < 2; i++)
		percpu_snapshot_destroy(&drained[i]);
}

/* Those who drain record too, so that two drains at once always find something to take. */
#define DRAINS 5000

static pthread_barrier_t together;

static void *record_and_drain(void *arg)
{
	pthread_barrier_wait(&together);
	for (unsigned i = 0; i < DRAINS; i++) {
		percpu_histogram_record(&common, i % 4);
		percpu_histogram_drain(&common, arg);
	}
	return NULL;
}

static void drains_at_once(void **state)
{
	struct percpu_snapshot drained[4];

	(void)state;
	assert_int_equal(percpu_histogram_init(&common, 2), 0);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(percpu_snapshot_init(&drained[i], 2), 0);
	pthread_barrier_init(&together, NULL, 4);
	unit_threads(4, record_and_drain, drained, sizeof *drained);
	pthread_barrier_destroy(&together);
	for (size_t i = 1; i < 4; i++)
		assert_int_equal(percpu_snapshot_merge(&drained[0], &drained[i]), 0);
	assert_int_equal(percpu_histogram_drain(&common, &drained[0]), 0);
	assert_int_equal(drained[0].total, 4 * DRAINS);
	for (size_t value = 0; value < 4; value++)
		assert_int_equal(drained[0].counts[value], DRAINS);
	for (size_t i = 0; i < 4; i++)
		percpu_snapshot_destroy(&drained[i]);
	percpu_histogram_destroy(&common);
}

static void drains_are_exact(void **state)
{
	(void)state;
	assert_int_equal(percpu_histogram_init(&common, 5), 0);
	drain_exactly(false);
	percpu_histogram_destroy(&common);
}

static void shared_drains_are_exact(void **state)
{
	struct percpu_histogram other;
	struct percpu_snapshot theirs;
	int fd = memfd_create("area", MFD_CLOEXEC);
	void *base, *again;

	(void)state;
	assert_int_equal(percpu_area_map(fd, &base), 0);
	assert_int_equal(percpu_histogram_init_shared(&common, (uint64_t *)base + 8, 5), 0);
	drain_exactly(true);
	/* Another user of the same file drains for itself: it finds all. */
	assert_int_equal(percpu_area_map(fd, &again), 0);
	assert_ptr_not_equal(again, base);
	assert_int_equal(percpu_histogram_init_shared(&other, (uint64_t *)again + 8, 5), 0);
	assert_int_equal(percpu_snapshot_init(&theirs, 5), 0);
	assert_int_equal(percpu_histogram_drain(&other, &theirs), 0);
	assert_int_equal(theirs.total, RECORDERS * RECORDS);
	percpu_snapshot_destroy(&theirs);
	percpu_histogram_destroy(&other);
	percpu_histogram_destroy(&common);
	assert_int_equal(percpu_area_unmap(again), 0);
	assert_int_equal(percpu_area_unmap(base), 0);
	close(fd);
}

/* A child may use what it inherits, also if another thread was draining while it was made. */
static struct percpu_snapshot in_child;

static int use_in_child(void)
{
	uint64_t total;

	percpu_histogram_record(&common, 1);
	if (percpu_histogram_drain(&common, &in_child))
		return 1;
	total = in_child.total;
	return percpu_histogram_read(&common, -1, &in_child) || in_child.total != total;
}

static void forks_among_drains(void **state)
{
	struct percpu_snapshot drained;
	pthread_t thread;
	int wrong = 0;

	(void)state;
	assert_int_equal(percpu_histogram_init(&common, 8), 0);
	assert_int_equal(percpu_snapshot_init(&in_child, 8), 0);
	assert_int_equal(percpu_snapshot_init(&drained, 8), 0);
	recording = 1;
	assert_int_equal(pthread_create(&thread, NULL, drain_often, &drained), 0);
	for (int i = 0; i < 30 && !wrong; i++) {
		int status = -1;
		pid_t child = fork();

		if (child == 0)
			_exit(use_in_child());
		/* All signals are blocked while it waits for a lock, so it cannot end itself. */
		for (int turn = 0; turn < 5000 && waitpid(child, &status, WNOHANG) != child; turn++)
			usleep(1000);
		if (status == -1) {
			kill(child, SIGKILL);
			waitpid(child, &status, 0);
		}
		wrong = status;
	}
	__atomic_store_n(&recording, 0, __ATOMIC_RELEASE);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(wrong, 0);
	percpu_snapshot_destroy(&drained);
	percpu_snapshot_destroy(&in_child);
	percpu_histogram_destroy(&common);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(buckets_cover_all_values_once),
		cmocka_unit_test(random_values_fall_into_their_buckets),
		cmocka_unit_test(arguments),
		cmocka_unit_test(percentiles_are_as_near_as_stated),
		cmocka_unit_test(every_bucket_counts),
		cmocka_unit_test(drains_are_exact),
		cmocka_unit_test(drains_at_once),
		cmocka_unit_test(shared_drains_are_exact),
		cmocka_unit_test(forks_among_drains),
	};

	return unit_main(tests);
}
