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

static struct percpu__magazine *magazines;

static struct object {
	uint64_t below;
	uint64_t whatever;
} objects[OBJECTS] __attribute__((aligned(16)));
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
	return (unsigned)((const struct object *)object - objects);
}

/* What an empty one has; like the word of any object. */
static uint64_t empty_word(void)
{
	return (uint64_t)(uintptr_t)objects << 16;
}

static unsigned length_of(const struct percpu__magazine *m)
{
	return (unsigned)(m->word & 0xffff);
}

static void plain_put(struct percpu__magazine *m, void *object)
{
	((struct object *)object)->below = m->word;
	m->word = ((uint64_t)(uintptr_t)object << 16) + length_of(m) + 1;
}

static void *plain_take(struct percpu__magazine *m)
{
	struct object *object = (struct object *)(uintptr_t)(m->word >> 16);

	m->word = object->below;
	object->below = 0;
	return object;
}

static void setup(unsigned number, struct call *c)
{
	unsigned next = 0;

	which = number;
	trouble = NULL;
	if (!magazines)
		magazines = percpu_alloc(sizeof *magazines, 64);
	if (!magazines || percpu_copies() * CAPACITY + 2 * MOST_N > OBJECTS)
		_exit(9);
	memset(place, 0, sizeof place);
	memset(objects, 0, sizeof objects);
	for (unsigned index = 0; index < percpu__remainder; index++) {
		struct percpu__magazine *m = percpu_ptr(magazines, index);

		m->word = empty_word();
		m->limits = CAPACITY << 16;
		for (unsigned i = 0; i < cases[number].length; i++) {
			place[next] = IN_MAGAZINE;
			plain_put(m, &objects[next++]);
		}
	}
	for (unsigned i = 0; i < MOST_N; i++, next++) {
		place[next] = WITH_SUBJECT;
		mine[i] = &objects[next];
	}
	for (unsigned i = 0; i < MOST_N; i++, next++)
		place[next] = WITH_RIVAL;
	memset(got, 0, sizeof got);
	c->p = (uint64_t *)(void *)magazines;
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
static void plainly(enum act act, struct percpu__magazine *m)
{
	void *object;

	if (act == PUT && length_of(m) < CAPACITY) {
		object = rivals_own();
		place[number_of(object)] = IN_MAGAZINE;
		plain_put(m, object);
	} else if (act != PUT) {
		for (unsigned n = act == GET ? 1 : CAPACITY; n && length_of(m); n--)
			rival_took(plain_take(m));
	}
}

static void closed(enum act act, unsigned index, bool held)
{
	struct percpu__magazine *m = percpu_ptr(magazines, index);

	__atomic_store_n(&m->limits, CLOSED, __ATOMIC_RELAXED);
	if (percpu_fence())
		trouble = "the rival cannot fence";
	if (held)
		harness_held();
	plainly(act, m);
	__atomic_store_n(&m->limits, CAPACITY << 16, __ATOMIC_RELEASE);
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
			rc = percpu__try_put(percpu__index_offset, magazines, object);
		if (rc != PERCPU__DONE)
			place[number_of(object)] = WITH_RIVAL;
		return;
	}
	for (unsigned n = act == GET ? 1 : CAPACITY; n; n--) {
		word = PERCPU__LEFT_WORD;
		for (int i = 0; i < 100 && word == PERCPU__LEFT_WORD; i++)
			word = (uintptr_t)percpu__try_take(percpu__index_offset, magazines);
		if (word > PERCPU__LEFT_WORD)
			rival_took((void *)word);
	}
}

static void interfere(enum interference how, unsigned index)
{
	if (how == PLAINLY)
		plainly(cases[which].act, percpu_ptr(magazines, index));
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
		uint64_t word = percpu_ptr(magazines, index)->word;

		if ((word & 0xffff) > CAPACITY)
			return "a magazine has more than it can have";
		for (; word & 0xffff; word = objects[number_of((void *)(uintptr_t)(word >> 16))].below) {
			unsigned number = number_of((void *)(uintptr_t)(word >> 16));

			if (number >= OBJECTS || seen[number])
				return "an object is there twice";
			if (place[number] != IN_MAGAZINE)
				return "an object is there that was taken or not put";
			if ((objects[number].below & 0xffff) + 1 != (word & 0xffff))
				return "an object has another number than the one on top of it says";
			seen[number] = true;
		}
		if (word != empty_word())
			return "a magazine does not end as an empty one looks";
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
	uintptr_t word = (uintptr_t)percpu__try_take(percpu__index_offset, magazines);

	got[0] = (void *)word;
	c->out = 1;
	c->rc = word == PERCPU__LEFT_WORD ? PERCPU__LEFT : word ? PERCPU__DONE : PERCPU__DIFFERS;
}

NOINLINE void put(struct call *c)
{
	offer(1);
	c->out = 1;
	c->rc = percpu__try_put(percpu__index_offset, magazines, mine[0]);
	if (c->rc != PERCPU__DONE)
		take_back(1);
}

NOINLINE void take_many(struct call *c)
{
	c->out = c->n;
	c->rc = percpu__try_take_many(percpu__index_offset, magazines, got, c->n);
}

NOINLINE void put_many(struct call *c)
{
	offer(c->n);
	c->out = c->n;
	c->rc = percpu__try_put_many(percpu__index_offset, magazines, mine, c->n);
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
