/* SPDX-License-Identifier: MIT */
/*
 * Magazines, cold half: filling and emptying them, how large they may be, and emptying those that nobody uses.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/random.h>
#include <string.h>
#include <sys/single_threaded.h>

#include <percpu/area.h>
#include <percpu/malloc.h>
#include <percpu/ops.h>

#include "base/lock.h"
#include "malloc/lock.h"
#include "base/sys.h"
#include "gate/gate.h"
#include "malloc/fast.h"
#include "malloc/options.h"
#include "malloc/region.h"
#include "malloc/sample.h"
#include "malloc/stats.h"
#include "rseq/thread.h"

/* In a magazine; less than CLOSED. */
#define OBJECTS_MOST 512U
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
uint32_t percpu__front_top;
uint64_t percpu__front_room = (uint64_t)3 << 20;
unsigned percpu__malloc_watched;

static uint32_t start_word, drain_word;
static bool started;

static unsigned most_of(unsigned class)
{
	size_t size = percpu__class_size(class), most = CLASS_MOST / size, least = 2UL * percpu__batch_of(class);

	most = most < OBJECTS_MOST ? most : OBJECTS_MOST;
	return (unsigned)(most > least ? most : least);
}

static uint64_t load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static unsigned number_in(uint64_t word)
{
	return (unsigned)(word & 0xffff);
}

static char *top_of(uint64_t word)
{
	return (char *)(uintptr_t)(word >> 16);
}

static unsigned most_in(uint32_t limits)
{
	return limits >> 16;
}

static uint32_t load_limits(const struct percpu__magazine *m)
{
	return __atomic_load_n(&m->limits, __ATOMIC_RELAXED);
}

/* From one value to another; false: somebody else was there. */
static bool change_limits(struct percpu__magazine *m, uint32_t from, uint32_t to)
{
	return __atomic_compare_exchange_n(&m->limits, &from, to, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static uint64_t bytes_of(unsigned class, unsigned objects)
{
	return (uint64_t)objects * percpu__class_size(class);
}

/*
 * Room for one batch to begin with, if that is little: it is not counted, as classes that nobody uses hold nothing. The word is 0
 * as it is: nothing to take.
 */
static void prepare(struct percpu__front *front)
{
	for (unsigned i = 1; i <= CLASSES; i++) {
		struct percpu__magazine *m = &front->magazines[i];
		unsigned batch = percpu__batch_of(i);

		m->refill = batch > 8 ? batch / 8 : 1;
		__atomic_store_n(&m->limits, bytes_of(i, batch) > FREE_ROOM ? 0 : batch << 16, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&front->prepared, 1, __ATOMIC_RELEASE);
}

/* Forks of the forker inside of its fork: by handlers. */
static unsigned forks;
uintptr_t percpu__malloc_forker;

static void before_fork(void)
{
	if (percpu__malloc_forking()) {
		forks++;
		return;
	}
	percpu__sample_lock_all();
	percpu__lock_word(&drain_word);
	percpu__central_lock_all();
	__atomic_store_n(&percpu__malloc_forker, (uintptr_t)&percpu__private, __ATOMIC_RELAXED);
}

static void after_fork(void)
{
	if (forks) {
		forks--;
		return;
	}
	__atomic_store_n(&percpu__malloc_forker, 0, __ATOMIC_RELAXED);
	percpu__central_unlock_all();
	percpu__unlock_word(&drain_word);
	percpu__sample_unlock_all();
}

/* Whoever waited for a lock is not here any more. */
static void in_child(void)
{
	if (!forks) {
		percpu__sample_relock_all();
		percpu__central_relock_all();
		__atomic_store_n(&drain_word, 1, __ATOMIC_RELAXED);
	}
	after_fork();
}

/*
 * The C library says so before it makes the second thread, whose memory it then gets from us: that may be the first that
 * anybody asks for.
 */
static bool is_single_threaded(void)
{
	char text[600], *at;
	long fd, n;

	if (__libc_single_threaded)
		return true;
	fd = percpu__sys4(SYS_openat, AT_FDCWD, (long)"/proc/self/stat", O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return false;
	n = percpu__sys4(SYS_read, fd, (long)text, sizeof(text) - 1, 0);
	percpu__sys4(SYS_close, fd, 0, 0, 0);
	text[n > 0 ? n : 0] = '\0';
	/* The 18th behind the name, which may hold anything. */
	at = strrchr(text, ')');
	for (unsigned i = 0; at && i < 18; i++)
		at = strchr(at + 1, ' ');
	return at && at[1] == '1' && at[2] == ' ';
}

/* What is called here may allocate: its thread then comes here again, and finds the heap alone. */
static bool start(void)
{
	struct percpu__malloc_ready hot = {
		.take = NO_FRONT, .put = NO_FRONT, .take_index = WHERE_ZERO, .put_index = WHERE_ZERO
	};
	struct percpu_description how;
	struct percpu__front *front = NULL;
	bool known = percpu__malloc_read_options();

	if (!percpu__heap.bytes) {
		percpu__central_start();
		if (percpu__heap_start())
			return false;
	}
	/* The loader is still at work. */
	if (!known)
		return true;
	percpu_describe(&how);
	/* Where no thread runs sections, or there is no memory for magazines, or each object is to be checked: spans will do. */
	if (how.mode != PERCPU_MODE_NONE && !(percpu__malloc_watched & PERCPU__WATCH_CHECK))
		front = percpu_alloc(sizeof(*front), 64);
	if (!front)
		percpu__central_without_stocks();
	__atomic_store_n(&percpu__front, front, __ATOMIC_RELEASE);
	hot.base = (uintptr_t)percpu__heap.base;
	hot.units = percpu__heap.bytes >> QUANTUM_LOG;
	hot.pages = percpu__heap.distances;
	if (front && !percpu__malloc_watched) {
		hot.take = front;
		hot.take_index = percpu__index_offset;
	}
	if (front) {
		hot.put = front;
		hot.put_index = percpu__index_offset;
	}
	ready_late = hot;
	__atomic_store_n(&percpu__malloc_hot, &ready_late, __ATOMIC_RELEASE);
	percpu__malloc_ready.base = hot.base;
	percpu__malloc_ready.pages = hot.pages;
	__atomic_store_n(&percpu__malloc_ready.units, hot.units, __ATOMIC_RELEASE);
	if (is_single_threaded())
		percpu__malloc_ready = hot;
	pthread_atfork(before_fork, after_fork, in_child);
	__atomic_store_n(&started, true, __ATOMIC_RELEASE);
	percpu__stats_start();
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
 * closed it makes it what it was.
 */
static void shrink_another(struct percpu__front *front, unsigned class, uint64_t bytes)
{
	for (unsigned tries = 0; tries < CLASSES && bytes; tries++) {
		unsigned i = __atomic_add_fetch(&front->hand, 1, __ATOMIC_RELAXED) % CLASSES + 1;
		unsigned batch = percpu__batch_of(i);
		uint32_t limits = load_limits(&front->magazines[i]);
		uint64_t less = bytes_of(i, batch);

		if (i == class || limits == CLOSED || most_in(limits) < (less > FREE_ROOM ? 1 : 2) * batch)
			continue;
		if (!change_limits(&front->magazines[i], limits, limits - (batch << 16)))
			continue;
		__atomic_fetch_sub(&front->room, less, __ATOMIC_RELAXED);
		bytes -= bytes < less ? bytes : less;
	}
}

/*
 * A magazine need not hold more than an eighth of what is in use of its class, beside a batch. Who frees what a program
 * does not need any more finds that out.
 */
static unsigned useful_most(unsigned class)
{
	unsigned batch = percpu__batch_of(class), few = batch < 16 ? 16 : batch;
	uint64_t most = 2UL * few + percpu__central_in_use(class) / 8;

	return most < OBJECTS_MOST ? (unsigned)most : OBJECTS_MOST;
}

static void shrink(struct percpu__front *front, unsigned class)
{
	unsigned most = useful_most(class), batch = percpu__batch_of(class);
	uint32_t limits = load_limits(&front->magazines[class]);
	uint32_t less = most_in(limits) > most ? (most_in(limits) - most) / batch * batch : 0;

	if (less && change_limits(&front->magazines[class], limits, limits - (less << 16)))
		__atomic_fetch_sub(&front->room, bytes_of(class, less), __ATOMIC_RELAXED);
}

static void grow(struct percpu__front *front, unsigned class)
{
	struct percpu__magazine *m = &front->magazines[class];
	uint32_t limits = load_limits(m);
	unsigned batch = percpu__batch_of(class);
	uint64_t more = bytes_of(class, batch);

	if (limits == CLOSED || most_in(limits) + batch > most_of(class) ||
	    most_in(limits) + batch > useful_most(class))
		return;
	if (load(&front->room) + more > percpu__front_room)
		shrink_another(front, class, more);
	if (load(&front->room) + more <= percpu__front_room && change_limits(m, limits, limits + (batch << 16)))
		__atomic_fetch_add(&front->room, more, __ATOMIC_RELAXED);
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
	if (PERCPU__UNLIKELY(!__atomic_load_n(&front->prepared, __ATOMIC_ACQUIRE))) {
		percpu__malloc_lock(&drain_word);
		if (!front->prepared)
			prepare(front);
		if (index >= percpu__front_top)
			__atomic_store_n(&percpu__front_top, index + 1, __ATOMIC_RELEASE);
		percpu__malloc_unlock(&drain_word);
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

	(void)class, (void)objects, (void)n;
	for (int i = 0; i < PERCPU_ABORT_BUDGET && rc == PERCPU__LEFT; i++)
		rc = PERCPU__TRY(
			percpu__try_take_many(percpu__index_offset, &percpu__front->magazines[class], objects, n));
	return rc;
}

static int put_many(unsigned class, void *const *objects, unsigned n)
{
	int rc = PERCPU__LEFT;

	(void)class, (void)objects, (void)n;
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
	static uint32_t last;
	uint32_t ms, was;

	if (load(&front->turns) % IDLE_TURNS)
		return;
	ms = percpu__heap_ms();
	was = __atomic_load_n(&last, __ATOMIC_RELAXED);
	if (ms - was >= IDLE_MS &&
	    __atomic_compare_exchange_n(&last, &was, ms, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED) && was)
		percpu__front_drain(false);
}

/* The section found nothing on top. It said so too if what is there was written to by somebody; nobody else may look. */
static void look_for_damage(struct percpu__front *front, unsigned class)
{
	struct percpu__magazine *m = &front->magazines[class];
	uint32_t limits;
	uint64_t word;

	if (!number_in(load(&m->word)))
		return;
	/* A child of fork() must not find it closed for ever. */
	percpu__malloc_lock(&drain_word);
	limits = load_limits(m);
	if (change_limits(m, limits, CLOSED)) {
		word = percpu_fence() == 0 ? m->word : 0;
		if (number_in(word) && number_in(*(uint64_t *)(void *)top_of(word)) != number_in(word) - 1)
			percpu__malloc_die("an object was written to after it was freed", top_of(word));
		__atomic_store_n(&m->limits, limits, __ATOMIC_RELEASE);
	}
	percpu__malloc_unlock(&drain_word);
}

/* How many objects come at once: few at first, so that what is used little takes little memory. */
static unsigned next_refill(struct percpu__magazine *m, unsigned class)
{
	uint32_t n = __atomic_load_n(&m->refill, __ATOMIC_RELAXED), batch = percpu__batch_of(class);

	if (n < batch)
		__atomic_store_n(&m->refill, 2 * n < batch ? 2 * n : batch, __ATOMIC_RELAXED);
	return n;
}

static void swap(void **a, void **b)
{
	void *was = *a;

	*a = *b;
	*b = was;
}

/* What is next is not to be guessed from what came before. */
static void shuffle(void **objects, unsigned n)
{
	unsigned char dice[BATCH_MOST] = { 0 };

	if (percpu__sys4(SYS_getrandom, (long)dice, n, GRND_NONBLOCK, 0) != (long)n)
		return;
	for (unsigned i = n - 1; i > 0; i--)
		swap(&objects[i], &objects[dice[i] % (i + 1)]);
}

#ifdef __x86_64__
#define PREFETCHES __attribute__((target("prfchw")))
#else
#define PREFETCHES
#endif

/* NULL: no memory. */
PREFETCHES static void *refill(struct percpu__front *front, unsigned class)
{
	void *objects[BATCH_MOST];
	unsigned n;

	count(&front->turns);
	count(&front->counts[class].misses);
	look_for_idle(front);
	look_for_damage(front, class);
	grow(front, class);
	n = percpu__central_take(class, objects, next_refill(&front->magazines[class], class));
	if (!n)
		return NULL;
	/* They may come from another CPU, all of them: then their lines do so at the same time. */
	for (unsigned i = 0; i < n; i++)
		__builtin_prefetch(objects[i], 1);
	if (PERCPU__UNLIKELY(percpu__malloc_options.random))
		shuffle(objects, n);
	else /* The lowest addresses on top. */
		for (unsigned i = 1, j = n - 1; i < j; i++, j--)
			swap(&objects[i], &objects[j]);
	if (n > 1 && put_many(class, objects + 1, n - 1) != PERCPU__DONE)
		percpu__central_give(class, objects + 1, n - 1);
	return objects[0];
}

static void *take_slow(size_t size, unsigned class, size_t align)
{
	struct percpu__front *front = own_front();
	void *object;
	uintptr_t word = 0;

	/* It may have aborted only, or all allocations come here, or another thread has filled it meanwhile. */
	if (front)
		word = take_one(class);
	if (word > PERCPU__LEFT_WORD) {
		if (percpu__malloc_watched & PERCPU__WATCH_COUNT)
			percpu__count(&percpu__front->counts[class].hits, 1, PERCPU__BY_ID);
		return (void *)word;
	}
	object = percpu__malloc_watched & PERCPU__WATCH_SAMPLE ? NULL : percpu__sample_new(size, align, false);
	if (object)
		return object;
	if (front)
		return refill(front, class);
	return percpu__central_take(class, &object, 1) ? object : NULL;
}

void *percpu__take_slow(size_t size, unsigned class, size_t align)
{
	void *object = NULL;

	if (percpu__malloc_start()) {
		if (percpu__malloc_watched & PERCPU__WATCH_SAMPLE)
			object = percpu__sample_new(size, align, true);
		if (!object)
			object = take_slow(size, class, align);
		if (PERCPU__UNLIKELY(!object)) {
			/* Other classes, and other indexes, may have what this one lacks. */
			percpu__malloc_gather();
			object = take_slow(size, class, align);
		}
	}
	if (PERCPU__UNLIKELY(!object)) {
		errno = ENOMEM;
		return NULL;
	}
	/* All of it, as realloc() may give more of it later. */
	if (percpu__malloc_watched & PERCPU__WATCH_ZERO)
		memset(object, 0, percpu_malloc_usable_size(object));
	return object;
}

/* The section leaves if the same object is on top. */
static void look_for_double(struct percpu__front *front, unsigned class, void *object)
{
	uintptr_t top;
	void *other;

	if (top_of(load(&front->magazines[class].word)) != object)
		return;
	top = take_one(class);
	other = (void *)top;
	if (other == object)
		percpu__malloc_die("an object is freed twice", object);
	if (top > PERCPU__LEFT_WORD && put_many(class, &other, 1) != PERCPU__DONE)
		percpu__central_give(class, &other, 1);
}

static void flush(struct percpu__front *front, unsigned class, void *object)
{
	void *objects[BATCH_MOST + 1];
	unsigned n = percpu__batch_of(class), half, number;

	count(&front->turns);
	count(&front->counts[class].flushes);
	grow(front, class);
	if (put_one(class, object) == PERCPU__DONE)
		return;
	shrink(front, class);
	/* Those that were put last go, but some stay for who takes next. */
	half = (most_in(load_limits(&front->magazines[class])) + 1) / 2;
	number = number_in(load(&front->magazines[class].word));
	n = n < half ? n : half;
	n = number > half + n ? number - half : n;
	n = n < BATCH_MOST ? n : BATCH_MOST;
	if (n && take_many(class, objects, n) != PERCPU__DONE) {
		if (number_in(load(&front->magazines[class].word)) >= n)
			look_for_damage(front, class);
		n = 0;
	}
	/* This one stays, so that whoever frees it again meets it. */
	if (!n || put_one(class, object) != PERCPU__DONE)
		objects[n++] = object;
	percpu__central_give(class, objects, n);
}

void percpu__put_slow(void *object, unsigned class)
{
	struct percpu__front *front;

	if (!class) {
		percpu__free_other(object);
		return;
	}
	front = own_front();
	if (!front) {
		percpu__central_give(class, &object, 1);
		return;
	}
	if (put_one(class, object) == PERCPU__DONE)
		return;
	look_for_double(front, class, object);
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
	void *objects[BATCH_MOST];
	uint64_t word = m->word;

	while (number_in(word)) {
		unsigned n = 0;

		while (n < BATCH_MOST && number_in(word)) {
			uint64_t below = *(uint64_t *)(void *)top_of(word);

			if (number_in(below) != number_in(word) - 1)
				percpu__malloc_die("an object was written to after it was freed", top_of(word));
			objects[n++] = top_of(word);
			word = below;
		}
		percpu__central_give(class, objects, n);
	}
	m->word = 0;
	__atomic_store_n(&m->refill, 1, __ATOMIC_RELAXED);
}

/* With `drain_word` held, as whoever closes a magazine does: nobody else has closed one of these. */
static void drain(struct percpu__front *front)
{
	uint32_t limits[CLASSES + 1];
	bool fenced;

	for (unsigned i = 1; i <= CLASSES; i++)
		limits[i] = __atomic_exchange_n(&front->magazines[i].limits, CLOSED, __ATOMIC_RELAXED);
	fenced = percpu_fence() == 0;
	for (unsigned i = 1; i <= CLASSES; i++) {
		if (fenced)
			empty(&front->magazines[i], i);
		__atomic_store_n(&front->magazines[i].limits, limits[i], __ATOMIC_RELEASE);
	}
}

void percpu__front_drain(bool all)
{
	if (!__atomic_load_n(&percpu__front, __ATOMIC_ACQUIRE))
		return;
	percpu__malloc_lock(&drain_word);
	for (unsigned index = 0; index < percpu__remainder; index++) {
		struct percpu__front *front = percpu_ptr(percpu__front, index);
		uint64_t turns = load(&front->turns);

		if (!__atomic_load_n(&front->prepared, __ATOMIC_ACQUIRE))
			continue;
		if (all || (turns == front->seen && !front->drained)) {
			drain(front);
			front->drained = 1;
			front->drains++;
		} else if (turns != front->seen) {
			front->drained = 0;
		}
		front->seen = turns;
	}
	percpu__malloc_unlock(&drain_word);
}

bool percpu__front_stats(unsigned index, unsigned class, struct percpu__front_stats *stats)
{
	return index < __atomic_load_n(&percpu__front_top, __ATOMIC_ACQUIRE) &&
	       percpu__front_stats_in(percpu_ptr(percpu__front, index), class, stats);
}

bool percpu__front_stats_in(const struct percpu__front *front, unsigned class, struct percpu__front_stats *stats)
{
	const struct percpu__magazine *m = &front->magazines[class];

	if (!__atomic_load_n(&front->prepared, __ATOMIC_ACQUIRE))
		return false;
	stats->hits = load(&front->counts[class].hits);
	stats->misses = load(&front->counts[class].misses);
	stats->flushes = load(&front->counts[class].flushes);
	stats->cached = number_in(load(&m->word));
	stats->most = most_in(load_limits(m));
	stats->drains = load(&front->drains);
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
