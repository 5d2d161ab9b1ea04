/* SPDX-License-Identifier: MIT */
/* What rings of pointers and rings of records share. */
#ifndef PERCPU_SRC_RING_H
#define PERCPU_SRC_RING_H

#include <percpu/record_ring.h>

#include "gate/gate.h"

_Static_assert(sizeof(struct percpu__ring_copy) == 256, "PERCPU__RING_DATA");
_Static_assert(offsetof(struct percpu__ring_copy, head) % 16 == 0, "head and lost are swapped as a pair");

/* A producer's operation on its way through the slow path. */
struct percpu__ring_task {
	struct percpu__task task;
	struct percpu_ring *ring;
	int (*section)(const struct percpu__ring_task *task);                  /* once; looks at the head */
	void (*fill)(const struct percpu__ring_task *task, unsigned char *at); /* the same with plain stores */
	size_t size;                                                           /* bytes that it takes */
	uint64_t word;                                                         /* the entry, or a record's header */
	const void *data;
	size_t length;
};

/* Sets the first field of the task. Returns 0 or -ENOBUFS. */
PERCPU_HIDDEN int percpu__ring_produce(struct percpu__ring_task *task);
/* @most: bytes of the longest record, 0 for pointers. */
PERCPU_HIDDEN int percpu__ring_init(struct percpu_ring *ring, size_t bytes, size_t slack, size_t most, unsigned flags);

static inline struct percpu__ring_copy *percpu__ring_copy_of(const struct percpu_ring *ring, unsigned index)
{
	return percpu_ptr((struct percpu__ring_copy *)ring->copies, index);
}

static inline unsigned char *percpu__ring_at(const struct percpu_ring *ring, struct percpu__ring_copy *copy,
					     uint64_t position)
{
	return (unsigned char *)(copy + 1) + (position & ring->mask);
}

/* What the consumers of one copy know of it at one moment. */
struct percpu__ring_view {
	uint64_t head, tail, lost;
};

/* The tail is read last, so it is never before the head. Its acquire pairs with the release of commits. */
static inline struct percpu__ring_view percpu__ring_look(struct percpu__ring_copy *copy)
{
	struct percpu__ring_view view;

	view.head = __atomic_load_n(&copy->head, __ATOMIC_ACQUIRE);
	view.lost = __atomic_load_n(&copy->lost, __ATOMIC_RELAXED);
	view.tail = __atomic_load_n(&copy->tail, __ATOMIC_ACQUIRE);
	return view;
}

/*
 * Takes what lies before `to`, if nobody has taken or dropped any of it meanwhile; so what was copied is right, and so is
 * `lost`, which changes only together with the head. The release keeps the copying before the swap: it pairs with the
 * acquire of the head by whoever computes a limit from it, behind which slots are written again.
 */
static inline bool percpu__ring_take(const struct percpu_ring *ring, struct percpu__ring_copy *copy,
				     struct percpu__ring_view view, uint64_t to)
{
	if (ring->alone) {
		__atomic_store_n(&copy->head, to, __ATOMIC_RELEASE);
		return true;
	}
	return __atomic_compare_exchange_n(&copy->head, &view.head, to, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

/*
 * A consumer's patience. Producers of a full copy that drop faster than a consumer copies make it begin again and again:
 * so it takes less each time, and at last the copy's gate. Then only producers that had begun to drop before go on doing
 * so, once each.
 */
struct percpu__ring_patience {
	struct percpu_gate gate;
	unsigned tries;
	bool held;
};

static inline void percpu__ring_again(struct percpu__ring_patience *patience, const struct percpu_ring *ring,
				      unsigned index)
{
	if (patience->tries < 16)
		patience->tries++;
	if (patience->tries < 6 || patience->held || !ring->batch)
		return;
	patience->gate =
		(struct percpu_gate){ .base = percpu__base_of(ring->copies), .index = index, .kinds = PERCPU__KIND_ID };
	/* If it is refused there is nothing left but to try on: others make progress whenever we fail. */
	patience->held = percpu__gates_lock(&patience->gate, 1, false) == 0;
}

static inline void percpu__ring_enough(struct percpu__ring_patience *patience)
{
	if (patience->held)
		percpu__gates_unlock(&patience->gate, 1, false);
}

/* The copy that a consumer looks at first, and the ones behind it. */
static inline unsigned percpu__ring_next(const struct percpu_ring *ring)
{
	uint32_t next = __atomic_load_n(&ring->next, __ATOMIC_RELAXED);

	return next <= percpu__remainder ? next : 0;
}

static inline void percpu__ring_came_from(struct percpu_ring *ring, unsigned index)
{
	uint32_t next = index < percpu__remainder ? index + 1 : 0;

	if (__atomic_load_n(&ring->next, __ATOMIC_RELAXED) != next)
		__atomic_store_n(&ring->next, next, __ATOMIC_RELAXED);
}

#endif
