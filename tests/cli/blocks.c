/* SPDX-License-Identifier: MIT */
/*
 * A program that holds known blocks, for the tests of `percpu run`.
 *
 * blocks STEP...: does one after the other.
 *   COUNTxSIZE  allocates, and keeps
 *   free=COUNT  frees the last ones
 *   resize=SIZE reallocates the last one
 *   trim        gives back what is free
 *   cpu=N       goes there
 *   storm=N     allocates and frees so many times, while SIGALRM comes again and again
 *   fork=STEP   does a step in a child, which exits, and waits for it
 *   wait        reads a byte from standard input
 *   exit=N, _exit=N, kill=N; exec: the rest in a new program; closed: closes all files; handler=N: catches a signal, and
 *   prints "caught" when it comes; raise=N
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST 200000

static void *blocks[MOST];
static size_t held;

static void die(const char *what)
{
	perror(what);
	_exit(99);
}

static void caught(int number)
{
	static const char text[] = "caught\n";

	(void)number;
	if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
		die("write");
}

static void allocate(size_t count, size_t size)
{
	while (count--) {
		if (held == MOST)
			die("too many");
		blocks[held] = malloc(size);
		if (!blocks[held])
			die("malloc");
		memset(blocks[held++], 1, size);
	}
}

static void storm(unsigned long n)
{
	const struct itimerval never = { { 0, 0 }, { 0, 0 } };
	void *some[64] = { NULL };

	for (unsigned long i = 0; i < n; i++) {
		/* One signal each time, so that the program gets on however long its handler takes. */
		const struct itimerval soon = { { 0, 0 }, { 0, 20 + (long)(i / 500 % 30) } };
		void **one = &some[i * 37 % 64];

		if (i % 500 == 0)
			setitimer(ITIMER_REAL, &soon, NULL);
		free(*one);
		*one = malloc(i * 613 % 9000);
	}
	setitimer(ITIMER_REAL, &never, NULL);
	for (unsigned i = 0; i < 64; i++)
		free(some[i]);
}

static void step(const char *text, char **rest)
{
	const char *equals = strchr(text, '='), *times = strchr(text, 'x');
	unsigned long n = equals ? strtoul(equals + 1, NULL, 10) : 0;
	char byte;

	if (*text >= '0' && *text <= '9' && times) {
		allocate(strtoul(text, NULL, 10), strtoul(times + 1, NULL, 10));
	} else if (!strncmp(text, "free=", 5)) {
		while (n--)
			free(blocks[--held]);
	} else if (!strncmp(text, "resize=", 7)) {
		blocks[held - 1] = realloc(blocks[held - 1], n);
		if (!blocks[held - 1])
			die("realloc");
	} else if (!strcmp(text, "trim")) {
		malloc_trim(0);
	} else if (!strncmp(text, "cpu=", 4)) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(n, &set);
		if (sched_setaffinity(0, sizeof(set), &set))
			die("sched_setaffinity");
	} else if (!strncmp(text, "storm=", 6)) {
		storm(n);
	} else if (!strncmp(text, "fork=", 5)) {
		int status;
		pid_t child = fork();

		if (!child) {
			step(text + 5, rest);
			exit(0);
		}
		if (waitpid(child, &status, 0) != child || status)
			die("child");
	} else if (!strcmp(text, "wait")) {
		if (read(STDIN_FILENO, &byte, 1) < 0)
			die("read");
	} else if (!strcmp(text, "exec")) {
		execv("/proc/self/exe", rest - 1);
		die("exec");
	} else if (!strcmp(text, "closed")) {
		for (int fd = 0; fd < 1024; fd++)
			close(fd);
	} else if (!strncmp(text, "exit=", 5)) {
		exit((int)n);
	} else if (!strncmp(text, "_exit=", 6)) {
		_exit((int)n);
	} else if (!strncmp(text, "kill=", 5)) {
		kill(getpid(), (int)n);
	} else if (!strncmp(text, "raise=", 6)) {
		raise((int)n);
	} else if (!strncmp(text, "handler=", 8)) {
		signal((int)n, caught);
	} else {
		die(text);
	}
}

int main(int argc, char **argv)
{
	(void)argc;
	/* So that "exec" has a name for the next one in front of the rest. */
	for (char **at = argv + 1; *at; at++)
		step(*at, at + 1);
	return 0;
}
