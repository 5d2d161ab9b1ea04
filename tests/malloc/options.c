/* SPDX-License-Identifier: MIT */
/*
 * What options of the allocator do to blocks: malloc-options zero|random|plain, with PERCPU_MALLOC set accordingly. (Those about
 * statistics and samples are tested elsewhere, and check by malloc-abuse.)
 */
#include <malloc.h>

#include "subject.h"

#define MIB ((size_t)1 << 20)

static int failures;

static void check(bool good, const char *what, size_t size)
{
	if (good)
		return;
	fprintf(stderr, "%s of %zu bytes: not zero\n", what, size);
	failures++;
}

static bool is_zero(void *p)
{
	size_t room = malloc_usable_size(p);

	return p && subject_not_zero(p, room) == room;
}

/* Whatever the memory held before: each size comes thrice, and is full of ones when it goes. */
static void zero(void)
{
	for (size_t size = 1; size < 4 * MIB; size = size * 3 / 2 + 1) {
		for (int i = 0; i < 3; i++) {
			size_t align = (size_t)32 << i * 4;
			void *plain = malloc(size), *aligned = memalign(align, size), *cleared = calloc(1, size);
			unsigned char *grown = malloc(size);

			check(is_zero(plain), "malloc", size);
			check(is_zero(aligned), "memalign", size);
			check(is_zero(cleared), "calloc", size);
			memset(grown, 0xff, size);
			grown = realloc(grown, 2 * size + 100);
			check(grown && subject_not_zero(grown, size) == 0, "contents after realloc", size);
			check(subject_not_zero(grown + size, malloc_usable_size(grown) - size) ==
				      malloc_usable_size(grown) - size,
			      "what realloc adds", size);
			memset(plain, 0xff, malloc_usable_size(plain));
			memset(aligned, 0xff, malloc_usable_size(aligned));
			memset(cleared, 0xff, malloc_usable_size(cleared));
			memset(grown, 0xff, malloc_usable_size(grown));
			free(plain);
			free(aligned);
			free(cleared);
			free(grown);
		}
	}
}

/* How many of a thousand blocks lie right behind the one before. */
static int neighbours(void)
{
	static char *blocks[1000];
	int sum = 0;

	for (size_t i = 0; i < SUBJECT_COUNT(blocks); i++) {
		blocks[i] = malloc(subject_opaque(64));
		sum += i && blocks[i] - blocks[i - 1] == 64;
	}
	for (size_t i = 0; i < SUBJECT_COUNT(blocks); i++)
		free(blocks[i]);
	return sum;
}

int main(int argc, char **argv)
{
	int found;

	subject_begin();
	if (argc != 2)
		return 2;
	if (strcmp(argv[1], "zero") == 0) {
		zero();
		return failures != 0;
	}
	found = neighbours();
	fprintf(stderr, "%d of 999 blocks lie behind the one before\n", found);
	return strcmp(argv[1], "random") == 0 ? found > 300 : found < 600;
}
