/* SPDX-License-Identifier: MIT */
/*
 * Spinlocks: a lock in each copy, for what the caller keeps in that copy.
 *
 * A lock is a per-CPU object, by itself or as a member of what it guards; fresh per-CPU memory is unlocked:
 *
 *     struct cache { struct percpu_spinlock lock; ... } *cache = percpu_alloc(sizeof *cache, 64), *mine;
 *     mine = (struct cache *)percpu_spinlock_lock(&cache->lock);
 *     ... plain loads and stores in *mine ...
 *     percpu_spinlock_unlock(&mine->lock);
 *
 * Lock and unlock of the calling thread's own copy are a section and two plain accesses: no atomic instruction, no shared
 * cache line. percpu_spinlock_lock() returns the copy that it locked, percpu_spinlock_index() its number. Until it is
 * unlocked that copy of all the lock guards belongs to the caller, wherever the thread is moved meanwhile. Any thread may
 * lock any index, or all of them: it ends the copy's *bias* towards its own CPU by one fence, and from then on everybody
 * takes that copy's lock by compare-and-swap, until its own CPU's threads have been alone with it some hundred times. So a
 * lock that is fought over costs a fence once, not each time.
 *
 * Which copy percpu_spinlock_lock() takes is not the caller's to know before: threads that the kernel does not serve lock
 * the remainder, and in mode none any copy that is free.
 *
 * Not recursive: a thread that locks what it holds, also in a handler that interrupted the holder, waits for ever.
 * Handlers use percpu_spinlock_trylock(), or lock what is only locked while signals are blocked. A lock is not fair. The
 * holder keeps its own priority, and may be preempted: waiters spin briefly, then sleep, and are woken when it unlocks.
 * Within one process only. A thread that ends with a lock leaves it locked.
 *
 * fork: the child has the locks as they were, so what other threads held or waited for stays so. As with other locks, who
 * needs them in the child calls percpu_spinlock_lock_all() in a handler of pthread_atfork(3) before the fork,
 * percpu_spinlock_unlock_all() in the parent and percpu_spinlock_init() in the child.
 *
 * Sources: per-CPU locks after Mathieu Desnoyers' tests of restartable sequences; ending a bias by a fence after Dave
 * Dice, Hui Huang and Mingyao Yang (asymmetric Dekker synchronization, 2001).
 */
#ifndef PERCPU_SPINLOCK_H
#define PERCPU_SPINLOCK_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** The lock of one copy. Fields belong to the library; src/ds/spinlock.c opens with the protocol. */
struct percpu_spinlock {
	uint32_t held;     /* 1 while locked; from 0 by sections and compare-and-swap, back by its holder alone */
	int32_t bias;      /* 1: sections may lock; else somebody ended that or is about to */
	uint32_t sleepers; /* on `held` */
	uint32_t patience; /* acquisitions until the bias comes back; its holder's */
	uint32_t all;      /* in the remainder's copy: how many indexes somebody has who locks all of them */
	uint32_t all_lock; /* in the remainder's copy: for who does, one at a time */
	uint32_t unused[2];
};
#define PERCPU__SPINLOCK_BIAS "4" /* distance from `held` */

#ifndef PERCPU_NO_SECTIONS
/*
 * If this copy is biased and not held, hold it. Returns the copy, or NULL if it left. There is no gate: nobody works on
 * these words under one. Who ends the bias and fences knows that nobody takes the lock here any more who saw it. Who gives
 * it back holds the lock until after that, and `held` is read after `bias`.
 */
PERCPU__INLINE struct percpu_spinlock *percpu__try_spinlock(struct percpu_spinlock *lock)
{
	struct percpu_spinlock *copy;

	/* clang-format off */
	__asm__ __volatile__(
		PERCPU__DESCRIPTOR PERCPU__A_ARM("3b", PERCPU__A_AREA)
		"1:\n\t" PERCPU__A_LOCATE_OUT(PERCPU__STRIDE_ASM, PERCPU__A_AREA, "out")
		PERCPU__A_ZERO_BEFORE_ONE("out", PERCPU__SPINLOCK_BIAS, "4f") PERCPU__A_STORE_ONE("out")
		"2:\n\t" PERCPU__A_COLD PERCPU__SIGNATURE_ASM "4:\n\t" PERCPU__A_SET("out", "0") PERCPU__A_JUMP("2b")
		PERCPU__A_COLD_END
		: [out] "=&r"(copy)
		: [area] "r"(percpu__self), [index] "r"(PERCPU__INDEX_OF(lock)), [object] "r"(lock)
		: "memory", PERCPU__SCRATCH);
	/* clang-format on */
	return copy;
}
#define PERCPU__TRY_SPINLOCK(lock) percpu__try_spinlock(lock)
#else
#define PERCPU__TRY_SPINLOCK(lock) ((struct percpu_spinlock *)0)
#endif

PERCPU_API struct percpu_spinlock *percpu__spinlock_slow(struct percpu_spinlock *lock) PERCPU__COLD;
PERCPU_API struct percpu_spinlock *percpu__spinlock_slow_try(struct percpu_spinlock *lock) PERCPU__COLD;
PERCPU_API void percpu__spinlock_wake(struct percpu_spinlock *copy) PERCPU__COLD;

/**
 * percpu_spinlock_init - unlock all indexes, whoever has them.
 *
 * For memory that is not fresh, and in the child of a fork. Nobody else may use @lock meanwhile. Copies that nobody has
 * used are not touched. Returns 0, or -EINVAL if @lock is NULL. Wait-free, async-signal-safe.
 */
PERCPU_API int percpu_spinlock_init(struct percpu_spinlock *lock);

/** percpu_spinlock_index - the index of a copy that percpu_spinlock_lock() or percpu_spinlock_trylock() returned. */
PERCPU__INLINE unsigned percpu_spinlock_index(const struct percpu_spinlock *lock, const struct percpu_spinlock *copy)
{
	return (unsigned)(((uintptr_t)copy - (uintptr_t)lock) >> PERCPU_STRIDE_SHIFT);
}

/**
 * percpu_spinlock_lock - lock the calling thread's own copy, or another where it has none.
 *
 * @lock: a per-CPU pointer
 * Returns the copy of @lock that is locked: that index belongs to the caller, who sees all that earlier holders did to it.
 * Never fails. Wait-free while the index is biased and unlocked; otherwise it may block on holders: it spins briefly, then
 * sleeps. In handlers only if no thread holds the lock with its signals open.
 */
PERCPU__INLINE struct percpu_spinlock *percpu_spinlock_lock(struct percpu_spinlock *lock)
{
	struct percpu_spinlock *copy = PERCPU__TRY_SPINLOCK(lock);

	if (PERCPU__UNLIKELY(!copy))
		return percpu__spinlock_slow(lock);
	/* What the section loaded comes before what the holder loads and stores. Pairs with the release in unlock. */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return copy;
}

/**
 * percpu_spinlock_trylock - percpu_spinlock_lock() that does not wait for a holder.
 *
 * Returns the copy, or NULL if somebody holds it (in mode none: each of them). Async-signal-safe, also in a handler that
 * interrupted the holder. It may have to fence, where its section was interrupted again and again.
 */
PERCPU__INLINE struct percpu_spinlock *percpu_spinlock_trylock(struct percpu_spinlock *lock)
{
	struct percpu_spinlock *copy = PERCPU__TRY_SPINLOCK(lock);

	if (PERCPU__UNLIKELY(!copy))
		return percpu__spinlock_slow_try(lock);
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return copy;
}

/**
 * percpu_spinlock_lock_index - lock a certain index, whichever the calling thread is on.
 *
 * @index: 0 to percpu_copies() - 1. Who holds several takes them in rising order.
 * To unlock it is to unlock percpu_ptr(lock, index). Returns 0; -EINVAL for an argument out of range; -errno of
 * membarrier(2) if the kernel has begun to refuse it. Nothing is locked on failure. Costs a fence if the index is biased.
 * May block on holders, as percpu_spinlock_lock().
 */
PERCPU_API int percpu_spinlock_lock_index(struct percpu_spinlock *lock, unsigned index);

/**
 * percpu_spinlock_unlock - unlock a copy that the calling thread has locked.
 *
 * @copy: what percpu_spinlock_lock() returned; nothing of it is used when this returns, but until then it must stay
 * Wait-free, async-signal-safe. One store and one load, wherever the thread runs by now; a system call if somebody sleeps.
 */
PERCPU__INLINE void percpu_spinlock_unlock(struct percpu_spinlock *copy)
{
	__atomic_store_n(&copy->held, 0, __ATOMIC_RELEASE);
	/*
	 * The processor may load `bias` before others see the store, but not across the fence of somebody who ended the bias
	 * and is about to sleep: either he finds the lock free, or this finds the bias gone. Else he would sleep for ever.
	 */
	__asm__ __volatile__("" ::: "memory");
	if (PERCPU__UNLIKELY(__atomic_load_n(&copy->bias, __ATOMIC_RELAXED) <= 0))
		percpu__spinlock_wake(copy);
}

/**
 * percpu_spinlock_lock_all - lock all indexes, the remainder's too, at the cost of one fence.
 *
 * The caller holds none of them. In rising order, so that it may meet others who hold several. Copies that nobody has used
 * are locked without being touched. Returns 0; -EINVAL if @lock is NULL; -errno of membarrier(2) if the kernel has begun to
 * refuse it: nothing is locked then. May block on holders. In handlers as percpu_spinlock_lock().
 */
PERCPU_API int percpu_spinlock_lock_all(struct percpu_spinlock *lock);

/** percpu_spinlock_unlock_all - undo percpu_spinlock_lock_all(), in the same thread. Async-signal-safe. */
PERCPU_API void percpu_spinlock_unlock_all(struct percpu_spinlock *lock);

PERCPU_END_DECLS

#endif
