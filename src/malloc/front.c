/* SPDX-License-Identifier: MIT */
/*
 * Magazines, cold half: filling and emptying them, how large they may be, and emptying those that nobody uses.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/single_threaded.h>
#include <time.h>

#include <percpu/area.h>
#include <percpu/ops.h>

#include "base/lock.h"
#include "base/sys.h"
#include "gate/gate.h"
#include "malloc/fast.h"
#include "rseq/thread.h"

#define SLOTS_MOST 512U
/* An index whose threads have not been in a slow path for so long loses what its magazines hold. */
#define IDLE_MS    2000
#define IDLE_TURNS 256
/* What a magazine may hold from the start on, in bytes of objects. */
#define FREE_ROOM ((size_t)8 << 10)
/* Of one class; but always room for two batches. */
#define CLASS_MOST ((size_t)256 << 10)

#define WHERE_ZERO ((uint32_t)offsetof(struct percpu__rseq, flags))
#define NO_FRONT   ((struct percpu__front *)(uintptr_t)percpu__no_front)

const struct percpu__magazine percpu__no_front[CLASSES + 1];
struct percpu__malloc_ready percpu__malloc_ready = {
	.take = NO_FRONT, .put = NO_FRONT, .take_index = WHERE_ZERO, .put_index = WHERE_ZERO
};
static const struct percpu__malloc_ready not_ready = {
	.take = NO_FRONT, .put = NO_FRONT, .take_index = WHERE_ZERO, .put_index = WHERE_ZERO
};
static struct percpu__malloc_ready ready_late;
const struct percpu__malloc_ready *percpu__malloc_hot = &not_ready;

struct percpu__front *percpu__front;
uint64_t percpu__front_room = (uint64_t)3 << 20;
unsigned percpu__malloc_watched;

static uint32_t start_word, drain_word;
static bool started;

static unsigned slots_of(unsigned class)
{
	size_t size = percpu__class_size(class), slots = CLASS_MOST / size, least = 2UL * percpu__batch_of(class);

	slots = slots < SLOTS_MOST ? slots : SLOTS_MOST;
	return (unsigned)(slots > least ? slots : least);
}

static uint64_t load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static void store(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static struct percpu__magazine *magazine_of(unsigned index, unsigned class)
{
	return &percpu_ptr(percpu__front, index)->magazines[class];
}

/* Distances are the same in each copy: slots of one class behind those of the one before, all behind the front. */
static uint64_t least_of(unsigned class)
{
	static uint32_t distances[CLASSES + 1];
	uint32_t at = sizeof(struct percpu__front) + 64;

	if (!distances[CLASSES]) {
		for (unsigned i = 1; i <= CLASSES; i++) {
			/* From its words; one slot in front is read by who looks at the top of an empty magazine. */
			distances[i] = at + 8 - (uint32_t)offsetof(struct percpu__front, magazines[i]);
			at += (slots_of(i) + 2) * 8;
		}
	}
	return distances[class];
}

static size_t front_bytes(void)
{
	return offsetof(struct percpu__front, magazines[CLASSES]) + least_of(CLASSES) + (slots_of(CLASSES) + 2) * 8UL;
}

/*
 * Room for one batch to begin with, if that is little: it is not counted, as classes that nobody uses hold nothing. In this
 * order: sections that see some of it find nothing to take, and no room.
 */
static void prepare(unsigned index)
{
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct percpu__magazine *m = magazine_of(index, i);
		uint64_t least = least_of(i), room = percpu__batch_of(i) * percpu__class_size(i);

		__atomic_store_n(&m->least, least, __ATOMIC_RELEASE);
		__atomic_store_n(&m->next, least, __ATOMIC_RELEASE);
		__atomic_store_n(&m->most, least + (room > FREE_ROOM ? 0 : percpu__batch_of(i) * 8UL),
				 __ATOMIC_RELEASE);
	}
}

static void before_fork(void)
{
	percpu__lock_word(&drain_word);
	percpu__central_lock_all();
}

static void after_fork(void)
{
	percpu__central_unlock_all();
	percpu__unlock_word(&drain_word);
}

static void in_child(void)
{
	percpu__central_relock_all();
	__atomic_store_n(&drain_word, 1, __ATOMIC_RELAXED);
	after_fork();
}

/* What is called here may allocate: its thread then comes here again, and finds the heap alone. */
static bool start(void)
{
	struct percpu__malloc_ready hot = {
		.take = NO_FRONT, .put = NO_FRONT, .take_index = WHERE_ZERO, .put_index = WHERE_ZERO
	};
	struct percpu_description how;
	struct percpu__front *front = NULL;

	if (!percpu__heap.bytes) {
		percpu__central_start();
		if (percpu__heap_start())
			return false;
	}
	percpu_describe(&how);
	/* Where no thread runs sections, or there is no memory for magazines, the stocks do. */
	if (how.mode != PERCPU_MODE_NONE)
		front = percpu_alloc(front_bytes(), 64);
	least_of(CLASSES);
	__atomic_store_n(&percpu__front, front, __ATOMIC_RELEASE);
	hot.base = (uintptr_t)percpu__heap.base;
	hot.units = percpu__heap.bytes >> QUANTUM_LOG;
	hot.pages = percpu__heap.distances;
	if (front && !percpu__malloc_watched) {
		hot.take = front;
		hot.take_index = percpu__index_offset;
	}
	if (front && !(percpu__malloc_watched & PERCPU__WATCH_CHECK)) {
		hot.put = front;
		hot.put_index = percpu__index_offset;
	}
	ready_late = hot;
	__atomic_store_n(&percpu__malloc_hot, &ready_late, __ATOMIC_RELEASE);
	if (__libc_single_threaded)
		percpu__malloc_ready = hot;
	pthread_atfork(before_fork, after_fork, in_child);
	__atomic_store_n(&started, true, __ATOMIC_RELEASE);
	return true;
}

bool percpu__malloc_start(void)
{
	static uintptr_t starter;
	uintptr_t me = (uintptr_t)&percpu__private;
	bool ok;

	if (__atomic_load_n(&started, __ATOMIC_ACQUIRE))
		return true;
	if (__atomic_load_n(&starter, __ATOMIC_RELAXED) == me)
		return percpu__heap.bytes != 0;
	percpu__lock_word(&start_word);
	__atomic_store_n(&starter, me, __ATOMIC_RELAXED);
	ok = started || start();
	__atomic_store_n(&starter, 0, __ATOMIC_RELAXED);
	percpu__unlock_word(&start_word);
	return ok;
}

/*
 * A magazine that is too small grows by a batch, as long as the index has room; else another one of it shrinks. Who has
 * closed the magazine finds `most` as he left it.
 */
static void shrink_another(struct percpu__front *front, unsigned class, uint64_t bytes)
{
	for (unsigned tries = 0; tries < CLASSES && bytes; tries++) {
		unsigned i = __atomic_add_fetch(&front->hand, 1, __ATOMIC_RELAXED) % CLASSES + 1;
		struct percpu__magazine *m = &front->magazines[i];
		uint64_t most = load(&m->most), least = load(&m->least), batch = percpu__batch_of(i) * 8UL;

		if (i == class || least == UINT64_MAX || most < least + 2 * batch)
			continue;
		if (__atomic_compare_exchange_n(&m->most, &most, most - batch, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
			__atomic_fetch_sub(&front->room, batch / 8 * percpu__class_size(i), __ATOMIC_RELAXED);
			bytes -= bytes < batch / 8 * percpu__class_size(i) ? bytes : batch / 8 * percpu__class_size(i);
		}
	}
}

static void grow(struct percpu__front *front, unsigned class)
{
	struct percpu__magazine *m = &front->magazines[class];
	uint64_t most = load(&m->most), least = load(&m->least), batch = percpu__batch_of(class);
	uint64_t bytes = batch * percpu__class_size(class);

	if (least == UINT64_MAX || most + batch * 8 > least + slots_of(class) * 8UL)
		return;
	if (load(&front->room) + bytes > percpu__front_room)
		shrink_another(front, class, bytes);
	if (load(&front->room) + bytes <= percpu__front_room &&
	    __atomic_compare_exchange_n(&m->most, &most, most + batch * 8, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		__atomic_fetch_add(&front->room, bytes, __ATOMIC_RELAXED);
}

/* The copy that this thread is on; NULL if it runs no sections, or there is none. Prepared at its first use. */
static struct percpu__front *own_front(void)
{
	struct percpu__front *front = __atomic_load_n(&percpu__front, __ATOMIC_ACQUIRE);
	unsigned index;

	if (!front || !percpu__runs_sections())
		return NULL;
	index = percpu__current_index(PERCPU__BY_ID);
	if (index >= percpu__remainder)
		return NULL;
	front = percpu_ptr(front, index);
	if (PERCPU__UNLIKELY(!load(&front->magazines[CLASSES].least))) {
		percpu__lock_word(&drain_word);
		if (!front->magazines[CLASSES].least)
			prepare(index);
		percpu__unlock_word(&drain_word);
	}
	return front;
}

/* Sections on the magazine of the current index. */

static uintptr_t take_one(unsigned class)
{
	uintptr_t word = PERCPU__LEFT_WORD;

	(void)class;
	for (int i = 0; i < PERCPU_ABORT_BUDGET && word == PERCPU__LEFT_WORD; i++)
		word = PERCPU__TRY_WORD(
			(uintptr_t)percpu__try_take(percpu__index_offset, &percpu__front->magazines[class]));
	return word;
}

static int put_one(unsigned class, void *object)
{
	int rc = PERCPU__LEFT;

	(void)class, (void)object;
	for (int i = 0; i < PERCPU_ABORT_BUDGET && rc == PERCPU__LEFT; i++)
		rc = PERCPU__TRY(percpu__try_put(percpu__index_offset, &percpu__front->magazines[class], object));
	return rc;
}

static int take_many(unsigned class, void **objects, unsigned n)
{
	int rc = PERCPU__LEFT;

	(void)class, (void)objects;
	for (int i = 0; i < PERCPU_ABORT_BUDGET && rc == PERCPU__LEFT; i++)
		rc = PERCPU__TRY(
			percpu__try_take_many(percpu__index_offset, &percpu__front->magazines[class], objects, n));
	return rc;
}

static int put_many(unsigned class, void *const *objects, unsigned n)
{
	int rc = PERCPU__LEFT;

	(void)class, (void)objects;
	for (int i = 0; i < PERCPU_ABORT_BUDGET && rc == PERCPU__LEFT; i++)
		rc = PERCPU__TRY(
			percpu__try_put_many(percpu__index_offset, &percpu__front->magazines[class], objects, n));
	return rc;
}

static void count(uint64_t *word)
{
	__atomic_fetch_add(word, 1, __ATOMIC_RELAXED);
}

/* Now and then, by whoever comes by. */
static void look_for_idle(const struct percpu__front *front)
{
	static uint64_t last;
	struct timespec now = { 0, 0 };
	uint64_t ms, was;

	if (load(&front->turns) % IDLE_TURNS)
		return;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
	was = load(&last);
	if (ms - was >= IDLE_MS &&
	    __atomic_compare_exchange_n(&last, &was, ms, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED) && was)
		percpu__front_drain(false);
}

/* NULL: no memory. */
static void *refill(struct percpu__front *front, unsigned class)
{
	void *objects[BATCH_MOST];
	unsigned n;

	count(&front->turns);
	count(&front->counts[class].misses);
	look_for_idle(front);
	grow(front, class);
	n = percpu__central_take(class, objects, percpu__batch_of(class));
	if (!n)
		return NULL;
	/* The lowest addresses on top. */
	for (unsigned i = 1, j = n - 1; i < j; i++, j--) {
		void *object = objects[i];

		objects[i] = objects[j];
		objects[j] = object;
	}
	if (n > 1 && put_many(class, objects + 1, n - 1) != PERCPU__DONE)
		percpu__central_give(class, objects + 1, n - 1);
	return objects[0];
}

static void *take_slow(unsigned class)
{
	struct percpu__front *front = own_front();
	void *object;
	uintptr_t word;

	if (!front)
		return percpu__central_take(class, &object, 1) ? object : NULL;
	/* It may have aborted only, or all allocations come here, or another thread has filled it meanwhile. */
	word = take_one(class);
	if (word <= PERCPU__LEFT_WORD)
		return refill(front, class);
	if (percpu__malloc_watched & PERCPU__WATCH_COUNT)
		percpu__count(&percpu__front->counts[class].hits, 1, PERCPU__BY_ID);
	return (void *)word;
}

void *percpu__take_slow(size_t size, unsigned class, size_t align)
{
	void *object = NULL;

	(void)align;
	if (percpu__malloc_start()) {
		object = take_slow(class);
		if (PERCPU__UNLIKELY(!object)) {
			/* Other classes, and other indexes, may have what this one lacks. */
			percpu__malloc_gather();
			object = take_slow(class);
		}
	}
	if (PERCPU__UNLIKELY(!object)) {
		errno = ENOMEM;
		return NULL;
	}
	if (percpu__malloc_watched & PERCPU__WATCH_ZERO)
		memset(object, 0, size);
	return object;
}

/* The section leaves if the same object is on top. */
static void look_for_double(unsigned class, void *object)
{
	uintptr_t top = take_one(class);
	void *other = (void *)top;

	if (other == object)
		percpu__malloc_die("an object is freed twice", object);
	if (top > PERCPU__LEFT_WORD && put_many(class, &other, 1) != PERCPU__DONE)
		percpu__central_give(class, &other, 1);
}

static void flush(struct percpu__front *front, unsigned class, void *object)
{
	void *objects[BATCH_MOST + 1];
	unsigned n = percpu__batch_of(class);

	count(&front->turns);
	count(&front->counts[class].flushes);
	look_for_double(class, object);
	grow(front, class);
	/* Those that were put last go: they are together with this one, which is where its double would be. */
	if (take_many(class, objects, n) != PERCPU__DONE)
		n = 0;
	for (unsigned i = 0; i < n; i++)
		if (objects[i] == object)
			percpu__malloc_die("an object is freed twice", object);
	objects[n] = object;
	percpu__central_give(class, objects, n + 1);
}

void percpu__put_slow(void *object, unsigned class)
{
	struct percpu__front *front;

	if (!class) {
		percpu__free_other(object);
		return;
	}
	if (percpu__malloc_watched & PERCPU__WATCH_CHECK)
		percpu__central_check(class, object);
	front = own_front();
	if (!front)
		percpu__central_give(class, &object, 1);
	else if (put_one(class, object) != PERCPU__DONE)
		flush(front, class, object);
}

void percpu__malloc_gather(void)
{
	percpu__front_drain(true);
	percpu__central_trim();
}

/* All of one magazine, by who has closed it. */
static void empty(struct percpu__magazine *m, unsigned class)
{
	char *words = (char *)m;
	uint64_t least = least_of(class);

	while (m->next > least) {
		uint64_t n = (m->next - least) / 8;

		if (n > BATCH_MOST)
			n = BATCH_MOST;
		m->next -= n * 8;
		percpu__central_give(class, (void *const *)(void *)(words + m->next), (unsigned)n);
	}
}

static void drain(unsigned index)
{
	uint64_t most[CLASSES + 1];
	bool fenced;

	for (unsigned i = 1; i <= CLASSES; i++) {
		most[i] = __atomic_exchange_n(&magazine_of(index, i)->most, 0, __ATOMIC_RELAXED);
		store(&magazine_of(index, i)->least, UINT64_MAX);
	}
	fenced = percpu_fence() == 0;
	for (unsigned i = 1; i <= CLASSES; i++) {
		if (fenced)
			empty(magazine_of(index, i), i);
		store(&magazine_of(index, i)->least, least_of(i));
		__atomic_store_n(&magazine_of(index, i)->most, most[i], __ATOMIC_RELEASE);
	}
}

void percpu__front_drain(bool all)
{
	if (!__atomic_load_n(&percpu__front, __ATOMIC_ACQUIRE))
		return;
	percpu__lock_word(&drain_word);
	for (unsigned index = 0; index < percpu__remainder; index++) {
		struct percpu__front *front = percpu_ptr(percpu__front, index);
		uint64_t turns = load(&front->turns);

		if (!load(&front->magazines[CLASSES].least))
			continue;
		if (all || (turns == front->seen && !front->drained)) {
			drain(index);
			front->drained = 1;
			front->drains++;
		} else if (turns != front->seen) {
			front->drained = 0;
		}
		front->seen = turns;
	}
	percpu__unlock_word(&drain_word);
}

bool percpu__front_stats(unsigned index, unsigned class, struct percpu__front_stats *stats)
{
	struct percpu__front *front = __atomic_load_n(&percpu__front, __ATOMIC_ACQUIRE);
	const struct percpu__magazine *m;
	uint64_t next, most, least = least_of(class);

	if (!front)
		return false;
	front = percpu_ptr(front, index);
	m = &front->magazines[class];
	if (!load(&front->magazines[CLASSES].least))
		return false;
	next = load(&m->next);
	most = load(&m->most);
	stats->hits = load(&front->counts[class].hits);
	stats->misses = load(&front->counts[class].misses);
	stats->flushes = load(&front->counts[class].flushes);
	stats->cached = next > least ? (next - least) / 8 : 0;
	stats->most = most > least ? (most - least) / 8 : 0;
	return true;
}

uint64_t percpu__front_cached(unsigned class)
{
	uint64_t sum = 0;

	for (unsigned index = 0; index < percpu__remainder; index++) {
		struct percpu__front_stats stats;

		if (percpu__front_stats(index, class, &stats))
			sum += stats.cached;
	}
	return sum;
}
