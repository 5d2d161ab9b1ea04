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
 * Takes the gates of several copies, in the order of the array, which must be that of their addresses; one fence for all.
 * Only base, index and kinds are set by the caller. Returns 0, or an error with none held.
 */
PERCPU_HIDDEN int percpu__gates_lock(struct percpu_gate *gates, unsigned count);
PERCPU_HIDDEN void percpu__gates_unlock(struct percpu_gate *gates, unsigned count);

/* Mode none: takes the gate of some copy, without waiting for anybody whom a signal may have stopped. */
PERCPU_HIDDEN void percpu__gate_lock_any(struct percpu_gate *gate, char *base, unsigned kinds);

/*
 * Takes one gate (base and kinds are set) of the remainder. Holders of it are never stopped by a signal, so it is safe to
 * wait, whatever a handler interrupted.
 */
PERCPU_HIDDEN void percpu__gate_lock_remainder(struct percpu_gate *gate);

/* A section found this gate closed: waits for it to open, a bounded number of times. */
PERCPU_HIDDEN void percpu__gate_wait_open(struct percpu__gate *gate);
/* Waits until nobody holds the gate, though it may be on its way to the next holder. */
PERCPU_HIDDEN void percpu__gate_wait_idle(struct percpu__gate *gate);

/* Held by the calling thread, or by what its signal handler interrupted. */
PERCPU_HIDDEN bool percpu__gate_is_mine(const struct percpu__gate *gate);
/* In a forked child: the gate as nobody but the calling thread left it, which has another id now. */
PERCPU_HIDDEN void percpu__gate_reset(struct percpu__gate *gate, uint32_t new_id);
/* Mode none, around a fork: takes the gate, unless what a handler interrupted has it; false if it is held for long. */
PERCPU_HIDDEN bool percpu__gate_lock_forked(struct percpu__gate *gate);
/* Gives it back, if it was taken so. Always true. */
PERCPU_HIDDEN bool percpu__gate_unlock_forked(struct percpu__gate *gate);

/* 1 while a fork is under way; threads wait on it. Written by fork.c. */
extern PERCPU_HIDDEN uint32_t percpu__fork_word;

#endif
