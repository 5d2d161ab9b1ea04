/* SPDX-License-Identifier: MIT */
/* What the programs for guests share: checks that are counted, the mode that init asked for, random numbers. */
#ifndef PERCPU_TESTS_ARCH_H
#define PERCPU_TESTS_ARCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <percpu.h>

static unsigned arch_failures;

/* One line for each thing tested; the numbers only where they differ. */
static inline void expect_equal(const char *what, uint64_t got, uint64_t wanted)
{
	if (got == wanted) {
		printf("ok %s\n", what);
		return;
	}
	printf("FAIL %s: %llu instead of %llu\n", what, (unsigned long long)got, (unsigned long long)wanted);
	arch_failures++;
}

static inline void expect(const char *what, bool holds)
{
	printf("%s %s\n", holds ? "ok" : "FAIL", what);
	arch_failures += !holds;
}

static inline void must(const char *what, bool holds)
{
	if (holds)
		return;
	printf("FAIL %s\n", what);
	exit(1);
}

/* The mode that this run must be in: set by init, or whatever it is where nobody asked. */
static inline enum percpu_mode arch_mode(void)
{
	struct percpu_description about;
	const char *wanted = getenv("PERCPU_TEST_MODE");

	must("describe", percpu_describe(&about) == 0);
	if (wanted && strcmp(wanted, about.mode_name) != 0) {
		printf("FAIL mode is %s instead of %s: %s\n", about.mode_name, wanted, about.reason);
		exit(1);
	}
	return about.mode;
}

static inline uint32_t random_of(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

#endif
