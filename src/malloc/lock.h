/* SPDX-License-Identifier: MIT */
/*
 * The allocator's locks. A thread that forks has all of them, from the handler that runs before the fork to the one behind
 * it, so other handlers of that thread may allocate in between.
 */
#ifndef PERCPU_SRC_MALLOC_LOCK_H
#define PERCPU_SRC_MALLOC_LOCK_H

#include <stdbool.h>

#include "base/lock.h"
#include "rseq/thread.h"

/* The thread that has all locks; 0: nobody. */
extern PERCPU_HIDDEN uintptr_t percpu__malloc_forker;

static inline bool percpu__malloc_forking(void)
{
	return PERCPU__UNLIKELY(__atomic_load_n(&percpu__malloc_forker, __ATOMIC_RELAXED) ==
				(uintptr_t)&percpu__private);
}

static inline void percpu__malloc_lock(uint32_t *word)
{
	if (!percpu__malloc_forking())
		percpu__lock_word(word);
}

static inline void percpu__malloc_unlock(uint32_t *word)
{
	if (!percpu__malloc_forking())
		percpu__unlock_word(word);
}

#endif
