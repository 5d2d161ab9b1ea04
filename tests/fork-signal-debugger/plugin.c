/* SPDX-License-Identifier: MIT */
/* What dlclose.c loads and unloads: sections in an object of its own. */
#include <percpu.h>

void plugin_work(uint64_t *word, unsigned n);

__attribute__((visibility("default"))) void plugin_work(uint64_t *word, unsigned n)
{
	while (n--)
		percpu_this_add(word, 1);
}
