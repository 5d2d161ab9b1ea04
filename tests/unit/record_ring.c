/* SPDX-License-Identifier: MIT */
/* Rings of records: every length whole, at every place of the buffer; both policies, and that each record is met once. */
#include "unit.h"

#include <sys/mman.h>

#include "rseq/thread.h"

#define CAPACITY 4096U
#define LONGEST  (CAPACITY / 4 - 8)

static cpu_set_t everywhere;
static struct percpu_record_ring ring;
static unsigned char bytes[LONGEST + 64];
static uint64_t buffer[CAPACITY / 8];

/* One thread on one CPU stays at one index. */
static int stay(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (unsigned char)(i * 7 + i / 256 + 1);
	return sched_getaffinity(0, sizeof everywhere, &everywhere) || unit_pin(sched_getcpu());
}

static int leave(void **state)
{
	(void)state;
	return sched_setaffinity(0, sizeof everywhere, &everywhere);
}

static void arguments(void **state)
{
	struct percpu_record_batch batch = { .bytes = 99 };
	struct percpu_record_ring unused = { .ring = { .mask = 123 } };
	unsigned last = percpu_copies() - 1;

	(void)state;
	assert_int_equal(percpu_record_ring_init(NULL, CAPACITY, PERCPU_RING_REFUSE), -EINVAL);
	assert_int_equal(percpu_record_ring_init(&unused, 0, PERCPU_RING_REFUSE), -EINVAL);
	assert_int_equal(percpu_record_ring_init(&unused, PERCPU_RECORD_RING_MIN / 2, PERCPU_RING_REFUSE), -EINVAL);
	assert_int_equal(percpu_record_ring_init(&unused, CAPACITY + 8, PERCPU_RING_REFUSE), -EINVAL);
	assert_int_equal(percpu_record_ring_init(&unused, CAPACITY, 4), -EINVAL);
	assert_int_equal(percpu_record_ring_init(&unused, 2 * PERCPU_RECORD_RING_MAX, PERCPU_RING_REFUSE), -E2BIG);
	assert_int_equal(unused.ring.mask, 123);
	percpu_record_ring_destroy(NULL);
	assert_int_equal(percpu_record_ring_init(&ring, CAPACITY, PERCPU_RING_REFUSE), 0);
	assert_int_equal(percpu_record_ring_longest(&ring), LONGEST);
	assert_int_equal(percpu_record_ring_write(&ring, 0, bytes, LONGEST + 1), -EMSGSIZE);
	assert_int_equal(percpu_record_ring_write(&ring, 0, bytes, SIZE_MAX), -EMSGSIZE);
	assert_int_equal(percpu_record_ring_write(&ring, 0, bytes, (size_t)UINT32_MAX + 9), -EMSGSIZE);
	assert_int_equal(percpu_record_ring_read(&ring, buffer, sizeof buffer, &batch), 0);
	assert_int_equal(percpu_record_ring_read(NULL, buffer, sizeof buffer, &batch), -EINVAL);
	assert_int_equal(percpu_record_ring_read(&ring, NULL, sizeof buffer, &batch), -EINVAL);
	assert_int_equal(percpu_record_ring_read(&ring, (char *)buffer + 4, 16, &batch), -EINVAL);
	assert_int_equal(percpu_record_ring_read(&ring, buffer, 0, &batch), -EINVAL);
	assert_int_equal(percpu_record_ring_read(&ring, buffer, sizeof buffer, NULL), -EINVAL);
	assert_int_equal(percpu_record_ring_read_index(&ring, last + 1, buffer, 16, &batch), -EINVAL);
	assert_int_equal(percpu_record_ring_peek_index(&ring, UINT32_MAX, buffer, 16, &batch), -EINVAL);
	assert_int_equal(percpu_record_ring_peek_index(&ring, last, NULL, 16, &batch), -EINVAL);
	assert_int_equal(percpu_record_ring_peek_index(&ring, last, buffer, 16, &batch), 0);
	assert_int_equal(batch.bytes, 99);
	assert_int_equal(percpu_record_ring_lost(&ring), 0);
	assert_true(percpu_record_ring_is_empty(&ring, last));
	assert_int_equal(percpu_record_ring_wait(&ring, 0), -ETIMEDOUT);
	assert_int_equal(percpu_record_ring_arm(&ring), -EINVAL);
	percpu_record_ring_wake_up(&ring);
	percpu_record_ring_destroy(&ring);
	percpu_record_ring_destroy(&ring);
	assert_int_equal(percpu_record_ring_init(&ring, PERCPU_RECORD_RING_MAX, PERCPU_RING_REFUSE), 0);
	assert_int_equal(percpu_record_ring_longest(&ring), PERCPU_COPY_MAX);
	percpu_record_ring_destroy(&ring);
}

static void expect_record(const struct percpu_record *record, uint32_t tag, size_t length)
{
	assert_non_null(record);
	assert_int_equal(record->tag, tag);
	assert_int_equal(record->length, length);
	assert_memory_equal(percpu_record_data(record), bytes + tag % 60, length);
}

/* The next record is this one, and the only one. */
static void expect_one(uint32_t tag, size_t length)
{
	struct percpu_record_batch batch;
	const struct percpu_record *record;

	memset(buffer, 0xee, sizeof buffer);
	assert_int_equal(percpu_record_ring_read(&ring, buffer, sizeof buffer, &batch), 1);
	assert_int_equal(batch.count, 1);
	assert_int_equal(batch.bytes, percpu_record_size(length));
	record = percpu_record_next(buffer, &batch, NULL);
	expect_record(record, tag, length);
	assert_null(percpu_record_next(buffer, &batch, record));
	assert_int_equal(percpu_record_ring_read(&ring, buffer, sizeof buffer, &batch), 0);
}

/* Lengths known to the compiler have code of their own. */
#define CONSTANT(length)                                                                                               \
	assert_int_equal(percpu_record_ring_write(&ring, tag, bytes + tag % 60, length), 0);                           \
	expect_one(tag++, length)
#define CONSTANTS(tens)                                                                                                \
	CONSTANT(tens##0);                                                                                             \
	CONSTANT(tens##1);                                                                                             \
	CONSTANT(tens##2);                                                                                             \
	CONSTANT(tens##3);                                                                                             \
	CONSTANT(tens##4);                                                                                             \
	CONSTANT(tens##5);                                                                                             \
	CONSTANT(tens##6);                                                                                             \
	CONSTANT(tens##7);                                                                                             \
	CONSTANT(tens##8);                                                                                             \
	CONSTANT(tens##9)

static void every_length(void **state)
{
	uint32_t tag = 0;

	(void)state;
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		assert_int_equal(percpu_record_ring_init(&ring, CAPACITY, PERCPU_RING_REFUSE), 0);
		percpu__thread_force(force);
		for (int turn = 0; turn < 20; turn++) {
			CONSTANTS();
			CONSTANTS(1);
			CONSTANTS(2);
			CONSTANTS(3);
			CONSTANTS(4);
			CONSTANTS(5);
			CONSTANTS(6);
			CONSTANTS(10);
			CONSTANT(LONGEST);
		}
		for (size_t length = 0; length <= LONGEST; length += length < 200 ? 1 : 41) {
			assert_int_equal(percpu_record_ring_write(&ring, tag, bytes + tag % 60, length), 0);
			expect_one(tag++, length);
		}
		percpu__thread_force(PERCPU__FORCE_OFF);
		percpu_record_ring_destroy(&ring);
	}
}

/* Nothing is read behind the end of what is written into the ring. */
static void reads_no_further(void **state)
{
	char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)state;
	if (sysconf(_SC_PAGESIZE) != 4096)
		skip();
	assert_true(pages != MAP_FAILED);
	assert_int_equal(mprotect(pages + 4096, 4096, PROT_NONE), 0);
	assert_int_equal(percpu_record_ring_init(&ring, CAPACITY, PERCPU_RING_OVERWRITE), 0);
	for (unsigned turn = 0; turn < 30; turn++) {
		percpu__thread_force((enum percpu__force)(turn % 3));
		for (size_t length = 0; length <= 200; length++)
			assert_int_equal(percpu_record_ring_write(&ring, 1, pages + 4096 - length, length), 0);
		assert_int_equal(percpu_record_ring_write(&ring, 1, pages + 4096 - 3, 3), 0);
		assert_int_equal(percpu_record_ring_write(&ring, 1, pages + 4096 - 11, 11), 0);
		assert_int_equal(percpu_record_ring_write(&ring, 1, pages + 4096 - 29, 29), 0);
		assert_int_equal(percpu_record_ring_write(&ring, 1, pages + 4096 - 61, 61), 0);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	percpu_record_ring_destroy(&ring);
	munmap(pages, 8192);
}

/* Fills and empties in turns; everything comes out, in order, and a full copy holds what it should. */
static void order_and_full(void **state)
{
	uint64_t random = 88172645463325252;

	(void)state;
	for (size_t capacity = PERCPU_RECORD_RING_MIN; capacity <= CAPACITY; capacity *= 2) {
		uint32_t in = 0, out = 0;

		assert_int_equal(percpu_record_ring_init(&ring, capacity, PERCPU_RING_REFUSE), 0);
		for (unsigned turn = 0; turn < 300; turn++) {
			struct percpu_record_batch batch;
			size_t held = 0, length;
			int rc;

			if (turn % 7 == 3)
				percpu__thread_force(PERCPU__FORCE_GATE);
			for (;;) {
				length = in * 31 % (percpu_record_ring_longest(&ring) + 1);
				rc = percpu_record_ring_write(&ring, in, bytes + in % 60, length);
				if (rc)
					break;
				in++;
				held += percpu_record_size(length);
			}
			percpu__thread_force(PERCPU__FORCE_OFF);
			assert_int_equal(rc, -ENOBUFS);
			if (out == in - (in - out) && turn == 0)
				assert_true(held + (percpu_record_size(length) > 72 ? percpu_record_size(length) : 72) >
					    capacity);
			/* Too small for some: those stay until the buffer is large enough. */
			for (size_t size = unit_random(&random) % capacity / 8 * 8 + 16;; size += capacity / 4) {
				const struct percpu_record *record = NULL;

				rc = percpu_record_ring_read(&ring, buffer, size < sizeof buffer ? size : sizeof buffer,
							     &batch);
				if (rc != -EMSGSIZE) {
					assert_int_equal(rc, 1);
					assert_true(batch.bytes <= size);
					while ((record = percpu_record_next(buffer, &batch, record))) {
						expect_record(record, out,
							      out * 31 % (percpu_record_ring_longest(&ring) + 1));
						out++;
						batch.count--;
					}
					assert_int_equal(batch.count, 0);
					break;
				}
			}
		}
		assert_int_equal(percpu_record_ring_lost(&ring), 0);
		percpu_record_ring_destroy(&ring);
	}
}

/* What is lost is told with what follows it, exactly; what stays is the newest, without gaps. */
static void oldest_are_dropped(void **state)
{
	(void)state;
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		struct percpu_record_batch batch;
		uint32_t in = 0;
		uint64_t taken = 0;

		assert_int_equal(percpu_record_ring_init(&ring, CAPACITY, PERCPU_RING_OVERWRITE), 0);
		percpu__thread_force(force);
		for (unsigned turn = 1; turn < 100; turn++) {
			const struct percpu_record *record = NULL;
			size_t length = 0;

			for (unsigned i = 0; i < turn * 5; i++, in++) {
				length = (turn % 3 ? in * 17 : turn) % (turn % 5 ? 100 : LONGEST + 1);
				assert_int_equal(percpu_record_ring_write(&ring, in, bytes + in % 60, length), 0);
			}
			assert_int_equal(
				percpu_record_ring_read(&ring, buffer, turn % 4 ? sizeof buffer : CAPACITY / 4, &batch),
				1);
			while ((record = percpu_record_next(buffer, &batch, record))) {
				expect_record(record, (uint32_t)(taken + batch.lost), record->length);
				taken++;
			}
			assert_int_equal(percpu_record_ring_lost(&ring), batch.lost);
			if (turn % 4)
				assert_int_equal(taken + batch.lost, in);
		}
		percpu__thread_force(PERCPU__FORCE_OFF);
		percpu_record_ring_destroy(&ring);
	}
}

static void peeking(void **state)
{
	struct percpu_record_batch batch, again;
	unsigned found = 0;

	(void)state;
	assert_int_equal(percpu_record_ring_init(&ring, CAPACITY, PERCPU_RING_OVERWRITE), 0);
	for (uint32_t i = 0; i < 1000; i++)
		assert_int_equal(percpu_record_ring_write(&ring, i, bytes + i % 60, 20), 0);
	percpu_for_each_index(index) {
		const struct percpu_record *record = NULL;

		if (percpu_record_ring_peek_index(&ring, index, buffer, sizeof buffer, &batch) == 0)
			continue;
		found++;
		assert_int_equal(batch.index, index);
		while ((record = percpu_record_next(buffer, &batch, record)))
			expect_record(record, record->tag, 20);
		assert_int_equal(batch.lost + batch.count, 1000);
		assert_int_equal(percpu_record_ring_peek_index(&ring, index, buffer, 32, &again), 1);
		assert_int_equal(again.count, 1);
		assert_int_equal(percpu_record_ring_peek_index(&ring, index, buffer, 24, &again), -EMSGSIZE);
		assert_int_equal(again.count, 1);
		assert_int_equal(percpu_record_ring_read_index(&ring, index, buffer, sizeof buffer, &again), 1);
		assert_int_equal(again.count, batch.count);
		assert_int_equal(percpu_record_ring_peek_index(&ring, index, buffer, sizeof buffer, &again), 0);
	}
	assert_int_equal(found, 1);
	assert_int_equal(percpu_record_ring_discard(&ring, 0), 0);
	percpu_record_ring_destroy(&ring);
}

/* Threads: each record is read whole by one consumer, or counted. */

#define PRODUCERS 4U
#define EACH      40000U

struct payload {
	uint32_t who, what;
	unsigned char rest[300];
};

static unsigned char met[PRODUCERS][EACH];
static uint32_t done, wrong;
static uint64_t received;

static size_t length_of(uint32_t who, uint32_t what)
{
	return 8 + (what * 13 + who) % (what % 50 ? 60 : 300);
}

static void *write_records(void *arg)
{
	struct payload p = { .who = *(unsigned *)arg };

	for (; p.what < EACH; p.what++) {
		size_t length = length_of(p.who, p.what);
		int rc;

		memset(p.rest, (int)(p.what * 3 + p.who), length - 8);
		if (p.what % 256 == 0)
			percpu__thread_force((enum percpu__force)((p.what / 256 + p.who) % 9 == 0 ? PERCPU__FORCE_GATE
								  : (p.what / 256 + p.who) % 4 == 0
									  ? PERCPU__FORCE_REMAINDER
									  : PERCPU__FORCE_OFF));
		do {
			rc = percpu_record_ring_write(&ring, p.who, &p, length);
			if (rc == -ENOBUFS)
				sched_yield();
		} while (rc == -ENOBUFS);
		if (rc)
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static bool is_whole(const struct percpu_record *record)
{
	const struct payload *p = percpu_record_data(record);

	if (record->tag >= PRODUCERS || p->who != record->tag || p->what >= EACH ||
	    record->length != length_of(p->who, p->what))
		return false;
	for (size_t i = 0; i < record->length - 8; i++)
		if (p->rest[i] != (unsigned char)(p->what * 3 + p->who))
			return false;
	return __atomic_fetch_add(&met[p->who][p->what], 1, __ATOMIC_RELAXED) == 0;
}

static void read_all(uint64_t *into, size_t size)
{
	struct percpu_record_batch batch;
	int rc;

	while ((rc = percpu_record_ring_read(&ring, into, size, &batch)) == 1) {
		const struct percpu_record *record = NULL;

		while ((record = percpu_record_next(into, &batch, record)))
			if (!is_whole(record))
				__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(&received, batch.count, __ATOMIC_RELAXED);
	}
	if (rc)
		__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
}

static void *read_records(void *arg)
{
	uint64_t mine[CAPACITY / 8];

	while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE)) {
		int rc = percpu_record_ring_wait(&ring, -1);

		if (rc)
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
		read_all(mine, *(unsigned *)arg ? 512 : sizeof mine);
	}
	return NULL;
}

static void each_record_once(unsigned policy)
{
	unsigned numbers[PRODUCERS + 2];
	pthread_t readers[2];

	memset(met, 0, sizeof met);
	done = wrong = 0;
	received = 0;
	assert_int_equal(percpu_record_ring_init(&ring, 2048, policy), 0);
	for (unsigned i = 0; i < PRODUCERS; i++)
		numbers[i] = i;
	for (unsigned i = 0; i < 2; i++) {
		numbers[PRODUCERS + i] = i;
		assert_int_equal(pthread_create(&readers[i], NULL, read_records, &numbers[PRODUCERS + i]), 0);
	}
	unit_threads(PRODUCERS, write_records, numbers, sizeof *numbers);
	__atomic_store_n(&done, 1, __ATOMIC_RELEASE);
	percpu_record_ring_wake_up(&ring);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_join(readers[i], NULL), 0);
	read_all(buffer, sizeof buffer);
	assert_int_equal(wrong, 0);
	assert_int_equal(received + percpu_record_ring_lost(&ring), PRODUCERS * EACH);
	percpu_record_ring_destroy(&ring);
}

static void each_record_once_refused(void **state)
{
	(void)state;
	each_record_once(PERCPU_RING_REFUSE);
}

static void each_record_once_or_lost(void **state)
{
	(void)state;
	each_record_once(PERCPU_RING_OVERWRITE);
}

/* A child of fork counts what it lost itself, from what its parent had lost at that moment, exactly. */
static uint32_t written;

static int count_in_child(void)
{
	struct percpu_record_batch batch;
	uint64_t there = 0;

	percpu_for_each_index(index) {
		int rc = percpu_record_ring_read_index(&ring, index, buffer, sizeof buffer, &batch);

		if (rc < 0)
			return 1;
		there += rc ? batch.count : 0;
	}
	/* The other thread was at its last record, or behind it, or before it began. */
	return there + percpu_record_ring_lost(&ring) - __atomic_load_n(&written, __ATOMIC_ACQUIRE) <= 1 ? 0 : 2;
}

static void *write_until_done(void *arg)
{
	while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE)) {
		percpu__thread_force((enum percpu__force)(written % 3));
		if (percpu_record_ring_write(&ring, 0, bytes, 40 + written % 30))
			__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
		__atomic_store_n(&written, written + 1, __ATOMIC_RELEASE);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return arg;
}

static void forked_while_dropping(void **state)
{
	pthread_t writer;

	(void)state;
	done = wrong = 0;
	assert_int_equal(percpu_record_ring_init(&ring, 512, PERCPU_RING_OVERWRITE), 0);
	assert_int_equal(pthread_create(&writer, NULL, write_until_done, NULL), 0);
	for (int i = 0; i < 200; i++)
		assert_int_equal(unit_in_child(count_in_child), 0);
	__atomic_store_n(&done, 1, __ATOMIC_RELEASE);
	assert_int_equal(pthread_join(writer, NULL), 0);
	assert_int_equal(wrong, 0);
	percpu_record_ring_destroy(&ring);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(arguments, stay, leave),
		cmocka_unit_test_setup_teardown(every_length, stay, leave),
		cmocka_unit_test_setup_teardown(reads_no_further, stay, leave),
		cmocka_unit_test_setup_teardown(order_and_full, stay, leave),
		cmocka_unit_test_setup_teardown(oldest_are_dropped, stay, leave),
		cmocka_unit_test_setup_teardown(peeking, stay, leave),
		cmocka_unit_test(each_record_once_refused),
		cmocka_unit_test(each_record_once_or_lost),
		cmocka_unit_test(forked_while_dropping),
	};

	return unit_main(tests);
}
