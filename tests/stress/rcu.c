/* SPDX-License-Identifier: MIT */
/*
 * Torture of RCU: readers, updaters and stallers that are moved, interrupted, forced off their short ways and forked.
 *
 *   stress-rcu [--seconds N] [--mode libc|own|none] [--lie]
 *
 * Two structures, one read under the RCU for all and one in a domain, are a pointer to an element. Updaters put another
 * element there, wait for a grace period in one of all ways, and spoil the old one: no reader may see that. Callbacks are
 * counted. A forked child reads, and waits for grace periods, whoever was inside in its parent. --lie is the control:
 * percpu_fence() is a barrier of its caller only, and the test succeeds if that is found; it takes CPUs that run at the same
 * time. Exits with 1 and a line for what is wrong, 77 in another
 * mode than the one asked for.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <percpu.h>

#include "rseq/thread.h"

#define READERS  4
#define UPDATERS 2 /* of each structure */
#define ELEMENTS 512
#define SKIP     77

struct element {
	uint64_t serial; /* changes with each life */
	uint64_t alive;
	struct structure *home;
	struct percpu_rcu_head head;
	struct element *next; /* free */
};

static struct structure {
	struct element *now;
	bool in_domain;
	pthread_mutex_t lock; /* of the list of free ones */
	struct element *free;
	struct element elements[ELEMENTS];
} all = { .lock = PTHREAD_MUTEX_INITIALIZER }, some = { .in_domain = true, .lock = PTHREAD_MUTEX_INITIALIZER };

static struct percpu_rcu_domain domain;
static uint32_t stop;
static bool lying;
static uint64_t reads, updates, queued, called, children, signals, threads_ended;

static void wrong(const char *what)
{
	char text[128];
	int length = snprintf(text, sizeof text, "wrong: %s\n", what);

	if (write(STDERR_FILENO, text, (size_t)length) < 0)
		_exit(2);
	_exit(1);
}

static void count(uint64_t *what)
{
	__atomic_fetch_add(what, 1, __ATOMIC_RELAXED);
}

static bool stopped(void)
{
	return __atomic_load_n(&stop, __ATOMIC_RELAXED);
}

static uint64_t draw(uint64_t *state, uint64_t below)
{
	*state = *state * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (*state >> 33) % below;
}

/* Elements. */

static struct element *take(struct structure *s)
{
	struct element *e;

	pthread_mutex_lock(&s->lock);
	e = s->free;
	if (e)
		s->free = e->next;
	pthread_mutex_unlock(&s->lock);
	return e;
}

/* Nobody reads it any more. */
static void spoil(struct element *e)
{
	struct structure *s = e->home;

	__atomic_store_n(&e->alive, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&e->serial, e->serial + 1, __ATOMIC_RELAXED);
	pthread_mutex_lock(&s->lock);
	e->next = s->free;
	s->free = e;
	pthread_mutex_unlock(&s->lock);
}

static void on_call(struct percpu_rcu_head *head)
{
	count(&called);
	spoil((struct element *)(void *)((char *)head - offsetof(struct element, head)));
}

static void on_deferred(void *element)
{
	count(&called);
	spoil(element);
}

/* Readers. */

static void look(const struct structure *s, unsigned times)
{
	const struct element *e = percpu_rcu_dereference(s->now);
	uint64_t serial = __atomic_load_n(&e->serial, __ATOMIC_RELAXED);

	for (unsigned i = 0; i <= times; i++)
		if (!__atomic_load_n(&e->alive, __ATOMIC_RELAXED) ||
		    __atomic_load_n(&e->serial, __ATOMIC_RELAXED) != serial)
			wrong(s->in_domain ? "a reader in a domain sees what is gone" : "a reader sees what is gone");
	count(&reads);
}

static void read_all(unsigned times, unsigned nap)
{
	percpu_rcu_read_lock();
	look(&all, times);
	if (nap) {
		usleep(nap);
		percpu_rcu_read_lock();
		look(&all, times);
		percpu_rcu_read_unlock();
	}
	percpu_rcu_read_unlock();
}

static void read_some(unsigned times, unsigned nap)
{
	uintptr_t token = percpu_rcu_domain_read_lock(&domain);

	look(&some, times);
	if (nap) {
		uintptr_t inner = percpu_rcu_domain_read_lock(&domain);

		usleep(nap);
		look(&some, times);
		percpu_rcu_domain_read_unlock(&domain, inner);
	}
	percpu_rcu_domain_read_unlock(&domain, token);
}

static void on_signal(int sig)
{
	int saved = errno;

	(void)sig;
	read_all(1, 0);
	read_some(1, 0);
	count(&signals);
	errno = saved;
}

static void move(uint64_t *random)
{
	cpu_set_t set;
	long cpus = sysconf(_SC_NPROCESSORS_CONF);

	CPU_ZERO(&set);
	for (long cpu = 0; cpu < cpus; cpu++)
		if (draw(random, 2))
			CPU_SET((size_t)cpu, &set);
	/* None is refused, and then it stays where it may be. */
	sched_setaffinity(0, sizeof set, &set);
}

static void *keep_reading(void *arg)
{
	uint64_t random = (uint64_t)(uintptr_t)arg;

	while (!stopped()) {
		unsigned nap = lying || draw(&random, 2000) ? 0 : (unsigned)draw(&random, 3000);

		if (!lying && draw(&random, 500) == 0)
			percpu__thread_force((enum percpu__force)draw(&random, 3));
		if (!lying && draw(&random, 5000) == 0)
			move(&random);
		for (int i = 0; i < 100; i++)
			if (random & 1)
				read_all((unsigned)i % 8, i ? 0 : nap);
			else
				read_some((unsigned)i % 8, i ? 0 : nap);
		draw(&random, 2);
		/* Only its upper bits are random. */
		random ^= random >> 32;
	}
	return NULL;
}

/* Inside for long. */
static void *stall(void *arg)
{
	uint64_t random = (uint64_t)(uintptr_t)arg;

	while (!stopped()) {
		if (draw(&random, 2))
			read_all(3, 10000);
		else
			read_some(3, 10000);
		usleep(1000);
	}
	return NULL;
}

static void *short_life(void *arg)
{
	for (unsigned i = 0; i < 20; i++)
		read_all(i, arg ? 10 : 0);
	return NULL;
}

/* Threads that come and go. */
static void *give_birth(void *arg)
{
	(void)arg;
	while (!stopped()) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, short_life, threads_ended & 1 ? &thread : NULL))
			wrong("a thread cannot be made");
		pthread_join(thread, NULL);
		threads_ended++;
		usleep(500);
	}
	return NULL;
}

/* Updaters. */

static void synchronize(struct structure *s, uint64_t how)
{
	int rc = 0;
	uint64_t poll;

	switch (how) {
	case 0:
		rc = s->in_domain ? percpu_rcu_domain_synchronize_expedited(&domain)
				  : percpu_rcu_synchronize_expedited();
		break;
	case 1:
		poll = s->in_domain ? percpu_rcu_domain_start_poll(&domain) : percpu_rcu_start_poll();
		while (!(s->in_domain ? percpu_rcu_domain_poll_state(&domain, poll) : percpu_rcu_poll_state(poll)))
			usleep(50);
		break;
	default:
		rc = s->in_domain ? percpu_rcu_domain_synchronize(&domain) : percpu_rcu_synchronize();
	}
	if (rc)
		wrong("a grace period fails");
}

static void *keep_updating(void *arg)
{
	struct structure *s = arg;
	uint64_t random = (uint64_t)(uintptr_t)&random;

	while (!stopped()) {
		struct element *e = take(s), *old;
		uint64_t how = lying ? 2 : draw(&random, 5);

		if (!e) {
			usleep(500);
			continue;
		}
		__atomic_store_n(&e->alive, 1, __ATOMIC_RELAXED);
		old = percpu_rcu_xchg_pointer(s->now, e);
		if (how < 3) {
			synchronize(s, how);
			spoil(old);
		} else {
			count(&queued);
			if (s->in_domain ? percpu_rcu_domain_call(&domain, &old->head, on_call)
			    : how == 3   ? percpu_rcu_call(&old->head, on_call)
					 : percpu_rcu_defer(on_deferred, old))
				wrong("a callback is refused");
		}
		count(&updates);
		if (!lying && draw(&random, 50) == 0)
			usleep(1000);
	}
	return NULL;
}

static void *keep_forking(void *arg)
{
	(void)arg;
	while (!stopped()) {
		pid_t pid;
		int status;

		percpu_rcu_read_lock();
		pid = fork();
		if (pid == 0) {
			alarm(20);
			look(&all, 3);
			percpu_rcu_read_unlock();
			if (percpu_rcu_synchronize() || percpu_rcu_domain_synchronize(&domain))
				wrong("a grace period fails in a child");
			read_all(1, 0);
			read_some(1, 0);
			_exit(0);
		}
		percpu_rcu_read_unlock();
		if (pid > 0 && (waitpid(pid, &status, 0) != pid || status))
			wrong("a child does not end");
		count(&children);
		usleep(3000);
	}
	return NULL;
}

static void begin(struct structure *s)
{
	for (unsigned i = 0; i < ELEMENTS; i++) {
		s->elements[i].home = s;
		s->elements[i].next = i + 1 < ELEMENTS ? &s->elements[i + 1] : NULL;
	}
	s->free = &s->elements[1];
	s->elements[0].alive = 1;
	s->now = &s->elements[0];
}

static void check_end(struct structure *s)
{
	unsigned free = 0;

	for (struct element *e = s->free; e; e = e->next)
		free++;
	if (free != ELEMENTS - 1)
		wrong("an element is lost");
}

static void run(long seconds)
{
	pthread_t threads[READERS + 2 * UPDATERS + 3];
	unsigned n = 0;

	for (uintptr_t i = 0; i < READERS; i++)
		pthread_create(&threads[n++], NULL, keep_reading, (void *)(i + 1));
	if (lying) {
		/* All have their records and read in the short way; who waits believes that they pay for barriers. */
		usleep(10000);
		percpu__process.about.mode = PERCPU_MODE_NONE;
	}
	for (unsigned i = 0; i < (lying ? 1 : UPDATERS); i++) {
		pthread_create(&threads[n++], NULL, keep_updating, &all);
		pthread_create(&threads[n++], NULL, keep_updating, &some);
	}
	if (!lying) {
		pthread_create(&threads[n++], NULL, stall, &domain);
		pthread_create(&threads[n++], NULL, give_birth, NULL);
		pthread_create(&threads[n++], NULL, keep_forking, NULL);
	}
	for (long tick = 0; tick < seconds * 1000; tick++) {
		usleep(1000);
		if (!lying)
			pthread_kill(threads[tick % READERS], SIGUSR1);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	if (percpu_rcu_barrier() || percpu_rcu_domain_barrier(&domain) || called != queued)
		wrong("not each callback was run once");
	check_end(&all);
	check_end(&some);
	percpu_rcu_domain_destroy(&domain);
}

static int expect_failure(long seconds)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		run(seconds);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 2;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		printf("the lie was not found\n");
		return 1;
	}
	return 0;
}

static int usage(const char *name)
{
	fprintf(stderr, "usage: %s [--seconds N] [--mode libc|own|none] [--lie]\n", name);
	return 2;
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	const char *mode = NULL;
	long seconds = 4;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--seconds") && i + 1 < argc)
			seconds = strtol(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--mode") && i + 1 < argc)
			mode = argv[++i];
		else if (!strcmp(argv[i], "--lie"))
			lying = true;
		else
			return usage(argv[0]);
	}
	if (seconds < 1)
		return usage(argv[0]);
	if (percpu_describe(&about) || percpu_rcu_domain_init(&domain))
		return 1;
	if ((mode && strcmp(mode, about.mode_name)) || (lying && about.mode == PERCPU_MODE_NONE)) {
		printf("skipped: mode %s: %s\n", about.mode_name, about.reason);
		return SKIP;
	}
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal, .sa_flags = SA_RESTART }, NULL);
	begin(&all);
	begin(&some);
	if (lying)
		return expect_failure(seconds);
	run(seconds);
	printf("mode %s: reads %lu, updates %lu, callbacks %lu, children %lu, signals %lu, threads %lu\n",
	       about.mode_name, (unsigned long)reads, (unsigned long)updates, (unsigned long)called,
	       (unsigned long)children, (unsigned long)signals, (unsigned long)threads_ended);
	return !reads || !updates || !called || !children;
}
