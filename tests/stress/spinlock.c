/* SPDX-License-Identifier: MIT */
/*
 * spinlock [SECONDS]: threads of every sort lock their own copies, given ones and all, and add to what those guard by plain
 * loads and stores, while they are moved between CPUs, signalled, and while the process forks. Every addition is there in
 * the end; no holder ever sees another's half-done work; children can use the lock after percpu_spinlock_init().
 *
 * The bias is given back after a few acquisitions instead of hundreds, so that it goes and comes all the time.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <percpu/spinlock.h>

#include "ds/spinlock.h"
#include "rseq/thread.h"

#define WORKERS 7

struct guarded {
	struct percpu_spinlock lock;
	uint64_t count, twice;
};

static struct guarded *guarded;
static uint32_t stop, wrong;
static __thread uint64_t added; /* by this thread and its handlers */

static struct worker {
	pthread_t thread;
	unsigned number;
	uint64_t added;
} workers[WORKERS];

static void complain(void)
{
	__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
}

static void add(struct guarded *g)
{
	uint64_t was = *(volatile uint64_t *)&g->count;

	if (g->twice != was)
		complain();
	*(volatile uint64_t *)&g->count = was + 1;
	if (was % 64 == 0)
		sched_yield();
	if (was % 4096 == 0)
		usleep(50);
	g->twice = was + 1;
	__atomic_store_n(&added, added + 1, __ATOMIC_RELAXED);
}

static void on_signal(int sig)
{
	struct guarded *g = (struct guarded *)percpu_spinlock_trylock(&guarded->lock);
	uint64_t was;

	(void)sig;
	if (!g)
		return;
	was = g->count;
	if (g->twice != was)
		complain();
	g->count = was + 1;
	g->twice = was + 1;
	percpu_spinlock_unlock(&g->lock);
	/* The thread may be in the middle of adding one itself. */
	__atomic_fetch_add(&workers[0].added, 1, __ATOMIC_RELAXED);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void move(uint64_t random)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t set;

	CPU_ZERO(&set);
	for (long cpu = 0; cpu < cpus; cpu++)
		if (random % 3 == 0 || (long)(random / 3) % cpus == cpu)
			CPU_SET((size_t)cpu, &set);
	sched_setaffinity(0, sizeof set, &set);
}

static void step(unsigned number, uint64_t *random)
{
	uint64_t what = next_random(random) % 1000;
	unsigned index = (unsigned)(*random >> 20) % percpu_copies();
	struct guarded *g = NULL;

	if (what < 3) {
		move(*random >> 12);
	} else if (what < 8 && number >= 3) {
		if (percpu_spinlock_lock_all(&guarded->lock))
			complain();
		percpu_for_each_index(i)
			add(percpu_ptr(guarded, i));
		percpu_spinlock_unlock_all(&guarded->lock);
	} else if (what < 14 && number >= 2 && index + 1 < percpu_copies()) {
		if (percpu_spinlock_lock_index(&guarded->lock, index) ||
		    percpu_spinlock_lock_index(&guarded->lock, index + 1))
			complain();
		add(percpu_ptr(guarded, index + 1));
		add(percpu_ptr(guarded, index));
		percpu_spinlock_unlock(&percpu_ptr(guarded, index)->lock);
		percpu_spinlock_unlock(&percpu_ptr(guarded, index + 1)->lock);
	} else if (what < 40 && number >= 2) {
		if (percpu_spinlock_lock_index(&guarded->lock, index))
			complain();
		g = percpu_ptr(guarded, index);
	} else if (what < 200) {
		g = (struct guarded *)percpu_spinlock_trylock(&guarded->lock);
	} else {
		g = (struct guarded *)percpu_spinlock_lock(&guarded->lock);
	}
	if (g) {
		add(g);
		percpu_spinlock_unlock(&g->lock);
	}
}

static void *work(void *arg)
{
	struct worker *me = arg;
	uint64_t random = me->number * 7919 + 13;

	if (me->number == 1)
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
	if (me->number == 2)
		percpu__thread_force(PERCPU__FORCE_GATE);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		step(me->number, &random);
	percpu__thread_force(PERCPU__FORCE_OFF);
	__atomic_fetch_add(&me->added, added, __ATOMIC_RELAXED);
	return NULL;
}

/* In a child of a fork that may have come at any moment of the others. */
static int use_alone(bool orderly)
{
	uint64_t random = 99;

	percpu_spinlock_init(&guarded->lock);
	/* What a holder was in the middle of stays half done, unless the fork waited for him. */
	percpu_for_each_index(i) {
		struct guarded *g = percpu_ptr(guarded, i);

		if (orderly && g->count != g->twice)
			return 1;
		g->count = g->twice;
	}
	for (int i = 0; i < 300; i++)
		step(3, &random);
	percpu_for_each_index(i)
		if (percpu_ptr(guarded, i)->lock.sleepers)
			return 2;
	return wrong != 0;
}

static void fork_once(bool orderly)
{
	int status;
	pid_t child;

	if (orderly && percpu_spinlock_lock_all(&guarded->lock))
		complain();
	child = fork();
	if (child == 0) {
		alarm(60);
		_exit(use_alone(orderly));
	}
	if (orderly)
		percpu_spinlock_unlock_all(&guarded->lock);
	if (child < 0 || waitpid(child, &status, 0) != child || status) {
		printf("child: status %#x\n", (unsigned)status);
		complain();
	}
}

int main(int argc, char **argv)
{
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 3);
	uint64_t sum = 0, expected = 0;
	unsigned forks = 0;

	percpu__spinlock_patience = 5;
	guarded = percpu_alloc(sizeof *guarded, 64);
	if (!guarded)
		return 1;
	signal(SIGUSR1, on_signal);
	for (unsigned i = 0; i < WORKERS; i++) {
		workers[i].number = i;
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			return 1;
	}
	while (time(NULL) < end) {
		for (int i = 0; i < 40; i++) {
			pthread_kill(workers[i % WORKERS].thread, SIGUSR1);
			usleep(200);
		}
		fork_once(forks++ % 2);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(workers[i].thread, NULL);
	for (unsigned i = 0; i < WORKERS; i++)
		expected += workers[i].added;
	percpu_for_each_index(i) {
		struct guarded *g = percpu_ptr(guarded, i);

		sum += g->count;
		if (g->count != g->twice || g->lock.held || g->lock.sleepers || g->lock.bias < 0 || g->lock.bias > 1)
			complain();
	}
	printf("additions %llu, found %llu, forks %u, wrong %u\n", (unsigned long long)expected,
	       (unsigned long long)sum, forks, wrong);
	return sum != expected || wrong;
}
