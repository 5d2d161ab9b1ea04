/* SPDX-License-Identifier: MIT */
/*
 * What is said about a guarded object, and the handler of the signal that a guarded page raises.
 */
#ifndef PERCPU_SRC_MALLOC_REPORT_H
#define PERCPU_SRC_MALLOC_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <percpu/base.h>

#include "malloc/backtrace.h"

enum percpu__guard_state { PLACE_UNUSED, PLACE_BUSY, PLACE_LIVE, PLACE_FREED };

struct percpu__guard_place {
	uint32_t state; /* enum percpu__guard_state */
	uint32_t next;  /* that was freed after this one */
	uintptr_t object;
	size_t size; /* as asked for */
	struct percpu__trace made, freed;
};

/* The range, constant from when `bytes` is not 0 any more. */
struct percpu__guard {
	uintptr_t base;
	size_t bytes, page;
	uint32_t count;
	struct percpu__guard_place *places;
};
extern PERCPU_HIDDEN struct percpu__guard percpu__guard;

/* Catches SIGSEGV, unless somebody does so already. Once. Returns whether it is we who catch it now. */
PERCPU_HIDDEN bool percpu__report_install(void);

/* "percpu-malloc: WHAT: VERB 0xADDRESS, 8 bytes into an object...", the stacks, and abort(). */
PERCPU_HIDDEN void percpu__report_die(const char *what, const char *verb, const void *address, uint32_t place)
	__attribute__((noreturn)) PERCPU__COLD;

#endif
