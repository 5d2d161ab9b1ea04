/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: the plot. One panel for each bench, time per operation by threads, both axes logarithmic.
 *
 * The script is written to a temporary file that is gnuplot's standard input, and the picture is read from its standard
 * output: no name of a file passes through gnuplot's syntax, and it is we who notice when the picture cannot be written.
 */
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/cli.h"

extern char **environ;

/* "percpu" and the limit stand out; the others share colours that can be told apart, also by the colour-blind. */
static const char *const colours[] = { "#d55e00", "#009e73", "#cc79a7", "#e69f00",
				       "#56b4e9", "#7f5fbf", "#8c564b", "#b8a500" };
#define COLOURS (sizeof(colours) / sizeof(colours[0]))

struct style {
	const char *colour, *width, *dash;
	unsigned point;
};

static bool is_limit(const char *name)
{
	return !strcmp(name, "plain") || !strcmp(name, "plain_add");
}

/* The same name looks the same in every panel: colours go by first appearance in all benches. */
static struct style style_of(const char *name)
{
	const char *seen[128];
	unsigned count = 0;

	if (!strcmp(name, "percpu"))
		return (struct style){ "#0050b3", "3.5", "solid", 7 };
	if (is_limit(name))
		return (struct style){ "#707070", "2", "2", 2 };
	for (const struct bench *const *bench = bench_all; *bench; bench++) {
		for (const struct bench_subject *s = (*bench)->subjects; s->name; s++) {
			unsigned i = 0;

			if (!strcmp(s->name, "percpu") || is_limit(s->name))
				continue;
			while (i < count && strcmp(seen[i], s->name))
				i++;
			if (!strcmp(s->name, name) || count == sizeof(seen) / sizeof(seen[0]))
				return (struct style){ colours[i % COLOURS], "2", "solid",
						       5 + 2 * (i / (unsigned)COLOURS % 4) };
			if (i == count)
				seen[count++] = s->name;
		}
	}
	return (struct style){ colours[0], "2", "solid", 5 };
}

/* "0.5 ns", "20 ns", "1 µs". */
static void print_tic(FILE *script, double ns, bool first)
{
	static const struct {
		double unit;
		const char *name;
	} units[] = { { 1e9, "s" }, { 1e6, "ms" }, { 1e3, "µs" }, { 1, "ns" } };
	size_t i = 0;

	while (i < 3 && ns < units[i].unit * 0.999)
		i++;
	fprintf(script, "%s'%g %s' %g", first ? "" : ", ", ns / units[i].unit, units[i].name, ns);
}

/* The axis of times: a little more than the times need, and never so little that it has no marks. */
static void print_time_axis(FILE *script, double low, double high)
{
	static const double steps[] = { 1, 2, 5 };
	bool many = high / low > 2000, first = true;
	double margin = high / low < 5 ? 2.5 : 1.35;

	low /= margin;
	high *= margin;
	fprintf(script, "set yrange [%g:%g]\nset ytics (", low, high);
	for (double decade = 1e-3; decade < high; decade *= 10) {
		for (size_t i = 0; i < (many ? 1 : 3); i++) {
			double at = steps[i] * decade;

			if (at < low || at > high)
				continue;
			print_tic(script, at, first);
			first = false;
		}
	}
	fputs(")\n", script);
}

/* In gnuplot's double quotes: what its markup would take for a command is escaped or left out. */
static void print_text(FILE *script, const char *text)
{
	for (; *text; text++) {
		if (strchr("_^@&~{}", *text))
			fprintf(script, "\\\\%c", *text);
		else if (!strchr("\"\\`\n", *text))
			fputc(*text, script);
	}
}

static void print_line(FILE *script, const struct bench *bench, const struct bench_subject *subject, const char *title)
{
	struct style style = style_of(subject->name);

	fprintf(script, "$%s_%s using 1:2 with linespoints lc rgb '%s' lw %s dt %s pt %u ps 0.9 %s%s%s", bench->name,
		subject->name, style.colour, style.width, style.dash, style.point, title ? "title '" : "notitle",
		title ? title : "", title ? "'" : "");
}

struct line {
	const struct bench_subject *subject;
	double last; /* its height at the right end: the legend is sorted as the lines are */
};

static int compare_lines(const void *a, const void *b)
{
	double x = ((const struct line *)a)->last, y = ((const struct line *)b)->last;

	return (x < y) - (x > y);
}

static int print_panel(FILE *script, const struct bench *bench, const struct bench_results *results)
{
	size_t subjects = bench_subjects(bench), count = 0;
	struct line *lines = calloc(subjects, sizeof(*lines));
	double low = DBL_MAX, high = 0;

	if (!lines)
		return -ENOMEM;
	for (size_t s = 0; s < subjects; s++) {
		bool any = false;

		for (size_t i = 0; i < results->count; i++) {
			const struct bench_cell *cell = &results->cells[i];

			if (cell->subject != &bench->subjects[s] || cell->skipped)
				continue;
			if (!any)
				fprintf(script, "$%s_%s << EOD\n", bench->name, cell->subject->name);
			fprintf(script, "%u %.6g\n", cell->threads, cell->best);
			low = cell->best < low ? cell->best : low;
			high = cell->best > high ? cell->best : high;
			lines[count].last = cell->best;
			any = true;
		}
		if (any) {
			fputs("EOD\n", script);
			lines[count++].subject = &bench->subjects[s];
		}
	}
	if (!count) {
		free(lines);
		fputs("set multiplot next\n", script);
		return 0;
	}
	qsort(lines, count, sizeof(*lines), compare_lines);
	fputs("set title \"{/:Bold ", script);
	print_text(script, bench->name);
	fputs("}\\n{/*0.85 ", script);
	print_text(script, bench->what);
	fputs("}\"\n", script);
	print_time_axis(script, low, high);
	for (size_t i = 0; i < count; i++) {
		fputs(i ? ", " : "plot ", script);
		print_line(script, bench, lines[i].subject, lines[i].subject->name);
	}
	/* Ours once more, on top of the others. */
	for (size_t i = 0; i < count; i++) {
		if (lines[i].subject == bench->subjects) {
			fputs(", ", script);
			print_line(script, bench, lines[i].subject, NULL);
		}
	}
	fputs("\n", script);
	free(lines);
	return 0;
}

/*
 * Allocators by time and memory: one point for each, the means over what all of them were measured in. The axes begin at
 * zero: twice as far from it is twice as much.
 */
static void print_scatter(FILE *script, const struct bench_results *results)
{
	const struct bench_subject *all = bench_malloc[BENCH_MALLOC_RANDOM].subjects;
	double most_ns = 0, most_mib = 0;
	size_t count = 0;

	fputs("$malloc << EOD\n", script);
	for (const struct bench_subject *subject = all; subject->name; subject++) {
		double ns, kib;
		size_t here = bench_malloc_means(results, subject->name, &ns, &kib);

		if (!here)
			continue;
		count = here;
		fprintf(script, "%.6g %.6g %s\n", ns, kib / 1024, subject->name);
		most_ns = ns > most_ns ? ns : most_ns;
		most_mib = kib / 1024 > most_mib ? kib / 1024 : most_mib;
	}
	fputs("EOD\n", script);
	if (!count) {
		fputs("set multiplot next\n", script);
		return;
	}
	fprintf(script,
		"set title \"{/:Bold malloc}\\n{/*0.85 allocators by time and memory, geometric means of %zu results}\"\n"
		"unset logscale\nset xrange [0:%g]\nset yrange [0:%g]\nset xtics auto\nset ytics auto\n"
		"set rmargin 14\nset xlabel 'ns per operation'\nset ylabel 'peak resident memory, MiB'\nunset key\nplot ",
		count, most_ns * 1.1, most_mib * 1.15);
	for (const struct bench_subject *subject = all; subject->name; subject++)
		fprintf(script, "$malloc using (strcol(3) eq '%s' ? $1 : NaN):2 with points pt 7 ps 1.5 lc rgb '%s', ",
			subject->name, style_of(subject->name).colour);
	fputs("$malloc using 1:2:3 with labels left offset 1,0 noenhanced\n", script);
}

static int print_script(FILE *script, enum bench_picture kind, const struct bench_results *results)
{
	unsigned panels = 0, columns, rows, most = 1, last = 0;
	bool scatter = false;
	char machine[320];
	int rc = 0;

	for (size_t i = 0; i < results->count; i++) {
		const struct bench_cell *cell = &results->cells[i];

		if (cell->bench->group) {
			scatter = true;
			continue;
		}
		panels += cell->threads == 1 && cell->subject == cell->bench->subjects;
		most = cell->threads > most ? cell->threads : most;
	}
	panels += scatter;
	columns = panels > 1 ? 2 : 1;
	rows = (panels + columns - 1) / columns;
	if (kind == BENCH_SVG)
		fprintf(script, "set terminal svg size %u,%u font 'sans-serif,13' background 'white'\n", 700 * columns,
			340 * rows + 60);
	else
		fprintf(script,
			"if (strstrt(GPVAL_TERMINALS, 'pngcairo')) set terminal pngcairo size %u,%u font 'Sans,10'; "
			"else set terminal png size %u,%u\n",
			700 * columns, 340 * rows + 60, 700 * columns, 340 * rows + 60);
	bench_machine(machine, sizeof(machine));
	fprintf(script, "set encoding utf8\nset multiplot layout %u,%u title \"", rows, columns);
	fprintf(script, "{/:Bold*1.15 Time per operation%s, best round}\\n{/*0.85 ",
		panels == scatter ? " and memory" : " and thread");
	print_text(script, machine);
	fprintf(script,
		"}\"\nset lmargin 10\nset rmargin 34\n"
		"set logscale y\nset logscale x 2\nset xrange [%g:%g]\nset xlabel 'threads' offset 0,0.5\n"
		"set border 3 lc rgb '#606060'\nset tics nomirror\n"
		"set grid xtics ytics lc rgb '#e4e4e4' lt 1 lw 1\n"
		"set key at graph 1.03,0.5 left center Left reverse samplen 2 noenhanced\nset xtics (",
		most > 1 ? 0.93 : 0.5, most > 1 ? most * 1.07 : 2.0);
	for (size_t i = 0; i < results->count; i++) {
		if (!results->cells[i].bench->group && results->cells[i].threads > last) {
			fprintf(script, "%s%u", last ? ", " : "", results->cells[i].threads);
			last = results->cells[i].threads;
		}
	}
	fputs(last ? ")\n" : "1)\n", script);
	for (size_t i = 0; bench_all[i] && !rc; i++) {
		for (size_t k = 0; k < results->count && !rc; k++) {
			if (results->cells[k].bench == bench_all[i] && !bench_all[i]->group) {
				rc = print_panel(script, bench_all[i], results);
				break;
			}
		}
	}
	if (scatter)
		print_scatter(script, results);
	fputs("unset multiplot\n", script);
	return rc ? rc : fflush(script) ? -errno : 0;
}

/* Runs gnuplot on a script; -errno, or its wait status with what it printed in @text and @size. */
static int run_gnuplot(int script, char **text, size_t *size)
{
	static char *const argv[] = { "gnuplot", NULL };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t defaults;
	size_t room = 0;
	int ends[2], status, rc;
	pid_t child;

	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	sigemptyset(&defaults);
	sigaddset(&defaults, SIGPIPE);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigdefault(&attr, &defaults);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, script, STDIN_FILENO);
	posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
	rc = -posix_spawnp(&child, argv[0], &actions, &attr, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	close(ends[1]);
	if (rc) {
		close(ends[0]);
		return rc;
	}
	for (ssize_t got = 1; !rc && got > 0;) {
		if (*size == room) {
			char *more = realloc(*text, room = room ? 2 * room : 1 << 16);

			if (!more) {
				rc = -ENOMEM;
				break;
			}
			*text = more;
		}
		do
			got = read(ends[0], *text + *size, room - *size);
		while (got < 0 && errno == EINTR);
		if (got < 0)
			rc = -errno;
		*size += got > 0 ? (size_t)got : 0;
	}
	close(ends[0]);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return rc ? rc : status;
}

int bench_write_plot(FILE *out, enum bench_picture kind, const struct bench_results *results, int *rc)
{
	FILE *script = tmpfile();
	char *text = NULL;
	size_t size = 0;
	int status;

	*rc = 0;
	if (!script || print_script(script, kind, results)) {
		cli_complain("bench: cannot write a script for gnuplot: %s", strerror(errno));
		if (script)
			fclose(script);
		return -1;
	}
	rewind(script);
	status = run_gnuplot(fileno(script), &text, &size);
	fclose(script);
	if (status == -ENOENT)
		cli_complain("bench: no plot: gnuplot is not installed (Debian: gnuplot-nox)");
	else if (status < 0)
		cli_complain("bench: no plot: cannot run gnuplot: %s", strerror(-status));
	else if (status || !size)
		cli_complain("bench: no plot: gnuplot failed");
	else if (fwrite(text, 1, size, out) != size || fflush(out))
		*rc = -errno;
	free(text);
	return status || !size || *rc ? -1 : 0;
}
