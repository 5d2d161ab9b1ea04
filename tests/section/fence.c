/* SPDX-License-Identifier: MIT */
/*
 * A section that is running on another CPU while a gate is closed must not commit under it. (Traps cannot show this: who
 * was stopped is aborted anyway.)
 *
 * A thread spins inside a section until the word of its copy is GO, then commits DONE: on a CPU of its own, so that hardly
 * anything but the fence ends it. The main thread closes the gate, writes GO, and looks whether DONE comes. Two controls:
 * without closing anything DONE must come, and so it must if the gate's word is merely written, without a fence. Rounds
 * go on until both came often enough: on a busy machine the spinner is often not there.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "gate/gate.h"
#include "rseq/thread.h"

#define ENOUGH      100
#define MOST_ROUNDS 50000
#define PATIENCE    20000 /* looks */

enum { WAIT, GO, DONE };

struct cell {
	uint64_t word;
};

static struct cell *cell;
static int cpus[2];
static enum percpu__by by;
static uint32_t index_now = ~0U; /* where the spinner is, written by it; ~0 while it starts */
static bool stop;

#define SPIN(by)                                                                                                       \
	__asm__ __volatile__ goto(PERCPU__ENTER "5:\n\t" PERCPU__A_NE("go", "5b") PERCPU__A_STORE("done")              \
					  PERCPU__LEAVE                                                                \
				  :                                                                                    \
				  : PERCPU__OPERANDS(object, by), [go] "r"((uint64_t)GO), [done] "r"((uint64_t)DONE)   \
				  : "memory", PERCPU__SCRATCH                                                          \
				  : left)

static void spin_once(uint64_t *object)
{
	if (by == PERCPU__BY_CPU)
		SPIN(PERCPU__BY_CPU);
	else
		SPIN(PERCPU__BY_ID);
left:
	return;
}

static void pin(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((size_t)cpu, &one);
	sched_setaffinity(0, sizeof one, &one);
}

static void *spinner(void *unused)
{
	struct percpu_description about;

	(void)unused;
	pin(cpus[1]);
	percpu_describe(&about); /* registers this thread */
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		__atomic_store_n(&index_now, (uint32_t)(by == PERCPU__BY_CPU ? percpu_cpu() : percpu_cid()),
				 __ATOMIC_RELAXED);
		spin_once(&cell->word);
	}
	return NULL;
}

static uint64_t look(unsigned index)
{
	return __atomic_load_n(&percpu_ptr(cell, index)->word, __ATOMIC_ACQUIRE);
}

static void set(unsigned index, uint64_t value)
{
	__atomic_store_n(&percpu_ptr(cell, index)->word, value, __ATOMIC_SEQ_CST);
}

static void nap(long microseconds)
{
	nanosleep(&(struct timespec){ .tv_nsec = microseconds * 1000 }, NULL);
}

enum way { OPEN, WITHOUT_FENCE, GATE, GATE_OF_KIND };

/* Whether the section committed although the gate was closed (as far as it was). */
static bool round_of(enum way way)
{
	struct percpu_gate held = { .base = percpu__base_of(cell),
				    .kinds = by == PERCPU__BY_CPU ? PERCPU__KIND_CPU : PERCPU__KIND_ID };
	uint32_t index, *word;
	bool came;

	while ((index = __atomic_load_n(&index_now, __ATOMIC_RELAXED)) == ~0U)
		nap(50);
	held.index = index;
	set(index, WAIT);
	nap(30); /* time to get inside */
	word = by == PERCPU__BY_CPU ? &percpu__header_of(held.base, index)->by_cpu.word
				    : &percpu__header_of(held.base, index)->by_id.word;
	if (way == WITHOUT_FENCE)
		__atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
	else if (way == GATE && percpu_gate_lock(cell, index, &held))
		return true;
	else if (way == GATE_OF_KIND && percpu__gates_lock(&held, 1, true))
		return true;
	set(index, GO);
	for (int i = 0; i < PATIENCE && look(index) == GO; i++)
		__asm__ __volatile__("" ::: "memory");
	came = look(index) == DONE;
	set(index, WAIT);
	if (way == WITHOUT_FENCE)
		__atomic_store_n(word, 0, __ATOMIC_SEQ_CST);
	else if (way == GATE)
		percpu_gate_unlock(&held);
	else if (way == GATE_OF_KIND)
		percpu__gates_unlock(&held, 1, true);
	return came;
}

static bool test_kind(void)
{
	unsigned came[4] = { 0, 0, 0, 0 }, rounds = 0;
	pthread_t thread;

	stop = false;
	index_now = ~0U;
	if (pthread_create(&thread, NULL, spinner, NULL))
		return false;
	for (; rounds < MOST_ROUNDS && (came[OPEN] < ENOUGH || came[WITHOUT_FENCE] < ENOUGH); rounds++)
		for (enum way way = OPEN; way <= GATE_OF_KIND; way++)
			came[way] += round_of(way);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	percpu_for_each_index(i)
		set(i, GO);
	pthread_join(thread, NULL);
	printf("by %s: of %u rounds committed: %u with the gate open, %u without a fence, %u and %u with one\n",
	       by == PERCPU__BY_CPU ? "CPU" : "id", rounds, came[OPEN], came[WITHOUT_FENCE], came[GATE],
	       came[GATE_OF_KIND]);
	return came[OPEN] && came[WITHOUT_FENCE] && !came[GATE] && !came[GATE_OF_KIND];
}

int main(void)
{
	struct percpu_description about;
	cpu_set_t allowed;
	int found = 0;
	bool right;

	sched_getaffinity(0, sizeof allowed, &allowed);
	for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++)
		if (CPU_ISSET((size_t)cpu, &allowed))
			cpus[found++] = cpu;
	percpu_describe(&about);
	cell = percpu_alloc(sizeof *cell, 64);
	if (!cell)
		return 1;
	if (found < 2 || !about.thread_registered) {
		printf("needs two CPUs and sections\n");
		return 77;
	}
	pin(cpus[0]);
	right = test_kind();
	by = PERCPU__BY_CPU;
	right &= test_kind();
	return !right;
}
