/* SPDX-License-Identifier: MIT */
/*
 * The page heap: its range of addresses, and spans.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>

#include <percpu/rseq.h>

#include "base/lock.h"
#include "malloc/lock.h"
#include "base/sys.h"
#include "malloc/options.h"
#include "malloc/region.h"

#define HEAP_LEAST ((size_t)2 << 20)
#define HEAP_USUAL ((size_t)1 << 40)
#define SPAN_STEP  ((size_t)64 << 10)
/* Large blocks that the kernel has a mapping for; it allows 65530 mappings in all. */
#define MOVED_MOST 8192U
#define OS_PAGE    ((size_t)4096)

struct percpu__heap percpu__heap;
struct percpu__heap_stats percpu__heap_stats;

static uint32_t heap_word, moved_count;
static struct percpu__span *spans, *spare;
static size_t span_count, span_room; /* structs in use so far, and bytes of them that are writable */

static size_t in_pages(size_t bytes)
{
	return (bytes + OS_PAGE - 1) & ~(OS_PAGE - 1);
}

/* Pages of addresses that the process has mapped, from a file without allocating. */
static size_t mapped(void)
{
	char text[32] = "";
	size_t pages = 0;
	long fd = percpu__sys4(SYS_openat, AT_FDCWD, (long)"/proc/self/statm", O_RDONLY | O_CLOEXEC, 0);

	if (fd < 0)
		return 0;
	percpu__sys4(SYS_read, fd, (long)text, sizeof(text) - 1, 0);
	percpu__sys4(SYS_close, fd, 0, 0, 0);
	for (const char *c = text; *c >= '0' && *c <= '9'; c++)
		pages = pages * 10 + (size_t)(*c - '0');
	return pages;
}

/* A quarter of what a limit leaves is for stacks, files and what else a program maps. */
static size_t range_wanted(void)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	struct sysinfo info = { 0 };
	size_t bytes = HEAP_USUAL, left, used;

	percpu__sys4(SYS_sysinfo, (long)&info, 0, 0, 0);
	while (bytes < (size_t)1 << 45 && bytes / 4 < (size_t)info.totalram * info.mem_unit)
		bytes *= 2;
	if (percpu__sys4(SYS_prlimit64, 0, RLIMIT_AS, 0, (long)&limit) || limit.rlim_cur == RLIM_INFINITY)
		return bytes;
	used = mapped() * OS_PAGE;
	left = limit.rlim_cur > used ? (limit.rlim_cur - used) / 4 * 3 : 0;
	/* Also of each page in it. */
	left -= left / PAGE * (sizeof(*spans) + sizeof(*percpu__heap.numbers) + sizeof(*percpu__heap.distances));
	left = left < HEAP_LEAST ? HEAP_LEAST : left & ~(REGION - 1);
	return bytes < left ? bytes : left;
}

static bool reserve(size_t bytes)
{
	size_t pages = bytes >> PAGE_LOG, before;
	size_t d = in_pages(pages * sizeof(*percpu__heap.distances)),
	       n = in_pages(pages * sizeof(*percpu__heap.numbers));
	size_t r = in_pages((bytes >> REGION_LOG) * sizeof(struct region)),
	       s = ((pages + 1) * sizeof(*spans) + SPAN_STEP - 1) / SPAN_STEP * SPAN_STEP;
	char *raw = percpu__heap_map(bytes + REGION, PROT_NONE);

	char *distances = percpu__heap_map(d + HEAP_SKEW + 4096, PROT_READ);

	percpu__heap.numbers = percpu__heap_map(n, PROT_READ);
	percpu__regions.all = percpu__heap_map(r, PROT_READ);
	spans = percpu__heap_map(s, PROT_READ);
	if (raw && distances && percpu__heap.numbers && percpu__regions.all && spans) {
		before = -(uintptr_t)raw & (REGION - 1);
		percpu__heap_unmap(before ? raw : NULL, before);
		percpu__heap_unmap(raw + before + bytes, REGION - before);
		percpu__heap.base = raw + before;
		percpu__heap.distances = (uint16_t *)(void *)(distances + HEAP_SKEW);
		percpu__regions.most = (uint32_t)(bytes >> REGION_LOG);
		return true;
	}
	percpu__heap_unmap(raw, bytes + REGION);
	percpu__heap_unmap(distances, d + HEAP_SKEW + 4096);
	percpu__heap_unmap(percpu__heap.numbers, n);
	percpu__heap_unmap(percpu__regions.all, r);
	percpu__heap_unmap(spans, s);
	return false;
}

int percpu__heap_start(void)
{
	for (size_t bytes = range_wanted(); bytes >= HEAP_LEAST; bytes = (bytes / 2) & ~(REGION - 1)) {
		if (!reserve(bytes))
			continue;
		percpu__regions_start();
		span_count = 1; /* number 0 is no span */
		/* Last: who asks whether a pointer is in the heap may ask any time. */
		__atomic_store_n(&percpu__heap.bytes, bytes, __ATOMIC_RELEASE);
		return 0;
	}
	return -ENOMEM;
}

unsigned percpu__heap_node(void)
{
	unsigned nodes = (unsigned)percpu__malloc_options.nodes;
	int node = nodes ? percpu_cpu() : percpu_node();

	return node < 0 ? 0 : (unsigned)node % (nodes && nodes < NODES ? nodes : NODES);
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
		if (!percpu__heap_writable((char *)spans + span_room, SPAN_STEP))
			return NULL;
		span_room += SPAN_STEP;
	}
	span = &spans[span_count];
	span->number = (uint32_t)span_count++;
	percpu__heap_stats.metadata += sizeof(*spans);
	return span;
}

/* Of a large block the first page alone: the others are nobody's to free. */
static void name_pages(const struct percpu__span *span, bool in_use)
{
	uint64_t pages = span->class ? span->pages : 1;

	for (uint64_t i = span->page; i < span->page + pages; i++) {
		__atomic_store_n(&percpu__heap.numbers[i], in_use ? span->number : 0, __ATOMIC_RELAXED);
		if (span->class)
			__atomic_store_n(&percpu__heap.distances[i],
					 in_use ? (uint16_t)(span->class << DISTANCE_LOG) : 0, __ATOMIC_RELAXED);
	}
}

/* Differences. */
static void count_large(const struct percpu__span *span, int count, uint64_t pages)
{
	if (span->class)
		return;
	percpu__heap_stats.large += (uint64_t)count;
	percpu__heap_stats.large_bytes += pages << PAGE_LOG;
}

static void set_up(struct percpu__span *span, const struct pages *taken, size_t pages, unsigned class, unsigned node)
{
	span->page = taken->first;
	span->pages = pages;
	span->class = (uint8_t) class;
	span->node = (uint8_t)node;
	span->sample = NULL;
	span->dirty = taken->dirty;
	span->dirty_end = taken->dirty_end;
	span->listed = span->moved = span->roomy = false;
	count_large(span, 1, pages);
	name_pages(span, true);
}

static uint64_t own_ns(void)
{
	struct timespec now = { 0, 0 };

	percpu__sys4(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, (long)&now, 0, 0);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Somebody has to, so it may as well be told how long that takes. */
static void touch(char *page)
{
	uint64_t start = own_ns();

	*(volatile char *)page = 0;
	percpu__region_huge_took(own_ns() - start);
}

struct percpu__span *percpu__span_new(size_t pages, size_t align, unsigned class, unsigned node)
{
	uint64_t extra = align > 1 ? align - 1 : 0, skip;
	struct percpu__span *span;
	struct pages taken;

	/* Whole regions lie at multiples of one. */
	if (align <= REGION_PAGES && pages >= REGION_PAGES)
		extra = 0;
	if (pages > SIZE_MAX / 2 >> PAGE_LOG || extra > SIZE_MAX / 2 >> PAGE_LOG)
		return NULL;
	percpu__heap_lock();
	span = new_struct();
	taken.first = NO_PAGE;
	if (span)
		taken = percpu__pages_take(pages + extra, node % NODES, class != 0);
	if (taken.first == NO_PAGE) {
		if (span) {
			span->next = spare;
			spare = span;
		}
		percpu__heap_unlock();
		return NULL;
	}
	/* Of addresses: the range begins at a multiple of a region only. */
	skip = -(taken.first + ((uintptr_t)percpu__heap.base >> PAGE_LOG)) & extra;
	if (skip)
		percpu__pages_free(taken.first, skip);
	if (extra - skip)
		percpu__pages_free(taken.first + skip + pages, extra - skip);
	taken.first += skip;
	taken.dirty = taken.dirty > skip ? taken.dirty - skip : 0;
	taken.dirty_end = taken.dirty_end > skip ? taken.dirty_end - skip : 0;
	set_up(span, &taken, pages, class, node % NODES);
	percpu__heap_unlock();
	if (taken.huge)
		touch(percpu__page_address(span->page));
	return span;
}

/* The last page. */
static void hold(struct percpu__span *span, bool held)
{
	if (span->roomy)
		percpu__pages_hold(span->page + span->pages - 1, held);
}

struct percpu__span *percpu__span_new_roomy(size_t pages, unsigned node, size_t *fresh)
{
	struct percpu__span *span;
	struct pages taken;

	if (pages > SIZE_MAX / 2 >> PAGE_LOG)
		return NULL;
	percpu__heap_lock();
	span = new_struct();
	if (span) {
		taken = percpu__pages_take_roomy(pages, node % NODES);
		if (taken.first != NO_PAGE) {
			set_up(span, &taken, pages, 0, node % NODES);
			span->roomy = true;
			hold(span, true);
		} else {
			taken = percpu__pages_take(pages, node % NODES, false);
			if (taken.first != NO_PAGE) {
				set_up(span, &taken, pages, 0, node % NODES);
			} else {
				span->next = spare;
				spare = span;
				span = NULL;
			}
		}
		*fresh = taken.fresh;
	}
	percpu__heap_unlock();
	return span;
}

bool percpu__span_grow(struct percpu__span *span, size_t pages)
{
	bool ok;

	percpu__heap_lock();
	hold(span, false);
	ok = percpu__pages_extend(span->page + span->pages, pages - span->pages, span->node);
	if (ok) {
		count_large(span, 0, pages - span->pages);
		span->pages = pages;
	}
	hold(span, true);
	percpu__heap_unlock();
	return ok;
}

/* Pages whose memory came from elsewhere, or went there: as new ones. Returns whether they have no memory now. */
static bool map_anew(uint64_t page, uint64_t pages)
{
	long p = (long)percpu__page_address(page), bytes = (long)(pages << PAGE_LOG);

	return percpu__sys6(SYS_mmap, p, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == p ||
	       percpu__sys4(SYS_madvise, p, bytes, MADV_DONTNEED, 0) == 0;
}

/* By regions, if the kernel has several mappings for it. */
size_t percpu__span_move(struct percpu__span *to, struct percpu__span *from, size_t pages)
{
	size_t done = 0, step = pages;

	if (__atomic_fetch_add(&moved_count, 1, __ATOMIC_RELAXED) >= MOVED_MOST) {
		__atomic_fetch_sub(&moved_count, 1, __ATOMIC_RELAXED);
		return 0;
	}
	while (done < pages) {
		size_t some = pages - done < step ? pages - done : step;
		long old = (long)percpu__page_address(from->page + done), bytes = (long)(some << PAGE_LOG);
		long new = (long)percpu__page_address(to->page + done);

		if (percpu__sys6(SYS_mremap, old, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, new,
				 0) == new)
			done += some;
		else if (step > REGION_PAGES)
			step = REGION_PAGES;
		else
			break;
	}
	if (!done) {
		__atomic_fetch_sub(&moved_count, 1, __ATOMIC_RELAXED);
		return 0;
	}
	to->moved = true;
	percpu__heap_lock();
	percpu__pages_dropped(from->page, done);
	percpu__heap_unlock();
	return done;
}

void percpu__span_cut(struct percpu__span *span, size_t pages)
{
	uint64_t from = span->page + pages, count = span->pages - pages;
	bool dropped = span->moved && map_anew(from, count);

	percpu__heap_lock();
	hold(span, false);
	span->roomy = false;
	if (dropped)
		percpu__pages_dropped(from, count);
	percpu__pages_free(from, count);
	count_large(span, 0, -count);
	span->pages = pages;
	percpu__release_excess(count << PAGE_LOG);
	percpu__heap_unlock();
}

void percpu__span_free(struct percpu__span *span)
{
	uint64_t bytes = span->pages << PAGE_LOG;
	bool dropped = span->moved && map_anew(span->page, span->pages);

	if (span->moved)
		__atomic_fetch_sub(&moved_count, 1, __ATOMIC_RELAXED);
	percpu__heap_lock();
	name_pages(span, false);
	count_large(span, -1, -span->pages);
	hold(span, false);
	if (dropped)
		percpu__pages_dropped(span->page, span->pages);
	percpu__pages_free(span->page, span->pages);
	span->next = spare;
	spare = span;
	percpu__release_excess(bytes);
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

void percpu__heap_lock(void)
{
	percpu__malloc_lock(&heap_word);
}

void percpu__heap_unlock(void)
{
	percpu__malloc_unlock(&heap_word);
}

void percpu__heap_relock(void)
{
	__atomic_store_n(&heap_word, 1, __ATOMIC_RELAXED);
	percpu__release_after_fork();
}
