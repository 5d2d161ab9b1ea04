/* SPDX-License-Identifier: MIT */
/* Bodies as people write them. Those whose names begin with a rule break it. */
#include <percpu/csection.h>

struct node {
	struct node *next;
	uint64_t size;
};
struct shelf {
	struct node *first;
	uint64_t count, other;
	void *slots[32];
};
struct wish {
	struct node *nodes;
	uint64_t want, got;
	void *value;
};

void somebody(void);
extern uint64_t external;
uint64_t global;
uint64_t table[16];

/* Walks, and writes what the caller alone looks at. */
PERCPU_SECTION(take_batch, struct shelf, shelf, struct wish, wish)
{
	struct node *node = shelf->first;

	for (wish->got = 0; node && wish->got < wish->want; wish->got++)
		node = node->next;
	wish->nodes = shelf->first;
	return percpu_commit(&shelf->first, node);
}

/* Writes to the copy where nobody looks yet: at an index that is not counted. */
PERCPU_SECTION(put_slot, struct shelf, shelf, struct wish, wish)
{
	uint64_t at = shelf->count;

	if (at >= sizeof(shelf->slots) / sizeof(*shelf->slots))
		return percpu_no_commit();
	shelf->slots[at] = wish->value;
	return percpu_commit(&shelf->count, at + 1);
}

PERCPU_SECTION_INLINE uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Reads global data, with a helper, and has a local variable of its own. */
PERCPU_SECTION(keep_largest, struct shelf, shelf, struct wish, wish)
{
	uint64_t sizes[2] = { 0, external };

	sizes[wish->want & 1] = global;
	return percpu_commit(&shelf->other, larger(shelf->other, sizes[0] + sizes[1]));
}

PERCPU_SECTION_BY_CPU(sum_list, struct shelf, shelf, struct wish, wish)
{
	uint64_t sum = 0;

	for (struct node *node = shelf->first; node; node = node->next)
		sum += node->size;
	wish->got = sum;
	return percpu_no_commit();
}

PERCPU_SECTION(call_somebody, struct shelf, shelf, struct wish, wish)
{
	if (wish->want)
		somebody();
	return percpu_commit(&shelf->count, shelf->count + 1);
}

PERCPU_SECTION(call_pointer, struct shelf, shelf, struct wish, wish)
{
	((void (*)(void))wish->value)();
	return percpu_commit(&shelf->count, shelf->count + 1);
}

PERCPU_SECTION(store_twice, struct shelf, shelf, struct wish, wish)
{
	shelf->other = wish->want;
	return percpu_commit(&shelf->count, shelf->count + 1);
}

PERCPU_SECTION(store_slot, struct shelf, shelf, struct wish, wish)
{
	void **last = &shelf->slots[31];

	*last = wish->value;
	return percpu_commit(&shelf->count, shelf->count + 1);
}

PERCPU_SECTION(store_global, struct shelf, shelf, struct wish, wish)
{
	global = wish->want;
	return percpu_commit(&shelf->count, shelf->count + 1);
}

PERCPU_SECTION(store_external, struct shelf, shelf, struct wish, wish)
{
	external++;
	return percpu_commit(&shelf->count, shelf->count + wish->want);
}

PERCPU_SECTION(store_table, struct shelf, shelf, struct wish, wish)
{
	table[wish->want & 15] = wish->got;
	return percpu_commit(&shelf->count, shelf->count + 1);
}

#if defined __x86_64__
PERCPU_SECTION(store_atomically, struct shelf, shelf, struct wish, wish)
{
	__atomic_fetch_add(&wish->got, 1, __ATOMIC_RELAXED);
	return percpu_commit(&shelf->count, shelf->count + 1);
}

PERCPU_SECTION(state_x87, struct shelf, shelf, struct wish, wish)
{
	return percpu_commit(&shelf->count, (uint64_t)((long double)shelf->count * 1.5L + (long double)wish->want));
}
#else
/* A call where the compiler asks at run time what the processor has. */
PERCPU_SECTION(store_atomically, struct shelf, shelf, struct wish, wish)
{
	uint64_t old;

	__asm__ __volatile__("ldaxr %0, [%1]" : "=r"(old) : "r"(&wish->got) : "memory");
	__asm__ __volatile__("stxr w9, %0, [%1]" : : "r"(old + 1), "r"(&wish->got) : "memory", "x9");
	return percpu_commit(&shelf->count, shelf->count + 1);
}
#endif

PERCPU_SECTION(jump_away, struct shelf, shelf, struct wish, wish)
{
#if defined __x86_64__
	__asm__ __volatile__("testl %%eax, %%eax\n\tjne somebody" ::: "memory", "cc");
#else
	__asm__ __volatile__("cbz xzr, 1f\n\tb somebody\n1:" ::: "memory");
#endif
	return percpu_commit(&shelf->count, shelf->count + wish->want);
}

PERCPU_SECTION(nested_add, struct shelf, shelf, struct wish, wish)
{
	percpu__try_add(&shelf->other, 1, PERCPU__BY_ID, PERCPU__RELAXED);
	return percpu_commit(&shelf->count, wish->want);
}

uint64_t use(struct shelf *shelves, struct wish *wish)
{
	return (uint64_t)take_batch(shelves, wish) + put_slot(shelves, wish) + keep_largest(shelves, wish) +
	       sum_list(shelves, wish) + call_somebody(shelves, wish) + call_pointer(shelves, wish) +
	       store_twice(shelves, wish) + store_slot(shelves, wish) + store_global(shelves, wish) +
	       store_external(shelves, wish) + store_table(shelves, wish) + store_atomically(shelves, wish) +
#if defined __x86_64__
	       state_x87(shelves, wish) +
#endif
	       jump_away(shelves, wish) + nested_add(shelves, wish);
}
