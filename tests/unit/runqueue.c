/* SPDX-License-Identifier: MIT */
/* Run queues: order, stealing, migrating, waiting, and that each task is popped exactly once among threads. */
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include "unit.h"

#include "rseq/thread.h"

#define TASKS 2000

struct work {
	struct percpu_task link;
	uint64_t number;
};

static struct work works[TASKS];
static cpu_set_t everywhere;

static uint64_t number_of(struct percpu_task *task)
{
	return task ? ((struct work *)(void *)task)->number : UINT64_MAX;
}

/* One thread on one CPU stays at one index: what it pushes it pops. */
static int stay(void **state)
{
	(void)state;
	for (size_t i = 0; i < TASKS; i++)
		works[i] = (struct work){ .number = i };
	return sched_getaffinity(0, sizeof everywhere, &everywhere) || unit_pin(sched_getcpu());
}

static int leave(void **state)
{
	(void)state;
	return sched_setaffinity(0, sizeof everywhere, &everywhere);
}

static size_t total_length(const struct percpu_runqueue *rq)
{
	size_t total = 0;

	percpu_for_each_index(index)
		total += percpu_runqueue_length(rq, index);
	return total;
}

/* Where all of them are. */
static unsigned where(const struct percpu_runqueue *rq)
{
	percpu_for_each_index(index)
		if (percpu_runqueue_length(rq, index))
			return index;
	return percpu_copies();
}

static unsigned other_than(unsigned index)
{
	return index ? 0 : 1;
}

/* Puts what is in the inbox into the queue. */
static void settle(struct percpu_runqueue *rq, unsigned index, unsigned by_way_of)
{
	assert_int_equal(percpu_runqueue_migrate(rq, index, by_way_of, SIZE_MAX, NULL), 0);
	assert_int_equal(percpu_runqueue_migrate(rq, by_way_of, index, SIZE_MAX, NULL), 0);
}

static void inboxes(void **state)
{
	struct percpu_runqueue rq;
	struct percpu_task *out = NULL;
	unsigned own, victim;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	percpu_runqueue_push(&rq, &works[0].link);
	own = where(&rq);
	percpu_runqueue_push(&rq, &works[1].link);
	for (size_t i = 2; i < 30; i++) {
		assert_int_equal(percpu_runqueue_push_to(&rq, own, &works[i].link), 0);
		assert_int_equal(percpu_runqueue_length(&rq, own), i + 1);
	}
	/* They are behind what was there before the next pop, and before what comes then. */
	assert_int_equal(number_of(percpu_runqueue_pop(&rq)), 0);
	percpu_runqueue_push(&rq, &works[30].link);
	assert_int_equal(percpu_runqueue_length(&rq, own), 30);
	for (size_t i = 1; i < 31; i++)
		assert_int_equal(number_of(percpu_runqueue_pop(&rq)), i);
	assert_null(percpu_runqueue_pop(&rq));
	/* A thief takes all of them where there is nothing else. */
	victim = other_than(own);
	for (size_t i = 0; i < 9; i++)
		assert_int_equal(percpu_runqueue_push_to(&rq, victim, &works[i].link), 0);
	assert_int_equal(percpu_runqueue_length(&rq, victim), 9);
	assert_int_equal(percpu_runqueue_steal(&rq, victim, &out), 0);
	assert_int_equal(number_of(out), 0);
	assert_int_equal(percpu_runqueue_length(&rq, victim), 0);
	for (size_t i = 1; i < 9; i++)
		assert_int_equal(number_of(percpu_runqueue_pop(&rq)), i);
	assert_null(percpu_runqueue_pop(&rq));
	/* Under the gate too. */
	percpu__thread_force(PERCPU__FORCE_GATE);
	for (size_t i = 0; i < 9; i++)
		assert_int_equal(percpu_runqueue_push_to(&rq, own, &works[i].link), 0);
	for (size_t i = 0; i < 9; i++)
		assert_int_equal(number_of(percpu_runqueue_pop(&rq)), i);
	percpu__thread_force(PERCPU__FORCE_OFF);
	assert_int_equal(total_length(&rq), 0);
	percpu_runqueue_destroy(&rq);
}

static void both_orders(void **state)
{
	struct percpu_runqueue rq;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		percpu__thread_force(force);
		assert_null(percpu_runqueue_pop(&rq));
		for (size_t i = 0; i < 20; i++) {
			percpu_runqueue_push(&rq, &works[i].link);
			assert_int_equal(total_length(&rq), i + 1);
		}
		for (size_t i = 0; i < 20; i++) {
			assert_int_equal(number_of(percpu_runqueue_pop(&rq)), i);
			assert_int_equal(total_length(&rq), 19 - i);
		}
		assert_null(percpu_runqueue_pop(&rq));
		for (size_t i = 0; i < 20; i++) {
			percpu_runqueue_push_front(&rq, &works[i].link);
			assert_int_equal(total_length(&rq), i + 1);
		}
		percpu_runqueue_push(&rq, &works[20].link);
		for (size_t i = 20; i-- > 0;)
			assert_int_equal(number_of(percpu_runqueue_pop(&rq)), i);
		assert_int_equal(total_length(&rq), 1);
		percpu_runqueue_push_front(&rq, &works[0].link);
		assert_int_equal(number_of(percpu_runqueue_pop(&rq)), 0);
		assert_int_equal(number_of(percpu_runqueue_pop(&rq)), 20);
		assert_null(percpu_runqueue_pop(&rq));
		percpu__thread_force(PERCPU__FORCE_OFF);
	}
	percpu_runqueue_destroy(&rq);
}

static void ways_mix(void **state)
{
	struct percpu_runqueue rq;
	unsigned next_in = 0, next_out = 0;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	for (int i = 0; i < 600; i++) {
		/* All but the remainder are the same copy. */
		percpu__thread_force(i % 3 ? PERCPU__FORCE_OFF : PERCPU__FORCE_GATE);
		if (i % 4 != 3)
			percpu_runqueue_push(&rq, &works[next_in++].link);
		else
			assert_int_equal(number_of(percpu_runqueue_pop(&rq)), next_out++);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	while (next_out < next_in)
		assert_int_equal(number_of(percpu_runqueue_pop(&rq)), next_out++);
	assert_null(percpu_runqueue_pop(&rq));
	percpu_runqueue_destroy(&rq);
}

static void arguments(void **state)
{
	struct percpu_runqueue rq;
	struct percpu_task task, *out = &task;
	size_t moved = 77;

	(void)state;
	assert_int_equal(percpu_runqueue_init(NULL), -EINVAL);
	percpu_runqueue_destroy(NULL);
	percpu_runqueue_wake(NULL, 1);
	assert_int_equal(percpu_runqueue_wait(NULL, 0), -EINVAL);
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	assert_int_equal(percpu_runqueue_push_to(NULL, 0, &task), -EINVAL);
	assert_int_equal(percpu_runqueue_push_to(&rq, 0, NULL), -EINVAL);
	assert_int_equal(percpu_runqueue_push_to(&rq, percpu_copies(), &task), -EINVAL);
	assert_int_equal(percpu_runqueue_push_to(&rq, UINT32_MAX, &task), -EINVAL);
	assert_int_equal(percpu_runqueue_steal(NULL, 0, &out), -EINVAL);
	assert_int_equal(percpu_runqueue_steal(&rq, 0, NULL), -EINVAL);
	assert_int_equal(percpu_runqueue_steal(&rq, percpu_copies(), &out), -EINVAL);
	assert_int_equal(percpu_runqueue_steal_any(NULL, &out), -EINVAL);
	assert_int_equal(percpu_runqueue_steal_any(&rq, NULL), -EINVAL);
	assert_int_equal(percpu_runqueue_migrate(NULL, 0, 1, 1, &moved), -EINVAL);
	assert_int_equal(percpu_runqueue_migrate(&rq, 0, 0, 1, &moved), -EINVAL);
	assert_int_equal(percpu_runqueue_migrate(&rq, 0, percpu_copies(), 1, &moved), -EINVAL);
	assert_int_equal(percpu_runqueue_migrate(&rq, percpu_copies(), 0, 1, &moved), -EINVAL);
	assert_ptr_equal(out, &task);
	assert_int_equal(moved, 77);
	assert_int_equal(percpu_runqueue_length(NULL, 0), 0);
	assert_int_equal(percpu_runqueue_length(&rq, percpu_copies()), 0);
	assert_int_equal(percpu_runqueue_steal(&rq, 0, &out), 0);
	assert_null(out);
	out = &task;
	assert_int_equal(percpu_runqueue_steal_any(&rq, &out), 0);
	assert_null(out);
	assert_int_equal(percpu_runqueue_migrate(&rq, 0, 1, SIZE_MAX, &moved), 0);
	assert_int_equal(moved, 0);
	assert_int_equal(percpu_runqueue_migrate(&rq, 0, 1, SIZE_MAX, NULL), 0);
	assert_int_equal(total_length(&rq), 0);
	percpu_runqueue_destroy(&rq);
	percpu_runqueue_destroy(&rq);
}

static void stealing_takes_the_back_half(void **state)
{
	struct percpu_runqueue rq;
	unsigned own;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	percpu_runqueue_push(&rq, &works[0].link);
	own = where(&rq);
	percpu_runqueue_pop(&rq);
	percpu_for_each_index(victim) {
		if (victim == own)
			continue;
		for (uint64_t count = 1; count < 40; count++) {
			struct percpu_task *out = NULL;

			for (uint64_t i = 0; i < count; i++)
				assert_int_equal(percpu_runqueue_push_to(&rq, victim, &works[i].link), 0);
			assert_int_equal(percpu_runqueue_length(&rq, victim), count);
			/* Of an inbox alone a thief would take all. */
			settle(&rq, victim, own);
			assert_int_equal(percpu_runqueue_length(&rq, victim), count);
			assert_int_equal(percpu_runqueue_steal(&rq, victim, &out), 0);
			assert_int_equal(number_of(out), count / 2);
			assert_int_equal(percpu_runqueue_length(&rq, victim), count / 2);
			assert_int_equal(percpu_runqueue_length(&rq, own), count - count / 2 - 1);
			for (uint64_t i = count / 2 + 1; i < count; i++)
				assert_int_equal(number_of(percpu_runqueue_pop(&rq)), i);
			assert_null(percpu_runqueue_pop(&rq));
			/* What the victim kept, in its order, with something new behind it. */
			assert_int_equal(percpu_runqueue_push_to(&rq, victim, &works[count].link), 0);
			assert_int_equal(percpu_runqueue_migrate(&rq, victim, own, SIZE_MAX, NULL), 0);
			for (uint64_t i = 0; i < count / 2; i++)
				assert_int_equal(number_of(percpu_runqueue_pop(&rq)), i);
			assert_int_equal(number_of(percpu_runqueue_pop(&rq)), count);
			assert_int_equal(total_length(&rq), 0);
		}
		if (victim == 3)
			break; /* machines with many possible CPUs */
	}
	percpu_runqueue_destroy(&rq);
}

static void stealing_from_long_queues_and_from_oneself(void **state)
{
	struct percpu_runqueue rq;
	struct percpu_task *out = NULL;
	unsigned own, victim;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	percpu_runqueue_push(&rq, &works[0].link);
	percpu_runqueue_push(&rq, &works[1].link);
	own = where(&rq);
	victim = other_than(own);
	assert_int_equal(percpu_runqueue_steal(&rq, own, &out), 0);
	assert_int_equal(number_of(out), 0);
	assert_int_equal(percpu_runqueue_length(&rq, own), 1);
	percpu_runqueue_pop(&rq);
	for (size_t i = 0; i < TASKS; i++)
		assert_int_equal(percpu_runqueue_push_to(&rq, victim, &works[i].link), 0);
	settle(&rq, victim, own);
	assert_int_equal(percpu_runqueue_steal_any(&rq, &out), 0);
	assert_int_equal(number_of(out), 0);
	for (uint64_t i = 1; i < PERCPU_RUNQUEUE_STEAL_MAX; i++)
		assert_int_equal(number_of(percpu_runqueue_pop(&rq)), i);
	assert_null(percpu_runqueue_pop(&rq));
	assert_int_equal(percpu_runqueue_length(&rq, victim), TASKS - PERCPU_RUNQUEUE_STEAL_MAX);
	percpu_runqueue_destroy(&rq);
}

static void migrating(void **state)
{
	static const size_t most[] = {
		0, 1, 7, PERCPU_RUNQUEUE_STEAL_MAX, PERCPU_RUNQUEUE_STEAL_MAX + 1, TASKS - 1, TASKS, SIZE_MAX
	};
	struct percpu_runqueue rq;
	unsigned last = percpu_copies() - 1;
	struct percpu_task *out;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	for (size_t k = 0; k < UNIT_COUNT(most); k++) {
		size_t moved = 0, expected = most[k] < TASKS ? most[k] : TASKS;

		for (size_t i = 0; i < TASKS; i++)
			assert_int_equal(percpu_runqueue_push_to(&rq, 0, &works[i].link), 0);
		assert_int_equal(percpu_runqueue_migrate(&rq, 0, last, most[k], &moved), 0);
		assert_int_equal(moved, expected);
		assert_int_equal(percpu_runqueue_length(&rq, 0), TASKS - expected);
		assert_int_equal(percpu_runqueue_length(&rq, last), expected);
		/* The others behind them. */
		assert_int_equal(percpu_runqueue_migrate(&rq, 0, last, SIZE_MAX, NULL), 0);
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
		if (unit_in_mode(PERCPU_MODE_NONE)) {
			/* There the own copy is one that a steal puts things on. */
			for (size_t n = 0; n < TASKS; n++)
				assert_int_equal(percpu_runqueue_steal_any(&rq, &out), 0);
			assert_int_equal(percpu_runqueue_steal_any(&rq, &out), 0);
			assert_null(out);
		} else {
			for (size_t i = 0; i < TASKS; i++)
				assert_int_equal(number_of(percpu_runqueue_pop(&rq)), i);
		}
		percpu__thread_force(PERCPU__FORCE_OFF);
		assert_int_equal(total_length(&rq), 0);
	}
	percpu_runqueue_destroy(&rq);
}

static void where_the_gate_is_held(void **state)
{
	struct percpu_runqueue rq;
	struct percpu_task untouched, *out = &untouched;
	struct percpu_gate gate;
	size_t moved = 5;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	assert_int_equal(percpu_runqueue_push_to(&rq, 0, &works[0].link), 0);
	assert_int_equal(percpu_runqueue_migrate(&rq, 0, 1, 1, &moved), 0);
	assert_int_equal(percpu_runqueue_migrate(&rq, 1, 0, 1, &moved), 0);
	assert_int_equal(percpu_gate_lock(rq.copies, 0, &gate), 0);
	/* An inbox needs no gate. */
	assert_int_equal(percpu_runqueue_push_to(&rq, 0, &works[1].link), 0);
	assert_int_equal(percpu_runqueue_steal(&rq, 0, &out), -EDEADLK);
	assert_ptr_equal(out, &untouched);
	assert_int_equal(percpu_runqueue_migrate(&rq, 0, 1, 1, &moved), -EDEADLK);
	assert_int_equal(moved, 0);
	percpu_gate_unlock(&gate);
	assert_int_equal(percpu_runqueue_length(&rq, 0), 2);
	assert_int_equal(percpu_runqueue_migrate(&rq, 0, percpu_copies() - 1, 2, &moved), 0);
	assert_int_equal(moved, 2);
	percpu_runqueue_destroy(&rq);
}

static void waiting(void **state)
{
	struct percpu_runqueue rq;
	struct percpu_task *out;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	assert_int_equal(percpu_runqueue_wait(&rq, 0), -ETIMEDOUT);
	assert_int_equal(percpu_runqueue_wait(&rq, 1000000), -ETIMEDOUT);
	/* A task in any copy. */
	percpu_for_each_index(index) {
		assert_int_equal(percpu_runqueue_push_to(&rq, index, &works[0].link), 0);
		assert_int_equal(percpu_runqueue_wait(&rq, -1), 0);
		assert_int_equal(percpu_runqueue_steal(&rq, index, &out), 0);
		assert_ptr_equal(out, &works[0].link);
	}
	assert_int_equal(percpu_runqueue_wait(&rq, 1000), -ETIMEDOUT);
	/* A wake-up is kept for who comes later, and is used up. */
	percpu_runqueue_wake(&rq, 0);
	assert_int_equal(percpu_runqueue_wait(&rq, 1000), -ETIMEDOUT);
	percpu_runqueue_wake(&rq, 2);
	assert_int_equal(percpu_runqueue_wait(&rq, -1), 0);
	assert_int_equal(percpu_runqueue_wait(&rq, -1), 0);
	assert_int_equal(percpu_runqueue_wait(&rq, 1000), -ETIMEDOUT);
	assert_int_equal(rq.wakes, 0);
	assert_int_equal(rq.idlers, 0);
	percpu_runqueue_destroy(&rq);
}

static void on_alarm(int sig)
{
	(void)sig;
}

static void a_signal_ends_the_wait(void **state)
{
	struct percpu_runqueue rq;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&rq), 0);
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL);
	alarm(1);
	assert_int_equal(percpu_runqueue_wait(&rq, -1), -EINTR);
	assert_int_equal(rq.idlers, 0);
	percpu_runqueue_destroy(&rq);
}

#define THREADS 4
#define TURNS   20000

static struct percpu_runqueue common;
static uint64_t answers;

/* A ball that each player waits for, takes and gives back: a wake-up that is missed ends the game for ever. */
static void *play(void *arg)
{
	unsigned me = *(unsigned *)arg;

	for (int got = 0; got < TURNS / 10;) {
		struct percpu_task *task = percpu_runqueue_pop(&common);

		if (!task && percpu_runqueue_steal_any(&common, &task))
			__atomic_fetch_add(&answers, 1000000, __ATOMIC_RELAXED);
		if (!task) {
			percpu_runqueue_wait(&common, -1);
			continue;
		}
		got++;
		((struct work *)(void *)task)->number++;
		if (me == 0)
			percpu__thread_force(got % 2 ? PERCPU__FORCE_REMAINDER : PERCPU__FORCE_GATE);
		if (got % 3)
			percpu_runqueue_push(&common, task);
		else
			percpu_runqueue_push_front(&common, task);
		percpu__thread_force(PERCPU__FORCE_OFF);
	}
	__atomic_fetch_add(&answers, 1, __ATOMIC_RELAXED);
	return NULL;
}

static void no_wake_up_is_missed(void **state)
{
	unsigned numbers[THREADS] = { 0, 1, 2, 3 };
	struct work ball = { .number = 0 };

	(void)state;
	answers = 0;
	assert_int_equal(percpu_runqueue_init(&common), 0);
	percpu_runqueue_push(&common, &ball.link);
	unit_threads(THREADS, play, numbers, sizeof *numbers);
	assert_int_equal(answers, THREADS);
	assert_int_equal(ball.number, THREADS * (TURNS / 10));
	percpu_runqueue_destroy(&common);
}

static uint32_t stop;

static void *pop_and_push(void *arg)
{
	unsigned me = *(unsigned *)arg;

	if (me == 3)
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
	for (int i = 0; i < TURNS; i++) {
		struct percpu_task *first = percpu_runqueue_pop(&common), *second;

		if (!first)
			continue;
		/* In our hands alone: nobody else counts in it at the same time. */
		((struct work *)(void *)first)->number++;
		second = percpu_runqueue_pop(&common);
		percpu_runqueue_push(&common, first);
		if (second) {
			((struct work *)(void *)second)->number++;
			percpu_runqueue_push_front(&common, second);
		}
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void *rob(void *arg)
{
	unsigned turn = 0;
	int rc = 0;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		unsigned copies = percpu_copies() < 4 ? percpu_copies() : 4, a = turn++ % copies;
		struct percpu_task *task = NULL;

		switch (turn / copies % 4) {
		case 0:
			rc |= percpu_runqueue_steal(&common, a, &task);
			break;
		case 1:
			rc |= percpu_runqueue_migrate(&common, a, (a + 1) % copies, turn % 9, NULL);
			break;
		case 2:
			rc |= percpu_runqueue_steal_any(&common, &task);
			break;
		default:
			rc |= percpu_runqueue_migrate(&common, percpu_copies() - 1, 0, SIZE_MAX, NULL);
		}
		if (task)
			rc |= percpu_runqueue_push_to(&common, a, task);
		sched_yield();
	}
	*(int *)arg = rc;
	return NULL;
}

static void no_task_is_lost_or_doubled(void **state)
{
	enum { COUNT = 64 };
	unsigned numbers[THREADS] = { 0, 1, 2, 3 };
	struct percpu_task *out;
	pthread_t robber;
	int rc = 1;

	(void)state;
	for (size_t i = 0; i < COUNT; i++)
		works[i].number = 0;
	assert_int_equal(percpu_runqueue_init(&common), 0);
	for (size_t i = 0; i < COUNT; i++)
		percpu_runqueue_push(&common, &works[i].link);
	__atomic_store_n(&stop, 0, __ATOMIC_RELAXED);
	assert_int_equal(pthread_create(&robber, NULL, rob, &rc), 0);
	unit_threads(THREADS, pop_and_push, numbers, sizeof *numbers);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	assert_int_equal(pthread_join(robber, NULL), 0);
	assert_int_equal(rc, 0);
	assert_int_equal(total_length(&common), COUNT);
	for (size_t i = 0; i < COUNT; i++) {
		assert_int_equal(percpu_runqueue_steal_any(&common, &out), 0);
		assert_true((struct work *)(void *)out >= works && (struct work *)(void *)out < works + COUNT);
		assert_int_not_equal(number_of(out), UINT64_MAX);
		((struct work *)(void *)out)->number = UINT64_MAX;
	}
	assert_int_equal(percpu_runqueue_steal_any(&common, &out), 0);
	assert_null(out);
	percpu_runqueue_destroy(&common);
}

static int count_in_child(void)
{
	struct percpu_task *out;
	unsigned count = 0;

	if (total_length(&common) != 32)
		return 1;
	percpu_runqueue_push(&common, &works[40].link);
	while (percpu_runqueue_steal_any(&common, &out) == 0 && out)
		count++;
	return count == 33 ? 0 : 2;
}

static void a_forked_child_has_all(void **state)
{
	(void)state;
	assert_int_equal(percpu_runqueue_init(&common), 0);
	for (size_t i = 0; i < 32; i++)
		assert_int_equal(percpu_runqueue_push_to(&common, (unsigned)i % 3 % percpu_copies(), &works[i].link),
				 0);
	assert_int_equal(unit_in_child(count_in_child), 0);
	assert_int_equal(total_length(&common), 32);
	percpu_runqueue_destroy(&common);
}

static uint32_t handled;

static void push_in_handler(int sig)
{
	(void)sig;
	percpu_runqueue_push(&common, &works[handled++].link);
}

static void in_signal_handlers(void **state)
{
	struct percpu_task *out;
	uint64_t seen = 0;

	(void)state;
	handled = 0;
	assert_int_equal(percpu_runqueue_init(&common), 0);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = push_in_handler }, NULL);
	for (int i = 0; i < 100; i++)
		raise(SIGUSR1);
	assert_int_equal(total_length(&common), 100);
	for (int i = 0; i < 100; i++) {
		assert_int_equal(percpu_runqueue_steal_any(&common, &out), 0);
		seen += number_of(out);
	}
	assert_int_equal(seen, 100 * 99 / 2);
	percpu_runqueue_destroy(&common);
}

/* A thread made by the bare system call, which nobody registers and which shares no thread-local storage of its own. */
static char task_stack[65536] __attribute__((aligned(64)));

static int raw_task(void *arg)
{
	(void)arg;
	for (size_t i = 0; i < 50; i++)
		percpu_runqueue_push(&common, &works[i].link);
	return percpu_runqueue_pop(&common) ? 0 : 1;
}

static void in_tasks_without_storage_of_their_own(void **state)
{
	struct percpu_task *out;
	int status = -1;
	pid_t pid;

	(void)state;
	assert_int_equal(percpu_runqueue_init(&common), 0);
	pid = clone(raw_task, task_stack + sizeof task_stack, CLONE_VM | SIGCHLD, NULL);
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	assert_int_equal(total_length(&common), 49);
	for (size_t i = 0; i < 49; i++) {
		assert_int_equal(percpu_runqueue_wait(&common, 0), 0);
		assert_int_equal(percpu_runqueue_steal_any(&common, &out), 0);
		assert_non_null(out);
	}
	assert_int_equal(total_length(&common), 0);
	percpu_runqueue_destroy(&common);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(both_orders, stay, leave),
		cmocka_unit_test_setup_teardown(inboxes, stay, leave),
		cmocka_unit_test_setup_teardown(ways_mix, stay, leave),
		cmocka_unit_test(arguments),
		cmocka_unit_test_setup_teardown(stealing_takes_the_back_half, stay, leave),
		cmocka_unit_test_setup_teardown(stealing_from_long_queues_and_from_oneself, stay, leave),
		cmocka_unit_test_setup_teardown(migrating, stay, leave),
		cmocka_unit_test(where_the_gate_is_held),
		cmocka_unit_test(waiting),
		cmocka_unit_test(a_signal_ends_the_wait),
		cmocka_unit_test(no_wake_up_is_missed),
		cmocka_unit_test(no_task_is_lost_or_doubled),
		cmocka_unit_test_setup_teardown(a_forked_child_has_all, stay, leave),
		cmocka_unit_test_setup_teardown(in_signal_handlers, stay, leave),
		cmocka_unit_test_setup_teardown(in_tasks_without_storage_of_their_own, stay, leave),
	};

	return unit_main(tests);
}
