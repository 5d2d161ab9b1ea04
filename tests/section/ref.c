/* SPDX-License-Identifier: MIT */
/*
 * Reference counts for trap.c and slowpath.c: getting and putting while somebody else does on the same copy, or kills;
 * and whole lives in the middle of each other.
 */
#include "harness.h"

#include <percpu/ref.h>

#define NOINLINE static __attribute__((noinline))

static struct percpu_ref ref;
static unsigned released;
static bool failed;

/* How it is when the subject begins, by case. */
static enum { KILLED_BY_RIVAL, LIVE, DEAD } state;

static void on_release(struct percpu_ref *which)
{
	released += which == &ref;
}

static uint64_t load(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static uint64_t on_copies(void)
{
	uint64_t total = 0;

	percpu_for_each_index(i)
		total += load(percpu_ptr(ref.count, i));
	return total;
}

/* There is one reference beside the initial one. */
static void setup(unsigned which, struct call *c)
{
	if (!ref.count && percpu_ref_init(&ref, on_release, 0))
		failed = true;
	percpu_for_each_index(i)
		*percpu_ptr(ref.count, i) = 0;
	state = which;
	ref.live = which == DEAD ? 0 : percpu__remainder;
	ref.shared = which == DEAD ? 1 : PERCPU__REF_BIAS + 2;
	released = 0;
	c->p = ref.count;
}

static void setup_lives(unsigned which, struct call *c)
{
	(void)which;
	setup(LIVE, c);
	ref.shared--;
}

static void interfere(enum interference how, unsigned index)
{
	uint64_t *word = percpu_ptr(ref.count, index);

	if (state == KILLED_BY_RIVAL) {
		if (ref.live) {
			failed |= percpu_ref_kill(&ref) != 0;
			control->changes++;
		}
	} else {
		if (how == BY_THREAD || how == BY_HANDLER)
			entries[control->entry].rival(NULL);
		else
			__atomic_store_n(word, load(word) + 1, __ATOMIC_RELEASE);
		control->changes++;
	}
	if (how == UNDER_GATE)
		sem_post(&control->done);
}

/* @ours: what the operation did to the count. */
static const char *check(uint64_t ours)
{
	bool killed = state == KILLED_BY_RIVAL && control->changes;
	uint64_t expected = (state == DEAD ? 1 : killed ? 1 : (uint64_t)PERCPU__REF_BIAS + 2) + ours;

	if (state == DEAD && control->changes &&
	    ref.shared + (int64_t)on_copies() == (int64_t)(expected + control->changes))
		return NULL; /* rivals that do not ask */
	if (state == LIVE)
		expected += control->changes;
	if (failed)
		return "the rival failed";
	if (killed && on_copies())
		return "counted on a copy behind the kill";
	if ((uint64_t)ref.shared + on_copies() != expected)
		return "the count is not exact";
	if (released != (expected == 0))
		return "not released exactly once, when the last was put";
	return NULL;
}

static const char *check_get(const struct call *c)
{
	bool killed = state == KILLED_BY_RIVAL && control->changes;

	if (c->rc != PERCPU__DONE && state != DEAD && !killed)
		return "did not get what lives";
	return check(c->rc == PERCPU__DONE);
}

static const char *check_put(const struct call *c)
{
	(void)c;
	return check((uint64_t)-1);
}

/* A use and a death, and back. */
NOINLINE void live(void)
{
	if (percpu_ref_tryget_live(&ref)) {
		percpu_ref_get(&ref);
		percpu_ref_put(&ref);
		percpu_ref_put(&ref);
	}
	/* Somebody whom we interrupted may hold one: then it is not 0. */
	if (percpu_ref_kill(&ref) == 0 && percpu_ref_reinit(&ref))
		failed |= percpu_ref_resurrect(&ref) != 0;
}

static void interfere_lives(enum interference how, unsigned index)
{
	(void)index;
	live();
	control->changes++;
	if (how == UNDER_GATE)
		sem_post(&control->done);
}

static const char *check_lives(const struct call *c)
{
	(void)c;
	if (failed)
		return "cannot bring it back";
	if (!ref.live)
		return "it is dead in the end";
	if ((uint64_t)ref.shared + on_copies() != (uint64_t)PERCPU__REF_BIAS + 1)
		return "the count is not exact";
	/* Every death is one's that had the last reference, but for those that others' references outlived. */
	if (released > 1 + control->changes || !released)
		return "released too often, or never";
	return NULL;
}

static const struct kind get_kind = { 2, setup, interfere, check_get };
static const struct kind put_kind_of_refs = { 2, setup, interfere, check_put };
static const struct kind lives_kind = { 1, setup_lives, interfere_lives, check_lives };

NOINLINE void get(struct call *c)
{
	percpu_ref_get(&ref);
	if (c)
		c->rc = PERCPU__DONE;
}

NOINLINE void tryget(struct call *c)
{
	c->rc = percpu_ref_tryget(&ref) ? PERCPU__DONE : PERCPU__DIFFERS;
}

NOINLINE void tryget_live(struct call *c)
{
	c->rc = percpu_ref_tryget_live(&ref) ? PERCPU__DONE : PERCPU__DIFFERS;
}

NOINLINE void put(struct call *c)
{
	percpu_ref_put(&ref);
	c->rc = PERCPU__DONE;
}

NOINLINE void lives(struct call *c)
{
	live();
	c->rc = PERCPU__DONE;
}

#define ENTRY(name_, kind_)                                                                                            \
	{                                                                                                              \
		.name = "ref_" #name_, .kind = &kind_, .run = name_, .rival = get, .indexed = PERCPU__BY_ID            \
	}

const struct entry entries[] = {
	ENTRY(get, get_kind),         ENTRY(tryget, get_kind),  ENTRY(tryget_live, get_kind),
	ENTRY(put, put_kind_of_refs), ENTRY(lives, lives_kind),
};
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = false;
/* The rest are those of the library's slow path. */
const unsigned only_sections = 9;
