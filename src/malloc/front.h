/* SPDX-License-Identifier: MIT */
/*
 * The magazines: a stack of free objects for each index and class.
 *
 * A copy of the front is an object of nearly a whole stride. A magazine is three words and its slots: the distance from the
 * words to the first free slot, the least and the most that it may be. Sections move the first word; the other two are
 * changed by anybody, and say for one thing that nobody may use the magazine: who sets the least to UINT64_MAX and the most to
 * 0, and fences, has it to himself.
 *
 * No gate: sections compare the index with `limit`, which is 0 until there is a heap. So the first allocation of a process,
 * which may come before any constructor, finds its way into the slow path without a test of its own.
 */
#ifndef PERCPU_SRC_MALLOC_FRONT_H
#define PERCPU_SRC_MALLOC_FRONT_H

#include <percpu/section.h>

#include "malloc/central.h"

struct percpu__magazine {
	uint64_t next, least, most; /* in bytes from here */
	uint64_t size;              /* that it may grow to, in bytes of slots */
};

struct percpu__front {
	struct percpu__magazine magazines[CLASSES + 1]; /* the first is nobody's */
	uint64_t room;                                  /* bytes of objects that all `most` allow */
	uint64_t turns; /* slow paths that were taken here; for who looks for copies that nobody uses */
	uint64_t seen;
	uint32_t hand; /* of who looks for a magazine to make smaller */
	uint32_t drained;
};

/* What the fast path needs, in one line. */
struct percpu__malloc_ready {
	struct percpu__front *front; /* per-CPU */
	uint32_t limit;              /* indexes that sections may use */
	uint32_t index_offset;       /* of the index in a thread's area */
} __attribute__((aligned(64)));
extern PERCPU_HIDDEN struct percpu__malloc_ready percpu__malloc_ready;

/* Bytes of objects that the magazines of one index may hold. */
extern PERCPU_HIDDEN uint64_t percpu__front_room;

#ifndef PERCPU_NO_SECTIONS
/* clang-format off */
#define PERCPU__ENTER_MAGAZINE                                                                                         \
	PERCPU__DESCRIPTOR PERCPU__A_LOAD_SELF PERCPU__A_ARM("3b", PERCPU__A_SELF)                                     \
	"1:\n\t" PERCPU__A_LOCATE_UNGATED(PERCPU__STRIDE_ASM, PERCPU__A_SELF, "4f")
/* clang-format on */
#define PERCPU__MAGAZINE_OPERANDS(magazine)                                                                            \
	[self] "r"(PERCPU__SELF_OPERAND), [index] "r"((uintptr_t)percpu__malloc_ready.index_offset),                   \
		[object] "r"(magazine), [limit] PERCPU__LIMIT_OPERAND(percpu__malloc_ready.limit)

/* The object on top; PERCPU__LEFT_WORD, or NULL if there is none. */
PERCPU__INLINE void *percpu__try_take(struct percpu__magazine *magazine)
{
	uintptr_t out;

	__asm__ __volatile__(PERCPU__ENTER_MAGAZINE PERCPU__A_TOP_TAKE("out", "11f") PERCPU__A_STORE_T
			     "2:\n\t" PERCPU__A_COLD PERCPU__SIGNATURE_ASM "4:\n\t" PERCPU__A_SET("out", "1")
				     PERCPU__A_JUMP("2b") "11:\n\t" PERCPU__A_SET("out", "0") PERCPU__A_JUMP("2b")
					     PERCPU__A_COLD_END PERCPU__EXIT("11b")
			     : [out] "=&r"(out)
			     : PERCPU__MAGAZINE_OPERANDS(magazine)
			     : "memory", PERCPU__SCRATCH);
	return (void *)out;
}

PERCPU__INLINE int percpu__try_put(struct percpu__magazine *magazine, void *object)
{
	__asm__ __volatile__ goto(PERCPU__ENTER_MAGAZINE PERCPU__A_TOP_PUT("object_", "11f")
					  PERCPU__A_STORE_T PERCPU__LEAVE_DIFFERS
				  :
				  : PERCPU__MAGAZINE_OPERANDS(magazine), [object_] "r"(object)
				  : "memory", PERCPU__SCRATCH
				  : left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

/* @n objects at once, or none. */
PERCPU__INLINE int percpu__try_take_many(struct percpu__magazine *magazine, void **out, uint64_t n)
{
	__asm__ __volatile__ goto(PERCPU__ENTER_MAGAZINE PERCPU__A_TOP_TAKE_MANY("out", "n", "bytes", "11f")
					  PERCPU__A_STORE_T PERCPU__LEAVE_DIFFERS
				  :
				  : PERCPU__MAGAZINE_OPERANDS(magazine), [out] PERCPU__COPY_OPERAND(out),
				    [n] PERCPU__COPY_OPERAND(n), [bytes] PERCPU__COPY_OPERAND(n * sizeof(*out))
				  : "memory", PERCPU__SCRATCH_COPY
				  : left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

PERCPU__INLINE int percpu__try_put_many(struct percpu__magazine *magazine, void *const *objects, uint64_t n)
{
	__asm__ __volatile__ goto(PERCPU__ENTER_MAGAZINE PERCPU__A_TOP_PUT_MANY("from", "n", "bytes", "11f")
					  PERCPU__A_STORE_T PERCPU__LEAVE_DIFFERS
				  :
				  : PERCPU__MAGAZINE_OPERANDS(magazine), [from] PERCPU__COPY_OPERAND(objects),
				    [n] PERCPU__COPY_OPERAND(n), [bytes] PERCPU__COPY_OPERAND(n * sizeof(*objects))
				  : "memory", PERCPU__SCRATCH_COPY
				  : left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}
#endif

/* The cold halves. */
PERCPU_HIDDEN void *percpu__take_slow(unsigned class) PERCPU__COLD;
PERCPU_HIDDEN void percpu__put_slow(unsigned class, void *object) PERCPU__COLD;

/* Makes heap and front, once; false: no memory. */
PERCPU_HIDDEN bool percpu__malloc_start(void) PERCPU__COLD;
/* Empties magazines of indexes: all of them, or those whose threads have not been seen since the last call. */
PERCPU_HIDDEN void percpu__front_drain(bool all);
/* Bytes of objects in magazines, roughly. */
PERCPU_HIDDEN uint64_t percpu__front_cached(unsigned class);

#endif
