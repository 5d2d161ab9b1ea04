/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: the threads and the rounds.
 *
 * Worker 0 leads: it chooses the subject and the number of operations of the next round, everybody does them between two
 * barriers, and it takes the time. First each subject is calibrated to a round of the wanted length, then rounds go
 * round-robin over the subjects, starting one further each time, until the time is spent.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/bench.h"

#define MIN_ROUNDS 5
#define MAX_ROUNDS 200
/* Longer than threads need to come out of a barrier, much shorter than a round. */
#define MEET_NS 200e3
/* With more threads than CPUs a round is made longer, so that waking everybody up does not dominate it. */
#define MAX_LONGER 8.0

struct bench_run {
	const struct bench *bench;
	unsigned threads;
	bool crowded; /* more threads than CPUs */
	double seconds, round_ns;
	struct bench_cell *cells;
	struct bench_worker *workers;
	pthread_mutex_t gate; /* held until it is known whether all threads could be made */
	bool cancelled;
	pthread_barrier_t barrier;
	/* The round: written by worker 0 before the first barrier. */
	const struct bench_subject *subject;
	uint64_t n;
	atomic_uint met;
	atomic_bool over;
	uint64_t *done; /* operations by subject */
	double *times;  /* MAX_ROUNDS of each subject */
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

unsigned bench_cpus(void)
{
	cpu_set_t *set;
	unsigned count = 1;

	for (unsigned bits = 1024; bits <= 1 << 20; bits *= 2) {
		size_t size = bits / 8;
		int rc;

		set = malloc(size);
		if (!set)
			break;
		rc = sched_getaffinity(0, size, set);
		if (!rc)
			count = (unsigned)CPU_COUNT_S(size, set);
		free(set);
		if (!rc || errno != EINVAL)
			break;
	}
	return count ? count : 1;
}

size_t bench_subjects(const struct bench *bench)
{
	size_t count = 0;

	while (bench->subjects[count].name)
		count++;
	return count;
}

/* Start together as far as possible: threads leave a barrier one after the other. */
static void meet(struct bench_run *run)
{
	double until;

	atomic_fetch_add(&run->met, 1);
	if (run->crowded)
		return;
	until = now() + MEET_NS;
	while (atomic_load(&run->met) < run->threads && now() < until)
		;
}

/* Between the barriers of a round. */
static void take_part(struct bench_worker *worker)
{
	struct bench_run *run = worker->run;
	const struct bench_subject *subject = run->subject;

	percpu__thread_force(subject->force);
	meet(run);
	worker->start = now();
	if (!subject->alone || worker->id == 0) {
		subject->loop(worker, run->n);
	} else {
		while (!atomic_load_explicit(&run->over, memory_order_relaxed))
			;
	}
	worker->end = now();
	if (worker->id == 0)
		atomic_store(&run->over, true);
	percpu__thread_force(PERCPU__FORCE_OFF);
}

/* Returns the time of the round in ns. */
static double lead_round(struct bench_run *run, size_t subject, uint64_t n)
{
	struct bench_worker *self = &run->workers[0];
	double start, end;
	unsigned active;

	run->subject = &run->bench->subjects[subject];
	run->n = n;
	atomic_store(&run->met, 0);
	atomic_store(&run->over, false);
	pthread_barrier_wait(&run->barrier);
	take_part(self);
	pthread_barrier_wait(&run->barrier);

	active = run->subject->alone ? 1 : run->threads;
	start = self->start;
	end = self->end;
	for (unsigned i = 1; i < active; i++) {
		if (run->workers[i].start < start)
			start = run->workers[i].start;
		if (run->workers[i].end > end)
			end = run->workers[i].end;
	}
	run->done[subject] += n * active;
	return end > start ? end - start : 1;
}

/* What is known of a subject while its bench runs. */
struct progress {
	uint64_t n;    /* operations in a round; 0 if it is skipped */
	size_t rounds; /* times taken with about this n */
	double *times; /* of these, in ns per operation; room for MAX_ROUNDS */
};

static void keep_time(struct progress *progress, double time)
{
	progress->times[progress->rounds++] = time / (double)progress->n;
}

/* The number of operations for a round of the wanted length, after one that took @time. */
static uint64_t better_n(const struct bench_run *run, const struct progress *progress, double time)
{
	double factor = run->round_ns / time;
	double n = (double)progress->n * (factor < 100 ? factor : 100);

	return n < 1 ? 1 : n > 1e10 ? (uint64_t)1e10 : (uint64_t)n + 1;
}

static void calibrate(struct bench_run *run, size_t subject, struct progress *progress)
{
	double time;

	progress->n = 1;
	while ((time = lead_round(run, subject, progress->n)) < run->round_ns / 3 && progress->n < (uint64_t)1e10)
		progress->n = better_n(run, progress, time);
	progress->n = better_n(run, progress, time);
}

/*
 * One more round. If it was far too short, then something else had the CPU while the number of operations was found:
 * nothing that was taken with so few of them counts, and the round is done again. But what one thread does alone may
 * really cost very different times in turn; there any round is exact, and only its length is kept in bounds.
 */
static void take_time(struct bench_run *run, size_t subject, struct progress *progress)
{
	double time = lead_round(run, subject, progress->n);

	if (run->bench->subjects[subject].alone) {
		keep_time(progress, time);
		if (time > run->round_ns * 4 || time < run->round_ns / 4)
			progress->n = better_n(run, progress, time);
		return;
	}
	while (time < run->round_ns / (progress->rounds ? 20 : 3) && progress->n < (uint64_t)1e10) {
		progress->n = better_n(run, progress, time);
		progress->rounds = 0;
		time = lead_round(run, subject, progress->n);
	}
	keep_time(progress, time);
}

static int compare_times(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static int lead(struct bench_run *run)
{
	size_t subjects = bench_subjects(run->bench);
	struct progress *all = calloc(subjects, sizeof(*all));
	double until = now() + run->seconds * 1e9;

	if (!all)
		return -ENOMEM;
	for (size_t s = 0; s < subjects; s++) {
		all[s].times = run->times + s * MAX_ROUNDS;
		if (!run->cells[s].skipped)
			calibrate(run, s, &all[s]);
	}
	for (size_t turn = 0; turn < MIN_ROUNDS || (turn < MAX_ROUNDS && now() < until); turn++) {
		for (size_t i = 0; i < subjects; i++) {
			size_t s = (turn + i) % subjects;

			if (all[s].n)
				take_time(run, s, &all[s]);
		}
	}
	for (size_t s = 0; s < subjects; s++) {
		double *times = all[s].times;
		size_t rounds = all[s].rounds;

		if (!all[s].n)
			continue;
		qsort(times, rounds, sizeof(*times), compare_times);
		run->cells[s].best = times[0];
		run->cells[s].median = (times[(rounds - 1) / 2] + times[rounds / 2]) / 2;
	}
	free(all);
	return 0;
}

/*
 * Several threads that could all run at once get a CPU each: woken together, they may else share one and never meet.
 * Only a matter of better numbers, so nothing is said where it fails.
 */
static void take_own_cpu(const struct bench_worker *worker)
{
	cpu_set_t allowed, own;
	unsigned nth = 0;

	if (worker->run->threads == 1 || worker->run->crowded || sched_getaffinity(0, sizeof(allowed), &allowed))
		return;
	for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET(cpu, &allowed) && nth++ == worker->id) {
			CPU_ZERO(&own);
			CPU_SET(cpu, &own);
			sched_setaffinity(0, sizeof(own), &own);
			return;
		}
	}
}

static void *work(void *arg)
{
	struct bench_worker *worker = arg;
	struct bench_run *run = worker->run;
	intptr_t rc = 0;

	pthread_mutex_lock(&run->gate);
	pthread_mutex_unlock(&run->gate);
	if (run->cancelled)
		return NULL;
	take_own_cpu(worker);
	if (run->bench->begin)
		run->bench->begin(worker);
	pthread_barrier_wait(&run->barrier);
	if (worker->id == 0) {
		rc = lead(run);
		run->subject = NULL;
		pthread_barrier_wait(&run->barrier);
		return (void *)rc;
	}
	for (;;) {
		pthread_barrier_wait(&run->barrier);
		if (!run->subject)
			return NULL;
		take_part(worker);
		pthread_barrier_wait(&run->barrier);
	}
}

/* Make the threads, wait for them. Returns 0 or -errno. */
static int run_threads(struct bench_run *run)
{
	pthread_t *threads = calloc(run->threads, sizeof(*threads));
	pthread_attr_t attr;
	unsigned made;
	int rc = 0;

	if (!threads)
		return -ENOMEM;
	if (run->bench->in_main && run->threads == 1) {
		pthread_mutex_init(&run->gate, NULL);
		pthread_barrier_init(&run->barrier, NULL, 1);
		run->workers[0].run = run;
		rc = (int)(intptr_t)work(&run->workers[0]);
		goto out;
	}
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 << 10);
	pthread_mutex_init(&run->gate, NULL);
	pthread_barrier_init(&run->barrier, NULL, run->threads);
	pthread_mutex_lock(&run->gate);
	for (made = 0; made < run->threads; made++) {
		run->workers[made].id = made;
		run->workers[made].run = run;
		rc = -pthread_create(&threads[made], &attr, work, &run->workers[made]);
		if (rc)
			break;
	}
	run->cancelled = rc != 0;
	pthread_mutex_unlock(&run->gate);
	for (unsigned i = 0; i < made; i++) {
		void *result;

		pthread_join(threads[i], &result);
		if (!rc)
			rc = (int)(intptr_t)result;
	}
	pthread_attr_destroy(&attr);
out:
	pthread_barrier_destroy(&run->barrier);
	pthread_mutex_destroy(&run->gate);
	free(threads);
	return rc;
}

int bench_run(const struct bench *bench, unsigned threads, double seconds, double round_ns, struct bench_cell *cells,
	      const char **error)
{
	size_t subjects = bench_subjects(bench);
	double crowd = (double)threads / bench_cpus();
	struct bench_run run = {
		.bench = bench,
		.threads = threads,
		.crowded = crowd > 1,
		.seconds = seconds,
		.round_ns = round_ns,
		.cells = cells,
	};
	int rc;

	if (crowd > 1)
		run.round_ns *= crowd < MAX_LONGER ? crowd : MAX_LONGER;
	for (size_t s = 0; s < subjects; s++) {
		const struct bench_subject *subject = &bench->subjects[s];

		cells[s] = (struct bench_cell){ .bench = bench, .subject = subject, .threads = threads };
		if (subject->skip)
			cells[s].skipped = subject->skip();
	}

	*error = "no memory";
	run.workers = aligned_alloc(_Alignof(struct bench_worker), threads * sizeof(*run.workers));
	run.done = calloc(subjects, sizeof(*run.done));
	run.times = calloc(subjects * MAX_ROUNDS, sizeof(*run.times));
	rc = -ENOMEM;
	if (!run.workers || !run.done || !run.times)
		goto out;
	memset(run.workers, 0, threads * sizeof(*run.workers));
	rc = bench->setup ? bench->setup(threads) : 0;
	if (!rc) {
		*error = "cannot start the threads";
		rc = run_threads(&run);
		if (!rc && bench->check) {
			*error = bench->check(run.done);
			rc = *error ? -EIO : 0;
		}
	}
	if (bench->teardown)
		bench->teardown();
out:
	free(run.times);
	free(run.done);
	free(run.workers);
	return rc;
}
