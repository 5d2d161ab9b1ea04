/* SPDX-License-Identifier: MIT */
/*
 * Every section of <percpu/section.h>, in all four variants, as a single attempt and behind its public operation, and
 * every operation of the objects that are built on them. Each function here holds one instance of its section; the
 * library's own instances, for further attempts, are reached behind those of the public operations.
 */
#include "harness.h"

#define NOINLINE static __attribute__((noinline))

#define VARIANTS(X)                                                                                                    \
	X(id_relaxed, percpu_this, , PERCPU__BY_ID, PERCPU__RELAXED)                                                   \
	X(id_release, percpu_this, _release, PERCPU__BY_ID, PERCPU__RELEASE)                                           \
	X(cpu_relaxed, percpu_this_cpu, , PERCPU__BY_CPU, PERCPU__RELAXED)                                             \
	X(cpu_release, percpu_this_cpu, _release, PERCPU__BY_CPU, PERCPU__RELEASE)

static void done(struct call *c)
{
	c->rc = PERCPU__DONE;
}

static void done_if(struct call *c, bool did)
{
	c->rc = did ? PERCPU__DONE : PERCPU__DIFFERS;
}

#define FUNCTIONS(v, prefix, suffix, by, order)                                                                        \
	NOINLINE void try_add_##v(struct call *c)                                                                      \
	{                                                                                                              \
		c->rc = percpu__try_add(c->p, c->n, by, order);                                                        \
	}                                                                                                              \
	NOINLINE void add_##v(struct call *c)                                                                          \
	{                                                                                                              \
		prefix##_add##suffix(c->p, c->n);                                                                      \
		done(c);                                                                                               \
	}                                                                                                              \
	NOINLINE void try_add_offset_##v(struct call *c)                                                               \
	{                                                                                                              \
		c->rc = percpu__try_add_offset(c->p, c->offset, c->n, by, order);                                      \
	}                                                                                                              \
	NOINLINE void add_offset_##v(struct call *c)                                                                   \
	{                                                                                                              \
		prefix##_add_offset##suffix(c->p, c->offset, c->n);                                                    \
		done(c);                                                                                               \
	}                                                                                                              \
	NOINLINE void try_store_if_eq_##v(struct call *c)                                                              \
	{                                                                                                              \
		c->rc = percpu__try_store_if_eq(c->p, c->expected, c->desired, by, order);                             \
	}                                                                                                              \
	NOINLINE void store_if_eq_##v(struct call *c)                                                                  \
	{                                                                                                              \
		done_if(c, prefix##_store_if_eq##suffix(c->p, c->expected, c->desired));                               \
	}                                                                                                              \
	NOINLINE void try_store_if_eq2_##v(struct call *c)                                                             \
	{                                                                                                              \
		c->rc = percpu__try_store_if_eq2(c->p, c->expected, c->q, c->expected2, c->desired, by, order);        \
	}                                                                                                              \
	NOINLINE void store_if_eq2_##v(struct call *c)                                                                 \
	{                                                                                                              \
		done_if(c, prefix##_store_if_eq2##suffix(c->p, c->expected, c->q, c->expected2, c->desired));          \
	}                                                                                                              \
	NOINLINE void try_copy_store_##v(struct call *c)                                                               \
	{                                                                                                              \
		c->rc = percpu__try_copy_store(c->p, c->expected, c->dst, c->src, c->len, c->desired, by, order);      \
	}                                                                                                              \
	NOINLINE void copy_store_##v(struct call *c)                                                                   \
	{                                                                                                              \
		done_if(c, prefix##_copy_store##suffix(c->p, c->expected, c->dst, c->src, c->len, c->desired));        \
	}                                                                                                              \
	NOINLINE void try_follow_##v(struct call *c)                                                                   \
	{                                                                                                              \
		c->out = percpu__try_follow(c->p, c->nil, (ptrdiff_t)c->link_offset, by, order);                       \
		c->rc = c->out == PERCPU__LEFT_WORD ? PERCPU__LEFT                                                     \
			: c->out == c->nil          ? PERCPU__DIFFERS                                                  \
						    : PERCPU__DONE;                                                             \
	}                                                                                                              \
	NOINLINE void follow_##v(struct call *c)                                                                       \
	{                                                                                                              \
		done_if(c, prefix##_follow##suffix(c->p, c->nil, (ptrdiff_t)c->link_offset, &c->out));                 \
	}                                                                                                              \
	NOINLINE void pop_##v(struct call *c)                                                                          \
	{                                                                                                              \
		c->out = (uintptr_t)prefix##_pop##suffix((void **)c->p, c->link_offset);                               \
		done_if(c, c->out);                                                                                    \
	}                                                                                                              \
	NOINLINE void try_push_##v(struct call *c)                                                                     \
	{                                                                                                              \
		c->rc = percpu__try_push(c->p, c->first, c->last, by, order);                                          \
	}                                                                                                              \
	NOINLINE void push_##v(struct call *c)                                                                         \
	{                                                                                                              \
		prefix##_push##suffix((void **)c->p, (void *)c->first, c->link_offset);                                \
		done(c);                                                                                               \
	}                                                                                                              \
	/* c->last is the address of the last node's link, which lies at its start. */                                 \
	NOINLINE void push_chain_##v(struct call *c)                                                                   \
	{                                                                                                              \
		prefix##_push_chain##suffix((void **)c->p, (void *)c->first, c->last, 0);                              \
		done(c);                                                                                               \
	}                                                                                                              \
	NOINLINE void exchange_##v(struct call *c)                                                                     \
	{                                                                                                              \
		c->out = prefix##_xchg##suffix(c->p, c->first);                                                        \
		done(c);                                                                                               \
	}
VARIANTS(FUNCTIONS)

#define COUNT_FUNCTIONS(v, by)                                                                                         \
	NOINLINE void try_count_##v(struct call *c)                                                                    \
	{                                                                                                              \
		c->rc = percpu__try_count(c->p, c->n, by);                                                             \
	}                                                                                                              \
	NOINLINE void try_count_release_##v(struct call *c)                                                            \
	{                                                                                                              \
		c->rc = percpu__try_count_release(c->p, c->n, by);                                                     \
	}                                                                                                              \
	NOINLINE void try_count_open_##v(struct call *c)                                                               \
	{                                                                                                              \
		c->rc = percpu__try_count_open(c->p, c->n, c->open, by);                                               \
	}                                                                                                              \
	NOINLINE void count_##v(struct call *c)                                                                        \
	{                                                                                                              \
		percpu__count(c->p, c->n, by);                                                                         \
		done(c);                                                                                               \
	}
COUNT_FUNCTIONS(id, PERCPU__BY_ID)
COUNT_FUNCTIONS(cpu, PERCPU__BY_CPU)

NOINLINE void counter_add(struct call *c)
{
	percpu_counter_add(c->counter, c->n);
	done(c);
}

NOINLINE void counter_inc(struct call *c)
{
	percpu_counter_inc(c->counter);
	done(c);
}

NOINLINE void counter_add_shared(struct call *c)
{
	percpu_counter_add_shared(c->counter, c->n);
	done(c);
}

NOINLINE void histogram_record(struct call *c)
{
	percpu_histogram_record(c->histogram, 77);
	done(c);
}

NOINLINE void histogram_record_shared(struct call *c)
{
	percpu_histogram_record_shared(c->histogram, 77);
	done(c);
}

NOINLINE void stack_push(struct call *c)
{
	percpu_stack_push(c->stack, (struct percpu_stack_node *)c->first);
	done(c);
}

NOINLINE void stack_push_chain(struct call *c)
{
	percpu_stack_push_chain(c->stack, (struct percpu_stack_node *)c->first,
				(struct percpu_stack_node *)(void *)c->last);
	done(c);
}

NOINLINE void stack_pop(struct call *c)
{
	c->out = (uintptr_t)percpu_stack_pop(c->stack);
	done_if(c, c->out);
}

NOINLINE void stack_pop_all(struct call *c)
{
	c->out = (uintptr_t)percpu_stack_pop_all(c->stack);
	done_if(c, c->out);
}

/* A constant addend is another operand of the same section. */
NOINLINE void add_constant(struct call *c)
{
	percpu_this_add(c->p, 1000);
	done(c);
}

#define WORDS(name_, kind_, v, by_, ...)                                                                               \
	{ .name = "try_" #name_ " " #v,                                                                                \
	  .kind = &kind_,                                                                                              \
	  .run = try_##name_##_##v,                                                                                    \
	  .rival = name_##_##v,                                                                                        \
	  .indexed = by_,                                                                                              \
	  .tries = true,                                                                                               \
	  __VA_ARGS__ },                                                                                               \
	{                                                                                                              \
		.name = #name_ " " #v, .kind = &kind_, .run = name_##_##v, .rival = name_##_##v, .indexed = by_,       \
		__VA_ARGS__                                                                                            \
	}
#define LIST(name_, kind_, run_, v, by_, ...)                                                                          \
	{                                                                                                              \
		.name = name_ " " #v, .kind = &kind_, .run = run_##_##v, .indexed = by_, .take = follow_##v,           \
		.put = push_chain_##v, .exchange = exchange_##v, __VA_ARGS__                                           \
	}

#define ENTRIES(v, prefix, suffix, by, order)                                                                          \
	WORDS(add, sum_kind, v, by), WORDS(add_offset, sum_kind, v, by, .offset = true),                               \
		WORDS(store_if_eq, store_kind, v, by), WORDS(store_if_eq2, store2_kind, v, by),                        \
		WORDS(copy_store, copy_kind, v, by), LIST("try_follow", take_kind, try_follow, v, by, .tries = true),  \
		LIST("follow", take_kind, follow, v, by, .with_nil = true), LIST("pop", take_kind, pop, v, by),        \
		LIST("try_push", put_kind, try_push, v, by, .tries = true), LIST("push", put_kind, push, v, by),       \
		LIST("push_chain", chain_kind, push_chain, v, by),                                                     \
		{ .name = "xchg " #v,                                                                                  \
		  .kind = &exchange_kind,                                                                              \
		  .run = exchange_##v,                                                                                 \
		  .exchange = exchange_##v,                                                                            \
		  .indexed = by },

#define COUNT(name_, kind_, v, by_)                                                                                    \
	{                                                                                                              \
		.name = #name_ " " #v, .kind = &kind_, .run = name_##_##v, .rival = count_##v, .indexed = by_,         \
		.tries = true, .object = COUNTER                                                                       \
	}

#define STACK(name_, kind_)                                                                                            \
	{                                                                                                              \
		.name = #name_, .kind = &kind_, .run = name_, .indexed = PERCPU__BY_ID, .take = stack_pop,             \
		.put = push_chain_id_relaxed, .exchange = exchange_id_relaxed                                          \
	}

const struct entry entries[] = {
	VARIANTS(ENTRIES) WORDS(count, count_kind, id, PERCPU__BY_ID, .object = COUNTER),
	WORDS(count, count_kind, cpu, PERCPU__BY_CPU, .object = COUNTER),
	COUNT(try_count_release, count_kind, id, PERCPU__BY_ID),
	COUNT(try_count_release, count_kind, cpu, PERCPU__BY_CPU),
	COUNT(try_count_open, unless_kind, id, PERCPU__BY_ID),
	COUNT(try_count_open, unless_kind, cpu, PERCPU__BY_CPU),
	{ .name = "counter_add", .kind = &count_kind, .run = counter_add, .rival = count_id, .object = COUNTER },
	{ .name = "counter_inc",
	  .kind = &count_kind,
	  .run = counter_inc,
	  .rival = count_id,
	  .object = COUNTER,
	  .n = 1 },
	{ .name = "counter_add_shared",
	  .kind = &count_kind,
	  .run = counter_add_shared,
	  .rival = count_cpu,
	  .indexed = PERCPU__BY_CPU,
	  .object = COUNTER },
	{ .name = "histogram_record",
	  .kind = &count_kind,
	  .run = histogram_record,
	  .rival = count_id,
	  .object = HISTOGRAM,
	  .n = 1 },
	{ .name = "histogram_record_shared",
	  .kind = &count_kind,
	  .run = histogram_record_shared,
	  .rival = count_cpu,
	  .indexed = PERCPU__BY_CPU,
	  .object = HISTOGRAM,
	  .n = 1 },
	{ .name = "add of a constant", .kind = &sum_kind, .run = add_constant, .rival = add_id_relaxed, .n = 1000 },
	STACK(stack_push, put_kind),
	STACK(stack_push_chain, chain_kind),
	STACK(stack_pop, take_kind),
	STACK(stack_pop_all, take_all_kind),
};
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = false;
