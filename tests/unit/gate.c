/* SPDX-License-Identifier: MIT */
/* Fences and gates: what they return, that a held gate keeps sections out, and that holders exclude each other. */
#include "unit.h"

#include <time.h>

#include <sys/syscall.h>

#include "gate/gate.h"
#include "rseq/thread.h"
#include "sandbox.h"

static uint64_t *object, *elsewhere;

static void fences(void **state)
{
	(void)state;
	assert_int_equal(percpu_fence(), 0);
	for (unsigned cpu = 0; cpu < percpu_possible_cpus(); cpu++)
		assert_int_equal(percpu_fence_cpu(cpu), 0);
	assert_int_equal(percpu_fence_cpu(percpu_possible_cpus()), -EINVAL);
	assert_int_equal(percpu_fence_cpu(UINT32_MAX), -EINVAL);
}

static void arguments(void **state)
{
	struct percpu_gate gate;

	(void)state;
	assert_int_equal(percpu_gate_lock(NULL, 0, &gate), -EINVAL);
	assert_int_equal(percpu_gate_lock(object, 0, NULL), -EINVAL);
	assert_int_equal(percpu_gate_lock(object, percpu_copies(), &gate), -EINVAL);
	assert_int_equal(percpu_gate_lock(object, UINT32_MAX, &gate), -EINVAL);
	assert_int_equal(percpu__private.holding, 0);
}

/* Signals stay out while a gate is held, but in mode none, where only the remainder's must never be stopped. */
static void signals_wait(void **state)
{
	sigset_t before, during, after;

	(void)state;
	sigemptyset(&before);
	sigaddset(&before, SIGUSR2);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	percpu_for_each_index(index) {
		struct percpu_gate gate;

		assert_int_equal(percpu_gate_lock(object, index, &gate), 0);
		pthread_sigmask(SIG_SETMASK, NULL, &during);
		percpu_gate_unlock(&gate);
		pthread_sigmask(SIG_SETMASK, NULL, &after);
		assert_int_equal(sigismember(&during, SIGUSR1), 1);
		assert_int_equal(sigismember(&during, SIGUSR2), 1);
		assert_int_equal(sigismember(&after, SIGUSR1), 0);
		assert_int_equal(sigismember(&after, SIGUSR2), 1);
	}
	sigemptyset(&before);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void closed_to_sections_then_open(void **state)
{
	(void)state;
	percpu_for_each_index(index) {
		struct percpu__header *header = percpu__header_of(percpu__base_of(object), index);
		uint32_t shut = index == percpu_copies() - 1 ? PERCPU__SHUT : 0;
		struct percpu_gate gate;

		assert_int_equal(header->by_id.word, shut);
		assert_int_equal(header->by_cpu.word, shut);
		assert_int_equal(percpu_gate_lock(object, index, &gate), 0);
		assert_int_not_equal(header->by_id.word & ~PERCPU__SHUT, 0);
		assert_int_not_equal(header->by_cpu.word & ~PERCPU__SHUT, 0);
		assert_true(percpu__gate_is_mine(&header->by_id));
		percpu_gate_unlock(&gate);
		assert_int_equal(header->by_id.word, shut);
		assert_int_equal(header->by_cpu.word, shut);
		assert_false(percpu__gate_is_mine(&header->by_id));
	}
}

/* Threads that add all the time, and a holder that looks whether its copy stands still. */
#define ADDERS 3

static uint32_t stop;

static void *add_until_stopped(void *arg)
{
	uint64_t count = 0;

	for (; !__atomic_load_n(&stop, __ATOMIC_RELAXED); count++) {
		percpu_this_add(object, 1);
		percpu_this_cpu_add(object + 1, 1);
		/* The other half of the ways: what a section sees closed, it may take itself. */
		percpu_this_store_if_eq(object + 2, count, count + 1);
	}
	*(uint64_t *)arg = count;
	return NULL;
}

static uint64_t now_at(unsigned index, size_t word)
{
	return __atomic_load_n(percpu_ptr(object, index) + word, __ATOMIC_RELAXED);
}

static void a_held_gate_keeps_sections_out(void **state)
{
	uint64_t counts[ADDERS], sums[2] = { 0, 0 }, total = 0;
	pthread_t threads[ADDERS];

	(void)state;
	percpu_for_each_index(index)
		memset(percpu_ptr(object, index), 0, 3 * sizeof *object);
	__atomic_store_n(&stop, 0, __ATOMIC_RELAXED);
	for (size_t i = 0; i < ADDERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, add_until_stopped, &counts[i]), 0);
	for (unsigned turn = 0; turn < 24; turn++) {
		unsigned index = turn % percpu_copies();
		struct percpu_gate gate;
		uint64_t seen[3], plain;

		assert_int_equal(percpu_gate_lock(object, index, &gate), 0);
		for (size_t word = 0; word < 3; word++)
			seen[word] = now_at(index, word);
		/* A long time for whoever ignores the gate. */
		for (int i = 0; i < 8; i++)
			sched_yield();
		for (size_t word = 0; word < 3; word++)
			seen[word] -= now_at(index, word);
		/* And what the holder does plainly is not lost. */
		plain = now_at(index, 0);
		for (int i = 0; i < 2; i++)
			sched_yield();
		__atomic_store_n(percpu_ptr(object, index), plain + 1000000, __ATOMIC_RELAXED);
		percpu_gate_unlock(&gate);
		assert_int_equal(seen[0], 0);
		assert_int_equal(seen[1], 0);
		assert_int_equal(seen[2], 0);
		total += 1000000;
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < ADDERS; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		total += counts[i];
		sums[1] -= counts[i];
	}
	percpu_for_each_index(index) {
		sums[0] += now_at(index, 0);
		sums[1] += now_at(index, 1);
	}
	assert_int_equal(sums[0], total);
	assert_int_equal(sums[1], 0);
}

/* Holders among themselves, with nothing else to protect what they count. */
#define HOLDERS 5
#define HOLDS   1500

static uint64_t plain_count[64];

static void *hold_often(void *arg)
{
	uint64_t errors = 0;

	for (unsigned i = 0; i < HOLDS; i++) {
		unsigned index = i % 4 ? 0 : i % percpu_copies();
		struct percpu_gate gate;

		if (percpu_gate_lock(object, index, &gate)) {
			errors++;
			continue;
		}
		plain_count[index % 64]++;
		percpu_gate_unlock(&gate);
		if (i % 10 == 0)
			percpu_this_add(object, 1);
	}
	*(uint64_t *)arg = errors;
	return NULL;
}

static void holders_exclude_each_other(void **state)
{
	uint64_t errors[HOLDERS], total = 0;

	(void)state;
	percpu_for_each_index(index)
		*percpu_ptr(object, index) = 0;
	unit_threads(HOLDERS, hold_often, errors, sizeof *errors);
	for (size_t i = 0; i < HOLDERS; i++)
		assert_int_equal(errors[i], 0);
	for (size_t i = 0; i < UNIT_COUNT(plain_count); i++)
		total += plain_count[i];
	assert_int_equal(total, HOLDERS * HOLDS);
	total = 0;
	percpu_for_each_index(index)
		total += now_at(index, 0);
	assert_int_equal(total, HOLDERS * (HOLDS / 10));
}

/*
 * Deadlocks that one thread can make alone are refused. In a child, for a holder's signals are blocked: if it hangs, only
 * the parent can end it.
 */
static int lock_twice(unsigned index)
{
	struct percpu_gate first, second;
	int rc;

	if (percpu_gate_lock(object, index, &first))
		return 1;
	rc = percpu_gate_lock(object, index, &second);
	percpu_gate_unlock(&first);
	if (rc != -EDEADLK)
		return 2;
	if (percpu__private.holding)
		return 3;
	/* And nothing is left of the attempt. */
	if (percpu_gate_lock(object, index, &first))
		return 4;
	percpu_gate_unlock(&first);
	return 0;
}

/* Kills a child that hangs with all signals blocked; returns its status as unit_in_child() does. */
static int in_child_with_deadline(int (*what)(unsigned), unsigned index)
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(what(index));
	for (int i = 0; i < 5000; i++) {
		const struct timespec pause = { .tv_nsec = 1000000 };

		if (waitpid(child, &status, WNOHANG) == child)
			return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
		nanosleep(&pause, NULL);
	}
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	return 100 + SIGKILL;
}

static void no_gate_is_taken_twice(void **state)
{
	(void)state;
	percpu_for_each_index(index)
		if (index != percpu_copies() - 1)
			assert_int_equal(in_child_with_deadline(lock_twice, index), 0);
}

static void the_remainder_is_not_taken_twice(void **state)
{
	(void)state;
	assert_int_equal(in_child_with_deadline(lock_twice, percpu_copies() - 1), 0);
}

static pthread_barrier_t barrier;

static void *hold_until_told(void *arg)
{
	struct percpu_gate gate;

	*(int *)arg = percpu_gate_lock(object, 1, &gate);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	percpu_gate_unlock(&gate);
	return NULL;
}

static void who_holds_one_does_not_wait_for_another(void **state)
{
	struct percpu_gate first, second;
	pthread_t thread;
	int theirs = -1, refused, given;

	(void)state;
	pthread_barrier_init(&barrier, NULL, 2);
	assert_int_equal(pthread_create(&thread, NULL, hold_until_told, &theirs), 0);
	pthread_barrier_wait(&barrier);
	assert_int_equal(percpu_gate_lock(object, 0, &first), 0);
	refused = percpu_gate_lock(object, 1, &second);
	given = percpu_gate_lock(elsewhere, 1, &second);
	if (!given)
		percpu_gate_unlock(&second);
	percpu_gate_unlock(&first);
	pthread_barrier_wait(&barrier);
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&barrier);
	assert_int_equal(theirs, 0);
	assert_int_equal(refused, -EDEADLK);
	/* In another area that index is free. */
	assert_int_equal(given, 0);
}

/* Both gates of a copy or none: the slow path holds only one kind, and the other must not stay closed. */
static void *hold_one_kind(void *arg)
{
	struct percpu_gate gate = { .base = percpu__base_of(object), .index = 1, .kinds = PERCPU__KIND_CPU };

	*(int *)arg = percpu__gates_lock(&gate, 1, true);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	percpu__gates_unlock(&gate, 1, true);
	return NULL;
}

static void a_refusal_leaves_nothing_closed(void **state)
{
	struct percpu__header *header = percpu__header_of(percpu__base_of(object), 1);
	struct percpu_gate first, second;
	pthread_t thread;
	int theirs = -1, refused;
	uint32_t left;

	(void)state;
	pthread_barrier_init(&barrier, NULL, 2);
	assert_int_equal(pthread_create(&thread, NULL, hold_one_kind, &theirs), 0);
	pthread_barrier_wait(&barrier);
	assert_int_equal(percpu_gate_lock(object, 0, &first), 0);
	refused = percpu_gate_lock(object, 1, &second);
	left = __atomic_load_n(&header->by_id.word, __ATOMIC_RELAXED);
	percpu_gate_unlock(&first);
	pthread_barrier_wait(&barrier);
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&barrier);
	assert_int_equal(theirs, 0);
	assert_int_equal(refused, -EDEADLK);
	assert_int_equal(left, percpu_copies() == 2 ? PERCPU__SHUT : 0);
	assert_int_equal(header->by_cpu.word, left);
}

/* Forks while threads hold gates: the child finds all of them open, and can use everything. */
static int use_every_gate(unsigned unused)
{
	uint64_t before = 0, after = 0;

	(void)unused;
	percpu_for_each_index(index) {
		struct percpu_gate gate;

		if (percpu_gate_lock(object, index, &gate))
			return 1;
		/* No holder was in the middle: what it changes together is equal. */
		if (now_at(index, 1) != now_at(index, 2))
			return 2;
		percpu_gate_unlock(&gate);
		before += now_at(index, 0);
	}
	percpu__thread_force(PERCPU__FORCE_GATE);
	percpu_this_add(object, 1);
	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	percpu_this_add(object, 1);
	percpu__thread_force(PERCPU__FORCE_OFF);
	percpu_this_add(object, 1);
	percpu_for_each_index(index)
		after += now_at(index, 0);
	return after == before + 3 ? 0 : 3;
}

static void *hold_and_change(void *arg)
{
	uint64_t *adds = arg;

	for (unsigned i = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++) {
		unsigned index = i % percpu_copies();
		struct percpu_gate gate;

		if (percpu_gate_lock(object, index, &gate))
			break;
		*(volatile uint64_t *)(percpu_ptr(object, index) + 1) += 1;
		if (i % 16 == 0)
			sched_yield();
		*(volatile uint64_t *)(percpu_ptr(object, index) + 2) += 1;
		percpu_gate_unlock(&gate);
		percpu__thread_force((enum percpu__force)(i % 3));
		percpu_this_add(object, 1);
		percpu__thread_force(PERCPU__FORCE_OFF);
		++*adds;
	}
	return NULL;
}

static void forks_among_holders(void **state)
{
	uint64_t adds[3] = { 0 }, sum = 0;
	pthread_t threads[3];
	int rc = 0;

	(void)state;
	percpu_for_each_index(index)
		memset(percpu_ptr(object, index), 0, 3 * sizeof *object);
	__atomic_store_n(&stop, 0, __ATOMIC_RELAXED);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, hold_and_change, &adds[i]), 0);
	for (int i = 0; i < 40 && !rc; i++)
		rc = in_child_with_deadline(use_every_gate, 0);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(rc, 0);
	percpu_for_each_index(index)
		sum += now_at(index, 0);
	assert_int_equal(sum, adds[0] + adds[1] + adds[2]);
}

/* From some moment on the kernel refuses the fence: gates cannot be had, and operations go to the remainder. */
static int without_the_fence(void)
{
	struct percpu_gate gate;
	uint64_t sum = 0;
	unsigned last = percpu_copies() - 1;

	percpu_for_each_index(index)
		*percpu_ptr(object, index) = 0;
	if (sandbox_deny(SYS_membarrier, EPERM))
		return UNIT_SKIPPED;
	if (percpu_fence() != -EPERM || percpu_fence_cpu(0) != -EPERM)
		return 1;
	if (percpu_gate_lock(object, 0, &gate) != -EPERM || percpu__private.holding)
		return 2;
	/* The remainder needs none. */
	if (percpu_gate_lock(object, last, &gate))
		return 3;
	percpu_gate_unlock(&gate);
	percpu_this_add(object, 1);
	percpu__thread_force(PERCPU__FORCE_GATE);
	percpu_this_add(object, 1);
	percpu__thread_force(PERCPU__FORCE_OFF);
	if (now_at(last, 0) != 1)
		return 4;
	percpu_for_each_index(index)
		sum += now_at(index, 0);
	return sum == 2 ? 0 : 5;
}

static void a_fence_that_is_refused_later(void **state)
{
	int rc;

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	rc = unit_in_child(without_the_fence);
	if (rc == UNIT_SKIPPED)
		skip();
	assert_int_equal(rc, 0);
}

/* Where a gate stays closed for long, operations wait for it and are then done, not lost. */
static void *operate_once(void *arg)
{
	unit_pin(*(int *)arg);
	percpu_this_cpu_add(object, 1);
	percpu_this_cpu_store_if_eq(object + 1, 0, 7);
	percpu_this_cpu_xchg(object + 2, 8);
	return NULL;
}

static void operations_wait_for_the_gate(void **state)
{
	struct percpu_gate gate;
	pthread_t threads[3];
	int cpu = sched_getcpu();
	uint64_t during = 0, sum = 0;

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	percpu_for_each_index(index)
		memset(percpu_ptr(object, index), 0, 3 * sizeof *object);
	assert_int_equal(percpu_gate_lock(object, (unsigned)cpu, &gate), 0);
	for (size_t i = 0; i < 3; i++)
		if (pthread_create(&threads[i], NULL, operate_once, &cpu))
			threads[i] = pthread_self();
	for (int i = 0; i < 50; i++) {
		const struct timespec pause = { .tv_nsec = 1000000 };

		nanosleep(&pause, NULL);
	}
	for (size_t word = 0; word < 3; word++)
		during += now_at((unsigned)cpu, word);
	percpu_gate_unlock(&gate);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(during, 0);
	percpu_for_each_index(index)
		sum += now_at(index, 0);
	assert_int_equal(sum, 3);
	assert_int_equal(now_at((unsigned)cpu, 1), 7);
	assert_int_equal(now_at((unsigned)cpu, 2), 8);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fences),
		cmocka_unit_test(arguments),
		cmocka_unit_test(signals_wait),
		cmocka_unit_test(closed_to_sections_then_open),
		cmocka_unit_test(a_held_gate_keeps_sections_out),
		cmocka_unit_test(holders_exclude_each_other),
		cmocka_unit_test(no_gate_is_taken_twice),
		cmocka_unit_test(the_remainder_is_not_taken_twice),
		cmocka_unit_test(who_holds_one_does_not_wait_for_another),
		cmocka_unit_test(a_refusal_leaves_nothing_closed),
		cmocka_unit_test(forks_among_holders),
		cmocka_unit_test(a_fence_that_is_refused_later),
		cmocka_unit_test(operations_wait_for_the_gate),
	};
	void *fill;

	object = percpu_alloc(3 * sizeof *object, 64);
	/* The next one that large does not fit in the same area. */
	fill = percpu_alloc(PERCPU_ALLOC_MAX - 4096, 8);
	elsewhere = percpu_alloc(PERCPU_ALLOC_MAX - 4096, 8);
	if (!object || !fill || !elsewhere)
		return 1;
	return unit_main(tests);
}
