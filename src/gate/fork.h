/* SPDX-License-Identifier: MIT */
/*
 * Locks of structures that a forked child must find whole: fork takes them, so nobody is in the middle of a change.
 *
 * Under one, its holder may run operations on its own copy; it must not take a certain copy's gate, the cold lock, or
 * another of these. (In mode none the holder of a gate may be stopped by a handler that wants the lock.)
 */
#ifndef PERCPU_SRC_FORK_H
#define PERCPU_SRC_FORK_H

#include <stdint.h>

#include <percpu/base.h>

struct percpu__fork_lock {
	uint32_t word;
	uint32_t under_way; /* for the owner; 0 in a child: what other threads had under way */
	struct percpu__fork_lock *next;
};

/* Before its first use, and after its last. */
PERCPU_HIDDEN void percpu__fork_lock_add(struct percpu__fork_lock *lock);
PERCPU_HIDDEN void percpu__fork_lock_remove(struct percpu__fork_lock *lock);

/* Blocks all signals. The thread that forks has all of them from its prepare handler on, and may enter again. */
PERCPU_HIDDEN void percpu__fork_lock(struct percpu__fork_lock *lock, uint64_t *saved);
PERCPU_HIDDEN void percpu__fork_unlock(struct percpu__fork_lock *lock, const uint64_t *saved);

#endif
