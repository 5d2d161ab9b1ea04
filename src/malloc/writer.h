/* SPDX-License-Identifier: MIT */
/*
 * Text on a file descriptor without allocating, from signal handlers too: a small buffer and write(2).
 *
 * The first write that fails ends it: what comes after is dropped. A pipe that nobody reads and a limit on the size of files
 * raise no signal in the program.
 */
#ifndef PERCPU_SRC_MALLOC_WRITER_H
#define PERCPU_SRC_MALLOC_WRITER_H

#include <stddef.h>
#include <stdint.h>

#include <percpu/base.h>

struct percpu__writer {
	int fd;
	int error;                                          /* -errno of what failed first */
	void (*put)(void *arg, const char *text, size_t n); /* in place of the descriptor, if it is not NULL */
	void *arg;
	size_t n;
	char text[512];
};

PERCPU_HIDDEN void percpu__write_to(struct percpu__writer *w, int fd);
PERCPU_HIDDEN void percpu__write_text(struct percpu__writer *w, const char *text);
PERCPU_HIDDEN void percpu__write_number(struct percpu__writer *w, uint64_t value);
/* In hexadecimal, "0x" in front. */
PERCPU_HIDDEN void percpu__write_address(struct percpu__writer *w, uint64_t value);
/* @over / @under with two decimals; @none if @under is 0. */
PERCPU_HIDDEN void percpu__write_ratio(struct percpu__writer *w, uint64_t over, uint64_t under, const char *none);
/* At the right of @width characters. */
PERCPU_HIDDEN void percpu__write_column(struct percpu__writer *w, uint64_t value, unsigned width);
/* A JSON string of @text, in quotes; what is no printable ASCII is shown as "?". */
PERCPU_HIDDEN void percpu__write_string(struct percpu__writer *w, const char *text);
/* Writes what is left. Returns 0 or -errno. */
PERCPU_HIDDEN int percpu__write_end(struct percpu__writer *w);

/*
 * Opens a file anew for writing, mode 0600; "%p" in @name becomes the process's number. Returns a descriptor that programs
 * which are executed do not get, or -errno.
 */
PERCPU_HIDDEN int percpu__write_open(const char *name);
PERCPU_HIDDEN void percpu__write_close(int fd);

/* "percpu-malloc: WHAT NAME: REASON" on stderr, in one write. @error: -errno; 0: no reason. */
PERCPU_HIDDEN void percpu__write_complaint(const char *what, const char *name, int error);

#endif
