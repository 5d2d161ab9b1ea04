/* SPDX-License-Identifier: MIT */
/*
 * A program that makes known numbers of calls, for the tests of `percpu stat`.
 *
 * calls N WHAT...: does each WHAT, with N rounds. N may be 0: the test subtracts what the C library does by itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4

static char *self;
static unsigned rounds;
static int zero, null;

/* Keeps pairs of calls from being optimised away. */
static void *volatile kept;

static void die(const char *what)
{
	perror(what);
	exit(99);
}

static void memory(void)
{
	for (unsigned i = 0; i < rounds; i++) {
		void *block = malloc(10000); /* the class from 8192 */

		kept = block;
		block = realloc(block, 20000);
		kept = block;
		free(block);
		kept = block = calloc(10, 4000);
		block = reallocarray(block, 10, 7000);
		kept = block;
		free(block);
		if (posix_memalign(&block, 64, 70000))
			die("posix_memalign");
		kept = block;
		free(block);
		kept = block = aligned_alloc(64, 140032);
		free(block);
		free(NULL);
	}
}

static void locks(void)
{
	pthread_mutex_t free_one = PTHREAD_MUTEX_INITIALIZER, held = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
	struct timespec past = { 0, 0 };
	mtx_t c11;

	mtx_init(&c11, mtx_plain);
	for (unsigned i = 0; i < rounds; i++) {
		pthread_mutex_lock(&free_one);
		pthread_mutex_unlock(&free_one);
		pthread_mutex_lock(&held);
		if (pthread_mutex_trylock(&held) != EBUSY || pthread_mutex_timedlock(&held, &past) != ETIMEDOUT ||
		    pthread_mutex_clocklock(&held, CLOCK_MONOTONIC, &past) != ETIMEDOUT)
			die("lock");
		if (pthread_cond_timedwait(&cond, &held, &past) != ETIMEDOUT ||
		    pthread_cond_clockwait(&cond, &held, CLOCK_MONOTONIC, &past) != ETIMEDOUT)
			die("wait");
		pthread_mutex_unlock(&held);
		mtx_lock(&c11);
		if (mtx_trylock(&c11) != thrd_busy)
			die("mtx_trylock");
		mtx_unlock(&c11);
	}
}

static void times(void)
{
	for (unsigned i = 0; i < rounds; i++) {
		time_t when = (time_t)i * 1000;
		struct tm fields;

		kept = localtime(&when);
		kept = localtime_r(&when, &fields);
		if (mktime(&fields) != when)
			die("mktime");
		kept = gmtime(&when);
		kept = gmtime_r(&when, &fields);
	}
}

static void files(void)
{
	char bytes[64];
	struct iovec parts[2] = { { bytes, 3 }, { bytes + 3, 4 } };
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		die("socketpair");
	for (unsigned i = 0; i < rounds; i++) {
		struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
		struct mmsghdr two[2] = { { .msg_hdr = message }, { .msg_hdr = message } };

		if (read(zero, bytes, 5) != 5 || pread(zero, bytes, 6, 0) != 6 || readv(zero, parts, 2) != 7 ||
		    preadv(zero, parts, 2, 0) != 7 || read(null, bytes, 5) != 0 || read(-1, bytes, 5) != -1)
			die("read");
		if (errno != EBADF)
			die("errno");
		if (write(null, bytes, 11) != 11 || pwrite(null, bytes, 12, 0) != 12 || writev(null, parts, 2) != 7)
			die("write");
		if (send(pair[0], bytes, 10, 0) != 10 || sendto(pair[0], bytes, 11, 0, NULL, 0) != 11 ||
		    sendmsg(pair[0], &message, 0) != 7 || sendmmsg(pair[0], two, 2, 0) != 2)
			die("send");
		if (recv(pair[1], bytes, 10, 0) != 10 || recvfrom(pair[1], bytes, 11, 0, NULL, NULL) != 11 ||
		    recvmsg(pair[1], &message, 0) != 7 || recvmmsg(pair[1], two, 2, 0, NULL) != 2)
			die("recv");
	}
	close(pair[0]);
	close(pair[1]);
}

static void all(void)
{
	memory();
	locks();
	times();
	files();
}

static void *thread(void *arg)
{
	all();
	return arg;
}

static int c11_thread(void *arg)
{
	(void)arg;
	all();
	return 0;
}

static void threads(void)
{
	pthread_t made[THREADS];
	thrd_t another;

	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&made[i], NULL, thread, NULL))
			die("pthread_create");
	if (thrd_create(&another, c11_thread, NULL) != thrd_success)
		die("thrd_create");
	for (int i = 0; i < THREADS; i++)
		pthread_join(made[i], NULL);
	thrd_join(another, NULL);
}

static void reap(pid_t child)
{
	int status;

	if (child < 0 || waitpid(child, &status, 0) != child)
		die("child");
	if (status) {
		fprintf(stderr, "calls: a child ended with %#x\n", status);
		exit(99);
	}
}

static void forks(void)
{
	for (int i = 0; i < 3; i++) {
		pid_t child = fork();

		if (!child) {
			all();
			_exit(0);
		}
		reap(child);
	}
}

static void exec_self(const char *what)
{
	char number[16];

	snprintf(number, sizeof(number), "%u", rounds);
	execl(self, self, number, what, (char *)NULL);
	_exit(98);
}

static void execs(void)
{
	pid_t child = fork();

	if (!child)
		exec_self("memory");
	reap(child);
	child = fork();
	if (!child) {
		/* Those that close everything they did not open lose nothing. */
		for (int fd = 3; fd < 1024; fd++)
			close(fd);
		exec_self("times");
	}
	reap(child);
}

/* The child of vfork runs on our memory; many of them at once, from several threads. */
static void *vforker(void *arg)
{
	for (int i = 0; i < 5; i++) {
		pid_t child = vfork();

		if (!child) {
			for (unsigned j = 0; j < rounds; j++)
				(void)!write(null, "0123", 4);
			_exit(0);
		}
		reap(child);
	}
	return arg;
}

static void vforks(void)
{
	pthread_t made[THREADS];

	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&made[i], NULL, vforker, NULL))
			die("pthread_create");
	for (int i = 0; i < THREADS; i++)
		pthread_join(made[i], NULL);
}

static volatile sig_atomic_t handled;

static void handler(int number)
{
	(void)number;
	if (write(null, "0123", 4) == 4)
		handled++;
}

/* A handler that counts what it interrupts counting; prints how often. */
static void signals(void)
{
	struct sigaction action = { .sa_handler = handler };
	struct itimerspec soon = { { 0, 50000 }, { 0, 50000 } };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	timer_t timer;

	sigaction(SIGUSR1, &action, NULL);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer))
		die("timer_create");
	timer_settime(timer, 0, &soon, NULL);
	for (unsigned i = 0; i < rounds; i++)
		if (write(null, "0123", 4) != 4)
			die("write");
	timer_delete(timer);
	printf("%d\n", (int)handled);
}

static void *blocked_reader(void *arg)
{
	char byte;

	(void)!read(*(int *)arg, &byte, 1);
	return NULL;
}

/* A thread can be cancelled where it waits inside a counted call. */
static void cancel(void)
{
	pthread_t made;
	void *result;
	int ends[2];

	if (pipe(ends) || pthread_create(&made, NULL, blocked_reader, &ends[0]))
		die("cancel");
	usleep(20000);
	pthread_cancel(made);
	pthread_join(made, &result);
	puts(result == PTHREAD_CANCELED ? "cancelled" : "not cancelled");
}

/* What each kind of mutex answers, to be compared with what it answers when nobody counts. */
static void *die_holding(void *arg)
{
	pthread_mutex_lock(arg);
	return NULL;
}

static void answers(void)
{
	struct timespec past = { 0, 0 };

	for (int type = PTHREAD_MUTEX_NORMAL; type <= PTHREAD_MUTEX_ADAPTIVE_NP; type++)
		for (int protocol = PTHREAD_PRIO_NONE; protocol <= PTHREAD_PRIO_INHERIT; protocol++)
			for (int robust = 0; robust < 2; robust++) {
				pthread_mutexattr_t attr;
				pthread_mutex_t it;
				pthread_t made;

				pthread_mutexattr_init(&attr);
				pthread_mutexattr_settype(&attr, type);
				pthread_mutexattr_setprotocol(&attr, protocol);
				pthread_mutexattr_setrobust(&attr, robust);
				if (pthread_mutex_init(&it, &attr))
					continue;
				printf("%d%d%d: %d", type, protocol, robust, pthread_mutex_lock(&it));
				if (type == PTHREAD_MUTEX_RECURSIVE || type == PTHREAD_MUTEX_ERRORCHECK)
					printf(" again %d", pthread_mutex_lock(&it));
				printf(" try %d timed %d clock %d", pthread_mutex_trylock(&it),
				       pthread_mutex_timedlock(&it, &past),
				       pthread_mutex_clocklock(&it, CLOCK_MONOTONIC, &past));
				for (int i = 0; i < 5; i++)
					printf(" %d",
					       i && type == PTHREAD_MUTEX_NORMAL ? 0 : pthread_mutex_unlock(&it));
				printf(" bad %d", pthread_mutex_clocklock(&it, CLOCK_PROCESS_CPUTIME_ID, &past));
				if (robust) {
					pthread_create(&made, NULL, die_holding, &it);
					pthread_join(made, NULL);
					printf(" dead %d", pthread_mutex_lock(&it));
					printf(" %d", pthread_mutex_unlock(&it));
					printf(" lost %d", pthread_mutex_lock(&it));
				}
				puts("");
			}
}

static const struct {
	const char *name;
	void (*run)(void);
} known[] = {
	{ "memory", memory }, { "locks", locks },     { "times", times },   { "files", files },
	{ "all", all },       { "threads", threads }, { "forks", forks },   { "execs", execs },
	{ "vforks", vforks }, { "signals", signals }, { "cancel", cancel }, { "answers", answers },
};

static int end(const char *how)
{
	struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CORE, &none);
	if (!strncmp(how, "kill=", 5))
		kill(getpid(), atoi(how + 5));
	if (!strncmp(how, "exit=", 5))
		exit(atoi(how + 5));
	fprintf(stderr, "calls: what is %s?\n", how);
	return 99;
}

int main(int argc, char **argv)
{
	self = argv[0];
	rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
	zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 2; i < argc; i++) {
		size_t at = 0;

		while (at < sizeof(known) / sizeof(known[0]) && strcmp(known[at].name, argv[i]))
			at++;
		if (at == sizeof(known) / sizeof(known[0]))
			return end(argv[i]);
		known[at].run();
		fflush(stdout);
	}
	return 0;
}
