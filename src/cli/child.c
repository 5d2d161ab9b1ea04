/* SPDX-License-Identifier: MIT */
/*
 * The program under `percpu stat` and `percpu run`: its start, its signals, its end.
 *
 * The program stays in our process group, so what the terminal sends reaches it without us; we neither act on that nor
 * send it on. What was sent to us alone is sent on. When the program stops we stop too, by the same signal, so that the
 * shell's job control sees one job. When it ends we end the same way.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli/child.h"
#include "cli/cli.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

#define COUNTER "libpercpu-stat.so"
#define OURS    "libpercpu-"

/* Those that stop or end us by default and mean nothing that happened inside us; and all real-time signals. */
static const int followed[] = { SIGHUP,  SIGINT,  SIGQUIT,  SIGTERM, SIGUSR1, SIGUSR2, SIGALRM,   SIGTSTP,
				SIGCONT, SIGCHLD, SIGWINCH, SIGURG,  SIGIO,   SIGPWR,  SIGVTALRM, SIGPROF };

/* As they were when we were started: the program gets them back. */
static sigset_t old_mask;
static struct sigaction old_pipe, old_child, old_size;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

double child_seconds(const struct child *child)
{
	return now() - child->started;
}

static void followed_signals(sigset_t *set)
{
	sigemptyset(set);
	for (size_t i = 0; i < sizeof(followed) / sizeof(followed[0]); i++)
		sigaddset(set, followed[i]);
	for (int number = SIGRTMIN; number <= SIGRTMAX; number++)
		sigaddset(set, number);
}

static void take_signals(void)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN };
	struct sigaction standard = { .sa_handler = SIG_DFL };
	sigset_t set;

	followed_signals(&set);
	sigprocmask(SIG_BLOCK, &set, &old_mask);
	sigaction(SIGPIPE, &ignore, &old_pipe);
	sigaction(SIGXFSZ, &ignore, &old_size);
	sigaction(SIGCHLD, &standard, &old_child);
}

int child_file_make(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd >= 0 && fchmod(fd, 0600)) {
		int error = errno;

		close(fd);
		return -error;
	}
	return fd < 0 ? -errno : fd;
}

int child_file_share(int fd, char path[static 64], uint64_t *key)
{
	/* Whoever maps it must be able to rely on its size. */
	fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	snprintf(path, 64, "/proc/%d/fd/%d", (int)getpid(), fd);
	if (access(path, R_OK | W_OK)) {
		cli_complain("cannot be found through %s by the program: %s", path, strerror(errno));
		return EXIT_REFUSED;
	}
	if (getrandom(key, sizeof(*key), 0) != (ssize_t)sizeof(*key))
		*key = (uint64_t)(now() * 1e9) ^ (uint64_t)getpid() << 32;
	return 0;
}

/* Of the first in a list. */
static const char *basename_of(const char *list)
{
	const char *base = list;

	for (size_t i = 0; list[i] && list[i] != ':' && list[i] != ' '; i++)
		if (list[i] == '/')
			base = list + i + 1;
	return base;
}

bool child_preload(const char *object)
{
	const char *others = getenv("LD_PRELOAD");
	size_t length = strlen(object), skip = 0;
	char *list;
	bool ok;

	if (!others || !*others)
		return !setenv("LD_PRELOAD", object, 1);
	/* The one that counts calls stays in front of those that it counts. */
	if (!strncmp(basename_of(others), COUNTER, strlen(COUNTER)) &&
	    strncmp(basename_of(object), COUNTER, strlen(COUNTER)))
		skip = strcspn(others, ": ");
	/* Once is enough, where one percpu runs under another: in front, or behind an object of ours that is. */
	for (const char *at = others + skip + (skip && others[skip]);; at++) {
		size_t n = strcspn(at, ": ");

		if (n == length && !strncmp(at, object, n))
			return true;
		if (strncmp(basename_of(at), OURS, strlen(OURS)))
			break;
		at += n;
		if (!*at)
			break;
	}
	if (skip)
		ok = asprintf(&list, "%.*s:%s%s", (int)skip, others, object, others + skip) >= 0;
	else
		ok = asprintf(&list, "%s:%s", object, others) >= 0;
	ok = ok && !setenv("LD_PRELOAD", list, 1);
	if (ok)
		free(list);
	return ok;
}

/* In the child: everything as it was, and the variables. Does not return. */
static void become(const char *path, char **argv, bool (*environment)(void *), void *arg, int report)
{
	int error = ENOMEM;

	if (environment(arg)) {
		sigaction(SIGPIPE, &old_pipe, NULL);
		sigaction(SIGXFSZ, &old_size, NULL);
		sigaction(SIGCHLD, &old_child, NULL);
		sigprocmask(SIG_SETMASK, &old_mask, NULL);
		execvp(path, argv);
		error = errno;
	}
	(void)!write(report, &error, sizeof(error));
	_exit(EXIT_REFUSED);
}

int child_start(struct child *child, const char *path, char **argv, bool (*environment)(void *), void *arg)
{
	int report[2];
	int error = 0;

	if (pipe2(report, O_CLOEXEC)) {
		cli_complain("cannot start a process: %s", strerror(errno));
		return EXIT_REFUSED;
	}
	take_signals();
	child->started = now();
	child->pid = fork();
	if (child->pid < 0) {
		cli_complain("cannot start a process: %s", strerror(errno));
		return EXIT_REFUSED;
	}
	if (!child->pid)
		become(path, argv, environment, arg, report[1]);
	close(report[1]);
	while (read(report[0], &error, sizeof(error)) < 0 && errno == EINTR)
		;
	close(report[0]);
	if (!error)
		return 0;
	waitpid(child->pid, NULL, 0);
	cli_complain("%s: %s", argv[0], strerror(error));
	return error == ENOENT ? EXIT_NOT_FOUND : error == ENOMEM ? EXIT_REFUSED : EXIT_NOT_EXEC;
}

static bool in_foreground(void)
{
	int fd = open("/dev/tty", O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	bool answer = fd >= 0 && tcgetpgrp(fd) == getpgrp();

	if (fd >= 0)
		close(fd);
	return answer;
}

static void stop_too(int number)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	sigset_t set, before;

	/* A SIGSTOP out of the blue is between its sender and the program, except where a shell would hang on us. */
	if (number == SIGSTOP && !in_foreground())
		return;
	sigaction(number, &standard, NULL);
	sigemptyset(&set);
	sigaddset(&set, number);
	raise(number);
	sigprocmask(SIG_UNBLOCK, &set, &before);
	sigprocmask(SIG_SETMASK, &before, NULL);
}

/* Returns whether the program has ended. */
static bool reap(struct child *child, void (*pause)(void *), void *arg)
{
	for (;;) {
		int status;
		pid_t pid = waitpid(child->pid, &status, WNOHANG | WUNTRACED);

		if (pid != child->pid)
			return false;
		if (!WIFSTOPPED(status)) {
			child->status = status;
			return true;
		}
		pause(arg);
		stop_too(WSTOPSIG(status));
	}
}

static void pass_on(const struct child *child, const struct signalfd_siginfo *info)
{
	int number = (int)info->ssi_signo;

	if (info->ssi_code == SI_KERNEL || info->ssi_pid == (uint32_t)child->pid)
		return;
	if (info->ssi_code == SI_QUEUE)
		sigqueue(child->pid, number, (union sigval){ .sival_ptr = (void *)(uintptr_t)info->ssi_ptr });
	else
		kill(child->pid, number);
}

void child_follow(struct child *child, unsigned interval_ms, void (*tick)(void *), void (*pause)(void *), void *arg)
{
	struct timespec step = { interval_ms / 1000, (long)(interval_ms % 1000) * 1000000 };
	struct itimerspec interval = { step, step };
	struct pollfd wait[2];
	bool ended = false;
	sigset_t set;

	followed_signals(&set);
	wait[0] = (struct pollfd){ signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), POLLIN, 0 };
	wait[1] = (struct pollfd){ timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), POLLIN, 0 };
	if (wait[1].fd >= 0 && interval_ms)
		timerfd_settime(wait[1].fd, 0, &interval, NULL);
	/* Out of descriptors: the program matters more than its signals and our display. */
	if (wait[0].fd < 0)
		ended = waitpid(child->pid, &child->status, 0) == child->pid;
	while (!ended) {
		struct signalfd_siginfo info;
		uint64_t times;

		if (poll(wait, 2, -1) < 0 && errno != EINTR)
			break;
		while (!ended && read(wait[0].fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
			if (info.ssi_signo == SIGCHLD)
				ended = reap(child, pause, arg);
			else
				pass_on(child, &info);
		}
		if (!ended && wait[1].fd >= 0 && read(wait[1].fd, &times, sizeof(times)) > 0)
			tick(arg);
	}
	for (int i = 0; i < 2; i++)
		if (wait[i].fd >= 0)
			close(wait[i].fd);
}

int child_end(const struct child *child)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	struct rlimit none = { 0, 0 };
	sigset_t set;
	int number;

	if (WIFEXITED(child->status))
		return WEXITSTATUS(child->status);
	number = WTERMSIG(child->status);
	/* The core that matters is the program's. */
	setrlimit(RLIMIT_CORE, &none);
	prctl(PR_SET_DUMPABLE, 0);
	sigaction(number, &standard, NULL);
	sigemptyset(&set);
	sigaddset(&set, number);
	raise(number);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	return 128 + number;
}
