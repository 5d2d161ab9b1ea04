/* SPDX-License-Identifier: MIT */
/*
 * Readers of the one RCU for all.
 *
 * Each thread has a record in memory of the library, which its first read section gives it: so whoever waits for readers may
 * look at it whatever becomes of the thread. Records are kept in chunks that double in size, are never unmapped, and are found
 * by number. A thread's end gives nothing back: when all records are taken, those whose task does not exist any more are
 * taken back, and then there are at least as many again before that is tried next.
 *
 * A reader publishes the number of the last grace period that it knows, and that it is inside, by one store. Whoever waits
 * increments the number, fences, and waits until nobody is inside with a lower one. Behind the fence:
 *   - A reader that has used what was there before the fence had stored its state before, so it is seen. (The fence interrupts
 *     each CPU that runs one of our threads, or lies between two threads there: on both sides everything is done in order.)
 *   - Nothing that its state says can be too new: it loaded the number first, with acquire, so who has the new number sees what
 *     was stored before that was published.
 *   - It may be too old, if the reader loaded it long ago and stores it now. Then it is waited for, or not, in vain either way.
 * So one number that only goes up needs one fence and one wait; liburcu's and SRCU's one bit needs two. In mode none nobody is
 * interrupted: there a reader stores its state by an exchange, which is the barrier that pairs with the waiter's.
 *
 * Two kinds of readers always come through here: those in mode none, and those whose thread-local storage another task uses at
 * the same time (clone without CLONE_SETTLS); they are told apart by their task's id. If there is no memory for a record, all
 * who have none share one, and count in it by atomic instructions.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/sys.h"
#include "gate/gate.h"
#include "rseq/thread.h"
#include "sync/rcu.h"

#define FIRST  32U /* records in the first chunk: a page */
#define CHUNKS 24  /* more than there can be tasks */
/* A task that has been inside for so long may have ended there. */
#define DEAD_NS 5000000

_Static_assert(sizeof(struct percpu__rcu_reader) == 128, "two cache lines");

struct percpu__rcu_now percpu__rcu_now = { .word = (UINT64_C(1) << PERCPU__RCU_NUMBER) + 1 };
struct percpu__fork_lock percpu__rcu_lock;

/* Written under the lock; a chunk before `used` says that there are records in it. */
static struct percpu__rcu_reader *chunks[CHUNKS];
static uint64_t used;     /* records that have been given out */
static uint64_t hint;     /* none before it is free */
static uint64_t clean_at; /* so many in use: see which tasks have ended */
/* Shared by those for whom there was no memory. */
static struct percpu__rcu_reader common;
static uint32_t left_word; /* changes when a reader left that was watched */

static struct percpu__rcu_reader *record(uint64_t number)
{
	unsigned chunk = 63U - (unsigned)__builtin_clzll(number / FIRST + 1);

	return &chunks[chunk][number - FIRST * ((UINT64_C(1) << chunk) - 1)];
}

static bool make_room(uint64_t number)
{
	unsigned chunk = 63U - (unsigned)__builtin_clzll(number / FIRST + 1);
	size_t size = (sizeof(struct percpu__rcu_reader) * FIRST) << chunk;
	long rc;

	if (chunk >= CHUNKS)
		return false;
	if (chunks[chunk])
		return true;
	rc = percpu__sys6(SYS_mmap, 0, (long)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (rc < 0 && rc > -4096)
		return false;
	chunks[chunk] = (struct percpu__rcu_reader *)rc;
	return true;
}

/* Any task of the system: some share our memory, but are not threads of this process. */
static bool is_dead(uint32_t task)
{
	return task && percpu__sys4(SYS_tkill, task, 0, 0, 0) == -ESRCH;
}

/* Under the lock. What a task was inside of when it ended it does not read any more. */
static bool take_back(struct percpu__rcu_reader *reader)
{
	if (reader == percpu__private.rcu || !is_dead(reader->owner))
		return false;
	__atomic_store_n(&reader->state, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&reader->owner, 0, __ATOMIC_RELAXED);
	return true;
}

static void clean_up(void)
{
	uint64_t alive = 0;

	for (uint64_t i = 0; i < used; i++)
		if (record(i)->owner && !take_back(record(i)))
			alive++;
	hint = 0;
	clean_at = 2 * alive > FIRST ? 2 * alive : FIRST;
}

static struct percpu__rcu_reader *find_free(uint32_t task)
{
	for (; hint < used; hint++)
		if (!record(hint)->owner) {
			record(hint)->owner = task;
			return record(hint++);
		}
	return NULL;
}

/* NULL if there is no memory. */
static struct percpu__rcu_reader *claim(uint32_t task)
{
	struct percpu__rcu_reader *found;
	uint64_t saved;

	percpu__fork_lock(&percpu__rcu_lock, &saved);
	found = find_free(task);
	if (!found && used >= clean_at) {
		clean_up();
		found = find_free(task);
	}
	if (!found && make_room(used)) {
		found = record(used);
		found->owner = task;
		/* Before the owner's first read section: whoever fences behind that looks at this record too. */
		__atomic_store_n(&used, used + 1, __ATOMIC_RELEASE);
		hint = used;
	}
	percpu__fork_unlock(&percpu__rcu_lock, &saved);
	return found;
}

/* Of the task that calls, where several may share this thread-local storage. */
static struct percpu__rcu_reader *find_of_task(bool make)
{
	uint32_t task = percpu__task_id();
	uint64_t count = __atomic_load_n(&used, __ATOMIC_ACQUIRE);
	struct percpu__rcu_reader *found = NULL;

	for (uint64_t i = 0; i < count && !found; i++)
		if (__atomic_load_n(&record(i)->owner, __ATOMIC_RELAXED) == task)
			found = record(i);
	if (!found && make)
		found = claim(task);
	return found ? found : &common;
}

/* The calling thread's record, or `common`. */
static struct percpu__rcu_reader *mine(bool make)
{
	struct percpu__private *me = &percpu__private;

	if (percpu__thread.rcu == &percpu__rcu_lent)
		return find_of_task(make);
	if (!me->rcu) {
		struct percpu__rcu_reader *found;
		uint64_t saved;

		if (!make)
			return &common;
		percpu__thread_start();
		/* A handler must not claim one too, and then have its own replaced. */
		percpu__block_signals(&saved);
		if (!me->rcu) {
			found = claim(me->id);
			me->rcu = found ? found : &common;
		}
		percpu__restore_signals(&saved);
	}
	/* From now on it has the short way, if it may. */
	if (me->rcu != &common && percpu__mode() != PERCPU_MODE_NONE && !me->force)
		percpu__thread.rcu = me->rcu;
	return me->rcu;
}

static void wake_waiter(void)
{
	__atomic_fetch_add(&left_word, 1, __ATOMIC_SEQ_CST);
	percpu__futex_wake(&left_word, 1, ~0U);
}

static void enter_common(void)
{
	uint64_t now, state = __atomic_load_n(&common.state, __ATOMIC_RELAXED);

	do
		now = __atomic_load_n(&percpu__rcu_now.word, __ATOMIC_ACQUIRE);
	while (!__atomic_compare_exchange_n(&common.state, &state, state ? state + 1 : now, 0, __ATOMIC_SEQ_CST,
					    __ATOMIC_RELAXED));
}

static void leave_common(void)
{
	uint64_t state = __atomic_load_n(&common.state, __ATOMIC_RELAXED);

	while (!__atomic_compare_exchange_n(&common.state, &state, (state & PERCPU__RCU_NESTED) > 1 ? state - 1 : 0, 0,
					    __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		;
	if ((state & PERCPU__RCU_DEPTH) == (1 | PERCPU__RCU_WATCHED))
		wake_waiter();
}

void percpu__rcu_lock_slow(void)
{
	struct percpu__rcu_reader *me = mine(true);
	uint64_t state, now;

	if (me == &common) {
		enter_common();
		return;
	}
	/* Only this thread changes the depth; handlers give back what they take. The bit may be lost: whoever set it looks again. */
	state = __atomic_load_n(&me->state, __ATOMIC_RELAXED);
	if (state) {
		__atomic_store_n(&me->state, state + 1, __ATOMIC_RELAXED);
		return;
	}
	now = __atomic_load_n(&percpu__rcu_now.word, __ATOMIC_ACQUIRE);
	if (percpu__mode() == PERCPU_MODE_NONE)
		/* Pairs with percpu_fence(), which in this mode is a barrier of its caller only. */
		__atomic_exchange_n(&me->state, now, __ATOMIC_SEQ_CST);
	else
		__atomic_store_n(&me->state, now, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
#if !defined __x86_64__
	if (percpu__mode() == PERCPU_MODE_NONE)
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

void percpu__rcu_unlock_slow(void)
{
	struct percpu__rcu_reader *me = mine(false);
	uint64_t state = __atomic_load_n(&me->state, __ATOMIC_RELAXED);

	if (me == &common || !state) {
		leave_common();
		return;
	}
	if ((state & PERCPU__RCU_NESTED) > 1) {
		__atomic_store_n(&me->state, state - 1, __ATOMIC_RELAXED);
		return;
	}
	__atomic_store_n(&me->state, 0, __ATOMIC_RELEASE);
	if (state & PERCPU__RCU_WATCHED)
		wake_waiter();
}

bool percpu__rcu_is_inside(void)
{
	const struct percpu__rcu_reader *me = mine(false);

	/* Who shares a record cannot tell: anybody may be the one inside. */
	return me != &common && __atomic_load_n(&me->state, __ATOMIC_RELAXED) != 0;
}

bool percpu_rcu_read_held(void)
{
	const struct percpu__rcu_reader *me = mine(false);

	if (me == &common && percpu__private.rcu != &common && percpu__thread.rcu != &percpu__rcu_lent)
		return false; /* has never read */
	return __atomic_load_n(&me->state, __ATOMIC_RELAXED) != 0;
}

static bool is_old(uint64_t state, uint64_t number)
{
	/* Numbers may wrap: their difference is small. */
	return state && (int64_t)((state & ~(uint64_t)PERCPU__RCU_DEPTH) - (number << PERCPU__RCU_NUMBER)) < 0;
}

static void wait_long(struct percpu__rcu_reader *reader, uint64_t number, enum percpu__rcu_haste haste)
{
	uint64_t begun = percpu__rcu_now_ns(), state, saved;

	for (;;) {
		uint32_t seen = __atomic_load_n(&left_word, __ATOMIC_SEQ_CST);
		struct timespec until = { 0, 0 };

		state = __atomic_load_n(&reader->state, __ATOMIC_ACQUIRE);
		if (!is_old(state, number))
			return;
		/*
		 * Ask to be woken. The reader changes its state by plain stores: one that was about to may overwrite the
		 * bit, and so we look again before long in any case.
		 */
		if (!(state & PERCPU__RCU_WATCHED) &&
		    !__atomic_compare_exchange_n(&reader->state, &state, state | PERCPU__RCU_WATCHED, 0,
						 __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			continue;
		percpu__moment_in(percpu__rcu_nap_ns(begun, haste), &until);
		percpu__futex_wait_until(&left_word, seen, ~0U, &until);
		if (percpu__rcu_now_ns() - begun > DEAD_NS && reader != &common) {
			percpu__fork_lock(&percpu__rcu_lock, &saved);
			if (is_old(__atomic_load_n(&reader->state, __ATOMIC_RELAXED), number))
				take_back(reader);
			percpu__fork_unlock(&percpu__rcu_lock, &saved);
		}
	}
}

int percpu__rcu_wait_readers(uint64_t number, uint64_t *position, enum percpu__rcu_haste haste)
{
	/* Behind the fence: whoever was inside before it had a record before. */
	uint64_t count = __atomic_load_n(&used, __ATOMIC_ACQUIRE);
	unsigned spins = percpu__rcu_spins(haste);

	for (; *position <= count; ++*position) {
		struct percpu__rcu_reader *reader = *position < count ? record(*position) : &common;

		while (is_old(__atomic_load_n(&reader->state, __ATOMIC_ACQUIRE), number)) {
			if (haste == PERCPU__RCU_POLL)
				return -EAGAIN;
			if (spins) {
				spins--;
				percpu__pause();
				continue;
			}
			wait_long(reader, number, haste);
		}
	}
	return 0;
}

/* In the child: only the forking thread reads. */
void percpu__rcu_fork_readers(void)
{
	struct percpu__private *me = &percpu__private;

	for (uint64_t i = 0; i < used; i++) {
		struct percpu__rcu_reader *reader = record(i);

		if (reader == me->rcu) {
			reader->owner = me->id;
			reader->state &= ~PERCPU__RCU_WATCHED;
		} else if (reader->owner || reader->state) {
			reader->owner = 0;
			reader->state = 0;
		}
	}
	/* How many of those in `common` are ours is not known. */
	if (me->rcu != &common)
		common.state = 0;
	hint = 0;
}
