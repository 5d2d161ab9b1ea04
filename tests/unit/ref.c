/* SPDX-License-Identifier: MIT */
/*
 * Reference counts: one release, exactly when the last is gone, by whichever thread and way; kills against everything else.
 */
#include "unit.h"

#include "gate/gate.h"
#include "rseq/thread.h"

static struct percpu_ref ref;
static uint32_t released;
static uint64_t mask_at_release;

static void on_release(struct percpu_ref *which)
{
	sigset_t set;

	__atomic_fetch_add(&released, which == &ref, __ATOMIC_SEQ_CST);
	pthread_sigmask(SIG_SETMASK, NULL, &set);
	mask_at_release = (uint64_t)sigismember(&set, SIGUSR1);
}

static int setup(void **state)
{
	(void)state;
	released = 0;
	return percpu_ref_init(&ref, on_release, 0);
}

static int teardown(void **state)
{
	(void)state;
	percpu_ref_destroy(&ref);
	return 0;
}

static void arguments(void **state)
{
	struct percpu_ref other;

	(void)state;
	assert_int_equal(percpu_ref_init(NULL, on_release, 0), -EINVAL);
	assert_int_equal(percpu_ref_init(&other, NULL, 0), -EINVAL);
	assert_int_equal(percpu_ref_init(&other, on_release, 2), -EINVAL);
	percpu_ref_destroy(NULL);
	assert_int_equal(percpu_ref_init(&other, on_release, 0), 0);
	percpu_ref_destroy(&other);
	percpu_ref_destroy(&other);
}

/* As each way of counting does it. */
static void a_life(void **state)
{
	(void)state;
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		percpu__thread_force(force);
		released = 0;
		percpu_ref_get(&ref);
		assert_true(percpu_ref_tryget(&ref));
		assert_true(percpu_ref_tryget_live(&ref));
		percpu_ref_put(&ref);
		assert_false(percpu_ref_is_dying(&ref));
		assert_false(percpu_ref_is_zero(&ref));
		assert_int_equal(percpu_ref_reinit(&ref), -EALREADY);
		assert_int_equal(percpu_ref_resurrect(&ref), -EALREADY);
		assert_int_equal(percpu_ref_kill(&ref), 0);
		assert_int_equal(percpu_ref_kill(&ref), -EALREADY);
		assert_true(percpu_ref_is_dying(&ref));
		assert_false(percpu_ref_is_zero(&ref));
		assert_int_equal(percpu_ref_reinit(&ref), -EBUSY);
		assert_true(percpu_ref_tryget(&ref));
		assert_false(percpu_ref_tryget_live(&ref));
		percpu_ref_put(&ref);
		percpu_ref_get(&ref);
		percpu_ref_put(&ref);
		percpu_ref_put(&ref);
		assert_int_equal(released, 0);
		percpu_ref_put(&ref);
		assert_int_equal(released, 1);
		assert_int_equal(mask_at_release, 0);
		assert_true(percpu_ref_is_zero(&ref));
		assert_false(percpu_ref_tryget(&ref));
		assert_false(percpu_ref_tryget_live(&ref));
		assert_int_equal(percpu_ref_resurrect(&ref), -ESTALE);
		assert_int_equal(percpu_ref_reinit(&ref), 0);
		assert_false(percpu_ref_is_dying(&ref));
		percpu__thread_force(PERCPU__FORCE_OFF);
	}
}

static void a_kill_releases_what_nobody_has(void **state)
{
	(void)state;
	assert_int_equal(percpu_ref_kill(&ref), 0);
	assert_int_equal(released, 1);
	assert_int_equal(mask_at_release, 0);
}

static void begins_dead(void **state)
{
	struct percpu_ref other;

	(void)state;
	assert_int_equal(percpu_ref_init(&other, on_release, PERCPU_REF_DEAD), 0);
	assert_true(percpu_ref_is_zero(&other));
	assert_false(percpu_ref_tryget(&other));
	assert_int_equal(percpu_ref_kill(&other), -EALREADY);
	assert_int_equal(percpu_ref_reinit(&other), 0);
	assert_true(percpu_ref_tryget_live(&other));
	percpu_ref_destroy(&other);
}

static void back_from_the_dead(void **state)
{
	(void)state;
	percpu_ref_get(&ref);
	assert_int_equal(percpu_ref_kill(&ref), 0);
	assert_int_equal(percpu_ref_resurrect(&ref), 0);
	assert_true(percpu_ref_tryget_live(&ref));
	percpu_ref_put(&ref);
	percpu_ref_put(&ref);
	assert_int_equal(released, 0);
	assert_int_equal(percpu_ref_kill(&ref), 0);
	assert_int_equal(released, 1);
}

static void too_many_puts(void **state)
{
	(void)state;
	percpu_ref_put(&ref);
	assert_int_equal(percpu_ref_kill(&ref), -ERANGE);
	assert_int_equal(percpu_ref_resurrect(&ref), -ESTALE);
	assert_int_equal(percpu_ref_reinit(&ref), -EBUSY);
	assert_false(percpu_ref_tryget(&ref));
	percpu_ref_get(&ref);
	percpu_ref_put(&ref);
	assert_int_equal(released, 0);
}

/* The callback may free what the count is in. */
struct thing {
	struct percpu_ref ref;
	uint32_t *freed;
};

static void free_it(struct percpu_ref *which)
{
	struct thing *thing = (struct thing *)(void *)which;

	percpu_ref_destroy(which);
	*thing->freed += 1;
	free(thing);
}

static void frees_itself(void **state)
{
	uint32_t freed = 0;

	(void)state;
	for (int held = 0; held < 2; held++) {
		struct thing *thing = malloc(sizeof *thing);

		assert_non_null(thing);
		thing->freed = &freed;
		assert_int_equal(percpu_ref_init(&thing->ref, free_it, 0), 0);
		if (held)
			percpu_ref_get(&thing->ref);
		assert_int_equal(percpu_ref_kill(&thing->ref), 0);
		if (held)
			percpu_ref_put(&thing->ref);
	}
	assert_int_equal(freed, 2);
}

/* A forked child has the count of that moment. */
static int child(void)
{
	if (released || percpu_ref_kill(&ref) || released)
		return 1;
	percpu_ref_put(&ref);
	return released == 1 ? 0 : 2;
}

static void forks(void **state)
{
	(void)state;
	percpu_ref_get(&ref);
	assert_int_equal(unit_in_child(child), 0);
	assert_int_equal(child(), 0);
}

/*
 * Many get and put, in all ways and in handlers, while one kills and brings back. Each life ends with exactly one release,
 * and nobody who was let in finds it released.
 */
#define THREADS 5
#define LIVES   300

static uint32_t stop, wrong, used;

static void use(void)
{
	if (!percpu_ref_tryget_live(&ref))
		return;
	if (__atomic_load_n(&released, __ATOMIC_SEQ_CST))
		__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	percpu_ref_get(&ref);
	percpu_ref_put(&ref);
	if (__atomic_load_n(&released, __ATOMIC_SEQ_CST))
		__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	percpu_ref_put(&ref);
	__atomic_store_n(&used, 1, __ATOMIC_RELAXED);
}

static void on_signal(int sig)
{
	(void)sig;
	use();
}

static void *use_all_the_time(void *arg)
{
	unsigned me = *(unsigned *)arg;

	percpu__thread_force((enum percpu__force)(me % 3));
	for (unsigned i = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++) {
		use();
		if (i % 64 == me)
			raise(SIGUSR1);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void *kill_again_and_again(void *unused)
{
	(void)unused;
	/* On a busy machine all lives could be over before the others begin. */
	while (!__atomic_load_n(&used, __ATOMIC_RELAXED))
		sched_yield();
	for (unsigned life = 0; life < LIVES; life++) {
		/* Some lives are given back before they end. */
		percpu_ref_get(&ref);
		if (percpu_ref_kill(&ref))
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
		if (life % 3 == 0) {
			if (percpu_ref_resurrect(&ref))
				__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
			percpu_ref_put(&ref);
			continue;
		}
		if (percpu_ref_tryget_live(&ref) || __atomic_load_n(&released, __ATOMIC_SEQ_CST))
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
		percpu_ref_put(&ref);
		while (!percpu_ref_is_zero(&ref) || !__atomic_load_n(&released, __ATOMIC_SEQ_CST))
			sched_yield();
		if (__atomic_exchange_n(&released, 0, __ATOMIC_SEQ_CST) != 1)
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
		if (percpu_ref_reinit(&ref))
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	return NULL;
}

static void *one_of_them(void *arg)
{
	return *(unsigned *)arg == THREADS ? kill_again_and_again(arg) : use_all_the_time(arg);
}

static void kills_against_everything(void **state)
{
	unsigned numbers[] = { 0, 1, 2, 3, 4, THREADS };

	(void)state;
	stop = wrong = used = 0;
	signal(SIGUSR1, on_signal);
	unit_threads(THREADS + 1, one_of_them, numbers, sizeof *numbers);
	signal(SIGUSR1, SIG_DFL);
	assert_int_equal(wrong, 0);
	assert_true(used);
	assert_int_equal(released, 0);
	assert_int_equal(percpu_ref_kill(&ref), 0);
	assert_int_equal(released, 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(arguments),
		TEST(a_life),
		TEST(begins_dead),
		TEST(a_kill_releases_what_nobody_has),
		TEST(too_many_puts),
		TEST(back_from_the_dead),
		TEST(frees_itself),
		TEST(forks),
		TEST(kills_against_everything),
	};

	return unit_main(tests);
}
