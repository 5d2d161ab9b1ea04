/* SPDX-License-Identifier: MIT */
/*
 * percpu bench malloc: the allocators, the rounds, and the children that do them.
 *
 * An allocator is found as the loader finds it, by name, and a child that only says where its malloc is decides whether it
 * is there: whether it can be preloaded is the question. Rounds go over the allocators in turn, as everywhere in the bench.
 * A round that fails fails the cell, in a line on stderr, and the others go on.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench_malloc.h"
#include "cli/cli.h"

#define MIN_ROUNDS 2
#define MAX_ROUNDS 25
/* The time is for so many of them. */
#define ROUNDS    5
#define MIN_ROUND 0.002
#define MAX_ROUND 2.0
/* Requests per second that redis-server answers at least, where nothing else runs. */
#define REDIS_RATE 200e3
#define REDIS_KEYS 1000000U
/* Of a child that should be ready after @seconds: then something hangs. */
#define PATIENCE(seconds) (120 + 50 * (seconds))

extern char **environ;

static const struct bench_subject pair_subjects[] = {
	{ .name = "percpu", .what = "libpercpu-malloc.so" },
	{ .name = "glibc", .what = "the C library's own" },
	{ .name = "jemalloc", .what = "libjemalloc.so.2 (Debian: libjemalloc2)" },
	{ .name = "mimalloc", .what = "libmimalloc.so.2 (Debian: libmimalloc2.0)" },
	{ .name = "gperftools", .what = "libtcmalloc_minimal.so.4 (Debian: libtcmalloc-minimal4)" },
	{ .name = "floor", .what = "a malloc that returns a constant: the calls and the loop" },
	{ .name = NULL },
};
static const struct bench_subject subjects[] = {
	{ .name = "percpu", .what = "libpercpu-malloc.so" },
	{ .name = "glibc", .what = "the C library's own" },
	{ .name = "jemalloc", .what = "libjemalloc.so.2 (Debian: libjemalloc2)" },
	{ .name = "mimalloc", .what = "libmimalloc.so.2 (Debian: libmimalloc2.0)" },
	{ .name = "gperftools", .what = "libtcmalloc_minimal.so.4 (Debian: libtcmalloc-minimal4)" },
	{ .name = NULL },
};
#define ALLOCATORS 6

static struct allocator {
	const char *object;    /* what the loader looks for; NULL: nothing is preloaded */
	const char *in_tree;   /* of ours: where it is seen from the command's folder, */
	const char *installed; /* and from the folder for libraries */
	bool known;            /* the rest is filled in */
	char preload[4096];
	char skipped[256];
} allocators[ALLOCATORS] = {
	{ .object = "libpercpu-malloc.so",
	  .in_tree = "../malloc/libpercpu-malloc.so",
	  .installed = "libpercpu-malloc.so" },
	{ .object = NULL },
	{ .object = "libjemalloc.so.2" },
	{ .object = "libmimalloc.so.2" },
	{ .object = "libtcmalloc_minimal.so.4" },
	{ .object = "libpercpu-malloc-floor.so",
	  .in_tree = "libpercpu-malloc-floor.so",
	  .installed = "percpu/libpercpu-malloc-floor.so" },
};

/* Options of allocators stay here, so that each runs as it does by default; those of ours are for who develops it. */
static bool passed_on(const char *variable)
{
	static const char *const kept[] = { "LD_PRELOAD=", "MALLOC_",     "MIMALLOC_",
					    "TCMALLOC_",   "HEAPPROFILE", "HEAPCHECK" };

	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
		if (!strncmp(variable, kept[i], strlen(kept[i])))
			return false;
	return true;
}

/* NULL if there is no memory. */
static char **child_environment(char *preload)
{
	size_t count = 0, n = 0;
	char **list;

	while (environ[count])
		count++;
	list = calloc(count + 2, sizeof(*list));
	if (!list)
		return NULL;
	for (size_t i = 0; i < count; i++)
		if (passed_on(environ[i]))
			list[n++] = environ[i];
	list[n] = *preload ? preload : NULL;
	return list;
}

/* A child's first words on stderr, fit for a line. */
static void read_complaint(int file, char *text, size_t size)
{
	ssize_t n = pread(file, text, size - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 127)
			*c = '?';
}

/* All that a child prints, until it closes its output. Returns false if that takes longer than @seconds. */
static bool read_answer(int pipe, char *text, size_t size, double seconds)
{
	double until = malloc_now() + seconds * 1e9;
	size_t used = 0;

	for (;;) {
		struct pollfd ready = { .fd = pipe, .events = POLLIN };
		double left = until - malloc_now();
		char more[512];
		ssize_t n;

		if (left <= 0)
			return false;
		if (poll(&ready, 1, (int)(left / 1e6) + 1) <= 0)
			continue;
		n = read(pipe, more, sizeof(more));
		if (n <= 0)
			break;
		for (ssize_t i = 0; i < n && used < size - 1; i++)
			text[used++] = more[i];
	}
	text[used] = '\0';
	return true;
}

static int spawn(char **argv, char **environment, int out, int err, pid_t *child)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t defaults;
	int rc;

	sigemptyset(&defaults);
	sigaddset(&defaults, SIGPIPE);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigdefault(&attr, &defaults);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
	rc = -posix_spawn(child, "/proc/self/exe", &actions, &attr, argv, environment);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	return rc;
}

/* How a child ended, for a line; false if it ended well. */
static bool tell_end(int status, bool in_time, int err, char *why, size_t size)
{
	char said[128];
	int signal = WTERMSIG(status);

	read_complaint(err, said, sizeof(said));
	if (!in_time)
		snprintf(why, size, "hangs");
	else if (WIFSIGNALED(status))
		snprintf(why, size, "killed by signal %d (%s)%s%s%s", signal, strsignal(signal),
			 signal == SIGKILL ? ", perhaps for want of memory" : "", *said ? ": " : "", said);
	else if (WEXITSTATUS(status))
		snprintf(why, size, "%s", *said ? said : "exits with an error");
	else
		return false;
	return true;
}

/*
 * Runs a child; @why is empty if it ended well. Then @answer has what it printed, and @said what it, or the loader, had to
 * complain of.
 */
static void run_child(const struct allocator *allocator, char **argv, double seconds, char *answer, size_t size,
		      char *said, size_t said_size, char *why, size_t why_size)
{
	char preload[sizeof(allocator->preload) + 16] = "";
	int err = memfd_create("percpu-bench", MFD_CLOEXEC), ends[2], status = 0, rc;
	char **environment;
	bool in_time;
	pid_t child;

	*why = '\0';
	if (*allocator->preload)
		snprintf(preload, sizeof(preload), "LD_PRELOAD=%s", allocator->preload);
	environment = child_environment(preload);
	if (!environment || err < 0 || pipe2(ends, O_CLOEXEC)) {
		snprintf(why, why_size, "cannot prepare its process: %s", strerror(errno));
		goto out;
	}
	rc = spawn(argv, environment, ends[1], err, &child);
	close(ends[1]);
	if (rc) {
		snprintf(why, why_size, "cannot start its process: %s", strerror(-rc));
		close(ends[0]);
		goto out;
	}
	in_time = read_answer(ends[0], answer, size, PATIENCE(seconds));
	close(ends[0]);
	if (!in_time)
		kill(child, SIGKILL);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	if (!tell_end(status, in_time, err, why, why_size))
		read_complaint(err, said, said_size);
out:
	if (err >= 0)
		close(err);
	free(environment);
}

/* Whether malloc in the child was what we wanted it to be. */
static bool is_from(const struct allocator *allocator, const char *path)
{
	const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
	const char *object = allocator->object ? allocator->object : "libc.so";

	return !strncmp(base, object, strlen(object));
}

/* Finds an allocator, once. */
static void look_for(struct allocator *allocator)
{
	char *argv[] = { "percpu", "bench-malloc-child", MALLOC_PROBE, NULL };
	char answer[4400] = "", said[128] = "", why[192];
	int rc = 0;

	if (allocator->known)
		return;
	allocator->known = true;
	if (allocator->in_tree)
		rc = cli_find_object(allocator->in_tree, allocator->installed, allocator->preload,
				     sizeof(allocator->preload));
	else if (allocator->object)
		snprintf(allocator->preload, sizeof(allocator->preload), "%s", allocator->object);
	if (rc == -EINVAL)
		snprintf(allocator->skipped, sizeof(allocator->skipped),
			 "%s lies in a folder with a space or a colon in its name: it cannot be preloaded",
			 allocator->object);
	else if (rc)
		snprintf(allocator->skipped, sizeof(allocator->skipped), "%s was not found: %s", allocator->object,
			 strerror(-rc));
	if (rc || !allocator->object)
		return;
	run_child(allocator, argv, 1, answer, sizeof(answer), said, sizeof(said), why, sizeof(why));
	/* One that is there and fails at this is told by the rows. */
	if (!*why && !is_from(allocator, answer))
		snprintf(allocator->skipped, sizeof(allocator->skipped), "%s cannot be preloaded%s%s",
			 allocator->object, *said ? ": " : "", said);
}

/* Times and memory of a subject, by round. */
struct series {
	double best, medians[MAX_ROUNDS], p9999[MAX_ROUNDS], ratios[MAX_ROUNDS], peaks[MAX_ROUNDS];
	uint64_t idle;
	size_t rounds;
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
	qsort(values, count, sizeof(*values), compare);
	return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

static void take_round(const struct malloc_task *task, const struct allocator *allocator, struct series *series,
		       struct bench_cell *cell)
{
	char numbers[5][32], answer[4400] = "", said[128] = "";
	char *argv[] = { "percpu",   "bench-malloc-child", numbers[0], numbers[1],
			 numbers[2], numbers[3],           numbers[4], NULL };
	struct malloc_report report;
	size_t i = series->rounds;
	int n = 0;

	snprintf(numbers[0], sizeof(numbers[0]), "%d", (int)task->row);
	snprintf(numbers[1], sizeof(numbers[1]), "%u", task->threads);
	snprintf(numbers[2], sizeof(numbers[2]), "%g", task->seconds);
	snprintf(numbers[3], sizeof(numbers[3]), "%llu", (unsigned long long)task->size);
	snprintf(numbers[4], sizeof(numbers[4]), "%g", task->rest);
	run_child(allocator, argv, task->seconds + task->rest, answer, sizeof(answer), said, sizeof(said), cell->failed,
		  sizeof(cell->failed));
	if (!*cell->failed) {
		unsigned long long peak, idle;

		if (sscanf(answer, "%lf %lf %lf %lf %llu %llu %n", &report.best, &report.median, &report.p9999,
			   &report.ratio, &peak, &idle, &n) < 6 ||
		    !n)
			snprintf(cell->failed, sizeof(cell->failed), "has no result%s%s", *said ? ": " : "", said);
		else if (!is_from(allocator, answer + n))
			snprintf(cell->failed, sizeof(cell->failed), "was not preloaded%s%s", *said ? ": " : "", said);
		report.peak = peak;
		report.idle = idle;
	}
	if (*cell->failed) {
		cli_complain("bench: %s, %u thread%s, %s: %s", cell->bench->name, cell->threads,
			     cell->threads > 1 ? "s" : "", cell->subject->name, cell->failed);
		return;
	}
	if (!i || report.best < series->best)
		series->best = report.best;
	series->medians[i] = report.median;
	series->p9999[i] = report.p9999;
	series->ratios[i] = report.ratio;
	series->peaks[i] = (double)report.peak;
	if (report.idle && !series->idle)
		series->idle = report.idle;
	series->rounds++;
}

static uint64_t available_kib(void)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	char line[256];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %llu", &kib) == 1)
			break;
	if (file)
		fclose(file);
	return kib;
}

static bool rests(enum bench_malloc_row row)
{
	return row == BENCH_MALLOC_BURST || row == BENCH_MALLOC_FRAGMENTATION || row == BENCH_MALLOC_THREADS_8 ||
	       row == BENCH_MALLOC_THREADS_100 || row == BENCH_MALLOC_THREADS_1000 || row == BENCH_MALLOC_REDIS_MEMORY;
}

/* How much the time allows for: of each subject, @seconds for all its rounds. */
static void plan(struct malloc_task *task, double seconds, char *note, size_t size)
{
	uint64_t most = available_kib() >> 12;
	double round;

	task->rest = !rests(task->row) ? 0 : seconds < 3 ? seconds / 3 : 1;
	round = (seconds - task->rest) / ROUNDS;
	round = round < MIN_ROUND ? MIN_ROUND : round > MAX_ROUND ? MAX_ROUND : round;
	task->seconds = round;
	switch (task->row) {
	case BENCH_MALLOC_BURST:
		/* Most allocators do 1 GiB in 0.8 s, and threads share it. */
		task->size = 1024;
		while (task->size > 4 && ((double)task->size / 1024 * 0.8 * MALLOC_BURSTS > round || task->size > most))
			task->size /= 2;
		break;
	case BENCH_MALLOC_FRAGMENTATION:
		task->size = MALLOC_PHASES * (round < 1 ? 1 : (uint64_t)(round / 0.5));
		/* Who has no time wants to see that it runs. */
		task->size = round < 0.05 ? 2 : task->size;
		break;
	case BENCH_MALLOC_THREADS_8:
	case BENCH_MALLOC_THREADS_100:
	case BENCH_MALLOC_THREADS_1000:
		task->size = (uint64_t)(round / (8e-6 * task->threads));
		task->size = task->size < 4 ? 4 : task->size > 2000 ? 2000 : task->size;
		break;
	case BENCH_MALLOC_REDIS_SET:
	case BENCH_MALLOC_REDIS_GET:
		task->size = (uint64_t)(round * REDIS_RATE);
		break;
	case BENCH_MALLOC_REDIS_MEMORY:
		/* As few rounds as there must be. */
		task->seconds = (seconds - task->rest) / MIN_ROUNDS;
		task->size = (uint64_t)(task->seconds * REDIS_RATE / 1.5);
		task->size = task->size < 1000 ? 1000 : task->size > REDIS_KEYS ? REDIS_KEYS : task->size;
		/* A key with its value is less than 1 KiB. */
		task->size = task->size > most << 10 ? most << 10 : task->size;
		break;
	default:
		break;
	}
	*note = '\0';
	if (task->row == BENCH_MALLOC_REDIS_MEMORY && task->size < REDIS_KEYS)
		snprintf(note, size, "%llu keys, not a million", (unsigned long long)task->size);
	if (task->row == BENCH_MALLOC_BURST && task->size < 1024)
		snprintf(note, size, "%d bursts of %u MiB, not 1 GiB", MALLOC_BURSTS, (unsigned)task->size);
	if (task->row == BENCH_MALLOC_FRAGMENTATION && task->size < MALLOC_PHASES)
		snprintf(note, size, "%d phases of %d", (int)task->size, MALLOC_PHASES);
	if (task->rest > 0 && task->rest < 1)
		snprintf(note + strlen(note), size - strlen(note), "%sidle after %.2g s, not 1 s", *note ? "; " : "",
			 task->rest);
}

static int run(const struct bench *bench, unsigned threads, double seconds, double round_ns, struct bench_cell *cells,
	       const char **error)
{
	size_t count = bench_subjects(bench), able = 0;
	struct series *all = calloc(count, sizeof(*all));
	struct malloc_task task = { .row = (enum bench_malloc_row)(bench - bench_malloc), .threads = threads };
	const char *missing = NULL;
	double until, last = 0;
	char note[sizeof(cells->note)];

	(void)round_ns;
	*error = "no memory";
	if (!all)
		return -ENOMEM;
	if (task.row == BENCH_MALLOC_REDIS_SET || task.row == BENCH_MALLOC_REDIS_GET ||
	    task.row == BENCH_MALLOC_REDIS_MEMORY)
		missing = malloc_skip_redis();
	for (size_t s = 0; s < count; s++) {
		look_for(&allocators[s]);
		cells[s] = (struct bench_cell){ .bench = bench, .subject = &bench->subjects[s], .threads = threads };
		if (missing)
			cells[s].skipped = missing;
		else if (*allocators[s].skipped)
			cells[s].skipped = allocators[s].skipped;
		else
			able++;
	}
	plan(&task, able ? seconds / (double)able : 0, note, sizeof(note));
	until = malloc_now() + seconds * 1e9;
	for (size_t turn = 0; turn < MAX_ROUNDS; turn++) {
		struct malloc_task now = task;
		double start = malloc_now();

		/* Ends when it is nearer to the wanted time than another turn like the last would bring it. */
		if (turn >= MIN_ROUNDS && start + (start - last) / 2 > until)
			break;
		last = start;
		/* Once is enough for what takes long and differs little. */
		now.rest = turn ? 0 : task.rest;
		for (size_t i = 0; i < count; i++) {
			size_t s = (turn + i) % count;

			if (!cells[s].skipped && !*cells[s].failed)
				take_round(&now, &allocators[s], &all[s], &cells[s]);
		}
	}
	for (size_t s = 0; s < count; s++) {
		struct bench_cell *cell = &cells[s];

		if (cell->skipped || *cell->failed)
			continue;
		cell->best = all[s].best;
		cell->median = median(all[s].medians, all[s].rounds);
		cell->p9999 = median(all[s].p9999, all[s].rounds);
		cell->resident_ratio = median(all[s].ratios, all[s].rounds);
		cell->peak_kib = (uint64_t)median(all[s].peaks, all[s].rounds);
		cell->idle_kib = all[s].idle;
		strcpy(cell->note, note);
	}
	free(all);
	return 0;
}

#define ROW(row, text, list, ...)                                                                                      \
	[BENCH_MALLOC_##row] = { .what = text, .subjects = list, .group = "malloc", .run = run, __VA_ARGS__ }

const struct bench bench_malloc[BENCH_MALLOC_ROWS] = {
	ROW(PAIR_16, "malloc and free of 16 bytes", pair_subjects, .name = "malloc_pair_16", .weight = 0.5),
	ROW(PAIR_64, "malloc and free of 64 bytes", pair_subjects, .name = "malloc_pair_64", .weight = 0.5),
	ROW(PAIR_512, "malloc and free of 512 bytes", pair_subjects, .name = "malloc_pair_512", .weight = 0.5),
	ROW(PAIR_4096, "malloc and free of 4096 bytes", pair_subjects, .name = "malloc_pair_4096", .weight = 0.5),
	ROW(RANDOM, "free one of 1000 blocks, allocate another one of 8 to 1024 bytes", subjects,
	    .name = "malloc_random"),
	ROW(LARSON, "the same in a server whose threads end and leave their blocks to successors", subjects,
	    .name = "malloc_larson"),
	ROW(PRODUCER_CONSUMER, "a block of 64 bytes, freed by another thread", subjects,
	    .name = "malloc_producer_consumer", .min_threads = 2),
	ROW(BURST, "grow to 1 GiB in blocks of 16 to 240 bytes, free all", subjects, .name = "malloc_burst",
	    .weight = 5),
	ROW(THREADS_8, "8 threads, mostly idle, with 200 blocks of 16 to 864 bytes each", subjects,
	    .name = "malloc_threads_8", .threads = 8, .weight = 2),
	ROW(THREADS_100, "100 such threads", subjects, .name = "malloc_threads_100", .threads = 100, .weight = 2),
	ROW(THREADS_1000, "1000 such threads, with 84 MiB live", subjects, .name = "malloc_threads_1000",
	    .threads = 1000, .weight = 2),
	ROW(FRAGMENTATION, "32 MiB live in blocks whose sizes drift from 128 to 2048 bytes and back", subjects,
	    .name = "malloc_fragmentation", .weight = 2),
	ROW(REALLOC, "a step in the growth of a vector to 4 MiB", subjects, .name = "malloc_realloc"),
	ROW(CALLOC_LARGE, "calloc, use and free of 128 KiB to 1 MiB", subjects, .name = "malloc_calloc_large"),
	ROW(STARTUP, "start and end a process; its memory at rest", subjects, .name = "malloc_startup", .threads = 1),
	ROW(REDIS_SET, "a SET that redis-server answers to redis-benchmark", subjects, .name = "malloc_redis_set",
	    .threads = 1, .weight = 2),
	ROW(REDIS_GET, "a GET", subjects, .name = "malloc_redis_get", .threads = 1, .weight = 2),
	ROW(REDIS_MEMORY, "redis-server is told 1 M keys with 16 to 2048 bytes each, then to delete half", subjects,
	    .name = "malloc_redis_memory", .threads = 1, .weight = 8),
};

/* Whether every allocator that has any results has them in this cell's bench and number of threads. */
static bool all_have(const struct bench_results *results, const struct bench_cell *cell)
{
	for (const struct bench_subject *subject = subjects; subject->name; subject++) {
		bool any = false, here = false;

		for (size_t i = 0; i < results->count; i++) {
			const struct bench_cell *other = &results->cells[i];

			if (!other->bench->group || strcmp(other->subject->name, subject->name) || !(other->best > 0))
				continue;
			any = true;
			here = here || (other->bench == cell->bench && other->threads == cell->threads);
		}
		if (any && !here)
			return false;
	}
	return true;
}

size_t bench_malloc_means(const struct bench_results *results, const char *subject, double *ns, double *kib)
{
	double times = 0, peaks = 0;
	size_t count = 0;

	for (size_t i = 0; i < results->count; i++) {
		const struct bench_cell *cell = &results->cells[i];

		if (!cell->bench->group || strcmp(cell->subject->name, subject) || !(cell->best > 0) ||
		    !cell->peak_kib || !all_have(results, cell))
			continue;
		times += log(cell->best);
		peaks += log((double)cell->peak_kib);
		count++;
	}
	if (count) {
		*ns = exp(times / (double)count);
		*kib = exp(peaks / (double)count);
	}
	return count;
}

double bench_malloc_beside_best(const struct bench_results *results, bool memory)
{
	double sum = 0;
	size_t count = 0;

	for (size_t i = 0; i < results->count; i++) {
		const struct bench_cell *ours = &results->cells[i];
		double best = 0;

		if (!ours->bench->group || ours->subject != ours->bench->subjects || !(ours->best > 0) ||
		    !ours->peak_kib)
			continue;
		for (size_t k = 0; k < results->count; k++) {
			const struct bench_cell *cell = &results->cells[k];
			double value = memory ? (double)cell->peak_kib : cell->best;

			if (cell->bench == ours->bench && cell->threads == ours->threads && cell != ours &&
			    strcmp(cell->subject->name, "floor") && value > 0 && (!(best > 0) || value < best))
				best = value;
		}
		if (best > 0) {
			sum += log((memory ? (double)ours->peak_kib : ours->best) / best);
			count++;
		}
	}
	return count ? exp(sum / (double)count) : 0;
}
