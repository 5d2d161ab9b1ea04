/* SPDX-License-Identifier: MIT */
/* dladdr(3) without the loader's lock where it has answered before, see dladdr.c. */
#ifndef PERCPU_SRC_LIBC_DLADDR_H
#define PERCPU_SRC_LIBC_DLADDR_H

#include <dlfcn.h>

#include <percpu/base.h>

/* As the C library's. Takes no lock for an address that was asked for before, in an object that the process began with. */
PERCPU_HIDDEN int percpu__dladdr(const void *address, Dl_info *info);

#endif
