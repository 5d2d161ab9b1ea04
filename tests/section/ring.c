/* SPDX-License-Identifier: MIT */
/*
 * Rings: the sections, interrupted at every instruction, and (FOR_SLOWPATH) producers, consumers and sleepers, with a
 * handler at every instruction. After each round every entry is whole, and is in one place only: there, taken, or counted
 * as lost; and who has wished to be woken, and found nothing, has been woken if there is something now.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include <percpu/record_ring.h>

#include "harness.h"

#define NOINLINE static __attribute__((noinline))

#define MOST     300000 /* entries of a round */
#define CAPACITY PERCPU_RECORD_RING_MIN
#define BASE     (7 * CAPACITY - 40) /* positions begin where the buffer soon ends */
#define LENGTH   21                  /* of rivals' records, and those at the start */

enum act { READ, WRITE, WISH };
/* What rivals do; how many entries each copy has at the start, and whether the fast path is open. */
static const struct {
	enum act act;
	unsigned filled;
	bool open;
} cases[] = {
#ifndef FOR_SLOWPATH
	{ READ, 2, true },     { WRITE, 2, true }, { WISH, 0, true },  { READ, 1000, true },
	{ WRITE, 1000, true }, { WRITE, 9, true }, { READ, 9, false }, { WISH, 0, false },
#else
	{ WRITE, 1000, true },
	{ WISH, 0, true },
#endif
};
#define CASES (sizeof cases / sizeof *cases)

/* Each kind with both policies. An entry's object says which. */
enum { POINTERS = 0, RECORDS = 2 };
static struct percpu_record_ring rings[4];
static struct percpu_ring *ring;
static bool of_records;
static unsigned which;
static size_t length; /* of the subject's record */
static const char *trouble;
static bool takes;  /* the subject's operation takes something, and does not yet tell what */
static bool asleep; /* somebody has wished, and found nothing */

static enum { UNUSED, IN, TAKEN } is[MOST];
static size_t used;
static uint32_t ours;
static void *popped[8];
static uint64_t taken[CAPACITY / 8];
static struct percpu_record_batch batch;
static int subjects_take;

static size_t size_of(size_t bytes)
{
	return of_records ? percpu_record_size(bytes) : sizeof(void *);
}

static struct percpu__ring_copy *copy_of(unsigned index)
{
	return percpu_ptr((struct percpu__ring_copy *)ring->copies, index);
}

static unsigned char *place(struct percpu__ring_copy *copy, uint64_t position)
{
	return (unsigned char *)(copy + 1) + (position & ring->mask);
}

/* A record's payload: its number, as far as it fits, and then bytes that follow from it. */
static void payload(uint32_t id, unsigned char *out, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		out[i] = (unsigned char)(id * 31 + i * 7 + 1);
}

static uint32_t new_id(void)
{
	if (used == MOST)
		_exit(8);
	is[used] = UNUSED;
	return (uint32_t)used++;
}

/* Returns whether the entry is one that was put in, whole; its number then. */
static bool is_whole(const unsigned char *at, uint32_t *id)
{
	static unsigned char expected[256];
	const struct percpu_record *record = (const void *)at;

	if (!of_records) {
		*id = (uint32_t) * (const uint64_t *)(const void *)at;
		return *(const uint64_t *)(const void *)at < used;
	}
	*id = record->tag;
	if (*id >= used || record->length != (*id == ours ? length : LENGTH))
		return false;
	payload(*id, expected, record->length);
	return memcmp(percpu_record_data(record), expected, record->length) == 0;
}

static void take(const unsigned char *at)
{
	uint32_t id;

	if (!is_whole(at, &id))
		trouble = "took what is not whole";
	else if (is[id] == TAKEN)
		trouble = "took an entry twice";
	else if (is[id] == UNUSED && id != ours)
		trouble = "took what was not put in";
	else
		is[id] = TAKEN;
}

/* As another thread's section, or its slow path under a gate. */
static bool write_plainly(unsigned index)
{
	struct percpu__ring_copy *copy = copy_of(index);
	size_t size = size_of(LENGTH);
	uint32_t id = new_id();
	unsigned char *at;

	while (copy->tail - copy->head > percpu__ring_room(ring, size)) {
		if (!ring->batch)
			return false;
		copy->head += of_records ? size_of(((struct percpu_record *)(void *)place(copy, copy->head))->length)
					 : sizeof(void *);
		copy->lost++;
	}
	at = place(copy, copy->tail);
	if (of_records) {
		*(struct percpu_record *)(void *)at = (struct percpu_record){ LENGTH, id };
		payload(id, at + 8, LENGTH);
	} else {
		*(uint64_t *)(void *)at = id;
	}
	is[id] = IN;
	copy->tail += size;
	return true;
}

static void read_plainly(unsigned index)
{
	struct percpu__ring_copy *copy = copy_of(index);
	unsigned char *at = place(copy, copy->head);

	if (copy->head == copy->tail)
		return;
	take(at);
	copy->head += of_records ? size_of(((struct percpu_record *)(void *)at)->length) : sizeof(void *);
}

static void make_rings(void)
{
	for (unsigned i = 0; i < 4; i++) {
		unsigned policy = i % 2;
		int rc = i >= RECORDS ? percpu_record_ring_init(&rings[i], CAPACITY, policy)
				      : percpu_ring_init(&rings[i].ring, CAPACITY / sizeof(void *), policy);

		if (rc || percpu_ring_eventfd(&rings[i].ring) < 0)
			_exit(9);
	}
}

static bool is_readable(void)
{
	struct pollfd fd = { .fd = ring->event, .events = POLLIN };

	return poll(&fd, 1, 0) == 1;
}

static void setup(unsigned number, struct call *c)
{
	static unsigned char data[256];
	uint64_t count;

	if (!rings[0].ring.copies)
		make_rings();
	which = number;
	of_records = entries[control->entry].object >= RECORDS;
	ring = &rings[entries[control->entry].object].ring;
	length = entries[control->entry].n;
	used = 0;
	trouble = NULL;
	asleep = takes = false;
	subjects_take = 0;
	ours = new_id();
	payload(ours, data, length);
	c->p = ring->copies;
	c->src = data;
	ring->wishes = 0;
	if (is_readable() && read(ring->event, &count, sizeof count) != sizeof count)
		_exit(10);
	percpu_for_each_index(i) {
		struct percpu__ring_copy *copy = copy_of(i);

		copy->head = copy->tail = BASE;
		copy->lost = 0;
		for (unsigned k = 0; k < cases[number].filled; k++) {
			if (copy->tail - copy->head > percpu__ring_room(ring, size_of(LENGTH)))
				break;
			write_plainly(i);
		}
		copy->limit = cases[number].open ? copy->head + percpu__ring_room(ring, 0) + 1 : 0;
	}
}

/* Rivals, by public functions. */

static void take_records(const struct percpu_record_batch *b)
{
	const struct percpu_record *record = NULL;

	while ((record = percpu_record_next(taken, b, record)))
		take((const unsigned char *)record);
}

static void write_publicly(void)
{
	static volatile size_t rivals_length = LENGTH; /* in the library: not one more section here */
	unsigned char data[LENGTH];
	uint32_t id = new_id();
	int rc;

	payload(id, data, LENGTH);
	is[id] = IN; /* whoever runs behind the commit may take it */
	if (of_records)
		rc = percpu_record_ring_write(&rings[entries[control->entry].object], id, data, rivals_length);
	else
		rc = percpu_ring_push(ring, (void *)(uintptr_t)id);
	if (rc)
		is[id] = UNUSED;
	if (rc && (rc != -ENOBUFS || ring->batch))
		trouble = "a rival's write failed";
}

static void read_publicly(bool this_index, unsigned index)
{
	struct percpu_record_ring *records = &rings[entries[control->entry].object];
	static uint64_t buffer[CAPACITY / 8];
	struct percpu_record_batch b = { .bytes = 0 };
	const struct percpu_record *record = NULL;
	void *out[3];
	int rc;

	if (of_records) {
		rc = this_index ? percpu_record_ring_read_index(records, index, buffer, sizeof buffer / 4, &b)
				: percpu_record_ring_read(records, buffer, sizeof buffer / 4, &b);
		while ((record = percpu_record_next(buffer, &b, record)))
			take((const unsigned char *)record);
	} else {
		rc = this_index ? percpu_ring_pop_index(ring, index, out, 3) : percpu_ring_pop(ring, out, 3);
		for (int i = 0; i < rc; i++)
			take((const unsigned char *)&out[i]);
	}
	if (rc < 0)
		trouble = "a rival's read failed";
}

static void do_wish(void)
{
	int rc = percpu_ring_arm(ring);

	if (rc == 0)
		asleep = true;
	else if (rc != 1)
		trouble = "a rival's wish failed";
}

/* What a child of fork would find in the middle of the subject's operation: all is counted, but perhaps for ours. */
static void account(void)
{
	uint64_t lost = percpu_ring_lost(ring), there = 0, in = 0;

	percpu_for_each_index(i) {
		struct percpu__ring_copy *copy = copy_of(i);

		for (uint64_t at = copy->head; at < copy->tail; there++)
			at += of_records ? size_of(((struct percpu_record *)(void *)place(copy, at))->length)
					 : sizeof(void *);
	}
	for (size_t i = 0; i < used; i++)
		in += i != ours && is[i] == IN;
	if (there + lost != in && there + lost != in + 1)
		trouble = "the middle of an operation is not as a fork would need it";
}

static void interfere(enum interference how, unsigned index)
{
	enum act act = cases[which].act;
	struct percpu_gate gate;

	control->changes++;
	if (how == BY_HANDLER && !takes && act != READ)
		account();
	if (act == WISH) {
		do_wish();
		if (how == UNDER_GATE)
			harness_held();
		return;
	}
	switch (how) {
	case PLAINLY:
		if (act == WRITE)
			write_plainly(index);
		else
			read_plainly(index);
		break;
	case UNDER_GATE:
		if (percpu_gate_lock(ring->copies, index, &gate))
			trouble = "a rival got no gate";
		harness_held();
		if (act == WRITE)
			write_plainly(index);
		else
			read_plainly(index);
		percpu_gate_unlock(&gate);
		break;
	default:
		if (act == WRITE)
			write_publicly();
		else
			read_publicly(how == BY_VECTOR, index);
	}
}

static const char *check(const struct call *c)
{
	uint64_t lost = percpu_ring_lost(ring), missing = 0;
	static bool seen[MOST];
	bool any = false;
	uint32_t id;

	for (int i = 0; i < subjects_take && !of_records; i++)
		take((const unsigned char *)&popped[i]);
	if (subjects_take > 0 && of_records)
		take_records(&batch);
	if (is[ours] == TAKEN && c->rc != PERCPU__DONE)
		return "taken, although it was not written";
	if (is[ours] == UNUSED && c->rc == PERCPU__DONE)
		is[ours] = IN;
	memset(seen, 0, used * sizeof *seen);
	percpu_for_each_index(i) {
		struct percpu__ring_copy *copy = copy_of(i);

		if (copy->tail - copy->head > ring->mask + 1)
			return "a copy holds more than it can";
		for (uint64_t at = copy->head; at != copy->tail;) {
			if (at > copy->tail || !is_whole(place(copy, at), &id))
				return "an entry is not whole";
			if (is[id] != IN)
				return is[id] == TAKEN ? "an entry was taken, and is still there"
						       : "an entry is there that was not written";
			if (seen[id])
				return "an entry is there twice";
			seen[id] = any = true;
			at += of_records ? size_of(((struct percpu_record *)(void *)place(copy, at))->length)
					 : sizeof(void *);
		}
		if (copy->limit && ring->wishes)
			return "the fast path is open although somebody sleeps";
		if (copy->limit > copy->head + percpu__ring_room(ring, 0) + 1)
			return "a limit is too high";
	}
	for (size_t i = 0; i < used; i++)
		missing += is[i] == IN && !seen[i];
	if (missing != lost)
		return missing > lost ? "lost an entry, and did not count it" : "counted what is not lost";
	if (lost && !ring->batch)
		return "dropped an entry";
	if (asleep && any && !is_readable())
		return "a wake-up was lost";
	return trouble;
}

static const struct kind kind = { CASES, setup, interfere, check };

/* Operations. */

static void wrote(struct call *c, int rc)
{
	c->rc = rc == 0 ? PERCPU__DONE : PERCPU__DIFFERS;
	if (rc && (rc != -ENOBUFS || ring->batch))
		trouble = "a write failed";
}

static struct percpu_record_ring *records_of(const struct call *c)
{
	(void)c;
	return (struct percpu_record_ring *)(void *)ring;
}

#define WRITE(bytes)                                                                                                   \
	NOINLINE void write_##bytes(struct call *c)                                                                    \
	{                                                                                                              \
		wrote(c, percpu_record_ring_write(records_of(c), ours, c->src, bytes));                                \
	}
WRITE(13)
#ifndef FOR_SLOWPATH
WRITE(5)
WRITE(29)
WRITE(61)
#endif

/* Lengths that the compiler does not know. */
NOINLINE void write_any(struct call *c)
{
	wrote(c, percpu_record_ring_write(records_of(c), ours, c->src, length));
}

NOINLINE void push(struct call *c)
{
	wrote(c, percpu_ring_push(ring, (void *)(uintptr_t)ours));
}

#define ENTRY(name_, function, object_, bytes, tries_)                                                                 \
	{                                                                                                              \
		.name = "ring_" #name_, .kind = &kind, .run = function, .object = object_, .n = bytes, .tries = tries_ \
	}

#ifndef FOR_SLOWPATH
#define TRY(name, bytes)                                                                                               \
	NOINLINE void try_##name(struct call *c)                                                                       \
	{                                                                                                              \
		c->rc = percpu__try_record_##name(records_of(c), percpu__record_header(ours, bytes), c->src, bytes);   \
	}
TRY(8, 5)
TRY(16, 13)
TRY(32, 29)
TRY(64, 61)
TRY(many, 103)
/* Two words, and a part of one. */
TRY(behind, 45)

NOINLINE void try_push(struct call *c)
{
	c->rc = percpu__try_ring_push(ring, (void *)(uintptr_t)ours);
}

NOINLINE void try_push_behind(struct call *c)
{
	c->rc = percpu__try_ring_push_behind(ring, (void *)(uintptr_t)ours);
}

/* Writes nothing. */
NOINLINE void try_open(struct call *c)
{
	c->rc = percpu__try_ring_open(ring);
	if (c->rc == PERCPU__DONE)
		c->rc = PERCPU__DIFFERS;
}

const struct entry entries[] = {
	ENTRY(try_push, try_push, POINTERS, 0, true),   ENTRY(try_push_behind, try_push_behind, POINTERS, 0, true),
	ENTRY(push, push, POINTERS, 0, false),          ENTRY(push_over, push, POINTERS + 1, 0, false),
	ENTRY(try_8, try_8, RECORDS, 5, true),          ENTRY(try_16, try_16, RECORDS, 13, true),
	ENTRY(try_32, try_32, RECORDS, 29, true),       ENTRY(try_64, try_64, RECORDS, 61, true),
	ENTRY(try_many, try_many, RECORDS, 103, true),  ENTRY(try_behind, try_behind, RECORDS, 45, true),
	ENTRY(try_open, try_open, RECORDS, 0, true),    ENTRY(write_5, write_5, RECORDS, 5, false),
	ENTRY(write_13, write_13, RECORDS, 13, false),  ENTRY(write_29, write_29, RECORDS, 29, false),
	ENTRY(write_61, write_61, RECORDS, 61, false),  ENTRY(write_61_over, write_61, RECORDS + 1, 61, false),
	ENTRY(any_5, write_any, RECORDS, 5, false),     ENTRY(any_13, write_any, RECORDS, 13, false),
	ENTRY(any_29, write_any, RECORDS, 29, false),   ENTRY(any_61, write_any, RECORDS, 61, false),
	ENTRY(any_103, write_any, RECORDS, 103, false), ENTRY(any_103_over, write_any, RECORDS + 1, 103, false),
};
/* Nine attempts; five behind public functions here; in the library five for lengths, two behind the head, one that opens. */
const unsigned only_sections = 22;
#else
NOINLINE void pop(struct call *c)
{
	takes = true;
	subjects_take = percpu_ring_pop(ring, popped, sizeof popped / sizeof *popped);
	c->rc = PERCPU__DIFFERS;
}

NOINLINE void read_some(struct call *c)
{
	takes = true;
	subjects_take = percpu_record_ring_read(records_of(c), taken, sizeof taken / 2, &batch);
	c->rc = PERCPU__DIFFERS;
}

NOINLINE void wait_a_little(struct call *c)
{
	int rc = percpu_ring_wait(ring, 1000);

	if (rc && rc != -ETIMEDOUT && rc != -EINTR)
		trouble = "a wait failed";
	c->rc = PERCPU__DIFFERS;
}

NOINLINE void arm_it(struct call *c)
{
	do_wish();
	c->rc = PERCPU__DIFFERS;
}

const struct entry entries[] = {
	ENTRY(push, push, POINTERS, 0, false),         ENTRY(push_over, push, POINTERS + 1, 0, false),
	ENTRY(pop, pop, POINTERS, 0, false),           ENTRY(pop_over, pop, POINTERS + 1, 0, false),
	ENTRY(write_13, write_13, RECORDS, 13, false), ENTRY(any_103_over, write_any, RECORDS + 1, 103, false),
	ENTRY(read, read_some, RECORDS, 0, false),     ENTRY(read_over, read_some, RECORDS + 1, 0, false),
	ENTRY(wait, wait_a_little, RECORDS, 0, false), ENTRY(arm, arm_it, POINTERS, 0, false),
};
#endif
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = false;
