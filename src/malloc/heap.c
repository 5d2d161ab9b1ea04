/* SPDX-License-Identifier: MIT */
/*
 * The page heap: regions, runs of pages in them, spans.
 *
 * Regions are taken from the start of the range in rising order and never given up; whole ones that are free form runs,
 * coalesced by what is noted in their first and last. The others are listed by their longest free run, so that a request
 * takes the region where it fits best: small holes are filled first, and regions that are nearly free may become free.
 *
 * Memory becomes writable region by region, and the tables with it, so nothing is reserved of the system's memory that is
 * not in use, also where it does not overcommit.
 */
#include <errno.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <time.h>

#include "base/lock.h"
#include "base/sys.h"
#include "malloc/heap.h"

#define WORDS      (REGION_PAGES / 64)
#define NONE       UINT32_MAX
#define HEAP_LEAST ((size_t)64 << 20)
#define HEAP_USUAL ((size_t)1 << 40)
#define STEP_LOG   5U /* regions whose tables become writable together */
#define SPAN_STEP  ((size_t)64 << 10)
#define KEEP_LEAST ((uint64_t)8 << 20)
#define TRIM_MS    10
/* Huge pages would make small programs large. */
#define SMALL_REGIONS 8U

struct region {
	uint64_t used[WORDS];   /* pages in spans */
	uint64_t backed[WORDS]; /* pages that may have memory */
	uint32_t next, previous;
	uint32_t run; /* of free regions, in the first and last of a run; 0 in others */
	uint16_t count, longest;
};

struct percpu__heap percpu__heap;
struct percpu__heap_stats percpu__heap_stats;

static uint32_t heap_word;
static struct region *regions;
static uint32_t top, most;                    /* regions in use so far, and in the range */
static uint32_t by_longest[REGION_PAGES + 1]; /* heads of lists */
static uint64_t listed[REGION_PAGES / 64 + 1];
static uint32_t free_runs = NONE;

static struct percpu__span *spans, *spare;
static size_t span_count, span_room; /* structs in use so far, and writable */

static void *map(size_t bytes, int protection)
{
	long p = percpu__sys6(SYS_mmap, 0, (long)bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p < 0 && p > -4096 ? NULL : (void *)p;
}

static void unmap(void *p, size_t bytes)
{
	if (p)
		percpu__sys4(SYS_munmap, (long)p, (long)bytes, 0, 0);
}

static bool make_writable(void *p, size_t bytes)
{
	return percpu__sys4(SYS_mprotect, (long)p, (long)bytes, PROT_READ | PROT_WRITE, 0) == 0;
}

static size_t range_wanted(void)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	struct sysinfo info = { 0 };
	size_t bytes = HEAP_USUAL;

	percpu__sys4(SYS_sysinfo, (long)&info, 0, 0, 0);
	while (bytes < (size_t)1 << 45 && bytes / 4 < (size_t)info.totalram * info.mem_unit)
		bytes *= 2;
	percpu__sys4(SYS_prlimit64, 0, RLIMIT_AS, 0, (long)&limit);
	while (bytes > HEAP_LEAST && bytes > limit.rlim_cur / 2)
		bytes /= 2;
	return bytes;
}

static bool reserve(size_t bytes)
{
	size_t pages = bytes >> PAGE_LOG;
	char *raw = map(bytes + REGION, PROT_NONE);

	percpu__heap.distances = map(pages * sizeof(uint16_t), PROT_READ);
	percpu__heap.numbers = map(pages * sizeof(uint32_t), PROT_READ);
	regions = map((bytes >> REGION_LOG) * sizeof(*regions), PROT_READ);
	spans = map(pages * sizeof(*spans), PROT_READ);
	if (raw && percpu__heap.distances && percpu__heap.numbers && regions && spans) {
		percpu__heap.base = (char *)(((uintptr_t)raw + REGION - 1) & ~(REGION - 1));
		most = (uint32_t)(bytes >> REGION_LOG);
		return true;
	}
	unmap(raw, bytes + REGION);
	unmap(percpu__heap.distances, pages * sizeof(uint16_t));
	unmap(percpu__heap.numbers, pages * sizeof(uint32_t));
	unmap(regions, (bytes >> REGION_LOG) * sizeof(*regions));
	unmap(spans, pages * sizeof(*spans));
	return false;
}

int percpu__heap_start(void)
{
	for (size_t bytes = range_wanted(); bytes >= HEAP_LEAST; bytes /= 2) {
		if (!reserve(bytes))
			continue;
		for (unsigned i = 0; i <= REGION_PAGES; i++)
			by_longest[i] = NONE;
		span_count = 1; /* number 0 is no span */
		/* Last: who asks whether a pointer is in the heap may ask any time. */
		__atomic_store_n(&percpu__heap.bytes, bytes, __ATOMIC_RELEASE);
		return 0;
	}
	return -ENOMEM;
}

/* Bitmaps. */

static uint64_t mask_of(unsigned from, unsigned to)
{
	return (to - from == 64 ? ~UINT64_C(0) : (UINT64_C(1) << (to - from)) - 1) << from;
}

/* Calls once for each word that [from, to) touches: with its number and those bits. */
#define EACH_WORD(from, to, word, mask)                                                                                \
	for (unsigned word = (from) / 64, at_ = (from) % 64, left_ = (to) - (from), now_; left_;                       \
	     left_ -= now_, word++, at_ = 0)                                                                           \
		for (uint64_t mask = (now_ = 64 - at_ < left_ ? 64 - at_ : left_, mask_of(at_, at_ + now_)),           \
			      once_ = 1;                                                                               \
		     once_; once_ = 0)

static void set_bits(uint64_t *bits, unsigned from, unsigned to)
{
	EACH_WORD(from, to, word, mask)
	bits[word] |= mask;
}

static void clear_bits(uint64_t *bits, unsigned from, unsigned to)
{
	EACH_WORD(from, to, word, mask)
	bits[word] &= ~mask;
}

static unsigned count_bits(const uint64_t *bits, unsigned from, unsigned to)
{
	unsigned count = 0;

	EACH_WORD(from, to, word, mask)
	count += (unsigned)__builtin_popcountl(bits[word] & mask);
	return count;
}

/* The next bit from `i` on that is as asked; REGION_PAGES if there is none. */
static unsigned next_bit(const uint64_t *bits, unsigned i, bool set)
{
	while (i < REGION_PAGES) {
		uint64_t word = (set ? bits[i / 64] : ~bits[i / 64]) >> (i % 64);

		if (word)
			return i + (unsigned)__builtin_ctzl(word);
		i = (i / 64 + 1) * 64;
	}
	return REGION_PAGES;
}

static unsigned longest_free(const struct region *r)
{
	unsigned longest = 0;

	for (unsigned i = next_bit(r->used, 0, false); i < REGION_PAGES;) {
		unsigned end = next_bit(r->used, i, true);

		if (end - i > longest)
			longest = end - i;
		i = next_bit(r->used, end, false);
	}
	return longest;
}

/* The first free run of @pages; there is one. */
static unsigned find_free(const struct region *r, unsigned pages)
{
	unsigned i = next_bit(r->used, 0, false);

	for (;;) {
		unsigned end = next_bit(r->used, i, true);

		if (end - i >= pages)
			return i;
		i = next_bit(r->used, end, false);
	}
}

/* Lists of regions. */

static void link_at(uint32_t *head, uint32_t i)
{
	regions[i].previous = NONE;
	regions[i].next = *head;
	if (*head != NONE)
		regions[*head].previous = i;
	*head = i;
}

static void unlink_from(uint32_t *head, uint32_t i)
{
	if (regions[i].previous != NONE)
		regions[regions[i].previous].next = regions[i].next;
	else
		*head = regions[i].next;
	if (regions[i].next != NONE)
		regions[regions[i].next].previous = regions[i].previous;
}

static void unlist(uint32_t i)
{
	unsigned longest = regions[i].longest;

	if (!longest)
		return;
	unlink_from(&by_longest[longest], i);
	if (by_longest[longest] == NONE)
		listed[longest / 64] &= ~(UINT64_C(1) << (longest % 64));
}

static void list(uint32_t i)
{
	unsigned longest = regions[i].longest;

	if (!longest)
		return;
	link_at(&by_longest[longest], i);
	listed[longest / 64] |= UINT64_C(1) << (longest % 64);
}

static void add_run(uint32_t first, uint32_t count)
{
	regions[first].run = regions[first + count - 1].run = count;
	link_at(&free_runs, first);
}

static void remove_run(uint32_t first)
{
	uint32_t count = regions[first].run;

	unlink_from(&free_runs, first);
	regions[first].run = regions[first + count - 1].run = 0;
}

/* All pages of the region are free; it is in no list. */
static void free_region(uint32_t i)
{
	uint32_t first = i, count = 1;

	if (i > 0 && regions[i - 1].run) {
		first = i - regions[i - 1].run;
		count += regions[i - 1].run;
		remove_run(first);
	}
	if (i + 1 < top && regions[i + 1].run) {
		count += regions[i + 1].run;
		remove_run(i + 1);
	}
	add_run(first, count);
}

/* Makes regions from `top` on usable. */
static bool extend(uint32_t count)
{
	for (; count; count--) {
		if (top == most)
			return false;
		if (top % (1U << STEP_LOG) == 0) {
			size_t step = most - top < 1U << STEP_LOG ? most - top : 1U << STEP_LOG,
			       page = (size_t)top * REGION_PAGES;
			size_t pages = step * REGION_PAGES, at = (size_t)top * sizeof(*regions) & ~(size_t)4095;

			if (!make_writable(percpu__heap.distances + page, pages * sizeof(uint16_t)) ||
			    !make_writable(percpu__heap.numbers + page, pages * sizeof(uint32_t)) ||
			    !make_writable((char *)regions + at, (top + step) * sizeof(*regions) - at))
				return false;
		}
		if (!make_writable(percpu__heap.base + ((size_t)top << REGION_LOG), REGION))
			return false;
		if (top < SMALL_REGIONS)
			percpu__sys4(SYS_madvise, (long)(percpu__heap.base + ((size_t)top << REGION_LOG)), REGION,
				     MADV_NOHUGEPAGE, 0);
		regions[top].next = regions[top].previous = NONE;
		top++;
		free_region(top - 1);
	}
	return true;
}

/* @count regions that follow each other, of which all pages are free; in no list. NONE: no memory. */
static uint32_t take_regions(uint32_t count)
{
	uint32_t best = NONE, rest, last;

	for (uint32_t i = free_runs; i != NONE; i = regions[i].next)
		if (regions[i].run >= count && (best == NONE || regions[i].run < regions[best].run))
			best = i;
	if (best == NONE) {
		last = top && regions[top - 1].run ? regions[top - 1].run : 0;
		if (count > most - top + last || !extend(count - last))
			return NONE;
		best = top - regions[top - 1].run;
	}
	rest = regions[best].run - count;
	remove_run(best);
	if (rest)
		add_run(best + count, rest);
	return best;
}

/* Runs of pages. */

static void mark_used(uint64_t page, uint64_t pages, bool *zero)
{
	while (pages) {
		uint32_t i = (uint32_t)(page / REGION_PAGES);
		unsigned from = (unsigned)(page % REGION_PAGES);
		unsigned to = pages < REGION_PAGES - from ? from + (unsigned)pages : REGION_PAGES;
		unsigned backed = count_bits(regions[i].backed, from, to);

		*zero &= !backed;
		percpu__heap_stats.free -= (uint64_t)backed << PAGE_LOG;
		percpu__heap_stats.released -= percpu__heap_stats.released < (uint64_t)(to - from - backed) << PAGE_LOG
						       ? percpu__heap_stats.released
						       : (uint64_t)(to - from - backed) << PAGE_LOG;
		set_bits(regions[i].used, from, to);
		set_bits(regions[i].backed, from, to);
		regions[i].count = (uint16_t)(regions[i].count + to - from);
		regions[i].longest = (uint16_t)longest_free(&regions[i]);
		list(i);
		page += to - from;
		pages -= to - from;
	}
}

static void mark_free(uint64_t page, uint64_t pages)
{
	percpu__heap_stats.used -= pages << PAGE_LOG;
	percpu__heap_stats.free += pages << PAGE_LOG;
	while (pages) {
		uint32_t i = (uint32_t)(page / REGION_PAGES);
		unsigned from = (unsigned)(page % REGION_PAGES);
		unsigned to = pages < REGION_PAGES - from ? from + (unsigned)pages : REGION_PAGES;

		unlist(i);
		clear_bits(regions[i].used, from, to);
		regions[i].count = (uint16_t)(regions[i].count - (to - from));
		if (regions[i].count) {
			regions[i].longest = (uint16_t)longest_free(&regions[i]);
			list(i);
		} else {
			regions[i].longest = 0;
			free_region(i);
		}
		page += to - from;
		pages -= to - from;
	}
}

/* Returns the first page, or UINT64_MAX. */
static uint64_t take_pages(uint64_t pages, bool *zero)
{
	uint64_t page;

	*zero = true;
	if (pages < REGION_PAGES) {
		unsigned word = (unsigned)pages / 64;
		uint64_t bits = listed[word] & (~UINT64_C(0) << (pages % 64));
		uint32_t i;

		while (!bits && ++word <= REGION_PAGES / 64)
			bits = listed[word];
		if (bits) {
			i = by_longest[word * 64 + (unsigned)__builtin_ctzl(bits)];
			unlist(i);
		} else {
			i = take_regions(1);
			if (i == NONE)
				return UINT64_MAX;
		}
		page = (uint64_t)i * REGION_PAGES + find_free(&regions[i], (unsigned)pages);
	} else {
		uint64_t count = (pages + REGION_PAGES - 1) / REGION_PAGES;
		uint32_t i = count <= most ? take_regions((uint32_t)count) : NONE;

		if (i == NONE)
			return UINT64_MAX;
		page = (uint64_t)i * REGION_PAGES;
	}
	mark_used(page, pages, zero);
	percpu__heap_stats.used += pages << PAGE_LOG;
	if (percpu__heap_stats.used > percpu__heap_stats.most_used)
		percpu__heap_stats.most_used = percpu__heap_stats.used;
	return page;
}

/* Spans. */

static struct percpu__span *new_struct(void)
{
	struct percpu__span *span = spare;

	if (span) {
		spare = span->next;
		return span;
	}
	if ((span_count + 1) * sizeof(*spans) > span_room) {
		if (!make_writable((char *)spans + span_room, SPAN_STEP))
			return NULL;
		span_room += SPAN_STEP;
	}
	span = &spans[span_count];
	span->number = (uint32_t)span_count++;
	return span;
}

static void name_pages(const struct percpu__span *span, uint64_t page, uint64_t pages, bool in_use)
{
	for (uint64_t i = page; i < page + pages; i++) {
		__atomic_store_n(&percpu__heap.numbers[i], in_use ? span->number : 0, __ATOMIC_RELAXED);
		__atomic_store_n(&percpu__heap.distances[i], in_use ? (uint16_t)(span->class << DISTANCE_LOG) : 0,
				 __ATOMIC_RELAXED);
	}
}

struct percpu__span *percpu__span_new(size_t pages, size_t align, unsigned class, unsigned node)
{
	uint64_t extra = align > 1 ? align - 1 : 0, page, skip;
	struct percpu__span *span;
	bool zero;

	(void)node;
	if (pages > SIZE_MAX / 2 >> PAGE_LOG || extra > SIZE_MAX / 2 >> PAGE_LOG)
		return NULL;
	percpu__heap_lock();
	span = new_struct();
	page = span ? take_pages(pages + extra, &zero) : UINT64_MAX;
	if (page == UINT64_MAX) {
		if (span) {
			span->next = spare;
			spare = span;
		}
		percpu__heap_unlock();
		return NULL;
	}
	/* Of addresses: the range begins at a multiple of a region only. */
	skip = -(page + ((uintptr_t)percpu__heap.base >> PAGE_LOG)) & extra;
	if (skip)
		mark_free(page, skip);
	if (extra - skip)
		mark_free(page + skip + pages, extra - skip);
	span->page = page + skip;
	span->pages = pages;
	span->class = (uint8_t) class;
	span->zero = zero;
	span->listed = false;
	/* The pages of a large block but its first are nobody's to free. */
	name_pages(span, span->page, pages, true);
	percpu__heap_unlock();
	return span;
}

static uint64_t now_ms(void)
{
	struct timespec now = { 0, 0 };

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/*
 * Gives back by and by what is more than a share of what is in use: each time at most a quarter of that, or one region, so
 * that nobody waits long, and who takes it again soon finds most of it.
 */
static void trim(void)
{
	static uint64_t last;
	uint64_t keep = KEEP_LEAST + percpu__heap_stats.used / 8, excess, now;

	if (percpu__heap_stats.free < keep + REGION)
		return;
	now = now_ms();
	if (now - last < TRIM_MS)
		return;
	last = now;
	excess = (percpu__heap_stats.free - keep) / 4;
	percpu__heap_release(excess > REGION ? excess : REGION, keep);
}

void percpu__span_free(struct percpu__span *span)
{
	percpu__heap_lock();
	name_pages(span, span->page, span->pages, false);
	mark_free(span->page, span->pages);
	span->next = spare;
	spare = span;
	trim();
	percpu__heap_unlock();
}

void percpu__span_cut(struct percpu__span *span, size_t pages)
{
	percpu__heap_lock();
	name_pages(span, span->page + pages, span->pages - pages, false);
	mark_free(span->page + pages, span->pages - pages);
	span->pages = pages;
	percpu__heap_unlock();
}

struct percpu__span *percpu__span_of(const void *p)
{
	uint32_t number;

	if (!percpu__heap_has(p))
		return NULL;
	number = __atomic_load_n(&percpu__heap.numbers[percpu__page_of(p)], __ATOMIC_RELAXED);
	return number ? &spans[number] : NULL;
}

/* Pages of a region that are free and have memory. Under the lock. */
static size_t release_region(uint32_t i)
{
	struct region *r = &regions[i];
	uint64_t idle[WORDS];
	size_t bytes = 0;

	for (unsigned w = 0; w < WORDS; w++)
		idle[w] = r->backed[w] & ~r->used[w];
	for (unsigned from = next_bit(idle, 0, true); from < REGION_PAGES;) {
		unsigned to = next_bit(idle, from, false);

		if (percpu__sys4(SYS_madvise, (long)percpu__page_address((uint64_t)i * REGION_PAGES + from),
				 (long)((size_t)(to - from) << PAGE_LOG), MADV_DONTNEED, 0) == 0) {
			clear_bits(r->backed, from, to);
			bytes += (size_t)(to - from) << PAGE_LOG;
		}
		from = next_bit(idle, to, true);
	}
	percpu__heap_stats.free -= bytes;
	percpu__heap_stats.released += bytes;
	return bytes;
}

/* Whole regions first, the last ones first: the heap then shrinks towards its start. */
size_t percpu__heap_release(size_t at_most, size_t keep)
{
	size_t bytes = 0;

	for (int whole = 1; whole >= 0; whole--)
		for (uint32_t i = top; i-- > 0 && bytes < at_most && percpu__heap_stats.free > keep;)
			if ((regions[i].count == 0) == (whole != 0))
				bytes += release_region(i);
	return bytes;
}

void percpu__heap_lock(void)
{
	percpu__lock_word(&heap_word);
}

void percpu__heap_unlock(void)
{
	percpu__unlock_word(&heap_word);
}

void percpu__heap_relock(void)
{
	__atomic_store_n(&heap_word, 1, __ATOMIC_RELAXED);
}
