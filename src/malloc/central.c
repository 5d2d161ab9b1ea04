/* SPDX-License-Identifier: MIT */
/*
 * Stocks of objects, spans with free objects.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/lock.h"
#include "base/sys.h"
#include "malloc/central.h"

#define STOCK_MOST  (4 * BATCH_MOST)
#define BATCH_BYTES ((size_t)64 << 10) /* a batch of large objects is not more than this, but at least one */
#define SPAN_LEAST  ((size_t)32 << 10)

/* One for each class, in lines of its own. */
static struct central {
	uint32_t word; /* its lock */
	uint16_t stock, stock_most, batch;
	uint16_t objects; /* of a span */
	uint32_t pages;
	uint64_t size;
	struct percpu__span *partial; /* spans with free objects, and all free ones but the one that was free first */
	struct percpu__class_stats stats;
	void *slots[STOCK_MOST];
} __attribute__((aligned(128))) centrals[CLASSES + 1];

void percpu__malloc_die(const char *what, const void *address)
{
	static const char digits[] = "0123456789abcdef";
	char line[160] = "percpu-malloc: ", *end = line + strlen(line);
	uintptr_t value = (uintptr_t)address;
	int shift = 60;

	end = stpcpy(stpcpy(end, what), ": 0x");
	while (shift > 0 && !(value >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		*end++ = digits[value >> shift & 15];
	*end++ = '\n';
	percpu__sys4(SYS_write, STDERR_FILENO, (long)line, end - line, 0);
	abort();
}

/* As few pages as hold many objects, of which a sixteenth at most is left over. */
static uint32_t span_pages(size_t size)
{
	for (uint32_t pages = 1;; pages++) {
		size_t bytes = (size_t)pages << PAGE_LOG, objects = bytes / size;

		if (objects > SPAN_OBJECTS)
			objects = SPAN_OBJECTS;
		if (objects && (bytes >= SPAN_LEAST || objects == SPAN_OBJECTS) &&
		    (bytes - objects * size) * 16 <= bytes && (objects >= 4 || pages >= 32))
			return pages;
	}
}

void percpu__central_start(void)
{
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct central *c = &centrals[i];
		size_t batch;

		c->size = percpu__class_size(i);
		c->pages = span_pages(c->size);
		c->stats.pages = c->pages;
		c->objects = (uint16_t)(((size_t)c->pages << PAGE_LOG) / c->size);
		if (c->objects > SPAN_OBJECTS)
			c->objects = SPAN_OBJECTS;
		batch = BATCH_BYTES / c->size / 8;
		c->batch = (uint16_t)(batch < 1 ? 1 : batch > BATCH_MOST / 2 ? BATCH_MOST / 2 : batch);
		c->stock_most = (uint16_t)(c->batch * 4);
	}
}

unsigned percpu__batch_of(unsigned class)
{
	return centrals[class].batch;
}

static void list_span(struct central *c, struct percpu__span *span)
{
	span->previous = NULL;
	span->next = c->partial;
	if (c->partial)
		c->partial->previous = span;
	c->partial = span;
	span->listed = true;
}

static void unlist_span(struct central *c, struct percpu__span *span)
{
	if (span->previous)
		span->previous->next = span->next;
	else
		c->partial = span->next;
	if (span->next)
		span->next->previous = span->previous;
	span->listed = false;
}

static struct percpu__span *new_span(struct central *c, unsigned class)
{
	struct percpu__span *span = percpu__span_new(c->pages, 1, class, 0);

	if (!span)
		return NULL;
	span->size = c->size;
	span->objects = span->free = c->objects;
	for (unsigned i = 0; i < SPAN_OBJECTS / 64; i++)
		span->is_free[i] = span->objects >= (i + 1) * 64 ? ~UINT64_C(0)
				   : span->objects > i * 64      ? (UINT64_C(1) << span->objects % 64) - 1
								 : 0;
	c->stats.spans++;
	c->stats.objects += span->objects;
	c->stats.free += span->objects;
	list_span(c, span);
	return span;
}

/* In rising order of addresses. */
static unsigned take_from_span(struct central *c, struct percpu__span *span, void **out, unsigned n)
{
	char *base = percpu__page_address(span->page);
	unsigned count = 0;

	for (unsigned i = 0; i < SPAN_OBJECTS / 64 && count < n; i++)
		while (span->is_free[i] && count < n) {
			unsigned object = i * 64 + (unsigned)__builtin_ctzl(span->is_free[i]);

			span->is_free[i] &= span->is_free[i] - 1;
			out[count++] = base + object * span->size;
		}
	span->free = (uint16_t)(span->free - count);
	c->stats.free -= count;
	if (!span->free)
		unlist_span(c, span);
	return count;
}

unsigned percpu__central_take(unsigned class, void **out, unsigned n)
{
	struct central *c = &centrals[class];
	unsigned count;

	percpu__lock_word(&c->word);
	count = c->stock < n ? c->stock : n;
	c->stock = (uint16_t)(c->stock - count);
	memcpy(out, c->slots + c->stock, count * sizeof(*out));
	while (count < n) {
		struct percpu__span *span = c->partial;

		/* A new one only if there is nothing at all. */
		if (!span && count)
			break;
		if (!span)
			span = new_span(c, class);
		if (!span)
			break;
		count += take_from_span(c, span, out + count, n - count);
	}
	c->stats.taken++;
	percpu__unlock_word(&c->word);
	return count;
}

/* The span of an object that is not free, and its number in there; or it dies. */
static struct percpu__span *find(unsigned class, const void *object, const char *what, uint64_t *out)
{
	struct percpu__span *span = percpu__span_of(object);
	uint64_t offset, number;

	if (!span || span->class != class)
		percpu__malloc_die("not an object of the heap is freed", object);
	offset = (uint64_t)((const char *)object - percpu__page_address(span->page));
	number = offset / span->size;
	if (number * span->size != offset || number >= span->objects)
		percpu__malloc_die("a pointer into an object is freed", object);
	if (span->is_free[number / 64] >> number % 64 & 1)
		percpu__malloc_die(what, object);
	*out = number;
	return span;
}

void percpu__central_check(unsigned class, const void *object, const char *what)
{
	struct central *c = &centrals[class];
	uint64_t number;

	percpu__lock_word(&c->word);
	find(class, object, what, &number);
	for (unsigned i = 0; i < c->stock; i++)
		if (c->slots[i] == object)
			percpu__malloc_die(what, object);
	percpu__unlock_word(&c->word);
}

static void give_to_span(struct central *c, unsigned class, const void *object)
{
	uint64_t number;
	struct percpu__span *span = find(class, object, "an object is freed twice", &number);

	span->is_free[number / 64] |= UINT64_C(1) << number % 64;
	span->free++;
	c->stats.free++;
	if (!span->listed)
		list_span(c, span);
	/* One that is free is kept, so that an object that comes and goes does not take its span along. */
	if (span->free == span->objects && (span->next || span->previous)) {
		unlist_span(c, span);
		c->stats.spans--;
		c->stats.objects -= span->objects;
		c->stats.free -= span->objects;
		percpu__span_free(span);
	}
}

void percpu__central_give(unsigned class, void *const *objects, unsigned n)
{
	struct central *c = &centrals[class];
	unsigned count;

	percpu__lock_word(&c->word);
	c->stats.given++;
	if (c->stock && c->slots[c->stock - 1] == objects[n - 1])
		percpu__malloc_die("an object is freed twice", objects[n - 1]);
	count = c->stock_most > c->stock ? (unsigned)c->stock_most - c->stock : 0;
	if (count > n)
		count = n;
	memcpy(c->slots + c->stock, objects, count * sizeof(*objects));
	c->stock = (uint16_t)(c->stock + count);
	for (; count < n; count++)
		give_to_span(c, class, objects[count]);
	percpu__unlock_word(&c->word);
}

void percpu__central_trim(void)
{
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct central *c = &centrals[i];

		percpu__lock_word(&c->word);
		while (c->stock)
			give_to_span(c, i, c->slots[--c->stock]);
		if (c->partial && c->partial->free == c->partial->objects) {
			struct percpu__span *span = c->partial;

			unlist_span(c, span);
			c->stats.spans--;
			c->stats.objects -= span->objects;
			c->stats.free -= span->objects;
			percpu__span_free(span);
		}
		percpu__unlock_word(&c->word);
	}
}

void percpu__central_without_stocks(void)
{
	for (unsigned i = 1; i <= CLASSES; i++) {
		percpu__lock_word(&centrals[i].word);
		centrals[i].stock_most = 0;
		percpu__unlock_word(&centrals[i].word);
	}
	percpu__central_trim();
}

void percpu__central_stats(unsigned class, struct percpu__class_stats *stats)
{
	struct central *c = &centrals[class];

	percpu__lock_word(&c->word);
	*stats = c->stats;
	stats->stock = c->stock;
	percpu__unlock_word(&c->word);
}

void percpu__central_lock_all(void)
{
	for (unsigned i = 1; i <= CLASSES; i++)
		percpu__lock_word(&centrals[i].word);
	percpu__heap_lock();
}

void percpu__central_unlock_all(void)
{
	percpu__heap_unlock();
	for (unsigned i = 1; i <= CLASSES; i++)
		percpu__unlock_word(&centrals[i].word);
}

void percpu__central_relock_all(void)
{
	for (unsigned i = 1; i <= CLASSES; i++)
		__atomic_store_n(&centrals[i].word, 1, __ATOMIC_RELAXED);
	percpu__heap_relock();
}
