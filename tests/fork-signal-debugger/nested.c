/* SPDX-License-Identifier: MIT */
/*
 * Signal handlers that interrupt each other and the operations below at any instruction: three timers, none of them blocked
 * in the others' handlers, all using the same few copies. Nothing may hang or be lost; only what acts on a named index may
 * give -EDEADLK, and that in mode none alone.
 *
 *   nested MODE
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "everything.h"

#define NODES   64
#define SECONDS 4
#define LIMIT   40
#define DEEPEST 12

static struct percpu_stack stack;
static struct percpu_stack_node nodes[NODES];
static uint64_t *word;
static uint64_t added, moved, refused, deepest; /* atomic */
static volatile bool stop;
static __thread volatile int depth;
static bool mode_none;

static void check(int rc)
{
	if (rc == -EDEADLK && mode_none && depth)
		__atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED);
	else if (rc)
		EXPECT(rc == 0);
}

static void use(unsigned kind)
{
	struct percpu_op move[] = {
		{ .op = PERCPU_OP_ADD, .len = 8, .dst = percpu_ptr(word, 0), .value = (uint64_t)-1 },
		{ .op = PERCPU_OP_ADD, .len = 8, .dst = percpu_ptr(word, percpu_copies() - 1), .value = 1 },
	};
	struct percpu_stack_node *node, *last;
	void *memory;

	switch (kind % 5) {
	case 0:
		percpu_this_add(word, 1);
		__atomic_fetch_add(&added, 1, __ATOMIC_RELAXED);
		break;
	case 1:
		node = percpu_stack_pop(&stack);
		if (node)
			percpu_stack_push(&stack, node);
		break;
	case 2:
		check(percpu_opv(move, 2, 0));
		__atomic_fetch_add(&moved, 1, __ATOMIC_RELAXED);
		break;
	case 3:
		node = NULL;
		check(percpu_stack_steal(&stack, kind % percpu_copies(), &node));
		for (last = node; last && last->next; last = last->next)
			;
		if (node)
			percpu_stack_push_chain(&stack, node, last);
		break;
	default:
		memory = percpu_alloc(64, 8);
		EXPECT(memory && percpu_free(memory) == 0);
	}
}

static void on_timer(int signal)
{
	static unsigned next;
	int saved = errno;
	uint64_t seen = __atomic_load_n(&deepest, __ATOMIC_RELAXED);

	(void)signal;
	/* Slow machines would pile up handlers for ever. */
	if (depth < DEEPEST) {
		depth = depth + 1;
		if ((uint64_t)depth > seen)
			__atomic_store_n(&deepest, (uint64_t)depth, __ATOMIC_RELAXED);
		use(__atomic_fetch_add(&next, 1, __ATOMIC_RELAXED));
		depth = depth - 1;
	}
	errno = saved;
}

static void *work(void *arg)
{
	timer_t timers[3];

	(void)arg;
	for (int i = 0; i < 3; i++) {
		struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + i };
		struct itimerspec often = { .it_value.tv_nsec = 1, .it_interval.tv_nsec = 200011 + 70001 * i };

		event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
		EXPECT(timer_create(CLOCK_MONOTONIC, &event, &timers[i]) == 0);
		EXPECT(timer_settime(timers[i], 0, &often, NULL) == 0);
	}
	for (unsigned i = 0; !stop; i++)
		use(i);
	for (int i = 0; i < 3; i++)
		timer_delete(timers[i]);
	return NULL;
}

static int run(void)
{
	struct sigaction action = { .sa_handler = on_timer, .sa_flags = SA_NODEFER | SA_RESTART };
	pthread_t threads[3];
	unsigned found = 0;

	word = percpu_alloc(8, 8);
	EXPECT(word && percpu_stack_init(&stack) == 0);
	for (int i = 0; i < NODES; i++)
		percpu_stack_push(&stack, &nodes[i]);
	for (int i = 0; i < 3; i++)
		sigaction(SIGRTMIN + i, &action, NULL);
	for (int i = 0; i < 3; i++)
		EXPECT(pthread_create(&threads[i], NULL, work, NULL) == 0);
	sleep(SECONDS);
	stop = true;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	EXPECT(sum_of_copies(word) == added);
	percpu_for_each_index(i) {
		struct percpu_stack_node *node;

		EXPECT(percpu_stack_steal(&stack, i, &node) == 0);
		for (; node; node = node->next)
			EXPECT(++found <= NODES);
	}
	EXPECT(found == NODES);
	printf("%lu additions, %lu migrations, %lu refused, handlers %lu deep\n", (unsigned long)added,
	       (unsigned long)moved, (unsigned long)refused, (unsigned long)deepest);
	fflush(stdout);
	return 0;
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	int status = 0;
	pid_t pid;

	if (argc != 2)
		return 2;
	percpu_describe(&about);
	if (strcmp(about.mode_name, argv[1])) {
		printf("this process cannot have mode %s: %s\n", argv[1], about.reason);
		return 77;
	}
	mode_none = about.mode == PERCPU_MODE_NONE;
	pid = fork();
	if (pid == 0)
		_exit(run());
	for (int tenths = 0; tenths < LIMIT * 10; tenths++) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return status != 0;
		usleep(100000);
	}
	fprintf(stderr, "still not done after %d s: a deadlock\n", LIMIT);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return 1;
}
