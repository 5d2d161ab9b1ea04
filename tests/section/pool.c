/* SPDX-License-Identifier: MIT */
/*
 * Pools: the sections, interrupted at every instruction, and (FOR_SLOWPATH) all ways to the depot, with a handler at every
 * instruction. After each round every object is in exactly one place: in a magazine, in the depot, or in somebody's hands.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <percpu/pool.h>

#include "harness.h"

#define NOINLINE static __attribute__((noinline))

#define SIZE       20000 /* nobody touches them */
#define CAPACITY   4     /* of a magazine of such objects */
#define MOST_ITEMS 20000

/* What the rounds know of an object: as operations' results say. FREE ones are the subject's to put. */
static struct item {
	void *object;
	enum { THERE, TAKEN, FREE } is;
	bool seen;
} items[MOST_ITEMS];

static struct percpu_pool pool;
static size_t used;
static unsigned which;
static const char *trouble;
static void *theirs[3], *mine[CAPACITY], *got[CAPACITY];

enum act { GET, PUT, GET_THREE, PUT_THREE, CLOSE };
#define CLOSED -1
/* What rivals do, how many objects each magazine has before, and of how many the subject's bulk is. */
static const struct {
	enum act act;
	int length;
	size_t n;
} cases[] = { { PUT, 0, 3 },   { GET, CAPACITY, 3 }, { GET, 3, 3 },       { GET, 1, 1 },
	      { PUT, 1, 3 },   { PUT, 3, 1 },        { PUT, 0, 2 },       { GET_THREE, 4, 2 },
	      { CLOSE, 2, 2 }, { GET, 2, 2 },        { PUT_THREE, 0, 1 }, { PUT, CLOSED, 2 } };
#define CASES (sizeof cases / sizeof *cases)

static struct item *item_of(void *object)
{
	for (size_t i = 0; i < used; i++)
		if (items[i].object == object)
			return &items[i];
	return NULL;
}

static void took(void *object)
{
	struct item *item = item_of(object);

	if (!object)
		return;
	if (!item) {
		/* The depot has more than were out at the start. */
		if (used == MOST_ITEMS)
			_exit(8);
		item = &items[used++];
		*item = (struct item){ .object = object };
	} else if (item->is == TAKEN) {
		trouble = "an object is in two hands";
	}
	item->is = TAKEN;
}

/* An object for a rival to put; NULL if there is none. */
static void *give(void)
{
	for (size_t i = 0; i < used; i++) {
		if (items[i].is == TAKEN) {
			items[i].is = THERE;
			return items[i].object;
		}
	}
	return NULL;
}

static uint64_t empty(void)
{
	return pool.first - 1;
}

static void setup(unsigned number, struct call *c)
{
	void *all[64];
	const enum percpu__force force = (enum percpu__force)percpu__private.force;
	size_t n = (size_t)CAPACITY * percpu_copies() + 2 * CAPACITY + 3, next = 0;

	which = number;
	trouble = NULL;
	/* The tracer waits at the sections of the round's operation: none may run before. */
	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	if (pool.depot && percpu_pool_destroy(&pool))
		_exit(9);
	if (n > sizeof all / sizeof *all || percpu_pool_init(&pool, SIZE, 8, 0, PERCPU_POOL_FORGET) ||
	    pool.capacity < CAPACITY || pool.capacity > CAPACITY || !percpu_pool_get_bulk(&pool, all, n))
		_exit(9);
	percpu_pool_trim(&pool, SIZE_MAX);
	percpu__thread_force(force);
	used = n;
	for (size_t i = 0; i < n; i++)
		items[i] = (struct item){ .object = all[i], .is = TAKEN };
	percpu_for_each_index(index) {
		uint64_t *word = percpu_ptr(pool.word, index);

		if (cases[number].length == CLOSED)
			continue;
		*word = empty();
		for (int k = 0; k < cases[number].length; k++, next++) {
			items[next].is = THERE;
			*word += 1;
			word[(int64_t)*word] = (uintptr_t)items[next].object;
		}
	}
	for (size_t i = 0; i < CAPACITY; i++) {
		mine[i] = items[next + i].object;
		if (i < cases[number].n)
			items[next + i].is = FREE;
	}
	c->p = pool.word;
	c->n = cases[number].n;
}

/* As another thread's section would. */
static void plainly(enum act act, unsigned index)
{
	uint64_t *word = percpu_ptr(pool.word, index), was = *word;
	size_t n = act == GET_THREE || act == PUT_THREE ? 3 : 1;

	if (!was)
		return;
	if (act == CLOSE) {
		for (*word = 0; was > empty(); was--)
			took((void *)word[(int64_t)was]);
	} else if (act == PUT || act == PUT_THREE) {
		if (was > -(uint64_t)n - 1)
			return;
		for (size_t i = 0; i < n; i++) {
			void *object = give();

			if (object)
				word[(int64_t)++was] = (uintptr_t)object;
		}
		*word = was;
	} else {
		if (was < empty() + n)
			return;
		*word = was - n;
		for (; n; n--)
			took((void *)word[(int64_t)was--]);
	}
}

/* The same as one vector of operations; where a plain one would do nothing, it does nothing. */
static void by_vector(enum act act, unsigned index)
{
	uint64_t *word = percpu_ptr(pool.word, index), was = *word, now = was;
	size_t n = act == GET_THREE || act == PUT_THREE ? 3 : 1;
	bool puts = act == PUT || act == PUT_THREE;
	struct percpu_op ops[] = {
		{ .op = PERCPU_OP_COMPARE_EQ, .len = 8, .dst = word, .src = &was },
		{ .op = PERCPU_OP_MEMCPY, .len = 0, .dst = word + (int64_t)was + 1, .src = theirs },
		{ .op = PERCPU_OP_MEMCPY, .len = 8, .dst = word, .src = &now },
	};

	if (!was || (puts ? was > -(uint64_t)n - 1 : act != CLOSE && was < empty() + n))
		return;
	now = act == CLOSE ? 0 : puts ? was + n : was - n;
	for (size_t i = 0; puts && i < n; i++)
		if (!(theirs[i] = give()))
			_exit(8);
	if (puts)
		ops[1].len = (unsigned)(n * sizeof *theirs);
	else
		ops[1].dst = word;
	if (percpu_opv(ops, 3, index))
		trouble = "the rival's vector failed";
	for (uint64_t at = was, low = act == CLOSE ? empty() : now; !puts && at > low; at--)
		took((void *)word[(int64_t)at]);
}

/* The subject stands still in a section of the library's, with the depot's lock. */
static bool is_locked(void)
{
	return __atomic_load_n((const uint32_t *)(const void *)pool.depot, __ATOMIC_RELAXED) != 0;
}

static void publicly(enum act act)
{
	size_t n;

	switch (act) {
	case GET:
		took(percpu_pool_get(&pool));
		break;
	case PUT:
		percpu_pool_put(&pool, give());
		break;
	case GET_THREE:
		if (!percpu_pool_get_bulk(&pool, theirs, 3)) {
			trouble = "the rival got none";
			return;
		}
		for (int i = 0; i < 3; i++)
			took(theirs[i]);
		break;
	case PUT_THREE:
		for (n = 0; n < 3 && (theirs[n] = give());)
			n++;
		percpu_pool_put_bulk(&pool, theirs, n);
		break;
	case CLOSE:
		percpu_pool_trim(&pool, SIZE_MAX);
	}
}

static void interfere(enum interference how, unsigned index)
{
	struct percpu_gate gate;
	int rc;

	switch (how) {
	case PLAINLY:
		plainly(cases[which].act, index);
		break;
	case BY_VECTOR:
		by_vector(cases[which].act, index);
		break;
	case UNDER_GATE:
		rc = percpu_gate_lock(pool.word, index, &gate);
		harness_held();
		if (rc) {
			trouble = "the rival could not take the gate";
			break;
		}
		plainly(cases[which].act, index);
		percpu_gate_unlock(&gate);
		break;
	case BY_THREAD:
		if (is_locked())
			return;
		__attribute__((fallthrough));
	default:
		publicly(cases[which].act);
	}
	control->changes++;
}

static const char *check_magazine(unsigned index)
{
	uint64_t *word = percpu_ptr(pool.word, index), at = *word;

	if (at && (at < empty() || at > UINT64_MAX))
		return "a magazine is larger than it can be";
	for (; at && at > empty(); at--) {
		struct item *item = item_of((void *)word[(int64_t)at]);

		if (!item) {
			/* The library fills magazines from the depot too. */
			if (used == MOST_ITEMS)
				_exit(8);
			item = &items[used++];
			*item = (struct item){ .object = (void *)word[(int64_t)at], .is = THERE };
		}
		if (item->seen)
			return "an object is in two places";
		if (item->is != THERE)
			return item->is == TAKEN ? "an object was taken, and is still there"
						 : "an object was put that must not be";
		item->seen = true;
	}
	return NULL;
}

/* What is not in magazines must be in the depot: which sees each object that it is given twice. */
static const char *check_pool(void)
{
	struct percpu_pool_stats stats;
	size_t out = 0;

	if (percpu_pool_stats(&pool, &stats))
		return "no statistics";
	percpu_for_each_index(i) {
		const char *wrong = check_magazine(i);

		if (wrong)
			return wrong;
	}
	for (size_t i = 0; i < used; i++)
		out += items[i].is != THERE;
	if (stats.strays)
		return "an object came to the depot twice";
	if (stats.out > out)
		return "lost an object";
	return stats.out < out ? "an object that was taken is in the depot" : trouble;
}

static const char *check_get(const struct call *c)
{
	for (size_t i = 0; i < CAPACITY; i++)
		if (items[i].is == FREE)
			return "an object of the subject is gone";
	for (uintptr_t i = 0; c->rc == PERCPU__DONE && i < c->out; i++)
		took(got[i]);
	return check_pool();
}

static const char *check_put(const struct call *c)
{
	for (uintptr_t i = 0; i < cases[which].n; i++) {
		struct item *item = item_of(mine[i]);
		bool put = c->rc == PERCPU__DONE && i < c->out;

		/* A rival may have taken it behind the commit, and only then. */
		if (item->is == TAKEN && !put)
			return "taken, although it was not put";
		if (item->is == FREE && put)
			item->is = THERE;
	}
	return check_pool();
}

/* A get leaves alone what the subject could put. */
static void setup_get(unsigned number, struct call *c)
{
	setup(number, c);
	for (size_t i = 0; i < used; i++)
		if (items[i].is == FREE)
			items[i].is = TAKEN;
	memset(got, 0, sizeof got);
}

static const struct kind get_kind = { CASES, setup_get, interfere, check_get };
static const struct kind put_objects_kind = { CASES, setup, interfere, check_put };

/* Operations: c->out is how many objects were moved. */

NOINLINE void get(struct call *c)
{
	got[0] = percpu_pool_get(&pool);
	c->out = 1;
	c->rc = got[0] ? PERCPU__DONE : PERCPU__DIFFERS;
}

NOINLINE void get_bulk(struct call *c)
{
	bool did = percpu_pool_get_bulk(&pool, got, c->n);

	c->out = c->n;
	c->rc = did ? PERCPU__DONE : PERCPU__DIFFERS;
}

NOINLINE void put(struct call *c)
{
	percpu_pool_put(&pool, mine[0]);
	c->out = 1;
	c->rc = PERCPU__DONE;
}

NOINLINE void put_bulk(struct call *c)
{
	percpu_pool_put_bulk(&pool, mine, c->n);
	c->out = c->n;
	c->rc = PERCPU__DONE;
}

#ifndef FOR_SLOWPATH
NOINLINE void try_get(struct call *c)
{
	uintptr_t word = percpu__try_pool_get(pool.word, pool.first);

	got[0] = (void *)word;
	c->out = 1;
	c->rc = word == PERCPU__LEFT_WORD ? PERCPU__LEFT : word ? PERCPU__DONE : PERCPU__DIFFERS;
}

NOINLINE void try_put(struct call *c)
{
	c->rc = percpu__try_pool_put(pool.word, (uintptr_t)mine[0]);
	c->out = 1;
}

NOINLINE void try_get_bulk(struct call *c)
{
	c->rc = percpu__try_pool_get_bulk(pool.word, pool.first, got, c->n);
	c->out = c->n;
}

NOINLINE void try_put_bulk(struct call *c)
{
	c->rc = percpu__try_pool_put_bulk(pool.word, mine, c->n);
	c->out = c->n;
}
#else
NOINLINE void trim(struct call *c)
{
	percpu_pool_trim(&pool, SIZE_MAX);
	c->out = 0;
	c->rc = PERCPU__DIFFERS;
}
#endif

#define ENTRY(name_, kind_, tries_)                                                                                    \
	{                                                                                                              \
		.name = "pool_" #name_, .kind = &kind_, .run = name_, .tries = tries_, .repeats = !tries_              \
	}

const struct entry entries[] = {
#ifndef FOR_SLOWPATH
	ENTRY(try_get, get_kind, true),      ENTRY(try_put, put_objects_kind, true),
	ENTRY(try_get_bulk, get_kind, true), ENTRY(try_put_bulk, put_objects_kind, true),
#else
	ENTRY(trim, get_kind, false),
#endif
	ENTRY(get, get_kind, false),         ENTRY(put, put_objects_kind, false),
	ENTRY(get_bulk, get_kind, false),    ENTRY(put_bulk, put_objects_kind, false),
};
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = false;
/* Each of four as an attempt and behind its operation, the library's two, and what opens a magazine. */
const unsigned only_sections = 11;
