/* SPDX-License-Identifier: MIT */
/*
 * Shared objects that contain sections stay mapped for ever.
 *
 * A thread's area goes on pointing at the descriptor of its last section after that has ended. If the object that holds
 * the descriptor is unloaded, the kernel's next look at it (when the thread was preempted, or wakes up) reads unmapped
 * memory and kills the process. A fence at unload makes running threads drop the pointer, but not those that sleep: they
 * look when they wake, which the test of dlclose shows. So each object that uses the headers asks, from a constructor, to
 * be marked as not unloadable; dlclose() then returns success and leaves it mapped.
 */
#include <dlfcn.h>
#include <link.h>
#include <stddef.h>

#include <percpu/section.h>

#include "base/sys.h"

/* Not there in a static program, which unloads nothing. */
#pragma weak dlopen
#pragma weak dladdr1

void percpu__pin(const void *in_object)
{
	static const void *last;
	struct link_map *map;
	Dl_info info;

	/* The constructor runs once for every source file of an object. */
	if (__atomic_exchange_n(&last, in_object, __ATOMIC_RELAXED) == in_object)
		return;
	/* The program itself has no name here, and is never unloaded. */
	if (dlopen && dladdr1 && dladdr1(in_object, &info, (void **)&map, RTLD_DL_LINKMAP) && map->l_name[0])
		(void)dlopen(map->l_name, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
}
