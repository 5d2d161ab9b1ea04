/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: take a task off a run queue and put it back, and steal half of somebody's.
 *
 * Rivals that know nothing of CPUs are set up as their users do it: one queue for each CPU, in cache lines of its own,
 * found by sched_getcpu(). Their code is inlined where their headers allow it. A thread can be moved between taking and
 * putting back; if it then finds an empty queue, it makes a new task.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"

#ifdef HAVE_CK
#include <ck_fifo.h>
#include <ck_stack.h>
#endif
#ifdef HAVE_URCU_CDS
#define _LGPL_SOURCE
#include <urcu/lfstack.h>
#include <urcu/wfcqueue.h>
#endif

#define DEPTH 16 /* tasks in each queue at the start */
#define FULL  64 /* of which half is stolen */
#define KINDS 6  /* of queues, each with nodes of its own */

/* Works in any of the queues. */
struct node {
	union {
		BENCH_ALIGNED struct percpu_task task;
		struct node *next;
#ifdef HAVE_CK
		struct ck_stack_entry ck;
#endif
#ifdef HAVE_URCU_CDS
		struct cds_lfs_node lfs;
		struct cds_wfcq_node wfcq;
#endif
	} link;
	struct node *made;
#ifdef CK_F_FIFO_MPMC
	struct ck_fifo_mpmc_entry *entry; /* for its next time in a queue; nodes exchange them */
	BENCH_ALIGNED struct ck_fifo_mpmc_entry first_entry;
#endif
};

struct mutex_queue {
	BENCH_ALIGNED pthread_mutex_t mutex;
	struct node *first, **end;
	size_t length;
};

static struct {
	struct percpu_runqueue ours;
	struct mutex_queue shared, *mutexes;
#ifdef HAVE_CK
	struct ck_queue {
		BENCH_ALIGNED struct ck_stack stack;
#ifdef CK_F_FIFO_MPMC
		BENCH_ALIGNED struct ck_fifo_mpmc fifo;
#endif
	} * cks;
#endif
#ifdef HAVE_URCU_CDS
	struct urcu_queue {
		BENCH_ALIGNED struct cds_lfs_stack stack;
		BENCH_ALIGNED struct cds_wfcq_head head;
		BENCH_ALIGNED struct cds_wfcq_tail tail;
	} * urcus;
#endif
	unsigned cpus;
	BENCH_ALIGNED pthread_mutex_t making; /* guards the next two */
	struct node *made;
	size_t failed;
} queues = { .making = PTHREAD_MUTEX_INITIALIZER };

static __attribute__((noinline, cold)) struct node *make_node(void)
{
	struct node *node = aligned_alloc(_Alignof(struct node), sizeof(*node));

	pthread_mutex_lock(&queues.making);
	if (node) {
		memset(node, 0, sizeof(*node));
#ifdef CK_F_FIFO_MPMC
		node->entry = &node->first_entry;
#endif
		node->made = queues.made;
		queues.made = node;
	} else {
		queues.failed++;
	}
	pthread_mutex_unlock(&queues.making);
	return node;
}

/* All links are at the start. */
static inline struct node *node_of(void *link)
{
	return link;
}

/* ---- under a mutex */

static inline void mutex_put(struct mutex_queue *queue, struct node *node)
{
	pthread_mutex_lock(&queue->mutex);
	node->link.next = NULL;
	*queue->end = node;
	queue->end = &node->link.next;
	queue->length++;
	pthread_mutex_unlock(&queue->mutex);
}

static inline struct node *mutex_take(struct mutex_queue *queue)
{
	struct node *node;

	pthread_mutex_lock(&queue->mutex);
	node = queue->first;
	if (node) {
		queue->first = node->link.next;
		if (!queue->first)
			queue->end = &queue->first;
		queue->length--;
	}
	pthread_mutex_unlock(&queue->mutex);
	return node;
}

static void mutex_init(struct mutex_queue *queue)
{
	*queue = (struct mutex_queue){ .mutex = PTHREAD_MUTEX_INITIALIZER, .end = &queue->first };
}

/* The first half of it moves to another queue: returns one of them. */
static struct node *mutex_steal(struct mutex_queue *from, struct mutex_queue *to)
{
	struct node *first, *last;
	size_t count;

	pthread_mutex_lock(&from->mutex);
	first = last = from->first;
	count = (from->length + 1) / 2;
	for (size_t i = 1; i < count; i++)
		last = last->link.next;
	from->first = last->link.next;
	if (!from->first)
		from->end = &from->first;
	from->length -= count;
	pthread_mutex_unlock(&from->mutex);
	if (count < 2)
		return first;
	pthread_mutex_lock(&to->mutex);
	*to->end = first->link.next;
	last->link.next = NULL;
	to->end = &last->link.next;
	to->length += count - 1;
	pthread_mutex_unlock(&to->mutex);
	return first;
}

/* ---- the loops */

static const char *skip_none(void)
{
	return NULL;
}

#define PAIRS(name, take, put)                                                                                         \
	BENCH_LOOP pair_##name(struct bench_worker *worker, uint64_t n)                                                \
	{                                                                                                              \
		(void)worker;                                                                                          \
		for (; n; n--) {                                                                                       \
			struct node *node = take;                                                                      \
                                                                                                                       \
			if (__builtin_expect(!node, 0)) {                                                              \
				node = make_node();                                                                    \
				if (!node)                                                                             \
					return;                                                                        \
			}                                                                                              \
			put;                                                                                           \
		}                                                                                                      \
	}

/* Half of queue 1 is stolen, and each task given back to it. */
#define STEALS(name, steal, take, give)                                                                                \
	BENCH_LOOP steal_##name(struct bench_worker *worker, uint64_t n)                                               \
	{                                                                                                              \
		(void)worker;                                                                                          \
		while (n) {                                                                                            \
			struct node *node = steal;                                                                     \
                                                                                                                       \
			for (unsigned i = 0; i < FULL / 2 && n; i++, n--) {                                            \
				if (!node)                                                                             \
					node = take;                                                                   \
				if (!node)                                                                             \
					break;                                                                         \
				give;                                                                                  \
				node = NULL;                                                                           \
			}                                                                                              \
			if (node)                                                                                      \
				give;                                                                                  \
		}                                                                                                      \
	}

static inline struct node *our_pop(void)
{
	return node_of(percpu_runqueue_pop(&queues.ours));
}

static unsigned victim(void)
{
	return percpu_cid() == 0 ? 1 : 0;
}

static struct node *our_steal(void)
{
	struct percpu_task *task = NULL;

	percpu_runqueue_steal(&queues.ours, victim(), &task);
	return node_of(task);
}

BENCH_LOOP pair_plain_add(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--)
		BENCH_PLAIN_ADD(worker->plain, 1);
}

PAIRS(percpu, our_pop(), percpu_runqueue_push(&queues.ours, &node->link.task))
PAIRS(percpu_front, our_pop(), percpu_runqueue_push_front(&queues.ours, &node->link.task))
PAIRS(mutex, mutex_take(&queues.shared), mutex_put(&queues.shared, node))
PAIRS(getcpu_mutex, mutex_take(&queues.mutexes[sched_getcpu()]), mutex_put(&queues.mutexes[sched_getcpu()], node))
STEALS(percpu, our_steal(), our_pop(), percpu_runqueue_push_to(&queues.ours, victim(), &node->link.task))
STEALS(mutex, mutex_steal(&queues.mutexes[1], &queues.mutexes[0]), mutex_take(&queues.mutexes[0]),
       mutex_put(&queues.mutexes[1], node))

/* ---- Concurrency Kit, which knows no way to take half of a queue */

#ifdef CK_F_STACK_POP_MPMC
#define skip_ck_stack skip_none
static inline struct node *ck_take(struct ck_stack *stack)
{
	struct ck_stack_entry *entry = ck_stack_pop_mpmc(stack);

	return node_of(entry);
}

PAIRS(ck_stack, ck_take(&queues.cks[sched_getcpu()].stack),
      ck_stack_push_mpmc(&queues.cks[sched_getcpu()].stack, &node->link.ck))
STEALS(ck_stack, NULL, ck_take(&queues.cks[1].stack), ck_stack_push_mpmc(&queues.cks[1].stack, &node->link.ck))
#else
static const char *skip_ck_stack(void)
{
	return "built without Concurrency Kit (libck-dev), or it has none here";
}

#define pair_ck_stack  pair_plain_add
#define steal_ck_stack pair_plain_add
#endif

#ifdef CK_F_FIFO_MPMC
#define skip_ck_fifo skip_none
static inline struct node *fifo_take(struct ck_fifo_mpmc *fifo)
{
	struct ck_fifo_mpmc_entry *garbage;
	struct node *node;

	if (!ck_fifo_mpmc_dequeue(fifo, &node, &garbage))
		return NULL;
	node->entry = garbage;
	return node;
}

PAIRS(ck_fifo, fifo_take(&queues.cks[sched_getcpu()].fifo),
      ck_fifo_mpmc_enqueue(&queues.cks[sched_getcpu()].fifo, node->entry, node))
#else
static const char *skip_ck_fifo(void)
{
	return "built without Concurrency Kit (libck-dev), or it has none here";
}

#define pair_ck_fifo pair_plain_add
#endif

/* ---- liburcu: pushing is lock-free or wait-free, popping takes the queue's mutex */

#ifdef HAVE_URCU_CDS
#define skip_urcu skip_none
static inline struct node *lfs_take(struct cds_lfs_stack *stack)
{
	struct cds_lfs_node *node = cds_lfs_pop_blocking(stack);

	return node_of(node);
}

static inline struct node *wfcq_take(struct urcu_queue *queue)
{
	struct cds_wfcq_node *node = cds_wfcq_dequeue_blocking(&queue->head, &queue->tail);

	return node_of(node);
}

static inline void wfcq_put(struct urcu_queue *queue, struct node *node)
{
	cds_wfcq_node_init(&node->link.wfcq);
	cds_wfcq_enqueue(&queue->head, &queue->tail, &node->link.wfcq);
}

PAIRS(lfstack, lfs_take(&queues.urcus[sched_getcpu()].stack),
      cds_lfs_push(&queues.urcus[sched_getcpu()].stack, &node->link.lfs))
PAIRS(wfcqueue, wfcq_take(&queues.urcus[sched_getcpu()]), wfcq_put(&queues.urcus[sched_getcpu()], node))
STEALS(wfcqueue, NULL, wfcq_take(&queues.urcus[1]), wfcq_put(&queues.urcus[1], node))
#else
static const char *skip_urcu(void)
{
	return "built without liburcu (liburcu-dev)";
}

#define pair_lfstack   pair_plain_add
#define pair_wfcqueue  pair_plain_add
#define steal_wfcqueue pair_plain_add
#endif

#ifdef CK_F_STACK_POP_MPMC
#define BY_CPU_CK_STACK bench_skip_sched_getcpu
#else
#define BY_CPU_CK_STACK skip_ck_stack
#endif
#ifdef CK_F_FIFO_MPMC
#define BY_CPU_CK_FIFO bench_skip_sched_getcpu
#else
#define BY_CPU_CK_FIFO skip_ck_fifo
#endif
#ifdef HAVE_URCU_CDS
#define BY_CPU_URCU bench_skip_sched_getcpu
#else
#define BY_CPU_URCU skip_urcu
#endif

static const struct bench_subject pair_subjects[] = {
	{ .name = "percpu", .what = "percpu_runqueue_pop() and _push()", .loop = pair_percpu },
	{ .name = "percpu_front", .what = "percpu_runqueue_pop() and _push_front()", .loop = pair_percpu_front },
	{ .name = "plain_add", .what = "one plain add to memory, as a measure", .loop = pair_plain_add },
	{ .name = "mutex", .what = "one queue under a pthread mutex", .loop = pair_mutex },
	{ .name = "getcpu_mutex",
	  .what = "such a queue for each CPU",
	  .loop = pair_getcpu_mutex,
	  .skip = bench_skip_sched_getcpu },
	{ .name = "getcpu_ck_stack",
	  .what = "Concurrency Kit's ck_stack for each CPU",
	  .loop = pair_ck_stack,
	  .skip = BY_CPU_CK_STACK },
	{ .name = "getcpu_ck_fifo",
	  .what = "Concurrency Kit's ck_fifo_mpmc for each CPU",
	  .loop = pair_ck_fifo,
	  .skip = BY_CPU_CK_FIFO },
	{ .name = "getcpu_lfstack",
	  .what = "liburcu's cds_lfs_stack for each CPU",
	  .loop = pair_lfstack,
	  .skip = BY_CPU_URCU },
	{ .name = "getcpu_wfcqueue",
	  .what = "liburcu's cds_wfcq for each CPU",
	  .loop = pair_wfcqueue,
	  .skip = BY_CPU_URCU },
	{ .name = NULL },
};

static const struct bench_subject steal_subjects[] = {
	{ .name = "percpu", .what = "percpu_runqueue_steal()", .loop = steal_percpu, .alone = true },
	{ .name = "mutex", .what = "queues under a pthread mutex each", .loop = steal_mutex, .alone = true },
	{ .name = "ck_stack",
	  .what = "Concurrency Kit's ck_stack, one by one",
	  .loop = steal_ck_stack,
	  .skip = skip_ck_stack,
	  .alone = true },
	{ .name = "wfcqueue",
	  .what = "liburcu's cds_wfcq, one by one",
	  .loop = steal_wfcqueue,
	  .skip = skip_urcu,
	  .alone = true },
	{ .name = NULL },
};

/* Every queue that the rivals have for a CPU. */
static int make_queues(void)
{
	size_t cpus = queues.cpus;

	queues.mutexes = aligned_alloc(_Alignof(struct mutex_queue), cpus * sizeof(*queues.mutexes));
	if (!queues.mutexes)
		return -ENOMEM;
	mutex_init(&queues.shared);
	for (size_t cpu = 0; cpu < cpus; cpu++)
		mutex_init(&queues.mutexes[cpu]);
#ifdef HAVE_CK
	queues.cks = aligned_alloc(_Alignof(struct ck_queue), cpus * sizeof(*queues.cks));
	if (!queues.cks)
		return -ENOMEM;
	for (size_t cpu = 0; cpu < cpus; cpu++) {
		ck_stack_init(&queues.cks[cpu].stack);
#ifdef CK_F_FIFO_MPMC
		struct node *stub = make_node();

		if (!stub)
			return -ENOMEM;
		ck_fifo_mpmc_init(&queues.cks[cpu].fifo, stub->entry);
#endif
	}
#endif
#ifdef HAVE_URCU_CDS
	queues.urcus = aligned_alloc(_Alignof(struct urcu_queue), cpus * sizeof(*queues.urcus));
	if (!queues.urcus)
		return -ENOMEM;
	for (size_t cpu = 0; cpu < cpus; cpu++) {
		cds_lfs_init(&queues.urcus[cpu].stack);
		cds_wfcq_init(&queues.urcus[cpu].head, &queues.urcus[cpu].tail);
	}
#endif
	return percpu_runqueue_init(&queues.ours);
}

/* @count tasks in each queue of CPU @cpu. */
static int fill(unsigned cpu, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		struct node *nodes[KINDS];

		for (size_t k = 0; k < KINDS; k++) {
			nodes[k] = make_node();
			if (!nodes[k])
				return -ENOMEM;
		}
		percpu_runqueue_push_to(&queues.ours, cpu, &nodes[0]->link.task);
		mutex_put(&queues.mutexes[cpu], nodes[1]);
#ifdef CK_F_STACK_POP_MPMC
		ck_stack_push_mpmc(&queues.cks[cpu].stack, &nodes[2]->link.ck);
#endif
#ifdef CK_F_FIFO_MPMC
		ck_fifo_mpmc_enqueue(&queues.cks[cpu].fifo, nodes[3]->entry, nodes[3]);
#endif
#ifdef HAVE_URCU_CDS
		cds_lfs_push(&queues.urcus[cpu].stack, &nodes[4]->link.lfs);
		wfcq_put(&queues.urcus[cpu], nodes[5]);
#endif
	}
	return 0;
}

static int start(unsigned count)
{
	int rc;

	queues.failed = 0;
	/* Queue 1 must be there, whoever works on it. */
	queues.cpus = percpu_possible_cpus() > 1 ? percpu_possible_cpus() : 2;
	rc = make_queues();
	for (unsigned cpu = 0; cpu < percpu_possible_cpus() && !rc; cpu++) {
		rc = fill(cpu, count);
		/* Out of the inbox, of which a thief would take all without a fence. */
		if (!rc)
			rc = percpu_runqueue_migrate(&queues.ours, cpu, percpu_copies() - 1, SIZE_MAX, NULL);
		if (!rc)
			rc = percpu_runqueue_migrate(&queues.ours, percpu_copies() - 1, cpu, SIZE_MAX, NULL);
	}
	return rc;
}

static int pair_setup(unsigned threads)
{
	int rc = start(DEPTH);

	for (unsigned i = 0; i < threads * DEPTH && !rc; i++) {
		struct node *node = make_node();

		if (!node)
			return -ENOMEM;
		mutex_put(&queues.shared, node);
	}
	return rc;
}

static int steal_setup(unsigned threads)
{
	(void)threads;
	return start(FULL);
}

static const char *check(const uint64_t *done)
{
	(void)done;
	return queues.failed ? "no memory" : NULL;
}

static void teardown(void)
{
	percpu_runqueue_destroy(&queues.ours);
	free(queues.mutexes);
	queues.mutexes = NULL;
#ifdef HAVE_CK
	free(queues.cks);
	queues.cks = NULL;
#endif
#ifdef HAVE_URCU_CDS
	free(queues.urcus);
	queues.urcus = NULL;
#endif
	while (queues.made) {
		struct node *node = queues.made;

		queues.made = node->made;
		free(node);
	}
}

const struct bench bench_runqueue_pair = {
	.name = "runqueue_pair",
	.what = "take a task off a run queue and put it back",
	.subjects = pair_subjects,
	.setup = pair_setup,
	.check = check,
	.teardown = teardown,
};

const struct bench bench_runqueue_steal = {
	.name = "runqueue_steal",
	.what = "steal half of 64 tasks, take each, and give it back; for each task",
	.subjects = steal_subjects,
	.setup = steal_setup,
	.check = check,
	.teardown = teardown,
};
