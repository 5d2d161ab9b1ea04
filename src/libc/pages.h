/* SPDX-License-Identifier: MIT */
/* Memory for what no malloc may be asked for: a program's own malloc may want the time. */
#ifndef PERCPU_SRC_LIBC_PAGES_H
#define PERCPU_SRC_LIBC_PAGES_H

#include <stddef.h>
#include <sys/mman.h>

#include "base/sys.h"

/* Whole pages of zeroes; NULL: there are none. */
static inline void *percpu__pages_get(size_t bytes)
{
	long at = percpu__sys6(SYS_mmap, 0, (long)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return at < 0 && at > -4096 ? NULL : (void *)at;
}

static inline void percpu__pages_put(void *at, size_t bytes)
{
	percpu__sys4(SYS_munmap, (long)at, (long)bytes, 0, 0);
}

#endif
