/* SPDX-License-Identifier: MIT */
/* Counters: sums, exact drains while threads add, and the registry of names. */
#include "unit.h"

#include "rseq/thread.h"

static size_t objects(void)
{
	struct percpu_area_stats now;

	assert_int_equal(percpu_area_stats(&now), 0);
	return now.objects;
}

static void arguments(void **state)
{
	struct percpu_counter counter, *out;
	uint64_t sum = 77;

	(void)state;
	assert_int_equal(percpu_counter_init(NULL), -EINVAL);
	assert_int_equal(percpu_counter_init_shared(NULL, &sum), -EINVAL);
	assert_int_equal(percpu_counter_init_shared(&counter, NULL), -EINVAL);
	assert_int_equal(percpu_counter_drain(NULL, &sum), -EINVAL);
	assert_int_equal(percpu_counter_init(&counter), 0);
	assert_int_equal(percpu_counter_drain(&counter, NULL), -EINVAL);
	assert_int_equal(percpu_counter_create(NULL, &out), -EINVAL);
	assert_int_equal(percpu_counter_create("name", NULL), -EINVAL);
	assert_int_equal(percpu_counter_for_each(NULL, NULL), -EINVAL);
	assert_int_equal(sum, 77);
	percpu_counter_destroy(&counter);
	percpu_counter_destroy(&counter);
	percpu_counter_destroy(NULL);
	percpu_counter_put(NULL);
	assert_null(percpu_counter_name(NULL));
	assert_null(percpu_counter_find(NULL));
	assert_null(percpu_counter_find("nobody"));
	assert_null(percpu_counter_find(""));
}

static void adds_and_reads(void **state)
{
	size_t old = objects();
	struct percpu_counter counter;
	uint64_t sum, parts = 0;

	(void)state;
	assert_int_equal(percpu_counter_init(&counter), 0);
	assert_null(percpu_counter_name(&counter));
	assert_int_equal(objects(), old + 1);
	assert_int_equal(percpu_counter_read(&counter), 0);
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		percpu__thread_force(force);
		percpu_counter_inc(&counter);
		percpu_counter_add(&counter, 9);
		percpu_counter_add(&counter, (uint64_t)-4);
		percpu_counter_add(&counter, 0);
		percpu_counter_add(&counter, UINT64_C(1) << 40);
		percpu__thread_force(PERCPU__FORCE_OFF);
	}
	assert_int_equal(percpu_counter_read(&counter), 3 * (6 + (UINT64_C(1) << 40)));
	percpu_for_each_index(index)
		parts += percpu_counter_read_index(&counter, index);
	assert_int_equal(parts, 3 * (6 + (UINT64_C(1) << 40)));
	assert_int_equal(percpu_counter_read_index(&counter, percpu_copies()), 0);
	assert_int_equal(percpu_counter_read_index(&counter, UINT32_MAX), 0);
	assert_int_equal(percpu_counter_drain(&counter, &sum), 0);
	assert_int_equal(sum, parts);
	assert_int_equal(percpu_counter_read(&counter), 0);
	assert_int_equal(percpu_counter_drain(&counter, &sum), 0);
	assert_int_equal(sum, 0);
	/* Each copy's part is counted from init. */
	parts = 0;
	percpu_for_each_index(index)
		parts += percpu_counter_read_index(&counter, index);
	assert_int_equal(parts, 3 * (6 + (UINT64_C(1) << 40)));
	percpu_counter_destroy(&counter);
	assert_int_equal(objects(), old);
}

static void sums_are_modulo_2_to_64(void **state)
{
	struct percpu_counter counter;
	uint64_t sum;

	(void)state;
	assert_int_equal(percpu_counter_init(&counter), 0);
	percpu_counter_add(&counter, (uint64_t)-10);
	assert_int_equal(percpu_counter_read(&counter), (uint64_t)-10);
	assert_int_equal(percpu_counter_drain(&counter, &sum), 0);
	assert_int_equal(sum, (uint64_t)-10);
	percpu_counter_add(&counter, UINT64_C(1) << 63);
	percpu_counter_add(&counter, UINT64_C(1) << 63);
	percpu_counter_add(&counter, 3);
	assert_int_equal(percpu_counter_read(&counter), 3);
	assert_int_equal(percpu_counter_drain(&counter, &sum), 0);
	assert_int_equal(sum, 3);
	percpu_counter_destroy(&counter);
}

#define ADDERS 4
#define ADDS   300000

static struct percpu_counter counter;
static uint32_t adding;

static void *add_many(void *arg)
{
	unsigned me = *(unsigned *)arg;

	/* Two on the remainder, one that changes its mind all the time. */
	if (me == 1 || me == 3)
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
	for (int i = 0; i < ADDS; i++) {
		if (me == 2 && i % 64 == 0)
			percpu__thread_force((enum percpu__force)(i / 64 % 2 * PERCPU__FORCE_REMAINDER));
		percpu_counter_add(&counter, 5);
		percpu_counter_add(&counter, (uint64_t)-2);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	__atomic_fetch_sub(&adding, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void *drain_often(void *arg)
{
	uint64_t sum, total = 0;

	while (__atomic_load_n(&adding, __ATOMIC_ACQUIRE)) {
		percpu_counter_drain(&counter, &sum);
		total += sum;
	}
	*(uint64_t *)arg = total;
	return NULL;
}

static void drains_are_exact(void **state)
{
	pthread_t adders[ADDERS], drainers[2];
	uint64_t totals[2] = { 0, 0 }, sum;
	unsigned numbers[ADDERS];

	(void)state;
	assert_int_equal(percpu_counter_init(&counter), 0);
	adding = ADDERS;
	for (unsigned i = 0; i < ADDERS; i++) {
		numbers[i] = i;
		assert_int_equal(pthread_create(&adders[i], NULL, add_many, &numbers[i]), 0);
	}
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&drainers[i], NULL, drain_often, &totals[i]), 0);
	for (size_t i = 0; i < ADDERS; i++)
		assert_int_equal(pthread_join(adders[i], NULL), 0);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(pthread_join(drainers[i], NULL), 0);
	assert_int_equal(percpu_counter_drain(&counter, &sum), 0);
	assert_int_equal(totals[0] + totals[1] + sum, UINT64_C(3) * ADDERS * ADDS);
	assert_int_equal(percpu_counter_read(&counter), 0);
	percpu_counter_destroy(&counter);
}

/* Those who drain add too, so that two drains at once always find something to take. */
#define DRAINS 100000

static pthread_barrier_t together;

static void *add_and_drain(void *arg)
{
	uint64_t sum, total = 0;

	pthread_barrier_wait(&together);
	for (int i = 0; i < DRAINS; i++) {
		percpu_counter_inc(&counter);
		percpu_counter_drain(&counter, &sum);
		total += sum;
	}
	*(uint64_t *)arg = total;
	return NULL;
}

static void drains_at_once(void **state)
{
	uint64_t totals[4], sum;

	(void)state;
	assert_int_equal(percpu_counter_init(&counter), 0);
	pthread_barrier_init(&together, NULL, 4);
	unit_threads(4, add_and_drain, totals, sizeof *totals);
	pthread_barrier_destroy(&together);
	assert_int_equal(percpu_counter_drain(&counter, &sum), 0);
	assert_int_equal(totals[0] + totals[1] + totals[2] + totals[3] + sum, 4 * DRAINS);
	percpu_counter_destroy(&counter);
}

static void *add_to_remainder(void *arg)
{
	(void)arg;
	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	pthread_barrier_wait(&together);
	for (int i = 0; i < 2 * ADDS; i++)
		percpu_counter_inc(&counter);
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void threads_on_one_copy(void **state)
{
	(void)state;
	assert_int_equal(percpu_counter_init(&counter), 0);
	pthread_barrier_init(&together, NULL, 3);
	unit_threads(3, add_to_remainder, NULL, 0);
	pthread_barrier_destroy(&together);
	assert_int_equal(percpu_counter_read(&counter), 3 * 2 * ADDS);
	if (!unit_in_mode(PERCPU_MODE_NONE))
		assert_int_equal(percpu_counter_read_index(&counter, percpu_copies() - 1), 3 * 2 * ADDS);
	percpu_counter_destroy(&counter);
}

/* With positive additions only, reads between two drains never fall, and what was added before is in them. */
static void *add_upwards(void *arg)
{
	(void)arg;
	for (int i = 0; i < ADDS; i++)
		percpu_counter_inc(&counter);
	__atomic_fetch_sub(&adding, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void reads_never_fall(void **state)
{
	pthread_t threads[2];
	uint64_t last = 0, falls = 0;

	(void)state;
	assert_int_equal(percpu_counter_init(&counter), 0);
	adding = 2;
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, add_upwards, NULL), 0);
	while (__atomic_load_n(&adding, __ATOMIC_ACQUIRE)) {
		uint64_t now = percpu_counter_read(&counter);

		falls += now < last;
		last = now;
	}
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(falls, 0);
	assert_int_equal(percpu_counter_read(&counter), 2 * ADDS);
	percpu_counter_destroy(&counter);
}

/* A read beside drains tells less than nothing never: it is at most what all additions are. */
static void *read_often(void *arg)
{
	while (__atomic_load_n(&adding, __ATOMIC_ACQUIRE))
		if (percpu_counter_read(&counter) > 2 * ADDS)
			*(uint64_t *)arg += 1;
	return NULL;
}

static void reads_beside_drains(void **state)
{
	pthread_t threads[2], drainer, reader;
	uint64_t total = 0, wrong = 0, sum;

	(void)state;
	assert_int_equal(percpu_counter_init(&counter), 0);
	adding = 2;
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, add_upwards, NULL), 0);
	assert_int_equal(pthread_create(&drainer, NULL, drain_often, &total), 0);
	assert_int_equal(pthread_create(&reader, NULL, read_often, &wrong), 0);
	for (size_t i = 0; i < 2; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(pthread_join(drainer, NULL), 0);
	assert_int_equal(pthread_join(reader, NULL), 0);
	assert_int_equal(wrong, 0);
	assert_int_equal(percpu_counter_drain(&counter, &sum), 0);
	assert_int_equal(total + sum, 2 * ADDS);
	percpu_counter_destroy(&counter);
}

static void names(void **state)
{
	struct percpu_counter *a, *again, *b, *longest, *untouched = &counter;
	size_t old = objects();
	char name[300];

	(void)state;
	assert_int_equal(percpu_counter_create("", &untouched), -EINVAL);
	memset(name, 'x', sizeof name);
	name[256] = '\0';
	assert_int_equal(percpu_counter_create(name, &untouched), -EINVAL);
	assert_ptr_equal(untouched, &counter);
	name[255] = '\0';
	assert_int_equal(percpu_counter_create(name, &longest), 0);
	assert_string_equal(percpu_counter_name(longest), name);
	/* The name is a copy. */
	name[254] = 'y';
	assert_null(percpu_counter_find(name));
	name[254] = 'x';
	assert_ptr_equal(percpu_counter_find(name), longest);

	assert_int_equal(percpu_counter_create("a", &a), 0);
	assert_int_equal(percpu_counter_create("b", &b), 0);
	assert_int_equal(percpu_counter_create("a", &again), 0);
	assert_ptr_equal(a, again);
	assert_ptr_not_equal(a, b);
	assert_int_equal((uintptr_t)a % 64, 0);
	percpu_counter_inc(a);
	assert_int_equal(percpu_counter_read(percpu_counter_find("a")), 1);
	assert_int_equal(percpu_counter_read(b), 0);
	percpu_counter_put(a);
	assert_ptr_equal(percpu_counter_find("a"), a);
	assert_int_equal(percpu_counter_read(a), 1);
	percpu_counter_put(a);
	assert_null(percpu_counter_find("a"));
	assert_ptr_equal(percpu_counter_find("b"), b);
	/* A new one of an old name counts from 0. */
	assert_int_equal(percpu_counter_create("a", &a), 0);
	assert_int_equal(percpu_counter_read(a), 0);
	percpu_counter_put(longest);
	percpu_counter_put(b);
	percpu_counter_put(a);
	assert_int_equal(objects(), old);
	/* One without a name has no references to give up. */
	assert_int_equal(percpu_counter_init(&counter), 0);
	percpu_counter_put(&counter);
	assert_int_equal(percpu_counter_read(&counter), 0);
	percpu_counter_destroy(&counter);
}

struct walk {
	char seen[64];
	int left;
};

static int visit(struct percpu_counter *one, void *arg)
{
	struct walk *walk = arg;

	strcat(walk->seen, percpu_counter_name(one));
	strcat(walk->seen, " ");
	return walk->left-- ? 0 : 42;
}

static void walks(void **state)
{
	static const char *const all[] = { "one", "two", "three", "four" };
	struct percpu_counter *counters[UNIT_COUNT(all)];
	struct walk walk = { .left = 0 };

	(void)state;
	assert_int_equal(percpu_counter_for_each(visit, &walk), 0);
	assert_string_equal(walk.seen, "");
	for (size_t i = 0; i < UNIT_COUNT(all); i++)
		assert_int_equal(percpu_counter_create(all[i], &counters[i]), 0);
	walk = (struct walk){ .left = 100 };
	assert_int_equal(percpu_counter_for_each(visit, &walk), 0);
	assert_string_equal(walk.seen, "one two three four ");
	walk = (struct walk){ .left = 1 };
	assert_int_equal(percpu_counter_for_each(visit, &walk), 42);
	assert_string_equal(walk.seen, "one two ");
	percpu_counter_put(counters[1]);
	walk = (struct walk){ .left = 100 };
	assert_int_equal(percpu_counter_for_each(visit, &walk), 0);
	assert_string_equal(walk.seen, "one three four ");
	percpu_counter_put(counters[0]);
	percpu_counter_put(counters[3]);
	percpu_counter_put(counters[2]);
	walk = (struct walk){ .left = 100 };
	assert_int_equal(percpu_counter_for_each(visit, &walk), 0);
	assert_string_equal(walk.seen, "");
}

static void *create_and_put(void *arg)
{
	char name[8];

	for (unsigned i = 0; i < 3000; i++) {
		struct percpu_counter *mine;

		snprintf(name, sizeof name, "n%u", i % 3);
		if (percpu_counter_create(name, &mine)) {
			*(unsigned *)arg += 1;
			continue;
		}
		percpu_counter_inc(mine);
		*(unsigned *)arg += strcmp(percpu_counter_name(mine), name) != 0;
		percpu_counter_put(mine);
	}
	return NULL;
}

static void names_among_threads(void **state)
{
	unsigned errors[4] = { 0 };
	size_t old = objects();

	(void)state;
	unit_threads(4, create_and_put, errors, sizeof *errors);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(errors[i], 0);
	assert_int_equal(objects(), old);
	assert_null(percpu_counter_find("n0"));
}

/* Fork waits for the registry and for the allocator below it, in that order. */
static int count_in_child(void)
{
	struct percpu_counter *mine;
	uint64_t before = percpu_counter_read(&counter);

	if (percpu_counter_create("child", &mine))
		return 1;
	percpu_counter_add(mine, 4);
	percpu_counter_inc(&counter);
	if (percpu_counter_read(mine) != 4 || percpu_counter_read(&counter) != before + 1)
		return 2;
	percpu_counter_put(mine);
	return 0;
}

static void *create_until_told(void *arg)
{
	(void)arg;
	while (__atomic_load_n(&adding, __ATOMIC_ACQUIRE)) {
		struct percpu_counter *mine;

		if (percpu_counter_create("busy", &mine) == 0)
			percpu_counter_put(mine);
		/* Mutexes are not fair: let the forking thread have it. */
		sched_yield();
	}
	return NULL;
}

static void forks_among_creations(void **state)
{
	pthread_t thread;

	(void)state;
	assert_int_equal(percpu_counter_init(&counter), 0);
	adding = 1;
	alarm(20);
	assert_int_equal(pthread_create(&thread, NULL, create_until_told, NULL), 0);
	for (int i = 0; i < 100; i++)
		assert_int_equal(unit_in_child(count_in_child), 0);
	__atomic_store_n(&adding, 0, __ATOMIC_RELEASE);
	assert_int_equal(pthread_join(thread, NULL), 0);
	alarm(0);
	assert_int_equal(percpu_counter_read(&counter), 0);
	percpu_counter_destroy(&counter);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arguments),
		cmocka_unit_test(adds_and_reads),
		cmocka_unit_test(sums_are_modulo_2_to_64),
		cmocka_unit_test(drains_are_exact),
		cmocka_unit_test(drains_at_once),
		cmocka_unit_test(threads_on_one_copy),
		cmocka_unit_test(reads_never_fall),
		cmocka_unit_test(reads_beside_drains),
		cmocka_unit_test(names),
		cmocka_unit_test(walks),
		cmocka_unit_test(names_among_threads),
		cmocka_unit_test(forks_among_creations),
	};

	return unit_main(tests);
}
