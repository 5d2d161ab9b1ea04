/* SPDX-License-Identifier: MIT */
/*
 * RCU's domains for trap.c and slowpath.c: readers that enter and leave while somebody else does so on the same copy, or
 * changes the domain's side, as a grace period does.
 */
#include "harness.h"

#include <percpu/rcu.h>

#define NOINLINE static __attribute__((noinline))

#define SIDE 16U /* from one side to the other, in bytes */

static struct percpu_rcu_domain domain;

/* What the rival does, by case. */
static enum { CHANGE_SIDE, COUNT } state;

static uintptr_t token;    /* of the subject, in the round of an unlock */
static uint64_t at_change; /* how many had entered by the old side when the rival was behind its fence */
static bool failed;

static uint64_t load(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static uint64_t sum(uintptr_t distance)
{
	uint64_t total = 0;

	percpu_for_each_index(i)
		total += load((const uint64_t *)(const void *)((const char *)percpu_ptr(domain.words, i) + distance));
	return total;
}

static void setup(unsigned which, struct call *c)
{
	if (!domain.words && percpu_rcu_domain_init(&domain)) {
		failed = true;
		return;
	}
	percpu_for_each_index(i)
		for (unsigned word = 0; word < 4; word++)
			percpu_ptr(domain.words, i)[word] = 0;
	domain.side = 0;
	state = which;
	at_change = 0;
	c->p = domain.words;
}

static void setup_leave(unsigned which, struct call *c)
{
	setup(which, c);
	token = percpu_rcu_domain_read_lock(&domain);
	c->p = domain.words + 1;
}

static void interfere(enum interference how, unsigned index, uint64_t *words)
{
	const struct entry *entry = &entries[control->entry];
	struct call c = { .p = words };

	if (state == CHANGE_SIDE) {
		if (domain.side == 0) {
			__atomic_store_n(&domain.side, SIDE, __ATOMIC_SEQ_CST);
			failed |= percpu_fence() != 0;
			at_change = sum(0);
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
	interfere(how, index, domain.words);
}

static void interfere_leave(enum interference how, unsigned index)
{
	interfere(how, index, domain.words + 1);
}

static const char *check_enter(const struct call *c)
{
	uint64_t others = state == COUNT ? control->changes : 0;

	if (failed)
		return "the rival failed";
	if (c->out != 0 && c->out != SIDE)
		return "the token is no side";
	/* Attempts by an atomic instruction may be taken back: what counts is who is inside. */
	if (sum(0) - sum(8) + sum(SIDE) - sum(SIDE + 8) != 1 + others)
		return "entered not once";
	if (sum(c->out) - sum(c->out + 8) < 1)
		return "entered by another side than it says";
	if (state == CHANGE_SIDE && control->changes && sum(0) - sum(8) != 0 && at_change == 0)
		return "entered by the old side behind the fence";
	return NULL;
}

static const char *check_leave(const struct call *c)
{
	(void)c;
	if (failed)
		return "the rival failed";
	if (sum(8) + sum(SIDE + 8) != 1 + (state == COUNT ? control->changes : 0))
		return "left not once";
	return NULL;
}

static const struct kind enter_kind = { 2, setup, interfere_enter, check_enter };
static const struct kind leave_kind = { 2, setup_leave, interfere_leave, check_leave };

NOINLINE void read_lock(struct call *c)
{
	c->out = percpu_rcu_domain_read_lock(&domain);
	c->rc = PERCPU__DONE;
}

NOINLINE void read_unlock(struct call *c)
{
	percpu_rcu_domain_read_unlock(&domain, token);
	c->rc = PERCPU__DONE;
}

#define ENTRY(name_, kind_, rival_)                                                                                    \
	{                                                                                                              \
		.name = "rcu_" #name_, .kind = &kind_, .run = name_, .rival = rival_, .indexed = PERCPU__BY_ID         \
	}

const struct entry entries[] = { ENTRY(read_lock, enter_kind, read_lock), ENTRY(read_unlock, leave_kind, read_unlock) };
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = false;
/* The rest are those of the library's slow path. */
const unsigned only_sections = 5;
