/* SPDX-License-Identifier: MIT */
/*
 * One of the two translation units of the program, and the plugin: UNIT is its name, WORD what it counts in. C and C++.
 * All have sections of the same names; what they do is not the same.
 */
#include "world.h"

PERCPU_SECTION(add, struct cell, cell, struct call, call)
{
	uint64_t before = cell->word[WORD], a = 1, b = 2, c = 3, d = 4, e = 5, f = 6;

	for (uint64_t i = 0; i < call->turns; i++) {
		__asm__ __volatile__("" : "+r"(a), "+r"(b), "+r"(c));
		__asm__ __volatile__("" : "+r"(d), "+r"(e), "+r"(f));
		a += b, b += c, c += d, d += e, e += f, f += a + i;
	}
	call->seen = a ^ b ^ c ^ d ^ e ^ f;
	return percpu_commit(&cell->word[WORD], before + 1);
}

PERCPU_SECTION(look, struct cell, cell, struct call, call)
{
	uint64_t local[2] __attribute__((aligned(16))) = { cell->word[WORD], 0 }, *hidden = local;

	/* Where the stack is not as the ABI says, this is not either. */
	__asm__("" : "+r"(hidden) : : "memory");
	call->seen = (uintptr_t)hidden % 16;
	return percpu_no_commit();
}

/* Its only call is the last thing it does. */
static __attribute__((noinline)) bool add_as_a_tail(struct cell *cells, struct call *call)
{
	return add(cells, call);
}

static __attribute__((noinline)) bool look_as_a_tail(struct cell *cells, struct call *call)
{
	return look(cells, call);
}

/* Frames that compilers address by all means they have: more aligned than the stack, of a size not known before. */
static __attribute__((noinline)) uint64_t with_a_difficult_frame(struct cell *cells, struct call *call, size_t size,
								 uint64_t n)
{
	volatile uint64_t aligned __attribute__((aligned(256))) = n, copy = n + 1;
	volatile unsigned char *array = (volatile unsigned char *)__builtin_alloca(size);

	array[size - 1] = (unsigned char)n;
	if (!add(cells, call))
		copy++;
	return (uintptr_t)&aligned % 256 + (aligned ^ n) + (uint64_t)(array[size - 1] ^ (unsigned char)n) +
	       (copy - n - 1);
}

/* 3 * n additions to this unit's word, and 1 * n to the common one. Returns how many things were wrong. */
uint64_t UNIT(work)(struct cell *cells, uint64_t n, uint64_t turns)
{
	uint64_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0, bad = 0;
	double x = 0, y = 1;
	struct call call = { turns, 0 };

	for (uint64_t i = 0; i < n; i++) {
		a += 1, b += 2, c += 3, d += 4, e += 5, f += 6, g += 7, h += 8, x += 1, y += 2;
		bad += !add(cells, &call);
		__asm__ __volatile__("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
		__asm__ __volatile__("" : "+r"(e), "+r"(f), "+r"(g), "+r"(h));
		bad += !add_as_a_tail(cells, &call) + !common(cells, &call);
		bad += with_a_difficult_frame(cells, &call, i % 100 + 1, i);
		bad += look_as_a_tail(cells, &call) || call.seen;
	}
	return bad + (a != n) + (b != 2 * n) + (c != 3 * n) + (d != 4 * n) + (e != 5 * n) + (f != 6 * n) +
	       (g != 7 * n) + (h != 8 * n) + !(x >= (double)n && x <= (double)n) +
	       !(y >= (double)(2 * n + 1) && y <= (double)(2 * n + 1));
}

/* How many of n attempts are not sent to the slow path. */
uint64_t UNIT(fast)(struct cell *cells, uint64_t n)
{
	uint64_t done = 0;
	struct call call = { 0, 0 };

	look(cells, &call);
	for (uint64_t i = 0; i < n; i++)
		done += percpu__try_c(&look__section, cells, &call, PERCPU__BY_ID) == 0;
	return done;
}
