/* SPDX-License-Identifier: MIT */
/*
 * Results in a file: "-" is standard output. A regular file is replaced as a whole, belongs to the user alone, and no symbolic
 * link is followed. Each returns false when it has complained.
 */
#ifndef PERCPU_CLI_FILE_H
#define PERCPU_CLI_FILE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Tells that, and why; an error number. Returns false. */
bool file_failed(const char *name, int error);
/* Whether it can be written, before there is anything to write. */
bool file_check(const char *name);
bool file_put(const char *name, const char *text, size_t n);
/* @root, which is given up. */
bool file_put_json(const char *name, json_t *root);

/* JSON's integers are signed here; what is beyond them becomes the largest. */
json_t *file_number(uint64_t value);
/* "command": the program and its arguments; what is not UTF-8 is shown as "?". */
json_t *file_command(char **argv);
/* "signal" or "exit_status", by what waitpid(2) gave. */
void file_set_end(json_t *root, int status);

#endif
