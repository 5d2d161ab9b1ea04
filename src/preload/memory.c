/* SPDX-License-Identifier: MIT */
/*
 * malloc and its kin, counted by the size that was asked for.
 *
 * The loader may allocate while we ask it for the functions behind ours. Such blocks come from a small buffer and are
 * never reused; free() and realloc() know them by their address.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload/count.h"

#define STARTUP_BYTES 16384

static char startup_buffer[STARTUP_BYTES] __attribute__((aligned(16)));
static size_t startup_used;

static bool is_startup(const void *block)
{
	return (uintptr_t)block - (uintptr_t)startup_buffer < STARTUP_BYTES;
}

/* Each block has its size in the 16 bytes before it. The memory is fresh, so it is zero. */
PERCPU__COLD static void *startup_alloc(size_t size)
{
	static const char text[] = "percpu: the loader needs more memory to start than expected\n";
	size_t take = size <= STARTUP_BYTES ? 16 + ((size + 15) & ~(size_t)15) : STARTUP_BYTES + 1;
	size_t at = __atomic_fetch_add(&startup_used, take, __ATOMIC_RELAXED);

	if (at + take > STARTUP_BYTES) {
		syscall(SYS_write, STDERR_FILENO, text, sizeof(text) - 1);
		abort();
	}
	memcpy(startup_buffer + at, &size, sizeof(size));
	return startup_buffer + at + 16;
}

PERCPU__COLD static void *startup_realloc(void *block, size_t size)
{
	void *fresh = real_looking ? startup_alloc(size) : malloc(size);
	size_t old = 0;

	if (block && fresh) {
		memcpy(&old, (char *)block - 16, sizeof(old));
		memcpy(fresh, block, old < size ? old : size);
	}
	return fresh;
}

#define MEANWHILE(result)                                                                                              \
	if (real_looking)                                                                                              \
	return result

REAL_OR(void *, malloc, (size_t size), (size), NULL, MEANWHILE(startup_alloc(size)))
REAL_OR(void *, calloc, (size_t n, size_t size), (n, size), NULL, MEANWHILE(startup_alloc(n *size)))
REAL_OR(void *, realloc, (void *block, size_t size), (block, size), NULL, MEANWHILE(startup_realloc(block, size)))
REAL_OR(void, free, (void *block), (block), NULL, MEANWHILE())
REAL(void *, aligned_alloc, (size_t align, size_t size), (align, size))
REAL(int, posix_memalign, (void **out, size_t align, size_t size), (out, align, size))
REAL(void *, memalign, (size_t align, size_t size), (align, size))
REAL(void *, valloc, (size_t size), (size))
REAL(void *, pvalloc, (size_t size), (size))

static inline __attribute__((always_inline)) void count_allocation(size_t size)
{
	void *base = session_now();
	struct percpu_histogram sizes = session_sizes(base);
	struct percpu_counter bytes = session_bytes(base, session_class(size));

	if (PERCPU__UNLIKELY(!base))
		return;
	percpu_histogram_record_shared(&sizes, size);
	percpu_counter_add_shared(&bytes, size);
}

/* What cannot be multiplied will not be given either; it counts as a call for nothing. */
static size_t product(size_t n, size_t size)
{
	size_t bytes;

	return __builtin_mul_overflow(n, size, &bytes) ? 0 : bytes;
}

EXPORT void *malloc(size_t size)
{
	count_allocation(size);
	return real_malloc(size);
}

EXPORT void *calloc(size_t n, size_t size)
{
	count_allocation(product(n, size));
	return real_calloc(n, size);
}

EXPORT void *realloc(void *block, size_t size)
{
	count_allocation(size);
	count(COUNT_REALLOC_CALLS, 1);
	if (PERCPU__UNLIKELY(is_startup(block)))
		return startup_realloc(block, size);
	return real_realloc(block, size);
}

/* The C library's would call realloc() by its public name, which is ours: counted twice. */
EXPORT void *reallocarray(void *block, size_t n, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes)) {
		count_allocation(0);
		count(COUNT_REALLOC_CALLS, 1);
		errno = ENOMEM;
		return NULL;
	}
	return realloc(block, bytes);
}

EXPORT void free(void *block)
{
	if (PERCPU__UNLIKELY(!block))
		return;
	if (PERCPU__UNLIKELY(is_startup(block)))
		return;
	count(COUNT_FREE_CALLS, 1);
	real_free(block);
}

EXPORT void *aligned_alloc(size_t align, size_t size)
{
	count_allocation(size);
	return real_aligned_alloc(align, size);
}

EXPORT int posix_memalign(void **out, size_t align, size_t size)
{
	count_allocation(size);
	return real_posix_memalign(out, align, size);
}

EXPORT void *memalign(size_t align, size_t size)
{
	count_allocation(size);
	return real_memalign(align, size);
}

EXPORT void *valloc(size_t size)
{
	count_allocation(size);
	return real_valloc(size);
}

EXPORT void *pvalloc(size_t size)
{
	count_allocation(size);
	return real_pvalloc(size);
}
