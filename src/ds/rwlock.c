/* SPDX-License-Identifier: MIT */
/*
 * Reader-writer locks, cold half.
 *
 * A reader is inside when it has counted in `entered` and not yet in `left`. Both words of each copy only go up,
 * sections change those of their own copy, everybody else those of the remainder (in mode none: of any copy) by atomic
 * instructions. Sections that enter or leave do so only where the copy is open; that of the remainder never is.
 *
 * The writer (one: `writers` is a lock) sets WRITER in `queue` and `closed`, closes all open copies, fences, and waits until
 * the sums are equal. Behind the fence no section enters any more: one that saw its copy open has committed, visibly to the
 * writer, or was aborted. Who enters by an atomic instruction counts first and looks at `closed` then, and takes the count
 * back if it is: of him and the writer one sees the other (both sides have a full barrier).
 *
 * Copies stay closed until a reader that is inside opens its own again. It takes the lock among writers for that, if it is
 * free: so a writer sees all copies that are open, and none is opened while there is a writer. One that finds all copies
 * closed needs no fence: since the last one no section has entered, and who leaves by one looks at `closed` behind a barrier.
 *
 * The sums are not taken at one moment, so `left` comes first: each count in it had its count in `entered` before, and
 * that is read after. Somebody who is inside all the time has one in `entered` that is visible behind the fence, and
 * none in `left`: the sums cannot be equal. In the other order a reader could enter in front of the reading writer (as
 * one who comes again may, or one who takes his count back) and leave behind him: another one's leaving would then hide
 * somebody.
 *
 * Readers that meet a closed lock count themselves in `queue`, and the writer that opens it counts them as entered
 * there and then, before another writer can come, moves on to the next phase, and wakes them. So a queued reader waits
 * for exactly one writer. `closed` is set after WRITER, and cleared before it: who queues up and sees no WRITER may enter
 * by himself, and if he then finds the lock closed, that is a writer who came after him, and will let him in.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include <percpu/rwlock.h>

#include "base/sys.h"
#include "gate/gate.h"
#include "rseq/thread.h"

/* About as long as sleeping and waking take. */
#define SPINS 100

/* queue: readers that wait, the bit of the writer, and above it the phase. */
#define WAITING (WRITER - 1)
#define WRITER  (UINT64_C(1) << 24)
#define PHASE   25

/* gone: the writer sleeps, and above it a count of readers that left a closed lock. */
#define ASLEEP 1U
#define GONE   2U

/* writers: held, and above it how many wait. 0 is free for all; free with a number, for one of those that wait. */
#define HELD 1U
#define ONE  2U

_Static_assert(offsetof(struct percpu_rwlock, open) - offsetof(struct percpu_rwlock, entered) == 16, "the sections'");
_Static_assert(offsetof(struct percpu_rwlock, open) - offsetof(struct percpu_rwlock, left) == 8, "the sections'");
_Static_assert(offsetof(struct percpu_rwlock, queue) == 64 && sizeof(struct percpu_rwlock) == 128, "cache lines");

/* How long a function may wait. */
struct patience {
	uint64_t ns;
	struct timespec until;
};

static struct patience patience_of(uint64_t ns)
{
	struct patience p = { .ns = ns, .until = { 0, 0 } };

	if (ns && ns != PERCPU__RWLOCK_FOREVER)
		percpu__moment_in(ns, &p.until);
	return p;
}

static bool sleep_on(uint32_t *word, uint32_t value, const struct patience *p)
{
	const struct timespec *until = p->ns == PERCPU__RWLOCK_FOREVER ? NULL : &p->until;

	return percpu__futex_wait_until(word, value, ~0U, until) != -ETIMEDOUT;
}

int percpu_rwlock_init(struct percpu_rwlock *lock)
{
	static const struct percpu_rwlock fresh;

	if (!lock)
		return -EINVAL;
	percpu_for_each_index(i) {
		struct percpu_rwlock *copy = percpu_ptr(lock, i);

		if (memcmp(copy, &fresh, sizeof fresh) != 0)
			*copy = fresh;
	}
	return 0;
}

/* Readers. */

/* Where a thread counts that cannot do it by a section. */
static unsigned slow_index(void)
{
	return percpu__mode() == PERCPU_MODE_NONE ? percpu__private.spread : percpu__remainder;
}

static void add(uint64_t *words, uint64_t n)
{
	__atomic_fetch_add(percpu_ptr(words, slow_index()), n, __ATOMIC_SEQ_CST);
}

static bool is_closed(const struct percpu_rwlock *lock)
{
	return __atomic_load_n(&lock->closed, __ATOMIC_SEQ_CST) != 0;
}

static uint32_t *open_word(struct percpu_rwlock *lock, unsigned index)
{
	return &percpu_ptr(lock, index)->open;
}

/* A reader has left a lock that is closed. The writer reads `gone`, then sums: if he sees our number he sees our count. */
static void tell_writer(struct percpu_rwlock *lock)
{
	if (__atomic_fetch_add(&lock->gone, GONE, __ATOMIC_SEQ_CST) & ASLEEP)
		percpu__futex_wake(&lock->gone, 1, ~0U);
}

static void leave(struct percpu_rwlock *lock)
{
	add(&lock->left, 1);
	/* Before the look at `open`: pairs with the fence of percpu_fence() in mode none, where it interrupts nobody. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (is_closed(lock))
		tell_writer(lock);
}

/* By an atomic instruction, without a section. */
static bool enter(struct percpu_rwlock *lock)
{
	if (is_closed(lock))
		return false;
	add(&lock->entered, 1);
	/* The count, then the look: pairs with the closing and the fence in write_lock(). Otherwise each could miss the other. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!is_closed(lock))
		return true;
	leave(lock);
	return false;
}

/* False if the writer of that phase has let us in. */
static bool leave_queue(struct percpu_rwlock *lock, uint64_t phase)
{
	uint64_t queue = __atomic_load_n(&lock->queue, __ATOMIC_ACQUIRE);

	while (queue >> PHASE == phase)
		if (__atomic_compare_exchange_n(&lock->queue, &queue, queue - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE))
			return true;
	return false;
}

static int queue_up(struct percpu_rwlock *lock, const struct patience *p)
{
	uint64_t queue = __atomic_fetch_add(&lock->queue, 1, __ATOMIC_SEQ_CST), phase = queue >> PHASE;

	if (!(queue & WRITER) && enter(lock)) {
		if (!leave_queue(lock, phase))
			leave(lock); /* entered twice */
		return 0;
	}
	for (;;) {
		uint32_t seen = __atomic_load_n(&lock->phase, __ATOMIC_ACQUIRE);

		/* Acquire: what the writer did. */
		if (__atomic_load_n(&lock->queue, __ATOMIC_ACQUIRE) >> PHASE != phase)
			return 0;
		if (!sleep_on(&lock->phase, seen, p))
			return leave_queue(lock, phase) ? -ETIMEDOUT : 0;
	}
}

static void unlock_writers(uint32_t *word)
{
	if (__atomic_and_fetch(word, ~HELD, __ATOMIC_RELEASE))
		percpu__futex_wake(word, 1, ~0U);
}

/* By a thread that is inside: lets sections enter and leave on the copy that it is on, unless there are writers. */
static void open_copy(struct percpu_rwlock *lock)
{
	uint32_t none = 0, *open;
	unsigned index;

	if (!percpu__runs_sections())
		return;
	index = percpu__current_index(PERCPU__BY_ID);
	open = open_word(lock, index);
	if (index == percpu__remainder || __atomic_load_n(open, __ATOMIC_RELAXED) ||
	    !__atomic_compare_exchange_n(&lock->writers, &none, HELD, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	/* Release: what the last writer did. */
	__atomic_store_n(open, 1, __ATOMIC_RELEASE);
	unlock_writers(&lock->writers);
}

/* A section, as often as the budget allows; none where the copy is closed. */
static bool try_to_enter(struct percpu_rwlock *lock)
{
	if (!percpu__runs_sections())
		return false;
	for (int i = 0; i < PERCPU_ABORT_BUDGET; i++) {
		if (!__atomic_load_n(open_word(lock, percpu__current_index(PERCPU__BY_ID)), __ATOMIC_RELAXED))
			return false;
		if (PERCPU__TRY(percpu__try_rwlock_enter(lock)) == PERCPU__DONE)
			return true;
	}
	return false;
}

/* For who is inside already, and stays there: whether the copy is open does not matter. */
static bool try_to_count(uint64_t *words)
{
	(void)words;
	if (percpu__runs_sections())
		for (int i = 0; i < PERCPU_ABORT_BUDGET; i++)
			if (PERCPU__TRY(percpu__try_count_release(words, 1, PERCPU__BY_ID)) == PERCPU__DONE)
				return true;
	return false;
}

static int enter_or_wait(struct percpu_rwlock *lock, uint64_t ns)
{
	struct patience p;

	if (enter(lock))
		return 0;
	if (!ns)
		return -EBUSY;
	for (int i = 0; i < SPINS; i++) {
		if (enter(lock))
			return 0;
		percpu__pause();
	}
	p = patience_of(ns);
	return queue_up(lock, &p);
}

int percpu__rwlock_read_slow(struct percpu_rwlock *lock, uint64_t ns)
{
	int rc;

	if (try_to_enter(lock))
		return 0;
	rc = enter_or_wait(lock, ns);
	if (!rc)
		open_copy(lock);
	return rc;
}

void percpu__rwlock_again_slow(struct percpu_rwlock *lock)
{
	if (!try_to_count(&lock->entered))
		add(&lock->entered, 1);
}

void percpu__rwlock_leave_slow(struct percpu_rwlock *lock)
{
	open_copy(lock);
	if (!try_to_count(&lock->left)) {
		leave(lock);
		return;
	}
	/* As in leave(): the writer need not fence. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (is_closed(lock))
		tell_writer(lock);
}

/* Writers. */

static int lock_writers(uint32_t *word, const struct patience *p)
{
	uint32_t now = 0;

	for (int i = 0; i < (p->ns ? SPINS : 1); i++) {
		now = 0;
		if (__atomic_compare_exchange_n(word, &now, HELD, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return 0;
		if (now & ~HELD)
			break; /* others were here before */
		percpu__pause();
	}
	if (!p->ns)
		return -EBUSY;
	now = __atomic_add_fetch(word, ONE, __ATOMIC_RELAXED);
	for (;;) {
		if (!(now & HELD)) {
			if (__atomic_compare_exchange_n(word, &now, (now - ONE) | HELD, 0, __ATOMIC_ACQUIRE,
							__ATOMIC_RELAXED))
				return 0;
			continue;
		}
		if (sleep_on(word, now, p)) {
			now = __atomic_load_n(word, __ATOMIC_RELAXED);
			continue;
		}
		/* Not while it is free: then it waits for one of us. */
		now = __atomic_load_n(word, __ATOMIC_RELAXED);
		while (now & HELD)
			if (__atomic_compare_exchange_n(word, &now, now - ONE, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
				return -ETIMEDOUT;
	}
}

static uint64_t sum(uint64_t *words)
{
	uint64_t total = 0;

	for (unsigned index = 0; index <= percpu__remainder; index++)
		total += __atomic_load_n(percpu_ptr(words, index), __ATOMIC_ACQUIRE);
	return total;
}

/*
 * How many are inside; 0 is certain, once the lock is closed and fenced. Acquire, each: pairs with the release of who
 * left, so that what he did inside, and that he entered, is seen by what follows.
 */
static uint64_t readers(struct percpu_rwlock *lock)
{
	uint64_t left = sum(&lock->left);

	return sum(&lock->entered) - left;
}

static int wait_for_readers(struct percpu_rwlock *lock, const struct patience *p)
{
	int rc = 0;

	for (int i = 0; i < (p->ns ? SPINS : 1); i++) {
		if (!readers(lock))
			return 0;
		percpu__pause();
	}
	if (!p->ns)
		return -EBUSY;
	for (;;) {
		uint32_t seen = __atomic_or_fetch(&lock->gone, ASLEEP, __ATOMIC_SEQ_CST);

		if (!readers(lock))
			break;
		if (!sleep_on(&lock->gone, seen, p)) {
			rc = readers(lock) ? -ETIMEDOUT : 0;
			break;
		}
	}
	__atomic_fetch_and(&lock->gone, ~ASLEEP, __ATOMIC_SEQ_CST);
	return rc;
}

/* So that no section enters any more. Returns what percpu_fence() does. */
static int close_copies(struct percpu_rwlock *lock)
{
	int rc = 0;

	for (unsigned index = 0; index < percpu__remainder; index++) {
		uint32_t *open = open_word(lock, index);

		if (__atomic_load_n(open, __ATOMIC_RELAXED)) {
			lock->owed = 1;
			__atomic_store_n(open, 0, __ATOMIC_RELAXED);
		}
	}
	/* `closed`, then the sums: pairs with enter() and leave(), with a fence or without. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (lock->owed)
		rc = percpu_fence();
	if (!rc)
		lock->owed = 0;
	return rc;
}

/* Lets all in that wait, and ends the phase. */
static void open_lock(struct percpu_rwlock *lock)
{
	uint64_t queue, counted = 0, waiting;

	/* Release: pairs with the acquire of enter(), which then sees what the writer did. */
	__atomic_store_n(&lock->closed, 0, __ATOMIC_SEQ_CST);
	queue = __atomic_load_n(&lock->queue, __ATOMIC_ACQUIRE);
	do {
		waiting = queue & WAITING;
		/* Those that gave up meanwhile have not entered after all: modulo 2^64, for nobody sums but a writer. */
		if (waiting != counted)
			add(&lock->entered, waiting - counted);
		counted = waiting;
	} while (!__atomic_compare_exchange_n(&lock->queue, &queue, ((queue >> PHASE) + 1) << PHASE, 0,
					      __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE));
	if (!waiting)
		return;
	__atomic_fetch_add(&lock->phase, 1, __ATOMIC_RELEASE);
	percpu__futex_wake(&lock->phase, INT_MAX, ~0U);
}

static int write_lock(struct percpu_rwlock *lock, uint64_t ns)
{
	struct patience p = patience_of(ns);
	int rc = lock_writers(&lock->writers, &p);

	if (rc)
		return rc;
	/* Nobody is disturbed for nothing: not certain yet, but likely. */
	if (!ns && readers(lock)) {
		unlock_writers(&lock->writers);
		return -EBUSY;
	}
	__atomic_fetch_or(&lock->queue, WRITER, __ATOMIC_SEQ_CST);
	__atomic_store_n(&lock->closed, 1, __ATOMIC_SEQ_CST);
	rc = close_copies(lock);
	if (!rc)
		rc = wait_for_readers(lock, &p);
	if (rc) {
		open_lock(lock);
		unlock_writers(&lock->writers);
		return rc;
	}
	lock->forks = percpu__fork_count;
	return 0;
}

int percpu_rwlock_write_lock(struct percpu_rwlock *lock)
{
	return write_lock(lock, PERCPU__RWLOCK_FOREVER);
}

int percpu_rwlock_write_trylock(struct percpu_rwlock *lock)
{
	return write_lock(lock, 0);
}

int percpu_rwlock_write_timedlock(struct percpu_rwlock *lock, uint64_t ns)
{
	return write_lock(lock, ns);
}

/* The writer's thread has forked, and this is the child: nobody else was inside, and those who waited are not here. */
static void forget_the_parents(struct percpu_rwlock *lock)
{
	add(&lock->left, readers(lock));
	lock->queue &= ~WAITING;
	lock->gone = 0;
	lock->writers = HELD;
	lock->forks = percpu__fork_count;
}

void percpu_rwlock_write_unlock(struct percpu_rwlock *lock)
{
	if (lock->forks != percpu__fork_count)
		forget_the_parents(lock);
	open_lock(lock);
	unlock_writers(&lock->writers);
}

void percpu_rwlock_downgrade(struct percpu_rwlock *lock)
{
	if (lock->forks != percpu__fork_count)
		forget_the_parents(lock);
	add(&lock->entered, 1);
	open_lock(lock);
	unlock_writers(&lock->writers);
}
