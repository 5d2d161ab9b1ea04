/* SPDX-License-Identifier: MIT */
/*
 * percpu bench malloc: the rows that are loops. They run in the child, in the threads and rounds of bench_run().
 *
 * malloc and free are called as any program calls them, and the compiler is kept from knowing what they are. Except in the
 * pairs, a block is written to, as nobody allocates what he does not use.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench_malloc.h"

extern char **environ;

#define SLOTS 1000

/* Whatever this may do with the block, it must have been allocated, and what is in it is no longer known. */
#define ESCAPE(pointer) __asm__ __volatile__("" : : "r"(pointer) : "memory")

#define PAIR(size)                                                                                                     \
	BENCH_LOOP pair_##size(struct bench_worker *worker, uint64_t n)                                                \
	{                                                                                                              \
		(void)worker;                                                                                          \
		for (; n; n--) {                                                                                       \
			void *pointer = malloc(size);                                                                  \
                                                                                                                       \
			ESCAPE(pointer);                                                                               \
			free(pointer);                                                                                 \
		}                                                                                                      \
	}
PAIR(16)
PAIR(64)
PAIR(512)
PAIR(4096)

/* Of a thread, or of a chain of threads. Untouched ones cost nothing. */
struct holder {
	BENCH_ALIGNED uint64_t random;
	uint64_t n;
	char *slots[SLOTS];
};
static struct holder holders[BENCH_MAX_THREADS];

static inline char *new_block(size_t size)
{
	char *block = malloc_checked(size);

	ESCAPE(block);
	*block = 1;
	return block;
}

static void fill_slots(struct bench_worker *worker)
{
	struct holder *holder = &holders[worker->id];

	holder->random = malloc_seed(worker->id);
	for (unsigned i = 0; i < SLOTS; i++)
		holder->slots[i] = new_block(malloc_between(malloc_random(&holder->random), 8, 1024));
}

BENCH_LOOP random_sizes(struct bench_worker *worker, uint64_t n)
{
	struct holder *holder = &holders[worker->id];
	uint64_t state = holder->random;

	for (; n; n--) {
		uint64_t random = malloc_random(&state);
		char **slot = &holder->slots[malloc_below(random, SLOTS)];

		free(*slot);
		*slot = new_block(malloc_between(random, 8, 1024));
	}
	holder->random = state;
}

/*
 * The server of Larson and Krishnan: a thread replaces objects for a while, then ends, and a successor takes over what it
 * had. One malloc in SAMPLE is timed alone: their distribution has what a mean hides.
 */
#define GENERATION 50000
#define SAMPLE     32
#define BUCKETS    640

static atomic_uint samples[BUCKETS];

/* 16 buckets for each power of two. */
static unsigned bucket_of(uint64_t ns)
{
	unsigned shift;

	if (ns < 32)
		return (unsigned)ns;
	shift = 59U - (unsigned)__builtin_clzll(ns);
	return 16 * shift + (unsigned)(ns >> shift) < BUCKETS ? 16 * shift + (unsigned)(ns >> shift) : BUCKETS - 1;
}

static double bucket_middle(unsigned bucket)
{
	unsigned shift = bucket < 32 ? 0 : bucket / 16 - 1;

	return ((double)(bucket - 16 * shift) + (shift ? 0.5 : 0)) * (double)(1ULL << shift);
}

static void *serve(void *arg)
{
	struct holder *holder = arg;
	uint64_t state = holder->random;

	for (uint64_t n = holder->n; n; n--) {
		uint64_t random = malloc_random(&state);
		char **slot = &holder->slots[malloc_below(random, SLOTS)];
		uint32_t size = malloc_between(random, 8, 1024);

		free(*slot);
		if (n % SAMPLE) {
			*slot = new_block(size);
		} else {
			double start = malloc_now();

			*slot = malloc_checked(size);
			ESCAPE(*slot);
			atomic_fetch_add_explicit(&samples[bucket_of((uint64_t)(malloc_now() - start))], 1,
						  memory_order_relaxed);
			**slot = 1;
		}
	}
	holder->random = state;
	return NULL;
}

BENCH_LOOP larson(struct bench_worker *worker, uint64_t n)
{
	struct holder *holder = &holders[worker->id];

	for (uint64_t some; n; n -= some) {
		pthread_attr_t attr;
		pthread_t thread;

		some = n < GENERATION ? n : GENERATION;
		holder->n = some;
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, 256 << 10);
		if (pthread_create(&thread, &attr, serve, holder))
			malloc_give_up("cannot make a thread");
		pthread_attr_destroy(&attr);
		pthread_join(thread, NULL);
	}
}

static void larson_finish(struct malloc_report *report)
{
	uint64_t all = 0, above = 0;
	unsigned i = BUCKETS;

	for (unsigned k = 0; k < BUCKETS; k++)
		all += atomic_load(&samples[k]);
	while (i && above <= all / 10000)
		above += atomic_load(&samples[--i]);
	report->p9999 = bucket_middle(i);
}

/* Blocks go from one thread to another through a ring that is as cheap as such a ring can be. */
#define RING       1024
#define BLOCK      64
#define TRY_BEFORE 200

static struct ring {
	BENCH_ALIGNED atomic_size_t tail; /* written by the producer, with what it last saw of the other */
	size_t seen_head;
	BENCH_ALIGNED atomic_size_t head; /* written by the consumer */
	size_t seen_tail;
	BENCH_ALIGNED uint64_t *blocks[RING];
} rings[BENCH_MAX_THREADS / 2];

static inline void wait_a_little(unsigned *tries)
{
#if defined __x86_64__
	__builtin_ia32_pause();
#endif
	/* The other may be waiting for this CPU. */
	if (++*tries % TRY_BEFORE == 0)
		sched_yield();
}

static void produce(struct ring *ring, uint64_t n)
{
	size_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
	unsigned tries = 0;

	for (; n; n--) {
		uint64_t *block = malloc_checked(BLOCK);

		*block = n;
		while (tail - ring->seen_head == RING) {
			ring->seen_head = atomic_load_explicit(&ring->head, memory_order_acquire);
			if (tail - ring->seen_head == RING)
				wait_a_little(&tries);
		}
		ring->blocks[tail % RING] = block;
		/* Pairs with the consumer's acquire: else it might see the place before the block. */
		atomic_store_explicit(&ring->tail, ++tail, memory_order_release);
	}
}

static void consume(struct ring *ring, uint64_t n)
{
	size_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
	unsigned tries = 0;

	for (; n; n--) {
		uint64_t *block;

		while (head == ring->seen_tail) {
			ring->seen_tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
			if (head == ring->seen_tail)
				wait_a_little(&tries);
		}
		block = ring->blocks[head % RING];
		/* Pairs with the producer's acquire: else it might fill the place before it was read. */
		atomic_store_explicit(&ring->head, ++head, memory_order_release);
		if (*block != n)
			malloc_give_up("a block changed on its way to another thread");
		free(block);
	}
}

BENCH_LOOP producer_consumer(struct bench_worker *worker, uint64_t n)
{
	(worker->id % 2 ? consume : produce)(&rings[worker->id / 2], n);
}

/* Two vectors grow in turn, by half of their size, from 16 bytes to 4 MiB, so that neither lies alone at the end. */
static struct growth {
	BENCH_ALIGNED char *data[2];
	size_t size[2];
} growths[BENCH_MAX_THREADS];

BENCH_LOOP grow(struct bench_worker *worker, uint64_t n)
{
	struct growth *growth = &growths[worker->id];

	for (; n; n--) {
		char **data = &growth->data[n % 2];
		size_t old = growth->size[n % 2], size = old < 16 ? 16 : old + old / 2;
		char *new;

		if (size > 4 << 20) {
			free(*data);
			*data = NULL;
			old = 0;
			size = 16;
		}
		new = realloc(*data, size);
		if (!new)
			malloc_give_up("no memory");
		if (old && new[old - 1] != 1)
			malloc_give_up("realloc lost what was in the block");
		for (size_t at = old; at < size; at += 4096)
			new[at] = 1;
		new[size - 1] = 1;
		*data = new;
		growth->size[n % 2] = size;
	}
}

BENCH_LOOP calloc_large(struct bench_worker *worker, uint64_t n)
{
	struct holder *holder = &holders[worker->id];

	for (; n; n--) {
		size_t size = 4096 * (size_t)malloc_between(malloc_random(&holder->random), 32, 256);
		char *block = calloc(1, size);

		if (!block)
			malloc_give_up("no memory");
		ESCAPE(block);
		for (size_t at = 0; at < size; at += 4096) {
			if (block[at])
				malloc_give_up("calloc returned memory that is not zero");
			block[at] = 1;
		}
		free(block);
	}
}

static void calloc_begin(struct bench_worker *worker)
{
	holders[worker->id].random = malloc_seed(worker->id);
}

static pid_t start_program(const char *path, const posix_spawn_file_actions_t *actions)
{
	char *argv[] = { (char *)path, NULL };
	pid_t pid;

	if (posix_spawn(&pid, path, actions, NULL, argv, environ))
		malloc_give_up("cannot start another program");
	return pid;
}

static void wait_for(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			malloc_give_up("cannot wait for another program");
	if (status)
		malloc_give_up("a program fails that was started under this allocator");
}

BENCH_LOOP start_and_end(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		wait_for(start_program("/bin/true", NULL));
}

/* The memory of a small program at rest: cat, once a byte has gone through it. */
static void startup_finish(struct malloc_report *report)
{
	posix_spawn_file_actions_t actions;
	int in[2], out[2];
	char byte = 'x';
	pid_t pid;

	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		malloc_give_up("cannot make a pipe");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
	posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
	pid = start_program("/bin/cat", &actions);
	posix_spawn_file_actions_destroy(&actions);
	close(in[0]);
	close(out[1]);
	if (write(in[1], &byte, 1) != 1 || read(out[0], &byte, 1) != 1)
		malloc_give_up("a program fails that was started under this allocator");
	report->idle = malloc_resident(pid);
	report->peak = malloc_kib(pid, "status", "VmHWM:");
	if (report->peak < report->idle)
		report->peak = report->idle;
	close(in[1]);
	wait_for(pid);
	close(out[0]);
}

const struct malloc_loop malloc_loops[BENCH_MALLOC_ROWS] = {
	[BENCH_MALLOC_PAIR_16] = { .loop = pair_16 },
	[BENCH_MALLOC_PAIR_64] = { .loop = pair_64 },
	[BENCH_MALLOC_PAIR_512] = { .loop = pair_512 },
	[BENCH_MALLOC_PAIR_4096] = { .loop = pair_4096 },
	[BENCH_MALLOC_RANDOM] = { .loop = random_sizes, .begin = fill_slots },
	[BENCH_MALLOC_LARSON] = { .loop = larson, .begin = fill_slots, .finish = larson_finish, .least_ns = 5e6 },
	[BENCH_MALLOC_PRODUCER_CONSUMER] = { .loop = producer_consumer },
	[BENCH_MALLOC_REALLOC] = { .loop = grow },
	[BENCH_MALLOC_CALLOC_LARGE] = { .loop = calloc_large, .begin = calloc_begin },
	[BENCH_MALLOC_STARTUP] = { .loop = start_and_end, .finish = startup_finish },
};
