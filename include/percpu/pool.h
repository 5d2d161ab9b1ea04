/* SPDX-License-Identifier: MIT */
/*
 * Pools: objects of one size, kept ready in a small array for each index (a magazine) over a depot for all.
 *
 * Get and put are one section each, on the calling thread's own magazine. When that is empty or full they exchange half
 * of it with the depot, under a lock. Objects may be put by another thread than got them. The memory of an object is never
 * written by the pool, neither while it is out nor while it is free.
 *
 * Memory is bounded: of a pool with a maximum, no more objects are ever out of the depot, held or in magazines. Before a
 * get fails it takes back what other indexes' magazines hold, and closes them: until there are plenty of objects again,
 * everybody works on the depot. So a get that fails has found a moment when fewer objects than it wanted were left.
 *
 * A magazine holds as many objects as make 64 KiB, but at least 4 and at most 128, and no more than the maximum. What is
 * cached is so at most the larger of 64 KiB and four objects for each index that was used, until percpu_pool_trim().
 */
#ifndef PERCPU_POOL_H
#define PERCPU_POOL_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** The largest object, in bytes, and the largest alignment. */
#define PERCPU_POOL_SIZE_MAX  ((size_t)1 << 30)
#define PERCPU_POOL_ALIGN_MAX ((size_t)4096)

/** Flag of percpu_pool_init(): destroy the pool even while objects are out, which then cease to exist too. */
#define PERCPU_POOL_FORGET 1U

/** A pool, in the caller's storage. Constant after init; belongs to the library. */
struct percpu_pool {
	/*
	 * Per-CPU. The word of each magazine, behind its slots: 0 while the magazine is closed; else -1 if it is full,
	 * less by one for each free slot. The last object is word[*word].
	 */
	uint64_t *word;
	uint64_t first; /* what the word is when one object is there */
	size_t capacity;
	struct percpu__depot *depot;
};

/** What percpu_pool_stats() tells. Numbers of objects, but for bytes. */
struct percpu_pool_stats {
	size_t out;       /**< held by callers */
	size_t magazines; /**< free, in magazines */
	size_t depot;     /**< free, in the depot, in memory that the pool has */
	size_t strays; /**< addresses put that the depot found to be no object of the pool, or free already; dropped */
	size_t bytes;  /**< of memory for objects, most of it real once used, and for the depot's books */
	size_t capacity; /**< of each magazine */
};

/**
 * percpu_pool_init - make a pool.
 *
 * @size: bytes of an object, 1 to PERCPU_POOL_SIZE_MAX
 * @align: its alignment, a power of two up to PERCPU_POOL_ALIGN_MAX; ask for 64 so that no two share a cache line
 * @max: how many objects may be out of the depot at once; 0: as many as there is memory for
 * @flags: 0 or PERCPU_POOL_FORGET
 * Returns 0; -EINVAL for an argument out of range; -ENOMEM. @pool is untouched on error. May block. Async-signal-safe.
 */
PERCPU_API int percpu_pool_init(struct percpu_pool *pool, size_t size, size_t align, size_t max, unsigned flags);

/**
 * percpu_pool_destroy - give all memory of a pool back. No other thread may use it any more.
 *
 * Returns 0; -EINVAL if @pool is NULL or destroyed already; -EBUSY, and the pool is as it was, if objects are out and it
 * was not made with PERCPU_POOL_FORGET. (In a forked child, what other threads held at the fork is out for ever.)
 * May block. Async-signal-safe.
 */
PERCPU_API int percpu_pool_destroy(struct percpu_pool *pool);

/* The cold halves: @word and @rc say how the section ended. */
PERCPU_API void *percpu__pool_get_slow(const struct percpu_pool *pool, uintptr_t word) PERCPU__COLD;
PERCPU_API void percpu__pool_put_slow(const struct percpu_pool *pool, void *object, int rc) PERCPU__COLD;
PERCPU_API bool percpu__pool_get_bulk_slow(const struct percpu_pool *pool, void **out, size_t n, int rc) PERCPU__COLD;
PERCPU_API void percpu__pool_put_bulk_slow(const struct percpu_pool *pool, void *const *objects, size_t n, int rc)
	PERCPU__COLD;

#ifndef PERCPU_NO_SECTIONS
/* clang-format off */
/* As PERCPU__LEAVE_WORD, for sections that may find nothing: they go to 11 and return 0. */
#define PERCPU__LEAVE_WORD_OR_NONE                                                                                     \
	PERCPU__LEAVE_WORD PERCPU__A_COLD "11:\n\t" PERCPU__A_SET("out", "0") PERCPU__A_JUMP("2b") PERCPU__A_COLD_END        \
	PERCPU__EXIT("11b")
/* clang-format on */

/* Takes the last object. @first: the lowest word with which there is one. Returns it, 0 or PERCPU__LEFT_WORD. */
PERCPU__INLINE uintptr_t percpu__try_pool_get(uint64_t *object, uint64_t first)
{
	uintptr_t out;

	__asm__ __volatile__(PERCPU__ENTER PERCPU__A_LOAD PERCPU__A_T_BELOW("first", "11f") PERCPU__A_T_TAKE("out")
				     PERCPU__A_STORE_T PERCPU__LEAVE_WORD_OR_NONE
			     : [out] "=&r"(out)
			     : PERCPU__OPERANDS(object, PERCPU__BY_ID), [first] "r"(first)
			     : PERCPU__SCRATCH);
	return out;
}

/* Puts one behind the last. The slot is nobody's before the word says so. */
PERCPU__INLINE int percpu__try_pool_put(uint64_t *object, uintptr_t word)
{
	__asm__ __volatile__ goto(
		PERCPU__ENTER PERCPU__A_LOAD PERCPU__A_T_ABOVE("last", "11f") PERCPU__A_T_PUT("word")
			PERCPU__A_STORE_T PERCPU__LEAVE_DIFFERS
		:
		: PERCPU__OPERANDS(object, PERCPU__BY_ID), [word] "r"(word), [last] PERCPU__BOUND_OPERAND((int64_t)-2)
		: "memory", PERCPU__SCRATCH
		: left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

/* The same with @n objects, 1 to the capacity. An interrupted attempt may have written some of @out. */
PERCPU__INLINE int percpu__try_pool_get_bulk(uint64_t *object, uint64_t first, void **to, size_t n)
{
	__asm__ __volatile__ goto(PERCPU__ENTER PERCPU__A_LOAD PERCPU__A_T_BELOW("first", "11f")
					  PERCPU__A_T_TAKE_MANY("to", "n") PERCPU__A_STORE_T PERCPU__LEAVE_DIFFERS
				  :
				  : PERCPU__OPERANDS(object, PERCPU__BY_ID), [first] "r"(first + n - 1),
				    [to] PERCPU__COPY_OPERAND(to), [n] PERCPU__COPY_OPERAND(n)
				  : "memory", PERCPU__SCRATCH_COPY
				  : left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}

PERCPU__INLINE int percpu__try_pool_put_bulk(uint64_t *object, void *const *from, size_t n)
{
	__asm__ __volatile__ goto(
		PERCPU__ENTER PERCPU__A_LOAD PERCPU__A_T_ABOVE("last", "11f") PERCPU__A_T_PUT_MANY("from", "n")
			PERCPU__A_STORE_T PERCPU__LEAVE_DIFFERS
		:
		: PERCPU__OPERANDS(object, PERCPU__BY_ID), [last] PERCPU__BOUND_OPERAND(-(int64_t)n - 1),
		  [from] PERCPU__COPY_OPERAND(from), [n] PERCPU__COPY_OPERAND(n)
		: "memory", PERCPU__SCRATCH_COPY
		: left, differs);
	return PERCPU__DONE;
differs:
	return PERCPU__DIFFERS;
left:
	return PERCPU__LEFT;
}
#endif

/**
 * percpu_pool_get - take an object.
 *
 * Returns it, or NULL if the maximum is out or there is no memory. Its contents are those that it had when it was put,
 * or zero. Whoever put it has done all that came before, visibly to the caller.
 * Progress: wait-free but for the slow path of <percpu/ops.h> and for an empty magazine, which goes to the depot and may
 * block there. Async-signal-safe. (A handler that in mode none interrupted an operation of its own thread may get NULL
 * although some magazine has objects: it must not wait. So may anybody if the kernel has begun to refuse membarrier(2).)
 */
PERCPU__INLINE void *percpu_pool_get(struct percpu_pool *pool)
{
	uintptr_t word = PERCPU__TRY_WORD(percpu__try_pool_get(pool->word, pool->first));

	if (PERCPU__UNLIKELY(word <= PERCPU__LEFT_WORD))
		return percpu__pool_get_slow(pool, word);
	return (void *)word;
}

/**
 * percpu_pool_put - give an object back, from any thread.
 *
 * @object: what get returned, which the caller uses no more; NULL does nothing
 * Never fails. Anything else than an object of this pool that is out is a mistake: where the depot sees one it drops it
 * and counts it (percpu_pool_stats.strays), but a get may return it before. Progress and safety as get.
 */
PERCPU__INLINE void percpu_pool_put(struct percpu_pool *pool, void *object)
{
	int rc;

	if (PERCPU__UNLIKELY(!object))
		return;
	rc = PERCPU__TRY(percpu__try_pool_put(pool->word, (uintptr_t)object));
	if (PERCPU__UNLIKELY(rc != PERCPU__DONE))
		percpu__pool_put_slow(pool, object, rc);
}

/**
 * percpu_pool_get_bulk - take @n objects or none.
 *
 * @out: room for @n pointers; what is in it after a failure is unspecified
 * Returns whether it did. One section if the magazine has so many; else all come from the depot. As percpu_pool_get().
 */
PERCPU__INLINE bool percpu_pool_get_bulk(struct percpu_pool *pool, void **out, size_t n)
{
	int rc = PERCPU__DIFFERS;

	if (PERCPU__LIKELY(n - 1 < pool->capacity))
		rc = PERCPU__TRY(percpu__try_pool_get_bulk(pool->word, pool->first, out, n));
	if (PERCPU__UNLIKELY(rc != PERCPU__DONE))
		return percpu__pool_get_bulk_slow(pool, out, n, rc);
	return true;
}

/**
 * percpu_pool_put_bulk - give @n objects back.
 *
 * @objects: none of them NULL. One section if the magazine has room; else all go to the depot. As percpu_pool_put().
 */
PERCPU__INLINE void percpu_pool_put_bulk(struct percpu_pool *pool, void *const *objects, size_t n)
{
	int rc = PERCPU__DIFFERS;

	if (PERCPU__LIKELY(n - 1 < pool->capacity))
		rc = PERCPU__TRY(percpu__try_pool_put_bulk(pool->word, objects, n));
	if (PERCPU__UNLIKELY(rc != PERCPU__DONE))
		percpu__pool_put_bulk_slow(pool, objects, n, rc);
}

/**
 * percpu_pool_trim - empty all magazines and give memory back to the system where no object is left.
 *
 * @keep: as many free objects stay at least, if there are so many
 * Returns how many bytes went back, 0 also if @pool is NULL. One fence for eight magazines. Concurrent operations go on,
 * and fill their magazines again. May block. Async-signal-safe.
 */
PERCPU_API size_t percpu_pool_trim(struct percpu_pool *pool, size_t keep);

/**
 * percpu_pool_stats - count.
 *
 * @out: filled completely. Returns 0, or -EINVAL if an argument is NULL. Exact if nobody uses the pool meanwhile, else
 * off by what moves. May block. Async-signal-safe.
 */
PERCPU_API int percpu_pool_stats(const struct percpu_pool *pool, struct percpu_pool_stats *out);

PERCPU_END_DECLS

#endif
