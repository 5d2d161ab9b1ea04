/* SPDX-License-Identifier: MIT */
/*
 * A sorted list for each CPU: timers by expiry, requests by deadline.
 *
 *   sorted-list [seconds [threads]]
 *
 * Insertion walks to the place and links the new node there. The node is nobody else's until the one store that makes its
 * predecessor point to it, so the body may write the node as often as it is interrupted.
 *
 * A list belongs to its CPU: the minimum is that of one copy. What must see a copy of another CPU closes its gate
 * (range_of), which costs microseconds: for statistics and shutdown, not for each operation.
 */
#include <percpu.h>

#include "churn.h"

#define TIMERS 512 /* few: insertion takes time in proportion */
#define RANGE  1000000

struct timer {
	struct percpu_stack_node free; /* first, so that a node of the free list is its timer */
	struct timer *next;
	uint64_t expiry;
};

struct timers {
	struct timer *first; /* earliest first */
};

/* Helpers of bodies must be inlined into them: a call would leave the section. */
PERCPU_SECTION_INLINE struct timer **place_of(struct timers *timers, uint64_t expiry)
{
	struct timer **at = &timers->first;

	while (*at && (*at)->expiry < expiry)
		at = &(*at)->next;
	return at;
}

PERCPU_SECTION(insert, struct timers, timers, struct timer, timer)
{
	struct timer **at = place_of(timers, timer->expiry);

	timer->next = *at;
	/* Ordered after the line above for all who find the timer by this pointer. */
	return percpu_commit(at, timer);
}

/* If the earliest has expired by now, takes it. */
struct due {
	uint64_t now;
	struct timer *timer;
};

PERCPU_SECTION(pop_due, struct timers, timers, struct due, due)
{
	due->timer = timers->first;
	if (!due->timer || due->timer->expiry > due->now)
		return percpu_no_commit();
	return percpu_commit(&timers->first, due->timer->next);
}

/* Cancels the first timer of this copy at or behind an expiry. */
PERCPU_SECTION(cancel_from, struct timers, timers, struct due, due)
{
	struct timer **at = place_of(timers, due->now);

	due->timer = *at;
	return *at ? percpu_commit(at, (*at)->next) : percpu_no_commit();
}

static struct timer timers_of_all[TIMERS];
static struct timers *timers; /* a per-CPU pointer */
static struct percpu_stack free_timers;
static struct percpu_counter inserted, removed, inserted_sum, removed_sum, ranges;

/* How many timers of one copy expire from `low` to `high`, while that copy stands still. Returns -errno on failure. */
static int range_of(unsigned index, uint64_t low, uint64_t high)
{
	struct percpu_gate gate;
	int n = 0, rc = percpu_gate_lock(timers, index, &gate);
	const struct timer *timer;

	if (rc)
		return rc;
	/* No section runs on this copy now. Be quick, and call nothing: whoever wants this copy waits. */
	for (timer = percpu_ptr(timers, index)->first; timer && timer->expiry <= high; timer = timer->next)
		n += timer->expiry >= low;
	percpu_gate_unlock(&gate);
	return n;
}

static void remove_one(struct timer *timer)
{
	/* It is ours alone now: nobody reaches it any more. */
	percpu_counter_add(&removed_sum, timer->expiry);
	percpu_counter_inc(&removed);
	percpu_stack_push(&free_timers, &timer->free);
}

static void step(uint64_t random, int in_handler)
{
	struct due due = { .now = random / 16 % RANGE };
	struct timer *timer;

	switch (random % 16) {
	case 0:
		/* Not in a handler: in mode none it may have interrupted a holder of this gate (percpu_gate(3)). */
		if (!in_handler && random % 1024 == 0) {
			if (range_of((unsigned)(random / 1024 % percpu_copies()), due.now, due.now + RANGE / 10) < 0)
				wrong("a range could not be read");
			percpu_counter_inc(&ranges);
		}
		break;
	case 1:
	case 2:
	case 3:
		if (cancel_from(timers, &due))
			remove_one(due.timer);
		break;
	case 4:
	case 5:
	case 6:
	case 7:
	case 8:
		if (pop_due(timers, &due)) {
			if (due.timer->expiry > due.now)
				wrong("a timer was taken before its time");
			remove_one(due.timer);
		}
		break;
	default:
		timer = (struct timer *)(void *)percpu_stack_pop(&free_timers);
		if (!timer)
			break;
		timer->expiry = due.now;
		percpu_counter_add(&inserted_sum, timer->expiry);
		percpu_counter_inc(&inserted);
		insert(timers, timer); /* it always commits */
	}
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	uint64_t n = 0, sum = 0, free_ones = 0;

	timers = percpu_alloc(sizeof *timers, 64);
	if (!timers || percpu_stack_init(&free_timers) || percpu_counter_init(&inserted) ||
	    percpu_counter_init(&removed) || percpu_counter_init(&inserted_sum) || percpu_counter_init(&removed_sum) ||
	    percpu_counter_init(&ranges))
		return 1;
	for (unsigned i = 0; i < TIMERS; i++)
		percpu_stack_push(&free_timers, &timers_of_all[i].free);

	churn_run(argc, argv, step);

	percpu_for_each_index(index) {
		struct percpu_stack_node *unused;
		uint64_t last = 0;

		for (const struct timer *timer = percpu_ptr(timers, index)->first; timer; timer = timer->next) {
			if (timer->expiry < last)
				wrong("a list is not sorted");
			last = timer->expiry;
			sum += timer->expiry;
			n++;
		}
		if (percpu_stack_steal(&free_timers, index, &unused))
			wrong("cannot collect the free timers");
		for (; unused; unused = unused->next)
			free_ones++;
	}
	percpu_describe(&about);
	printf("mode %s: %llu inserted, %llu removed, %llu ranges read; %llu in lists and %llu free of %d\n",
	       about.mode_name, (unsigned long long)percpu_counter_read(&inserted),
	       (unsigned long long)percpu_counter_read(&removed), (unsigned long long)percpu_counter_read(&ranges),
	       (unsigned long long)n, (unsigned long long)free_ones, TIMERS);
	percpu_free(timers);
	return n + free_ones == TIMERS && n == percpu_counter_read(&inserted) - percpu_counter_read(&removed) &&
			       sum == percpu_counter_read(&inserted_sum) - percpu_counter_read(&removed_sum) &&
			       percpu_counter_read(&inserted) > 0
		       ? 0
		       : 1;
}
