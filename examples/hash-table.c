/* SPDX-License-Identifier: MIT */
/*
 * A hash table for each CPU: how often each key occurred (packets by flow, requests by client).
 *
 *   hash-table [seconds [threads]]
 *
 * A key that is there is counted in place; one that is not gets a new entry in front of its chain. Both are one section, so
 * two threads cannot add the same key twice, and both commit one word: the entry's count, or the head of the chain. Memory
 * cannot be allocated in a section, so the caller brings an entry in case it is needed.
 *
 * A key may have an entry in each copy, because threads move; its count is the sum of them. Entries that are removed are
 * used again at once, by anybody: no section can still be looking at one. Removing it was a commit to that copy, and whoever
 * was in a section there has been interrupted since, and starts again.
 */
#include <percpu.h>

#include "churn.h"

#define BUCKETS 32
#define KEYS    200
#define ENTRIES 512

struct entry {
	struct percpu_stack_node free; /* first, so that a node of the free list is its entry */
	struct entry *next;
	uint64_t key, count;
};

struct table {
	struct entry *bucket[BUCKETS];
};

PERCPU_SECTION_INLINE struct entry **bucket_of(struct table *table, uint64_t key)
{
	/* A power of two, and no call: division of what is not known needs one on some machines. */
	return &table->bucket[(key * UINT64_C(0x9e3779b97f4a7c15)) >> 32 & (BUCKETS - 1)];
}

/* Where the pointer to the key's entry stands; to NULL if it has none. */
PERCPU_SECTION_INLINE struct entry **find(struct table *table, uint64_t key)
{
	struct entry **at = bucket_of(table, key);

	while (*at && (*at)->key != key)
		at = &(*at)->next;
	return at;
}

struct event {
	uint64_t key;
	struct entry *spare; /* count_event: for a new key; NULL again once it is in the table */
	struct entry *found; /* forget: what was removed */
	uint64_t count;      /* look_up: of this copy */
};

PERCPU_SECTION(count_event, struct table, table, struct event, event)
{
	struct entry *entry = *find(table, event->key), **bucket;

	event->found = entry;
	if (entry)
		return percpu_commit(&entry->count, entry->count + 1);
	if (!event->spare)
		return percpu_no_commit();
	bucket = bucket_of(table, event->key);
	event->spare->key = event->key;
	event->spare->count = 1;
	event->spare->next = *bucket;
	return percpu_commit(bucket, event->spare);
}

/* True if this copy knew the key; its entry is the caller's then. */
PERCPU_SECTION(forget, struct table, table, struct event, event)
{
	struct entry **at = find(table, event->key);

	event->found = *at;
	return *at ? percpu_commit(at, (*at)->next) : percpu_no_commit();
}

/* Reads and never commits: the answer is in the argument, and was true at one moment. */
PERCPU_SECTION(look_up, struct table, table, struct event, event)
{
	struct entry *entry = *find(table, event->key);

	event->count = entry ? entry->count : 0;
	return percpu_no_commit();
}

static struct entry entries[ENTRIES];
static struct table *tables; /* a per-CPU pointer */
static struct percpu_stack free_entries;
static struct percpu_counter events, dropped, forgotten, scans;

/* The count of all keys in one copy, while that copy stands still; checks it, too. Returns -errno on failure. */
static int scan(unsigned index, uint64_t *total)
{
	struct table *table = percpu_ptr(tables, index);
	struct percpu_gate gate;
	int rc = percpu_gate_lock(tables, index, &gate);

	if (rc)
		return rc;
	for (unsigned b = 0; b < BUCKETS; b++) {
		for (struct entry *entry = table->bucket[b]; entry; entry = entry->next) {
			if (bucket_of(table, entry->key) != &table->bucket[b] || *find(table, entry->key) != entry)
				wrong("an entry is in a wrong place, or twice in one copy");
			*total += entry->count;
		}
	}
	percpu_gate_unlock(&gate);
	return 0;
}

/* From this copy's free list, or else from the first one that has some. */
static struct entry *spare_entry(void)
{
	struct percpu_stack_node *node = percpu_stack_pop(&free_entries), *rest;

	percpu_for_each_index(index) {
		if (node)
			break;
		if (percpu_stack_steal(&free_entries, index, &node) || !node)
			continue;
		for (struct percpu_stack_node *next = node->next; next; next = rest) {
			rest = next->next;
			percpu_stack_push(&free_entries, next);
		}
	}
	return (struct entry *)(void *)node;
}

static void count(uint64_t key)
{
	struct event event = { .key = key };

	/* Most keys are there already: try without an entry first. */
	if (!count_event(tables, &event)) {
		event.spare = spare_entry();
		/* Moved to another CPU meanwhile? Then the key may be there, and the spare entry is left over. */
		if (!count_event(tables, &event)) {
			percpu_counter_inc(&dropped); /* no entry is free */
			return;
		}
		if (event.spare && event.found)
			percpu_stack_push(&free_entries, &event.spare->free);
	}
	percpu_counter_inc(&events);
}

static void step(uint64_t random, int in_handler)
{
	struct event event = { .key = random / 64 % KEYS };
	uint64_t total = 0;

	if (random % 64 > 12) {
		count(event.key);
	} else if (random % 64 > 3) {
		if (forget(tables, &event)) {
			percpu_counter_add(&forgotten, event.found->count);
			percpu_stack_push(&free_entries, &event.found->free);
		}
	} else if (random % 64 > 0) {
		look_up(tables, &event);
	} else if (!in_handler && random % 4096 == 0) {
		/* Not in a handler: in mode none it may have interrupted a holder of this gate (percpu_gate(3)). */
		if (scan((unsigned)(random / 4096 % percpu_copies()), &total))
			wrong("a copy could not be read");
		percpu_counter_inc(&scans);
	}
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	uint64_t total = 0;

	tables = percpu_alloc(sizeof *tables, 64);
	if (!tables || percpu_stack_init(&free_entries) || percpu_counter_init(&events) ||
	    percpu_counter_init(&dropped) || percpu_counter_init(&forgotten) || percpu_counter_init(&scans))
		return 1;
	for (unsigned i = 0; i < ENTRIES; i++)
		percpu_stack_push(&free_entries, &entries[i].free);

	churn_run(argc, argv, step);

	percpu_for_each_index(index)
		if (scan(index, &total))
			wrong("a copy could not be read");
	percpu_describe(&about);
	printf("mode %s: %llu events (and %llu without a free entry), %llu in the tables, %llu forgotten, %llu scans\n",
	       about.mode_name, (unsigned long long)percpu_counter_read(&events),
	       (unsigned long long)percpu_counter_read(&dropped), (unsigned long long)total,
	       (unsigned long long)percpu_counter_read(&forgotten), (unsigned long long)percpu_counter_read(&scans));
	percpu_free(tables);
	return total + percpu_counter_read(&forgotten) == percpu_counter_read(&events) && total > 0 ? 0 : 1;
}
