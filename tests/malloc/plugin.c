/* SPDX-License-Identifier: MIT */
/*
 * A library that malloc-threads loads and unloads again and again: it allocates whenever the dynamic linker calls it, and
 * its thread-local data are large enough that the C library allocates them for each thread that touches them.
 */
#include <stdlib.h>
#include <string.h>

#define OBJECTS 20

static char *from_constructor[OBJECTS];
static __thread char local[20000];

int plugin_use(void);

__attribute__((constructor)) static void construct(void)
{
	for (size_t i = 0; i < OBJECTS; i++) {
		size_t size = 1 + i * i * 10;

		from_constructor[i] = malloc(size);
		if (!from_constructor[i])
			abort();
		memset(from_constructor[i], (int)i, size);
	}
}

__attribute__((visibility("default"))) int plugin_use(void)
{
	int bad = 0;

	for (size_t i = 0; i < sizeof local; i++)
		bad += local[i] != 0;
	memset(local, 1, sizeof local);
	for (size_t i = 0; i < OBJECTS; i++)
		bad += from_constructor[i][0] != (char)i || from_constructor[i][i * i * 10] != (char)i;
	return bad;
}

__attribute__((destructor)) static void destruct(void)
{
	for (size_t i = 0; i < OBJECTS; i++)
		free(from_constructor[i]);
}
