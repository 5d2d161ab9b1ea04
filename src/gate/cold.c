/* SPDX-License-Identifier: MIT */
/*
 * The door through which counters reach the slow path.
 *
 * Its callers are inline assembly: the compiler knows that registers change, not that a call happens. So the stack may
 * be misaligned, and the result must be 0 (see percpu__count in <percpu/ops.h>).
 */
#include <stdlib.h>

#include <percpu/ops.h>

void percpu__unreachable(void)
{
	abort();
}

#if defined __x86_64__
#define DOOR(name)                                                                                                     \
	__asm__(".pushsection .text.unlikely, \"ax\", @progbits\n\t"                                                   \
		".globl " #name "_cold\n\t.type " #name "_cold, @function\n" #name "_cold:\n\t"                        \
		".cfi_startproc\n\tendbr64\n\tpushq %rbp\n\t.cfi_def_cfa_offset 16\n\t.cfi_offset %rbp, -16\n\t"       \
		"movq %rsp, %rbp\n\t.cfi_def_cfa_register %rbp\n\tandq $-16, %rsp\n\t"                                 \
		"call " #name "@PLT\n\txorl %eax, %eax\n\t"                                                            \
		"leave\n\t.cfi_def_cfa %rsp, 8\n\tret\n\t"                                                             \
		".cfi_endproc\n\t.size " #name "_cold, . - " #name "_cold\n\t.popsection")
DOOR(percpu__slow_count);
#elif defined __aarch64__
#define DOOR(name)                                                                                                     \
	__asm__(".pushsection .text.unlikely, \"ax\", %progbits\n\t"                                                   \
		".globl " #name "_cold\n\t.type " #name "_cold, %function\n" #name "_cold:\n\t"                        \
		".cfi_startproc\n\thint #34\n\tstp x29, x30, [sp, #-16]!\n\t.cfi_def_cfa_offset 16\n\t"                \
		".cfi_offset x29, -16\n\t.cfi_offset x30, -8\n\tmov x29, sp\n\t"                                       \
		"bl " #name "\n\tmov x0, #0\n\t"                                                                       \
		"ldp x29, x30, [sp], #16\n\t.cfi_restore x29\n\t.cfi_restore x30\n\t.cfi_def_cfa_offset 0\n\tret\n\t"  \
		".cfi_endproc\n\t.size " #name "_cold, . - " #name "_cold\n\t.popsection")
DOOR(percpu__slow_count);
#endif
