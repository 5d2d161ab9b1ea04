/* SPDX-License-Identifier: MIT */
/*
 * The only process of a guest: runs every program of /tests in every mode, then stops the machine.
 *
 * A line that starts with '@' is for scripts/check-arch: "@run MODE PROGRAM", the program's own lines behind it, "@end
 * MODE PROGRAM STATUS", and "@done" at last, so that a guest that dies half way is noticed. A program that outlives its
 * time is killed (status 124), one that dies by a signal has status 128 + signal.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAMS "/tests"

struct mode {
	const char *name;
	const char *environment;
};

static const struct mode modes[] = {
	{ "libc", NULL },
	{ "own", "GLIBC_TUNABLES=glibc.pthread.rseq=0" },
	{ "none", "PERCPU_RSEQ=off" },
};

/* PID 1 must not end: the kernel would panic, and say nothing of use. */
static void stop(void)
{
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void check(int rc, const char *what)
{
	if (rc < 0) {
		perror(what);
		stop();
	}
}

/* Where each thread of a process is, for whoever reads the log of one that did not end. */
static void show_threads(pid_t pid)
{
	static const char *const files[] = { "stat", "syscall", "wchan" };
	char folder[64], path[400], text[512];
	struct dirent *entry;
	DIR *threads;

	snprintf(folder, sizeof folder, "/proc/%d/task", pid);
	threads = opendir(folder);
	while (threads && (entry = readdir(threads))) {
		if (entry->d_name[0] == '.')
			continue;
		for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
			ssize_t got;
			int fd;

			snprintf(path, sizeof path, "%s/%s/%s", folder, entry->d_name, files[i]);
			fd = open(path, O_RDONLY);
			got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
			close(fd);
			if (got <= 0)
				continue;
			text[got] = '\0';
			text[strcspn(text, "\n")] = '\0';
			printf("thread %s %s: %s\n", entry->d_name, files[i], text);
		}
	}
	if (threads)
		closedir(threads);
}

static int run(const struct mode *mode, const char *name, unsigned seconds)
{
	char path[512], expect[64];
	const char *environment[] = { "PATH=/", "HOME=/tmp", expect, mode->environment, NULL };
	char *const arguments[] = { path, (char *)(unsigned long)mode->name, NULL };
	sigset_t child;
	pid_t pid;
	int status;

	snprintf(path, sizeof path, PROGRAMS "/%s", name);
	snprintf(expect, sizeof expect, "PERCPU_TEST_MODE=%s", mode->name);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	pid = fork();
	check(pid, "fork");
	if (pid == 0) {
		sigprocmask(SIG_UNBLOCK, &child, NULL);
		setpgid(0, 0);
		dup2(STDOUT_FILENO, STDERR_FILENO);
		execve(path, arguments, (char *const *)(unsigned long)environment);
		_exit(127);
	}
	/* Its children may be ours by now, so a SIGCHLD need not be its own. */
	for (;;) {
		struct timespec limit = { .tv_sec = (time_t)seconds };
		pid_t ended = waitpid(pid, &status, WNOHANG);

		if (ended == pid)
			break;
		if (sigtimedwait(&child, NULL, &limit) < 0) {
			show_threads(pid);
			kill(-pid, SIGKILL);
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return 124;
		}
	}
	kill(-pid, SIGKILL);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int is_visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

int main(int argc, char **argv)
{
	unsigned seconds = argc > 1 && atoi(argv[1]) > 0 ? (unsigned)atoi(argv[1]) : 60;
	struct dirent **programs;
	struct utsname kernel;
	int count;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (getpid() != 1) {
		fprintf(stderr, "init: for a guest of scripts/check-arch only\n");
		return 1;
	}
	check(mount("proc", "/proc", "proc", 0, NULL), "mount /proc");
	check(mount("sysfs", "/sys", "sysfs", 0, NULL), "mount /sys");
	check(mount("devtmpfs", "/dev", "devtmpfs", 0, NULL), "mount /dev");
	check(mount("tmpfs", "/tmp", "tmpfs", 0, NULL), "mount /tmp");
	check(uname(&kernel), "uname");
	printf("@kernel %s %ld CPUs\n", kernel.release, sysconf(_SC_NPROCESSORS_ONLN));
	count = scandir(PROGRAMS, &programs, is_visible, alphasort);
	check(count, PROGRAMS);
	for (size_t m = 0; m < sizeof modes / sizeof *modes; m++)
		for (int i = 0; i < count; i++) {
			printf("@run %s %s\n", modes[m].name, programs[i]->d_name);
			printf("@end %s %s %d\n", modes[m].name, programs[i]->d_name,
			       run(&modes[m], programs[i]->d_name, seconds));
		}
	printf("@done\n");
	stop();
}
