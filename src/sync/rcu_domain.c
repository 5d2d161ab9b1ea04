/* SPDX-License-Identifier: MIT */
/*
 * Domains of RCU: readers that are counted on the copy they are on.
 *
 * A domain has two sides, each with two words in each copy, entered and left, that only go up. Readers enter by the side that
 * `side` names, and leave by the same. A grace period changes `side`, fences, and waits until as many have left by the old side
 * as entered. (Sections change the words of their own copy, all others those of the remainder, in mode none of any copy, by
 * atomic instructions.)
 *
 * `side` is read inside the section that counts. So behind the fence nobody enters by the old side any more: who saw it has
 * committed, visibly, or was aborted and begins again. Linux's SRCU, which cannot know that, looks at the other side first and
 * so changes sides twice. Readers by atomic instructions count, look at `side` again, and take the count back if it has
 * changed: of them and of the grace period one sees the other.
 *
 * So when a side is changed, all that entered by the new one in its last turn have left: that grace period waited for it. A
 * reader by the new side loaded that before anything that it reads inside (acquire), and so sees what was done before the
 * change. One by the old side had counted when the fence came, or reads only what is there behind it.
 *
 * The sums are not taken at one moment, so those who left are summed first: each of them had entered before, and that is read
 * after. A reader who is inside all the time has one in `entered` and none in `left`: the sums differ.
 *
 * fork: what other threads had open in the parent nobody closes in the child. So the child's domain goes on with the next of
 * four pairs of sides, which begins at 0, and what its one thread still has open ends on words that nobody looks at.
 */
#include <errno.h>

#include "base/sys.h"
#include "gate/gate.h"
#include "rseq/thread.h"
#include "sync/rcu.h"

#define SIDE  16U          /* from one side to the other, in bytes */
#define PAIR  UINT64_C(32) /* from one pair of sides to the next */
#define SIDES 128U

static struct percpu_rcu_domain *domains; /* guarded by the lock */

/* For who counts without a section. */
static uint64_t *slow_words(struct percpu_rcu_domain *domain, uintptr_t side)
{
	unsigned index = percpu__mode() == PERCPU_MODE_NONE ? percpu__private.spread : percpu__remainder;

	return (uint64_t *)(void *)((char *)percpu_ptr(domain->words, index) + side);
}

static void leave(struct percpu_rcu_domain *domain, uintptr_t side)
{
	__atomic_fetch_add(slow_words(domain, side) + 1, 1, __ATOMIC_SEQ_CST);
}

uintptr_t percpu__rcu_domain_lock_slow(struct percpu_rcu_domain *domain)
{
	uintptr_t side = PERCPU__LEFT_WORD;

	if (percpu__runs_sections())
		for (int i = 0; i < PERCPU_ABORT_BUDGET && side == PERCPU__LEFT_WORD; i++)
			side = PERCPU__TRY_WORD(percpu__try_rcu_enter(domain->words, &domain->side));
	if (side != PERCPU__LEFT_WORD)
		return side;
	for (;;) {
		side = __atomic_load_n(&domain->side, __ATOMIC_SEQ_CST);
		__atomic_fetch_add(slow_words(domain, side), 1, __ATOMIC_SEQ_CST);
		/* The count, then the look: pairs with the change and the fence. Otherwise each could miss the other. */
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (__atomic_load_n(&domain->side, __ATOMIC_SEQ_CST) == side)
			return side;
		leave(domain, side);
	}
}

void percpu__rcu_domain_unlock_slow(struct percpu_rcu_domain *domain, uintptr_t token)
{
	uint64_t *left = (uint64_t *)(void *)((char *)domain->words + token) + 1;

	(void)left;
	if (percpu__runs_sections())
		for (int i = 0; i < PERCPU_ABORT_BUDGET; i++)
			if (PERCPU__TRY(percpu__try_rcu_leave(left, &domain->side)) == PERCPU__DONE)
				return;
	leave(domain, token);
}

static uint64_t sum(const struct percpu_rcu_domain *domain, uintptr_t distance)
{
	uint64_t total = 0;

	for (unsigned index = 0; index <= percpu__remainder; index++)
		total += __atomic_load_n(
			(const uint64_t *)(const void *)((const char *)percpu_ptr(domain->words, index) + distance),
			__ATOMIC_ACQUIRE);
	return total;
}

void percpu__rcu_flip(struct percpu_rcu_domain *domain)
{
	__atomic_store_n(&domain->side, domain->side ^ SIDE, __ATOMIC_SEQ_CST);
}

int percpu__rcu_wait_domain(struct percpu_rcu_domain *domain, enum percpu__rcu_haste haste)
{
	uintptr_t old = domain->side ^ SIDE;
	unsigned spins = percpu__rcu_spins(haste);
	uint64_t begun = 0;

	for (;;) {
		uint64_t left = sum(domain, old + sizeof(uint64_t));
		struct timespec until = { 0, 0 };
		uint32_t nobody = 0;

		if (sum(domain, old) == left)
			return 0;
		if (haste == PERCPU__RCU_POLL)
			return -EAGAIN;
		if (spins) {
			spins--;
			percpu__pause();
			continue;
		}
		/* Readers are not asked to wake anybody: that would cost each of them a look. */
		if (!begun)
			begun = percpu__rcu_now_ns();
		percpu__moment_in(percpu__rcu_nap_ns(begun, haste), &until);
		percpu__futex_wait_until(&nobody, 0, ~0U, &until);
	}
}

int percpu_rcu_domain_init(struct percpu_rcu_domain *domain)
{
	static const struct percpu_rcu_domain fresh = { .core = { .now = 1, .done = 1 } };
	uint64_t *words, saved;

	if (!domain)
		return -EINVAL;
	words = percpu_alloc(SIDES, SIDES);
	if (!words)
		return -ENOMEM;
	*domain = fresh;
	domain->words = words;
	percpu__fork_lock(&percpu__rcu_lock, &saved);
	domain->next = domains;
	domains = domain;
	percpu__fork_unlock(&percpu__rcu_lock, &saved);
	return 0;
}

void percpu_rcu_domain_destroy(struct percpu_rcu_domain *domain)
{
	uint64_t saved;

	if (!domain || !domain->words)
		return;
	percpu__rcu_stop(&domain->core);
	percpu__fork_lock(&percpu__rcu_lock, &saved);
	for (struct percpu_rcu_domain **link = &domains; *link; link = &(*link)->next)
		if (*link == domain) {
			*link = domain->next;
			break;
		}
	percpu__fork_unlock(&percpu__rcu_lock, &saved);
	percpu_free(domain->words);
	domain->words = NULL;
}

/* In the child. */
void percpu__rcu_fork_domains(void)
{
	for (struct percpu_rcu_domain *domain = domains; domain; domain = domain->next) {
		uintptr_t side = ((domain->side & ~(uint64_t)SIDE) + PAIR) % SIDES;

		/* Reading a page that no thread has touched costs no memory, writing does. */
		for (unsigned index = 0; index <= percpu__remainder; index++) {
			char *copy = (char *)percpu_ptr(domain->words, index) + side;

			for (unsigned i = 0; i < PAIR; i += sizeof(uint64_t))
				if (*(uint64_t *)(void *)(copy + i))
					*(uint64_t *)(void *)(copy + i) = 0;
		}
		domain->side = side;
		percpu__rcu_fork_core(&domain->core);
	}
}

int percpu_rcu_domain_synchronize(struct percpu_rcu_domain *domain)
{
	return percpu__rcu_synchronize(&domain->core, PERCPU__RCU_NORMAL);
}

int percpu_rcu_domain_synchronize_expedited(struct percpu_rcu_domain *domain)
{
	return percpu__rcu_synchronize(&domain->core, PERCPU__RCU_EXPEDITED);
}

uint64_t percpu_rcu_domain_start_poll(struct percpu_rcu_domain *domain)
{
	return percpu__rcu_start_poll(&domain->core);
}

bool percpu_rcu_domain_poll_state(struct percpu_rcu_domain *domain, uint64_t poll)
{
	return percpu__rcu_poll(&domain->core, poll);
}

int percpu_rcu_domain_call(struct percpu_rcu_domain *domain, struct percpu_rcu_head *head,
			   void (*call)(struct percpu_rcu_head *head))
{
	return percpu__rcu_call(&domain->core, head, call);
}

int percpu_rcu_domain_barrier(struct percpu_rcu_domain *domain)
{
	return percpu__rcu_barrier(&domain->core);
}
