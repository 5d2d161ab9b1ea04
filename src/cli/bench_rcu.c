/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: RCU. What a read section costs, how long one waits for a grace period, and how many callbacks go through.
 *
 * In the bench of grace periods one thread waits for them, and all others read without a pause: with one thread nobody is in
 * its way. In that of callbacks each thread queues objects that are freed, and waits until all of them are.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "cli/bench.h"
#include "cli/bench_rcu.h"

static struct bench_rcu_word shared;
struct bench_rcu_word *bench_rcu_shared = &shared;

static struct {
	struct percpu_rcu_domain domain;
	struct percpu_rwlock *percpu;
	BENCH_ALIGNED pthread_rwlock_t pthread;
	unsigned threads;
	BENCH_ALIGNED uint32_t here, over; /* readers of a round of grace periods */
} rcu = { .pthread = PTHREAD_RWLOCK_INITIALIZER };

static inline void use(void)
{
	struct bench_rcu_word *p = percpu_rcu_dereference(bench_rcu_shared);

	BENCH_USE(*(volatile uint64_t *)&p->word);
}

/* Reading. */

BENCH_LOOP read_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		percpu_rcu_read_lock();
		use();
		percpu_rcu_read_unlock();
	}
}

BENCH_LOOP read_domain(struct bench_worker *worker, uint64_t n)
{
	struct percpu_rcu_domain *domain = &rcu.domain;

	(void)worker;
	for (; n; n--) {
		uintptr_t token = percpu_rcu_domain_read_lock(domain);

		use();
		percpu_rcu_domain_read_unlock(domain, token);
	}
}

BENCH_LOOP read_rwlock(struct bench_worker *worker, uint64_t n)
{
	struct percpu_rwlock *lock = rcu.percpu;

	(void)worker;
	for (; n; n--) {
		percpu_rwlock_read_lock(lock);
		use();
		percpu_rwlock_read_unlock(lock);
	}
}

BENCH_LOOP read_pthread(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		pthread_rwlock_rdlock(&rcu.pthread);
		use();
		pthread_rwlock_unlock(&rcu.pthread);
	}
}

/* Waiting. */

static void read_until(const uint32_t *over)
{
	while (!__atomic_load_n(over, __ATOMIC_RELAXED)) {
		percpu_rcu_read_lock();
		use();
		percpu_rcu_read_unlock();
	}
}

static void read_domain_until(const uint32_t *over)
{
	while (!__atomic_load_n(over, __ATOMIC_RELAXED)) {
		uintptr_t token = percpu_rcu_domain_read_lock(&rcu.domain);

		use();
		percpu_rcu_domain_read_unlock(&rcu.domain, token);
	}
}

static void synchronize(uint64_t n)
{
	for (; n; n--)
		percpu_rcu_synchronize();
}

static void synchronize_expedited(uint64_t n)
{
	for (; n; n--)
		percpu_rcu_synchronize_expedited();
}

static void synchronize_domain(uint64_t n)
{
	for (; n; n--)
		percpu_rcu_domain_synchronize(&rcu.domain);
}

static void fence(uint64_t n)
{
	for (; n; n--)
		percpu_fence();
}

/* Worker 0 waits for n grace periods while the others read. */
static void wait_beside(const struct bench_worker *worker, uint64_t n, void (*wait)(uint64_t n),
			void (*read)(const uint32_t *over))
{
	if (worker->id) {
		__atomic_fetch_add(&rcu.here, 1, __ATOMIC_SEQ_CST);
		read(&rcu.over);
		__atomic_fetch_sub(&rcu.here, 1, __ATOMIC_SEQ_CST);
		return;
	}
	while (__atomic_load_n(&rcu.here, __ATOMIC_SEQ_CST) != rcu.threads - 1)
		sched_yield();
	wait(n);
	__atomic_store_n(&rcu.over, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&rcu.here, __ATOMIC_SEQ_CST))
		sched_yield();
	__atomic_store_n(&rcu.over, 0, __ATOMIC_SEQ_CST);
}

#define WAIT(name, wait, read)                                                                                         \
	BENCH_LOOP name(struct bench_worker *worker, uint64_t n)                                                       \
	{                                                                                                              \
		wait_beside(worker, n, wait, read);                                                                    \
	}

WAIT(wait_percpu, synchronize, read_until)
WAIT(wait_expedited, synchronize_expedited, read_until)
WAIT(wait_domain, synchronize_domain, read_domain_until)
WAIT(wait_fence, fence, read_until)

/* Callbacks. */

static void free_head(struct percpu_rcu_head *head)
{
	free(head);
}

BENCH_LOOP call_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (n *= BENCH_RCU_CALLS; n; n--) {
		struct percpu_rcu_head *head = malloc(sizeof *head);

		if (!head || percpu_rcu_call(head, free_head))
			break;
	}
	percpu_rcu_barrier();
}

BENCH_LOOP defer_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (n *= BENCH_RCU_CALLS; n; n--) {
		void *block = malloc(sizeof(struct percpu_rcu_head));

		if (!block || percpu_rcu_defer(free, block))
			break;
	}
	percpu_rcu_barrier();
}

#ifdef HAVE_URCU_FLAVOURS
#define URCU(name)                                                                                                     \
	BENCH_LOOP read_##name(struct bench_worker *worker, uint64_t n)                                                \
	{                                                                                                              \
		(void)worker;                                                                                          \
		bench_##name##_read(n);                                                                                \
	}                                                                                                              \
	WAIT(wait_##name, bench_##name##_synchronize, bench_##name##_read_until)                                       \
	BENCH_LOOP call_##name(struct bench_worker *worker, uint64_t n)                                                \
	{                                                                                                              \
		(void)worker;                                                                                          \
		bench_##name##_call(n);                                                                                \
	}
#define SKIP NULL
#else
static const char *skip_urcu(void)
{
	return "built without liburcu";
}
#define URCU(name)                                                                                                     \
	BENCH_LOOP read_##name(struct bench_worker *worker, uint64_t n)                                                \
	{                                                                                                              \
		(void)worker, (void)n;                                                                                 \
	}                                                                                                              \
	BENCH_LOOP wait_##name(struct bench_worker *worker, uint64_t n)                                                \
	{                                                                                                              \
		(void)worker, (void)n;                                                                                 \
	}                                                                                                              \
	BENCH_LOOP call_##name(struct bench_worker *worker, uint64_t n)                                                \
	{                                                                                                              \
		(void)worker, (void)n;                                                                                 \
	}
#define SKIP skip_urcu
#endif
URCU(urcu_memb)
URCU(urcu_mb)
URCU(urcu_qsbr)
URCU(urcu_bp)

static const struct bench_subject read_subjects[] = {
	{ .name = "percpu", .what = "percpu_rcu_read_lock() and _read_unlock()", .loop = read_percpu },
	{ .name = "percpu_domain", .what = "the same of a domain, counted by sections", .loop = read_domain },
	{ .name = "percpu_rwlock", .what = "percpu_rwlock_read_lock() and _read_unlock()", .loop = read_rwlock },
	{ .name = "urcu_memb", .what = "liburcu's default, inlined", .loop = read_urcu_memb, .skip = SKIP },
	{ .name = "urcu_bp", .what = "liburcu's without registration, inlined", .loop = read_urcu_bp, .skip = SKIP },
	{ .name = "urcu_qsbr",
	  .what = "liburcu's where threads say when they do not read, inlined",
	  .loop = read_urcu_qsbr,
	  .skip = SKIP },
	{ .name = "urcu_mb",
	  .what = "liburcu's with barriers in readers, inlined",
	  .loop = read_urcu_mb,
	  .skip = SKIP },
	{ .name = "pthread_rwlock", .what = "pthread_rwlock_rdlock() and _unlock()", .loop = read_pthread },
	{ .name = NULL },
};

static const struct bench_subject wait_subjects[] = {
	{ .name = "percpu", .what = "percpu_rcu_synchronize()", .loop = wait_percpu },
	{ .name = "percpu_expedited", .what = "percpu_rcu_synchronize_expedited()", .loop = wait_expedited },
	{ .name = "percpu_domain", .what = "percpu_rcu_domain_synchronize()", .loop = wait_domain },
	{ .name = "fence", .what = "percpu_fence(), the limit", .loop = wait_fence },
	{ .name = "urcu_memb", .what = "liburcu's synchronize_rcu()", .loop = wait_urcu_memb, .skip = SKIP },
	{ .name = "urcu_bp", .what = "the same, flavour bp", .loop = wait_urcu_bp, .skip = SKIP },
	{ .name = "urcu_qsbr", .what = "the same, flavour qsbr", .loop = wait_urcu_qsbr, .skip = SKIP },
	{ .name = "urcu_mb", .what = "the same, flavour mb", .loop = wait_urcu_mb, .skip = SKIP },
	{ .name = NULL },
};

static const struct bench_subject call_subjects[] = {
	{ .name = "percpu", .what = "percpu_rcu_call() of free()", .loop = call_percpu },
	{ .name = "percpu_defer", .what = "percpu_rcu_defer() of free()", .loop = defer_percpu },
	{ .name = "urcu_memb", .what = "liburcu's call_rcu() of free()", .loop = call_urcu_memb, .skip = SKIP },
	{ .name = "urcu_bp", .what = "the same, flavour bp", .loop = call_urcu_bp, .skip = SKIP },
	{ .name = "urcu_qsbr", .what = "the same, flavour qsbr", .loop = call_urcu_qsbr, .skip = SKIP },
	{ .name = "urcu_mb", .what = "the same, flavour mb", .loop = call_urcu_mb, .skip = SKIP },
	{ .name = NULL },
};

static int setup(unsigned threads)
{
	rcu.threads = threads;
	rcu.here = rcu.over = 0;
	rcu.percpu = percpu_alloc(sizeof *rcu.percpu, 64);
	return rcu.percpu ? percpu_rcu_domain_init(&rcu.domain) : -ENOMEM;
}

static void teardown(void)
{
	percpu_rcu_barrier();
	percpu_rcu_domain_destroy(&rcu.domain);
	percpu_free(rcu.percpu);
}

const struct bench bench_rcu_read_pair = {
	.name = "rcu_read_pair",
	.what = "begin a read section, follow a pointer, end it",
	.subjects = read_subjects,
	.setup = setup,
	.teardown = teardown,
};

const struct bench bench_rcu_synchronize = {
	.name = "rcu_synchronize",
	.what = "wait for a grace period, while the other threads read",
	.subjects = wait_subjects,
	.setup = setup,
	.teardown = teardown,
};

const struct bench bench_rcu_call = {
	.name = "rcu_call",
	.what = "allocate 16 bytes and free them after a grace period, 100,000 times",
	.subjects = call_subjects,
	.setup = setup,
	.teardown = teardown,
};
