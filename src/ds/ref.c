/* SPDX-License-Identifier: MIT */
/*
 * Reference counts, cold half.
 *
 * While live, references are the sum of the copies and of `shared` less the bias, modulo 2^64. Sections change the
 * copies, and only while `live` is not 0; everybody else changes `shared` by an atomic instruction, dead or live,
 * without asking which: so nothing of theirs can fall between the two. The bias keeps `shared` far above 0 while the
 * copies count too.
 *
 * The kill clears `live` and fences: a section that saw it set has committed, visibly, or was aborted, and none commits
 * afterwards. The copies stand still, so their sum is exact; it goes into `shared`, less the bias, in one atomic step,
 * in front of which `shared` cannot reach 0, and behind which it is the count. The initial reference is still in it,
 * and is dropped last.
 *
 * Kill, reinit and resurrect change several words that belong together: under the lock of cold data, which a fork takes
 * too.
 */
#include <errno.h>
#include <string.h>

#include <percpu/ref.h>

#include "area/area.h"
#include "base/sys.h"
#include "gate/gate.h"
#include "rseq/thread.h"

int percpu_ref_init(struct percpu_ref *ref, void (*release)(struct percpu_ref *ref), unsigned flags)
{
	uint64_t *count;

	if (!ref || !release || (flags & ~PERCPU_REF_DEAD))
		return -EINVAL;
	count = percpu_alloc(sizeof *count, sizeof *count);
	if (!count)
		return -ENOMEM;
	memset(ref, 0, sizeof *ref);
	ref->count = count;
	ref->release = release;
	ref->live = flags & PERCPU_REF_DEAD ? 0 : percpu__remainder;
	ref->shared = flags & PERCPU_REF_DEAD ? 0 : PERCPU__REF_BIAS + 1;
	return 0;
}

void percpu_ref_destroy(struct percpu_ref *ref)
{
	if (!ref)
		return;
	percpu_free(ref->count);
	ref->count = NULL;
}

static bool is_dead(const struct percpu_ref *ref)
{
	return __atomic_load_n(&ref->live, __ATOMIC_ACQUIRE) == 0;
}

/* Whether a section has counted. */
static PERCPU__COLD bool count_live(struct percpu_ref *ref, uint64_t n)
{
	int rc = PERCPU__LEFT;

	(void)n;
	if (percpu__runs_sections())
		for (int i = 0; i < PERCPU_ABORT_BUDGET && rc == PERCPU__LEFT && !is_dead(ref); i++)
			rc = PERCPU__TRY(percpu__try_count_open(ref->count, n, &ref->live, PERCPU__BY_ID));
	return rc == PERCPU__DONE;
}

void percpu__ref_get_slow(struct percpu_ref *ref)
{
	if (!count_live(ref, 1))
		__atomic_fetch_add(&ref->shared, 1, __ATOMIC_RELAXED);
}

/* One more in `shared`, if it is at least that. @times below 0: for ever. */
static int try_above(struct percpu_ref *ref, int64_t least, int times)
{
	int64_t now = __atomic_load_n(&ref->shared, __ATOMIC_RELAXED);

	for (; now >= least && times; times--)
		if (__atomic_compare_exchange_n(&ref->shared, &now, now + 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return PERCPU__DONE;
	return now >= least ? PERCPU__LEFT : PERCPU__DIFFERS;
}

/* Handlers that count here too could keep it from ever succeeding; other threads only by counting all the time. */
static bool get_above(struct percpu_ref *ref, int64_t least)
{
	int rc = try_above(ref, least, PERCPU_ABORT_BUDGET);
	uint64_t saved;

	if (rc == PERCPU__LEFT) {
		percpu__block_signals(&saved);
		rc = try_above(ref, least, -1);
		percpu__restore_signals(&saved);
	}
	return rc == PERCPU__DONE;
}

bool percpu__ref_tryget_slow(struct percpu_ref *ref)
{
	return count_live(ref, 1) || get_above(ref, 1);
}

/* The bias itself tells whether it lives: a look at `live` could be followed by a whole kill. */
bool percpu__ref_tryget_live_slow(struct percpu_ref *ref)
{
	return count_live(ref, 1) || (!is_dead(ref) && get_above(ref, 1));
}

void percpu__ref_put_slow(struct percpu_ref *ref)
{
	void (*release)(struct percpu_ref * ref) = ref->release;

	if (count_live(ref, (uint64_t)-1))
		return;
	/*
	 * Release: what we did comes before it. Acquire: the last sees what all others did, those who put before the
	 * kill too, for the kill has seen them by its fence and put after. But for the last, nothing of @ref may be
	 * touched after this.
	 */
	if (__atomic_fetch_sub(&ref->shared, 1, __ATOMIC_ACQ_REL) == 1)
		release(ref);
}

/* Nobody changes the copies any more. Leaves them empty, for another life. */
static int add_up(struct percpu_ref *ref)
{
	uint64_t total = 0;

	for (unsigned index = 0; index <= percpu__remainder; index++) {
		uint64_t *word = percpu_ptr(ref->count, index), count = __atomic_load_n(word, __ATOMIC_RELAXED);

		total += count;
		/* A copy that was not in use stays untouched. */
		if (count)
			__atomic_store_n(word, 0, __ATOMIC_RELAXED);
	}
	if (__atomic_add_fetch(&ref->shared, (int64_t)total - PERCPU__REF_BIAS, __ATOMIC_ACQ_REL) > 0)
		return 0;
	/* More puts than gets: somebody uses what he does not own. So far below 0 that it is never released. */
	__atomic_fetch_sub(&ref->shared, PERCPU__REF_BIAS, __ATOMIC_RELAXED);
	return -ERANGE;
}

int percpu_ref_kill(struct percpu_ref *ref)
{
	uint64_t saved;
	int rc = -EALREADY;

	percpu__cold_lock(&saved);
	if (!is_dead(ref)) {
		/* Before the fence: behind it every section sees this. */
		__atomic_store_n(&ref->live, 0, __ATOMIC_SEQ_CST);
		rc = percpu_fence();
		if (rc)
			__atomic_store_n(&ref->live, percpu__remainder, __ATOMIC_RELEASE);
		else
			rc = add_up(ref);
	}
	percpu__cold_unlock(&saved);
	if (!rc)
		percpu__ref_put_slow(ref);
	return rc;
}

/* From this count of references, which must not change unseen, to a live one with the initial reference. */
static bool revive(struct percpu_ref *ref, int64_t now)
{
	if (!__atomic_compare_exchange_n(&ref->shared, &now, now + PERCPU__REF_BIAS + 1, 0, __ATOMIC_ACQ_REL,
					 __ATOMIC_RELAXED))
		return false;
	/* Release: pairs with the acquire of sections, which must find the copies as the kill left them. */
	__atomic_store_n(&ref->live, percpu__remainder, __ATOMIC_RELEASE);
	return true;
}

int percpu_ref_reinit(struct percpu_ref *ref)
{
	uint64_t saved;
	int rc = 0;

	percpu__cold_lock(&saved);
	if (!is_dead(ref))
		rc = -EALREADY;
	else if (!revive(ref, 0))
		rc = -EBUSY;
	percpu__cold_unlock(&saved);
	return rc;
}

int percpu_ref_resurrect(struct percpu_ref *ref)
{
	uint64_t saved;
	int rc = -EALREADY;

	percpu__cold_lock(&saved);
	if (is_dead(ref)) {
		int64_t now;

		do
			now = __atomic_load_n(&ref->shared, __ATOMIC_RELAXED);
		while (now > 0 && !revive(ref, now));
		rc = now > 0 ? 0 : -ESTALE;
	}
	percpu__cold_unlock(&saved);
	return rc;
}

bool percpu_ref_is_dying(const struct percpu_ref *ref)
{
	return is_dead(ref);
}

/* `live` is read first: a count that is brought back to life is above 0 before it is live. */
bool percpu_ref_is_zero(const struct percpu_ref *ref)
{
	return is_dead(ref) && __atomic_load_n(&ref->shared, __ATOMIC_ACQUIRE) == 0;
}
