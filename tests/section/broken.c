/* SPDX-License-Identifier: MIT */
/*
 * The control of trap.c: sections that are broken on purpose, each in one way, and each of which looks right unless it is
 * interrupted at one certain instruction. Those that are right must not be found wrong.
 */
#include <percpu/csection.h>

#include "harness.h"

#define NOINLINE static __attribute__((noinline))

#define ARMED   PERCPU__DESCRIPTOR PERCPU__A_ARM("3b", PERCPU__A_AREA)
#define LOCATED PERCPU__A_LOCATE(PERCPU__STRIDE_ASM, PERCPU__A_AREA, "4f")
#define ATTEMPT(text)                                                                                                  \
	__asm__ __volatile__ goto(                                                                                     \
		text                                                                                                   \
		:                                                                                                      \
		: [area] "r"(percpu__self), [index] "r"(PERCPU__INDEX(PERCPU__BY_ID)), [object] "r"(object),           \
		  [gate] "r"(distance), [n] "r"(c->n / 2), [all] "r"(c->n), [word] "r"(c->first), [link] "r"(c->last)  \
		: "memory", PERCPU__SCRATCH                                                                            \
		: left)
#define GATE PERCPU__GATE_DISTANCE(c->p, PERCPU__BY_ID)

/* As a public operation without a slow path would. */
#define AGAIN(name)                                                                                                    \
	NOINLINE void name(struct call *c)                                                                             \
	{                                                                                                              \
		do                                                                                                     \
			try_##name(c);                                                                                 \
		while (c->rc == PERCPU__LEFT);                                                                         \
	}

#define BROKEN(name, text, gate_)                                                                                      \
	static inline __attribute__((always_inline)) void try_##name(struct call *c)                                   \
	{                                                                                                              \
		uint64_t *object = c->p;                                                                               \
		uintptr_t distance = gate_;                                                                            \
                                                                                                                       \
		ATTEMPT(text);                                                                                         \
		c->rc = PERCPU__DONE;                                                                                  \
		return;                                                                                                \
left:                                                                                                                  \
		c->rc = PERCPU__LEFT;                                                                                  \
	}                                                                                                              \
	AGAIN(name)

BROKEN(right_add, ARMED "1:\n\t" LOCATED PERCPU__A_ADD("all") PERCPU__LEAVE, GATE)
BROKEN(right_push, ARMED "1:\n\t" LOCATED PERCPU__A_LOAD PERCPU__A_SAVE("link") PERCPU__A_STORE("word") PERCPU__LEAVE,
       GATE)
/* Two stores that others see: an abort between them repeats the first. */
BROKEN(two_stores, ARMED "1:\n\t" LOCATED PERCPU__A_ADD("n") PERCPU__A_ADD("n") PERCPU__LEAVE, GATE)
/* The first instruction is left out: interrupted there, the thread goes on unarmed. */
BROKEN(starts_late, ARMED "nop\n1:\n\t" LOCATED PERCPU__A_ADD("all") PERCPU__LEAVE, GATE)
/* The commit is left out: interrupted in front of it, the thread stores what it computed from old data. */
BROKEN(ends_early,
       ARMED "1:\n\t" LOCATED PERCPU__A_LOAD PERCPU__A_SAVE("link") "2:\n\t" PERCPU__A_STORE("word") PERCPU__LEAVE,
       GATE)
/* An instruction behind the commit is inside: interrupted in front of it, the thread commits again. */
BROKEN(ends_late, ARMED "1:\n\t" LOCATED PERCPU__A_ADD("all") "nop\n" PERCPU__LEAVE, GATE)
/* Looks at a word that is no gate: commits while a holder works. */
BROKEN(ignores_the_gate, ARMED "1:\n\t" LOCATED PERCPU__A_ADD("all") PERCPU__LEAVE, 8)
/* Publishes nothing. */
BROKEN(never_armed, PERCPU__DESCRIPTOR "1:\n\t" LOCATED PERCPU__A_ADD("all") PERCPU__LEAVE, GATE)

/* The same with bodies in C. */
PERCPU_SECTION(add_in_c, uint64_t, word, struct call, c)
{
	return percpu_commit(word, *word + c->n);
}

PERCPU_SECTION(add_halves_in_c, uint64_t, word, struct call, c)
{
	*(volatile uint64_t *)word += c->n / 2;
	return percpu_commit(word, *(volatile uint64_t *)word + c->n / 2);
}

NOINLINE void right_in_c(struct call *c)
{
	add_in_c(c->p, c);
	c->rc = PERCPU__DONE;
}

NOINLINE void two_stores_in_c(struct call *c)
{
	add_halves_in_c(c->p, c);
	c->rc = PERCPU__DONE;
}

/* Says that it was done when it was aborted. */
NOINLINE void hides_its_abort(struct call *c)
{
	try_right_add(c);
	c->rc = PERCPU__DONE;
}

/* Looks at the flag in front of the section: who sets it there and fences is not seen. */
NOINLINE void flag_outside(struct call *c)
{
	if (__atomic_load_n(c->flag, __ATOMIC_ACQUIRE)) {
		c->rc = PERCPU__DIFFERS;
		return;
	}
	do
		c->rc = percpu__try_count_release(c->p, c->n, PERCPU__BY_ID);
	while (c->rc == PERCPU__LEFT);
}

NOINLINE void right_flag(struct call *c)
{
	do
		c->rc = percpu__try_count_open(c->p, c->n, c->open, PERCPU__BY_ID);
	while (c->rc == PERCPU__LEFT && __atomic_load_n(c->open, __ATOMIC_ACQUIRE));
	if (c->rc == PERCPU__LEFT)
		c->rc = PERCPU__DIFFERS;
}

NOINLINE void rival_add(struct call *c)
{
	percpu_this_add(c->p, c->n);
	c->rc = PERCPU__DONE;
}

NOINLINE void rival_push(struct call *c)
{
	percpu_this_push_chain((void **)c->p, (void *)c->first, c->last, 0);
	c->rc = PERCPU__DONE;
}

NOINLINE void rival_take(struct call *c)
{
	uintptr_t node = (uintptr_t)percpu_this_pop((void **)c->p, c->link_offset);

	c->out = node;
	c->rc = node ? PERCPU__DONE : PERCPU__DIFFERS;
}

NOINLINE void rival_exchange(struct call *c)
{
	c->out = percpu_this_xchg(c->p, c->first);
	c->rc = PERCPU__DONE;
}

/* .n is even: two_stores adds it in halves. */
#define SUM(name_)                                                                                                     \
	{                                                                                                              \
		.name = #name_, .kind = &sum_kind, .run = name_, .rival = rival_add, .n = 1000                         \
	}
#define FLAG(name_)                                                                                                    \
	{                                                                                                              \
		.name = #name_, .kind = &unless_kind, .run = name_, .rival = rival_add, .object = COUNTER              \
	}
#define PUSH(name_)                                                                                                    \
	{                                                                                                              \
		.name = #name_, .kind = &put_kind, .run = name_, .take = rival_take, .put = rival_push,                \
		.exchange = rival_exchange                                                                             \
	}

const struct entry entries[] = {
	SUM(right_add),       PUSH(right_push),      SUM(two_stores),  SUM(starts_late),     PUSH(ends_early),
	SUM(ends_late),       SUM(ignores_the_gate), SUM(never_armed), SUM(hides_its_abort), SUM(right_in_c),
	SUM(two_stores_in_c), SUM(hides_its_abort),  FLAG(right_flag), FLAG(flag_outside),
};
const unsigned entry_count = sizeof entries / sizeof *entries;
const bool must_be_wrong = true;
