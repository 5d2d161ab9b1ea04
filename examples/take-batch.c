/* SPDX-License-Identifier: MIT */
/*
 * Take many nodes off a per-CPU list at once.
 *
 *   take-batch [seconds [threads]]
 *
 * An allocator that refills its callers wants 16 free buffers, not one. Popping them one by one costs 16 sections, and other
 * threads on this CPU may come in between. Here one section walks to the 17th node and commits the new head of the list: one
 * store, so either all 16 are the caller's or none is.
 *
 * Buffers go back in a chain, by an operation that the library has (percpu_this_push_chain): sections in C and ready-made
 * operations work on the same list, because both change it by one store while its gate is open.
 */
#include <percpu.h>

#include "churn.h"

#define BUFFERS 4096

struct buffer {
	struct buffer *next;
	uint32_t taken; /* for the check only */
};

/* One in each copy. All of it that others may look at is the first word: that is what a section may commit to. */
struct free_list {
	struct buffer *first;
};

/* The argument of the section: what the caller wants, and what it got. Private to the caller, so a body may write there. */
struct batch {
	unsigned want, got;
	struct buffer *first, *last;
};

PERCPU_SECTION(take_batch, struct free_list, list, struct batch, batch)
{
	struct buffer *last, *next = list->first;

	/*
	 * Everything is set here, at the beginning: the body may have been interrupted and is running again. It need not fear
	 * that somebody changes the list under it, or that a node it looks at is given away: whoever could do that has
	 * interrupted this section first.
	 */
	batch->first = next;
	batch->got = 0;
	for (last = NULL; next && batch->got < batch->want; batch->got++) {
		last = next;
		next = next->next;
	}
	batch->last = last;
	if (!last)
		return percpu_no_commit();
	return percpu_commit(&list->first, next);
}

static struct buffer buffers[BUFFERS];
static struct free_list *lists; /* a per-CPU pointer */
static struct percpu_counter taken, batches, found_empty, moved;

static void give_back(struct buffer *first, struct buffer *last)
{
	percpu_this_push_chain((void **)(void *)&lists->first, first, last, offsetof(struct buffer, next));
}

/* This copy's list is empty, the buffers are in others: brings half of the first that has some. Too dear to do often. */
static void refill(void)
{
	percpu_for_each_index(index) {
		struct free_list *list = percpu_ptr(lists, index);
		struct buffer *first, *last = NULL;
		struct percpu_gate gate;
		unsigned n = 0;

		if (!__atomic_load_n(&list->first, __ATOMIC_RELAXED) || percpu_gate_lock(lists, index, &gate))
			continue;
		/* No section runs on that copy now, and no thread that wants to may go on before this is done. */
		first = list->first;
		for (struct buffer *buffer = first; buffer; buffer = buffer->next)
			if (n++ % 2 == 0)
				last = last ? last->next : buffer;
		if (last)
			list->first = last->next;
		percpu_gate_unlock(&gate);
		if (last) {
			give_back(first, last);
			percpu_counter_inc(&moved);
			return;
		}
	}
}

/* Takes some, and gives them back. By a thread, or by a signal handler that interrupted a thread anywhere in here. */
static void step(uint64_t random, int in_handler)
{
	struct batch batch = { .want = (unsigned)(random % 32 + 1) };
	struct buffer *buffer, *middle;

	if (!take_batch(lists, &batch)) {
		percpu_counter_inc(&found_empty);
		/* Not in a handler: in mode none it may have interrupted a holder of a gate (percpu_gate(3)). */
		if (!in_handler)
			refill();
		return;
	}
	buffer = batch.first;
	for (unsigned i = 0; i < batch.got; i++, buffer = buffer->next)
		if (__atomic_exchange_n(&buffer->taken, 1, __ATOMIC_RELAXED))
			wrong("a buffer was taken twice");
	percpu_counter_add(&taken, batch.got);
	percpu_counter_inc(&batches);
	middle = NULL;
	for (buffer = batch.first; buffer != batch.last; buffer = buffer->next) {
		__atomic_store_n(&buffer->taken, 0, __ATOMIC_RELAXED);
		if (churn_draw() % 8 == 0)
			middle = buffer;
	}
	__atomic_store_n(&batch.last->taken, 0, __ATOMIC_RELAXED);
	/* Some in front, the others behind them, so that the lists are never the same again. */
	if (middle) {
		struct buffer *rest = middle->next;

		give_back(batch.first, middle);
		give_back(rest, batch.last);
	} else {
		give_back(batch.first, batch.last);
	}
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	unsigned found = 0;

	/* 64: a cache line of its own in each copy. */
	lists = percpu_alloc(sizeof *lists, 64);
	if (!lists || percpu_counter_init(&taken) || percpu_counter_init(&batches) ||
	    percpu_counter_init(&found_empty) || percpu_counter_init(&moved))
		return 1;
	for (unsigned i = 0; i < BUFFERS; i++)
		give_back(&buffers[i], &buffers[i]);

	churn_run(argc, argv, step);

	/* Nobody else is here any more, so the copies may be read plainly. The last one is the remainder's: it counts too. */
	percpu_for_each_index(index) {
		for (struct buffer *buffer = percpu_ptr(lists, index)->first; buffer; buffer = buffer->next) {
			if (buffer->taken)
				wrong("a buffer is in a list and taken, or in two lists");
			buffer->taken = 1;
			found++;
		}
	}
	percpu_describe(&about);
	printf("mode %s: %llu buffers in %llu batches (%llu times an empty list, %llu refilled), %u of %d buffers are there\n",
	       about.mode_name, (unsigned long long)percpu_counter_read(&taken),
	       (unsigned long long)percpu_counter_read(&batches), (unsigned long long)percpu_counter_read(&found_empty),
	       (unsigned long long)percpu_counter_read(&moved), found, BUFFERS);
	percpu_free(lists);
	return found == BUFFERS && percpu_counter_read(&batches) > 0 ? 0 : 1;
}
