/* SPDX-License-Identifier: MIT */
/*
 * Stack traces: who called malloc, and what that place is called.
 *
 * Taken by libgcc's unwinder, which is linked into this object, so that nobody else's is called. With a C library that has
 * _dl_find_object() (glibc 2.35) it takes no lock. With an older one it takes the loader's, which a thread may hold that waits
 * for one of ours: so nobody may unwind who holds a lock. It allocates nothing.
 *
 * It believes what objects say of their frames, and reads where that leads. A fault there ends the trace, not the program, as
 * long as SIGSEGV leads to report.c.
 */
#ifndef PERCPU_SRC_MALLOC_BACKTRACE_H
#define PERCPU_SRC_MALLOC_BACKTRACE_H

#include <stdint.h>

#include <percpu/base.h>

#include "malloc/writer.h"

#define TRACE_FRAMES 32U

/* Innermost first: addresses in the calls, not behind them. */
struct percpu__trace {
	uint32_t thread; /* of the task, as the kernel counts */
	uint32_t count;
	uintptr_t frames[TRACE_FRAMES];
};

/* In a handler: if it is the calling thread's unwinder that faulted, at @instruction, goes on behind it, and never returns. */
PERCPU_HIDDEN void percpu__unwind_fault(uintptr_t instruction);

/* Of the caller, without the allocator's own functions. */
PERCPU_HIDDEN void percpu__unwind(struct percpu__trace *trace) PERCPU__COLD;
/* In a signal handler: from the instruction on that was interrupted. */
PERCPU_HIDDEN void percpu__unwind_from(struct percpu__trace *trace, uintptr_t instruction) PERCPU__COLD;

/*
 * A line for each: "    #2 0x55d0c01149 name+0x20 (/path/of/module+0x1149)". The number at the end is what addr2line -e takes.
 * Safe in a process that crashes: it reads what the loader has mapped, takes no lock and allocates nothing.
 */
PERCPU_HIDDEN void percpu__trace_put(struct percpu__writer *w, const struct percpu__trace *trace) PERCPU__COLD;

#endif
