/* SPDX-License-Identifier: MIT */
/*
 * A program in C with a plugin in C++, whose library it does not see: malloc-cxx-host PLUGIN
 */
#include "subject.h"

int main(int argc, char **argv)
{
	union {
		void *symbol;
		int (*function)(void);
	} plugin;
	void *library;
	int rc;

	subject_begin();
	if (argc != 2)
		return 2;
	if (dlsym(RTLD_DEFAULT, "__cxa_begin_catch")) {
		fprintf(stderr, "the C++ library is here before the plugin is\n");
		return 1;
	}
	library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	plugin.symbol = library ? dlsym(library, "cxx_plugin") : NULL;
	if (!plugin.symbol) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	rc = plugin.function();
	if (rc)
		fprintf(stderr, "expectation %d of the plugin was wrong\n", rc);
	return rc != 0;
}
