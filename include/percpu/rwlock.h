/* SPDX-License-Identifier: MIT */
/*
 * Reader-writer locks whose readers write nothing that another CPU writes.
 *
 * A lock is a per-CPU object, by itself or as a member of one; fresh per-CPU memory is a lock that nobody holds:
 *
 *     struct percpu_rwlock *lock = percpu_alloc(sizeof *lock, 64);
 *
 *     percpu_rwlock_read_lock(lock);
 *     ... read what the lock guards ...
 *     percpu_rwlock_read_unlock(lock);
 *
 * A reader counts itself in on its own copy and out on whichever copy it is by then: one section each, no atomic
 * instruction, so readers on any number of CPUs do not disturb each other. A writer pays for that: it closes the copies
 * that readers used, fences all CPUs (percpu_fence()), and waits until as many have left as entered. The first reader on
 * each copy after a writer opens it again, which costs that one some atomic instructions. For data that is read all the
 * time and changed now and then.
 *
 * Who waits for whom. A reader that comes while a writer holds the lock or waits for readers to leave, waits for that
 * one writer only: when it unlocks (or gives up), all readers that waited get in, before any other writer. A writer
 * waits for the writers that queued before it, and for the readers that entered before it closed the lock: new ones
 * cannot overtake it. So neither side starves the other. Writers are woken in the order in which they went to sleep.
 *
 * What may be done:
 *   - A read lock may be released by another thread than the one that took it. So may a write lock.
 *   - Taking a read lock again with percpu_rwlock_read_lock() deadlocks if a writer has come in between, as it does
 *     with most fair locks. percpu_rwlock_read_lock_again() is for that.
 *   - In a signal handler: percpu_rwlock_read_trylock(), _read_lock_again() (if it is known that this thread holds
 *     one), _read_unlock() and _write_trylock() are async-signal-safe at any instruction. The functions that wait are
 *     correct there only if the interrupted thread does not hold the lock and is not about to take it.
 *   - fork: the child has the lock as it was at that moment. What the forking thread held it holds there; what other
 *     threads held, or were taking, stays held in the child. Who wants to use the lock in the child takes it for
 *     writing before the fork, and unlocks it in parent and child. (With _Fork or a raw system call it must be made
 *     anew there.)
 *   - Not between processes: the fence is the process's own.
 *
 * Sources: Desnoyers' and McKenney's asymmetric fences and sleepable RCU's two counts (Linux's SRCU), Brandenburg and
 * Anderson's phase-fair locks (2009); after Linux's percpu_rw_semaphore (Patocka, Nesterov 2012).
 */
#ifndef PERCPU_RWLOCK_H
#define PERCPU_RWLOCK_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** A lock: 128 bytes of each copy, of which those of a copy that no reader runs on are never written. Belongs to the library. */
struct percpu_rwlock {
	uint64_t entered; /* how many readers entered here; only counted up */
	uint64_t left;    /* how many left here */
	uint32_t open;    /* sections may count here: set by readers who are inside, cleared by the writer */
	uint32_t unused[11];
	/* In the first copy, for all. What waiting readers and writers write is in another cache line than what sections use. */
	uint64_t queue;   /* phase, whether there is a writer, how many readers wait */
	uint32_t closed;  /* by a writer, who is inside or waits for readers to leave */
	uint32_t phase;   /* readers sleep here */
	uint32_t gone;    /* the writer sleeps here until readers have left */
	uint32_t writers; /* a lock among writers */
	uint32_t forks;   /* of this process when the lock was taken for writing */
	uint32_t owed;    /* copies were closed, and no fence has succeeded since */
	uint32_t unused_too[8];
};

/* Where `open` is, from `entered` and from `left`. */
#define PERCPU__RWLOCK_OPEN_FROM_ENTERED "16"
#define PERCPU__RWLOCK_OPEN_FROM_LEFT    "8"

#ifndef PERCPU_NO_SECTIONS
/*
 * If this copy is open, count one more in it. `open` is read inside the section: who clears it and fences knows that nobody
 * counts here any more who saw it set. The load is an acquire: it pairs with the release of the reader that opened the copy,
 * and sees what he saw. The count is a release: who sees it sees what was done before.
 */
/* clang-format off */
#define PERCPU__RWLOCK_COUNT(lock, word, open_from_word)                                                               \
	__asm__ __volatile__ goto(                                                                                     \
		PERCPU__DESCRIPTOR PERCPU__A_LOAD_SELF PERCPU__A_ARM("3b", PERCPU__A_SELF)                             \
		"1:\n\t" PERCPU__A_LOCATE_IF(PERCPU__STRIDE_ASM, PERCPU__A_SELF, open_from_word, "4f")                 \
		PERCPU__A_ADD_RELEASE("n") PERCPU__LEAVE                                                               \
		:                                                                                                      \
		: [self] "r"(PERCPU__SELF_OPERAND), [index] "r"(PERCPU__INDEX_OF(lock)), [object] "r"(&(lock)->word),  \
		  [n] PERCPU__ADD_OPERAND((uint64_t)1)                                                                 \
		: "memory", PERCPU__SCRATCH                                                                            \
		: left)
/* clang-format on */
PERCPU__INLINE int percpu__try_rwlock_enter(struct percpu_rwlock *lock)
{
	PERCPU__RWLOCK_COUNT(lock, entered, PERCPU__RWLOCK_OPEN_FROM_ENTERED);
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}

PERCPU__INLINE int percpu__try_rwlock_leave(struct percpu_rwlock *lock)
{
	PERCPU__RWLOCK_COUNT(lock, left, PERCPU__RWLOCK_OPEN_FROM_LEFT);
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}
#endif

/* The cold halves. @ns: how long to wait at most; 0 not at all. */
#define PERCPU__RWLOCK_FOREVER UINT64_MAX
PERCPU_API int percpu__rwlock_read_slow(struct percpu_rwlock *lock, uint64_t ns) PERCPU__COLD;
PERCPU_API void percpu__rwlock_again_slow(struct percpu_rwlock *lock) PERCPU__COLD;
PERCPU_API void percpu__rwlock_leave_slow(struct percpu_rwlock *lock) PERCPU__COLD;

/**
 * percpu_rwlock_init - make a lock that nobody holds of memory that is not fresh.
 *
 * @lock: a per-CPU pointer. Nobody else may use it meanwhile, or be inside any of these functions. Copies that are 0 are not
 * touched. Returns 0, or -EINVAL if @lock is NULL. Wait-free, async-signal-safe.
 */
PERCPU_API int percpu_rwlock_init(struct percpu_rwlock *lock);

/**
 * percpu_rwlock_read_lock - enter as a reader.
 *
 * @lock: a per-CPU pointer
 * Everything that the last writer did is visible then. One section, if this copy was used since then. Waits for one writer
 * at most (see above); wait-free if there is none.
 */
PERCPU__INLINE void percpu_rwlock_read_lock(struct percpu_rwlock *lock)
{
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_rwlock_enter(lock)) != PERCPU__DONE))
		(void)percpu__rwlock_read_slow(lock, PERCPU__RWLOCK_FOREVER);
}

/**
 * percpu_rwlock_read_trylock - enter as a reader if no writer holds the lock or waits for it.
 *
 * Returns 0 or -EBUSY. Wait-free. Async-signal-safe.
 */
PERCPU__INLINE int percpu_rwlock_read_trylock(struct percpu_rwlock *lock)
{
	if (PERCPU__LIKELY(PERCPU__TRY(percpu__try_rwlock_enter(lock)) == PERCPU__DONE))
		return 0;
	return percpu__rwlock_read_slow(lock, 0);
}

/**
 * percpu_rwlock_read_timedlock - enter as a reader, or give up.
 *
 * @ns: how long to wait at most, in nanoseconds of CLOCK_MONOTONIC; UINT64_MAX is for ever
 * Returns 0; -ETIMEDOUT, or -EBUSY where @ns is 0. Otherwise as percpu_rwlock_read_lock().
 */
PERCPU__INLINE int percpu_rwlock_read_timedlock(struct percpu_rwlock *lock, uint64_t ns)
{
	if (PERCPU__LIKELY(PERCPU__TRY(percpu__try_rwlock_enter(lock)) == PERCPU__DONE))
		return 0;
	return percpu__rwlock_read_slow(lock, ns);
}

/**
 * percpu_rwlock_read_lock_again - one more read lock for who holds one already (this thread, or who lent it to it).
 *
 * Never waits, whoever else does: a writer cannot be in, and will wait for this one too. To be released like any other.
 * Wait-free. Async-signal-safe.
 */
PERCPU__INLINE void percpu_rwlock_read_lock_again(struct percpu_rwlock *lock)
{
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_count_release(&lock->entered, 1, PERCPU__BY_ID)) != PERCPU__DONE))
		percpu__rwlock_again_slow(lock);
}

/**
 * percpu_rwlock_read_unlock - leave as a reader.
 *
 * What was done inside comes before what the next writer does. One section, and a system call if a writer sleeps
 * until it is alone. To unlock what is not locked is undefined. Wait-free. Async-signal-safe.
 */
PERCPU__INLINE void percpu_rwlock_read_unlock(struct percpu_rwlock *lock)
{
	/*
	 * If the copy is closed this goes on in the slow path, which wakes the writer. One that closes it after the section
	 * has looked either aborts it by his fence or finds its count in his sum.
	 */
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_rwlock_leave(lock)) != PERCPU__DONE))
		percpu__rwlock_leave_slow(lock);
}

/**
 * percpu_rwlock_write_lock - close the lock to readers, wait until all have left, and be alone.
 *
 * Returns 0, or -errno of membarrier(2) if the kernel has begun to refuse it (a sandbox entered after start): then the
 * lock is not held. Blocks, see above for how long. About as long as a fence (0.5 to 7 us) where there are no readers; without
 * one if none came since the last writer. Looks at each copy.
 */
PERCPU_API int percpu_rwlock_write_lock(struct percpu_rwlock *lock);

/**
 * percpu_rwlock_write_trylock - take the lock for writing if nobody holds it or is about to take it.
 *
 * Returns 0, -EBUSY, or an error of percpu_rwlock_write_lock(). Does not disturb readers that are inside. Fences, but
 * does not wait. Async-signal-safe.
 */
PERCPU_API int percpu_rwlock_write_trylock(struct percpu_rwlock *lock);

/**
 * percpu_rwlock_write_timedlock - take the lock for writing, or give up.
 *
 * @ns: how long to wait at most, in nanoseconds of CLOCK_MONOTONIC; UINT64_MAX is for ever. Readers are kept out
 * meanwhile; those that waited get in when it gives up.
 * Returns 0, -ETIMEDOUT (-EBUSY where @ns is 0), or an error of percpu_rwlock_write_lock().
 */
PERCPU_API int percpu_rwlock_write_timedlock(struct percpu_rwlock *lock, uint64_t ns);

/** percpu_rwlock_write_unlock - open the lock again: let the readers in that waited, then the next writer. Never waits. */
PERCPU_API void percpu_rwlock_write_unlock(struct percpu_rwlock *lock);

/** percpu_rwlock_downgrade - turn the caller's write lock into a read lock; no writer comes in between. Never waits. */
PERCPU_API void percpu_rwlock_downgrade(struct percpu_rwlock *lock);

PERCPU_END_DECLS

#endif
