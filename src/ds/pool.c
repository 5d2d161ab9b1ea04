/* SPDX-License-Identifier: MIT */
/*
 * Pools, cold half: what happens when a magazine is empty, full or closed, and what acts on all of them.
 *
 * One copy of a pool: a word that says what was drained from it, room for that; the slots; the word of the magazine, to
 * which `percpu_pool.word` points. A magazine that was never used is closed, because memory starts as zero. It is opened
 * under the depot's lock, by its own thread. It is closed under its gate, by anybody, who leaves what was in it in the
 * same copy (drained) and says so in `pending`; whoever has the depot's lock next collects it. So nobody waits for a gate
 * while he holds the lock, and what moves between magazine and depot is always in shared memory when a fork happens: a
 * fork waits for the lock and for gates under which several changes are made.
 *
 * A get that finds too little makes the pool scarce, closes every magazine, and looks again: none is opened while somebody
 * does so (`under_way`), so what he finds under the lock then is all that is free. The pool stays scarce until `plenty`
 * objects could be taken: meanwhile all work on the depot.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include <percpu/pool.h>

#include "base/sys.h"
#include "ds/depot.h"
#include "gate/fork.h"
#include "gate/gate.h"
#include "rseq/thread.h"

#define CACHED_BYTES   ((size_t)64 << 10)
#define LEAST_CAPACITY 4
#define MOST_CAPACITY  128
#define GATES          8 /* closed with one fence */
#define MOST_TURNS     4 /* of a get: more than one only if a gate could not be taken, or in a forked child */

struct percpu__depot {
	struct percpu__fork_lock lock; /* under_way: gets that look for more */
	/* Constant. */
	uint64_t *word; /* per-CPU, as in the pool */
	uint64_t *
		drained; /* per-CPU: 0, or 1 + how many objects follow; written under the gate if it is 0, else under the lock */
	size_t capacity, batch, plenty;
	unsigned flags;
	/* Under the lock. */
	struct percpu__store store;
	size_t open; /* magazines opened, and not yet collected after they were closed */
	bool scarce;
	/* Atomic: somebody was drained. */
	uint32_t pending;
};

/* The word of an empty magazine. */
static uint64_t empty(const struct percpu__depot *depot)
{
	return -(uint64_t)depot->capacity - 1;
}

/* How many objects a magazine with this word has. */
static size_t held(const struct percpu__depot *depot, uint64_t word)
{
	return word ? (size_t)(word - empty(depot)) : 0;
}

/* Operations on the own magazine that must not end in the depot: @n objects or none. */
struct move {
	struct percpu__task task;
	const struct percpu__depot *depot;
	void **objects;
	size_t n;
	bool get;
};

static int try_move(struct percpu__task *task)
{
	struct move *m = (struct move *)(void *)task;
	uint64_t *word = task->object;

	(void)m, (void)word;
	if (m->get)
		return PERCPU__TRY(percpu__try_pool_get_bulk(word, empty(m->depot) + 1, m->objects, m->n));
	return PERCPU__TRY(percpu__try_pool_put_bulk(word, m->objects, m->n));
}

static int move_plainly(struct percpu__task *task, unsigned index)
{
	struct move *m = (struct move *)(void *)task;
	uint64_t *word = percpu_ptr((uint64_t *)task->object, index), was = *word;
	size_t has = held(m->depot, was);

	if (!was || (m->get ? has < m->n : m->depot->capacity - has < m->n))
		return PERCPU__DIFFERS;
	if (m->get) {
		was -= m->n;
		memcpy(m->objects, word + (int64_t)was + 1, m->n * sizeof *m->objects);
	} else {
		memcpy(word + (int64_t)was + 1, m->objects, m->n * sizeof *m->objects);
		was += m->n;
	}
	__atomic_store_n(word, was, __ATOMIC_RELEASE);
	return PERCPU__DONE;
}

static int move(const struct percpu__depot *depot, bool get, void **objects, size_t n)
{
	struct move m = { .task = { .attempt = try_move, .plainly = move_plainly, .object = depot->word },
			  .depot = depot,
			  .objects = objects,
			  .n = n,
			  .get = get };

	return n ? percpu__slow_task(&m.task) : PERCPU__DONE;
}

/* Closing magazines. */

/* Under the gate of @index, several changes: what is in the magazine is to be collected. Whoever looks finds all or nothing. */
static void close_magazine(struct percpu__depot *depot, unsigned index)
{
	uint64_t *word = percpu_ptr(depot->word, index), *drained = percpu_ptr(depot->drained, index);
	size_t has = held(depot, *word);

	/* ACQUIRE: pairs with collect(), which has read the objects there before. */
	if (!*word || __atomic_load_n(drained, __ATOMIC_ACQUIRE))
		return;
	memcpy(drained + 1, word - depot->capacity, has * sizeof *word);
	/* RELEASE: pairs with collect(). */
	__atomic_store_n(drained, has + 1, __ATOMIC_RELEASE);
	__atomic_store_n(word, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&depot->pending, 1, __ATOMIC_RELEASE);
}

static int close_some(struct percpu__depot *depot, const unsigned *indexes, unsigned count)
{
	struct percpu_gate gates[GATES];
	int rc;

	for (unsigned i = 0; i < count; i++)
		gates[i] = (struct percpu_gate){ .base = percpu__base_of(depot->word),
						 .index = indexes[i],
						 .kinds = PERCPU__KIND_ID };
	rc = percpu__gates_lock(gates, count, true);
	if (rc)
		return rc;
	for (unsigned i = 0; i < count; i++)
		close_magazine(depot, indexes[i]);
	percpu__gates_unlock(gates, count, true);
	return 0;
}

/* Magazines whose gate cannot be taken stay open. Without the lock. */
static void close_all(struct percpu__depot *depot)
{
	unsigned indexes[GATES], count = 0;

	percpu_for_each_index(index) {
		/* One that is opened later was not open when our caller had the lock. ACQUIRE: see collect(). */
		if (__atomic_load_n(percpu_ptr(depot->word, index), __ATOMIC_ACQUIRE))
			indexes[count++] = index;
		if (!count || (count < GATES && index < percpu__remainder))
			continue;
		if (close_some(depot, indexes, count))
			for (unsigned i = 0; i < count; i++)
				close_some(depot, &indexes[i], 1);
		count = 0;
	}
}

/* The depot, under its lock. */

/* How many objects could be taken, if there is memory. */
static size_t spare(const struct percpu__depot *depot)
{
	return depot->store.max == SIZE_MAX ? depot->store.free : depot->store.max - depot->store.taken;
}

static void give(struct percpu__depot *depot, void *const *objects, size_t n)
{
	percpu__store_give(&depot->store, objects, n);
	if (depot->scarce && !depot->lock.under_way && spare(depot) >= depot->plenty)
		depot->scarce = false;
}

/*
 * @look: also at what nobody has said yet is pending: our caller has seen a magazine closed, and its closer may be
 * just before saying so.
 */
static void collect(struct percpu__depot *depot, bool look)
{
	if (!look && !__atomic_load_n(&depot->pending, __ATOMIC_RELAXED))
		return;
	/* Before we look: who drains from now on says so again. */
	__atomic_exchange_n(&depot->pending, 0, __ATOMIC_ACQ_REL);
	percpu_for_each_index(index) {
		uint64_t *drained = percpu_ptr(depot->drained, index), n = __atomic_load_n(drained, __ATOMIC_ACQUIRE);

		if (!n)
			continue;
		give(depot, (void *const *)(void *)(drained + 1), (size_t)n - 1);
		__atomic_store_n(drained, 0, __ATOMIC_RELEASE);
		depot->open--;
	}
}

static void lock(struct percpu__depot *depot, bool look, uint64_t *saved)
{
	percpu__fork_lock(&depot->lock, saved);
	collect(depot, look);
}

/* Opens the own magazine if it is closed and may be opened. */
static void open_magazine(struct percpu__depot *depot)
{
	if (!depot->scarce && !depot->lock.under_way &&
	    percpu__slow_store_if_eq(depot->word, 0, empty(depot), PERCPU__BY_ID, PERCPU__RELAXED) == PERCPU__DONE)
		depot->open++;
}

/* Half of what is left at most, so that the last objects do not all end in one magazine. */
static void refill(struct percpu__depot *depot)
{
	void *objects[MOST_CAPACITY];
	size_t n = depot->batch;

	if (depot->scarce || depot->lock.under_way)
		return;
	open_magazine(depot);
	if (depot->store.max != SIZE_MAX && n > spare(depot) / 2)
		n = spare(depot) / 2;
	n = percpu__store_take(&depot->store, objects, n);
	if (move(depot, false, objects, n) != PERCPU__DONE)
		give(depot, objects, n);
}

static bool take_all(struct percpu__depot *depot, void **out, size_t n)
{
	size_t got;

	if (n > depot->store.max - depot->store.taken)
		return false;
	got = percpu__store_take(&depot->store, out, n);
	if (got == n)
		return true;
	give(depot, out, got);
	return false;
}

/* The magazine has too little. */
static bool get_from_depot(struct percpu__depot *depot, void **out, size_t n)
{
	bool looking = false, again, got;
	uint64_t saved;

	for (unsigned turn = 0;; turn++) {
		lock(depot, looking, &saved);
		if (looking && depot->lock.under_way)
			depot->lock.under_way--;
		got = take_all(depot, out, n);
		/* With none open, all that is free was in the depot. */
		again = !got && n <= depot->store.max && depot->open && turn < MOST_TURNS;
		if (got && !looking)
			refill(depot);
		if (again) {
			looking = depot->scarce = true;
			depot->lock.under_way++;
		}
		percpu__fork_unlock(&depot->lock, &saved);
		if (!again)
			return got;
		close_all(depot);
	}
}

/* The magazine has no room, or is closed. */
static void put_in_depot(struct percpu__depot *depot, void *const *objects, size_t n)
{
	void *more[MOST_CAPACITY];
	uint64_t saved;

	lock(depot, false, &saved);
	if (move(depot, true, more, depot->batch) == PERCPU__DONE)
		give(depot, more, depot->batch);
	give(depot, objects, n);
	open_magazine(depot);
	percpu__fork_unlock(&depot->lock, &saved);
}

/* What the inline halves call. */

void *percpu__pool_get_slow(const struct percpu_pool *pool, uintptr_t word)
{
	void *object = NULL;

	if (word == PERCPU__LEFT_WORD && move(pool->depot, true, &object, 1) == PERCPU__DONE)
		return object;
	return get_from_depot(pool->depot, &object, 1) ? object : NULL;
}

void percpu__pool_put_slow(const struct percpu_pool *pool, void *object, int rc)
{
	if (rc == PERCPU__LEFT && move(pool->depot, false, &object, 1) == PERCPU__DONE)
		return;
	put_in_depot(pool->depot, &object, 1);
}

bool percpu__pool_get_bulk_slow(const struct percpu_pool *pool, void **out, size_t n, int rc)
{
	if (!n || (rc == PERCPU__LEFT && move(pool->depot, true, out, n) == PERCPU__DONE))
		return true;
	return get_from_depot(pool->depot, out, n);
}

void percpu__pool_put_bulk_slow(const struct percpu_pool *pool, void *const *objects, size_t n, int rc)
{
	if (!n || (rc == PERCPU__LEFT && move(pool->depot, false, (void **)(uintptr_t)objects, n) == PERCPU__DONE))
		return;
	put_in_depot(pool->depot, objects, n);
}

/* Rare operations. */

static size_t capacity_for(size_t size, size_t max)
{
	size_t capacity = CACHED_BYTES / size;

	capacity = capacity < LEAST_CAPACITY ? LEAST_CAPACITY : capacity;
	capacity = capacity > MOST_CAPACITY ? MOST_CAPACITY : capacity;
	return max && capacity > max ? max : capacity;
}

int percpu_pool_init(struct percpu_pool *pool, size_t size, size_t align, size_t max, unsigned flags)
{
	struct percpu__depot *depot;
	size_t capacity, words, copies;
	uint64_t *copy;
	long got;

	if (!pool || !size || size > PERCPU_POOL_SIZE_MAX || !align || align > PERCPU_POOL_ALIGN_MAX ||
	    (align & (align - 1)) || (flags & ~PERCPU_POOL_FORGET))
		return -EINVAL;
	got = percpu__sys6(SYS_mmap, 0, sizeof *depot, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (got < 0 && got > -4096)
		return -ENOMEM;
	capacity = capacity_for(size, max);
	words = 2 * capacity + 2;
	copy = percpu_alloc(words * sizeof *copy, 64);
	if (!copy) {
		percpu__sys4(SYS_munmap, got, sizeof *depot, 0, 0);
		return -ENOMEM;
	}
	copies = percpu_copies();
	depot = (struct percpu__depot *)got;
	*depot = (struct percpu__depot){ .word = copy + words - 1,
					 .drained = copy,
					 .capacity = capacity,
					 .batch = (capacity + 1) / 2,
					 .flags = flags };
	depot->plenty = depot->batch * copies;
	if (max && depot->plenty > max / 2)
		depot->plenty = max / 2 ? max / 2 : 1;
	percpu__store_init(&depot->store, size, align, max);
	percpu__fork_lock_add(&depot->lock);
	*pool = (struct percpu_pool){
		.word = depot->word, .first = empty(depot) + 1, .capacity = capacity, .depot = depot
	};
	return 0;
}

/* Under the lock. */
static size_t in_magazines(const struct percpu__depot *depot)
{
	size_t n = 0;

	percpu_for_each_index(index) {
		uint64_t drained = __atomic_load_n(percpu_ptr(depot->drained, index), __ATOMIC_RELAXED);

		n += held(depot, __atomic_load_n(percpu_ptr(depot->word, index), __ATOMIC_RELAXED));
		n += drained ? (size_t)drained - 1 : 0;
	}
	return n;
}

int percpu_pool_destroy(struct percpu_pool *pool)
{
	struct percpu__depot *depot;
	bool busy;
	uint64_t saved;

	if (!pool || !pool->depot)
		return -EINVAL;
	depot = pool->depot;
	lock(depot, true, &saved);
	busy = depot->store.taken > in_magazines(depot) && !(depot->flags & PERCPU_POOL_FORGET);
	percpu__fork_unlock(&depot->lock, &saved);
	if (busy)
		return -EBUSY;
	percpu__fork_lock_remove(&depot->lock);
	percpu__store_destroy(&depot->store);
	percpu_free(depot->drained);
	percpu__sys4(SYS_munmap, (long)depot, sizeof *depot, 0, 0);
	*pool = (struct percpu_pool){ .depot = NULL };
	return 0;
}

size_t percpu_pool_trim(struct percpu_pool *pool, size_t keep)
{
	uint64_t saved;
	size_t bytes;

	if (!pool || !pool->depot)
		return 0;
	close_all(pool->depot);
	lock(pool->depot, true, &saved);
	bytes = percpu__store_trim(&pool->depot->store, keep);
	percpu__fork_unlock(&pool->depot->lock, &saved);
	return bytes;
}

int percpu_pool_stats(const struct percpu_pool *pool, struct percpu_pool_stats *out)
{
	struct percpu__depot *depot;
	uint64_t saved;
	size_t magazines;

	if (!pool || !pool->depot || !out)
		return -EINVAL;
	depot = pool->depot;
	lock(depot, true, &saved);
	magazines = in_magazines(depot);
	*out = (struct percpu_pool_stats){
		.out = depot->store.taken > magazines ? depot->store.taken - magazines : 0,
		.magazines = magazines,
		.depot = depot->store.free,
		.strays = depot->store.strays,
		.bytes = depot->store.used_chunks * depot->store.chunk_bytes + depot->store.table_bytes,
		.capacity = depot->capacity,
	};
	percpu__fork_unlock(&depot->lock, &saved);
	return 0;
}
