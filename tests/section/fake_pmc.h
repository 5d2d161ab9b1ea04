/* SPDX-License-Identifier: MIT */
/*
 * Counters that no machine needs to have: a load in place of the instruction that reads one. As that instruction is not told
 * about here, what it would do on hardware is not tested. Included before any header of the library.
 */
#ifndef TESTS_SECTION_FAKE_PMC_H
#define TESTS_SECTION_FAKE_PMC_H

#include <stdint.h>

/* The values, and what is added to the page's lock each time one is read, as if the kernel had been there. */
struct fake_pmc {
	uint64_t value[32];
	uint64_t bump;
};
extern struct fake_pmc fake_pmc __attribute__((visibility("hidden")));

#if defined __x86_64__
#define PERCPU__A_PMC                                                                                                  \
	"leaq fake_pmc(%%rip), %%rax\n\tmovl 256(%%rax), %%edx\n\taddl %%edx, 8(%%r8)\n\t"                             \
	"movl 4(%%rax,%%rcx,8), %%edx\n\tmovl (%%rax,%%rcx,8), %%eax\n\t"
#elif defined __aarch64__
#define PERCPU__A_PMC                                                                                                  \
	"adrp x11, fake_pmc\n\tadd x11, x11, :lo12:fake_pmc\n\tldr w12, [x11, #256]\n\tldr w13, [x15, #8]\n\t"         \
	"add w13, w13, w12\n\tstr w13, [x15, #8]\n\tldr x11, [x11, x10, lsl #3]\n\t"
#endif

#endif
