/* SPDX-License-Identifier: MIT */
/*
 * The slow path: what an operation does when its section left.
 *
 * A thread at its first operation registers and tries again. A registered one tries a few times more (each abort was
 * somebody's turn on this CPU, or a debugger), waits for its copy's gate if that is closed, and at last takes the gate of
 * its current copy and does the same work with plain loads and stores. A thread that is not registered works on the
 * remainder, where no section ever runs: its gate is a lock, and nobody is fenced. So does one that cannot fence any more.
 * In mode none any copy will do.
 */
#include <string.h>

#include <percpu/ops.h>

#include "gate/gate.h"
#include "rseq/thread.h"

#ifdef PERCPU_NO_SECTIONS
#define TRY(call)      PERCPU__LEFT
#define TRY_WORD(call) PERCPU__LEFT_WORD
#else
#define TRY(call)      (call)
#define TRY_WORD(call) (call)
#endif

/* The library's own instance of each section. */
static int try_section(struct percpu__task *task)
{
	struct percpu__request *r = (struct percpu__request *)(void *)task;
	enum percpu__by by = (enum percpu__by)task->by;
	enum percpu__order order = (enum percpu__order)r->order;

	(void)by, (void)order;
	switch ((enum percpu__section)r->section) {
	case PERCPU__ADD:
		return TRY(percpu__try_add(task->object, r->desired, by, order));
	case PERCPU__ADD_OFFSET:
		return TRY(percpu__try_add_offset(task->object, r->second, r->desired, by, order));
	case PERCPU__STORE_EQ:
		return TRY(percpu__try_store_if_eq(task->object, r->expected, r->desired, by, order));
	case PERCPU__STORE_EQ2:
		return TRY(percpu__try_store_if_eq2(task->object, r->expected, r->second, r->expected2, r->desired, by,
						    order));
	case PERCPU__COPY:
		return TRY(percpu__try_copy_store(task->object, r->expected, r->dst, r->second, r->len, r->desired, by,
						  order));
	case PERCPU__PUSH_LINK:
		return TRY(percpu__try_push(task->object, r->desired, r->dst, by, order));
	case PERCPU__FOLLOW_NE:
		r->out = TRY_WORD(percpu__try_follow(task->object, r->expected, (ptrdiff_t)r->len, by, order));
		return r->out == PERCPU__LEFT_WORD ? PERCPU__LEFT : PERCPU__DONE;
	}
	return PERCPU__DONE;
}

/* The same on one copy, whose gate the caller holds. */
static int do_plainly(struct percpu__task *task, unsigned index)
{
	struct percpu__request *r = (struct percpu__request *)(void *)task;
	uint64_t *object = percpu_ptr((uint64_t *)task->object, index);

	switch ((enum percpu__section)r->section) {
	case PERCPU__ADD:
		__atomic_store_n(object, *object + r->desired, __ATOMIC_RELEASE);
		break;
	case PERCPU__ADD_OFFSET:
		object = (uint64_t *)(void *)((char *)object + *(const volatile ptrdiff_t *)r->second);
		__atomic_store_n(object, *object + r->desired, __ATOMIC_RELEASE);
		break;
	case PERCPU__STORE_EQ2:
		if (*percpu_ptr((const uint64_t *)r->second, index) != r->expected2)
			return PERCPU__DIFFERS;
		__attribute__((fallthrough));
	case PERCPU__STORE_EQ:
	case PERCPU__COPY:
		if (*object != r->expected)
			return PERCPU__DIFFERS;
		if (r->section == PERCPU__COPY)
			memcpy(percpu_ptr((char *)r->dst, index), r->second, r->len);
		__atomic_store_n(object, r->desired, __ATOMIC_RELEASE);
		break;
	case PERCPU__PUSH_LINK:
		*(uint64_t *)r->dst = *object;
		__atomic_store_n(object, r->desired, __ATOMIC_RELEASE);
		break;
	case PERCPU__FOLLOW_NE:
		r->out = *object;
		if (r->out != r->expected)
			__atomic_store_n(object, *(uint64_t *)(r->out + r->len), __ATOMIC_RELEASE);
		break;
	}
	return PERCPU__DONE;
}

bool percpu__runs_sections(void)
{
	return percpu__thread_start() && percpu__self != &percpu__newcomer;
}

/* The copy that a registered thread is on, wherever percpu__self leads. */
unsigned percpu__current_index(unsigned by)
{
	const char *area = (const char *)percpu__true_area();
	size_t offset = by == PERCPU__BY_CPU ? offsetof(struct percpu__rseq, cpu_id) : percpu__index_offset;
	uint32_t index = *(const volatile uint32_t *)(const void *)(area + offset);

	return index <= percpu__remainder ? index : percpu__remainder;
}

unsigned percpu__usual_index(unsigned by)
{
	const struct percpu__private *me = &percpu__private;

	if (percpu__mode() == PERCPU_MODE_NONE)
		return me->spread;
	if (me->state == PERCPU__REGISTERED && (percpu__self != &percpu__newcomer || me->force == PERCPU__FORCE_GATE))
		return percpu__current_index(by);
	return percpu__remainder;
}

static int under_gate(struct percpu__task *task)
{
	struct percpu_gate gate = { .base = percpu__base_of(task->object), .kinds = percpu__kind(task->by) };
	int rc;

	if (percpu__mode() == PERCPU_MODE_NONE) {
		percpu__gate_lock_any(&gate);
		rc = task->plainly(task, gate.index);
		percpu__gate_unlock_any(&gate);
		return rc;
	}
	gate.index = percpu__usual_index(task->by);
	/* Who cannot fence any more goes to the remainder too, which needs none. */
	if (gate.index == percpu__remainder || percpu__gates_lock(&gate, 1, false))
		percpu__gate_lock_remainder(&gate);
	rc = task->plainly(task, gate.index);
	percpu__gates_unlock(&gate, 1, false);
	return rc;
}

int percpu__slow_task(struct percpu__task *task)
{
	int rc;

	if (!percpu__runs_sections())
		return under_gate(task);
	for (int i = 0; i < PERCPU_ABORT_BUDGET; i++) {
		struct percpu__header *header =
			percpu__header_of(percpu__base_of(task->object), percpu__current_index(task->by));

		rc = task->attempt(task);
		if (rc != PERCPU__LEFT)
			return rc;
		percpu__gate_wait_open(task->by == PERCPU__BY_CPU ? &header->by_cpu : &header->by_id);
	}
	return under_gate(task);
}

static int run(struct percpu__request *request)
{
	request->task.attempt = try_section;
	request->task.plainly = do_plainly;
	return percpu__slow_task(&request->task);
}

void percpu__slow_add(uint64_t *p, uint64_t n, enum percpu__by by, enum percpu__order order)
{
	run(&(struct percpu__request){ .section = PERCPU__ADD,
				       .task = { .object = p, .by = (unsigned char)by },
				       .order = (unsigned char)order,
				       .desired = n });
}

void percpu__slow_count(uint64_t *p, uint64_t n, enum percpu__by by)
{
	unsigned index = percpu__remainder;

	if (percpu__runs_sections()) {
		for (int i = 0; i < PERCPU_ABORT_BUDGET; i++)
			if (TRY(percpu__try_count(p, n, by)) == PERCPU__DONE)
				return;
	} else if (percpu__mode() == PERCPU_MODE_NONE && by == PERCPU__BY_ID) {
		/* No section runs in this process. (Data by CPU number may be shared with one where they do.) */
		index = percpu__private.spread;
	}
	__atomic_fetch_add(percpu_ptr(p, index), n, __ATOMIC_RELAXED);
}

void percpu__slow_add_offset(uint64_t *p, const ptrdiff_t *offset, uint64_t n, enum percpu__by by,
			     enum percpu__order order)
{
	run(&(struct percpu__request){ .section = PERCPU__ADD_OFFSET,
				       .task = { .object = p, .by = (unsigned char)by },
				       .order = (unsigned char)order,
				       .second = offset,
				       .desired = n });
}

int percpu__slow_store_if_eq(uint64_t *p, uint64_t expected, uint64_t desired, enum percpu__by by,
			     enum percpu__order order)
{
	return run(&(struct percpu__request){ .section = PERCPU__STORE_EQ,
					      .task = { .object = p, .by = (unsigned char)by },
					      .order = (unsigned char)order,
					      .expected = expected,
					      .desired = desired });
}

int percpu__slow_store_if_eq2(uint64_t *p, uint64_t expected, const uint64_t *q, uint64_t expected2, uint64_t desired,
			      enum percpu__by by, enum percpu__order order)
{
	return run(&(struct percpu__request){ .section = PERCPU__STORE_EQ2,
					      .task = { .object = p, .by = (unsigned char)by },
					      .order = (unsigned char)order,
					      .expected = expected,
					      .second = q,
					      .expected2 = expected2,
					      .desired = desired });
}

int percpu__slow_copy_store(uint64_t *p, uint64_t expected, void *dst, const void *src, size_t len, uint64_t desired,
			    enum percpu__by by, enum percpu__order order)
{
	return run(&(struct percpu__request){ .section = PERCPU__COPY,
					      .task = { .object = p, .by = (unsigned char)by },
					      .order = (unsigned char)order,
					      .expected = expected,
					      .dst = dst,
					      .second = src,
					      .len = len,
					      .desired = desired });
}

uintptr_t percpu__slow_follow(uintptr_t *p, uintptr_t nil, ptrdiff_t offset, enum percpu__by by,
			      enum percpu__order order)
{
	struct percpu__request request = { .section = PERCPU__FOLLOW_NE,
					   .task = { .object = p, .by = (unsigned char)by },
					   .order = (unsigned char)order,
					   .expected = nil,
					   .len = (size_t)offset };

	run(&request);
	return request.out;
}

void percpu__slow_push(uintptr_t *p, uintptr_t word, uintptr_t *link, enum percpu__by by, enum percpu__order order)
{
	run(&(struct percpu__request){ .section = PERCPU__PUSH_LINK,
				       .task = { .object = p, .by = (unsigned char)by },
				       .order = (unsigned char)order,
				       .desired = word,
				       .dst = link });
}
