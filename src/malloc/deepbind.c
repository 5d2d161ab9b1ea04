/* SPDX-License-Identifier: MIT */
/*
 * Objects that are opened with RTLD_DEEPBIND, as PHP opens its extensions, look for a function in themselves and what they
 * name before they look at what is preloaded. They would find the C library's malloc, free to it what the program has from
 * us, and die. So nothing is bound in that way here.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The C library looks at its caller to know whose paths a name is searched in: the last call is a jump, which leaves that as it
 * was. (The compiler makes it one; tests/malloc/deepbind.c looks.)
 */
__attribute__((visibility("default"))) void *dlopen(const char *file, int mode)
{
	static uintptr_t known;
	uintptr_t next = __atomic_load_n(&known, __ATOMIC_RELAXED);

	if (!next) {
		next = (uintptr_t)dlsym(RTLD_NEXT, "dlopen");
		if (!next)
			return NULL;
		__atomic_store_n(&known, next, __ATOMIC_RELAXED);
	}
	return ((void *(*)(const char *, int))next)(file, mode & ~RTLD_DEEPBIND);
}
