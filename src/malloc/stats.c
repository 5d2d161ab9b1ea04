/* SPDX-License-Identifier: MIT */
/*
 * Statistics, put together from what each level counts.
 */
#include <fcntl.h>
#include <sys/auxv.h>

#include "base/sys.h"
#include "malloc/front.h"
#include "malloc/guard.h"
#include "malloc/profile.h"
#include "malloc/stats.h"

static uint64_t load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* False: no thread has been there. */
static bool front_of(const struct percpu__stats_words *words, unsigned index, unsigned class,
		     struct percpu__front_stats *out)
{
	if (!words)
		return percpu__front_stats(index, class, out);
	return index < words->top && percpu__front_stats_in(&words->fronts[index], class, out);
}

static unsigned top_of(const struct percpu__stats_words *words)
{
	return words ? words->top : __atomic_load_n(&percpu__front_top, __ATOMIC_ACQUIRE);
}

void percpu__stats_class(const struct percpu__stats_words *words, unsigned class, struct percpu__stats_class *out)
{
	struct percpu__class_stats central;
	uint64_t idle;

	if (words)
		central = words->classes[class];
	else
		percpu__central_stats(class, &central);
	*out = (struct percpu__stats_class){
		.size = percpu__class_size(class),
		.spans = central.spans,
		.span_bytes = central.spans * central.pages << PAGE_LOG,
		.objects = central.objects,
		.stock = central.stock,
		.free = central.free,
		.stock_misses = central.stock_misses,
		.new_spans = central.new_spans,
	};
	for (unsigned index = 0; index < top_of(words); index++) {
		struct percpu__front_stats front;

		if (!front_of(words, index, class, &front))
			continue;
		out->cached += front.cached;
		out->hits += front.hits;
		out->misses += front.misses;
		out->flushes += front.flushes;
	}
	/* Words of different moments may tell of more free objects than there are. */
	idle = out->cached + out->stock + out->free;
	out->live = idle < out->objects ? out->objects - idle : 0;
}

bool percpu__stats_index(const struct percpu__stats_words *words, unsigned index, struct percpu__stats_index *out)
{
	*out = (struct percpu__stats_index){ 0 };
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct percpu__front_stats front;

		if (!front_of(words, index, i, &front))
			return false;
		out->cached += front.cached * percpu__class_size(i);
		out->hits += front.hits;
		out->misses += front.misses;
		out->flushes += front.flushes;
		out->drains = front.drains;
	}
	return true;
}

/* The second number of /proc/self/statm, in pages. */
static uint64_t resident(void)
{
	char text[128] = "";
	long fd = percpu__sys4(SYS_openat, AT_FDCWD, (long)"/proc/self/statm", O_RDONLY | O_CLOEXEC, 0), n;
	uint64_t pages = 0;
	long i = 0;

	if (fd < 0)
		return 0;
	n = percpu__sys4(SYS_read, fd, (long)text, sizeof(text), 0);
	percpu__sys4(SYS_close, fd, 0, 0, 0);
	while (i < n && text[i] != ' ')
		i++;
	for (i++; i < n && text[i] >= '0' && text[i] <= '9'; i++)
		pages = pages * 10 + (uint64_t)(text[i] - '0');
	return pages * getauxval(AT_PAGESZ);
}

void percpu__stats_process(const struct percpu__stats_words *words, struct percpu__stats_process *out)
{
	const struct percpu__heap_stats *heap = words ? &words->heap : &percpu__heap_stats;

	*out = (struct percpu__stats_process){
		.used = load(&heap->used),
		.most_used = load(&heap->most_used),
		.free = load(&heap->free),
		.released = load(&heap->released),
		.large = load(&heap->large),
		.large_bytes = load(&heap->large_bytes),
		.metadata = load(&heap->metadata) + top_of(words) * sizeof(struct percpu__front),
		.resident = words ? words->resident : resident(),
		.guarded = words ? words->guarded : load(&percpu__guard_taken),
		.profiled = words ? words->profiled : load(&percpu__profile_live),
	};
	out->live = out->large_bytes;
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct percpu__stats_class class;

		percpu__stats_class(words, i, &class);
		out->live += class.live * class.size;
		out->cached += class.cached * class.size;
		out->stock += class.stock * class.size;
	}
}
