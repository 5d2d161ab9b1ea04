/* SPDX-License-Identifier: MIT */
/*
 * Stress for reader-writer locks and reference counts: threads that are moved, interrupted, forced off their sections
 * and forked, all on one lock and one count.
 *
 *   stress-rwlock [--seconds N] [--mode libc|own|none]
 *
 * Under the lock two words are equal, and count the writers exactly. Each life of the reference count ends with one
 * release, which nobody sees who has a reference. Exits with 1 and a line for what is wrong, 77 in another mode than
 * the one asked for.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <percpu.h>

#include "rseq/thread.h"

#define THREADS 8

static struct percpu_rwlock *lock;
static volatile uint64_t first, second; /* under the lock */
static uint64_t writes;

static struct percpu_ref ref;
static uint32_t released;

static uint32_t stop;
static uint64_t reads, uses, lives, children, signals;

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

static uint64_t draw(uint64_t *state, uint64_t below)
{
	*state = *state * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (*state >> 33) % below;
}

static void look(void)
{
	if (first != second)
		wrong("a reader sees a writer's work half done");
	count(&reads);
}

static void change(void)
{
	uint64_t was = first;

	first = was + 1;
	if (second != was)
		wrong("a writer is not alone");
	second = was + 1;
	writes++;
}

static void on_release(struct percpu_ref *which)
{
	(void)which;
	__atomic_fetch_add(&released, 1, __ATOMIC_SEQ_CST);
}

static void use(void)
{
	if (!percpu_ref_tryget_live(&ref))
		return;
	if (__atomic_load_n(&released, __ATOMIC_SEQ_CST))
		wrong("released while in use");
	percpu_ref_get(&ref);
	percpu_ref_put(&ref);
	if (__atomic_load_n(&released, __ATOMIC_SEQ_CST))
		wrong("released while in use, later");
	percpu_ref_put(&ref);
	count(&uses);
}

/* Ends and begins a life; one thread only. */
static void live(uint64_t *random)
{
	bool back = draw(random, 3) == 0;

	percpu_ref_get(&ref);
	if (percpu_ref_kill(&ref))
		wrong("a kill fails");
	if (percpu_ref_tryget_live(&ref))
		wrong("got a live reference behind the kill");
	if (back && percpu_ref_resurrect(&ref))
		wrong("cannot be resurrected");
	percpu_ref_put(&ref);
	if (back)
		return;
	while (!percpu_ref_is_zero(&ref) || !__atomic_load_n(&released, __ATOMIC_SEQ_CST))
		sched_yield();
	if (__atomic_exchange_n(&released, 0, __ATOMIC_SEQ_CST) != 1)
		wrong("released more than once");
	if (percpu_ref_reinit(&ref))
		wrong("cannot begin again");
	count(&lives);
}

static void on_signal(int sig)
{
	(void)sig;
	use();
	if (percpu_rwlock_read_trylock(lock) == 0) {
		look();
		percpu_rwlock_read_lock_again(lock);
		percpu_rwlock_read_unlock(lock);
		percpu_rwlock_read_unlock(lock);
	}
	count(&signals);
}

/* With the lock held for writing across it: the child has it too, and nobody else there. */
static void fork_once(void)
{
	pid_t child;
	int status;

	if (percpu_rwlock_write_lock(lock))
		wrong("cannot lock");
	child = fork();
	if (child == 0) {
		signal(SIGUSR1, SIG_IGN);
		percpu_rwlock_write_unlock(lock);
		percpu_rwlock_read_lock(lock);
		percpu_rwlock_read_unlock(lock);
		if (percpu_rwlock_write_trylock(lock))
			_exit(1);
		change();
		percpu_rwlock_write_unlock(lock);
		_exit(0);
	}
	percpu_rwlock_write_unlock(lock);
	if (child < 0)
		return;
	while (waitpid(child, &status, 0) != child)
		;
	if (status)
		wrong("a forked child finds the lock taken");
	count(&children);
}

static void turn(unsigned me, uint64_t *random)
{
	uint64_t what = draw(random, 400);
	cpu_set_t one;

	use();
	if (what < 4) {
		if (percpu_rwlock_write_lock(lock))
			wrong("cannot lock");
		change();
		percpu_rwlock_write_unlock(lock);
	} else if (what < 8) {
		if (percpu_rwlock_write_timedlock(lock, draw(random, 200000)) == 0) {
			change();
			percpu_rwlock_downgrade(lock);
			look();
			percpu_rwlock_read_unlock(lock);
		}
	} else if (what < 12) {
		if (percpu_rwlock_write_trylock(lock) == 0) {
			change();
			percpu_rwlock_write_unlock(lock);
		}
	} else if (what < 16) {
		if (percpu_rwlock_read_timedlock(lock, draw(random, 200000)) == 0) {
			look();
			sched_yield();
			look();
			percpu_rwlock_read_unlock(lock);
		}
	} else if (what < 18) {
		CPU_ZERO(&one);
		CPU_SET((size_t)draw(random, percpu_possible_cpus()), &one);
		sched_setaffinity(0, sizeof one, &one);
	} else if (what == 18) {
		percpu__thread_force(me % 2 ? (enum percpu__force)draw(random, 3) : PERCPU__FORCE_OFF);
	} else if (what == 19 && me == 0 && draw(random, 8) == 0) {
		fork_once();
	} else if (what < 24 && me == 1) {
		live(random);
	} else {
		percpu_rwlock_read_lock(lock);
		look();
		percpu_rwlock_read_unlock(lock);
	}
}

static void *work(void *arg)
{
	unsigned me = *(unsigned *)arg;
	uint64_t random = me * 7919 + 1;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		turn(me, &random);
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static int usage(const char *name)
{
	fprintf(stderr, "usage: %s [--seconds N] [--mode libc|own|none]\n", name);
	return 2;
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	const char *mode = NULL;
	pthread_t threads[THREADS];
	unsigned numbers[THREADS];
	long seconds = 5;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--seconds"))
			seconds = strtol(argv[i + 1], NULL, 10);
		else if (!strcmp(argv[i], "--mode"))
			mode = argv[i + 1];
		else
			return usage(argv[0]);
	}
	if (argc % 2 == 0 || seconds < 1)
		return usage(argv[0]);
	lock = percpu_alloc(sizeof *lock, 64);
	if (!lock || percpu_describe(&about) || percpu_ref_init(&ref, on_release, 0))
		return 1;
	if (mode && strcmp(mode, about.mode_name)) {
		printf("skipped: mode %s, not %s: %s\n", about.mode_name, mode, about.reason);
		return 77;
	}
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal, .sa_flags = SA_RESTART }, NULL);
	for (unsigned i = 0; i < THREADS; i++) {
		numbers[i] = i;
		if (pthread_create(&threads[i], NULL, work, &numbers[i]))
			return 1;
	}
	for (long tick = 0; tick < seconds * 2000; tick++) {
		usleep(500);
		pthread_kill(threads[tick % THREADS], SIGUSR1);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	if (first != writes || second != writes)
		wrong("a write is lost");
	if (percpu_rwlock_write_trylock(lock))
		wrong("the lock is not free in the end");
	percpu_rwlock_write_unlock(lock);
	if (released || percpu_ref_kill(&ref) || released != 1)
		wrong("the count is not exact in the end");
	printf("mode %s: reads %lu, writes %lu, uses %lu, lives %lu, children %lu, signals %lu\n", about.mode_name,
	       (unsigned long)reads, (unsigned long)writes, (unsigned long)uses, (unsigned long)lives,
	       (unsigned long)children, (unsigned long)signals);
	return !writes || !lives;
}
