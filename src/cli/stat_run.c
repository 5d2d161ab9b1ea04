/* SPDX-License-Identifier: MIT */
/*
 * The program under `percpu stat`: its memory for counts, its start, its signals, its end.
 *
 * The program stays in our process group, so what the terminal sends reaches it without us; we neither act on that nor
 * send it on. What was sent to us alone is sent on. When the program stops we stop too, by the same signal, so that the
 * shell's job control sees one job. When it ends we end the same way.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
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

#include "cli/cli.h"
#include "cli/stat.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

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

double run_seconds(const struct run *run)
{
	return now() - run->started;
}

static int make_file(void)
{
	int fd = memfd_create(SESSION_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create(SESSION_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd >= 0 && fchmod(fd, 0600)) {
		close(fd);
		return -1;
	}
	return fd;
}

int run_prepare(struct run *run)
{
	struct session_header *header;
	char path[64];
	void *base = NULL;
	int rc;

	*run = (struct run){ .fd = make_file() };
	rc = run->fd < 0 ? -errno : percpu_area_map(run->fd, &base);
	if (rc) {
		cli_complain("cannot make the memory for counts: %s", strerror(-rc));
		return EXIT_REFUSED;
	}
	/* Whoever maps it must be able to rely on its size. */
	fcntl(run->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getpid(), run->fd);
	if (access(path, R_OK | W_OK)) {
		cli_complain("cannot be found through %s by the program: %s", path, strerror(errno));
		return EXIT_REFUSED;
	}
	header = session_header(base);
	header->magic = SESSION_MAGIC;
	header->layout = session_layout();
	header->copies = percpu_copies();
	if (getrandom(&header->key, sizeof(header->key), 0) != (ssize_t)sizeof(header->key))
		header->key = (uint64_t)(now() * 1e9) ^ (uint64_t)getpid() << 32;
	run->base = base;
	return 0;
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

/* In the child: everything as it was, and the two variables. Does not return. */
static void become(const struct run *run, const char *path, char **argv, const char *preload, int report)
{
	const char *others = getenv("LD_PRELOAD");
	size_t n = strlen(preload) + (others ? strlen(others) : 0) + 2;
	char *list = malloc(n);
	char session[96];
	int error = ENOMEM;

	snprintf(session, sizeof(session), "/proc/%d/fd/%d %016" PRIx64, (int)getppid(), run->fd,
		 session_header(run->base)->key);
	if (list) {
		/* Once is enough, where percpu stat runs under percpu stat. */
		if (others && !strncmp(others, preload, strlen(preload)))
			snprintf(list, n, "%s", others);
		else
			snprintf(list, n, "%s%s%s", preload, others && *others ? ":" : "", others ? others : "");
		if (!setenv("LD_PRELOAD", list, 1) && !setenv(SESSION_ENV, session, 1)) {
			sigaction(SIGPIPE, &old_pipe, NULL);
			sigaction(SIGXFSZ, &old_size, NULL);
			sigaction(SIGCHLD, &old_child, NULL);
			sigprocmask(SIG_SETMASK, &old_mask, NULL);
			execvp(path, argv);
		}
		error = errno;
	}
	(void)!write(report, &error, sizeof(error));
	_exit(EXIT_REFUSED);
}

int run_start(struct run *run, const char *path, char **argv)
{
	char preload[4096];
	int report[2];
	int error = 0;
	int rc = cli_find_object("../preload/libpercpu-stat.so", "percpu/libpercpu-stat.so", preload, sizeof(preload));

	if (rc == -EINVAL) {
		cli_complain("%s has a space or a colon in its name: it cannot be preloaded", preload);
		return EXIT_REFUSED;
	}
	if (rc) {
		cli_complain("cannot find the object to preload, %s: %s", preload, strerror(-rc));
		return EXIT_REFUSED;
	}
	if (pipe2(report, O_CLOEXEC)) {
		cli_complain("cannot start a process: %s", strerror(errno));
		return EXIT_REFUSED;
	}
	take_signals();
	run->started = now();
	run->child = fork();
	if (run->child < 0) {
		cli_complain("cannot start a process: %s", strerror(errno));
		return EXIT_REFUSED;
	}
	if (!run->child)
		become(run, path, argv, preload, report[1]);
	close(report[1]);
	while (read(report[0], &error, sizeof(error)) < 0 && errno == EINTR)
		;
	close(report[0]);
	if (!error)
		return 0;
	waitpid(run->child, NULL, 0);
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
static bool reap(struct run *run, void (*pause)(void *), void *arg)
{
	for (;;) {
		int status;
		pid_t pid = waitpid(run->child, &status, WNOHANG | WUNTRACED);

		if (pid != run->child)
			return false;
		if (!WIFSTOPPED(status)) {
			run->status = status;
			return true;
		}
		pause(arg);
		stop_too(WSTOPSIG(status));
	}
}

static void pass_on(const struct run *run, const struct signalfd_siginfo *info)
{
	int number = (int)info->ssi_signo;

	if (info->ssi_code == SI_KERNEL || info->ssi_pid == (uint32_t)run->child)
		return;
	if (info->ssi_code == SI_QUEUE)
		sigqueue(run->child, number, (union sigval){ .sival_ptr = (void *)(uintptr_t)info->ssi_ptr });
	else
		kill(run->child, number);
}

void run_follow(struct run *run, unsigned interval_ms, void (*tick)(void *), void (*pause)(void *), void *arg)
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
		ended = waitpid(run->child, &run->status, 0) == run->child;
	while (!ended) {
		struct signalfd_siginfo info;
		uint64_t times;

		if (poll(wait, 2, -1) < 0 && errno != EINTR)
			break;
		while (!ended && read(wait[0].fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
			if (info.ssi_signo == SIGCHLD)
				ended = reap(run, pause, arg);
			else
				pass_on(run, &info);
		}
		if (!ended && wait[1].fd >= 0 && read(wait[1].fd, &times, sizeof(times)) > 0)
			tick(arg);
	}
	for (int i = 0; i < 2; i++)
		if (wait[i].fd >= 0)
			close(wait[i].fd);
}

int run_end(const struct run *run)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	struct rlimit none = { 0, 0 };
	sigset_t set;
	int number;

	if (WIFEXITED(run->status))
		return WEXITSTATUS(run->status);
	number = WTERMSIG(run->status);
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
