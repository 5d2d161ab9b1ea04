/* SPDX-License-Identifier: MIT */
/* Files: objects themselves, and archives of them. */
#ifndef PERCPU_LINT_INPUT_H
#define PERCPU_LINT_INPUT_H

#include <stddef.h>

/* Called for each object, whose bytes may be changed; a result other than 0 ends the reading. */
typedef int (*object_fn)(void *context, const char *name, void *bytes, size_t size);

/* What @each returned; or -errno, with *why if it is no system error. */
int input_read(const char *file, object_fn each, void *context, const char **why);

#endif
