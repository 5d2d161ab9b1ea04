/* SPDX-License-Identifier: MIT */
/* Spinlocks: who may have one, how its bias goes and comes back, waiting, all at once, handlers, fork, refused fences. */
#include <sys/syscall.h>

#include "unit.h"

#include "ds/spinlock.h"
#include "rseq/thread.h"
#include "sandbox.h"

/* What a lock guards: changed by plain loads and stores. */
struct guarded {
	struct percpu_spinlock lock;
	uint64_t count, twice;
};

static struct guarded *make(void)
{
	struct guarded *g = percpu_alloc(sizeof *g, 64);

	assert_non_null(g);
	return g;
}

static struct guarded *lock(struct guarded *g)
{
	return (struct guarded *)percpu_spinlock_lock(&g->lock);
}

static struct guarded *try_lock(struct guarded *g)
{
	return (struct guarded *)percpu_spinlock_trylock(&g->lock);
}

static bool all_fresh(struct guarded *g, unsigned index)
{
	static const struct percpu_spinlock fresh;

	return memcmp(&percpu_ptr(g, index)->lock, &fresh, sizeof fresh) == 0;
}

static cpu_set_t everywhere;

/* One thread on one CPU stays at one index. */
static int stay(void **state)
{
	(void)state;
	return sched_getaffinity(0, sizeof everywhere, &everywhere) || unit_pin(sched_getcpu());
}

static int leave(void **state)
{
	(void)state;
	percpu__thread_force(PERCPU__FORCE_OFF);
	return sched_setaffinity(0, sizeof everywhere, &everywhere);
}

static void one_holder(void **state)
{
	struct guarded *g = make(), *mine, *other;

	(void)state;
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		percpu__thread_force(force);
		for (int i = 0; i < 20; i++) {
			mine = lock(g);
			assert_true(percpu_spinlock_index(&g->lock, &mine->lock) < percpu_copies());
			assert_ptr_equal(mine, percpu_ptr(g, percpu_spinlock_index(&g->lock, &mine->lock)));
			assert_int_equal(mine->lock.held, 1);
			other = try_lock(g);
			if (other) /* in mode none */
				assert_ptr_not_equal(other, mine);
			if (!unit_in_mode(PERCPU_MODE_NONE))
				assert_null(other);
			if (other)
				percpu_spinlock_unlock(&other->lock);
			percpu_spinlock_unlock(&mine->lock);
			assert_int_equal(mine->lock.held, 0);
			other = try_lock(g);
			assert_non_null(other);
			percpu_spinlock_unlock(&other->lock);
		}
		if (force == PERCPU__FORCE_REMAINDER && !unit_in_mode(PERCPU_MODE_NONE))
			assert_ptr_equal(other, percpu_ptr(g, percpu_copies() - 1));
	}
	percpu_free(g);
}

static void the_bias_goes_and_comes_back(void **state)
{
	struct guarded *g = make(), *mine = lock(g);
	unsigned index = percpu_spinlock_index(&g->lock, &mine->lock);
	bool biased = !unit_in_mode(PERCPU_MODE_NONE);

	(void)state;
	percpu_spinlock_unlock(&mine->lock);
	assert_int_equal(mine->lock.bias, biased);
	assert_int_equal(percpu_spinlock_lock_index(&g->lock, index), 0);
	assert_int_equal(mine->lock.bias, 0);
	percpu_spinlock_unlock(&mine->lock);
	if (biased) {
		for (uint32_t i = 0; i <= percpu__spinlock_patience; i++) {
			assert_int_equal(mine->lock.bias, 0);
			assert_ptr_equal(i % 2 ? try_lock(g) : lock(g), mine);
			percpu_spinlock_unlock(&mine->lock);
		}
		assert_int_equal(mine->lock.bias, 1);
		/* What is held and cannot be had does not end it. */
		assert_ptr_equal(lock(g), mine);
		assert_null(try_lock(g));
		assert_int_equal(mine->lock.bias, 1);
		percpu_spinlock_unlock(&mine->lock);
		assert_int_equal(percpu_spinlock_lock_all(&g->lock), 0);
		assert_int_equal(mine->lock.bias, 0);
		percpu_spinlock_unlock_all(&g->lock);
		assert_ptr_equal(lock(g), mine);
		percpu_spinlock_unlock(&mine->lock);
		assert_int_equal(mine->lock.bias, 0);
	}
	/* The remainder never has one. */
	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	for (int i = 0; i < 10; i++)
		percpu_spinlock_unlock(percpu_spinlock_lock(&g->lock));
	assert_int_equal(percpu_ptr(g, percpu_copies() - 1)->lock.bias, 0);
	percpu_free(g);
}

static void arguments(void **state)
{
	struct guarded *g = make();

	(void)state;
	assert_int_equal(percpu_spinlock_init(NULL), -EINVAL);
	assert_int_equal(percpu_spinlock_lock_index(NULL, 0), -EINVAL);
	assert_int_equal(percpu_spinlock_lock_index(&g->lock, percpu_copies()), -EINVAL);
	assert_int_equal(percpu_spinlock_lock_index(&g->lock, UINT32_MAX), -EINVAL);
	assert_int_equal(percpu_spinlock_lock_all(NULL), -EINVAL);
	percpu_for_each_index(i) {
		assert_true(all_fresh(g, i));
		assert_int_equal(percpu_spinlock_lock_index(&g->lock, i), 0);
		assert_int_equal(percpu_ptr(g, i)->lock.held, 1);
	}
	assert_null(try_lock(g));
	percpu_for_each_index(i)
		percpu_spinlock_unlock(&percpu_ptr(g, i)->lock);
	memset(g, 0x55, sizeof *g);
	assert_int_equal(percpu_spinlock_init(&g->lock), 0);
	percpu_for_each_index(i)
		assert_true(all_fresh(g, i));
	percpu_free(g);
}

/* Copies that nobody uses are not written to. */
static void all_without_touching(void **state)
{
	struct guarded *g = make();
	unsigned last = percpu_copies() - 1;

	(void)state;
	for (int round = 0; round < 3; round++) {
		assert_int_equal(percpu_spinlock_lock_all(&g->lock), 0);
		percpu_for_each_index(i)
			assert_true(i == last || all_fresh(g, i));
		assert_null(try_lock(g));
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
		assert_null(try_lock(g));
		percpu__thread_force(PERCPU__FORCE_OFF);
		percpu_spinlock_unlock_all(&g->lock);
		assert_true(all_fresh(g, last));
	}
	percpu_spinlock_unlock(percpu_spinlock_lock(&g->lock));
	percpu_free(g);
}

/* Threads of every sort count in what is guarded, and look at other copies, and at all. */
#define THREADS 6
#define TURNS   6000

static struct guarded *common;
static uint32_t wrong;

static void count_in(struct guarded *g)
{
	uint64_t was = *(volatile uint64_t *)&g->count;

	/* Now and then somebody else runs in the middle. */
	if (was % 32 == 0)
		sched_yield();
	if (g->twice != was)
		__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	*(volatile uint64_t *)&g->count = was + 1;
	if (was % 32 == 1)
		sched_yield();
	g->twice = was + 1;
}

static void *count(void *arg)
{
	unsigned me = *(unsigned *)arg;
	uint64_t random = me + 77;
	unsigned done = 0;

	if (me == 1)
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
	if (me == 2)
		percpu__thread_force(PERCPU__FORCE_GATE);
	for (int i = 0; i < TURNS; i++) {
		uint64_t what = unit_random(&random) % 1000;
		struct guarded *g = NULL;

		if (what < 10 && me >= 3) {
			if (percpu_spinlock_lock_all(&common->lock))
				__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
			percpu_for_each_index(k)
				count_in(percpu_ptr(common, k));
			done += percpu_copies();
			percpu_spinlock_unlock_all(&common->lock);
			continue;
		}
		if (what < 40 && me >= 2) {
			unsigned index = (unsigned)unit_random(&random) % percpu_copies();

			if (percpu_spinlock_lock_index(&common->lock, index))
				__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
			g = percpu_ptr(common, index);
		} else if (what < 300) {
			g = try_lock(common);
		}
		if (!g)
			g = lock(common);
		count_in(g);
		percpu_spinlock_unlock(&g->lock);
		done++;
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	*(unsigned *)arg = done;
	return NULL;
}

static void sums_are_exact(void **state)
{
	unsigned numbers[THREADS] = { 0, 1, 2, 3, 4, 5 };
	uint64_t sum = 0, expected = 0;

	(void)state;
	common = make();
	percpu__spinlock_patience = 3; /* the bias comes and goes all the time */
	unit_threads(THREADS, count, numbers, sizeof *numbers);
	percpu__spinlock_patience = 512;
	assert_int_equal(wrong, 0);
	for (unsigned i = 0; i < THREADS; i++)
		expected += numbers[i];
	percpu_for_each_index(i) {
		struct guarded *g = percpu_ptr(common, i);

		sum += g->count;
		assert_int_equal(g->lock.held, 0);
		assert_int_equal(g->lock.sleepers, 0);
		assert_in_range(g->lock.bias, 0, 1);
		assert_int_equal(g->lock.all, 0);
	}
	assert_int_equal(sum, expected);
	percpu_free(common);
}

/* Waiters of each kind are woken, also by a holder whose bias they ended. */
static struct guarded *awaited;
static unsigned awaited_index;

static void *wait_for_index(void *arg)
{
	int kind = *(int *)arg;

	if (kind == 0) {
		*(int *)arg = percpu_spinlock_lock_index(&awaited->lock, awaited_index);
		percpu_spinlock_unlock(&percpu_ptr(awaited, awaited_index)->lock);
	} else if (kind == 1) {
		*(int *)arg = percpu_spinlock_lock_all(&awaited->lock);
		percpu_spinlock_unlock_all(&awaited->lock);
	} else {
		*(int *)arg = 0;
		/* In mode none, and where this runs on another CPU, there is nothing to wait for. */
		percpu_spinlock_unlock(percpu_spinlock_lock(&awaited->lock));
	}
	return NULL;
}

static void waiters_wake_up(void **state)
{
	(void)state;
	awaited = make();
	for (int round = 0; round < 12; round++) {
		int kinds[6] = { 0, 1, 2, 0, 1, 2 };
		pthread_t threads[6];
		struct guarded *mine = lock(awaited);
		int count = round % 6 + 1, first = round / 6;

		awaited_index = percpu_spinlock_index(&awaited->lock, &mine->lock);
		for (int i = 0; i < count; i++)
			assert_int_equal(pthread_create(&threads[i], NULL, wait_for_index, &kinds[(first + i) % 6]), 0);
		usleep(3000);
		percpu_spinlock_unlock(&mine->lock);
		for (int i = 0; i < count; i++) {
			assert_int_equal(pthread_join(threads[i], NULL), 0);
			assert_int_equal(kinds[(first + i) % 6], 0);
		}
		assert_int_equal(mine->lock.sleepers, 0);
	}
	percpu_free(awaited);
}

/* Who holds one and wants a higher one meets who wants all. */
static void *want_all(void *arg)
{
	for (int i = 0; i < 300; i++) {
		*(int *)arg |= percpu_spinlock_lock_all(&awaited->lock);
		percpu_spinlock_unlock_all(&awaited->lock);
	}
	return NULL;
}

static void several_in_rising_order(void **state)
{
	pthread_t thread;
	int rc = 0;

	(void)state;
	awaited = make();
	assert_int_equal(pthread_create(&thread, NULL, want_all, &rc), 0);
	for (int i = 0; i < 300; i++) {
		percpu_for_each_index(k)
			assert_int_equal(percpu_spinlock_lock_index(&awaited->lock, k), 0);
		percpu_for_each_index(k)
			percpu_spinlock_unlock(&percpu_ptr(awaited, k)->lock);
	}
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(rc, 0);
	percpu_free(awaited);
}

/* A handler at any moment of its thread's lock and unlock. */
static uint64_t handled, refused;

static void handler(int sig)
{
	struct guarded *g = try_lock(common);

	(void)sig;
	if (!g) {
		refused++;
		return;
	}
	count_in(g);
	handled++;
	percpu_spinlock_unlock(&g->lock);
}

static void *send_signals(void *arg)
{
	pthread_t target = *(pthread_t *)arg;

	for (int i = 0; i < 3000; i++) {
		pthread_kill(target, SIGUSR1);
		if (i % 16 == 0)
			usleep(100);
	}
	return NULL;
}

static void handlers_try(void **state)
{
	pthread_t sender, self = pthread_self();
	uint64_t sum = 0, turns = 0;

	(void)state;
	common = make();
	wrong = 0;
	percpu__spinlock_patience = 3;
	signal(SIGUSR1, handler);
	assert_int_equal(pthread_create(&sender, NULL, send_signals, &self), 0);
	for (; turns < 200000; turns++) {
		struct guarded *g;

		/* On a busy machine the others may all come when the lock is held: that is when this thread yields. */
		if (turns % 1024 == 0)
			raise(SIGUSR1);
		if (turns % 64 == 0) {
			assert_int_equal(percpu_spinlock_lock_index(&common->lock, 0), 0);
			g = common;
		} else {
			g = lock(common);
		}
		count_in(g);
		percpu_spinlock_unlock(&g->lock);
	}
	assert_int_equal(pthread_join(sender, NULL), 0);
	signal(SIGUSR1, SIG_DFL);
	percpu__spinlock_patience = 512;
	percpu_for_each_index(i)
		sum += percpu_ptr(common, i)->count;
	assert_int_equal(wrong, 0);
	assert_int_equal(sum, turns + handled);
	assert_true(handled > 0);
	percpu_free(common);
}

/* The child makes all its own. */
static int child_uses_it(void)
{
	struct guarded *g;

	percpu_spinlock_init(&awaited->lock);
	for (int i = 0; i < 100; i++) {
		g = lock(awaited);
		count_in(g);
		percpu_spinlock_unlock(&g->lock);
	}
	percpu_for_each_index(i) {
		if (percpu_spinlock_lock_index(&awaited->lock, i))
			return 1;
		percpu_spinlock_unlock(&percpu_ptr(awaited, i)->lock);
	}
	if (percpu_spinlock_lock_all(&awaited->lock))
		return 2;
	percpu_spinlock_unlock_all(&awaited->lock);
	return percpu_ptr(awaited, 0)->lock.sleepers != 0 || wrong != 0;
}

static uint32_t stop;

static void *keep_busy(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct guarded *g = lock(awaited);

		count_in(g);
		sched_yield();
		percpu_spinlock_unlock(&g->lock);
	}
	return NULL;
}

static void after_fork(void **state)
{
	pthread_t threads[3];

	(void)state;
	awaited = make();
	wrong = 0;
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, keep_busy, NULL), 0);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(percpu_spinlock_lock_all(&awaited->lock), 0);
		assert_int_equal(unit_in_child(child_uses_it), 0);
		percpu_spinlock_unlock_all(&awaited->lock);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(wrong, 0);
	percpu_free(awaited);
}

/* From some moment on the kernel refuses the fence. */
static int without_fence(void)
{
	struct guarded *g = awaited, *mine = lock(g);
	unsigned index = percpu_spinlock_index(&g->lock, &mine->lock);
	bool none = unit_in_mode(PERCPU_MODE_NONE);

	percpu_spinlock_unlock(&mine->lock);
	if (sandbox_deny(SYS_membarrier, EPERM))
		return UNIT_SKIPPED;
	if (percpu_spinlock_lock_index(&g->lock, index) != (none ? 0 : -EPERM))
		return 1;
	if (none)
		return 0;
	if (percpu_spinlock_lock_all(&g->lock) != -EPERM)
		return 2;
	/* Nothing is locked, and the bias is as it was. */
	percpu_for_each_index(i)
		if (percpu_ptr(g, i)->lock.held || percpu_ptr(g, i)->lock.all || percpu_ptr(g, i)->lock.all_lock)
			return 3;
	if (mine->lock.bias != 1 || lock(g) != mine)
		return 4;
	/* Who finds it held cannot wait there. */
	if (lock(g) != percpu_ptr(g, percpu_copies() - 1))
		return 5;
	if (mine->lock.bias != 1 || try_lock(g))
		return 6;
	percpu_spinlock_unlock(&percpu_ptr(g, percpu_copies() - 1)->lock);
	percpu_spinlock_unlock(&mine->lock);
	return 0;
}

static void a_fence_that_is_refused_later(void **state)
{
	int rc;

	(void)state;
	awaited = make();
	rc = unit_in_child(without_fence);
	if (rc == UNIT_SKIPPED)
		skip();
	assert_int_equal(rc, 0);
	percpu_free(awaited);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(one_holder, stay, leave),
		cmocka_unit_test_setup_teardown(the_bias_goes_and_comes_back, stay, leave),
		cmocka_unit_test(arguments),
		cmocka_unit_test(all_without_touching),
		cmocka_unit_test(sums_are_exact),
		cmocka_unit_test(waiters_wake_up),
		cmocka_unit_test(several_in_rising_order),
		cmocka_unit_test(handlers_try),
		cmocka_unit_test(after_fork),
		cmocka_unit_test_setup_teardown(a_fence_that_is_refused_later, stay, leave),
	};

	return unit_main(tests);
}
