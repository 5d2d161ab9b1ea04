/* SPDX-License-Identifier: MIT */
/*
 * Tasks of all kinds that share their parent's memory, and threads that end in all ways, while other threads use the same
 * data.
 *
 *   processes vfork|vfork-nested|clone-vfork|clone-vm|spawn|fork|exit|cancel MODE
 *
 * A guard process ends what hangs. Exit status 0, 1, or 77 if this process cannot have the mode.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "everything.h"
#include "rseq/thread.h"

#define SECONDS 40
#define NODES   64
#define ADDS    20000U

extern char **environ;

static struct percpu_counter counter;
static struct percpu_stack stack;
static uint64_t *word;
static struct percpu_stack_node nodes[NODES];
static volatile bool stop;
static uint64_t expected; /* adds by finished tasks; atomic */

static void turn(void)
{
	struct percpu_stack_node *node = percpu_stack_pop(&stack);

	percpu_counter_inc(&counter);
	percpu_this_add(word, 1);
	if (node)
		percpu_stack_push(&stack, node);
}

static void turns(unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		turn();
	__atomic_fetch_add(&expected, n, __ATOMIC_RELAXED);
}

static void *hammer(void *force)
{
	percpu__thread_force((enum percpu__force)(uintptr_t)force);
	while (!stop)
		turns(100);
	return NULL;
}

static void check_sections_again(void)
{
	struct percpu_description about;

	percpu_describe(&about);
	EXPECT(about.thread_registered == (about.mode != PERCPU_MODE_NONE));
	if (about.thread_registered)
		EXPECT(percpu__self == percpu__true_area());
}

static void wait_for(pid_t pid)
{
	int status;

	EXPECT(pid > 0);
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	check_sections_again();
}

static __attribute__((noinline)) void by_vfork(bool nested)
{
	volatile bool deeper = nested;
	pid_t pid = vfork();

	if (pid == 0) {
		if (percpu__mode() != PERCPU_MODE_NONE && percpu__self == percpu__true_area())
			_exit(3);
		turns(ADDS);
		if (deeper) {
			pid_t inner = vfork();

			if (inner == 0) {
				turns(ADDS);
				_exit(0);
			}
			turns(ADDS);
		}
		_exit(0);
	}
	wait_for(pid);
}

static int cloned(void *arg)
{
	(void)arg;
	turns(ADDS);
	return 0;
}

static void by_clone(int flags)
{
	static char stack_of_child[1 << 18] __attribute__((aligned(64)));
	pid_t pid = clone(cloned, stack_of_child + sizeof stack_of_child, flags | SIGCHLD, NULL);
	int status;

	EXPECT(pid > 0);
	EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
	if (flags & CLONE_VFORK)
		check_sections_again();
	turns(100);
}

static void by_spawn(void)
{
	char *argv[] = { "true", NULL };
	pid_t pid;
	FILE *pipe;

	EXPECT(posix_spawnp(&pid, "true", NULL, NULL, argv, environ) == 0);
	wait_for(pid);
	EXPECT(system("true") == 0);
	check_sections_again();
	pipe = popen("true", "r");
	EXPECT(pipe && pclose(pipe) == 0);
	turns(100);
	check_sections_again();
}

static void by_fork(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		check_sections_again();
		EXPECT(percpu_fence() == 0);
		everything(0);
		turns(10);
		check_sections_again();
		_exit(0);
	}
	wait_for(pid);
}

/* --- ends of threads --- */

static pthread_key_t key;
static uint64_t detached; /* still running; atomic */

/* Puts itself back a few times: the last calls come when most of the thread is gone. */
static void at_exit(void *left)
{
	turns(10);
	if ((uintptr_t)left > 1)
		pthread_setspecific(key, (void *)((uintptr_t)left - 1));
}

static void *short_life(void *is_detached)
{
	pthread_setspecific(key, (void *)3);
	turns(20);
	if (is_detached)
		__atomic_fetch_sub(&detached, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void by_exit(void)
{
	pthread_attr_t attributes;
	pthread_t thread;

	EXPECT(pthread_create(&thread, NULL, short_life, NULL) == 0 && pthread_join(thread, NULL) == 0);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	while (__atomic_load_n(&detached, __ATOMIC_ACQUIRE) > 4)
		sched_yield();
	__atomic_fetch_add(&detached, 1, __ATOMIC_RELAXED);
	EXPECT(pthread_create(&thread, &attributes, short_life, &key) == 0);
	pthread_attr_destroy(&attributes);
}

static void *until_cancelled(void *asynchronously)
{
	struct percpu_op add = { .op = PERCPU_OP_ADD, .len = 8, .dst = percpu_ptr(word + 1, 0), .value = 1 };

	pthread_setcanceltype(asynchronously ? PTHREAD_CANCEL_ASYNCHRONOUS : PTHREAD_CANCEL_DEFERRED, NULL);
	for (;;) {
		/* Not counted: nobody knows how far it came. */
		percpu_this_add(word + 1, 1);
		if (percpu_opv(&add, 1, 0))
			abort();
		pthread_testcancel();
	}
	return NULL;
}

static void by_cancel(void)
{
	static unsigned turn_number;
	/* A holder may be cancelled at any instruction where it does not block signals: in mode none. */
	bool asynchronously = turn_number++ % 2 && percpu__mode() != PERCPU_MODE_NONE;
	pthread_t thread;
	void *result;

	EXPECT(pthread_create(&thread, NULL, until_cancelled, asynchronously ? &key : NULL) == 0);
	for (int i = 0; i < 3; i++)
		sched_yield();
	EXPECT(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
	everything(0);
}

static int run(const char *what)
{
	pthread_t threads[3];
	unsigned found = 0, rounds = 15;

	EXPECT(percpu_counter_init(&counter) == 0 && percpu_stack_init(&stack) == 0);
	word = percpu_alloc(16, 8);
	EXPECT(word && pthread_key_create(&key, at_exit) == 0);
	for (int i = 0; i < NODES; i++)
		percpu_stack_push(&stack, &nodes[i]);
	for (uintptr_t i = 0; i < 3; i++)
		EXPECT(pthread_create(&threads[i], NULL, hammer, (void *)i) == 0);
	turns(10);
	if (!strcmp(what, "exit"))
		rounds = 1000;
	if (!strcmp(what, "fork") || !strcmp(what, "cancel"))
		rounds = 60;
	for (unsigned i = 0; i < rounds; i++) {
		if (!strcmp(what, "vfork"))
			by_vfork(false);
		else if (!strcmp(what, "vfork-nested"))
			by_vfork(true);
		else if (!strcmp(what, "clone-vfork"))
			by_clone(CLONE_VM | CLONE_VFORK);
		else if (!strcmp(what, "clone-vm"))
			by_clone(CLONE_VM);
		else if (!strcmp(what, "spawn"))
			by_spawn();
		else if (!strcmp(what, "fork"))
			by_fork();
		else if (!strcmp(what, "exit"))
			by_exit();
		else if (!strcmp(what, "cancel"))
			by_cancel();
		else
			return 2;
	}
	stop = true;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	while (__atomic_load_n(&detached, __ATOMIC_ACQUIRE))
		sched_yield();
	/* Destructors of detached threads come after they were seen to be done. */
	for (int i = 0; i < 100 && percpu_counter_read(&counter) != __atomic_load_n(&expected, __ATOMIC_RELAXED); i++)
		usleep(20000);
	EXPECT(percpu_counter_read(&counter) == expected);
	EXPECT(sum_of_copies(word) == expected);
	percpu_for_each_index(i) {
		struct percpu_stack_node *node;

		EXPECT(percpu_stack_steal(&stack, i, &node) == 0);
		for (; node; node = node->next) {
			EXPECT(node >= nodes && node < nodes + NODES);
			found++;
			EXPECT(found <= NODES);
		}
	}
	EXPECT(found == NODES);
	return 0;
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	int status = 0;
	pid_t pid;

	if (argc != 3)
		return 2;
	percpu_describe(&about);
	if (strcmp(about.mode_name, argv[2])) {
		printf("this process cannot have mode %s: %s\n", argv[2], about.reason);
		return 77;
	}
	pid = fork();
	if (pid == 0) {
		setpgid(0, 0);
		_exit(run(argv[1]));
	}
	for (int tenths = 0; tenths < SECONDS * 10; tenths++) {
		if (waitpid(pid, &status, WNOHANG) == pid) {
			if (status)
				fprintf(stderr, "%s: failed, wait status 0x%x\n", argv[1], (unsigned)status);
			return status != 0;
		}
		usleep(100000);
	}
	fprintf(stderr, "%s: still not done after %d s: a deadlock\n", argv[1], SECONDS);
	kill(-pid, SIGKILL);
	waitpid(pid, &status, 0);
	return 1;
}
