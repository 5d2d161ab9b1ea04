/* SPDX-License-Identifier: MIT */
/*
 * A malloc that returns a constant: what calling an allocator costs, when the allocator does nothing. Preloaded by percpu
 * bench malloc for loops of malloc and free, in which no two blocks live at once; nothing else can run on it.
 *
 * What the loader and the C library allocate for themselves comes from the other functions, and is never given back.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define ALIGN  64

static _Alignas(4096) char block[1 << 16];
static _Alignas(4096) char arena[1 << 22];
static atomic_size_t used;

static void *take(size_t align, size_t size)
{
	size_t at;

	align = align < ALIGN ? ALIGN : align;
	if (align > sizeof(arena) || size > sizeof(arena))
		return NULL;
	at = atomic_fetch_add(&used, (size + 2 * align - 1) & ~(align - 1));
	at = (at + align - 1) & ~(align - 1);
	return at + size <= sizeof(arena) ? arena + at : NULL;
}

EXPORT void *malloc(size_t size)
{
	(void)size;
	return block;
}

EXPORT void free(void *pointer)
{
	(void)pointer;
}

EXPORT void *calloc(size_t count, size_t size)
{
	return size && count > sizeof(arena) / size ? NULL : take(ALIGN, count * size);
}

EXPORT void *realloc(void *old, size_t size)
{
	char *new = take(ALIGN, size);

	/* How long the old one is, is not known: up to the end of what may be read. */
	if (new &&old) {
		const char *end = (char *)old >= arena && (char *)old < arena + sizeof(arena) ? arena + sizeof(arena)
											      : block + sizeof(block);
		size_t room = (size_t)(end - (char *)old);

		memmove(new, old, size < room ? size : room);
	}
	return new;
}

EXPORT void *memalign(size_t align, size_t size)
{
	return take(align, size);
}

EXPORT void *aligned_alloc(size_t align, size_t size)
{
	return take(align, size);
}

EXPORT int posix_memalign(void **out, size_t align, size_t size)
{
	void *pointer = take(align, size);

	if (!pointer)
		return ENOMEM;
	*out = pointer;
	return 0;
}
