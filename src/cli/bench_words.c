/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: reading the CPU number, and the ways to count.
 *
 * Rivals get what they would get in a careful program: words that threads share lie in cache lines of their own, and
 * atomic additions are relaxed.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cli/bench.h"

/* ---- What glibc 2.35 and later tell about the registration of their threads; absent elsewhere. */

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

struct percpu__rseq *bench_raw_rseq(void)
{
	return (struct percpu__rseq *)(void *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

const char *bench_skip_raw_rseq(void)
{
	if (!&__rseq_offset || !&__rseq_size)
		return "this C library has no __rseq_offset";
	if (!__rseq_size || (int)bench_raw_rseq()->cpu_id < 0)
		return "the C library has not registered its threads for restartable sequences";
	return NULL;
}

const char *bench_skip_sched_getcpu(void)
{
	return sched_getcpu() < 0 ? "sched_getcpu() fails here" : NULL;
}

/* ---- cpu_number */

static int (*vdso_getcpu)(unsigned *cpu, unsigned *node, void *unused);

static const char *skip_vdso(void)
{
	static const struct {
		const char *object, *symbol;
	} names[] = { { "linux-vdso.so.1", "__vdso_getcpu" }, { "linux-vdso.so.1", "__kernel_getcpu" } };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && !vdso_getcpu; i++) {
		void *object = dlopen(names[i].object, RTLD_LAZY | RTLD_NOLOAD);
		void *symbol = object ? dlsym(object, names[i].symbol) : NULL;

		memcpy(&vdso_getcpu, &symbol, sizeof(symbol));
		if (object)
			dlclose(object);
	}
	return vdso_getcpu ? NULL : "the kernel's vDSO offers no getcpu here";
}

static const char *skip_getcpu_syscall(void)
{
	return syscall(SYS_getcpu, NULL, NULL, NULL) ? "the system call getcpu fails here" : NULL;
}

BENCH_LOOP cpu_number_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		BENCH_USE(percpu_cpu());
}

BENCH_LOOP cpu_number_raw_field(struct bench_worker *worker, uint64_t n)
{
	const struct percpu__rseq *area = bench_raw_rseq();

	(void)worker;
	for (; n; n--)
		BENCH_USE(*(const volatile uint32_t *)&area->cpu_id);
}

BENCH_LOOP cpu_number_sched_getcpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		BENCH_USE(sched_getcpu());
}

BENCH_LOOP cpu_number_vdso(struct bench_worker *worker, uint64_t n)
{
	unsigned cpu;

	(void)worker;
	for (; n; n--) {
		vdso_getcpu(&cpu, NULL, NULL);
		BENCH_USE(cpu);
	}
}

BENCH_LOOP cpu_number_syscall(struct bench_worker *worker, uint64_t n)
{
	unsigned cpu;

	(void)worker;
	for (; n; n--) {
		syscall(SYS_getcpu, &cpu, NULL, NULL);
		BENCH_USE(cpu);
	}
}

static const struct bench_subject cpu_number_subjects[] = {
	{ .name = "percpu",
	  .what = "percpu_cpu()",
	  .loop = cpu_number_percpu,
	  .published_ns = 0.8,
	  .published_ratio = "1x" },
	{ .name = "raw_field",
	  .what = "the kernel's cpu_id field, found through __rseq_offset",
	  .loop = cpu_number_raw_field,
	  .skip = bench_skip_raw_rseq },
	{ .name = "sched_getcpu",
	  .what = "the C library's call",
	  .loop = cpu_number_sched_getcpu,
	  .skip = bench_skip_sched_getcpu,
	  .published_ns = 16.6,
	  .published_ratio = "21x" },
	{ .name = "getcpu_vdso",
	  .what = "the kernel's code mapped into the process",
	  .loop = cpu_number_vdso,
	  .skip = skip_vdso },
	{ .name = "getcpu_syscall",
	  .what = "the system call",
	  .loop = cpu_number_syscall,
	  .skip = skip_getcpu_syscall,
	  .published_ns = 53.9,
	  .published_ratio = "67x" },
	{ .name = NULL },
};

const struct bench bench_cpu_number = {
	.name = "cpu_number",
	.what = "read the number of the current CPU",
	.subjects = cpu_number_subjects,
};

/* ---- counter_add */

struct line {
	BENCH_ALIGNED uint64_t word;
};

static struct {
	BENCH_ALIGNED struct percpu_counter counter;
	BENCH_ALIGNED uint64_t shared;
	BENCH_ALIGNED pthread_mutex_t mutex; /* guards the next; in one line with it */
	uint64_t locked;
	BENCH_ALIGNED struct line *by_cpu;
} counting = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static __thread uint64_t tls_word;

static uint64_t by_cpu_sum(void)
{
	uint64_t sum = 0;

	for (unsigned cpu = 0; cpu < percpu_possible_cpus(); cpu++)
		sum += counting.by_cpu[cpu].word;
	return sum;
}

BENCH_LOOP counter_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		percpu_counter_add(&counting.counter, 1);
}

BENCH_LOOP counter_plain(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--)
		BENCH_PLAIN_ADD(worker->plain, 1);
}

BENCH_LOOP counter_tls(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		BENCH_PLAIN_ADD(tls_word, 1);
}

BENCH_LOOP counter_getcpu_atomic(struct bench_worker *worker, uint64_t n)
{
	struct line *by_cpu = counting.by_cpu;

	(void)worker;
	for (; n; n--)
		__atomic_fetch_add(&by_cpu[sched_getcpu()].word, 1, __ATOMIC_RELAXED);
}

BENCH_LOOP counter_shared_atomic(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		__atomic_fetch_add(&counting.shared, 1, __ATOMIC_RELAXED);
}

BENCH_LOOP counter_mutex(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		pthread_mutex_lock(&counting.mutex);
		counting.locked++;
		pthread_mutex_unlock(&counting.mutex);
	}
}

enum { COUNTER_PERCPU, COUNTER_PLAIN, COUNTER_TLS, COUNTER_GETCPU_ATOMIC, COUNTER_SHARED_ATOMIC, COUNTER_MUTEX };

static const struct bench_subject counter_subjects[] = {
	[COUNTER_PERCPU] = { .name = "percpu",
			     .what = "percpu_counter_add()",
			     .loop = counter_percpu,
			     .published_ns = 2.0,
			     .published_ratio = "1x" },
	[COUNTER_PLAIN] = { .name = "plain",
			    .what = "each thread adds to a word of its own in memory: the limit",
			    .loop = counter_plain },
	[COUNTER_TLS] = { .name = "tls", .what = "the same, in thread-local storage", .loop = counter_tls },
	[COUNTER_GETCPU_ATOMIC] = { .name = "getcpu_atomic",
				    .what = "sched_getcpu() and an atomic add on that CPU's line",
				    .loop = counter_getcpu_atomic,
				    .skip = bench_skip_sched_getcpu,
				    .published_ns = 15.3,
				    .published_ratio = "7.7x" },
	[COUNTER_SHARED_ATOMIC] = { .name = "shared_atomic",
				    .what = "an atomic add on one word for all",
				    .loop = counter_shared_atomic },
	[COUNTER_MUTEX] = { .name = "mutex", .what = "one word under a pthread mutex", .loop = counter_mutex },
	{ .name = NULL },
};

static int counter_setup(unsigned threads)
{
	size_t size = percpu_possible_cpus() * sizeof(*counting.by_cpu);

	(void)threads;
	counting.shared = counting.locked = 0;
	counting.by_cpu = aligned_alloc(_Alignof(struct line), size);
	if (!counting.by_cpu)
		return -ENOMEM;
	memset(counting.by_cpu, 0, size);
	return percpu_counter_init(&counting.counter);
}

static const char *counter_check(const uint64_t *done)
{
	if (percpu_counter_read(&counting.counter) != done[COUNTER_PERCPU])
		return "the per-CPU counter does not hold what was added";
	if (by_cpu_sum() != done[COUNTER_GETCPU_ATOMIC] || counting.shared != done[COUNTER_SHARED_ATOMIC] ||
	    counting.locked != done[COUNTER_MUTEX])
		return "a counter does not hold what was added";
	return NULL;
}

static void counter_teardown(void)
{
	if (counting.counter.words)
		percpu_counter_destroy(&counting.counter);
	memset(&counting.counter, 0, sizeof(counting.counter));
	free(counting.by_cpu);
	counting.by_cpu = NULL;
}

const struct bench bench_counter_add = {
	.name = "counter_add",
	.what = "add 1 to a counter",
	.subjects = counter_subjects,
	.setup = counter_setup,
	.check = counter_check,
	.teardown = counter_teardown,
};

/* ---- histogram_record */

#define PRECISION 5 /* values within 1.6 % */
#define BUCKETS   PERCPU_HISTOGRAM_BUCKETS(PRECISION)

struct buckets {
	BENCH_ALIGNED uint64_t counts[BUCKETS];
};

static struct {
	BENCH_ALIGNED struct percpu_histogram histogram;
	BENCH_ALIGNED pthread_mutex_t mutex;
	struct buckets *locked;
	BENCH_ALIGNED struct buckets *by_cpu;
	struct buckets *by_thread;
} recording = { .mutex = PTHREAD_MUTEX_INITIALIZER };

/* 20 bits that walk over many buckets: one multiplication, the same for all. */
static inline uint64_t some_value(uint64_t n)
{
	return (n * 0x9e3779b97f4a7c15) >> 44;
}

static inline size_t bucket_of(uint64_t value)
{
	return percpu__bucket_of(value, PRECISION);
}

BENCH_LOOP histogram_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		percpu_histogram_record(&recording.histogram, some_value(n));
}

BENCH_LOOP histogram_plain(struct bench_worker *worker, uint64_t n)
{
	uint64_t *counts = recording.by_thread[worker->id].counts;

	for (; n; n--)
		BENCH_PLAIN_ADD(counts[bucket_of(some_value(n))], 1);
}

BENCH_LOOP histogram_getcpu_atomic(struct bench_worker *worker, uint64_t n)
{
	struct buckets *by_cpu = recording.by_cpu;

	(void)worker;
	for (; n; n--)
		__atomic_fetch_add(&by_cpu[sched_getcpu()].counts[bucket_of(some_value(n))], 1, __ATOMIC_RELAXED);
}

BENCH_LOOP histogram_mutex(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		pthread_mutex_lock(&recording.mutex);
		recording.locked->counts[bucket_of(some_value(n))]++;
		pthread_mutex_unlock(&recording.mutex);
	}
}

enum { HISTOGRAM_PERCPU, HISTOGRAM_PLAIN, HISTOGRAM_GETCPU_ATOMIC, HISTOGRAM_MUTEX };

static const struct bench_subject histogram_subjects[] = {
	[HISTOGRAM_PERCPU] = { .name = "percpu", .what = "percpu_histogram_record()", .loop = histogram_percpu },
	[HISTOGRAM_PLAIN] = { .name = "plain",
			      .what = "each thread its own buckets: the limit",
			      .loop = histogram_plain },
	[HISTOGRAM_GETCPU_ATOMIC] = { .name = "getcpu_atomic",
				      .what = "sched_getcpu() and an atomic add in that CPU's buckets",
				      .loop = histogram_getcpu_atomic,
				      .skip = bench_skip_sched_getcpu },
	[HISTOGRAM_MUTEX] = { .name = "mutex",
			      .what = "buckets for all under a pthread mutex",
			      .loop = histogram_mutex },
	{ .name = NULL },
};

static struct buckets *make_buckets(size_t count)
{
	struct buckets *buckets = aligned_alloc(_Alignof(struct buckets), count * sizeof(*buckets));

	if (buckets)
		memset(buckets, 0, count * sizeof(*buckets));
	return buckets;
}

static int histogram_setup(unsigned threads)
{
	recording.locked = make_buckets(1);
	recording.by_cpu = make_buckets(percpu_possible_cpus());
	recording.by_thread = make_buckets(threads);
	if (!recording.locked || !recording.by_cpu || !recording.by_thread)
		return -ENOMEM;
	return percpu_histogram_init(&recording.histogram, PRECISION);
}

static const char *histogram_check(const uint64_t *done)
{
	struct percpu_snapshot snapshot;
	uint64_t total;
	int rc;

	if (percpu_snapshot_init(&snapshot, PRECISION))
		return "no memory";
	rc = percpu_histogram_read(&recording.histogram, -1, &snapshot);
	total = snapshot.total;
	percpu_snapshot_destroy(&snapshot);
	if (rc || total != done[HISTOGRAM_PERCPU])
		return "the per-CPU histogram does not hold what was recorded";
	return NULL;
}

static void histogram_teardown(void)
{
	if (recording.histogram.buckets)
		percpu_histogram_destroy(&recording.histogram);
	memset(&recording.histogram, 0, sizeof(recording.histogram));
	free(recording.by_thread);
	free(recording.by_cpu);
	free(recording.locked);
	recording.by_thread = recording.by_cpu = recording.locked = NULL;
}

const struct bench bench_histogram_record = {
	.name = "histogram_record",
	.what = "count a value in a histogram",
	.subjects = histogram_subjects,
	.setup = histogram_setup,
	.check = histogram_check,
	.teardown = histogram_teardown,
};

/* ---- slow_path */

static uint64_t *slow_word;

BENCH_LOOP slow_add(struct bench_worker *worker, uint64_t n)
{
	uint64_t *word = slow_word;

	(void)worker;
	for (; n; n--)
		percpu_this_add(word, 1);
}

enum { SLOW_PERCPU, SLOW_GATE, SLOW_REMAINDER, SLOW_COUNTER };

static const struct bench_subject slow_subjects[] = {
	[SLOW_PERCPU] = { .name = "percpu", .what = "percpu_this_add(), in its section", .loop = slow_add },
	[SLOW_GATE] = { .name = "percpu_gate",
			.what = "the same, held off its section: gate, fence, add",
			.loop = slow_add,
			.force = PERCPU__FORCE_GATE },
	[SLOW_REMAINDER] = { .name = "percpu_remainder",
			     .what = "the same in a thread that is not registered",
			     .loop = slow_add,
			     .force = PERCPU__FORCE_REMAINDER },
	[SLOW_COUNTER] = { .name = "counter_remainder",
			   .what = "percpu_counter_add() in such a thread",
			   .loop = counter_percpu,
			   .force = PERCPU__FORCE_REMAINDER },
	{ .name = NULL },
};

static int slow_setup(unsigned threads)
{
	(void)threads;
	slow_word = percpu_alloc(sizeof(*slow_word), 64);
	if (!slow_word)
		return -ENOMEM;
	return percpu_counter_init(&counting.counter);
}

static const char *slow_check(const uint64_t *done)
{
	uint64_t sum = 0;

	percpu_for_each_index(index)
		sum += *percpu_ptr(slow_word, index);
	if (sum != done[SLOW_PERCPU] + done[SLOW_GATE] + done[SLOW_REMAINDER] ||
	    percpu_counter_read(&counting.counter) != done[SLOW_COUNTER])
		return "what was added is not there";
	return NULL;
}

static void slow_teardown(void)
{
	if (counting.counter.words)
		percpu_counter_destroy(&counting.counter);
	memset(&counting.counter, 0, sizeof(counting.counter));
	percpu_free(slow_word);
	slow_word = NULL;
}

const struct bench bench_slow_path = {
	.name = "slow_path",
	.what = "add 1 to a per-CPU word, on and off the fast path",
	.subjects = slow_subjects,
	.setup = slow_setup,
	.check = slow_check,
	.teardown = slow_teardown,
};
