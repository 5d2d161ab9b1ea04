/* SPDX-License-Identifier: MIT */
/*
 * Allocations, for a debugger to step through (steps.py). Only they are: what the heap does at its start is done before, and
 * where there is no memory it looks into what each index has, which takes as long as there are CPUs. Fails if any block is
 * not what it should be.
 */
#include <stdint.h>
#include <string.h>

#include <percpu.h>
#include <percpu/malloc.h>

#include "steps.h"

#define BATCH 40 /* more than one magazine brings at once */

static bool holds(const char *block, size_t size, char value)
{
	for (size_t i = 0; i < size; i++)
		if (block[i] != value)
			return false;
	return true;
}

static void small(void)
{
	const size_t size = 64;
	char *blocks[BATCH], *one, *two;

	/* At full speed: whatever its section finds there, a step later it is aborted. */
	one = percpu_malloc(size);
	percpu_malloc_free(one);
	STEP("malloc", one = percpu_malloc(size));
	expect(one && (uintptr_t)one % 16 == 0);
	memset(one, 1, size);
	STEP("malloc once more", two = percpu_malloc(size));
	expect(two && two != one);
	memset(two, 2, size);
	expect(holds(one, size, 1));
	STEP("free", percpu_malloc_free(one));
	STEP("free of the other", percpu_malloc_free(two));

	/* So many that magazines are refilled and emptied, some of it in steps. */
	for (int i = 0; i < BATCH; i++) {
		if (i % 20)
			blocks[i] = percpu_malloc(size);
		else
			STEP("malloc of many", blocks[i] = percpu_malloc(size));
		expect(blocks[i]);
		memset(blocks[i], i, size);
	}
	for (int i = 0; i < BATCH; i++) {
		expect(holds(blocks[i], size, (char)i));
		if (i % 20)
			percpu_malloc_free(blocks[i]);
		else
			STEP("free of many", percpu_malloc_free(blocks[i]));
	}
}

static void others(void)
{
	char *block;

	STEP("calloc", block = percpu_calloc(10, 50));
	expect(block && holds(block, 500, 0));
	memset(block, 3, 500);
	STEP("realloc", block = percpu_realloc(block, 2000));
	expect(block && holds(block, 500, 3));
	STEP("free", percpu_malloc_free(block));
	STEP("memalign", block = percpu_memalign(1024, 100));
	expect(block && (uintptr_t)block % 1024 == 0);
	STEP("free", percpu_malloc_free(block));
	STEP("malloc of much", block = percpu_malloc(1000000));
	expect(block);
	block[0] = block[999999] = 4;
	STEP("realloc of much", block = percpu_realloc(block, 2000000));
	expect(block && block[0] == 4 && block[999999] == 4);
	STEP("free of much", percpu_malloc_free(block));
}

int main(void)
{
	struct percpu_description about;
	void *warm[] = { percpu_malloc(64), percpu_malloc(1000000) };

	for (size_t i = 0; i < sizeof warm / sizeof *warm; i++) {
		expect(warm[i]);
		percpu_malloc_free(warm[i]);
	}
	small();
	others();
	percpu_describe(&about);
	fprintf(stderr, "mode %s, %u wrong\n", about.mode_name, failed);
	return failed != 0;
}
