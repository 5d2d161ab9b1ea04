/* SPDX-License-Identifier: MIT */
/*
 * Reference counts that are cheap while an object lives: one section each to get and to put, on the own copy.
 *
 * While a reference count is *live*, nobody asks whether it has reached 0: the initial reference, that of init, keeps
 * it above. So getting and putting are counted on whichever copy the thread is on; only the sum of all copies means
 * anything. percpu_ref_kill() ends that: it makes everybody count in one shared word, adds up the copies exactly, and
 * drops the initial reference. From then on the word tells, and the last put calls the release callback: exactly once,
 * in the thread that put (or killed), with no lock or gate held and signals as that thread has them.
 *
 * What may be done:
 *   - A reference may be put by another thread than the one that got it.
 *   - percpu_ref_get() is for who holds a reference, or knows otherwise that the count cannot be 0. percpu_ref_tryget()
 *     fails at 0, percpu_ref_tryget_live() as soon as the count is being killed. All three read the percpu_ref: its
 *     memory must outlast the last attempt (RCU, a lock, or a table that is emptied before the kill).
 *   - All but init and destroy are async-signal-safe at any instruction (the release callback runs in the handler, if
 *     its put is the last).
 *   - fork: the child has the counts of that moment, exactly, with the references that threads hold which it does not
 *     have: nobody puts those.
 *   - Threads that the kernel does not serve, and all in mode none, count in the shared word. That is exact, and as
 *     slow as any shared count.
 *   - A put too many is undefined. It is noticed where that costs nothing: percpu_ref_kill() returns -ERANGE then, and
 *     the count is never released.
 *   - Not between processes.
 *
 * Source: Linux's percpu_ref (Kent Overstreet, Tejun Heo, 2013): the bias in the shared count, the kill, the names.
 * There a grace period of RCU tells that nobody is still counting on copies; here the fence does, and the kill waits
 * for it, so there is no confirmation callback: what would be in it follows the call.
 */
#ifndef PERCPU_REF_H
#define PERCPU_REF_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** For percpu_ref_init(): begin dead, with no reference at all, to be brought to life by percpu_ref_reinit(). */
#define PERCPU_REF_DEAD 1U

/** A reference count, in the caller's storage; belongs to the library. Must not be moved or copied. */
struct percpu_ref {
	uint64_t *count;                         /* per-CPU; their sum, modulo 2^64, counts while live */
	void (*release)(struct percpu_ref *ref); /* constant */
	uint32_t live; /* 0: dead; else percpu__remainder; written by kill and reinit, read by all */
	/* What everybody writes to once dead must not share a cache line with what everybody reads before. */
	char apart[128];
	int64_t shared; /* the count, once dead; above it by PERCPU__REF_BIAS while live */
	char behind[64];
};

#define PERCPU__REF_BIAS ((int64_t)1 << 62)

/* The cold halves. */
PERCPU_API void percpu__ref_get_slow(struct percpu_ref *ref) PERCPU__COLD;
PERCPU_API bool percpu__ref_tryget_slow(struct percpu_ref *ref) PERCPU__COLD;
PERCPU_API bool percpu__ref_tryget_live_slow(struct percpu_ref *ref) PERCPU__COLD;
PERCPU_API void percpu__ref_put_slow(struct percpu_ref *ref) PERCPU__COLD;

/**
 * percpu_ref_init - make a reference count with one reference, the initial one.
 *
 * @release: is called with @ref when the count reaches 0; may destroy @ref and free what it is in
 * @flags: 0 or PERCPU_REF_DEAD
 * Takes 8 bytes of each copy. Returns 0; -EINVAL for NULL or an unknown flag; -ENOMEM. May block.
 */
PERCPU_API int percpu_ref_init(struct percpu_ref *ref, void (*release)(struct percpu_ref *ref), unsigned flags);

/**
 * percpu_ref_destroy - free what init allocated.
 *
 * Nobody may use it any more; it need not have been killed. Does nothing for NULL or the second time. May block.
 */
PERCPU_API void percpu_ref_destroy(struct percpu_ref *ref);

/** percpu_ref_get - one more reference, for who knows that there is one. Wait-free. */
PERCPU__INLINE void percpu_ref_get(struct percpu_ref *ref)
{
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_count_open(ref->count, 1, &ref->live, PERCPU__BY_ID)) !=
			     PERCPU__DONE))
		percpu__ref_get_slow(ref);
}

/**
 * percpu_ref_tryget - one more reference, unless the count has reached 0: tells whether there is one.
 *
 * Wait-free where a section does it, else lock-free.
 */
PERCPU__INLINE bool percpu_ref_tryget(struct percpu_ref *ref)
{
	return PERCPU__LIKELY(PERCPU__TRY(percpu__try_count_open(ref->count, 1, &ref->live, PERCPU__BY_ID)) ==
			      PERCPU__DONE) ||
	       percpu__ref_tryget_slow(ref);
}

/**
 * percpu_ref_tryget_live - one more reference, unless the count has been killed: tells whether there is one.
 *
 * When percpu_ref_kill() has returned, nobody succeeds any more, until percpu_ref_reinit() or percpu_ref_resurrect().
 * Progress as tryget.
 */
PERCPU__INLINE bool percpu_ref_tryget_live(struct percpu_ref *ref)
{
	return PERCPU__LIKELY(PERCPU__TRY(percpu__try_count_open(ref->count, 1, &ref->live, PERCPU__BY_ID)) ==
			      PERCPU__DONE) ||
	       percpu__ref_tryget_live_slow(ref);
}

/**
 * percpu_ref_put - give a reference back.
 *
 * What this thread did before is visible to the release callback, wherever that runs. Calls it if this was the last;
 * @ref may be gone when this returns. Wait-free but for the callback.
 */
PERCPU__INLINE void percpu_ref_put(struct percpu_ref *ref)
{
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_count_open(ref->count, (uint64_t)-1, &ref->live, PERCPU__BY_ID)) !=
			     PERCPU__DONE))
		percpu__ref_put_slow(ref);
}

/**
 * percpu_ref_kill - go over to one shared count, and drop the initial reference.
 *
 * Calls the release callback if there was no other. Takes about a fence (0.5 to 7 us); kills of one process wait for
 * each other, and a fork for them. Returns 0; -EALREADY if it is dead; -ERANGE if more has been put than got (it is
 * dead then, and never released); -errno of membarrier(2) if the kernel has begun to refuse it (nothing has changed
 * then).
 */
PERCPU_API int percpu_ref_kill(struct percpu_ref *ref);

/**
 * percpu_ref_reinit - bring a dead count that has reached 0 back to life, with one reference, the initial one.
 *
 * The callback may still be running, or may call this. Returns 0; -EALREADY if it lives; -EBUSY if it is not 0. May
 * block.
 */
PERCPU_API int percpu_ref_reinit(struct percpu_ref *ref);

/**
 * percpu_ref_resurrect - bring a dead count that has not reached 0 back to life: undo the kill.
 *
 * Returns 0; -EALREADY if it lives; -ESTALE if it has reached 0 (or is broken, see -ERANGE of kill). May block.
 */
PERCPU_API int percpu_ref_resurrect(struct percpu_ref *ref);

/** percpu_ref_is_dying - whether it has been killed, as of some moment. Wait-free. */
PERCPU_API bool percpu_ref_is_dying(const struct percpu_ref *ref);

/** percpu_ref_is_zero - whether it has been killed and reached 0, as of some moment. Wait-free. */
PERCPU_API bool percpu_ref_is_zero(const struct percpu_ref *ref);

PERCPU_END_DECLS

#endif
