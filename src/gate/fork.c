/* SPDX-License-Identifier: MIT */
/*
 * fork: the child must not see changes half done by a thread that will not exist in it.
 *
 * The kernel copies memory so that the child sees a moment of it: with a store, all that came before. So whatever commits
 * by one store needs nothing: sections, and the same operations under a gate. The child finds such a gate held by nobody,
 * and opens it. Only who makes several changes that belong together (vectors, holders of percpu_gate_lock) is waited for:
 * he marks his gates BUSY, then looks whether somebody forks, and backs out if so; the forking thread first says that it
 * forks, then waits until no gate is BUSY. Each side writes before it reads, sequentially consistent, so one of them sees
 * the other. He has all his gates by then, blocks signals and waits for nothing, so the wait is short, and no handler that
 * forks, allocates or takes gates can be part of a circle.
 *
 * The forking thread itself may go on using everything, for its other atfork handlers run in between.
 */
#include <limits.h>
#include <pthread.h>

#include "base/lock.h"
#include "gate/fork.h"
#include "gate/gate.h"
#include "rseq/thread.h"

/* Here, so that whoever links areas or gates from the static library has this file's handlers too. */
uint32_t percpu__fork_word;
uintptr_t percpu__forker;
uint32_t percpu__cold_word;
uint32_t percpu__fork_count;

static struct percpu__fork_lock *locks; /* guarded by the cold lock */
static uint32_t child_id;
static uint32_t one_fork; /* a lock: the forking thread has it from prepare to resume */
static uint32_t nested;   /* forks by signal handlers of the forking thread, inside its fork; its own */

void percpu__fork_lock_add(struct percpu__fork_lock *lock)
{
	uint64_t saved;

	percpu__cold_lock(&saved);
	lock->next = locks;
	locks = lock;
	percpu__cold_unlock(&saved);
}

void percpu__fork_lock_remove(struct percpu__fork_lock *lock)
{
	struct percpu__fork_lock **link = &locks;
	uint64_t saved;

	percpu__cold_lock(&saved);
	while (*link && *link != lock)
		link = &(*link)->next;
	if (*link)
		*link = lock->next;
	percpu__cold_unlock(&saved);
}

void percpu__fork_lock(struct percpu__fork_lock *lock, uint64_t *saved)
{
	percpu__block_signals(saved);
	if (__atomic_load_n(&percpu__forker, __ATOMIC_RELAXED) != (uintptr_t)&percpu__private)
		percpu__lock_word(&lock->word);
}

void percpu__fork_unlock(struct percpu__fork_lock *lock, const uint64_t *saved)
{
	if (__atomic_load_n(&percpu__forker, __ATOMIC_RELAXED) != (uintptr_t)&percpu__private)
		percpu__unlock_word(&lock->word);
	percpu__restore_signals(saved);
}

static void each_gate(char *base, void *arg)
{
	void (**what)(struct percpu__gate * gate) = arg;
	unsigned remainder = percpu__remainder;
	unsigned gated = __atomic_load_n(&percpu__header_of(base, remainder)->gated, __ATOMIC_SEQ_CST);

	/* Operations on the own copy do not note theirs in mode none. */
	if (percpu__mode() == PERCPU_MODE_NONE)
		gated = remainder;
	for (unsigned index = 0; index <= remainder; index++) {
		struct percpu__header *header;

		if (index >= gated)
			index = remainder;
		header = percpu__header_of(base, index);
		(*what)(&header->by_id);
		(*what)(&header->by_cpu);
	}
}

static void wait_for_holder(struct percpu__gate *gate)
{
	if (!percpu__gate_is_mine(gate))
		percpu__gate_wait_idle(gate);
}

static void start_over(struct percpu__gate *gate)
{
	percpu__gate_reset(gate, child_id);
}

static void all_gates(void (*what)(struct percpu__gate *gate))
{
	percpu__each_area(each_gate, &what);
}

/* Signals are blocked wherever a lock is held that a handler of this thread could want and percpu__forker does not tell. */
static void prepare(void)
{
	uint64_t saved;

	percpu__thread_start();
	percpu__block_signals(&saved);
	if (percpu__forker == (uintptr_t)&percpu__private) {
		nested++;
	} else {
		percpu__lock_word(&one_fork);
		percpu__lock_word(&percpu__cold_word);
		/* Before the fork stops anybody: their holders may be in the middle of an operation. */
		for (struct percpu__fork_lock *lock = locks; lock; lock = lock->next)
			percpu__lock_word(&lock->word);
		__atomic_store_n(&percpu__fork_word, 1, __ATOMIC_RELAXED);
		__atomic_store_n(&percpu__forker, (uintptr_t)&percpu__private, __ATOMIC_SEQ_CST);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		all_gates(wait_for_holder);
	}
	percpu__restore_signals(&saved);
}

static void resume(void)
{
	uint64_t saved;

	percpu__block_signals(&saved);
	if (nested) {
		nested--;
	} else {
		__atomic_store_n(&percpu__forker, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&percpu__fork_word, 0, __ATOMIC_RELEASE);
		percpu__futex_wake(&percpu__fork_word, INT_MAX, ~0U);
		for (struct percpu__fork_lock *lock = locks; lock; lock = lock->next)
			percpu__unlock_word(&lock->word);
		percpu__unlock_word(&percpu__cold_word);
		percpu__unlock_word(&one_fork);
	}
	percpu__restore_signals(&saved);
}

/* The only thread: nobody to wake. A child of a nested fork has the outer fork still to finish, as its parent has. */
static void in_child(void)
{
	uint64_t saved;

	percpu__block_signals(&saved);
	child_id = percpu__task_id();
	percpu__fork_count++;
	/* What its parent was measuring (<percpu/timed.h>) has been interrupted. Kernels so far do this themselves. */
	if (percpu__private.state == PERCPU__REGISTERED)
		percpu__true_area()->rseq_cs = 0;
	if (nested) {
		nested--;
	} else {
		all_gates(start_over);
		for (struct percpu__fork_lock *lock = locks; lock; lock = lock->next)
			lock->word = lock->under_way = 0;
		percpu__private.id = child_id;
		percpu__forker = 0;
		percpu__fork_word = 0;
		percpu__cold_word = 0;
		one_fork = 0;
	}
	percpu__restore_signals(&saved);
}

__attribute__((constructor(102))) static void watch_forks(void)
{
	pthread_atfork(prepare, resume, in_child);
}
