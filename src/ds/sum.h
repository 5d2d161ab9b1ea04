/* SPDX-License-Identifier: MIT */
/*
 * Words that are only ever added to: their sum, and taking it exactly once.
 *
 * `drained` is the sum of all drains' results. A drain reads it, then the words, and replaces it by the sum it saw: the
 * difference is its own. Whoever replaced it in between makes the exchange fail. So the results of all drains and what is
 * left always add up to all additions, modulo 2^64, also if some of them are negative.
 */
#ifndef PERCPU_SRC_SUM_H
#define PERCPU_SRC_SUM_H

#include <percpu/area.h>

static inline uint64_t percpu__sum(uint64_t *words)
{
	uint64_t total = 0;

	for (unsigned index = 0; index <= percpu__remainder; index++)
		total += __atomic_load_n(percpu_ptr(words, index), __ATOMIC_RELAXED);
	return total;
}

static inline uint64_t percpu__sum_left(uint64_t *words, const uint64_t *drained)
{
	/* Before the words, so that these are at least as new: pairs with the exchange in percpu__sum_take. */
	uint64_t taken = __atomic_load_n(drained, __ATOMIC_ACQUIRE);

	return percpu__sum(words) - taken;
}

static inline uint64_t percpu__sum_take(uint64_t *words, uint64_t *drained)
{
	uint64_t taken = __atomic_load_n(drained, __ATOMIC_ACQUIRE), total;

	do {
		total = percpu__sum(words);
		if (total == taken)
			return 0;
	} while (!__atomic_compare_exchange_n(drained, &taken, total, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
	return total - taken;
}

#endif
