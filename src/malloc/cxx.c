/* SPDX-License-Identifier: MIT */
/*
 * C++'s new and delete, by their names in the Itanium ABI. In C, so that programs in C need no C++ library.
 *
 * A program may replace some of them, and then the others must lead to those, as the standard says: what comes from its
 * new(size) goes to its delete(pointer), whatever forms are in between. So all forms call a plainer one by its name, under
 * which the program's may stand; and all are weak, so that in a program that is linked statically they give way.
 */
#include <stdlib.h>

#include <percpu/malloc.h>

#include "malloc/cxx.h"
#include "malloc/fast.h"

#if __has_attribute(noplt)
#define NO_PLT __attribute__((noplt))
#else
#define NO_PLT
#endif
#define FORM NO_PLT __attribute__((visibility("default"), weak))
#define HOT  __attribute__((aligned(64)))

/* The plain forms. [a]: of arrays; Sm: size; St11align_val_t: alignment. */
FORM void *_Znwm(size_t size);
FORM void *_ZnwmSt11align_val_t(size_t size, size_t align);
FORM void *_Znam(size_t size);
FORM void *_ZnamSt11align_val_t(size_t size, size_t align);
FORM void _ZdlPv(void *p);
FORM void _ZdlPvSt11align_val_t(void *p, size_t align);
FORM void _ZdaPv(void *p);
FORM void _ZdaPvSt11align_val_t(void *p, size_t align);

/*
 * There was no memory: the program's handler may free something, end the program, or throw; without one this throws. @align
 * 0: as usual.
 */
static PERCPU__COLD void *again(size_t size, size_t align)
{
	struct percpu__cxx cxx = percpu__cxx_find();

	for (;;) {
		percpu__new_handler *help = cxx.get_new_handler ? cxx.get_new_handler() : NULL;
		void *p;

		if (help)
			help();
		else if (cxx.throw_bad_alloc)
			cxx.throw_bad_alloc();
		else
			abort();
		p = align ? percpu_memalign(align, size) : percpu_malloc(size);
		if (p)
			return p;
	}
}

static __attribute__((noinline)) void *new_slow(size_t size)
{
	void *p = percpu_malloc(size);

	return PERCPU__LIKELY(p != NULL) ? p : again(size, 0);
}

/* As malloc, but that its slow path may not give NULL. */
HOT void *_Znwm(size_t size)
{
	size_t units = percpu__units_of(size);
	uintptr_t object;

	if (PERCPU__UNLIKELY(units >= TABLE_MOST / QUANTUM))
		return new_slow(size);
	object = percpu__fast_try(&percpu__malloc_ready, percpu__distance_table[units]);
	return PERCPU__LIKELY(object > PERCPU__LEFT_WORD) ? (void *)object : new_slow(size);
}

void *_ZnwmSt11align_val_t(size_t size, size_t align)
{
	void *p = percpu_memalign(align, size);

	return PERCPU__LIKELY(p != NULL) ? p : again(size, align);
}

void *_Znam(size_t size)
{
	return _Znwm(size);
}

void *_ZnamSt11align_val_t(size_t size, size_t align)
{
	return _ZnwmSt11align_val_t(size, align);
}

/* Those that give NULL where the others throw. */

struct request {
	void *(*form)(size_t size);
	void *(*aligned_form)(size_t size, size_t align);
	size_t size, align;
	void *p;
};

static void make(void *with)
{
	struct request *request = with;

	request->p =
		request->form ? request->form(request->size) : request->aligned_form(request->size, request->align);
}

static PERCPU__COLD void *make_or_null(struct request *request)
{
	return percpu__cxx_try(make, request) ? request->p : NULL;
}

static void *own_new(size_t size) __attribute__((alias("_Znwm")));
static void *own_array_new(size_t size) __attribute__((alias("_Znam")));

#define NOTHROW(name) name##RKSt9nothrow_t
FORM void *NOTHROW(_Znwm)(size_t size, const void *nothrow);
FORM void *NOTHROW(_Znam)(size_t size, const void *nothrow);
FORM void *NOTHROW(_ZnwmSt11align_val_t)(size_t size, size_t align, const void *nothrow);
FORM void *NOTHROW(_ZnamSt11align_val_t)(size_t size, size_t align, const void *nothrow);

void *NOTHROW(_Znwm)(size_t size, const void *nothrow)
{
	void *p = PERCPU__LIKELY(_Znwm == own_new) ? percpu_malloc(size) : NULL;

	(void)nothrow;
	return PERCPU__LIKELY(p != NULL) ? p : make_or_null(&(struct request){ .form = _Znwm, .size = size });
}

void *NOTHROW(_Znam)(size_t size, const void *nothrow)
{
	void *p = PERCPU__LIKELY(_Znam == own_array_new && _Znwm == own_new) ? percpu_malloc(size) : NULL;

	(void)nothrow;
	return PERCPU__LIKELY(p != NULL) ? p : make_or_null(&(struct request){ .form = _Znam, .size = size });
}

void *NOTHROW(_ZnwmSt11align_val_t)(size_t size, size_t align, const void *nothrow)
{
	(void)nothrow;
	return make_or_null(&(struct request){ .aligned_form = _ZnwmSt11align_val_t, .size = size, .align = align });
}

void *NOTHROW(_ZnamSt11align_val_t)(size_t size, size_t align, const void *nothrow)
{
	(void)nothrow;
	return make_or_null(&(struct request){ .aligned_form = _ZnamSt11align_val_t, .size = size, .align = align });
}

/* The size that is said is not needed, and not believed. */

HOT void _ZdlPv(void *p)
{
	percpu__fast_free(&percpu__malloc_ready, p);
}

void _ZdlPvSt11align_val_t(void *p, size_t align)
{
	(void)align;
	percpu__fast_free(&percpu__malloc_ready, p);
}

void _ZdaPv(void *p)
{
	_ZdlPv(p);
}

void _ZdaPvSt11align_val_t(void *p, size_t align)
{
	_ZdlPvSt11align_val_t(p, align);
}

#define DELETE(name)                                                                                                   \
	FORM void name##m(void *p, size_t size);                                                                       \
	FORM void NOTHROW(name)(void *p, const void *nothrow);                                                         \
	FORM void name##mSt11align_val_t(void *p, size_t size, size_t align);                                          \
	FORM void NOTHROW(name##St11align_val_t)(void *p, size_t align, const void *nothrow);                          \
	void name##m(void *p, size_t size)                                                                             \
	{                                                                                                              \
		(void)size;                                                                                            \
		name(p);                                                                                               \
	}                                                                                                              \
	void NOTHROW(name)(void *p, const void *nothrow)                                                               \
	{                                                                                                              \
		(void)nothrow;                                                                                         \
		name(p);                                                                                               \
	}                                                                                                              \
	void name##mSt11align_val_t(void *p, size_t size, size_t align)                                                \
	{                                                                                                              \
		(void)size;                                                                                            \
		name##St11align_val_t(p, align);                                                                       \
	}                                                                                                              \
	void NOTHROW(name##St11align_val_t)(void *p, size_t align, const void *nothrow)                                \
	{                                                                                                              \
		(void)nothrow;                                                                                         \
		name##St11align_val_t(p, align);                                                                       \
	}

DELETE(_ZdlPv)
DELETE(_ZdaPv)
