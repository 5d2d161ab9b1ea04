/* SPDX-License-Identifier: MIT */
/*
 * Giving memory back to the kernel.
 *
 * There is no thread of ours that could do it later, and after the last free nobody may come by again. So it is done at once:
 * what is free above percpu__heap_keep and an eighth of what is in use goes, a bounded amount in each call. But programs come
 * back for what they had. So memory that is wanted again within a second raises what is kept by as much, and each second
 * halves that: who needs the same again and again keeps it, and who rests is small. What a program has only just taken for the
 * first time it may have taken for a short while: so does that, and a time halves it in which it neither grew nor, just having
 * grown, shrank: half as long as it took to grow, from a tenth of a second to one.
 *
 * Whole regions go first. Of those that are partly in use only what is mostly free does, since it costs them their huge page.
 *
 * The kernel does its part without the heap's lock. Meanwhile the pages belong to nobody, and are noted here for fork(): the
 * child has none of the threads that were about to finish this.
 */
#include <string.h>
#include <sys/mman.h>

#include "base/sys.h"
#include "malloc/decay.h"
#include "malloc/region.h"

#define REGRET_MS 1000U
#define YOUNG_MS  100U
#define OLD_MS    1000U
#define GROWTH    8U /* less than this part is none */
/* At most so much at once, also if more was freed at once. */
#define AT_ONCE    ((uint64_t)64 << 20)
#define AT_WORK    4U
#define PART_LEAST 16U /* free pages with memory, or it is not worth a call */
#define LOOK_AT    64U

/* So much that only time will make too much. */
#define WORTH_A_THREAD ((uint64_t)4 << 20)

#define KEEP_USUAL ((uint64_t)8 << 20)

uint64_t percpu__heap_keep = KEEP_USUAL;

static struct work {
	bool busy, whole;
	uint32_t region;
	uint64_t pages[REGION_WORDS];
} works[AT_WORK];

/* Bytes that halve as time goes by. */
static struct fading {
	uint64_t bytes;
	uint32_t at; /* when they were halved last */
} regret, young;
static uint32_t pace = YOUNG_MS; /* of what is young: half as long as it took to grow */
static uint32_t refused_at;      /* when the kernel refused: memory may be locked */
static uint32_t hand;            /* of who looks for regions that are partly free */

static uint64_t fade(struct fading *f, uint32_t half_life, uint32_t now)
{
	if (f->bytes && now - f->at >= 20 * half_life)
		f->bytes = 0;
	for (; f->bytes && now - f->at >= half_life; f->at += half_life)
		f->bytes = f->bytes < REGION ? 0 : f->bytes / 2;
	return f->bytes;
}

static void add(struct fading *f, uint64_t bytes, uint32_t now)
{
	f->bytes += bytes;
	if (f->bytes > percpu__heap_stats.most_used)
		f->bytes = percpu__heap_stats.most_used;
	f->at = now;
}

void percpu__release_fresh(uint32_t released_at, uint64_t bytes)
{
	static uint64_t growth;
	uint32_t now = percpu__heap_ms();

	growth += bytes;
	if (growth >= young.bytes / GROWTH) {
		uint32_t half = now - young.at < OLD_MS ? (now - young.at) * GROWTH / 2 : YOUNG_MS;

		pace = half < YOUNG_MS ? YOUNG_MS : half < OLD_MS ? half : OLD_MS;
		fade(&young, pace, now);
		add(&young, growth, now);
		growth = 0;
	}
	if (released_at && now - released_at <= REGRET_MS)
		add(&regret, bytes, now);
}

/* What is kept in any case. */
static uint64_t floor_now(void)
{
	return __atomic_load_n(&percpu__heap_keep, __ATOMIC_RELAXED) + percpu__heap_stats.used / 8;
}

static uint64_t keep(uint32_t now)
{
	uint64_t more = fade(&regret, REGRET_MS, now), most = percpu__heap_stats.most_used - percpu__heap_stats.used;

	/* Who has said how much means it. */
	if (percpu__heap_keep == KEEP_USUAL)
		more += fade(&young, pace, now);
	/* Never was there more in use than that. */
	return floor_now() + (more < most ? more : most);
}

static unsigned count_of(const uint64_t *bits)
{
	return percpu__bits_count(bits, 0, REGION_PAGES);
}

/* Returns false if the kernel refuses. */
static bool give_back(uint32_t i, const uint64_t *pages)
{
	for (unsigned from = percpu__bits_next(pages, 0, true); from < REGION_PAGES;) {
		unsigned to = percpu__bits_next(pages, from, false);

		if (percpu__sys4(SYS_madvise, (long)percpu__page_address((uint64_t)i * REGION_PAGES + from),
				 (long)((size_t)(to - from) << PAGE_LOG), MADV_DONTNEED, 0))
			return false;
		from = percpu__bits_next(pages, to, true);
	}
	return true;
}

/* @pages: not those of the region itself. */
static void forget(struct region *r, const uint64_t *pages)
{
	for (unsigned w = 0; w < REGION_WORDS; w++) {
		r->backed[w] &= ~pages[w];
		r->written[w] &= ~pages[w];
	}
	r->released_at = percpu__heap_ms();
	percpu__heap_stats.released += (uint64_t)count_of(pages) << PAGE_LOG;
}

void percpu__release_region(uint32_t i)
{
	struct region *r = &percpu__regions.all[i];
	uint64_t pages[REGION_WORDS];

	memcpy(pages, r->backed, sizeof(pages));
	if (!give_back(i, pages))
		return;
	percpu__heap_stats.free -= (uint64_t)count_of(pages) << PAGE_LOG;
	forget(r, pages);
}

/* Nobody else has them. */
static void begin(struct work *work, uint32_t i, bool whole)
{
	struct region *r = &percpu__regions.all[i];

	work->region = i;
	work->whole = whole;
	for (unsigned w = 0; w < REGION_WORDS; w++)
		work->pages[w] = r->backed[w] & ~r->used[w];
	percpu__heap_stats.free -= (uint64_t)count_of(work->pages) << PAGE_LOG;
	work->busy = true;
	if (whole) {
		percpu__region_take_out(i);
		return;
	}
	for (unsigned w = 0; w < REGION_WORDS; w++)
		r->used[w] |= work->pages[w];
	r->count = (uint16_t)(r->count + count_of(work->pages));
	percpu__region_relist(i);
}

static void end(struct work *work, bool done)
{
	struct region *r = &percpu__regions.all[work->region];

	work->busy = false;
	if (done)
		forget(r, work->pages);
	else
		percpu__heap_stats.free += (uint64_t)count_of(work->pages) << PAGE_LOG;
	if (!work->whole) {
		for (unsigned w = 0; w < REGION_WORDS; w++)
			r->used[w] &= ~work->pages[w];
		r->count = (uint16_t)(r->count - count_of(work->pages));
		percpu__region_relist(work->region);
	}
	if (!r->count)
		percpu__region_put_back(work->region);
}

/* Regions that are half free or more; huge pages are broken only if they are nearly empty. */
static uint32_t partly_free(bool any)
{
	struct percpu__regions *all = &percpu__regions;

	for (unsigned n = 0; n < (any ? all->top : LOOK_AT); n++) {
		struct region *r = &all->all[hand = hand + 1 < all->top ? hand + 1 : 0];
		unsigned idle = 0;

		if (!r->count || (!any && r->count > REGION_PAGES / 2))
			continue;
		for (unsigned w = 0; w < REGION_WORDS; w++)
			idle += (unsigned)__builtin_popcountl(r->backed[w] & ~r->used[w]);
		if (idle >= (any ? 1 : PART_LEAST))
			return hand;
	}
	return NO_REGION;
}

/* One region, without the lock while the kernel is at work. Returns how many bytes; 0: there is nothing to give. */
static uint64_t release_one(bool part, bool any)
{
	uint32_t i = NO_REGION;
	struct work *work = NULL;
	bool whole, done;

	for (unsigned n = 0; n < AT_WORK && !work; n++)
		work = works[n].busy ? NULL : &works[n];
	for (unsigned n = 0; work && n < percpu__regions.nodes && i == NO_REGION; n++)
		i = percpu__region_idle(n);
	whole = i != NO_REGION;
	if (!whole && work && part)
		i = partly_free(any);
	if (i == NO_REGION)
		return 0;
	begin(work, i, whole);
	/* Else the kernel would make it huge again. */
	if (!whole && percpu__regions.all[i].advice == ADVICE_HUGE)
		percpu__region_advise(i, ADVICE_SMALL);
	percpu__heap_unlock();
	done = give_back(i, work->pages);
	percpu__heap_lock();
	end(work, done);
	if (!done)
		refused_at = percpu__heap_ms();
	return done ? (uint64_t)count_of(work->pages) << PAGE_LOG : 0;
}

/* What has just grown shrinks: it may grow again. */
static void note_shrinking(uint64_t freed, uint32_t now)
{
	static uint64_t shrunk;

	if (!young.bytes || now - young.at >= pace)
		return;
	shrunk += freed;
	if (shrunk >= young.bytes / GROWTH) {
		young.at = now;
		shrunk = 0;
	}
}

/* False: there is nothing to give. */
static bool release_some(uint64_t budget, uint32_t now)
{
	uint64_t some;

	if (refused_at && now - refused_at < REGRET_MS)
		return false;
	for (; budget && percpu__heap_stats.free >= keep(now) + REGION; budget -= some < budget ? some : budget) {
		some = release_one(true, false);
		if (!some)
			return false;
	}
	return true;
}

void percpu__release_excess(uint64_t freed)
{
	uint32_t now;

	if (percpu__heap_stats.free < floor_now() + REGION)
		return;
	now = percpu__heap_ms();
	note_shrinking(freed, now);
	if (release_some(freed < REGION    ? REGION
			 : freed < AT_ONCE ? freed
					   : AT_ONCE,
			 now) &&
	    percpu__heap_stats.free >= floor_now() + WORTH_A_THREAD)
		percpu__decay_start();
}

bool percpu__release_decayed(void)
{
	return release_some(AT_ONCE, percpu__heap_ms()) && percpu__heap_stats.free >= floor_now() + REGION;
}

/* Whole regions, then what is left of others. */
size_t percpu__heap_release(size_t most, size_t least)
{
	uint64_t bytes = 0, some;

	while (bytes < most && percpu__heap_stats.free > least) {
		some = release_one(true, true);
		if (!some)
			break;
		bytes += some;
	}
	return bytes;
}

void percpu__release_after_fork(void)
{
	percpu__decay_after_fork();
	for (unsigned n = 0; n < AT_WORK; n++)
		if (works[n].busy)
			end(&works[n], false);
}
