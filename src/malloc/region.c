/* SPDX-License-Identifier: MIT */
/*
 * Regions: their lists, runs of free ones, runs of pages.
 *
 * Memory becomes writable region by region, and the tables with it, so nothing is reserved of the system's memory that is
 * not in use, also where it does not overcommit.
 */
#include <sys/mman.h>
#include <time.h>

#include "base/sys.h"
#include "malloc/options.h"
#include "malloc/region.h"

#define STEP_LOG      5U /* regions whose tables become writable together */
#define BINS          32U
#define SEARCH        32U /* how many of a list are looked at */
#define SMALL_REGIONS 8U  /* the first, while the heap is small */
/* Blocks that grow lie so far apart, in regions, as long as there are not many. */
#define ROOM        4U
#define SPREAD_FREE 128U

struct percpu__regions percpu__regions = { .nodes = 1 };
static const struct pages no_pages = { .first = NO_PAGE };

/* Heads and tails of lists: those of a node that nobody asked for are never looked at. */
static struct node {
	bool ready;
	uint32_t by_longest[REGION_PAGES + 1];
	uint64_t listed[REGION_PAGES / 64 + 1];
	uint32_t idle_first, idle_last;
} nodes[NODES];
static uint32_t free_runs[BINS]; /* by the logarithm of their length */

static struct region *at(uint32_t i)
{
	return &percpu__regions.all[i];
}

void *percpu__heap_map(size_t bytes, int protection)
{
	long p = percpu__sys6(SYS_mmap, 0, (long)bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p < 0 && p > -4096 ? NULL : (void *)p;
}

void percpu__heap_unmap(void *p, size_t bytes)
{
	if (p)
		percpu__sys4(SYS_munmap, (long)p, (long)bytes, 0, 0);
}

bool percpu__heap_writable(void *p, size_t bytes)
{
	return percpu__sys4(SYS_mprotect, (long)p, (long)bytes, PROT_READ | PROT_WRITE, 0) == 0;
}

uint32_t percpu__heap_ms(void)
{
	struct timespec now = { 0, 0 };

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint32_t)((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000) | 1;
}

static unsigned longest_free(const struct region *r)
{
	unsigned longest = 0;

	for (unsigned i = percpu__bits_next(r->used, 0, false); i < REGION_PAGES;) {
		unsigned end = percpu__bits_next(r->used, i, true);

		if (end - i > longest)
			longest = end - i;
		i = percpu__bits_next(r->used, end, false);
	}
	return longest;
}

/* The first free run of @pages; there is one. */
static unsigned find_free(const struct region *r, unsigned pages)
{
	unsigned i = percpu__bits_next(r->used, 0, false);

	for (;;) {
		unsigned end = percpu__bits_next(r->used, i, true);

		if (end - i >= pages)
			return i;
		i = percpu__bits_next(r->used, end, false);
	}
}

/* Lists of regions. */

static struct node *node_at(unsigned n)
{
	struct node *node = &nodes[n];

	if (!node->ready) {
		for (unsigned i = 0; i <= REGION_PAGES; i++)
			node->by_longest[i] = NO_REGION;
		node->idle_first = node->idle_last = NO_REGION;
		node->ready = true;
		if (n >= percpu__regions.nodes)
			percpu__regions.nodes = n + 1;
	}
	return node;
}

void percpu__regions_start(void)
{
	for (unsigned i = 0; i < BINS; i++)
		free_runs[i] = NO_REGION;
}

static void link_at(uint32_t *head, uint32_t i)
{
	at(i)->previous = NO_REGION;
	at(i)->next = *head;
	if (*head != NO_REGION)
		at(*head)->previous = i;
	*head = i;
}

static void unlink_from(uint32_t *head, uint32_t i)
{
	if (at(i)->previous != NO_REGION)
		at(at(i)->previous)->next = at(i)->next;
	else
		*head = at(i)->next;
	if (at(i)->next != NO_REGION)
		at(at(i)->next)->previous = at(i)->previous;
}

static void unlist(uint32_t i)
{
	struct node *node = &nodes[at(i)->node];
	unsigned longest = at(i)->longest;

	if (!longest)
		return;
	unlink_from(&node->by_longest[longest], i);
	if (node->by_longest[longest] == NO_REGION)
		node->listed[longest / 64] &= ~(UINT64_C(1) << (longest % 64));
	at(i)->longest = 0;
}

void percpu__region_relist(uint32_t i)
{
	struct node *node = &nodes[at(i)->node];
	unsigned longest = at(i)->held || !at(i)->count ? 0 : longest_free(at(i));

	if (longest == at(i)->longest)
		return;
	unlist(i);
	at(i)->longest = (uint16_t)longest;
	if (!longest)
		return;
	link_at(&node->by_longest[longest], i);
	node->listed[longest / 64] |= UINT64_C(1) << (longest % 64);
}

static void list_idle(uint32_t i)
{
	struct node *node = &nodes[at(i)->node];

	at(i)->idle = true;
	at(i)->idle_previous = NO_REGION;
	at(i)->idle_next = node->idle_first;
	if (node->idle_first != NO_REGION)
		at(node->idle_first)->idle_previous = i;
	else
		node->idle_last = i;
	node->idle_first = i;
}

static void unlist_idle(uint32_t i)
{
	struct node *node = &nodes[at(i)->node];

	if (!at(i)->idle)
		return;
	at(i)->idle = false;
	if (at(i)->idle_previous != NO_REGION)
		at(at(i)->idle_previous)->idle_next = at(i)->idle_next;
	else
		node->idle_first = at(i)->idle_next;
	if (at(i)->idle_next != NO_REGION)
		at(at(i)->idle_next)->idle_previous = at(i)->idle_previous;
	else
		node->idle_last = at(i)->idle_previous;
}

uint32_t percpu__region_idle(unsigned node)
{
	return nodes[node].ready ? nodes[node].idle_last : NO_REGION;
}

/* Runs of free regions. */

static unsigned bin_of(uint32_t count)
{
	return 31U - (unsigned)__builtin_clz(count);
}

static void add_run(uint32_t first, uint32_t count)
{
	if (!count)
		return;
	at(first)->run = at(first + count - 1)->run = count;
	at(first)->first = true;
	link_at(&free_runs[bin_of(count)], first);
}

static void remove_run(uint32_t first)
{
	uint32_t count = at(first)->run;

	unlink_from(&free_runs[bin_of(count)], first);
	at(first)->run = at(first + count - 1)->run = 0;
	at(first)->first = false;
}

void percpu__region_put_back(uint32_t i)
{
	uint32_t first = i, count = 1;

	at(i)->free = true;
	at(i)->held = false;
	if (percpu__bits_any(at(i)->backed))
		list_idle(i);
	if (i > 0 && at(i - 1)->free) {
		first = i - at(i - 1)->run;
		count += at(i - 1)->run;
		remove_run(first);
	}
	if (i + 1 < percpu__regions.top && at(i + 1)->free) {
		count += at(i + 1)->run;
		remove_run(i + 1);
	}
	add_run(first, count);
}

/* The first of the run that a free region is in; NO_REGION if that is far away. */
static uint32_t run_with(uint32_t i)
{
	for (unsigned n = 0; n < SEARCH * 2; n++) {
		if (at(i - n)->first)
			return i - n;
	}
	return NO_REGION;
}

/* Regions @from to @from + @count of the run that begins with @first. */
static void take_from_run(uint32_t first, uint32_t from, uint32_t count)
{
	uint32_t end = first + at(first)->run;

	remove_run(first);
	add_run(first, from - first);
	add_run(from + count, end - from - count);
	for (uint32_t i = from; i < from + count; i++) {
		at(i)->free = false;
		unlist_idle(i);
	}
}

void percpu__region_take_out(uint32_t i)
{
	uint32_t first = i;

	while (!at(first)->first)
		first--;
	take_from_run(first, i, 1);
}

/* Makes @count regions from `top` on usable: all or none. */
static bool extend(uint32_t count)
{
	struct percpu__regions *r = &percpu__regions;
	uint32_t first = r->top, step = 1U << STEP_LOG;

	if (count > r->most - first)
		return false;
	for (uint32_t i = (first + step - 1) & ~(step - 1); i < first + count; i += step) {
		size_t some = r->most - i < step ? r->most - i : step, page = (size_t)i * REGION_PAGES;
		size_t pages = some * REGION_PAGES, from = (size_t)i * sizeof(*r->all) & ~(size_t)4095;

		if (!percpu__heap_writable((char *)(percpu__heap.distances + page) - HEAP_SKEW,
					   pages * sizeof(*percpu__heap.distances) + HEAP_SKEW) ||
		    !percpu__heap_writable(percpu__heap.numbers + page, pages * sizeof(*percpu__heap.numbers)) ||
		    !percpu__heap_writable((char *)r->all + from, (i + some) * sizeof(*r->all) - from))
			return false;
	}
	if (!percpu__heap_writable(percpu__heap.base + ((size_t)first << REGION_LOG), (size_t)count << REGION_LOG))
		return false;
	for (; count; count--) {
		struct region *new = at(r->top++);

		new->next = new->previous = NO_REGION;
		percpu__heap_stats.metadata +=
			sizeof(*new) + REGION_PAGES * (sizeof(*percpu__heap.distances) + sizeof(*percpu__heap.numbers));
		if (r->top - 1 < SMALL_REGIONS && percpu__malloc_options.huge != PERCPU__WHEN_ALWAYS)
			percpu__region_advise(r->top - 1, ADVICE_SMALL);
		percpu__region_put_back(r->top - 1);
	}
	return true;
}

/* Regions that were free have a new user. */
static void prepare(uint32_t first, uint32_t count, unsigned node, bool small)
{
	for (uint32_t i = first; i < first + count; i++) {
		struct region *r = at(i);

		if (r->node != node && percpu__bits_any(r->backed))
			percpu__release_region(i);
		r->node = (uint8_t)node;
		if (percpu__bits_any(r->backed))
			continue;
		if (percpu__region_wants_huge(small))
			percpu__region_advise(i, ADVICE_HUGE);
		else if (r->advice == ADVICE_HUGE)
			percpu__region_advise(i, ADVICE_SMALL);
	}
}

/* The shortest run that is long enough, of those that are looked at. NO_REGION: none. */
static uint32_t find_run(uint32_t count)
{
	uint32_t best = NO_REGION;
	unsigned bin = bin_of(count), n = 0;

	for (uint32_t i = free_runs[bin]; i != NO_REGION && n < SEARCH; i = at(i)->next, n++)
		if (at(i)->run >= count && (best == NO_REGION || at(i)->run < at(best)->run))
			best = i;
	while (best == NO_REGION && ++bin < BINS)
		best = free_runs[bin];
	return best;
}

/* A run that has memory of the node, if it is one of the first few. */
static uint32_t find_idle(uint32_t count, unsigned node, uint32_t *from)
{
	unsigned n = 0;

	for (uint32_t i = node_at(node)->idle_first; i != NO_REGION && n < SEARCH; i = at(i)->idle_next, n++) {
		uint32_t first = count == 1 || at(i)->first ? i : NO_REGION;

		if (count > 1 && (first == NO_REGION || at(first)->run < count))
			continue;
		first = run_with(i);
		if (first == NO_REGION)
			continue;
		*from = i;
		return first;
	}
	return NO_REGION;
}

/* Regions that were held for blocks to grow into are for everybody. Returns whether there was any. */
static bool let_go(void)
{
	bool any = false;

	for (uint32_t i = 0; i < percpu__regions.top; i++)
		if (at(i)->held) {
			at(i)->held = false;
			percpu__region_relist(i);
			any = true;
		}
	return any;
}

/* @count regions that follow each other, of which all pages are free; in no list. NO_REGION: no memory. */
static uint32_t take_regions(uint32_t count, unsigned node, bool small)
{
	struct percpu__regions *r = &percpu__regions;
	uint32_t from = 0, first = find_idle(count, node, &from), last;

	if (first == NO_REGION)
		first = from = find_run(count);
	if (first == NO_REGION) {
		last = r->top && at(r->top - 1)->free ? at(r->top - 1)->run : 0;
		if (count > r->most - r->top + last || !extend(count - last))
			return NO_REGION;
		first = from = r->top - at(r->top - 1)->run;
	}
	take_from_run(first, from, count);
	prepare(from, count, node, small);
	return from;
}

/* Runs of pages. */

/* What is written in pages @from to @to of the region, of which @page is the first. */
static void note_dirty(struct pages *taken, const struct region *r, uint64_t page, unsigned from, unsigned to)
{
	unsigned last = percpu__bits_end(r->written, from, to);

	if (last == from)
		return;
	if (taken->dirty == taken->dirty_end)
		taken->dirty = page - taken->first + percpu__bits_next(r->written, from, true) - from;
	taken->dirty_end = page - taken->first + last - from;
}

static struct pages mark_used(uint64_t page, uint64_t pages)
{
	struct pages taken = { .first = page };

	percpu__heap_stats.used += pages << PAGE_LOG;
	if (percpu__heap_stats.used > percpu__heap_stats.most_used)
		percpu__heap_stats.most_used = percpu__heap_stats.used;
	while (pages) {
		uint32_t i = (uint32_t)(page / REGION_PAGES);
		struct region *r = at(i);
		unsigned from = (unsigned)(page % REGION_PAGES);
		unsigned to = pages < REGION_PAGES - from ? from + (unsigned)pages : REGION_PAGES;
		unsigned fresh = to - from - percpu__bits_count(r->backed, from, to);

		/* The first touch brings memory for all of it. */
		if (fresh && r->advice == ADVICE_HUGE && !percpu__bits_any(r->backed)) {
			fresh = REGION_PAGES;
			percpu__bits_set(r->backed, 0, REGION_PAGES);
			taken.huge |= page == taken.first;
		}
		if (fresh)
			percpu__release_fresh(r->released_at, (uint64_t)fresh << PAGE_LOG);
		percpu__heap_stats.free += (uint64_t)fresh << PAGE_LOG;
		percpu__heap_stats.free -= (uint64_t)(to - from) << PAGE_LOG;
		taken.fresh += fresh < to - from ? fresh : to - from;
		note_dirty(&taken, r, page, from, to);
		percpu__bits_set(r->used, from, to);
		percpu__bits_set(r->backed, from, to);
		percpu__bits_set(r->written, from, to);
		r->count = (uint16_t)(r->count + to - from);
		percpu__region_relist(i);
		page += to - from;
		pages -= to - from;
	}
	return taken;
}

void percpu__pages_dropped(uint64_t page, uint64_t pages)
{
	while (pages) {
		struct region *r = at((uint32_t)(page / REGION_PAGES));
		unsigned from = (unsigned)(page % REGION_PAGES);
		unsigned to = pages < REGION_PAGES - from ? from + (unsigned)pages : REGION_PAGES;

		percpu__bits_clear(r->backed, from, to);
		percpu__bits_clear(r->written, from, to);
		page += to - from;
		pages -= to - from;
	}
}

void percpu__pages_free(uint64_t page, uint64_t pages)
{
	percpu__heap_stats.used -= pages << PAGE_LOG;
	while (pages) {
		uint32_t i = (uint32_t)(page / REGION_PAGES);
		unsigned from = (unsigned)(page % REGION_PAGES);
		unsigned to = pages < REGION_PAGES - from ? from + (unsigned)pages : REGION_PAGES;

		percpu__heap_stats.free += (uint64_t)percpu__bits_count(at(i)->backed, from, to) << PAGE_LOG;
		percpu__bits_clear(at(i)->used, from, to);
		at(i)->count = (uint16_t)(at(i)->count - (to - from));
		if (at(i)->count) {
			percpu__region_relist(i);
		} else {
			unlist(i);
			percpu__region_put_back(i);
		}
		page += to - from;
		pages -= to - from;
	}
}

static uint32_t fitting(const struct node *node, unsigned pages)
{
	unsigned word = pages / 64;
	uint64_t bits = node->listed[word] & (~UINT64_C(0) << (pages % 64));

	while (!bits && ++word <= REGION_PAGES / 64)
		bits = node->listed[word];
	return bits ? node->by_longest[word * 64 + (unsigned)__builtin_ctzl(bits)] : NO_REGION;
}

struct pages percpu__pages_take(uint64_t pages, unsigned node, bool small)
{
	uint64_t count = (pages + REGION_PAGES - 1) / REGION_PAGES;
	uint32_t i = NO_REGION;

	if (count > percpu__regions.most)
		return no_pages;
	if (pages < REGION_PAGES)
		i = fitting(node_at(node), (unsigned)pages);
	if (i == NO_REGION)
		i = take_regions((uint32_t)count, node, small);
	if (i == NO_REGION && let_go())
		return percpu__pages_take(pages, node, small);
	for (unsigned n = 0; i == NO_REGION && pages < REGION_PAGES && n < percpu__regions.nodes; n++)
		i = fitting(node_at(n), (unsigned)pages);
	if (i == NO_REGION)
		return no_pages;
	return mark_used((uint64_t)i * REGION_PAGES + (pages < REGION_PAGES ? find_free(at(i), (unsigned)pages) : 0),
			 pages);
}

/* How many free regions from @i on have memory, up to @most. */
static uint32_t count_idle(uint32_t i, uint32_t most)
{
	uint32_t count = 0;

	while (count < most && i + count < percpu__regions.top && at(i + count)->idle)
		count++;
	return count;
}

/*
 * Where a block has grown before there is memory: the start of a row of such regions. Else far behind the last one, so
 * that this one is not in the other's way either.
 */
struct pages percpu__pages_take_roomy(uint64_t pages, unsigned node)
{
	struct percpu__regions *r = &percpu__regions;
	uint32_t count, room, from = 0, best = NO_REGION, score = 0, last;
	unsigned n = 0;

	if (pages > (uint64_t)r->most * REGION_PAGES / 4)
		return no_pages;
	count = (uint32_t)((pages + REGION_PAGES - 1) / REGION_PAGES);
	room = count * 2 > 3 ? count * 2 : 3;
	for (uint32_t i = node_at(node)->idle_first; i != NO_REGION && n < SEARCH; i = at(i)->idle_next, n++) {
		uint32_t first = run_with(i), row;

		if (first == NO_REGION || (i && (at(i - 1)->idle || at(i - 1)->held)))
			continue;
		if (first + at(first)->run < i + room && first + at(first)->run < r->top)
			continue;
		row = count_idle(i, room);
		if (row > score) {
			score = row;
			best = first;
			from = i;
		}
	}
	if (best == NO_REGION) {
		last = r->top && at(r->top - 1)->free ? at(r->top - 1)->run : 0;
		from = r->top - last;
		if (from && at(from - 1)->held)
			from += ROOM;
		if (((uint64_t)from + room) * REGION > SPREAD_FREE * REGION + 4 * percpu__heap_stats.used)
			return no_pages;
	}
	if (from + count > r->top && !extend(from + count - r->top))
		return no_pages;
	best = run_with(from);
	if (best == NO_REGION || best + at(best)->run < from + count)
		return no_pages;
	take_from_run(best, from, count);
	prepare(from, count, node, false);
	return mark_used((uint64_t)from * REGION_PAGES, pages);
}

bool percpu__pages_extend(uint64_t page, uint64_t more, unsigned node)
{
	struct percpu__regions *r = &percpu__regions;
	uint32_t i = (uint32_t)(page / REGION_PAGES), count = 0;
	unsigned from = (unsigned)(page % REGION_PAGES);
	uint64_t here = !from ? 0 : more < REGION_PAGES - from ? more : REGION_PAGES - from;

	if (from && percpu__bits_next(at(i)->used, from, true) < from + here)
		return false;
	if (here < more) {
		i += from != 0;
		if ((more - here + REGION_PAGES - 1) / REGION_PAGES > r->most - i)
			return false;
		count = (uint32_t)((more - here + REGION_PAGES - 1) / REGION_PAGES);
		if (i < r->top && !at(i)->free)
			return false;
		/* Behind what is in use: the first of its run. */
		if ((i == r->top || i + at(i)->run == r->top) && i + count > r->top && !extend(i + count - r->top))
			return false;
		if (at(i)->run < count)
			return false;
		take_from_run(i, i, count);
		prepare(i, count, node, false);
	}
	mark_used(page, more);
	return true;
}

void percpu__pages_hold(uint64_t page, bool hold)
{
	uint32_t i = (uint32_t)(page / REGION_PAGES);

	if (at(i)->held == hold)
		return;
	at(i)->held = hold;
	percpu__region_relist(i);
}
