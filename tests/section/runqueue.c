/* SPDX-License-Identifier: MIT */
/*
 * Run queues: the sections, interrupted at every instruction, and (FOR_SLOWPATH) everything that takes gates, with a
 * handler at every instruction. After each round every task is in exactly one place, and each queue is numbered without a
 * gap.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <percpu/runqueue.h>

#include "harness.h"

#define NOINLINE static __attribute__((noinline))

#define MOST_TASKS 70000
#define LENGTH     5 /* of each queue at the start of most cases */

struct work {
	struct percpu_task link;
	enum { QUEUED, TAKEN, FREE } is; /* as the operations' results say */
};

static struct percpu_runqueue rq;
static struct work works[MOST_TASKS];
static size_t used;
static unsigned which;
static const char *trouble;

enum act { POP, PUSH, PUSH_FRONT, PUSH_TO, STEAL };
/* What rivals do, and how long each queue and inbox is before. */
static const struct {
	enum act act;
	unsigned length, inbox;
} cases[] = {
	{ POP, LENGTH, 0 },   { PUSH_TO, 2, 2 },    { PUSH, LENGTH, 0 }, { PUSH, 0, 0 },  { PUSH_FRONT, 1, 0 },
	{ PUSH_FRONT, 0, 0 }, { STEAL, LENGTH, 0 }, { POP, 1, 0 },       { STEAL, 2, 0 }, { PUSH_TO, 0, 0 },
	{ STEAL, 0, 3 },      { POP, 0, 1 },        { STEAL, 2, 2 },
};
#define CASES (sizeof cases / sizeof *cases)

static struct work *new_work(int is)
{
	struct work *work;

	if (used == MOST_TASKS)
		_exit(8);
	work = &works[used++];
	memset(work, 0x5a, sizeof *work);
	work->is = is;
	return work;
}

/* Somebody has it now: its links are nobody's any more. */
static void took(struct percpu_task *task)
{
	struct work *work = (struct work *)(void *)task;

	if (!task)
		return;
	if (work < works || work >= works + used || work->is == TAKEN) {
		trouble = "an operation gave what was not there to be taken";
		return;
	}
	memset(&work->link, 0xa5, sizeof work->link);
	work->is = TAKEN;
}

static void setup(unsigned number, struct call *c)
{
	which = number;
	used = 0;
	trouble = NULL;
	if (!rq.copies && percpu_runqueue_init(&rq))
		_exit(9);
	percpu_for_each_index(i) {
		struct percpu__runqueue_copy *copy = percpu_ptr(rq.copies, i);

		memset(copy, 0, sizeof *copy);
		for (unsigned k = 0; k < cases[number].length; k++) {
			struct percpu_task *task = &new_work(QUEUED)->link;

			task->place = k;
			task->next = NULL;
			if (k)
				copy->tail->next = task;
			else
				copy->head = task;
			copy->tail = task;
			copy->last = k;
		}
		for (unsigned k = 0; k < cases[number].inbox; k++) {
			struct percpu_task *task = &new_work(QUEUED)->link;

			task->next = copy->inbox;
			copy->inbox = task;
			copy->arrived++;
		}
	}
	c->p = (uint64_t *)(void *)rq.copies;
	c->first = (uintptr_t)&new_work(FREE)->link;
}

/* As another thread's section would. */
static void plainly(enum act act, unsigned index)
{
	struct percpu__runqueue_copy *copy = percpu_ptr(rq.copies, index);
	struct percpu_task *task = copy->head;

	switch (act) {
	case POP:
		if (!task)
			return;
		copy->first = task->place + 1;
		copy->head = task == copy->tail ? NULL : task->next;
		took(task);
		break;
	case STEAL:
		for (; task; task = copy->head)
			plainly(POP, index);
		break;
	case PUSH_TO:
		percpu_runqueue_push_to(&rq, index, &new_work(QUEUED)->link);
		break;
	default:
		task = &new_work(QUEUED)->link;
		if (!copy->head) {
			copy->last = task->place = copy->first;
			copy->tail = task;
			copy->head = task;
		} else if (act == PUSH) {
			copy->last = task->place = copy->tail->place + 1;
			copy->tail->next = task;
			copy->tail = task;
		} else {
			copy->first = task->place = copy->head->place - 1;
			task->next = copy->head;
			copy->head = task;
		}
	}
}

/* The gate may be held by what a handler interrupted: then nothing happened. */
static void check_rc(int rc)
{
	if (rc && rc != -EDEADLK)
		trouble = "an operation of the rival failed";
}

static void by_another_index(enum act act, unsigned index)
{
	struct percpu_task *task = NULL;

	switch (act) {
	case POP:
		check_rc(percpu_runqueue_migrate(&rq, index, index ? 0 : percpu_copies() - 1, 1, NULL));
		break;
	case STEAL:
		check_rc(percpu_runqueue_steal(&rq, index, &task));
		took(task);
		break;
	default:
		check_rc(percpu_runqueue_push_to(&rq, index, &new_work(QUEUED)->link));
	}
}

static void publicly(enum act act)
{
	struct percpu_task *task = NULL;

	switch (act) {
	case POP:
		took(percpu_runqueue_pop(&rq));
		break;
	case STEAL:
		check_rc(percpu_runqueue_steal_any(&rq, &task));
		took(task);
		break;
	case PUSH_TO:
		percpu_runqueue_push_to(&rq, 0, &new_work(QUEUED)->link);
		break;
	case PUSH:
		percpu_runqueue_push(&rq, &new_work(QUEUED)->link);
		break;
	default:
		percpu_runqueue_push_front(&rq, &new_work(QUEUED)->link);
	}
}

static void interfere(enum interference how, unsigned index)
{
	struct percpu_gate gate;

	switch (how) {
	case PLAINLY:
		plainly(cases[which].act, index);
		break;
	case BY_VECTOR:
		by_another_index(cases[which].act, index);
		break;
	case UNDER_GATE:
		check_rc(percpu_gate_lock(rq.copies, index, &gate));
		harness_held();
		plainly(cases[which].act, index);
		percpu_gate_unlock(&gate);
		break;
	default:
		publicly(cases[which].act);
	}
	control->changes++;
}

/* Notes that it was met; NULL or what is wrong. */
static const char *meet(struct percpu_task *task, bool *seen)
{
	struct work *work = (struct work *)(void *)task;

	if (work < works || work >= works + used)
		return "a queue leads astray";
	if (seen[work - works])
		return "a task is in two places";
	seen[work - works] = true;
	if (work->is == TAKEN)
		return "a task was taken, and is still there";
	return work->is == QUEUED ? NULL : "a task was queued that must not be";
}

static const char *check_copy(unsigned index, bool *seen)
{
	struct percpu__runqueue_copy *copy = percpu_ptr(rq.copies, index);
	struct percpu_task *task = copy->head, *before = NULL;
	size_t length = 0, hint = percpu_runqueue_length(&rq, index);
	const char *wrong;

	for (; task; before = task, task = task->next, length++) {
		wrong = meet(task, seen);
		if (wrong)
			return wrong;
		if (before && task->place != before->place + 1)
			return "the numbers have a gap";
		if (task == copy->tail)
			break;
	}
	if (copy->head && !task)
		return "a queue does not end at its tail";
	length += copy->head != NULL;
	/* An aborted section may have written what it would have made true; and in an inbox they are counted roughly. */
	if (hint + 1 < length || (!copy->inbox && hint > length + 1) || (copy->inbox && !hint))
		return "the length is wrong";
	for (task = copy->inbox; task; task = task->next) {
		wrong = meet(task, seen);
		if (wrong)
			return wrong;
	}
	return NULL;
}

static const char *check_queues(void)
{
	static bool seen[MOST_TASKS];

	memset(seen, 0, used * sizeof *seen);
	percpu_for_each_index(i) {
		const char *wrong = check_copy(i, seen);

		if (wrong)
			return wrong;
	}
	for (size_t i = 0; i < used; i++)
		if (works[i].is == QUEUED && !seen[i])
			return "lost a task";
	return trouble;
}

static const char *check_pop(const struct call *c)
{
	if (c->rc == PERCPU__DONE)
		took((struct percpu_task *)c->out);
	return check_queues();
}

static const char *check_push(const struct call *c)
{
	struct work *work = (struct work *)c->first;

	/* A rival may have taken it behind the commit, and only then. */
	if (work->is == TAKEN && c->rc != PERCPU__DONE)
		return "taken, although it was not pushed";
	if (work->is == FREE && c->rc == PERCPU__DONE)
		work->is = QUEUED;
	return check_queues();
}

static const struct kind pop_kind = { CASES, setup, interfere, check_pop };
static const struct kind push_kind = { CASES, setup, interfere, check_push };

/* Operations. */

NOINLINE void push(struct call *c)
{
	percpu_runqueue_push(&rq, (struct percpu_task *)c->first);
	c->rc = PERCPU__DONE;
}

NOINLINE void push_front(struct call *c)
{
	percpu_runqueue_push_front(&rq, (struct percpu_task *)c->first);
	c->rc = PERCPU__DONE;
}

static void gave(struct call *c, struct percpu_task *task)
{
	c->out = (uintptr_t)task;
	c->rc = task ? PERCPU__DONE : PERCPU__DIFFERS;
}

NOINLINE void pop(struct call *c)
{
	gave(c, percpu_runqueue_pop(&rq));
}

#ifndef FOR_SLOWPATH
NOINLINE void try_push(struct call *c)
{
	c->rc = percpu__try_runqueue_push(&rq, (struct percpu_task *)c->first);
}

NOINLINE void try_push_front(struct call *c)
{
	c->rc = percpu__try_runqueue_push_front(&rq, (struct percpu_task *)c->first);
}

NOINLINE void try_pop(struct call *c)
{
	uintptr_t word = percpu__try_runqueue_pop(&rq);

	gave(c, word <= PERCPU__ARRIVED_WORD ? NULL : (struct percpu_task *)word);
	if (word == PERCPU__LEFT_WORD)
		c->rc = PERCPU__LEFT;
}
#else
NOINLINE void push_to(struct call *c)
{
	int rc = percpu_runqueue_push_to(&rq, 0, (struct percpu_task *)c->first);

	check_rc(rc);
	c->rc = rc ? PERCPU__LEFT : PERCPU__DONE;
}

NOINLINE void steal(struct call *c)
{
	struct percpu_task *task = NULL;

	check_rc(percpu_runqueue_steal_any(&rq, &task));
	gave(c, task);
}

NOINLINE void migrate(struct call *c)
{
	check_rc(percpu_runqueue_migrate(&rq, 0, percpu_copies() - 1, 3, NULL));
	c->rc = PERCPU__DIFFERS;
}
#endif

#define PUSH_ENTRY(name_, tries_)                                                                                      \
	{                                                                                                              \
		.name = "runqueue_" #name_, .kind = &push_kind, .run = name_, .tries = tries_                          \
	}
#define POP_ENTRY(name_, tries_)                                                                                       \
	{                                                                                                              \
		.name = "runqueue_" #name_, .kind = &pop_kind, .run = name_, .tries = tries_, .repeats = !tries_       \
	}

const struct entry entries[] = {
#ifndef FOR_SLOWPATH
	PUSH_ENTRY(try_push, true), PUSH_ENTRY(try_push_front, true), POP_ENTRY(try_pop, true),
#else
	PUSH_ENTRY(push_to, false), POP_ENTRY(steal, false),       POP_ENTRY(migrate, false),
#endif
	PUSH_ENTRY(push, false),    PUSH_ENTRY(push_front, false),    POP_ENTRY(pop, false),
};
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = false;
/* Each of three as an attempt, behind its operation, and in the library; and what empties inboxes. */
const unsigned only_sections = 10;
