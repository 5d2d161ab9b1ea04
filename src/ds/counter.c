/* SPDX-License-Identifier: MIT */
/*
 * Counters, cold half: sums and drains. See the header for why a drain needs neither fence nor second set.
 *
 * `drained` is the sum of all drains' results. A drain reads it, then the words, and replaces it by the sum it saw: the
 * difference is its own. Whoever replaced it in between makes the exchange fail. (Should it be back at the same value,
 * then so much was drained in between that the difference is still what is left.)
 */
#include <errno.h>
#include <string.h>

#include <percpu/counter.h>

#include "rseq/thread.h"

int percpu_counter_init(struct percpu_counter *counter)
{
	uint64_t *words;

	if (!counter)
		return -EINVAL;
	words = percpu_alloc(sizeof *words, sizeof *words);
	if (!words)
		return -ENOMEM;
	*counter = (struct percpu_counter){ .words = words };
	return 0;
}

int percpu_counter_init_shared(struct percpu_counter *counter, uint64_t *word)
{
	if (!counter || !word)
		return -EINVAL;
	percpu__init();
	*counter = (struct percpu_counter){ .words = word, .by_cpu = true };
	return 0;
}

void percpu_counter_destroy(struct percpu_counter *counter)
{
	if (!counter || !counter->words)
		return;
	if (!counter->by_cpu)
		percpu_free(counter->words);
	counter->words = NULL;
}

static uint64_t sum(const struct percpu_counter *counter)
{
	uint64_t total = 0;

	for (unsigned index = 0; index <= percpu__remainder; index++)
		total += __atomic_load_n(percpu_ptr(counter->words, index), __ATOMIC_RELAXED);
	return total;
}

uint64_t percpu_counter_read(const struct percpu_counter *counter)
{
	/* Before the words, so that these are at least as new: pairs with the exchange in drain. */
	uint64_t drained = __atomic_load_n(&counter->drained, __ATOMIC_ACQUIRE);

	return sum(counter) - drained;
}

uint64_t percpu_counter_read_index(const struct percpu_counter *counter, unsigned index)
{
	if (index > percpu__remainder)
		return 0;
	return __atomic_load_n(percpu_ptr(counter->words, index), __ATOMIC_RELAXED);
}

int percpu_counter_drain(struct percpu_counter *counter, uint64_t *out)
{
	uint64_t drained, total;

	if (!counter || !out)
		return -EINVAL;
	drained = __atomic_load_n(&counter->drained, __ATOMIC_ACQUIRE);
	do
		total = sum(counter);
	while (!__atomic_compare_exchange_n(&counter->drained, &drained, total, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
	*out = total - drained;
	return 0;
}
