/* SPDX-License-Identifier: MIT */
/*
 * A futex lock for cold data: taken with all signals blocked, so its users are async-signal-safe.
 *
 * 0 free, 1 held, 2 held and somebody may sleep. Not the C library's mutex: programs under the preloaded objects have
 * theirs interposed by us.
 */
#ifndef PERCPU_SRC_LOCK_H
#define PERCPU_SRC_LOCK_H

#include <stdint.h>

#include "base/sys.h"

static inline void percpu__lock_word(uint32_t *word)
{
	uint32_t was = 0;

	if (__atomic_compare_exchange_n(word, &was, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	while (__atomic_exchange_n(word, 2, __ATOMIC_ACQUIRE))
		percpu__futex_wait(word, 2, ~0U);
}

static inline void percpu__unlock_word(uint32_t *word)
{
	if (__atomic_exchange_n(word, 0, __ATOMIC_RELEASE) == 2)
		percpu__futex_wake(word, 1, ~0U);
}

static inline void percpu__lock(uint32_t *word, uint64_t *saved)
{
	percpu__block_signals(saved);
	percpu__lock_word(word);
}

static inline void percpu__unlock(uint32_t *word, const uint64_t *saved)
{
	percpu__unlock_word(word);
	percpu__restore_signals(saved);
}

#endif
