/* SPDX-License-Identifier: MIT */
/*
 * Stacks, cold half: everything that is not the calling thread's own copy goes through that copy's gate.
 */
#include <errno.h>

#include <percpu/stack.h>

#include "gate/gate.h"
#include "rseq/thread.h"

int percpu_stack_init(struct percpu_stack *stack)
{
	void **head;

	if (!stack)
		return -EINVAL;
	head = percpu_alloc(sizeof *head, sizeof *head);
	if (!head)
		return -ENOMEM;
	stack->head = head;
	return 0;
}

void percpu_stack_destroy(struct percpu_stack *stack)
{
	if (!stack)
		return;
	percpu_free(stack->head);
	stack->head = NULL;
}

bool percpu_stack_is_empty(const struct percpu_stack *stack, unsigned index)
{
	return stack && index <= percpu__remainder &&
	       !__atomic_load_n(percpu_ptr(stack->head, index), __ATOMIC_RELAXED);
}

int percpu_stack_steal(struct percpu_stack *stack, unsigned index, struct percpu_stack_node **out)
{
	struct percpu_gate gate;
	void **head;
	int rc;

	if (!stack || !out || index > percpu__remainder)
		return -EINVAL;
	head = percpu_ptr(stack->head, index);
	if (!__atomic_load_n(head, __ATOMIC_RELAXED)) {
		*out = NULL;
		return 0;
	}
	gate = (struct percpu_gate){ .base = percpu__base_of(stack->head), .index = index, .kinds = PERCPU__KIND_ID };
	rc = percpu__gates_lock(&gate, 1, false);
	if (rc)
		return rc;
	*out = *head;
	__atomic_store_n(head, NULL, __ATOMIC_RELEASE);
	percpu__gates_unlock(&gate, 1, false);
	return 0;
}
