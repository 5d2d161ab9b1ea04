/* SPDX-License-Identifier: MIT */
/* The table of src/libc/gettext.c from inside: places that are rewritten while they are read, and by a thread that a fork leaves behind. */
#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/libc/gettext.c"

#define QUESTIONS 9
#define SECONDS   2

static struct question questions[QUESTIONS];
static char answers[QUESTIONS];
static bool stop;

/* More than a set has places for. */
static void make_questions(void)
{
	struct question q = { .msgid = "message", .domain = "domain", .kind = LC_MESSAGES | PLURAL, .counter = 7 };
	struct place *set = set_of(&q);
	unsigned count = 0;

	for (q.n = 0; count < QUESTIONS; q.n++)
		if (set_of(&q) == set)
			questions[count++] = q;
}

static void *write_on(void *arg)
{
	(void)arg;
	for (unsigned i = 0; !READ(stop); i++)
		keep(&questions[i % QUESTIONS], &answers[i % QUESTIONS]);
	return NULL;
}

static void *read_on(void *arg)
{
	uintptr_t found = 0;

	(void)arg;
	for (unsigned i = 0; !READ(stop); i++) {
		char *answer = answer_to(&questions[i % QUESTIONS]);

		if (answer && answer != &answers[i % QUESTIONS])
			return (void *)1;
		found += answer != NULL;
	}
	return (void *)(uintptr_t)(found > 1 ? 2 : 0);
}

static void rewritten(void **state)
{
	void *(*const work[])(void *) = { write_on, read_on, write_on, read_on };
	pthread_t threads[4];
	void *results[4];

	(void)state;
	make_questions();
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, work[i], NULL), 0);
	sleep(SECONDS);
	WRITE(stop, true);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_join(threads[i], &results[i]), 0);
	/* No answer was another question's, and there were some. */
	assert_ptr_equal(results[1], (void *)2);
	assert_ptr_equal(results[3], (void *)2);
}

/* As a child finds it, whose parent had another thread in keep(). */
static void left_behind(void **state)
{
	const struct question *q = &questions[3];

	(void)state;
	/* Two writers may each have kept it. */
	memset(table, 0, sizeof(table));
	make_questions();
	keep(q, &answers[3]);
	assert_ptr_equal(answer_to(q), &answers[3]);
	writing = 1;
	for (unsigned way = 0; way < WAYS; way++)
		if (set_of(q)[way].answer == &answers[3])
			written = &set_of(q)[way];
	written->sequence++;
	assert_null(answer_to(q));
	in_child();
	assert_null(answer_to(q));
	keep(q, &answers[3]);
	assert_ptr_equal(answer_to(q), &answers[3]);
}

/* Beyond the limit only what has a copy already is kept. */
static void limit(void **state)
{
	static char text[1 << 20];
	struct question q = questions[0];
	unsigned kept = 0;

	(void)state;
	memset(text, 'x', sizeof(text) - 1);
	q.msgid = text;
	for (unsigned i = 0; i < 20; i++) {
		text[i] = 'y';
		keep(&q, &answers[0]);
		kept += answer_to(&q) != NULL;
	}
	assert_in_range(kept, 10, 16);
	assert_true(used <= MOST_BYTES);
	keep(&questions[1], &answers[1]);
	assert_ptr_equal(answer_to(&questions[1]), &answers[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(rewritten), cmocka_unit_test(left_behind),
					    cmocka_unit_test(limit) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
