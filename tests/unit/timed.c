/* SPDX-License-Identifier: MIT */
/*
 * Timed code: whatever came in between is told, always. Where it cannot be known here what did come in between (the machine
 * has other work), getrusage() and a handler's count are the truth that results are held against.
 */
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

#include "unit.h"

#include "rseq/thread.h"

#define DISTURBED (PERCPU_TIMED_INTERRUPTED | PERCPU_TIMED_UNKNOWN)

static bool by_descriptor;
static volatile unsigned handled;

static int64_t switches(void)
{
	struct rusage usage;

	return getrusage(RUSAGE_THREAD, &usage) ? -1 : usage.ru_nvcsw + usage.ru_nivcsw;
}

static void spin(unsigned turns)
{
	for (volatile unsigned i = 0; i < turns; i++)
		;
}

static void check_result(const struct percpu_timed_result *result, bool clean)
{
	assert_int_equal(clean, result->flags == 0);
	assert_int_equal(result->method, by_descriptor ? PERCPU_TIMED_BY_DESCRIPTOR : PERCPU_TIMED_BY_COUNTS);
	if (result->flags & PERCPU_TIMED_MIGRATED)
		assert_true(result->flags & PERCPU_TIMED_INTERRUPTED);
	assert_int_equal(result->switches < 0, by_descriptor);
	if (!by_descriptor)
		assert_true(result->flags & DISTURBED);
}

static void short_code_is_clean(void **state)
{
	struct percpu_timed_result result;
	unsigned clean = 0;

	(void)state;
	for (int i = 0; i < 1000; i++) {
		struct percpu_timed timed;
		bool quiet;

		percpu_timed_begin(&timed);
		spin(10);
		quiet = percpu_timed_end(&timed, &result);
		check_result(&result, quiet);
		clean += quiet;
	}
	if (by_descriptor)
		assert_in_range(clean, 500, 1000);
	else
		assert_int_equal(clean, 0);
}

static void on_signal(int signal)
{
	(void)signal;
	handled++;
}

static void signals_are_seen(void **state)
{
	struct sigaction act = { .sa_handler = on_signal }, old;
	struct percpu_timed_result result;
	struct percpu_timed timed;

	(void)state;
	sigaction(SIGUSR1, &act, &old);
	for (int i = 0; i < 1000; i++) {
		percpu_timed_begin(&timed);
		raise(SIGUSR1);
		assert_false(percpu_timed_end(&timed, &result));
		check_result(&result, false);
		if (by_descriptor)
			assert_true(result.flags & PERCPU_TIMED_INTERRUPTED);
	}
	sigaction(SIGUSR1, &old, NULL);
}

/* Measures code of many lengths, while a timer interrupts it and others want the CPU. */
static void nothing_is_overlooked(void **state)
{
	struct sigaction act = { .sa_handler = on_signal, .sa_flags = SA_RESTART }, old;
	struct itimerval every = { .it_interval.tv_usec = 700, .it_value.tv_usec = 700 }, never = { 0 };
	unsigned quiet = 0, noisy = 0, overlooked = 0;
	uint64_t seed = 3;

	(void)state;
	sigaction(SIGALRM, &act, &old);
	setitimer(ITIMER_REAL, &every, NULL);
	for (int i = 0; i < 20000; i++) {
		unsigned turns = (unsigned)(unit_random(&seed) % 3000), before, after;
		struct percpu_timed_result result;
		struct percpu_timed timed;
		int64_t first, last;
		bool clean;

		percpu_timed_begin(&timed);
		before = handled;
		first = switches();
		spin(turns);
		if (i % 16 == 0)
			sched_yield();
		last = switches();
		after = handled;
		clean = percpu_timed_end(&timed, &result);
		check_result(&result, clean);
		overlooked += clean && (before != after || first != last);
		quiet += clean;
		noisy += !clean;
	}
	setitimer(ITIMER_REAL, &never, NULL);
	sigaction(SIGALRM, &old, NULL);
	assert_int_equal(overlooked, 0);
	assert_int_not_equal(noisy, 0);
	if (by_descriptor)
		assert_int_not_equal(quiet, 0);
}

static bool sleep_is_seen(void)
{
	struct percpu_timed_clock clock;

	return percpu_timed_clock(&clock) == 0 && clock.sees_sleep;
}

static void sleep_is_told(void **state)
{
	struct timespec nap = { .tv_nsec = 100000 };
	struct percpu_timed_result result;
	struct percpu_timed timed;
	unsigned naps = 0;

	(void)state;
	if (!sleep_is_seen())
		skip();
	for (int i = 0; i < 20; i++) {
		/* Where a hypervisor takes the CPU away, a nap may be over before the thread has gone to sleep. */
		int64_t before, slept;
		bool clean;

		percpu_timed_begin(&timed);
		before = switches();
		nanosleep(&nap, NULL);
		slept = switches() - before;
		clean = percpu_timed_end(&timed, &result);
		check_result(&result, clean);
		if (!slept)
			continue;
		naps++;
		assert_false(clean);
		assert_true(result.flags & PERCPU_TIMED_INTERRUPTED);
		if (!by_descriptor)
			assert_true(result.switches > 0);
	}
	assert_true(naps > 0);
}

static void moves_are_seen(void **state)
{
	struct percpu_timed_result result;
	struct percpu_timed timed;
	cpu_set_t everywhere;
	int here;

	(void)state;
	sched_getaffinity(0, sizeof everywhere, &everywhere);
	if (CPU_COUNT(&everywhere) < 2)
		skip();
	for (here = 0; !CPU_ISSET((size_t)here, &everywhere); here++)
		;
	for (int i = 0; i < 20; i++) {
		int there = here + 1;

		while (!CPU_ISSET((size_t)there, &everywhere))
			there++;
		assert_int_equal(unit_pin(here), 0);
		percpu_timed_begin(&timed);
		unit_pin(there);
		assert_false(percpu_timed_end(&timed, &result));
		assert_int_equal(result.flags, PERCPU_TIMED_INTERRUPTED | PERCPU_TIMED_MIGRATED);
		/* There and back. */
		assert_int_equal(unit_pin(here), 0);
		percpu_timed_begin(&timed);
		unit_pin(there);
		unit_pin(here);
		assert_false(percpu_timed_end(&timed, &result));
		assert_true(result.flags & PERCPU_TIMED_INTERRUPTED);
	}
	sched_setaffinity(0, sizeof everywhere, &everywhere);
}

static void other_operations_hide_it(void **state)
{
	struct percpu_timed_result result;
	struct percpu_counter counter;
	struct percpu_timed timed;
	unsigned unknown = 0;

	(void)state;
	assert_int_equal(percpu_counter_init(&counter), 0);
	for (int i = 0; i < 1000; i++) {
		percpu_timed_begin(&timed);
		percpu_counter_inc(&counter);
		assert_false(percpu_timed_end(&timed, &result));
		check_result(&result, false);
		unknown += (result.flags & PERCPU_TIMED_UNKNOWN) != 0;
		/* Reading is no section. */
		percpu_timed_begin(&timed);
		spin((unsigned)percpu_cpu());
		percpu_timed_end(&timed, &result);
		if (by_descriptor)
			assert_false(result.flags & PERCPU_TIMED_UNKNOWN);
	}
	assert_in_range(unknown, 500, 1000);
	assert_int_equal(percpu_counter_read(&counter), 1000);
	percpu_counter_destroy(&counter);
}

/* ---- one in another */

static void one_in_another(void **state)
{
	struct percpu_timed_result of_outer, of_inner;
	struct percpu_timed outer, inner;
	unsigned both = 0;

	(void)state;
	if (!by_descriptor)
		skip();
	for (int i = 0; i < 1000; i++) {
		bool clean;

		percpu_timed_begin(&outer);
		percpu_timed_begin(&inner);
		spin(3);
		clean = percpu_timed_end(&inner, &of_inner);
		if (percpu_timed_end(&outer, &of_outer))
			assert_true(clean);
		both += of_outer.flags == 0;
		assert_true(of_outer.ticks >= of_inner.ticks);

		/* What disturbs the inner one disturbs the outer one, and not the other way round. */
		percpu_timed_begin(&outer);
		percpu_timed_begin(&inner);
		raise(SIGUSR1);
		assert_false(percpu_timed_end(&inner, &of_inner));
		assert_false(percpu_timed_end(&outer, &of_outer));
		assert_true(of_inner.flags & of_outer.flags & PERCPU_TIMED_INTERRUPTED);
	}
	assert_in_range(both, 500, 1000);

	both = 0;
	for (int i = 0; i < 1000; i++) {
		percpu_timed_begin(&outer);
		raise(SIGUSR1);
		percpu_timed_begin(&inner);
		both += percpu_timed_end(&inner, &of_inner);
		assert_false(percpu_timed_end(&outer, &of_outer));
	}
	assert_in_range(both, 500, 1000);

	/* Never ended, or ended in the wrong order. */
	for (int i = 0; i < 1000; i++) {
		percpu_timed_begin(&outer);
		percpu_timed_begin(&inner);
		assert_false(percpu_timed_end(&outer, &of_outer));
		percpu_timed_begin(&outer);
		percpu_timed_begin(&inner);
		assert_false(percpu_timed_end(&outer, &of_outer));
		percpu_timed_end(&inner, &of_inner);
	}
	both = 0;
	for (int i = 0; i < 1000; i++) {
		percpu_timed_begin(&outer);
		both += percpu_timed_end(&outer, &of_outer);
	}
	assert_in_range(both, 500, 1000);
}

static volatile unsigned how;
static unsigned clean_in_handlers;

/* A handler that measures: to the end, without one, and while it is interrupted itself. */
static void measure_in_handler(int signal)
{
	struct percpu_timed_result result;
	struct percpu_timed timed;

	percpu_timed_begin(&timed);
	if (how == 1)
		return;
	if (how == 2 && signal == SIGUSR1)
		raise(SIGUSR2);
	if (percpu_timed_end(&timed, &result))
		clean_in_handlers++;
}

static void handlers_measure_too(void **state)
{
	struct sigaction act = { .sa_handler = measure_in_handler };
	struct percpu_timed_result result;
	struct percpu_timed timed;

	(void)state;
	sigaction(SIGUSR1, &act, NULL);
	sigaction(SIGUSR2, &act, NULL);
	for (int i = 0; i < 3000; i++) {
		how = (unsigned)i % 3;
		percpu_timed_begin(&timed);
		raise(SIGUSR1);
		assert_false(percpu_timed_end(&timed, &result));
	}
	if (by_descriptor)
		assert_in_range(clean_in_handlers, 500, 2000);
	act.sa_handler = on_signal;
	sigaction(SIGUSR1, &act, NULL);
	sigaction(SIGUSR2, &act, NULL);
}

/* ---- threads and processes */

static struct percpu_timed begun;

static int end_in_child(void)
{
	struct percpu_timed_result result;

	return percpu_timed_end(&begun, &result) || !(result.flags & DISTURBED);
}

static void *end_elsewhere(void *arg)
{
	struct percpu_timed_result result;

	*(bool *)arg = percpu_timed_end(&begun, &result) || !(result.flags & DISTURBED);
	return NULL;
}

static void others_cannot_tell(void **state)
{
	cpu_set_t everywhere;
	pthread_t thread;
	bool wrong;

	(void)state;
	/* One CPU: a child that is born elsewhere has been moved. */
	sched_getaffinity(0, sizeof everywhere, &everywhere);
	unit_pin(sched_getcpu());
	for (int i = 0; i < 20; i++) {
		percpu_timed_begin(&begun);
		assert_int_equal(unit_in_child(end_in_child), 0);
		percpu_timed_begin(&begun);
		assert_int_equal(pthread_create(&thread, NULL, end_elsewhere, &wrong), 0);
		assert_int_equal(pthread_join(thread, NULL), 0);
		assert_false(wrong);
	}
	sched_setaffinity(0, sizeof everywhere, &everywhere);
}

static void *measure_unregistered(void *arg)
{
	struct percpu_timed_result result;
	struct timespec nap = { .tv_nsec = 100000 };
	struct percpu_timed timed;

	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	percpu_timed_begin(&timed);
	spin(10);
	*(unsigned *)arg += percpu_timed_end(&timed, &result) || result.method != PERCPU_TIMED_BY_COUNTS;
	percpu_timed_begin(&timed);
	nanosleep(&nap, NULL);
	*(unsigned *)arg += percpu_timed_end(&timed, &result) || !(result.flags & PERCPU_TIMED_INTERRUPTED);
	*(unsigned *)arg += result.switches < 1;
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void threads_without_sections_count(void **state)
{
	unsigned errors[4] = { 0 };

	(void)state;
	unit_threads(4, measure_unregistered, errors, sizeof *errors);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(errors[i], 0);
}

/* ---- the rest */

static void disturb_some(void *arg)
{
	unsigned *left = arg;

	if (*left) {
		--*left;
		raise(SIGUSR1);
	}
}

static void best_of_some(void **state)
{
	struct percpu_timed_result result = { .ticks = 77 };
	unsigned left = 0;
	int rc;

	(void)state;
	assert_int_equal(percpu_timed_best(NULL, NULL, 1, &result), -EINVAL);
	assert_int_equal(percpu_timed_best(disturb_some, &left, 0, &result), -EINVAL);
	assert_int_equal(percpu_timed_best(disturb_some, &left, 1, NULL), -EINVAL);
	assert_int_equal(result.ticks, 77);
	left = 5;
	rc = percpu_timed_best(disturb_some, &left, 10000, &result);
	if (by_descriptor) {
		assert_int_equal(rc, 0);
		assert_int_equal(left, 0);
		assert_int_equal(result.flags, 0);
		left = 50;
		assert_int_equal(percpu_timed_best(disturb_some, &left, 20, &result), -EAGAIN);
		assert_int_equal(left, 30);
		assert_true(result.flags & DISTURBED);
	} else {
		assert_int_equal(rc, -ENOTSUP);
		assert_true(result.flags & DISTURBED);
	}
}

static void the_clock(void **state)
{
	struct timespec nap = { .tv_nsec = 20000000 };
	struct percpu_timed_result result;
	struct percpu_timed_clock clock;
	struct percpu_timed timed;

	(void)state;
	assert_int_equal(percpu_timed_clock(NULL), -EINVAL);
	assert_int_equal(percpu_timed_clock(&clock), 0);
	assert_true(clock.ticks_per_second >= 1000000);
	assert_non_null(clock.name);
	assert_int_equal(clock.method, by_descriptor ? PERCPU_TIMED_BY_DESCRIPTOR : PERCPU_TIMED_BY_COUNTS);
	assert_in_range(percpu_timed_ns(clock.ticks_per_second), 999999999, 1000000000);
	assert_int_equal(percpu_timed_ns(0), 0);
	assert_in_range(percpu_timed_ns(clock.ticks_per_second * 1000000), 999999999999999, 1000000000000000);
	percpu_timed_begin(&timed);
	nanosleep(&nap, NULL);
	percpu_timed_end(&timed, &result);
	/* The two clocks may differ by a little. */
	assert_true(percpu_timed_ns(result.ticks) > 19900000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(short_code_is_clean),   cmocka_unit_test(signals_are_seen),
		cmocka_unit_test(nothing_is_overlooked), cmocka_unit_test(sleep_is_told),
		cmocka_unit_test(moves_are_seen),        cmocka_unit_test(other_operations_hide_it),
		cmocka_unit_test(one_in_another),        cmocka_unit_test(handlers_measure_too),
		cmocka_unit_test(others_cannot_tell),    cmocka_unit_test(threads_without_sections_count),
		cmocka_unit_test(best_of_some),          cmocka_unit_test(the_clock),
	};
	struct sigaction act = { .sa_handler = on_signal };

	by_descriptor = !unit_in_mode(PERCPU_MODE_NONE);
	sigaction(SIGUSR1, &act, NULL);
	return unit_main(tests);
}
