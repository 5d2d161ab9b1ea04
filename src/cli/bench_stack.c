/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: take a node off a list and put it back.
 *
 * Every list starts with nodes and its threads hold at most one each, so a list for all never runs empty. Lists by CPU
 * may: a thread can be moved between taking and putting back. Then it makes a new node; that happens so rarely that it
 * costs nothing visible, and it is why nodes are never freed before the end of a run.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench.h"

#ifdef HAVE_CK
#include <ck_stack.h>
#endif

#define DEPTH 64 /* nodes for each thread or CPU at the start */

/* A node of every list with pointers. All are on one list of their own too, so that they can be counted and freed. */
struct node {
	BENCH_ALIGNED struct percpu_stack_node link;
	struct node *made;
};

struct outside_list {
	void **heads; /* per-CPU */
};

struct locked_list {
	BENCH_ALIGNED pthread_mutex_t mutex;
	struct percpu_stack_node *head;
};

/*
 * The lock-free list: Treiber's stack over nodes in an array. A head holds the number of its first node + 1 and, above,
 * a count of changes that keeps a slow compare-and-swap from mistaking a list that looks the same for the same list. So
 * one word suffices; pointers with a count need a compare-and-swap of two words, which is slower.
 */
struct free_head {
	BENCH_ALIGNED uint64_t word;
};

struct free_node {
	BENCH_ALIGNED uint32_t next;
};

static struct {
	struct percpu_stack stack;
	struct outside_list outside;
	struct free_node *free_nodes;
	struct free_head *by_cpu;
	unsigned cpus;
	BENCH_ALIGNED struct free_head free;
	struct locked_list locked;
#ifdef CK_F_STACK_POP_MPMC
	BENCH_ALIGNED struct ck_stack ck;
#endif
	BENCH_ALIGNED pthread_mutex_t making; /* guards the next two */
	struct node *made;
	size_t failed;
} lists = { .making = PTHREAD_MUTEX_INITIALIZER, .locked = { .mutex = PTHREAD_MUTEX_INITIALIZER } };

/* NULL without memory. */
static struct node *make_node(void)
{
	struct node *node = aligned_alloc(_Alignof(struct node), sizeof(*node));

	pthread_mutex_lock(&lists.making);
	if (node) {
		memset(node, 0, sizeof(*node));
		node->made = lists.made;
		lists.made = node;
	} else {
		lists.failed++;
	}
	pthread_mutex_unlock(&lists.making);
	return node;
}

/* Not inlined: what happens on an empty list stays out of the loop. */
static __attribute__((noinline, cold)) struct percpu_stack_node *another_node(void)
{
	struct node *node = make_node();

	return node ? &node->link : NULL;
}

/* ---- ours, and the limit */

BENCH_LOOP stack_percpu(struct bench_worker *worker, uint64_t n)
{
	struct percpu_stack *stack = &lists.stack;

	(void)worker;
	for (; n; n--) {
		struct percpu_stack_node *node = percpu_stack_pop(stack);

		if (__builtin_expect(!node, 0)) {
			node = another_node();
			if (!node)
				return;
		}
		percpu_stack_push(stack, node);
	}
}

BENCH_LOOP stack_plain_add(struct bench_worker *worker, uint64_t n)
{
	for (; n; n--)
		BENCH_PLAIN_ADD(worker->plain, 1);
}

/*
 * ---- index_outside: the shape of restartable sequences as other libraries have them
 *
 * The CPU number is read before the sequence, which compares it with the current one. "Pop" compares the head with
 * NULL, stores it to memory for the caller, follows it and stores what it finds; "push" reads the head before the
 * sequence, links the node to it, and stores the node if the head is still the same. What was interrupted is done again.
 *
 * index_outside is written as those libraries are: the thread's area is addressed relative to the thread pointer, with
 * the C library's offset in a register, and the list head is a memory operand, whose form the compiler chooses.
 * index_outside_tuned is as good as the shape can be made: both by one base register, which these processors like better,
 * and the area found once for the whole loop. In both, lists lie in memory of the same layout, and nothing is tested that
 * the shape does not need; so there is no gate either.
 */
#if defined PERCPU_NO_SECTIONS
static const char *skip_outside(void)
{
	return "built without restartable sequences";
}

BENCH_LOOP stack_outside(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	(void)n;
}

#define stack_outside_tuned stack_outside
#else
static const char *skip_outside(void)
{
	struct percpu_description how;

	return percpu_describe(&how) || how.mode == PERCPU_MODE_NONE ? "restartable sequences cannot be used here"
								     : NULL;
}

/* Local labels as in <percpu/section.h>: 1 first instruction, 2 end, 3 descriptor, 4 abort. */
#if defined __x86_64__
#define OUTSIDE_ARM(prefix)    "leaq 3b(%%rip), %%rax\n\tmovq %%rax, " prefix "8(%[area])\n"
#define OUTSIDE_SAME(prefix)   "cmpl %[cpu], " prefix "4(%[area])\n\tjne 4f\n\t"
#define OUTSIDE_ANY            "m"
#define OUTSIDE_BASE           "(%[head])"
#define OUTSIDE_SEGMENT        "%%fs:"
/* The segment's base, as code that addresses by it sees it. */
#define OUTSIDE_THREAD_POINTER ((uintptr_t)__builtin_thread_pointer())
#define OUTSIDE_POP(head)                                                                                              \
	"movq " head ", %%rcx\n\ttestq %%rcx, %%rcx\n\tje %l[empty]\n\tmovq %%rcx, (%[load])\n\t"                      \
	"movq (%%rcx), %%rcx\n\tmovq %%rcx, " head "\n"
#define OUTSIDE_PUSH(head) "cmpq %[expected], " head "\n\tjne 4f\n\tmovq %[node], " head "\n"
#elif defined __aarch64__
#define OUTSIDE_ARM(prefix)    "adrp x15, 3b\n\tadd x15, x15, :lo12:3b\n\tstr x15, [%[area], #8]\n"
#define OUTSIDE_SAME(prefix)   "ldr w15, [%[area], #4]\n\tcmp w15, %w[cpu]\n\tb.ne 4f\n\t"
#define OUTSIDE_ANY            "Q"
#define OUTSIDE_BASE           "[%[head]]"
#define OUTSIDE_SEGMENT        "" /* the same as the tuned one: there is no addressing by the thread pointer */
#define OUTSIDE_THREAD_POINTER ((uintptr_t)0)
#define OUTSIDE_POP(head)                                                                                              \
	"ldr x15, " head "\n\tcbz x15, %l[empty]\n\tstr x15, [%[load]]\n\t"                                            \
	"ldr x15, [x15]\n\tstr x15, " head "\n"
#define OUTSIDE_PUSH(head) "ldr x15, " head "\n\tcmp x15, %[expected]\n\tb.ne 4f\n\tstr %[node], " head "\n"
#endif
/* A comparison that fails leaves for the abort label: one way to start over, for it and for the kernel. */
#define OUTSIDE_ENTER(prefix) PERCPU__DESCRIPTOR OUTSIDE_ARM(prefix) "1:\n\t" OUTSIDE_SAME(prefix)
#define OUTSIDE_LEAVE                                                                                                  \
	"2:\n\t" PERCPU__A_COLD PERCPU__SIGNATURE_ASM "4:\n\t" PERCPU__A_JUMP("%l[again]") PERCPU__A_COLD_END

/* How a subject finds its thread's area. */
struct outside_area {
	struct percpu__rseq *area;
	uintptr_t operand; /* of the sequences: the address, or its distance from the thread pointer */
};

static inline __attribute__((always_inline)) uint32_t outside_cpu(struct outside_area self)
{
	return *(const volatile uint32_t *)&self.area->cpu_id_start;
}

#define OUTSIDE_POP_BY(prefix, head_text, head_operand)                                                                \
	__asm__ __volatile__ goto(OUTSIDE_ENTER(prefix) OUTSIDE_POP(head_text) OUTSIDE_LEAVE PERCPU__EXIT("%l[empty]") \
				  :                                                                                    \
				  : [area] "r"(self.operand), [cpu] "r"(cpu), [head] head_operand, [load] "r"(&load)   \
				  : "memory", PERCPU__SCRATCH                                                          \
				  : again, empty)
static inline __attribute__((always_inline)) struct percpu_stack_node *outside_pop(bool by_segment,
										   struct outside_area self,
										   struct outside_list *list)
{
	struct percpu_stack_node *load;

again:;
	uint32_t cpu = outside_cpu(self);
	void **head = percpu_ptr(list->heads, cpu);

	if (by_segment)
		OUTSIDE_POP_BY(OUTSIDE_SEGMENT, "%[head]", OUTSIDE_ANY(*head));
	else
		OUTSIDE_POP_BY("", OUTSIDE_BASE, "r"(head));
	return load;
empty:
	return NULL;
}

#define OUTSIDE_PUSH_BY(prefix, head_text, head_operand)                                                               \
	__asm__ __volatile__ goto(OUTSIDE_ENTER(prefix) OUTSIDE_PUSH(head_text) OUTSIDE_LEAVE                          \
				  :                                                                                    \
				  : [area] "r"(self.operand), [cpu] "r"(cpu), [head] head_operand,                     \
				    [expected] "r"(expected), [node] "r"(node)                                         \
				  : "memory", PERCPU__SCRATCH                                                          \
				  : again)
static inline __attribute__((always_inline)) void outside_push(bool by_segment, struct outside_area self,
							       struct outside_list *list,
							       struct percpu_stack_node *node)
{
again:;
	uint32_t cpu = outside_cpu(self);
	void **head = percpu_ptr(list->heads, cpu);
	void *expected = *(void *volatile *)head;

	*(void *volatile *)&node->next = expected;
	if (by_segment)
		OUTSIDE_PUSH_BY(OUTSIDE_SEGMENT, "%[head]", OUTSIDE_ANY(*head));
	else
		OUTSIDE_PUSH_BY("", OUTSIDE_BASE, "r"(head));
}

/* Each thread is registered by then: it has put nodes on our list. */
static inline __attribute__((always_inline)) void outside_pairs(bool by_segment, uint64_t n)
{
	struct outside_area self = { .area = percpu__self, .operand = (uintptr_t)percpu__self };
	struct outside_list *list = &lists.outside;

	if (by_segment)
		self.operand -= OUTSIDE_THREAD_POINTER;
	for (; n; n--) {
		struct percpu_stack_node *node = outside_pop(by_segment, self, list);

		if (__builtin_expect(!node, 0)) {
			node = another_node();
			if (!node)
				return;
		}
		outside_push(by_segment, self, list, node);
	}
}

BENCH_LOOP stack_outside(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	outside_pairs(true, n);
}

BENCH_LOOP stack_outside_tuned(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	outside_pairs(false, n);
}
#endif

/* ---- mutex */

BENCH_LOOP stack_mutex(struct bench_worker *worker, uint64_t n)
{
	struct locked_list *list = &lists.locked;

	(void)worker;
	for (; n; n--) {
		struct percpu_stack_node *node;

		pthread_mutex_lock(&list->mutex);
		node = list->head;
		list->head = node->next;
		pthread_mutex_unlock(&list->mutex);

		pthread_mutex_lock(&list->mutex);
		node->next = list->head;
		list->head = node;
		pthread_mutex_unlock(&list->mutex);
	}
}

/* ---- lock-free: one list for all, and one for each CPU */

/* The number of a node + 1, 0 from an empty list. */
static inline uint32_t free_pop(struct free_head *head)
{
	uint64_t old = __atomic_load_n(&head->word, __ATOMIC_ACQUIRE), new;

	do {
		if (!(uint32_t)old)
			return 0;
		/* Somebody else may own the node by now; then the count has changed, and what was read is not used. */
		new = ((old >> 32) + 1) << 32 |
		      __atomic_load_n(&lists.free_nodes[(uint32_t)old - 1].next, __ATOMIC_RELAXED);
	} while (!__atomic_compare_exchange_n(&head->word, &old, new, true, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE));
	return (uint32_t)old;
}

static inline void free_push(struct free_head *head, uint32_t node)
{
	uint64_t old = __atomic_load_n(&head->word, __ATOMIC_RELAXED), new;

	do {
		__atomic_store_n(&lists.free_nodes[node - 1].next, (uint32_t)old, __ATOMIC_RELAXED);
		new = ((old >> 32) + 1) << 32 | node;
	} while (!__atomic_compare_exchange_n(&head->word, &old, new, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
}

BENCH_LOOP stack_lockfree(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		free_push(&lists.free, free_pop(&lists.free));
}

/* There are more nodes than threads, so one list has some. */
static __attribute__((noinline, cold)) uint32_t free_steal(void)
{
	uint32_t node = 0;

	for (unsigned cpu = 0; !node; cpu = (cpu + 1) % lists.cpus)
		node = free_pop(&lists.by_cpu[cpu]);
	return node;
}

BENCH_LOOP stack_getcpu_lockfree(struct bench_worker *worker, uint64_t n)
{
	struct free_head *by_cpu = lists.by_cpu;

	(void)worker;
	for (; n; n--) {
		uint32_t node = free_pop(&by_cpu[sched_getcpu()]);

		if (__builtin_expect(!node, 0))
			node = free_steal();
		free_push(&by_cpu[sched_getcpu()], node);
	}
}

/* ---- Concurrency Kit's, if its header was there when this was built */

#ifdef CK_F_STACK_POP_MPMC
static const char *skip_ck(void)
{
	return NULL;
}

BENCH_LOOP stack_ck(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		ck_stack_push_mpmc(&lists.ck, ck_stack_pop_mpmc(&lists.ck));
}
#else
static const char *skip_ck(void)
{
	return "built without Concurrency Kit (libck-dev)";
}

BENCH_LOOP stack_ck(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	(void)n;
}
#endif

enum {
	STACK_PERCPU,
	STACK_PLAIN_ADD,
	STACK_OUTSIDE,
	STACK_OUTSIDE_TUNED,
	STACK_MUTEX,
	STACK_LOCKFREE,
	STACK_GETCPU_LOCKFREE,
	STACK_CK
};

static const struct bench_subject stack_subjects[] = {
	[STACK_PERCPU] = { .name = "percpu",
			   .what = "percpu_stack_pop() and percpu_stack_push()",
			   .loop = stack_percpu },
	[STACK_PLAIN_ADD] = { .name = "plain_add",
			      .what = "one plain add to memory, as a measure",
			      .loop = stack_plain_add },
	[STACK_OUTSIDE] = { .name = "index_outside",
			    .what = "sequences that compare a CPU number read before them",
			    .loop = stack_outside,
			    .skip = skip_outside },
	[STACK_OUTSIDE_TUNED] = { .name = "index_outside_tuned",
				  .what = "the same, as good as that shape can be made",
				  .loop = stack_outside_tuned,
				  .skip = skip_outside },
	[STACK_MUTEX] = { .name = "mutex", .what = "one list under a pthread mutex", .loop = stack_mutex },
	[STACK_LOCKFREE] = { .name = "lockfree", .what = "one lock-free list (Treiber's)", .loop = stack_lockfree },
	[STACK_GETCPU_LOCKFREE] = { .name = "getcpu_lockfree",
				    .what = "one lock-free list for each CPU, by sched_getcpu()",
				    .loop = stack_getcpu_lockfree,
				    .skip = bench_skip_sched_getcpu },
	[STACK_CK] = { .name = "ck_stack",
		       .what = "Concurrency Kit's ck_stack, many producers and consumers",
		       .loop = stack_ck,
		       .skip = skip_ck },
	{ .name = NULL },
};

static int stack_setup(unsigned threads)
{
	uint32_t next = 0;

	lists.failed = 0;
	lists.cpus = percpu_possible_cpus();
	lists.free.word = 0;
	lists.locked.head = NULL;
	lists.free_nodes =
		aligned_alloc(_Alignof(struct free_node), (size_t)2 * threads * DEPTH * sizeof(*lists.free_nodes));
	lists.by_cpu = aligned_alloc(_Alignof(struct free_head), lists.cpus * sizeof(*lists.by_cpu));
	lists.outside.heads = percpu_alloc(sizeof(*lists.outside.heads), 64);
	if (!lists.free_nodes || !lists.by_cpu || !lists.outside.heads)
		return -ENOMEM;
	memset(lists.by_cpu, 0, lists.cpus * sizeof(*lists.by_cpu));
	for (unsigned i = 0; i < threads * DEPTH; i++) {
		free_push(&lists.free, ++next);
		free_push(&lists.by_cpu[i % lists.cpus], ++next);
	}
	for (unsigned i = 0; i < threads * DEPTH; i++) {
		struct node *node = make_node();

		if (!node)
			return -ENOMEM;
		node->link.next = lists.locked.head;
		lists.locked.head = &node->link;
	}
	for (unsigned cpu = 0; cpu < lists.cpus; cpu++) {
		for (unsigned i = 0; i < DEPTH; i++) {
			void **head = percpu_ptr(lists.outside.heads, cpu);
			struct node *node = make_node();

			if (!node)
				return -ENOMEM;
			node->link.next = *head;
			*head = &node->link;
		}
	}
#ifdef CK_F_STACK_POP_MPMC
	ck_stack_init(&lists.ck);
	for (unsigned i = 0; i < threads * DEPTH; i++) {
		struct node *node = make_node();

		if (!node)
			return -ENOMEM;
		ck_stack_push_mpmc(&lists.ck, (struct ck_stack_entry *)(void *)&node->link);
	}
#endif
	return percpu_stack_init(&lists.stack);
}

static void stack_begin(struct bench_worker *worker)
{
	(void)worker;
	for (unsigned i = 0; i < DEPTH; i++) {
		struct node *node = make_node();

		if (node)
			percpu_stack_push(&lists.stack, &node->link);
	}
}

static size_t length(const struct percpu_stack_node *head)
{
	size_t count = 0;

	for (; head; head = head->next)
		count++;
	return count;
}

/* All nodes that were made are on one of the lists again, whoever carried them where. */
static const char *stack_check(const uint64_t *done)
{
	size_t there = length(lists.locked.head), made = 0;

	(void)done;
	percpu_for_each_index(index) {
		there += length(*percpu_ptr(lists.stack.head, index));
		there += length(*percpu_ptr(lists.outside.heads, index));
	}
#ifdef CK_F_STACK_POP_MPMC
	there += length((const struct percpu_stack_node *)(const void *)lists.ck.head);
#endif
	for (struct node *node = lists.made; node; node = node->made)
		made++;
	if (lists.failed)
		return "no memory";
	return there == made ? NULL : "a list does not hold its nodes any more";
}

static void stack_teardown(void)
{
	if (lists.stack.head)
		percpu_stack_destroy(&lists.stack);
	lists.stack.head = NULL;
	percpu_free(lists.outside.heads);
	lists.outside.heads = NULL;
	free(lists.free_nodes);
	free(lists.by_cpu);
	lists.free_nodes = NULL;
	lists.by_cpu = NULL;
	while (lists.made) {
		struct node *node = lists.made;

		lists.made = node->made;
		free(node);
	}
}

const struct bench bench_stack_pair = {
	.name = "stack_pair",
	.what = "take a node off a list and put it back",
	.subjects = stack_subjects,
	.setup = stack_setup,
	.begin = stack_begin,
	.check = stack_check,
	.teardown = stack_teardown,
};
