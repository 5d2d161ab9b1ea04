/* SPDX-License-Identifier: MIT */
/*
 * fork: the child must not see a slow path that another thread is in the middle of, for that thread will not exist.
 *
 * Sections need nothing: memory is consistent at every instruction of theirs. For slow paths, where sections run, the
 * forking thread first says that it forks, then waits until no gate is held; a holder first takes its gate, then looks
 * whether somebody forks, and if so backs out and waits. Each side writes before it reads, sequentially consistent, so one
 * of them sees the other. Gates stay open to sections all the while.
 *
 * In mode none a holder may be stopped between the two by a handler that needs a gate, memory or a fork too, so there the
 * forking thread takes all gates instead, remainders last: others wait at them. If it does not get one soon, the holder may
 * be stopped by a handler that waits for us: then it lets go of everything, and tries again.
 *
 * The forking thread itself may go on using everything, for its other atfork handlers run in between. A handler in mode
 * none may fork while the operation it interrupted holds a gate: the child's own thread finishes that.
 */
#include <limits.h>
#include <pthread.h>
#include <time.h>

#include "base/lock.h"
#include "gate/gate.h"
#include "rseq/thread.h"

/* Here, so that whoever links areas or gates from the static library has this file's handlers too. */
uint32_t percpu__fork_word;
uintptr_t percpu__forker;
uint32_t percpu__cold_word;

static uint32_t child_id;
static uint32_t one_fork; /* a lock: the forking thread has it from prepare to resume */
static uint32_t nested;   /* forks by signal handlers of the forking thread, inside its fork; its own */

struct walk {
	bool (*what)(struct percpu__gate *gate); /* false: go no further */
	bool remainders;
	bool stopped;
};

static void each_gate(char *base, void *arg)
{
	struct walk *walk = arg;
	unsigned from = 0, to = __atomic_load_n(&percpu__header_of(base, percpu__remainder)->gated, __ATOMIC_SEQ_CST);

	if (percpu__mode() == PERCPU_MODE_NONE)
		to = percpu__remainder;
	if (walk->remainders)
		from = percpu__remainder, to = percpu__remainder + 1;
	for (unsigned index = from; index < to && !walk->stopped; index++) {
		struct percpu__header *header = percpu__header_of(base, index);

		walk->stopped = !walk->what(&header->by_id) || !walk->what(&header->by_cpu);
	}
}

static bool all_gates(bool (*what)(struct percpu__gate *gate))
{
	struct walk walk = { .what = what };

	percpu__each_area(each_gate, &walk);
	walk.remainders = true;
	percpu__each_area(each_gate, &walk);
	return !walk.stopped;
}

static bool wait_for_holder(struct percpu__gate *gate)
{
	if (!percpu__gate_is_mine(gate))
		percpu__gate_wait_idle(gate);
	return true;
}

static bool start_over(struct percpu__gate *gate)
{
	percpu__gate_reset(gate, child_id);
	return true;
}

/* Everything that keeps other threads out, or nothing. With signals blocked. */
static bool begin(void)
{
	percpu__lock_word(&one_fork);
	percpu__lock_word(&percpu__cold_word);
	__atomic_store_n(&percpu__fork_word, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&percpu__forker, (uintptr_t)&percpu__private, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return all_gates(percpu__mode() == PERCPU_MODE_NONE ? percpu__gate_lock_forked : wait_for_holder);
}

static void end(void)
{
	if (percpu__mode() == PERCPU_MODE_NONE)
		all_gates(percpu__gate_unlock_forked);
	__atomic_store_n(&percpu__forker, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&percpu__fork_word, 0, __ATOMIC_RELEASE);
	percpu__futex_wake(&percpu__fork_word, INT_MAX, ~0U);
	percpu__unlock_word(&percpu__cold_word);
	percpu__unlock_word(&one_fork);
}

/* Signals are blocked wherever a lock is held that a handler of this thread could want and percpu__forker does not tell. */
static void prepare(void)
{
	const struct timespec a_while = { .tv_nsec = 1000000 };
	uint64_t saved;

	percpu__thread_start();
	percpu__block_signals(&saved);
	if (percpu__forker == (uintptr_t)&percpu__private) {
		nested++;
	} else {
		while (!begin()) {
			end();
			percpu__restore_signals(&saved);
			percpu__sys4(SYS_nanosleep, (long)&a_while, 0, 0, 0);
			percpu__block_signals(&saved);
		}
	}
	percpu__restore_signals(&saved);
}

static void resume(void)
{
	uint64_t saved;

	percpu__block_signals(&saved);
	if (nested)
		nested--;
	else
		end();
	percpu__restore_signals(&saved);
}

/* The only thread: nobody to wake. A child of a nested fork has the outer fork still to finish, as its parent has. */
static void in_child(void)
{
	uint64_t saved;

	percpu__block_signals(&saved);
	child_id = percpu__task_id();
	if (nested) {
		nested--;
	} else {
		all_gates(start_over);
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
