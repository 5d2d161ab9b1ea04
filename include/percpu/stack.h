/* SPDX-License-Identifier: MIT */
/*
 * Stacks: an intrusive list for each index, last in, first out. The free list of an allocator, a pool of buffers.
 *
 * The link is inside the node, so nothing is allocated. Push and pop are one section each, on the calling thread's own
 * copy; ABA cannot happen, because a copy only changes by sections of the one thread that runs there, or under its gate.
 * A thread may be moved between a pop and a push: nodes wander between copies, and an empty copy does not mean that all
 * are. percpu_stack_steal() takes what another index has.
 */
#ifndef PERCPU_STACK_H
#define PERCPU_STACK_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** The link inside each node. Its contents belong to the stack while the node is in it. */
struct percpu_stack_node {
	struct percpu_stack_node *next;
};

/** A stack, in the caller's storage. Constant after init; belongs to the library. */
struct percpu_stack {
	void **head; /* per-CPU */
};

/** percpu_stack_init - make an empty stack. Returns 0, -EINVAL, -ENOMEM. May block. Async-signal-safe. */
PERCPU_API int percpu_stack_init(struct percpu_stack *stack);

/** percpu_stack_destroy - free what init allocated. Nodes still in it are forgotten. No thread may use it any more. */
PERCPU_API void percpu_stack_destroy(struct percpu_stack *stack);

/** percpu_stack_push - put a node on the current index's stack. Progress and safety as <percpu/ops.h> says. */
PERCPU__INLINE void percpu_stack_push(struct percpu_stack *stack, struct percpu_stack_node *node)
{
	percpu__push((uintptr_t *)stack->head, (uintptr_t)node, (uintptr_t *)(void *)&node->next, PERCPU__BY_ID,
		     PERCPU__RELAXED);
}

/** percpu_stack_push_chain - put a chain of nodes, linked from @first to @last, on the current index's stack, at once. */
PERCPU__INLINE void percpu_stack_push_chain(struct percpu_stack *stack, struct percpu_stack_node *first,
					    struct percpu_stack_node *last)
{
	percpu__push((uintptr_t *)stack->head, (uintptr_t)first, (uintptr_t *)(void *)&last->next, PERCPU__BY_ID,
		     PERCPU__RELAXED);
}

/** percpu_stack_pop - take the newest node off the current index's stack; NULL if it is empty. */
PERCPU__INLINE struct percpu_stack_node *percpu_stack_pop(struct percpu_stack *stack)
{
	return (struct percpu_stack_node *)percpu__pop(stack->head, offsetof(struct percpu_stack_node, next),
						       PERCPU__BY_ID, PERCPU__RELAXED);
}

/** percpu_stack_pop_all - take everything off the current index's stack: its newest node, linked to the rest, or NULL. */
PERCPU__INLINE struct percpu_stack_node *percpu_stack_pop_all(struct percpu_stack *stack)
{
	return (struct percpu_stack_node *)percpu_this_xchg((uint64_t *)(void *)stack->head, 0);
}

/**
 * percpu_stack_steal - take everything off one index's stack, while its owner runs.
 *
 * @index: 0 to percpu_copies() - 1; @out: set to the newest node, linked to the rest, or NULL if it was empty
 * Returns 0, or an error of percpu_gate_lock() (nothing is taken and @out is untouched then). Takes no gate if the copy
 * is seen to be empty. May block. Async-signal-safe but for -EDEADLK.
 */
PERCPU_API int percpu_stack_steal(struct percpu_stack *stack, unsigned index, struct percpu_stack_node **out);

/** percpu_stack_is_empty - whether one index's stack was empty at some moment. False for an index out of range. */
PERCPU_API bool percpu_stack_is_empty(const struct percpu_stack *stack, unsigned index);

PERCPU_END_DECLS

#endif
