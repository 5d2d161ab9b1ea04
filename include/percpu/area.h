/* SPDX-License-Identifier: MIT */
/*
 * Per-CPU memory.
 *
 * An area is a reservation of percpu_copies() copies, PERCPU_STRIDE bytes each, filled page by page on first touch: a
 * copy that no thread uses costs no memory, and each page lands on the NUMA node of whoever touches it first. Objects
 * are packed into an area at the same offset of every copy. When all areas are full another one is made.
 *
 * A per-CPU pointer is the address of copy 0. Its users go through percpu_ptr(), percpu_this_ptr(), or the operations in
 * <percpu/ops.h>.
 */
#ifndef PERCPU_AREA_H
#define PERCPU_AREA_H

#include <percpu/section.h>

PERCPU_BEGIN_DECLS

/** The largest object that percpu_alloc() can give, in bytes. */
#define PERCPU_ALLOC_MAX (PERCPU_STRIDE - 4096)

/**
 * percpu_alloc - allocate an object with one copy for each index, all bytes zero.
 *
 * @size: bytes of one copy, 1 to PERCPU_ALLOC_MAX
 * @align: alignment in bytes, a power of two up to 65536; objects are packed, so ask for 64 to own a cache line
 * Returns a per-CPU pointer, or NULL: no memory, or an argument out of range (a large @align takes from the largest size).
 * May block (on other callers only). Async-signal-safe. After fork the child owns a copy of everything.
 * First-fit bitmap in 8-byte units, as the Linux kernel's per-CPU allocator keeps.
 */
PERCPU_API void *percpu_alloc(size_t size, size_t align) __attribute__((malloc, warn_unused_result));

/**
 * percpu_free - give back what percpu_alloc() gave, or percpu_malloc() and its kin.
 *
 * @object: a per-CPU pointer that no thread uses any more; a block of <percpu/malloc.h>; or NULL (which does nothing)
 * Returns 0, or -EINVAL (and changes nothing) if @object is not the start of an allocated object. (Of an address among blocks
 * that is none the process dies, as percpu_malloc_free() says.)
 * Memory goes back to the system when whole pages become free. May block. Async-signal-safe for per-CPU pointers.
 */
PERCPU_API int percpu_free(void *object);

/** What percpu_area_stats() tells. */
struct percpu_area_stats {
	size_t areas;           /**< areas mapped now */
	size_t bytes_allocated; /**< bytes of one copy in use by objects, rounded up to 8 each */
	size_t bytes_free;      /**< bytes of one copy that are free in the mapped areas */
	size_t objects;         /**< objects allocated now */
};

/**
 * percpu_area_stats - how much per-CPU memory is in use.
 *
 * @out: filled completely. Returns 0, or -EINVAL if @out is NULL. May block. Async-signal-safe.
 */
PERCPU_API int percpu_area_stats(struct percpu_area_stats *out);

/**
 * percpu_area_map - map an area that lives in a file, to be shared between processes.
 *
 * @fd: a file that only cooperating processes can write; made larger if it is too short (it stays sparse)
 * @base: set to copy 0 of the area; its first 64 bytes are reserved, the rest of the stride belongs to the caller
 * Data in it may only be counted (percpu_counter_*_shared() and percpu_histogram_*_shared()): a fence does not reach
 * other processes, so neither gates nor the other operations work there.
 * Returns 0; -EINVAL if @fd is not a regular file; -EFBIG, -ENOSPC or another -errno of ftruncate(2), fallocate(2) or
 * mmap(2); @base is untouched on error. Pages of the file become real on first touch: on a file system that is full by
 * then the kernel sends SIGBUS, unless the caller has reserved them (a memfd has no such limit). All processes must run on one machine.
 */
PERCPU_API int percpu_area_map(int fd, void **base);

/**
 * percpu_area_unmap - undo percpu_area_map(). Returns 0 or -errno of munmap(2). The file keeps its contents.
 */
PERCPU_API int percpu_area_unmap(void *base);

/**
 * percpu_ptr - the address of one copy.
 *
 * @object: a per-CPU pointer
 * @index: 0 to percpu_copies() - 1
 * Keeps the type of @object. Wait-free, async-signal-safe. Reading another index's copy while its owner runs gives each
 * aligned word as it was at some moment; to write there use percpu_opv() or a gate.
 */
#define percpu_ptr(object, index)                                                                                      \
	((__typeof__(1 ? (object) : 0))(void *)((char *)(object) + ((size_t)(index) << PERCPU_STRIDE_SHIFT)))

/** percpu_this_ptr - the address of the copy that the calling thread's concurrency id names now; stale at once. */
#define percpu_this_ptr(object) percpu_ptr(object, percpu_cid())

/**
 * percpu_for_each_index - loop over all copies, the remainder included.
 *
 * @index: an unsigned variable declared by the macro
 */
#define percpu_for_each_index(index)                                                                                   \
	for (unsigned index = 0, index##_end = percpu_copies(); index < index##_end; index++)

/**
 * PERCPU_DEFINE - define a static per-CPU variable.
 *
 * PERCPU_DEFINE(uint64_t, hits) defines `static uint64_t *hits`, a per-CPU pointer to a zeroed object, allocated by a
 * constructor before main (or when its shared object is loaded) and freed when the object is unloaded. It is NULL if
 * there was no memory for it.
 */
#define PERCPU_DEFINE(type, name)                                                                                      \
	static __typeof__(type) *name;                                                                                 \
	__attribute__((constructor(200))) static void percpu__define_##name(void)                                      \
	{                                                                                                              \
		name = (__typeof__(type) *)percpu_alloc(sizeof(type), __alignof__(type));                              \
	}                                                                                                              \
	__attribute__((destructor(200))) static void percpu__undefine_##name(void)                                     \
	{                                                                                                              \
		percpu_free(name);                                                                                     \
		name = (__typeof__(type) *)0;                                                                          \
	}                                                                                                              \
	extern int percpu__defined_##name /* takes the semicolon */

PERCPU_END_DECLS

#endif
