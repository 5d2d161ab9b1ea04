/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: write a record into a buffer of 16 KiB, small enough for the nearest cache; put a pointer into a queue and
 * take it out.
 *
 * Nobody waits for room: "percpu" writes to a ring that refuses when full and is emptied often, at next to no cost, as by
 * a consumer that keeps up; "percpu_overwrite" to one that drops its oldest records, and pays for that. The rivals
 * overwrite without asking what they lose.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"

#ifdef HAVE_CK
#include <ck_ring.h>
#endif
#ifdef HAVE_URCU
#define _LGPL_SOURCE
#include <urcu/wfcqueue.h>
#endif

#define CAPACITY 16384U
#define LONGEST  64U
#define TURN     128U /* pointers between two emptyings */
#define ENTRIES  1024U

/* A circular buffer of records: its position, then the bytes, with slack for the last. */
struct buffer {
	BENCH_ALIGNED uint64_t tail;
	uint64_t committed; /* of getcpu_atomic: bytes whose copy is complete */
	BENCH_ALIGNED unsigned char bytes[CAPACITY + LONGEST + 8];
};

/* What each thread has of the rivals' queues. */
struct queues {
	BENCH_ALIGNED struct percpu_ring alone;
#ifdef HAVE_CK
	BENCH_ALIGNED struct ck_ring spsc;
	BENCH_ALIGNED struct ck_ring mpsc;
	BENCH_ALIGNED ck_ring_buffer_t spsc_entries[ENTRIES];
	BENCH_ALIGNED ck_ring_buffer_t mpsc_entries[ENTRIES];
#endif
#ifdef HAVE_URCU
	BENCH_ALIGNED struct cds_wfcq_head head;
	BENCH_ALIGNED struct cds_wfcq_tail tail;
	BENCH_ALIGNED struct cds_wfcq_node nodes[2];
#endif
	BENCH_ALIGNED uint64_t wrong;
};

static struct {
	struct percpu_record_ring refuse, overwrite;
	struct percpu_ring pointers;
	struct buffer *by_cpu; /* per-CPU */
	struct buffer *by_getcpu, *by_thread;
	struct queues *queues;
	unsigned threads;
	BENCH_ALIGNED pthread_mutex_t mutex;
	struct buffer locked;
	BENCH_ALIGNED unsigned char record[LONGEST];
	BENCH_ALIGNED uint64_t refused;
} here = { .mutex = PTHREAD_MUTEX_INITIALIZER };

/* ---- ours */

static inline __attribute__((always_inline)) void write_percpu(struct percpu_record_ring *ring, uint64_t n,
							       size_t length, bool empty)
{
	const unsigned char *record = here.record;
	uint64_t refused = 0;

	while (n) {
		/* Three quarters full. */
		uint64_t most = (uint64_t)CAPACITY / 4 * 3 / percpu_record_size(length), turn = n < most ? n : most;

		n -= turn;
		for (; turn; turn--)
			refused += percpu_record_ring_write(ring, 1, record, length) != 0;
		if (empty)
			percpu_record_ring_discard(ring, (unsigned)percpu_cid());
	}
	if (refused)
		__atomic_fetch_add(&here.refused, refused, __ATOMIC_RELAXED);
}

/* ---- the limit: a buffer of the thread's own */

static inline __attribute__((always_inline)) void append(struct buffer *buffer, const void *record, size_t length)
{
	unsigned char *at = buffer->bytes + (buffer->tail & (CAPACITY - 1));
	uint64_t header = length | UINT64_C(1) << 32;

	memcpy(at, &header, sizeof(header));
	memcpy(at + sizeof(header), record, length);
	__atomic_store_n(&buffer->tail, buffer->tail + length + sizeof(header), __ATOMIC_RELEASE);
}

static inline __attribute__((always_inline)) void write_plain(struct buffer *buffer, uint64_t n, size_t length)
{
	for (; n; n--)
		append(buffer, here.record, length);
}

static inline __attribute__((always_inline)) void write_mutex(uint64_t n, size_t length)
{
	for (; n; n--) {
		pthread_mutex_lock(&here.mutex);
		append(&here.locked, here.record, length);
		pthread_mutex_unlock(&here.mutex);
	}
}

/* As tracers do: reserve by one atomic addition, copy, and commit by another. */
static inline __attribute__((always_inline)) void write_getcpu(uint64_t n, size_t length)
{
	uint64_t header = length | UINT64_C(1) << 32;

	for (; n; n--) {
		struct buffer *buffer = &here.by_getcpu[(unsigned)sched_getcpu()];
		uint64_t tail = __atomic_fetch_add(&buffer->tail, length + sizeof(header), __ATOMIC_RELAXED);
		unsigned char *at = buffer->bytes + (tail & (CAPACITY - 1));

		memcpy(at, &header, sizeof(header));
		memcpy(at + sizeof(header), here.record, length);
		__atomic_fetch_add(&buffer->committed, length + sizeof(header), __ATOMIC_RELEASE);
	}
}

/*
 * ---- byte_copy: the shape of restartable sequences as another library has it
 *
 * The CPU number and the position are read before the sequence, which compares both, saves the copy's operands, copies
 * byte by byte, stores the new position and restores the operands. A record has no header here.
 */
#if defined PERCPU_NO_SECTIONS || !defined __x86_64__
static const char *skip_byte_copy(void)
{
	return "written for x86-64 with restartable sequences";
}

static inline __attribute__((always_inline)) void write_byte_copy(uint64_t n, size_t length)
{
	(void)n;
	(void)length;
}
#else
static const char *skip_byte_copy(void)
{
	struct percpu_description how;

	return percpu_describe(&how) || how.mode == PERCPU_MODE_NONE ? "restartable sequences cannot be used here"
								     : NULL;
}

static inline __attribute__((always_inline)) bool byte_copy_once(struct percpu__rseq *area, uint32_t cpu,
								 uint64_t *tail, uint64_t expected, void *dst,
								 const void *src, size_t length, uint64_t desired)
{
	uint64_t saved[3];

	__asm__ __volatile__ goto(
		PERCPU__DESCRIPTOR PERCPU__A_ARM(
			"3b",
			PERCPU__A_AREA) "1:\n\t"
					"cmpl %[cpu], 4(%[area])\n\tjne 4f\n\t"
					"cmpq %[tail], %[expected]\n\tjne %l[again]\n\t"
					"movq %[src], 0(%[saved])\n\tmovq %[dst], 8(%[saved])\n\tmovq %[length], 16(%[saved])\n\t"
					"testq %[length], %[length]\n\tjz 6f\n"
					"5:\n\tmovb (%[src]), %%al\n\tmovb %%al, (%[dst])\n\tincq %[src]\n\tincq %[dst]\n\tdecq %[length]\n\t"
					"jnz 5b\n"
					"6:\n\tmovq %[desired], %[tail]\n"
					"2:\n\tmovq 16(%[saved]), %[length]\n\tmovq 8(%[saved]), %[dst]\n\tmovq 0(%[saved]), %[src]\n\t" PERCPU__A_COLD
						PERCPU__SIGNATURE_ASM "4:\n\t" PERCPU__A_JUMP("%l[aborted]")
							PERCPU__A_COLD_END PERCPU__EXIT("%l[again]")
		:
		: [area] "r"(area), [cpu] "r"(cpu), [tail] "m"(*tail), [expected] "r"(expected), [dst] "r"(dst),
		  [src] "r"(src), [length] "r"(length), [desired] "r"(desired), [saved] "r"(saved)
		: "rax", "memory", "cc"
		: again, aborted);
	return true;
aborted:
	/* Its operands may be anywhere between; those who restore them here do so as behind the commit. */
	__asm__ __volatile__("" : : "m"(saved));
again:
	return false;
}

static inline __attribute__((always_inline)) void write_byte_copy(uint64_t n, size_t length)
{
	struct percpu__rseq *area = percpu__self;

	for (; n; n--) {
		struct buffer *buffer;
		uint64_t tail;

		do {
			uint32_t cpu = *(const volatile uint32_t *)&area->cpu_id_start;

			buffer = percpu_ptr(here.by_cpu, cpu);
			tail = *(const volatile uint64_t *)&buffer->tail;
			if (byte_copy_once(area, cpu, &buffer->tail, tail, buffer->bytes + (tail & (CAPACITY - 1)),
					   here.record, length, tail + length))
				break;
		} while (true);
	}
}
#endif

#define LOOPS(length)                                                                                                  \
	BENCH_LOOP record_percpu_##length(struct bench_worker *worker, uint64_t n)                                     \
	{                                                                                                              \
		(void)worker;                                                                                          \
		write_percpu(&here.refuse, n, length, true);                                                           \
	}                                                                                                              \
	BENCH_LOOP record_overwrite_##length(struct bench_worker *worker, uint64_t n)                                  \
	{                                                                                                              \
		(void)worker;                                                                                          \
		write_percpu(&here.overwrite, n, length, false);                                                       \
	}                                                                                                              \
	BENCH_LOOP record_byte_copy_##length(struct bench_worker *worker, uint64_t n)                                  \
	{                                                                                                              \
		(void)worker;                                                                                          \
		write_byte_copy(n, length);                                                                            \
	}                                                                                                              \
	BENCH_LOOP record_plain_##length(struct bench_worker *worker, uint64_t n)                                      \
	{                                                                                                              \
		write_plain(&here.by_thread[worker->id], n, length);                                                   \
	}                                                                                                              \
	BENCH_LOOP record_mutex_##length(struct bench_worker *worker, uint64_t n)                                      \
	{                                                                                                              \
		(void)worker;                                                                                          \
		write_mutex(n, length);                                                                                \
	}                                                                                                              \
	BENCH_LOOP record_getcpu_##length(struct bench_worker *worker, uint64_t n)                                     \
	{                                                                                                              \
		(void)worker;                                                                                          \
		write_getcpu(n, length);                                                                               \
	}                                                                                                              \
	static const struct bench_subject record_subjects_##length[] = {                                               \
		{ .name = "percpu",                                                                                    \
		  .what = "percpu_record_ring_write(), emptied often",                                                 \
		  .loop = record_percpu_##length },                                                                    \
		{ .name = "percpu_overwrite",                                                                          \
		  .what = "the same, full, dropping the oldest records",                                               \
		  .loop = record_overwrite_##length },                                                                 \
		{ .name = "plain", .what = "memcpy() into a buffer of the thread", .loop = record_plain_##length },    \
		{ .name = "byte_copy",                                                                                 \
		  .what = "rseq: CPU number read outside, compared inside, bytes copied one by one",                   \
		  .loop = record_byte_copy_##length,                                                                   \
		  .skip = skip_byte_copy },                                                                            \
		{ .name = "getcpu_atomic",                                                                             \
		  .what = "sched_getcpu(), atomic reserve, memcpy(), atomic commit",                                   \
		  .loop = record_getcpu_##length,                                                                      \
		  .skip = bench_skip_sched_getcpu },                                                                   \
		{ .name = "mutex",                                                                                     \
		  .what = "memcpy() into one buffer under a pthread mutex",                                            \
		  .loop = record_mutex_##length },                                                                     \
		{ .name = NULL },                                                                                      \
	}
LOOPS(16);
LOOPS(64);

/* ---- pointers */

/* A thread may be moved in between: then it takes out what another has put in, or nothing. */
static inline __attribute__((always_inline)) void pairs(struct percpu_ring *ring, uint64_t n)
{
	void *out;

	for (; n; n--) {
		percpu_ring_push(ring, ring);
		BENCH_USE(percpu_ring_pop_index(ring, (unsigned)percpu_cid(), &out, 1));
	}
}

BENCH_LOOP pair_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	pairs(&here.pointers, n);
}

/* Of this ring only one thread takes anything, so each has its own. */
BENCH_LOOP pair_percpu_alone(struct bench_worker *worker, uint64_t n)
{
	pairs(&here.queues[worker->id].alone, n);
}

BENCH_LOOP pair_percpu_batch(struct bench_worker *worker, uint64_t n)
{
	struct percpu_ring *ring = &here.pointers;
	void *out[TURN];

	(void)worker;
	while (n) {
		uint64_t turn = n < TURN ? n : TURN;

		n -= turn;
		for (; turn; turn--)
			percpu_ring_push(ring, ring);
		BENCH_USE(percpu_ring_pop_index(ring, (unsigned)percpu_cid(), out, TURN));
	}
}

#ifdef HAVE_CK
static const char *skip_ck(void)
{
	return NULL;
}

BENCH_LOOP pair_ck_spsc(struct bench_worker *worker, uint64_t n)
{
	struct queues *q = &here.queues[worker->id];
	uint64_t wrong = 0;
	void *out;

	for (; n; n--) {
		wrong += !ck_ring_enqueue_spsc(&q->spsc, q->spsc_entries, q);
		wrong += !ck_ring_dequeue_spsc(&q->spsc, q->spsc_entries, &out);
	}
	q->wrong += wrong;
}

BENCH_LOOP pair_ck_mpsc(struct bench_worker *worker, uint64_t n)
{
	struct queues *q = &here.queues[worker->id];
	uint64_t wrong = 0;
	void *out;

	for (; n; n--) {
		wrong += !ck_ring_enqueue_mpsc(&q->mpsc, q->mpsc_entries, q);
		wrong += !ck_ring_dequeue_mpsc(&q->mpsc, q->mpsc_entries, &out);
	}
	q->wrong += wrong;
}
#else
static const char *skip_ck(void)
{
	return "built without Concurrency Kit";
}
#define pair_ck_spsc NULL
#define pair_ck_mpsc NULL
#endif

#ifdef HAVE_URCU
static const char *skip_urcu(void)
{
	return NULL;
}

/* A node may be queued again as soon as another one is behind it, or the queue is empty. */
BENCH_LOOP pair_wfcqueue(struct bench_worker *worker, uint64_t n)
{
	struct queues *q = &here.queues[worker->id];
	uint64_t wrong = 0;

	for (; n; n--) {
		struct cds_wfcq_node *node = &q->nodes[n & 1];

		cds_wfcq_node_init(node);
		cds_wfcq_enqueue(&q->head, &q->tail, node);
		wrong += __cds_wfcq_dequeue_blocking(&q->head, &q->tail) != node;
	}
	q->wrong += wrong;
}
#else
static const char *skip_urcu(void)
{
	return "built without liburcu";
}
#define pair_wfcqueue NULL
#endif

static const struct bench_subject pointer_subjects[] = {
	{ .name = "percpu", .what = "percpu_ring_push() and percpu_ring_pop_index() of one", .loop = pair_percpu },
	{ .name = "percpu_one_consumer",
	  .what = "the same with one consumer, one ring for each thread",
	  .loop = pair_percpu_alone },
	{ .name = "percpu_batch", .what = "the same, taken out 128 at a time", .loop = pair_percpu_batch },
	{ .name = "ck_ring_spsc",
	  .what = "Concurrency Kit's ck_ring, one producer, one consumer, one ring for each thread",
	  .loop = pair_ck_spsc,
	  .skip = skip_ck },
	{ .name = "ck_ring_mpsc",
	  .what = "the same for many producers and one consumer",
	  .loop = pair_ck_mpsc,
	  .skip = skip_ck },
	{ .name = "wfcqueue",
	  .what = "liburcu's wfcqueue, many producers, one consumer, one for each thread",
	  .loop = pair_wfcqueue,
	  .skip = skip_urcu },
	{ .name = NULL },
};

static int record_setup(unsigned threads)
{
	unsigned cpus = percpu_possible_cpus();
	int rc;

	here.refused = 0;
	memset(here.record, 0x5a, sizeof(here.record));
	here.by_cpu = percpu_alloc(sizeof(*here.by_cpu), 128);
	here.by_getcpu = aligned_alloc(128, cpus * sizeof(*here.by_getcpu));
	here.by_thread = aligned_alloc(128, threads * sizeof(*here.by_thread));
	if (!here.by_cpu || !here.by_getcpu || !here.by_thread)
		return -ENOMEM;
	memset(here.by_getcpu, 0, cpus * sizeof(*here.by_getcpu));
	memset(here.by_thread, 0, threads * sizeof(*here.by_thread));
	rc = percpu_record_ring_init(&here.refuse, CAPACITY, PERCPU_RING_REFUSE);
	return rc ? rc : percpu_record_ring_init(&here.overwrite, CAPACITY, PERCPU_RING_OVERWRITE);
}

static const char *record_check(const uint64_t *done)
{
	(void)done;
	/* A thread that was moved leaves what it wrote where nobody empties it, for a while. */
	return percpu_record_ring_lost(&here.refuse) ? "a ring that refuses has dropped records" : NULL;
}

static void record_teardown(void)
{
	percpu_record_ring_destroy(&here.refuse);
	percpu_record_ring_destroy(&here.overwrite);
	percpu_free(here.by_cpu);
	free(here.by_getcpu);
	free(here.by_thread);
	here.by_cpu = here.by_getcpu = here.by_thread = NULL;
}

static int pointer_setup(unsigned threads)
{
	here.threads = threads;
	here.queues = aligned_alloc(_Alignof(struct queues), threads * sizeof(*here.queues));
	if (!here.queues)
		return -ENOMEM;
	memset(here.queues, 0, threads * sizeof(*here.queues));
	for (unsigned i = 0; i < threads; i++) {
		int rc = percpu_ring_init(&here.queues[i].alone, ENTRIES, PERCPU_RING_ONE_CONSUMER);

		if (rc)
			return rc;
#ifdef HAVE_CK
		ck_ring_init(&here.queues[i].spsc, ENTRIES);
		ck_ring_init(&here.queues[i].mpsc, ENTRIES);
#endif
#ifdef HAVE_URCU
		cds_wfcq_init(&here.queues[i].head, &here.queues[i].tail);
#endif
	}
	return percpu_ring_init(&here.pointers, ENTRIES, PERCPU_RING_REFUSE);
}

static const char *pointer_check(const uint64_t *done)
{
	(void)done;
	for (unsigned i = 0; i < here.threads; i++)
		if (here.queues[i].wrong)
			return "a queue does not give back what went in";
	return NULL;
}

static void pointer_teardown(void)
{
	for (unsigned i = 0; here.queues && i < here.threads; i++) {
		percpu_ring_destroy(&here.queues[i].alone);
#ifdef HAVE_URCU
		cds_wfcq_destroy(&here.queues[i].head, &here.queues[i].tail);
#endif
	}
	percpu_ring_destroy(&here.pointers);
	free(here.queues);
	here.queues = NULL;
}

const struct bench bench_ring_record_16 = {
	.name = "ring_record_16",
	.what = "write a record of 16 bytes",
	.subjects = record_subjects_16,
	.setup = record_setup,
	.check = record_check,
	.teardown = record_teardown,
};
const struct bench bench_ring_record_64 = {
	.name = "ring_record_64",
	.what = "write a record of 64 bytes",
	.subjects = record_subjects_64,
	.setup = record_setup,
	.check = record_check,
	.teardown = record_teardown,
};
const struct bench bench_ring_pointer_pair = {
	.name = "ring_pointer_pair",
	.what = "put a pointer into a queue and take it out",
	.subjects = pointer_subjects,
	.setup = pointer_setup,
	.check = pointer_check,
	.teardown = pointer_teardown,
};
