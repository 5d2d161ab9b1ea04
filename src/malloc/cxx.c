/* SPDX-License-Identifier: MIT */
/*
 * C++'s new and delete, by their names in the Itanium ABI. Written in C: what they need of the C++ library is there if the
 * program is a C++ program, and else nobody calls them.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include <percpu/base.h>

#define API __attribute__((visibility("default")))

void *memalign(size_t align, size_t size);

typedef void handler(void);
extern handler *get_new_handler(void) __asm__("_ZSt15get_new_handlerv") __attribute__((weak));
extern void throw_bad_alloc(void) __asm__("_ZSt17__throw_bad_allocv") __attribute__((weak, noreturn));

/* The handler may free something, end the program, or throw; without one this throws. */
static PERCPU__COLD void *again(size_t align, size_t size, int throws)
{
	for (;;) {
		handler *help = get_new_handler ? get_new_handler() : NULL;
		void *p;

		if (!help && throws && throw_bad_alloc)
			throw_bad_alloc();
		if (!help && throws)
			abort();
		if (!help)
			return NULL;
		help();
		p = align ? memalign(align, size) : malloc(size);
		if (p)
			return p;
	}
}

static inline void *new (size_t align, size_t size, int throws)
{
	void *p = align ? memalign(align, size) : malloc(size);

	return PERCPU__LIKELY(p != NULL) ? p : again(align, size, throws);
}

#define NEW(name)                                                                                                      \
	API void *name(size_t size)                                                                                    \
	{                                                                                                              \
		return new (0, size, 1);                                                                               \
	}                                                                                                              \
	API void *name##RKSt9nothrow_t(size_t size, const void *nothrow)                                               \
	{                                                                                                              \
		(void)nothrow;                                                                                         \
		return new (0, size, 0);                                                                               \
	}                                                                                                              \
	API void *name##St11align_val_t(size_t size, size_t align)                                                     \
	{                                                                                                              \
		return new (align, size, 1);                                                                           \
	}                                                                                                              \
	API void *name##St11align_val_tRKSt9nothrow_t(size_t size, size_t align, const void *nothrow)                  \
	{                                                                                                              \
		(void)nothrow;                                                                                         \
		return new (align, size, 0);                                                                           \
	}

#define DELETE(name)                                                                                                   \
	API void name(void *p)                                                                                         \
	{                                                                                                              \
		free(p);                                                                                               \
	}                                                                                                              \
	API void name##m(void *p, size_t size)                                                                         \
	{                                                                                                              \
		(void)size;                                                                                            \
		free(p);                                                                                               \
	}                                                                                                              \
	API void name##RKSt9nothrow_t(void *p, const void *nothrow)                                                    \
	{                                                                                                              \
		(void)nothrow;                                                                                         \
		free(p);                                                                                               \
	}                                                                                                              \
	API void name##St11align_val_t(void *p, size_t align)                                                          \
	{                                                                                                              \
		(void)align;                                                                                           \
		free(p);                                                                                               \
	}                                                                                                              \
	API void name##mSt11align_val_t(void *p, size_t size, size_t align)                                            \
	{                                                                                                              \
		(void)size, (void)align;                                                                               \
		free(p);                                                                                               \
	}                                                                                                              \
	API void name##St11align_val_tRKSt9nothrow_t(void *p, size_t align, const void *nothrow)                       \
	{                                                                                                              \
		(void)align, (void)nothrow;                                                                            \
		free(p);                                                                                               \
	}

NEW(_Znwm)
NEW(_Znam)
DELETE(_ZdlPv)
DELETE(_ZdaPv)
