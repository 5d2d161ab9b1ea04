/* SPDX-License-Identifier: MIT */
/*
 * A call that no exception of C++ leaves: `try` and `catch (...)`, written down as C++ compilers do it, because C has no words
 * for that.
 *
 * A table says to the C++ library's personality routine that any exception out of the call goes to the landing pad. That
 * routine is there in C++ programs only, so it is asked through one of our own.
 */
#include "malloc/cxx.h"

#define CONTINUE_UNWIND 8 /* of the ABI: there is nothing for it here */

static struct percpu__cxx cxx;

PERCPU_HIDDEN bool percpu__cxx_call(void *with, void (*call)(void *));
PERCPU_HIDDEN percpu__personality percpu__cxx_personality __attribute__((used));
PERCPU_HIDDEN void percpu__cxx_caught(void *exception) __attribute__((used));

int percpu__cxx_personality(int version, int actions, uint64_t class, void *exception, void *context)
{
	return cxx.personality(version, actions, class, exception, context);
}

void percpu__cxx_caught(void *exception)
{
	cxx.begin_catch(exception);
	cxx.end_catch();
}

/*
 * The call and its landing pad, then the call from there, from which nothing comes; all counted from the function's start.
 * One kind of exception is caught: any.
 */
#define TABLE                                                                                                          \
	".pushsection .gcc_except_table, \"a\", %progbits\n\t.p2align 2\n"                                             \
	".Lpercpu__cxx_table:\t.byte 0xff, 0x9b\n\t.uleb128 7f - 6f\n"                                                 \
	"6:\t.byte 1\n\t.uleb128 5f - 4f\n"                                                                            \
	"4:\t.uleb128 0b - percpu__cxx_call, 1b - 0b, 2b - percpu__cxx_call, 1\n\t"                                    \
	".uleb128 2b - percpu__cxx_call, 3b - 2b, 0, 0\n"                                                              \
	"5:\t.byte 1, 0\n\t.p2align 2\n\t.4byte 0\n"                                                                   \
	"7:\t.popsection\n\t"
#define BEGIN                                                                                                          \
	".pushsection .text\n\t.globl percpu__cxx_call\n\t.hidden percpu__cxx_call\n\t"                                \
	".type percpu__cxx_call, %function\n\t.p2align 4\n"                                                            \
	"percpu__cxx_call:\n\t.cfi_startproc\n\t"                                                                      \
	".cfi_personality 0x1b, percpu__cxx_personality\n\t.cfi_lsda 0x1b, .Lpercpu__cxx_table\n\t"
#define END ".cfi_endproc\n\t.size percpu__cxx_call, . - percpu__cxx_call\n\t" TABLE ".popsection"

#if defined __x86_64__
__asm__(BEGIN "endbr64\n\t"
	      "subq $8, %rsp\n\t.cfi_adjust_cfa_offset 8\n"
	      "0:\tcall *%rsi\n"
	      "1:\tmovl $1, %eax\n\tjmp 3f\n"
	      "2:\tendbr64\n\tmovq %rax, %rdi\n\tcall percpu__cxx_caught\n\txorl %eax, %eax\n"
	      "3:\taddq $8, %rsp\n\t.cfi_adjust_cfa_offset -8\n\tret\n\t" END);
#elif defined __aarch64__
__asm__(BEGIN "hint #34\n\t" /* bti c */
	      "stp x29, x30, [sp, #-16]!\n\t.cfi_adjust_cfa_offset 16\n\t.cfi_rel_offset x29, 0\n\t"
	      ".cfi_rel_offset x30, 8\n"
	      "0:\tblr x1\n"
	      "1:\tmov w0, #1\n\tb 3f\n"
	      "2:\thint #36\n\tbl percpu__cxx_caught\n\tmov w0, #0\n" /* bti j */
	      "3:\tldp x29, x30, [sp], #16\n\t.cfi_adjust_cfa_offset -16\n\t.cfi_restore x29\n\t.cfi_restore x30\n\t"
	      "ret\n\t" END);
#else
bool percpu__cxx_call(void *with, void (*call)(void *))
{
	call(with);
	return true;
}
#endif

bool percpu__cxx_try(void (*call)(void *), void *with)
{
	struct percpu__cxx found = percpu__cxx_find();

	if (!found.personality || !found.begin_catch || !found.end_catch) {
		call(with);
		return true;
	}
	cxx = found;
	return percpu__cxx_call(with, call);
}
