/* SPDX-License-Identifier: MIT */
/*
 * Port: x86-64. Strings and constants for the sections in <percpu/section.h>; see there for what each must do.
 *
 * Scratch: rax = address of this copy of the object (T0), rcx, rdx, r8, r9 and xmm0 for values.
 * The address is kept in one register and used without an index register: Intel cores from Golden Cove on forward a
 * store to the next load of the same word without delay only for such operands (0.5 ns per add against 1.9 ns), and only
 * if what is added is an immediate.
 */
#ifndef PERCPU_ARCH_X86_64_H
#define PERCPU_ARCH_X86_64_H

#define PERCPU__ARCH_NAME "x86_64"

/* Decodes as ud1 with the signature as its displacement, so that a disassembly stays readable. */
#define PERCPU__SIGNATURE     0x53053053
#define PERCPU__SIGNATURE_ASM ".byte 0x0f, 0xb9, 0x3d\n\t.long 0x53053053\n\t"

#define PERCPU__SCRATCH      "rax", "rcx", "cc"
#define PERCPU__SCRATCH_COPY "rax", "rcx", "rdx", "r8", "r9", "xmm0", "cc"
/* An addend known to the compiler must reach the add as an immediate: see above, it counts for the forwarding too. */
#define PERCPU__ADD_OPERAND   "er"
#define PERCPU__LIMIT_OPERAND "r"
#define PERCPU__BOUND_OPERAND "er"
#define PERCPU__COPY_OPERAND  "rm" /* registers are scarce in unoptimised code */

#define PERCPU__A_POINTER(x) ".quad " x "\n\t"
#define PERCPU__A_COLD       ".pushsection .text.percpu_cold, \"ax?\", @progbits\n\t"
#define PERCPU__A_COLD_END   ".popsection\n\t"
#define PERCPU__A_JUMP(l)    "jmp " l "\n\t"

/* The thread's area, from C or loaded by the section itself, and how to publish a descriptor there. */
#define PERCPU__A_AREA            "%[area]"
#define PERCPU__A_SELF            "%%rcx"
#define PERCPU__A_LOAD_SELF       "movq %%fs:(%[self]), %%rcx\n\t"
#define PERCPU__A_ARM(desc, area) "leaq " desc "(%%rip), %%rax\n\tmovq %%rax, 8(" area ")\n\t"
/* What PERCPU__A_LOAD_SELF takes: the distance of percpu__self from the thread pointer. */
#define PERCPU__SELF_OPERAND                                                                                           \
	__extension__({                                                                                                \
		uintptr_t percpu__distance;                                                                            \
		__asm__("movq percpu__thread@gottpoff(%%rip), %0" : "=r"(percpu__distance));                           \
		percpu__distance;                                                                                      \
	})
/*
 * percpu__index_offset, which is constant before the first object exists: so the compiler may keep it, whatever happens to
 * memory, but may not load it before it has the object.
 */
#define PERCPU__INDEX_OF(object)                                                                                       \
	__extension__({                                                                                                \
		uintptr_t percpu__offset;                                                                              \
		__asm__("movq percpu__index_offset@gotpcrel(%%rip), %0\n\tmovl (%0), %k0"                              \
			: "=r"(percpu__offset)                                                                         \
			: "r"(object));                                                                                \
		percpu__offset;                                                                                        \
	})
/* The same of percpu__remainder. */
#define PERCPU__REMAINDER_OF(object)                                                                                   \
	__extension__({                                                                                                \
		uintptr_t percpu__limit;                                                                               \
		__asm__("movq percpu__remainder@gotpcrel(%%rip), %0\n\tmovl (%0), %k0"                                 \
			: "=r"(percpu__limit)                                                                          \
			: "r"(object));                                                                                \
		(uint32_t) percpu__limit;                                                                              \
	})
/* T0 = object + (index << stride); leave if the gate word of this copy is not 0. Total store order does the rest. */
#define PERCPU__A_LOCATE(shift, area, closed)                                                                          \
	"movl (" area ",%[index]), %%eax\n\tshlq $" shift ", %%rax\n\taddq %[object], %%rax\n\t"                       \
	"movl (%%rax,%[gate]), %%ecx\n\ttestl %%ecx, %%ecx\n\tjne " closed "\n\t"

/* The same without a gate; leave if the index is the limit, that of threads which are not registered. */
#define PERCPU__A_LOCATE_UNGATED(shift, area, closed)                                                                  \
	"movl (" area ",%[index]), %%eax\n\tcmpl %[limit], %%eax\n\tjae " closed "\n\t"                                \
	"shlq $" shift ", %%rax\n\taddq %[object], %%rax\n\t"

/* The same, and nothing is compared: the remainder's copy tells its own threads that there is nothing for them. */
#define PERCPU__A_LOCATE_BARE(shift, area)                                                                             \
	"movl (" area ",%[index]), %%eax\n\tshlq $" shift ", %%rax\n\taddq %[object], %%rax\n\t"

/* The address of this copy in an output instead, for an object that has a word of its own instead of the gate. */
#define PERCPU__A_LOCATE_OUT(shift, area, out)                                                                         \
	"movl (" area ",%[index]), %k[" out "]\n\tshlq $" shift ", %[" out "]\n\taddq %[object], %[" out "]\n\t"
/*
 * Leave unless the signed 32-bit word there is less than the one `behind` it, which is read first: 0 and 1 are, and by
 * their use nothing else. One comparison for both.
 */
#define PERCPU__A_ZERO_BEFORE_ONE(out, behind, l)                                                                      \
	"movl " behind "(%[" out "]), %%ecx\n\tcmpl %%ecx, (%[" out "])\n\tjge " l "\n\t"

/* The same, and the limit is a word in memory, whose load is an acquire: all loads are. */
#define PERCPU__A_LOCATE_BELOW(shift, area, closed)                                                                    \
	"movl (" area ",%[index]), %%eax\n\tcmpl (%[limit]), %%eax\n\tjae " closed "\n\t"                              \
	"shlq $" shift ", %%rax\n\taddq %[object], %%rax\n\t"

/* The same, and leave if a 32-bit word of this copy, `at` bytes behind the object, is 0. Its load is an acquire. */
#define PERCPU__A_LOCATE_IF(shift, area, at, closed)                                                                   \
	"movl (" area ",%[index]), %%eax\n\tshlq $" shift ", %%rax\n\taddq %[object], %%rax\n\t"                       \
	"cmpl $0, " at "(%%rax)\n\tje " closed "\n\t"

#define PERCPU__A_ADVANCE(off) "addq (%[" off "]), %%rax\n\t"
/* The same, and what was added is an output. Its load is an acquire. */
#define PERCPU__A_ADVANCE_OUT(off, out) "movq (%[" off "]), %[" out "]\n\taddq %[" out "], %%rax\n\t"
#define PERCPU__A_NE(val, l)            "cmpq %[" val "], (%%rax)\n\tjne " l "\n\t"
#define PERCPU__A_NE_AT(dist, val, l)   "cmpq %[" val "], (%%rax,%[" dist "])\n\tjne " l "\n\t"
#define PERCPU__A_NONZERO(addr, l)      "cmpl $0, (%[" addr "])\n\tjne " l "\n\t"
#define PERCPU__A_LOAD                  "movq (%%rax), %%rcx\n\t"
#define PERCPU__A_SAVE(addr)            "movq %%rcx, (%[" addr "])\n\t"
#define PERCPU__A_LOAD_OUT(out)         "movq (%%rax), %[" out "]\n\t"
#define PERCPU__A_IS(out, val, l)       "cmpq %[" val "], %[" out "]\n\tje " l "\n\t"
#define PERCPU__A_FOLLOW(out, off)      "leaq (%[" out "],%[" off "]), %%rcx\n\tmovq (%%rcx), %%rcx\n\t"
#define PERCPU__A_SET(out, imm)         "movq $" imm ", %[" out "]\n\t"

/* Whole words and vectors only: 16 bytes a turn, then the rest by its binary digits. Only private bytes are written. */
#define PERCPU__A_COPY(dst, src, len)                                                                                  \
	"movq %[" dst "], %%rcx\n\taddq %%rax, %%rcx\n\tmovq %[" src "], %%rdx\n\tmovq %[" len "], %%r8\n\t"           \
	"subq $16, %%r8\n\tjb 6f\n"                                                                                    \
	"5:\n\tmovups (%%rdx), %%xmm0\n\taddq $16, %%rdx\n\tmovups %%xmm0, (%%rcx)\n\taddq $16, %%rcx\n\t"             \
	"subq $16, %%r8\n\tjae 5b\n"                                                                                   \
	"6:\n\ttestb $8, %%r8b\n\tjz 7f\n\tmovq (%%rdx), %%r9\n\taddq $8, %%rdx\n\tmovq %%r9, (%%rcx)\n\t"             \
	"addq $8, %%rcx\n"                                                                                             \
	"7:\n\ttestb $4, %%r8b\n\tjz 8f\n\tmovl (%%rdx), %%r9d\n\taddq $4, %%rdx\n\tmovl %%r9d, (%%rcx)\n\t"           \
	"addq $4, %%rcx\n"                                                                                             \
	"8:\n\ttestb $2, %%r8b\n\tjz 9f\n\tmovzwl (%%rdx), %%r9d\n\taddq $2, %%rdx\n\tmovw %%r9w, (%%rcx)\n\t"         \
	"addq $2, %%rcx\n"                                                                                             \
	"9:\n\ttestb $1, %%r8b\n\tjz 10f\n\tmovzbl (%%rdx), %%r9d\n\tmovb %%r9b, (%%rcx)\n"                            \
	"10:\n\t"

/*
 * Words at small distances from a base register, for sections that follow links: T0 = this copy, T1, T2 = scratch.
 * PERCPU__A_NULL_LAST makes T1 null if the operand is the word at that distance from T0; T2 is lost.
 */
#define PERCPU__SCRATCH_LINKS            "rax", "rcx", "rdx", "cc"
#define PERCPU__T0                       "%%rax"
#define PERCPU__T1                       "%%rcx"
#define PERCPU__T2                       "%%rdx"
#define PERCPU__A_GET(to, base, at)      "movq " at "(" base "), " to "\n\t"
#define PERCPU__A_SET_AT(from, base, at) "movq " from ", " at "(" base ")\n\t"
#define PERCPU__A_UP(reg, by)            "addq $" by ", " reg "\n\t"
#define PERCPU__A_DOWN(reg, by)          "subq $" by ", " reg "\n\t"
#define PERCPU__A_IF_NULL(reg, l)        "testq " reg ", " reg "\n\tjz " l "\n\t"
#define PERCPU__A_IF_SET_AT(base, at, l) "cmpq $0, " at "(" base ")\n\tjne " l "\n\t"
#define PERCPU__A_NULL_LAST(out, at)     "xorl %%edx, %%edx\n\tcmpq " at "(%%rax), %[" out "]\n\tcmoveq %%rdx, %%rcx\n\t"

/*
 * Rings: rcx = T0 + the place of the position in T0's word, or leave if that position (and what `more` adds to it) is not
 * below the limit, the next word; or if it is more than `room` above the word `head` bytes behind T0. Bytes from
 * PERCPU__RING_DATA behind rcx on are read by nobody before the commit, which adds to the position.
 */
#define PERCPU__SCRATCH_RING      "rax", "rcx", "cc"
#define PERCPU__SCRATCH_RING_COPY "rax", "rcx", "r8", "xmm0", "xmm1", "xmm2", "xmm3", "cc"
#define PERCPU__A_PLACE(mask)     "andq %[" mask "], %%rcx\n\taddq %%rax, %%rcx\n\t"
#define PERCPU__A_RESERVE(size, mask, full)                                                                            \
	"movq (%%rax), %%rcx\n\tcmpq 8(%%rax), %%rcx\n\tjae " full "\n\t" PERCPU__A_PLACE(mask)
#define PERCPU__A_RESERVE_MORE(size, more, mask, full)                                                                 \
	"movq (%%rax), %%rcx\n\tleaq (%%rcx,%[" more "]), %%r8\n\tcmpq 8(%%rax), %%r8\n\tjae " full                    \
	"\n\t" PERCPU__A_PLACE(mask)
#define PERCPU__A_RESERVE_BEHIND(size, head, room, mask, full)                                                         \
	"movq (%%rax), %%rcx\n\tmovq %%rcx, %%r8\n\tsubq " head "(%%rax), %%r8\n\tcmpq %[" room "], %%r8\n\t"          \
	"ja " full "\n\t" PERCPU__A_PLACE(mask)
/* What is stored: the word `head` bytes behind T0, plus room. */
#define PERCPU__A_LOAD_PLUS(head, room) "movq " head "(%%rax), %%rcx\n\taddq %[" room "], %%rcx\n\t"
#define PERCPU__A_PUT(at, val)          "movq %[" val "], " at "(%%rcx)\n\t"
/* 16 bytes and the last 16, which begin at src + last: they may overlap. */
#define PERCPU__A_MOVE2(at, src, last)                                                                                 \
	"movups (%[" src "]), %%xmm0\n\tmovups (%[" src "],%[" last "]), %%xmm1\n\t"                                   \
	"movups %%xmm0, " at "(%%rcx)\n\tmovups %%xmm1, " at "(%%rcx,%[" last "])\n\t"
/* The same with 32 bytes: the last begin at src + last. */
#define PERCPU__A_MOVE4(at, src, last)                                                                                 \
	"movups (%[" src "]), %%xmm0\n\tmovups 16(%[" src "]), %%xmm1\n\t"                                             \
	"movups (%[" src "],%[" last "]), %%xmm2\n\tmovups 16(%[" src "],%[" last "]), %%xmm3\n\t"                     \
	"movups %%xmm0, " at "(%%rcx)\n\tmovups %%xmm1, 16+" at "(%%rcx)\n\t"                                          \
	"movups %%xmm2, " at "(%%rcx,%[" last "])\n\tmovups %%xmm3, 16+" at "(%%rcx,%[" last "])\n\t"
#define PERCPU__A_MOVE64(at, src, where)                                                                               \
	"movups (%[" src "]," where "), %%xmm0\n\tmovups 16(%[" src "]," where "), %%xmm1\n\t"                         \
	"movups 32(%[" src "]," where "), %%xmm2\n\tmovups 48(%[" src "]," where "), %%xmm3\n\t"                       \
	"movups %%xmm0, " at "(%%rcx," where ")\n\tmovups %%xmm1, 16+" at "(%%rcx," where ")\n\t"                      \
	"movups %%xmm2, 32+" at "(%%rcx," where ")\n\tmovups %%xmm3, 48+" at "(%%rcx," where ")\n\t"
/* More than 64 bytes: 64 a turn, then the last 64, which begin at src + last. */
#define PERCPU__A_MOVE_MANY(at, src, last)                                                                             \
	"xorl %%r8d, %%r8d\n5:\n\t" PERCPU__A_MOVE64(at, src, "%%r8") "addq $64, %%r8\n\tcmpq %[" last                 \
								      "], %%r8\n\tjb 5b\n\t" PERCPU__A_MOVE64(         \
									      at, src, "%[" last "]")

/* Any number of words, and one more from a register. */
#define PERCPU__A_MOVE_ANY(at, src, bytes, final)                                                                      \
	"xorl %%r8d, %%r8d\n\tmovq %[" bytes "], %%r9\n\tsubq $16, %%r9\n\tjb 6f\n"                                    \
	"5:\n\tmovups (%[" src "],%%r8), %%xmm0\n\tmovups %%xmm0, " at "(%%rcx,%%r8)\n\t"                              \
	"addq $16, %%r8\n\tcmpq %%r9, %%r8\n\tjbe 5b\n"                                                                \
	"6:\n\ttestq $8, %[" bytes "]\n\tjz 7f\n\tmovq (%[" src "],%%r8), %%rdx\n\t"                                   \
	"movq %%rdx, " at "(%%rcx,%%r8)\n\taddq $8, %%r8\n"                                                            \
	"7:\n\tmovq %[" final "], " at "(%%rcx,%%r8)\n\t"

/* A magazine: T is a signed position in words from T0; what is there is at T0 + 8 T. */
#define PERCPU__A_T_BELOW(val, l) "cmpq %[" val "], %%rcx\n\tjb " l "\n\t"
#define PERCPU__A_T_ABOVE(val, l) "cmpq %[" val "], %%rcx\n\tjg " l "\n\t"
#define PERCPU__A_T_TAKE(out)     "movq (%%rax,%%rcx,8), %[" out "]\n\tsubq $1, %%rcx\n\t"
#define PERCPU__A_T_PUT(val)      "addq $1, %%rcx\n\tmovq %[" val "], (%%rax,%%rcx,8)\n\t"
/* The same with n words at once, in the order of their addresses. */
#define PERCPU__A_T_TAKE_MANY(dst, n)                                                                                  \
	"subq %[" n "], %%rcx\n\tleaq 8(%%rax,%%rcx,8), %%r8\n\tmovq %[" dst "], %%rdx\n\t" PERCPU__A_WORDS(n)
#define PERCPU__A_T_PUT_MANY(src, n)                                                                                   \
	"leaq 8(%%rax,%%rcx,8), %%rdx\n\taddq %[" n "], %%rcx\n\tmovq %[" src "], %%r8\n\t" PERCPU__A_WORDS(n)
#define PERCPU__A_WORDS(n)                                                                                             \
	"movq %[" n "], %%r9\n\tsubq $2, %%r9\n\tjb 6f\n"                                                              \
	"5:\n\tmovups (%%r8), %%xmm0\n\taddq $16, %%r8\n\tmovups %%xmm0, (%%rdx)\n\taddq $16, %%rdx\n\t"               \
	"subq $2, %%r9\n\tjae 5b\n"                                                                                    \
	"6:\n\ttestb $1, %%r9b\n\tjz 7f\n\tmovq (%%r8), %%r8\n\tmovq %%r8, (%%rdx)\n"                                  \
	"7:\n\t"

/*
 * A magazine as a list through its objects, up to 64 Ki of them. T0's word is the address of the one on top times 64 Ki plus
 * their number, and the first word of each object is what T0's was before it. The half words behind T0's are the least and the
 * most of that number at which somebody may take or put. Leave if there is nothing to take, or no room; if the object below
 * has another number than it should; and if what is put is what was put last. Who leaves TAKE has 0. It fetches the object that
 * will be on top: where classes mix it has left the cache by the time its own first word is wanted.
 */
#define PERCPU__SCRATCH_LIFO "rax", "rcx", "rdx", "r8", "cc"
#define PERCPU__A_LIFO_TAKE(out, l)                                                                                    \
	"movq (%%rax), %%rdx\n\txorl %k[" out "], %k[" out "]\n\tcmpw 8(%%rax), %%dx\n\tjbe " l                        \
	"\n\tmovq %%rdx, %%r8\n\tshrq $16, %%r8\n\tmovq (%%r8), %%rcx\n\tdecl %%edx\n\tcmpw %%cx, %%dx\n\tjne " l      \
	"\n\tmovq %%r8, %[" out "]\n\tmovq %%rcx, %%rdx\n\tshrq $16, %%rdx\n\tprefetcht0 (%%rdx)\n\t"
#define PERCPU__A_LIFO_PUT(val, l)                                                                                     \
	"movq (%%rax), %%rcx\n\tcmpw 10(%%rax), %%cx\n\tjae " l "\n\tmovq %[" val                                      \
	"], %%rdx\n\tshlq $16, %%rdx\n\tmovw %%cx, %%dx\n\tcmpq %%rcx, %%rdx\n\tje " l "\n\tmovq %%rcx, (%[" val       \
	"])\n\tleaq 1(%%rdx), %%rcx\n\t"
/* The same with n objects, at least one; those that are put are not looked at. */
#define PERCPU__A_LIFO_TAKE_MANY(dst, n, l)                                                                            \
	"movq (%%rax), %%rcx\n\tmovzwl 8(%%rax), %%edx\n\taddq %[" n "], %%rdx\n\tmovzwl %%cx, %%r8d\n\t"              \
	"cmpq %%rdx, %%r8\n\tjb " l "\n\tsubq %[" n "], %%r8\n\tmovq %[" dst                                           \
	"], %%rdx\n5:\n\tmovq %%rcx, %%r9\n\tshrq $16, %%r9\n\tmovq %%r9, (%%rdx)\n\taddq $8, %%rdx\n\tdecl %%ecx\n\t" \
	"cmpw (%%r9), %%cx\n\tjne " l "\n\tmovq (%%r9), %%rcx\n\tcmpw %%r8w, %%cx\n\tjne 5b\n\t"
#define PERCPU__A_LIFO_PUT_MANY(src, n, l)                                                                             \
	"movq (%%rax), %%rcx\n\tmovzwl %%cx, %%edx\n\taddq %[" n "], %%rdx\n\tmovzwl 10(%%rax), %%r8d\n\t"             \
	"cmpq %%r8, %%rdx\n\tja " l "\n\tmovq %[" src "], %%rdx\n\tmovq %[" n                                          \
	"], %%r9\n5:\n\tmovq (%%rdx), %%r8\n\taddq $8, %%rdx\n\tmovq %%rcx, (%%r8)\n\tshlq $16, %%r8\n\t"              \
	"movzwl %%cx, %%ecx\n\tleaq 1(%%r8,%%rcx), %%rcx\n\tsubq $1, %%r9\n\tjnz 5b\n\t"

/* Commits: one instruction that stores, and nothing after it. Every store is a release on this machine. */
#define PERCPU__A_ADD(val)           "addq %[" val "], (%%rax)\n"
#define PERCPU__A_ADD_RELEASE(val)   PERCPU__A_ADD(val)
#define PERCPU__A_STORE(val)         "movq %[" val "], (%%rax)\n"
#define PERCPU__A_STORE_RELEASE(val) PERCPU__A_STORE(val)
#define PERCPU__A_STORE_ONE(out)     "movl $1, (%[" out "])\n"
#define PERCPU__A_STORE_T            "movq %%rcx, (%%rax)\n"
#define PERCPU__A_STORE_T_RELEASE    PERCPU__A_STORE_T
/* Of a ring's position. */
#define PERCPU__A_PASS_RELEASE(size) PERCPU__A_ADD_RELEASE(size)

/*
 * A performance counter (<percpu/perf.h>). Which page tells about it: that of the copy, noted for the caller, or the one that
 * is given. Then, in r8 the page: its lock, to compare at the end; the counter must be open to user mode, on this CPU now,
 * and never have shared its counter with another event; its value, of as many bits as the page says, and what was before.
 */
#ifndef PERCPU__A_PMC /* ecx: number; edx:eax: value. Tests put something else here */
#define PERCPU__A_PMC "rdpmc\n\t"
#endif
#define PERCPU__SCRATCH_PERF "rax", "rcx", "rdx", "r8", "r9", "cc"
#define PERCPU__A_PERF_PAGE_OF_COPY(out, left)                                                                         \
	"movq %%rax, 8(%[" out "])\n\tmovq (%%rax), %%r8\n\ttestq %%r8, %%r8\n\tje " left "\n\t"
#define PERCPU__A_PERF_PAGE(page) "movq %[" page "], %%r8\n\t"
#define PERCPU__A_PERF(left)                                                                                           \
	"movl 8(%%r8), %%r9d\n\ttestb $4, 40(%%r8)\n\tje " left "\n\tmovl 12(%%r8), %%ecx\n\tsubl $1, %%ecx\n\t"       \
	"jb " left "\n\tmovq 24(%%r8), %%rdx\n\tcmpq 32(%%r8), %%rdx\n\tjne " left "\n\t" PERCPU__A_PMC                \
	"shlq $32, %%rdx\n\torq %%rdx, %%rax\n\tmovl $64, %%ecx\n\tsubw 48(%%r8), %%cx\n\tshlq %%cl, %%rax\n\t"        \
	"sarq %%cl, %%rax\n\taddq 16(%%r8), %%rax\n\tcmpl 8(%%r8), %%r9d\n\tjne " left "\n\t"
#define PERCPU__A_PERF_COMMIT(out) "movq %%rax, (%[" out "])\n"

/* Not in a section: 64 bytes that others may be writing, as the reader finds out afterwards. Vectors, and no C access. */
#define PERCPU__COPY_LINE(to, from)                                                                                    \
	__asm__ __volatile__("movups (%2), %%xmm0\n\tmovups 16(%2), %%xmm1\n\tmovups 32(%2), %%xmm2\n\t"               \
			     "movups 48(%2), %%xmm3\n\tmovups %%xmm0, (%1)\n\tmovups %%xmm1, 16(%1)\n\t"               \
			     "movups %%xmm2, 32(%1)\n\tmovups %%xmm3, 48(%1)"                                          \
			     : "=m"(*(char(*)[64])(to))                                                                \
			     : "r"(to), "r"(from), "m"(*(const char(*)[64])(from))                                     \
			     : "xmm0", "xmm1", "xmm2", "xmm3")

/*
 * A call that the compiler sees as an instruction which changes registers but no memory of the program, so that what it
 * keeps in registers across a counter's addition stays there. The callee aligns the stack itself (src/gate/cold.c). Who
 * uses this must also contain an ordinary call: then the compiler keeps nothing below the stack pointer.
 */
#define PERCPU__COLD_CALL(function, a, b, c, result)                                                                   \
	__asm__ __volatile__("call " function "@PLT"                                                                   \
			     : "=a"(result), "+D"(a), "+S"(b), "+d"(c)                                                 \
			     :                                                                                         \
			     : "rcx", "r8", "r9", "r10", "r11", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",        \
			       "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",   \
			       "cc" PERCPU__AVX512_REGISTERS)
#ifdef __AVX512F__
#define PERCPU__AVX512_REGISTERS                                                                                       \
	, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",  \
		"xmm28", "xmm29", "xmm30", "xmm31", "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"
#else
#define PERCPU__AVX512_REGISTERS
#endif

/*
 * Sections in C (<percpu/csection.h>). The caller leaves in percpu__thread what an abort in the body has to put back and the
 * compiler cannot be asked to save: the stack pointer, rbp and rbx, which address frames, and where to go on. All else is
 * clobbered. To jump there and back costs less than a call and a return, and keeps the stack aligned for the body. Who uses
 * this must also contain an ordinary call: then the compiler keeps nothing below the stack pointer.
 */
#define PERCPU__C_CALL(entry, object, argument, index, slot)                                                           \
	do {                                                                                                           \
		void *percpu__di = (object), *percpu__si = (argument);                                                 \
		uintptr_t percpu__c = (index), percpu__d;                                                              \
		register percpu__c_entry *percpu__r8 __asm__("r8") = (entry);                                          \
		__asm__("movq percpu__thread@gottpoff(%%rip), %0" : "=r"(percpu__d));                                  \
		__asm__ __volatile__(                                                                                  \
			"leaq 1f(%%rip), %%r12\n\tmovq %%rsp, %%fs:8(%%rdx)\n\tmovq %%rbp, %%fs:16(%%rdx)\n\t"         \
			"movq %%rbx, %%fs:24(%%rdx)\n\tmovq %%r12, %%fs:32(%%rdx)\n\tjmp *%%r8\n1:\n\t" PERCPU__ENDBR  \
			: "=&a"(slot), "+D"(percpu__di), "+S"(percpu__si), "+d"(percpu__d), "+c"(percpu__c),           \
			  "+r"(percpu__r8)                                                                             \
			:                                                                                              \
			: "memory", "cc", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",      \
			  "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",  \
			  "xmm14", "xmm15" PERCPU__X87_REGISTERS PERCPU__AVX512_REGISTERS);                            \
	} while (0)

/* An abort resets the x87 unit, which a body may have used after all. */
#define PERCPU__X87_REGISTERS                                                                                          \
	, "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "mm0", "mm1", "mm2", "mm3", "mm4",      \
		"mm5", "mm6", "mm7"
#ifdef __CET__
#define PERCPU__ENDBR "endbr64\n\t"
#else
#define PERCPU__ENDBR
#endif
/* Linkers that collect what is not used (lld also what only __start_ symbols lead to) keep the records of what they keep. */
#define PERCPU__C_KEEP                   ".reloc ., BFD_RELOC_NONE, 8f\n\t.reloc ., BFD_RELOC_NONE, 9f\n\t"
#define PERCPU__SYMBOL_OPERAND(function) "i"(function)
/*
 * Local labels as in <percpu/section.h>; 5 entry, 6 left, 7 name, 8 record, 9 exit. In: rdi object, rsi argument, rcx offset
 * of the index in the thread's area, rdx distance of percpu__thread from the thread pointer, r12 where to go on, which a body
 * that returns preserves. Out: rax the slot. The entry begins a cache line: what is fetched behind a jump ends with the line.
 */
#define PERCPU__A_TAIL(name)                                                                                           \
	".subsection 1\n\t.p2align 6\n5:\n\t" PERCPU__C_KEEP PERCPU__ENDBR                                             \
	"movq %%fs:(%%rdx), %%rax\n\tleaq 3f(%%rip), %%rdx\n\t"                                                        \
	"movq %%rdx, 8(%%rax)\n\tmovl (%%rax,%%rcx), %%eax\n\tshlq $20, %%rax\n\taddq %%rax, %%rdi\n\t"                \
	"movq %%rdi, %%rdx\n\tandq $-0x100000, %%rdx\n\tcmpl $0, %c[gate](%%rdx)\n\tjne 6f\n\t"                        \
	"call %P[body]\n\ttestq %%rax, %%rax\n\tje 2f\n\tmovq %%rdx, (%%rax)\n"                                        \
	"2:\n\tjmp *%%r12\n"                                                                                           \
	"6:\n\tmovl $1, %%eax\n\tjmp *%%r12\n\t" PERCPU__SIGNATURE_ASM                                                 \
	"4:\n\tmovq percpu__thread@gottpoff(%%rip), %%rax\n\tmovq %%fs:8(%%rax), %%rsp\n\t"                            \
	"movq %%fs:16(%%rax), %%rbp\n\tmovq %%fs:24(%%rax), %%rbx\n\tmovq %%fs:32(%%rax), %%r12\n\temms\n\tjmp 6b\n\t" \
	".pushsection .rodata.percpu_names, \"aMS\", @progbits, 1\n7:\n\t.asciz \"" name "\"\n\t.popsection\n\t"       \
	".pushsection __rseq_cs, \"aw\", @progbits\n\t.balign 32\n3:\n\t.long 0, 0\n\t"                                \
	".quad %P[body], 2b - %P[body], 4b\n\t.popsection\n\t"                                                         \
	".pushsection __percpu_c_sections, \"aw\", @progbits\n\t.balign 32\n8:\t"                                      \
	".quad %P[body], 5b, 3b, 7b\n\t.popsection\n\t"                                                                \
	".pushsection __rseq_exit_point_array, \"aw\", @progbits\n\t.balign 8\n9:\t"                                   \
	".quad %P[body], 6b\n\t.popsection\n\t.subsection 0\n\t"

#endif
