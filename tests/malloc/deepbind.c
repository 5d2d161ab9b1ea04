/* SPDX-License-Identifier: MIT */
/*
 * A plugin that is bound deeply has the same malloc as the program that opens it; and is found where that program is told to
 * look, whoever stands before dlopen.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "subject.h"

int main(void)
{
	void *(*swap)(void *mine);
	char *mine = malloc(1000), *theirs;
	void *plugin;

	subject_begin();
	/* By its name alone: this program's RUNPATH says where. */
	plugin = dlopen("malloc-deepbind-plugin.so", RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
	if (!plugin) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	*(void **)&swap = dlsym(plugin, "deepbind_swap");
	for (int i = 0; i < 1000; i++) {
		theirs = swap(mine);
		if (strcmp(theirs, "theirs"))
			return 1;
		free(theirs);
		mine = malloc(1000);
	}
	free(mine);
	return dlopen("there-is-none.so", RTLD_NOW | RTLD_DEEPBIND) || !strstr(dlerror(), "there-is-none.so");
}
