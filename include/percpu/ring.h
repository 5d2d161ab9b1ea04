/* SPDX-License-Identifier: MIT */
/*
 * Rings: a bounded queue of pointers for each index, filled by whoever runs there and emptied from anywhere.
 *
 * A copy is a circular buffer with two positions that only grow. The tail belongs to the producers: a section reads it,
 * writes the slot behind it, which nobody reads yet, and commits the new tail. The head belongs to the consumers, who copy
 * what lies between the two and then move the head by one compare-and-swap; if somebody else has moved it, what they
 * copied is void and they begin again. So producers neither wait for consumers nor use atomic instructions, and consumers
 * need no gate, no fence and no lock.
 *
 * A producer does not look at the head, but at a limit in the tail's cache line, below which the tail may be. The slow path
 * computes it from the head, again whenever the tail has arrived there. A consumer that goes to sleep sets all limits to 0:
 * so the next producer takes the slow path, which wakes it, and the fast one has nothing to look at but the limit.
 *
 * A full copy refuses, or (PERCPU_RING_OVERWRITE) drops its oldest entries, by the same compare-and-swap of the head, now
 * of two words, since it counts what is lost.
 *
 * Entries of one copy come out in the order in which they went in. There is no order between copies. Records of any
 * length: <percpu/record_ring.h>.
 */
#ifndef PERCPU_RING_H
#define PERCPU_RING_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** The largest capacity of a ring of pointers, in entries of one copy. */
#define PERCPU_RING_MAX 65536

/** What happens when a copy is full, and who takes entries out. */
enum percpu_ring_flags {
	PERCPU_RING_REFUSE = 0,    /**< the newest is refused */
	PERCPU_RING_OVERWRITE = 1, /**< the oldest are dropped, and counted */
	/**
	 * The caller sees to it that each copy has one consumer at a time, handlers included: with PERCPU_RING_REFUSE it
	 * then needs no atomic instruction, which makes taking a single entry cheaper.
	 */
	PERCPU_RING_ONE_CONSUMER = 2,
};

/** A ring, in the caller's storage. Fields belong to the library. */
struct percpu_ring {
	/* Constant after init, read by every push. */
	void *copies;   /* per-CPU: struct percpu__ring_copy */
	uint64_t mask;  /* bytes of a copy's buffer - 1 */
	uint32_t most;  /* bytes of the longest record; of a ring of pointers 0 */
	uint32_t batch; /* bytes that are dropped at once when full; 0: refuse */
	uint32_t alone; /* consumers need not compare when they move the head */
	int32_t event;  /* an event descriptor, or -1 */
	unsigned char apart[64];
	/* Written by consumers, and by producers that wake them. */
	uint32_t wishes; /* enum percpu__ring_wish: who wants to be woken */
	uint32_t woken;  /* how often that was done: a futex */
	uint32_t next;   /* the copy that the next consumer looks at first */
};

/* Positions count bytes, and only grow. */
struct percpu__ring_copy {
	uint64_t tail; /* behind the newest entry; written by sections, and under the gate */
	/* Behind each tail below this one fit PERCPU__RING_SHORT bytes, or one pointer. Set by sections, to 0 by consumers. */
	uint64_t limit;
	unsigned char apart[112];
	uint64_t head; /* the oldest entry; moved by compare-and-swap, from anywhere */
	uint64_t lost; /* entries that were dropped; changes together with the head */
	unsigned char apart_too[112];
	/* then the buffer: at PERCPU__RING_DATA */
};

/* Where the buffer begins, as a string of the sections: entries or headers, then a record's first words. */
#define PERCPU__RING_DATA    "256"
#define PERCPU__RING_PAYLOAD "264"
#define PERCPU__RING_SECOND  "272"
/* Where the head lies, from the tail, and from the limit. */
#define PERCPU__RING_HEAD            "128"
#define PERCPU__RING_HEAD_FROM_LIMIT "120"
/* Records up to this size need only compare the tail with the limit. */
#define PERCPU__RING_SHORT 72

enum percpu__ring_wish { PERCPU__RING_FUTEX = 1, PERCPU__RING_EVENT = 2 };

/* How far the tail may be from the head for @size bytes to fit: always so that short ones would. */
PERCPU__INLINE uint64_t percpu__ring_room(const struct percpu_ring *ring, uint64_t size)
{
	uint64_t least = ring->most ? PERCPU__RING_SHORT : sizeof(void *);

	return ring->mask + 1 - (size > least ? size : least);
}

/* clang-format off */
#define PERCPU__RING_OPERANDS(ring, bytes)                                                                             \
	PERCPU__OPERANDS((ring)->copies, PERCPU__BY_ID), [size] PERCPU__ADD_OPERAND((uint64_t)(bytes)),                \
		[mask] PERCPU__COPY_OPERAND((ring)->mask)
#define PERCPU__RING_ENTER PERCPU__ENTER PERCPU__A_RESERVE("size", "mask", "11f")
#define PERCPU__RING_ENTER_MORE PERCPU__ENTER PERCPU__A_RESERVE_MORE("size", "more", "mask", "11f")
#define PERCPU__RING_ENTER_BEHIND                                                                                      \
	PERCPU__ENTER PERCPU__A_RESERVE_BEHIND("size", PERCPU__RING_HEAD, "room", "mask", "11f")
#define PERCPU__RING_LEAVE PERCPU__A_PASS_RELEASE("size") PERCPU__LEAVE_DIFFERS
/* clang-format on */

#ifndef PERCPU_NO_SECTIONS
/*
 * Writes an entry behind the tail and moves the tail; DIFFERS if the tail is not below the limit. The commit is a release:
 * it pairs with the consumers' acquire of the tail. What the limit allows to overwrite has been read: whoever stored the
 * limit had acquired the head that consumers release.
 */
PERCPU__INLINE int percpu__try_ring_push(const struct percpu_ring *ring, void *entry)
{
	__asm__ __volatile__ goto(PERCPU__RING_ENTER PERCPU__A_PUT(PERCPU__RING_DATA, "entry") PERCPU__RING_LEAVE
				  :
				  : PERCPU__RING_OPERANDS(ring, sizeof entry), [entry] "r"(entry)
				  : "memory", PERCPU__SCRATCH_RING
				  : left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

/* The same for the slow path: looks at the head itself. */
PERCPU__INLINE int percpu__try_ring_push_behind(const struct percpu_ring *ring, void *entry)
{
	__asm__ __volatile__ goto(PERCPU__RING_ENTER_BEHIND PERCPU__A_PUT(PERCPU__RING_DATA, "entry") PERCPU__RING_LEAVE
				  :
				  : PERCPU__RING_OPERANDS(ring, sizeof entry), [entry] "r"(entry),
				    [room] PERCPU__COPY_OPERAND(percpu__ring_room(ring, sizeof entry))
				  : "memory", PERCPU__SCRATCH_RING_COPY
				  : left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

/*
 * Sets the limit to where the head allows the tail to come, unless somebody wishes to be woken. Whoever has wished, and
 * then fenced, knows that no limit is set by one who did not see the wish.
 */
PERCPU__INLINE int percpu__try_ring_open(const struct percpu_ring *ring)
{
	__asm__ __volatile__ goto(
		PERCPU__ENTER PERCPU__A_NONZERO("wishes", "11f")
			PERCPU__A_LOAD_PLUS(PERCPU__RING_HEAD_FROM_LIMIT, "room")
				PERCPU__A_STORE_T_RELEASE PERCPU__LEAVE_DIFFERS
		:
		: PERCPU__OPERANDS((char *)ring->copies + 8, PERCPU__BY_ID), [wishes] "r"(&ring->wishes),
		  [room] PERCPU__COPY_OPERAND(percpu__ring_room(ring, 0) + 1)
		: "memory", PERCPU__SCRATCH_RING
		: left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}
#endif

PERCPU_API int percpu__slow_ring_push(struct percpu_ring *ring, void *entry) PERCPU__COLD;

/**
 * percpu_ring_init - make an empty ring of pointers.
 *
 * @ring: must not lie in a cache line that is written often: every push reads it
 * @capacity: entries of each copy: a power of two, 2 to PERCPU_RING_MAX. Memory becomes real page by page on first use.
 * @flags: enum percpu_ring_flags. With PERCPU_RING_OVERWRITE a full copy drops its oldest entries, an eighth of the
 * capacity at a time (at least one entry, at most 1024): pointers that are dropped are forgotten, so they should not own
 * what they point to.
 * Returns 0; -EINVAL; -E2BIG if @capacity is too large; -ENOMEM. May block. Async-signal-safe.
 */
PERCPU_API int percpu_ring_init(struct percpu_ring *ring, size_t capacity, unsigned flags);

/**
 * percpu_ring_destroy - free what init allocated, and close the event descriptor.
 *
 * Entries still in it are forgotten. No thread may use the ring any more. NULL does nothing.
 */
PERCPU_API void percpu_ring_destroy(struct percpu_ring *ring);

/**
 * percpu_ring_push - put a pointer into the current index's copy.
 *
 * @entry: any value, NULL too
 * Returns 0, or -ENOBUFS if that copy is full and does not overwrite (others may have room).
 * Wakes a consumer that waits: then it is a system call. Progress as <percpu/ops.h> says; dropping the oldest is lock-free.
 * Async-signal-safe, correct in every mode and thread; after fork the child has a ring of its own with the same contents.
 */
PERCPU__INLINE int percpu_ring_push(struct percpu_ring *ring, void *entry)
{
	int rc = PERCPU__TRY(percpu__try_ring_push(ring, entry));

	if (PERCPU__UNLIKELY(rc != PERCPU__DONE))
		rc = percpu__slow_ring_push(ring, entry);
	return rc;
}

/**
 * percpu_ring_pop - take the oldest entries of all copies.
 *
 * @out: room for @n entries (1 to INT_MAX)
 * Copies are visited in turn, beginning behind the one where the last call ended, until @n are found. Returns how many
 * were taken, 0 if none (all copies were seen to be empty), -EINVAL. What is in @out behind them is unspecified.
 * Any number of threads may pop at the same time (but for PERCPU_RING_ONE_CONSUMER); each entry goes to one. Does not touch copies that were never
 * used. Lock-free, but that it may wait for a gate when the producers of a full copy outrun it again and again
 * (PERCPU_RING_OVERWRITE only). Async-signal-safe.
 */
PERCPU_API int percpu_ring_pop(struct percpu_ring *ring, void **out, unsigned n);

/**
 * percpu_ring_pop_index - take the oldest entries of one copy.
 *
 * @index: 0 to percpu_copies() - 1; else as percpu_ring_pop().
 */
PERCPU_API int percpu_ring_pop_index(struct percpu_ring *ring, unsigned index, void **out, unsigned n);

/**
 * percpu_ring_discard - forget all entries that one copy holds now. They are not counted as lost.
 *
 * @index: 0 to percpu_copies() - 1. Returns 0 or -EINVAL. Lock-free, async-signal-safe.
 */
PERCPU_API int percpu_ring_discard(struct percpu_ring *ring, unsigned index);

/** percpu_ring_is_empty - whether one copy was empty at some moment. False for an index out of range. Wait-free. */
PERCPU_API bool percpu_ring_is_empty(const struct percpu_ring *ring, unsigned index);

/**
 * percpu_ring_lost - how many entries were dropped since init, exactly.
 *
 * An entry is either given to one consumer, or discarded, or counted here, or still there. (Refused entries were never
 * in the ring: whoever pushes knows of them.) Wait-free, async-signal-safe. 0 for NULL.
 */
PERCPU_API uint64_t percpu_ring_lost(const struct percpu_ring *ring);

/**
 * percpu_ring_wait - sleep until there is something to take.
 *
 * @timeout_ns: nanoseconds to wait at most; 0 only looks; negative: for ever
 * Returns 0 if something is there or percpu_ring_wake_up() was called (another consumer may be faster: a pop may find
 * nothing), -ETIMEDOUT, -EINTR if a signal handler ran meanwhile, -EINVAL. Several threads may wait; all are woken.
 * If there is nothing, it costs a fence before it sleeps (percpu_fence(); where the kernel has begun to refuse that, it
 * looks again every millisecond). Do not call it from a handler: it sleeps.
 */
PERCPU_API int percpu_ring_wait(struct percpu_ring *ring, int64_t timeout_ns);

/** percpu_ring_wake_up - wake all consumers that wait, as a push would. Async-signal-safe. */
PERCPU_API void percpu_ring_wake_up(struct percpu_ring *ring);

/**
 * percpu_ring_eventfd - a descriptor for poll(2), select(2) and epoll(7) that becomes readable when the ring is filled.
 *
 * An eventfd(2) (non-blocking, close-on-exec), made by the first call and closed by percpu_ring_destroy(). Before it waits
 * for it, a consumer calls percpu_ring_arm(); after it woke it reads the descriptor and takes all there is.
 * After fork, parent and child share it: either may wake the other for nothing.
 * Returns the descriptor or -errno of eventfd(2). Async-signal-safe.
 */
PERCPU_API int percpu_ring_eventfd(struct percpu_ring *ring);

/**
 * percpu_ring_arm - have the next push make the event descriptor readable.
 *
 * Returns 0: armed, until something wakes it; 1: something is there already, do not wait (it may be armed or not); -EINVAL
 * if there is no descriptor; -errno of percpu_fence() (then wait with a timeout). Async-signal-safe.
 */
PERCPU_API int percpu_ring_arm(struct percpu_ring *ring);

PERCPU_END_DECLS

#endif
