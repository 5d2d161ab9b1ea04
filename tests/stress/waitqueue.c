/* SPDX-License-Identifier: MIT */
/*
 * waitqueue [SECONDS]: a few tokens go round many threads. Each thread waits until it has one (on a queue, or an event count;
 * for ever, or for a random time and again), and gives it to the next, who is woken alone or with all. Only who has a token
 * wakes anybody: one wake-up lost, and a token stands still for ever, which the alarm tells. No token is lost or doubled.
 *
 * Signal handlers wake too, but only in the beginning, as that would hide what is lost.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <percpu/eventcount.h>
#include <percpu/rseq.h>
#include <percpu/waitqueue.h>

#include "rseq/thread.h"

#define WORKERS 7
#define TOKENS  2

static struct percpu_waitqueue queue = PERCPU_WAITQUEUE_INIT, places[WORKERS];
static struct percpu_eventcount event = PERCPU_EVENTCOUNT_INIT;
static uint32_t tokens[WORKERS], stop, wrong, noisy;

static struct worker {
	pthread_t thread;
	unsigned number;
	uint64_t passed;
	/* Where a waiter was: nobody may write there once it has returned. */
	struct percpu_waiter waiter;
} workers[WORKERS];

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void on_signal(int sig)
{
	(void)sig;
	if (!__atomic_load_n(&noisy, __ATOMIC_RELAXED))
		return;
	percpu_waitqueue_wake_all(&queue);
	percpu_waitqueue_wake(&places[0], 1);
	percpu_eventcount_notify_all(&event);
}

static bool has_one(unsigned number)
{
	return __atomic_load_n(&tokens[number], __ATOMIC_ACQUIRE) || __atomic_load_n(&stop, __ATOMIC_RELAXED);
}

/* Between a look at the token and the wait something may come. */
static void dawdle(uint64_t random)
{
	if ((random >> 42) % 16 == 0)
		sched_yield();
}

static void wait_in(struct percpu_waitqueue *in, struct worker *me, uint64_t random, const struct timespec *moment)
{
	static const struct percpu_waiter unused = { -1, -1, 0x55555555, 0x55555555 };

	percpu_waitqueue_add(in, &me->waiter);
	if (has_one(me->number)) {
		percpu_waitqueue_cancel(in, &me->waiter);
	} else {
		dawdle(random);
		percpu_waitqueue_wait(in, &me->waiter, CLOCK_MONOTONIC, moment);
	}
	me->waiter = unused;
	if (__atomic_load_n(&me->waiter.state, __ATOMIC_RELAXED) % 64 == 0)
		sched_yield();
	if (memcmp(&me->waiter, &unused, sizeof unused) != 0)
		__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
}

static void wait_once(struct worker *me, uint64_t random)
{
	struct timespec moment;
	bool timed = random % 5 == 0;

	if (timed) {
		clock_gettime(CLOCK_MONOTONIC, &moment);
		moment.tv_nsec += (long)(random >> 8) % 60000;
		if (moment.tv_nsec >= 1000000000) {
			moment.tv_nsec -= 1000000000;
			moment.tv_sec++;
		}
	}
	switch (random >> 40 & 3) {
	case 0:
		wait_in(&places[me->number], me, random, timed ? &moment : NULL);
		break;
	case 1: {
		uint32_t key = percpu_eventcount_prepare(&event);

		if (has_one(me->number)) {
			percpu_eventcount_cancel(&event);
		} else {
			dawdle(random);
			percpu_eventcount_wait(&event, key, CLOCK_MONOTONIC, timed ? &moment : NULL);
		}
		break;
	}
	default:
		wait_in(&queue, me, random, timed ? &moment : NULL);
	}
}

/* Wherever the next one waits. */
static void wake(unsigned number)
{
	percpu_waitqueue_wake(&places[number], 1);
	percpu_waitqueue_wake_all(&queue);
	percpu_eventcount_notify_all(&event);
}

static void *work(void *arg)
{
	struct worker *me = arg;
	uint64_t random = me->number * 7919 + 13;
	unsigned next = (me->number + 1) % WORKERS;

	if (me->number == 1)
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
	for (;;) {
		while (!has_one(me->number))
			wait_once(me, next_random(&random));
		if (__atomic_load_n(&stop, __ATOMIC_RELAXED))
			break;
		__atomic_fetch_sub(&tokens[me->number], 1, __ATOMIC_RELAXED);
		me->passed++;
		if (next_random(&random) % 512 == 0)
			usleep(20);
		__atomic_fetch_add(&tokens[next], 1, __ATOMIC_RELEASE);
		wake(next);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

int main(int argc, char **argv)
{
	int seconds = argc > 1 ? atoi(argv[1]) : 4;
	time_t begin = time(NULL), end = begin + seconds;
	unsigned given = 1;
	uint64_t passed = 0;
	uint32_t left = 0;

	alarm((unsigned)seconds + 60);
	signal(SIGUSR1, on_signal);
	for (unsigned i = 0; i < WORKERS; i++)
		workers[i].number = i;
	tokens[0] = 1; /* the others later: each mends what another has lost */
	for (unsigned i = 0; i < WORKERS; i++)
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			return 1;
	while (time(NULL) < end) {
		if (given < TOKENS && time(NULL) - begin >= seconds / 2) {
			__atomic_fetch_add(&tokens[given % WORKERS], 1, __ATOMIC_RELEASE);
			wake(given++ % WORKERS);
		}
		__atomic_store_n(&noisy, time(NULL) - begin < (seconds + 3) / 4, __ATOMIC_RELAXED);
		for (unsigned i = 0; i < 50; i++) {
			pthread_kill(workers[i % WORKERS].thread, SIGUSR1);
			usleep(500);
		}
		/* Quiet: only tokens wake. */
		usleep(30000);
	}
	for (; given < TOKENS; given++) {
		__atomic_fetch_add(&tokens[given % WORKERS], 1, __ATOMIC_RELEASE);
		wake(given % WORKERS);
	}
	/* Each goes on, without any help. */
	for (unsigned i = 0; i < WORKERS; i++) {
		uint64_t before = __atomic_load_n(&workers[i].passed, __ATOMIC_RELAXED);

		while (__atomic_load_n(&workers[i].passed, __ATOMIC_RELAXED) == before)
			usleep(1000);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < WORKERS; i++)
		wake(i);
	for (unsigned i = 0; i < WORKERS; i++) {
		pthread_join(workers[i].thread, NULL);
		passed += workers[i].passed;
		left += tokens[i];
		if (places[i].waiters || places[i].control)
			wrong++;
	}
	if (queue.waiters || queue.control || event.waiters || event.sleepers)
		wrong++;
	printf("passed %llu, tokens %u, wrong %u\n", (unsigned long long)passed, left, wrong);
	return left != TOKENS || wrong || !passed;
}
