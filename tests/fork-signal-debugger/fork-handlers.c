/* SPDX-License-Identifier: MIT */
/*
 * fork while signal handlers and other threads use the same data: nobody may wait for somebody who waits for him.
 *
 *   fork-handlers forker|others|alloc|histogram|both MODE [FORKS]
 *
 * forker: a timer's handler runs operations on the forking thread itself, also between the steps of fork's own handlers.
 * others: the handlers run in other threads, on top of operations that fork waits for (in mode none).
 * alloc: the same, and these handlers allocate.
 * both: the handlers of two threads fork, on top of operations, while the main thread forks.
 * histogram: other threads read and drain a histogram; each child uses it too.
 *
 * A hang ends by SIGKILL from a process of its own: what hangs may have blocked all other signals. Exit status 0, 1, or
 * 77 if this process cannot have the mode.
 */
#include <errno.h>
#include <percpu.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define FORKS   500
#define SECONDS 30 /* for so many of them */

static uint64_t *word;
static struct percpu_histogram histogram;
static volatile bool stop;
static bool targeted, allocates, forks;

static void use(void)
{
	struct percpu_op add = { .op = PERCPU_OP_ADD, .len = 8, .dst = percpu_ptr(word, 0), .value = 1 };

	if (targeted)
		(void)percpu_opv(&add, 1, 0);
	percpu_this_add(word, 1);
}

static void on_timer(int signal)
{
	(void)signal;
	use();
	for (int i = 0; allocates && i < 50; i++)
		(void)percpu_free(percpu_alloc(64, 8));
	if (forks) {
		int saved = errno;
		pid_t pid = fork();

		if (pid == 0) {
			use();
			_exit(0);
		}
		if (pid > 0)
			(void)waitpid(pid, NULL, 0);
		errno = saved;
	}
}

static void *work(void *unused)
{
	(void)unused;
	while (!stop)
		use();
	return NULL;
}

static void *drain(void *arg)
{
	struct percpu_snapshot snapshot;

	(void)arg;
	if (percpu_snapshot_init(&snapshot, 3))
		_exit(1);
	while (!stop) {
		percpu_histogram_record(&histogram, 7);
		percpu_histogram_drain(&histogram, &snapshot);
	}
	percpu_snapshot_destroy(&snapshot);
	return NULL;
}

static void in_child(bool uses_histogram)
{
	struct percpu_snapshot snapshot;

	for (int i = 0; i < 10; i++)
		use();
	if (uses_histogram && (percpu_snapshot_init(&snapshot, 3) || percpu_histogram_drain(&histogram, &snapshot)))
		_exit(1);
	_exit(0);
}

static int run(const char *what, int count)
{
	bool forker = !strcmp(what, "forker"), uses_histogram = !strcmp(what, "histogram");
	struct itimerval often = { { 0, 100 }, { 0, 100 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigaction action = { .sa_handler = on_timer, .sa_flags = SA_RESTART };
	pthread_t threads[2];
	sigset_t alarm;
	int status = 0;

	targeted = forker;
	allocates = !strcmp(what, "alloc");
	forks = !strcmp(what, "both");
	word = percpu_alloc(sizeof *word, sizeof *word);
	if (!word || percpu_histogram_init(&histogram, 3))
		return 1;
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	sigaction(SIGALRM, &action, NULL);
	pthread_sigmask(forker ? SIG_BLOCK : SIG_UNBLOCK, &alarm, NULL);
	for (int i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, uses_histogram ? drain : work, NULL))
			return 1;
	pthread_sigmask(forker ? SIG_UNBLOCK : SIG_BLOCK, &alarm, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < count && !status; i++) {
		pid_t pid = fork();

		if (pid == 0)
			in_child(uses_histogram);
		if (pid < 0 || waitpid(pid, &status, 0) < 0)
			return 1;
	}
	setitimer(ITIMER_REAL, &never, NULL);
	stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	return status != 0;
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	int status = 0, count = argc > 3 ? atoi(argv[3]) : FORKS, seconds;
	pid_t pid;

	seconds = SECONDS * (1 + count / FORKS);
	if (argc < 3)
		return 2;
	percpu_describe(&about);
	if (strcmp(about.mode_name, argv[2])) {
		printf("this process cannot have mode %s: %s\n", argv[2], about.reason);
		return 77;
	}
	pid = fork();
	if (pid == 0) {
		setpgid(0, 0);
		_exit(run(argv[1], count));
	}
	for (int tenths = 0; tenths < seconds * 10; tenths++) {
		if (waitpid(pid, &status, WNOHANG) == pid) {
			if (status)
				fprintf(stderr, "%s: failed, wait status 0x%x\n", argv[1], (unsigned)status);
			return status != 0;
		}
		usleep(100000);
	}
	fprintf(stderr, "%s: still not done after %d s: a deadlock\n", argv[1], seconds);
	kill(-pid, SIGKILL);
	waitpid(pid, &status, 0);
	return 1;
}
