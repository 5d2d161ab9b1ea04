/* SPDX-License-Identifier: MIT */
/*
 * What programs have in common that a debugger steps through (steps.py): each operation stands between step_begin() and
 * step_end().
 */
#ifndef TESTS_SECTION_STEPS_H
#define TESTS_SECTION_STEPS_H

#include <stdbool.h>
#include <stdio.h>

static const char *now;
static unsigned failed;

__attribute__((noinline)) void step_begin(const char *name)
{
	now = name;
	__asm__ __volatile__("" ::: "memory");
}

__attribute__((noinline)) void step_end(void)
{
	__asm__ __volatile__("" ::: "memory");
}

static void expect(bool right)
{
	if (right)
		return;
	fprintf(stderr, "wrong: %s\n", now);
	failed++;
}

#define STEP(name, ...)                                                                                                \
	do {                                                                                                           \
		step_begin(name);                                                                                      \
		__VA_ARGS__;                                                                                           \
		step_end();                                                                                            \
	} while (0)

#endif
