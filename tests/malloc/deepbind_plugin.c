/* SPDX-License-Identifier: MIT */
/* The plugin of deepbind.c: frees what the program has, and gives it something of its own. */
#include <stdlib.h>
#include <string.h>

void *deepbind_swap(void *mine);

__attribute__((visibility("default"))) void *deepbind_swap(void *mine)
{
	free(mine);
	return strdup("theirs");
}
