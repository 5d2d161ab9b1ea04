/* SPDX-License-Identifier: MIT */
/*
 * The child's half: the data, what rivals do to it, and the checks.
 *
 * Every check is exact and covers all copies, so it does not matter which copy an operation found itself on: the sum of
 * a counter, each node in exactly one place, each exchanged token in exactly one place, each word with a value that the
 * operations that took place explain. A rival's change is conditional in the way an operation of its own would be, and
 * counted only if it took place.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <pthread.h>
#include <unistd.h>

#include "arch.h"
#include "harness.h"

#define MOST_COPIES 4097
#define CHAIN       3 /* nodes of each list at the start */
#define NODES       ((size_t)CHAIN * MOST_COPIES + 65536)
#define BYTES       160
#define GUARD       16
#define NAP         60 /* microseconds: the subject meets the gate meanwhile */

enum { V0 = 100, V1 = 101, V2 = 102, W0 = 200, W2 = 202 };
enum { OURS = 1000003, THEIRS = 17 };
enum { UNTOUCHED = 0xee, THEIR_BYTE = 0x77, THEIR_LENGTH = 24 };

struct cell {
	uint64_t word, second;
	unsigned char bytes[BYTES];
};

struct node {
	struct percpu_stack_node link;
	enum { LISTED, TAKEN, FREE } is; /* as the operations' results say */
};

static struct cell *cell;
static struct percpu_stack stack;
static struct percpu_counter counter;
static struct percpu_histogram histogram;
static struct node *nodes;
static unsigned char ours[128], theirs[THEIR_LENGTH];
static ptrdiff_t offset;
/* Ordinary memory: with one at 1 and the other at 0, nobody may count any more. */
static uint32_t flag, is_open;
static uint64_t sum_at_closing;
static uintptr_t ending; /* its address ends lists with a nil of their own */

/* Of the present round. */
static const struct entry *entry;
static struct call call;
static unsigned which;
static size_t next_node;
static uint64_t tokens[65536]; /* that rivals brought in or took out */
static unsigned token_count;
static bool broke; /* a rival's own call failed */

/* Compilers turn loops over small structures into calls; these words are read while others may write. */
static uint64_t load(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static void store(uint64_t *p, uint64_t value)
{
	__atomic_store_n(p, value, __ATOMIC_RELEASE);
}

static void must(int rc)
{
	if (rc)
		broke = true;
}

static void nap(void)
{
	usleep(NAP);
}

void harness_held(void)
{
	sem_post(&control->done);
	nap();
}

/* Sums. */

static uint64_t *target(unsigned index)
{
	return percpu_ptr((uint64_t *)(void *)((char *)call.p + (entry->offset ? offset : 0)), index);
}

static void setup_sum(unsigned unused, struct call *c)
{
	(void)unused;
	offset = offsetof(struct cell, second);
	c->n = entry->n ? entry->n : OURS;
	percpu_for_each_index(i) {
		store(percpu_ptr(c->p, i), 0);
		if (entry->object == CELL)
			store(percpu_ptr(&cell->second, i), 0);
	}
}

static void interfere_sum(enum interference how, unsigned index)
{
	struct percpu_gate gate;
	struct call c = call;
	uint64_t *t = target(index), seen;

	switch (how) {
	case PLAINLY:
		store(t, load(t) + THEIRS);
		break;
	case BY_VECTOR:
		must(percpu_opv(&(struct percpu_op){ .op = PERCPU_OP_ADD, .len = 8, .dst = t, .value = THEIRS }, 1,
				index));
		break;
	case UNDER_GATE:
		must(percpu_gate_lock(call.p, index, &gate));
		seen = load(t);
		harness_held();
		store(t, seen + THEIRS);
		percpu_gate_unlock(&gate);
		break;
	default:
		c.n = THEIRS;
		entry->rival(&c);
	}
	control->changes++;
}

/* A word that is only counted in is nobody's to lock. */
static void interfere_count(enum interference how, unsigned index)
{
	interfere_sum(how == UNDER_GATE || how == BY_VECTOR ? PLAINLY : how, index);
	if (how == UNDER_GATE)
		sem_post(&control->done);
}

static const char *check_sum(const struct call *c)
{
	uint64_t sum = 0, elsewhere = 0;
	uint64_t expected = (c->rc == PERCPU__LEFT ? 0 : c->n) + (uint64_t)control->changes * THEIRS;

	percpu_for_each_index(i) {
		sum += load(target(i));
		if (entry->object == CELL)
			elsewhere += load(percpu_ptr(entry->offset ? call.p : &cell->second, i));
	}
	if (elsewhere)
		return "added to another word";
	if (sum < expected)
		return "lost an addition";
	if (sum > expected)
		return "added twice";
	return NULL;
}

/* Sums that are closed by a flag: open, closed, closed by the rival. */
enum { OPEN, CLOSED, CLOSED_BY_RIVAL };

static uint64_t sum_of_all(void)
{
	uint64_t sum = 0;

	percpu_for_each_index(i)
		sum += load(target(i));
	return sum;
}

static void setup_unless(unsigned number, struct call *c)
{
	setup_sum(number, c);
	flag = number == CLOSED;
	is_open = number == CLOSED ? 0 : percpu__remainder;
	c->flag = &flag;
	c->open = &is_open;
}

static void interfere_unless(enum interference how, unsigned index)
{
	if (which != CLOSED_BY_RIVAL) {
		interfere_count(how, index);
		return;
	}
	if (!flag) {
		__atomic_store_n(&flag, 1, __ATOMIC_SEQ_CST);
		__atomic_store_n(&is_open, 0, __ATOMIC_SEQ_CST);
		must(percpu_fence());
		sum_at_closing = sum_of_all();
		control->changes++;
	}
	if (how == UNDER_GATE)
		sem_post(&control->done);
}

static const char *check_unless(const struct call *c)
{
	uint64_t theirs = which == CLOSED_BY_RIVAL ? 0 : (uint64_t)control->changes * THEIRS;

	if (sum_of_all() != (c->rc == PERCPU__DONE ? c->n : 0) + theirs)
		return "the result is not what happened";
	if (c->rc == PERCPU__DIFFERS && which == OPEN)
		return "found a flag that nobody set";
	if (c->rc == PERCPU__DONE && which == CLOSED)
		return "overlooked the flag";
	if (c->rc == PERCPU__DONE && which == CLOSED_BY_RIVAL && control->changes && sum_at_closing != c->n)
		return "counted behind the fence of who had set the flag";
	return NULL;
}

/* Words that are compared and replaced. */

/* What a case starts with, and which change a rival makes: *at from -> to while the other word is `other`. */
static const struct word_case {
	uint64_t word, second;
	bool in_second;
	uint64_t from, to, other;
} word_cases[] = {
	{ V0, W0, false, V0, V2, W0 }, /* equal, until the rival changes it */
	{ V2, W0, false, V2, V0, W0 }, /* differs, until then */
	{ V0, W0, true, W0, W2, V0 },
	{ V0, W2, true, W2, W0, V0 },
};

static void setup_words(unsigned number, struct call *c)
{
	const struct word_case *w = &word_cases[number];

	percpu_for_each_index(i) {
		store(percpu_ptr(&cell->word, i), w->word);
		store(percpu_ptr(&cell->second, i), w->second);
	}
	c->q = &cell->second;
	c->expected = V0;
	c->expected2 = W0;
	c->desired = V1;
}

static void interfere_words(enum interference how, unsigned index)
{
	const struct word_case *w = &word_cases[which];
	uint64_t *at0 = w->in_second ? &cell->second : &cell->word, *by0 = w->in_second ? &cell->word : &cell->second;
	uint64_t *at = percpu_ptr(at0, index), *by = percpu_ptr(by0, index), seen;
	const struct percpu_op ops[] = {
		{ .op = PERCPU_OP_COMPARE_EQ, .len = 8, .dst = at, .src = &w->from },
		{ .op = PERCPU_OP_COMPARE_EQ, .len = 8, .dst = by, .src = &w->other },
		{ .op = PERCPU_OP_MEMCPY, .len = 8, .dst = at, .src = &w->to },
	};
	struct percpu_gate gate;
	struct call c = call;
	int rc;

	switch (how) {
	case PLAINLY:
		if (load(at) != w->from || load(by) != w->other)
			return;
		store(at, w->to);
		break;
	case BY_VECTOR:
		rc = percpu_opv(ops, 3, index);
		if (rc < 0)
			broke = true;
		if (rc)
			return;
		break;
	case UNDER_GATE:
		must(percpu_gate_lock(cell, index, &gate));
		seen = load(at);
		rc = seen == w->from && load(by) == w->other;
		harness_held();
		if (rc)
			store(at, w->to);
		percpu_gate_unlock(&gate);
		if (!rc)
			return;
		break;
	default:
		c.p = at0;
		c.q = by0;
		c.expected = w->from;
		c.expected2 = w->other;
		c.desired = w->to;
		entry->rival(&c);
		if (c.rc != PERCPU__DONE)
			return;
	}
	control->changes++;
}

static const char *check_words(const struct call *c)
{
	const struct word_case *w = &word_cases[which];
	unsigned stored = 0, changed = 0, unknown = 0;

	percpu_for_each_index(i) {
		uint64_t word = load(percpu_ptr(&cell->word, i)), second = load(percpu_ptr(&cell->second, i));

		if (word == V1) {
			stored++;
			if (second != W0)
				return "stored although the second word differed";
		}
		if (w->in_second)
			changed += second == w->to;
		else
			changed += word == w->to;
		unknown += (word != V0 && word != V1 && word != V2) || (second != W0 && second != W2);
	}
	/* Ours replaced what the rival had made fit. */
	if (!w->in_second && w->to == V0)
		changed += stored;
	if (unknown)
		return "a value that nobody stored";
	if (stored != (c->rc == PERCPU__DONE))
		return "the result is not what happened";
	if (changed != control->changes)
		return "lost a change";
	return NULL;
}

/* Copies. */

static const size_t lengths[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 33, 64, 100 };
#define LENGTHS (sizeof lengths / sizeof *lengths)

static void setup_copy(unsigned number, struct call *c)
{
	bool differs = number == LENGTHS;

	percpu_for_each_index(i) {
		store(percpu_ptr(&cell->word, i), differs ? V2 : V0);
		memset(percpu_ptr(cell, i)->bytes, UNTOUCHED, BYTES);
	}
	for (size_t i = 0; i < sizeof ours; i++)
		ours[i] = (unsigned char)(i + 1); /* neither UNTOUCHED nor THEIR_BYTE, as far as we copy */
	ours[THEIR_BYTE - 1] = 0;
	memset(theirs, THEIR_BYTE, sizeof theirs);
	c->expected = V0;
	c->desired = V1;
	c->dst = cell->bytes + GUARD;
	c->src = ours;
	c->len = lengths[differs ? 11 : number];
}

static void interfere_copy(enum interference how, unsigned index)
{
	bool differs = which == LENGTHS;
	const uint64_t from = differs ? V2 : V0, to = differs ? V0 : V2;
	unsigned length = differs ? 0 : THEIR_LENGTH; /* what fits then must find its bytes as they were */
	uint64_t *word = percpu_ptr(&cell->word, index);
	unsigned char *bytes = percpu_ptr(cell, index)->bytes + GUARD;
	const struct percpu_op ops[] = {
		{ .op = PERCPU_OP_COMPARE_EQ, .len = 8, .dst = word, .src = &from },
		{ .op = PERCPU_OP_MEMCPY, .len = length, .dst = bytes, .src = theirs },
		{ .op = PERCPU_OP_MEMCPY, .len = 8, .dst = word, .src = &to },
	};
	struct percpu_gate gate;
	struct call c = call;
	int rc;

	switch (how) {
	case PLAINLY:
		if (load(word) != from)
			return;
		memcpy(bytes, theirs, length);
		store(word, to);
		break;
	case BY_VECTOR:
		rc = percpu_opv(ops, 3, index);
		if (rc < 0)
			broke = true;
		if (rc)
			return;
		break;
	case UNDER_GATE:
		must(percpu_gate_lock(cell, index, &gate));
		rc = load(word) == from;
		if (rc)
			memcpy(bytes, theirs, length);
		harness_held();
		if (rc)
			store(word, to);
		percpu_gate_unlock(&gate);
		if (!rc)
			return;
		break;
	default:
		c.expected = from;
		c.desired = to;
		c.src = theirs;
		c.len = length;
		entry->rival(&c);
		if (c.rc != PERCPU__DONE)
			return;
	}
	control->changes++;
}

static const char *check_copy(const struct call *c)
{
	unsigned stored = 0, theirs_stored = 0, at_start = 0;
	bool differs = which == LENGTHS;

	percpu_for_each_index(i) {
		uint64_t word = load(percpu_ptr(&cell->word, i));
		const unsigned char *bytes = percpu_ptr(cell, i)->bytes + GUARD;

		stored += word == V1;
		theirs_stored += word == V2;
		at_start += word == V0;
		for (int k = -GUARD; k < BYTES - GUARD; k++) {
			bool in_ours = k >= 0 && (size_t)k < c->len, in_theirs = k >= 0 && k < THEIR_LENGTH;
			bool is_ours = in_ours && bytes[k] == ours[k], is_theirs = in_theirs && bytes[k] == THEIR_BYTE;

			if (word == V1 && in_ours && !is_ours)
				return "stored without the whole copy";
			if (word == V2 && !differs && in_theirs && !is_theirs)
				return "copied over somebody else's bytes";
			if (bytes[k] != UNTOUCHED && !is_ours && !is_theirs)
				return "wrote outside the copy";
		}
	}
	if (stored != (c->rc == PERCPU__DONE))
		return "the result is not what happened";
	if (stored + theirs_stored + at_start != percpu_copies())
		return "a value that nobody stored";
	if ((differs ? stored + at_start : theirs_stored) != control->changes)
		return "lost a change";
	return NULL;
}

/* Lists. */

static uintptr_t nil_of_round(void)
{
	return entry->with_nil ? (uintptr_t)&ending : 0;
}

static struct node *new_node(void)
{
	struct node *node;

	if (next_node == NODES)
		_exit(8);
	node = &nodes[next_node++];
	node->is = FREE;
	node->link.next = NULL;
	return node;
}

/* Somebody has these now; nobody may follow their links any more. */
static void take_nodes(uintptr_t first, bool all)
{
	uintptr_t nil = nil_of_round();
	size_t steps = 0;

	while (first != nil) {
		struct node *node = (struct node *)first;

		if (node < nodes || node >= nodes + next_node || steps++ > next_node) {
			broke = true;
			return;
		}
		first = (uintptr_t)node->link.next;
		node->is = TAKEN;
		node->link.next = (void *)0xdead0000dead0000;
		if (!all)
			return;
	}
}

static void setup_lists(unsigned length, struct call *c)
{
	next_node = 0;
	c->nil = nil_of_round();
	c->link_offset = offsetof(struct node, link);
	percpu_for_each_index(i) {
		uintptr_t head = c->nil;

		for (unsigned k = 0; k < length; k++) {
			struct node *node = new_node();

			node->is = LISTED;
			node->link.next = (void *)head;
			head = (uintptr_t)node;
		}
		store(percpu_ptr(c->p, i), head);
	}
}

enum { TAKE_ONE, PUT_ONE, TAKE_ALL };

static void interfere_list(enum interference how, unsigned index, unsigned what)
{
	uintptr_t nil = nil_of_round();
	uint64_t *head = percpu_ptr(call.p, index);
	struct node *node = what == PUT_ONE ? new_node() : NULL;
	struct percpu_stack_node *stolen;
	struct percpu_gate gate;
	struct call c = call;
	uintptr_t was, word;
	struct percpu_op ops[] = {
		{ .op = PERCPU_OP_COMPARE_EQ, .len = 8, .dst = head, .src = &was },
		{ .op = PERCPU_OP_MEMCPY, .len = 8, .dst = head, .src = &word },
	};
	bool held_gate = false;

	switch (how) {
	case UNDER_GATE:
		must(percpu_gate_lock(call.p, index, &gate));
		held_gate = true;
		__attribute__((fallthrough));
	case PLAINLY:
	case BY_VECTOR:
		if (how == BY_VECTOR && what == TAKE_ALL && entry->indexed == PERCPU__BY_ID && !nil) {
			must(percpu_stack_steal(&stack, index, &stolen));
			was = (uintptr_t)stolen;
			take_nodes(was, true);
			break;
		}
		was = load(head);
		word = what == PUT_ONE ? (uintptr_t)node : nil;
		if (what == TAKE_ONE && was != nil)
			word = (uintptr_t)((struct node *)was)->link.next;
		if (node) {
			node->link.next = (void *)was;
			node->is = LISTED;
		}
		if (held_gate)
			harness_held();
		if (how == BY_VECTOR)
			must(percpu_opv(ops, 2, index));
		else
			store(head, word);
		if (held_gate)
			percpu_gate_unlock(&gate);
		if (what != PUT_ONE)
			take_nodes(was, what == TAKE_ALL);
		break;
	default:
		if (what == TAKE_ONE) {
			c.nil = nil;
			entry->take(&c);
			if (c.rc == PERCPU__DONE)
				take_nodes(c.out, false);
		} else if (what == PUT_ONE) {
			node->is = LISTED;
			c.first = (uintptr_t)node;
			c.last = (uintptr_t *)(void *)&node->link.next;
			entry->put(&c);
		} else {
			c.first = nil;
			c.last = &c.out;
			entry->exchange(&c);
			take_nodes(c.out, true);
		}
	}
	control->changes++;
}

static const char *check_lists(const struct call *c)
{
	uintptr_t nil = nil_of_round();
	static bool seen[NODES];
	size_t steps = 0;

	(void)c;
	memset(seen, 0, next_node * sizeof *seen);
	percpu_for_each_index(i) {
		for (uintptr_t at = load(percpu_ptr(call.p, i)); at != nil;) {
			struct node *node = (struct node *)at;

			if (node < nodes || node >= nodes + next_node || (at - (uintptr_t)nodes) % sizeof *nodes ||
			    steps++ > next_node)
				return "a list leads astray";
			if (seen[node - nodes])
				return "a node is in two lists";
			if (node->is != LISTED)
				return node->is == TAKEN ? "a node was taken, and is still there"
							 : "a node was put that must not be";
			seen[node - nodes] = true;
			at = (uintptr_t)node->link.next;
		}
	}
	for (size_t i = 0; i < next_node; i++)
		if (nodes[i].is == LISTED && !seen[i])
			return "lost a node";
	return NULL;
}

/* What rivals do in each case; the third and fourth start with other lists. */
static void setup_take(unsigned number, struct call *c)
{
	setup_lists(number == 2 ? 0 : CHAIN, c);
}

static void interfere_take(enum interference how, unsigned index)
{
	static const unsigned what[] = { TAKE_ONE, PUT_ONE, PUT_ONE, TAKE_ALL };

	interfere_list(how, index, what[which]);
}

static const char *check_take(const struct call *c)
{
	if (c->rc == PERCPU__DONE)
		take_nodes(c->out, false);
	return check_lists(c);
}

static const char *check_take_all(const struct call *c)
{
	if (c->rc == PERCPU__DONE)
		take_nodes(c->out, true);
	return check_lists(c);
}

static void setup_take_all(unsigned number, struct call *c)
{
	setup_take(number, c);
	c->first = 0;
	c->last = &c->out;
}

static void setup_put(unsigned number, struct call *c)
{
	struct node *node;

	setup_lists(number == 2 ? 0 : CHAIN, c);
	node = new_node();
	c->first = (uintptr_t)node;
	c->last = (uintptr_t *)(void *)&node->link.next;
}

static void setup_chain(unsigned number, struct call *c)
{
	struct node *node;

	setup_put(number, c);
	node = (struct node *)c->first;
	node->link.next = &new_node()->link;
	c->last = (uintptr_t *)(void *)&node->link.next->next;
}

static const char *check_put(const struct call *c)
{
	if (c->rc == PERCPU__DONE)
		for (size_t i = 0; i < next_node; i++)
			if (nodes[i].is == FREE)
				nodes[i].is = LISTED;
	return check_lists(c);
}

/* Exchanges: every token is in exactly one place. */

static void setup_exchange(unsigned unused, struct call *c)
{
	(void)unused;
	token_count = 0;
	percpu_for_each_index(i)
		store(percpu_ptr(c->p, i), V0 + i);
	c->first = 1;
	c->last = &c->out;
}

static void interfere_exchange(enum interference how, unsigned index)
{
	uint64_t *word = percpu_ptr(call.p, index), mine = 2 + token_count, was;
	struct percpu_gate gate;
	struct call c = call;

	switch (how) {
	case BY_VECTOR:
		was = load(word);
		must(percpu_opv(
			(const struct percpu_op[]){ { .op = PERCPU_OP_COMPARE_EQ, .len = 8, .dst = word, .src = &was },
						    { .op = PERCPU_OP_MEMCPY, .len = 8, .dst = word, .src = &mine } },
			2, index));
		break;
	case PLAINLY:
		was = load(word);
		store(word, mine);
		break;
	case UNDER_GATE:
		must(percpu_gate_lock(call.p, index, &gate));
		was = load(word);
		harness_held();
		store(word, mine);
		percpu_gate_unlock(&gate);
		break;
	default:
		c.first = mine;
		c.last = &c.out;
		entry->exchange(&c);
		was = c.out;
	}
	if (token_count == sizeof tokens / sizeof *tokens)
		_exit(8);
	tokens[token_count++] = was;
	control->changes++;
}

static const char *check_exchange(const struct call *c)
{
	/* Sums and sums of squares tell sets of small numbers apart well enough, and name no order. */
	uint64_t have = 0, have2 = 0, want = 0, want2 = 0, t;

	percpu_for_each_index(i) {
		t = load(percpu_ptr(call.p, i));
		have += t;
		have2 += t * t;
		want += V0 + i;
		want2 += (uint64_t)(V0 + i) * (V0 + i);
	}
	for (unsigned i = 0; i < token_count; i++) {
		have += tokens[i];
		have2 += tokens[i] * tokens[i];
		want += 2 + i;
		want2 += (uint64_t)(2 + i) * (2 + i);
	}
	if (c->rc == PERCPU__DONE) {
		have += c->out;
		have2 += c->out * c->out;
		want += 1;
		want2 += 1;
	}
	return have == want && have2 == want2 ? NULL : "lost or doubled a token";
}

const struct kind sum_kind = { 1, setup_sum, interfere_sum, check_sum };
const struct kind count_kind = { 1, setup_sum, interfere_count, check_sum };
const struct kind unless_kind = { 3, setup_unless, interfere_unless, check_unless };
const struct kind store_kind = { 2, setup_words, interfere_words, check_words };
const struct kind store2_kind = { 4, setup_words, interfere_words, check_words };
const struct kind copy_kind = { LENGTHS + 1, setup_copy, interfere_copy, check_copy };
const struct kind take_kind = { 4, setup_take, interfere_take, check_take };
const struct kind take_all_kind = { 4, setup_take_all, interfere_take, check_take_all };
const struct kind put_kind = { 4, setup_put, interfere_take, check_put };
const struct kind chain_kind = { 4, setup_chain, interfere_take, check_put };
const struct kind exchange_kind = { 1, setup_exchange, interfere_exchange, check_exchange };

/* The subject and its rival. */

/* The index of the copy that the subject is on, as its registered words say. */
static unsigned subjects_index(void)
{
	const struct percpu__rseq *area = (const struct percpu__rseq *)control->area;
	uint32_t index;

	if (!area)
		return percpu_copies() - 1;
	index = entry->indexed == PERCPU__BY_CPU
			? *(const volatile uint32_t *)&area->cpu_id
			: *(const volatile uint32_t *)(const void *)((const char *)area + percpu__index_offset);
	return index < percpu_copies() ? index : percpu_copies() - 1;
}

static void *rival(void *unused)
{
	(void)unused;
	for (;;) {
		enum interference how;

		while (sem_wait(&control->go))
			;
		how = control->how;
		entry->kind->interfere(how, subjects_index());
		__atomic_store_n(&control->busy, false, __ATOMIC_RELEASE);
		if (how != UNDER_GATE)
			sem_post(&control->done);
	}
	return NULL;
}

static void on_signal(int sig)
{
	(void)sig;
	__atomic_store_n(&control->handling, true, __ATOMIC_RELAXED);
	entry->kind->interfere(BY_HANDLER, 0);
	__atomic_store_n(&control->handling, false, __ATOMIC_RELAXED);
}

__attribute__((noinline)) void park(void)
{
	__asm__ __volatile__(TRAP_ASM ::: "memory");
}

__attribute__((noinline)) void finish(void)
{
	__asm__ __volatile__("" ::: "memory");
}

/* Gives the C library's registration back: what the library finds then is a thread that the kernel does not serve. */
static void unregister(void)
{
	extern const ptrdiff_t __rseq_offset __attribute__((weak));
	extern const unsigned int __rseq_size __attribute__((weak));
	unsigned length;

	if (!&__rseq_offset || !&__rseq_size)
		_exit(4);
	length = __rseq_size <= 32 ? 32 : (__rseq_size + 63) / 64 * 64;
	if (syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, length, 1, PERCPU__SIGNATURE))
		_exit(4);
}

static void make(enum subject subject, int cpu)
{
	struct percpu_description about;
	pthread_t thread;
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((size_t)cpu, &one);
	sched_setaffinity(0, sizeof one, &one);
	if (subject == UNREGISTERED)
		unregister();
	cell = percpu_alloc(sizeof *cell, 64);
	nodes = calloc(NODES, sizeof *nodes);
	if (!cell || !nodes || percpu_stack_init(&stack) || percpu_counter_init(&counter) ||
	    percpu_histogram_init(&histogram, 3) || percpu_copies() > MOST_COPIES || percpu_describe(&about))
		_exit(5);
	control->area = about.thread_registered ? (uintptr_t)percpu__self : 0;
	if (subject == UNREGISTERED && about.thread_registered)
		_exit(6);
	percpu__thread_force(subject == FORCED_GATE        ? PERCPU__FORCE_GATE
			     : subject == FORCED_REMAINDER ? PERCPU__FORCE_REMAINDER
							   : PERCPU__FORCE_OFF);
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal }, NULL);
	if (pthread_create(&thread, NULL, rival, NULL))
		_exit(7);
}

void world_run(enum subject subject, int cpu)
{
	make(subject, cpu);
	for (;;) {
		park();
		entry = &entries[control->entry];
		which = control->which;
		control->changes = 0;
		broke = false;
		call = (struct call){
			.offset = &offset, .stack = &stack, .counter = &counter, .histogram = &histogram
		};
		call.p = entry->object == COUNTER     ? counter.words
			 : entry->object == HISTOGRAM ? histogram.buckets + percpu__bucket_of(77, 3)
						      : &cell->word;
		if (entry->take)
			call.p = (uint64_t *)(void *)stack.head;
		entry->kind->setup(which, &call);
		call.rc = -1;
		entry->run(&call);
		finish();
		while (__atomic_load_n(&control->busy, __ATOMIC_ACQUIRE))
			usleep(NAP);
		control->rc = call.rc;
		control->wrong = entry->kind->check(&call);
		if (broke && !control->wrong)
			control->wrong = "an operation of the rival failed";
	}
}
