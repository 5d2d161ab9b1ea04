/* SPDX-License-Identifier: MIT */
/*
 * What a tracer must know of a machine: the trap instruction, where registers keep the next address, and how far apart
 * instructions can be. One block for each port of <percpu/section.h>.
 */
#ifndef TESTS_SECTION_ARCH_H
#define TESTS_SECTION_ARCH_H

#include <stdint.h>
#include <sys/user.h>

#if defined __x86_64__
typedef struct user_regs_struct machine_regs;
#define TRAP_ASM "int3"
#define TRAP_BYTES                                                                                                     \
	{                                                                                                              \
		0xcc                                                                                                   \
	}
#define TRAP_SIZE   1
#define TRAP_PASSED 1 /* how far behind the trap's address a thread stops */
#define FIXED_WIDTH 0 /* bytes of every instruction, or 0: ask a disassembler */
#define NOP         0x90
/* Instructions of the tail of a section in C until it is armed. */
#ifdef __CET__
#define C_ARMS 4
#else
#define C_ARMS 3
#endif
static inline uintptr_t regs_ip(const machine_regs *regs)
{
	return (uintptr_t)regs->rip;
}
static inline void regs_set_ip(machine_regs *regs, uintptr_t ip)
{
	regs->rip = ip;
}
#elif defined __aarch64__
typedef struct user_regs_struct machine_regs;
#define TRAP_ASM "brk #0"
#define TRAP_BYTES                                                                                                     \
	{                                                                                                              \
		0x00, 0x00, 0x20, 0xd4                                                                                 \
	}
#define TRAP_SIZE   4
#define TRAP_PASSED 0
#define FIXED_WIDTH 4
#define C_ARMS      4
#define NOP         0xd503201f
static inline uintptr_t regs_ip(const machine_regs *regs)
{
	return (uintptr_t)regs->pc;
}
static inline void regs_set_ip(machine_regs *regs, uintptr_t ip)
{
	regs->pc = ip;
}
#else
#error "these tests need to know this machine's trap instruction"
#endif

#endif
