/* SPDX-License-Identifier: MIT */
/* RCU: who waits for whom, nesting, polls, callbacks, handlers, forks, and tasks of every origin. */
#include <sys/resource.h>
#include <time.h>

#include "unit.h"

#include "base/sys.h"
#include "rseq/thread.h"

#define MS 1000

static struct percpu_rcu_domain domain, other;

/* A reader in a thread of its own, that enters and leaves as it is told. */
struct reader {
	pthread_t thread;
	bool in_domain;
	enum percpu__force force;
	uint32_t inside, leave; /* 1 when it is, or is to */
};

static void *read_as_told(void *arg)
{
	struct reader *r = arg;
	uintptr_t token = 0;

	percpu__thread_force(r->force);
	if (r->in_domain)
		token = percpu_rcu_domain_read_lock(&domain);
	else
		percpu_rcu_read_lock();
	__atomic_store_n(&r->inside, 1, __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&r->leave, __ATOMIC_SEQ_CST))
		usleep(100);
	if (r->in_domain)
		percpu_rcu_domain_read_unlock(&domain, token);
	else
		percpu_rcu_read_unlock();
	return NULL;
}

static void reader_start(struct reader *r)
{
	r->inside = r->leave = 0;
	assert_int_equal(pthread_create(&r->thread, NULL, read_as_told, r), 0);
	while (!__atomic_load_n(&r->inside, __ATOMIC_SEQ_CST))
		usleep(100);
}

static void reader_end(struct reader *r)
{
	__atomic_store_n(&r->leave, 1, __ATOMIC_SEQ_CST);
	assert_int_equal(pthread_join(r->thread, NULL), 0);
}

/* One that waits for a grace period in a thread of its own. */
struct waiter {
	pthread_t thread;
	int (*how)(void);
	int rc;
	uint32_t done;
};

static void *wait_in_thread(void *arg)
{
	struct waiter *w = arg;

	w->rc = w->how();
	__atomic_store_n(&w->done, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void waiter_start(struct waiter *w, int (*how)(void))
{
	w->how = how;
	w->done = 0;
	assert_int_equal(pthread_create(&w->thread, NULL, wait_in_thread, w), 0);
}

static bool waiter_is_done(struct waiter *w)
{
	return __atomic_load_n(&w->done, __ATOMIC_SEQ_CST) != 0;
}

static int waiter_end(struct waiter *w)
{
	assert_int_equal(pthread_join(w->thread, NULL), 0);
	return w->rc;
}

static int domain_synchronize(void)
{
	return percpu_rcu_domain_synchronize(&domain);
}

static int domain_expedited(void)
{
	return percpu_rcu_domain_synchronize_expedited(&domain);
}

static int setup(void **state)
{
	(void)state;
	return percpu_rcu_domain_init(&domain) || percpu_rcu_domain_init(&other);
}

static int teardown(void **state)
{
	(void)state;
	percpu_rcu_domain_destroy(&domain);
	percpu_rcu_domain_destroy(&domain);
	percpu_rcu_domain_destroy(&other);
	percpu_rcu_domain_destroy(NULL);
	return 0;
}

static void test_arguments(void **state)
{
	struct percpu_rcu_head head;

	(void)state;
	assert_int_equal(percpu_rcu_domain_init(NULL), -EINVAL);
	assert_int_equal(percpu_rcu_call(NULL, NULL), -EINVAL);
	assert_int_equal(percpu_rcu_call(&head, NULL), -EINVAL);
	assert_int_equal(percpu_rcu_domain_call(&domain, &head, NULL), -EINVAL);
	assert_int_equal(percpu_rcu_defer(NULL, NULL), -EINVAL);
	assert_int_equal(percpu_rcu_free(NULL), 0);
	assert_int_equal(percpu_rcu_barrier(), 0);
	assert_int_equal(percpu_rcu_domain_barrier(&domain), 0);
}

static void test_nesting(void **state)
{
	(void)state;
	for (int force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		percpu__thread_force((enum percpu__force)force);
		assert_false(percpu_rcu_read_held());
		for (int i = 0; i < 100; i++)
			percpu_rcu_read_lock();
		assert_int_equal(percpu_rcu_synchronize(), -EDEADLK);
		assert_int_equal(percpu_rcu_synchronize_expedited(), -EDEADLK);
		assert_int_equal(percpu_rcu_barrier(), -EDEADLK);
		/* The way may change in the middle. */
		percpu__thread_force(PERCPU__FORCE_OFF);
		for (int i = 0; i < 100; i++) {
			assert_true(percpu_rcu_read_held());
			percpu_rcu_read_unlock();
		}
		assert_false(percpu_rcu_read_held());
		assert_int_equal(percpu_rcu_synchronize(), 0);
		assert_int_equal(percpu_rcu_synchronize_expedited(), 0);
	}
}

static void wait_for_reader(bool in_domain, enum percpu__force force, int (*how)(void))
{
	struct reader before = { .in_domain = in_domain, .force = force }, after = before;
	struct waiter waiter;

	reader_start(&before);
	waiter_start(&waiter, how);
	usleep(20 * MS);
	assert_false(waiter_is_done(&waiter));
	/* Has begun since: is not waited for. */
	reader_start(&after);
	usleep(5 * MS);
	assert_false(waiter_is_done(&waiter));
	reader_end(&before);
	assert_int_equal(waiter_end(&waiter), 0);
	reader_end(&after);
}

static void test_waiting(void **state)
{
	(void)state;
	for (int force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		wait_for_reader(false, (enum percpu__force)force, percpu_rcu_synchronize);
		wait_for_reader(false, (enum percpu__force)force, percpu_rcu_synchronize_expedited);
		wait_for_reader(true, (enum percpu__force)force, domain_synchronize);
		wait_for_reader(true, (enum percpu__force)force, domain_expedited);
	}
}

static void test_domains_are_apart(void **state)
{
	struct reader in_domain = { .in_domain = true }, in_all = { 0 };

	(void)state;
	reader_start(&in_domain);
	reader_start(&in_all);
	assert_int_equal(percpu_rcu_domain_synchronize(&other), 0);
	reader_end(&in_all);
	assert_int_equal(percpu_rcu_synchronize(), 0);
	reader_end(&in_domain);
	assert_int_equal(percpu_rcu_domain_synchronize(&domain), 0);
}

static uintptr_t lent_token;

static void *unlock_elsewhere(void *arg)
{
	(void)arg;
	percpu_rcu_domain_read_unlock(&domain, lent_token);
	return NULL;
}

static void test_token_elsewhere(void **state)
{
	struct waiter waiter;

	(void)state;
	lent_token = percpu_rcu_domain_read_lock(&domain);
	waiter_start(&waiter, domain_synchronize);
	usleep(5 * MS);
	assert_false(waiter_is_done(&waiter));
	unit_threads(1, unlock_elsewhere, NULL, 0);
	assert_int_equal(waiter_end(&waiter), 0);
}

static void test_poll(void **state)
{
	struct reader reader = { .in_domain = false };
	uint64_t poll, second;

	(void)state;
	poll = percpu_rcu_start_poll();
	assert_true(percpu_rcu_poll_state(poll));
	reader_start(&reader);
	assert_true(percpu_rcu_poll_state(poll));
	poll = percpu_rcu_start_poll();
	second = percpu_rcu_start_poll(); /* one is under way: needs the next */
	for (int i = 0; i < 100; i++) {
		assert_false(percpu_rcu_poll_state(poll));
		assert_false(percpu_rcu_poll_state(second));
	}
	reader_end(&reader);
	assert_true(percpu_rcu_poll_state(second));
	assert_true(percpu_rcu_poll_state(poll));

	/* One that a poll has begun is ended by who waits. */
	reader.in_domain = true;
	reader_start(&reader);
	poll = percpu_rcu_domain_start_poll(&domain);
	assert_false(percpu_rcu_domain_poll_state(&domain, poll));
	reader_end(&reader);
	assert_int_equal(percpu_rcu_domain_synchronize(&domain), 0);
	assert_true(percpu_rcu_domain_poll_state(&domain, poll));
}

static uint64_t called;

static void count(struct percpu_rcu_head *head)
{
	(void)head;
	__atomic_fetch_add(&called, 1, __ATOMIC_SEQ_CST);
}

static uint64_t calls(void)
{
	return __atomic_load_n(&called, __ATOMIC_SEQ_CST);
}

static int barrier_rc;

static void ask_for_barrier(struct percpu_rcu_head *head)
{
	barrier_rc = percpu_rcu_barrier();
	count(head);
	percpu_rcu_call(head, count); /* itself again */
}

static void count_argument(void *argument)
{
	__atomic_fetch_add(&called, (uint64_t)(uintptr_t)argument, __ATOMIC_SEQ_CST);
}

static void test_call(void **state)
{
	static struct percpu_rcu_head heads[1000];
	struct reader reader = { .in_domain = false };

	(void)state;
	called = 0;
	reader_start(&reader);
	for (unsigned i = 0; i < UNIT_COUNT(heads); i++)
		assert_int_equal(percpu_rcu_call(&heads[i], count), 0);
	usleep(20 * MS);
	assert_int_equal(calls(), 0);
	reader_end(&reader);
	assert_int_equal(percpu_rcu_barrier(), 0);
	assert_int_equal(calls(), UNIT_COUNT(heads));

	called = 0;
	assert_int_equal(percpu_rcu_call(heads, ask_for_barrier), 0);
	assert_int_equal(percpu_rcu_barrier(), 0);
	assert_int_equal(barrier_rc, -EDEADLK);
	assert_int_equal(percpu_rcu_barrier(), 0);
	assert_int_equal(calls(), 2);

	called = 0;
	for (uintptr_t i = 1; i <= 100; i++)
		assert_int_equal(percpu_rcu_defer(count_argument, (void *)i), 0);
	assert_int_equal(percpu_rcu_free(percpu_alloc(8, 8)), 0);
	assert_int_equal(percpu_rcu_free(percpu_malloc(100)), 0);
	assert_int_equal(percpu_rcu_barrier(), 0);
	assert_int_equal(calls(), 5050);

	called = 0;
	for (unsigned i = 0; i < UNIT_COUNT(heads); i++)
		assert_int_equal(percpu_rcu_domain_call(&other, &heads[i], count), 0);
	percpu_rcu_domain_destroy(&other);
	assert_int_equal(calls(), UNIT_COUNT(heads));
	assert_int_equal(percpu_rcu_domain_init(&other), 0);
}

static uint64_t queued;

static void *queue_many(void *arg)
{
	struct percpu_rcu_head *heads = arg;

	unit_pin(0);
	for (unsigned i = 0; i < 3 * PERCPU_RCU_QUEUE_MAX - 1; i++) {
		if (percpu_rcu_call(&heads[i], count))
			return NULL;
		__atomic_fetch_add(&queued, 1, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

static void test_back_pressure(void **state)
{
	struct percpu_rcu_head *heads = calloc(3 * PERCPU_RCU_QUEUE_MAX, sizeof *heads);
	struct reader reader = { .in_domain = false };
	pthread_t thread;
	uint64_t before = 0, now;

	(void)state;
	assert_non_null(heads);
	called = queued = 0;
	reader_start(&reader);
	assert_int_equal(pthread_create(&thread, NULL, queue_many, heads), 0);
	/* Until it waits. */
	while ((now = __atomic_load_n(&queued, __ATOMIC_SEQ_CST)) == 0 || now != before) {
		before = now;
		usleep(100 * MS);
	}
	assert_true(now < 3 * PERCPU_RCU_QUEUE_MAX);
	assert_int_equal(calls(), 0);
	/* Who is in a read section must not wait, and does not. */
	percpu_rcu_read_lock();
	assert_int_equal(percpu_rcu_call(&heads[3 * PERCPU_RCU_QUEUE_MAX - 1], count), 0);
	percpu_rcu_read_unlock();
	reader_end(&reader);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(percpu_rcu_barrier(), 0);
	free(heads);
}

static uint32_t handled;

static void read_in_handler(int sig)
{
	(void)sig;
	percpu_rcu_read_lock();
	percpu_rcu_domain_read_unlock(&domain, percpu_rcu_domain_read_lock(&domain));
	percpu_rcu_read_lock();
	percpu_rcu_read_unlock();
	percpu_rcu_read_unlock();
	handled++;
}

/* A new thread's first read section is in its handler, or is interrupted by it. */
static void *first_in_handler(void *arg)
{
	(void)arg;
	if (arg)
		raise(SIGUSR1);
	percpu_rcu_read_lock();
	raise(SIGUSR1);
	percpu_rcu_read_unlock();
	return (void *)(uintptr_t)percpu_rcu_read_held();
}

static void test_handlers(void **state)
{
	struct sigaction action = { .sa_handler = read_in_handler }, old;
	timer_t timer;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct itimerspec often = { { 0, 50000 }, { 0, 50000 } };
	uint64_t bad = 0;

	(void)state;
	assert_int_equal(sigaction(SIGUSR1, &action, &old), 0);
	for (int i = 0; i < 2; i++) {
		pthread_t thread;
		void *held;

		assert_int_equal(pthread_create(&thread, NULL, first_in_handler, i ? &thread : NULL), 0);
		assert_int_equal(pthread_join(thread, &held), 0);
		assert_null(held);
	}
	assert_int_equal(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	assert_int_equal(timer_settime(timer, 0, &often, NULL), 0);
	handled = 0;
	while (__atomic_load_n(&handled, __ATOMIC_RELAXED) < 2000) {
		percpu_rcu_read_lock();
		bad += !percpu_rcu_read_held();
		percpu_rcu_read_lock();
		percpu_rcu_read_unlock();
		bad += !percpu_rcu_read_held();
		percpu_rcu_read_unlock();
		bad += percpu_rcu_read_held();
		percpu_rcu_domain_read_unlock(&domain, percpu_rcu_domain_read_lock(&domain));
	}
	timer_delete(timer);
	assert_int_equal(sigaction(SIGUSR1, &old, NULL), 0);
	assert_int_equal(bad, 0);
	assert_int_equal(percpu_rcu_domain_synchronize(&domain), 0);
	assert_int_equal(percpu_rcu_synchronize(), 0);
}

static int in_child(void)
{
	static struct percpu_rcu_head head;
	struct waiter waiter;
	uintptr_t token;

	/* The parent's other readers are not here; its callbacks are. */
	if (!percpu_rcu_read_held())
		return 1;
	waiter_start(&waiter, percpu_rcu_synchronize);
	usleep(20 * MS);
	if (waiter_is_done(&waiter))
		return 2; /* this thread is still inside */
	percpu_rcu_read_unlock();
	if (waiter_end(&waiter) || percpu_rcu_read_held())
		return 3;
	if (percpu_rcu_domain_synchronize(&domain))
		return 4;
	/* What was open in the domain ends, and does not make up for somebody else. */
	token = percpu_rcu_domain_read_lock(&domain);
	percpu_rcu_domain_read_unlock(&domain, lent_token);
	waiter_start(&waiter, domain_synchronize);
	usleep(20 * MS);
	if (waiter_is_done(&waiter))
		return 5;
	percpu_rcu_domain_read_unlock(&domain, token);
	if (waiter_end(&waiter))
		return 6;
	if (percpu_rcu_barrier() || calls() != 1)
		return 7;
	if (percpu_rcu_call(&head, count) || percpu_rcu_barrier() || calls() != 2)
		return 8;
	return 0;
}

static void test_fork(void **state)
{
	static struct percpu_rcu_head head;
	struct reader in_domain = { .in_domain = true }, in_all = { 0 };

	(void)state;
	reader_start(&in_all);
	reader_start(&in_domain);
	called = 0;
	assert_int_equal(percpu_rcu_call(&head, count), 0);
	percpu_rcu_read_lock();
	lent_token = percpu_rcu_domain_read_lock(&domain);
	assert_int_equal(unit_in_child(in_child), 0);
	percpu_rcu_domain_read_unlock(&domain, lent_token);
	percpu_rcu_read_unlock();
	reader_end(&in_all);
	reader_end(&in_domain);
	assert_int_equal(percpu_rcu_barrier(), 0);
	assert_int_equal(calls(), 1);
}

static void test_vfork(void **state)
{
	volatile pid_t child;
	int status;

	(void)state;
	percpu_rcu_read_lock();
	child = vfork();
	if (child == 0) {
		percpu_rcu_read_lock();
		percpu_rcu_read_unlock();
		_exit(percpu_rcu_read_held() ? 0 : 1);
	}
	assert_true(child > 0);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_true(percpu_rcu_read_held());
	percpu_rcu_read_unlock();
	assert_false(percpu_rcu_read_held());
}

/* A task on its parent's thread-local storage, which runs beside it. */
static uint32_t task_step;
static char task_stack[65536] __attribute__((aligned(16)));

static int raw_task(void *arg)
{
	(void)arg;
	percpu_rcu_read_lock();
	__atomic_store_n(&task_step, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 1000 && __atomic_load_n(&task_step, __ATOMIC_SEQ_CST) != 2; i++)
		percpu__sys4(SYS_nanosleep, (long)&(struct timespec){ 0, 1000000 }, 0, 0, 0);
	percpu_rcu_read_unlock();
	__atomic_store_n(&task_step, 3, __ATOMIC_SEQ_CST);
	return 0;
}

static int with_raw_task(void)
{
	struct waiter waiter;
	pid_t child;
	int rc;

	task_step = 0;
	percpu_rcu_read_lock(); /* and is inside when that begins */
	child = clone(raw_task, task_stack + sizeof task_stack, CLONE_VM | SIGCHLD, NULL);
	if (child < 0)
		return 1;
	while (__atomic_load_n(&task_step, __ATOMIC_SEQ_CST) != 1)
		usleep(100);
	percpu_rcu_read_lock();
	percpu_rcu_read_unlock();
	if (!percpu_rcu_read_held())
		return 2;
	percpu_rcu_read_unlock();
	if (percpu_rcu_read_held())
		return 3;
	waiter_start(&waiter, percpu_rcu_synchronize);
	usleep(20 * MS);
	rc = waiter_is_done(&waiter) ? 4 : 0; /* the task is inside */
	__atomic_store_n(&task_step, 2, __ATOMIC_SEQ_CST);
	if (waiter_end(&waiter))
		return 5;
	while (__atomic_load_n(&task_step, __ATOMIC_SEQ_CST) != 3)
		usleep(100);
	return waitpid(child, NULL, 0) == child ? rc : 6;
}

static void test_raw_task(void **state)
{
	(void)state;
	assert_int_equal(unit_in_child(with_raw_task), 0);
}

static void *end_inside(void *arg)
{
	(void)arg;
	percpu_rcu_read_lock();
	return NULL;
}

static void *read_once(void *arg)
{
	(void)arg;
	percpu_rcu_read_lock();
	percpu_rcu_read_unlock();
	return NULL;
}

static void test_ended_threads(void **state)
{
	(void)state;
	unit_threads(1, end_inside, NULL, 0);
	assert_int_equal(percpu_rcu_synchronize(), 0);
	for (int i = 0; i < 20; i++)
		unit_threads(50, read_once, NULL, 0);
	assert_int_equal(percpu_rcu_synchronize(), 0);
}

/* More readers than there are records, and no memory for more, from when all threads exist: these share one. */
static uint32_t go;

static void *read_when_told(void *arg)
{
	while (!__atomic_load_n(&go, __ATOMIC_SEQ_CST))
		usleep(100);
	return read_as_told(arg);
}

static int behind_limit(void)
{
	static struct reader readers[60];
	struct rlimit limit = { 1 << 20, 1 << 20 };
	pthread_t late;
	uint64_t poll;

	go = 0;
	for (unsigned i = 0; i < UNIT_COUNT(readers); i++)
		if (pthread_create(&readers[i].thread, NULL, read_when_told, &readers[i]))
			return 1;
	if (pthread_create(&late, NULL, read_once, NULL) || pthread_join(late, NULL) || setrlimit(RLIMIT_AS, &limit))
		return 2;
	__atomic_store_n(&go, 1, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < UNIT_COUNT(readers); i++)
		while (!__atomic_load_n(&readers[i].inside, __ATOMIC_SEQ_CST))
			usleep(100);
	/* All are inside: a poll says no until the last has left. */
	poll = percpu_rcu_start_poll();
	for (unsigned i = 0; i < UNIT_COUNT(readers); i++) {
		if (percpu_rcu_poll_state(poll))
			return 3;
		__atomic_store_n(&readers[i].leave, 1, __ATOMIC_SEQ_CST);
		pthread_join(readers[i].thread, NULL);
	}
	return percpu_rcu_poll_state(poll) && percpu_rcu_synchronize() == 0 ? 0 : 4;
}

static void test_no_memory(void **state)
{
	(void)state;
	if (UNIT_ASAN)
		skip();
	assert_int_equal(unit_in_child(behind_limit), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_memory), /* first, while there are few records */
		cmocka_unit_test(test_arguments),
		cmocka_unit_test(test_nesting),
		cmocka_unit_test(test_waiting),
		cmocka_unit_test(test_domains_are_apart),
		cmocka_unit_test(test_token_elsewhere),
		cmocka_unit_test(test_poll),
		cmocka_unit_test(test_call),
		cmocka_unit_test(test_back_pressure),
		cmocka_unit_test(test_handlers),
		cmocka_unit_test(test_fork),
		cmocka_unit_test(test_vfork),
		cmocka_unit_test(test_raw_task),
		cmocka_unit_test(test_ended_threads),
	};

	if (unit_mode_is_wrong())
		return UNIT_SKIPPED;
	return cmocka_run_group_tests(tests, setup, teardown);
}
