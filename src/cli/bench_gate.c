/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: the fence, and vectors of operations.
 *
 * A fence is what one thread does to others, so here only the first thread of a run fences, while the others keep their
 * CPUs busy: each costs it an interrupt to that CPU.
 */
#include <errno.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cli/bench.h"

/* ---- fence */

static long membarrier(int command)
{
	return syscall(SYS_membarrier, command, 0, 0);
}

static const char *skip_unless(int command)
{
	long commands = membarrier(MEMBARRIER_CMD_QUERY);

	if (commands < 0)
		return "the system call membarrier fails here";
	return commands & command ? NULL : "this kernel does not offer that membarrier command";
}

static const char *skip_rseq(void)
{
	return skip_unless(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ);
}

static const char *skip_private(void)
{
	return skip_unless(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

static const char *skip_global(void)
{
	return skip_unless(MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}

/* In the threads that run, not before: a process that registers with one thread is overlooked on its other CPUs. */
static void fence_begin(struct bench_worker *worker)
{
	(void)worker;
	membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ);
	membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
	membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED);
}

BENCH_LOOP fence_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		percpu_fence();
}

BENCH_LOOP fence_percpu_cpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		percpu_fence_cpu(0);
}

BENCH_LOOP fence_membarrier_rseq(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ);
}

BENCH_LOOP fence_membarrier_private(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

BENCH_LOOP fence_membarrier_global(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}

static const struct bench_subject fence_subjects[] = {
	{ .name = "percpu", .what = "percpu_fence()", .loop = fence_percpu, .alone = true },
	{ .name = "percpu_cpu", .what = "percpu_fence_cpu(0)", .loop = fence_percpu_cpu, .alone = true },
	{ .name = "membarrier_syscall",
	  .what = "membarrier(2), private expedited rseq",
	  .loop = fence_membarrier_rseq,
	  .skip = skip_rseq,
	  .alone = true },
	{ .name = "membarrier_private_expedited",
	  .what = "membarrier(2), which aborts no section",
	  .loop = fence_membarrier_private,
	  .skip = skip_private,
	  .alone = true },
	{ .name = "membarrier_global_expedited",
	  .what = "membarrier(2), for all processes that asked for it",
	  .loop = fence_membarrier_global,
	  .skip = skip_global,
	  .alone = true },
	{ .name = NULL },
};

const struct bench bench_fence = {
	.name = "fence",
	.what = "end all running sections (one thread fences, others run)",
	.subjects = fence_subjects,
	.begin = fence_begin,
};

/* ---- opv: if a word is what it should be, add to two others */

struct account {
	uint64_t open, amount, changes;
};

static struct account *accounts; /* per-CPU */
static struct {
	BENCH_ALIGNED pthread_mutex_t mutex;
	struct account account;
} locked = { .mutex = PTHREAD_MUTEX_INITIALIZER };
static int opv_failure; /* what a vector returned when it should not have */

BENCH_LOOP opv_percpu(struct bench_worker *worker, uint64_t n)
{
	static const uint64_t zero;
	int failure = 0;

	(void)worker;
	for (; n; n--) {
		unsigned index = (unsigned)percpu_cid();
		struct account *account = percpu_ptr(accounts, index);
		const struct percpu_op ops[] = {
			{ .op = PERCPU_OP_COMPARE_EQ, .len = 8, .dst = &account->open, .src = &zero },
			{ .op = PERCPU_OP_ADD, .len = 8, .dst = &account->amount, .value = 5 },
			{ .op = PERCPU_OP_ADD, .len = 8, .dst = &account->changes, .value = 1 },
		};

		failure |= percpu_opv(ops, 3, index);
	}
	if (failure)
		__atomic_store_n(&opv_failure, failure, __ATOMIC_RELAXED);
}

BENCH_LOOP opv_mutex(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		pthread_mutex_lock(&locked.mutex);
		if (!locked.account.open) {
			locked.account.amount += 5;
			locked.account.changes++;
		}
		pthread_mutex_unlock(&locked.mutex);
	}
}

enum { OPV_PERCPU, OPV_MUTEX };

static const struct bench_subject opv_subjects[] = {
	[OPV_PERCPU] = { .name = "percpu", .what = "percpu_opv() on the current index", .loop = opv_percpu },
	[OPV_MUTEX] = { .name = "mutex", .what = "one structure under a pthread mutex", .loop = opv_mutex },
	{ .name = NULL },
};

static int opv_setup(unsigned threads)
{
	(void)threads;
	opv_failure = 0;
	locked.account = (struct account){ 0 };
	accounts = percpu_alloc(sizeof(*accounts), 64);
	return accounts ? 0 : -ENOMEM;
}

static const char *opv_check(const uint64_t *done)
{
	uint64_t amount = 0, changes = 0;

	percpu_for_each_index(index) {
		amount += percpu_ptr(accounts, index)->amount;
		changes += percpu_ptr(accounts, index)->changes;
	}
	if (opv_failure)
		return "an operation vector failed";
	if (amount != 5 * done[OPV_PERCPU] || changes != done[OPV_PERCPU] || locked.account.changes != done[OPV_MUTEX])
		return "the operation vectors did not do all that they should";
	return NULL;
}

static void opv_teardown(void)
{
	percpu_free(accounts);
	accounts = NULL;
}

const struct bench bench_opv = {
	.name = "opv",
	.what = "compare one word and add to two others, as one",
	.subjects = opv_subjects,
	.setup = opv_setup,
	.check = opv_check,
	.teardown = opv_teardown,
};
