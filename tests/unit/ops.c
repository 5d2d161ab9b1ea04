/* SPDX-License-Identifier: MIT */
/*
 * Every operation in its four variants, by one thread: what it changes, what it returns, and that it changes nothing else.
 *
 * Each check fills all copies of an object alike, runs one operation, and finds the copy that changed by comparing. So it
 * does not depend on staying at one index, and anything written beside the intended word is found. All is done as an
 * ordinary thread, with every operation under the gate, and as a thread that is not registered. Also built without
 * sections, to run on the library that has them.
 */
#include "unit.h"

#include "rseq/thread.h"

struct variant {
	const char *name;
	enum percpu__by by;
	void (*add)(uint64_t *p, uint64_t n);
	void (*add_constants)(uint64_t *p);
	void (*add_offset)(uint64_t *p, const ptrdiff_t *offset, uint64_t n);
	bool (*store_if_eq)(uint64_t *p, uint64_t expected, uint64_t desired);
	bool (*store_if_eq2)(uint64_t *p, uint64_t expected, const uint64_t *q, uint64_t expected2, uint64_t desired);
	bool (*copy_store)(uint64_t *p, uint64_t expected, void *dst, const void *src, size_t len, uint64_t desired);
	bool (*follow)(uintptr_t *p, uintptr_t nil, ptrdiff_t offset, uintptr_t *out);
	void *(*pop)(void **p, size_t offset);
	void (*push)(void **p, void *node, size_t offset);
	void (*push_chain)(void **p, void *first, void *last, size_t offset);
	uint64_t (*xchg)(uint64_t *p, uint64_t value);
};

/* Numbers that the compiler knows and that instructions can and cannot hold. */
#define SUM_OF_CONSTANTS                                                                                               \
	(UINT64_C(1) + (uint64_t)-1 + 2 + 0x7fffffff + 0x80000000 + 0xffffffff + (uint64_t)-0x80000000LL +             \
	 (uint64_t)-0x80000001LL + UINT64_C(0x123456789abcdef) + 4095 + 4096 + 4097)
#define ADD_CONSTANTS(prefix, suffix)                                                                                  \
	static void prefix##_constants##suffix(uint64_t *p)                                                            \
	{                                                                                                              \
		prefix##_add##suffix(p, 1);                                                                            \
		prefix##_add##suffix(p, (uint64_t)-1);                                                                 \
		prefix##_add##suffix(p, 2);                                                                            \
		prefix##_add##suffix(p, 0x7fffffff);                                                                   \
		prefix##_add##suffix(p, 0x80000000);                                                                   \
		prefix##_add##suffix(p, 0xffffffff);                                                                   \
		prefix##_add##suffix(p, (uint64_t)-0x80000000LL);                                                      \
		prefix##_add##suffix(p, (uint64_t)-0x80000001LL);                                                      \
		prefix##_add##suffix(p, UINT64_C(0x123456789abcdef));                                                  \
		prefix##_add##suffix(p, 4095);                                                                         \
		prefix##_add##suffix(p, 4096);                                                                         \
		prefix##_add##suffix(p, 4097);                                                                         \
	}
ADD_CONSTANTS(percpu_this, )
ADD_CONSTANTS(percpu_this, _release)
ADD_CONSTANTS(percpu_this_cpu, )
ADD_CONSTANTS(percpu_this_cpu, _release)

#define VARIANT(prefix, suffix, index)                                                                                 \
	{                                                                                                              \
		.name = #prefix "_..." #suffix, .by = index, .add = prefix##_add##suffix,                              \
		.add_constants = prefix##_constants##suffix, .add_offset = prefix##_add_offset##suffix,                \
		.store_if_eq = prefix##_store_if_eq##suffix, .store_if_eq2 = prefix##_store_if_eq2##suffix,            \
		.copy_store = prefix##_copy_store##suffix, .follow = prefix##_follow##suffix,                          \
		.pop = prefix##_pop##suffix, .push = prefix##_push##suffix, .push_chain = prefix##_push_chain##suffix, \
		.xchg = prefix##_xchg##suffix                                                                          \
	}
static const struct variant variants[] = {
	VARIANT(percpu_this, , PERCPU__BY_ID),
	VARIANT(percpu_this, _release, PERCPU__BY_ID),
	VARIANT(percpu_this_cpu, , PERCPU__BY_CPU),
	VARIANT(percpu_this_cpu, _release, PERCPU__BY_CPU),
};

/* A page more than the longest copy, so that what is written behind it is seen. */
#define WORDS ((PERCPU_COPY_MAX + 4096) / 8)
#define FILL  UINT64_C(0x5a5a5a5a5a5a5a5a)

static uint64_t *object;
static size_t words_used; /* how much of the object the present test looks at */
static enum percpu__force force;

static void fill(size_t words)
{
	words_used = words;
	percpu_for_each_index(index)
		for (size_t i = 0; i < words; i++)
			percpu_ptr(object, index)[i] = FILL;
}

static void set_all(size_t word, uint64_t value)
{
	percpu_for_each_index(index)
		percpu_ptr(object, index)[word] = value;
}

/* The copy whose words are not as `pattern` says, or -1: at most one may be so. */
static int changed(const uint64_t *pattern)
{
	int found = -1;

	percpu_for_each_index(index) {
		if (memcmp(percpu_ptr(object, index), pattern, words_used * sizeof *pattern) == 0)
			continue;
		assert_int_equal(found, -1);
		found = (int)index;
	}
	return found;
}

/* Asserts that the operation worked where it should, and that there all is as in `expected`. */
static void assert_changed(const uint64_t *before, const uint64_t *expected, const struct variant *v)
{
	int index = changed(before);

	assert_true(index >= 0);
	assert_memory_equal(percpu_ptr(object, index), expected, words_used * sizeof *expected);
	if (unit_in_mode(PERCPU_MODE_NONE))
		return;
	if (force == PERCPU__FORCE_REMAINDER)
		assert_int_equal(index, percpu_copies() - 1);
	else if (v->by == PERCPU__BY_CPU)
		assert_int_equal(index, percpu_cpu());
	else
		assert_true((unsigned)index < percpu_possible_cpus());
}

static void snapshot(uint64_t *pattern)
{
	memcpy(pattern, percpu_ptr(object, 0), words_used * sizeof *pattern);
	assert_int_equal(changed(pattern), -1);
}

static uint64_t before[WORDS], expected[WORDS];

#define BEGIN(words) fill(words), snapshot(before), memcpy(expected, before, sizeof before)

static void test_add(const struct variant *v)
{
	static const uint64_t numbers[] = { 1,
					    0,
					    2,
					    (uint64_t)-1,
					    UINT64_C(0x7fffffff),
					    UINT64_C(0x80000000),
					    UINT64_C(0xffffffff),
					    UINT64_C(0x100000000),
					    UINT64_C(1) << 63,
					    (uint64_t)-0x80000000LL };

	for (size_t i = 0; i < UNIT_COUNT(numbers); i++) {
		BEGIN(8);
		expected[3] = FILL + numbers[i];
		v->add(object + 3, numbers[i]);
		if (numbers[i])
			assert_changed(before, expected, v);
		else
			assert_int_equal(changed(before), -1);
	}
	BEGIN(8);
	expected[5] = FILL + SUM_OF_CONSTANTS;
	v->add_constants(object + 5);
	assert_changed(before, expected, v);
}

static void test_add_offset(const struct variant *v)
{
	for (ptrdiff_t to = 0; to < 8; to++) {
		ptrdiff_t offset = (to - 4) * 8;

		BEGIN(8);
		expected[to] = FILL + 77;
		v->add_offset(object + 4, &offset, 77);
		assert_changed(before, expected, v);
		assert_int_equal(offset, (to - 4) * 8);
	}
}

static void test_store_if_eq(const struct variant *v)
{
	static const uint64_t old[] = { 0, 1, 2, FILL, ~UINT64_C(0), UINT64_C(1) << 63, UINT64_C(0xffffffff) };

	for (size_t i = 0; i < UNIT_COUNT(old); i++) {
		fill(4);
		set_all(1, old[i]);
		snapshot(before);
		memcpy(expected, before, sizeof before);
		assert_false(v->store_if_eq(object + 1, old[i] + 1, 99));
		/* All 64 bits are compared. */
		assert_false(v->store_if_eq(object + 1, old[i] ^ UINT64_C(1) << 63, 99));
		assert_false(v->store_if_eq(object + 1, old[i] ^ UINT64_C(1) << 32, 99));
		assert_int_equal(changed(before), -1);
		expected[1] = ~old[i];
		assert_true(v->store_if_eq(object + 1, old[i], ~old[i]));
		assert_changed(before, expected, v);
	}
	/* Storing what is there already is a store too. */
	BEGIN(4);
	assert_true(v->store_if_eq(object + 2, FILL, FILL));
	assert_int_equal(changed(before), -1);
}

static void test_store_if_eq2(const struct variant *v)
{
	/* The second word before, behind, and at the first. */
	for (size_t second = 0; second < 3; second++) {
		fill(4);
		set_all(second, 22);
		set_all(1, second == 1 ? 22 : 11);
		snapshot(before);
		memcpy(expected, before, sizeof before);
		assert_false(v->store_if_eq2(object + 1, before[1] + 1, object + second, 22, 99));
		assert_false(v->store_if_eq2(object + 1, before[1], object + second, 23, 99));
		assert_false(v->store_if_eq2(object + 1, before[1] + 1, object + second, 23, 99));
		assert_false(v->store_if_eq2(object + 1, before[1], object + second, 22 ^ UINT64_C(1) << 40, 99));
		assert_int_equal(changed(before), -1);
		expected[1] = 99;
		assert_true(v->store_if_eq2(object + 1, before[1], object + second, 22, 99));
		assert_changed(before, expected, v);
	}
}

static void copy(const struct variant *v, size_t len, size_t from, size_t to)
{
	static unsigned char source[PERCPU_COPY_MAX + 64];
	static uint64_t seed = 42;

	for (size_t i = 0; i < len; i++)
		source[from + i] = (unsigned char)unit_random(&seed);
	BEGIN((to + len + 64) / 8 + 2);
	assert_true(words_used <= WORDS);
	expected[0] = len;
	memcpy((char *)(expected + 1) + to, source + from, len);
	/* What was there must differ everywhere from what is copied, for the last byte to be missed. */
	for (size_t i = 0; i < len; i++)
		if (source[from + i] == (unsigned char)FILL)
			source[from + i] = ((unsigned char *)(expected + 1))[to + i] = 0;
	assert_false(v->copy_store(object, FILL + 1, (char *)(object + 1) + to, source + from, len, len));
	assert_int_equal(changed(before), -1);
	assert_true(v->copy_store(object, FILL, (char *)(object + 1) + to, source + from, len, len));
	assert_changed(before, expected, v);
}

static void test_copy_store(const struct variant *v)
{
	for (size_t len = 0; len <= 300; len++)
		copy(v, len, len % 17, len % 23);
	for (size_t from = 0; from < 16; from++)
		for (size_t to = 0; to < 16; to += 3)
			copy(v, 31, from, to);
	copy(v, PERCPU_COPY_MAX - 1, 1, 0);
	copy(v, PERCPU_COPY_MAX, 0, 1);
}

static void test_follow(const struct variant *v)
{
	uint64_t node[4] = { 100, 101, 102, 103 };
	static const uint64_t nils[] = { 0, ~UINT64_C(0), 0xdead };

	for (size_t i = 0; i < UNIT_COUNT(nils); i++) {
		for (ptrdiff_t at = 0; at < 4; at++) {
			uintptr_t out = 12345, address = (uintptr_t)&node[2];

			fill(4);
			set_all(1, address);
			snapshot(before);
			memcpy(expected, before, sizeof before);
			expected[1] = node[at];
			assert_true(v->follow(object + 1, nils[i], (at - 2) * 8, &out));
			assert_int_equal(out, address);
			assert_changed(before, expected, v);

			set_all(1, nils[i]);
			snapshot(before);
			out = 12345;
			assert_false(v->follow(object + 1, nils[i], (at - 2) * 8, &out));
			assert_int_equal(out, 12345);
			assert_int_equal(changed(before), -1);
		}
	}
	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(node[i], 100 + i);
}

struct item {
	uint64_t value;
	void *next;
};

/* Only where every copy in turn is the current one do lists survive; so each step looks for the copy that changed. */
static void test_list(const struct variant *v)
{
	struct item items[4] = { { .value = 0 } };
	const size_t offset = offsetof(struct item, next);
	void **head = (void **)(void *)(object + 1);

	/* Push on a list that is the same in all copies. */
	fill(4);
	set_all(1, (uintptr_t)&items[0]);
	snapshot(before);
	memcpy(expected, before, sizeof before);
	expected[1] = (uintptr_t)&items[1];
	v->push(head, &items[1], offset);
	assert_changed(before, expected, v);
	assert_ptr_equal(items[1].next, &items[0]);
	assert_null(items[0].next);

	/* A chain in front of it. */
	set_all(1, (uintptr_t)&items[1]);
	snapshot(before);
	items[3].next = &items[2];
	items[2].next = NULL;
	expected[1] = (uintptr_t)&items[3];
	v->push_chain(head, &items[3], &items[2], offset);
	assert_changed(before, expected, v);
	assert_ptr_equal(items[3].next, &items[2]);
	assert_ptr_equal(items[2].next, &items[1]);

	/* And all of it off again, newest first. */
	for (int i = 0; i < 4; i++) {
		static const int order[] = { 3, 2, 1, 0 };
		struct item *top = &items[order[i]], *next = top->next;

		set_all(1, (uintptr_t)top);
		snapshot(before);
		expected[1] = (uintptr_t)next;
		assert_ptr_equal(v->pop(head, offset), top);
		assert_changed(before, expected, v);
		assert_ptr_equal(top->next, next);
	}
	set_all(1, 0);
	snapshot(before);
	assert_null(v->pop(head, offset));
	assert_int_equal(changed(before), -1);
	/* Onto an empty one. */
	expected[1] = (uintptr_t)&items[0];
	items[0].next = &items[3];
	v->push(head, &items[0], offset);
	assert_null(items[0].next);
	assert_changed(before, expected, v);
	for (int i = 0; i < 4; i++)
		assert_int_equal(items[i].value, 0);
}

static void test_xchg(const struct variant *v)
{
	static const uint64_t numbers[] = { 0, 1, 2, ~UINT64_C(0), UINT64_C(1) << 63, UINT64_C(0x100000001) };

	for (size_t i = 0; i < UNIT_COUNT(numbers); i++) {
		for (size_t j = 0; j < UNIT_COUNT(numbers); j++) {
			fill(4);
			set_all(2, numbers[i]);
			snapshot(before);
			memcpy(expected, before, sizeof before);
			expected[2] = numbers[j];
			assert_int_equal(v->xchg(object + 2, numbers[j]), numbers[i]);
			if (i == j)
				assert_int_equal(changed(before), -1);
			else
				assert_changed(before, expected, v);
		}
	}
}

static void run(void (*test)(const struct variant *v))
{
	for (size_t i = 0; i < UNIT_COUNT(variants); i++)
		for (force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
			percpu__thread_force(force);
			test(&variants[i]);
			percpu__thread_force(PERCPU__FORCE_OFF);
		}
}

#define TEST(name)                                                                                                     \
	static void name(void **state)                                                                                 \
	{                                                                                                              \
		(void)state;                                                                                           \
		run(test_##name);                                                                                      \
	}
TEST(add)
TEST(add_offset)
TEST(store_if_eq)
TEST(store_if_eq2)
TEST(copy_store)
TEST(follow)
TEST(list)
TEST(xchg)

/* One object may be used by code with sections and code without, at the same time: the library has both. */
#define THREADS 4
#define ADDS    50000

static void *add_many(void *arg)
{
	unsigned me = *(unsigned *)arg;

	percpu__thread_force((enum percpu__force)(me % 3));
	for (int i = 0; i < ADDS / (me % 3 == 1 ? 50 : 1); i++) {
		percpu_this_add(object, 1);
		percpu__slow_add(object + 1, 1, PERCPU__BY_ID, PERCPU__RELAXED);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void both_at_once(void **state)
{
	unsigned numbers[THREADS];
	uint64_t sums[2] = { 0, 0 };
	unsigned wanted = 0;

	(void)state;
	for (unsigned i = 0; i < THREADS; i++) {
		numbers[i] = i;
		wanted += (unsigned)ADDS / (i % 3 == 1 ? 50 : 1);
	}
	set_all(0, 0);
	set_all(1, 0);
	unit_threads(THREADS, add_many, numbers, sizeof *numbers);
	percpu_for_each_index(index) {
		sums[0] += percpu_ptr(object, index)[0];
		sums[1] += percpu_ptr(object, index)[1];
	}
	assert_int_equal(sums[0], wanted);
	assert_int_equal(sums[1], wanted);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(add),          cmocka_unit_test(add_offset), cmocka_unit_test(store_if_eq),
		cmocka_unit_test(store_if_eq2), cmocka_unit_test(copy_store), cmocka_unit_test(follow),
		cmocka_unit_test(list),         cmocka_unit_test(xchg),       cmocka_unit_test(both_at_once),
	};

	/* In the middle of an area. */
	object = percpu_alloc(WORDS * sizeof *object, 64);
	if (!object)
		return 1;
	/* On one CPU, so that the tests know it. */
	unit_pin(sched_getcpu());
	return unit_main(tests);
}
