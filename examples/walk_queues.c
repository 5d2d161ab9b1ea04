/* SPDX-License-Identifier: MIT */
/*
 * walk: its queues. The first is what the example is about; the others are what one would write without it.
 */
#include <errno.h>
#include <pthread.h>
#include <stddef.h>

#include "walk.h"

/* ---- A run queue for each CPU: threads work on their own, and steal when that is empty. */

static struct percpu_runqueue rq;

static int percpu_init(void)
{
	return percpu_runqueue_init(&rq);
}

/* The newest first: a tree is walked with little waiting, and thieves take the old end, where the large branches are. */
static void percpu_push(struct item *item)
{
	percpu_runqueue_push_front(&rq, &item->link.task);
}

static struct item *percpu_pop(void)
{
	struct percpu_task *task = percpu_runqueue_pop(&rq);

	/* An error, which a sandbox might cause, is as good as finding nothing: whoever has the tasks does them. */
	if (!task && percpu_runqueue_steal_any(&rq, &task))
		return NULL;
	return (struct item *)(void *)task;
}

static void percpu_wait(void)
{
	percpu_runqueue_wait(&rq, -1);
}

static void percpu_finish(unsigned threads)
{
	percpu_runqueue_wake(&rq, threads);
}

/* ---- One list under a mutex. */

static struct {
	pthread_mutex_t mutex;
	pthread_cond_t more;
	struct item *first;
	unsigned sleepers;
	bool finished;
} locked = { .mutex = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER };

static int nothing_to_init(void)
{
	return 0;
}

static void mutex_push(struct item *item)
{
	pthread_mutex_lock(&locked.mutex);
	item->link.next = locked.first;
	locked.first = item;
	if (locked.sleepers)
		pthread_cond_signal(&locked.more);
	pthread_mutex_unlock(&locked.mutex);
}

static struct item *mutex_pop(void)
{
	struct item *item;

	pthread_mutex_lock(&locked.mutex);
	item = locked.first;
	if (item)
		locked.first = item->link.next;
	pthread_mutex_unlock(&locked.mutex);
	return item;
}

static void mutex_wait(void)
{
	pthread_mutex_lock(&locked.mutex);
	locked.sleepers++;
	while (!locked.first && !locked.finished)
		pthread_cond_wait(&locked.more, &locked.mutex);
	locked.sleepers--;
	pthread_mutex_unlock(&locked.mutex);
}

static void mutex_finish(unsigned threads)
{
	(void)threads;
	pthread_mutex_lock(&locked.mutex);
	locked.finished = true;
	pthread_cond_broadcast(&locked.more);
	pthread_mutex_unlock(&locked.mutex);
}

/* ---- Lock-free ones, whose threads need some other way to sleep. */

#if defined HAVE_CK || defined HAVE_URCU_CDS
static uint32_t sleepers;

/* After a push. Pairs with the same in idle(): either this sees that it sleeps, or it sees the item. */
static void wake_one(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(&sleepers, __ATOMIC_RELAXED)) {
		pthread_mutex_lock(&locked.mutex);
		pthread_cond_signal(&locked.more);
		pthread_mutex_unlock(&locked.mutex);
	}
}

static void idle(bool (*is_empty)(void))
{
	pthread_mutex_lock(&locked.mutex);
	__atomic_fetch_add(&sleepers, 1, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	while (!locked.finished && is_empty())
		pthread_cond_wait(&locked.more, &locked.mutex);
	__atomic_fetch_sub(&sleepers, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&locked.mutex);
}
#endif

#if defined HAVE_CK && defined CK_F_STACK_POP_MPMC
static struct ck_stack stack __attribute__((aligned(64)));

static int ck_init(void)
{
	ck_stack_init(&stack);
	return 0;
}

static void ck_push(struct item *item)
{
	ck_stack_push_mpmc(&stack, &item->link.ck);
	wake_one();
}

static struct item *ck_pop(void)
{
	return (struct item *)(void *)ck_stack_pop_mpmc(&stack);
}

static bool ck_is_empty(void)
{
	return !__atomic_load_n(&stack.head, __ATOMIC_RELAXED);
}

static void ck_wait(void)
{
	idle(ck_is_empty);
}
#endif

#ifdef HAVE_URCU_CDS
static struct cds_wfcq_head head __attribute__((aligned(64)));
static struct cds_wfcq_tail tail __attribute__((aligned(64)));

static int urcu_init(void)
{
	cds_wfcq_init(&head, &tail);
	return 0;
}

static void urcu_push(struct item *item)
{
	cds_wfcq_node_init(&item->link.wfcq);
	cds_wfcq_enqueue(&head, &tail, &item->link.wfcq);
	wake_one();
}

static struct item *urcu_pop(void)
{
	return (struct item *)(void *)cds_wfcq_dequeue_blocking(&head, &tail);
}

static bool urcu_is_empty(void)
{
	return cds_wfcq_empty(&head, &tail);
}

static void urcu_wait(void)
{
	idle(urcu_is_empty);
}
#endif

const struct queue queues[] = {
	{ "percpu", percpu_init, percpu_push, percpu_pop, percpu_wait, percpu_finish, false },
	{ "mutex", nothing_to_init, mutex_push, mutex_pop, mutex_wait, mutex_finish, false },
#if defined HAVE_CK && defined CK_F_STACK_POP_MPMC
	{ "ck", ck_init, ck_push, ck_pop, ck_wait, mutex_finish, true },
#endif
#ifdef HAVE_URCU_CDS
	{ "urcu", urcu_init, urcu_push, urcu_pop, urcu_wait, mutex_finish, false },
#endif
	{ NULL, NULL, NULL, NULL, NULL, NULL, false },
};
