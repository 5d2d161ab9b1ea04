/* SPDX-License-Identifier: MIT */
/*
 * What people see of the counts, all on stderr: the program's standard output is its own.
 *
 * The live table is drawn below the cursor, and the cursor is put back where it was: the terminal scrolls up beforehand if
 * it must (by "index", which keeps the column), so what the program prints there stays, and prints over the table at
 * worst. It is not drawn while the program has the terminal in a mode of its own, or the job is in the background.
 */
#include <errno.h>
#include <libsmartcols.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/stat.h"

/* Columns for indexes where no terminal says what fits. */
#define WIDE_COLUMNS 16
/* What the other columns take, and one column for an index, in characters. */
#define FIXED_WIDTH  50
#define COLUMN_WIDTH 12

void show_init(struct show *show, const struct stat_options *options)
{
	bool terminal = isatty(STDERR_FILENO);

	*show = (struct show){ .options = options };
	if (options->quiet)
		show->live = SHOW_NOTHING;
	else if (!terminal)
		show->live = SHOW_LINES;
	else if (options->top || options->interval_given || !isatty(STDOUT_FILENO))
		show->live = SHOW_TABLE;
}

static void put(struct show *show, const char *text, size_t n)
{
	while (n && !show->broken) {
		ssize_t done = write(STDERR_FILENO, text, n);

		if (done >= 0) {
			text += done;
			n -= (size_t)done;
		} else if (errno == EAGAIN) { /* the program made the terminal non-blocking */
			poll(&(struct pollfd){ STDERR_FILENO, POLLOUT, 0 }, 1, 100);
		} else if (errno != EINTR) {
			show->broken = true;
		}
	}
}

static void put_text(struct show *show, const char *text)
{
	put(show, text, strlen(text));
}

static double rate(uint64_t now, uint64_t before, double seconds)
{
	return seconds > 0 ? (double)(now - before) / seconds : 0;
}

/* Which indexes get a column of their own: those with the most calls, in their order, and never more than fit. */
static unsigned choose_columns(const struct sample *now, unsigned limit, unsigned *chosen)
{
	uint64_t *calls = calloc(now->copies, sizeof(*calls));
	unsigned n = 0;

	if (!calls)
		return 0;
	for (unsigned index = 0; index < now->copies; index++)
		for (unsigned row = 0; row < ROWS; row++)
			if (!stat_rows[row].bytes)
				calls[index] += now->rows[(size_t)row * now->copies + index];
	while (n < limit) {
		unsigned best = now->copies;

		for (unsigned index = 0; index < now->copies; index++)
			if (calls[index] && (best == now->copies || calls[index] > calls[best]))
				best = index;
		if (best == now->copies)
			break;
		calls[best] = 0;
		chosen[n++] = best;
	}
	free(calls);
	for (unsigned i = 1; i < n; i++)
		for (unsigned j = i; j && chosen[j - 1] > chosen[j]; j--) {
			unsigned swap = chosen[j];

			chosen[j] = chosen[j - 1];
			chosen[j - 1] = swap;
		}
	return n;
}

struct columns {
	unsigned *index;
	unsigned n;
	bool rest; /* more indexes counted than there are columns */
};

static bool columns_init(struct columns *columns, const struct sample *now, unsigned width)
{
	unsigned limit = width ? (width > FIXED_WIDTH ? (width - FIXED_WIDTH) / COLUMN_WIDTH : 0) : WIDE_COLUMNS;

	columns->index = calloc(now->copies, sizeof(*columns->index));
	if (!columns->index)
		return false;
	columns->n = choose_columns(now, now->copies, columns->index);
	columns->rest = columns->n > limit;
	if (columns->rest)
		columns->n = choose_columns(now, limit ? limit - 1 : 0, columns->index);
	return true;
}

static struct libscols_table *new_table(const struct sample *now, const struct columns *columns,
					const char *const *heads, unsigned n)
{
	struct libscols_table *table = scols_new_table();
	char name[32], text[16];

	if (!table)
		return NULL;
	scols_table_set_termforce(table, SCOLS_TERMFORCE_NEVER);
	for (unsigned i = 0; i < n; i++)
		scols_table_new_column(table, heads[i], 0, i ? SCOLS_FL_RIGHT : 0);
	for (unsigned i = 0; i < columns->n; i++) {
		const char *index = sample_index_name(now, columns->index[i], text);

		snprintf(name, sizeof(name), "%s%s", *index == 'o' ? "" : "CPU ", *index == 'o' ? "OTHER" : index);
		scols_table_new_column(table, name, 0, SCOLS_FL_RIGHT);
	}
	if (columns->rest)
		scols_table_new_column(table, "REST", 0, SCOLS_FL_RIGHT);
	return table;
}

static void set_number(struct libscols_line *line, unsigned column, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	scols_line_set_data(line, column, text);
}

static void set_indexes(struct libscols_line *line, unsigned first, const struct sample *now, const uint64_t *table,
			unsigned row, const struct columns *columns)
{
	uint64_t rest = sample_sum(now, table, row);

	for (unsigned i = 0; i < columns->n; i++) {
		uint64_t value = table[(size_t)row * now->copies + columns->index[i]];

		set_number(line, first + i, value);
		rest -= value;
	}
	if (columns->rest)
		set_number(line, first + columns->n, rest);
}

static char *print_table(struct libscols_table *table)
{
	char *text = NULL;

	if (table && scols_print_table_to_string(table, &text))
		text = NULL;
	scols_unref_table(table);
	return text;
}

/* Busiest first. */
static void sort_rows(unsigned *order, const double *rates)
{
	for (unsigned i = 1; i < ROWS; i++)
		for (unsigned j = i; j && rates[order[j - 1]] < rates[order[j]]; j--) {
			unsigned swap = order[j];

			order[j] = order[j - 1];
			order[j - 1] = swap;
		}
}

/* @before may be all zero, for rates since the start. @top leaves out what is zero, and sorts. To be freed. */
static char *main_table(const struct sample *now, const struct sample *before, bool top, unsigned width)
{
	static const char *const heads[] = { "COUNT", "TOTAL", "PER SECOND" };
	struct libscols_table *table;
	struct columns columns;
	unsigned order[ROWS];
	double rates[ROWS];

	if (!columns_init(&columns, now, width))
		return NULL;
	table = new_table(now, &columns, heads, 3);
	for (unsigned row = 0; row < ROWS; row++) {
		order[row] = row;
		rates[row] = rate(sample_sum(now, now->rows, row), sample_sum(before, before->rows, row),
				  now->seconds - before->seconds);
	}
	if (top)
		sort_rows(order, rates);
	for (unsigned i = 0; table && i < ROWS; i++) {
		uint64_t sum = sample_sum(now, now->rows, order[i]);
		struct libscols_line *line;
		char text[32];

		if (top && !sum)
			continue;
		line = scols_table_new_line(table, NULL);
		if (!line)
			break;
		scols_line_set_data(line, 0, stat_rows[order[i]].name);
		set_number(line, 1, sum);
		snprintf(text, sizeof(text), "%.0f", rates[order[i]]);
		scols_line_set_data(line, 2, text);
		set_indexes(line, 3, now, now->rows, order[i], &columns);
	}
	free(columns.index);
	return print_table(table);
}

static char *size_table(const struct sample *now, unsigned width)
{
	static const char *const heads[] = { "ALLOCATION SIZE", "CALLS", "BYTES" };
	struct libscols_table *table;
	struct columns columns;

	if (!columns_init(&columns, now, width))
		return NULL;
	table = new_table(now, &columns, heads, 3);
	for (unsigned class = 0; table && class < SESSION_CLASSES; class ++) {
		uint64_t calls = sample_sum(now, now->class_calls, class);
		struct libscols_line *line = calls ? scols_table_new_line(table, NULL) : NULL;
		char text[64];

		if (!line)
			continue;
		snprintf(text, sizeof(text), "%llu-%llu", (unsigned long long)class_low(class),
			 (unsigned long long)class_high(class));
		scols_line_set_data(line, 0, text);
		set_number(line, 1, calls);
		set_number(line, 2, sample_sum(now, now->class_bytes, class));
		set_indexes(line, 3, now, now->class_calls, class, &columns);
	}
	free(columns.index);
	return print_table(table);
}

/* Draws as many lines of the text as there is room for, each cut to the terminal's width. */
static void draw(struct show *show, const char *text, struct winsize size)
{
	char *out = malloc(strlen(text) * 2 + 16 * (size_t)size.ws_row + 64);
	size_t n = 0;
	unsigned lines = 1;

	if (!out)
		return;
	for (const char *at = text; *at; at++)
		lines += *at == '\n';
	if (lines > size.ws_row - 1U)
		lines = size.ws_row - 1U;
	for (unsigned i = 0; i < lines; i++)
		n += (size_t)sprintf(out + n, "\033D");
	n += (size_t)sprintf(out + n, "\033[%uA\0337\033[J", lines);
	for (unsigned i = 1; i < lines; i++) {
		size_t length = strcspn(text, "\n");

		n += (size_t)sprintf(out + n, "\r\n%.*s", (int)(length < size.ws_col ? length : size.ws_col - 1U),
				     text);
		text += length + (text[length] == '\n');
	}
	n += (size_t)sprintf(out + n, "\0338");
	put(show, out, n);
	free(out);
	show->drawn = true;
}

void show_clear(struct show *show)
{
	if (show->drawn)
		put_text(show, "\033[J");
	show->drawn = false;
}

static void live_table(struct show *show, const struct sample *now, const struct sample *before)
{
	struct winsize size = { 24, 80, 0, 0 };
	struct termios mode;
	char *text;

	if (tcgetpgrp(STDERR_FILENO) != getpgrp() || tcgetattr(STDERR_FILENO, &mode) || !(mode.c_lflag & ICANON))
		return;
	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) || size.ws_row < 3 || size.ws_col < 20)
		size = (struct winsize){ 24, 80, 0, 0 };
	text = main_table(now, before, show->options->top, size.ws_col);
	if (text)
		draw(show, text, size);
	free(text);
}

/* "percpu: 2.0 s alloc_calls 1200/s ...", of all indexes together, and with --top of each that did something. */
static void live_line(struct show *show, const struct sample *now, const struct sample *before, int index)
{
	char line[2048], text[16];
	size_t n = (size_t)snprintf(line, sizeof(line), "percpu: %.1f s", now->seconds);
	size_t empty;

	if (index >= 0) {
		const char *name = sample_index_name(now, (unsigned)index, text);

		n += (size_t)snprintf(line + n, sizeof(line) - n, " %s%s", *name == 'o' ? "" : "cpu", name);
	}
	empty = n;
	for (unsigned row = 0; row < ROWS && n < sizeof(line) - 64; row++) {
		size_t at = (size_t)row * now->copies + (size_t)(index >= 0 ? index : 0);
		uint64_t value = index >= 0 ? now->rows[at] : sample_sum(now, now->rows, row);
		uint64_t old = index >= 0 ? before->rows[at] : sample_sum(before, before->rows, row);

		if (value != old)
			n += (size_t)snprintf(line + n, sizeof(line) - n, " %s %.0f/s", stat_rows[row].name,
					      rate(value, old, now->seconds - before->seconds));
	}
	if (n == empty && index >= 0)
		return;
	if (n == empty)
		n += (size_t)snprintf(line + n, sizeof(line) - n, " nothing");
	line[n++] = '\n';
	put(show, line, n);
}

void show_live(struct show *show, const struct sample *now, const struct sample *before)
{
	if (show->live == SHOW_TABLE) {
		live_table(show, now, before);
	} else if (show->live == SHOW_LINES) {
		live_line(show, now, before, -1);
		for (unsigned index = 0; show->options->top && index < now->copies; index++)
			live_line(show, now, before, (int)index);
	}
}

void show_final(struct show *show, const struct sample *now)
{
	struct winsize size = { 0 };
	struct sample zero;
	char head[64];
	char *text;

	show_clear(show);
	if (sample_init(&zero)) {
		cli_complain("no memory for the final table");
		return;
	}
	if (isatty(STDERR_FILENO) && ioctl(STDERR_FILENO, TIOCGWINSZ, &size))
		size.ws_col = 80;
	snprintf(head, sizeof(head), "\npercpu: %.3f s\n\n", now->seconds);
	put_text(show, head);
	text = main_table(now, &zero, false, size.ws_col);
	if (text)
		put_text(show, text);
	free(text);
	text = sample_sum(now, now->rows, ROW_ALLOC_CALLS) ? size_table(now, size.ws_col) : NULL;
	if (text) {
		put_text(show, "\n\n");
		put_text(show, text);
	}
	put_text(show, "\n");
	free(text);
	sample_destroy(&zero);
}
