/* SPDX-License-Identifier: MIT */
/*
 * The magazines: a stack of free objects for each index and class, as a list through the objects.
 *
 * A magazine's word is the address of the object on top times 64 Ki, plus how many there are; the first word of each object
 * is what the magazine's was before it. So one store puts or takes any number of objects, and who takes one has its address
 * after one load: what the program then stores there is not in the way of the next loads for long. (A stack of pointers
 * needs two loads. Where classes mix, that made a malloc and free 12 ns instead of 9, on Zen 3.) And a list whose objects carry
 * the numbers of their places shows damage: an object that was written to after it was freed has another number than the
 * one on top of it says, and one that is there twice cannot have both of its numbers.
 *
 * Sections change the word. The limits are changed by anybody: how few and how many objects there must be for somebody to
 * take or put. Who makes them CLOSED, and fences, has the magazine to himself.
 *
 * No gate, and no test whether there is a front. A magazine of zeros is empty and full, so all of these lead into the slow
 * path: the first magazine of each copy, which stands for addresses that are no small objects; the copy of the remainder, for
 * threads that are not registered; and copy 0 of `percpu__no_front`, for everybody who reads index 0 there: that is what the
 * hot words say until the heap has started, and for ever in mode none and in watched mode.
 */
#ifndef PERCPU_SRC_MALLOC_FRONT_H
#define PERCPU_SRC_MALLOC_FRONT_H

#include <assert.h>

#include <percpu/section.h>

#include "malloc/central.h"

struct percpu__magazine {
	uint64_t word;
	uint32_t limits; /* least + most * 64 Ki */
	uint32_t refill; /* how many objects the next one brings; grows to a batch */
};
#define CLOSED 0xffffU
static_assert(sizeof(struct percpu__magazine) == 1U << DISTANCE_LOG, "distances of magazines");

/* Of one class. Anybody adds to them. */
struct percpu__magazine_counts {
	uint64_t hits; /* in watched mode */
	uint64_t misses, flushes;
};

struct percpu__front {
	struct percpu__magazine magazines[CLASSES + 1]; /* the first is nobody's */
	uint64_t room;  /* bytes of objects that all limits allow, beside the first ones */
	uint64_t turns; /* slow paths that were taken here; for who looks for copies that nobody uses */
	uint64_t seen;
	uint64_t drains;
	uint32_t hand; /* of who looks for a magazine to make smaller */
	uint32_t drained;
	uint32_t prepared; /* limits and words are set */
	struct percpu__magazine_counts counts[CLASSES + 1];
};

/*
 * What the fast paths need, in one line. The words change together, once. So one of these is for functions that may be first
 * called by several threads at once, and is found by a pointer; the other is for those that are called before there are
 * threads, and is written only then.
 */
struct percpu__malloc_ready {
	struct percpu__front *take, *put; /* per-CPU; or percpu__no_front */
	uint32_t take_index, put_index;   /* where a thread's area has the index; or a word that is always 0 */
	uintptr_t base, units;            /* the heap's first byte, and its size, in units of QUANTUM */
	const uint16_t
		*pages; /* of each page: the distance of its class's magazine in the front; 0: no small objects */
} __attribute__((aligned(64)));
extern PERCPU_HIDDEN struct percpu__malloc_ready percpu__malloc_ready;
extern PERCPU_HIDDEN const struct percpu__malloc_ready *percpu__malloc_hot;
extern PERCPU_HIDDEN const struct percpu__magazine percpu__no_front[CLASSES + 1];

/* Per-CPU; NULL: there is none. Its index is where percpu__index_offset says. */
extern PERCPU_HIDDEN struct percpu__front *percpu__front;

/* One more than the highest index that was used: copies above were never written to. */
extern PERCPU_HIDDEN uint32_t percpu__front_top;

/* Bytes of objects that the magazines of one index may hold. */
extern PERCPU_HIDDEN uint64_t percpu__front_room;

/* Why all allocations take the slow path: what is to be done with each of them. Decided before the front is there. */
enum percpu__watch {
	PERCPU__WATCH_COUNT = 1,  /* hits are counted */
	PERCPU__WATCH_SAMPLE = 2, /* percpu__sample_new() is asked each time */
	PERCPU__WATCH_ZERO = 4,
	PERCPU__WATCH_CHECK = 8, /* and with what is freed: no magazines, no stocks, all wrong pointers are found */
};
extern PERCPU_HIDDEN unsigned percpu__malloc_watched;

#ifndef PERCPU_NO_SECTIONS
/* clang-format off */
#define PERCPU__ENTER_MAGAZINE                                                                                         \
	PERCPU__DESCRIPTOR PERCPU__A_LOAD_SELF PERCPU__A_ARM("3b", PERCPU__A_SELF)                                     \
	"1:\n\t" PERCPU__A_LOCATE_BARE(PERCPU__STRIDE_ASM, PERCPU__A_SELF)
/* clang-format on */
#define PERCPU__MAGAZINE_OPERANDS(magazine)                                                                            \
	[self] "r"(PERCPU__SELF_OPERAND), [index] "r"((uintptr_t)where), [object] "r"(magazine)

/*
 * @where: in a thread's area, the index. The object on top; PERCPU__LEFT_WORD, or NULL if there is none.
 */
PERCPU__INLINE void *percpu__try_take(uint32_t where, struct percpu__magazine *magazine)
{
	uintptr_t out;

	__asm__ __volatile__(PERCPU__ENTER_MAGAZINE PERCPU__A_LIFO_TAKE("out", "2f") PERCPU__A_STORE_T
			     "2:\n\t" PERCPU__A_COLD PERCPU__SIGNATURE_ASM "4:\n\t" PERCPU__A_SET("out", "1")
				     PERCPU__A_JUMP("2b") PERCPU__A_COLD_END
			     : [out] "=&r"(out)
			     : PERCPU__MAGAZINE_OPERANDS(magazine)
			     : "memory", PERCPU__SCRATCH_LIFO);
	return (void *)out;
}

PERCPU__INLINE int percpu__try_put(uint32_t where, struct percpu__magazine *magazine, void *object)
{
	__asm__ __volatile__ goto(PERCPU__ENTER_MAGAZINE PERCPU__A_LIFO_PUT("object_", "%l[differs]")
					  PERCPU__A_STORE_T PERCPU__LEAVE PERCPU__EXIT("%l[differs]")
				  :
				  : PERCPU__MAGAZINE_OPERANDS(magazine), [object_] "r"(object)
				  : "memory", PERCPU__SCRATCH_LIFO
				  : left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

/* @n objects at once, or none. */
PERCPU__INLINE int percpu__try_take_many(uint32_t where, struct percpu__magazine *magazine, void **out, uint64_t n)
{
	__asm__ __volatile__ goto(
		PERCPU__ENTER_MAGAZINE PERCPU__A_LIFO_TAKE_MANY("out", "n", "11f")
			PERCPU__A_STORE_T PERCPU__LEAVE_DIFFERS
		:
		: PERCPU__MAGAZINE_OPERANDS(magazine), [out] PERCPU__COPY_OPERAND(out), [n] PERCPU__COPY_OPERAND(n)
		: "memory", PERCPU__SCRATCH_COPY
		: left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

PERCPU__INLINE int percpu__try_put_many(uint32_t where, struct percpu__magazine *magazine, void *const *objects,
					uint64_t n)
{
	__asm__ __volatile__ goto(
		PERCPU__ENTER_MAGAZINE PERCPU__A_LIFO_PUT_MANY("from", "n", "11f")
			PERCPU__A_STORE_T PERCPU__LEAVE_DIFFERS
		:
		: PERCPU__MAGAZINE_OPERANDS(magazine), [from] PERCPU__COPY_OPERAND(objects), [n] PERCPU__COPY_OPERAND(n)
		: "memory", PERCPU__SCRATCH_COPY
		: left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}
#endif

/*
 * The cold halves: of an allocation of @size bytes, at an address that is a multiple of @align, from @class, whose objects are
 * so aligned (NULL and errno = ENOMEM: no memory); and of what is freed.
 */
PERCPU_HIDDEN void *percpu__take_slow(size_t size, unsigned class, size_t align) PERCPU__COLD;
PERCPU_HIDDEN void percpu__put_slow(void *object, unsigned class) PERCPU__COLD;

/* Makes heap and front, once; false: no memory. */
PERCPU_HIDDEN bool percpu__malloc_start(void) PERCPU__COLD;
/* Empties magazines of indexes: all of them, or those whose threads have not been seen since the last call. */
PERCPU_HIDDEN void percpu__front_drain(bool all);

/* Before giving up: all that magazines and stocks hold goes back to the spans. */
PERCPU_HIDDEN void percpu__malloc_gather(void) PERCPU__COLD;

struct percpu__front_stats {
	uint64_t hits; /* in watched mode */
	uint64_t misses, flushes;
	uint64_t cached, most; /* objects in the magazine, and how many it may hold */
	uint64_t drains;       /* of the whole index */
};
/* Of one index and class, roughly. False: the index was never used. */
PERCPU_HIDDEN bool percpu__front_stats(unsigned index, unsigned class, struct percpu__front_stats *stats);
/* The same, of a copy that may be another process's. */
PERCPU_HIDDEN bool percpu__front_stats_in(const struct percpu__front *front, unsigned class,
					  struct percpu__front_stats *stats);
/* Objects of a class in all magazines. */
PERCPU_HIDDEN uint64_t percpu__front_cached(unsigned class);

#endif
