/* SPDX-License-Identifier: MIT */
/*
 * Sections whose bodies are C functions, as single attempts and behind their public functions: the operations of
 * sections.c, so that the same data and the same rivals tell whether they are exact. Some bodies loop.
 */
#include <percpu/csection.h>

#include "harness.h"

#define NOINLINE static __attribute__((noinline))

typedef uint64_t __attribute__((aligned(1), may_alias)) word_of_bytes;

/* Keeps a loop a loop. */
#define TURN() __asm__ __volatile__("")

/* The copy of another object in the same area, by its distance from the one that the body got. */
#define BESIDE(word, c, object) ((char *)(word) + ((uintptr_t)(object) - (uintptr_t)(c)->p))

/* Every section by concurrency id and by CPU number. */
#define BOTH(DEFINE) DEFINE(PERCPU_SECTION, id) DEFINE(PERCPU_SECTION_BY_CPU, cpu)

#define DEFINE_BODIES(SECTION, v)                                                                                      \
	SECTION(add_##v, uint64_t, word, struct call, c)                                                               \
	{                                                                                                              \
		uint64_t sum = *word;                                                                                  \
                                                                                                                       \
		for (unsigned i = 0; i < 3; i++) {                                                                     \
			sum += i ? c->n / 3 : c->n - c->n / 3 * 2;                                                     \
			TURN();                                                                                        \
		}                                                                                                      \
		return percpu_commit(word, sum);                                                                       \
	}                                                                                                              \
	SECTION(store_if_eq_##v, uint64_t, word, struct call, c)                                                       \
	{                                                                                                              \
		if (*word != c->expected)                                                                              \
			return percpu_no_commit();                                                                     \
		return percpu_commit(word, c->desired);                                                                \
	}                                                                                                              \
	SECTION(store_if_eq2_##v, uint64_t, word, struct call, c)                                                      \
	{                                                                                                              \
		if (*word != c->expected || *(uint64_t *)(void *)BESIDE(word, c, c->q) != c->expected2)                \
			return percpu_no_commit();                                                                     \
		return percpu_commit(word, c->desired);                                                                \
	}                                                                                                              \
	SECTION(copy_store_##v, uint64_t, word, struct call, c)                                                        \
	{                                                                                                              \
		char *to = BESIDE(word, c, c->dst);                                                                    \
		size_t i = 0;                                                                                          \
                                                                                                                       \
		if (*word != c->expected)                                                                              \
			return percpu_no_commit();                                                                     \
		for (; i + 8 <= c->len; i += 8) {                                                                      \
			*(word_of_bytes *)(void *)(to + i) = *(const word_of_bytes *)(const void *)(c->src + i);       \
			TURN();                                                                                        \
		}                                                                                                      \
		for (; i < c->len; i++) {                                                                              \
			to[i] = (char)c->src[i];                                                                       \
			TURN();                                                                                        \
		}                                                                                                      \
		return percpu_commit(word, c->desired);                                                                \
	}                                                                                                              \
	SECTION(take_##v, uint64_t, head, struct call, c)                                                              \
	{                                                                                                              \
		c->out = *head;                                                                                        \
		if (c->out == c->nil)                                                                                  \
			return percpu_no_commit();                                                                     \
		return percpu_commit(head, *(uint64_t *)(c->out + c->link_offset));                                    \
	}                                                                                                              \
	SECTION(put_##v, uint64_t, head, struct call, c)                                                               \
	{                                                                                                              \
		*c->last = *head;                                                                                      \
		return percpu_commit(head, c->first);                                                                  \
	}                                                                                                              \
	SECTION(exchange_##v, uint64_t, word, struct call, c)                                                          \
	{                                                                                                              \
		c->out = *word;                                                                                        \
		return percpu_commit(word, c->first);                                                                  \
	}
BOTH(DEFINE_BODIES)

#define DEFINE_RUN(name)                                                                                               \
	NOINLINE void run_##name(struct call *c)                                                                       \
	{                                                                                                              \
		c->rc = name(c->p, c) ? PERCPU__DONE : PERCPU__DIFFERS;                                                \
	}
#define DEFINE_OPERATION(name)                                                                                         \
	DEFINE_RUN(name)                                                                                               \
	NOINLINE void try_##name(struct call *c)                                                                       \
	{                                                                                                              \
		uintptr_t slot = percpu__try_c(&name##__section, c->p, c, name##__section.by);                         \
                                                                                                                       \
		if (slot == PERCPU__LEFT_WORD)                                                                         \
			finish(); /* the ordinary call that an attempt must have behind it */                          \
		c->rc = slot == PERCPU__LEFT_WORD ? PERCPU__LEFT : slot ? PERCPU__DONE : PERCPU__DIFFERS;              \
	}
#define DEFINE_OPERATIONS(SECTION, v)                                                                                  \
	DEFINE_OPERATION(add_##v)                                                                                      \
	DEFINE_OPERATION(store_if_eq_##v)                                                                              \
	DEFINE_OPERATION(store_if_eq2_##v)                                                                             \
	DEFINE_OPERATION(copy_store_##v)                                                                               \
	DEFINE_OPERATION(take_##v)                                                                                     \
	DEFINE_OPERATION(put_##v)                                                                                      \
	DEFINE_RUN(exchange_##v)
BOTH(DEFINE_OPERATIONS)

/* A section's first use finds its tail, out of line; an attempt must know it already. */
static void find(struct percpu__c_section *section)
{
	for (const struct percpu__c_record *r = section->records; r != section->records_end; r++)
		if (r->body == section->body)
			section->entry = r->entry;
}

#define FIND(SECTION, v)                                                                                               \
	find(&add_##v##__section);                                                                                     \
	find(&store_if_eq_##v##__section);                                                                             \
	find(&store_if_eq2_##v##__section);                                                                            \
	find(&copy_store_##v##__section);                                                                              \
	find(&take_##v##__section);                                                                                    \
	find(&put_##v##__section);
__attribute__((constructor)) static void find_each(void)
{
	BOTH(FIND)
}

#define WORD(name_, kind_, v, by_)                                                                                     \
	{ .name = "try " #name_ " in C, " #v,                                                                          \
	  .kind = &kind_,                                                                                              \
	  .run = try_##name_##_##v,                                                                                    \
	  .rival = run_##name_##_##v,                                                                                  \
	  .indexed = by_,                                                                                              \
	  .tries = true },                                                                                             \
	{                                                                                                              \
		.name = #name_ " in C, " #v, .kind = &kind_, .run = run_##name_##_##v, .rival = run_##name_##_##v,     \
		.indexed = by_                                                                                         \
	}
#define LIST(name_, kind_, v, by_)                                                                                     \
	{ .name = "try " #name_ " in C, " #v,                                                                          \
	  .kind = &kind_,                                                                                              \
	  .run = try_##name_##_##v,                                                                                    \
	  .indexed = by_,                                                                                              \
	  .take = run_take_##v,                                                                                        \
	  .put = run_put_##v,                                                                                          \
	  .exchange = run_exchange_##v,                                                                                \
	  .tries = true },                                                                                             \
	{                                                                                                              \
		.name = #name_ " in C, " #v, .kind = &kind_, .run = run_##name_##_##v, .indexed = by_,                 \
		.take = run_take_##v, .put = run_put_##v, .exchange = run_exchange_##v                                 \
	}
#define ENTRIES(v, by_)                                                                                                \
	WORD(add, sum_kind, v, by_), WORD(store_if_eq, store_kind, v, by_), WORD(store_if_eq2, store2_kind, v, by_),   \
		WORD(copy_store, copy_kind, v, by_), LIST(take, take_kind, v, by_), LIST(put, chain_kind, v, by_),     \
	{                                                                                                              \
		.name = "exchange in C, " #v, .kind = &exchange_kind, .run = run_exchange_##v,                         \
		.exchange = run_exchange_##v, .indexed = by_                                                           \
	}

const struct entry entries[] = { ENTRIES(id, PERCPU__BY_ID), ENTRIES(cpu, PERCPU__BY_CPU) };
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = false;
/* The bodies, by concurrency id and by CPU number. */
const unsigned only_sections = 14;
