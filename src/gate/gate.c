/* SPDX-License-Identifier: MIT */
/*
 * The gate: a futex lock that sections look at.
 *
 * Its word is 0 when open, the only value that lets a section commit. Flags in the low byte, the holder's id above:
 *   HELD      somebody holds it
 *   SLEEPERS  somebody may sleep on the word
 *   PASSED    closed and fenced, held by nobody: the next locker need not fence, because it was never open in between
 *   SHUT      the remainder's: never open, so never a fence; otherwise a lock like any other
 *   BUSY      held by somebody who makes several changes that belong together: a fork waits for him (fork.c)
 * The holder hands over by PASSED only while `lockers` says that somebody waits to hold it (waiters never give up), and a
 * few times at most, so that sections get their turn. Threads that only want to run a section sleep too, but in another
 * wake set: they are woken when the gate opens, all at once, and run their sections instead of forming a queue of holders.
 *
 * Ordering. Closing (CAS) then fence: a section that saw the gate open has committed, visibly to us, or was aborted.
 * Opening is a release; a section that loads 0 is ordered after it (ports: total store order, or an address dependency).
 *
 * Lock order: gates by address, remainders' after all others; under a gate nothing else. Holders block all signals, so a
 * handler never meets its own thread's gate; but for operations on the own copy in mode none, which must be cheap: there a
 * handler that interrupted a holder never waits for a gate whose holder may be stopped likewise. It takes another copy's,
 * at last the remainder's, or fails with -EDEADLK if it wants a certain one.
 */
#include <errno.h>
#include <limits.h>

#include "base/lock.h"
#include "gate/gate.h"
#include "rseq/thread.h"

#define HELD     1U
#define SLEEPERS 2U
#define PASSED   4U
#define SHUT     PERCPU__SHUT
#define BUSY     16U
#define OWNER    8 /* first bit of the holder's id */

/* About as long as an operation under the gate and its fence take; sleeping and waking costs more. */
#define SPINS       200
#define MOST_PASSES 16
#define MOST_SLEEPS 3

/* Wake sets. */
#define FOR_LOCKERS  1U
#define FOR_SECTIONS 2U

static uint32_t load(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static uint32_t my_tag(void)
{
	return percpu__private.id << OWNER;
}

bool percpu__gate_is_mine(const struct percpu__gate *gate)
{
	uint32_t word = load(&gate->word);

	return (word & HELD) && word >> OWNER == percpu__private.id;
}

static bool try_lock(struct percpu__gate *gate, bool *owes_fence)
{
	uint32_t word = load(&gate->word);

	while (!(word & HELD)) {
		uint32_t closed = (word & (SLEEPERS | SHUT)) | HELD | my_tag();

		if (__atomic_compare_exchange_n(&gate->word, &word, closed, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
			*owes_fence |= !(word & (PASSED | SHUT));
			return true;
		}
	}
	return false;
}

/* Sleeps on the word if it is still this; marks it first. */
static void sleep_on(struct percpu__gate *gate, uint32_t word, uint32_t set)
{
	if (!(word & SLEEPERS) &&
	    !__atomic_compare_exchange_n(&gate->word, &word, word | SLEEPERS, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return;
	percpu__futex_wait(&gate->word, word | SLEEPERS, set);
}

static void lock(struct percpu__gate *gate, bool *owes_fence)
{
	uint32_t waiting;

	for (int i = 0; i < SPINS; i++) {
		if (try_lock(gate, owes_fence))
			return;
		percpu__pause();
	}
	/* From here until the gate is ours, whoever unlocks it may rely on us to take it. */
	__atomic_fetch_add(&gate->lockers, 1, __ATOMIC_SEQ_CST);
	while (!try_lock(gate, owes_fence)) {
		uint32_t word = load(&gate->word);

		if (word & HELD)
			sleep_on(gate, word, FOR_LOCKERS);
	}
	/* Not below 0: a signal handler may have forked while we waited, and the child starts from 0. */
	waiting = load(&gate->lockers);
	while (waiting && !__atomic_compare_exchange_n(&gate->lockers, &waiting, waiting - 1, 0, __ATOMIC_SEQ_CST,
						       __ATOMIC_RELAXED))
		;
}

static void unlock(struct percpu__gate *gate, bool fenced)
{
	uint32_t shut = load(&gate->word) & SHUT, was;

	if (fenced && gate->passes < MOST_PASSES && __atomic_load_n(&gate->lockers, __ATOMIC_SEQ_CST)) {
		gate->passes++;
		__atomic_store_n(&gate->word, shut | PASSED | SLEEPERS, __ATOMIC_RELEASE);
		percpu__futex_wake(&gate->word, 1, FOR_LOCKERS);
		return;
	}
	gate->passes = 0;
	was = __atomic_exchange_n(&gate->word, shut, __ATOMIC_SEQ_CST);
	if (was & SLEEPERS)
		percpu__futex_wake(&gate->word, INT_MAX, FOR_LOCKERS | FOR_SECTIONS);
}

void percpu__gate_wait_open(struct percpu__gate *gate)
{
	uint32_t word;

	for (int i = 0; i < SPINS; i++) {
		word = load(&gate->word);
		if (!word || (word & SHUT))
			return;
		percpu__pause();
	}
	for (int i = 0; i < MOST_SLEEPS; i++) {
		word = load(&gate->word);
		if (!word)
			return;
		sleep_on(gate, word, FOR_SECTIONS);
	}
}

void percpu__gate_wait_idle(struct percpu__gate *gate)
{
	for (;;) {
		uint32_t word = load(&gate->word);

		if (!(word & BUSY))
			return;
		sleep_on(gate, word, FOR_SECTIONS);
	}
}

void percpu__gate_reset(struct percpu__gate *gate, uint32_t new_id)
{
	uint32_t word = gate->word, now = word & SHUT;

	if (percpu__gate_is_mine(gate))
		now |= HELD | (word & BUSY) | new_id << OWNER;
	/* A copy that was not in use stays untouched, and shares its page with the parent. */
	if (word != now)
		gate->word = now;
	if (gate->lockers)
		gate->lockers = 0;
	if (gate->passes)
		gate->passes = 0;
}

static struct percpu__gate *gate_of(const struct percpu_gate *held, unsigned kind)
{
	struct percpu__header *header = percpu__header_of(held->base, held->index);

	return kind == PERCPU__KIND_CPU ? &header->by_cpu : &header->by_id;
}

/* So that fork looks at this gate; it always looks at the remainder's. */
static void note_gated(const struct percpu_gate *held)
{
	uint32_t *gated = &percpu__header_of(held->base, percpu__remainder)->gated;
	uint32_t seen;

	if (held->index == percpu__remainder)
		return;
	seen = __atomic_load_n(gated, __ATOMIC_SEQ_CST);
	while (seen <= held->index &&
	       !__atomic_compare_exchange_n(gated, &seen, held->index + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

static void unlock_all(struct percpu_gate *gates, unsigned count, bool fenced)
{
	while (count--) {
		if (gates[count].kinds & PERCPU__KIND_CPU)
			unlock(gate_of(&gates[count], PERCPU__KIND_CPU), fenced);
		if (gates[count].kinds & PERCPU__KIND_ID)
			unlock(gate_of(&gates[count], PERCPU__KIND_ID), fenced);
	}
}

/* A handler that interrupted a holder must not wait: returns false, with none held. */
static bool lock_all(struct percpu_gate *gates, unsigned count, bool waits, bool *owes_fence)
{
	for (unsigned i = 0; i < count; i++) {
		for (unsigned kind = PERCPU__KIND_ID; kind <= PERCPU__KIND_CPU; kind <<= 1) {
			struct percpu__gate *gate = gate_of(&gates[i], kind);

			if (!(gates[i].kinds & kind))
				continue;
			if (waits && !percpu__gate_is_mine(gate)) {
				lock(gate, owes_fence);
			} else if (!try_lock(gate, owes_fence)) {
				if (kind == PERCPU__KIND_CPU && (gates[i].kinds & PERCPU__KIND_ID))
					unlock(gate_of(&gates[i], PERCPU__KIND_ID), false);
				unlock_all(gates, i, false);
				return false;
			}
		}
	}
	return true;
}

/*
 * Says that several changes follow. False if a fork is under way: then they must wait, but for the forking thread's own,
 * or if this thread is inside such changes already, which the fork waits for. SEQ_CST: fork's prepare handler sets
 * percpu__forker and then looks for BUSY.
 */
static bool become_busy(const struct percpu_gate *gates, unsigned count)
{
	uintptr_t forker;

	for (unsigned i = 0; i < count; i++) {
		if (gates[i].kinds & PERCPU__KIND_ID)
			__atomic_fetch_or(&gate_of(&gates[i], PERCPU__KIND_ID)->word, BUSY, __ATOMIC_SEQ_CST);
		if (gates[i].kinds & PERCPU__KIND_CPU)
			__atomic_fetch_or(&gate_of(&gates[i], PERCPU__KIND_CPU)->word, BUSY, __ATOMIC_SEQ_CST);
	}
	forker = __atomic_load_n(&percpu__forker, __ATOMIC_SEQ_CST);
	return !forker || forker == (uintptr_t)&percpu__private || percpu__private.busy;
}

static int fence_for(const struct percpu_gate *gates, unsigned count)
{
	if (count == 1 && gates->kinds == PERCPU__KIND_CPU)
		return percpu_fence_cpu(gates->index);
	return percpu_fence();
}

/* One step of taking them all: 0, an error, or 1 if it must be taken again when a fork is over. Signals are blocked. */
static int lock_once(struct percpu_gate *gates, unsigned count, bool several)
{
	/* In mode none a handler may have interrupted a holder. */
	bool owes_fence = false, waits = percpu__private.holding == 0;
	int rc;

	if (!lock_all(gates, count, waits, &owes_fence))
		return -EDEADLK;
	if (several && !become_busy(gates, count)) {
		unlock_all(gates, count, false);
		return 1;
	}
	/* Otherwise still closed since somebody else's fence, or shut: no section to wait for. */
	rc = owes_fence ? fence_for(gates, count) : 0;
	if (rc)
		unlock_all(gates, count, false);
	return rc;
}

int percpu__gates_lock(struct percpu_gate *gates, unsigned count, bool several)
{
	int rc;

	percpu__thread_start();
	for (unsigned i = 0; i < count; i++)
		note_gated(&gates[i]);
	for (;;) {
		percpu__block_signals(&gates->saved_signals);
		rc = lock_once(gates, count, several);
		if (rc == 0)
			break;
		percpu__restore_signals(&gates->saved_signals);
		if (rc < 0)
			return rc;
		percpu__futex_wait(&percpu__fork_word, 1, ~0U);
	}
	percpu__private.holding++;
	percpu__private.busy += several;
	return 0;
}

void percpu__gates_unlock(struct percpu_gate *gates, unsigned count, bool several)
{
	unlock_all(gates, count, true);
	percpu__private.holding--;
	percpu__private.busy -= several;
	percpu__restore_signals(&gates->saved_signals);
}

void percpu__gate_lock_remainder(struct percpu_gate *gate)
{
	bool owes_fence = false;

	gate->index = percpu__remainder;
	percpu__block_signals(&gate->saved_signals);
	lock(gate_of(gate, gate->kinds), &owes_fence);
	percpu__private.holding++;
}

void percpu__gate_lock_any(struct percpu_gate *gate)
{
	volatile uint32_t *holding = &percpu__private.holding;
	unsigned count = percpu__process.about.possible_cpus, first = percpu__private.spread;
	bool owes_fence = false;

	/* Before the first try, so that a handler never takes a gate of ours for somebody else's. */
	*holding = *holding + 1;
	for (unsigned i = 0; i < count; i++) {
		gate->index = first + i < count ? first + i : first + i - count;
		if (try_lock(gate_of(gate, gate->kinds), &owes_fence)) {
			/* Threads that meet here drift apart. */
			percpu__private.spread = gate->index;
			return;
		}
	}
	*holding = *holding - 1;
	percpu__gate_lock_remainder(gate);
}

void percpu__gate_unlock_any(struct percpu_gate *gate)
{
	volatile uint32_t *holding = &percpu__private.holding;

	unlock_all(gate, 1, true);
	*holding = *holding - 1;
	if (gate->index == percpu__remainder)
		percpu__restore_signals(&gate->saved_signals);
}

int percpu_gate_lock(void *object, unsigned index, struct percpu_gate *gate)
{
	if (!object || !gate || index >= percpu_copies())
		return -EINVAL;
	gate->base = percpu__base_of(object);
	gate->index = index;
	gate->kinds = PERCPU__KINDS;
	return percpu__gates_lock(gate, 1, true);
}

void percpu_gate_unlock(struct percpu_gate *gate)
{
	percpu__gates_unlock(gate, 1, true);
}
