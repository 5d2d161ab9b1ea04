/* SPDX-License-Identifier: MIT */
/* Rings of records: lengths that only the running program knows, the slow path, and consumers. */
#include <errno.h>

#include "ds/ring.h"
#include "rseq/thread.h"

static struct percpu_record_ring *ring_of(const struct percpu__ring_task *t)
{
	return (struct percpu_record_ring *)(void *)t->ring;
}

static int record_section(const struct percpu__ring_task *t)
{
	(void)t;
	return PERCPU__TRY(percpu__try_record_behind(ring_of(t), t->word, t->data, t->length));
}

static void fill_record(const struct percpu__ring_task *t, unsigned char *at)
{
	/* A consumer that is about to be told that it was too slow may read the header now. */
	__atomic_store_n((uint64_t *)(void *)at, t->word, __ATOMIC_RELAXED);
	if (t->length)
		memcpy(at + sizeof t->word, t->data, t->length);
}

int percpu__slow_record(struct percpu_record_ring *ring, uint64_t header, const void *data, size_t length)
{
	struct percpu__ring_task task = { .ring = &ring->ring,
					  .section = record_section,
					  .fill = fill_record,
					  .size = percpu_record_size(length),
					  .word = header,
					  .data = data,
					  .length = length };

	return percpu__ring_produce(&task);
}

int percpu__record_any(struct percpu_record_ring *ring, uint64_t header, const void *data, size_t length)
{
	int rc;

	if (length > ring->ring.most)
		return -EMSGSIZE;
	rc = PERCPU__TRY(percpu__try_record(ring, header, data, length));
	if (PERCPU__UNLIKELY(rc != PERCPU__DONE))
		rc = percpu__slow_record(ring, header, data, length);
	return rc;
}

int percpu_record_ring_init(struct percpu_record_ring *ring, size_t capacity, unsigned flags)
{
	size_t longest = capacity / 4 - sizeof(struct percpu_record);

	if (!ring || capacity < PERCPU_RECORD_RING_MIN || capacity & (capacity - 1))
		return -EINVAL;
	if (capacity > PERCPU_RECORD_RING_MAX)
		return -E2BIG;
	return percpu__ring_init(&ring->ring, capacity, capacity / 4,
				 longest < PERCPU_COPY_MAX ? longest : PERCPU_COPY_MAX, flags);
}

/* Whole words; others may write them, and then the copy is void. */
static void copy_words(void *to, const void *from, size_t bytes)
{
	const uint64_t *source = from;
	uint64_t *out = to;

	for (size_t i = 0; i < bytes / sizeof *out; i++)
		out[i] = __atomic_load_n(&source[i], __ATOMIC_RELAXED);
}

/*
 * Copies whole records, as they seem to be, and tells how many, how many bytes, and whether it stopped because the next
 * does not fit in @size. Stops at a header that cannot be one: the view was not true any more.
 */
static bool copy_records(const struct percpu_ring *ring, struct percpu__ring_copy *copy, struct percpu__ring_view view,
			 char *buffer, size_t size, struct percpu_record_batch *batch)
{
	batch->bytes = batch->count = 0;
	while (view.head + batch->bytes < view.tail) {
		const struct percpu_record *record =
			(const void *)percpu__ring_at(ring, copy, view.head + batch->bytes);
		size_t length = __atomic_load_n(&record->length, __ATOMIC_RELAXED);
		size_t bytes = percpu_record_size(length);

		if (length > ring->most || bytes > view.tail - view.head - batch->bytes)
			return false;
		if (bytes > size - batch->bytes)
			return true;
		copy_words(buffer + batch->bytes, record, bytes);
		batch->bytes += bytes;
		batch->count++;
	}
	return false;
}

/* Whether nothing of what was copied has been taken or dropped meanwhile. Acquire: the copying comes before. */
static bool still_there(struct percpu__ring_copy *copy, struct percpu__ring_view view)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return __atomic_load_n(&copy->head, __ATOMIC_RELAXED) == view.head;
}

static int read_copy(const struct percpu_ring *ring, unsigned index, void *buffer, size_t size, bool leave,
		     struct percpu_record_batch *out)
{
	struct percpu__ring_copy *copy = percpu__ring_copy_of(ring, index);
	struct percpu__ring_patience patience = { .tries = 0 };
	int rc;

	for (;;) {
		struct percpu__ring_view view = percpu__ring_look(copy);
		struct percpu_record_batch batch;
		size_t part = size >> patience.tries;
		bool more;

		rc = 0;
		if (view.head == view.tail)
			break;
		/* At least the first, which the caller has room for. */
		more = copy_records(ring, copy, view, buffer, part, &batch);
		if (more && !batch.count && part < size) {
			view.tail = view.head + percpu_record_size(__atomic_load_n(
							&((const struct percpu_record *)(const void *)percpu__ring_at(
								  ring, copy, view.head))
								 ->length,
							__ATOMIC_RELAXED));
			more = copy_records(ring, copy, view, buffer, size, &batch);
		}
		rc = batch.count ? 1 : -EMSGSIZE;
		if ((batch.count && !leave) ? percpu__ring_take(ring, copy, view, view.head + batch.bytes)
					    : (batch.count || more) && still_there(copy, view)) {
			if (rc == 1)
				*out = (struct percpu_record_batch){
					.bytes = batch.bytes, .count = batch.count, .index = index, .lost = view.lost
				};
			break;
		}
		percpu__ring_again(&patience, ring, index);
	}
	percpu__ring_enough(&patience);
	return rc;
}

static bool is_valid(const struct percpu_record_ring *ring, const void *buffer, size_t size,
		     const struct percpu_record_batch *batch)
{
	return ring && buffer && !((uintptr_t)buffer % 8) && size && batch;
}

int percpu_record_ring_read_index(struct percpu_record_ring *ring, unsigned index, void *buffer, size_t size,
				  struct percpu_record_batch *batch)
{
	if (!is_valid(ring, buffer, size, batch) || index > percpu__remainder)
		return -EINVAL;
	return read_copy(&ring->ring, index, buffer, size, false, batch);
}

int percpu_record_ring_peek_index(struct percpu_record_ring *ring, unsigned index, void *buffer, size_t size,
				  struct percpu_record_batch *batch)
{
	if (!is_valid(ring, buffer, size, batch) || index > percpu__remainder)
		return -EINVAL;
	return read_copy(&ring->ring, index, buffer, size, true, batch);
}

int percpu_record_ring_read(struct percpu_record_ring *ring, void *buffer, size_t size,
			    struct percpu_record_batch *batch)
{
	unsigned index;
	int rc = 0;

	if (!is_valid(ring, buffer, size, batch))
		return -EINVAL;
	index = percpu__ring_next(&ring->ring);
	for (unsigned copies = percpu__remainder + 1; copies && rc == 0; copies--) {
		rc = read_copy(&ring->ring, index, buffer, size, false, batch);
		if (rc == 1)
			percpu__ring_came_from(&ring->ring, index);
		index = index < percpu__remainder ? index + 1 : 0;
	}
	return rc;
}
