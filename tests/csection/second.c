/* SPDX-License-Identifier: MIT */
/*
 * The second unit, and the program: PROGRAM libc|own|none [PLUGIN]. Both units and the plugin work while a timer's handler
 * does too; then every word is exact, and sections did not take the slow path where they need not.
 */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>

#define UNIT(name) second_##name
#define WORD       SECOND
#include "unit.h"
#include "world.h"

#define ATTEMPTS 400

typedef uint64_t work_function(struct cell *cells, uint64_t n, uint64_t turns);
typedef uint64_t fast_function(struct cell *cells, uint64_t n);

static struct cell *cells;
static volatile uint64_t handled, bad;

static void handle(int signal)
{
	(void)signal;
	bad += first_work(cells, 1, 10);
	handled++;
}

static uint64_t sum(unsigned word)
{
	uint64_t total = 0;

	percpu_for_each_index(index)
		total += percpu_ptr(cells, index)->word[word];
	return total;
}

static int check(const char *what, uint64_t is, uint64_t should)
{
	if (is == should)
		return 0;
	printf("%s: %llu instead of %llu\n", what, (unsigned long long)is, (unsigned long long)should);
	return 1;
}

static int check_fast(const char *what, fast_function *fast, bool possible)
{
	uint64_t done = fast(cells, ATTEMPTS);

	if (possible ? done > ATTEMPTS / 2 : done == 0)
		return 0;
	printf("%s: %llu of %d attempts were fast\n", what, (unsigned long long)done, ATTEMPTS);
	return 1;
}

int main(int argc, char **argv)
{
	struct itimerval often = { { 0, 400 }, { 0, 400 } }, never = { { 0, 0 }, { 0, 0 } };
	struct percpu_description about;
	struct sigaction action;
	work_function *work = NULL;
	fast_function *fast = NULL;
	uint64_t n = 0;
	int failed = 0;
	bool sections;

	cells = (struct cell *)percpu_alloc(sizeof *cells, 64);
	if (argc < 2 || !cells || percpu_describe(&about))
		return 2;
	if (strcmp(argv[1], about.mode_name) != 0)
		return 77;
#ifndef NO_PLUGIN
	if (argc > 2) {
		void *plugin = dlopen(argv[2], RTLD_NOW);
		void *symbols[2];

		symbols[0] = plugin ? dlsym(plugin, "plugin_work") : NULL;
		symbols[1] = plugin ? dlsym(plugin, "plugin_fast") : NULL;
		if (!symbols[0] || !symbols[1])
			return printf("%s\n", dlerror()), 2;
		memcpy(&work, &symbols[0], sizeof work);
		memcpy(&fast, &symbols[1], sizeof fast);
	}
#endif
	memset(&action, 0, sizeof action);
	action.sa_handler = handle;
	action.sa_flags = SA_RESTART;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (; handled < 40 || n < 40; n++) {
		bad += first_work(cells, 2, 400) + second_work(cells, 1, 400);
		if (work)
			bad += work(cells, 1, 400);
	}
	setitimer(ITIMER_REAL, &never, NULL);

	failed += check("things found wrong", bad, 0);
	failed += check("first unit", sum(FIRST), 3 * (2 * n + handled));
	failed += check("second unit", sum(SECOND), 3 * n);
	failed += check("plugin", sum(PLUGIN), work ? 3 * n : 0);
	failed += check("all", sum(COMMON), 3 * n + handled + (work ? n : 0));
#ifdef PERCPU_NO_SECTIONS
	sections = false;
#else
	sections = about.mode != PERCPU_MODE_NONE;
#endif
	failed += check_fast("first unit", first_fast, sections) + check_fast("second unit", second_fast, sections);
	if (fast)
		failed += check_fast("plugin", fast, sections);
	return failed != 0;
}
