/* SPDX-License-Identifier: MIT */
/*
 * fork: the child must not see a slow path that another thread is in the middle of, for that thread will not exist.
 *
 * Sections need nothing: memory is consistent at every instruction of theirs. For slow paths the forking thread first
 * says that it forks, then waits until no gate is held; a holder first takes its gate, then looks whether somebody forks,
 * and if so backs out and waits. Each side writes before it reads, sequentially consistent, so one of them sees the other.
 * The forking thread itself may go on using everything, for its other atfork handlers run in between.
 *
 * A handler in mode none may fork while the operation it interrupted holds a gate: that one is not waited for, and the
 * child's own thread finishes it.
 */
#include <limits.h>
#include <pthread.h>

#include "base/lock.h"
#include "gate/gate.h"
#include "rseq/thread.h"

/* Here, so that whoever links gates from the static library has this file's handlers too. */
uint32_t percpu__fork_word;

static uint32_t one_fork; /* a lock: the forking thread has it from prepare to resume */
static uint32_t nested;   /* forks by signal handlers of the forking thread, inside its fork; its own */

static void each_gate(char *base, void (*what)(struct percpu__gate *gate))
{
	unsigned remainder = percpu__remainder;
	uint32_t gated = __atomic_load_n(&percpu__header_of(base, remainder)->gated, __ATOMIC_SEQ_CST);

	for (unsigned index = 0; index <= remainder; index++) {
		struct percpu__header *header;

		if (index >= gated)
			index = remainder;
		header = percpu__header_of(base, index);
		what(&header->by_id);
		what(&header->by_cpu);
	}
}

static void wait_for_holder(struct percpu__gate *gate)
{
	if (!percpu__gate_is_mine(gate))
		percpu__gate_wait_idle(gate);
}

static void quiesce(char *base, void *unused)
{
	(void)unused;
	each_gate(base, wait_for_holder);
}

static void start_over(char *base, void *unused)
{
	(void)unused;
	each_gate(base, percpu__gate_reset);
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
		__atomic_store_n(&percpu__fork_word, 1, __ATOMIC_RELAXED);
		__atomic_store_n(&percpu__forker, (uintptr_t)&percpu__private, __ATOMIC_SEQ_CST);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		percpu__each_area(quiesce, NULL);
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
		percpu__unlock_word(&percpu__cold_word);
		percpu__unlock_word(&one_fork);
	}
	percpu__restore_signals(&saved);
}

/* The only thread: nobody to wake. A child of a nested fork resumes the outer fork's parent half when that returns. */
static void in_child(void)
{
	percpu__each_area(start_over, NULL);
	if (nested) {
		nested--;
		return;
	}
	percpu__forker = 0;
	percpu__fork_word = 0;
	percpu__cold_word = 0;
	one_fork = 0;
}

__attribute__((constructor(102))) static void watch_forks(void)
{
	pthread_atfork(prepare, resume, in_child);
}
