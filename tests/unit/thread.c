/* SPDX-License-Identifier: MIT */
/* What the library knows of each thread: how it starts, and the ways that tests may force it to go. */
#include "unit.h"

#include <sys/syscall.h>

#include "rseq/thread.h"

static uint64_t *object;

static void clear(void)
{
	percpu_for_each_index(index)
		*percpu_ptr(object, index) = 0;
}

static uint64_t sum(void)
{
	uint64_t total = 0;

	percpu_for_each_index(index)
		total += *percpu_ptr(object, index);
	return total;
}

struct findings {
	bool new_points_at_newcomer, started, starts_again, has_id, points_elsewhere, forced_gate, forced_remainder,
		back;
};

static void *start(void *arg)
{
	struct findings *f = arg;

	f->new_points_at_newcomer = percpu__private.state == PERCPU__NEW && percpu__self == &percpu__newcomer;
	f->started = percpu__thread_start();
	f->starts_again = percpu__thread_start();
	f->has_id = percpu__private.id != 0 && percpu__private.spread < percpu_possible_cpus();
	f->points_elsewhere = percpu__self != &percpu__newcomer;
	percpu__thread_force(PERCPU__FORCE_GATE);
	f->forced_gate = percpu__self == &percpu__newcomer && percpu__private.force == PERCPU__FORCE_GATE;
	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	f->forced_remainder = percpu__self == &percpu__newcomer && percpu__private.force == PERCPU__FORCE_REMAINDER;
	percpu__thread_force(PERCPU__FORCE_OFF);
	f->back = (!f->started || percpu__self == percpu__true_area()) && percpu__private.force == PERCPU__FORCE_OFF;
	return NULL;
}

static void threads_start_once(void **state)
{
	struct findings f = { 0 };

	(void)state;
	unit_threads(1, start, &f, sizeof f);
	assert_true(f.new_points_at_newcomer);
	assert_true(f.has_id);
	assert_true(f.points_elsewhere);
	assert_int_equal(f.started, f.starts_again);
	assert_int_equal(f.started, !unit_in_mode(PERCPU_MODE_NONE));
	assert_int_equal(f.forced_gate, f.started);
	assert_int_equal(f.forced_remainder, f.started);
	assert_true(f.back);
}

static void force_chooses_the_copy(void **state)
{
	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		uint64_t in_remainder;

		clear();
		percpu__thread_force(force);
		for (int i = 0; i < 100; i++)
			percpu_this_add(object, 1);
		percpu__thread_force(PERCPU__FORCE_OFF);
		in_remainder = *percpu_ptr(object, percpu_copies() - 1);
		assert_int_equal(sum(), 100);
		assert_int_equal(in_remainder, force == PERCPU__FORCE_REMAINDER ? 100 : 0);
	}
}

static void lending(void **state)
{
	struct percpu__rseq *area;

	(void)state;
	percpu__thread_start();
	clear();
	area = percpu__lend_thread();
	assert_ptr_equal(percpu__self, &percpu__newcomer);
	percpu_this_add(object, 1);
	percpu__self = area;
	percpu_this_add(object, 1);
	assert_int_equal(sum(), 2);
	if (!unit_in_mode(PERCPU_MODE_NONE)) {
		assert_int_equal(*percpu_ptr(object, percpu_copies() - 1), 1);
		assert_ptr_equal(area, percpu__true_area());
	}
}

#define THREADS 6
#define ADDS    30000

static void *add_in_turns(void *arg)
{
	unsigned me = *(unsigned *)arg;

	for (int i = 0; i < ADDS; i++) {
		if (i % 100 == 0)
			percpu__thread_force((enum percpu__force)((me + (unsigned)i / 100) % 8 == 1 ? PERCPU__FORCE_GATE
								  : (me + (unsigned)i / 100) % 2
									  ? PERCPU__FORCE_REMAINDER
									  : PERCPU__FORCE_OFF));
		percpu_this_add(object, 1);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void all_ways_at_once(void **state)
{
	unsigned numbers[THREADS];

	(void)state;
	for (unsigned i = 0; i < THREADS; i++)
		numbers[i] = i;
	clear();
	unit_threads(THREADS, add_in_turns, numbers, sizeof *numbers);
	assert_int_equal(sum(), THREADS * ADDS);
}

static void objects_with_sections_stay(void **state)
{
	/* An address in this program, one in the C library, and one in no object. */
	percpu__pin((const void *)(uintptr_t)&objects_with_sections_stay);
	percpu__pin((const void *)(uintptr_t)&objects_with_sections_stay);
	percpu__pin((const void *)(uintptr_t)&memcpy);
	percpu__pin(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_start_once),
		cmocka_unit_test(force_chooses_the_copy),
		cmocka_unit_test(lending),
		cmocka_unit_test(all_ways_at_once),
		cmocka_unit_test(objects_with_sections_stay),
	};

	object = percpu_alloc(sizeof *object, sizeof *object);
	if (!object)
		return 1;
	return unit_main(tests);
}
