/* SPDX-License-Identifier: MIT */
/* Stacks: order, chains, stealing from every index, and that no node is lost or doubled among threads. */
#include "unit.h"

#include "rseq/thread.h"

#define NODES 64

struct node {
	struct percpu_stack_node link;
	uint64_t number;
};

static struct node nodes[NODES];

static struct node *node_of(struct percpu_stack_node *link)
{
	return (struct node *)(void *)((char *)link - offsetof(struct node, link));
}

static void fill_nodes(void)
{
	for (size_t i = 0; i < NODES; i++)
		nodes[i] = (struct node){ .number = i };
}

/* One thread on one CPU stays at one index: what it pushes it pops. */
static cpu_set_t everywhere;

static int stay(void **state)
{
	(void)state;
	return sched_getaffinity(0, sizeof everywhere, &everywhere) || unit_pin(sched_getcpu());
}

static int leave(void **state)
{
	(void)state;
	return sched_setaffinity(0, sizeof everywhere, &everywhere);
}

static void newest_first(void **state)
{
	struct percpu_stack stack;

	(void)state;
	fill_nodes();
	assert_int_equal(percpu_stack_init(&stack), 0);
	assert_null(percpu_stack_pop(&stack));
	assert_null(percpu_stack_pop_all(&stack));
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		percpu__thread_force(force);
		for (size_t i = 0; i < NODES; i++) {
			percpu_stack_push(&stack, &nodes[i].link);
			assert_ptr_equal(nodes[i].link.next, i ? &nodes[i - 1].link : NULL);
		}
		for (size_t i = NODES; i-- > 0;)
			assert_ptr_equal(percpu_stack_pop(&stack), &nodes[i].link);
		assert_null(percpu_stack_pop(&stack));
		percpu__thread_force(PERCPU__FORCE_OFF);
	}
	percpu_stack_destroy(&stack);
}

static void chains(void **state)
{
	struct percpu_stack stack;
	struct percpu_stack_node *top;

	(void)state;
	fill_nodes();
	assert_int_equal(percpu_stack_init(&stack), 0);
	for (size_t i = 0; i < 9; i++)
		nodes[i].link.next = &nodes[i + 1].link;
	nodes[9].link.next = &nodes[50].link; /* is overwritten */
	percpu_stack_push(&stack, &nodes[20].link);
	percpu_stack_push_chain(&stack, &nodes[0].link, &nodes[9].link);
	assert_ptr_equal(nodes[9].link.next, &nodes[20].link);
	percpu_stack_push_chain(&stack, &nodes[30].link, &nodes[30].link);
	assert_ptr_equal(percpu_stack_pop(&stack), &nodes[30].link);
	assert_ptr_equal(percpu_stack_pop(&stack), &nodes[0].link);
	top = percpu_stack_pop_all(&stack);
	for (size_t i = 1; i < 10; i++, top = top->next)
		assert_ptr_equal(top, &nodes[i].link);
	assert_ptr_equal(top, &nodes[20].link);
	assert_null(top->next);
	assert_null(percpu_stack_pop(&stack));
	assert_null(percpu_stack_pop_all(&stack));
	percpu_stack_destroy(&stack);
}

static void arguments(void **state)
{
	struct percpu_stack stack;
	struct percpu_stack_node untouched, *out = &untouched;

	(void)state;
	assert_int_equal(percpu_stack_init(NULL), -EINVAL);
	percpu_stack_destroy(NULL);
	assert_int_equal(percpu_stack_init(&stack), 0);
	assert_int_equal(percpu_stack_steal(NULL, 0, &out), -EINVAL);
	assert_int_equal(percpu_stack_steal(&stack, 0, NULL), -EINVAL);
	assert_int_equal(percpu_stack_steal(&stack, percpu_copies(), &out), -EINVAL);
	assert_int_equal(percpu_stack_steal(&stack, UINT32_MAX, &out), -EINVAL);
	assert_ptr_equal(out, &untouched);
	assert_false(percpu_stack_is_empty(&stack, percpu_copies()));
	assert_false(percpu_stack_is_empty(&stack, UINT32_MAX));
	assert_false(percpu_stack_is_empty(NULL, 0));
	percpu_stack_destroy(&stack);
	percpu_stack_destroy(&stack);
}

static void stealing_from_every_index(void **state)
{
	struct percpu_stack stack;

	(void)state;
	fill_nodes();
	assert_int_equal(percpu_stack_init(&stack), 0);
	percpu_for_each_index(index) {
		struct percpu_stack_node *out = &nodes[0].link;

		assert_true(percpu_stack_is_empty(&stack, index));
		assert_int_equal(percpu_stack_steal(&stack, index, &out), 0);
		assert_null(out);
		/* As if threads there had pushed them. */
		nodes[2].link.next = &nodes[1].link;
		nodes[1].link.next = NULL;
		*percpu_ptr(stack.head, index) = &nodes[2].link;
		percpu_for_each_index(other)
			assert_int_equal(percpu_stack_is_empty(&stack, other), other != index);
		assert_int_equal(percpu_stack_steal(&stack, index, &out), 0);
		assert_ptr_equal(out, &nodes[2].link);
		assert_ptr_equal(out->next, &nodes[1].link);
		assert_null(out->next->next);
		assert_true(percpu_stack_is_empty(&stack, index));
	}
	percpu_stack_destroy(&stack);
}

static void stealing_where_the_gate_is_held(void **state)
{
	struct percpu_stack stack;
	struct percpu_stack_node *out = &nodes[5].link;
	struct percpu_gate gate;

	(void)state;
	assert_int_equal(percpu_stack_init(&stack), 0);
	assert_int_equal(percpu_gate_lock(stack.head, 0, &gate), 0);
	/* An empty copy needs no gate; another does, and this thread has it. */
	assert_int_equal(percpu_stack_steal(&stack, 0, &out), 0);
	assert_null(out);
	*percpu_ptr(stack.head, 0) = &nodes[3].link;
	out = &nodes[5].link;
	assert_int_equal(percpu_stack_steal(&stack, 0, &out), -EDEADLK);
	assert_ptr_equal(out, &nodes[5].link);
	percpu_gate_unlock(&gate);
	assert_int_equal(percpu_stack_steal(&stack, 0, &out), 0);
	assert_ptr_equal(out, &nodes[3].link);
	percpu_stack_destroy(&stack);
}

#define THREADS 4
#define TURNS   30000

static struct percpu_stack common;
static uint32_t stop;

static void *pop_and_push(void *arg)
{
	unsigned me = *(unsigned *)arg;

	if (me == 3)
		percpu__thread_force(PERCPU__FORCE_REMAINDER);
	for (int i = 0; i < TURNS; i++) {
		struct percpu_stack_node *first = percpu_stack_pop(&common), *second;

		if (!first)
			continue;
		/* In our hands alone: nobody else counts in it at the same time. */
		node_of(first)->number++;
		second = percpu_stack_pop(&common);
		if (second) {
			node_of(second)->number++;
			second->next = first;
			percpu_stack_push_chain(&common, second, first);
		} else {
			percpu_stack_push(&common, first);
		}
	}
	*(unsigned *)arg = 0;
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void *rob(void *arg)
{
	unsigned index = 0;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct percpu_stack_node *all = NULL;

		if (percpu_stack_steal(&common, index++ % percpu_copies(), &all) != 0)
			*(unsigned *)arg += 1;
		while (all) {
			struct percpu_stack_node *next = all->next;

			percpu_stack_push(&common, all);
			all = next;
		}
		sched_yield();
	}
	return NULL;
}

static void no_node_is_lost_or_doubled(void **state)
{
	unsigned numbers[THREADS] = { 0, 1, 2, 3 }, errors = 0, count = 0;
	pthread_t robber;

	(void)state;
	fill_nodes();
	assert_int_equal(percpu_stack_init(&common), 0);
	for (size_t i = 0; i < NODES; i++)
		percpu_stack_push(&common, &nodes[i].link);
	assert_int_equal(pthread_create(&robber, NULL, rob, &errors), 0);
	unit_threads(THREADS, pop_and_push, numbers, sizeof *numbers);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	assert_int_equal(pthread_join(robber, NULL), 0);
	assert_int_equal(errors, 0);
	percpu_for_each_index(index) {
		struct percpu_stack_node *all;

		assert_int_equal(percpu_stack_steal(&common, index, &all), 0);
		for (; all; all = all->next) {
			assert_true(node_of(all) >= nodes && node_of(all) < nodes + NODES);
			assert_int_not_equal(node_of(all)->number, UINT64_MAX);
			node_of(all)->number = UINT64_MAX;
			count++;
		}
	}
	assert_int_equal(count, NODES);
	percpu_stack_destroy(&common);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(newest_first, stay, leave),
		cmocka_unit_test_setup_teardown(chains, stay, leave),
		cmocka_unit_test(arguments),
		cmocka_unit_test(stealing_from_every_index),
		cmocka_unit_test(stealing_where_the_gate_is_held),
		cmocka_unit_test(no_node_is_lost_or_doubled),
	};

	return unit_main(tests);
}
