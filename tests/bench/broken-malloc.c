/* SPDX-License-Identifier: MIT */
/* An allocator that fails in the way that the environment variable BROKEN tells, for percpu bench malloc to report. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *malloc(size_t size)
{
	const char *how = getenv("BROKEN");

	(void)size;
	if (how && !strcmp(how, "abort")) {
		(void)!write(STDERR_FILENO, "this heap is broken\n", 20);
		abort();
	}
	if (how && !strcmp(how, "kill"))
		kill(getpid(), SIGKILL);
	return NULL;
}
