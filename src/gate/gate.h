/* SPDX-License-Identifier: MIT */
/* Taking gates, for the slow path, operation vectors and structures. */
#ifndef PERCPU_SRC_GATE_H
#define PERCPU_SRC_GATE_H

#include <percpu/gate.h>

#include "area/area.h"

/* Bits of percpu_gate.kinds. */
#define PERCPU__KIND_ID  1U
#define PERCPU__KIND_CPU 2U
#define PERCPU__KINDS    (PERCPU__KIND_ID | PERCPU__KIND_CPU)

static inline unsigned percpu__kind(unsigned by)
{
	return by == PERCPU__BY_CPU ? PERCPU__KIND_CPU : PERCPU__KIND_ID;
}

/*
 * Takes the gates of several copies, in lock order (address, remainders' last), with one fence for all; blocks signals.
 * Only base, index and kinds are set by the caller. @several: more than one store follows that others may see, so a fork
 * must wait for it (one store is there in the child or is not). Returns 0, or an error with none held.
 */
PERCPU_HIDDEN int percpu__gates_lock(struct percpu_gate *gates, unsigned count, bool several);
PERCPU_HIDDEN void percpu__gates_unlock(struct percpu_gate *gates, unsigned count, bool several);

/*
 * The same for one gate of the remainder (base and kinds are set), and without an error: nobody who holds that can be
 * stopped by a signal, so it is safe to wait, whatever a handler interrupted. Undone by percpu__gates_unlock.
 */
PERCPU_HIDDEN void percpu__gate_lock_remainder(struct percpu_gate *gate);

/* Mode none: takes the gate of some copy (base and kinds are set), for one store. No system call if one is free. */
PERCPU_HIDDEN void percpu__gate_lock_any(struct percpu_gate *gate);
PERCPU_HIDDEN void percpu__gate_unlock_any(struct percpu_gate *gate);

/* Registers a new thread. Whether the calling thread can run sections, and is not held off them. */
PERCPU_HIDDEN bool percpu__runs_sections(void);
/* The copy that a registered thread is on, wherever percpu__self leads. */
PERCPU_HIDDEN unsigned percpu__current_index(unsigned by);
/* The index that the calling thread's next operation on its own copy will most likely work on. */
PERCPU_HIDDEN unsigned percpu__usual_index(unsigned by);

/* A section found this gate closed: waits for it to open, a bounded number of times. */
PERCPU_HIDDEN void percpu__gate_wait_open(struct percpu__gate *gate);
/* Waits until nobody is in the middle of several changes under this gate. */
PERCPU_HIDDEN void percpu__gate_wait_idle(struct percpu__gate *gate);
/* Held by the calling thread, or by what its signal handler interrupted. */
PERCPU_HIDDEN bool percpu__gate_is_mine(const struct percpu__gate *gate);
/* In a forked child: the gate as nobody but the calling thread left it, which has another id now. */
PERCPU_HIDDEN void percpu__gate_reset(struct percpu__gate *gate, uint32_t new_id);

/* 1 while a fork is under way; threads wait on it. Written by fork.c. */
extern PERCPU_HIDDEN uint32_t percpu__fork_word;
/* How many forks lie between the first process and this one: what a lock's holder of another number held is free. */
extern PERCPU_HIDDEN uint32_t percpu__fork_count;

#endif
