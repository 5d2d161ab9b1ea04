/* SPDX-License-Identifier: MIT */
/*
 * What is left behind goes back while the program rests, by a thread that is there only for that: in programs with threads,
 * unless they have a filter of system calls of their own. Each case is a process, and all of them wait at the same time.
 */
#include <dirent.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "subject.h"

#define BLOCKS  (96 << 10) /* of a KiB */
#define THREADS 2
#define LITTLE  (32 << 20)
#define PATIENT 120 /* seconds */

static void rest(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
}

/* Bytes of the process's own memory. */
static size_t resident(void)
{
	char line[256];
	size_t kib = 0;
	FILE *file = fopen("/proc/self/status", "re");

	while (file && fgets(line, sizeof(line), file))
		sscanf(line, "RssAnon: %zu", &kib);
	if (file)
		fclose(file);
	return kib << 10;
}

/* Threads of this process; and of those, such that give memory back. */
static unsigned tasks(unsigned *decaying)
{
	DIR *folder = opendir("/proc/self/task");
	unsigned count = 0;

	*decaying = 0;
	for (const struct dirent *entry; folder && (entry = readdir(folder));) {
		char name[300], text[32] = "";
		FILE *file;

		if (*entry->d_name == '.')
			continue;
		snprintf(name, sizeof(name), "/proc/self/task/%s/comm", entry->d_name);
		file = fopen(name, "re");
		if (!file)
			continue;
		if (fgets(text, sizeof(text), file)) {
			count++;
			*decaying += !strcmp(text, "percpu-decay\n");
		}
		fclose(file);
	}
	if (folder)
		closedir(folder);
	return count;
}

static void *peak(void *arg)
{
	char **blocks = malloc(BLOCKS * sizeof(*blocks));

	for (size_t i = 0; i < BLOCKS / THREADS; i++) {
		blocks[i] = malloc(1000);
		memset(blocks[i], 1, 1000);
	}
	for (size_t i = 0; i < BLOCKS / THREADS; i++)
		free(blocks[i]);
	free(blocks);
	return arg;
}

static void peak_in_threads(void)
{
	pthread_t threads[THREADS];

	for (unsigned i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, peak, NULL))
			exit(1);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
}

static int fail(const char *what)
{
	unsigned decaying, count = tasks(&decaying);

	fprintf(stderr, "%s: %zu KiB, %u threads, %u that give back\n", what, resident() >> 10, count, decaying);
	return 1;
}

/* By now there is nothing to give back, or soon. */
static int is_given_back(void)
{
	unsigned decaying;

	for (unsigned i = 0; i < PATIENT * 10 && resident() > LITTLE; i++)
		rest();
	if (resident() > LITTLE)
		return fail("memory stays");
	for (unsigned i = 0; i < PATIENT * 10 && tasks(&decaying) > 1; i++)
		rest();
	return tasks(&decaying) > 1 ? fail("the thread does not end") : 0;
}

static int threads(void)
{
	for (int i = 0; i < 2; i++) {
		peak_in_threads();
		if (is_given_back())
			return 1;
	}
	return 0;
}

/* (Those that have ended may be seen for a moment more.) */
static int no_thread(void)
{
	unsigned decaying;

	for (int i = 0; i < 10; i++) {
		rest();
		tasks(&decaying);
		if (decaying)
			return fail("a thread");
	}
	return tasks(&decaying) > 1 ? fail("a thread") : 0;
}

static int alone(void)
{
	peak(NULL);
	return no_thread();
}

static int filtered(void)
{
	struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog filter = { 1, &all };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
		return SUBJECT_SKIPPED;
	peak_in_threads();
	return no_thread();
}

/* Who may have no more threads than it has. */
static int limited(void)
{
	struct rlimit none = { 1, 1 };

	if (setrlimit(RLIMIT_NPROC, &none))
		return 1;
	peak(NULL);
	peak(NULL);
	return 0;
}

/* A child has none of its parent's threads, but may have one of its own. */
static int forked(void)
{
	unsigned decaying = 0;

	peak_in_threads();
	for (int i = 0; i < 20; i++) {
		pid_t child = fork();
		int status;

		if (child < 0)
			return 1;
		if (!child) {
			if (tasks(&decaying) != 1)
				_exit(2);
			peak(NULL);
			if (i == 10) {
				peak_in_threads();
				_exit(is_given_back());
			}
			_exit(0);
		}
		if (waitpid(child, &status, 0) != child || status)
			return fail("the child fails");
	}
	return is_given_back();
}

static const struct {
	const char *name;
	int (*run)(void);
} cases[] = {
	{ "threads", threads }, { "alone", alone },   { "filtered", filtered },
	{ "limited", limited }, { "forked", forked },
};

int main(void)
{
	pid_t children[SUBJECT_COUNT(cases)];
	int bad = 0;

	subject_begin();
	for (size_t i = 0; i < SUBJECT_COUNT(cases); i++) {
		fflush(NULL);
		children[i] = fork();
		if (!children[i])
			exit(cases[i].run());
	}
	for (size_t i = 0; i < SUBJECT_COUNT(cases); i++) {
		int status = 0;

		if (children[i] < 0 || waitpid(children[i], &status, 0) != children[i])
			status = 1;
		printf("%-8s %s\n", cases[i].name,
		       !status                                                       ? "ok"
		       : WIFEXITED(status) && WEXITSTATUS(status) == SUBJECT_SKIPPED ? "skipped"
										     : "FAIL");
		bad += status && !(WIFEXITED(status) && WEXITSTATUS(status) == SUBJECT_SKIPPED);
	}
	return bad > 0;
}
