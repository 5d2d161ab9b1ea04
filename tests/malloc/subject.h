/* SPDX-License-Identifier: MIT */
/*
 * What the tests of malloc share. They are ordinary programs: the allocator under test is what LD_PRELOAD brings, and
 * MALLOC_SUBJECT is a part of its file name, so that a preload that failed is not taken for a pass. Without it they test
 * the C library's own. Functions that the subject lacks are an error for ours, and are left out for any other.
 *
 * Bytes of an object are a function of its seed and of where they lie in it, so that a byte from elsewhere, an old one,
 * and a shifted one are all seen.
 */
#ifndef PERCPU_TESTS_MALLOC_SUBJECT_H
#define PERCPU_TESTS_MALLOC_SUBJECT_H

#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUBJECT_COUNT(array) (sizeof(array) / sizeof *(array))
#define SUBJECT_SKIPPED      77   /* what Meson takes for a skip */
#define SUBJECT_MISSING      100  /* exit status */
#define SUBJECT_WHOLE        1024 /* objects up to here bear their pattern in every byte */
#define SUBJECT_STRIDE       1021 /* larger ones at both ends, and a byte in each of so many */

/* A size that the compiler knows nothing about. */
static inline size_t subject_opaque(size_t size)
{
	__asm__("" : "+r"(size));
	return size;
}

/* The file that a symbol comes from, "" for none. */
static inline const char *subject_file(const char *symbol)
{
	void *address = dlsym(RTLD_DEFAULT, symbol);
	Dl_info info;

	return address && dladdr(address, &info) && info.dli_fname ? info.dli_fname : "";
}

/* Whether it is our own allocator, which must have everything. */
static inline bool subject_is_ours(void)
{
	const char *name = getenv("MALLOC_SUBJECT");

	return name && strstr(name, "percpu-malloc");
}

/*
 * Whether it keeps glibc's rules where those ask for more than the standards: glibc's own does, ours must, and so must what
 * stands in for it. Others are held to what is common.
 */
static inline bool subject_is_strict(void)
{
	const char *name = getenv("MALLOC_SUBJECT");

	return !name || !*name || subject_is_ours() || strstr(name, "broken-malloc");
}

/* What an object of this size is aligned to, at least. */
static inline size_t subject_alignment(size_t size)
{
	return size >= 16 || subject_is_strict() ? 16 : 8;
}

static inline bool subject_has(const char *symbol)
{
	return strcmp(subject_file(symbol), subject_file("malloc")) == 0;
}

static inline void subject_begin(void)
{
	const char *name = getenv("MALLOC_SUBJECT");

	if (!name || strstr(subject_file("malloc"), name))
		return;
	fprintf(stderr, "malloc is that of %s, not of %s: was it preloaded?\n", subject_file("malloc"), name);
	exit(SUBJECT_MISSING);
}

/* What counts against RLIMIT_AS; 0 if the kernel does not tell. */
static inline size_t subject_address_space(void)
{
	char text[200] = "";
	int fd = open("/proc/self/statm", O_RDONLY);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	return length <= 0 ? 0 : strtoul(text, NULL, 10) * (size_t)sysconf(_SC_PAGESIZE);
}

/* The same numbers in every run. */
static inline uint64_t subject_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	*state = x;
	return x;
}

/* Small ones most of the time, as programs do. */
static inline size_t subject_size(uint64_t *state)
{
	uint64_t dice = subject_random(state), draw = subject_random(state);

	return dice % 100 < 70   ? draw % 300
	       : dice % 100 < 95 ? draw % 5000
	       : dice % 100 < 99 ? draw % 70000
				 : draw % 700000;
}

static inline unsigned char subject_byte(uint64_t seed, size_t at)
{
	return (unsigned char)(((seed + at) * UINT64_C(0x9e3779b97f4a7c15)) >> 56);
}

/* The place in an object that is looked at after `at`. */
static inline size_t subject_next(size_t at, size_t size)
{
	if (size <= SUBJECT_WHOLE || at < 64 || at >= size - 64)
		return at + 1;
	return at + SUBJECT_STRIDE < size - 64 ? at + SUBJECT_STRIDE : size - 64;
}

static inline void subject_fill(void *object, size_t size, uint64_t seed)
{
	for (size_t at = 0; at < size; at = subject_next(at, size))
		((unsigned char *)object)[at] = subject_byte(seed, at);
}

/*
 * Where one of the first `kept` bytes of an object that was filled as `size` is not what it was, or `kept`. The last of
 * them can be told only if they are within the stretch that bears the pattern.
 */
static inline size_t subject_damage(const void *object, size_t size, uint64_t seed, size_t kept)
{
	for (size_t at = 0; at < kept; at = subject_next(at, size))
		if (((const unsigned char *)object)[at] != subject_byte(seed, at))
			return at;
	return kept;
}

/* The first byte that is not zero, or `size`. */
static inline size_t subject_not_zero(const void *object, size_t size)
{
	const unsigned char *bytes = (const unsigned char *)object;

	for (size_t at = 0; at < size; at++)
		if (bytes[at])
			return at;
	return size;
}

#endif
