/* SPDX-License-Identifier: MIT */
/*
 * The allocator: malloc and its kin on per-CPU magazines, under names of its own.
 *
 * For programs that keep the C library's malloc beside it: the two know nothing of each other, and memory of one must not be
 * given to the other. To replace the C library's use libpercpu-malloc, see libpercpu-malloc(7): it is the same allocator.
 *
 * Each function does what its namesake of the C library does, down to alignment and errno; so these set errno, which no
 * other function of this library does. What is given back goes to percpu_malloc_free(), or to percpu_free() of
 * <percpu/area.h>, which takes per-CPU objects and these.
 *
 * For all of them, unless it says otherwise:
 *
 * - Blocks are aligned to 16 bytes at least. A block of 0 bytes has an address of its own, too. None is larger than
 *   PTRDIFF_MAX.
 * - Who gets NULL finds ENOMEM in errno; who gets a block, or gives one back, finds errno as it was.
 * - Small blocks (up to 128 KiB) come and go wait-free, but for a magazine that is found empty or full: then, and for larger
 *   blocks, and in threads that cannot run sections, a lock is taken, which may block.
 * - Not async-signal-safe, as malloc is not: a handler may have interrupted its own thread where that holds a lock. May be
 *   called from anywhere else: before and after main(), in fork handlers, in destructors of threads.
 * - A child of fork() owns a copy of all blocks, and may allocate and free, whatever its parent's other threads were doing.
 * - A pointer to no block, or to one that was given back, ends the process: one line on standard error, and abort().
 *   libpercpu-malloc(7) says when that is certain to be seen.
 *
 * Magazines over spans in a page heap are Bonwick's and Adams' (2001), per-CPU ones on restartable sequences TCMalloc's.
 */
#ifndef PERCPU_MALLOC_H
#define PERCPU_MALLOC_H

#include <stddef.h>

#include <percpu/base.h>

PERCPU_BEGIN_DECLS

/** percpu_malloc - a block of @size bytes, whose contents are not determined. Returns NULL if there is no memory. */
PERCPU_API void *percpu_malloc(size_t size) __attribute__((malloc, alloc_size(1), warn_unused_result));

/**
 * percpu_calloc - a block of @n times @size bytes, all zero. Returns NULL if there is no memory, or the product is no size_t.
 */
PERCPU_API void *percpu_calloc(size_t n, size_t size) __attribute__((malloc, alloc_size(1, 2), warn_unused_result));

/**
 * percpu_realloc - a block of another size with the same contents, as far as they fit.
 *
 * @p: a block, or NULL: then this is percpu_malloc(@size)
 * @size: bytes; 0, if there is a block: it is given back, and NULL is returned with errno as it was
 * Returns the block's address, which may be another than @p, and aligned to 16 bytes only; or NULL, and @p is as it was.
 * Large blocks grow by moving pages, not bytes.
 */
PERCPU_API void *percpu_realloc(void *p, size_t size) __attribute__((alloc_size(2), warn_unused_result));

/** percpu_reallocarray - percpu_realloc() to @n times @size bytes. Returns NULL also if that is no size_t. */
PERCPU_API void *percpu_reallocarray(void *p, size_t n, size_t size)
	__attribute__((alloc_size(2, 3), warn_unused_result));

/**
 * percpu_malloc_free - give a block back.
 *
 * @p: what any function here has given, to any thread; or NULL, which does nothing
 * Unlike percpu_free() this has no result, and takes no per-CPU objects: the signature that tables of functions want.
 */
PERCPU_API void percpu_malloc_free(void *p);

/**
 * percpu_free_sized - give a block back, of which the size is known (C23's free_sized).
 *
 * @p: a block of percpu_malloc(), percpu_calloc() or percpu_realloc(), or NULL
 * @size: as it was asked for
 */
PERCPU_API void percpu_free_sized(void *p, size_t size);

/**
 * percpu_free_aligned_sized - give a block back, of which size and alignment are known (C23's free_aligned_sized).
 *
 * @p: a block of percpu_aligned_alloc(), or NULL
 * @align, @size: as they were asked for
 */
PERCPU_API void percpu_free_aligned_sized(void *p, size_t align, size_t size);

/**
 * percpu_aligned_alloc - a block at a multiple of @align.
 *
 * @align: bytes; what is no power of two is rounded up to the next
 * @size: bytes, not necessarily a multiple of @align
 * Returns NULL if there is no memory, and with errno EINVAL if @align is above the largest power of two in a size_t.
 */
PERCPU_API void *percpu_aligned_alloc(size_t align, size_t size)
	__attribute__((malloc, alloc_size(2), alloc_align(1), warn_unused_result));

/** percpu_memalign - percpu_aligned_alloc() by an older name. */
PERCPU_API void *percpu_memalign(size_t align, size_t size)
	__attribute__((malloc, alloc_size(2), alloc_align(1), warn_unused_result));

/**
 * percpu_posix_memalign - a block at a multiple of @align.
 *
 * @out: set to its address; untouched on error
 * @align: bytes, a power of two and a multiple of sizeof(void *)
 * Returns 0; EINVAL for any other @align; ENOMEM. (Positive numbers, as POSIX has it.) Leaves errno alone.
 */
PERCPU_API int percpu_posix_memalign(void **out, size_t align, size_t size) __attribute__((warn_unused_result));

/** percpu_valloc - a block at a multiple of the page size. Returns NULL if there is no memory. */
PERCPU_API void *percpu_valloc(size_t size) __attribute__((malloc, alloc_size(1), warn_unused_result));

/** percpu_pvalloc - the same, of whole pages. Returns NULL if there is no memory or @size cannot be rounded up. */
PERCPU_API void *percpu_pvalloc(size_t size) __attribute__((malloc, alloc_size(1), warn_unused_result));

/**
 * percpu_malloc_usable_size - how many bytes of a block its holder may use: as many as were asked for, or somewhat more.
 *
 * @p: a block, or NULL
 * Returns bytes; 0 for NULL. Wait-free, async-signal-safe.
 */
PERCPU_API size_t percpu_malloc_usable_size(void *p);

/**
 * percpu_malloc_trim - give free memory back to the system: what magazines hold of all CPUs, and whole free pages.
 *
 * @keep: bytes of free pages that may stay
 * Returns 1 if there was something to give back, else 0. Fences, and may block. Without it memory goes back by and by.
 */
PERCPU_API int percpu_malloc_trim(size_t keep);

/** What percpu_malloc_info() tells, in bytes. */
struct percpu_malloc_info {
	size_t in_use;   /**< in blocks that somebody holds, each as large as its percpu_malloc_usable_size() */
	size_t cached;   /**< in pages of small blocks, but free: in magazines, or beside others in use */
	size_t free;     /**< in free pages that have memory */
	size_t released; /**< in free pages whose memory was given back to the system */
	size_t peak;     /**< the largest sum of in_use and cached so far */
};

/**
 * percpu_malloc_info - how much memory the allocator has, and for what.
 *
 * @out: filled completely; all zero as long as nothing was allocated
 * Returns 0, or -EINVAL if @out is NULL. While others allocate the numbers are of about the same moment. May block.
 */
PERCPU_API int percpu_malloc_info(struct percpu_malloc_info *out);

/** percpu_malloc_stats - write about the same as text to standard error, for people. Allocates nothing. May block. */
PERCPU_API void percpu_malloc_stats(void);

PERCPU_END_DECLS

#endif
