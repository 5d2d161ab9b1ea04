/* SPDX-License-Identifier: MIT */
/*
 * The family by the C library's names: who has this object uses no other malloc. Malloc and free are here as a whole, for
 * they are what programs spend their time in.
 */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

#include <percpu/malloc.h>

#include "malloc/fast.h"
#include "malloc/session.h"
#include "malloc/stats.h"

#define API __attribute__((visibility("default")))
/* Three lines of instructions instead of two are a tenth slower, on Zen 3. */
#define HOT __attribute__((aligned(64)))

/* Who has asked for something is told also of a program that allocates nothing. */
__attribute__((constructor)) static void start_if_asked(void)
{
	if (getenv("PERCPU_MALLOC") || getenv(PERCPU__SESSION_ENV))
		percpu__malloc_start();
}

API HOT void *malloc(size_t size)
{
	return percpu__fast_malloc(&percpu__malloc_ready, size);
}

API HOT void free(void *p)
{
	percpu__fast_free(&percpu__malloc_ready, p);
}

/* Not in the C library's headers yet, or not any more. */
API void free_sized(void *p, size_t size);
API void free_aligned_sized(void *p, size_t align, size_t size);
API void cfree(void *p);

API HOT void free_sized(void *p, size_t size)
{
	(void)size;
	percpu__fast_free(&percpu__malloc_ready, p);
}

API HOT void free_aligned_sized(void *p, size_t align, size_t size)
{
	(void)align, (void)size;
	percpu__fast_free(&percpu__malloc_ready, p);
}

API void cfree(void *p)
{
	percpu_malloc_free(p);
}

API void *calloc(size_t n, size_t size)
{
	return percpu_calloc(n, size);
}

API void *realloc(void *p, size_t size)
{
	return percpu_realloc(p, size);
}

API void *reallocarray(void *p, size_t n, size_t size)
{
	return percpu_reallocarray(p, n, size);
}

API void *aligned_alloc(size_t align, size_t size)
{
	return percpu_aligned_alloc(align, size);
}

API void *memalign(size_t align, size_t size)
{
	return percpu_memalign(align, size);
}

API int posix_memalign(void **out, size_t align, size_t size)
{
	return percpu_posix_memalign(out, align, size);
}

API void *valloc(size_t size)
{
	return percpu_valloc(size);
}

API void *pvalloc(size_t size)
{
	return percpu_pvalloc(size);
}

API size_t malloc_usable_size(void *p)
{
	return percpu_malloc_usable_size(p);
}

/* For who watches. */

API int malloc_trim(size_t pad)
{
	return percpu_malloc_trim(pad);
}

API struct mallinfo2 mallinfo2(void)
{
	struct percpu_malloc_info from;
	struct mallinfo2 to = { 0 };

	percpu_malloc_info(&from);
	to.arena = from.in_use + from.cached + from.free;
	to.usmblks = from.peak;
	to.uordblks = from.in_use;
	to.fordblks = from.cached + from.free;
	to.keepcost = from.free;
	return to;
}

/* What is more than an int holds wraps around, as the C library's does. */
API struct mallinfo mallinfo(void)
{
	struct mallinfo2 from = mallinfo2();
	struct mallinfo to = { 0 };

	to.arena = (int)from.arena;
	to.usmblks = (int)from.usmblks;
	to.uordblks = (int)from.uordblks;
	to.fordblks = (int)from.fordblks;
	to.keepcost = (int)from.keepcost;
	return to;
}

static void put_text(void *out, const char *text, size_t n)
{
	fwrite(text, 1, n, out);
}

API int malloc_info(int options, FILE *out)
{
	if (options)
		return EINVAL;
	percpu__stats_xml(put_text, out);
	return 0;
}

API void malloc_stats(void)
{
	percpu_malloc_stats();
}

/* The other parameters are about an allocator of another kind. 0 says so. */
API int mallopt(int parameter, int value)
{
	if (parameter != M_TRIM_THRESHOLD)
		return 0;
	/* As the C library takes it: -1 is as much as there can be. */
	__atomic_store_n(&percpu__heap_keep, value < 0 ? HEAP_KEEP_ALL : (uint64_t)value, __ATOMIC_RELAXED);
	return 1;
}
