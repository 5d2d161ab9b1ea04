/* SPDX-License-Identifier: MIT */
/*
 * Magazines, cold half: filling and emptying them, how large they may be, and emptying those that nobody uses.
 */
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include <percpu/area.h>
#include <percpu/ops.h>

#include "base/lock.h"
#include "base/sys.h"
#include "gate/gate.h"
#include "malloc/front.h"
#include "rseq/thread.h"

#define SLOTS_MOST 512U
/* An index whose threads have not been in a slow path for so long loses what its magazines hold. */
#define IDLE_MS    2000
#define IDLE_TURNS 256
/* Of one class; but always room for two batches. */
#define CLASS_MOST ((size_t)256 << 10)

struct percpu__malloc_ready percpu__malloc_ready;
uint64_t percpu__front_room = (uint64_t)3 << 20;

static uint32_t start_word, drain_word;

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
	return &percpu_ptr(percpu__malloc_ready.front, index)->magazines[class];
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
 * Room for one batch to begin with. Classes that nobody uses hold nothing, so it is not counted. In this order: sections that
 * see some of it find nothing to take, and no room.
 */
static void prepare(unsigned index)
{
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct percpu__magazine *m = magazine_of(index, i);
		uint64_t least = least_of(i);

		m->size = slots_of(i) * 8;
		__atomic_store_n(&m->least, least, __ATOMIC_RELEASE);
		__atomic_store_n(&m->next, least, __ATOMIC_RELEASE);
		__atomic_store_n(&m->most, least + percpu__batch_of(i) * 8UL, __ATOMIC_RELEASE);
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
	struct percpu_description how;
	struct percpu__front *front;

	if (!percpu__heap.bytes) {
		percpu__central_start();
		if (percpu__heap_start())
			return false;
	}
	percpu_describe(&how);
	front = percpu_alloc(front_bytes(), 64);
	if (!front)
		return false;
	__atomic_store_n(&percpu__malloc_ready.front, front, __ATOMIC_RELEASE);
	percpu__malloc_ready.index_offset = percpu__index_offset;
	pthread_atfork(before_fork, after_fork, in_child);
	__atomic_store_n(&percpu__malloc_ready.limit, percpu__remainder, __ATOMIC_RELEASE);
	return true;
}

bool percpu__malloc_start(void)
{
	static uintptr_t starter;
	uintptr_t me = (uintptr_t)&percpu__private;
	bool ok;

	if (__atomic_load_n(&percpu__malloc_ready.limit, __ATOMIC_ACQUIRE))
		return true;
	if (__atomic_load_n(&starter, __ATOMIC_RELAXED) == me)
		return percpu__heap.bytes != 0;
	percpu__lock_word(&start_word);
	__atomic_store_n(&starter, me, __ATOMIC_RELAXED);
	ok = percpu__malloc_ready.limit || start();
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

	if (least == UINT64_MAX || most + batch * 8 > least + m->size)
		return;
	if (load(&front->room) + bytes > percpu__front_room)
		shrink_another(front, class, bytes);
	if (load(&front->room) + bytes <= percpu__front_room &&
	    __atomic_compare_exchange_n(&m->most, &most, most + batch * 8, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		__atomic_fetch_add(&front->room, bytes, __ATOMIC_RELAXED);
}

/* The copy that this thread is on; NULL if it runs no sections. Prepared at its first use. */
static struct percpu__front *own_front(void)
{
	struct percpu__front *front;
	unsigned index;

	if (!percpu__runs_sections())
		return NULL;
	index = percpu__current_index(PERCPU__BY_ID);
	if (index >= percpu__malloc_ready.limit)
		return NULL;
	front = percpu_ptr(percpu__malloc_ready.front, index);
	if (!load(&front->magazines[CLASSES].least)) {
		percpu__lock_word(&drain_word);
		if (!front->magazines[CLASSES].least)
			prepare(index);
		percpu__unlock_word(&drain_word);
	}
	__atomic_fetch_add(&front->turns, 1, __ATOMIC_RELAXED);
	return front;
}

static int put_many(unsigned class, void *const *objects, unsigned n)
{
	int rc = PERCPU__LEFT;

	(void)class, (void)objects;
	for (int i = 0; i < PERCPU_ABORT_BUDGET && rc == PERCPU__LEFT; i++)
		rc = PERCPU__TRY(percpu__try_put_many(&percpu__malloc_ready.front->magazines[class], objects, n));
	return rc;
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

void *percpu__take_slow(unsigned class)
{
	void *objects[BATCH_MOST];
	struct percpu__front *front;
	unsigned n;

	if (!percpu__malloc_start())
		return NULL;
	front = own_front();
	if (!front)
		return percpu__central_take(class, objects, 1) ? objects[0] : NULL;
	/* It may have aborted only, or have been filled by another thread meanwhile. */
	for (int i = 0; i < PERCPU_ABORT_BUDGET; i++) {
		uintptr_t word = (uintptr_t)PERCPU__TRY_WORD(
			(uintptr_t)percpu__try_take(&percpu__malloc_ready.front->magazines[class]));

		if (word > PERCPU__LEFT_WORD)
			return (void *)word;
		if (!word)
			break;
	}
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

/* The section leaves if the same object is on top. */
static void look_for_double(unsigned class, void *object)
{
	uintptr_t top =
		(uintptr_t)PERCPU__TRY_WORD((uintptr_t)percpu__try_take(&percpu__malloc_ready.front->magazines[class]));
	void *other = (void *)top;

	if (other == object)
		percpu__malloc_die("an object is freed twice", object);
	if (top > PERCPU__LEFT_WORD && put_many(class, &other, 1) != PERCPU__DONE)
		percpu__central_give(class, &other, 1);
}

void percpu__put_slow(unsigned class, void *object)
{
	unsigned n = percpu__batch_of(class);
	struct percpu__front *front = own_front();
	void *objects[BATCH_MOST + 1];

	if (!front) {
		percpu__central_give(class, &object, 1);
		return;
	}
	for (int i = 0; i < PERCPU_ABORT_BUDGET; i++) {
		int rc = PERCPU__TRY(percpu__try_put(&percpu__malloc_ready.front->magazines[class], object));

		if (rc == PERCPU__DONE)
			return;
		if (rc == PERCPU__DIFFERS)
			break;
	}
	look_for_double(class, object);
	grow(front, class);
	/* Those that were put last go: they are together with this one, which is where its double would be. */
	if (PERCPU__TRY(percpu__try_take_many(&percpu__malloc_ready.front->magazines[class], objects, n)) ==
	    PERCPU__DONE) {
		for (unsigned i = 0; i < n; i++)
			if (objects[i] == object)
				percpu__malloc_die("an object is freed twice", object);
		objects[n] = object;
		percpu__central_give(class, objects, n + 1);
		return;
	}
	percpu__central_give(class, &object, 1);
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
	if (!percpu__malloc_ready.limit)
		return;
	percpu__lock_word(&drain_word);
	for (unsigned index = 0; index < percpu__malloc_ready.limit; index++) {
		struct percpu__front *front = percpu_ptr(percpu__malloc_ready.front, index);
		uint64_t turns = load(&front->turns);

		if (!load(&front->magazines[CLASSES].least))
			continue;
		if (all || (turns == front->seen && !front->drained)) {
			drain(index);
			front->drained = 1;
		} else if (turns != front->seen) {
			front->drained = 0;
		}
		front->seen = turns;
	}
	percpu__unlock_word(&drain_word);
}

uint64_t percpu__front_cached(unsigned class)
{
	uint64_t count = 0;

	for (unsigned index = 0; index < percpu__malloc_ready.limit; index++) {
		struct percpu__magazine *m = magazine_of(index, class);
		uint64_t next = load(&m->next), least = least_of(class);

		if (next > least)
			count += (next - least) / 8;
	}
	return count;
}
