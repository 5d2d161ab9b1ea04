/* SPDX-License-Identifier: MIT */
/*
 * malloc and its kin.
 */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <percpu/ops.h>

#include "base/sys.h"
#include "malloc/fast.h"

#define API     __attribute__((visibility("default")))
/* Three lines of instructions instead of two are a tenth slower, on Zen 3. */
#define HOT     __attribute__((aligned(64)))
#define OS_PAGE ((size_t)4096)

static void *fail(void)
{
	errno = ENOMEM;
	return NULL;
}

/* The class of an object; 0 for a large block and for what is neither. */
static inline unsigned class_at(const void *p)
{
	return PERCPU__LIKELY(percpu__heap_has(p)) ? percpu__heap.distances[percpu__page_of(p)] >> DISTANCE_LOG : 0;
}

static size_t room_of(void *p)
{
	unsigned class = class_at(p);

	return class ? percpu__class_size(class) : percpu__room_other(p);
}

/* What everybody calls. */

API HOT void *malloc(size_t size)
{
	return percpu__fast_malloc(&percpu__malloc_ready, size);
}

API HOT void free(void *p)
{
	percpu__fast_free(&percpu__malloc_ready, p);
}

API void free_sized(void *p, size_t size)
{
	(void)size;
	free(p);
}

API void free_aligned_sized(void *p, size_t align, size_t size)
{
	(void)align, (void)size;
	free(p);
}

API void cfree(void *p)
{
	free(p);
}

API void *calloc(size_t n, size_t size)
{
	size_t bytes;
	void *p;

	if (__builtin_mul_overflow(n, size, &bytes))
		return fail();
	if (PERCPU__LIKELY(bytes <= SMALL_MOST)) {
		p = malloc(bytes);
		return p ? memset(p, 0, bytes) : NULL;
	}
	return percpu__large_new(bytes, 1, true);
}

/* @align: a power of two. */
static void *aligned(size_t align, size_t size)
{
	if (align <= QUANTUM)
		return malloc(size);
	if (align <= PAGE && size <= SMALL_MOST) {
		/* Objects of a class lie at multiples of its size, from the start of a page on. */
		for (unsigned class = percpu__class_for(size > align ? size : align); class <= CLASSES; class ++)
			if (percpu__class_size(class) % align == 0)
				return percpu__fast_take(&percpu__malloc_ready, size, class << DISTANCE_LOG);
	}
	if (size > PTRDIFF_MAX - align)
		return fail();
	return percpu__large_new(size, align, false);
}

API void *memalign(size_t align, size_t size)
{
	/* As the C library does: the next power of two. */
	if (align > SIZE_MAX / 2 + 1) {
		errno = EINVAL;
		return NULL;
	}
	while (align & (align - 1))
		align += align & -align;
	return aligned(align, size);
}

API void *aligned_alloc(size_t align, size_t size)
{
	return memalign(align, size);
}

API int posix_memalign(void **out, size_t align, size_t size)
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

API void *valloc(size_t size)
{
	return aligned(OS_PAGE, size);
}

API void *pvalloc(size_t size)
{
	if (size > PTRDIFF_MAX - OS_PAGE)
		return fail();
	return aligned(OS_PAGE, (size + OS_PAGE - 1) & ~(OS_PAGE - 1));
}

API size_t malloc_usable_size(void *p)
{
	return room_of(p);
}

API void *realloc(void *p, size_t size)
{
	unsigned class;
	size_t room;
	void *q;

	if (!p)
		return malloc(size);
	if (!size) {
		free(p);
		return NULL;
	}
	class = class_at(p);
	if (!class)
		return percpu__realloc_other(p, size);
	room = percpu__class_size(class);
	if (size <= room && size >= room / 2)
		return p;
	q = malloc(size);
	if (q) {
		memcpy(q, p, room < size ? room : size);
		free(p);
	}
	return q;
}

API void *reallocarray(void *p, size_t n, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes))
		return fail();
	return realloc(p, bytes);
}

/* For who watches. */

API int malloc_trim(size_t pad)
{
	size_t released;

	if (!percpu__heap.bytes)
		return 0;
	percpu__front_drain(true);
	percpu__central_trim();
	percpu__heap_lock();
	released = percpu__heap_release(SIZE_MAX, pad);
	percpu__heap_unlock();
	return released != 0;
}

API struct mallinfo2 mallinfo2(void)
{
	struct mallinfo2 info = { 0 };
	uint64_t cached = 0;

	for (unsigned i = 1; percpu__heap.bytes && i <= CLASSES; i++) {
		struct percpu__class_stats stats;

		percpu__central_stats(i, &stats);
		cached += (stats.free + stats.stock + percpu__front_cached(i)) * percpu__class_size(i);
	}
	info.arena = percpu__heap_stats.used + percpu__heap_stats.free;
	info.fordblks = percpu__heap_stats.free + cached;
	info.uordblks = info.arena - info.fordblks;
	info.keepcost = percpu__heap_stats.free;
	return info;
}

API struct mallinfo mallinfo(void)
{
	struct mallinfo2 wide = mallinfo2();
	struct mallinfo info = { 0 };

	info.arena = (int)wide.arena;
	info.fordblks = (int)wide.fordblks;
	info.uordblks = (int)wide.uordblks;
	info.keepcost = (int)wide.keepcost;
	return info;
}

API int malloc_info(int options, FILE *out)
{
	struct mallinfo2 info = mallinfo2();

	if (options)
		return EINVAL;
	fprintf(out, "<malloc version=\"1\">\n<heap nr=\"0\">\n");
	for (unsigned i = 1; percpu__heap.bytes && i <= CLASSES; i++) {
		struct percpu__class_stats stats;

		percpu__central_stats(i, &stats);
		if (stats.spans)
			fprintf(out, "<size from=\"%zu\" to=\"%zu\" total=\"%zu\" count=\"%zu\"/>\n",
				i > 1 ? percpu__class_size(i - 1) + 1 : (size_t)0, percpu__class_size(i),
				(size_t)stats.objects * percpu__class_size(i), (size_t)stats.objects);
	}
	fprintf(out,
		"<system type=\"current\" size=\"%zu\"/>\n<total type=\"rest\" size=\"%zu\"/>\n</heap>\n</malloc>\n",
		info.arena, info.fordblks);
	return 0;
}

API void malloc_stats(void)
{
	struct mallinfo2 info = mallinfo2();
	char line[200];
	int length = snprintf(line, sizeof(line), "percpu-malloc: in use %zu bytes, free %zu, largest so far %zu\n",
			      info.uordblks, info.fordblks, (size_t)percpu__heap_stats.most_used);

	if (length > 0 && write(STDERR_FILENO, line, (size_t)length) < 0)
		return;
}

/* None of the C library's parameters means anything here. 0 says so. */
API int mallopt(int parameter, int value)
{
	(void)parameter, (void)value;
	return 0;
}
