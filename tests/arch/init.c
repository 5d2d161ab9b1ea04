/* SPDX-License-Identifier: MIT */
/*
 * The first process of a guest: runs the programs of /tests in every mode, as /plan says, then stops the machine.
 *
 * A line of the plan: modes with commas between them, the program's name, its arguments. A line of our output that starts with '@' is for scripts/check-arch: "@run MODE PROGRAM", the program's own lines behind it, "@end
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

#define MOST_WORDS 16

struct step {
	char *modes, *name;
	char *arguments[MOST_WORDS];
	struct step *next;
};

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

static int run(const struct mode *mode, const struct step *step, unsigned seconds)
{
	char path[512], expect[64];
	const char *environment[] = { "PATH=/", "HOME=/tmp", expect, mode->environment, NULL };
	sigset_t child;
	pid_t pid;
	int status;

	snprintf(path, sizeof path, "/tests/%s", step->name);
	snprintf(expect, sizeof expect, "PERCPU_TEST_MODE=%s", mode->name);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	pid = fork();
	check(pid, "fork");
	if (pid == 0) {
		sigprocmask(SIG_UNBLOCK, &child, NULL);
		setpgid(0, 0);
		check(chdir("/tmp"), "/tmp");
		dup2(STDOUT_FILENO, STDERR_FILENO);
		execve(path, step->arguments, (char *const *)(unsigned long)environment);
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

/* Blanks between words; nothing is quoted. */
static struct step *read_plan(const char *path)
{
	struct step *first = NULL, **end = &first;
	FILE *file = fopen(path, "r");
	char *line = NULL;
	size_t room = 0;

	check(file ? 0 : -1, path);
	while (getline(&line, &room, file) > 0) {
		struct step *step = calloc(1, sizeof *step);
		char *rest = strdup(line), *word;
		int words = 0;

		check(step && rest ? 0 : -1, "memory");
		step->modes = strsep(&rest, " \n");
		while ((word = strsep(&rest, " \n")) && *word) {
			if (words + 1 == MOST_WORDS) {
				printf("%s: too many words in a line\n", path);
				stop();
			}
			step->arguments[words++] = word;
		}
		step->name = step->arguments[0];
		check(step->name ? 0 : -1, path);
		*end = step;
		end = &step->next;
	}
	return first;
}

/* A whole word of a list with commas. */
static int names(const char *list, const char *mode)
{
	size_t length = strlen(mode);

	for (; list; list = strchr(list, ',') ? strchr(list, ',') + 1 : NULL)
		if (strncmp(list, mode, length) == 0 && (list[length] == ',' || list[length] == '\0'))
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	unsigned seconds = argc > 1 && atoi(argv[1]) > 0 ? (unsigned)atoi(argv[1]) : 60;
	struct utsname kernel;
	struct step *plan;

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
	/* The firmware may have left the cursor in the middle of a line. */
	printf("\n@kernel %s, %ld CPUs\n", kernel.release, sysconf(_SC_NPROCESSORS_ONLN));
	plan = read_plan("/plan");
	for (size_t m = 0; m < sizeof modes / sizeof *modes; m++)
		for (const struct step *step = plan; step; step = step->next) {
			if (!names(step->modes, modes[m].name))
				continue;
			printf("@run %s %s\n", modes[m].name, step->name);
			printf("@end %s %s %d\n", modes[m].name, step->name, run(&modes[m], step, seconds));
		}
	printf("@done\n");
	stop();
}
