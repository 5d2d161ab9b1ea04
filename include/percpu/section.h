/* SPDX-License-Identifier: MIT */
/*
 * The sections: restartable sequences, each written once over the strings of a port in <percpu/arch/>.
 *
 * Every section does the same: publish its descriptor (from the next instruction on, the kernel will divert the thread
 * to the abort label if it interrupts it for another thread or a signal), load the index, find this copy, leave if the
 * gate is not open, work, and commit with one store as its very last instruction. So nothing happens or all of it does,
 * and two threads never commit to the same copy at once.
 *
 * The functions here try once. They return PERCPU__DONE, PERCPU__DIFFERS (a comparison failed: nothing was stored) or
 * PERCPU__LEFT (aborted, gate closed or thread not registered: nothing was stored), which never reaches a user: the
 * operations in <percpu/ops.h> go on in the slow path.
 *
 * Objects live in areas (<percpu/area.h>): @object is the address of copy 0, and copy i lies i << PERCPU_STRIDE_SHIFT
 * behind it. The gate words stand at the start of each copy of the area; an area is aligned to its stride, so a mask
 * finds them.
 */
#ifndef PERCPU_SECTION_H
#define PERCPU_SECTION_H

#include <percpu/arch.h>
#include <percpu/rseq.h>

PERCPU_BEGIN_DECLS

/** Distance between two copies of one object: 1 << PERCPU_STRIDE_SHIFT bytes. */
#define PERCPU_STRIDE_SHIFT 20
#define PERCPU__STRIDE_ASM  "20"
#define PERCPU_STRIDE       ((size_t)1 << PERCPU_STRIDE_SHIFT)
/* Within a copy: the gate of data indexed by concurrency id, then that of data indexed by CPU number. */
#define PERCPU__GATE_BY_ID  0
#define PERCPU__GATE_BY_CPU 16

/* How an object is indexed. An object is used with one kind only, in all its life. */
enum percpu__by { PERCPU__BY_ID, PERCPU__BY_CPU };
/* How the commit is ordered: not at all, or after everything that the thread did before it. */
enum percpu__order { PERCPU__RELAXED, PERCPU__RELEASE };

enum { PERCPU__DONE = 0, PERCPU__DIFFERS = 1, PERCPU__LEFT = 2 };
/* What a section that returns an address returns when it left: nothing can be followed at address 1. */
#define PERCPU__LEFT_WORD ((uintptr_t)1)

/* Keeps an object that contains descriptors mapped for ever; see src/section/pin.c. */
PERCPU_API void percpu__pin(const void *in_object);

#ifndef PERCPU_NO_SECTIONS
#ifndef PERCPU__BUILDING
/* The kernel may read the last descriptor of a sleeping thread long after its section ended. */
__attribute__((constructor, visibility("hidden"), weak)) void percpu__pin_this_object(void)
{
	percpu__pin((const void *)(uintptr_t)&percpu__pin_this_object);
}
#endif

/* Offset in the thread's area of the word that names the copy. */
#define PERCPU__INDEX(by)                                                                                              \
	((by) == PERCPU__BY_CPU ? offsetof(struct percpu__rseq, cpu_id) : (size_t)percpu__index_offset)
/* Distance from an object to the gate word that guards it. */
#define PERCPU__GATE_DISTANCE(object, by)                                                                              \
	((uintptr_t)((by) == PERCPU__BY_CPU ? PERCPU__GATE_BY_CPU : PERCPU__GATE_BY_ID) -                              \
	 ((uintptr_t)(object) & (PERCPU_STRIDE - 1)))

/* clang-format off */
/* Local labels: 1 first instruction, 2 end (just behind the commit), 3 descriptor, 4 abort; 5 to 10 belong to ports. */
#define PERCPU__DESCRIPTOR                                                                                             \
	".pushsection __rseq_cs, \"aw?\", @progbits\n\t.balign 32\n3:\n\t.long 0, 0\n\t"                                \
	PERCPU__A_POINTER("1f") PERCPU__A_POINTER("2f - 1f") PERCPU__A_POINTER("4f") ".popsection\n\t"
#define PERCPU__ENTER                                                                                                  \
	PERCPU__DESCRIPTOR PERCPU__A_ARM("3b", PERCPU__A_AREA)                                                         \
	"1:\n\t" PERCPU__A_LOCATE(PERCPU__STRIDE_ASM, PERCPU__A_AREA, "4f")
/*
 * For words that are only summed: no gate, and the thread's area is loaded here, so that no register of the caller can
 * hold the stand-in of a new thread for ever.
 */
#define PERCPU__ENTER_UNGATED                                                                                          \
	PERCPU__DESCRIPTOR PERCPU__A_LOAD_SELF PERCPU__A_ARM("3b", PERCPU__A_SELF)                                     \
	"1:\n\t" PERCPU__A_LOCATE_UNGATED(PERCPU__STRIDE_ASM, PERCPU__A_SELF, "4f")
/* The same, with a limit in ordinary memory: who stores 0 there and fences keeps every such section out. */
#define PERCPU__ENTER_BELOW                                                                                            \
	PERCPU__DESCRIPTOR PERCPU__A_LOAD_SELF PERCPU__A_ARM("3b", PERCPU__A_SELF)                                     \
	"1:\n\t" PERCPU__A_LOCATE_BELOW(PERCPU__STRIDE_ASM, PERCPU__A_SELF, "4f")
#define PERCPU__LEAVE                                                                                                  \
	"2:\n\t" PERCPU__A_COLD PERCPU__SIGNATURE_ASM "4:\n\t" PERCPU__A_JUMP("%l[left]") PERCPU__A_COLD_END
/* Where a section may go beside its end and its abort label: by the convention of debuggers, who stop there, and linters. */
#define PERCPU__EXIT(to)                                                                                               \
	".pushsection __rseq_exit_point_array, \"aw?\", @progbits\n\t.balign 8\n\t"                                  \
	PERCPU__A_POINTER("1b") PERCPU__A_POINTER(to) ".popsection\n\t"
/* For sections that may find that there is nothing to do: they go to 11. */
#define PERCPU__LEAVE_DIFFERS                                                                                          \
	PERCPU__LEAVE PERCPU__A_COLD "11:\n\t" PERCPU__A_JUMP("%l[differs]") PERCPU__A_COLD_END PERCPU__EXIT("11b")
#define PERCPU__LEAVE_WORD                                                                                             \
	"2:\n\t" PERCPU__A_COLD PERCPU__SIGNATURE_ASM "4:\n\t" PERCPU__A_SET("out", "1") PERCPU__A_JUMP("2b")          \
	PERCPU__A_COLD_END

/* clang-format on */

#define PERCPU__OPERANDS(where, by)                                                                                    \
	[area] "r"(percpu__self), [index] "r"(PERCPU__INDEX(by)), [object] "r"(where),                                 \
		[gate] "r"(PERCPU__GATE_DISTANCE(where, by))

/*
 * *object += n, for words that only sections of this kind change, that nobody reads but by atomic loads, and that are only
 * ever summed: nobody closes a gate to work on them, so it is enough to leave when the index is the remainder's. It orders
 * nothing, for the compiler neither, which may keep in registers what it has there.
 */
PERCPU__INLINE int percpu__try_count(uint64_t *object, uint64_t n, enum percpu__by by)
{
	__asm__ __volatile__ goto(
		PERCPU__ENTER_UNGATED PERCPU__A_ADD("n") PERCPU__LEAVE
		:
		: [self] "r"(PERCPU__SELF_OPERAND), [index] "r"(PERCPU__INDEX(by)), [object] "r"(object),
		  [limit] PERCPU__LIMIT_OPERAND(percpu__remainder), [n] PERCPU__ADD_OPERAND(n)
		: PERCPU__SCRATCH
		: left);
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}

/* The same, and visible after everything that the thread did before it: who sees the sum sees that too. */
PERCPU__INLINE int percpu__try_count_release(uint64_t *object, uint64_t n, enum percpu__by by)
{
	__asm__ __volatile__ goto(
		PERCPU__ENTER_UNGATED PERCPU__A_ADD_RELEASE("n") PERCPU__LEAVE
		:
		: [self] "r"(PERCPU__SELF_OPERAND), [index] "r"(PERCPU__INDEX(by)), [object] "r"(object),
		  [limit] PERCPU__LIMIT_OPERAND(percpu__remainder), [n] PERCPU__ADD_OPERAND(n)
		: "memory", PERCPU__SCRATCH
		: left);
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}

/*
 * If *open != 0, *object += n, for words that are only counted in, as percpu__try_count(). The word is percpu__remainder or
 * 0: so one comparison asks both, whether the thread may and whether anybody may. It is read inside the section: who sets it
 * to 0 and fences knows that nobody adds any more who saw something else. What he did before he set it back, with release, is
 * visible afterwards. Visible itself after everything that the thread did before it. Never PERCPU__DIFFERS.
 */
PERCPU__INLINE int percpu__try_count_open(uint64_t *object, uint64_t n, const uint32_t *open, enum percpu__by by)
{
	__asm__ __volatile__ goto(PERCPU__ENTER_BELOW PERCPU__A_ADD_RELEASE("n") PERCPU__LEAVE
				  :
				  : [self] "r"(PERCPU__SELF_OPERAND), [index] "r"(PERCPU__INDEX(by)),
				    [object] "r"(object), [limit] "r"(open), [n] PERCPU__ADD_OPERAND(n)
				  : "memory", PERCPU__SCRATCH
				  : left);
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}

/* *object += n. */
#define PERCPU__ADD_WORD(commit)                                                                                       \
	__asm__ __volatile__ goto(PERCPU__ENTER commit PERCPU__LEAVE                                                   \
				  :                                                                                    \
				  : PERCPU__OPERANDS(object, by), [n] PERCPU__ADD_OPERAND(n)                           \
				  : "memory", PERCPU__SCRATCH                                                          \
				  : left)
PERCPU__INLINE int percpu__try_add(uint64_t *object, uint64_t n, enum percpu__by by, enum percpu__order order)
{
	if (order == PERCPU__RELEASE)
		PERCPU__ADD_WORD(PERCPU__A_ADD_RELEASE("n"));
	else
		PERCPU__ADD_WORD(PERCPU__A_ADD("n"));
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}

/* *(object + *offset) += n, with *offset read inside the section: whoever changes it and fences has seen the last use. */
#define PERCPU__ADD_AT_OFFSET(commit)                                                                                  \
	__asm__ __volatile__ goto(PERCPU__ENTER PERCPU__A_ADVANCE("offset") commit PERCPU__LEAVE                       \
				  :                                                                                    \
				  : PERCPU__OPERANDS(object, by), [n] PERCPU__ADD_OPERAND(n), [offset] "r"(offset)     \
				  : "memory", PERCPU__SCRATCH                                                          \
				  : left)
PERCPU__INLINE int percpu__try_add_offset(uint64_t *object, const ptrdiff_t *offset, uint64_t n, enum percpu__by by,
					  enum percpu__order order)
{
	if (order == PERCPU__RELEASE)
		PERCPU__ADD_AT_OFFSET(PERCPU__A_ADD_RELEASE("n"));
	else
		PERCPU__ADD_AT_OFFSET(PERCPU__A_ADD("n"));
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}

/* If *object == expected: *object = desired. */
#define PERCPU__STORE_IF_EQ(commit)                                                                                    \
	__asm__ __volatile__ goto(PERCPU__ENTER PERCPU__A_NE("expected", "11f") commit PERCPU__LEAVE_DIFFERS           \
				  :                                                                                    \
				  : PERCPU__OPERANDS(object, by), [expected] "r"(expected), [desired] "r"(desired)     \
				  : "memory", PERCPU__SCRATCH                                                          \
				  : left, differs)
PERCPU__INLINE int percpu__try_store_if_eq(uint64_t *object, uint64_t expected, uint64_t desired, enum percpu__by by,
					   enum percpu__order order)
{
	if (order == PERCPU__RELEASE)
		PERCPU__STORE_IF_EQ(PERCPU__A_STORE_RELEASE("desired"));
	else
		PERCPU__STORE_IF_EQ(PERCPU__A_STORE("desired"));
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

/* If *object == expected and this copy's *second == expected2: *object = desired. Both lie in one area. */
#define PERCPU__STORE_IF_EQ2(commit)                                                                                   \
	__asm__ __volatile__ goto(PERCPU__ENTER PERCPU__A_NE("expected", "11f")                                        \
					  PERCPU__A_NE_AT("second", "expected2", "11f") commit PERCPU__LEAVE_DIFFERS   \
				  :                                                                                    \
				  : PERCPU__OPERANDS(object, by), [expected] "r"(expected),                            \
				    [second] "r"((uintptr_t)second - (uintptr_t)object), [expected2] "r"(expected2),   \
				    [desired] "r"(desired)                                                             \
				  : "memory", PERCPU__SCRATCH                                                          \
				  : left, differs)
PERCPU__INLINE int percpu__try_store_if_eq2(uint64_t *object, uint64_t expected, const uint64_t *second,
					    uint64_t expected2, uint64_t desired, enum percpu__by by,
					    enum percpu__order order)
{
	if (order == PERCPU__RELEASE)
		PERCPU__STORE_IF_EQ2(PERCPU__A_STORE_RELEASE("desired"));
	else
		PERCPU__STORE_IF_EQ2(PERCPU__A_STORE("desired"));
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

/* If *object == expected: copy len bytes from src to this copy of dst, then *object = desired. */
#define PERCPU__COPY_STORE(commit)                                                                                     \
	__asm__ __volatile__ goto(                                                                                     \
		PERCPU__ENTER PERCPU__A_NE("expected", "11f") PERCPU__A_COPY("dst", "src", "len")                      \
			commit PERCPU__LEAVE_DIFFERS                                                                   \
		:                                                                                                      \
		: PERCPU__OPERANDS(object, by), [expected] "r"(expected),                                              \
		  [dst] PERCPU__COPY_OPERAND((uintptr_t)dst - (uintptr_t)object), [src] PERCPU__COPY_OPERAND(src),     \
		  [len] PERCPU__COPY_OPERAND(len), [desired] "r"(desired)                                              \
		: "memory", PERCPU__SCRATCH_COPY                                                                       \
		: left, differs)
PERCPU__INLINE int percpu__try_copy_store(uint64_t *object, uint64_t expected, void *dst, const void *src, size_t len,
					  uint64_t desired, enum percpu__by by, enum percpu__order order)
{
	if (order == PERCPU__RELEASE)
		PERCPU__COPY_STORE(PERCPU__A_STORE_RELEASE("desired"));
	else
		PERCPU__COPY_STORE(PERCPU__A_STORE("desired"));
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

/*
 * If *object != nil: *object = the word at *object + offset. Returns the old *object, nil if nothing was stored, or
 * PERCPU__LEFT_WORD. The word that is followed cannot go away in between: to take it off this copy is to store to it.
 */
#define PERCPU__FOLLOW(commit, ...)                                                                                    \
	__asm__ __volatile__(PERCPU__ENTER PERCPU__A_LOAD_OUT("out") PERCPU__A_IS("out", "nil", "2f")                  \
				     PERCPU__A_FOLLOW("out", "offset") commit PERCPU__LEAVE_WORD                       \
			     : [out] "=&r"(out)                                                                        \
			     : PERCPU__OPERANDS(object, by), [nil] "r"(nil), [offset] "r"(offset)                      \
			     : __VA_ARGS__)
PERCPU__INLINE uintptr_t percpu__try_follow(uintptr_t *object, uintptr_t nil, ptrdiff_t offset, enum percpu__by by,
					    enum percpu__order order)
{
	uintptr_t out;

	if (order == PERCPU__RELEASE)
		PERCPU__FOLLOW(PERCPU__A_STORE_T_RELEASE, "memory", PERCPU__SCRATCH);
	else
		PERCPU__FOLLOW(PERCPU__A_STORE_T, PERCPU__SCRATCH);
	return out;
}

/*
 * *link = *object, then *object = word. @link is memory that only the caller can reach: the last node of a chain, which
 * makes this a list push, or a local variable, which makes it an exchange.
 */
#define PERCPU__PUSH(commit)                                                                                           \
	__asm__ __volatile__ goto(PERCPU__ENTER PERCPU__A_LOAD PERCPU__A_SAVE("link") commit PERCPU__LEAVE             \
				  :                                                                                    \
				  : PERCPU__OPERANDS(object, by), [word] "r"(word), [link] "r"(link)                   \
				  : "memory", PERCPU__SCRATCH                                                          \
				  : left)
PERCPU__INLINE int percpu__try_push(uintptr_t *object, uintptr_t word, uintptr_t *link, enum percpu__by by,
				    enum percpu__order order)
{
	if (order == PERCPU__RELEASE)
		PERCPU__PUSH(PERCPU__A_STORE_RELEASE("word"));
	else
		PERCPU__PUSH(PERCPU__A_STORE("word"));
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}
#endif

PERCPU_END_DECLS

#endif
