/* SPDX-License-Identifier: MIT */
/*
 * Counting a call, and calling the function that was meant, in the object that `percpu stat` preloads.
 *
 * REAL(type, name, (parameters), (arguments)) declares `real_name`, a pointer to the next definition of that function
 * after ours. It begins as a function that looks it up, so a wrapper may run before the constructor has looked up all:
 * no wrapper tests anything on its way.
 *
 * Counting takes no lock and allocates nothing. It may run in a signal handler, in a thread that is not registered, in
 * a child of vfork; where the process has no session it is one test.
 */
#ifndef PERCPU_PRELOAD_COUNT_H
#define PERCPU_PRELOAD_COUNT_H

#include "cli/session.h"

#define EXPORT __attribute__((visibility("default")))

/* The mapped session, NULL before and without it. Read by every call, written once. */
extern void *session_base PERCPU_HIDDEN;

/* Map the session if that was not tried yet. Returns its base, NULL if there is none. Keeps errno. */
PERCPU_HIDDEN void *session_attach(void) PERCPU__COLD;

/* A function to be looked up; the linker gathers them. */
struct real {
	void *slot;
	void *first;
	const char *name;
	const char *version; /* NULL: the default one */
};

/* Look up that function and all others; ends the process with a line if the C library does not have it. */
PERCPU_HIDDEN void real_lookup(const struct real *real) PERCPU__COLD;
/* This thread is looking up: allocations are the loader's own. */
extern PERCPU_HIDDEN __thread bool real_looking __attribute__((tls_model("initial-exec")));

/* Slots are read by every call and written, always with the same value, by whoever looks up. */
#define REAL_OR(type, function, parameters, arguments, symbol_version, meanwhile)                                      \
	static type first_##function parameters;                                                                       \
	static type(*real_##function) parameters = first_##function;                                                   \
	static const struct real entry_##function                                                                      \
		__attribute__((section("percpu_real"), used)) = { (void *)&real_##function, (void *)first_##function,  \
								  #function, symbol_version };                         \
	PERCPU__COLD static type first_##function parameters                                                           \
	{                                                                                                              \
		meanwhile;                                                                                             \
		real_lookup(&entry_##function);                                                                        \
		return (*(type(*volatile *) parameters) & real_##function) arguments;                                  \
	}
#define REAL_VERSION(type, function, parameters, arguments, symbol_version)                                            \
	REAL_OR(type, function, parameters, arguments, symbol_version, (void)0)
#define REAL(type, function, parameters, arguments) REAL_VERSION(type, function, parameters, arguments, NULL)

static inline __attribute__((always_inline)) void *session_now(void)
{
	void *base = session_base;

	return PERCPU__LIKELY(base) ? base : session_attach();
}

static inline __attribute__((always_inline)) void count(enum session_count what, uint64_t n)
{
	void *base = session_now();
	struct percpu_counter counter = session_counter(base, what);

	if (PERCPU__LIKELY(base))
		percpu_counter_add_shared(&counter, n);
}

#endif
