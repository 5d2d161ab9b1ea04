/* SPDX-License-Identifier: MIT */
/*
 * The allocator in the areas: bitmaps over granules of 8 bytes, kept outside the area so that copies hold only data.
 *
 * `used` has a bit for each granule that belongs to an object, `first` one for the granule where an object starts; an
 * object ends where the next one starts or the first free granule lies. Granules at or above `fresh` were never given
 * away and are zero; below, an allocation sets to zero what is not (reading a page that nobody wrote costs no memory).
 * The header of the copies is the object that never goes away. Everything here is guarded by the cold lock.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "area/area.h"
#include "base/lock.h"
#include "rseq/thread.h"

#define GRANULE       8U
#define GRANULES      ((uint32_t)(PERCPU_STRIDE / GRANULE))
#define MAP_WORDS     (GRANULES / 64)
#define PAGE          4096U
#define PAGE_GRANULES (PAGE / GRANULE)
#define ALIGN_MAX     65536U

#define HEADER_GRANULES ((uint32_t)(sizeof(struct percpu__header) / GRANULE))

struct area {
	struct area *next; /* oldest first */
	char *base;
	uint32_t hint; /* no free granule lies below */
	uint32_t fresh;
	uint32_t free;
	uint32_t objects;
	uint64_t used[MAP_WORDS];
	uint64_t first[MAP_WORDS];
};

static struct area *areas;

void percpu__cold_lock(uint64_t *saved)
{
	percpu__block_signals(saved);
	if (__atomic_load_n(&percpu__forker, __ATOMIC_RELAXED) != (uintptr_t)&percpu__private)
		percpu__lock_word(&percpu__cold_word);
}

void percpu__cold_unlock(const uint64_t *saved)
{
	if (__atomic_load_n(&percpu__forker, __ATOMIC_RELAXED) != (uintptr_t)&percpu__private)
		percpu__unlock_word(&percpu__cold_word);
	percpu__restore_signals(saved);
}

static bool bit(const uint64_t *map, uint32_t at)
{
	return map[at / 64] >> (at % 64) & 1;
}

/* First position from `at` on whose bit is `value`; GRANULES if there is none. */
static uint32_t next_bit(const uint64_t *map, uint32_t at, bool value)
{
	uint64_t flip = value ? 0 : ~UINT64_C(0), word;

	if (at >= GRANULES)
		return GRANULES;
	word = (map[at / 64] ^ flip) & (~UINT64_C(0) << (at % 64));
	for (at &= ~63U; !word; word = map[at / 64] ^ flip) {
		at += 64;
		if (at == GRANULES)
			return GRANULES;
	}
	return at + (uint32_t)__builtin_ctzll(word);
}

static void set_bits(uint64_t *map, uint32_t at, uint32_t count, bool value)
{
	while (count) {
		uint32_t here = 64 - at % 64;
		uint64_t mask;

		here = here < count ? here : count;
		mask = (here == 64 ? ~UINT64_C(0) : (UINT64_C(1) << here) - 1) << (at % 64);
		map[at / 64] = value ? map[at / 64] | mask : map[at / 64] & ~mask;
		at += here;
		count -= here;
	}
}

static void take(struct area *area, uint32_t at, uint32_t count)
{
	set_bits(area->used, at, count, true);
	set_bits(area->first, at, 1, true);
	area->free -= count;
	area->objects++;
}

static struct area *add_area(void)
{
	long error, got = percpu__sys6(SYS_mmap, 0, sizeof(struct area), PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct area *area, **end;

	if (got < 0 && got > -4096)
		return NULL;
	area = (struct area *)got;
	area->base = percpu__reserve(-1, &error);
	if (!area->base) {
		percpu__sys4(SYS_munmap, got, sizeof *area, 0, 0);
		return NULL;
	}
	area->free = GRANULES;
	take(area, 0, HEADER_GRANULES);
	area->objects = 0;
	area->hint = area->fresh = HEADER_GRANULES;
	for (end = &areas; *end; end = &(*end)->next)
		;
	*end = area;
	return area;
}

/* Where `count` free granules begin at a multiple of `align`; GRANULES if nowhere. */
static uint32_t find_room(const struct area *area, uint32_t count, uint32_t align)
{
	uint32_t at = area->hint;

	for (;;) {
		uint32_t end;

		at = next_bit(area->used, at, false);
		at = (at + align - 1) & ~(align - 1);
		if (at >= GRANULES || GRANULES - at < count)
			return GRANULES;
		end = next_bit(area->used, at, true);
		if (end - at >= count && end > at)
			return at;
		at = end > at ? end : at + 1;
	}
}

static void make_zero(const struct area *area, uint32_t at, uint32_t count)
{
	uint32_t stale = at >= area->fresh ? 0 : (area->fresh - at < count ? area->fresh - at : count);

	if (!stale)
		return;
	for (unsigned index = 0; index <= percpu__remainder; index++) {
		volatile uint64_t *word = (uint64_t *)(void *)percpu_ptr(area->base + (size_t)at * GRANULE, index);

		for (uint32_t i = 0; i < stale; i++)
			if (word[i])
				word[i] = 0;
	}
}

void *percpu_alloc(size_t size, size_t align)
{
	uint32_t count, units, at = GRANULES;
	struct area *area;
	void *object = NULL;
	uint64_t saved;

	if (size == 0 || size > PERCPU_ALLOC_MAX || align == 0 || align > ALIGN_MAX || (align & (align - 1)))
		return NULL;
	count = (uint32_t)((size + GRANULE - 1) / GRANULE);
	units = align <= GRANULE ? 1 : (uint32_t)(align / GRANULE);
	/* Not even in an empty area, behind its header. */
	if ((units > HEADER_GRANULES ? units : HEADER_GRANULES) + count > GRANULES)
		return NULL;
	percpu__init();
	percpu__cold_lock(&saved);
	for (area = areas; area; area = area->next) {
		if (area->free < count)
			continue;
		at = find_room(area, count, units);
		if (at < GRANULES)
			break;
	}
	if (!area) {
		area = add_area();
		at = area ? find_room(area, count, units) : GRANULES;
	}
	if (at < GRANULES) {
		make_zero(area, at, count);
		take(area, at, count);
		if (at + count > area->fresh)
			area->fresh = at + count;
		if (at <= area->hint)
			area->hint = next_bit(area->used, at, false);
		object = area->base + (size_t)at * GRANULE;
	}
	percpu__cold_unlock(&saved);
	return object;
}

/* Gives the pages between two granules back to the system, in all copies. They read as zero afterwards. */
static void drop_pages(const struct area *area, uint32_t from, uint32_t to)
{
	from = (from + PAGE_GRANULES - 1) / PAGE_GRANULES * PAGE_GRANULES;
	to = to / PAGE_GRANULES * PAGE_GRANULES;
	if (from >= to)
		return;
	for (unsigned index = 0; index <= percpu__remainder; index++)
		percpu__sys4(SYS_madvise, (long)percpu_ptr(area->base + (size_t)from * GRANULE, index),
			     (long)((size_t)(to - from) * GRANULE), MADV_DONTNEED, 0);
}

/* The free granules around [at, at + count), but no further than the pages that these touch. */
static void give_back(struct area *area, uint32_t at, uint32_t count)
{
	uint32_t from = at / PAGE_GRANULES * PAGE_GRANULES;
	uint32_t to = (at + count + PAGE_GRANULES - 1) / PAGE_GRANULES * PAGE_GRANULES;

	for (uint32_t last = next_bit(area->used, from, true); last < at; last = next_bit(area->used, from, true))
		from = last + 1;
	if (next_bit(area->used, at, true) < to)
		to = next_bit(area->used, at, true);
	drop_pages(area, from, to);
}

/* The allocator's; in a program that is linked statically it may not be there. */
PERCPU_HIDDEN bool percpu__free_if_ours(void *p) __attribute__((weak));

int percpu_free(void *object)
{
	char *base = percpu__base_of(object);
	struct area *area, **link;
	uint32_t at, end, next;
	uint64_t saved;
	int rc = -EINVAL;

	if (!object || (percpu__free_if_ours && percpu__free_if_ours(object)))
		return 0;
	percpu__init();
	at = (uint32_t)((size_t)((char *)object - base) / GRANULE);
	percpu__cold_lock(&saved);
	for (link = &areas; *link && (*link)->base != base; link = &(*link)->next)
		;
	area = *link;
	if (area && (uintptr_t)object % GRANULE == 0 && at >= HEADER_GRANULES && bit(area->used, at) &&
	    bit(area->first, at)) {
		end = next_bit(area->used, at, false);
		next = next_bit(area->first, at + 1, true);
		end = next < end ? next : end;
		set_bits(area->used, at, end - at, false);
		set_bits(area->first, at, 1, false);
		area->free += end - at;
		area->objects--;
		if (at < area->hint)
			area->hint = at;
		if (area->objects == 0 && area != areas) {
			*link = area->next;
			percpu__sys4(SYS_munmap, (long)area->base,
				     (long)((size_t)(percpu__remainder + 1) << PERCPU_STRIDE_SHIFT), 0, 0);
			percpu__sys4(SYS_munmap, (long)area, sizeof *area, 0, 0);
		} else {
			give_back(area, at, end - at);
		}
		rc = 0;
	}
	percpu__cold_unlock(&saved);
	return rc;
}

int percpu_area_stats(struct percpu_area_stats *out)
{
	uint64_t saved;

	if (!out)
		return -EINVAL;
	memset(out, 0, sizeof *out);
	percpu__cold_lock(&saved);
	for (const struct area *area = areas; area; area = area->next) {
		out->areas++;
		out->objects += area->objects;
		out->bytes_free += (size_t)area->free * GRANULE;
		out->bytes_allocated += (size_t)(GRANULES - area->free) * GRANULE - sizeof(struct percpu__header);
	}
	percpu__cold_unlock(&saved);
	return 0;
}

void percpu__each_area(void (*visit)(char *base, void *arg), void *arg)
{
	for (const struct area *area = areas; area; area = area->next)
		visit(area->base, arg);
}

bool percpu__area_find(const void *address, char **base, unsigned *index)
{
	size_t bytes = (size_t)(percpu__remainder + 1) << PERCPU_STRIDE_SHIFT;

	for (const struct area *area = areas; area; area = area->next) {
		size_t distance = (size_t)((uintptr_t)address - (uintptr_t)area->base);

		if ((uintptr_t)address >= (uintptr_t)area->base && distance < bytes) {
			*base = area->base;
			*index = (unsigned)(distance >> PERCPU_STRIDE_SHIFT);
			return true;
		}
	}
	return false;
}
