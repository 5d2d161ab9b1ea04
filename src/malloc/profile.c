/* SPDX-License-Identifier: MIT */
/*
 * Sites of the heap profile, and the file.
 *
 * Sites are found by a hash table, under the lock, and are never given up; whoever writes the file walks the list of all of
 * them without it. So a site is complete before it is put in front of the list, and its counts are changed by single stores.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>

#include "malloc/backtrace.h"
#include "malloc/lock.h"
#include "malloc/options.h"
#include "malloc/profile.h"
#include "malloc/report.h"
#include "malloc/sample.h"
#include "malloc/writer.h"

#define CHUNK ((size_t)64 << 10) /* memory for sites comes in such pieces */

struct site {
	struct site *older;     /* in the list of all */
	struct site *same_head; /* in the table */
	uint64_t hash;
	uint64_t live, live_bytes, all, all_bytes;
	uint32_t class, count;
	uintptr_t frames[];
};

/* Of each thread: bytes up to the next sample, 0: not drawn yet. */
static __thread int64_t bytes_left __attribute__((tls_model("initial-exec")));

uint64_t percpu__profile_live;

static uint32_t profile_word; /* a lock, of the table and of memory for sites, and of those who change counts */
static struct site **table;
static size_t heads, site_count;
static char *chunk, *chunk_end;
static struct site *newest;
static bool forked;

/* Signals are blocked meanwhile: a handler may allocate, too. */
static void lock(uint64_t *saved)
{
	percpu__block_signals(saved);
	percpu__malloc_lock(&profile_word);
}

static void unlock(const uint64_t *saved)
{
	percpu__malloc_unlock(&profile_word);
	percpu__restore_signals(saved);
}

/* The natural logarithm of @x, of which only so much is needed that nobody sees the difference: 1e-6. @x: above 0 */
static double logarithm(double x)
{
	union {
		double number;
		uint64_t bits;
	} word = { x };
	int exponent = (int)(word.bits >> 52 & 2047) - 1023;
	double z, square;

	word.bits = (word.bits & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1023) << 52;
	/* From 1 to 2: by the series of artanh. */
	z = (word.number - 1) / (word.number + 1);
	square = z * z;
	return exponent * 0.693147180559945309 +
	       2 * z *
		       (1 + square * (1. / 3 +
				      square * (1. / 5 + square * (1. / 7 + square * (1. / 9 + square * (1. / 11))))));
}

/* How many bytes from one chosen byte to the next: exponentially distributed. */
static int64_t draw(uint64_t interval)
{
	double chance = ((double)(percpu__sample_random() >> 11) + 1) / 9007199254740992.0;
	double bytes = -logarithm(chance) * (double)interval;

	return bytes < 1 ? 1 : bytes > 4e18 ? (int64_t)4e18 : (int64_t)bytes + 1;
}

static bool is_turn(size_t size, uint64_t interval)
{
	int64_t left = bytes_left;

	if (!left)
		left = draw(interval);
	left -= size > INT64_MAX ? INT64_MAX : size ? (int64_t)size : 1;
	bytes_left = left > 0 ? left : draw(interval);
	return left <= 0;
}

static void *map(size_t bytes)
{
	long p = percpu__sys6(SYS_mmap, 0, (long)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p < 0 && p > -4096 ? NULL : (void *)p;
}

/* Twice as many heads, while there are more sites than heads. */
static bool make_table(void)
{
	size_t more = heads ? 2 * heads : CHUNK / sizeof(void *);
	struct site **larger;

	if (heads && site_count < heads)
		return true;
	larger = map(more * sizeof(void *));
	if (!larger)
		return heads != 0;
	for (size_t i = 0; i < heads; i++)
		for (struct site *site = table[i], *next; site; site = next) {
			next = site->same_head;
			site->same_head = larger[site->hash % more];
			larger[site->hash % more] = site;
		}
	if (heads)
		percpu__sys4(SYS_munmap, (long)table, (long)(heads * sizeof(void *)), 0, 0);
	table = larger;
	heads = more;
	return true;
}

static struct site *new_site(const struct percpu__trace *trace, unsigned class, uint64_t hash)
{
	size_t frames = trace->count * sizeof(trace->frames[0]), bytes = sizeof(struct site) + frames;
	struct site *site;

	if (!make_table())
		return NULL;
	if ((size_t)(chunk_end - chunk) < bytes) {
		char *fresh = map(CHUNK);

		if (!fresh)
			return NULL;
		chunk = fresh;
		chunk_end = fresh + CHUNK;
	}
	site = (struct site *)(void *)chunk;
	chunk += bytes;
	site->hash = hash;
	site->class = class;
	site->count = trace->count;
	memcpy(site->frames, trace->frames, frames);
	site->same_head = table[hash % heads];
	table[hash % heads] = site;
	site->older = newest;
	site_count++;
	__atomic_store_n(&newest, site, __ATOMIC_RELEASE);
	return site;
}

static struct site *site_of(const struct percpu__trace *trace, unsigned class)
{
	uint64_t hash = class;

	for (uint32_t i = 0; i < trace->count; i++) {
		hash = (hash ^ trace->frames[i]) * UINT64_C(0x9e3779b97f4a7c15);
		hash ^= hash >> 29;
	}
	for (struct site *site = heads ? table[hash % heads] : NULL; site; site = site->same_head)
		if (site->hash == hash && site->class == class && site->count == trace->count &&
		    memcmp(site->frames, trace->frames, trace->count * sizeof(trace->frames[0])) == 0)
			return site;
	return new_site(trace, class, hash);
}

/* Under the lock, but read without. */
static void change(uint64_t *word, uint64_t by)
{
	__atomic_store_n(word, *word + by, __ATOMIC_RELAXED);
}

static void note(struct percpu__span *span)
{
	struct percpu__trace trace;
	struct site *site;
	uint64_t saved;

	percpu__report_install();
	percpu__unwind(&trace);
	lock(&saved);
	/* Classes, of large blocks too: samples of a site are so alike that all can be scaled up by their mean size. */
	site = site_of(&trace, percpu__class_of(span->size ? span->size : 1));
	if (site) {
		change(&site->live, 1);
		change(&site->live_bytes, span->size);
		change(&site->all, 1);
		change(&site->all_bytes, span->size);
		change(&percpu__profile_live, 1);
	}
	unlock(&saved);
	/* (Without memory for a site it is a block as others are.) */
	span->sample = site;
}

void *percpu__profile_new(size_t size, size_t align, uint64_t interval)
{
	struct percpu__span *span;

	if (!is_turn(size, interval))
		return NULL;
	span = percpu__span_new(size ? (size + PAGE - 1) >> PAGE_LOG : 1, align > PAGE ? align >> PAGE_LOG : 1, 0, 0);
	if (!span)
		return NULL;
	span->size = size;
	note(span);
	return percpu__page_address(span->page);
}

void percpu__profile_large(struct percpu__span *span, uint64_t interval)
{
	if (is_turn(span->size, interval))
		note(span);
}

void percpu__profile_freed(struct percpu__span *span)
{
	struct site *site = span->sample;
	uint64_t saved;

	lock(&saved);
	change(&site->live, UINT64_MAX);
	change(&site->live_bytes, -span->size);
	change(&percpu__profile_live, UINT64_MAX);
	unlock(&saved);
	span->sample = NULL;
}

/* The file. */

static void put_counts(struct percpu__writer *w, const struct site *site)
{
	percpu__write_column(w, __atomic_load_n(&site->live, __ATOMIC_RELAXED), 6);
	percpu__write_text(w, ": ");
	percpu__write_column(w, __atomic_load_n(&site->live_bytes, __ATOMIC_RELAXED), 8);
	percpu__write_text(w, " [");
	percpu__write_column(w, __atomic_load_n(&site->all, __ATOMIC_RELAXED), 6);
	percpu__write_text(w, ": ");
	percpu__write_column(w, __atomic_load_n(&site->all_bytes, __ATOMIC_RELAXED), 8);
	percpu__write_text(w, "] @");
}

static void put_sites(struct percpu__writer *w, const struct site *first)
{
	struct site sum = { 0 };

	for (const struct site *site = first; site; site = site->older) {
		sum.live += __atomic_load_n(&site->live, __ATOMIC_RELAXED);
		sum.live_bytes += __atomic_load_n(&site->live_bytes, __ATOMIC_RELAXED);
		sum.all += __atomic_load_n(&site->all, __ATOMIC_RELAXED);
		sum.all_bytes += __atomic_load_n(&site->all_bytes, __ATOMIC_RELAXED);
	}
	percpu__write_text(w, "heap profile: ");
	put_counts(w, &sum);
	percpu__write_text(w, " heap_v2/");
	percpu__write_number(w, percpu__malloc_options.profile);
	percpu__write_text(w, "\n");
	for (const struct site *site = first; site; site = site->older) {
		put_counts(w, site);
		for (uint32_t i = 0; i < site->count; i++) {
			percpu__write_text(w, " ");
			/* All but the first are taken for return addresses. */
			percpu__write_address(w, site->frames[i] + (i != 0));
		}
		percpu__write_text(w, "\n");
	}
}

/* Where which file is mapped: addresses become names by it. */
static void put_maps(struct percpu__writer *w)
{
	char bytes[257];
	long fd = percpu__sys4(SYS_openat, AT_FDCWD, (long)"/proc/self/maps", O_RDONLY | O_CLOEXEC, 0), n;

	percpu__write_text(w, "\nMAPPED_LIBRARIES:\n");
	if (fd < 0)
		return;
	while ((n = percpu__sys4(SYS_read, fd, (long)bytes, sizeof(bytes) - 1, 0)) > 0) {
		bytes[n] = '\0';
		percpu__write_text(w, bytes);
	}
	percpu__write_close((int)fd);
}

int percpu__profile_write(const char *path)
{
	const struct site *first = __atomic_load_n(&newest, __ATOMIC_ACQUIRE);
	const char *option = percpu__malloc_options.profile_file;
	struct percpu__writer w;
	char name[PATH_MAX];
	int fd, rc;

	if (!path && !option)
		return -EINVAL;
	if (!path && forked && !strstr(option, "%p") && strlen(option) + 4 < sizeof(name)) {
		stpcpy(stpcpy(name, option), ".%p");
		path = name;
	}
	fd = percpu__write_open(path ? path : option);
	if (fd < 0)
		return fd;
	percpu__write_to(&w, fd);
	put_sites(&w, first);
	put_maps(&w);
	rc = percpu__write_end(&w);
	percpu__write_close(fd);
	return rc;
}

void percpu__profile_tell(void)
{
	int rc = percpu__malloc_options.profile ? percpu__profile_write(NULL) : 0;

	if (rc)
		percpu__write_complaint("cannot write the heap profile", percpu__malloc_options.profile_file, rc);
}

__attribute__((destructor)) static void at_exit(void)
{
	percpu__profile_tell();
}

void percpu__profile_lock(void)
{
	percpu__lock_word(&profile_word);
}

void percpu__profile_unlock(void)
{
	percpu__unlock_word(&profile_word);
}

void percpu__profile_relock(void)
{
	forked = true;
	__atomic_store_n(&profile_word, 1, __ATOMIC_RELAXED);
}
