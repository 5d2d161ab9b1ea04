/* SPDX-License-Identifier: MIT */
/*
 * Read-copy update: readers that never wait and write to no shared cache line; who changes data waits for them instead.
 *
 *     percpu_rcu_read_lock();                            new = ...;
 *     p = percpu_rcu_dereference(shared);                old = percpu_rcu_xchg_pointer(shared, new);
 *     ... read *p ...                                    percpu_rcu_synchronize();
 *     percpu_rcu_read_unlock();                          free(old);
 *
 * A *read section* lasts from lock to unlock. A *grace period* is a time in which every read section that had begun before
 * it has ended. So who takes an object out of a structure and waits for one grace period knows that nobody reads it any more.
 *
 * Two kinds:
 *   - One for all: percpu_rcu_read_lock() and what goes with it. The cheapest sections. A thread has nothing to register.
 *   - Domains (struct percpu_rcu_domain): a grace period of one waits for the readers of that one only, so they may sleep for
 *     long without holding up others. lock returns a token for unlock. Readers count themselves in and out on whichever copy
 *     they are on, so neither threads nor their number matter, and unlock may be another thread's.
 *
 * Read sections nest, in domains without limit, else 32,767 deep. They may be used in signal handlers at any instruction, in
 * constructors, in threads of any origin, and a thread may migrate in them. A thread that ends inside one, though it should
 * not, holds up grace periods for some milliseconds until that is noticed (in a domain: for ever). A child of vfork must leave
 * those that it enters before it calls exec or ends.
 *
 * Ordering. What was done before a grace period began is seen by every read section that it does not wait for, and what read
 * sections that it waits for did is seen after it. percpu_rcu_assign_pointer() and percpu_rcu_dereference() order an object's
 * contents before the pointer to it.
 *
 * Progress. Readers are wait-free (but for the first section of a thread, which may map memory; in a domain without a
 * section lock-free). Whoever waits for readers sleeps, but for the first microseconds. A grace period without readers in its
 * way costs about one percpu_fence(), and all who ask for one at the same time share it. In mode none readers pay a full
 * barrier instead.
 *
 * fork: the child has its thread's read sections and nobody else's. Callbacks that were queued are run in the child too (the
 * one that was running is not), by a worker that the child starts when it first needs one. A section of a *domain* that was
 * open at the fork is not waited for in the child; its unlock does nothing there. A child of _Fork or of a raw system call is
 * not covered.
 *
 * The functions that wait must not be called in read sections that they would wait for; for the one for all that is noticed.
 *
 * Sources: liburcu's memory-barrier flavour (Desnoyers et al., 2012), whose readers publish the grace period that they saw;
 * Linux's SRCU (McKenney, 2006) for domains, with one side flip instead of two, see src/sync/rcu_domain.c.
 */
#ifndef PERCPU_RCU_H
#define PERCPU_RCU_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** How many callbacks may wait in the queue of one index before percpu_rcu_call() waits for the worker. */
#define PERCPU_RCU_QUEUE_MAX 16384

/** Link and function of a callback; a member of the object that is to be freed. Belongs to the library once it is queued. */
struct percpu_rcu_head {
	struct percpu_rcu_head *next;
	void (*call)(struct percpu_rcu_head *head);
};

/* The cold half of the one for all and of each domain. */
struct percpu__rcu_core {
	/* Grace periods; written under `leader` only. */
	uint64_t now;      /* the number of the last one that was begun */
	uint64_t done;     /* of the last one that has ended */
	uint32_t open;     /* one has been begun and has not ended */
	uint32_t fenced;   /* it has been fenced */
	uint64_t position; /* readers before this one are known to be out of its way */
	uint32_t leader;   /* a lock */
	uint32_t turn;     /* changes when `leader` is free again; others sleep here */
	uint32_t sleepers; /* how many */
	/* Callbacks. */
	uint32_t worker; /* 0 none, 1 being started, 2 runs, 3 is to stop */
	uint32_t kick;   /* the worker sleeps here */
	uint32_t asleep; /* it does, and wants to be woken for any callback */
	uint32_t pass;   /* changes when a pass ends; others sleep here */
	uint32_t passers;
	uint64_t begun, ended, wanted;    /* passes of the worker */
	struct percpu__rcu_shard *shards; /* per-CPU */
	struct percpu_rcu_head *batch;    /* what the worker has taken and not yet run */
	unsigned long thread;             /* pthread_t of the worker */
};

/** A domain, in the caller's storage. Must not be moved or copied; belongs to the library. */
struct percpu_rcu_domain {
	uint64_t *words; /* per-CPU; constant. Pairs of entered and left, which only go up */
	uint64_t side;   /* which pair readers enter by: its distance in bytes */
	char apart[112];
	struct percpu__rcu_core core;
	struct percpu_rcu_domain *next; /* all of the process */
};

/* The last grace period that was begun, as a reader publishes it: its number, and a depth of 1. */
extern PERCPU_API struct percpu__rcu_now {
	uint64_t word;
	char apart[120];
} percpu__rcu_now __attribute__((aligned(128)));

#define PERCPU__RCU_DEPTH 0xffffU

#ifndef PERCPU_NO_SECTIONS
/*
 * Count one more in this copy of words + *side, and return *side. It is read inside the section: when *side has been changed
 * and a fence has passed, nobody counts any more who saw what it was before.
 */
PERCPU__INLINE uintptr_t percpu__try_rcu_enter(uint64_t *words, const uint64_t *side)
{
	uintptr_t out;

	/* clang-format off */
	__asm__ __volatile__(PERCPU__ENTER_UNGATED PERCPU__A_ADVANCE_OUT("side", "out") PERCPU__A_ADD("n") PERCPU__LEAVE_WORD
			     : [out] "=&r"(out)
			     : [self] "r"(PERCPU__SELF_OPERAND), [index] "r"(PERCPU__INDEX_OF(side)), [object] "r"(words),
			       [limit] PERCPU__LIMIT_OPERAND(PERCPU__REMAINDER_OF(side)), [side] "r"(side),
			       [n] PERCPU__ADD_OPERAND((uint64_t)1)
			     : "memory", PERCPU__SCRATCH);
	/* clang-format on */
	return out;
}

/* Count one more here, after everything that the thread did before: as percpu__try_count_release(), and shorter in a loop. */
PERCPU__INLINE int percpu__try_rcu_leave(uint64_t *word, const void *domain)
{
	__asm__ __volatile__ goto(
		PERCPU__ENTER_UNGATED PERCPU__A_ADD_RELEASE("n") PERCPU__LEAVE
		:
		: [self] "r"(PERCPU__SELF_OPERAND), [index] "r"(PERCPU__INDEX_OF(domain)), [object] "r"(word),
		  [limit] PERCPU__LIMIT_OPERAND(PERCPU__REMAINDER_OF(domain)), [n] PERCPU__ADD_OPERAND((uint64_t)1)
		: "memory", PERCPU__SCRATCH
		: left);
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}
#endif

/* The cold halves. */
PERCPU_API void percpu__rcu_lock_slow(void) __attribute__((noinline));
PERCPU_API void percpu__rcu_unlock_slow(void) __attribute__((noinline));
PERCPU_API uintptr_t percpu__rcu_domain_lock_slow(struct percpu_rcu_domain *domain) PERCPU__COLD;
PERCPU_API void percpu__rcu_domain_unlock_slow(struct percpu_rcu_domain *domain, uintptr_t token) PERCPU__COLD;

/**
 * percpu_rcu_read_lock - begin a read section.
 *
 * Nests. Wait-free, but for a thread's first, which may map memory. Async-signal-safe. Three loads, a test and a store; no
 * barrier: percpu_fence() in whoever waits is both sides'. The load of the grace period is an acquire, so that nothing that is
 * read in the section is older than it.
 */
PERCPU__INLINE void percpu_rcu_read_lock(void)
{
	struct percpu__rcu_reader *me = percpu__thread.rcu;

	if (PERCPU__LIKELY(__atomic_load_n(&me->state, __ATOMIC_RELAXED) == 0))
		__atomic_store_n(&me->state, __atomic_load_n(&percpu__rcu_now.word, __ATOMIC_ACQUIRE),
				 __ATOMIC_RELAXED);
	else
		percpu__rcu_lock_slow();
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/**
 * percpu_rcu_read_unlock - end a read section, in the thread that began it.
 *
 * Wait-free, async-signal-safe. The store is a release: who sees it may free what was read.
 */
PERCPU__INLINE void percpu_rcu_read_unlock(void)
{
	struct percpu__rcu_reader *me = percpu__thread.rcu;

	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (PERCPU__LIKELY((__atomic_load_n(&me->state, __ATOMIC_RELAXED) & PERCPU__RCU_DEPTH) == 1))
		__atomic_store_n(&me->state, 0, __ATOMIC_RELEASE);
	else
		percpu__rcu_unlock_slow();
}

/**
 * percpu_rcu_read_held - whether the calling thread is in a read section (not of a domain), for assertions.
 *
 * Of threads for whose bookkeeping there was no memory it says true while any of them is. Wait-free, async-signal-safe.
 */
PERCPU_API bool percpu_rcu_read_held(void);

/**
 * percpu_rcu_dereference - read a pointer that others change, in a read section.
 *
 * @p: the variable, not its address. What the pointer's publisher wrote before is visible through it.
 */
#define percpu_rcu_dereference(p) __atomic_load_n(&(p), __ATOMIC_CONSUME)

/** percpu_rcu_assign_pointer - publish: store @value to the variable @p, after everything that this thread wrote before. */
#define percpu_rcu_assign_pointer(p, value) __atomic_store_n(&(p), value, __ATOMIC_RELEASE)

/** percpu_rcu_xchg_pointer - the same, in one step with reading what was there. Returns that. */
#define percpu_rcu_xchg_pointer(p, value) __atomic_exchange_n(&(p), value, __ATOMIC_ACQ_REL)

/**
 * percpu_rcu_synchronize - wait until every read section that had begun before has ended.
 *
 * Returns 0; -EDEADLK in a read section of the calling thread; -errno of membarrier(2) if the kernel has begun to refuse it.
 * Sleeps while readers are inside. Not async-signal-safe.
 */
PERCPU_API int percpu_rcu_synchronize(void);

/** percpu_rcu_synchronize_expedited - the same, but spins for up to half a millisecond before it sleeps. */
PERCPU_API int percpu_rcu_synchronize_expedited(void);

/**
 * percpu_rcu_start_poll - begin a grace period, as far as that is possible without waiting.
 *
 * Returns what percpu_rcu_poll_state() wants. Never waits, takes a percpu_fence() at most. Not async-signal-safe.
 */
PERCPU_API uint64_t percpu_rcu_start_poll(void);

/**
 * percpu_rcu_poll_state - whether a grace period has passed since that percpu_rcu_start_poll().
 *
 * Drives it on if nobody else does: so it is enough to ask now and then. Never waits, takes a percpu_fence() at most. A poll
 * counts for 2^63 grace periods. Not async-signal-safe.
 */
PERCPU_API bool percpu_rcu_poll_state(uint64_t poll);

/**
 * percpu_rcu_call - have a function called after a grace period, by a worker thread.
 *
 * @head: not queued already; @call: gets @head, and may free what it is in, and call this again
 * The worker is started by the first call. It gathers for up to a millisecond, waits for one grace period for all that it
 * has, and calls them with all signals blocked, those queued at one index in their order.
 *
 * Back-pressure: if PERCPU_RCU_QUEUE_MAX callbacks wait at this index, the call waits until the worker has taken them. So
 * there are never more than that many for each index queued, and as many again taken by the worker; but for callers that may not
 * wait, those in a read section and callbacks themselves.
 * Returns 0; -EINVAL for NULL; -ENOMEM, or -EAGAIN if no worker could be made (then @head is not queued). May block. Not
 * async-signal-safe.
 */
PERCPU_API int percpu_rcu_call(struct percpu_rcu_head *head, void (*call)(struct percpu_rcu_head *head));

/**
 * percpu_rcu_barrier - wait until all callbacks that were queued before have been called.
 *
 * Returns 0; -EDEADLK in a read section or a callback; -EAGAIN if there is no worker and none can be made. Not
 * async-signal-safe.
 */
PERCPU_API int percpu_rcu_barrier(void);

/**
 * percpu_rcu_defer - percpu_rcu_call() of any function, without a head in the object.
 *
 * @function: gets @argument, say free() and a block. Takes 32 bytes until then. Otherwise as percpu_rcu_call().
 */
PERCPU_API int percpu_rcu_defer(void (*function)(void *argument), void *argument);

/**
 * percpu_rcu_free - percpu_free() after a grace period.
 *
 * @object: what percpu_alloc() or percpu_malloc() gave; NULL does nothing. (With libpercpu-malloc preloaded that is what any
 * malloc() gave; else use percpu_rcu_defer(free, object).)
 * Returns 0, or the error of percpu_rcu_defer(); the object is not freed then.
 */
PERCPU_API int percpu_rcu_free(void *object);

/**
 * percpu_rcu_domain_init - make a domain.
 *
 * Takes 128 bytes of each copy. Returns 0; -EINVAL for NULL; -ENOMEM. May block.
 */
PERCPU_API int percpu_rcu_domain_init(struct percpu_rcu_domain *domain);

/**
 * percpu_rcu_domain_destroy - run the callbacks that wait, stop the worker, and give back what init took.
 *
 * Nobody may be in a read section of it, or use it any more. Does nothing for NULL or the second time. Waits for a grace period.
 */
PERCPU_API void percpu_rcu_domain_destroy(struct percpu_rcu_domain *domain);

/**
 * percpu_rcu_domain_read_lock - begin a read section of a domain.
 *
 * Returns a token for percpu_rcu_domain_read_unlock(). One section. Wait-free where that succeeds, else lock-free: it is
 * tried again only when a grace period has begun meanwhile. Async-signal-safe.
 */
PERCPU__INLINE uintptr_t percpu_rcu_domain_read_lock(struct percpu_rcu_domain *domain)
{
	uintptr_t token = PERCPU__TRY_WORD(percpu__try_rcu_enter(domain->words, &domain->side));

	return PERCPU__LIKELY(token != PERCPU__LEFT_WORD) ? token : percpu__rcu_domain_lock_slow(domain);
}

/**
 * percpu_rcu_domain_read_unlock - end a read section of a domain, in any thread.
 *
 * @token: what that lock returned. Wait-free, async-signal-safe. A release, as percpu_rcu_read_unlock().
 */
PERCPU__INLINE void percpu_rcu_domain_read_unlock(struct percpu_rcu_domain *domain, uintptr_t token)
{
	uint64_t *left = (uint64_t *)(void *)((char *)domain->words + token) + 1;

	(void)left;
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_rcu_leave(left, &domain->side)) != PERCPU__DONE))
		percpu__rcu_domain_unlock_slow(domain, token);
}

/** percpu_rcu_domain_synchronize - percpu_rcu_synchronize() of one domain, but never -EDEADLK. */
PERCPU_API int percpu_rcu_domain_synchronize(struct percpu_rcu_domain *domain);
/** percpu_rcu_domain_synchronize_expedited - percpu_rcu_synchronize_expedited() of one domain. */
PERCPU_API int percpu_rcu_domain_synchronize_expedited(struct percpu_rcu_domain *domain);
/** percpu_rcu_domain_start_poll - percpu_rcu_start_poll() of one domain. */
PERCPU_API uint64_t percpu_rcu_domain_start_poll(struct percpu_rcu_domain *domain);
/** percpu_rcu_domain_poll_state - percpu_rcu_poll_state() of one domain. */
PERCPU_API bool percpu_rcu_domain_poll_state(struct percpu_rcu_domain *domain, uint64_t poll);

/**
 * percpu_rcu_domain_call - percpu_rcu_call() of one domain, which has a worker of its own.
 *
 * Not in a read section of that domain: whether the caller is in one is not known, and it may wait.
 */
PERCPU_API int percpu_rcu_domain_call(struct percpu_rcu_domain *domain, struct percpu_rcu_head *head,
				      void (*call)(struct percpu_rcu_head *head));
/** percpu_rcu_domain_barrier - percpu_rcu_barrier() of one domain. */
PERCPU_API int percpu_rcu_domain_barrier(struct percpu_rcu_domain *domain);

PERCPU_END_DECLS

#endif
