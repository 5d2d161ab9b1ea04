/* SPDX-License-Identifier: MIT */
/*
 * A program that the command runs and stays with: `percpu stat`, `percpu run --stats`.
 *
 * The program keeps its terminal, its signals and its process group; the command ends as it ended.
 */
#ifndef PERCPU_CLI_CHILD_H
#define PERCPU_CLI_CHILD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct child {
	pid_t pid;
	int status;     /* as waitpid(2) gave it */
	double started; /* CLOCK_MONOTONIC */
};

/*
 * A memory file that the program finds through /proc: make it, give it its size, share it. Sharing sets where it is found,
 * and a number that nobody can guess. Returns a descriptor or -errno; 0 or an exit status when it has complained.
 */
int child_file_make(const char *name);
int child_file_share(int fd, char path[static 64], uint64_t *key);

/* Put an object to preload in front of those in the environment, once. False: no memory. */
bool child_preload(const char *object);

/*
 * Start the program; @environment is called in the new process, and says false if there is no memory. Returns 0, or an exit
 * status when it has complained.
 */
int child_start(struct child *child, const char *path, char **argv, bool (*environment)(void *), void *arg);
/* Stay with the program until it ends, calling @tick every @interval_ms, and @pause before stopping together with it. */
void child_follow(struct child *child, unsigned interval_ms, void (*tick)(void *), void (*pause)(void *), void *arg);
/* End as the program ended: returns its exit status, or dies of its signal. */
int child_end(const struct child *child);
double child_seconds(const struct child *child);

#endif
