/* SPDX-License-Identifier: MIT */
/*
 * Run queues: tasks that wait to be run, a queue for each index. What a scheduler in user space keeps for each CPU.
 *
 * The link is inside the task, so nothing is allocated and a queue has no limit. Push and pop are one section each, on
 * the calling thread's own queue. Any thread may take half of another index's queue (steal) or move tasks from one index to
 * another (migrate), while the owners run and without touching anybody's affinity: through the gates of the two copies.
 * And it may push to a certain index, without a gate or a fence: such tasks arrive in an inbox, which the owner's next pop
 * puts at the back of its queue. Each task is popped exactly once.
 *
 * Who pushes at the back has a queue (first in, first out), who pushes at the front a stack; pop takes from the front. A
 * thread may be moved at any time: which index's queue is "the own" is its business of this moment, and an empty queue
 * does not mean that all are. Threads that are not registered use the remainder's; in mode none any may be the own.
 *
 * A task is ordered like any memory: what the thread that pushed it wrote before is visible to who pops it.
 */
#ifndef PERCPU_RUNQUEUE_H
#define PERCPU_RUNQUEUE_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** The most tasks that one steal takes, and that are moved at a time: how long a gate stays closed is bounded. */
#define PERCPU_RUNQUEUE_STEAL_MAX 256

/** Embedded in each task. Belongs to the queue while the task is in it. */
struct percpu_task {
	struct percpu_task *next; /* towards the back; of the last one: anything */
	uint64_t place; /* numbers without a gap from the front to the back, so that a length is a difference */
};

/*
 * One copy. Everything but `head` may be written by a section that is then aborted, so nothing else is believed before
 * the commit makes it meaningful: `tail` while head is NULL, the link of the last task, and the two places, which are
 * hints for other threads (`first` also numbers the first task of an empty queue).
 */
struct percpu__runqueue_copy {
	struct percpu_task *head; /* NULL: empty */
	struct percpu_task *tail;
	uint64_t first, last;
	uint64_t unused[4];
	/* Others write here: a cache line of its own. Newest first; pushed to one by one, and only taken as a whole. */
	struct percpu_task *inbox;
	uint64_t arrived; /* about how many are in it: a hint */
	uint64_t unused_too[6];
};

/** A run queue, in the caller's storage, aligned to 64. Fields belong to the library. */
struct percpu_runqueue {
	struct percpu__runqueue_copy *copies; /* per-CPU; constant after init */
	/* Threads in percpu_runqueue_wait() that nobody has woken yet: read by every push. */
	uint32_t idlers __attribute__((aligned(64)));
	uint32_t wakes; /* granted, and not yet used; waiters sleep on it */
};

/*
 * The sections.
 *
 * Both pushes commit in one instruction at its end: to `tail`, or to `head` if the queue was empty.
 */
#define PERCPU__ARRIVED_WORD ((uintptr_t)2)
#ifndef PERCPU_NO_SECTIONS
/* clang-format off */
#define PERCPU__RUNQUEUE_PUSH                                                                                          \
	PERCPU__A_GET(PERCPU__T1, PERCPU__T0, "0") PERCPU__A_IF_NULL(PERCPU__T1, "12f")                                \
	PERCPU__A_GET(PERCPU__T1, PERCPU__T0, "8") PERCPU__A_GET(PERCPU__T2, PERCPU__T1, "8")                          \
	PERCPU__A_UP(PERCPU__T2, "1") PERCPU__A_SET_AT(PERCPU__T2, "%[task]", "8")                                     \
	PERCPU__A_SET_AT(PERCPU__T2, PERCPU__T0, "24") PERCPU__A_SET_AT("%[task]", PERCPU__T1, "0")                    \
	PERCPU__A_UP(PERCPU__T0, "8") PERCPU__A_JUMP("13f") PERCPU__RUNQUEUE_FIRST
#define PERCPU__RUNQUEUE_PUSH_FRONT                                                                                    \
	PERCPU__A_GET(PERCPU__T1, PERCPU__T0, "0") PERCPU__A_IF_NULL(PERCPU__T1, "12f")                                \
	PERCPU__A_GET(PERCPU__T2, PERCPU__T1, "8") PERCPU__A_DOWN(PERCPU__T2, "1")                                     \
	PERCPU__A_SET_AT(PERCPU__T1, "%[task]", "0") PERCPU__A_SET_AT(PERCPU__T2, "%[task]", "8")                      \
	PERCPU__A_SET_AT(PERCPU__T2, PERCPU__T0, "16") PERCPU__A_JUMP("13f") PERCPU__RUNQUEUE_FIRST
/* The queue was empty. */
#define PERCPU__RUNQUEUE_FIRST                                                                                         \
	"12:\n\t" PERCPU__A_GET(PERCPU__T2, PERCPU__T0, "16") PERCPU__A_SET_AT(PERCPU__T2, "%[task]", "8")             \
	PERCPU__A_SET_AT(PERCPU__T2, PERCPU__T0, "24") PERCPU__A_SET_AT("%[task]", PERCPU__T0, "8") "13:\n\t"
#define PERCPU__RUNQUEUE_POP                                                                                           \
	PERCPU__A_IF_SET_AT(PERCPU__T0, "64", "11f")                                                                   \
	PERCPU__A_LOAD_OUT("out") PERCPU__A_IF_NULL("%[out]", "2f")                                                    \
	PERCPU__A_GET(PERCPU__T2, "%[out]", "8") PERCPU__A_UP(PERCPU__T2, "1")                                         \
	PERCPU__A_SET_AT(PERCPU__T2, PERCPU__T0, "16")                                                                 \
	PERCPU__A_GET(PERCPU__T1, "%[out]", "0") PERCPU__A_NULL_LAST("out", "8")
#define PERCPU__RUNQUEUE_ARRIVED                                                                                       \
	PERCPU__A_COLD "11:\n\t" PERCPU__A_SET("out", "2") PERCPU__A_JUMP("2b") PERCPU__A_COLD_END PERCPU__EXIT("11b")
/* clang-format on */

#define PERCPU__RUNQUEUE_SECTION(what)                                                                                 \
	__asm__ __volatile__ goto(PERCPU__ENTER what PERCPU__A_STORE("task") PERCPU__LEAVE                             \
				  :                                                                                    \
				  : PERCPU__OPERANDS(rq->copies, PERCPU__BY_ID), [task] "r"(task)                      \
				  : "memory", PERCPU__SCRATCH_LINKS                                                    \
				  : left)

PERCPU__INLINE int percpu__try_runqueue_push(struct percpu_runqueue *rq, struct percpu_task *task)
{
	PERCPU__RUNQUEUE_SECTION(PERCPU__RUNQUEUE_PUSH);
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}

PERCPU__INLINE int percpu__try_runqueue_push_front(struct percpu_runqueue *rq, struct percpu_task *task)
{
	PERCPU__RUNQUEUE_SECTION(PERCPU__RUNQUEUE_PUSH_FRONT);
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}

/* The task as a word, 0 if there is none, PERCPU__LEFT_WORD, or PERCPU__ARRIVED_WORD: the inbox must be looked at. */
PERCPU__INLINE uintptr_t percpu__try_runqueue_pop(struct percpu_runqueue *rq)
{
	uintptr_t out;

	__asm__ __volatile__(
		PERCPU__ENTER PERCPU__RUNQUEUE_POP PERCPU__A_STORE_T PERCPU__LEAVE_WORD PERCPU__RUNQUEUE_ARRIVED
		: [out] "=&r"(out)
		: PERCPU__OPERANDS(rq->copies, PERCPU__BY_ID)
		: "memory", PERCPU__SCRATCH_LINKS);
	return out;
}
#endif

/* The cold halves. */
PERCPU_API void percpu__slow_runqueue_push(struct percpu_runqueue *rq, struct percpu_task *task, bool front)
	PERCPU__COLD;
PERCPU_API uintptr_t percpu__slow_runqueue_pop(struct percpu_runqueue *rq) PERCPU__COLD;
/* Wakes one waiter. */
PERCPU_API void percpu__runqueue_notify(struct percpu_runqueue *rq) PERCPU__COLD;

/**
 * percpu_runqueue_init - make an empty run queue in the caller's storage. Returns 0, -EINVAL, -ENOMEM. May block.
 * Async-signal-safe.
 */
PERCPU_API int percpu_runqueue_init(struct percpu_runqueue *rq);

/** percpu_runqueue_destroy - free what init allocated. Tasks in it are forgotten. No thread may use or wait on it. */
PERCPU_API void percpu_runqueue_destroy(struct percpu_runqueue *rq);

/* A section's commit is before this load, or the waiter's fence is after both: see percpu_runqueue_wait(). */
PERCPU__INLINE void percpu__runqueue_pushed(struct percpu_runqueue *rq)
{
	if (PERCPU__UNLIKELY(__atomic_load_n(&rq->idlers, __ATOMIC_RELAXED)))
		percpu__runqueue_notify(rq);
}

/**
 * percpu_runqueue_push - put a task at the back of the own queue; wakes a thread that waits, if there is one.
 *
 * Wait-free but for the slow path and the waking, as <percpu/ops.h> says. Async-signal-safe. A forked child has a copy of
 * all queues: what to do with tasks that its parent runs too is its caller's business.
 */
PERCPU__INLINE void percpu_runqueue_push(struct percpu_runqueue *rq, struct percpu_task *task)
{
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_runqueue_push(rq, task)) == PERCPU__LEFT))
		percpu__slow_runqueue_push(rq, task, false);
	else
		percpu__runqueue_pushed(rq);
}

/** percpu_runqueue_push_front - the same at the front: the next pop takes it. */
PERCPU__INLINE void percpu_runqueue_push_front(struct percpu_runqueue *rq, struct percpu_task *task)
{
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_runqueue_push_front(rq, task)) == PERCPU__LEFT))
		percpu__slow_runqueue_push(rq, task, true);
	else
		percpu__runqueue_pushed(rq);
}

/**
 * percpu_runqueue_pop - take the task at the front of the own queue; NULL if that is empty.
 *
 * Puts what has arrived in the own inbox at the back first, in the order of its arrival. Progress and safety as push.
 */
PERCPU__INLINE struct percpu_task *percpu_runqueue_pop(struct percpu_runqueue *rq)
{
	uintptr_t word = PERCPU__TRY_WORD(percpu__try_runqueue_pop(rq));

	/* One test for all that is no task: the caller's own test for NULL then costs nothing. */
	if (PERCPU__UNLIKELY(word <= PERCPU__ARRIVED_WORD))
		word = word ? percpu__slow_runqueue_pop(rq) : 0;
	return (struct percpu_task *)word;
}

/**
 * percpu_runqueue_push_to - put a task into one index's inbox, while its owner runs.
 *
 * @index: 0 to percpu_copies() - 1
 * It is at the back of the queue as soon as the owner next pops, and may be stolen or migrated like others. Returns 0 or
 * -EINVAL. Wakes as push does. Lock-free, without a gate or a fence, in every mode. Async-signal-safe.
 * After a fork, tasks that other threads' pops had taken out of an inbox at that moment are theirs: they are not in the
 * child, like those that these threads had popped.
 */
PERCPU_API int percpu_runqueue_push_to(struct percpu_runqueue *rq, unsigned index, struct percpu_task *task);

/**
 * percpu_runqueue_steal - take half of one index's queue, rounded up: one task to run, the others onto the own queue.
 *
 * @victim: 0 to percpu_copies() - 1; @out: set to the first of the tasks taken, or NULL if there were none
 * Takes the back half, in its order (if only the inbox has tasks, all of these): what the victim would run last. Of more than twice PERCPU_RUNQUEUE_STEAL_MAX it
 * takes the first PERCPU_RUNQUEUE_STEAL_MAX instead, which need no long search. One fence for all of them, none if
 * the victim's queue looks empty. Returns 0, -EINVAL, or an error of percpu_gate_lock() (nothing is taken, @out is untouched).
 * May block. Async-signal-safe but for -EDEADLK.
 */
PERCPU_API int percpu_runqueue_steal(struct percpu_runqueue *rq, unsigned victim, struct percpu_task **out);

/**
 * percpu_runqueue_steal_any - percpu_runqueue_steal() from the index whose queue looks longest; of equals, the next one.
 *
 * @out: set to a task, or NULL if no queue seemed to have any. Errors and safety as percpu_runqueue_steal().
 */
PERCPU_API int percpu_runqueue_steal_any(struct percpu_runqueue *rq, struct percpu_task **out);

/**
 * percpu_runqueue_migrate - move tasks from the front of one index's queue to the back of another's, in their order.
 *
 * @from, @to: 0 to percpu_copies() - 1; @most: how many, SIZE_MAX for all that are there
 * @moved: NULL, or set to how many were moved, also if it fails on the way
 * Moves PERCPU_RUNQUEUE_STEAL_MAX at a time, each time under both gates: no task is ever in neither queue nor in both.
 * Returns 0, -EINVAL (also if @from is @to), or an error of percpu_gate_lock(). May block. Async-signal-safe but for
 * -EDEADLK. Nobody's affinity is changed, and no thread of @from or @to needs to be running.
 */
PERCPU_API int percpu_runqueue_migrate(struct percpu_runqueue *rq, unsigned from, unsigned to, size_t most,
				       size_t *moved);

/**
 * percpu_runqueue_length - how many tasks one index's queue had about now. Wait-free.
 *
 * Those in its inbox are counted roughly if several threads push to it at once. 0 only if queue and inbox were empty at
 * some moment, or for an argument out of range.
 */
PERCPU_API size_t percpu_runqueue_length(const struct percpu_runqueue *rq, unsigned index);

/**
 * percpu_runqueue_wait - sleep until a task is pushed.
 *
 * @timeout_ns: nanoseconds, or negative: without an end
 * Returns 0 if there is a task somewhere, a push or percpu_runqueue_wake() woke this thread, or by chance: then look for
 * work again. -ETIMEDOUT, -EINTR (a signal handler ran), -EINVAL.
 * Each push wakes at most one waiter, and none that is about to look anyway; a push after the call began is never missed.
 * Costs its caller a fence, pushes one load of a word that nobody writes while nobody waits. Not async-signal-safe.
 * Source of the algorithm: the store and load of both sides as in Dekker's; the pushing side's barrier is the fence.
 */
PERCPU_API int percpu_runqueue_wait(struct percpu_runqueue *rq, int64_t timeout_ns);

/**
 * percpu_runqueue_wake - let @count calls of percpu_runqueue_wait() return that sleep now, or the next ones.
 * For a pool that ends. NULL does nothing. Lock-free, async-signal-safe.
 */
PERCPU_API void percpu_runqueue_wake(struct percpu_runqueue *rq, unsigned count);

PERCPU_END_DECLS

#endif
