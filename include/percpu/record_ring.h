/* SPDX-License-Identifier: MIT */
/*
 * Rings of records: percpu_ring (<percpu/ring.h>) for contiguous records of any length, each with a tag.
 *
 * A record is copied into the buffer behind the tail, by words and vectors, and becomes visible by the one store that
 * moves the tail: it is there as a whole or not at all, even if its thread or process is killed half-way. A record that
 * begins before the end of the buffer may run beyond it, into slack as long as the longest record, and leaves as much
 * unused at the start; so no record is ever split and none is padding.
 *
 * Consumers copy whole records into a buffer of theirs.
 */
#ifndef PERCPU_RECORD_RING_H
#define PERCPU_RECORD_RING_H

#include <string.h>

#include <percpu/ring.h>

PERCPU_BEGIN_DECLS

/** The smallest and largest capacity of a ring of records, in bytes of one copy. */
#define PERCPU_RECORD_RING_MIN 512
#define PERCPU_RECORD_RING_MAX 524288

/** What stands before each record, in the ring and in what a consumer reads. The payload follows. */
struct percpu_record {
	uint32_t length; /**< bytes of the payload */
	uint32_t tag;    /**< the writer's */
};

/** A ring of records, in the caller's storage. Fields belong to the library. */
struct percpu_record_ring {
	struct percpu_ring ring;
};

/** What one call read, all of one copy. */
struct percpu_record_batch {
	size_t bytes;   /**< in the buffer */
	unsigned count; /**< records */
	unsigned index; /**< the copy that they come from */
	uint64_t lost;  /**< records of this copy that were dropped before the first of these, since init, exactly */
};

/**
 * percpu_record_size - how many bytes a record takes, in the ring and in a consumer's buffer.
 *
 * @length: of its payload; 8 bytes and the payload, rounded up to 8, at least 16 in all
 */
PERCPU__INLINE size_t percpu_record_size(size_t length)
{
	return length > 8 ? (length + 15) & ~(size_t)7 : 16;
}

/** percpu_record_data - the payload of a record, aligned to 8 bytes. */
PERCPU__INLINE const void *percpu_record_data(const struct percpu_record *record)
{
	return record + 1;
}

/**
 * percpu_record_next - the records that a call has read, one after another.
 *
 * @buffer: what percpu_record_ring_read() filled, and what it told in @batch
 * @record: the one before, NULL to begin. Returns the next, NULL at the end.
 */
PERCPU__INLINE const struct percpu_record *percpu_record_next(const void *buffer,
							      const struct percpu_record_batch *batch,
							      const struct percpu_record *record)
{
	const char *next = record ? (const char *)record + percpu_record_size(record->length) : (const char *)buffer;

	return (size_t)(next - (const char *)buffer) < batch->bytes ? (const struct percpu_record *)(const void *)next
								    : (const struct percpu_record *)0;
}

/* Both words of a record's header, as one. */
PERCPU__INLINE uint64_t percpu__record_header(uint32_t tag, size_t length)
{
	struct percpu_record record;
	uint64_t word;

	record.length = (uint32_t)length;
	record.tag = tag;
	memcpy(&word, &record, sizeof word);
	return word;
}

/* A word of which only the first bytes are known: 0 to 8. Nothing behind them is read. */
PERCPU__INLINE uint64_t percpu__record_word(const void *data, size_t length)
{
	uint64_t word = 0;

	if (length)
		memcpy(&word, data, length);
	return word;
}

#ifndef PERCPU_NO_SECTIONS
/* @name: of the function. @scratch: what it changes. */
#define PERCPU__RECORD(name, scratch, enter, move, ...)                                                                \
	PERCPU__INLINE int percpu__try_record_##name(const struct percpu_record_ring *ring, uint64_t header,           \
						     const void *data, size_t length)                                  \
	{                                                                                                              \
		__asm__ __volatile__ goto(enter PERCPU__A_PUT(PERCPU__RING_DATA, "header") move PERCPU__RING_LEAVE     \
					  :                                                                            \
					  : PERCPU__RING_OPERANDS(&ring->ring, percpu_record_size(length)),            \
					    [header] PERCPU__ADD_OPERAND(header), __VA_ARGS__                          \
					  : "memory", PERCPU__SCRATCH_##scratch                                        \
					  : left, differs);                                                            \
		return PERCPU__DONE;                                                                                   \
differs:                                                                                                               \
		return PERCPU__DIFFERS;                                                                                \
left:                                                                                                                  \
		return PERCPU__LEFT;                                                                                   \
	}

/*
 * Each writes a record behind the tail and moves the tail, as percpu__try_ring_push(). Up to 16 bytes travel in
 * registers; more in vectors, of which the last overlaps what is before it. Bytes of the last word that are not the
 * record's are nobody's.
 */
PERCPU__RECORD(8, RING, PERCPU__RING_ENTER,
	       PERCPU__A_PUT(PERCPU__RING_PAYLOAD, "first"), [first] "r"(percpu__record_word(data, length)))
PERCPU__RECORD(16, RING, PERCPU__RING_ENTER,
	       PERCPU__A_PUT(PERCPU__RING_PAYLOAD, "first") PERCPU__A_PUT(PERCPU__RING_SECOND, "second"),
	       [first] "r"(percpu__record_word(data, 8)),
	       [second] "r"(percpu__record_word((const char *)data + 8, length - 8)))
PERCPU__RECORD(32, RING_COPY, PERCPU__RING_ENTER,
	       PERCPU__A_MOVE2(PERCPU__RING_PAYLOAD, "data", "last"), [data] "r"(data), [last] "r"(length - 16))
PERCPU__RECORD(64, RING_COPY, PERCPU__RING_ENTER,
	       PERCPU__A_MOVE4(PERCPU__RING_PAYLOAD, "data", "last"), [data] "r"(data), [last] "r"(length - 32))
PERCPU__RECORD(many, RING_COPY, PERCPU__RING_ENTER_MORE, PERCPU__A_MOVE_MANY(PERCPU__RING_PAYLOAD, "data", "last"),
	       [data] "r"(data), [last] "r"(length - 64), [more] "r"(percpu_record_size(length) - PERCPU__RING_SHORT))
/* For the slow path: any length, in words; the last, of which there may be only a part, is in a register. */
PERCPU__RECORD(behind, COPY, PERCPU__RING_ENTER_BEHIND,
	       PERCPU__A_MOVE_ANY(PERCPU__RING_PAYLOAD, "data", "words", "final"), [data] "r"(data),
	       [room] PERCPU__COPY_OPERAND(percpu__ring_room(&ring->ring, percpu_record_size(length))),
	       [words] "r"(percpu_record_size(length) - 16),
	       [final] "r"(percpu__record_word((const char *)data + percpu_record_size(length) - 16,
					       length - (percpu_record_size(length) - 16))))

/* With a length known to the compiler this is one of them. */
PERCPU__INLINE int percpu__try_record(const struct percpu_record_ring *ring, uint64_t header, const void *data,
				      size_t length)
{
	if (length <= 8)
		return percpu__try_record_8(ring, header, data, length);
	if (length <= 16)
		return percpu__try_record_16(ring, header, data, length);
	if (length <= 32)
		return percpu__try_record_32(ring, header, data, length);
	if (length <= 64)
		return percpu__try_record_64(ring, header, data, length);
	return percpu__try_record_many(ring, header, data, length);
}
#endif

/* The cold half, and the whole for lengths that only the running program knows. */
PERCPU_API int percpu__slow_record(struct percpu_record_ring *ring, uint64_t header, const void *data, size_t length)
	PERCPU__COLD;
PERCPU_API int percpu__record_any(struct percpu_record_ring *ring, uint64_t header, const void *data, size_t length);

/**
 * percpu_record_ring_init - make an empty ring of records.
 *
 * @ring: must not lie in a cache line that is written often: every write reads it
 * @capacity: bytes of each copy, a power of two, PERCPU_RECORD_RING_MIN to PERCPU_RECORD_RING_MAX. A quarter of it is
 * added as slack; memory becomes real page by page on first use.
 * @flags: enum percpu_ring_flags. With PERCPU_RING_OVERWRITE a full copy drops its oldest records, as few as make an eighth of the capacity free
 * (at most 8192 bytes, at least what the new record needs).
 * Returns 0; -EINVAL; -E2BIG if @capacity is too large; -ENOMEM. May block. Async-signal-safe.
 */
PERCPU_API int percpu_record_ring_init(struct percpu_record_ring *ring, size_t capacity, unsigned flags);

/* It is the first member; NULL stays NULL. */
PERCPU__INLINE struct percpu_ring *percpu__ring_of(const struct percpu_record_ring *ring)
{
	return (struct percpu_ring *)(uintptr_t)ring;
}

/** percpu_record_ring_destroy - as percpu_ring_destroy(). */
PERCPU__INLINE void percpu_record_ring_destroy(struct percpu_record_ring *ring)
{
	percpu_ring_destroy(percpu__ring_of(ring));
}

/** percpu_record_ring_longest - bytes of the longest payload: a quarter of the capacity less 8, at most PERCPU_COPY_MAX. */
PERCPU__INLINE size_t percpu_record_ring_longest(const struct percpu_record_ring *ring)
{
	return ring->ring.most;
}

/**
 * percpu_record_ring_write - copy a record into the current index's copy.
 *
 * @tag: the caller's: what kind of record it is, or anything else
 * @data: @length bytes; 0 to percpu_record_ring_longest()
 * Where @length is a constant up to 64, the copy is a few instructions in line.
 * Returns 0; -EMSGSIZE if it is too long; -ENOBUFS if the copy is full and does not overwrite (others may have room).
 * Wakes a consumer that waits. Progress and safety as percpu_ring_push().
 */
PERCPU__INLINE int percpu_record_ring_write(struct percpu_record_ring *ring, uint32_t tag, const void *data,
					    size_t length)
{
	uint64_t header = percpu__record_header(tag, length);
	int rc;

	/* Each ring takes 64 bytes. */
	if (!__builtin_constant_p(length) || length > 64)
		return percpu__record_any(ring, header, data, length);
	rc = PERCPU__TRY(percpu__try_record(ring, header, data, length));
	if (PERCPU__UNLIKELY(rc != PERCPU__DONE))
		rc = percpu__slow_record(ring, header, data, length);
	return rc;
}

/**
 * percpu_record_ring_read - take the oldest records of one copy.
 *
 * @buffer: @size bytes, aligned to 8; a quarter of the capacity, or PERCPU_COPY_MAX + 8, is enough for any record
 * @batch: set if something was read; go through it with percpu_record_next()
 * Takes as many whole records as fit, of the first copy that has any, beginning behind the one that the last call read.
 * Returns 1 if something was read; 0 if all copies were seen to be empty; -EMSGSIZE if a copy's oldest record is longer
 * than @size (it stays there); -EINVAL. Bytes of @buffer behind the records are unspecified, in every case.
 * Any number of threads may read at the same time (but for PERCPU_RING_ONE_CONSUMER); each record goes to one of them. Progress as percpu_ring_pop().
 */
PERCPU_API int percpu_record_ring_read(struct percpu_record_ring *ring, void *buffer, size_t size,
				       struct percpu_record_batch *batch);

/** percpu_record_ring_read_index - percpu_record_ring_read() of one copy: @index is 0 to percpu_copies() - 1. */
PERCPU_API int percpu_record_ring_read_index(struct percpu_record_ring *ring, unsigned index, void *buffer, size_t size,
					     struct percpu_record_batch *batch);

/**
 * percpu_record_ring_peek_index - read the oldest records of one copy, and leave them there.
 *
 * As percpu_record_ring_read_index(). With a buffer as large as the capacity it reads all that was there at one moment.
 */
PERCPU_API int percpu_record_ring_peek_index(struct percpu_record_ring *ring, unsigned index, void *buffer, size_t size,
					     struct percpu_record_batch *batch);

/** percpu_record_ring_discard - as percpu_ring_discard(). */
PERCPU__INLINE int percpu_record_ring_discard(struct percpu_record_ring *ring, unsigned index)
{
	return percpu_ring_discard(percpu__ring_of(ring), index);
}

/** percpu_record_ring_is_empty - as percpu_ring_is_empty(). */
PERCPU__INLINE bool percpu_record_ring_is_empty(const struct percpu_record_ring *ring, unsigned index)
{
	return percpu_ring_is_empty(percpu__ring_of(ring), index);
}

/** percpu_record_ring_lost - as percpu_ring_lost(): each record is read once, or discarded, or counted here, or there. */
PERCPU__INLINE uint64_t percpu_record_ring_lost(const struct percpu_record_ring *ring)
{
	return percpu_ring_lost(percpu__ring_of(ring));
}

/** percpu_record_ring_wait - as percpu_ring_wait(). */
PERCPU__INLINE int percpu_record_ring_wait(struct percpu_record_ring *ring, int64_t timeout_ns)
{
	return percpu_ring_wait(percpu__ring_of(ring), timeout_ns);
}

/** percpu_record_ring_wake_up - as percpu_ring_wake_up(). */
PERCPU__INLINE void percpu_record_ring_wake_up(struct percpu_record_ring *ring)
{
	percpu_ring_wake_up(percpu__ring_of(ring));
}

/** percpu_record_ring_eventfd - as percpu_ring_eventfd(). */
PERCPU__INLINE int percpu_record_ring_eventfd(struct percpu_record_ring *ring)
{
	return percpu_ring_eventfd(percpu__ring_of(ring));
}

/** percpu_record_ring_arm - as percpu_ring_arm(). */
PERCPU__INLINE int percpu_record_ring_arm(struct percpu_record_ring *ring)
{
	return percpu_ring_arm(percpu__ring_of(ring));
}

PERCPU_END_DECLS

#endif
