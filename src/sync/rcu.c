/* SPDX-License-Identifier: MIT */
/*
 * Grace periods of RCU, of the one for all and of domains.
 *
 * They are numbered. Who wants one asks for the number that is not yet begun: all that ask meanwhile ask for the same. Whoever
 * then gets `leader`, which nobody waits for but by sleeping until it changes hands, runs grace periods until his has ended:
 * begin (`now`, then what readers look at), fence, wait for readers, end (`done`). One that was begun by a poll, or whose fence
 * failed, stays open and is ended by the next leader before he begins another: `open` and `fenced` say how far it came.
 *
 * Asking reads `now` behind a full barrier. The grace period after that is begun later, so readers that know it see what the
 * asker did before. The leader's fence does the rest, see rcu_reader.c and rcu_domain.c.
 */
#include <errno.h>
#include <limits.h>
#include <pthread.h>

#include "base/sys.h"
#include "gate/gate.h"
#include "rseq/thread.h"
#include "sync/rcu.h"

/* Some microseconds, as a read section takes, and half a millisecond. */
#define SPINS           100
#define SPINS_EXPEDITED 12000
#define NAP_MIN_NS      50000
#define NAP_MAX_NS      10000000

struct percpu__rcu_core percpu__rcu_core = { .now = 1, .done = 1 };

struct percpu_rcu_domain *percpu__rcu_domain_of(struct percpu__rcu_core *core)
{
	if (core == &percpu__rcu_core)
		return NULL;
	return (struct percpu_rcu_domain *)(void *)((char *)core - offsetof(struct percpu_rcu_domain, core));
}

uint64_t percpu__rcu_now_ns(void)
{
	struct timespec now = { 0, 0 };

	percpu__sys4(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now, 0, 0);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t percpu__rcu_nap_ns(uint64_t begun_ns, enum percpu__rcu_haste haste)
{
	uint64_t nap = (percpu__rcu_now_ns() - begun_ns) / 8;

	if (haste == PERCPU__RCU_EXPEDITED || nap < NAP_MIN_NS)
		return NAP_MIN_NS;
	return nap < NAP_MAX_NS ? nap : NAP_MAX_NS;
}

unsigned percpu__rcu_spins(enum percpu__rcu_haste haste)
{
	return haste == PERCPU__RCU_EXPEDITED ? SPINS_EXPEDITED : SPINS;
}

static bool has_ended(const struct percpu__rcu_core *core, uint64_t number)
{
	return (int64_t)(__atomic_load_n(&core->done, __ATOMIC_ACQUIRE) - number) >= 0;
}

static uint64_t ask(const struct percpu__rcu_core *core)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&core->now, __ATOMIC_SEQ_CST) + 1;
}

static bool try_lead(struct percpu__rcu_core *core)
{
	uint32_t free = 0;

	return __atomic_compare_exchange_n(&core->leader, &free, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void stop_leading(struct percpu__rcu_core *core)
{
	__atomic_store_n(&core->leader, 0, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&core->turn, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&core->sleepers, __ATOMIC_SEQ_CST))
		percpu__futex_wake(&core->turn, INT_MAX, ~0U);
}

static void begin(struct percpu__rcu_core *core)
{
	struct percpu_rcu_domain *domain = percpu__rcu_domain_of(core);
	uint64_t number = core->now + 1;

	core->open = 1;
	core->fenced = 0;
	__atomic_store_n(&core->now, number, __ATOMIC_SEQ_CST);
	/* Release: whoever asked for this one has published, and read `now` before. */
	if (domain)
		percpu__rcu_flip(domain);
	else
		__atomic_store_n(&percpu__rcu_now.word, (number << PERCPU__RCU_NUMBER) + 1, __ATOMIC_SEQ_CST);
}

/* By the leader: runs grace periods until that one has ended. Returns 0, -EAGAIN from a poll, or an error of the fence. */
static int run(struct percpu__rcu_core *core, uint64_t number, enum percpu__rcu_haste haste)
{
	struct percpu_rcu_domain *domain = percpu__rcu_domain_of(core);
	int rc;

	while (!has_ended(core, number)) {
		if (!core->open)
			begin(core);
		if (!core->fenced) {
			rc = percpu_fence();
			if (rc)
				return rc;
			core->fenced = 1;
			core->position = 0;
		}
		if (domain)
			rc = percpu__rcu_wait_domain(domain, haste);
		else
			rc = percpu__rcu_wait_readers(core->now, &core->position, haste);
		if (rc)
			return rc;
		core->open = 0;
		__atomic_store_n(&core->done, core->now, __ATOMIC_RELEASE);
	}
	return 0;
}

/* Until somebody else has stopped leading, if anybody leads. */
static void wait_turn(struct percpu__rcu_core *core, uint64_t number)
{
	uint32_t turn;

	__atomic_fetch_add(&core->sleepers, 1, __ATOMIC_SEQ_CST);
	turn = __atomic_load_n(&core->turn, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&core->leader, __ATOMIC_SEQ_CST) && !has_ended(core, number))
		percpu__futex_wait(&core->turn, turn, ~0U);
	__atomic_fetch_sub(&core->sleepers, 1, __ATOMIC_SEQ_CST);
}

int percpu__rcu_synchronize(struct percpu__rcu_core *core, enum percpu__rcu_haste haste)
{
	uint64_t number = ask(core);
	int rc = 0;

	percpu__init();
	while (!rc && !has_ended(core, number)) {
		if (!try_lead(core)) {
			wait_turn(core, number);
			continue;
		}
		rc = run(core, number, haste);
		stop_leading(core);
	}
	/* What readers did, that somebody else has waited for, comes before what follows. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return rc;
}

bool percpu__rcu_poll(struct percpu__rcu_core *core, uint64_t number)
{
	if (!has_ended(core, number) && try_lead(core)) {
		run(core, number, PERCPU__RCU_POLL);
		stop_leading(core);
	}
	if (!has_ended(core, number))
		return false;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return true;
}

uint64_t percpu__rcu_start_poll(struct percpu__rcu_core *core)
{
	uint64_t number = ask(core);

	percpu__init();
	percpu__rcu_poll(core, number);
	return number;
}

int percpu_rcu_synchronize(void)
{
	return percpu__rcu_is_inside() ? -EDEADLK : percpu__rcu_synchronize(&percpu__rcu_core, PERCPU__RCU_NORMAL);
}

int percpu_rcu_synchronize_expedited(void)
{
	return percpu__rcu_is_inside() ? -EDEADLK : percpu__rcu_synchronize(&percpu__rcu_core, PERCPU__RCU_EXPEDITED);
}

uint64_t percpu_rcu_start_poll(void)
{
	return percpu__rcu_start_poll(&percpu__rcu_core);
}

bool percpu_rcu_poll_state(uint64_t poll)
{
	return percpu__rcu_poll(&percpu__rcu_core, poll);
}

/* Behind the child's handler of src/gate/fork.c, which gives the thread its new id. */
static void in_child(void)
{
	percpu__rcu_fork_readers();
	percpu__rcu_fork_domains();
	percpu__rcu_fork_core(&percpu__rcu_core);
}

__attribute__((constructor(103))) static void watch_forks(void)
{
	percpu__fork_lock_add(&percpu__rcu_lock);
	pthread_atfork(NULL, NULL, in_child);
}
