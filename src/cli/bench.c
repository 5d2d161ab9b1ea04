/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: the per-CPU objects beside their rivals, on this machine.
 *
 * Everything that can be refused (names, numbers, suffixes, files that cannot be written) is refused before the first
 * measurement. The results are kept until all are there, and written to the files first: a reader of the table who
 * closes the pipe early loses nothing else.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/cli.h"

#define SECONDS       30.0
#define ROUND_NS      3e6
#define QUICK_SECONDS 4.0
#define QUICK_NS      1.5e6
/* For each subject, number of threads and unit of weight, of what must be asked for. */
#define GROUP_SECONDS 2.0

/* The order of the table: what the 2018 talk showed comes first. */
const struct bench *const bench_all[] = {
	/* clang-format off */
	&bench_cpu_number,
	&bench_counter_add,
	&bench_stack_pair,
	&bench_c_section_pair,
	&bench_pool_pair,
	&bench_pool_bulk,
	&bench_ring_record_16,
	&bench_ring_record_64,
	&bench_ring_pointer_pair,
	&bench_runqueue_pair,
	&bench_runqueue_steal,
	&bench_spinlock_pair,
	&bench_spinlock_remote,
	&bench_mutex_pair,
	&bench_mutex_50ns,
	&bench_mutex_1us,
	&bench_mutex_crowd,
	&bench_eventcount_notify,
	&bench_eventcount_turns,
	&bench_eventcount_herd,
	&bench_rwlock_read_pair,
	&bench_rwlock_write_pair,
	&bench_ref_pair,
	&bench_ref_kill,
	&bench_rcu_read_pair,
	&bench_rcu_synchronize,
	&bench_rcu_call,
	&bench_seqdata_read,
	&bench_histogram_record,
	&bench_timed_pair,
	&bench_perf_read,
	&bench_fence,
	&bench_opv,
	&bench_slow_path,
#ifdef HAVE_LIBC
	&bench_localtime_r,
	&bench_localtime_r_summer,
	&bench_localtime,
	&bench_mktime,
	&bench_dl_iterate_phdr,
	&bench_dl_iterate_phdr_all,
	&bench_dladdr,
	&bench_gettext,
	&bench_pthread_getattr_default_np,
	&bench_thread_create,
#endif
	&bench_malloc[BENCH_MALLOC_PAIR_16],
	&bench_malloc[BENCH_MALLOC_PAIR_64],
	&bench_malloc[BENCH_MALLOC_PAIR_512],
	&bench_malloc[BENCH_MALLOC_PAIR_4096],
	&bench_malloc[BENCH_MALLOC_RANDOM],
	&bench_malloc[BENCH_MALLOC_LARSON],
	&bench_malloc[BENCH_MALLOC_PRODUCER_CONSUMER],
	&bench_malloc[BENCH_MALLOC_BURST],
	&bench_malloc[BENCH_MALLOC_THREADS_8],
	&bench_malloc[BENCH_MALLOC_THREADS_100],
	&bench_malloc[BENCH_MALLOC_THREADS_1000],
	&bench_malloc[BENCH_MALLOC_FRAGMENTATION],
	&bench_malloc[BENCH_MALLOC_REALLOC],
	&bench_malloc[BENCH_MALLOC_CALLOC_LARGE],
	&bench_malloc[BENCH_MALLOC_STARTUP],
	&bench_malloc[BENCH_MALLOC_REDIS_SET],
	&bench_malloc[BENCH_MALLOC_REDIS_GET],
	&bench_malloc[BENCH_MALLOC_REDIS_MEMORY],
	NULL,
	/* clang-format on */
};

struct options {
	bool chosen[sizeof(bench_all) / sizeof(bench_all[0])];
	unsigned max_threads;
	double seconds, round_ns; /* 0 seconds: none were asked for */
	const char *json, *plot;
	enum bench_picture picture;
};

static const char usage[] =
	"Usage: percpu bench [NAME...] [OPTIONS]\n"
	"Measure the per-CPU objects beside their rivals, interleaved, in 1, 2, 4 ... threads.\n"
	"NAME malloc measures allocators, each in processes of its own; that is done only when asked for.\n"
	"\n"
	"  -t, --threads N    up to N threads, 1 to 1024 (default: as many as there are CPUs)\n"
	"  -s, --seconds S    spend about S seconds on all of it (default: 30; malloc: about 8 minutes)\n"
	"  -q, --quick        the same as --seconds 4, with shorter rounds\n"
	"      --json FILE    write the results as JSON; - means standard output, instead of the table\n"
	"      --plot FILE    draw them with gnuplot; FILE ends with .svg or .png\n"
	"  -l, --list         what is measured\n"
	"  -h, --help         this text\n"
	"\n"
	"Times are nanoseconds per operation and thread: a round's wall time divided by the operations of one thread.\n"
	"The last column is the best time divided by that of subject \"percpu\" of the same bench and number of threads.\n";

static void list_benches(void)
{
	for (const struct bench *const *bench = bench_all; *bench; bench++) {
		printf("%s: %s\n", (*bench)->name, (*bench)->what);
		for (const struct bench_subject *subject = (*bench)->subjects; subject->name; subject++)
			printf("    %-29s %s\n", subject->name, subject->what);
	}
}

/* By its own name or its group's. */
static bool choose(struct options *options, const char *name)
{
	bool any = false;

	for (size_t i = 0; bench_all[i]; i++) {
		if (!strcmp(name, bench_all[i]->name) || (bench_all[i]->group && !strcmp(name, bench_all[i]->group)))
			any = options->chosen[i] = true;
	}
	return any;
}

static int unknown_bench(const char *name)
{
	char known[1024] = "";
	size_t length = 0;

	for (size_t i = 0; bench_all[i] && length < sizeof(known); i++)
		length += (size_t)snprintf(known + length, sizeof(known) - length, "%s%s", i ? ", " : "",
					   bench_all[i]->name);
	return cli_usage("bench", "no bench is called \"%s\"; there are %s", name, known);
}

static bool parse_number(const char *text, double low, double high, double *out)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= low && value <= high))
		return false;
	*out = value;
	return true;
}

static bool parse_threads(const char *text, unsigned *out)
{
	double value;

	if (!parse_number(text, 1, BENCH_MAX_THREADS, &value) || value != (unsigned)value)
		return false;
	*out = (unsigned)value;
	return true;
}

static bool parse_suffix(const char *path, enum bench_picture *out)
{
	const char *slash = strrchr(path, '/');
	const char *dot = strrchr(slash ? slash : path, '.');

	if (!dot || (strcasecmp(dot, ".svg") && strcasecmp(dot, ".png")))
		return false;
	*out = strcasecmp(dot, ".svg") ? BENCH_PNG : BENCH_SVG;
	return true;
}

/* Returns a status, or -1 to go on. */
static int parse(struct options *options, int argc, char **argv)
{
	enum { OPT_JSON = 256, OPT_PLOT };
	static const struct option known[] = {
		{ "threads", required_argument, NULL, 't' },
		{ "seconds", required_argument, NULL, 's' },
		{ "quick", no_argument, NULL, 'q' },
		{ "json", required_argument, NULL, OPT_JSON },
		{ "plot", required_argument, NULL, OPT_PLOT },
		{ "list", no_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool any = false;
	int c;

	optind = 0;
	opterr = 0;
	while ((c = getopt_long(argc, argv, ":t:s:qlh", known, NULL)) != -1) {
		switch (c) {
		case 't':
			if (!parse_threads(optarg, &options->max_threads))
				return cli_usage("bench", "--threads takes a number from 1 to %d, not \"%s\"",
						 BENCH_MAX_THREADS, optarg);
			break;
		case 's':
			if (!parse_number(optarg, 0.001, 86400, &options->seconds))
				return cli_usage("bench", "--seconds takes a number from 0.001 to 86400, not \"%s\"",
						 optarg);
			break;
		case 'q':
			options->seconds = QUICK_SECONDS;
			options->round_ns = QUICK_NS;
			break;
		case OPT_JSON:
			options->json = optarg;
			break;
		case OPT_PLOT:
			options->plot = optarg;
			if (!parse_suffix(optarg, &options->picture))
				return cli_usage("bench", "a plot's name ends with .svg or .png, not \"%s\"", optarg);
			break;
		case 'l':
			list_benches();
			return cli_close_stdout();
		case 'h':
			fputs(usage, stdout);
			return cli_close_stdout();
		default:
			return cli_bad_option("bench", c, argv);
		}
	}
	for (; optind < argc; optind++) {
		if (!choose(options, argv[optind]))
			return unknown_bench(argv[optind]);
		any = true;
	}
	for (size_t i = 0; bench_all[i] && !any; i++)
		options->chosen[i] = !bench_all[i]->group;
	return -1;
}

/* Opens for writing, and keeps what is in the file until there is something better. NULL when it has complained. */
static FILE *open_output(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
	FILE *file = fd < 0 ? NULL : fdopen(fd, "w");

	if (!file) {
		cli_complain("cannot write '%s': %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	return file;
}

/* Puts the results into what open_output() opened, if there are any, and closes it. Returns false when it has complained. */
static bool finish_output(FILE *file, const char *path, const struct options *options,
			  const struct bench_results *results)
{
	struct stat st;
	bool drawn = true;
	int rc = 0;

	if (results && !fstat(fileno(file), &st) && S_ISREG(st.st_mode) && ftruncate(fileno(file), 0))
		rc = -errno;
	if (results && !rc) {
		if (path == options->json)
			rc = bench_write_json(file, results);
		else
			drawn = !bench_write_plot(file, options->picture, results, &rc);
	}
	if (fclose(file) && !rc)
		rc = -errno;
	if (rc)
		cli_complain("cannot write '%s': %s", path, strerror(-rc));
	return !rc && drawn;
}

/* Returns false when it has complained, or when nobody reads any more. */
static bool show(const struct options *options, const struct bench_results *results)
{
	bool as_json = options->json && !strcmp(options->json, "-");
	int rc = as_json ? bench_write_json(stdout, results) : bench_write_table(stdout, results);

	if (!rc && fflush(stdout))
		rc = -errno;
	/* A closed pipe is how its reader says "enough". */
	if (rc && rc != -EPIPE)
		cli_complain("cannot write to standard output: %s", strerror(-rc));
	return !rc;
}

/* 1, 2, 4 ... and the largest, or what the bench can do of these. Returns how many. */
static size_t thread_counts(const struct bench *bench, unsigned max, unsigned counts[16])
{
	unsigned step = bench->min_threads ? bench->min_threads : 1;
	size_t n = 0;

	if (bench->threads) {
		counts[0] = bench->threads;
		return 1;
	}
	max = max < step ? step : max - max % step;
	for (unsigned threads = step; threads < max; threads *= 2)
		counts[n++] = threads;
	counts[n++] = max;
	return n;
}

/* Its share of the time, in one number of threads. */
static double share(const struct bench *bench)
{
	return (double)bench_subjects(bench) * (bench->weight > 0 ? bench->weight : 1);
}

static double default_seconds(const struct options *options)
{
	double seconds = 0;
	unsigned counts[16];
	bool ordinary = false;

	for (size_t i = 0; bench_all[i]; i++) {
		const struct bench *bench = bench_all[i];

		if (options->chosen[i] && bench->group)
			seconds += GROUP_SECONDS * share(bench) *
				   (double)thread_counts(bench, options->max_threads, counts);
		ordinary = ordinary || (options->chosen[i] && !bench->group);
	}
	return seconds + (ordinary ? SECONDS : 0);
}

static void tell_progress(const struct bench *bench, unsigned threads, double part)
{
	fprintf(stderr, "\r\033[K[%.0f %%] %s, %u thread%s", 100 * part, bench->name, threads, threads > 1 ? "s" : "");
}

/* One bench in one number of threads. Returns false when it has complained. */
static bool measure_one(const struct options *options, const struct bench *bench, unsigned threads, double seconds,
			struct bench_cell *cells)
{
	const char *error;
	int rc = (bench->run ? bench->run : bench_run)(bench, threads, seconds, options->round_ns, cells, &error);

	if (rc == -EIO)
		cli_complain("bench: %s, %u threads: %s", bench->name, threads, error);
	else if (rc)
		cli_complain("bench: %s, %u threads: %s: %s", bench->name, threads, error, strerror(-rc));
	return !rc;
}

/* Returns false when it has complained and there are no results. */
static bool measure(const struct options *options, struct bench_results *results)
{
	double seconds = options->seconds > 0 ? options->seconds : default_seconds(options), all = 0, done = 0;
	bool progress = isatty(STDERR_FILENO), ok = true;
	unsigned counts[16];
	size_t total = 0;

	for (size_t i = 0; bench_all[i]; i++) {
		size_t count = options->chosen[i] ? thread_counts(bench_all[i], options->max_threads, counts) : 0;

		total += count * bench_subjects(bench_all[i]);
		all += (double)count * share(bench_all[i]);
	}
	results->cells = calloc(total, sizeof(*results->cells));
	if (!results->cells) {
		cli_complain("no memory");
		return false;
	}
	for (size_t i = 0; bench_all[i] && ok; i++) {
		const struct bench *bench = bench_all[i];
		size_t count = options->chosen[i] ? thread_counts(bench, options->max_threads, counts) : 0;

		for (size_t t = 0; t < count && ok; t++) {
			if (progress)
				tell_progress(bench, counts[t], done / all);
			ok = measure_one(options, bench, counts[t], seconds * share(bench) / all,
					 results->cells + results->count);
			if (progress)
				fputs("\r\033[K", stderr);
			results->count += bench_subjects(bench);
			done += share(bench);
		}
	}
	return ok;
}

static bool any_failed(const struct bench_results *results)
{
	for (size_t i = 0; i < results->count; i++)
		if (*results->cells[i].failed)
			return true;
	return false;
}

int percpu_bench_main(int argc, char **argv)
{
	struct options options = { .max_threads = bench_cpus(), .round_ns = ROUND_NS };
	struct bench_results results = { 0 };
	FILE *json = NULL, *plot = NULL;
	bool ok, measured = false;
	int status = parse(&options, argc, argv);

	if (status >= 0)
		return status;
	/* A reader that went away is an error like others, to be told at the end. */
	signal(SIGPIPE, SIG_IGN);
	ok = !options.json || !strcmp(options.json, "-") || (json = open_output(options.json));
	ok = ok && (!options.plot || (plot = open_output(options.plot)));
	if (ok) {
#ifndef __OPTIMIZE__
		cli_complain("bench: built without optimisation: these times mean little");
#endif
		ok = measured = measure(&options, &results);
	}
	if (json && !finish_output(json, options.json, &options, measured ? &results : NULL))
		ok = false;
	if (plot && !finish_output(plot, options.plot, &options, measured ? &results : NULL))
		ok = false;
	if (measured && !show(&options, &results))
		ok = false;
	if (measured && any_failed(&results))
		ok = false;
	free(results.cells);
	return ok ? 0 : EXIT_FAILED;
}
