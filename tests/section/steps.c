/* SPDX-License-Identifier: MIT */
/*
 * One public operation after another, for a debugger to step through (steps.py): each between step_begin() and
 * step_end(). Fails if any result is wrong.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <percpu/csection.h>
#include <percpu/histogram.h>
#include <percpu/opv.h>
#include <percpu/pool.h>
#include <percpu/ref.h>
#include <percpu/runqueue.h>
#include <percpu/rwlock.h>
#include <percpu/seqdata.h>
#include <percpu/spinlock.h>
#include <percpu/stack.h>
#include <percpu/timed.h>

#include "steps.h"

struct cell {
	uint64_t word, other;
	unsigned char bytes[64];
	uintptr_t list;
	void *head;
};

static uint64_t sum(uint64_t *word)
{
	uint64_t total = 0;

	percpu_for_each_index(i)
		total += *percpu_ptr(word, i);
	return total;
}

/* Whatever the thread does meanwhile, the word it finds must be this. */
static void set(uint64_t *word, uint64_t value)
{
	percpu_for_each_index(i)
		*percpu_ptr(word, i) = value;
}

/* Takes all that any copy has: how many nodes. */
static unsigned take_all(struct percpu_stack *stack, bool step)
{
	struct percpu_stack_node *node;
	unsigned count = 0;
	int rc;

	percpu_for_each_index(i) {
		node = NULL;
		if (step && !percpu_stack_is_empty(stack, i))
			STEP("stack_steal", rc = percpu_stack_steal(stack, i, &node));
		else
			rc = percpu_stack_steal(stack, i, &node);
		expect(rc == 0);
		for (; node; node = node->next)
			count++;
	}
	return count;
}

PERCPU_SECTION(add_in_c, uint64_t, word, uint64_t, n)
{
	uint64_t sum = *word;

	for (uint64_t i = 0; i < *n; i++) {
		sum++;
		__asm__ __volatile__("");
	}
	return percpu_commit(word, sum);
}

static void words(struct cell *c)
{
	ptrdiff_t offset = offsetof(struct cell, other);
	uint64_t was, n = 4;
	bool did;

	STEP("add", percpu_this_add(&c->word, 7));
	STEP("cpu_add_release", percpu_this_cpu_add_release(&c->other, 2));
	expect(sum(&c->word) == 7 && sum(&c->other) == 2);
	set(&c->word, 0);
	set(&c->other, 0);
	STEP("a section in C", did = add_in_c(&c->word, &n));
	expect(did && sum(&c->word) == n);
	STEP("a section in C once more", did = add_in_c(&c->word, &n));
	expect(did && sum(&c->word) == 2 * n);
	STEP("add_offset", percpu_this_add_offset(&c->word, &offset, 5));
	expect(sum(&c->other) == 5);
	set(&c->word, 1);
	set(&c->other, 2);
	STEP("store_if_eq", did = percpu_this_store_if_eq(&c->word, 1, 3));
	expect(did && sum(&c->word) == percpu_copies() + 2);
	set(&c->word, 1);
	STEP("store_if_eq that differs", did = percpu_this_store_if_eq(&c->word, 4, 3));
	expect(!did && sum(&c->word) == percpu_copies());
	STEP("store_if_eq2", did = percpu_this_store_if_eq2(&c->word, 1, &c->other, 2, 3));
	expect(did && sum(&c->word) == percpu_copies() + 2);
	set(&c->word, 1);
	STEP("copy_store", did = percpu_this_copy_store(&c->word, 1, &c->bytes, "all at once, or nothing", 24, 3));
	expect(did && sum(&c->word) == percpu_copies() + 2);
	percpu_for_each_index(i)
		expect(*percpu_ptr(&c->word, i) != 3 ||
		       !strcmp((char *)percpu_ptr(c, i)->bytes, "all at once, or nothing"));
	set(&c->word, 1);
	STEP("xchg", was = percpu_this_xchg(&c->word, 3));
	expect(was == 1 && sum(&c->word) == percpu_copies() + 2);
}

static void lists(struct cell *c)
{
	struct percpu_stack_node nodes[3] = { { NULL }, { &nodes[2] }, { NULL } };
	struct percpu_stack stack;
	uintptr_t out = 0, links[2] = { 0, 0 };
	bool did;

	links[0] = (uintptr_t)&links[1];
	set((uint64_t *)&c->list, (uintptr_t)&links[0]);
	STEP("follow", did = percpu_this_follow(&c->list, 0, 0, &out));
	expect(did && out == (uintptr_t)&links[0]);
	percpu_for_each_index(i)
		*percpu_ptr(&c->head, i) = NULL;
	STEP("push", percpu_this_push(&c->head, &links[1], 0));
	did = false;
	percpu_for_each_index(i)
		did |= *percpu_ptr(&c->head, i) == &links[1];
	expect(did && !links[1]);
	percpu_for_each_index(i)
		*percpu_ptr(&c->head, i) = &links[1];
	STEP("pop", out = (uintptr_t)percpu_this_pop(&c->head, 0));
	expect(out == (uintptr_t)&links[1]);

	expect(percpu_stack_init(&stack) == 0);
	STEP("stack_push", percpu_stack_push(&stack, &nodes[0]));
	STEP("stack_push_chain", percpu_stack_push_chain(&stack, &nodes[1], &nodes[2]));
	expect(take_all(&stack, true) == 3);
	STEP("stack_pop of nothing", out = (uintptr_t)percpu_stack_pop(&stack));
	expect(!out);
	/* In some mode each of these may be another copy's. */
	nodes[0].next = NULL;
	percpu_for_each_index(i)
		*percpu_ptr(stack.head, i) = &nodes[0];
	STEP("stack_pop", out = (uintptr_t)percpu_stack_pop(&stack));
	expect(out == (uintptr_t)&nodes[0]);
	percpu_for_each_index(i)
		*percpu_ptr(stack.head, i) = &nodes[0];
	STEP("stack_pop_all", out = (uintptr_t)percpu_stack_pop_all(&stack));
	expect(out == (uintptr_t)&nodes[0]);
	percpu_stack_destroy(&stack);
}

/* From the depot, within a magazine, and back. */
static void pools(void)
{
	struct percpu_pool pool;
	struct percpu_pool_stats stats;
	void *one[2] = { NULL, NULL }, *some[3];
	bool did;

	expect(percpu_pool_init(&pool, 20000, 8, 16, 0) == 0);
	for (int i = 0; i < 2; i++)
		STEP("pool_get", one[i] = percpu_pool_get(&pool));
	expect(one[0] && one[1] && one[0] != one[1]);
	STEP("pool_get_bulk", did = percpu_pool_get_bulk(&pool, some, 3));
	expect(did);
	STEP("pool_put_bulk", percpu_pool_put_bulk(&pool, some, 3));
	for (int i = 0; i < 2; i++)
		STEP("pool_put", percpu_pool_put(&pool, one[i]));
	STEP("pool_trim", percpu_pool_trim(&pool, SIZE_MAX));
	expect(percpu_pool_stats(&pool, &stats) == 0 && stats.out == 0 && stats.strays == 0);
	expect(percpu_pool_destroy(&pool) == 0);
}

static void run_queues(void)
{
	static struct percpu_task tasks[4];
	struct percpu_task *out = NULL;
	struct percpu_runqueue rq;
	size_t count = 0, moved = 0;
	int rc = percpu_runqueue_init(&rq);

	expect(rc == 0);
	STEP("runqueue_push", percpu_runqueue_push(&rq, &tasks[0]));
	STEP("runqueue_push_front", percpu_runqueue_push_front(&rq, &tasks[1]));
	STEP("runqueue_push_to", rc = percpu_runqueue_push_to(&rq, 0, &tasks[2]));
	expect(rc == 0);
	percpu_for_each_index(i)
		count += percpu_runqueue_length(&rq, i);
	expect(count == 3);
	STEP("runqueue_migrate", rc = percpu_runqueue_migrate(&rq, 0, percpu_copies() - 1, SIZE_MAX, &moved));
	expect(rc == 0 && moved);
	STEP("runqueue_wait", rc = percpu_runqueue_wait(&rq, -1));
	expect(rc == 0);
	for (count = 0; count < 4; count++) {
		STEP("runqueue_steal_any", rc = percpu_runqueue_steal_any(&rq, &out));
		expect(rc == 0);
		if (!out)
			break;
	}
	expect(count == 3);
	STEP("runqueue_pop of nothing", out = percpu_runqueue_pop(&rq));
	expect(!out);
	percpu_runqueue_push(&rq, &tasks[3]);
	STEP("runqueue_pop", out = percpu_runqueue_pop(&rq));
	expect(out == &tasks[3] || percpu_runqueue_wait(&rq, 0) == 0);
	percpu_runqueue_destroy(&rq);
}

static void counts(struct cell *c)
{
	struct percpu_op op = { .op = PERCPU_OP_ADD, .len = 8, .dst = &c->word, .value = 9 };
	struct percpu_counter counter;
	struct percpu_histogram histogram;
	struct percpu_snapshot snapshot;
	uint64_t out = 0;
	int rc;

	expect(percpu_counter_init(&counter) == 0 && percpu_histogram_init(&histogram, 3) == 0);
	STEP("counter_add", percpu_counter_add(&counter, 3));
	STEP("counter_drain", rc = percpu_counter_drain(&counter, &out));
	expect(rc == 0 && out == 3);
	STEP("histogram_record", percpu_histogram_record(&histogram, 12345));
	expect(percpu_snapshot_init(&snapshot, 3) == 0);
	rc = percpu_histogram_drain(&histogram, &snapshot); /* as long as there are buckets and CPUs */
	expect(rc == 0 && snapshot.total == 1);
	percpu_snapshot_destroy(&snapshot);
	percpu_histogram_destroy(&histogram);
	percpu_counter_destroy(&counter);

	set(&c->word, 0);
	STEP("opv", rc = percpu_opv(&op, 1, 0));
	expect(rc == 0 && sum(&c->word) == 9);
	STEP("fence", rc = percpu_fence());
	expect(rc == 0);
}

static int64_t derive(const struct percpu_seqdata *from, void *out, void *arg)
{
	(void)arg;
	return percpu_seqdata_read(from, out, 64);
}

static void values(void)
{
	char first[64] = "first", second[64] = "second", out[64] = "";
	struct percpu_timed_result result;
	struct percpu_seqdata *seqdata;
	struct percpu_cached cached;
	struct percpu_timed timed;
	int64_t version;
	bool clean;

	expect(percpu_seqdata_create(64, first, &seqdata) == 0);
	expect(percpu_cached_init(&cached, seqdata, 64, derive, NULL) == 0);
	STEP("seqdata_write", version = percpu_seqdata_write(seqdata, second, 64));
	expect(version == 2);
	STEP("seqdata_read", version = percpu_seqdata_read(seqdata, out, 64));
	expect(version == 2 && !strcmp(out, "second"));
	STEP("cached_read that derives", version = percpu_cached_read(&cached, out, 64));
	expect(version == 2 && !strcmp(out, "second"));
	STEP("timed", percpu_timed_begin(&timed), clean = percpu_timed_end(&timed, &result));
	expect(!clean);
	percpu_cached_destroy(&cached);
	percpu_seqdata_free(seqdata);
}

static void locks(void)
{
	struct percpu_spinlock *lock = percpu_alloc(sizeof *lock, 64), *copy;
	int rc;

	expect(lock);
	STEP("spinlock_lock, the first time", copy = percpu_spinlock_lock(lock));
	expect(copy->held == 1);
	STEP("spinlock_unlock", percpu_spinlock_unlock(copy));
	expect(copy->held == 0);
	/* At full speed it gets its bias, which stepping ends again. */
	percpu_spinlock_unlock(percpu_spinlock_lock(lock));
	for (int i = 0; i < 3; i++) {
		STEP("spinlock_lock", copy = percpu_spinlock_lock(lock));
		expect(copy->held == 1);
		percpu_spinlock_unlock(copy);
		STEP("spinlock_trylock", copy = percpu_spinlock_trylock(lock));
		expect(copy && copy->held == 1);
		percpu_spinlock_unlock(copy);
	}
	STEP("spinlock_lock_index", rc = percpu_spinlock_lock_index(lock, 0));
	expect(rc == 0 && lock->held == 1);
	percpu_spinlock_unlock(lock);
	STEP("spinlock_lock_all", rc = percpu_spinlock_lock_all(lock));
	expect(rc == 0 && !percpu_spinlock_trylock(lock));
	STEP("spinlock_unlock_all", percpu_spinlock_unlock_all(lock));
	copy = percpu_spinlock_lock(lock);
	expect(copy->held == 1);
	percpu_spinlock_unlock(copy);
	percpu_free(lock);
}

static unsigned ended;

static void on_release(struct percpu_ref *ref)
{
	(void)ref;
	ended++;
}

static void shared(void)
{
	struct percpu_rwlock *lock = percpu_alloc(sizeof *lock, 64);
	struct percpu_ref ref;
	bool did;
	int rc;

	expect(lock && percpu_ref_init(&ref, on_release, 0) == 0);
	STEP("rwlock_read_lock", percpu_rwlock_read_lock(lock));
	STEP("rwlock_read_lock_again", percpu_rwlock_read_lock_again(lock));
	STEP("rwlock_write_trylock of a reader", rc = percpu_rwlock_write_trylock(lock));
	expect(rc == -EBUSY);
	STEP("rwlock_read_unlock", percpu_rwlock_read_unlock(lock));
	percpu_rwlock_read_unlock(lock);
	STEP("rwlock_write_lock", rc = percpu_rwlock_write_lock(lock));
	expect(rc == 0);
	STEP("rwlock_read_trylock of a writer", rc = percpu_rwlock_read_trylock(lock));
	expect(rc == -EBUSY);
	STEP("rwlock_write_unlock", percpu_rwlock_write_unlock(lock));
	STEP("ref_get", percpu_ref_get(&ref));
	STEP("ref_tryget_live", did = percpu_ref_tryget_live(&ref));
	expect(did);
	STEP("ref_put", percpu_ref_put(&ref));
	STEP("ref_kill", rc = percpu_ref_kill(&ref));
	expect(rc == 0 && !ended);
	STEP("ref_put of the last", percpu_ref_put(&ref));
	expect(ended == 1);
	percpu_ref_destroy(&ref);
	percpu_free(lock);
}

int main(void)
{
	struct percpu_description about;
	struct cell *c = percpu_alloc(sizeof *c, 64);

	if (!c)
		return 1;
	words(c);
	lists(c);
	pools();
	run_queues();
	counts(c);
	values();
	locks();
	shared();
	percpu_describe(&about);
	fprintf(stderr, "mode %s, %u wrong\n", about.mode_name, failed);
	percpu_free(c);
	return failed != 0;
}
