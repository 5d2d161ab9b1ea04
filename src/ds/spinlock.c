/* SPDX-License-Identifier: MIT */
/*
 * Spinlocks, cold half: a lock whose bias towards its own CPU's sections can be ended, and given back.
 *
 * `held` goes from 0 to 1 by a section, or by compare-and-swap; back by a plain store of the holder. The two ways never
 * meet on one copy, because of `bias`, which is BIASED, less PARTY for each thread that is about to lock by compare-and-swap,
 * less CLOSING while somebody locks all copies. Sections may lock while it is 1, BIASED and nothing else.
 * A party that finds BIASED fences: sections that saw 1 have stored, visibly, or are aborted. Then BIASED goes, and later
 * parties need no fence. So: no BIASED, no section under way. BIASED is set only by a holder, by compare-and-swap from his
 * own PARTY alone: nobody else is on the way to `held`, and sections that see it find `held` set until he unlocks.
 * All words 0, as fresh memory is: no bias. The first acquisition on each copy is a party's, which sets it.
 *
 * Sleepers sleep on `held`, counted in `sleepers`; one is woken by each unlock that finds `bias` not 1. Whoever sleeps has
 * seen to that first, as a party or by CLOSING, with a fence if it was BIASED. The fence is also what orders the unlock's
 * store and load; where no section runs (mode none) `bias` is never 1, and the barrier in wake() does.
 *
 * To lock all is to lock each, in rising order, without writing to copies that nobody has used: `all` holds how many are
 * locked so far. Who has locked copy i by compare-and-swap looks there afterwards, and backs out if it is among them; who
 * locks all first counts i, then looks whether it is held. Both sequentially consistent: one of them sees the other. No
 * section is under way there, and nobody who backs out sets the bias.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/lock.h"
#include "ds/spinlock.h"
#include "gate/gate.h"
#include "rseq/thread.h"

/* Parts of `bias`. It is negative as soon as one of the last two is in it, and its low bits tell the first two. */
#define BIASED  1
#define CLOSING 2
#define PARTY   4
/* In `all`: somebody may sleep on it; above, the number. */
#define WAITERS 1U
#define ONE     2U

/* About as long as a short critical section; sleeping and waking costs more. */
#define SPINS 100
/* Times to see it free and be too late, before sleeping. */
#define MOST_LOSSES 4
/* As many acquisitions by compare-and-swap cost about what a fence costs that interrupts another CPU. */
#define PATIENCE 512

uint32_t percpu__spinlock_patience = PATIENCE;

static uint32_t load(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static int32_t load_bias(const struct percpu_spinlock *copy)
{
	return __atomic_load_n(&copy->bias, __ATOMIC_SEQ_CST);
}

static bool try_hold(struct percpu_spinlock *copy)
{
	uint32_t free = 0;

	/* SEQ_CST: before the load of `all`. */
	return !__atomic_load_n(&copy->held, __ATOMIC_RELAXED) &&
	       __atomic_compare_exchange_n(&copy->held, &free, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static bool spin_until_free(const struct percpu_spinlock *copy)
{
	for (int i = 0; i < SPINS; i++) {
		if (!load(&copy->held))
			return true;
		percpu__pause();
	}
	return false;
}

/* `bias` says already that unlocking must wake. */
static void hold(struct percpu_spinlock *copy)
{
	for (int i = 0; i < MOST_LOSSES && spin_until_free(copy); i++)
		if (try_hold(copy))
			return;
	__atomic_fetch_add(&copy->sleepers, 1, __ATOMIC_SEQ_CST);
	while (!try_hold(copy))
		percpu__futex_wait(&copy->held, 1, ~0U);
	__atomic_fetch_sub(&copy->sleepers, 1, __ATOMIC_SEQ_CST);
}

static void wake_one(struct percpu_spinlock *copy)
{
	if (load(&copy->sleepers))
		percpu__futex_wake(&copy->held, 1, ~0U);
}

void percpu__spinlock_wake(struct percpu_spinlock *copy)
{
	/* Between the store of `held` and the load of `sleepers`; hold() counts itself, then looks at `held`. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	wake_one(copy);
}

/* Where sections may run: elsewhere nobody ever sets a bias, so nobody needs to be counted. */
static bool may_be_biased(unsigned index)
{
	return index != percpu__remainder && percpu__mode() != PERCPU_MODE_NONE;
}

/* Becomes a party. Returns 0, 1 if that ended the bias, or an error of the fence, and is none then. */
static int come(struct percpu_spinlock *copy)
{
	int rc;

	if (!(__atomic_fetch_sub(&copy->bias, PARTY, __ATOMIC_SEQ_CST) & BIASED))
		return 0;
	rc = percpu_fence();
	if (rc) {
		__atomic_fetch_add(&copy->bias, PARTY, __ATOMIC_SEQ_CST);
		return rc;
	}
	__atomic_fetch_and(&copy->bias, ~BIASED, __ATOMIC_SEQ_CST);
	return 1;
}

/* A party that holds the lock is one no longer. @calm: it is a thread of this copy's CPU, and was not in anybody's way. */
static void settle(struct percpu_spinlock *copy, bool calm)
{
	int32_t alone = -PARTY;

	if (!calm)
		copy->patience = percpu__spinlock_patience;
	else if (copy->patience)
		copy->patience--;
	else if (__atomic_compare_exchange_n(&copy->bias, &alone, BIASED, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return;
	__atomic_fetch_add(&copy->bias, PARTY, __ATOMIC_SEQ_CST);
}

static uint32_t *all_of(struct percpu_spinlock *lock)
{
	return &percpu_ptr(lock, percpu__remainder)->all;
}

/* Whether this index is locked with all, or about to be. After try_hold(). */
static bool is_with_all(struct percpu_spinlock *lock, unsigned index)
{
	return load(all_of(lock)) / ONE > index;
}

static void wait_for_all(struct percpu_spinlock *lock, unsigned index)
{
	uint32_t *word = all_of(lock), all;

	for (int i = 0; i < SPINS; i++) {
		if (!is_with_all(lock, index))
			return;
		percpu__pause();
	}
	while ((all = load(word)) / ONE > index)
		if ((all & WAITERS) ||
		    __atomic_compare_exchange_n(word, &all, all | WAITERS, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			percpu__futex_wait(word, all | WAITERS, ~0U);
}

/* Locks one index. @own: because a section could not. Returns 0 or an error of the fence. */
static int lock_one(struct percpu_spinlock *lock, unsigned index, bool own)
{
	struct percpu_spinlock *copy = percpu_ptr(lock, index);
	bool counted = may_be_biased(index);
	int rc = counted ? come(copy) : 0;

	if (rc < 0)
		return rc;
	hold(copy);
	while (is_with_all(lock, index)) {
		percpu_spinlock_unlock(copy);
		wait_for_all(lock, index);
		hold(copy);
	}
	if (counted)
		settle(copy, own && rc == 0);
	return 0;
}

/* The same without waiting: 0, -EBUSY, or an error of the fence. */
static int try_lock_one(struct percpu_spinlock *lock, unsigned index, bool own)
{
	struct percpu_spinlock *copy = percpu_ptr(lock, index);
	bool counted = may_be_biased(index);
	int rc;

	if (load(&copy->held) || is_with_all(lock, index))
		return -EBUSY;
	rc = counted ? come(copy) : 0;
	if (rc < 0)
		return rc;
	if (try_hold(copy)) {
		if (!is_with_all(lock, index)) {
			if (counted)
				settle(copy, own && rc == 0);
			return 0;
		}
		percpu_spinlock_unlock(copy);
	}
	if (counted)
		__atomic_fetch_add(&copy->bias, PARTY, __ATOMIC_SEQ_CST);
	return -EBUSY;
}

/* Mode none: a copy that is free, from the one that this thread had last; NULL if there is none. */
static struct percpu_spinlock *try_lock_any(struct percpu_spinlock *lock)
{
	unsigned count = percpu__process.about.possible_cpus, first = percpu__private.spread;

	for (unsigned i = 0; i < count; i++) {
		unsigned index = first + i < count ? first + i : first + i - count;

		if (try_lock_one(lock, index, false) == 0) {
			percpu__private.spread = index;
			return percpu_ptr(lock, index);
		}
	}
	return NULL;
}

/*
 * The section again, a few times. NULL if there is no bias, it is interrupted always, or somebody holds the lock. Who
 * shares a copy mostly shares a CPU: so let the holder run, before looking whether it runs elsewhere.
 */
static struct percpu_spinlock *try_sections(struct percpu_spinlock *lock, bool waits)
{
	for (int i = 0, held = 0; i < PERCPU_ABORT_BUDGET; i++) {
		struct percpu_spinlock *here = percpu_ptr(lock, percpu__current_index(PERCPU__BY_ID));
		struct percpu_spinlock *copy = PERCPU__TRY_SPINLOCK(lock);

		if (copy) {
			__atomic_thread_fence(__ATOMIC_ACQUIRE);
			return copy;
		}
		if (load_bias(here) != BIASED)
			break;
		if (!load(&here->held))
			continue;
		if (!waits || held == 2)
			break;
		if (held++ == 0)
			percpu__sys4(SYS_sched_yield, 0, 0, 0, 0);
		else
			spin_until_free(here);
	}
	return NULL;
}

struct percpu_spinlock *percpu__spinlock_slow(struct percpu_spinlock *lock)
{
	bool own = percpu__runs_sections();
	struct percpu_spinlock *copy = NULL;
	unsigned index;

	if (percpu__mode() == PERCPU_MODE_NONE)
		copy = try_lock_any(lock);
	else if (own)
		copy = try_sections(lock, true);
	if (copy)
		return copy;
	index = percpu__usual_index(PERCPU__BY_ID);
	/* Who cannot fence any more takes the remainder, where nobody needs to. */
	if (lock_one(lock, index, own)) {
		index = percpu__remainder;
		lock_one(lock, index, false);
	}
	return percpu_ptr(lock, index);
}

struct percpu_spinlock *percpu__spinlock_slow_try(struct percpu_spinlock *lock)
{
	bool own = percpu__runs_sections();
	struct percpu_spinlock *copy;
	unsigned index;
	int rc;

	if (percpu__mode() == PERCPU_MODE_NONE)
		return try_lock_any(lock);
	copy = own ? try_sections(lock, false) : NULL;
	if (copy)
		return copy;
	index = percpu__usual_index(PERCPU__BY_ID);
	rc = try_lock_one(lock, index, own);
	if (rc && rc != -EBUSY) {
		index = percpu__remainder;
		rc = try_lock_one(lock, index, false);
	}
	return rc ? NULL : percpu_ptr(lock, index);
}

int percpu_spinlock_lock_index(struct percpu_spinlock *lock, unsigned index)
{
	if (!lock || index > percpu__remainder)
		return -EINVAL;
	return lock_one(lock, index, false);
}

/* From here on its holders wake, and nobody sets its bias. Returns whether it had one. */
static bool end_bias(struct percpu_spinlock *copy)
{
	return __atomic_fetch_sub(&copy->bias, CLOSING, __ATOMIC_SEQ_CST) & BIASED;
}

static void wait_until_free(struct percpu_spinlock *copy)
{
	if (spin_until_free(copy))
		return;
	__atomic_fetch_add(&copy->sleepers, 1, __ATOMIC_SEQ_CST);
	while (load(&copy->held))
		percpu__futex_wait(&copy->held, 1, ~0U);
	__atomic_fetch_sub(&copy->sleepers, 1, __ATOMIC_SEQ_CST);
	/* Does not take it, so nobody will unlock it: the wake-up belongs to the next, who will back out. */
	wake_one(copy);
}

/* `all` covers it by now. Copies that nobody uses are only read: from now on nobody can lock them. */
static int lock_with_all(struct percpu_spinlock *copy)
{
	if (!(load_bias(copy) & CLOSING)) {
		int rc;

		/*
		 * In this order. Once it is seen free, nobody can set the bias any more, nor lock it by compare-and-swap. Then no
		 * bias, no section under way; but one may have locked it before that was ended.
		 */
		if (!load(&copy->held) && !(load_bias(copy) & BIASED) && !load(&copy->held))
			return 0;
		rc = end_bias(copy) ? percpu_fence() : 0;
		if (rc)
			return rc;
	}
	__atomic_fetch_and(&copy->bias, ~BIASED, __ATOMIC_SEQ_CST);
	wait_until_free(copy);
	copy->patience = percpu__spinlock_patience;
	__atomic_fetch_add(&copy->bias, CLOSING, __ATOMIC_SEQ_CST);
	return 0;
}

static void back_out(struct percpu_spinlock *lock)
{
	percpu_for_each_index(i) {
		struct percpu_spinlock *copy = percpu_ptr(lock, i);

		if (load_bias(copy) & CLOSING)
			__atomic_fetch_add(&copy->bias, CLOSING, __ATOMIC_SEQ_CST);
	}
	percpu_spinlock_unlock_all(lock);
}

int percpu_spinlock_lock_all(struct percpu_spinlock *lock)
{
	bool owes_fence = false;
	int rc;

	if (!lock)
		return -EINVAL;
	percpu__lock_word(&percpu_ptr(lock, percpu__remainder)->all_lock);
	/* Now, so that one fence will do for all. */
	percpu_for_each_index(i) {
		struct percpu_spinlock *copy = percpu_ptr(lock, i);

		if (load_bias(copy) & BIASED)
			owes_fence |= end_bias(copy);
	}
	rc = owes_fence ? percpu_fence() : 0;
	for (unsigned i = 0; rc == 0 && i <= percpu__remainder; i++) {
		__atomic_fetch_add(all_of(lock), ONE, __ATOMIC_SEQ_CST);
		rc = lock_with_all(percpu_ptr(lock, i));
	}
	if (rc)
		back_out(lock);
	return rc;
}

void percpu_spinlock_unlock_all(struct percpu_spinlock *lock)
{
	uint32_t *word = all_of(lock);

	if (__atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST) & WAITERS)
		percpu__futex_wake(word, INT_MAX, ~0U);
	percpu__unlock_word(&percpu_ptr(lock, percpu__remainder)->all_lock);
}

int percpu_spinlock_init(struct percpu_spinlock *lock)
{
	static const struct percpu_spinlock fresh;

	if (!lock)
		return -EINVAL;
	percpu_for_each_index(i) {
		struct percpu_spinlock *copy = percpu_ptr(lock, i);

		if (memcmp(copy, &fresh, sizeof fresh) != 0)
			*copy = fresh;
	}
	return 0;
}
