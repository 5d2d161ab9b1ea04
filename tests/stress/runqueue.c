/* SPDX-License-Identifier: MIT */
/*
 * Run queues under load: threads that push, pop, steal, migrate and wait, on their sections or forced off them, while
 * somebody interrupts them with signals (whose handlers do the same), moves them between CPUs, and forks.
 *
 *   stress-runqueue [--seconds N] [--mode libc|own|none] [--lie]
 *
 * Who takes a task marks it, so a task that is taken twice is found at once; at the end every task must be there, and
 * all turns must have been counted. A forked child drains its copy: each task at most once. --lie is the control: the
 * kernel's fence does nothing, and something must be found to be wrong.
 */
#include <errno.h>
#include <getopt.h>
#include <linux/filter.h>
#include <linux/membarrier.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <percpu.h>

#include "rseq/thread.h"

#define TASKS   300
#define THREADS 6
#define HAND    3
#define SKIP    77

struct work {
	struct percpu_task task;
	uint32_t taken;
	uint64_t turns;
};

/* A thread, or its signal handler. */
struct context {
	uint64_t random, turns;
	struct work *hand[HAND];
} __attribute__((aligned(128)));

static struct percpu_runqueue rq;
static struct work works[TASKS];
static struct context contexts[2 * THREADS];
static pthread_t threads[THREADS];
static __thread struct context *handlers_context;
static uint32_t stopped, ready;
static unsigned copies; /* that are worked on: those of CPUs that exist, and the remainder */

static void violation(const char *what)
{
	printf("wrong: %s\n", what);
	fflush(stdout);
	_exit(1);
}

static uint64_t draw(struct context *me, uint64_t below)
{
	me->random ^= me->random << 13;
	me->random ^= me->random >> 7;
	me->random ^= me->random << 17;
	return me->random % below;
}

static unsigned draw_index(struct context *me)
{
	unsigned index = (unsigned)draw(me, copies);

	return index + 1 == copies ? percpu_copies() - 1 : index;
}

static void check_rc(int rc)
{
	/* In mode none a handler may meet a gate that is held by what it interrupted. */
	if (rc && rc != -EDEADLK)
		violation("an operation failed");
}

static void took(struct context *me, struct percpu_task *task)
{
	struct work *work = (struct work *)(void *)task;
	unsigned k = 0;

	if (!task)
		return;
	if (work < works || work >= works + TASKS)
		violation("a queue gave what is no task");
	if (__atomic_exchange_n(&work->taken, 1, __ATOMIC_ACQUIRE))
		violation("a task was taken twice");
	work->turns++;
	me->turns++;
	while (me->hand[k])
		k++;
	me->hand[k] = work;
}

static void give(struct context *me, unsigned k)
{
	struct work *work = me->hand[k];

	me->hand[k] = NULL;
	__atomic_store_n(&work->taken, 0, __ATOMIC_RELEASE);
	switch (draw(me, 4)) {
	case 0:
		percpu_runqueue_push_front(&rq, &work->task);
		break;
	case 1:
		check_rc(percpu_runqueue_push_to(&rq, draw_index(me), &work->task));
		break;
	default:
		percpu_runqueue_push(&rq, &work->task);
	}
}

static void take(struct context *me)
{
	struct percpu_task *task = NULL;

	switch (draw(me, 16)) {
	case 0:
		check_rc(percpu_runqueue_steal(&rq, draw_index(me), &task));
		break;
	case 1:
		check_rc(percpu_runqueue_steal_any(&rq, &task));
		break;
	default:
		task = percpu_runqueue_pop(&rq);
	}
	took(me, task);
}

static void step(struct context *me)
{
	unsigned k = (unsigned)draw(me, HAND), from = draw_index(me), to = draw_index(me);

	if (draw(me, 64) == 0 && from != to)
		check_rc(percpu_runqueue_migrate(&rq, from, to, draw(me, 20), NULL));
	if (me->hand[k])
		give(me, k);
	else
		take(me);
}

static void on_signal(int sig)
{
	struct context *me = handlers_context;

	(void)sig;
	if (!me)
		return;
	step(me);
	/* What it keeps nobody else waits for. */
	for (unsigned k = 0; k < HAND; k++)
		if (me->hand[k])
			give(me, k);
}

static void *work(void *arg)
{
	struct context *me = arg;

	handlers_context = me + THREADS;
	__atomic_fetch_add(&ready, 1, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&stopped, __ATOMIC_RELAXED)) {
		if (draw(me, 5000) == 0)
			percpu__thread_force((enum percpu__force)draw(me, 3));
		if (draw(me, 5000) == 0)
			percpu_runqueue_wait(&rq, (int64_t)draw(me, 100000));
		step(me);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	for (unsigned k = 0; k < HAND; k++)
		if (me->hand[k])
			give(me, k);
	/* Until here signals may come. */
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	return NULL;
}

/* Takes all that is there. Returns how many; each at most once. */
static unsigned drain(void)
{
	static bool seen[TASKS];
	unsigned count = 0;

	for (;; count++) {
		struct percpu_task *task = NULL;
		struct work *work;

		if (percpu_runqueue_steal_any(&rq, &task))
			violation("the last steal failed");
		work = (struct work *)(void *)task;
		if (!task)
			return count;
		if (work < works || work >= works + TASKS || seen[work - works])
			violation("a task is there twice");
		seen[work - works] = true;
	}
}

static void fork_once(void)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		alarm(20);
		drain();
		percpu_runqueue_push(&rq, &works[0].task);
		_exit(percpu_runqueue_length(&rq, 0) > 1 ? 2 : 0);
	}
	if (child > 0 && (waitpid(child, &status, 0) != child || status))
		violation("a forked child found something wrong");
}

static void disturb(struct context *me, double seconds, bool forks)
{
	time_t end = time(NULL) + (time_t)seconds + 1;
	cpu_set_t all, one;

	sched_getaffinity(0, sizeof all, &all);
	for (unsigned turn = 0; time(NULL) < end; turn++) {
		pthread_t whom = threads[draw(me, THREADS)];

		pthread_kill(whom, SIGUSR1);
		if (turn % 3 == 0) {
			CPU_ZERO(&one);
			CPU_SET(draw(me, (uint64_t)CPU_COUNT(&all)), &one);
			pthread_setaffinity_np(whom, sizeof one, draw(me, 4) ? &all : &one);
		}
		if (forks && turn % 64 == 0)
			fork_once();
		usleep((useconds_t)draw(me, 300));
	}
}

static void run(double seconds, bool forks)
{
	static struct context mine = { .random = 77 };
	uint64_t turns = 0, counted = 0;
	unsigned count;

	copies = (unsigned)sysconf(_SC_NPROCESSORS_ONLN) + 1;
	if (copies > percpu_copies())
		copies = percpu_copies();
	if (percpu_runqueue_init(&rq))
		exit(2);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal, .sa_flags = SA_RESTART }, NULL);
	for (unsigned i = 0; i < TASKS; i++)
		percpu_runqueue_push(&rq, &works[i].task);
	for (unsigned i = 0; i < 2 * THREADS; i++)
		contexts[i].random = 1 + i;
	for (unsigned i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, work, &contexts[i]))
			exit(2);
	while (__atomic_load_n(&ready, __ATOMIC_ACQUIRE) < THREADS)
		usleep(1000);
	disturb(&mine, seconds, forks);
	__atomic_store_n(&stopped, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	count = drain();
	for (unsigned i = 0; i < 2 * THREADS; i++)
		turns += contexts[i].turns;
	for (unsigned i = 0; i < TASKS; i++)
		counted += works[i].turns;
	printf("%u of %d tasks, %llu turns\n", count, TASKS, (unsigned long long)turns);
	if (count != TASKS)
		violation("a task was lost");
	if (turns != counted)
		violation("a turn was lost");
	percpu_runqueue_destroy(&rq);
}

/* The kernel says that it has fenced, and has not. */
static void make_fence_lie(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof code / sizeof *code, .filter = code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		_exit(SKIP);
}

/* Returns the exit status. Queues that lead astray may end in a loop: that counts too. */
static int expect_failure(double seconds)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		alarm((unsigned)seconds + 20);
		make_fence_lie();
		run(seconds, false);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	if (WIFEXITED(status) && WEXITSTATUS(status) == SKIP)
		return SKIP;
	printf("without a fence, %s\n",
	       status ? "something was found to be wrong, as it must be" : "nothing was wrong");
	return status == 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 's' },
		{ "mode", required_argument, NULL, 'm' },
		{ "lie", no_argument, NULL, 'l' },
		{ NULL, 0, NULL, 0 },
	};
	struct percpu_description about;
	const char *mode = NULL;
	double seconds = 5;
	bool lie = false;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (c == 's')
			seconds = atof(optarg);
		else if (c == 'm')
			mode = optarg;
		else if (c == 'l')
			lie = true;
		else
			return 2;
	}
	percpu_describe(&about);
	if ((mode && strcmp(mode, about.mode_name)) || (lie && about.mode == PERCPU_MODE_NONE)) {
		printf("this is mode %s\n", about.mode_name);
		return SKIP;
	}
	if (lie)
		return expect_failure(seconds);
	run(seconds, true);
	return 0;
}
