/* SPDX-License-Identifier: MIT */
/* dl_iterate_phdr(3) without the loader's lock, see phdr.c. */
#ifndef PERCPU_SRC_LIBC_PHDR_H
#define PERCPU_SRC_LIBC_PHDR_H

#include <link.h>
#include <stdbool.h>

#include <percpu/base.h>

/* As the C library's. Takes no lock while the objects that the process began with are the only ones. */
PERCPU_HIDDEN int percpu__dl_iterate_phdr(int (*callback)(struct dl_phdr_info *, size_t, void *), void *data);

/* The C library's, by a jump. */
PERCPU_HIDDEN int percpu__dl_iterate_phdr_behind(int (*callback)(struct dl_phdr_info *, size_t, void *), void *data);

/* Whether the program's callbacks may run in several threads at once, as its environment says. Constant after construction. */
PERCPU_HIDDEN extern bool percpu__phdr_parallel;

/* Whether an address lies in one of these, which are never unloaded; false where that is not known. */
PERCPU_HIDDEN bool percpu__is_initial(const void *address);

#endif
