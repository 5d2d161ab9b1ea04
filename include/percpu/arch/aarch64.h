/* SPDX-License-Identifier: MIT */
/*
 * Port: 64-bit ARM, both byte orders. Strings and constants for the sections in <percpu/section.h>; see there for what
 * each must do.
 *
 * Scratch: x14 = address of this copy of the object (T0), x9 to x13 and x15 for values. x16 and x17 are clobbered too:
 * the linker may route a jump through a veneer that uses them.
 */
#ifndef PERCPU_ARCH_AARCH64_H
#define PERCPU_ARCH_AARCH64_H

#define PERCPU__ARCH_NAME "aarch64"

#if defined __AARCH64EB__
#define PERCPU__SIGNATURE 0x00bc28d4 /* instructions are little-endian, data are not */
#else
#define PERCPU__SIGNATURE 0xd428bc00
#endif
#define PERCPU__SIGNATURE_ASM ".inst 0xd428bc00\n\t" /* brk #0x45e0 */

#define PERCPU__SCRATCH       "x13", "x14", "x15", "x16", "x17", "cc"
#define PERCPU__SCRATCH_COPY  "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "cc"
#define PERCPU__ADD_OPERAND   "r"
#define PERCPU__LIMIT_OPERAND "r"
#define PERCPU__BOUND_OPERAND "r"
#define PERCPU__COPY_OPERAND  "r"

#define PERCPU__A_POINTER(x) ".quad " x "\n\t"
/* Conditional branches reach 1 MiB: the cold part stays in this section, behind this object's code. */
#define PERCPU__A_COLD     ".subsection 1\n\t"
#define PERCPU__A_COLD_END ".previous\n\t"
#define PERCPU__A_JUMP(l)  "b " l "\n\t"

/* The thread's area, from C or loaded by the section itself, and how to publish a descriptor there. */
#define PERCPU__A_AREA            "%[area]"
#define PERCPU__A_SELF            "x13"
#define PERCPU__A_LOAD_SELF       "ldr x13, [%[self]]\n\t"
#define PERCPU__A_ARM(desc, area) "adrp x15, " desc "\n\tadd x15, x15, :lo12:" desc "\n\tstr x15, [" area ", #8]\n\t"
/* What PERCPU__A_LOAD_SELF takes: the address of percpu__self. */
#define PERCPU__SELF_OPERAND (&percpu__self)
/*
 * percpu__index_offset, which is constant before the first object exists: so the compiler may keep it, whatever happens to
 * memory, but may not load it before it has the object.
 */
#define PERCPU__INDEX_OF(object)                                                                                       \
	__extension__({                                                                                                \
		uintptr_t percpu__offset;                                                                              \
		__asm__("adrp %0, :got:percpu__index_offset\n\tldr %0, [%0, :got_lo12:percpu__index_offset]\n\t"       \
			"ldr %w0, [%0]"                                                                                \
			: "=r"(percpu__offset)                                                                         \
			: "r"(object));                                                                                \
		percpu__offset;                                                                                        \
	})
/* The same of percpu__remainder. */
#define PERCPU__REMAINDER_OF(object)                                                                                   \
	__extension__({                                                                                                \
		uintptr_t percpu__limit;                                                                               \
		__asm__("adrp %0, :got:percpu__remainder\n\tldr %0, [%0, :got_lo12:percpu__remainder]\n\t"             \
			"ldr %w0, [%0]"                                                                                \
			: "=r"(percpu__limit)                                                                          \
			: "r"(object));                                                                                \
		(uint32_t) percpu__limit;                                                                              \
	})
/*
 * An open gate must also show what its last holder wrote. The gate word is 0 when open, and 0 is added to the address:
 * an address dependency orders every later access to this copy after the load of the gate, without a barrier. It pairs
 * with the release that opens the gate (percpu__gate_unlock).
 */
#define PERCPU__A_LOCATE(shift, area, closed)                                                                          \
	"ldr w14, [" area ", %[index]]\n\tadd x14, %[object], x14, lsl #" shift "\n\t"                                 \
	"ldr w15, [x14, %[gate]]\n\tcbnz w15, " closed "\n\tadd x14, x14, x15\n\t"

/* The same without a gate; leave if the index is the limit, that of threads which are not registered. */
#define PERCPU__A_LOCATE_UNGATED(shift, area, closed)                                                                  \
	"ldr w14, [" area ", %[index]]\n\tcmp w14, %w[limit]\n\tb.hs " closed "\n\t"                                   \
	"add x14, %[object], x14, lsl #" shift "\n\t"

/* The same, and nothing is compared: the remainder's copy tells its own threads that there is nothing for them. */
#define PERCPU__A_LOCATE_BARE(shift, area)                                                                             \
	"ldr w14, [" area ", %[index]]\n\tadd x14, %[object], x14, lsl #" shift "\n\t"

/* The address of this copy in an output instead, for an object that has a word of its own instead of the gate. */
#define PERCPU__A_LOCATE_OUT(shift, area, out)                                                                         \
	"ldr w14, [" area ", %[index]]\n\tadd %[" out "], %[object], x14, lsl #" shift "\n\t"
/*
 * Leave unless the 32-bit word there is 0 and the one `behind` it 1. That one is read first: what is left of it is added
 * to the address of the other.
 */
#define PERCPU__A_ZERO_BEFORE_ONE(out, behind, l)                                                                      \
	"ldr w15, [%[" out "], #" behind "]\n\tsub w15, w15, #1\n\tcbnz w15, " l "\n\t"                                \
	"add %[" out "], %[" out "], x15\n\tldr w15, [%[" out "]]\n\tcbnz w15, " l "\n\t"

/* The same, and the limit is a word in memory, whose load is an acquire. */
#define PERCPU__A_LOCATE_BELOW(shift, area, closed)                                                                    \
	"ldr w14, [" area ", %[index]]\n\tldar w15, [%[limit]]\n\tcmp w14, w15\n\tb.hs " closed "\n\t"                 \
	"add x14, %[object], x14, lsl #" shift "\n\t"

/* The same, and leave if a 32-bit word of this copy, `at` bytes behind the object, is 0. Its load is an acquire. */
#define PERCPU__A_LOCATE_IF(shift, area, at, closed)                                                                   \
	"ldr w14, [" area ", %[index]]\n\tadd x14, %[object], x14, lsl #" shift "\n\t"                                 \
	"add x15, x14, #" at "\n\tldar w15, [x15]\n\tcbz w15, " closed "\n\t"

#define PERCPU__A_ADVANCE(off) "ldr x15, [%[" off "], x15]\n\tadd x14, x14, x15\n\t" /* x15 is the gate: 0 */
/* The same without a gate, and what was added is an output. Its load is an acquire. */
#define PERCPU__A_ADVANCE_OUT(off, out) "ldar %[" out "], [%[" off "]]\n\tadd x14, x14, %[" out "]\n\t"
#define PERCPU__A_NE(val, l)            "ldr x15, [x14]\n\tcmp x15, %[" val "]\n\tb.ne " l "\n\t"
#define PERCPU__A_NE_AT(dist, val, l)   "ldr x15, [x14, %[" dist "]]\n\tcmp x15, %[" val "]\n\tb.ne " l "\n\t"
#define PERCPU__A_NONZERO(addr, l)      "ldar w15, [%[" addr "]]\n\tcbnz w15, " l "\n\t"
#define PERCPU__A_LOAD                  "ldr x15, [x14]\n\t"
#define PERCPU__A_SAVE(addr)            "str x15, [%[" addr "]]\n\t"
#define PERCPU__A_LOAD_OUT(out)         "ldr %[" out "], [x14]\n\t"
#define PERCPU__A_IS(out, val, l)       "cmp %[" out "], %[" val "]\n\tb.eq " l "\n\t"
#define PERCPU__A_FOLLOW(out, off)      "ldr x15, [%[" out "], %[" off "]]\n\t"
#define PERCPU__A_SET(out, imm)         "mov %[" out "], #" imm "\n\t"

/* Whole words and pairs only: 16 bytes a turn, then the rest by its binary digits. Only private bytes are written. */
#define PERCPU__A_COPY(dst, src, len)                                                                                  \
	"add x9, x14, %[" dst "]\n\tmov x10, %[" src "]\n\tsubs x11, %[" len "], #16\n\tb.lo 6f\n"                     \
	"5:\n\tldp x12, x13, [x10], #16\n\tstp x12, x13, [x9], #16\n\tsubs x11, x11, #16\n\tb.hs 5b\n"                 \
	"6:\n\ttbz w11, #3, 7f\n\tldr x12, [x10], #8\n\tstr x12, [x9], #8\n"                                           \
	"7:\n\ttbz w11, #2, 8f\n\tldr w12, [x10], #4\n\tstr w12, [x9], #4\n"                                           \
	"8:\n\ttbz w11, #1, 9f\n\tldrh w12, [x10], #2\n\tstrh w12, [x9], #2\n"                                         \
	"9:\n\ttbz w11, #0, 10f\n\tldrb w12, [x10]\n\tstrb w12, [x9]\n"                                                \
	"10:\n\t"

/*
 * Words at small distances from a base register, for sections that follow links: T0 = this copy, T1, T2 = scratch.
 * PERCPU__A_NULL_LAST makes T1 null if the operand is the word at that distance from T0; T2 is lost by it and by
 * PERCPU__A_IF_SET_AT.
 */
#define PERCPU__SCRATCH_LINKS            PERCPU__SCRATCH
#define PERCPU__T0                       "x14"
#define PERCPU__T1                       "x15"
#define PERCPU__T2                       "x13"
#define PERCPU__A_GET(to, base, at)      "ldr " to ", [" base ", #" at "]\n\t"
#define PERCPU__A_SET_AT(from, base, at) "str " from ", [" base ", #" at "]\n\t"
#define PERCPU__A_UP(reg, by)            "add " reg ", " reg ", #" by "\n\t"
#define PERCPU__A_DOWN(reg, by)          "sub " reg ", " reg ", #" by "\n\t"
#define PERCPU__A_IF_NULL(reg, l)        "cbz " reg ", " l "\n\t"
#define PERCPU__A_IF_SET_AT(base, at, l) "ldr x13, [" base ", #" at "]\n\tcbnz x13, " l "\n\t"
#define PERCPU__A_NULL_LAST(out, at)     "ldr x13, [x14, #" at "]\n\tcmp %[" out "], x13\n\tcsel x15, xzr, x15, eq\n\t"

/*
 * Rings: x15 = T0 + the place of the position in T0's word, or leave if that position (and what `more` adds to it) is not
 * below the limit, the next word; or if it is more than `room` above the word `head` bytes behind T0. Bytes from
 * PERCPU__RING_DATA behind x15 on are read by nobody before the commit, of x13, the new position. The branch is enough to
 * keep the stores to them behind the load of limit or head: no store is made before it is known that it will be.
 */
#define PERCPU__SCRATCH_RING      PERCPU__SCRATCH_COPY
#define PERCPU__SCRATCH_RING_COPY PERCPU__SCRATCH_COPY
#define PERCPU__A_PLACE(mask)     "and x15, x15, %[" mask "]\n\tadd x15, x14, x15\n\t"
#define PERCPU__A_RESERVE(size, mask, full)                                                                            \
	"ldp x15, x12, [x14]\n\tadd x13, x15, %[" size "]\n\tcmp x15, x12\n\tb.hs " full "\n\t" PERCPU__A_PLACE(mask)
#define PERCPU__A_RESERVE_MORE(size, more, mask, full)                                                                 \
	"ldp x15, x12, [x14]\n\tadd x11, x15, %[" more "]\n\tadd x13, x15, %[" size "]\n\tcmp x11, x12\n\t"            \
	"b.hs " full "\n\t" PERCPU__A_PLACE(mask)
#define PERCPU__A_RESERVE_BEHIND(size, head, room, mask, full)                                                         \
	"ldr x15, [x14]\n\tadd x12, x14, #" head "\n\tldar x12, [x12]\n\tadd x13, x15, %[" size "]\n\t"                \
	"sub x12, x15, x12\n\tcmp x12, %[" room "]\n\tb.hi " full "\n\t" PERCPU__A_PLACE(mask)
/* What is stored: the word `head` bytes behind T0, plus room. */
#define PERCPU__A_LOAD_PLUS(head, room) "add x15, x14, #" head "\n\tldar x15, [x15]\n\tadd x15, x15, %[" room "]\n\t"
#define PERCPU__A_PUT(at, val)          "str %[" val "], [x15, #" at "]\n\t"
/* 16 bytes and the last 16, which begin at src + last: they may overlap. */
#define PERCPU__A_MOVE2(at, src, last)                                                                                 \
	"ldp x9, x10, [%[" src "]]\n\tadd x12, %[" src "], %[" last "]\n\tldp x11, x12, [x12]\n\t"                     \
	"stp x9, x10, [x15, #" at "]\n\tadd x15, x15, %[" last "]\n\tstp x11, x12, [x15, #" at "]\n\t"
#define PERCPU__A_MOVE16(at, from) "ldp x11, x12, [" from "]\n\tstp x11, x12, [x15, #" at "]\n\t"
/* The same with 32 bytes: the last begin at src + last. */
#define PERCPU__A_MOVE4(at, src, last)                                                                                 \
	PERCPU__A_MOVE16(at, "%[" src "]")                                                                             \
	PERCPU__A_MOVE16("16+" at, "%[" src "], #16")                                                                  \
	"add x9, %[" src "], %[" last "]\n\tadd x15, x15, %[" last "]\n\t" PERCPU__A_MOVE16(at, "x9")                  \
		PERCPU__A_MOVE16("16+" at, "x9, #16")
#define PERCPU__A_MOVE64(at, from)                                                                                     \
	PERCPU__A_MOVE16(at, from)                                                                                     \
	PERCPU__A_MOVE16("16+" at, from ", #16")                                                                       \
	PERCPU__A_MOVE16("32+" at, from ", #32") PERCPU__A_MOVE16("48+" at, from ", #48")
/* More than 64 bytes: 64 a turn, then the last 64, which begin at src + last. */
#define PERCPU__A_MOVE_MANY(at, src, last)                                                                             \
	"mov x9, %[" src "]\n\tadd x10, x9, %[" last                                                                   \
	"]\n5:\n\t" PERCPU__A_MOVE64(at, "x9") "add x9, x9, #64\n\tadd x15, x15, #64\n\tcmp x9, x10\n\tb.lo 5b\n\t"    \
					       "sub x9, x10, x9\n\tadd x15, x15, x9\n\t" PERCPU__A_MOVE64(at, "x10")

/* Any number of words, and one more from a register. */
#define PERCPU__A_MOVE_ANY(at, src, bytes, final)                                                                      \
	"mov x9, %[" src "]\n\tadd x10, x9, %[" bytes "]\n5:\n\tcmp x9, x10\n\tb.hs 6f\n\t"                            \
	"ldr x11, [x9], #8\n\tstr x11, [x15, #" at "]\n\tadd x15, x15, #8\n\tb 5b\n"                                   \
	"6:\n\tstr %[" final "], [x15, #" at "]\n\t"

/* A magazine: T is a signed position in words from T0; what is there is at T0 + 8 T. */
#define PERCPU__A_T_BELOW(val, l) "cmp x15, %[" val "]\n\tb.lo " l "\n\t"
#define PERCPU__A_T_ABOVE(val, l) "cmp x15, %[" val "]\n\tb.gt " l "\n\t"
#define PERCPU__A_T_TAKE(out)     "ldr %[" out "], [x14, x15, lsl #3]\n\tsub x15, x15, #1\n\t"
#define PERCPU__A_T_PUT(val)      "add x15, x15, #1\n\tstr %[" val "], [x14, x15, lsl #3]\n\t"
/* The same with n words at once, in the order of their addresses. */
#define PERCPU__A_T_TAKE_MANY(dst, n)                                                                                  \
	"sub x15, x15, %[" n "]\n\tadd x10, x14, x15, lsl #3\n\tadd x10, x10, #8\n\tmov x9, %[" dst                    \
	"]\n\t" PERCPU__A_WORDS(n)
#define PERCPU__A_T_PUT_MANY(src, n)                                                                                   \
	"add x9, x14, x15, lsl #3\n\tadd x9, x9, #8\n\tadd x15, x15, %[" n "]\n\tmov x10, %[" src                      \
	"]\n\t" PERCPU__A_WORDS(n)
#define PERCPU__A_WORDS(n)                                                                                             \
	"subs x11, %[" n "], #2\n\tb.lo 6f\n"                                                                          \
	"5:\n\tldp x12, x13, [x10], #16\n\tstp x12, x13, [x9], #16\n\tsubs x11, x11, #2\n\tb.hs 5b\n"                  \
	"6:\n\ttbz w11, #0, 7f\n\tldr x12, [x10]\n\tstr x12, [x9]\n"                                                   \
	"7:\n\t"

/*
 * A magazine as a list through its objects, up to 64 Ki of them. T0's word is the address of the one on top times 64 Ki plus
 * their number, and the first word of each object is what T0's was before it. The half words behind T0's are the least and the
 * most of that number at which somebody may take or put. Leave if there is nothing to take, or no room; if the object below
 * has another number than it should; and if what is put is what was put last. Who leaves TAKE has 0.
 */
#define PERCPU__SCRATCH_LIFO PERCPU__SCRATCH
#define PERCPU__A_LIFO_TAKE(out, l)                                                                                       \
	"ldr x13, [x14]\n\tldrh w16, [x14, #8]\n\tmov %[" out "], xzr\n\tcmp w16, w13, uxth\n\tb.hs " l                   \
	"\n\tlsr x17, x13, #16\n\tldr x15, [x17]\n\tsub w13, w13, #1\n\teor w13, w13, w15\n\ttst w13, #0xffff\n\tb.ne " l \
	"\n\tmov %[" out "], x17\n\tlsr x13, x15, #16\n\tprfm pstl1keep, [x13]\n\t"
#define PERCPU__A_LIFO_PUT(val, l)                                                                                     \
	"ldr x15, [x14]\n\tldrh w16, [x14, #10]\n\tcmp w16, w15, uxth\n\tb.ls " l "\n\tand x13, x15, #0xffff\n\t"      \
	"add x13, x13, %[" val "], lsl #16\n\tcmp x13, x15\n\tb.eq " l "\n\tstr x15, [%[" val                          \
	"]]\n\tadd x15, x13, #1\n\t"
/* The same with n objects, at least one; those that are put are not looked at. */
#define PERCPU__A_LIFO_TAKE_MANY(dst, n, l)                                                                            \
	"ldr x15, [x14]\n\tldrh w16, [x14, #8]\n\tand x17, x15, #0xffff\n\tadd x16, x16, %[" n                         \
	"]\n\tcmp x17, x16\n\tb.lo " l "\n\tsub x17, x17, %[" n "]\n\tmov x9, %[" dst                                  \
	"]\n5:\n\tlsr x10, x15, #16\n\tstr x10, [x9], #8\n\tsub w11, w15, #1\n\tldr x15, [x10]\n\t"                    \
	"eor w11, w11, w15\n\ttst w11, #0xffff\n\tb.ne " l "\n\tcmp w17, w15, uxth\n\tb.ne 5b\n\t"
#define PERCPU__A_LIFO_PUT_MANY(src, n, l)                                                                             \
	"ldr x15, [x14]\n\tand x17, x15, #0xffff\n\tadd x17, x17, %[" n "]\n\tldrh w16, [x14, #10]\n\t"                \
	"cmp x17, x16\n\tb.hi " l "\n\tmov x9, %[" src "]\n\tmov x11, %[" n                                            \
	"]\n5:\n\tldr x10, [x9], #8\n\tstr x15, [x10]\n\tand x15, x15, #0xffff\n\tadd x15, x15, x10, lsl #16\n\t"      \
	"add x15, x15, #1\n\tsubs x11, x11, #1\n\tb.ne 5b\n\t"

/* Commits: one instruction that stores, and nothing after it. */
#define PERCPU__A_ADD(val)           "ldr x15, [x14]\n\tadd x15, x15, %[" val "]\n\tstr x15, [x14]\n"
#define PERCPU__A_ADD_RELEASE(val)   "ldr x15, [x14]\n\tadd x15, x15, %[" val "]\n\tstlr x15, [x14]\n"
#define PERCPU__A_STORE(val)         "str %[" val "], [x14]\n"
#define PERCPU__A_STORE_RELEASE(val) "stlr %[" val "], [x14]\n"
#define PERCPU__A_STORE_ONE(out)     "mov w15, #1\n\tstr w15, [%[" out "]]\n"
#define PERCPU__A_STORE_T            "str x15, [x14]\n"
#define PERCPU__A_STORE_T_RELEASE    "stlr x15, [x14]\n"
/* Of a ring's position. */
#define PERCPU__A_PASS_RELEASE(size) "stlr x13, [x14]\n"

/*
 * A performance counter (<percpu/perf.h>). Which page tells about it: that of the copy, noted for the caller, or the one that
 * is given. Then, in x15 the page: its lock, to compare at the end; the counter must be open to user mode, on this CPU now,
 * and never have shared its counter with another event; its value, of as many bits as the page says, and what was before.
 * The page is written by this CPU only, so program order is enough. Number 31 is the cycle counter; the others are chosen by
 * a register that others may change, but not without an abort.
 */
#ifndef PERCPU__A_PMC /* w10: number, x11: value. Tests put something else here */
#define PERCPU__A_PMC                                                                                                  \
	"cmp w10, #31\n\tb.eq 5f\n\tmsr pmselr_el0, x10\n\tisb\n\tmrs x11, pmxevcntr_el0\n\tb 6f\n5:\n\t"              \
	"mrs x11, pmccntr_el0\n6:\n\t"
#endif
#define PERCPU__SCRATCH_PERF                   "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "cc"
#define PERCPU__A_PERF_PAGE_OF_COPY(out, left) "str x14, [%[" out "], #8]\n\tldr x15, [x14]\n\tcbz x15, " left "\n\t"
#define PERCPU__A_PERF_PAGE(page)              "mov x15, %[" page "]\n\t"
#define PERCPU__A_PERF(left)                                                                                           \
	"ldr w9, [x15, #8]\n\tldr x10, [x15, #40]\n\ttbz w10, #2, " left "\n\tldr w10, [x15, #12]\n\tcbz w10, " left   \
	"\n\tsub w10, w10, #1\n\tcmp w10, #31\n\tb.hi " left "\n\tldr x11, [x15, #24]\n\tldr x12, [x15, #32]\n\t"      \
	"cmp x11, x12\n\tb.ne " left "\n\t" PERCPU__A_PMC                                                              \
	"ldrh w12, [x15, #48]\n\tneg w12, w12\n\tlsl x11, x11, x12\n\tasr x11, x11, x12\n\t"                           \
	"ldr x12, [x15, #16]\n\tadd x11, x11, x12\n\tldr w12, [x15, #8]\n\tcmp w12, w9\n\tb.ne " left "\n\t"
#define PERCPU__A_PERF_COMMIT(out) "str x11, [%[" out "]]\n"

/* Not in a section: 64 bytes that others may be writing, as the reader finds out afterwards. Vectors, and no C access. */
#define PERCPU__COPY_LINE(to, from)                                                                                    \
	__asm__ __volatile__("ldp q0, q1, [%2]\n\tldp q2, q3, [%2, #32]\n\tstp q0, q1, [%1]\n\tstp q2, q3, [%1, #32]"  \
			     : "=m"(*(char(*)[64])(to))                                                                \
			     : "r"(to), "r"(from), "m"(*(const char(*)[64])(from))                                     \
			     : "v0", "v1", "v2", "v3")

/*
 * A call that the compiler sees as an instruction which changes registers but no memory of the program, so that what it
 * keeps in registers across a counter's addition stays there.
 */
#define PERCPU__COLD_CALL(function, a, b, c, result)                                                                   \
	do {                                                                                                           \
		register uintptr_t percpu__x0 __asm__("x0") = (a);                                                     \
		register uintptr_t percpu__x1 __asm__("x1") = (b);                                                     \
		register uintptr_t percpu__x2 __asm__("x2") = (c);                                                     \
		__asm__ __volatile__("bl " function                                                                    \
				     : "+r"(percpu__x0), "+r"(percpu__x1), "+r"(percpu__x2)                            \
				     :                                                                                 \
				     : "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14",    \
				       "x15", "x16", "x17", "x18", "x30", "v0", "v1", "v2", "v3", "v4", "v5", "v6",    \
				       "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17",       \
				       "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28",    \
				       "v29", "v30", "v31", "cc" PERCPU__SVE_REGISTERS);                               \
		(result) = percpu__x0;                                                                                 \
	} while (0)

/* A call may change the predicates too. */
#ifdef __ARM_FEATURE_SVE
#define PERCPU__SVE_REGISTERS                                                                                          \
	, "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p12", "p13", "p14", "p15"
#else
#define PERCPU__SVE_REGISTERS
#endif

/*
 * Sections in C (<percpu/csection.h>). The caller leaves in percpu__thread what an abort in the body has to put back and
 * the compiler cannot be asked to save: the stack pointer, x29 and x19, which address frames, and where to return to.
 */
#define PERCPU__C_CALL(entry, object, argument, index, slot)                                                           \
	do {                                                                                                           \
		register uintptr_t percpu__x0 __asm__("x0") = (uintptr_t)(object);                                     \
		register uintptr_t percpu__x1 __asm__("x1") = (uintptr_t)(argument);                                   \
		register uintptr_t percpu__x2 __asm__("x2") = (uintptr_t)percpu__self;                                 \
		register uintptr_t percpu__x3 __asm__("x3") = (index);                                                 \
		register uintptr_t percpu__x4 __asm__("x4") = (uintptr_t)&percpu__thread;                              \
		register uintptr_t percpu__x5 __asm__("x5") = (uintptr_t)(entry);                                      \
		__asm__ __volatile__("mov x6, sp\n\tadr x7, 1f\n\tstp x6, x29, [x4, #8]\n\tstp x19, x7, [x4, #24]\n\t" \
				     "blr x5\n1:"                                                                      \
				     : "+r"(percpu__x0), "+r"(percpu__x1), "+r"(percpu__x2), "+r"(percpu__x3),         \
				       "+r"(percpu__x4), "+r"(percpu__x5)                                              \
				     :                                                                                 \
				     : "memory", "cc", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14",      \
				       "x15", "x16", "x17", "x18", "x20", "x21", "x22", "x23", "x24", "x25", "x26",    \
				       "x27", "x28", "x30", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8",      \
				       "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19",     \
				       "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30",    \
				       "v31" PERCPU__SVE_REGISTERS);                                                   \
		(slot) = percpu__x0;                                                                                   \
	} while (0)

/* Linkers that collect what is not used (lld also what only __start_ symbols lead to) keep the records of what they keep. */
#define PERCPU__C_KEEP                   ".reloc ., BFD_RELOC_NONE, 8f\n\t.reloc ., BFD_RELOC_NONE, 9f\n\t"
#define PERCPU__SYMBOL_OPERAND(function) "S"(function)
/*
 * Local labels as in <percpu/section.h>; 5 entry, 6 left, 7 name, 8 record, 9 exit. Out: x0 the slot. In: x0 object,
 * x1 argument, x2 thread's area, x3 offset of the index in it. The gate word, 0, is added to the address that the body gets:
 * see PERCPU__A_LOCATE. The store releases, for the body's private writes that it makes visible. The entry begins a cache line.
 */
#define PERCPU__A_TAIL(name)                                                                                           \
	".subsection 1\n\t.p2align 6\n5:\n\t" PERCPU__C_KEEP                                                           \
	"hint #34\n\tadrp x9, 3f\n\tadd x9, x9, :lo12:3f\n\tstr x9, [x2, #8]\n\t"                                      \
	"ldr w9, [x2, x3]\n\tadd x0, x0, x9, lsl #20\n\tand x9, x0, #~0xfffff\n\t"                                     \
	"ldr w9, [x9, #%c[gate]]\n\tcbnz w9, 6f\n\tadd x0, x0, x9\n\t"                                                 \
	"str x30, [sp, #-16]!\n\tbl %[body]\n\tldr x30, [sp], #16\n\tcbz x0, 2f\n\t"                                   \
	"stlr x1, [x0]\n"                                                                                              \
	"2:\n\tret\n"                                                                                                  \
	"6:\n\tmov x0, #1\n\tret\n\t" PERCPU__SIGNATURE_ASM                                                            \
	"4:\n\tadrp x9, :gottprel:percpu__thread\n\tldr x9, [x9, #:gottprel_lo12:percpu__thread]\n\t"                  \
	"mrs x10, tpidr_el0\n\tadd x9, x9, x10\n\tldp x10, x29, [x9, #8]\n\tldp x19, x30, [x9, #24]\n\t"               \
	"mov sp, x10\n\tb 6b\n\t"                                                                                      \
	".pushsection .rodata.percpu_names, \"aMS\", %%progbits, 1\n7:\n\t.asciz \"" name "\"\n\t.popsection\n\t"      \
	".pushsection __rseq_cs, \"aw\", %%progbits\n\t.balign 32\n3:\n\t.long 0, 0\n\t"                               \
	".quad %[body], 2b - %[body], 4b\n\t.popsection\n\t"                                                           \
	".pushsection __percpu_c_sections, \"aw\", %%progbits\n\t.balign 32\n8:\t"                                     \
	".quad %[body], 5b, 3b, 7b\n\t.popsection\n\t"                                                                 \
	".pushsection __rseq_exit_point_array, \"aw\", %%progbits\n\t.balign 8\n9:\t"                                  \
	".quad %[body], 6b\n\t.popsection\n\t.subsection 0\n\t"

#endif
