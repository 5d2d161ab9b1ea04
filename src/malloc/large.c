/* SPDX-License-Identifier: MIT */
/*
 * Large blocks.
 */
#include <errno.h>
#include <string.h>

#include "malloc/front.h"
#include "malloc/guard.h"
#include "malloc/large.h"
#include "malloc/sample.h"

/*
 * A block that must move takes its memory along instead of what is in it from the first size on if the new place has less
 * memory than the old one, and from the second on always. (A fault costs more than to copy a page, but memory that moves leaves
 * none behind, and gives the kernel a mapping more to keep.)
 */
#define MOVE_LEAST  ((size_t)1 << 20)
#define MOVE_ALWAYS ((size_t)64 << 20)
/* What shrinks to less becomes a small object. */
#define LARGE_LEAST (SMALL_MOST / 4)

static size_t pages_for(size_t size)
{
	return size ? (size + PAGE - 1) >> PAGE_LOG : 1;
}

static void *fail(void)
{
	errno = ENOMEM;
	return NULL;
}

static void set_size(struct percpu__span *span, size_t size)
{
	if (span->sample)
		percpu__sample_freed(span);
	span->size = size;
	if (percpu__malloc_watched & PERCPU__WATCH_SAMPLE)
		percpu__sample_large(span);
}

static void free_span(struct percpu__span *span)
{
	if (span->sample)
		percpu__sample_freed(span);
	percpu__span_free(span);
}

/* @fresh: if not NULL, the block will probably grow. */
static struct percpu__span *new_span(size_t size, size_t align, size_t *fresh)
{
	size_t pages = pages_for(size);

	if (fresh)
		return percpu__span_new_roomy(pages, percpu__heap_node(), fresh);
	return percpu__span_new(pages, align > PAGE ? align >> PAGE_LOG : 1, 0, percpu__heap_node());
}

static struct percpu__span *new_block(size_t size, size_t align, size_t *fresh)
{
	struct percpu__span *span;

	if (size > PTRDIFF_MAX || align > PTRDIFF_MAX || !percpu__malloc_start())
		return NULL;
	span = new_span(size, align, fresh);
	if (!span && percpu__heap.bytes) {
		/* Before giving up. */
		percpu__malloc_gather();
		span = new_span(size, align, fresh);
	}
	if (span)
		set_size(span, size);
	return span;
}

void *percpu__large_new(size_t size, size_t align, bool zero)
{
	struct percpu__span *span = new_block(size, align, NULL);
	char *p;

	if (!span)
		return fail();
	p = percpu__page_address(span->page);
	zero |= (percpu__malloc_watched & PERCPU__WATCH_ZERO) != 0;
	if (zero && span->dirty < span->pages && span->dirty < span->dirty_end) {
		size_t end = span->dirty_end < span->pages ? span->dirty_end : span->pages;

		memset(p + (span->dirty << PAGE_LOG), 0, (end - span->dirty) << PAGE_LOG);
	}
	return p;
}

static struct percpu__span *span_at(void *p, const char *what)
{
	struct percpu__span *span = percpu__span_of(p);

	if (!span || span->class || percpu__page_address(span->page) != p)
		percpu__malloc_die(what, p);
	return span;
}

void percpu__free_other(void *p)
{
	int error = errno;

	if (percpu__guard_has(p))
		percpu__guard_free(p);
	else if (p)
		free_span(span_at(p, "not a block of the heap is freed"));
	errno = error;
}

size_t percpu__room_other(void *p)
{
	if (percpu__guard_has(p))
		return percpu__guard_size(p);
	return p ? span_at(p, "not a block of the heap is used")->pages << PAGE_LOG : 0;
}

void *percpu__large_new_roomy(size_t size)
{
	size_t fresh;
	struct percpu__span *span = new_block(size, 1, &fresh);

	return span ? percpu__page_address(span->page) : fail();
}

static void *move(struct percpu__span *span, size_t size)
{
	char *old = percpu__page_address(span->page), *new;
	size_t fresh, bytes = span->pages << PAGE_LOG, done = 0;
	struct percpu__span *larger = new_block(size, 1, &fresh);

	if (!larger)
		return fail();
	new = percpu__page_address(larger->page);
	if (bytes >= MOVE_ALWAYS || (bytes >= MOVE_LEAST && fresh > span->pages / 2))
		done = percpu__span_move(larger, span, span->pages) << PAGE_LOG;
	memcpy(new + done, old + done, bytes - done);
	free_span(span);
	return new;
}

/* To a place that is not guarded, or is anew. */
static void *move_guarded(void *p, size_t size)
{
	size_t room = percpu__guard_size(p);
	void *q = size <= SMALL_MOST ? percpu__take_slow(size, percpu__class_of(size), QUANTUM)
				     : percpu__large_new(size, QUANTUM, false);

	if (q) {
		memcpy(q, p, room < size ? room : size);
		percpu__guard_free(p);
	}
	return q;
}

void *percpu__realloc_other(void *p, size_t size)
{
	struct percpu__span *span;
	size_t pages = pages_for(size);
	void *q;

	if (percpu__guard_has(p))
		return move_guarded(p, size);
	span = span_at(p, "not a block of the heap is reallocated");

	if (size < LARGE_LEAST && pages < span->pages) {
		q = percpu__take_slow(size, percpu__class_of(size), QUANTUM);
		if (!q)
			return NULL;
		memcpy(q, p, size);
		free_span(span);
		return q;
	}
	if (pages < span->pages)
		percpu__span_cut(span, pages);
	else if (pages > span->pages && (size > PTRDIFF_MAX || !percpu__span_grow(span, pages)))
		return move(span, size);
	set_size(span, size);
	return p;
}
