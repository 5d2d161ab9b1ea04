/* SPDX-License-Identifier: MIT */
/*
 * Everything at once, on the same data: many threads on few CPUs, moved from CPU to CPU, half of them forced onto the slow
 * path, each interrupted by a timer whose handler does the same operations; a thief at one index, a keeper who closes
 * gates, and forks in the middle, whose children check their copy and work on. At the end everything must add up.
 *
 *   stress [--seconds N] [--threads N] [--mode libc|own|none] [--without fork,signals,force,moves,keeper,thief] [--lie]
 *
 * Without --threads the time is shared between 1, 2, 8 and 64 threads. --mode demands a mode (and exits with 77 if the
 * process does not have it). --lie is the control: it makes the kernel's fence do nothing, and succeeds if that is found.
 */
#include <errno.h>
#include <getopt.h>
#include <linux/filter.h>
#include <linux/membarrier.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "rseq/thread.h"
#include "world.h"

#define MOST_THREADS 64
#define OTHERS       3 /* the main thread, the thief, the keeper */
#define SKIP         77
#define CHILD_STEPS  1500

enum { FORKS = 1, SIGNALS = 2, FORCE = 4, MOVES = 8, KEEPER = 16, THIEF = 32 };

struct worker {
	pthread_t thread;
	pid_t tid; /* written by the thread itself; read by the mover */
	unsigned number;
	struct context *self, *handler;
	uint64_t signals;
};

static struct worker workers[MOST_THREADS + OTHERS];
static __thread struct worker *this_worker;
static unsigned threads, features = ~0U;
static volatile bool stop;
static uint64_t forks, moves;
static pid_t child_now; /* 0 for none */
static unsigned child_seconds;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void on_timer(int signal)
{
	struct worker *me = this_worker;
	int saved = errno;

	(void)signal;
	if (me) {
		me->signals++;
		for (int i = 0; i < 4; i++)
			step(me->handler);
	}
	errno = saved;
}

static timer_t start_timer(struct worker *me)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN };
	long every = 150000L * (threads < 4 ? 1 : threads / 2) + 7001L * me->number;
	struct itimerspec spec = { .it_value.tv_nsec = every, .it_interval.tv_nsec = every };
	timer_t timer = NULL;

	event._sigev_un._tid = me->tid;
	if (features & SIGNALS) {
		if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &spec, NULL))
			violation("cannot start a timer: %s", strerror(errno));
	}
	return timer;
}

static void stop_timer(timer_t timer)
{
	if (features & SIGNALS)
		timer_delete(timer);
	/* A signal that is on its way finds nobody. */
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	this_worker = NULL;
}

static timer_t begin_work(struct worker *me)
{
	__atomic_store_n(&me->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
	this_worker = me;
	return start_timer(me);
}

/* Half of the threads take the slow path, and sometimes change their ways. */
static void choose_path(struct worker *me)
{
	static const enum percpu__force forces[] = { PERCPU__FORCE_OFF, PERCPU__FORCE_GATE, PERCPU__FORCE_OFF,
						     PERCPU__FORCE_REMAINDER };

	if (features & FORCE)
		percpu__thread_force(forces[(me->number + (draw(me->self, 4) == 0)) % 4]);
}

static void *work(void *arg)
{
	struct worker *me = arg;
	timer_t timer = begin_work(me);

	while (!stop) {
		choose_path(me);
		for (int i = 0; i < 2000 && !stop; i++)
			step(me->self);
	}
	stop_timer(timer);
	return NULL;
}

static void *steal_always(void *arg)
{
	struct worker *me = arg;
	timer_t timer = begin_work(me);

	while (!stop) {
		steal_from(me->self, 0);
		drain_counters();
		if (draw(me->self, 4) == 0)
			sched_yield();
	}
	stop_timer(timer);
	return NULL;
}

static void *keep_always(void *arg)
{
	struct worker *me = arg;
	timer_t timer = begin_work(me);

	while (!stop)
		keep(me->self);
	stop_timer(timer);
	return NULL;
}

static void *move_always(void *arg)
{
	struct context dice = { .random = 12345 };
	cpu_set_t all, some;
	long cpus[2] = { 0, 0 };
	int count = 0;

	(void)arg;
	sched_getaffinity(0, sizeof all, &all);
	for (int cpu = 0; cpu < CPU_SETSIZE && count < 2; cpu++)
		if (CPU_ISSET((size_t)cpu, &all))
			cpus[count++] = cpu;
	while (!stop) {
		pid_t tid = __atomic_load_n(&workers[draw(&dice, threads + OTHERS)].tid, __ATOMIC_ACQUIRE);

		CPU_ZERO(&some);
		CPU_SET((size_t)cpus[draw(&dice, 2)], &some);
		if (tid && !sched_setaffinity(tid, sizeof some, draw(&dice, 3) ? &some : &all))
			moves++;
		nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
	}
	return NULL;
}

/* The test itself must not hang where the library does. */
static void *watch(void *arg)
{
	uint64_t last = 0;
	int still = 0;

	(void)arg;
	for (;;) {
		uint64_t steps = 0;
		pid_t pid;

		nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL);
		pid = __atomic_load_n(&child_now, __ATOMIC_ACQUIRE);
		/* It may hang with all signals blocked: an alarm would not end it. */
		if (pid && __atomic_add_fetch(&child_seconds, 1, __ATOMIC_RELAXED) > 30)
			kill(pid, SIGKILL);
		for (int c = 0; c < MOST_CONTEXTS; c++)
			steps += __atomic_load_n(&contexts[c].steps, __ATOMIC_RELAXED);
		still = steps == last ? still + 1 : 0;
		last = steps;
		if (still >= 20 && pid)
			kill(pid, SIGKILL);
		if (still >= 20)
			violation("stuck: nobody has made a step for 20 s");
	}
	return NULL;
}

static void start(pthread_t *thread, void *(*what)(void *), void *arg)
{
	int rc = pthread_create(thread, NULL, what, arg);

	if (rc)
		violation("cannot create a thread: %s", strerror(rc));
}

static void *work_in_child(void *arg)
{
	struct worker *me = arg;

	this_worker = NULL;
	for (int i = 0; i < CHILD_STEPS; i++)
		step(me->self);
	return NULL;
}

static void child(struct worker *me)
{
	static struct books before, after;
	pthread_t thread;
	uint64_t done_before[SUMS], done_after[SUMS], begun[SUMS];
	struct percpu_description about;

	percpu_describe(&about);
	if (about.thread_registered == mode_none)
		violation("child: the registration was %s", mode_none ? "invented" : "lost");
	read_books(&before);
	check_plausible(&before);
	sum_books(begun, done_before);
	/* Its former thread stopped anywhere: what it held is left alone. */
	memset(workers[0].self->hand, 0, sizeof workers[0].self->hand);
	memset(workers[0].self->token, 0, sizeof workers[0].self->token);
	start(&thread, work_in_child, &workers[0]);
	for (int i = 0; i < CHILD_STEPS; i++)
		step(me->self);
	for (int i = 0; i < 20; i++)
		keep(me->self);
	drain_counters();
	pthread_join(thread, NULL);
	read_books(&after);
	sum_books(begun, done_after);
	check_change(&before, done_before, &after, done_after);
	_exit(0);
}

static void fork_once(struct worker *me)
{
	pid_t pid = fork();
	int status;

	if (pid < 0)
		violation("cannot fork: %s", strerror(errno));
	if (pid == 0)
		child(me);
	__atomic_store_n(&child_seconds, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&child_now, pid, __ATOMIC_RELEASE);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			violation("cannot wait: %s", strerror(errno));
	__atomic_store_n(&child_now, 0, __ATOMIC_RELEASE);
	if (status)
		violation("a child failed: %s %d", WIFSIGNALED(status) ? "signal" : "status",
			  WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	forks++;
}

static void report(double seconds)
{
	uint64_t steps = 0, signals = 0, opv_moves = 0, steals = 0, allocations = 0, chains = 0;

	for (int c = 0; c < MOST_CONTEXTS; c++) {
		steps += contexts[c].steps;
		opv_moves += contexts[c].opv_moves;
		steals += contexts[c].steals;
		allocations += contexts[c].allocations;
		chains += contexts[c].chains;
	}
	for (unsigned w = 0; w < threads + OTHERS; w++)
		signals += workers[w].signals;
	printf("%2u threads, %.1f s: %lu operations, %lu signals, %lu forks, %lu affinity changes, %lu migrations, "
	       "%lu steals, %lu chains, %lu allocations: exact\n",
	       threads, seconds, (unsigned long)steps, (unsigned long)signals, (unsigned long)forks,
	       (unsigned long)moves, (unsigned long)opv_moves, (unsigned long)steals, (unsigned long)chains,
	       (unsigned long)allocations);
	fflush(stdout);
}

static void run(double seconds)
{
	static struct books books;
	struct worker *me = &workers[threads];
	double end = now() + seconds;
	pthread_t mover;
	timer_t timer;

	memset(workers, 0, sizeof workers);
	stop = false;
	forks = moves = 0;
	world_create();
	for (unsigned w = 0; w < threads + OTHERS; w++) {
		workers[w].number = w;
		workers[w].self = &contexts[2 * w];
		workers[w].handler = &contexts[2 * w + 1];
		context_init(workers[w].self, 2 * w, false);
		context_init(workers[w].handler, 2 * w + 1, true);
	}
	for (unsigned w = 0; w < threads; w++)
		start(&workers[w].thread, work, &workers[w]);
	if (features & THIEF)
		start(&workers[threads + 1].thread, steal_always, &workers[threads + 1]);
	if (features & KEEPER)
		start(&workers[threads + 2].thread, keep_always, &workers[threads + 2]);
	if (features & MOVES)
		start(&mover, move_always, NULL);
	timer = begin_work(me);
	while (now() < end) {
		if (features & FORKS)
			fork_once(me);
		for (int i = 0; i < 200; i++)
			step(me->self);
	}
	stop = true;
	stop_timer(timer);
	for (unsigned w = 0; w < threads + OTHERS; w++)
		if (w != threads && workers[w].thread)
			pthread_join(workers[w].thread, NULL);
	if (features & MOVES)
		pthread_join(mover, NULL);
	read_books(&books);
	check_exact(&books);
	report(seconds);
	world_destroy();
}

/* From now on the kernel says that it has fenced, and has not. */
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

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
		fprintf(stderr, "no seccomp filters here: %s\n", strerror(errno));
		exit(SKIP);
	}
}

/* Goes on in a child, whose failure is what we want. */
static void expect_failure(void)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		make_fence_lie();
		return;
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		violation("cannot run the control: %s", strerror(errno));
	if (WIFEXITED(status) && WEXITSTATUS(status) == SKIP)
		exit(SKIP);
	if (status == 0)
		violation("without a fence, nothing was found to be wrong");
	printf("without a fence, something was found to be wrong, as it must be\n");
	exit(0);
}

static void leave_out(char *list)
{
	static const char *const names[] = { "fork", "signals", "force", "moves", "keeper", "thief" };

	for (char *name = strtok(list, ","); name; name = strtok(NULL, ",")) {
		unsigned bit = 0;

		while (bit < 6 && strcmp(name, names[bit]))
			bit++;
		if (bit == 6) {
			fprintf(stderr, "stress: nothing is called '%s'\n", name);
			exit(2);
		}
		features &= ~(1U << bit);
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 's' }, { "threads", required_argument, NULL, 't' },
		{ "mode", required_argument, NULL, 'm' },    { "without", required_argument, NULL, 'w' },
		{ "lie", no_argument, NULL, 'l' },           { NULL, 0, NULL, 0 },
	};
	static const unsigned counts[] = { 1, 2, 8, MOST_THREADS };
	struct percpu_description about;
	const char *mode = NULL;
	double seconds = 10;
	bool lie = false;
	pthread_t watcher;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		switch (c) {
		case 's':
			seconds = atof(optarg);
			break;
		case 't':
			threads = (unsigned)atoi(optarg);
			break;
		case 'm':
			mode = optarg;
			break;
		case 'w':
			leave_out(optarg);
			break;
		case 'l':
			lie = true;
			break;
		default:
			return 2;
		}
	}
	if (threads > MOST_THREADS || !(seconds > 0)) {
		fprintf(stderr, "stress: 1 to %d threads, more than 0 seconds\n", MOST_THREADS);
		return 2;
	}
	percpu_describe(&about);
	printf("mode %s (%s), indexed by %s\n", about.mode_name, about.reason, about.index_kind);
	if (mode && strcmp(mode, about.mode_name)) {
		printf("this process cannot have mode %s\n", mode);
		return SKIP;
	}
	mode_none = about.mode == PERCPU_MODE_NONE;
	if (lie && mode_none) {
		printf("mode none needs no fence\n");
		return SKIP;
	}
	fflush(stdout);
	if (lie)
		expect_failure();
	sigaction(SIGRTMIN, &(struct sigaction){ .sa_handler = on_timer, .sa_flags = SA_RESTART }, NULL);
	start(&watcher, watch, NULL);
	if (threads) {
		run(seconds);
		return 0;
	}
	for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
		threads = counts[i];
		run(seconds / (double)(sizeof counts / sizeof *counts));
	}
	return 0;
}
