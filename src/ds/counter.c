/* SPDX-License-Identifier: MIT */
/* Counters, cold half: making them, and what sum.h does with their words. */
#include <errno.h>

#include <percpu/counter.h>

#include "ds/sum.h"
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

uint64_t percpu_counter_read(const struct percpu_counter *counter)
{
	return percpu__sum_left(counter->words, &counter->drained);
}

uint64_t percpu_counter_read_index(const struct percpu_counter *counter, unsigned index)
{
	if (index > percpu__remainder)
		return 0;
	return __atomic_load_n(percpu_ptr(counter->words, index), __ATOMIC_RELAXED);
}

int percpu_counter_drain(struct percpu_counter *counter, uint64_t *out)
{
	if (!counter || !out)
		return -EINVAL;
	*out = percpu__sum_take(counter->words, &counter->drained);
	return 0;
}
