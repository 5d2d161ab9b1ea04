/* SPDX-License-Identifier: MIT */
/*
 * percpu run --stats: the program is a child, and its statistics are read from outside.
 *
 * The program tells once where its words are (malloc/session.h); they are then copied out of its memory, which it does not
 * notice. Its last words it writes itself, by a destructor. Where it ends without one, by a signal or _exit(2), the last copy
 * has to do; so one is taken now and then also if nobody has asked for tables meanwhile.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <percpu/area.h>
#include <percpu/rseq.h>

#include "cli/child.h"
#include "cli/cli.h"
#include "cli/run.h"
#include "malloc/front.h"
#include "malloc/session.h"

#define WATCH_MS 50
/* Of those that one call may copy. */
#define PARTS 256
/* Of memory. */
#define NODES_MOST 64

struct watch {
	const struct run_options *options;
	const char *allocator;
	struct child child;
	struct percpu__session *session;
	int fd;
	char path[64];
	uint64_t key;
	struct percpu__stats_words words;
	struct run_sample sample;
	bool seen;   /* there is a sample */
	bool barred; /* its memory must not be read; said once */
	bool failed; /* JSON could not be written; said once */
};

static bool prepare(struct watch *watch)
{
	size_t bytes = sizeof(struct percpu__session) + percpu_copies() * sizeof(struct percpu__stats_index);
	void *session = MAP_FAILED;

	watch->fd = child_file_make(PERCPU__SESSION_NAME);
	if (watch->fd >= 0 && !ftruncate(watch->fd, (off_t)bytes))
		session = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, watch->fd, 0);
	watch->words.fronts = calloc(percpu_copies(), sizeof(struct percpu__front));
	watch->sample.indexes = calloc(percpu_copies(), sizeof(struct percpu__stats_index));
	if (session == MAP_FAILED || !watch->words.fronts || !watch->sample.indexes) {
		cli_complain("cannot make the memory for statistics: %s", strerror(watch->fd < 0 ? -watch->fd : errno));
		return false;
	}
	watch->session = session;
	return true;
}

/* In the new process. */
static bool set_variables(void *arg)
{
	const struct watch *watch = arg;
	char session[128];

	snprintf(session, sizeof(session), "%s %" PRIx64 " %d", watch->path, watch->key, (int)getpid());
	return child_preload(watch->allocator) && !setenv(PERCPU__SESSION_ENV, session, 1);
}

/* Parts of the program's memory, whole; false: it has changed, or must not be read. */
static bool copy_parts(struct watch *watch, const struct iovec *to, const struct iovec *from, size_t n)
{
	for (size_t i = 0; i < n; i += PARTS) {
		size_t now = n - i < PARTS ? n - i : PARTS, bytes = 0;

		for (size_t j = 0; j < now; j++)
			bytes += to[i + j].iov_len;
		if (process_vm_readv(watch->child.pid, to + i, now, from + i, now, 0) == (ssize_t)bytes)
			continue;
		if (errno == EPERM && watch->options->interval_ms && !watch->barred) {
			cli_complain("the memory of %s must not be read: its statistics come at the end",
				     watch->options->argv[0]);
			watch->barred = true;
		}
		return false;
	}
	return true;
}

static struct iovec part_at(uint64_t at, size_t n)
{
	return (struct iovec){ (void *)(uintptr_t)at, n };
}

#define PART(place, address)                                                                                           \
	(to[n] = (struct iovec){ &(place), sizeof(place) }, from[n++] = part_at(address, sizeof(place)))

static bool copy_totals(struct watch *watch, const struct percpu__session_where *where)
{
	struct percpu__stats_words *words = &watch->words;
	struct iovec to[5], from[5];
	uint64_t key = 0;
	uint32_t top = 0;
	size_t n = 0;

	PART(key, where->key);
	PART(words->heap, where->heap);
	PART(top, where->top);
	if (where->guarded)
		PART(words->guarded, where->guarded);
	if (where->profiled)
		PART(words->profiled, where->profiled);
	if (!copy_parts(watch, to, from, n) || key != watch->key || top > percpu_copies())
		return false;
	words->top = where->front ? top : 0;
	return true;
}

/* Of all nodes of memory together. */
static bool copy_classes(struct watch *watch, const struct percpu__session_where *where)
{
	uint64_t nodes[NODES_MOST] = { 0 };
	struct iovec all = { nodes, where->central.count * sizeof(nodes[0]) };
	struct iovec all_from = part_at(where->central.nodes, all.iov_len);

	memset(watch->words.classes, 0, sizeof(watch->words.classes));
	if (where->central.count > NODES_MOST || !copy_parts(watch, &all, &all_from, 1))
		return false;
	for (uint64_t node = 0; node < where->central.count; node++) {
		struct percpu__class_stats stats[CLASSES + 1];
		struct iovec to[CLASSES + 1], from[CLASSES + 1];
		size_t n = 0;

		if (!nodes[node])
			continue;
		for (unsigned i = 0; i <= CLASSES; i++)
			PART(stats[i], nodes[node] + where->central.first + i * where->central.stride);
		if (!copy_parts(watch, to, from, n))
			return false;
		for (unsigned i = 0; i <= CLASSES; i++)
			percpu__class_stats_add(&watch->words.classes[i], &stats[i]);
	}
	return true;
}

static bool copy_fronts(struct watch *watch, const struct percpu__session_where *where)
{
	for (unsigned i = 0; i < watch->words.top; i++) {
		struct iovec to = { &watch->words.fronts[i], sizeof(struct percpu__front) };
		struct iovec from = part_at(where->front + (uint64_t)i * PERCPU_STRIDE, sizeof(struct percpu__front));

		if (!copy_parts(watch, &to, &from, 1))
			return false;
	}
	return true;
}

/* The second number of /proc/PID/statm, in bytes. */
static uint64_t resident_of(pid_t pid)
{
	unsigned long long pages = 0;
	char name[64];
	FILE *file;

	snprintf(name, sizeof(name), "/proc/%d/statm", (int)pid);
	file = fopen(name, "re");
	if (!file)
		return 0;
	if (fscanf(file, "%*u %llu", &pages) != 1)
		pages = 0;
	fclose(file);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void take_words(struct run_sample *sample, const struct percpu__stats_words *words)
{
	percpu__stats_process(words, &sample->process);
	for (unsigned i = 1; i <= CLASSES; i++)
		percpu__stats_class(words, i, &sample->classes[i]);
	sample->top = words->top;
	for (unsigned i = 0; i < sample->top; i++)
		percpu__stats_index(words, i, &sample->indexes[i]);
}

static void take_last_words(struct run_sample *sample, const struct percpu__session *session)
{
	sample->process = session->process;
	memcpy(sample->classes, session->classes, sizeof(sample->classes));
	memcpy(sample->indexes, session->indexes, session->copies * sizeof(sample->indexes[0]));
	sample->top = (unsigned)session->copies;
}

static void copy_name(char *to, size_t size, const char *from, size_t n)
{
	snprintf(to, size, "%.*s", (int)n, from);
}

/* False: there is nothing to read now; then the sample is as it was. */
static bool take_sample(struct watch *watch)
{
	struct percpu__session *session = watch->session;
	uint64_t sequence = __atomic_load_n(&session->sequence, __ATOMIC_ACQUIRE), state = session->state;
	struct percpu__session_where where = session->where;
	struct run_sample *sample = &watch->sample;

	/* Pairs with the fence of who writes: it has not begun since. */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (sequence % 2 || state == PERCPU__SESSION_NEW || session->sequence != sequence)
		return false;
	if (state == PERCPU__SESSION_RUNNING) {
		if (!copy_totals(watch, &where) || !copy_classes(watch, &where) || !copy_fronts(watch, &where))
			return false;
		watch->words.resident = resident_of(watch->child.pid);
		take_words(sample, &watch->words);
	} else {
		take_last_words(sample, session);
	}
	sample->last = state == PERCPU__SESSION_ENDED;
	sample->seconds = child_seconds(&watch->child);
	sample->counted = session->counted != 0;
	copy_name(sample->mode, sizeof(sample->mode), session->mode, sizeof(session->mode));
	copy_name(sample->index_kind, sizeof(sample->index_kind), session->index_kind, sizeof(session->index_kind));
	watch->seen = true;
	return true;
}

static void tick(void *arg)
{
	struct watch *watch = arg;
	const struct run_options *options = watch->options;

	if (!take_sample(watch) || !options->interval_ms)
		return;
	if (!options->json)
		run_show(&watch->sample, options->argv[0], false);
	else if (strcmp(options->json, "-") && !watch->failed)
		watch->failed = !run_write_json(options->json, &watch->sample, options, watch->child.pid, NULL);
}

static void before_stop(void *arg)
{
	(void)arg;
}

static int report(struct watch *watch)
{
	const struct run_options *options = watch->options;
	double seconds = child_seconds(&watch->child);

	take_sample(watch);
	if (!watch->session->images)
		cli_complain("%s did not load the allocator: there are no statistics", options->argv[0]);
	else if (!watch->seen)
		cli_complain("%s ended before its statistics could be read", options->argv[0]);
	else if (!watch->sample.last)
		cli_complain("%s ended without a last word: this is how it was %.2f seconds before", options->argv[0],
			     seconds - watch->sample.seconds);
	if (watch->seen && !options->json)
		run_show(&watch->sample, options->argv[0], true);
	else if (options->json && !watch->failed)
		watch->failed = !run_write_json(options->json, watch->seen ? &watch->sample : NULL, options,
						watch->child.pid, &watch->child.status);
	return watch->failed ? EXIT_FAILED : child_end(&watch->child);
}

int run_with_stats(const struct run_options *options, const char *path, const char *allocator)
{
	struct watch watch = { .options = options, .allocator = allocator };
	int rc = EXIT_REFUSED;

	if (prepare(&watch))
		rc = child_file_share(watch.fd, watch.path, &watch.key);
	if (!rc) {
		watch.session->magic = PERCPU__SESSION_MAGIC;
		watch.session->layout = percpu__session_layout();
		watch.session->copies = percpu_copies();
		watch.session->key = watch.key;
		rc = child_start(&watch.child, path, options->argv, set_variables, &watch);
	}
	if (!rc) {
		child_follow(&watch.child, options->interval_ms ? options->interval_ms : WATCH_MS, tick, before_stop,
			     &watch);
		rc = report(&watch);
	}
	free(watch.words.fronts);
	free(watch.sample.indexes);
	return rc;
}
