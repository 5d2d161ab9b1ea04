/* SPDX-License-Identifier: MIT */
/*
 * The gate: a futex lock that sections look at.
 *
 * Its word is 0 when open, the only value that lets a section commit. Flags in the low byte, the holder's id above:
 *   HELD      somebody holds it
 *   SLEEPERS  somebody may sleep on the word
 *   PASSED    closed and fenced, held by nobody: the next locker need not fence, because it was never open in between
 *   SHUT      the remainder's: never open, so never a fence; otherwise a lock like any other
 *   FORKED    mode none: held by a thread that forks, for all its operations (fork.c)
 * The holder hands over by PASSED only while `lockers` says that somebody waits to hold it (waiters never give up), and a
 * few times at most, so that sections get their turn. Threads that only want to run a section sleep too, but in another
 * wake set: they are woken when the gate opens, all at once, and run their sections instead of forming a queue of holders.
 *
 * Ordering. Closing (CAS) then fence: a section that saw the gate open has committed, visibly to us, or was aborted.
 * Opening is a release; a section that loads 0 is ordered after it (ports: total store order, or an address dependency).
 *
 * Lock order: gates by address, remainders' after all others; under a gate nothing else. Holders block all signals (in mode none only for the
 * remainder's gate), so a handler never meets its own thread's gate; in mode none a handler that interrupted a holder
 * never waits for a gate whose holder may be stopped likewise: it takes the remainder's, or fails with -EDEADLK.
 */
#include <errno.h>
#include <limits.h>
#include <time.h>

#include "base/lock.h"
#include "gate/gate.h"
#include "rseq/thread.h"

#define HELD     1U
#define SLEEPERS 2U
#define PASSED   4U
#define SHUT     PERCPU__SHUT
#define FORKED   16U
#define OWNER    8 /* first bit of the holder's id */

/* About as long as an operation under the gate and its fence take; sleeping and waking costs more. */
#define SPINS       200
#define FORK_SPINS  (50 * SPINS) /* with naps in between: some milliseconds */
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

static bool is_forked(const struct percpu__gate *gate)
{
	return percpu__gate_is_mine(gate) && (load(&gate->word) & FORKED);
}

/* SEQ_CST: pairs with fork's prepare handler, which sets percpu__forker and then looks at the gates. */
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

		if (!(word & HELD))
			return;
		sleep_on(gate, word, FOR_SECTIONS);
	}
}

void percpu__gate_reset(struct percpu__gate *gate, uint32_t new_id)
{
	uint32_t word = gate->word, now = word & SHUT;

	if (percpu__gate_is_mine(gate) && !(word & FORKED))
		now |= HELD | new_id << OWNER;
	/* A copy that was not in use stays untouched, and shares its page with the parent. */
	if (word != now)
		gate->word = now;
	if (gate->lockers)
		gate->lockers = 0;
	if (gate->passes)
		gate->passes = 0;
}

bool percpu__gate_lock_forked(struct percpu__gate *gate)
{
	const struct timespec moment = { .tv_nsec = 20000 };
	bool owes_fence = false;

	if (percpu__gate_is_mine(gate))
		return true;
	for (int i = 1; i <= FORK_SPINS; i++) {
		if (try_lock(gate, &owes_fence)) {
			__atomic_fetch_or(&gate->word, FORKED, __ATOMIC_RELAXED);
			return true;
		}
		percpu__pause();
		if (i % SPINS == 0)
			percpu__sys4(SYS_nanosleep, (long)&moment, 0, 0, 0);
	}
	return false;
}

bool percpu__gate_unlock_forked(struct percpu__gate *gate)
{
	if (is_forked(gate))
		unlock(gate, true);
	return true;
}

static struct percpu__gate *gate_of(const struct percpu_gate *held, unsigned kind)
{
	struct percpu__header *header = percpu__header_of(held->base, held->index);

	return kind == PERCPU__KIND_CPU ? &header->by_cpu : &header->by_id;
}

/* So that fork looks at this gate. It always looks at the remainder's, and at all of them in mode none. */
static void note_gated(const struct percpu_gate *held)
{
	uint32_t *gated = &percpu__header_of(held->base, percpu__remainder)->gated;
	uint32_t seen;

	if (held->index == percpu__remainder || percpu__mode() == PERCPU_MODE_NONE)
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
 * Not in mode none, a fork waits for all holders, and new ones for the fork, but for the forking thread's own. Nor does
 * a thread wait that holds a gate already: the fork waits for that one.
 */
static bool must_wait_for_fork(void)
{
	uintptr_t forker = __atomic_load_n(&percpu__forker, __ATOMIC_SEQ_CST);

	return forker && forker != (uintptr_t)&percpu__private && percpu__mode() != PERCPU_MODE_NONE &&
	       percpu__private.holding == 1;
}

/* Mode none: the calling thread forks and has all gates. Its operations only keep its own handlers away. */
static bool has_all_gates(void)
{
	return percpu__mode() == PERCPU_MODE_NONE &&
	       __atomic_load_n(&percpu__forker, __ATOMIC_RELAXED) == (uintptr_t)&percpu__private;
}

static int fence_for(const struct percpu_gate *gates, unsigned count)
{
	if (count == 1 && gates->kinds == PERCPU__KIND_CPU)
		return percpu_fence_cpu(gates->index);
	return percpu_fence();
}

/* Signals are blocked for the remainder's gate in any mode, for the others where a fence may be owed. */
static bool blocks_signals(const struct percpu_gate *gates, unsigned count)
{
	if (percpu__mode() != PERCPU_MODE_NONE)
		return true;
	for (unsigned i = 0; i < count; i++)
		if (gates[i].index == percpu__remainder)
			return true;
	return false;
}

/* Takes nothing: for a thread that has all gates. Undone by percpu__gates_unlock. */
static void enter_forked(struct percpu_gate *gates, unsigned count)
{
	percpu__block_signals(&gates->saved_signals);
	for (unsigned i = 0; i < count; i++)
		gates[i].kinds = 0;
}

int percpu__gates_lock(struct percpu_gate *gates, unsigned count)
{
	volatile uint32_t *holding = &percpu__private.holding;
	bool waits, owes_fence, blocks = blocks_signals(gates, count);
	int rc = -EDEADLK;

	percpu__thread_start();
	if (has_all_gates()) {
		enter_forked(gates, count);
		return 0;
	}
	for (unsigned i = 0; i < count; i++)
		note_gated(&gates[i]);
	for (;;) {
		owes_fence = false;
		if (blocks)
			percpu__block_signals(&gates->saved_signals);
		waits = *holding == 0;
		*holding = *holding + 1;
		if (!lock_all(gates, count, waits, &owes_fence))
			break;
		if (!must_wait_for_fork()) {
			/* Still closed since somebody else's fence, or shut: no section to wait for. */
			rc = owes_fence ? fence_for(gates, count) : 0;
			if (!rc)
				return 0;
			unlock_all(gates, count, false);
			break;
		}
		unlock_all(gates, count, false);
		*holding = *holding - 1;
		if (blocks)
			percpu__restore_signals(&gates->saved_signals);
		percpu__futex_wait(&percpu__fork_word, 1, ~0U);
	}
	*holding = *holding - 1;
	if (blocks)
		percpu__restore_signals(&gates->saved_signals);
	return rc;
}

void percpu__gates_unlock(struct percpu_gate *gates, unsigned count)
{
	volatile uint32_t *holding = &percpu__private.holding;

	if (count && !gates->kinds) {
		percpu__restore_signals(&gates->saved_signals);
		return;
	}
	unlock_all(gates, count, true);
	*holding = *holding - 1;
	if (blocks_signals(gates, count))
		percpu__restore_signals(&gates->saved_signals);
}

void percpu__gate_lock_remainder(struct percpu_gate *gate)
{
	volatile uint32_t *holding = &percpu__private.holding;
	bool owes_fence = false;

	gate->index = percpu__remainder;
	if (has_all_gates()) {
		enter_forked(gate, 1);
		return;
	}
	for (;;) {
		percpu__block_signals(&gate->saved_signals);
		*holding = *holding + 1;
		lock(gate_of(gate, gate->kinds), &owes_fence);
		if (!must_wait_for_fork())
			return;
		unlock(gate_of(gate, gate->kinds), false);
		*holding = *holding - 1;
		percpu__restore_signals(&gate->saved_signals);
		percpu__futex_wait(&percpu__fork_word, 1, ~0U);
	}
}

void percpu__gate_lock_any(struct percpu_gate *gate, char *base, unsigned kinds)
{
	volatile uint32_t *holding = &percpu__private.holding;
	unsigned count = percpu__process.about.possible_cpus, first = percpu__private.spread;
	bool owes_fence = false;

	gate->base = base;
	gate->index = first;
	gate->kinds = kinds;
	if (has_all_gates()) {
		enter_forked(gate, 1);
		return;
	}
	*holding = *holding + 1;
	for (unsigned i = 0; i < count; i++) {
		gate->index = first + i < count ? first + i : first + i - count;
		if (try_lock(gate_of(gate, kinds), &owes_fence)) {
			/* Threads that meet here drift apart. */
			percpu__private.spread = gate->index;
			return;
		}
	}
	*holding = *holding - 1;
	percpu__gate_lock_remainder(gate);
}

int percpu_gate_lock(void *object, unsigned index, struct percpu_gate *gate)
{
	if (!object || !gate || index >= percpu_copies())
		return -EINVAL;
	gate->base = percpu__base_of(object);
	gate->index = index;
	gate->kinds = PERCPU__KINDS;
	return percpu__gates_lock(gate, 1);
}

void percpu_gate_unlock(struct percpu_gate *gate)
{
	percpu__gates_unlock(gate, 1);
}
