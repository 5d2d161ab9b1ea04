/* SPDX-License-Identifier: MIT */
/*
 * Statistics as a table, JSON and XML; and when they are told: at the end of the program, on a signal.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <percpu/rseq.h>

#include "base/sys.h"
#include "malloc/front.h"
#include "malloc/options.h"
#include "malloc/profile.h"
#include "malloc/session.h"
#include "malloc/stats.h"
#include "malloc/writer.h"

/* Above what programs count on to be free. */
#define KEPT_LEAST 200

struct field {
	const char *name, *words;
	uint32_t at;
};
#define FIELD(name, words)                                                                                             \
	{                                                                                                              \
#name, words, (uint32_t)offsetof(struct percpu__stats_process, name)                                   \
	}
static const struct field process_fields[] = {
	FIELD(live, "bytes of objects and large blocks in use"),
	FIELD(cached, "bytes of objects in magazines"),
	FIELD(stock, "bytes of objects in stocks"),
	FIELD(used, "bytes of spans"),
	FIELD(most_used, "bytes of spans, at most so far"),
	FIELD(free, "bytes of the heap that are free"),
	FIELD(released, "bytes given back to the kernel"),
	FIELD(large, "large blocks in use"),
	FIELD(large_bytes, "bytes of large blocks"),
	FIELD(metadata, "bytes for the allocator itself"),
	FIELD(resident, "bytes of the process in memory"),
	FIELD(guarded, "objects that were put on guarded pages"),
	FIELD(profiled, "live samples of the heap profile"),
};
#undef FIELD
#define FIELD(name)                                                                                                    \
	{                                                                                                              \
#name, #name, (uint32_t)offsetof(struct percpu__stats_class, name)                                     \
	}
static const struct field class_fields[] = {
	FIELD(size),    FIELD(spans),        FIELD(span_bytes), FIELD(objects), FIELD(live),
	FIELD(cached),  FIELD(stock),        FIELD(free),       FIELD(hits),    FIELD(misses),
	FIELD(flushes), FIELD(stock_misses), FIELD(new_spans),
};
#undef FIELD
#define FIELD(name)                                                                                                    \
	{                                                                                                              \
#name, #name, (uint32_t)offsetof(struct percpu__stats_index, name)                                     \
	}
static const struct field index_fields[] = { FIELD(cached), FIELD(hits), FIELD(misses), FIELD(flushes), FIELD(drains) };
#define COUNT(fields) (sizeof(fields) / sizeof(fields[0]))

static uint64_t value_of(const void *stats, const struct field *field)
{
	return *(const uint64_t *)(const void *)((const char *)stats + field->at);
}

/* Columns as wide as their names, and numbers of that many digits. */
static unsigned width_of(const struct field *field)
{
	size_t n = strlen(field->name) + 2;

	return n < 11 ? 11 : (unsigned)n;
}

static void write_head(struct percpu__writer *w, const struct field *fields, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		for (size_t j = strlen(fields[i].name); j < width_of(&fields[i]); j++)
			percpu__write_text(w, " ");
		percpu__write_text(w, fields[i].name);
	}
}

static void write_row(struct percpu__writer *w, const void *stats, const struct field *fields, size_t n)
{
	for (size_t i = 0; i < n; i++)
		percpu__write_column(w, value_of(stats, &fields[i]), width_of(&fields[i]));
}

static void write_classes(struct percpu__writer *w)
{
	percpu__write_text(w, "\n");
	write_head(w, class_fields, COUNT(class_fields));
	percpu__write_text(w, "   spans/live\n");
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct percpu__stats_class class;

		percpu__stats_class(NULL, i, &class);
		if (!class.new_spans)
			continue;
		write_row(w, &class, class_fields, COUNT(class_fields));
		percpu__write_text(w, "   ");
		percpu__write_ratio(w, class.span_bytes, class.live * class.size, "-");
		percpu__write_text(w, "\n");
	}
}

static void write_indexes(struct percpu__writer *w)
{
	percpu__write_text(w, "\n      index");
	write_head(w, index_fields, COUNT(index_fields));
	percpu__write_text(w, "\n");
	for (unsigned i = 0; i < percpu__front_top; i++) {
		struct percpu__stats_index index;

		if (!percpu__stats_index(NULL, i, &index))
			continue;
		percpu__write_column(w, i, 11);
		write_row(w, &index, index_fields, COUNT(index_fields));
		percpu__write_text(w, "\n");
	}
}

int percpu__stats_table(int fd, bool all)
{
	struct percpu__stats_process process;
	struct percpu_description how;
	struct percpu__writer w;

	percpu_describe(&how);
	percpu__stats_process(NULL, &process);
	percpu__write_to(&w, fd);
	percpu__write_text(&w, "percpu-malloc: ");
	percpu__write_text(&w, program_invocation_short_name);
	percpu__write_text(&w, ", process ");
	percpu__write_number(&w, (uint64_t)percpu__sys4(SYS_getpid, 0, 0, 0, 0));
	percpu__write_text(&w, ": mode ");
	percpu__write_text(&w, how.mode_name);
	percpu__write_text(&w, ", index: ");
	percpu__write_text(&w, how.index_kind);
	percpu__write_text(&w, "\n");
	for (size_t i = 0; i < COUNT(process_fields); i++) {
		percpu__write_column(&w, value_of(&process, &process_fields[i]), 16);
		percpu__write_text(&w, " ");
		percpu__write_text(&w, process_fields[i].words);
		percpu__write_text(&w, "\n");
	}
	if (all) {
		write_classes(&w);
		write_indexes(&w);
		if (!(percpu__malloc_watched & PERCPU__WATCH_COUNT))
			percpu__write_text(&w, "(hits are counted with the option count)\n");
	}
	return percpu__write_end(&w);
}

void percpu__stats_short(void)
{
	percpu__stats_table(STDERR_FILENO, false);
}

/* ",name":value for each, with no comma first. */
static void write_members(struct percpu__writer *w, const void *stats, const struct field *fields, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		percpu__write_text(w, i ? ", \"" : "\"");
		percpu__write_text(w, fields[i].name);
		percpu__write_text(w, "\": ");
		percpu__write_number(w, value_of(stats, &fields[i]));
	}
}

static void write_json_classes(struct percpu__writer *w)
{
	bool first = true;

	percpu__write_text(w, ",\n  \"classes\": [");
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct percpu__stats_class class;

		percpu__stats_class(NULL, i, &class);
		if (!class.new_spans)
			continue;
		percpu__write_text(w, first ? "\n    {" : ",\n    {");
		write_members(w, &class, class_fields, COUNT(class_fields));
		percpu__write_text(w, ", \"fragmentation\": ");
		percpu__write_ratio(w, class.span_bytes, class.live * class.size, "null");
		percpu__write_text(w, "}");
		first = false;
	}
	percpu__write_text(w, "]");
}

static void write_json_indexes(struct percpu__writer *w)
{
	bool first = true;

	percpu__write_text(w, ",\n  \"indexes\": [");
	for (unsigned i = 0; i < percpu__front_top; i++) {
		struct percpu__stats_index index;

		if (!percpu__stats_index(NULL, i, &index))
			continue;
		percpu__write_text(w, first ? "\n    {\"index\": " : ",\n    {\"index\": ");
		percpu__write_number(w, i);
		percpu__write_text(w, ", ");
		write_members(w, &index, index_fields, COUNT(index_fields));
		percpu__write_text(w, "}");
		first = false;
	}
	percpu__write_text(w, "]");
}

int percpu__stats_json(int fd)
{
	struct percpu__stats_process process;
	struct percpu_description how;
	struct percpu__writer w;

	percpu_describe(&how);
	percpu__stats_process(NULL, &process);
	percpu__write_to(&w, fd);
	percpu__write_text(&w, "{\n  \"version\": ");
	percpu__write_string(&w, percpu_version());
	percpu__write_text(&w, ",\n  \"program\": ");
	percpu__write_string(&w, program_invocation_short_name);
	percpu__write_text(&w, ",\n  \"process\": ");
	percpu__write_number(&w, (uint64_t)percpu__sys4(SYS_getpid, 0, 0, 0, 0));
	percpu__write_text(&w, ",\n  \"mode\": ");
	percpu__write_string(&w, how.mode_name);
	percpu__write_text(&w, ",\n  \"index_kind\": ");
	percpu__write_string(&w, how.index_kind);
	percpu__write_text(&w, ",\n  \"hits_counted\": ");
	percpu__write_text(&w, percpu__malloc_watched & PERCPU__WATCH_COUNT ? "true" : "false");
	percpu__write_text(&w, ",\n  \"total\": {");
	write_members(&w, &process, process_fields, COUNT(process_fields));
	percpu__write_text(&w, "}");
	write_json_classes(&w);
	write_json_indexes(&w);
	percpu__write_text(&w, "\n}\n");
	return percpu__write_end(&w);
}

static void write_attribute(struct percpu__writer *w, const char *name, uint64_t value)
{
	percpu__write_text(w, " ");
	percpu__write_text(w, name);
	percpu__write_text(w, "=\"");
	percpu__write_number(w, value);
	percpu__write_text(w, "\"");
}

/* As the C library has them, once for its heap and once for all of them. */
static void write_totals(struct percpu__writer *w, const struct percpu__stats_process *process, uint64_t objects,
			 uint64_t bytes)
{
	const struct {
		char name[32];
		uint64_t count, size;
	} totals[] = { { "total type=\"fast\"", objects, bytes },
		       { "total type=\"rest\"", process->free != 0, process->free },
		       { "total type=\"mmap\"", process->large, process->large_bytes },
		       { "system type=\"current\"", 0, process->used + process->free },
		       { "system type=\"max\"", 0, process->most_used } };

	for (size_t i = 0; i < COUNT(totals); i++) {
		percpu__write_text(w, "<");
		percpu__write_text(w, totals[i].name);
		if (*totals[i].name == 't')
			write_attribute(w, "count", totals[i].count);
		write_attribute(w, "size", totals[i].size);
		percpu__write_text(w, "/>\n");
	}
}

/* The elements that the C library has, as far as they mean something here; and ours. */
void percpu__stats_xml(void (*put)(void *arg, const char *text, size_t n), void *arg)
{
	struct percpu__stats_process process;
	struct percpu__writer w;
	uint64_t objects = 0, bytes = 0;

	percpu__stats_process(NULL, &process);
	percpu__write_to(&w, -1);
	w.put = put;
	w.arg = arg;
	percpu__write_text(&w, "<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>\n");
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct percpu__stats_class class;
		uint64_t idle;

		percpu__stats_class(NULL, i, &class);
		if (!class.new_spans)
			continue;
		idle = class.objects - class.live;
		objects += idle;
		bytes += idle * class.size;
		percpu__write_text(&w, "<size");
		write_attribute(&w, "from", i > 1 ? percpu__class_size(i - 1) + 1 : 0);
		write_attribute(&w, "to", class.size);
		write_attribute(&w, "total", idle * class.size);
		write_attribute(&w, "count", idle);
		for (size_t j = 1; j < COUNT(class_fields); j++)
			write_attribute(&w, class_fields[j].name, value_of(&class, &class_fields[j]));
		percpu__write_text(&w, "/>\n");
	}
	percpu__write_text(&w, "</sizes>\n");
	write_totals(&w, &process, objects, bytes);
	for (size_t i = 0; i < COUNT(process_fields); i++) {
		percpu__write_text(&w, "<percpu");
		write_attribute(&w, process_fields[i].name, value_of(&process, &process_fields[i]));
		percpu__write_text(&w, "/>\n");
	}
	percpu__write_text(&w, "</heap>\n");
	write_totals(&w, &process, objects, bytes);
	percpu__write_text(&w, "</malloc>\n");
	percpu__write_end(&w);
}

/*
 * A copy of stderr for the end: by then many programs have closed theirs, and its number may be a file of their own. The same
 * may have become of the copy, so it is looked at again.
 */
static int kept = -1;
static struct stat kept_status;

static void keep_stderr(void)
{
	long fd = percpu__sys4(SYS_fcntl, STDERR_FILENO, F_DUPFD_CLOEXEC, KEPT_LEAST, 0);

	if (fd >= 0 && !percpu__sys4(SYS_fstat, fd, (long)&kept_status, 0, 0))
		kept = (int)fd;
}

static int kept_stderr(void)
{
	struct stat now = { 0 };

	if (kept >= 0 && !percpu__sys4(SYS_fstat, kept, (long)&now, 0, 0) && now.st_dev == kept_status.st_dev &&
	    now.st_ino == kept_status.st_ino && now.st_rdev == kept_status.st_rdev)
		return kept;
	return STDERR_FILENO;
}

static void tell_in(const char *name, bool json)
{
	int fd = percpu__write_open(name), rc = fd;

	if (fd >= 0) {
		rc = json ? percpu__stats_json(fd) : percpu__stats_table(fd, true);
		percpu__write_close(fd);
	}
	if (rc < 0)
		percpu__write_complaint("cannot write", name, rc);
}

static void tell(bool table)
{
	if (percpu__malloc_options.stats_file)
		tell_in(percpu__malloc_options.stats_file, false);
	else if (table)
		percpu__stats_table(kept_stderr(), true);
	if (percpu__malloc_options.json_file)
		tell_in(percpu__malloc_options.json_file, true);
}

static void on_signal(int number)
{
	(void)number;
	tell(!percpu__malloc_options.json_file || percpu__malloc_options.stats);
	percpu__profile_tell();
}

static void take_signal(int number)
{
	struct sigaction ours = { .sa_handler = on_signal, .sa_flags = SA_RESTART }, was;

	if (!sigaction(number, NULL, &was) && !(was.sa_flags & SA_SIGINFO) && was.sa_handler == SIG_DFL)
		sigaction(number, &ours, NULL);
}

void percpu__stats_start(void)
{
	if (percpu__malloc_options.stats && !percpu__malloc_options.stats_file)
		keep_stderr();
	if (percpu__malloc_options.stats_signal)
		take_signal((int)percpu__malloc_options.stats_signal);
	percpu__session_start();
}

/* After the program's own destructors, as it was loaded after us. */
__attribute__((destructor)) static void at_end(void)
{
	tell(percpu__malloc_options.stats);
	percpu__session_end();
}
