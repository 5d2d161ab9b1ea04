/* SPDX-License-Identifier: MIT */
/*
 * Reader-writer locks for trap.c and slowpath.c: entering and leaving while somebody else enters or leaves on the same
 * copy, or closes the lock; and everything that does not wait while somebody else does the same.
 */
#include "harness.h"

#include <percpu/rwlock.h>

#define NOINLINE static __attribute__((noinline))

static struct percpu_rwlock *lock;

/* How the lock is when the subject begins, by case; open and then closed by the rival, or open and so are no copies. */
static enum { CLOSED_BY_RIVAL, OPEN, CLOSED, UNUSED } state;

static uint64_t at_closing; /* how many had counted when the rival was behind its fence */
static bool failed;

static uint64_t load(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static uint64_t sum(uint64_t *words)
{
	uint64_t total = 0;

	percpu_for_each_index(i)
		total += load(percpu_ptr(words, i));
	return total;
}

static uint64_t inside(void)
{
	return sum(&lock->entered) - sum(&lock->left);
}

static void open_copies(uint32_t open)
{
	for (unsigned i = 0; i + 1 < percpu_copies(); i++)
		__atomic_store_n(&percpu_ptr(lock, i)->open, open, __ATOMIC_RELAXED);
}

static void setup(unsigned which, struct call *c)
{
	if (!lock)
		lock = percpu_alloc(sizeof *lock, 64);
	if (!lock) {
		failed = true;
		return;
	}
	percpu_for_each_index(i)
		percpu_ptr(lock, i)->entered = percpu_ptr(lock, i)->left = 0;
	lock->gone = 0;
	state = which;
	lock->closed = state == CLOSED;
	open_copies(state == OPEN || state == CLOSED_BY_RIVAL);
	c->p = &lock->entered;
}

/* Who waits must find the lock open: cases 0 and 1. */
static void setup_open(unsigned which, struct call *c)
{
	setup(which ? UNUSED : OPEN, c);
}

static void setup_leave(unsigned which, struct call *c)
{
	setup(which, c);
	percpu_ptr(lock, percpu_copies() - 1)->entered = 1;
	c->p = &lock->left;
}

static void interfere(enum interference how, unsigned index, uint64_t *words)
{
	const struct entry *entry = &entries[control->entry];
	struct call c = { .p = words };

	if (state == CLOSED_BY_RIVAL) {
		if (!lock->closed) {
			__atomic_store_n(&lock->closed, 1, __ATOMIC_SEQ_CST);
			open_copies(0);
			failed |= percpu_fence() != 0;
			at_closing = inside();
			control->changes++;
		}
	} else {
		if (how == BY_THREAD || how == BY_HANDLER)
			entry->rival(&c);
		else
			__atomic_store_n(percpu_ptr(words, index), load(percpu_ptr(words, index)) + 1,
					 __ATOMIC_RELEASE);
		control->changes++;
	}
	if (how == UNDER_GATE)
		sem_post(&control->done);
}

static void interfere_enter(enum interference how, unsigned index)
{
	interfere(how, index, &lock->entered);
}

static void interfere_leave(enum interference how, unsigned index)
{
	interfere(how, index, &lock->left);
}

static const char *check_enter(const struct call *c)
{
	unsigned entered = c->rc == PERCPU__DONE;

	if (failed)
		return "the rival failed";
	if (inside() != entered + (state == CLOSED_BY_RIVAL ? 0 : control->changes))
		return "the result is not what happened";
	if (entered && state == CLOSED)
		return "entered a closed lock";
	if (entered && state == CLOSED_BY_RIVAL && control->changes && at_closing != 1)
		return "entered without the writer seeing it";
	if (!entered && (state == OPEN || state == UNUSED))
		return "found a lock closed that is open";
	if (percpu_ptr(lock, percpu_copies() - 1)->open)
		return "the remainder is open to sections";
	if (lock->writers)
		return "held the lock among writers, and did not give it back";
	return NULL;
}

static const char *check_leave(const struct call *c)
{
	bool woke = lock->gone != 0;

	(void)c;
	if (failed)
		return "the rival failed";
	if (sum(&lock->left) != 1 + (state == CLOSED_BY_RIVAL ? 0 : control->changes))
		return "left not once";
	if (state == CLOSED && !woke)
		return "the writer is not woken";
	if (state == CLOSED_BY_RIVAL && control->changes && at_closing == 1 && !woke)
		return "the writer saw it inside and is not woken";
	return NULL;
}

NOINLINE void leave(void)
{
	percpu_rwlock_read_unlock(lock);
}

/* Whatever does not wait, one after the other, and the same in between: in the end nobody is inside. */
static void all(void)
{
	if (percpu_rwlock_read_trylock(lock) == 0) {
		percpu_rwlock_read_lock_again(lock);
		leave();
		leave();
	}
	if (percpu_rwlock_write_trylock(lock) == 0)
		percpu_rwlock_write_unlock(lock);
	if (percpu_rwlock_write_trylock(lock) == 0) {
		percpu_rwlock_downgrade(lock);
		percpu_rwlock_read_lock_again(lock);
		leave(); /* opens the copy */
		leave();
	}
}

static void interfere_all(enum interference how, unsigned index)
{
	(void)index;
	all();
	control->changes++;
	if (how == UNDER_GATE)
		sem_post(&control->done);
}

static const char *check_all(const struct call *c)
{
	(void)c;
	if (failed || inside())
		return "somebody is left inside";
	if (lock->closed || lock->queue & ((UINT64_C(1) << 25) - 1) || lock->writers)
		return "it is not open in the end";
	return NULL;
}

static const struct kind enter_kind = { 4, setup, interfere_enter, check_enter };
static const struct kind open_kind = { 2, setup_open, interfere_enter, check_enter };
static const struct kind leave_kind = { 4, setup_leave, interfere_leave, check_leave };
static const struct kind all_kind = { 2, setup_open, interfere_all, check_all };

NOINLINE void read_trylock(struct call *c)
{
	c->rc = percpu_rwlock_read_trylock(lock) ? PERCPU__DIFFERS : PERCPU__DONE;
}

NOINLINE void read_timedlock(struct call *c)
{
	c->rc = percpu_rwlock_read_timedlock(lock, 1000) ? PERCPU__DIFFERS : PERCPU__DONE;
}

NOINLINE void read_lock(struct call *c)
{
	percpu_rwlock_read_lock(lock);
	c->rc = PERCPU__DONE;
}

NOINLINE void read_lock_again(struct call *c)
{
	percpu_rwlock_read_lock_again(lock);
	c->rc = PERCPU__DONE;
}

NOINLINE void read_unlock(struct call *c)
{
	percpu_rwlock_read_unlock(lock);
	c->rc = PERCPU__DONE;
}

NOINLINE void everything(struct call *c)
{
	all();
	c->rc = PERCPU__DONE;
}

#define ENTRY(name_, kind_, rival_, ...)                                                                               \
	{                                                                                                              \
		.name = "rwlock_" #name_, .kind = &kind_, .run = name_, .rival = rival_, .indexed = PERCPU__BY_ID,     \
		__VA_ARGS__                                                                                            \
	}

const struct entry entries[] = {
	ENTRY(read_trylock, enter_kind, read_lock_again, ), ENTRY(read_timedlock, enter_kind, read_lock_again, ),
	ENTRY(read_lock, open_kind, read_lock_again, ),     ENTRY(read_lock_again, open_kind, read_lock, ),
	ENTRY(read_unlock, leave_kind, read_unlock, ),      ENTRY(everything, all_kind, everything, .repeats = true),
};
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = false;
/* The rest are those of the library's slow path. */
const unsigned only_sections = 11;
