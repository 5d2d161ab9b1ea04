/* SPDX-License-Identifier: MIT */
/* Pools: distinct objects, the maximum, nothing lost between magazines and depot, memory given back, forks, handlers. */
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

#include "unit.h"

#include "gate/gate.h"
#include "rseq/thread.h"

#define MANY 3000

static void *objects[MANY];

static void no_two_overlap(void **list, size_t n, size_t size)
{
	for (size_t i = 0; i < n; i++)
		memset(list[i], (int)(i % 251), size);
	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < size; k++)
			if (((unsigned char *)list[i])[k] != i % 251)
				fail_msg("object %zu of %zu bytes shares memory with another", i, size);
}

static void expect_stats(struct percpu_pool *pool, size_t out, size_t strays)
{
	struct percpu_pool_stats stats;

	assert_int_equal(percpu_pool_stats(pool, &stats), 0);
	assert_int_equal(stats.out, out);
	assert_int_equal(stats.strays, strays);
}

static void arguments(void **state)
{
	struct percpu_pool pool, untouched;
	struct percpu_pool_stats stats;

	(void)state;
	memset(&pool, 0x5a, sizeof pool);
	untouched = pool;
	assert_int_equal(percpu_pool_init(NULL, 8, 8, 0, 0), -EINVAL);
	assert_int_equal(percpu_pool_init(&pool, 0, 8, 0, 0), -EINVAL);
	assert_int_equal(percpu_pool_init(&pool, PERCPU_POOL_SIZE_MAX + 1, 8, 0, 0), -EINVAL);
	assert_int_equal(percpu_pool_init(&pool, SIZE_MAX, 8, 0, 0), -EINVAL);
	assert_int_equal(percpu_pool_init(&pool, 8, 0, 0, 0), -EINVAL);
	assert_int_equal(percpu_pool_init(&pool, 8, 24, 0, 0), -EINVAL);
	assert_int_equal(percpu_pool_init(&pool, 8, 2 * PERCPU_POOL_ALIGN_MAX, 0, 0), -EINVAL);
	assert_int_equal(percpu_pool_init(&pool, 8, 8, 0, PERCPU_POOL_FORGET << 1), -EINVAL);
	assert_memory_equal(&pool, &untouched, sizeof pool);
	assert_int_equal(percpu_pool_destroy(NULL), -EINVAL);
	assert_int_equal(percpu_pool_trim(NULL, 0), 0);
	assert_int_equal(percpu_pool_init(&pool, 8, 8, 0, 0), 0);
	memset(&stats, 0x5a, sizeof stats);
	assert_int_equal(percpu_pool_stats(NULL, &stats), -EINVAL);
	assert_int_equal(stats.out, (size_t)0x5a5a5a5a5a5a5a5a);
	assert_int_equal(percpu_pool_stats(&pool, NULL), -EINVAL);
	percpu_pool_put(&pool, NULL);
	assert_true(percpu_pool_get_bulk(&pool, NULL, 0));
	percpu_pool_put_bulk(&pool, NULL, 0);
	expect_stats(&pool, 0, 0);
	assert_int_equal(percpu_pool_destroy(&pool), 0);
	assert_int_equal(percpu_pool_destroy(&pool), -EINVAL);
	assert_int_equal(percpu_pool_stats(&pool, &stats), -EINVAL);
	assert_int_equal(percpu_pool_trim(&pool, 0), 0);
}

static void sizes(void **state)
{
	static const struct {
		size_t size, align, n;
	} all[] = { { 1, 1, MANY },   { 3, 2, MANY },   { 8, 8, MANY },      { 24, 16, MANY },
		    { 64, 64, MANY }, { 100, 1, MANY }, { 4096, 4096, 300 }, { 5000, 64, 300 },
		    { 65536, 8, 40 }, { 65537, 1, 40 }, { 40000, 4096, 40 }, { 3000000, 4096, 12 } };

	(void)state;
	for (size_t i = 0; i < UNIT_COUNT(all); i++) {
		struct percpu_pool pool;

		assert_int_equal(percpu_pool_init(&pool, all[i].size, all[i].align, 0, 0), 0);
		for (int round = 0; round < 2; round++) {
			for (size_t k = 0; k < all[i].n; k++) {
				objects[k] = percpu_pool_get(&pool);
				assert_non_null(objects[k]);
				assert_int_equal((uintptr_t)objects[k] % all[i].align, 0);
			}
			no_two_overlap(objects, all[i].n, all[i].size < 200 ? all[i].size : 200);
			/* Its last byte is there, too. */
			((char *)objects[all[i].n - 1])[all[i].size - 1] = 1;
			expect_stats(&pool, all[i].n, 0);
			for (size_t k = 0; k < all[i].n; k++)
				percpu_pool_put(&pool, objects[k]);
			expect_stats(&pool, 0, 0);
		}
		assert_int_equal(percpu_pool_destroy(&pool), 0);
	}
}

static void contents_stay(void **state)
{
	struct percpu_pool pool;
	uint64_t *object;

	(void)state;
	assert_int_equal(percpu_pool_init(&pool, sizeof *object, 8, 1, 0), 0);
	object = percpu_pool_get(&pool);
	assert_int_equal(*object, 0);
	*object = 77;
	for (int i = 0; i < 3; i++) {
		percpu_pool_put(&pool, object);
		if (i == 1)
			percpu_pool_trim(&pool, 1);
		assert_ptr_equal(percpu_pool_get(&pool), object);
		assert_int_equal(*object, 77);
	}
	percpu_pool_put(&pool, object);
	assert_true(percpu_pool_trim(&pool, 0) > 0);
	assert_ptr_equal(percpu_pool_get(&pool), object);
	assert_int_equal(*object, 0);
	percpu_pool_put(&pool, object);
	assert_int_equal(percpu_pool_destroy(&pool), 0);
}

static void the_maximum(void **state)
{
	static const size_t most[] = { 1, 2, 3, 5, 64, 129, 1000 };

	(void)state;
	for (size_t i = 0; i < UNIT_COUNT(most); i++) {
		size_t max = most[i];
		struct percpu_pool pool;

		assert_int_equal(percpu_pool_init(&pool, 32, 32, max, 0), 0);
		for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
			percpu__thread_force(force);
			for (size_t k = 0; k < max; k++)
				assert_non_null(objects[k] = percpu_pool_get(&pool));
			no_two_overlap(objects, max, 32);
			for (int k = 0; k < 3; k++)
				assert_null(percpu_pool_get(&pool));
			assert_false(percpu_pool_get_bulk(&pool, objects + max, 1));
			percpu_pool_put(&pool, objects[max - 1]);
			assert_ptr_equal(percpu_pool_get(&pool), objects[max - 1]);
			percpu_pool_put_bulk(&pool, objects, max);
			assert_false(percpu_pool_get_bulk(&pool, objects, max + 1));
			assert_true(percpu_pool_get_bulk(&pool, objects, max));
			no_two_overlap(objects, max, 32);
			assert_null(percpu_pool_get(&pool));
			for (size_t k = 0; k < max; k++)
				percpu_pool_put(&pool, objects[k]);
			expect_stats(&pool, 0, 0);
		}
		percpu__thread_force(PERCPU__FORCE_OFF);
		assert_int_equal(percpu_pool_destroy(&pool), 0);
	}
}

/* Sizes around those of a magazine and of its half, at every fill. */
static void bulks(void **state)
{
	struct percpu_pool pool;
	struct percpu_pool_stats stats;

	(void)state;
	assert_int_equal(percpu_pool_init(&pool, 4096, 64, 0, 0), 0);
	assert_int_equal(percpu_pool_stats(&pool, &stats), 0);
	assert_int_equal(stats.capacity, 16);
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		percpu__thread_force(force);
		for (size_t n = 1; n <= 40; n++) {
			for (size_t before = 0; before <= 17; before++) {
				assert_true(percpu_pool_get_bulk(&pool, objects, before));
				assert_true(percpu_pool_get_bulk(&pool, objects + before, n));
				no_two_overlap(objects, before + n, 16);
				expect_stats(&pool, before + n, 0);
				percpu_pool_put_bulk(&pool, objects, before);
				percpu_pool_put_bulk(&pool, objects + before, n);
				expect_stats(&pool, 0, 0);
			}
		}
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	assert_int_equal(percpu_pool_destroy(&pool), 0);
}

static void strays(void **state)
{
	struct percpu_pool pool;
	char elsewhere[64];
	char *object, *other;
	size_t strays_seen = 0;

	(void)state;
	assert_int_equal(percpu_pool_init(&pool, 48, 16, 0, 0), 0);
	object = percpu_pool_get(&pool);
	other = percpu_pool_get(&pool);
	percpu_pool_put(&pool, elsewhere);
	percpu_pool_put(&pool, object + 16);
	percpu_pool_put(&pool, (void *)16);
	percpu_pool_put(&pool, (void *)(UINTPTR_MAX - 15));
	percpu_pool_trim(&pool, 1);
	expect_stats(&pool, 2, strays_seen += 4);
	/* Twice. */
	percpu_pool_put(&pool, object);
	percpu_pool_put(&pool, object);
	percpu_pool_trim(&pool, 1);
	expect_stats(&pool, 1, strays_seen += 1);
	/* Of a chunk that has gone back. */
	percpu_pool_put(&pool, other);
	percpu_pool_trim(&pool, 0);
	percpu_pool_put(&pool, other);
	percpu_pool_trim(&pool, 0);
	expect_stats(&pool, 0, strays_seen += 1);
	assert_int_equal(percpu_pool_destroy(&pool), 0);
}

static void destroying(void **state)
{
	struct percpu_pool pool;
	void *object;

	(void)state;
	assert_int_equal(percpu_pool_init(&pool, 48, 16, 0, 0), 0);
	object = percpu_pool_get(&pool);
	assert_int_equal(percpu_pool_destroy(&pool), -EBUSY);
	percpu_pool_put(&pool, object);
	assert_int_equal(percpu_pool_destroy(&pool), 0);
	assert_int_equal(percpu_pool_init(&pool, 48, 16, 0, PERCPU_POOL_FORGET), 0);
	assert_non_null(percpu_pool_get(&pool));
	assert_int_equal(percpu_pool_destroy(&pool), 0);
}

static void trimming(void **state)
{
	struct percpu_pool pool;
	struct percpu_pool_stats full, stats;
	size_t bytes;

	(void)state;
	assert_int_equal(percpu_pool_init(&pool, 1024, 64, 0, 0), 0);
	assert_int_equal(percpu_pool_trim(&pool, 0), 0);
	for (size_t i = 0; i < MANY; i++)
		assert_non_null(objects[i] = percpu_pool_get(&pool));
	no_two_overlap(objects, MANY, 1024);
	assert_int_equal(percpu_pool_stats(&pool, &full), 0);
	/* What was not given out may go. */
	percpu_pool_trim(&pool, 0);
	no_two_overlap(objects, MANY, 1024);
	for (size_t i = 0; i < MANY - 1; i++)
		percpu_pool_put(&pool, objects[i]);
	bytes = percpu_pool_trim(&pool, 1000);
	assert_int_equal(percpu_pool_stats(&pool, &stats), 0);
	assert_true(bytes > 0 && stats.bytes < full.bytes && stats.depot >= 1000 && stats.depot < 1200);
	assert_int_equal(stats.magazines, 0);
	assert_int_equal(stats.out, 1);
	assert_true(percpu_pool_trim(&pool, 0) > 0);
	assert_int_equal(percpu_pool_stats(&pool, &stats), 0);
	assert_true(stats.depot < 64);
	assert_int_equal(*(unsigned char *)objects[MANY - 1], (MANY - 1) % 251);
	/* It grows again, into the same places. */
	for (size_t i = 0; i < MANY - 1; i++)
		assert_non_null(objects[i] = percpu_pool_get(&pool));
	no_two_overlap(objects, MANY, 1024);
	assert_int_equal(percpu_pool_stats(&pool, &stats), 0);
	assert_true(stats.bytes <= full.bytes);
	percpu_pool_put_bulk(&pool, objects, MANY);
	expect_stats(&pool, 0, 0);
	assert_int_equal(percpu_pool_destroy(&pool), 0);
}

/* Each copy gets some, as if threads there had put them; one thread then wants all. */
static void from_every_magazine(void **state)
{
	enum { EACH = 3 };
	size_t max = (size_t)EACH * percpu_copies() + 1;
	void **all = calloc(max + 1, sizeof *all);
	struct percpu_pool pool;
	uint64_t empty;
	unsigned opened = 0;

	(void)state;
	assert_non_null(all);
	assert_int_equal(percpu_pool_init(&pool, 16, 16, max, 0), 0);
	empty = pool.first - 1;
	assert_true(pool.capacity > EACH);
	assert_true(percpu_pool_get_bulk(&pool, all, max));
	/* Opened as the library does, by whichever thread is there. */
	percpu_pool_put(&pool, all[max - 1]);
	percpu_for_each_index(index)
		opened += *percpu_ptr(pool.word, index) != 0;
	if (!opened) {
		/* Scarce: the depot must be plentiful first. */
		percpu_pool_put_bulk(&pool, all, max - 1);
		assert_true(percpu_pool_get_bulk(&pool, all, max - 1));
		percpu_pool_put_bulk(&pool, all, max - 1);
	} else {
		percpu_pool_put_bulk(&pool, all, max - 1);
	}
	percpu_for_each_index(index) {
		uint64_t *word = percpu_ptr(pool.word, index);

		if (!*word)
			continue;
		assert_true(*word >= empty);
	}
	memset(all, 0, (max + 1) * sizeof *all);
	for (size_t i = 0; i < max; i++)
		assert_non_null(all[i] = percpu_pool_get(&pool));
	assert_null(percpu_pool_get(&pool));
	no_two_overlap(all, max, 16);
	percpu_pool_put_bulk(&pool, all, max);
	assert_int_equal(percpu_pool_destroy(&pool), 0);
	free(all);
}

/* What one thread's magazine hoards another finds, on other CPUs and as an unregistered thread. */
static struct percpu_pool hoard;

static void *take_and_put(void *arg)
{
	unsigned me = *(unsigned *)arg;
	void *some[8] = { NULL };
	unsigned wrong = 0;

	percpu__thread_force(me % 3 == 1   ? PERCPU__FORCE_REMAINDER
			     : me % 3 == 2 ? PERCPU__FORCE_GATE
					   : PERCPU__FORCE_OFF);
	unit_pin((int)(me % 2));
	wrong += !percpu_pool_get_bulk(&hoard, some, 8);
	wrong += percpu_pool_get(&hoard) != NULL;
	for (int i = 0; i < 8; i++)
		percpu_pool_put(&hoard, some[i]);
	percpu__thread_force(PERCPU__FORCE_OFF);
	*(unsigned *)arg = wrong;
	return NULL;
}

static void hoards_are_found(void **state)
{
	(void)state;
	assert_int_equal(percpu_pool_init(&hoard, 100, 4, 8, 0), 0);
	for (unsigned i = 0; i < 24; i++) {
		unsigned arg = i;

		unit_threads(1, take_and_put, &arg, sizeof arg);
		assert_int_equal(arg, 0);
	}
	assert_int_equal(percpu_pool_destroy(&hoard), 0);
}

/* As many objects as threads, each of which holds one at most: nobody ever goes without. */
#define THREADS 6
#define TURNS   4000

struct owned {
	uint32_t owner;
};

static uint32_t stop;

static void *one_each(void *arg)
{
	unsigned me = *(unsigned *)arg, wrong = 0;

	if (me == 4)
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
	for (int i = 0; i < TURNS; i++) {
		struct owned *mine = percpu_pool_get(&hoard);

		if (!mine) {
			wrong++;
			continue;
		}
		wrong += __atomic_exchange_n(&mine->owner, me + 1, __ATOMIC_RELAXED) != 0;
		if (i % 64 == 0)
			sched_yield();
		wrong += __atomic_exchange_n(&mine->owner, 0, __ATOMIC_RELAXED) != me + 1;
		percpu_pool_put(&hoard, mine);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	*(unsigned *)arg = wrong;
	return NULL;
}

static void *trim_all_the_time(void *arg)
{
	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		percpu_pool_trim(&hoard, SIZE_MAX);
		usleep(50);
	}
	return NULL;
}

static void enough_for_each(void **state)
{
	pthread_t trimmer;

	(void)state;
	for (unsigned slack = 0; slack < 40; slack += 13) {
		unsigned args[THREADS] = { 0, 1, 2, 3, 4, 5 };

		assert_int_equal(percpu_pool_init(&hoard, sizeof(struct owned), 64, THREADS + slack, 0), 0);
		stop = 0;
		assert_int_equal(pthread_create(&trimmer, NULL, trim_all_the_time, NULL), 0);
		unit_threads(THREADS, one_each, args, sizeof *args);
		__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
		assert_int_equal(pthread_join(trimmer, NULL), 0);
		for (unsigned i = 0; i < THREADS; i++)
			assert_int_equal(args[i], 0);
		expect_stats(&hoard, 0, 0);
		assert_int_equal(percpu_pool_destroy(&hoard), 0);
	}
}

/* One thread gets, another puts. */
#define RING 64

static void *ring[RING];
static uint32_t made, eaten;

static void *consume(void *arg)
{
	unsigned wrong = 0;

	for (uint32_t i = 0; i < 30000; i++) {
		uint64_t *object;

		while (__atomic_load_n(&made, __ATOMIC_ACQUIRE) == i)
			sched_yield();
		object = ring[i % RING];
		wrong += object[0] != i || object[1] != ~(uint64_t)i;
		__atomic_store_n(&eaten, i + 1, __ATOMIC_RELEASE);
		percpu_pool_put(&hoard, object);
	}
	*(unsigned *)arg = wrong;
	return NULL;
}

static void handed_over(void **state)
{
	struct percpu_pool_stats stats;
	unsigned wrong = 0;
	pthread_t consumer;

	(void)state;
	made = eaten = 0;
	assert_int_equal(percpu_pool_init(&hoard, 16, 16, 0, 0), 0);
	assert_int_equal(pthread_create(&consumer, NULL, consume, &wrong), 0);
	for (uint32_t i = 0; i < 30000; i++) {
		uint64_t *object = percpu_pool_get(&hoard);

		if (object) {
			object[0] = i;
			object[1] = ~(uint64_t)i;
		}
		while (i - __atomic_load_n(&eaten, __ATOMIC_ACQUIRE) >= RING)
			sched_yield();
		ring[i % RING] = object;
		__atomic_store_n(&made, i + 1, __ATOMIC_RELEASE);
	}
	assert_int_equal(pthread_join(consumer, NULL), 0);
	assert_int_equal(wrong, 0);
	/* They went round, instead of leaving new ones behind: a few magazines' worth exist. */
	assert_int_equal(percpu_pool_stats(&hoard, &stats), 0);
	assert_int_equal(stats.out, 0);
	assert_true(stats.magazines + stats.depot <= 65536 / 16);
	assert_int_equal(percpu_pool_destroy(&hoard), 0);
}

/* Handlers, at random moments, whatever they interrupt. */
static struct percpu_pool signalled;
static volatile sig_atomic_t handled, handler_failed;

static void handler(int sig)
{
	void *some[3];

	(void)sig;
	handled++;
	if (!percpu_pool_get_bulk(&signalled, some, 3)) {
		handler_failed++;
		return;
	}
	for (int i = 0; i < 3; i++)
		*(uint64_t *)some[i] = 0;
	percpu_pool_put(&signalled, some[0]);
	percpu_pool_put_bulk(&signalled, some + 1, 2);
}

static void in_handlers(void **state)
{
	struct sigaction action = { .sa_handler = handler }, old;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2 };
	struct itimerspec often = { { 0, 50000 }, { 0, 50000 } };
	void *mine[12];
	timer_t timer;
	int errno_before = 4711;

	(void)state;
	assert_int_equal(percpu_pool_init(&signalled, sizeof(uint64_t), 8, 15, 0), 0);
	assert_int_equal(sigaction(SIGUSR2, &action, &old), 0);
	assert_int_equal(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	assert_int_equal(timer_settime(timer, 0, &often, NULL), 0);
	errno = errno_before;
	for (int i = 0; i < 200000 && (handled < 300 || i < 2000); i++) {
		size_t n = (size_t)i % 12 + 1;

		for (size_t k = 0; k < n; k++) {
			mine[k] = percpu_pool_get(&signalled);
			assert_non_null(mine[k]);
			*(uint64_t *)mine[k] = k + 1;
		}
		for (size_t k = 0; k < n; k++) {
			assert_int_equal(*(uint64_t *)mine[k], k + 1);
			percpu_pool_put(&signalled, mine[k]);
		}
	}
	assert_int_equal(errno, errno_before);
	timer_delete(timer);
	assert_int_equal(sigaction(SIGUSR2, &old, NULL), 0);
	assert_true(handled > 0);
	if (!unit_in_mode(PERCPU_MODE_NONE))
		assert_int_equal(handler_failed, 0);
	expect_stats(&signalled, 0, 0);
	assert_int_equal(percpu_pool_destroy(&signalled), 0);
}

/* A forked child owns a copy of all but what other threads held, whatever these were doing. */
#define FORK_MAX 200

static uint32_t in_hand; /* of the other thread: at most so many */

static void *keep_busy(void *arg)
{
	void *some[40];
	unsigned seed = 1;

	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		size_t n = (seed = seed * 1103515245 + 12345) / 65536 % 40 + 1;

		__atomic_store_n(&in_hand, (uint32_t)n, __ATOMIC_SEQ_CST);
		if (percpu_pool_get_bulk(&hoard, some, n)) {
			for (size_t i = 0; i < n; i++)
				percpu_pool_put(&hoard, some[i]);
		}
		__atomic_store_n(&in_hand, 0, __ATOMIC_SEQ_CST);
		if (seed % 16 == 0)
			percpu_pool_trim(&hoard, 0);
	}
	return NULL;
}

static int count_in_child(void)
{
	unsigned n = 0, lost = in_hand;
	struct percpu_pool_stats stats;

	if (percpu_pool_stats(&hoard, &stats) || stats.out > lost)
		return 10;
	while (n <= FORK_MAX && (objects[n] = percpu_pool_get(&hoard)))
		n++;
	if (n > FORK_MAX || n < FORK_MAX - lost)
		return 11;
	for (unsigned i = 0; i < n; i++)
		percpu_pool_put(&hoard, objects[i]);
	percpu_pool_trim(&hoard, 0);
	if (percpu_pool_stats(&hoard, &stats) || stats.out != FORK_MAX - n || stats.strays)
		return 12;
	return percpu_pool_destroy(&hoard) == (stats.out ? -EBUSY : 0) ? 0 : 13;
}

static void forks(void **state)
{
	pthread_t threads[2];

	(void)state;
	assert_int_equal(percpu_pool_init(&hoard, 64, 64, FORK_MAX, 0), 0);
	stop = 0;
	assert_int_equal(pthread_create(&threads[0], NULL, keep_busy, NULL), 0);
	for (int i = 0; i < 60; i++) {
		/* The forking thread has some magazine too. */
		percpu_pool_put(&hoard, percpu_pool_get(&hoard));
		assert_int_equal(unit_in_child(count_in_child), 0);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	assert_int_equal(pthread_join(threads[0], NULL), 0);
	expect_stats(&hoard, 0, 0);
	assert_int_equal(percpu_pool_destroy(&hoard), 0);
}

/* Other libraries' fork handlers use pools, and come before and after ours. */
static struct percpu_pool forked;
static unsigned used_in_fork;
static bool watching;

static void use_in_fork(void)
{
	void *some[40];
	struct percpu_pool another;

	if (!watching)
		return;
	if (percpu_pool_get_bulk(&forked, some, 40)) {
		percpu_pool_put_bulk(&forked, some, 40);
		used_in_fork++;
	}
	if (!percpu_pool_init(&another, 8, 8, 0, 0)) {
		percpu_pool_put(&another, percpu_pool_get(&another));
		percpu_pool_destroy(&another);
	}
	percpu_pool_trim(&forked, 0);
}

__attribute__((constructor(101))) static void watch_forks_early(void)
{
	pthread_atfork(use_in_fork, use_in_fork, use_in_fork);
}

static int use_in_child(void)
{
	use_in_fork();
	return (int)used_in_fork;
}

static void used_while_forking(void **state)
{
	(void)state;
	assert_int_equal(percpu_pool_init(&forked, 64, 64, 100, 0), 0);
	pthread_atfork(use_in_fork, use_in_fork, use_in_fork);
	watching = true;
	used_in_fork = 0;
	assert_int_equal(unit_in_child(use_in_child), 5);
	watching = false;
	assert_int_equal(used_in_fork, 4);
	expect_stats(&forked, 0, 0);
	assert_int_equal(percpu_pool_destroy(&forked), 0);
}

/* A task that the C library does not know. */
static uint32_t clone_wrong;

static int in_clone(void *arg)
{
	void *some[30];

	(void)arg;
	if (!percpu_pool_get_bulk(&hoard, some, 30) || percpu_pool_get(&hoard))
		clone_wrong++;
	for (int i = 0; i < 30; i++)
		percpu_pool_put(&hoard, some[i]);
	return 0;
}

static void in_a_task_of_its_own(void **state)
{
	static char stack[65536] __attribute__((aligned(64)));
	int status;
	pid_t child;

	(void)state;
	if (UNIT_ASAN)
		skip();
	assert_int_equal(percpu_pool_init(&hoard, 20, 4, 30, 0), 0);
	percpu_pool_put(&hoard, percpu_pool_get(&hoard));
	child = clone(in_clone, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(clone_wrong, 0);
	expect_stats(&hoard, 0, 0);
	assert_int_equal(percpu_pool_destroy(&hoard), 0);
}

/* Without address space for more, a get takes what magazines have, and then fails. */
static int without_memory(void)
{
	enum { MOST = 100000 };
	static void *all[MOST];
	struct rlimit_like {
		unsigned long now, most;
	} limit = { 0, 0 };
	struct percpu_pool pool;
	size_t n = 0;

	if (percpu_pool_init(&pool, 65536, 64, 0, 0))
		return 1;
	percpu_pool_put(&pool, percpu_pool_get(&pool));
	if (syscall(SYS_prlimit64, 0, 9 /* RLIMIT_AS */, &limit, NULL))
		return 2;
	while (n < MOST && (all[n] = percpu_pool_get(&pool)))
		n++;
	if (n == 0 || n == MOST || percpu_pool_get_bulk(&pool, all + n, 5))
		return 3;
	percpu_pool_put(&pool, all[n - 1]);
	if (percpu_pool_get(&pool) != all[n - 1])
		return 4;
	percpu_pool_put_bulk(&pool, all, n);
	return percpu_pool_destroy(&pool) ? 5 : 0;
}

static void no_memory(void **state)
{
	(void)state;
	if (UNIT_ASAN)
		skip();
	assert_int_equal(unit_in_child(without_memory), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arguments),
		cmocka_unit_test(sizes),
		cmocka_unit_test(contents_stay),
		cmocka_unit_test(the_maximum),
		cmocka_unit_test(bulks),
		cmocka_unit_test(strays),
		cmocka_unit_test(destroying),
		cmocka_unit_test(trimming),
		cmocka_unit_test(from_every_magazine),
		cmocka_unit_test(hoards_are_found),
		cmocka_unit_test(enough_for_each),
		cmocka_unit_test(handed_over),
		cmocka_unit_test(in_handlers),
		cmocka_unit_test(forks),
		cmocka_unit_test(used_while_forking),
		cmocka_unit_test(in_a_task_of_its_own),
		cmocka_unit_test(no_memory),
	};

	return unit_main(tests);
}
