/* SPDX-License-Identifier: MIT */
/* Wait queues and event counts: arguments, order, cancelling, timeouts, handlers that wake, processes. */
#include <sys/mman.h>
#include <time.h>

#include "unit.h"

static struct timespec in_ms(clockid_t clock, long ms)
{
	struct timespec moment;

	clock_gettime(clock, &moment);
	moment.tv_nsec += ms % 1000 * 1000000;
	moment.tv_sec += ms / 1000 + moment.tv_nsec / 1000000000;
	moment.tv_nsec %= 1000000000;
	return moment;
}

static void arguments(void **state)
{
	struct percpu_waitqueue queue = PERCPU_WAITQUEUE_INIT;
	struct percpu_eventcount event = PERCPU_EVENTCOUNT_INIT;
	struct timespec bad = { .tv_nsec = 1000000000 }, past = in_ms(CLOCK_REALTIME, -1);
	struct percpu_waiter me;

	(void)state;
	assert_int_equal(percpu_waitqueue_init(NULL, 0), -EINVAL);
	assert_int_equal(percpu_waitqueue_init(&queue, 2), -EINVAL);
	assert_int_equal(percpu_eventcount_init(NULL, 0), -EINVAL);
	assert_int_equal(percpu_eventcount_init(&event, 2), -EINVAL);
	percpu_waitqueue_add(&queue, &me);
	assert_int_equal(percpu_waitqueue_wait(&queue, &me, CLOCK_MONOTONIC, &bad), -EINVAL);
	percpu_waitqueue_add(&queue, &me);
	assert_int_equal(percpu_waitqueue_wait(&queue, &me, CLOCK_PROCESS_CPUTIME_ID, &past), -EINVAL);
	assert_int_equal(queue.waiters, 0);
	percpu_waitqueue_add(&queue, &me);
	assert_int_equal(percpu_waitqueue_wait(&queue, &me, CLOCK_REALTIME, &past), -ETIMEDOUT);
	assert_int_equal(queue.waiters | queue.control, 0);
	assert_int_equal(percpu_eventcount_wait(&event, percpu_eventcount_prepare(&event), CLOCK_MONOTONIC, &bad),
			 -EINVAL);
	assert_int_equal(percpu_eventcount_wait(&event, percpu_eventcount_prepare(&event), CLOCK_BOOTTIME, &past),
			 -EINVAL);
	assert_int_equal(percpu_eventcount_wait(&event, percpu_eventcount_prepare(&event), CLOCK_REALTIME, &past),
			 -ETIMEDOUT);
	assert_int_equal(event.waiters | event.sleepers | event.epoch, 0);
	/* Nobody waits. */
	percpu_eventcount_notify_one(&event);
	percpu_eventcount_notify_all(&event);
	percpu_waitqueue_wake_all(&queue);
	assert_int_equal(event.epoch | queue.control, 0);
}

static bool is_woken(const struct percpu_waiter *waiter)
{
	return waiter->state == 4;
}

/* All in this thread: each is woken exactly when its turn comes, and cancelling takes out that one alone. */
static void in_order(void **state)
{
	struct percpu_waitqueue queue;
	struct percpu_waiter w[8];

	(void)state;
	assert_int_equal(percpu_waitqueue_init(&queue, 0), 0);
	for (int i = 0; i < 6; i++)
		percpu_waitqueue_add(&queue, &w[i]);
	percpu_waitqueue_wake(&queue, 0);
	assert_false(is_woken(&w[0]));
	percpu_waitqueue_wake(&queue, 2);
	assert_true(is_woken(&w[0]) && is_woken(&w[1]) && !is_woken(&w[2]));
	percpu_waitqueue_cancel(&queue, &w[3]);
	percpu_waitqueue_add(&queue, &w[6]);
	percpu_waitqueue_cancel(&queue, &w[6]); /* from the stack */
	percpu_waitqueue_cancel(&queue, &w[2]); /* the first */
	percpu_waitqueue_cancel(&queue, &w[5]); /* the last */
	assert_int_equal(queue.waiters, 1);
	percpu_waitqueue_add(&queue, &w[7]);
	percpu_waitqueue_wake(&queue, 1);
	assert_true(is_woken(&w[4]) && !is_woken(&w[7]));
	assert_int_equal(percpu_waitqueue_wait(&queue, &w[4], CLOCK_MONOTONIC, NULL), 0);
	/* What reached one that does not want it goes on to the next. */
	percpu_waitqueue_cancel(&queue, &w[0]);
	assert_true(is_woken(&w[7]));
	percpu_waitqueue_wake_all(&queue);
	assert_int_equal(queue.waiters | queue.control, 0);
	assert_int_equal(queue.added | queue.first | queue.last, 0);
}

static struct {
	struct percpu_waitqueue queue;
	struct percpu_eventcount event;
	unsigned ready, woken, order[16], wrong;
} world;

static void *wait_numbered(void *arg)
{
	struct percpu_waiter me;
	unsigned number = *(unsigned *)arg;

	percpu_waitqueue_add(&world.queue, &me);
	__atomic_fetch_add(&world.ready, 1, __ATOMIC_SEQ_CST);
	if (percpu_waitqueue_wait(&world.queue, &me, CLOCK_MONOTONIC, NULL))
		world.wrong++;
	world.order[__atomic_fetch_add(&world.woken, 1, __ATOMIC_SEQ_CST)] = number;
	return NULL;
}

static void wait_until(unsigned *word, unsigned value)
{
	while (__atomic_load_n(word, __ATOMIC_SEQ_CST) != value)
		usleep(100);
}

static void threads_in_order(void **state)
{
	unsigned numbers[8];
	pthread_t threads[8];

	(void)state;
	memset(&world, 0, sizeof world);
	for (unsigned i = 0; i < 8; i++) {
		numbers[i] = i;
		assert_int_equal(pthread_create(&threads[i], NULL, wait_numbered, &numbers[i]), 0);
		wait_until(&world.ready, i + 1);
	}
	for (unsigned i = 0; i < 4; i++) {
		percpu_waitqueue_wake(&world.queue, 1);
		wait_until(&world.woken, i + 1);
		assert_int_equal(world.order[i], i);
	}
	percpu_waitqueue_wake_all(&world.queue);
	for (unsigned i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(world.woken, 8);
	assert_int_equal(world.wrong, 0);
}

static void timeouts(void **state)
{
	static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_REALTIME };
	struct percpu_waitqueue queue = PERCPU_WAITQUEUE_INIT;
	struct percpu_eventcount event = PERCPU_EVENTCOUNT_INIT;
	struct percpu_waiter me, other;

	(void)state;
	percpu_waitqueue_add(&queue, &other);
	for (size_t i = 0; i < UNIT_COUNT(clocks); i++) {
		struct timespec moment = in_ms(clocks[i], 20), now;

		percpu_waitqueue_add(&queue, &me);
		assert_int_equal(percpu_waitqueue_wait(&queue, &me, clocks[i], &moment), -ETIMEDOUT);
		memset(&me, 0x55, sizeof me); /* nobody looks at it any more */
		assert_int_equal(percpu_eventcount_wait(&event, percpu_eventcount_prepare(&event), clocks[i], &moment),
				 -ETIMEDOUT);
		clock_gettime(clocks[i], &now);
		assert_true(now.tv_sec > moment.tv_sec ||
			    (now.tv_sec == moment.tv_sec && now.tv_nsec >= moment.tv_nsec));
	}
	assert_int_equal(queue.waiters, 1);
	percpu_waitqueue_wake_all(&queue);
	assert_true(is_woken(&other));
	assert_int_equal(event.waiters | event.sleepers, 0);
}

static void a_notification_in_between(void **state)
{
	struct percpu_eventcount event = PERCPU_EVENTCOUNT_INIT;
	uint32_t key = percpu_eventcount_prepare(&event), other = percpu_eventcount_prepare(&event);

	(void)state;
	percpu_eventcount_notify_one(&event);
	assert_int_equal(percpu_eventcount_wait(&event, key, CLOCK_MONOTONIC, NULL), 0);
	assert_int_equal(percpu_eventcount_wait(&event, other, CLOCK_MONOTONIC, NULL), 0);
	key = percpu_eventcount_prepare(&event);
	percpu_eventcount_cancel(&event);
	percpu_eventcount_notify_all(&event);
	assert_int_equal(event.epoch, key);
	assert_int_equal(event.waiters, 0);
}

static void *wait_for_event(void *arg)
{
	uint32_t key = percpu_eventcount_prepare(&world.event);

	(void)arg;
	__atomic_fetch_add(&world.ready, 1, __ATOMIC_SEQ_CST);
	if (percpu_eventcount_wait(&world.event, key, CLOCK_MONOTONIC, NULL))
		world.wrong++;
	__atomic_fetch_add(&world.woken, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void one_or_all(void **state)
{
	pthread_t threads[5];

	(void)state;
	memset(&world, 0, sizeof world);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, wait_for_event, NULL), 0);
	wait_until(&world.event.sleepers, 5);
	usleep(20000);
	percpu_eventcount_notify_one(&world.event);
	while (!__atomic_load_n(&world.woken, __ATOMIC_SEQ_CST))
		usleep(100);
	percpu_eventcount_notify_all(&world.event);
	for (unsigned i = 0; i < 5; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(world.woken, 5);
	assert_int_equal(world.wrong | world.event.waiters | world.event.sleepers, 0);
}

static void on_signal(int sig)
{
	(void)sig;
	percpu_waitqueue_wake_all(&world.queue);
	percpu_eventcount_notify_all(&world.event);
}

/* A handler wakes its own thread, too. */
static void handlers_wake(void **state)
{
	struct percpu_waiter me;
	struct itimerspec soon = { .it_value = { .tv_nsec = 20000000 } };
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	timer_t timer;

	(void)state;
	memset(&world, 0, sizeof world);
	signal(SIGUSR1, on_signal);
	assert_int_equal(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	percpu_waitqueue_add(&world.queue, &me);
	timer_settime(timer, 0, &soon, NULL);
	assert_int_equal(percpu_waitqueue_wait(&world.queue, &me, CLOCK_MONOTONIC, NULL), 0);
	timer_settime(timer, 0, &soon, NULL);
	assert_int_equal(
		percpu_eventcount_wait(&world.event, percpu_eventcount_prepare(&world.event), CLOCK_MONOTONIC, NULL),
		0);
	timer_delete(timer);
	signal(SIGUSR1, SIG_DFL);
}

struct shared {
	struct percpu_waitqueue queue;
	struct percpu_eventcount event;
	struct percpu_waiter waiters[2];
	uint32_t turn; /* whose */
	uint32_t rounds;
};

#define ROUNDS 5000

/* Each waits for its turn, and gives the turn to the other. */
static int take_turns(struct shared *shared, uint32_t mine)
{
	for (int i = 0; i < ROUNDS; i++) {
		while (__atomic_load_n(&shared->turn, __ATOMIC_SEQ_CST) != mine) {
			if (i % 2) {
				percpu_waitqueue_add(&shared->queue, &shared->waiters[mine]);
				if (__atomic_load_n(&shared->turn, __ATOMIC_SEQ_CST) == mine)
					percpu_waitqueue_cancel(&shared->queue, &shared->waiters[mine]);
				else if (percpu_waitqueue_wait(&shared->queue, &shared->waiters[mine], CLOCK_MONOTONIC,
							       NULL))
					return 1;
			} else {
				uint32_t key = percpu_eventcount_prepare(&shared->event);

				if (__atomic_load_n(&shared->turn, __ATOMIC_SEQ_CST) == mine)
					percpu_eventcount_cancel(&shared->event);
				else if (percpu_eventcount_wait(&shared->event, key, CLOCK_MONOTONIC, NULL))
					return 2;
			}
		}
		shared->rounds++;
		__atomic_store_n(&shared->turn, !mine, __ATOMIC_SEQ_CST);
		percpu_waitqueue_wake_all(&shared->queue);
		percpu_eventcount_notify_all(&shared->event);
	}
	return 0;
}

/* Each process has the memory at another address. */
static void two_processes(void **state)
{
	int fd = memfd_create("waitqueue", 0), status;
	struct shared *first, *second;
	pid_t child;

	(void)state;
	assert_int_equal(ftruncate(fd, sizeof *first), 0);
	first = mmap(NULL, sizeof *first, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	second = mmap(NULL, sizeof *first, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(first != MAP_FAILED && second != MAP_FAILED && first != second);
	percpu_waitqueue_init(&first->queue, PERCPU_WAITQUEUE_SHARED);
	percpu_eventcount_init(&first->event, PERCPU_EVENTCOUNT_SHARED);
	child = fork();
	if (child == 0) {
		alarm(60);
		_exit(take_turns(second, 1));
	}
	assert_int_equal(take_turns(first, 0), 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(first->rounds, 2 * ROUNDS);
	munmap(first, sizeof *first);
	munmap(second, sizeof *first);
	close(fd);
}

static int child_starts_over(void)
{
	struct percpu_waiter me;

	percpu_waitqueue_init(&world.queue, 0);
	percpu_waitqueue_add(&world.queue, &me);
	percpu_waitqueue_wake(&world.queue, 1);
	return percpu_waitqueue_wait(&world.queue, &me, CLOCK_MONOTONIC, NULL) || world.queue.waiters;
}

static void fork_empties(void **state)
{
	struct percpu_waiter me;

	(void)state;
	memset(&world, 0, sizeof world);
	percpu_waitqueue_add(&world.queue, &me);
	assert_int_equal(unit_in_child(child_starts_over), 0);
	percpu_waitqueue_cancel(&world.queue, &me);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arguments),
		cmocka_unit_test(in_order),
		cmocka_unit_test(threads_in_order),
		cmocka_unit_test(timeouts),
		cmocka_unit_test(a_notification_in_between),
		cmocka_unit_test(one_or_all),
		cmocka_unit_test(handlers_wake),
		cmocka_unit_test(two_processes),
		cmocka_unit_test(fork_empties),
	};

	return unit_main(tests);
}
