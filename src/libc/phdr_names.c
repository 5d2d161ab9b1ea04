/* SPDX-License-Identifier: MIT */
/* The loader's functions by the C library's names. */
#include "libc/dladdr.h"
#include "libc/phdr.h"

/* Jumps, so that the C library's function, which may follow, sees the caller. */
__attribute__((visibility("default"))) int dl_iterate_phdr(int (*callback)(struct dl_phdr_info *, size_t, void *),
							   void *data)
{
	if (percpu__phdr_parallel)
		return percpu__dl_iterate_phdr(callback, data);
	return percpu__dl_iterate_phdr_behind(callback, data);
}

__attribute__((visibility("default"))) int dladdr(const void *address, Dl_info *info)
{
	return percpu__dladdr(address, info);
}
