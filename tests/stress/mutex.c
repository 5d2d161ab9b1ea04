/* SPDX-License-Identifier: MIT */
/*
 * mutex [SECONDS]: threads of every sort lock one mutex in every way, and add to what it guards by plain loads and stores,
 * while they are moved between CPUs, signalled, and while the process forks. Every addition is there in the end. After each
 * storm few of them go on, with nobody else to mend a lost wake-up: then somebody hangs, and the alarm tells.
 *
 * Then processes that lock a robust mutex in shared memory are killed at any moment: whoever is told so finds at most one
 * half-done addition, and mends it; nobody hangs.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <percpu/mutex.h>

#include "rseq/thread.h"

#define WORKERS   8
#define PROCESSES 4

static struct {
	struct percpu_mutex mutex;
	uint64_t count, twice;
} * guarded;
static uint32_t stop, calm, wrong;

static struct worker {
	pthread_t thread;
	unsigned number;
	uint64_t added;
} workers[WORKERS];

static void complain(void)
{
	__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void add(uint64_t random)
{
	uint64_t was = *(volatile uint64_t *)&guarded->count;

	if (guarded->twice != was)
		complain();
	*(volatile uint64_t *)&guarded->count = was + 1;
	if (random % 64 == 0)
		sched_yield();
	if (random % 2048 == 0)
		usleep(50);
	guarded->twice = was + 1;
}

static void on_signal(int sig)
{
	(void)sig;
	if (percpu_mutex_trylock(&guarded->mutex))
		return;
	add(1);
	percpu_mutex_unlock(&guarded->mutex);
	__atomic_fetch_add(&workers[0].added, 1, __ATOMIC_RELAXED);
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

/* Returns whether it has added one. */
static bool step(uint64_t random)
{
	unsigned what = (unsigned)(random % 100);
	struct timespec moment;
	clockid_t clock = what % 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME;

	if (what < 20) {
		if (percpu_mutex_trylock(&guarded->mutex))
			return false;
	} else if (what < 45) {
		clock_gettime(clock, &moment);
		moment.tv_nsec += (long)(random >> 8) % 100000;
		if (moment.tv_nsec >= 1000000000) {
			moment.tv_nsec -= 1000000000;
			moment.tv_sec++;
		}
		if (percpu_mutex_timedlock(&guarded->mutex, clock, &moment))
			return false;
	} else {
		percpu_mutex_lock(&guarded->mutex);
	}
	add(random >> 16);
	percpu_mutex_unlock(&guarded->mutex);
	return true;
}

static void *work(void *arg)
{
	struct worker *me = arg;
	uint64_t random = me->number * 7919 + 13, added = 0;

	if (me->number == 1)
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		/* In calm times only plain locks of two, who sleep between them. */
		if (__atomic_load_n(&calm, __ATOMIC_RELAXED)) {
			if (me->number < 2) {
				percpu_mutex_lock(&guarded->mutex);
				usleep((useconds_t)(random % 200));
				add(1);
				added++;
				percpu_mutex_unlock(&guarded->mutex);
			} else {
				usleep(500);
			}
			next_random(&random);
			continue;
		}
		added += step(next_random(&random));
		if (random % 1500 == 0)
			move(random >> 12);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	__atomic_fetch_add(&me->added, added, __ATOMIC_RELAXED);
	return NULL;
}

static void *add_some(void *arg)
{
	uint64_t random = 99;

	for (int i = 0; i < 300; i++)
		while (!step(next_random(&random)))
			;
	return arg;
}

/* In a child of a fork while this thread held it. */
static int go_on(void)
{
	pthread_t threads[2];
	uint64_t before = guarded->count;

	percpu_mutex_unlock(&guarded->mutex);
	for (int i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, add_some, NULL))
			return 1;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	return wrong || guarded->count != before + 600;
}

static void fork_once(void)
{
	sigset_t set, old;
	int status;
	pid_t child;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &old);
	percpu_mutex_lock(&guarded->mutex);
	child = fork();
	if (child == 0) {
		alarm(60);
		_exit(go_on());
	}
	percpu_mutex_unlock(&guarded->mutex);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (child < 0 || waitpid(child, &status, 0) != child || status) {
		printf("child: status %#x\n", (unsigned)status);
		complain();
	}
}

static int storm(time_t end)
{
	uint64_t expected = 0;
	unsigned forks = 0;

	for (unsigned i = 0; i < WORKERS; i++) {
		workers[i].number = i;
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			return 1;
	}
	while (time(NULL) < end) {
		for (int i = 0; i < 40; i++) {
			pthread_kill(workers[i % WORKERS].thread, SIGUSR1);
			usleep(300);
		}
		fork_once();
		__atomic_store_n(&calm, forks++ % 2, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(workers[i].thread, NULL);
	for (unsigned i = 0; i < WORKERS; i++)
		expected += workers[i].added;
	printf("additions %llu, found %llu, forks %u, wrong %u\n", (unsigned long long)expected,
	       (unsigned long long)guarded->count, forks, wrong);
	return expected != guarded->count || expected != guarded->twice || wrong ||
	       percpu_mutex_trylock(&guarded->mutex);
}

static struct {
	struct percpu_robust_mutex mutex;
	uint64_t count, twice;
	uint64_t mended, wrong, done[PROCESSES];
} * shared;

static void add_for_ever(unsigned number, uint64_t random)
{
	for (;;) {
		int rc;

		do {
			struct timespec moment;

			clock_gettime(CLOCK_MONOTONIC, &moment);
			moment.tv_sec += (time_t)(next_random(&random) % 4);
			rc = random % 8 == 0   ? percpu_robust_mutex_trylock(&shared->mutex)
			     : random % 8 == 1 ? percpu_robust_mutex_timedlock(&shared->mutex, CLOCK_MONOTONIC, &moment)
					       : percpu_robust_mutex_lock(&shared->mutex);
		} while (rc == -EBUSY || rc == -ETIMEDOUT);
		if (rc == -EOWNERDEAD) {
			if (shared->count - shared->twice > 1)
				shared->wrong++;
			shared->twice = shared->count;
			shared->mended++;
			rc = percpu_robust_mutex_consistent(&shared->mutex);
		}
		if (rc || shared->count != shared->twice)
			shared->wrong++;
		__atomic_store_n(&shared->count, shared->count + 1, __ATOMIC_RELAXED);
		if (random % 16 == 0)
			sched_yield();
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		__atomic_store_n(&shared->twice, shared->twice + 1, __ATOMIC_RELAXED);
		shared->done[number]++;
		if (percpu_robust_mutex_unlock(&shared->mutex))
			shared->wrong++;
	}
}

static pid_t start(unsigned number, uint64_t random)
{
	pid_t child = fork();

	if (child == 0) {
		alarm(100);
		add_for_ever(number, random);
	}
	return child;
}

static int kill_owners(time_t end)
{
	uint64_t random = 4711, before, kills = 0;
	pid_t children[PROCESSES];
	int status;

	if (percpu_robust_mutex_init(&shared->mutex, PERCPU_MUTEX_SHARED))
		return 1;
	for (unsigned i = 0; i < PROCESSES; i++)
		children[i] = start(i, i + 1);
	while (time(NULL) < end) {
		unsigned which = (unsigned)(next_random(&random) % PROCESSES);

		usleep((useconds_t)(random >> 20) % 2000);
		kill(children[which], SIGKILL);
		if (waitpid(children[which], &status, 0) != children[which] || !WIFSIGNALED(status) ||
		    WTERMSIG(status) != SIGKILL)
			shared->wrong++;
		children[which] = start(which, random);
		kills++;
	}
	/* Nobody is killed any more: all go on. */
	for (unsigned i = 0; i < PROCESSES; i++) {
		before = __atomic_load_n(&shared->done[i], __ATOMIC_RELAXED);
		for (int turn = 0; turn < 20000 && __atomic_load_n(&shared->done[i], __ATOMIC_RELAXED) == before;
		     turn++)
			usleep(1000);
		if (shared->done[i] == before)
			shared->wrong++;
	}
	for (unsigned i = 0; i < PROCESSES; i++) {
		kill(children[i], SIGKILL);
		waitpid(children[i], &status, 0);
	}
	printf("robust: additions %llu, killed %llu, mended %llu, wrong %llu\n", (unsigned long long)shared->count,
	       (unsigned long long)kills, (unsigned long long)shared->mended, (unsigned long long)shared->wrong);
	return shared->wrong != 0 || !shared->count;
}

int main(int argc, char **argv)
{
	int seconds = argc > 1 ? atoi(argv[1]) : 4, rc;

	alarm((unsigned)seconds + 100);
	guarded = aligned_alloc(64, 64);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!guarded || shared == MAP_FAILED)
		return 1;
	memset(guarded, 0, 64);
	signal(SIGUSR1, on_signal);
	rc = storm(time(NULL) + (seconds + 1) / 2);
	return kill_owners(time(NULL) + (seconds + 1) / 2) || rc;
}
