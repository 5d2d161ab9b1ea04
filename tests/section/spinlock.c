/* SPDX-License-Identifier: MIT */
/*
 * Spinlocks: the section, interrupted at every instruction while others lock the same copy, end its bias or hold it, and
 * (FOR_SLOWPATH) every way to lock, with a handler at every instruction. What a lock guards is changed by plain loads and
 * stores, with a pause in the middle where a rival holds it: each change is there in the end, exactly once.
 *
 * SPINLOCK_BROKEN: sections that are broken on purpose, which must be found out.
 */
#include <unistd.h>

#include <percpu/spinlock.h>

#include "harness.h"

#define NOINLINE static __attribute__((noinline))

#define LONGER 500 /* microseconds: until the subject surely meets who holds its copy */

struct guarded {
	struct percpu_spinlock lock;
	uint64_t count, twice;
};

static struct guarded *g;
static unsigned which;
static const char *trouble;

/* How the copies are before. */
enum { BIASED, FREE, PATIENT, HELD };

static void setup(unsigned number, struct call *c)
{
	struct percpu_description about;

	which = number;
	trouble = NULL;
	if (!g)
		g = percpu_alloc(sizeof *g, 64);
	if (!g || percpu_describe(&about))
		_exit(9);
	percpu_for_each_index(i) {
		struct guarded *copy = percpu_ptr(g, i);
		bool may = about.mode != PERCPU_MODE_NONE && i != i_end - 1;

		*copy = (struct guarded){ .lock.bias = may && (number == BIASED || number == HELD),
					  .lock.patience = number == PATIENT ? 2 : 0,
					  .lock.held = number == HELD };
	}
	c->p = (uint64_t *)(void *)g;
	c->n = 0;
}

static void count_in(struct guarded *copy, bool slowly)
{
	uint64_t was = *(volatile uint64_t *)&copy->count;

	if (copy->twice != was)
		trouble = "two have it";
	*(volatile uint64_t *)&copy->count = was + 1;
	if (slowly) {
		harness_held();
		usleep(LONGER);
	}
	copy->twice = was + 1;
}

static void by_index(unsigned index, bool slowly)
{
	struct guarded *copy = percpu_ptr(g, index);

	if (percpu_spinlock_lock_index(&g->lock, index)) {
		trouble = "an operation of the rival failed";
		return;
	}
	count_in(copy, slowly);
	percpu_spinlock_unlock(&copy->lock);
	control->changes++;
}

static void interfere(enum interference how, unsigned index)
{
	struct guarded *copy = percpu_ptr(g, index);

	/* The subject may stand still behind its commit, with the lock: nobody can wait for it. */
	if (how != BY_HANDLER && copy->lock.held) {
		if (how == UNDER_GATE)
			sem_post(&control->done);
		return;
	}
	switch (how) {
	case PLAINLY:
		/* As another thread's section, and its unlock. */
		if (copy->lock.bias != 1)
			return;
		count_in(copy, false);
		break;
	case BY_VECTOR:
	case UNDER_GATE:
		by_index(index, how == UNDER_GATE);
		return;
	case BY_THREAD:
		copy = (struct guarded *)percpu_spinlock_lock(&g->lock);
		count_in(copy, false);
		percpu_spinlock_unlock(&copy->lock);
		break;
	default:
		copy = (struct guarded *)percpu_spinlock_trylock(&g->lock);
		if (!copy)
			return;
		count_in(copy, false);
		percpu_spinlock_unlock(&copy->lock);
	}
	control->changes++;
}

static const char *check(const struct call *c)
{
	uint64_t sum = 0;

	percpu_for_each_index(i) {
		struct guarded *copy = percpu_ptr(g, i);

		if (copy->lock.held != (which == HELD))
			return "a lock is not as it was left";
		if (copy->lock.sleepers || copy->lock.all)
			return "somebody still waits";
		if (copy->lock.bias != 0 && copy->lock.bias != 1)
			return "a party is forgotten";
		if (copy->count != copy->twice)
			return "half a change";
		sum += copy->count;
	}
	if (sum != c->n + control->changes)
		return "lost a change";
	if (which == HELD && c->n)
		return "locked what is held";
	return trouble;
}

static void use(struct call *c, struct percpu_spinlock *lock)
{
	c->rc = lock ? PERCPU__DONE : PERCPU__LEFT;
	if (!lock)
		return;
	count_in((struct guarded *)lock, false);
	percpu_spinlock_unlock(lock);
	c->n = 1;
}

#ifndef SPINLOCK_BROKEN
/* Nobody waits for what stays held. */
static const struct kind lock_kind = { HELD, setup, interfere, check };
static const struct kind try_kind = { HELD + 1, setup, interfere, check };

NOINLINE void lock(struct call *c)
{
	use(c, percpu_spinlock_lock(&g->lock));
}

NOINLINE void trylock(struct call *c)
{
	use(c, percpu_spinlock_trylock(&g->lock));
}

#ifndef FOR_SLOWPATH
NOINLINE void try_section(struct call *c)
{
	use(c, percpu__try_spinlock(&g->lock));
}
#else
NOINLINE void lock_index(struct call *c)
{
	percpu_spinlock_lock_index(&g->lock, 0);
	use(c, &g->lock);
}

NOINLINE void lock_all(struct call *c)
{
	percpu_spinlock_lock_all(&g->lock);
	percpu_for_each_index(i)
		count_in(percpu_ptr(g, i), false);
	percpu_spinlock_unlock_all(&g->lock);
	c->n = percpu_copies();
	c->rc = PERCPU__DONE;
}
#endif

const struct entry entries[] = {
#ifndef FOR_SLOWPATH
	{ .name = "try_spinlock", .kind = &try_kind, .run = try_section, .tries = true },
#else
	{ .name = "spinlock_lock_index", .kind = &lock_kind, .run = lock_index },
	{ .name = "spinlock_lock_all", .kind = &lock_kind, .run = lock_all },
#endif
	{ .name = "spinlock_lock", .kind = &lock_kind, .run = lock, .repeats = true },
	{ .name = "spinlock_trylock", .kind = &try_kind, .run = trylock, .repeats = true },
};
const bool must_be_wrong = false;
/* As an attempt, behind both operations, and in the library. */
const unsigned only_sections = 4;

#else
static const struct kind kind = { FREE + 1, setup, interfere, check };

#define TAIL(end)                                                                                                      \
	end PERCPU__A_COLD PERCPU__SIGNATURE_ASM "4:\n\t" PERCPU__A_SET("out", "0") PERCPU__A_JUMP("12f")              \
		PERCPU__A_COLD_END "12:\n\t"
#define BROKEN(name, text)                                                                                             \
	NOINLINE void name(struct call *c)                                                                             \
	{                                                                                                              \
		struct percpu_spinlock *copy = NULL;                                                                   \
                                                                                                                       \
		/* Not for ever: the bias may be gone. */                                                              \
		for (int i = 0; i < 3 && !copy; i++)                                                                   \
			__asm__ __volatile__(                                                                          \
				PERCPU__DESCRIPTOR PERCPU__A_ARM("3b", PERCPU__A_AREA) "1:\n\t" PERCPU__A_LOCATE_OUT(  \
					PERCPU__STRIDE_ASM, PERCPU__A_AREA, "out") text                                \
				: [out] "=&r"(copy)                                                                    \
				: [area] "r"(percpu__self), [index] "r"(PERCPU__INDEX_OF(&g->lock)),                   \
				  [object] "r"(&g->lock)                                                               \
				: "memory", PERCPU__SCRATCH);                                                          \
		use(c, copy);                                                                                          \
	}

#define RIGHT_TEST PERCPU__A_ZERO_BEFORE_ONE("out", PERCPU__SPINLOCK_BIAS, "4f")
BROKEN(right_lock, RIGHT_TEST PERCPU__A_STORE_ONE("out") TAIL("2:\n\t"))
/* The store is left out: interrupted in front of it, the thread has what somebody else locked meanwhile. */
BROKEN(commits_outside, RIGHT_TEST "2:\n\t" PERCPU__A_STORE_ONE("out") TAIL(""))
/* Interrupted in front of it, it takes what is held by then. */
BROKEN(looks_at_nothing, PERCPU__A_STORE_ONE("out") TAIL("2:\n\t"))

const struct entry entries[] = {
	{ .name = "right_lock", .kind = &kind, .run = right_lock },
	{ .name = "commits_outside", .kind = &kind, .run = commits_outside },
	{ .name = "looks_at_nothing", .kind = &kind, .run = looks_at_nothing },
};
const bool must_be_wrong = true;
#endif
const unsigned entry_count = sizeof entries / sizeof *entries;
