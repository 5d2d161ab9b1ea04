/* SPDX-License-Identifier: MIT */
/*
 * Run queues, cold half.
 *
 * Under its gate a copy is a list with two ends and plain loads and stores. What a section may have left half done when it
 * was aborted is never believed (see struct percpu__runqueue_copy): the link of the last task, and the hints. The places in
 * the tasks are exact, because each task gets its own from its neighbour in the very section that puts it there.
 *
 * What changes one copy commits by one store, as sections do, so a forked child finds it done or not done. What moves tasks
 * between two copies is several changes: fork waits for it.
 */
#include <errno.h>
#include <limits.h>
#include <time.h>

#include <percpu/runqueue.h>

#include "base/sys.h"
#include "gate/gate.h"
#include "rseq/thread.h"

typedef struct percpu__runqueue_copy copy;

/* Tasks that are in no queue. */
struct chain {
	struct percpu_task *first, *last;
	uint64_t count;
};

struct request {
	struct percpu__task task;
	struct percpu_runqueue *rq;
	struct percpu_task *node;
	bool front;
	bool arrived; /* it found something in the inbox */
	bool no_section;
};

/* A wait without a fence has to look by itself. */
#define POLL_NS 1000000

static struct percpu_task *head_of(const copy *c)
{
	return __atomic_load_n(&c->head, __ATOMIC_RELAXED);
}

static bool has_task(const copy *c)
{
	return head_of(c) || __atomic_load_n(&c->inbox, __ATOMIC_RELAXED);
}

static void commit(struct percpu_task **word, struct percpu_task *task)
{
	__atomic_store_n(word, task, __ATOMIC_RELEASE);
}

static void hint(uint64_t *place, uint64_t value)
{
	__atomic_store_n(place, value, __ATOMIC_RELAXED);
}

/* Under the gate from here on. */

static uint64_t length_of(const copy *c)
{
	return c->head ? c->tail->place - c->head->place + 1 : 0;
}

static void put_back(copy *c, struct chain chain)
{
	uint64_t place = c->head ? c->tail->place + 1 : c->first;

	for (struct percpu_task *task = chain.first;; task = task->next) {
		task->place = place++;
		if (task == chain.last)
			break;
	}
	hint(&c->last, place - 1);
	if (c->head) {
		c->tail->next = chain.first;
		commit(&c->tail, chain.last);
	} else {
		c->tail = chain.last;
		commit(&c->head, chain.first);
	}
}

static void put_front(copy *c, struct percpu_task *task)
{
	if (!c->head) {
		put_back(c, (struct chain){ task, task, 1 });
		return;
	}
	task->next = c->head;
	task->place = c->head->place - 1;
	hint(&c->first, task->place);
	commit(&c->head, task);
}

/* The first @count, or all if there are no more. */
static struct chain take_front(copy *c, uint64_t count)
{
	struct chain chain = { c->head, c->head, length_of(c) };

	if (!chain.count || !count)
		return (struct chain){ NULL, NULL, 0 };
	if (count >= chain.count) {
		chain.last = c->tail;
		hint(&c->first, chain.last->place + 1);
		commit(&c->head, NULL);
		return chain;
	}
	chain.count = count;
	while (--count)
		chain.last = chain.last->next;
	hint(&c->first, chain.last->place + 1);
	commit(&c->head, chain.last->next);
	return chain;
}

/* All but the first @keep. */
static struct chain take_back(copy *c, uint64_t keep)
{
	struct chain chain = { NULL, c->tail, length_of(c) - keep };
	struct percpu_task *last = c->head;

	while (--keep)
		last = last->next;
	chain.first = last->next;
	hint(&c->last, last->place);
	commit(&c->tail, last);
	return chain;
}

/* What is in the inbox, oldest first. Needs no gate: it is never taken but as a whole, so nobody follows its links. */
static struct chain take_inbox(copy *c)
{
	struct chain chain = { NULL, NULL, 0 };
	struct percpu_task *task = __atomic_load_n(&c->inbox, __ATOMIC_RELAXED);

	/* Acquires what the pushers wrote: pairs with the release in percpu_runqueue_push_to(). */
	if (task)
		task = __atomic_exchange_n(&c->inbox, NULL, __ATOMIC_ACQ_REL);
	chain.last = task;
	while (task) {
		struct percpu_task *older = task->next;

		task->next = chain.first;
		chain.first = task;
		chain.count++;
		task = older;
	}
	if (chain.count)
		hint(&c->arrived, 0);
	return chain;
}

/* Under the gate. */
static void empty_inbox(copy *c)
{
	struct chain chain = take_inbox(c);

	if (chain.count)
		put_back(c, chain);
}

static struct chain take_half(copy *c)
{
	uint64_t length;

	empty_inbox(c);
	length = length_of(c);
	if (length > (size_t)2 * PERCPU_RUNQUEUE_STEAL_MAX)
		return take_front(c, PERCPU_RUNQUEUE_STEAL_MAX);
	return length < 2 ? take_front(c, 1) : take_back(c, length / 2);
}

static copy *copy_at(const struct percpu_runqueue *rq, unsigned index)
{
	return percpu_ptr(rq->copies, index);
}

/* The own copy's. */

static int try_push(struct percpu__task *task)
{
	struct request *r = (struct request *)(void *)task;

	(void)r;
	return r->front ? PERCPU__TRY(percpu__try_runqueue_push_front(r->rq, r->node))
			: PERCPU__TRY(percpu__try_runqueue_push(r->rq, r->node));
}

static int push_plainly(struct percpu__task *task, unsigned index)
{
	struct request *r = (struct request *)(void *)task;

	if (r->front)
		put_front(copy_at(r->rq, index), r->node);
	else
		put_back(copy_at(r->rq, index), (struct chain){ r->node, r->node, 1 });
	return PERCPU__DONE;
}

static int try_pop(struct percpu__task *task)
{
	struct request *r = (struct request *)(void *)task;
	uintptr_t word = r->no_section ? PERCPU__LEFT_WORD : PERCPU__TRY_WORD(percpu__try_runqueue_pop(r->rq));

	if (word == PERCPU__LEFT_WORD)
		return PERCPU__LEFT;
	r->arrived = word == PERCPU__ARRIVED_WORD;
	r->node = r->arrived ? NULL : (struct percpu_task *)word;
	return PERCPU__DONE;
}

static int pop_plainly(struct percpu__task *task, unsigned index)
{
	struct request *r = (struct request *)(void *)task;

	r->arrived = false;
	empty_inbox(copy_at(r->rq, index));
	r->node = take_front(copy_at(r->rq, index), 1).first;
	return PERCPU__DONE;
}

/*
 * For pushes other than by a section. Pairs with the barriers of percpu_runqueue_wait(): either it sees the task, or this sees that
 * it waits. A fence reaches running threads, but there may be none in mode none.
 */
static void pushed(struct percpu_runqueue *rq)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	percpu__runqueue_pushed(rq);
}

void percpu__slow_runqueue_push(struct percpu_runqueue *rq, struct percpu_task *task, bool front)
{
	struct request request = {
		.task = { .attempt = try_push, .plainly = push_plainly, .object = rq->copies, .by = PERCPU__BY_ID },
		.rq = rq,
		.node = task,
		.front = front
	};

	percpu__slow_task(&request.task);
	pushed(rq);
}

/* One instance of the section, for the tests to reach. */
static __attribute__((noinline)) void push_all(struct percpu_runqueue *rq, struct chain chain)
{
	while (chain.count--) {
		struct percpu_task *task = chain.first;

		chain.first = task->next;
		percpu_runqueue_push(rq, task);
	}
}

uintptr_t percpu__slow_runqueue_pop(struct percpu_runqueue *rq)
{
	struct request request = {
		.task = { .attempt = try_pop, .plainly = pop_plainly, .object = rq->copies, .by = PERCPU__BY_ID },
		.rq = rq
	};

	for (unsigned i = 0;; i++) {
		/* Who is faster than we are with filling the inbox cannot be so under the gate. */
		request.no_section = i == PERCPU_ABORT_BUDGET;
		percpu__slow_task(&request.task);
		if (!request.arrived)
			return (uintptr_t)request.node;
		push_all(rq, take_inbox(copy_at(rq, percpu__usual_index(PERCPU__BY_ID))));
	}
}

/* Other copies'. */

static struct percpu_gate gate_at(const struct percpu_runqueue *rq, unsigned index)
{
	return (struct percpu_gate){ .base = percpu__base_of(rq->copies), .index = index, .kinds = PERCPU__KIND_ID };
}

/* The remainder's index is the highest: by index is in lock order. */
static int lock_two(const struct percpu_runqueue *rq, unsigned a, unsigned b, struct percpu_gate gates[2])
{
	gates[0] = gate_at(rq, a < b ? a : b);
	gates[1] = gate_at(rq, a < b ? b : a);
	return percpu__gates_lock(gates, 2, true);
}

int percpu_runqueue_push_to(struct percpu_runqueue *rq, unsigned index, struct percpu_task *task)
{
	uint64_t saved = 0;
	unsigned failed = 0;
	copy *c;

	if (!rq || !task || index > percpu__remainder)
		return -EINVAL;
	c = copy_at(rq, index);
	task->next = __atomic_load_n(&c->inbox, __ATOMIC_RELAXED);
	/*
	 * SEQ_CST, as the load below: a waiter whose count that does not see has not looked into this inbox yet, see
	 * percpu_runqueue_wait(). A release too, for who takes the task out.
	 */
	while (!__atomic_compare_exchange_n(&c->inbox, &task->next, task, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		/* Another thread was faster; or this one's own signal handlers, again and again. */
		if (++failed == PERCPU_ABORT_BUDGET)
			percpu__block_signals(&saved);
	if (failed >= PERCPU_ABORT_BUDGET)
		percpu__restore_signals(&saved);
	/* Wrong if two do so at once, until the inbox is next emptied: not worth an atomic instruction. */
	hint(&c->arrived, __atomic_load_n(&c->arrived, __ATOMIC_RELAXED) + 1);
	if (__atomic_load_n(&rq->idlers, __ATOMIC_SEQ_CST))
		percpu__runqueue_notify(rq);
	return 0;
}

static int pop_from(struct percpu_runqueue *rq, unsigned index, struct percpu_task **out)
{
	struct percpu_gate gate = gate_at(rq, index);
	int rc = percpu__gates_lock(&gate, 1, false);

	if (rc)
		return rc;
	empty_inbox(copy_at(rq, index));
	*out = take_front(copy_at(rq, index), 1).first;
	percpu__gates_unlock(&gate, 1, false);
	return 0;
}

int percpu_runqueue_steal(struct percpu_runqueue *rq, unsigned victim, struct percpu_task **out)
{
	struct percpu_gate gates[2];
	struct chain chain;
	unsigned own;
	int rc;

	if (!rq || !out || victim > percpu__remainder)
		return -EINVAL;
	if (!head_of(copy_at(rq, victim))) {
		chain = take_inbox(copy_at(rq, victim));
		*out = chain.first;
		if (chain.count > 1)
			push_all(rq, (struct chain){ chain.first->next, chain.last, chain.count - 1 });
		return 0;
	}
	percpu__thread_start();
	own = percpu__usual_index(PERCPU__BY_ID);
	if (own == victim)
		return pop_from(rq, victim, out);
	rc = lock_two(rq, victim, own, gates);
	if (rc)
		return rc;
	chain = take_half(copy_at(rq, victim));
	*out = chain.first;
	if (chain.count > 1)
		put_back(copy_at(rq, own), (struct chain){ chain.first->next, chain.last, chain.count - 1 });
	percpu__gates_unlock(gates, 2, true);
	if (chain.count > 1)
		pushed(rq);
	return 0;
}

int percpu_runqueue_steal_any(struct percpu_runqueue *rq, struct percpu_task **out)
{
	unsigned start, victim = 0;
	size_t longest = 0;

	if (!rq || !out)
		return -EINVAL;
	percpu__thread_start();
	start = percpu__usual_index(PERCPU__BY_ID);
	for (unsigned i = 1; i <= percpu__remainder + 1; i++) {
		unsigned index = (start + i) % (percpu__remainder + 1);
		size_t length = percpu_runqueue_length(rq, index);

		if (length > longest) {
			longest = length;
			victim = index;
		}
	}
	if (longest)
		return percpu_runqueue_steal(rq, victim, out);
	*out = NULL;
	return 0;
}

int percpu_runqueue_migrate(struct percpu_runqueue *rq, unsigned from, unsigned to, size_t most, size_t *moved)
{
	struct percpu_gate gates[2];
	size_t done = 0, before;
	int rc = 0;

	if (!rq || from == to || from > percpu__remainder || to > percpu__remainder)
		return -EINVAL;
	do {
		size_t more = most - done < PERCPU_RUNQUEUE_STEAL_MAX ? most - done : PERCPU_RUNQUEUE_STEAL_MAX;
		struct chain chain;

		before = done;
		if (!more || !has_task(copy_at(rq, from)))
			break;
		rc = lock_two(rq, from, to, gates);
		if (rc)
			break;
		empty_inbox(copy_at(rq, from));
		chain = take_front(copy_at(rq, from), more);
		if (chain.count)
			put_back(copy_at(rq, to), chain);
		percpu__gates_unlock(gates, 2, true);
		done += chain.count;
	} while (done - before == PERCPU_RUNQUEUE_STEAL_MAX);
	if (done)
		pushed(rq);
	if (moved)
		*moved = done;
	return rc;
}

size_t percpu_runqueue_length(const struct percpu_runqueue *rq, unsigned index)
{
	const copy *c;
	int64_t length, arrived;

	if (!rq || index > percpu__remainder)
		return 0;
	c = copy_at(rq, index);
	/* It may change between the loads. */
	length = (int64_t)(__atomic_load_n(&c->last, __ATOMIC_RELAXED) - __atomic_load_n(&c->first, __ATOMIC_RELAXED)) +
		 1;
	length = !head_of(c) ? 0 : length < 1 ? 1 : length;
	arrived = (int64_t)__atomic_load_n(&c->arrived, __ATOMIC_RELAXED);
	arrived = !__atomic_load_n(&c->inbox, __ATOMIC_RELAXED) ? 0 : arrived < 1 ? 1 : arrived;
	return (size_t)(length + arrived);
}

int percpu_runqueue_init(struct percpu_runqueue *rq)
{
	copy *copies;

	if (!rq)
		return -EINVAL;
	/* Two lines, which a prefetcher of pairs must not join with another object's. */
	copies = percpu_alloc(sizeof *copies, 128);
	if (!copies)
		return -ENOMEM;
	*rq = (struct percpu_runqueue){ .copies = copies };
	return 0;
}

void percpu_runqueue_destroy(struct percpu_runqueue *rq)
{
	if (!rq)
		return;
	percpu_free(rq->copies);
	rq->copies = NULL;
}

/*
 * Waiting. `idlers` counts the threads inside percpu_runqueue_wait(), `wakes` the returns granted to them. A grant is added
 * before somebody is woken, and nobody falls asleep while there is one; so each is used by a thread that looks for work
 * after it was granted, and a push that finds as many grants as waiters need not add another.
 */
void percpu_runqueue_wake(struct percpu_runqueue *rq, unsigned count)
{
	if (!rq || !count)
		return;
	__atomic_fetch_add(&rq->wakes, count, __ATOMIC_SEQ_CST);
	percpu__futex_wake(&rq->wakes, count < INT_MAX ? (int)count : INT_MAX, ~0U);
}

void percpu__runqueue_notify(struct percpu_runqueue *rq)
{
	uint32_t seen = __atomic_load_n(&rq->wakes, __ATOMIC_SEQ_CST);

	while (seen < __atomic_load_n(&rq->idlers, __ATOMIC_SEQ_CST)) {
		if (__atomic_compare_exchange_n(&rq->wakes, &seen, seen + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
			percpu__futex_wake(&rq->wakes, 1, ~0U);
			return;
		}
	}
}

static void use_grant(struct percpu_runqueue *rq)
{
	uint32_t seen = __atomic_load_n(&rq->wakes, __ATOMIC_RELAXED);

	while (seen && !__atomic_compare_exchange_n(&rq->wakes, &seen, seen - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
}

static bool any_task(const struct percpu_runqueue *rq)
{
	percpu_for_each_index(index)
		if (has_task(copy_at(rq, index)))
			return true;
	return false;
}

/* By the system call: the C library's function starts over when the time changes meanwhile, for ever under a debugger. */
static int64_t now_ns(void)
{
	struct timespec now = { 0, 0 };

	percpu__sys4(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now, 0, 0);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Sleeps while nothing is granted; @end is of the monotonic clock. */
static long sleep_until(uint32_t *wakes, int64_t end)
{
	struct timespec at = { (time_t)(end / 1000000000), (long)(end % 1000000000) };

	return percpu__sys6(SYS_futex, (long)wakes, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, 0,
			    end == INT64_MAX ? 0 : (long)&at, 0, 0xffffffffL);
}

int percpu_runqueue_wait(struct percpu_runqueue *rq, int64_t timeout_ns)
{
	int64_t end = INT64_MAX;
	bool polls;
	long rc;

	if (!rq)
		return -EINVAL;
	if (timeout_ns >= 0) {
		end = now_ns();
		end = timeout_ns < INT64_MAX - end ? end + timeout_ns : INT64_MAX;
	}
	__atomic_fetch_add(&rq->idlers, 1, __ATOMIC_SEQ_CST);
	/*
	 * Pairs with the load of `idlers` behind each push: a section that committed before the fence is seen below, one that
	 * commits afterwards sees this waiter. In mode none the fence is nothing, and the barrier pairs with that in pushed().
	 */
	polls = percpu_fence() != 0;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (;;) {
		int64_t until = end;

		if (any_task(rq)) {
			rc = 0;
			break;
		}
		if (polls) {
			until = now_ns() + POLL_NS;
			until = until < end ? until : end;
		}
		rc = sleep_until(&rq->wakes, until);
		if (rc == -ETIMEDOUT && until != end)
			continue;
		if (rc == -ETIMEDOUT || rc == -EINTR)
			break;
		/* Woken, or there was a grant before it fell asleep. */
		rc = 0;
		use_grant(rq);
		break;
	}
	/* Last: who comes now must not find a grant and no waiter left to use it, and then see it used after all. */
	__atomic_fetch_sub(&rq->idlers, 1, __ATOMIC_SEQ_CST);
	return (int)rc;
}
