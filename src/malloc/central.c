/* SPDX-License-Identifier: MIT */
/*
 * Stocks of objects, spans with free objects.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/lock.h"
#include "malloc/lock.h"
#include "base/sys.h"
#include "malloc/central.h"
#include "malloc/options.h"

#define STOCK_MOST  (4 * BATCH_MOST)
#define BATCH_BYTES ((size_t)8 << 10)  /* a batch of large objects is not more than this, but at least one */
#define STOCK_BYTES ((size_t)64 << 10) /* of large objects */
#define LEVELS      8U                 /* spans by how full they are */
#define NODES       64U

/* Of a class, the same for all nodes. */
static struct kind {
	uint64_t size, inverse; /* 2^32 / size, rounded up */
	uint32_t pages;         /* of a span */
	uint16_t objects;       /* of a span */
	uint16_t stock_most, batch;
	uint32_t eighths; /* 64 Ki * LEVELS / objects */
} kinds[CLASSES + 1];

/* Of one class and node of memory, in lines of its own. All zero to begin with: classes that nobody uses touch no memory. */
struct central {
	uint32_t word; /* its lock */
	uint32_t stock;
	unsigned partial;                    /* spans with free objects */
	struct percpu__span *levels[LEVELS]; /* those, by the eighths of their objects that are in use */
	struct percpu__class_stats stats;
} __attribute__((aligned(64)));

struct node {
	struct central centrals[CLASSES + 1];
	void *stocks[CLASSES + 1][STOCK_MOST];
};
static struct node first_node;
static struct node *nodes[NODES] = { &first_node };
static uint32_t nodes_word; /* lock of making one */
static bool several;        /* nodes */

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

/*
 * As few pages as are used up by objects but for a sixteenth at most: what still is in use of many small spans takes less memory than what
 * is of a few large ones.
 */
static uint32_t span_pages(size_t size)
{
	for (uint32_t pages = 1;; pages++) {
		size_t bytes = (size_t)pages << PAGE_LOG, objects = bytes / size;

		if (objects > SPAN_OBJECTS)
			objects = SPAN_OBJECTS;
		if (objects && (bytes - objects * size) * 16 <= bytes)
			return pages;
	}
}

void percpu__central_start(void)
{
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct kind *k = &kinds[i];
		size_t batch;

		k->size = percpu__class_size(i);
		k->inverse = ((UINT64_C(1) << 32) + k->size - 1) / k->size;
		k->pages = span_pages(k->size);
		k->objects = (uint16_t)(((size_t)k->pages << PAGE_LOG) / k->size);
		if (k->objects > SPAN_OBJECTS)
			k->objects = SPAN_OBJECTS;
		k->eighths = (LEVELS << 16) / k->objects;
		batch = BATCH_BYTES / k->size;
		k->batch = (uint16_t)(batch < 1 ? 1 : batch > BATCH_MOST / 2 ? BATCH_MOST / 2 : batch);
		k->stock_most = (uint16_t)(k->size > BATCH_BYTES ? STOCK_BYTES / k->size : k->batch * 4UL);
	}
}

unsigned percpu__batch_of(unsigned class)
{
	return kinds[class].batch;
}

static struct node *make_node(unsigned number)
{
	struct node *node;
	long p;

	percpu__malloc_lock(&nodes_word);
	node = nodes[number];
	if (!node) {
		p = percpu__sys6(SYS_mmap, 0, sizeof(*node), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		/* Without memory for it, the first node does for both, this time. */
		if (p > 0) {
			node = (struct node *)p;
			__atomic_store_n(&nodes[number], node, __ATOMIC_RELEASE);
			__atomic_store_n(&several, true, __ATOMIC_RELAXED);
		}
	}
	percpu__malloc_unlock(&nodes_word);
	return node ? node : &first_node;
}

static struct node *node_at(unsigned number)
{
	struct node *node = __atomic_load_n(&nodes[number], __ATOMIC_ACQUIRE);

	return PERCPU__LIKELY(node != NULL) ? node : make_node(number);
}

/* The slots of its stock. */
static void **stock_of(struct central *c, unsigned class)
{
	return ((struct node *)(void *)(c - class))->stocks[class];
}

/* Spans with free objects. */

static unsigned level_of(const struct percpu__span *span)
{
	return (unsigned)(span->objects - span->free) * kinds[span->class].eighths >> 16;
}

static void list_span(struct central *c, struct percpu__span *span)
{
	struct percpu__span **head = &c->levels[level_of(span)];

	span->previous = NULL;
	span->next = *head;
	if (*head)
		(*head)->previous = span;
	*head = span;
	span->listed = true;
	c->partial++;
}

static void unlist_span(struct central *c, struct percpu__span *span)
{
	if (span->previous)
		span->previous->next = span->next;
	else
		c->levels[level_of(span)] = span->next;
	if (span->next)
		span->next->previous = span->previous;
	span->listed = false;
	c->partial--;
}

/* The fullest: so that others may become free. */
static struct percpu__span *best_span(const struct central *c)
{
	for (unsigned i = LEVELS; c->partial && i-- > 0;)
		if (c->levels[i])
			return c->levels[i];
	return NULL;
}

static struct percpu__span *new_span(struct central *c, unsigned class, unsigned node)
{
	struct percpu__span *span = percpu__span_new(kinds[class].pages, 1, class, node);

	if (!span)
		return NULL;
	span->size = kinds[class].size;
	span->objects = span->free = kinds[class].objects;
	for (unsigned i = 0; i < SPAN_OBJECTS / 64; i++)
		span->is_free[i] = span->objects >= (i + 1) * 64 ? ~UINT64_C(0)
				   : span->objects > i * 64      ? (UINT64_C(1) << span->objects % 64) - 1
								 : 0;
	c->stats.pages = span->pages;
	c->stats.spans++;
	c->stats.new_spans++;
	c->stats.objects += span->objects;
	c->stats.free += span->objects;
	list_span(c, span);
	return span;
}

/* In rising order of addresses. */
static unsigned take_in_order(struct percpu__span *span, void **out, unsigned n)
{
	char *base = percpu__page_address(span->page);
	unsigned count = 0;

	for (unsigned i = 0; i < SPAN_OBJECTS / 64 && count < n; i++)
		while (span->is_free[i] && count < n) {
			unsigned object = i * 64 + (unsigned)__builtin_ctzl(span->is_free[i]);

			span->is_free[i] &= span->is_free[i] - 1;
			out[count++] = base + object * span->size;
		}
	return count;
}

/* Each is the first that is free behind a place that nobody can guess. 0: there is no chance to be had. */
static unsigned take_in_no_order(struct percpu__span *span, void **out, unsigned n)
{
	char *base = percpu__page_address(span->page);
	uint16_t dice[BATCH_MOST] = { 0 };
	long bytes;

	n = n < span->free ? n : span->free;
	bytes = (long)(n * sizeof(*dice));
	if (percpu__sys4(SYS_getrandom, (long)dice, bytes, GRND_NONBLOCK, 0) != bytes)
		return 0;
	for (unsigned count = 0; count < n; count++) {
		unsigned object = dice[count] % span->objects;

		while (!(span->is_free[object / 64] >> object % 64 & 1))
			object = object + 1 < span->objects ? object + 1 : 0;
		span->is_free[object / 64] &= ~(UINT64_C(1) << object % 64);
		out[count] = base + object * span->size;
	}
	return n;
}

static unsigned take_from_span(struct central *c, struct percpu__span *span, void **out, unsigned n)
{
	unsigned count = 0;

	unlist_span(c, span);
	if (PERCPU__UNLIKELY(percpu__malloc_options.random))
		count = take_in_no_order(span, out, n);
	if (!count)
		count = take_in_order(span, out, n);
	span->free = (uint16_t)(span->free - count);
	c->stats.free -= count;
	if (span->free)
		list_span(c, span);
	return count;
}

unsigned percpu__central_take(unsigned class, void **out, unsigned n)
{
	unsigned node = percpu__heap_node(), count;
	struct central *c = &node_at(node)->centrals[class];

	percpu__malloc_lock(&c->word);
	count = c->stock < n ? c->stock : n;
	c->stock = (uint16_t)(c->stock - count);
	memcpy(out, stock_of(c, class) + c->stock, count * sizeof(*out));
	c->stats.stock = c->stock;
	c->stats.taken++;
	c->stats.stock_misses += count < n;
	while (count < n) {
		struct percpu__span *span = best_span(c);

		/* A new one only if there is nothing at all. */
		if (!span && count)
			break;
		if (!span)
			span = new_span(c, class, node);
		if (!span)
			break;
		count += take_from_span(c, span, out + count, n - count);
	}
	percpu__malloc_unlock(&c->word);
	return count;
}

/* The number in its span of an object that is not free; or it dies. */
static bool find_in(const struct percpu__span *span, unsigned class, const void *object, const char *what,
		    uint64_t *out)
{
	uint64_t offset = (uint64_t)((const char *)object - percpu__page_address(span->page));
	uint64_t number = offset * kinds[class].inverse >> 32;

	if (number * span->size != offset || number >= span->objects)
		percpu__malloc_die("a pointer into an object is freed", object);
	if (span->is_free[number / 64] >> number % 64 & 1)
		percpu__malloc_die(what, object);
	*out = number;
	return true;
}

/* The span, too. */
static struct percpu__span *find(unsigned class, const void *object, const char *what, uint64_t *out)
{
	struct percpu__span *span = percpu__span_of(object);

	if (!span || span->class != class)
		percpu__malloc_die("not an object of the heap is freed", object);
	find_in(span, class, object, what, out);
	return span;
}

/* Of who owns the memory of an object of this class. */
static struct central *central_of(unsigned class, const void *object)
{
	const struct percpu__span *span;

	if (PERCPU__LIKELY(!__atomic_load_n(&several, __ATOMIC_RELAXED)))
		return &first_node.centrals[class];
	span = percpu__span_of(object);
	return &(span ? node_at(span->node % NODES) : &first_node)->centrals[class];
}

void percpu__central_check(unsigned class, const void *object, const char *what)
{
	struct central *c = central_of(class, object);
	uint64_t number;

	percpu__malloc_lock(&c->word);
	find(class, object, what, &number);
	for (unsigned i = 0; i < c->stock; i++)
		if (stock_of(c, class)[i] == object)
			percpu__malloc_die(what, object);
	percpu__malloc_unlock(&c->word);
}

static void drop_span(struct central *c, struct percpu__span *span, struct percpu__span **dead)
{
	unlist_span(c, span);
	c->stats.spans--;
	c->stats.objects -= span->objects;
	c->stats.free -= span->objects;
	span->next = *dead;
	*dead = span;
}

/*
 * As many of the objects as lie in the span of the first one, which is how they mostly come. Returns how many. Spans that become
 * free are for who has the lock, to give away once he has it no more.
 */
static unsigned give_to_span(struct central *c, unsigned class, void *const *objects, unsigned n,
			     struct percpu__span **dead)
{
	uint64_t number;
	struct percpu__span *span = find(class, objects[0], "an object is freed twice", &number);
	const char *base = percpu__page_address(span->page);
	uint64_t bytes = span->pages << PAGE_LOG;
	unsigned count = 0;
	bool move;

	do {
		span->is_free[number / 64] |= UINT64_C(1) << number % 64;
		count++;
	} while (count < n && (uint64_t)((const char *)objects[count] - base) < bytes &&
		 find_in(span, class, objects[count], "an object is freed twice", &number));
	/* From one level to another only now and then. */
	move = !span->listed ||
	       level_of(span) != ((unsigned)(span->objects - span->free - count) * kinds[class].eighths >> 16);
	if (move && span->listed)
		unlist_span(c, span);
	span->free = (uint16_t)(span->free + count);
	c->stats.free += count;
	if (move)
		list_span(c, span);
	/* One that is free is kept, so that an object that comes and goes does not take its span along. */
	if (span->free == span->objects && c->partial > 1)
		drop_span(c, span, dead);
	return count;
}

static void give_to_spans(struct central *c, unsigned class, void *const *objects, unsigned n,
			  struct percpu__span **dead)
{
	for (unsigned i = 0; i < n;)
		i += give_to_span(c, class, objects + i, n - i, dead);
}

/* Until it holds so many. */
static void lower_stock(struct central *c, unsigned class, unsigned most, struct percpu__span **dead)
{
	if (c->stock <= most)
		return;
	give_to_spans(c, class, stock_of(c, class) + most, c->stock - most, dead);
	c->stock = (uint16_t)most;
	c->stats.stock = most;
}

static void bury(struct percpu__span *dead)
{
	while (dead) {
		struct percpu__span *next = dead->next;

		percpu__span_free(dead);
		dead = next;
	}
}

/* All of one node. */
static void give(struct central *c, unsigned class, void *const *objects, unsigned n)
{
	struct percpu__span *dead = NULL;
	uint64_t in_use;
	unsigned most, count;

	percpu__malloc_lock(&c->word);
	c->stats.given++;
	if (c->stock && stock_of(c, class)[c->stock - 1] == objects[n - 1])
		percpu__malloc_die("an object is freed twice", objects[n - 1]);
	/* What is not in use any more had better become free spans. */
	in_use = c->stats.objects - c->stats.free - c->stock;
	most = in_use / 8 < kinds[class].stock_most ? (unsigned)in_use / 8 : kinds[class].stock_most;
	lower_stock(c, class, most, &dead);
	count = most - c->stock < n ? most - c->stock : n;
	memcpy(stock_of(c, class) + c->stock, objects, count * sizeof(*objects));
	c->stock = (uint16_t)(c->stock + count);
	c->stats.stock = c->stock;
	give_to_spans(c, class, objects + count, n - count, &dead);
	percpu__malloc_unlock(&c->word);
	bury(dead);
}

void percpu__central_give(unsigned class, void *const *objects, unsigned n)
{
	unsigned from = 0;

	/* Neighbours mostly come from one node. */
	for (unsigned i = 1; i <= n; i++)
		if (i == n ||
		    (PERCPU__UNLIKELY(several) && central_of(class, objects[i]) != central_of(class, objects[from]))) {
			give(central_of(class, objects[from]), class, objects + from, i - from);
			from = i;
		}
}

uint64_t percpu__central_in_use(unsigned class)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < (several ? NODES : 1); i++) {
		const struct node *node = __atomic_load_n(&nodes[i], __ATOMIC_ACQUIRE);
		const struct central *c = node ? &node->centrals[class] : NULL;
		uint64_t objects = c ? __atomic_load_n(&c->stats.objects, __ATOMIC_RELAXED) : 0;
		uint64_t free = c ? __atomic_load_n(&c->stats.free, __ATOMIC_RELAXED) + c->stock : 0;

		sum += objects > free ? objects - free : 0;
	}
	return sum;
}

#define EACH_CENTRAL(c, class)                                                                                         \
	for (unsigned node_ = 0; node_ < NODES; node_++)                                                               \
		if (__atomic_load_n(&nodes[node_], __ATOMIC_ACQUIRE))                                                  \
			for (unsigned class = 1; class <= CLASSES; class ++)                                           \
				for (struct central *c = &nodes[node_]->centrals[class], *once_ = c; once_;            \
				     once_ = NULL)

void percpu__central_trim(void)
{
	EACH_CENTRAL(c, class)
	{
		struct percpu__span *dead = NULL;

		percpu__malloc_lock(&c->word);
		lower_stock(c, class, 0, &dead);
		if (c->levels[0] && c->levels[0]->free == c->levels[0]->objects)
			drop_span(c, c->levels[0], &dead);
		percpu__malloc_unlock(&c->word);
		bury(dead);
	}
}

void percpu__central_without_stocks(void)
{
	for (unsigned i = 1; i <= CLASSES; i++)
		kinds[i].stock_most = 0;
	percpu__central_trim();
}

void percpu__class_stats_add(struct percpu__class_stats *sum, const struct percpu__class_stats *stats)
{
	const uint64_t *from = (const uint64_t *)(const void *)stats;
	uint64_t *to = (uint64_t *)(void *)sum, pages = sum->pages;

	for (size_t i = 0; i < sizeof(*sum) / sizeof(*to); i++)
		to[i] += __atomic_load_n(&from[i], __ATOMIC_RELAXED);
	/* Where there has been no span it is 0. */
	sum->pages = pages ? pages : sum->pages;
}

void percpu__central_stats(unsigned class, struct percpu__class_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	for (unsigned i = 0; i < NODES; i++) {
		const struct node *node = __atomic_load_n(&nodes[i], __ATOMIC_ACQUIRE);

		if (node)
			percpu__class_stats_add(stats, &node->centrals[class].stats);
	}
}

void percpu__central_words(struct percpu__central_words *words)
{
	*words = (struct percpu__central_words){
		.nodes = (uintptr_t)nodes,
		.count = NODES,
		.first = offsetof(struct node, centrals[0].stats),
		.stride = sizeof(struct central),
	};
}

/* In the order of nodes and classes, then the heap. */
void percpu__central_lock_all(void)
{
	percpu__malloc_lock(&nodes_word);
	EACH_CENTRAL(c, class)
	percpu__malloc_lock(&c->word);
	percpu__heap_lock();
}

void percpu__central_unlock_all(void)
{
	percpu__heap_unlock();
	EACH_CENTRAL(c, class)
	percpu__malloc_unlock(&c->word);
	percpu__malloc_unlock(&nodes_word);
}

void percpu__central_relock_all(void)
{
	EACH_CENTRAL(c, class)
	__atomic_store_n(&c->word, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&nodes_word, 1, __ATOMIC_RELAXED);
	percpu__heap_relock();
}
