/* SPDX-License-Identifier: MIT */
/*
 * What new and delete need of the C++ library, and how they catch what it throws.
 */
#ifndef PERCPU_SRC_MALLOC_CXX_H
#define PERCPU_SRC_MALLOC_CXX_H

#include <stdbool.h>
#include <stdint.h>

#include <percpu/base.h>

typedef void percpu__new_handler(void);
typedef int percpu__personality(int version, int actions, uint64_t class, void *exception, void *context);

/* NULL: it is not there. */
struct percpu__cxx {
	percpu__new_handler *(*get_new_handler)(void);
	void (*throw_bad_alloc)(void);
	void *(*begin_catch)(void *exception);
	void (*end_catch)(void);
	percpu__personality *personality;
};

/* Looks among what is loaded. May block. The same for all callers, but for those whom dlopen() was faster than. */
PERCPU_HIDDEN struct percpu__cxx percpu__cxx_find(void) PERCPU__COLD;

/* try { call(with); return true; } catch (...) { return false; } */
PERCPU_HIDDEN bool percpu__cxx_try(void (*call)(void *), void *with) PERCPU__COLD;

#endif
