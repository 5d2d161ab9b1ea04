/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: threads that wait for each other.
 *
 * eventcount_notify is what making a condition true costs while nobody waits for it, with a mutex around it where there
 * must be one. eventcount_turns is a pair of threads that give each other the turn: an operation is one turn, there and back
 * is two, so each of them waits and notifies all the time. eventcount_herd is one thread that wakes seven others and waits
 * until all have answered.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"

#define HERD 8

struct place {
	BENCH_ALIGNED uint64_t word; /* what is written; or the rounds that its thread has taken part in */
	pthread_mutex_t mutex;
	pthread_cond_t cond;
};

static struct {
	BENCH_ALIGNED struct percpu_eventcount event, answer;
	BENCH_ALIGNED struct percpu_waitqueue queue, answers;
	BENCH_ALIGNED pthread_mutex_t mutex;
	pthread_cond_t cond, answered;
	BENCH_ALIGNED uint64_t turn; /* whose is turn modulo the number of threads; or rounds of the herd */
	BENCH_ALIGNED uint64_t missing;
	struct place *places; /* of each thread */
	unsigned threads;
} world;

static int setup(unsigned threads)
{
	memset(&world, 0, sizeof world);
	world.threads = threads;
	world.places = aligned_alloc(_Alignof(struct place), threads * sizeof *world.places);
	if (!world.places)
		return -ENOMEM;
	pthread_mutex_init(&world.mutex, NULL);
	pthread_cond_init(&world.cond, NULL);
	pthread_cond_init(&world.answered, NULL);
	for (unsigned i = 0; i < threads; i++) {
		world.places[i].word = 0;
		pthread_mutex_init(&world.places[i].mutex, NULL);
		pthread_cond_init(&world.places[i].cond, NULL);
	}
	return 0;
}

static void teardown(void)
{
	free(world.places);
	world.places = NULL;
}

static uint64_t load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

BENCH_LOOP notify_percpu(struct bench_worker *worker, uint64_t n)
{
	struct place *mine = &world.places[worker->id];
	struct percpu_eventcount *event = &world.event;

	for (; n; n--) {
		__atomic_store_n(&mine->word, n, __ATOMIC_RELEASE);
		percpu_eventcount_notify_all(event);
	}
}

BENCH_LOOP notify_waitqueue(struct bench_worker *worker, uint64_t n)
{
	struct place *mine = &world.places[worker->id];
	struct percpu_waitqueue *queue = &world.queue;

	for (; n; n--) {
		__atomic_store_n(&mine->word, n, __ATOMIC_RELEASE);
		percpu_waitqueue_wake_all(queue);
	}
}

BENCH_LOOP notify_cond(struct bench_worker *worker, uint64_t n)
{
	struct place *mine = &world.places[worker->id];

	for (; n; n--) {
		pthread_mutex_lock(&mine->mutex);
		mine->word = n;
		pthread_mutex_unlock(&mine->mutex);
		pthread_cond_broadcast(&mine->cond);
	}
}

/* Waiting for a condition, in each of the ways. */
#define BY_EVENT(EVENT, CONDITION)                                                                                     \
	while (!(CONDITION)) {                                                                                         \
		uint32_t key = percpu_eventcount_prepare(EVENT);                                                       \
                                                                                                                       \
		if (CONDITION)                                                                                         \
			percpu_eventcount_cancel(EVENT);                                                               \
		else                                                                                                   \
			percpu_eventcount_wait(EVENT, key, CLOCK_MONOTONIC, NULL);                                     \
	}
#define BY_QUEUE(QUEUE, CONDITION)                                                                                     \
	while (!(CONDITION)) {                                                                                         \
		struct percpu_waiter waiter;                                                                           \
                                                                                                                       \
		percpu_waitqueue_add(QUEUE, &waiter);                                                                  \
		if (CONDITION)                                                                                         \
			percpu_waitqueue_cancel(QUEUE, &waiter);                                                       \
		else                                                                                                   \
			percpu_waitqueue_wait(QUEUE, &waiter, CLOCK_MONOTONIC, NULL);                                  \
	}

static bool is_turn(const struct bench_worker *worker)
{
	return load(&world.turn) % world.threads == worker->id;
}

static void pass_turn(void)
{
	__atomic_store_n(&world.turn, world.turn + 1, __ATOMIC_RELEASE);
}

BENCH_LOOP turns_percpu(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--) {
		BY_EVENT(&world.event, is_turn(worker))
		pass_turn();
		percpu_eventcount_notify_all(&world.event);
	}
}

BENCH_LOOP turns_waitqueue(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--) {
		BY_QUEUE(&world.queue, is_turn(worker))
		pass_turn();
		percpu_waitqueue_wake_all(&world.queue);
	}
}

BENCH_LOOP turns_cond(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--) {
		pthread_mutex_lock(&world.mutex);
		while (!is_turn(worker))
			pthread_cond_wait(&world.cond, &world.mutex);
		pass_turn();
		pthread_mutex_unlock(&world.mutex);
		pthread_cond_broadcast(&world.cond);
	}
}

/* Returns whether that was the last answer. */
static bool answer(void)
{
	return __atomic_sub_fetch(&world.missing, 1, __ATOMIC_ACQ_REL) == 0;
}

/* Each subject's loop: the first thread begins n rounds, the others answer. Nobody is a round ahead. */
BENCH_LOOP herd_percpu(struct bench_worker *worker, uint64_t n)
{
	for (uint64_t *rounds = &world.places[worker->id].word; n; n--) {
		uint64_t round = ++*rounds;

		if (worker->id == 0) {
			__atomic_store_n(&world.missing, world.threads - 1, __ATOMIC_RELAXED);
			__atomic_store_n(&world.turn, round, __ATOMIC_RELEASE);
			percpu_eventcount_notify_all(&world.event);
			BY_EVENT(&world.answer, load(&world.missing) == 0)
		} else {
			BY_EVENT(&world.event, load(&world.turn) >= round)
			if (answer())
				percpu_eventcount_notify_all(&world.answer);
		}
	}
}

BENCH_LOOP herd_waitqueue(struct bench_worker *worker, uint64_t n)
{
	for (uint64_t *rounds = &world.places[worker->id].word; n; n--) {
		uint64_t round = ++*rounds;

		if (worker->id == 0) {
			__atomic_store_n(&world.missing, world.threads - 1, __ATOMIC_RELAXED);
			__atomic_store_n(&world.turn, round, __ATOMIC_RELEASE);
			percpu_waitqueue_wake_all(&world.queue);
			BY_QUEUE(&world.answers, load(&world.missing) == 0)
		} else {
			BY_QUEUE(&world.queue, load(&world.turn) >= round)
			if (answer())
				percpu_waitqueue_wake_all(&world.answers);
		}
	}
}

BENCH_LOOP herd_cond(struct bench_worker *worker, uint64_t n)
{
	for (uint64_t *rounds = &world.places[worker->id].word; n; n--) {
		uint64_t round = ++*rounds;

		pthread_mutex_lock(&world.mutex);
		if (worker->id == 0) {
			world.missing = world.threads - 1;
			__atomic_store_n(&world.turn, round, __ATOMIC_RELEASE);
			pthread_cond_broadcast(&world.cond);
			while (world.missing)
				pthread_cond_wait(&world.answered, &world.mutex);
		} else {
			while (world.turn < round)
				pthread_cond_wait(&world.cond, &world.mutex);
			if (--world.missing == 0)
				pthread_cond_signal(&world.answered);
		}
		pthread_mutex_unlock(&world.mutex);
	}
}

static const struct bench_subject notify_subjects[] = {
	{ .name = "percpu", .what = "percpu_eventcount_notify_all()", .loop = notify_percpu },
	{ .name = "percpu_waitqueue", .what = "percpu_waitqueue_wake_all()", .loop = notify_waitqueue },
	{ .name = "pthread_cond", .what = "pthread_cond_broadcast(), and a mutex", .loop = notify_cond },
	{ .name = NULL },
};

static const struct bench_subject turns_subjects[] = {
	{ .name = "percpu", .what = "an event count", .loop = turns_percpu },
	{ .name = "percpu_waitqueue", .what = "a wait queue", .loop = turns_waitqueue },
	{ .name = "pthread_cond", .what = "a condition variable", .loop = turns_cond },
	{ .name = NULL },
};

static const struct bench_subject herd_subjects[] = {
	{ .name = "percpu", .what = "event counts", .loop = herd_percpu },
	{ .name = "percpu_waitqueue", .what = "wait queues", .loop = herd_waitqueue },
	{ .name = "pthread_cond", .what = "condition variables", .loop = herd_cond },
	{ .name = NULL },
};

const struct bench bench_eventcount_notify = {
	.name = "eventcount_notify",
	.what = "make a condition true that nobody waits for",
	.subjects = notify_subjects,
	.setup = setup,
	.teardown = teardown,
};

const struct bench bench_eventcount_turns = {
	.name = "eventcount_turns",
	.what = "two threads that give each other the turn",
	.subjects = turns_subjects,
	.threads = 2,
	.setup = setup,
	.teardown = teardown,
};

const struct bench bench_eventcount_herd = {
	.name = "eventcount_herd",
	.what = "wake 7 threads and wait until all have answered",
	.subjects = herd_subjects,
	.threads = HERD,
	.setup = setup,
	.teardown = teardown,
};
