/* SPDX-License-Identifier: MIT */
/*
 * Where the C++ library's functions are.
 *
 * In the archive these are plain references, for whoever takes new and delete from there is linked with that library. The
 * shared object must not need it: its references are weak. A library that was loaded for a C++ plugin of a program in C shows
 * its names to that plugin only, so what is not seen is asked for by the library's name.
 */
#include <dlfcn.h>
#include <stddef.h>

#include "malloc/cxx.h"

#ifdef PERCPU__CXX_WEAK
#define MAYBE __attribute__((weak))

static void *find(void *here, const char *name)
{
	static const char *const libraries[] = { "libstdc++.so.6", "libc++.so.1", "libc++abi.so.1" };

	for (unsigned i = 0; !here && i < sizeof(libraries) / sizeof(*libraries); i++) {
		/* The handle is kept: it stays while we use it. */
		void *library = dlopen(libraries[i], RTLD_LAZY | RTLD_NOLOAD);

		here = library ? dlsym(library, name) : NULL;
	}
	return here;
}
#else
#define MAYBE

static void *find(void *here, const char *name)
{
	(void)name;
	return here;
}
#endif

#define FIND(what) (__typeof__(what) *)(uintptr_t)find((void *)(uintptr_t)what, #what)

percpu__new_handler *_ZSt15get_new_handlerv(void) MAYBE;
void _ZSt17__throw_bad_allocv(void) MAYBE;
void *__cxa_begin_catch(void *exception) MAYBE;
void __cxa_end_catch(void) MAYBE;
percpu__personality __gxx_personality_v0 MAYBE;

struct percpu__cxx percpu__cxx_find(void)
{
	return (struct percpu__cxx){
		.get_new_handler = FIND(_ZSt15get_new_handlerv),
		.throw_bad_alloc = FIND(_ZSt17__throw_bad_allocv),
		.begin_catch = FIND(__cxa_begin_catch),
		.end_catch = FIND(__cxa_end_catch),
		.personality = FIND(__gxx_personality_v0),
	};
}
