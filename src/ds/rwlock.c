/* SPDX-License-Identifier: MIT */
/*
 * Reader-writer locks, cold half.
 *
 * A reader is inside when it has counted in `entered` and not yet in `left`. Both words of each copy only go up,
 * sections change those of their own copy, everybody else those of the remainder (in mode none: of any copy) by atomic
 * instructions.
 *
 * The writer (one: `writers` is a lock) sets WRITER in `queue`, clears `open`, fences, and waits until the sums are
 * equal. Behind the fence no section enters any more: one that saw the lock open has committed, visibly to the writer,
 * or was aborted. Who enters by an atomic instruction counts first and looks at `open` then, and takes the count back
 * if it is closed: of him and the writer one sees the other (both sides have a full barrier).
 *
 * The sums are not taken at one moment, so `left` comes first: each count in it had its count in `entered` before, and
 * that is read after. Somebody who is inside all the time has one in `entered` that is visible behind the fence, and
 * none in `left`: the sums cannot be equal. In the other order a reader could enter in front of the reading writer (as
 * one who comes again may, or one who takes his count back) and leave behind him: another one's leaving would then hide
 * somebody.
 *
 * Readers that meet a closed lock count themselves in `queue`, and the writer that opens it counts them as entered
 * there and then, before another writer can come, moves on to the next phase, and wakes them. So a queued reader waits
 * for exactly one writer. `open` is cleared after WRITER is set, and set before it is cleared: who queues up and sees
 * no WRITER may enter by himself, and if he then finds the lock closed, that is a writer who came after him, and will
 * let him in.
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
	uint64_t *entered;

	if (!lock)
		return -EINVAL;
	entered = percpu_alloc(2 * sizeof *entered, 2 * sizeof *entered);
	if (!entered)
		return -ENOMEM;
	memset(lock, 0, sizeof *lock);
	lock->entered = entered;
	lock->open = percpu__remainder;
	return 0;
}

void percpu_rwlock_destroy(struct percpu_rwlock *lock)
{
	if (!lock)
		return;
	percpu_free(lock->entered);
	lock->entered = NULL;
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
	return __atomic_load_n(&lock->open, __ATOMIC_SEQ_CST) == 0;
}

/* A reader has left a lock that is closed. The writer reads `gone`, then sums: if he sees our number he sees our count. */
static void tell_writer(struct percpu_rwlock *lock)
{
	if (__atomic_fetch_add(&lock->gone, GONE, __ATOMIC_SEQ_CST) & ASLEEP)
		percpu__futex_wake(&lock->gone, 1, ~0U);
}

static void leave(struct percpu_rwlock *lock)
{
	add(PERCPU__RWLOCK_LEFT(lock), 1);
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
	add(lock->entered, 1);
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

/* A section, as often as the budget allows; PERCPU__LEFT if none could commit. */
static int try_to_enter(struct percpu_rwlock *lock)
{
	int rc = PERCPU__LEFT;

	if (percpu__runs_sections())
		for (int i = 0; i < PERCPU_ABORT_BUDGET && rc == PERCPU__LEFT && !is_closed(lock); i++)
			rc = PERCPU__TRY(percpu__try_count_open(lock->entered, 1, &lock->open, PERCPU__BY_ID));
	return rc;
}

static int try_to_count(uint64_t *words)
{
	int rc = PERCPU__LEFT;

	(void)words;
	if (percpu__runs_sections())
		for (int i = 0; i < PERCPU_ABORT_BUDGET && rc == PERCPU__LEFT; i++)
			rc = PERCPU__TRY(percpu__try_count_release(words, 1, PERCPU__BY_ID));
	return rc;
}

int percpu__rwlock_read_slow(struct percpu_rwlock *lock, uint64_t ns)
{
	struct patience p;

	if (try_to_enter(lock) == PERCPU__DONE || enter(lock))
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

void percpu__rwlock_again_slow(struct percpu_rwlock *lock)
{
	if (try_to_count(lock->entered) != PERCPU__DONE)
		add(lock->entered, 1);
}

void percpu__rwlock_leave_slow(struct percpu_rwlock *lock)
{
	if (try_to_count(PERCPU__RWLOCK_LEFT(lock)) != PERCPU__DONE)
		leave(lock);
	else if (is_closed(lock))
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

static void unlock_writers(uint32_t *word)
{
	if (__atomic_and_fetch(word, ~HELD, __ATOMIC_RELEASE))
		percpu__futex_wake(word, 1, ~0U);
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
	uint64_t left = sum(PERCPU__RWLOCK_LEFT(lock));

	return sum(lock->entered) - left;
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

/* Lets all in that wait, and ends the phase. */
static void open_lock(struct percpu_rwlock *lock)
{
	uint64_t queue, counted = 0, waiting;

	/* Release: pairs with the acquire of sections and of enter(), which then see what the writer did. */
	__atomic_store_n(&lock->open, percpu__remainder, __ATOMIC_SEQ_CST);
	queue = __atomic_load_n(&lock->queue, __ATOMIC_ACQUIRE);
	do {
		waiting = queue & WAITING;
		/* Those that gave up meanwhile have not entered after all: modulo 2^64, for nobody sums but a writer. */
		if (waiting != counted)
			add(lock->entered, waiting - counted);
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
	__atomic_store_n(&lock->open, 0, __ATOMIC_SEQ_CST);
	/* Pairs with: sections that enter (aborted or seen), those that leave (aborted or seen), enter(), leave(). */
	rc = percpu_fence();
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
	add(PERCPU__RWLOCK_LEFT(lock), readers(lock));
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
	add(lock->entered, 1);
	open_lock(lock);
	unlock_writers(&lock->writers);
}
