/* SPDX-License-Identifier: MIT */
/*
 * The allocator's magazines: their sections, interrupted at every instruction, while rivals put, take, or close the magazine
 * and empty it. After each round every object is in exactly one place: in a magazine, or in somebody's hands.
 */
#include <string.h>
#include <unistd.h>

#include "malloc/front.h"

#include "harness.h"

#define NOINLINE static __attribute__((noinline))

#define CAPACITY 6U
#define OBJECTS  1024U
#define MOST_N   3U

static struct copy {
	struct percpu__magazine words;
	uint64_t guard; /* in front of the first slot */
	void *slots[CAPACITY];
} * copies;

static char objects[OBJECTS];
static enum { NOWHERE, IN_MAGAZINE, WITH_RIVAL, WITH_SUBJECT } place[OBJECTS];
static void *mine[MOST_N], *got[MOST_N];
static unsigned which;
static const char *trouble;

enum act { GET, PUT, CLOSE };
/* What rivals do, how many objects each magazine has before, and of how many the subject's batch is. */
static const struct {
	enum act act;
	unsigned length, n;
} cases[] = { { PUT, 0, 1 }, { GET, 1, 1 }, { GET, CAPACITY, 2 }, { PUT, CAPACITY - 1, 1 }, { PUT, 2, 3 },
	      { GET, 3, 3 }, { GET, 4, 3 }, { PUT, 3, 3 },        { CLOSE, 3, 2 },          { CLOSE, 0, 2 } };
#define CASES (sizeof cases / sizeof *cases)

static unsigned number_of(const void *object)
{
	return (unsigned)((const char *)object - objects);
}

static uint64_t least(void)
{
	return offsetof(struct copy, slots);
}

static void setup(unsigned number, struct call *c)
{
	unsigned next = 0;

	which = number;
	trouble = NULL;
	if (!copies)
		copies = percpu_alloc(sizeof *copies, 64);
	if (!copies || percpu_copies() * CAPACITY + 2 * MOST_N > OBJECTS)
		_exit(9);
	memset(place, 0, sizeof place);
	for (unsigned index = 0; index < percpu__remainder; index++) {
		struct copy *copy = percpu_ptr(copies, index);

		for (unsigned i = 0; i < cases[number].length; i++) {
			place[next] = IN_MAGAZINE;
			copy->slots[i] = &objects[next++];
		}
		copy->words.least = least();
		copy->words.most = least() + sizeof copy->slots;
		copy->words.next = least() + cases[number].length * sizeof(void *);
	}
	for (unsigned i = 0; i < MOST_N; i++, next++) {
		place[next] = WITH_SUBJECT;
		mine[i] = &objects[next];
	}
	for (unsigned i = 0; i < MOST_N; i++, next++)
		place[next] = WITH_RIVAL;
	memset(got, 0, sizeof got);
	c->p = (uint64_t *)(void *)copies;
	c->n = cases[number].n;
}

static void *rivals_own(void)
{
	for (unsigned i = 0; i < OBJECTS; i++)
		if (place[i] == WITH_RIVAL)
			return &objects[i];
	return NULL;
}

static void rival_took(void *object)
{
	if (place[number_of(object)] != IN_MAGAZINE)
		trouble = "the rival took what was not there";
	place[number_of(object)] = WITH_RIVAL;
}

/* Whoever does this has the copy to himself. */
static void plainly(enum act act, struct copy *copy)
{
	uint64_t at = (copy->words.next - least()) / sizeof(void *);

	if (act == PUT && at < CAPACITY) {
		copy->slots[at] = rivals_own();
		place[number_of(copy->slots[at++])] = IN_MAGAZINE;
	} else if (act != PUT) {
		for (unsigned n = act == GET ? 1 : CAPACITY; n && at; n--)
			rival_took(copy->slots[--at]);
	}
	copy->words.next = least() + at * sizeof(void *);
}

static void closed(enum act act, unsigned index, bool held)
{
	struct copy *copy = percpu_ptr(copies, index);

	__atomic_store_n(&copy->words.most, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&copy->words.least, UINT64_MAX, __ATOMIC_RELAXED);
	if (percpu_fence())
		trouble = "the rival cannot fence";
	if (held)
		harness_held();
	plainly(act, copy);
	__atomic_store_n(&copy->words.least, least(), __ATOMIC_RELAXED);
	__atomic_store_n(&copy->words.most, least() + sizeof copy->slots, __ATOMIC_RELEASE);
}

/* By sections of its own. */
static void publicly(enum act act)
{
	void *object;
	uintptr_t word;
	int rc = PERCPU__LEFT;

	if (act == PUT) {
		object = rivals_own();
		place[number_of(object)] = IN_MAGAZINE;
		for (int i = 0; i < 100 && rc == PERCPU__LEFT; i++)
			rc = percpu__try_put(percpu__index_offset, &copies->words, object);
		if (rc != PERCPU__DONE)
			place[number_of(object)] = WITH_RIVAL;
		return;
	}
	for (unsigned n = act == GET ? 1 : CAPACITY; n; n--) {
		word = PERCPU__LEFT_WORD;
		for (int i = 0; i < 100 && word == PERCPU__LEFT_WORD; i++)
			word = (uintptr_t)percpu__try_take(percpu__index_offset, &copies->words);
		if (word > PERCPU__LEFT_WORD)
			rival_took((void *)word);
	}
}

static void interfere(enum interference how, unsigned index)
{
	if (how == PLAINLY)
		plainly(cases[which].act, percpu_ptr(copies, index));
	else if (how == BY_VECTOR || how == UNDER_GATE)
		closed(cases[which].act, index, how == UNDER_GATE);
	else
		publicly(cases[which].act);
	control->changes++;
}

static const char *check(void)
{
	static bool seen[OBJECTS];

	memset(seen, 0, sizeof seen);
	for (unsigned index = 0; index < percpu__remainder; index++) {
		struct copy *copy = percpu_ptr(copies, index);

		if (copy->words.next < least() || copy->words.next > least() + sizeof copy->slots)
			return "a magazine has more than it can have";
		for (unsigned i = 0; i < (copy->words.next - least()) / sizeof(void *); i++) {
			unsigned number = number_of(copy->slots[i]);

			if (number >= OBJECTS || seen[number])
				return "an object is there twice";
			if (place[number] != IN_MAGAZINE)
				return "an object is there that was taken or not put";
			seen[number] = true;
		}
	}
	for (unsigned i = 0; i < OBJECTS; i++)
		if (place[i] == IN_MAGAZINE && !seen[i])
			return "an object is lost";
	return trouble;
}

static const char *check_take(const struct call *c)
{
	for (uintptr_t i = 0; c->rc == PERCPU__DONE && i < c->out; i++) {
		if (place[number_of(got[i])] != IN_MAGAZINE)
			return "took what was not there";
		place[number_of(got[i])] = WITH_SUBJECT;
	}
	return check();
}

/* A rival may have taken it behind the commit: then it is not the subject's any more. */
static const char *check_put(const struct call *c)
{
	for (uintptr_t i = 0; c->rc == PERCPU__DONE && i < c->out; i++)
		if (place[number_of(mine[i])] == WITH_SUBJECT)
			place[number_of(mine[i])] = IN_MAGAZINE;
	return check();
}

/* As a rival sees it who comes behind the commit. */
static void offer(uintptr_t n)
{
	for (uintptr_t i = 0; i < n; i++)
		place[number_of(mine[i])] = IN_MAGAZINE;
}

static void take_back(uintptr_t n)
{
	for (uintptr_t i = 0; i < n; i++)
		place[number_of(mine[i])] = WITH_SUBJECT;
}

NOINLINE void take(struct call *c)
{
	uintptr_t word = (uintptr_t)percpu__try_take(percpu__index_offset, &copies->words);

	got[0] = (void *)word;
	c->out = 1;
	c->rc = word == PERCPU__LEFT_WORD ? PERCPU__LEFT : word ? PERCPU__DONE : PERCPU__DIFFERS;
}

NOINLINE void put(struct call *c)
{
	offer(1);
	c->out = 1;
	c->rc = percpu__try_put(percpu__index_offset, &copies->words, mine[0]);
	if (c->rc != PERCPU__DONE)
		take_back(1);
}

NOINLINE void take_many(struct call *c)
{
	c->out = c->n;
	c->rc = percpu__try_take_many(percpu__index_offset, &copies->words, got, c->n);
}

NOINLINE void put_many(struct call *c)
{
	offer(c->n);
	c->out = c->n;
	c->rc = percpu__try_put_many(percpu__index_offset, &copies->words, mine, c->n);
	if (c->rc != PERCPU__DONE)
		take_back(c->n);
}

static const struct kind takes = { CASES, setup, interfere, check_take };
static const struct kind puts_ = { CASES, setup, interfere, check_put };

#define ENTRY(name_, kind_)                                                                                            \
	{                                                                                                              \
		.name = "magazine_" #name_, .kind = &kind_, .run = name_, .tries = true                                \
	}

const struct entry entries[] = {
	ENTRY(take, takes),
	ENTRY(put, puts_),
	ENTRY(take_many, takes),
	ENTRY(put_many, puts_),
};
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = false;
/* What rivals do is not under test. */
const unsigned only_sections = 4;
