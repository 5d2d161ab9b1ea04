/* SPDX-License-Identifier: MIT */
/*
 * walk: hash the contents of all files under a directory, in parallel.
 *
 *   walk [--queue NAME] [--threads N] [--json] DIR
 *
 * An example of <percpu/runqueue.h>: a pool of threads with a queue of tasks for each CPU. A task lists one directory,
 * which makes more tasks, or hashes one file. Symbolic links are not followed; what is neither a directory nor a regular
 * file is left out. What cannot be read is told on standard error, all else is done, and the exit status is 1.
 *
 * The hash of a file depends on its bytes alone, and the total is a sum: it is the same whatever the order.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "walk.h"

#define MOST_THREADS 1024
#define BUFFER       65536 /* a multiple of 8 */

struct totals {
	uint64_t files, directories, bytes, hash, errors;
};

struct worker {
	pthread_t thread;
	struct totals totals;
	struct item *kept;
	unsigned char buffer[BUFFER] __attribute__((aligned(64)));
};

static const struct queue *queue;
static unsigned threads;
/* Items that were pushed and are not finished. Its own cache line. */
static struct {
	uint64_t count __attribute__((aligned(64)));
	uint32_t finished;
} pending;

static void complain(struct worker *worker, const char *path)
{
	fprintf(stderr, "walk: %s: %s\n", path, strerror(errno));
	worker->totals.errors++;
}

/* As open(2), for paths of any length: one that is too long is gone down in steps. */
static int open_long(const char *path, int flags)
{
	int at = AT_FDCWD, fd;

	for (;;) {
		char part[4000];
		size_t length = strlen(path);

		if (length < sizeof part) {
			fd = openat(at, path, flags | O_NOFOLLOW | O_CLOEXEC);
		} else {
			length = sizeof part - 1;
			while (path[length] != '/')
				length--; /* names have 255 bytes at most */
			memcpy(part, path, length);
			part[length] = 0;
			fd = openat(at, part, O_PATH | O_DIRECTORY | O_CLOEXEC);
		}
		if (at != AT_FDCWD) {
			int error = errno;

			close(at);
			errno = error;
		}
		if (fd < 0 || path[length] == 0)
			return fd;
		at = fd;
		path += length + 1;
	}
}

static uint64_t mix(uint64_t hash, uint64_t word)
{
	hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
	return hash ^ hash >> 32;
}

/* Words are little-endian, and the last one is filled up with zeros. */
static uint64_t hash_bytes(uint64_t hash, const unsigned char *bytes, size_t length)
{
	for (; length; bytes += 8) {
		size_t n = length < 8 ? length : 8;
		uint64_t word = 0;

		memcpy(&word, bytes, n);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
		word = __builtin_bswap64(word);
#endif
		hash = mix(hash, word);
		length -= n;
	}
	return hash;
}

/* Fills the buffer as far as the file goes. Returns how far, or -1. */
static ssize_t read_full(int fd, unsigned char *buffer)
{
	size_t have = 0;

	while (have < BUFFER) {
		ssize_t n = read(fd, buffer + have, BUFFER - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		have += (size_t)n;
	}
	return (ssize_t)have;
}

static void hash_file(struct worker *worker, const char *path)
{
	uint64_t hash = 0, length = 0;
	ssize_t n = -1;
	int fd = open_long(path, O_RDONLY | O_NONBLOCK);

	if (fd >= 0) {
		while ((n = read_full(fd, worker->buffer)) > 0) {
			hash = hash_bytes(hash, worker->buffer, (size_t)n);
			length += (uint64_t)n;
		}
	}
	if (n < 0)
		complain(worker, path);
	if (fd >= 0)
		close(fd);
	if (n < 0)
		return;
	worker->totals.files++;
	worker->totals.bytes += length;
	worker->totals.hash += mix(hash, length);
}

/* NULL without memory. */
static struct item *make_item(const char *directory, const char *name)
{
	size_t length = strlen(directory) + 1 + strlen(name) + 1;
	struct item *item = malloc(sizeof *item + length);

	if (item) {
		item->is_directory = false;
		snprintf(item->path, length, "%s%s%s", directory, *name ? "/" : "", name);
	}
	return item;
}

/* Whether the entry is of interest; sets its kind. */
static bool find_kind(struct worker *worker, int fd, const struct dirent *entry, struct item *item)
{
	struct stat st;

	switch (entry->d_type) {
	case DT_DIR:
		item->is_directory = true;
		return true;
	case DT_REG:
		return true;
	case DT_UNKNOWN:
		if (fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW)) {
			complain(worker, item->path);
			return false;
		}
		item->is_directory = S_ISDIR(st.st_mode);
		return S_ISDIR(st.st_mode) || S_ISREG(st.st_mode);
	default:
		return false;
	}
}

static void list_directory(struct worker *worker, const char *path)
{
	int fd = open_long(path, O_RDONLY | O_DIRECTORY);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *entry;

	if (!directory) {
		complain(worker, path);
		if (fd >= 0)
			close(fd);
		return;
	}
	worker->totals.directories++;
	while (errno = 0, (entry = readdir(directory))) {
		struct item *item;

		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		item = make_item(path, entry->d_name);
		if (!item)
			break;
		if (!find_kind(worker, fd, entry, item)) {
			free(item);
			continue;
		}
		/* Before it can be finished. */
		__atomic_fetch_add(&pending.count, 1, __ATOMIC_RELAXED);
		queue->push(item);
	}
	if (errno)
		complain(worker, path);
	closedir(directory);
}

static void work_on(struct worker *worker, struct item *item)
{
	if (item->is_directory)
		list_directory(worker, item->path);
	else
		hash_file(worker, item->path);
	if (queue->keeps) {
		item->kept = worker->kept;
		worker->kept = item;
	} else {
		free(item);
	}
}

static void *work(void *arg)
{
	struct worker *worker = arg;

	while (!__atomic_load_n(&pending.finished, __ATOMIC_ACQUIRE)) {
		struct item *item = queue->pop();

		if (!item) {
			queue->wait();
			continue;
		}
		work_on(worker, item);
		if (__atomic_sub_fetch(&pending.count, 1, __ATOMIC_ACQ_REL) == 0) {
			__atomic_store_n(&pending.finished, 1, __ATOMIC_RELEASE);
			queue->finish(threads);
		}
	}
	return NULL;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void report(const struct totals *t, double seconds, bool json)
{
	const char *format = json ? "{\"queue\": \"%s\", \"threads\": %u, \"files\": %" PRIu64
				    ", \"directories\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"hash\": \"%016" PRIx64
				    "\", \"errors\": %" PRIu64 ", \"seconds\": %.6f}\n"
				  : "queue %s, %u threads: %" PRIu64 " files in %" PRIu64 " directories, %" PRIu64
				    " bytes, hash %016" PRIx64 ", %" PRIu64 " errors, %.3f s\n";

	printf(format, queue->name, threads, t->files, t->directories, t->bytes, t->hash, t->errors, seconds);
}

/* Returns the exit status. */
static int walk(const char *root, bool json)
{
	struct worker *workers = aligned_alloc(_Alignof(struct worker), threads * sizeof *workers);
	struct item *item = make_item(root, "");
	struct totals sum = { 0 };
	unsigned started = 0;
	double start;
	int rc = queue->init();

	if (!workers || !item || rc) {
		fprintf(stderr, "walk: %s\n", strerror(rc ? -rc : ENOMEM));
		return 1;
	}
	memset(workers, 0, threads * sizeof *workers);
	item->is_directory = true;
	pending.count = 1;
	start = now();
	queue->push(item);
	while (started < threads && !(rc = pthread_create(&workers[started].thread, NULL, work, &workers[started])))
		started++;
	/* With fewer threads it takes longer. */
	if (rc)
		fprintf(stderr, "walk: only %u threads: %s\n", started, strerror(rc));
	if (!started)
		work(&workers[0]);
	for (unsigned i = 0; i < started; i++)
		pthread_join(workers[i].thread, NULL);
	for (unsigned i = 0; i < threads; i++) {
		while ((item = workers[i].kept)) {
			workers[i].kept = item->kept;
			free(item);
		}
		sum.files += workers[i].totals.files;
		sum.directories += workers[i].totals.directories;
		sum.bytes += workers[i].totals.bytes;
		sum.hash += workers[i].totals.hash;
		sum.errors += workers[i].totals.errors;
	}
	report(&sum, now() - start, json);
	free(workers);
	return sum.errors || rc || fflush(stdout) ? 1 : 0;
}

static bool choose(const char *name)
{
	for (queue = queues; queue->name; queue++)
		if (!strcmp(queue->name, name))
			return true;
	fprintf(stderr, "walk: no queue is called \"%s\"; there are", name);
	for (const struct queue *q = queues; q->name; q++)
		fprintf(stderr, " %s", q->name);
	fputc('\n', stderr);
	return false;
}

static int usage(FILE *out, int status)
{
	fputs("Usage: walk [--queue NAME] [--threads N] [--json] DIR\n"
	      "Hash the contents of all files under DIR. Queues:",
	      out);
	for (const struct queue *q = queues; q->name; q++)
		fprintf(out, " %s", q->name);
	fputs("\n", out);
	return status;
}

int main(int argc, char **argv)
{
	static const struct option known[] = {
		{ "queue", required_argument, NULL, 'q' },
		{ "threads", required_argument, NULL, 't' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), count = cpus < 1 ? 1 : cpus > MOST_THREADS ? MOST_THREADS : cpus;
	bool json = false;
	char *end;
	int c;

	queue = &queues[0];
	while ((c = getopt_long(argc, argv, "q:t:jh", known, NULL)) != -1) {
		switch (c) {
		case 'q':
			if (!choose(optarg))
				return 2;
			break;
		case 't':
			count = strtol(optarg, &end, 10);
			if (end == optarg || *end || count < 1 || count > MOST_THREADS) {
				fprintf(stderr, "walk: --threads takes a number from 1 to %d, not \"%s\"\n",
					MOST_THREADS, optarg);
				return 2;
			}
			break;
		case 'j':
			json = true;
			break;
		case 'h':
			return usage(stdout, 0);
		default:
			return usage(stderr, 2);
		}
	}
	if (optind + 1 != argc)
		return usage(stderr, 2);
	threads = (unsigned)count;
	return walk(argv[optind], json);
}
