/* SPDX-License-Identifier: MIT */
/* Reader-writer locks: who gets in beside whom, who waits for whom, giving up, forks, handlers, and no update lost. */
#include <time.h>

#include "unit.h"

#include "rseq/thread.h"

#define MS 1000000U

static struct percpu_rwlock *lock;
static uint32_t step; /* what threads tell each other */

static void say(uint32_t what)
{
	__atomic_store_n(&step, what, __ATOMIC_SEQ_CST);
}

static void wait_for(uint32_t what)
{
	while (__atomic_load_n(&step, __ATOMIC_SEQ_CST) < what)
		usleep(100);
}

static int setup(void **state)
{
	(void)state;
	say(0);
	lock = percpu_alloc(sizeof *lock, 64);
	return lock ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	percpu_free(lock);
	return 0;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* In another thread; returns what it returned. */
struct tried {
	int (*what)(void);
	int rc;
};

static void *try_it(void *arg)
{
	struct tried *t = arg;

	t->rc = t->what();
	return NULL;
}

static int elsewhere(int (*what)(void))
{
	struct tried t = { what, -1 };

	unit_threads(1, try_it, &t, sizeof t);
	return t.rc;
}

static int read_once(void)
{
	int rc = percpu_rwlock_read_trylock(lock);

	if (!rc)
		percpu_rwlock_read_unlock(lock);
	return rc;
}

static int write_once(void)
{
	int rc = percpu_rwlock_write_trylock(lock);

	if (!rc)
		percpu_rwlock_write_unlock(lock);
	return rc;
}

static int read_for_a_while(void)
{
	int rc = percpu_rwlock_read_timedlock(lock, 2 * MS);

	if (!rc)
		percpu_rwlock_read_unlock(lock);
	return rc;
}

static int write_for_a_while(void)
{
	int rc = percpu_rwlock_write_timedlock(lock, 2 * MS);

	if (!rc)
		percpu_rwlock_write_unlock(lock);
	return rc;
}

static int just_unlock_read(void)
{
	percpu_rwlock_read_unlock(lock);
	return 0;
}

static int just_unlock_write(void)
{
	percpu_rwlock_write_unlock(lock);
	return 0;
}

/* Memory that was used for something else. */
static void beginning_again(void **state)
{
	(void)state;
	assert_int_equal(percpu_rwlock_init(NULL), -EINVAL);
	percpu_for_each_index(i)
		memset(percpu_ptr(lock, i), 0xa5, sizeof *lock);
	assert_int_equal(percpu_rwlock_init(lock), 0);
	assert_int_equal(read_once(), 0);
	assert_int_equal(write_once(), 0);
}

static bool any_open(void)
{
	percpu_for_each_index(i)
		if (percpu_ptr(lock, i)->open)
			return true;
	return false;
}

/* What makes readers fast, and writers that come one after another. */
static void copies_are_opened_and_closed(void **state)
{
	struct percpu_description how;

	(void)state;
	assert_false(any_open());
	percpu_rwlock_read_lock(lock);
	assert_int_equal(percpu_describe(&how), 0);
	assert_int_equal(any_open(), how.mode != PERCPU_MODE_NONE);
	percpu_rwlock_read_unlock(lock);
	assert_int_equal(any_open(), how.mode != PERCPU_MODE_NONE);
	assert_int_equal(percpu_ptr(lock, percpu_copies() - 1)->open, 0);
	assert_int_equal(percpu_rwlock_write_lock(lock), 0);
	assert_false(any_open());
	percpu_rwlock_write_unlock(lock);
	assert_false(any_open());
	/* Who is inside opens it when he leaves. */
	assert_int_equal(percpu_rwlock_write_lock(lock), 0);
	percpu_rwlock_downgrade(lock);
	assert_false(any_open());
	percpu_rwlock_read_unlock(lock);
	assert_int_equal(any_open(), how.mode != PERCPU_MODE_NONE);
	/* But not in front of a writer that waits. */
	percpu_rwlock_read_lock(lock);
	assert_int_equal(elsewhere(write_for_a_while), -ETIMEDOUT);
	assert_false(any_open());
	percpu_rwlock_read_unlock(lock);
	assert_int_equal(percpu_rwlock_write_lock(lock), 0);
	percpu_rwlock_write_unlock(lock);
}

static void who_gets_in_beside_whom(void **state)
{
	(void)state;
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		percpu__thread_force(force);
		assert_int_equal(elsewhere(read_once), 0);
		assert_int_equal(elsewhere(write_once), 0);
		percpu_rwlock_read_lock(lock);
		assert_int_equal(elsewhere(read_once), 0);
		assert_int_equal(elsewhere(write_once), -EBUSY);
		assert_int_equal(elsewhere(read_for_a_while), 0);
		assert_int_equal(elsewhere(write_for_a_while), -ETIMEDOUT);
		/* A writer that gave up leaves no trace. */
		assert_int_equal(elsewhere(read_once), 0);
		percpu_rwlock_read_lock_again(lock);
		percpu_rwlock_read_unlock(lock);
		assert_int_equal(elsewhere(write_once), -EBUSY);
		percpu_rwlock_read_unlock(lock);
		assert_int_equal(elsewhere(write_once), 0);
		assert_int_equal(percpu_rwlock_write_lock(lock), 0);
		assert_int_equal(elsewhere(read_once), -EBUSY);
		assert_int_equal(elsewhere(write_once), -EBUSY);
		assert_int_equal(elsewhere(read_for_a_while), -ETIMEDOUT);
		assert_int_equal(elsewhere(write_for_a_while), -ETIMEDOUT);
		percpu_rwlock_downgrade(lock);
		assert_int_equal(elsewhere(read_once), 0);
		assert_int_equal(elsewhere(write_once), -EBUSY);
		percpu_rwlock_read_unlock(lock);
		assert_int_equal(percpu_rwlock_write_timedlock(lock, UINT64_MAX), 0);
		assert_int_equal(percpu_rwlock_read_timedlock(lock, 0), -EBUSY);
		assert_int_equal(percpu_rwlock_write_timedlock(lock, 0), -EBUSY);
		percpu_rwlock_write_unlock(lock);
		assert_int_equal(percpu_rwlock_read_timedlock(lock, UINT64_MAX), 0);
		percpu_rwlock_read_unlock(lock);
		percpu__thread_force(PERCPU__FORCE_OFF);
	}
}

/* Not a measurement: it must not come back before its time, and must come back. */
static void giving_up_takes_as_long_as_asked(void **state)
{
	uint64_t start;

	(void)state;
	assert_int_equal(percpu_rwlock_write_lock(lock), 0);
	start = now();
	assert_int_equal(elsewhere(read_for_a_while), -ETIMEDOUT);
	assert_true(now() - start >= 2 * MS);
	start = now();
	assert_int_equal(elsewhere(write_for_a_while), -ETIMEDOUT);
	assert_true(now() - start >= 2 * MS);
	percpu_rwlock_write_unlock(lock);
	percpu_rwlock_read_lock(lock);
	start = now();
	assert_int_equal(elsewhere(write_for_a_while), -ETIMEDOUT);
	assert_true(now() - start >= 2 * MS);
	percpu_rwlock_read_unlock(lock);
}

/* A time so long that it passes the end of the clock is for ever. */
static void *hold_for_writing(void *unused)
{
	(void)unused;
	if (percpu_rwlock_write_lock(lock))
		return "cannot lock";
	say(1);
	usleep(20000);
	percpu_rwlock_write_unlock(lock);
	return NULL;
}

static void nearly_for_ever(void **state)
{
	pthread_t holder;
	void *wrong;

	(void)state;
	assert_int_equal(pthread_create(&holder, NULL, hold_for_writing, NULL), 0);
	wait_for(1);
	assert_int_equal(percpu_rwlock_read_timedlock(lock, UINT64_MAX - 1), 0);
	percpu_rwlock_read_unlock(lock);
	assert_int_equal(pthread_join(holder, &wrong), 0);
	assert_null(wrong);
}

static void another_thread_may_unlock(void **state)
{
	(void)state;
	percpu_rwlock_read_lock(lock);
	percpu_rwlock_read_lock(lock);
	assert_int_equal(elsewhere(just_unlock_read), 0);
	assert_int_equal(elsewhere(write_once), -EBUSY);
	assert_int_equal(elsewhere(just_unlock_read), 0);
	assert_int_equal(percpu_rwlock_write_lock(lock), 0);
	assert_int_equal(elsewhere(just_unlock_write), 0);
	assert_int_equal(elsewhere(write_once), 0);
}

/* One thread that waits, and says what it does. */
static struct waiter {
	pthread_t thread;
	bool writes;
	int rc;
	uint32_t entered, leave; /* flags */
} waiters[4];

static uint32_t place; /* order of entering */

static void *wait_and_enter(void *arg)
{
	struct waiter *w = arg;

	if (w->writes)
		w->rc = percpu_rwlock_write_lock(lock);
	else
		percpu_rwlock_read_lock(lock);
	__atomic_store_n(&w->entered, __atomic_add_fetch(&place, 1, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&w->leave, __ATOMIC_SEQ_CST))
		usleep(100);
	if (w->writes)
		percpu_rwlock_write_unlock(lock);
	else
		percpu_rwlock_read_unlock(lock);
	return NULL;
}

static struct waiter *start(unsigned i, bool writes)
{
	waiters[i] = (struct waiter){ .writes = writes };
	assert_int_equal(pthread_create(&waiters[i].thread, NULL, wait_and_enter, &waiters[i]), 0);
	return &waiters[i];
}

static void end(struct waiter *w)
{
	__atomic_store_n(&w->leave, 1, __ATOMIC_SEQ_CST);
	assert_int_equal(pthread_join(w->thread, NULL), 0);
	assert_int_equal(w->rc, 0);
}

static uint32_t has_entered(const struct waiter *w)
{
	return __atomic_load_n(&w->entered, __ATOMIC_SEQ_CST);
}

static void until_entered(const struct waiter *w)
{
	while (!has_entered(w))
		usleep(100);
}

static unsigned queued_readers(void)
{
	return (unsigned)(__atomic_load_n(&lock->queue, __ATOMIC_SEQ_CST) & 0xffffff);
}

/* A writer that waits keeps later readers out, so these cannot starve it. */
static void readers_do_not_overtake_a_writer(void **state)
{
	struct waiter *writer, *reader;

	(void)state;
	place = 0;
	percpu_rwlock_read_lock(lock);
	writer = start(0, true);
	while (elsewhere(read_once) == 0)
		usleep(100);
	reader = start(1, false);
	while (queued_readers() != 1)
		usleep(100);
	usleep(5000);
	assert_int_equal(has_entered(writer), 0);
	assert_int_equal(has_entered(reader), 0);
	/* Who is inside may enter again, though a writer waits. */
	percpu_rwlock_read_lock_again(lock);
	percpu_rwlock_read_unlock(lock);
	usleep(5000);
	assert_int_equal(has_entered(writer), 0);
	percpu_rwlock_read_unlock(lock);
	until_entered(writer);
	assert_int_equal(has_entered(reader), 0);
	end(writer);
	until_entered(reader);
	end(reader);
	assert_true(writer->entered < reader->entered);
}

/* Readers that waited for one writer get in before the next, so writers cannot starve them. */
static void writers_do_not_overtake_readers(void **state)
{
	struct waiter *readers[2], *writer;

	(void)state;
	place = 0;
	assert_int_equal(percpu_rwlock_write_lock(lock), 0);
	writer = start(0, true);
	while (__atomic_load_n(&lock->writers, __ATOMIC_SEQ_CST) >> 1 != 1)
		usleep(100);
	readers[0] = start(1, false);
	readers[1] = start(2, false);
	while (queued_readers() != 2)
		usleep(100);
	percpu_rwlock_write_unlock(lock);
	until_entered(readers[0]);
	until_entered(readers[1]);
	usleep(5000);
	assert_int_equal(has_entered(writer), 0);
	end(readers[0]);
	usleep(5000);
	assert_int_equal(has_entered(writer), 0);
	end(readers[1]);
	until_entered(writer);
	end(writer);
	assert_int_equal(writer->entered, 3);
}

/* A reader that gives up is not waited for; nor one that a writer let in who gave up himself. */
static void giving_up_in_the_queue(void **state)
{
	struct waiter *reader;

	(void)state;
	assert_int_equal(percpu_rwlock_write_lock(lock), 0);
	assert_int_equal(elsewhere(read_for_a_while), -ETIMEDOUT);
	assert_int_equal(queued_readers(), 0);
	percpu_rwlock_write_unlock(lock);
	assert_int_equal(elsewhere(write_once), 0);

	percpu_rwlock_read_lock(lock);
	reader = start(0, false);
	assert_int_equal(elsewhere(write_for_a_while), -ETIMEDOUT);
	until_entered(reader);
	end(reader);
	percpu_rwlock_read_unlock(lock);
	assert_int_equal(elsewhere(write_once), 0);
}

/* fork. */

static int child_of_a_reader(void)
{
	if (percpu_rwlock_write_trylock(lock) != -EBUSY)
		return 1;
	percpu_rwlock_read_unlock(lock);
	if (percpu_rwlock_write_trylock(lock))
		return 2;
	percpu_rwlock_write_unlock(lock);
	return 0;
}

static int child_of_a_writer(void)
{
	percpu_rwlock_write_unlock(lock);
	/* Readers and writers that waited in the parent do not exist here. */
	if (percpu_rwlock_write_trylock(lock))
		return 1;
	percpu_rwlock_write_unlock(lock);
	if (percpu_rwlock_read_trylock(lock))
		return 2;
	percpu_rwlock_read_unlock(lock);
	return 0;
}

static int child_that_downgrades(void)
{
	percpu_rwlock_downgrade(lock);
	if (percpu_rwlock_write_trylock(lock) != -EBUSY)
		return 1;
	percpu_rwlock_read_unlock(lock);
	return child_of_a_writer() ? 2 : 0;
}

static int child_of_anybody(void)
{
	return percpu_rwlock_write_trylock(lock) == -EBUSY ? 0 : 1;
}

static void forks(void **state)
{
	struct waiter *reader, *writer;

	(void)state;
	percpu_rwlock_read_lock(lock);
	assert_int_equal(unit_in_child(child_of_a_reader), 0);
	percpu_rwlock_read_unlock(lock);

	assert_int_equal(percpu_rwlock_write_lock(lock), 0);
	reader = start(0, false);
	writer = start(1, true);
	while (queued_readers() != 1 || __atomic_load_n(&lock->writers, __ATOMIC_SEQ_CST) >> 1 != 1)
		usleep(100);
	assert_int_equal(unit_in_child(child_of_a_writer), 0);
	assert_int_equal(unit_in_child(child_that_downgrades), 0);
	percpu_rwlock_write_unlock(lock);
	until_entered(reader);
	/* What another thread holds stays held. */
	assert_int_equal(unit_in_child(child_of_anybody), 0);
	end(reader);
	until_entered(writer);
	assert_int_equal(unit_in_child(child_of_anybody), 0);
	end(writer);
}

/* All at once: readers see both words equal, and no writer's addition is lost. */

#define THREADS 6
#define TURNS   4000

static uint64_t first, second; /* under the lock */
static uint64_t written, handled, torn;

static void look(void)
{
	if (*(volatile uint64_t *)&first != *(volatile uint64_t *)&second)
		__atomic_fetch_add(&torn, 1, __ATOMIC_RELAXED);
}

static void on_signal(int sig)
{
	(void)sig;
	if (percpu_rwlock_read_trylock(lock) == 0) {
		look();
		percpu_rwlock_read_lock_again(lock);
		percpu_rwlock_read_unlock(lock);
		percpu_rwlock_read_unlock(lock);
		__atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
	}
}

static void change(void)
{
	*(volatile uint64_t *)&first = first + 1;
	__asm__ __volatile__("" ::: "memory");
	*(volatile uint64_t *)&second = second + 1;
	__atomic_fetch_add(&written, 1, __ATOMIC_RELAXED);
}

static void one_turn(uint64_t *random)
{
	switch (unit_random(random) % 64) {
	case 0:
		if (percpu_rwlock_write_lock(lock))
			__atomic_fetch_add(&torn, 1, __ATOMIC_RELAXED);
		change();
		percpu_rwlock_write_unlock(lock);
		break;
	case 1:
		if (percpu_rwlock_write_timedlock(lock, unit_random(random) % 100000))
			break;
		change();
		percpu_rwlock_downgrade(lock);
		look();
		percpu_rwlock_read_unlock(lock);
		break;
	case 2:
		if (percpu_rwlock_write_trylock(lock))
			break;
		change();
		percpu_rwlock_write_unlock(lock);
		break;
	case 3:
		if (percpu_rwlock_read_timedlock(lock, unit_random(random) % 100000))
			break;
		look();
		sched_yield();
		look();
		percpu_rwlock_read_unlock(lock);
		break;
	default:
		percpu_rwlock_read_lock(lock);
		look();
		percpu_rwlock_read_unlock(lock);
	}
}

static void *work(void *arg)
{
	unsigned me = *(unsigned *)arg;
	uint64_t random = me + 1;

	if (me >= 2)
		percpu__thread_force((enum percpu__force)(me % 3));
	for (int i = 0; i < TURNS; i++) {
		one_turn(&random);
		if (me == 1 && i % 8 == 0)
			raise(SIGUSR1);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void no_update_is_lost(void **state)
{
	unsigned numbers[THREADS] = { 0, 1, 2, 3, 4, 5 };

	(void)state;
	signal(SIGUSR1, on_signal);
	unit_threads(THREADS, work, numbers, sizeof *numbers);
	signal(SIGUSR1, SIG_DFL);
	assert_int_equal(torn, 0);
	assert_int_equal(first, written);
	assert_int_equal(second, written);
	assert_true(written > 0 && handled > 0);
	assert_int_equal(write_once(), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(beginning_again),
		TEST(copies_are_opened_and_closed),
		TEST(who_gets_in_beside_whom),
		TEST(giving_up_takes_as_long_as_asked),
		TEST(nearly_for_ever),
		TEST(another_thread_may_unlock),
		TEST(readers_do_not_overtake_a_writer),
		TEST(writers_do_not_overtake_readers),
		TEST(giving_up_in_the_queue),
		TEST(forks),
		TEST(no_update_is_lost),
	};

	return unit_main(tests);
}
