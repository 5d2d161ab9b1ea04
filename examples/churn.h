/* SPDX-License-Identifier: MIT */
/*
 * What the examples share, and no part of what they show: threads that repeat one step for a while, and are moved between
 * CPUs, made to yield, and interrupted by a timer whose handler makes a step too.
 */
#ifndef EXAMPLES_CHURN_H
#define EXAMPLES_CHURN_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define CHURN_MOST_THREADS 64

struct churn {
	void (*step)(uint64_t random, int in_handler);
	cpu_set_t cpus;
	int stop;
	uint64_t steps;
};

static struct churn churn;
static __thread uint64_t churn_random; /* never 0 in a thread that makes steps */

/* Something does not add up: says so, also in a handler, and ends the process. */
static void wrong(const char *what)
{
	if (write(STDERR_FILENO, what, strlen(what)) < 0 || write(STDERR_FILENO, "\n", 1) < 0)
		_exit(2);
	_exit(1);
}

static uint64_t churn_draw(void)
{
	uint64_t x = churn_random;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	churn_random = x;
	return x >> 8;
}

static void churn_interrupt(int signal)
{
	(void)signal;
	churn.step(churn_draw(), 1);
}

static void churn_move(void)
{
	unsigned n = (unsigned)CPU_COUNT(&churn.cpus), chosen = (unsigned)(churn_draw() % (n + 1));
	cpu_set_t one;

	CPU_ZERO(&one);
	for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &churn.cpus) && chosen-- == 0)
			CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof one, CPU_COUNT(&one) ? &one : &churn.cpus);
}

static void *churn_thread(void *arg)
{
	uint64_t steps = 0;
	sigset_t alarms;

	churn_random = (uint64_t)(uintptr_t)arg * UINT64_C(0x9e3779b97f4a7c15);
	sigemptyset(&alarms);
	sigaddset(&alarms, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &alarms, NULL);
	for (; !__atomic_load_n(&churn.stop, __ATOMIC_RELAXED); steps++) {
		churn.step(churn_draw(), 0);
		if (steps % 1024 == 0)
			churn_move();
		else if (steps % 256 == 0)
			sched_yield();
	}
	__atomic_fetch_add(&churn.steps, steps, __ATOMIC_RELAXED);
	return NULL;
}

/* Arguments of the program: seconds, threads. Returns when all threads have ended. */
static void churn_run(int argc, char **argv, void (*step)(uint64_t random, int in_handler))
{
	double seconds = argc > 1 ? atof(argv[1]) : 1;
	unsigned threads = argc > 2 ? (unsigned)atoi(argv[2]) : 4;
	struct timespec duration = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };
	struct itimerval often = { { 0, 300 }, { 0, 300 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigaction action = { .sa_handler = churn_interrupt, .sa_flags = SA_RESTART };
	pthread_t thread[CHURN_MOST_THREADS];
	sigset_t alarms;

	if (!(seconds > 0) || !threads || threads > CHURN_MOST_THREADS)
		wrong("usage: [seconds [threads (1 to 64)]]");
	churn.step = step;
	if (sched_getaffinity(0, sizeof churn.cpus, &churn.cpus) || sigaction(SIGALRM, &action, NULL))
		wrong("cannot prepare");
	/* The timer's signals go to the threads, which let them through. */
	sigemptyset(&alarms);
	sigaddset(&alarms, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarms, NULL);
	for (uintptr_t i = 0; i < threads; i++)
		if (pthread_create(&thread[i], NULL, churn_thread, (void *)(i + 1)))
			wrong("cannot create threads");
	setitimer(ITIMER_REAL, &often, NULL);
	nanosleep(&duration, NULL);
	__atomic_store_n(&churn.stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	setitimer(ITIMER_REAL, &never, NULL);
}

#endif
