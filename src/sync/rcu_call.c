/* SPDX-License-Identifier: MIT */
/*
 * Callbacks of RCU.
 *
 * Each index has a list that callers push to by compare-and-swap, and that the worker takes as a whole: so pushing shares no
 * cache line with other CPUs, and needs no gate. (A push by a section would be cheaper by some 4 ns, but to take a list from
 * sections means to close gates and to fence, for each index and each time.)
 *
 * The worker works in passes. It counts `begun` up, takes all lists into `batch`, waits for one grace period, runs them, and
 * sets `ended`. What was queued before a barrier began is in a pass that began before, or in the next: so a barrier waits for
 * the pass after the last that it sees begun. When all lists are empty and no pass is wanted the worker says that it is
 * `asleep`, fences, and looks again; who pushes fences, and looks whether it sleeps: one sees the other.
 *
 * fork: lists are taken and put into `batch` under the lock that a fork takes too, and run off `batch` one by one, each taken
 * off by one store before it is run. So the child has each callback that was not yet begun, in one place.
 */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>

#include <percpu/pool.h>

#include "base/sys.h"
#include "gate/gate.h"
#include "rseq/thread.h"
#include "sync/rcu.h"

#define GATHER_NS 1000000
#define RETRY_NS  100000000

enum { NO_WORKER, STARTING, RUNNING, STOPPING };

struct percpu__rcu_shard {
	struct percpu_rcu_head *last; /* pushed last */
	uint64_t count;               /* of callbacks here, or nearly so */
};

static struct percpu__rcu_shard *shard_of(struct percpu__rcu_core *core, unsigned index)
{
	return percpu_ptr(core->shards, index);
}

static void kick(struct percpu__rcu_core *core)
{
	__atomic_fetch_add(&core->kick, 1, __ATOMIC_SEQ_CST);
	percpu__futex_wake(&core->kick, 1, ~0U);
}

static bool has_callbacks(struct percpu__rcu_core *core)
{
	if (__atomic_load_n(&core->batch, __ATOMIC_RELAXED))
		return true;
	for (unsigned index = 0; core->shards && index <= percpu__remainder; index++)
		if (__atomic_load_n(&shard_of(core, index)->last, __ATOMIC_RELAXED))
			return true;
	return false;
}

static bool is_wanted(const struct percpu__rcu_core *core)
{
	return (int64_t)(__atomic_load_n(&core->wanted, __ATOMIC_SEQ_CST) - core->begun) > 0;
}

static void wake_passers(struct percpu__rcu_core *core)
{
	__atomic_fetch_add(&core->pass, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&core->passers, __ATOMIC_SEQ_CST))
		percpu__futex_wake(&core->pass, INT_MAX, ~0U);
}

/* Each index's in the order in which they were pushed. */
static void take_lists(struct percpu__rcu_core *core)
{
	struct percpu_rcu_head **end = &core->batch;
	uint64_t saved;

	percpu__fork_lock(&percpu__rcu_lock, &saved);
	/* Before the lists: a barrier that saw the old number has found what it waits for in them. */
	__atomic_store_n(&core->begun, core->begun + 1, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	while (*end)
		end = &(*end)->next;
	for (unsigned index = 0; index <= percpu__remainder; index++) {
		struct percpu__rcu_shard *shard = shard_of(core, index);
		struct percpu_rcu_head *head, *list = NULL, *tail;

		/* Nothing is written to copies that nobody uses. */
		if (!__atomic_load_n(&shard->last, __ATOMIC_RELAXED))
			continue;
		__atomic_store_n(&shard->count, 0, __ATOMIC_RELAXED);
		head = __atomic_exchange_n(&shard->last, NULL, __ATOMIC_ACQUIRE);
		if (!head)
			continue;
		tail = head;
		while (head) {
			struct percpu_rcu_head *next = head->next;

			head->next = list;
			list = head;
			head = next;
		}
		*end = list;
		end = &tail->next;
	}
	percpu__fork_unlock(&percpu__rcu_lock, &saved);
	wake_passers(core);
}

static void run_batch(struct percpu__rcu_core *core)
{
	struct percpu_rcu_head *head;

	while ((head = core->batch)) {
		__atomic_store_n(&core->batch, head->next, __ATOMIC_RELAXED);
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		head->call(head);
	}
}

static void end_pass(struct percpu__rcu_core *core)
{
	__atomic_store_n(&core->ended, core->begun, __ATOMIC_SEQ_CST);
	wake_passers(core);
}

static void sleep_until(struct percpu__rcu_core *core, uint32_t seen, uint64_t ns)
{
	struct timespec until = { 0, 0 };

	percpu__moment_in(ns, &until);
	percpu__futex_wait_until(&core->kick, seen, ~0U, &until);
}

/* Returns when there is something to do. */
static void wait_for_work(struct percpu__rcu_core *core)
{
	for (;;) {
		uint32_t seen = __atomic_load_n(&core->kick, __ATOMIC_SEQ_CST);

		__atomic_store_n(&core->asleep, 1, __ATOMIC_SEQ_CST);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (has_callbacks(core) || is_wanted(core) ||
		    __atomic_load_n(&core->worker, __ATOMIC_SEQ_CST) == STOPPING)
			break;
		percpu__futex_wait(&core->kick, seen, ~0U);
	}
	__atomic_store_n(&core->asleep, 0, __ATOMIC_SEQ_CST);
}

static void *work(void *arg)
{
	struct percpu__rcu_core *core = arg;
	sigset_t all;

	/* All but those that the C library keeps for itself, which were blocked too. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	percpu__private.rcu_worker = true;
	for (;;) {
		uint32_t seen;

		wait_for_work(core);
		seen = __atomic_load_n(&core->kick, __ATOMIC_SEQ_CST);
		if (!is_wanted(core) && __atomic_load_n(&core->worker, __ATOMIC_SEQ_CST) == RUNNING)
			sleep_until(core, seen, GATHER_NS);
		take_lists(core);
		if (core->batch) {
			/* Refused: nothing may be run until it is allowed again. */
			while (percpu__rcu_synchronize(core, PERCPU__RCU_NORMAL))
				sleep_until(core, __atomic_load_n(&core->kick, __ATOMIC_SEQ_CST), RETRY_NS);
			run_batch(core);
		}
		end_pass(core);
		if (__atomic_load_n(&core->worker, __ATOMIC_SEQ_CST) == STOPPING && !has_callbacks(core))
			return NULL;
	}
}

static int make_shards(struct percpu__rcu_core *core)
{
	struct percpu__rcu_shard *none = NULL, *shards;

	if (__atomic_load_n(&core->shards, __ATOMIC_ACQUIRE))
		return 0;
	shards = percpu_alloc(sizeof *shards, 64);
	if (!shards)
		return -ENOMEM;
	if (!__atomic_compare_exchange_n(&core->shards, &none, shards, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		percpu_free(shards);
	return 0;
}

static PERCPU__COLD int start_worker(struct percpu__rcu_core *core)
{
	uint32_t none = NO_WORKER;
	pthread_t thread;
	uint64_t saved;
	int rc = make_shards(core);

	if (rc || !__atomic_compare_exchange_n(&core->worker, &none, STARTING, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return rc;
	/* Without a lock: it allocates. */
	percpu__block_signals(&saved);
	rc = pthread_create(&thread, NULL, work, core);
	percpu__restore_signals(&saved);
	if (!rc)
		core->thread = (unsigned long)thread;
	none = STARTING;
	__atomic_compare_exchange_n(&core->worker, &none, rc ? NO_WORKER : RUNNING, 0, __ATOMIC_SEQ_CST,
				    __ATOMIC_SEQ_CST);
	return -rc;
}

static bool may_wait(const struct percpu__rcu_core *core)
{
	return !percpu__private.rcu_worker && (core != &percpu__rcu_core || !percpu__rcu_is_inside());
}

/* The worker begins that pass without gathering first. */
static void want_pass(struct percpu__rcu_core *core, uint64_t pass)
{
	uint64_t wanted = __atomic_load_n(&core->wanted, __ATOMIC_SEQ_CST);

	while ((int64_t)(wanted - pass) < 0 &&
	       !__atomic_compare_exchange_n(&core->wanted, &wanted, pass, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
	kick(core);
}

/* Until the worker has ended that pass. */
static void wait_for_pass(struct percpu__rcu_core *core, uint64_t pass)
{
	want_pass(core, pass);
	__atomic_fetch_add(&core->passers, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		uint32_t seen = __atomic_load_n(&core->pass, __ATOMIC_SEQ_CST);

		if ((int64_t)(__atomic_load_n(&core->ended, __ATOMIC_SEQ_CST) - pass) >= 0)
			break;
		percpu__futex_wait(&core->pass, seen, ~0U);
	}
	__atomic_fetch_sub(&core->passers, 1, __ATOMIC_SEQ_CST);
}

static bool is_full(const struct percpu__rcu_shard *shard)
{
	return __atomic_load_n(&shard->count, __ATOMIC_SEQ_CST) >= PERCPU_RCU_QUEUE_MAX;
}

/* Until the worker has taken what is here. */
static PERCPU__COLD void hold_back(struct percpu__rcu_core *core, const struct percpu__rcu_shard *shard)
{
	want_pass(core, __atomic_load_n(&core->begun, __ATOMIC_SEQ_CST) + 1);
	__atomic_fetch_add(&core->passers, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		uint32_t seen = __atomic_load_n(&core->pass, __ATOMIC_SEQ_CST);

		if (!is_full(shard))
			break;
		percpu__futex_wait(&core->pass, seen, ~0U);
	}
	__atomic_fetch_sub(&core->passers, 1, __ATOMIC_SEQ_CST);
}

int percpu__rcu_call(struct percpu__rcu_core *core, struct percpu_rcu_head *head,
		     void (*call)(struct percpu_rcu_head *head))
{
	struct percpu__rcu_shard *shard;
	int rc;

	if (!head || !call)
		return -EINVAL;
	if (PERCPU__UNLIKELY(__atomic_load_n(&core->worker, __ATOMIC_ACQUIRE) != RUNNING)) {
		rc = start_worker(core);
		if (rc)
			return rc;
	}
	shard = shard_of(core, percpu__usual_index(PERCPU__BY_ID));
	if (PERCPU__UNLIKELY(is_full(shard)) && may_wait(core))
		hold_back(core, shard);
	head->call = call;
	head->next = __atomic_load_n(&shard->last, __ATOMIC_RELAXED);
	while (!__atomic_compare_exchange_n(&shard->last, &head->next, head, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
	__atomic_fetch_add(&shard->count, 1, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(&core->asleep, __ATOMIC_SEQ_CST) && __atomic_exchange_n(&core->asleep, 0, __ATOMIC_SEQ_CST))
		kick(core);
	return 0;
}

int percpu__rcu_barrier(struct percpu__rcu_core *core)
{
	int rc;

	if (!may_wait(core))
		return -EDEADLK;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!has_callbacks(core) &&
	    __atomic_load_n(&core->begun, __ATOMIC_SEQ_CST) == __atomic_load_n(&core->ended, __ATOMIC_SEQ_CST))
		return 0;
	rc = start_worker(core);
	if (!rc)
		wait_for_pass(core, __atomic_load_n(&core->begun, __ATOMIC_SEQ_CST) + 1);
	return rc;
}

void percpu__rcu_stop(struct percpu__rcu_core *core)
{
	if (__atomic_load_n(&core->worker, __ATOMIC_SEQ_CST) == NO_WORKER && has_callbacks(core))
		start_worker(core);
	if (__atomic_load_n(&core->worker, __ATOMIC_SEQ_CST) != NO_WORKER) {
		__atomic_store_n(&core->worker, STOPPING, __ATOMIC_SEQ_CST);
		kick(core);
		pthread_join((pthread_t)core->thread, NULL);
		core->worker = NO_WORKER;
	}
	percpu_free(core->shards);
	core->shards = NULL;
}

/* In the child: nobody leads, works, waits or sleeps. */
void percpu__rcu_fork_core(struct percpu__rcu_core *core)
{
	if (core != &percpu__rcu_core)
		core->open = 0; /* its readers are no more */
	else
		percpu__rcu_now.word = (core->now << PERCPU__RCU_NUMBER) + 1;
	core->leader = core->sleepers = 0;
	core->worker = NO_WORKER;
	core->asleep = core->passers = 0;
	core->ended = core->begun;
	core->wanted = core->begun;
}

int percpu_rcu_call(struct percpu_rcu_head *head, void (*call)(struct percpu_rcu_head *head))
{
	return percpu__rcu_call(&percpu__rcu_core, head, call);
}

int percpu_rcu_barrier(void)
{
	return percpu__rcu_barrier(&percpu__rcu_core);
}

/* Functions of an argument. */

struct deferred {
	struct percpu_rcu_head head;
	void (*function)(void *argument);
	void *argument;
};

static struct percpu_pool *deferred_pool;

/* Not under a lock, which a fork could find taken. */
static int make_pool(void)
{
	struct percpu_pool *none = NULL, *pool;
	int rc;

	if (__atomic_load_n(&deferred_pool, __ATOMIC_ACQUIRE))
		return 0;
	pool = percpu_alloc(sizeof *pool, 64);
	if (!pool)
		return -ENOMEM;
	rc = percpu_pool_init(pool, sizeof(struct deferred), _Alignof(struct deferred), 0, 0);
	if (!rc && __atomic_compare_exchange_n(&deferred_pool, &none, pool, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return 0;
	if (!rc)
		percpu_pool_destroy(pool);
	percpu_free(pool);
	return rc;
}

static void run_deferred(struct percpu_rcu_head *head)
{
	struct deferred deferred = *(struct deferred *)(void *)head;

	percpu_pool_put(deferred_pool, head);
	deferred.function(deferred.argument);
}

int percpu_rcu_defer(void (*function)(void *argument), void *argument)
{
	struct deferred *deferred;
	int rc;

	if (!function)
		return -EINVAL;
	rc = make_pool();
	if (rc)
		return rc;
	deferred = percpu_pool_get(deferred_pool);
	if (!deferred)
		return -ENOMEM;
	deferred->function = function;
	deferred->argument = argument;
	rc = percpu_rcu_call(&deferred->head, run_deferred);
	if (rc)
		percpu_pool_put(deferred_pool, deferred);
	return rc;
}

static void free_object(void *object)
{
	percpu_free(object);
}

int percpu_rcu_free(void *object)
{
	return object ? percpu_rcu_defer(free_object, object) : 0;
}
