/* SPDX-License-Identifier: MIT */
/*
 * percpu bench malloc: the child, which does one round of one row under the allocator that was preloaded.
 *
 * It writes without stdio, whose buffers would come from the allocator.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "cli/bench_malloc.h"
#include "cli/cli.h"

#define MIN_ROUND_NS 2e5
#define MAX_ROUND_NS 20e6
#define ROUNDS       8

double malloc_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

void malloc_give_up(const char *why)
{
	char line[256];
	int n = snprintf(line, sizeof(line), "%s\n", why);

	(void)!write(STDERR_FILENO, line, (size_t)n);
	_exit(EXIT_FAILED);
}

uint64_t malloc_kib(int pid, const char *file, const char *key)
{
	char path[64], text[8192];
	const char *at;
	ssize_t n;
	int fd;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	else
		snprintf(path, sizeof(path), "/proc/self/%s", file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	at = strstr(text, key);
	return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

uint64_t malloc_resident(int pid)
{
	uint64_t exact = malloc_kib(pid, "smaps_rollup", "\nRss:");

	return exact ? exact : malloc_kib(pid, "status", "VmRSS:");
}

/* Without a walk of the tables the kernel counts in batches, and may be late by some. */
uint64_t malloc_peak(void)
{
	uint64_t peak = malloc_kib(0, "status", "VmHWM:"), now = malloc_resident(0);

	return peak > now ? peak : now;
}

static void run_loop(const struct malloc_task *task, struct malloc_report *report)
{
	const struct malloc_loop *row = &malloc_loops[task->row];
	struct bench_subject subjects[] = { { .name = "", .loop = row->loop }, { .name = NULL } };
	struct bench bench = { .subjects = subjects, .in_main = true, .begin = row->begin };
	double round = task->seconds * 1e9 / ROUNDS;
	struct bench_cell cell;
	const char *error;

	round = round < MIN_ROUND_NS ? MIN_ROUND_NS : round > MAX_ROUND_NS ? MAX_ROUND_NS : round;
	round = round < row->least_ns ? row->least_ns : round;
	if (bench_run(&bench, task->threads, task->seconds, round, &cell, &error))
		malloc_give_up(error);
	report->best = cell.best;
	report->median = cell.median;
	if (row->finish)
		row->finish(report);
	if (!report->peak)
		report->peak = malloc_peak();
}

/* Where malloc is: a loader that cannot preload an object says so and goes on without. */
const char *malloc_path(void)
{
	void *symbol = dlsym(RTLD_DEFAULT, "malloc");
	Dl_info info;

	return symbol && dladdr(symbol, &info) && info.dli_fname ? info.dli_fname : "?";
}

int percpu_bench_malloc_child_main(int argc, char **argv)
{
	struct malloc_report report = { 0 };
	struct malloc_task task;
	char line[4400];
	int n;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc == 2 && !strcmp(argv[1], MALLOC_PROBE)) {
		/* One that cannot even do this is told by its rows. */
		free(malloc_checked(100));
		n = snprintf(line, sizeof(line), "%s\n", malloc_path());
		return write(STDOUT_FILENO, line, (size_t)n) == n ? 0 : EXIT_FAILED;
	}
	if (argc != 6)
		return EXIT_USAGE;
	task.row = (enum bench_malloc_row)strtoul(argv[1], NULL, 10);
	task.threads = (unsigned)strtoul(argv[2], NULL, 10);
	task.seconds = strtod(argv[3], NULL);
	task.size = strtoull(argv[4], NULL, 10);
	task.rest = strtod(argv[5], NULL);
	if (task.row >= BENCH_MALLOC_ROWS || !task.threads || task.threads > BENCH_MAX_THREADS)
		return EXIT_USAGE;
	switch (task.row) {
	case BENCH_MALLOC_BURST:
		malloc_run_burst(&task, &report);
		break;
	case BENCH_MALLOC_THREADS_8:
	case BENCH_MALLOC_THREADS_100:
	case BENCH_MALLOC_THREADS_1000:
		malloc_run_threads(&task, &report);
		break;
	case BENCH_MALLOC_FRAGMENTATION:
		malloc_run_fragmentation(&task, &report);
		break;
	case BENCH_MALLOC_REDIS_SET:
	case BENCH_MALLOC_REDIS_GET:
	case BENCH_MALLOC_REDIS_MEMORY:
		malloc_run_redis(&task, &report);
		break;
	default:
		run_loop(&task, &report);
	}
	n = snprintf(line, sizeof(line), "%.6g %.6g %.6g %.6g %llu %llu %s\n", report.best, report.median, report.p9999,
		     report.ratio, (unsigned long long)report.peak, (unsigned long long)report.idle, malloc_path());
	return write(STDOUT_FILENO, line, (size_t)n) == n ? 0 : EXIT_FAILED;
}
