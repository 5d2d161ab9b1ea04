/* SPDX-License-Identifier: MIT */
/* Which file a program name means, and whether an object can be preloaded into it. */
#ifndef PERCPU_CLI_TARGET_H
#define PERCPU_CLI_TARGET_H

/* What is to be preloaded: what counts calls, the allocator, or functions of the C library alone. */
enum target_use { TARGET_COUNT, TARGET_ALLOCATE, TARGET_LIBC };

/*
 * Finds the file as execvp(3) does. Returns 0 and sets @path, which is to be freed; or an exit status when it has complained.
 * A program that has a malloc of its own is told about, and taken.
 */
int target_find(const char *name, enum target_use use, char **path);

#endif
