/* SPDX-License-Identifier: MIT */
/*
 * Large blocks.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/sys.h"
#include "malloc/front.h"
#include "malloc/large.h"

/* Blocks from here on grow by moving pages instead of bytes. */
#define REMAP_LEAST ((size_t)256 << 10)

static struct percpu__span *new_span(size_t size, size_t align)
{
	size_t pages = (size + PAGE - 1) >> PAGE_LOG;
	struct percpu__span *span;

	if (size > PTRDIFF_MAX || align > PTRDIFF_MAX || !percpu__malloc_start())
		return NULL;
	span = percpu__span_new(pages ? pages : 1, align > PAGE ? align >> PAGE_LOG : 1, 0, 0);
	if (!span && percpu__heap.bytes) {
		percpu__malloc_gather();
		span = percpu__span_new(pages ? pages : 1, align > PAGE ? align >> PAGE_LOG : 1, 0, 0);
	}
	if (span)
		span->size = size;
	return span;
}

void *percpu__large_new(size_t size, size_t align, bool zero)
{
	struct percpu__span *span = new_span(size, align);
	void *p;

	if (!span) {
		errno = ENOMEM;
		return NULL;
	}
	p = percpu__page_address(span->page);
	if (zero && !span->zero)
		memset(p, 0, size);
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

	if (p)
		percpu__span_free(span_at(p, "not a block of the heap is freed"));
	errno = error;
}

size_t percpu__room_other(void *p)
{
	return p ? span_at(p, "not a block of the heap is used")->pages << PAGE_LOG : 0;
}

/* Moves the pages of one large block to another, which is larger. The old addresses stay reserved, and are fresh. */
static bool move_pages(struct percpu__span *to, struct percpu__span *from)
{
	size_t bytes = from->pages << PAGE_LOG;
	long rc =
		percpu__sys6(SYS_mremap, (long)percpu__page_address(from->page), (long)bytes, (long)bytes,
			     MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, (long)percpu__page_address(to->page), 0);

	return rc == (long)percpu__page_address(to->page);
}

void *percpu__realloc_other(void *p, size_t size)
{
	struct percpu__span *span = span_at(p, "not a block of the heap is reallocated"), *larger;
	size_t room = span->pages << PAGE_LOG, pages = (size + PAGE - 1) >> PAGE_LOG;
	void *q;

	if (size <= room && size > SMALL_MOST) {
		if (pages < span->pages)
			percpu__span_cut(span, pages);
		span->size = size;
		return p;
	}
	if (size <= SMALL_MOST) {
		q = percpu__take_slow(size, percpu__class_of(size), QUANTUM);
		if (!q)
			return NULL;
		memcpy(q, p, size < room ? size : room);
		percpu__span_free(span);
		return q;
	}
	/* Somewhat more than asked for: who grows once grows again. */
	larger = size + size / 8 > size ? new_span(size + size / 8, 1) : NULL;
	if (!larger)
		larger = new_span(size, 1);
	if (!larger) {
		errno = ENOMEM;
		return NULL;
	}
	larger->size = size;
	q = percpu__page_address(larger->page);
	if (room < REMAP_LEAST || !move_pages(larger, span))
		memcpy(q, p, room < size ? room : size);
	percpu__span_free(span);
	return q;
}
