/* SPDX-License-Identifier: MIT */
/*
 * The family under names of its own. What the C library calls them is names.c's, and C++'s is cxx.c's; all but the hottest of
 * those come here.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <percpu/malloc.h>

#include "malloc/fast.h"
#include "malloc/guard.h"
#include "malloc/stats.h"

#define OS_PAGE ((size_t)4096)
/* Smaller blocks are not worth a move. */
#define SMALL_ROOM ((size_t)64)

/* Calls from here to here go nowhere else. */
static void *get(size_t size) __attribute__((alias("percpu_malloc"), malloc, alloc_size(1), warn_unused_result));
static void *align_up(size_t align, size_t size)
	__attribute__((alias("percpu_memalign"), malloc, alloc_size(2), alloc_align(1), warn_unused_result));
static void put(void *p) __attribute__((alias("percpu_malloc_free")));
static void *resize(void *p, size_t size) __attribute__((alias("percpu_realloc"), alloc_size(2), warn_unused_result));

static void *fail(int error)
{
	errno = error;
	return NULL;
}

/* 0: it is no small object. */
static inline unsigned class_at(const void *p)
{
	return PERCPU__LIKELY(percpu__heap_has(p)) ? percpu__heap.distances[percpu__page_of(p)] >> DISTANCE_LOG : 0;
}

/* Of an object that is used: where all are checked, it must be one, and not be free. */
static inline void check(unsigned class, const void *p)
{
	if (PERCPU__UNLIKELY(percpu__malloc_watched & PERCPU__WATCH_CHECK) && class)
		percpu__central_check(class, p, "a free object is used");
}

void *percpu_malloc(size_t size)
{
	return percpu__fast_malloc(percpu__hot(), size);
}

void percpu_malloc_free(void *p)
{
	percpu__fast_free(percpu__hot(), p);
}

/* What percpu_free() asks, in a layer that knows nothing of this one: frees what is ours, or says that it is not. */
bool percpu__free_if_ours(void *p);
bool percpu__free_if_ours(void *p)
{
	if (!percpu__heap_has(p) && !percpu__guard_has(p))
		return false;
	put(p);
	return true;
}

/* What the caller says of the size is not needed, and not believed. */
void percpu_free_sized(void *p, size_t size)
{
	(void)size;
	put(p);
}

void percpu_free_aligned_sized(void *p, size_t align, size_t size)
{
	(void)align, (void)size;
	put(p);
}

void *percpu_calloc(size_t n, size_t size)
{
	size_t bytes;
	void *p;

	if (__builtin_mul_overflow(n, size, &bytes))
		return fail(ENOMEM);
	if (PERCPU__UNLIKELY(bytes > SMALL_MOST))
		return percpu__large_new(bytes, QUANTUM, true);
	p = percpu__fast_malloc(percpu__hot(), bytes);
	return p ? memset(p, 0, bytes) : NULL;
}

/* @align: a power of two. */
static void *aligned(size_t align, size_t size)
{
	if (align <= QUANTUM)
		return get(size);
	if (align <= PAGE && size <= SMALL_MOST) {
		/* Objects of a class lie at multiples of its size, from the start of a page on. */
		for (unsigned class = percpu__class_for(size > align ? size : align); class <= CLASSES; class ++)
			if (percpu__class_size(class) % align == 0)
				return percpu__fast_take(percpu__hot(), size, class << DISTANCE_LOG, align);
	}
	if (size > PTRDIFF_MAX - align)
		return fail(ENOMEM);
	return percpu__large_new(size, align, false);
}

/* As the C library's, what is no power of two becomes the next. */
void *percpu_memalign(size_t align, size_t size)
{
	if (align > SIZE_MAX / 2 + 1)
		return fail(EINVAL);
	while (align & (align - 1))
		align += align & -align;
	return aligned(align, size);
}

void *percpu_aligned_alloc(size_t align, size_t size)
{
	return align_up(align, size);
}

int percpu_posix_memalign(void **out, size_t align, size_t size)
{
	int error = errno;
	void *p;

	if (align < sizeof(void *) || align & (align - 1))
		return EINVAL;
	p = aligned(align, size);
	errno = error;
	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

void *percpu_valloc(size_t size)
{
	return aligned(OS_PAGE, size);
}

void *percpu_pvalloc(size_t size)
{
	if (size > PTRDIFF_MAX - OS_PAGE)
		return fail(ENOMEM);
	return aligned(OS_PAGE, (size + OS_PAGE - 1) & ~(OS_PAGE - 1));
}

size_t percpu_malloc_usable_size(void *p)
{
	unsigned class = class_at(p);

	check(class, p);
	return class ? percpu__class_size(class) : percpu__room_other(p);
}

/* Neither is 0. */
static inline void *change_size(void *p, size_t size)
{
	unsigned class;
	size_t room;
	void *q;

	class = class_at(p);
	if (!class)
		return percpu__realloc_other(p, size);
	check(class, p);
	room = percpu__class_size(class);
	/* Who shrinks a block a little keeps it. (Many programs double a buffer as it grows, and cut it in the end.) */
	if (size <= room && (size > room - room / 4 || room <= SMALL_ROOM))
		return p;
	q = size > room && size >= GROW_LEAST ? percpu__large_new_roomy(size) : get(size);
	if (!q && size <= room)
		return p;
	if (q) {
		memcpy(q, p, room < size ? room : size);
		put(p);
	}
	return q;
}

/* What is new of it is zero, too. */
static PERCPU__COLD void *change_size_zero(void *p, size_t size)
{
	size_t before = percpu_malloc_usable_size(p), after;

	p = change_size(p, size);
	after = p ? percpu_malloc_usable_size(p) : 0;
	if (after > before)
		memset((char *)p + before, 0, after - before);
	return p;
}

void *percpu_realloc(void *p, size_t size)
{
	if (!p)
		return get(size);
	if (!size) {
		put(p);
		return NULL;
	}
	if (PERCPU__UNLIKELY(percpu__malloc_watched & PERCPU__WATCH_ZERO))
		return change_size_zero(p, size);
	return change_size(p, size);
}

void *percpu_reallocarray(void *p, size_t n, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes))
		return fail(ENOMEM);
	return resize(p, bytes);
}

int percpu_malloc_trim(size_t keep)
{
	size_t released;

	if (!percpu__heap.bytes)
		return 0;
	percpu__front_drain(true);
	percpu__central_trim();
	percpu__heap_lock();
	released = percpu__heap_release(SIZE_MAX, keep);
	percpu__heap_unlock();
	return released != 0;
}

int percpu_malloc_info(struct percpu_malloc_info *out)
{
	size_t small = 0, in_use = 0, used;

	if (!out)
		return -EINVAL;
	memset(out, 0, sizeof(*out));
	if (!percpu__heap.bytes)
		return 0;
	/* They are asked one after another. */
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct percpu__class_stats stats;
		size_t free;

		percpu__central_stats(i, &stats);
		free = stats.free + stats.stock + percpu__front_cached(i);
		in_use += (stats.objects > free ? stats.objects - free : 0) * percpu__class_size(i);
		small += stats.spans * stats.pages << PAGE_LOG;
	}
	percpu__heap_lock();
	used = percpu__heap_stats.used;
	out->free = percpu__heap_stats.free;
	out->released = percpu__heap_stats.released;
	out->peak = percpu__heap_stats.most_used;
	percpu__heap_unlock();
	out->in_use = in_use + (used > small ? used - small : 0);
	out->cached = used > out->in_use ? used - out->in_use : 0;
	return 0;
}

void percpu_malloc_stats(void)
{
	percpu__stats_short();
}
