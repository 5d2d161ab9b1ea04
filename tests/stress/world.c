/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "in_c.h"
#include "world.h"

#define TEXT 176

/* Two slots in turn: the one that `sequence` does not name may be written at any time. */
struct record {
	uint64_t sequence;
	struct slot {
		uint64_t sequence;
		uint32_t checksum;
		uint32_t length;
		unsigned char text[TEXT];
	} slot[2];
};

/* `word` may only be changed while `frozen` is 0. */
struct guarded {
	uint64_t word;
	uint64_t frozen;
};

static struct lane {
	uint64_t *add;
	uint64_t *offset_words; /* two words a copy */
	uint64_t *eq;
	uint64_t *token;
	struct guarded *guarded;
	struct record *record;
	void **list;
	void **ring;
} lanes[LANES];

static ptrdiff_t offset; /* of the word that add_offset adds to now: 0 or 8 */
static struct percpu_counter counter;
static struct percpu_histogram histogram;
static struct percpu_snapshot drained_values, values; /* `values` is empty between uses */
static uint64_t drained;
static struct percpu_stack stack;
static struct node nodes[POOLS][NODES];
static struct node ring_end;

struct context contexts[MOST_CONTEXTS];
bool mode_none;

/* The four spellings of an operation; a variant's lane is variant / 2. */
#define THIS(variant, name, ...)                                                                                       \
	((variant) == 0   ? percpu_this_##name(__VA_ARGS__)                                                            \
	 : (variant) == 1 ? percpu_this_##name##_release(__VA_ARGS__)                                                  \
	 : (variant) == 2 ? percpu_this_cpu_##name(__VA_ARGS__)                                                        \
			  : percpu_this_cpu_##name##_release(__VA_ARGS__))

/* Besides relaxed and release: by a section in C. */
#define IN_C_ORDER 2

void violation(const char *what, ...)
{
	char text[256];
	va_list list;
	int length;

	va_start(list, what);
	length = vsnprintf(text, sizeof text - 1, what, list);
	va_end(list);
	text[length++] = '\n';
	if (write(STDERR_FILENO, text, (size_t)length) < 0)
		_exit(2);
	_exit(1);
}

uint64_t draw(struct context *me, uint64_t below)
{
	me->random ^= me->random << 13;
	me->random ^= me->random >> 7;
	me->random ^= me->random << 17;
	return (me->random >> 20) % below;
}

static void *allocate(size_t size)
{
	void *object = percpu_alloc(size, 64);

	if (!object)
		violation("no per-CPU memory for %zu bytes", size);
	return object;
}

void world_create(void)
{
	for (int l = 0; l < LANES; l++) {
		lanes[l].add = allocate(sizeof(uint64_t));
		lanes[l].offset_words = allocate(2 * sizeof(uint64_t));
		lanes[l].eq = allocate(sizeof(uint64_t));
		lanes[l].token = allocate(sizeof(uint64_t));
		lanes[l].guarded = allocate(sizeof(struct guarded));
		lanes[l].record = allocate(sizeof(struct record));
		lanes[l].list = allocate(sizeof(void *));
		lanes[l].ring = allocate(sizeof(void *));
		percpu_for_each_index(i)
			*percpu_ptr(lanes[l].ring, i) = &ring_end;
	}
	if (percpu_counter_init(&counter) || percpu_histogram_init(&histogram, 3) || percpu_stack_init(&stack) ||
	    percpu_snapshot_init(&drained_values, 3) || percpu_snapshot_init(&values, 3))
		violation("cannot create the objects");
	drained = 0;
	offset = 0;
	memset(contexts, 0, sizeof contexts);
	for (unsigned pool = 0; pool < POOLS; pool++) {
		for (unsigned n = 0; n < NODES; n++) {
			struct node *node = &nodes[pool][n];

			*node = (struct node){ .pool = pool };
			if (pool == POOL_STACK)
				percpu_stack_push(&stack, &node->link);
			else if (pool == POOL_LIST)
				percpu_this_push(lanes[LANE_BY_ID].list, node, 0);
			else if (pool == POOL_LIST + 1)
				percpu_this_cpu_push(lanes[LANE_BY_CPU].list, node, 0);
			else if (pool == POOL_RING)
				percpu_this_push(lanes[LANE_BY_ID].ring, node, 0);
			else
				percpu_this_cpu_push(lanes[LANE_BY_CPU].ring, node, 0);
		}
	}
}

void world_destroy(void)
{
	for (int l = 0; l < LANES; l++) {
		void *all[] = { lanes[l].add,     lanes[l].offset_words, lanes[l].eq,   lanes[l].token,
				lanes[l].guarded, lanes[l].record,       lanes[l].list, lanes[l].ring };

		for (size_t i = 0; i < sizeof all / sizeof *all; i++)
			if (percpu_free(all[i]))
				violation("an object cannot be freed");
	}
	percpu_counter_destroy(&counter);
	percpu_histogram_destroy(&histogram);
	percpu_snapshot_destroy(&drained_values);
	percpu_snapshot_destroy(&values);
	percpu_stack_destroy(&stack);
}

void context_init(struct context *me, unsigned number, bool is_handler)
{
	memset(me, 0, sizeof *me);
	me->random = (number + 1) * UINT64_C(0x9e3779b97f4a7c15);
	me->is_handler = is_handler;
	for (int l = 0; l < LANES; l++)
		me->token[l] = number + 1;
}

/* Operations on a named index may fail only where the interrupted thread itself is in the way. */
static bool went_well(const struct context *me, int rc, const char *what)
{
	if (rc == -EDEADLK && mode_none && me->is_handler)
		return false;
	if (rc < 0)
		violation("%s failed: %s", what, strerror(-rc));
	return true;
}

/* --- nodes --- */

static struct node *check_node(void *address, unsigned pool)
{
	uintptr_t distance = (uintptr_t)address - (uintptr_t)nodes[pool];

	if (distance >= sizeof nodes[pool] || distance % sizeof(struct node))
		violation("pool %u: a list leads to %p, which is no node of it", pool, address);
	return address;
}

static void take(struct node *node)
{
	if (__atomic_exchange_n(&node->taken, 1, __ATOMIC_ACQ_REL))
		violation("pool %u: node %ld was taken twice", node->pool, (long)(node - nodes[node->pool]));
}

static void give(struct node *node)
{
	if (!__atomic_exchange_n(&node->taken, 0, __ATOMIC_ACQ_REL))
		violation("pool %u: a node was given that was not taken", node->pool);
}

static struct node *pop(unsigned pool, unsigned order)
{
	unsigned lane = pool == POOL_STACK ? 0 : (pool - POOL_LIST) % LANES;
	uintptr_t word = 0;
	void *got;

	if (pool == POOL_STACK) {
		got = percpu_stack_pop(&stack);
	} else if (pool < POOL_RING && order == IN_C_ORDER) {
		struct node *last;

		got = in_c_take(lane, lanes[lane].list, 1, &last);
	} else if (pool < POOL_RING) {
		got = THIS(lane * 2 + order, pop, lanes[lane].list, 0);
	} else {
		uintptr_t *head = (uintptr_t *)(void *)lanes[lane].ring;
		bool found = THIS(lane * 2 + order % 2, follow, head, (uintptr_t)&ring_end, 0, &word);

		got = found ? (void *)word : NULL;
	}
	if (!got)
		return NULL;
	take(check_node(got, pool));
	return got;
}

/* The nodes are linked from first to last and marked as given. */
static void push_chain(unsigned pool, unsigned order, struct node *first, struct node *last)
{
	unsigned lane = pool == POOL_STACK ? 0 : (pool - POOL_LIST) % LANES;
	void **head = pool < POOL_RING ? lanes[lane].list : lanes[lane].ring;

	if (pool == POOL_STACK)
		percpu_stack_push_chain(&stack, &first->link, &last->link);
	else if (order == IN_C_ORDER)
		in_c_push(lane, head, first, last);
	else
		THIS(lane * 2 + order, push_chain, head, first, last, 0);
}

static void push(unsigned pool, unsigned order, struct node *node)
{
	unsigned lane = pool == POOL_STACK ? 0 : (pool - POOL_LIST) % LANES;

	give(node);
	if (pool == POOL_STACK)
		percpu_stack_push(&stack, &node->link);
	else if (order == IN_C_ORDER)
		in_c_push(lane, pool < POOL_RING ? lanes[lane].list : lanes[lane].ring, node, node);
	else
		THIS(lane * 2 + order, push, pool < POOL_RING ? lanes[lane].list : lanes[lane].ring, node, 0);
}

/* A whole list that the caller now owns goes back, after each node was seen to be there once. */
static void put_back(struct context *me, unsigned pool, void *got, const void *end)
{
	struct node *first = got, *last = NULL;

	if (got == end)
		return;
	for (void *at = got; at != end; at = last->link.next) {
		last = check_node(at, pool);
		take(last);
	}
	for (struct node *at = first;; at = (struct node *)at->link.next) {
		struct node *here = at;

		give(here);
		if (here == last)
			break;
	}
	me->chains++;
	push_chain(pool, (unsigned)draw(me, 3), first, last);
}

static void take_all(struct context *me, unsigned pool)
{
	unsigned lane = pool == POOL_STACK ? 0 : (pool - POOL_LIST) % LANES, order = (unsigned)draw(me, 2);
	void *end = pool < POOL_RING ? NULL : &ring_end;
	void *got;

	if (pool == POOL_STACK)
		got = percpu_stack_pop_all(&stack);
	else
		got = (void *)THIS(lane * 2 + order, xchg,
				   (uint64_t *)(void *)(pool < POOL_RING ? lanes[lane].list : lanes[lane].ring),
				   (uintptr_t)end);
	put_back(me, pool, got, end);
}

/* Some of a list at once; they go back where the thread is then. */
static void take_some(struct context *me, unsigned lane)
{
	struct node *last, *first = in_c_take(lane, lanes[lane].list, 1 + (unsigned)draw(me, 8), &last);

	if (!first)
		return;
	last->link.next = NULL;
	put_back(me, POOL_LIST + lane, first, NULL);
}

void steal_from(struct context *me, unsigned index)
{
	struct percpu_stack_node *got;

	if (!went_well(me, percpu_stack_steal(&stack, index, &got), "steal"))
		return;
	me->steals++;
	put_back(me, POOL_STACK, got, NULL);
}

static void use_hand(struct context *me, unsigned pool)
{
	unsigned place = (unsigned)draw(me, HAND), order = (unsigned)draw(me, 3);
	struct node **hand = me->hand[pool];

	if (hand[place]) {
		push(pool, order, hand[place]);
		hand[place] = NULL;
	} else {
		hand[place] = pop(pool, order);
	}
}

static void push_hand(struct context *me, unsigned pool)
{
	struct node *first = NULL, *last = NULL, **hand = me->hand[pool];

	for (int i = 0; i < HAND; i++) {
		if (!hand[i])
			continue;
		if (last)
			last->link.next = &hand[i]->link;
		else
			first = hand[i];
		last = hand[i];
		give(last);
		hand[i] = NULL;
	}
	if (first) {
		me->chains++;
		push_chain(pool, (unsigned)draw(me, 3), first, last);
	}
}

/* One node from the top of one index's list to the top of another's. */
static void move_node(struct context *me)
{
	unsigned lane = (unsigned)draw(me, LANES), copies = percpu_copies();
	unsigned from = (unsigned)draw(me, copies), to = (unsigned)draw(me, copies);
	void **a = percpu_ptr(lanes[lane].list, from), **b = percpu_ptr(lanes[lane].list, to);
	struct node *node = __atomic_load_n((struct node **)(void *)a, __ATOMIC_RELAXED);
	struct node *above = __atomic_load_n((struct node **)(void *)b, __ATOMIC_RELAXED);
	struct percpu_op ops[] = {
		{ .op = PERCPU_OP_COMPARE_EQ, .len = sizeof node, .dst = a, .src = &node },
		{ .op = PERCPU_OP_COMPARE_EQ, .len = sizeof node, .dst = b, .src = &above },
		{ .op = PERCPU_OP_MEMCPY, .len = sizeof node, .dst = a, .src = node ? &node->link.next : NULL },
		{ .op = PERCPU_OP_MEMCPY, .len = sizeof node, .dst = node, .src = &above },
		{ .op = PERCPU_OP_MEMCPY, .len = sizeof node, .dst = b, .src = &node },
	};
	int rc;

	if (!node || from == to)
		return;
	rc = percpu_opv(ops, 5, from);
	if (!went_well(me, rc, "migration of a node"))
		return;
	if (rc > 2)
		violation("an operation that compares nothing stopped the vector: %d", rc);
	me->opv_moves += rc == 0;
}

/* --- numbers --- */

static void begin(struct context *me, unsigned sum, uint64_t n)
{
	volatile uint64_t *begun = &me->begun[sum];

	*begun = *begun + n;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* @n of what was begun was done, the rest not. */
static void finish(struct context *me, unsigned sum, uint64_t n, uint64_t not_done)
{
	volatile uint64_t *done = &me->done[sum];
	volatile uint64_t *begun = &me->begun[sum];

	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	*done = *done + n;
	*begun = *begun - not_done;
}

static unsigned sum_of(unsigned variant, enum sum sum)
{
	return variant / 2 * SUM_OF_LANE + sum;
}

static void add(struct context *me, unsigned variant)
{
	unsigned sum = sum_of(variant, SUM_ADD);
	uint64_t n = draw(me, 7) + 1;

	begin(me, sum, n);
	if (draw(me, 3) == 0)
		in_c_add(variant / 2, lanes[variant / 2].add, n);
	else
		THIS(variant, add, lanes[variant / 2].add, n);
	finish(me, sum, n, 0);
}

static void add_offset(struct context *me, unsigned variant)
{
	unsigned sum = sum_of(variant, SUM_OFFSET);

	begin(me, sum, 1);
	THIS(variant, add_offset, lanes[variant / 2].offset_words, &offset, 1);
	finish(me, sum, 1, 0);
}

static uint64_t word_at(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* The copy that the thread is probably on, sometimes another: then the comparison usually fails. */
static unsigned guess(struct context *me, unsigned variant)
{
	if (mode_none || draw(me, 8) == 0)
		return (unsigned)draw(me, percpu_copies());
	return (unsigned)(variant < 2 ? percpu_cid() : percpu_cpu());
}

static void store_if_eq(struct context *me, unsigned variant)
{
	unsigned sum = sum_of(variant, SUM_EQ);
	uint64_t *p = lanes[variant / 2].eq, old = word_at(percpu_ptr(p, guess(me, variant)));
	bool stored;

	begin(me, sum, 1);
	stored = THIS(variant, store_if_eq, p, old, old + 1);
	finish(me, sum, stored, !stored);
}

static void store_if_eq2(struct context *me, unsigned variant)
{
	unsigned sum = sum_of(variant, SUM_EQ2);
	struct guarded *p = lanes[variant / 2].guarded;
	uint64_t old = word_at(&percpu_ptr(p, guess(me, variant))->word);
	bool stored;

	begin(me, sum, 1);
	stored = THIS(variant, store_if_eq2, &p->word, old, &p->frozen, 0, old + 1);
	finish(me, sum, stored, !stored);
}

static uint32_t checksum(const struct slot *slot)
{
	uint32_t sum = 2166136261U ^ (uint32_t)slot->sequence;

	for (uint32_t i = 0; i < slot->length; i++)
		sum = (sum ^ slot->text[i]) * 16777619U;
	return sum;
}

static void check_record(const struct record *record)
{
	const struct slot *slot = &record->slot[record->sequence % 2];

	if (record->sequence == 0)
		return;
	if (slot->sequence != record->sequence || slot->length > TEXT || slot->checksum != checksum(slot))
		violation("record %lu is torn: sequence %lu, length %u", (unsigned long)record->sequence,
			  (unsigned long)slot->sequence, slot->length);
}

static void copy_store(struct context *me, unsigned variant)
{
	unsigned sum = sum_of(variant, SUM_RECORD);
	struct record *p = lanes[variant / 2].record;
	uint64_t old = word_at(&percpu_ptr(p, guess(me, variant))->sequence);
	struct slot slot = { .sequence = old + 1, .length = (uint32_t)draw(me, TEXT + 1) };
	size_t length = offsetof(struct slot, text) + slot.length;
	bool stored;

	for (uint32_t i = 0; i < slot.length; i++)
		slot.text[i] = (unsigned char)(me->random >> i % 56);
	slot.checksum = checksum(&slot);
	begin(me, sum, 1);
	stored = THIS(variant, copy_store, &p->sequence, old, &p->slot[(old + 1) % 2], &slot, length, old + 1);
	finish(me, sum, stored, !stored);
}

/* One whole record, through an operation vector. */
static void read_record(struct context *me)
{
	unsigned lane = (unsigned)draw(me, LANES), index = (unsigned)draw(me, percpu_copies());
	struct record record = { 0 };
	struct percpu_op op = { .op = PERCPU_OP_MEMCPY,
				.len = sizeof record,
				.dst = &record,
				.src = percpu_ptr(lanes[lane].record, index) };

	if (went_well(me, percpu_opv(&op, 1, index), "reading a record"))
		check_record(&record);
}

static void exchange_token(struct context *me, unsigned variant)
{
	uint64_t *token = &me->token[variant / 2], mine = *token;

	/* In nobody's hand while it is under way: a handler has a hand of its own. */
	*token = THIS(variant, xchg, lanes[variant / 2].token, mine);
	if (*token > MOST_CONTEXTS)
		violation("%lu is no token", (unsigned long)*token);
}

static void move_number(struct context *me)
{
	unsigned lane = (unsigned)draw(me, LANES), copies = percpu_copies();
	unsigned from = (unsigned)draw(me, copies), to = (unsigned)draw(me, copies);
	uint64_t n = draw(me, 1000);
	struct percpu_op ops[] = {
		{ .op = PERCPU_OP_ADD, .len = 8, .dst = percpu_ptr(lanes[lane].add, from), .value = -n },
		{ .op = PERCPU_OP_ADD, .len = 8, .dst = percpu_ptr(lanes[lane].add, to), .value = n },
	};
	int rc = percpu_opv(ops, 2, to);

	if (!went_well(me, rc, "migration of a number"))
		return;
	if (rc)
		violation("a vector without comparisons stopped at %d", rc);
	me->opv_moves++;
}

static void churn(struct context *me)
{
	size_t size = draw(me, 64) ? draw(me, 500) + 8 : draw(me, 60000) + 8;
	uint64_t *object = percpu_alloc(size, draw(me, 2) ? 8 : 64), total = 0;

	if (!object)
		violation("percpu_alloc(%zu) failed", size);
	percpu_for_each_index(i)
		for (size_t w = 0; w < size / 8; w++)
			if (percpu_ptr(object, i)[w])
				violation("a new object is not zero");
	for (unsigned i = 0; i < 3; i++)
		percpu_this_add(object + (size / 8 - 1), 5);
	percpu_for_each_index(i)
		total += percpu_ptr(object, i)[size / 8 - 1];
	if (total != 15)
		violation("an object of this thread alone says %lu, not 15", (unsigned long)total);
	if (percpu_free(object))
		violation("percpu_free failed");
	me->allocations++;
}

static void count(struct context *me)
{
	uint64_t n = draw(me, 5) + 1;

	begin(me, SUM_COUNTER, n);
	percpu_counter_add(&counter, n);
	finish(me, SUM_COUNTER, n, 0);
}

static void record_value(struct context *me)
{
	begin(me, SUM_HISTOGRAM, 1);
	percpu_histogram_record(&histogram, draw(me, UINT64_C(1) << draw(me, 40)));
	finish(me, SUM_HISTOGRAM, 1, 0);
}

void drain_counters(void)
{
	uint64_t got;

	if (percpu_counter_drain(&counter, &got) || percpu_histogram_drain(&histogram, &drained_values))
		violation("cannot drain");
	drained += got;
}

void step(struct context *me)
{
	unsigned variant = (unsigned)draw(me, 4), pool = (unsigned)draw(me, POOLS);

	me->steps++;
	switch (draw(me, 24)) {
	case 0:
	case 1:
		add(me, variant);
		break;
	case 2:
		add_offset(me, variant);
		break;
	case 3:
	case 4:
		count(me);
		break;
	case 5:
		record_value(me);
		break;
	case 6:
		store_if_eq(me, variant);
		break;
	case 7:
		store_if_eq2(me, variant);
		break;
	case 8:
		copy_store(me, variant);
		break;
	case 9:
		exchange_token(me, variant);
		break;
	case 10:
		push_hand(me, pool);
		break;
	case 11:
		/* Rare and costly ones. */
		switch (draw(me, 48)) {
		case 0:
			take_all(me, pool);
			break;
		case 1:
		case 2:
		case 3:
			steal_from(me, (unsigned)draw(me, percpu_copies()));
			break;
		case 4:
			read_record(me);
			break;
		case 5:
			churn(me);
			break;
		case 6:
		case 7:
		case 8:
			move_number(me);
			break;
		case 9:
		case 10:
		case 11:
			move_node(me);
			break;
		case 12:
		case 13:
		case 14:
		case 15:
			take_some(me, variant / 2);
			break;
		default:
			break;
		}
		break;
	default:
		use_hand(me, pool);
	}
}

/* --- the keeper --- */

static void pause_for(long microseconds)
{
	nanosleep(&(struct timespec){ .tv_nsec = microseconds * 1000 }, NULL);
}

static void freeze(struct context *me, struct lane *lane, unsigned index)
{
	struct guarded *here = percpu_ptr(lane->guarded, index);
	struct percpu_gate gate;
	uint64_t word;

	went_well(me, percpu_gate_lock(lane->guarded, index, &gate), "gate");
	__atomic_store_n(&here->frozen, 1, __ATOMIC_RELAXED);
	word = here->word;
	percpu_gate_unlock(&gate);
	pause_for(50);
	went_well(me, percpu_gate_lock(lane->guarded, index, &gate), "gate");
	if (here->word != word)
		violation("a word changed although the other word forbade it");
	__atomic_store_n(&here->frozen, 0, __ATOMIC_RELAXED);
	percpu_gate_unlock(&gate);
}

static void look_at_record(struct context *me, struct lane *lane, unsigned index)
{
	struct percpu_gate gate;
	struct record record;

	went_well(me, percpu_gate_lock(lane->record, index, &gate), "gate");
	memcpy(&record, percpu_ptr(lane->record, index), sizeof record);
	percpu_gate_unlock(&gate);
	check_record(&record);
}

static uint64_t sum_at(const struct lane *lane, ptrdiff_t at)
{
	uint64_t sum = 0;

	percpu_for_each_index(i)
		sum += word_at(percpu_ptr(lane->offset_words, i) + at / 8);
	return sum;
}

/* After the offset was changed, a fence, and a turn of each gate, nobody adds at the old place any more. */
static void turn_offset(struct context *me)
{
	uint64_t before[LANES];
	ptrdiff_t old = offset;
	struct percpu_gate gate;

	__atomic_store_n(&offset, 8 - old, __ATOMIC_RELAXED);
	if (percpu_fence())
		violation("the fence failed");
	for (int l = 0; l < LANES; l++) {
		percpu_for_each_index(i) {
			went_well(me, percpu_gate_lock(lanes[l].offset_words, i, &gate), "gate");
			percpu_gate_unlock(&gate);
		}
		before[l] = sum_at(&lanes[l], old);
	}
	pause_for(50);
	for (int l = 0; l < LANES; l++)
		if (sum_at(&lanes[l], old) != before[l])
			violation("%lu was added at the old offset after the fence",
				  (unsigned long)(sum_at(&lanes[l], old) - before[l]));
}

void keep(struct context *me)
{
	struct lane *lane = &lanes[draw(me, LANES)];
	unsigned index = (unsigned)draw(me, percpu_copies());

	freeze(me, lane, index);
	look_at_record(me, lane, index);
	turn_offset(me);
}

/* --- the books --- */

static void walk(struct books *books, unsigned pool, void *head, const void *end)
{
	while (head != end) {
		struct node *node = check_node(head, pool);
		bool *present = &books->present[pool][node - nodes[pool]];

		if (*present)
			violation("pool %u: node %ld is in two places", pool, (long)(node - nodes[pool]));
		*present = true;
		head = node->link.next;
	}
}

static uint64_t values_at(int index)
{
	uint64_t total;

	if (percpu_histogram_read(&histogram, index, &values))
		violation("cannot read the histogram");
	total = values.total;
	memset(values.counts, 0, values.buckets * sizeof *values.counts);
	values.total = 0;
	return total;
}

void read_books(struct books *books)
{
	memset(books, 0, sizeof *books);
	percpu_for_each_index(i) {
		for (unsigned l = 0; l < LANES; l++) {
			uint64_t *actual = books->actual + l * SUM_OF_LANE, token;

			actual[SUM_ADD] += *percpu_ptr(lanes[l].add, i);
			actual[SUM_OFFSET] += percpu_ptr(lanes[l].offset_words, i)[0];
			actual[SUM_OFFSET] += percpu_ptr(lanes[l].offset_words, i)[1];
			actual[SUM_EQ] += *percpu_ptr(lanes[l].eq, i);
			actual[SUM_EQ2] += percpu_ptr(lanes[l].guarded, i)->word;
			actual[SUM_RECORD] += percpu_ptr(lanes[l].record, i)->sequence;
			check_record(percpu_ptr(lanes[l].record, i));
			walk(books, POOL_LIST + l, *percpu_ptr(lanes[l].list, i), NULL);
			walk(books, POOL_RING + l, *percpu_ptr(lanes[l].ring, i), &ring_end);
			token = *percpu_ptr(lanes[l].token, i);
			if (token > MOST_CONTEXTS || (token && books->token[l][token]))
				violation("token %lu is in two places", (unsigned long)token);
			books->token[l][token] = true;
		}
		walk(books, POOL_STACK, *percpu_ptr(stack.head, i), NULL);
	}
	/* From the beginning: what a drain took may be on its way. */
	percpu_for_each_index(i) {
		books->actual[SUM_COUNTER] += percpu_counter_read_index(&counter, i);
		books->actual[SUM_HISTOGRAM] += values_at((int)i);
	}
}

void sum_books(uint64_t begun[SUMS], uint64_t done[SUMS])
{
	memset(begun, 0, SUMS * sizeof *begun);
	memset(done, 0, SUMS * sizeof *done);
	for (int c = 0; c < MOST_CONTEXTS; c++) {
		for (int s = 0; s < SUMS; s++) {
			begun[s] += contexts[c].begun[s];
			done[s] += contexts[c].done[s];
		}
	}
}

static bool in_hand(unsigned pool, const struct node *node)
{
	for (int c = 0; c < MOST_CONTEXTS; c++)
		for (int i = 0; i < HAND; i++)
			if (contexts[c].hand[pool][i] == node)
				return true;
	return false;
}

static const char *name_of(unsigned sum)
{
	static const char *const names[] = { "add", "add_offset", "store_if_eq", "store_if_eq2", "copy_store" };

	return sum == SUM_COUNTER ? "counter" : sum == SUM_HISTOGRAM ? "histogram" : names[sum % SUM_OF_LANE];
}

void check_exact(const struct books *books)
{
	uint64_t begun[SUMS], done[SUMS];

	sum_books(begun, done);
	for (unsigned s = 0; s < SUMS; s++)
		if (books->actual[s] != done[s])
			violation("%s: %ld too many of %lu", name_of(s), (long)(books->actual[s] - done[s]),
				  (unsigned long)done[s]);
	if (drained + percpu_counter_read(&counter) != done[SUM_COUNTER] ||
	    drained_values.total + values_at(-1) != done[SUM_HISTOGRAM])
		violation("what was drained and what is left is not the sum");
	for (unsigned pool = 0; pool < POOLS; pool++)
		for (unsigned n = 0; n < NODES; n++)
			if (books->present[pool][n] == in_hand(pool, &nodes[pool][n]))
				violation("pool %u: node %u %s", pool, n,
					  books->present[pool][n] ? "is in a list and in a hand" : "is lost");
	for (unsigned l = 0; l < LANES; l++) {
		unsigned found = 0, handed_out = 0;

		for (unsigned t = 1; t <= MOST_CONTEXTS; t++)
			found += books->token[l][t];
		for (unsigned c = 0; c < MOST_CONTEXTS; c++) {
			handed_out += contexts[c].random != 0;
			if (contexts[c].token[l] && books->token[l][contexts[c].token[l]])
				violation("token %lu is in two places", (unsigned long)contexts[c].token[l]);
			found += contexts[c].token[l] != 0;
		}
		if (found != handed_out)
			violation("%u tokens of %u are left", found, handed_out);
	}
}

void check_plausible(const struct books *books)
{
	uint64_t begun[SUMS], done[SUMS];

	sum_books(begun, done);
	for (unsigned s = 0; s < SUMS; s++)
		if (books->actual[s] < done[s] || books->actual[s] > begun[s])
			violation("child: %s is %lu, not between %lu and %lu", name_of(s),
				  (unsigned long)books->actual[s], (unsigned long)done[s], (unsigned long)begun[s]);
	/* Which nodes are on their way cannot be told; that none is in two places, and no list torn, was seen. */
}

void check_change(const struct books *before, const uint64_t done_before[SUMS], const struct books *after,
		  const uint64_t done_after[SUMS])
{
	for (unsigned s = 0; s < SUMS; s++)
		if (after->actual[s] - before->actual[s] != done_after[s] - done_before[s])
			violation("child: %s changed by %lu, not by %lu", name_of(s),
				  (unsigned long)(after->actual[s] - before->actual[s]),
				  (unsigned long)(done_after[s] - done_before[s]));
	for (unsigned pool = 0; pool < POOLS; pool++)
		for (unsigned n = 0; n < NODES; n++)
			if (before->present[pool][n] && !after->present[pool][n] && !in_hand(pool, &nodes[pool][n]))
				violation("child: pool %u lost node %u", pool, n);
}
