/* SPDX-License-Identifier: MIT */
/* What the parts of RCU share: records of readers, grace periods, callbacks. */
#ifndef PERCPU_SRC_RCU_H
#define PERCPU_SRC_RCU_H

#include <percpu/rcu.h>

#include "gate/fork.h"

/* In a state: somebody sleeps until this reader leaves. Only whoever waits sets it. */
#define PERCPU__RCU_WATCHED UINT64_C(0x8000)
#define PERCPU__RCU_NESTED  UINT64_C(0x7fff)
/* From the number of a grace period to that part of a state. */
#define PERCPU__RCU_NUMBER 16

enum percpu__rcu_haste {
	PERCPU__RCU_POLL, /* do not wait */
	PERCPU__RCU_NORMAL,
	PERCPU__RCU_EXPEDITED,
};

/* Guards the list of domains, what of records is not their owner's, and the worker's taking of callbacks. */
extern PERCPU_HIDDEN struct percpu__fork_lock percpu__rcu_lock;
/* The one for all. */
extern PERCPU_HIDDEN struct percpu__rcu_core percpu__rcu_core;

/* rcu_reader.c. Registers a new thread's record; tells whether the calling thread is in a read section. */
PERCPU_HIDDEN bool percpu__rcu_is_inside(void);
/*
 * Waits until no reader is inside that has not seen grace period @number. Begins with the reader at *@position, and leaves
 * there how far it came. Returns 0, or -EAGAIN if it would have to wait and must not.
 */
PERCPU_HIDDEN int percpu__rcu_wait_readers(uint64_t number, uint64_t *position, enum percpu__rcu_haste haste);
PERCPU_HIDDEN void percpu__rcu_fork_readers(void);

/* rcu_domain.c: the same for a domain; changes its side; and in a forked child. */
PERCPU_HIDDEN int percpu__rcu_wait_domain(struct percpu_rcu_domain *domain, enum percpu__rcu_haste haste);
PERCPU_HIDDEN void percpu__rcu_flip(struct percpu_rcu_domain *domain);
PERCPU_HIDDEN void percpu__rcu_fork_domains(void);

/* rcu.c. The domain of a core, NULL for the one for all. */
PERCPU_HIDDEN struct percpu_rcu_domain *percpu__rcu_domain_of(struct percpu__rcu_core *core);
PERCPU_HIDDEN int percpu__rcu_synchronize(struct percpu__rcu_core *core, enum percpu__rcu_haste haste);
PERCPU_HIDDEN uint64_t percpu__rcu_start_poll(struct percpu__rcu_core *core);
PERCPU_HIDDEN bool percpu__rcu_poll(struct percpu__rcu_core *core, uint64_t number);
PERCPU_HIDDEN uint64_t percpu__rcu_now_ns(void);
/*
 * How long to sleep until the next look at a reader that does not wake us: about an eighth of what has passed, so that a
 * grace period is never much longer than its readers.
 */
PERCPU_HIDDEN uint64_t percpu__rcu_nap_ns(uint64_t begun_ns, enum percpu__rcu_haste haste);
PERCPU_HIDDEN unsigned percpu__rcu_spins(enum percpu__rcu_haste haste);

/* rcu_call.c. */
PERCPU_HIDDEN int percpu__rcu_call(struct percpu__rcu_core *core, struct percpu_rcu_head *head,
				   void (*call)(struct percpu_rcu_head *head));
PERCPU_HIDDEN int percpu__rcu_barrier(struct percpu__rcu_core *core);
PERCPU_HIDDEN void percpu__rcu_stop(struct percpu__rcu_core *core);
PERCPU_HIDDEN void percpu__rcu_fork_core(struct percpu__rcu_core *core);

#endif
