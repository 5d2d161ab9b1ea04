/* SPDX-License-Identifier: MIT */
/*
 * vfork() and clone(), interposed: tasks that run on their parent's thread-local storage.
 *
 * Such a child finds its parent's rseq area, with CPU and concurrency id filled in, but the kernel serves that area for
 * the parent only: a section in the child would never be aborted. Nothing in memory tells the child from its parent, so
 * the parent marks itself before the child exists: while a child of vfork runs (the parent is suspended), and for ever
 * after a clone that shares memory and thread-local storage without suspending the parent, percpu__self leads to the
 * stand-in and every operation takes the slow path of an unregistered thread.
 *
 * posix_spawn(), system() and popen() need nothing: their children run no code but the C library's. A raw clone system
 * call that shares the parent's thread-local storage cannot be seen from here; see percpu(7).
 */
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include "base/sys.h"
#include "rseq/thread.h"

PERCPU_HIDDEN __attribute__((used)) long percpu__vfork_failed(long rc);
long percpu__vfork_failed(long rc)
{
	errno = (int)-rc;
	return -1;
}

/*
 * The child returns first, and may overwrite the stack below: the return address and the parent's area wait in registers,
 * which the system call preserves for each of the two.
 */
#if defined __x86_64__
__asm__(".pushsection .text\n\t"
	".globl vfork\n\t.type vfork, @function\n\t.p2align 4\n"
	"vfork:\n\t.cfi_startproc\n\tendbr64\n\t"
	"subq $8, %rsp\n\t.cfi_adjust_cfa_offset 8\n\t"
	"call percpu__lend_thread\n\t"
	"addq $8, %rsp\n\t.cfi_adjust_cfa_offset -8\n\t"
	"movq %rax, %rsi\n\t"
	"popq %rdi\n\t.cfi_adjust_cfa_offset -8\n\t.cfi_register %rip, %rdi\n\t"
	"movl $58, %eax\n\tsyscall\n\t"
	"pushq %rdi\n\t.cfi_adjust_cfa_offset 8\n\t.cfi_rel_offset %rip, 0\n\t"
	"testq %rax, %rax\n\tjz 1f\n\t"
	"movq percpu__thread@gottpoff(%rip), %r8\n\tmovq %rsi, %fs:(%r8)\n\t"
	"testq %rax, %rax\n\tjs 2f\n"
	"1:\tret\n"
	"2:\tmovq %rax, %rdi\n\tjmp percpu__vfork_failed\n\t"
	".cfi_endproc\n\t.size vfork, . - vfork\n\t.popsection");
_Static_assert(SYS_vfork == 58, "the number in the code above");
#elif defined __aarch64__
__asm__(".pushsection .text\n\t"
	".globl vfork\n\t.type vfork, %function\n\t.p2align 4\n"
	"vfork:\n\t.cfi_startproc\n\thint #34\n\t" /* bti c */
	"stp x29, x30, [sp, #-16]!\n\t.cfi_adjust_cfa_offset 16\n\t.cfi_rel_offset x29, 0\n\t.cfi_rel_offset x30, 8\n\t"
	"bl percpu__lend_thread\n\tmov x9, x0\n\t"
	"ldp x29, x30, [sp], #16\n\t.cfi_adjust_cfa_offset -16\n\t.cfi_restore x29\n\t.cfi_restore x30\n\t"
	"mov x0, #0x4111\n\tmov x1, #0\n\tmov x2, #0\n\tmov x3, #0\n\tmov x4, #0\n\tmov x8, #220\n\tsvc #0\n\t"
	"cbz x0, 1f\n\t"
	"mrs x10, tpidr_el0\n\tadrp x11, :gottprel:percpu__thread\n\tldr x11, [x11, :gottprel_lo12:percpu__thread]\n\t"
	"str x9, [x10, x11]\n\t"
	"tbnz x0, #63, 2f\n"
	"1:\tret\n"
	"2:\tb percpu__vfork_failed\n\t"
	".cfi_endproc\n\t.size vfork, . - vfork\n\t.popsection");
_Static_assert((CLONE_VM | CLONE_VFORK | 17) == 0x4111 && SYS_clone == 220, "the numbers in the code above");
#endif

#ifdef __GLIBC__
/* The same function under the name that nobody interposes. */
extern int __clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);
PERCPU_API int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);

int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	bool lends = (flags & CLONE_VM) && !(flags & CLONE_SETTLS);
	struct percpu__rseq *area = NULL;
	void *more[3];
	va_list list;
	int rc;

	va_start(list, arg);
	for (int i = 0; i < 3; i++)
		more[i] = va_arg(list, void *);
	va_end(list);
	if (lends) {
		area = percpu__lend_thread();
		/* Who waits for its child lends it its record of RCU too: they never use it at the same time. */
		if (!(flags & CLONE_VFORK))
			percpu__thread.rcu = &percpu__rcu_lent;
	}
	rc = __clone(fn, stack, flags, arg, more[0], more[1], more[2]);
	if (lends && (rc < 0 || (flags & CLONE_VFORK)))
		percpu__self = area;
	if (lends && rc < 0)
		percpu__thread.rcu = &percpu__rcu_newcomer;
	return rc;
}
#endif
