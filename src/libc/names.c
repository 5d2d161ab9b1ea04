/* SPDX-License-Identifier: MIT */
/* The functions by the C library's names; each part's are in its own file, as libc/NAME_names.c, or here where they are few. */
#include <percpu/base.h>

typedef int percpu__libc_names;
