/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: take an object of 64 bytes from a pool and put it back; and 32 at once.
 *
 * Both are about the case that pools are for: objects are there, and nobody is waited for. The rivals are what a program
 * would have otherwise: the C library's allocator, one list under a mutex, Concurrency Kit's lock-free stack, and a cache
 * in thread-local storage in front of the list under a mutex, with magazines as long as ours.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"

#ifdef HAVE_CK
#include <ck_stack.h>
#endif

#define SIZE   64
#define BATCH  32
#define DEPTH  ((size_t)2 * BATCH) /* objects for each thread in the lists */
#define CACHED 128                 /* as many as percpu_pool's magazines hold of this size */

struct object {
	BENCH_ALIGNED struct object *next;
	struct object *made;
};

static struct {
	struct percpu_pool pool;
	BENCH_ALIGNED pthread_mutex_t mutex;
	struct object *head;
#ifdef CK_F_STACK_POP_MPMC
	BENCH_ALIGNED struct ck_stack ck;
#endif
	BENCH_ALIGNED pthread_mutex_t making; /* guards the next */
	struct object *made;
	bool failed; /* atomic */
} pools = { .mutex = PTHREAD_MUTEX_INITIALIZER, .making = PTHREAD_MUTEX_INITIALIZER };

static struct object *make_object(void)
{
	struct object *object = aligned_alloc(_Alignof(struct object), sizeof *object);

	if (!object)
		return NULL;
	pthread_mutex_lock(&pools.making);
	object->made = pools.made;
	pools.made = object;
	pthread_mutex_unlock(&pools.making);
	return object;
}

static __attribute__((noinline, cold)) void fail(void)
{
	__atomic_store_n(&pools.failed, true, __ATOMIC_RELAXED);
}

/* ---- one at a time */

BENCH_LOOP pair_percpu(struct bench_worker *worker, uint64_t n)
{
	struct percpu_pool *pool = &pools.pool;

	(void)worker;
	for (; n; n--) {
		void *object = percpu_pool_get(pool);

		if (__builtin_expect(!object, 0)) {
			fail();
			return;
		}
		percpu_pool_put(pool, object);
	}
}

BENCH_LOOP pair_plain_add(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--)
		BENCH_PLAIN_ADD(worker->plain, 1);
}

BENCH_LOOP pair_malloc(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		void *object = malloc(SIZE);

		BENCH_USE(object);
		free(object);
	}
}

BENCH_LOOP pair_mutex(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct object *object;

		pthread_mutex_lock(&pools.mutex);
		object = pools.head;
		pools.head = object->next;
		pthread_mutex_unlock(&pools.mutex);
		BENCH_USE(object);
		pthread_mutex_lock(&pools.mutex);
		object->next = pools.head;
		pools.head = object;
		pthread_mutex_unlock(&pools.mutex);
	}
}

/*
 * A cache for each thread: the fastest there can be, without a word shared, and wherever a thread sleeps its objects
 * sleep with it. In thread-local storage of the program itself.
 */
struct cache {
	size_t count;
	struct object *slots[CACHED];
};
static BENCH_ALIGNED __thread struct cache cache __attribute__((tls_model("local-exec")));

static __attribute__((noinline, cold)) void cache_refill(void)
{
	pthread_mutex_lock(&pools.mutex);
	while (cache.count < BATCH && pools.head) {
		cache.slots[cache.count++] = pools.head;
		pools.head = pools.head->next;
	}
	pthread_mutex_unlock(&pools.mutex);
}

static __attribute__((noinline, cold)) void cache_flush(size_t keep)
{
	pthread_mutex_lock(&pools.mutex);
	while (cache.count > keep) {
		struct object *object = cache.slots[--cache.count];

		object->next = pools.head;
		pools.head = object;
	}
	pthread_mutex_unlock(&pools.mutex);
}

BENCH_LOOP pair_tls(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		struct object *object;

		if (__builtin_expect(!cache.count, 0))
			cache_refill();
		object = cache.slots[--cache.count];
		/* What a call to anything else between the two would do: the cache is in memory. */
		__asm__ __volatile__("" : : "r"(object) : "memory");
		if (__builtin_expect(cache.count == CACHED, 0))
			cache_flush(CACHED / 2);
		cache.slots[cache.count++] = object;
		__asm__ __volatile__("" : : : "memory");
	}
	/* The mutex's list is its rival's too. */
	cache_flush(0);
}

#ifdef CK_F_STACK_POP_MPMC
static const char *skip_ck(void)
{
	return NULL;
}

BENCH_LOOP pair_ck(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		ck_stack_push_mpmc(&pools.ck, ck_stack_pop_mpmc(&pools.ck));
}
#else
static const char *skip_ck(void)
{
	return "built without Concurrency Kit (libck-dev)";
}

BENCH_LOOP pair_ck(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	(void)n;
}
#endif

/* ---- 32 at once */

BENCH_LOOP bulk_percpu(struct bench_worker *worker, uint64_t n)
{
	struct percpu_pool *pool = &pools.pool;
	void *objects[BATCH];

	(void)worker;
	for (; n; n--) {
		if (__builtin_expect(!percpu_pool_get_bulk(pool, objects, BATCH), 0)) {
			fail();
			return;
		}
		percpu_pool_put_bulk(pool, objects, BATCH);
	}
}

BENCH_LOOP bulk_percpu_singly(struct bench_worker *worker, uint64_t n)
{
	struct percpu_pool *pool = &pools.pool;
	void *objects[BATCH];

	(void)worker;
	for (; n; n--) {
		for (size_t i = 0; i < BATCH; i++)
			objects[i] = percpu_pool_get(pool);
		for (size_t i = BATCH; i-- > 0;)
			percpu_pool_put(pool, objects[i]);
	}
}

BENCH_LOOP bulk_malloc(struct bench_worker *worker, uint64_t n)
{
	void *objects[BATCH];

	(void)worker;
	for (; n; n--) {
		for (size_t i = 0; i < BATCH; i++) {
			objects[i] = malloc(SIZE);
			BENCH_USE(objects[i]);
		}
		for (size_t i = BATCH; i-- > 0;)
			free(objects[i]);
	}
}

BENCH_LOOP bulk_mutex(struct bench_worker *worker, uint64_t n)
{
	void *objects[BATCH];

	(void)worker;
	for (; n; n--) {
		pthread_mutex_lock(&pools.mutex);
		for (size_t i = 0; i < BATCH; i++) {
			objects[i] = pools.head;
			pools.head = pools.head->next;
		}
		pthread_mutex_unlock(&pools.mutex);
		__asm__ __volatile__("" : : "r"(objects) : "memory");
		pthread_mutex_lock(&pools.mutex);
		for (size_t i = BATCH; i-- > 0;) {
			struct object *object = objects[i];

			object->next = pools.head;
			pools.head = object;
		}
		pthread_mutex_unlock(&pools.mutex);
	}
}

BENCH_LOOP bulk_tls(struct bench_worker *worker, uint64_t n)
{
	void *objects[BATCH];

	(void)worker;
	for (; n; n--) {
		if (__builtin_expect(cache.count < BATCH, 0))
			cache_refill();
		cache.count -= BATCH;
		memcpy(objects, cache.slots + cache.count, sizeof objects);
		__asm__ __volatile__("" : : "r"(objects) : "memory");
		if (__builtin_expect(cache.count > CACHED - BATCH, 0))
			cache_flush(CACHED / 2);
		memcpy(cache.slots + cache.count, objects, sizeof objects);
		cache.count += BATCH;
		__asm__ __volatile__("" : : : "memory");
	}
	cache_flush(0);
}

static const struct bench_subject pair_subjects[] = {
	{ .name = "percpu", .what = "percpu_pool_get() and percpu_pool_put()", .loop = pair_percpu },
	{ .name = "plain_add", .what = "one plain add to memory, as a measure", .loop = pair_plain_add },
	{ .name = "malloc", .what = "malloc() and free() of as many bytes", .loop = pair_malloc },
	{ .name = "mutex", .what = "one list under a pthread mutex", .loop = pair_mutex },
	{ .name = "tls_cache", .what = "a cache for each thread over that list", .loop = pair_tls },
	{ .name = "ck_stack", .what = "Concurrency Kit's ck_stack", .loop = pair_ck, .skip = skip_ck },
	{ .name = NULL },
};

static const struct bench_subject bulk_subjects[] = {
	{ .name = "percpu", .what = "percpu_pool_get_bulk() and percpu_pool_put_bulk()", .loop = bulk_percpu },
	{ .name = "singly", .what = "the same objects by get and put, one by one", .loop = bulk_percpu_singly },
	{ .name = "malloc", .what = "32 times malloc(), 32 times free()", .loop = bulk_malloc },
	{ .name = "mutex", .what = "one list under a pthread mutex, taken twice", .loop = bulk_mutex },
	{ .name = "tls_cache", .what = "a cache for each thread over that list", .loop = bulk_tls },
	{ .name = NULL },
};

static int pool_setup(unsigned threads)
{
	pools.head = NULL;
	pools.failed = false;
#ifdef CK_F_STACK_POP_MPMC
	ck_stack_init(&pools.ck);
#endif
	for (size_t i = 0; i < threads * DEPTH; i++) {
		struct object *object = make_object();

		if (!object)
			return -ENOMEM;
		object->next = pools.head;
		pools.head = object;
#ifdef CK_F_STACK_POP_MPMC
		object = make_object();
		if (!object)
			return -ENOMEM;
		ck_stack_push_mpmc(&pools.ck, (struct ck_stack_entry *)(void *)object);
#endif
	}
	return percpu_pool_init(&pools.pool, SIZE, SIZE, 0, 0);
}

static const char *pool_check(const uint64_t *done)
{
	struct percpu_pool_stats stats;
	size_t there = 0, made = 0;

	(void)done;
	for (struct object *object = pools.head; object; object = object->next)
		there++;
#ifdef CK_F_STACK_POP_MPMC
	for (struct ck_stack_entry *entry = pools.ck.head; entry; entry = entry->next)
		there++;
#endif
	for (struct object *object = pools.made; object; object = object->made)
		made++;
	if (pools.failed)
		return "no memory";
	if (percpu_pool_stats(&pools.pool, &stats) || stats.out || stats.strays)
		return "the pool does not have its objects any more";
	return there == made ? NULL : "a list does not hold its objects any more";
}

static void pool_teardown(void)
{
	percpu_pool_destroy(&pools.pool);
	while (pools.made) {
		struct object *object = pools.made;

		pools.made = object->made;
		free(object);
	}
}

const struct bench bench_pool_pair = {
	.name = "pool_pair",
	.what = "take an object of 64 bytes and put it back",
	.subjects = pair_subjects,
	.setup = pool_setup,
	.check = pool_check,
	.teardown = pool_teardown,
};

const struct bench bench_pool_bulk = {
	.name = "pool_bulk",
	.what = "take 32 objects of 64 bytes at once and put them back, for all 32",
	.subjects = bulk_subjects,
	.setup = pool_setup,
	.check = pool_check,
	.teardown = pool_teardown,
};
