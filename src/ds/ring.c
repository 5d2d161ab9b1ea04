/* SPDX-License-Identifier: MIT */
/*
 * Rings: room for producers, consumers of pointers, sleeping and waking.
 *
 * Who may change what, for each copy:
 *   tail   sections of the thread that runs there; slow paths, under the gate
 *   limit  sections of the thread that runs there, as the head allows; anybody to 0
 *   head   anybody, by compare-and-swap. No section reads it, so nobody needs a gate to change it
 *   lost   whoever drops, by the compare-and-swap of the pair; so a consumer's swap of the head alone fails whenever lost
 *          has changed, and the count is exact at each moment that a child of fork can begin with
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/pair.h"
#include "base/sys.h"
#include "ds/ring.h"
#include "rseq/thread.h"

#define DROP_SHARE 8    /* of the capacity, that is dropped at once: enough to make its price that of many entries */
#define DROP_MOST  8192 /* bytes; a producer does this between two of its writes */
#define NAP_NS     1000000

/*
 * Walks over records from `position` until `target` is reached; sets *count. Their headers may be torn: then somebody has
 * taken them meanwhile. Records are often of one size: then the address of the next header comes from the guess, not from
 * the header before it, and the processor need not wait for one load after another.
 */
static uint64_t walk(const struct percpu_ring *ring, struct percpu__ring_copy *copy, uint64_t position, uint64_t target,
		     uint64_t *count)
{
	uint64_t records = 0, size = 0;
	int64_t guess = -1;

	while (position < target) {
		const struct percpu_record *record = (const void *)percpu__ring_at(ring, copy, position);
		uint32_t length = __atomic_load_n(&record->length, __ATOMIC_RELAXED);

		if (PERCPU__UNLIKELY(length != guess)) {
			guess = length;
			size = percpu_record_size(length);
			/* Or the compiler sees that the size depends on this length in any case. */
			__asm__ __volatile__("" : "+r"(size));
		}
		position += size;
		records++;
	}
	*count = records;
	return position;
}

/* Drops the oldest, so that the tail is at most @room from the head, or much less. False if somebody was faster. */
static bool drop(const struct percpu_ring *ring, struct percpu__ring_copy *copy, struct percpu__ring_view view,
		 uint64_t room)
{
	uint64_t to = view.tail - room, count;

	if (to < view.head + ring->batch)
		to = view.head + ring->batch;
	if (to > view.tail)
		to = view.tail;
	if (ring->most) {
		to = walk(ring, copy, view.head, to, &count);
		if (to > view.tail)
			return false; /* what we walked over was not there any more */
	} else {
		count = (to - view.head) / sizeof(void *);
	}
	return percpu__swap_pair(&copy->head, view.head, view.lost, to, view.lost + count);
}

/* Whether @size bytes fit. Lock-free: it drops again only if somebody else took or dropped something. */
static bool make_room(const struct percpu_ring *ring, struct percpu__ring_copy *copy, uint64_t size)
{
	uint64_t room = percpu__ring_room(ring, size);

	for (;;) {
		struct percpu__ring_view view = percpu__ring_look(copy);

		if (view.tail - view.head <= room)
			return true;
		if (!ring->batch)
			return false;
		drop(ring, copy, view, room);
	}
}

static int attempt(struct percpu__task *task)
{
	const struct percpu__ring_task *t = (const struct percpu__ring_task *)(const void *)task;
	uint32_t index;
	int rc = t->section(t);

	if (rc != PERCPU__DIFFERS || !t->ring->batch)
		return rc;
	/* The copy that was full, unless the thread has been moved since; then this one is full or is not. */
	index = *(const volatile uint32_t *)(const void *)((const char *)percpu__self + percpu__index_offset);
	if (index >= percpu__remainder)
		return PERCPU__LEFT;
	make_room(t->ring, percpu__ring_copy_of(t->ring, index), t->size);
	rc = t->section(t);
	return rc == PERCPU__DIFFERS ? PERCPU__LEFT : rc;
}

static int plainly(struct percpu__task *task, unsigned index)
{
	const struct percpu__ring_task *t = (const struct percpu__ring_task *)(const void *)task;
	struct percpu__ring_copy *copy = percpu__ring_copy_of(t->ring, index);
	uint64_t tail = __atomic_load_n(&copy->tail, __ATOMIC_RELAXED);

	if (!make_room(t->ring, copy, t->size))
		return PERCPU__DIFFERS;
	t->fill(t, percpu__ring_at(t->ring, copy, tail));
	__atomic_store_n(&copy->tail, tail + t->size, __ATOMIC_RELEASE);
	/*
	 * Between the commit and the look at the wishes. Pairs with the fence of a consumer, which in mode none is only a
	 * barrier of its own thread: without it neither might see the other's store.
	 */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return PERCPU__DONE;
}

int percpu__ring_produce(struct percpu__ring_task *t)
{
	t->task = (struct percpu__task){
		.attempt = attempt, .plainly = plainly, .object = t->ring->copies, .by = PERCPU__BY_ID
	};
	if (percpu__slow_task(&t->task) != PERCPU__DONE)
		return -ENOBUFS;
	/* A section's commit and this load need no barrier: see wish(). */
	if (__atomic_load_n(&t->ring->wishes, __ATOMIC_RELAXED))
		percpu_ring_wake_up(t->ring);
	/* The next ones may take the fast path. If this leaves, or somebody has wished again, they come here too. */
	(void)PERCPU__TRY(percpu__try_ring_open(t->ring));
	return 0;
}

static int push_section(const struct percpu__ring_task *t)
{
	(void)t;
	return PERCPU__TRY(percpu__try_ring_push_behind(t->ring, (void *)(uintptr_t)t->word));
}

static void fill_entry(const struct percpu__ring_task *t, unsigned char *at)
{
	__atomic_store_n((uint64_t *)(void *)at, t->word, __ATOMIC_RELAXED);
}

int percpu__slow_ring_push(struct percpu_ring *ring, void *entry)
{
	struct percpu__ring_task task = { .ring = ring,
					  .section = push_section,
					  .fill = fill_entry,
					  .size = sizeof entry,
					  .word = (uintptr_t)entry };

	return percpu__ring_produce(&task);
}

int percpu__ring_init(struct percpu_ring *ring, size_t bytes, size_t slack, size_t most, unsigned flags)
{
	size_t batch = bytes / DROP_SHARE < DROP_MOST ? bytes / DROP_SHARE : DROP_MOST;
	bool overwrite = flags & PERCPU_RING_OVERWRITE;
	void *copies;

	if (flags & ~(unsigned)(PERCPU_RING_OVERWRITE | PERCPU_RING_ONE_CONSUMER))
		return -EINVAL;
	/* Lines of their own, in pairs: processors fetch the neighbour too. */
	copies = percpu_alloc(sizeof(struct percpu__ring_copy) + bytes + slack, 128);
	if (!copies)
		return -ENOMEM;
	*ring = (struct percpu_ring){ .copies = copies,
				      .mask = bytes - 1,
				      .most = (uint32_t)most,
				      .batch = !overwrite ? 0 : (uint32_t)(batch < 8 ? 8 : batch),
				      .alone = !overwrite && (flags & PERCPU_RING_ONE_CONSUMER),
				      .event = -1 };
	return 0;
}

int percpu_ring_init(struct percpu_ring *ring, size_t entries, unsigned flags)
{
	if (!ring || entries < 2 || entries & (entries - 1))
		return -EINVAL;
	if (entries > PERCPU_RING_MAX)
		return -E2BIG;
	return percpu__ring_init(ring, entries * sizeof(void *), 0, 0, flags);
}

void percpu_ring_destroy(struct percpu_ring *ring)
{
	if (!ring || !ring->copies)
		return;
	percpu_free(ring->copies);
	ring->copies = NULL;
	if (ring->event >= 0)
		percpu__sys4(SYS_close, ring->event, 0, 0, 0);
	ring->event = -1;
}

/* Consumers. */

static unsigned pop(const struct percpu_ring *ring, unsigned index, void **out, unsigned n)
{
	struct percpu__ring_copy *copy = percpu__ring_copy_of(ring, index);
	struct percpu__ring_patience patience = { .tries = 0 };
	unsigned count = 0;

	for (;;) {
		struct percpu__ring_view view = percpu__ring_look(copy);
		uint64_t there = (view.tail - view.head) / sizeof *out;

		if (!there)
			break;
		count = n >> patience.tries ? n >> patience.tries : 1;
		if (count > there)
			count = (unsigned)there;
		for (unsigned i = 0; i < count; i++)
			out[i] = __atomic_load_n(
				(void **)(void *)percpu__ring_at(ring, copy, view.head + i * sizeof *out),
				__ATOMIC_RELAXED);
		if (percpu__ring_take(ring, copy, view, view.head + count * sizeof *out))
			break;
		count = 0;
		percpu__ring_again(&patience, ring, index);
	}
	percpu__ring_enough(&patience);
	return count;
}

int percpu_ring_pop_index(struct percpu_ring *ring, unsigned index, void **out, unsigned n)
{
	if (!ring || !out || index > percpu__remainder || !n || n > INT_MAX)
		return -EINVAL;
	return (int)pop(ring, index, out, n);
}

int percpu_ring_pop(struct percpu_ring *ring, void **out, unsigned n)
{
	unsigned index, total = 0;

	if (!ring || !out || !n || n > INT_MAX)
		return -EINVAL;
	index = percpu__ring_next(ring);
	for (unsigned copies = percpu__remainder + 1; copies && total < n; copies--) {
		unsigned count = pop(ring, index, out + total, n - total);

		total += count;
		if (count)
			percpu__ring_came_from(ring, index);
		index = index < percpu__remainder ? index + 1 : 0;
	}
	return (int)total;
}

int percpu_ring_discard(struct percpu_ring *ring, unsigned index)
{
	struct percpu__ring_copy *copy;
	struct percpu__ring_view view;

	if (!ring || index > percpu__remainder)
		return -EINVAL;
	copy = percpu__ring_copy_of(ring, index);
	do
		view = percpu__ring_look(copy);
	while (view.head != view.tail && !percpu__ring_take(ring, copy, view, view.tail));
	return 0;
}

static bool is_empty(const struct percpu_ring *ring, unsigned index)
{
	struct percpu__ring_view view = percpu__ring_look(percpu__ring_copy_of(ring, index));

	return view.head == view.tail;
}

bool percpu_ring_is_empty(const struct percpu_ring *ring, unsigned index)
{
	return ring && index <= percpu__remainder && is_empty(ring, index);
}

static bool has_any(const struct percpu_ring *ring)
{
	percpu_for_each_index(index)
		if (!is_empty(ring, index))
			return true;
	return false;
}

uint64_t percpu_ring_lost(const struct percpu_ring *ring)
{
	uint64_t lost = 0;

	if (ring)
		percpu_for_each_index(index)
			lost += __atomic_load_n(&percpu__ring_copy_of(ring, index)->lost, __ATOMIC_RELAXED);
	return lost;
}

/* Sleeping and waking. */

void percpu_ring_wake_up(struct percpu_ring *ring)
{
	uint64_t one = 1;
	uint32_t wishes;

	if (!ring)
		return;
	wishes = __atomic_exchange_n(&ring->wishes, 0, __ATOMIC_SEQ_CST);
	/* Before the wake-up: who has wished and not yet gone to sleep will not. */
	__atomic_fetch_add(&ring->woken, 1, __ATOMIC_SEQ_CST);
	if (wishes & PERCPU__RING_FUTEX)
		percpu__futex_wake(&ring->woken, INT_MAX, ~0U);
	if (wishes & PERCPU__RING_EVENT)
		percpu__sys4(SYS_write, __atomic_load_n(&ring->event, __ATOMIC_RELAXED), (long)&one, sizeof one, 0);
}

/* Sets the limit of each copy that was ever used to 0. Returns whether there was any other. */
static bool close_all(struct percpu_ring *ring)
{
	bool any = false;

	percpu_for_each_index(index) {
		uint64_t *limit = &percpu__ring_copy_of(ring, index)->limit;

		if (__atomic_load_n(limit, __ATOMIC_RELAXED)) {
			__atomic_store_n(limit, 0, __ATOMIC_RELAXED);
			any = true;
		}
	}
	return any;
}

/*
 * Has the next producer wake us; then what is there is what was there before, so look at the tails afterwards.
 *
 * Each producer's commit is before the fence, and visible to us, or its section begins behind it. Then it finds the limit
 * at 0, takes the slow path, and looks at the wishes after its commit. A limit cannot be set by a section that begins
 * behind the fence, which sees the wish; one that was set in between shows in the second round, of which there are few.
 * (A slow path under a gate knows no limit. If it was before the fence in its thread, we see its commit; else it sees the
 * wish.) Returns what percpu_fence() does.
 */
static int wish(struct percpu_ring *ring, enum percpu__ring_wish what)
{
	int rc;

	__atomic_fetch_or(&ring->wishes, what, __ATOMIC_SEQ_CST);
	close_all(ring);
	do
		rc = percpu_fence();
	while (close_all(ring) && !rc);
	return rc;
}

static int64_t now_ns(void)
{
	struct timespec now = { 0, 0 };

	percpu__sys4(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now, 0, 0);
	return now.tv_sec * 1000000000 + now.tv_nsec;
}

/* @until: on the monotonic clock, or negative. Returns what futex(2) does. */
static long sleep_until(struct percpu_ring *ring, uint32_t woken, int64_t until)
{
	struct timespec at = { .tv_sec = until / 1000000000, .tv_nsec = until % 1000000000 };

	return percpu__sys6(SYS_futex, (long)&ring->woken, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, (long)woken,
			    until < 0 ? 0 : (long)&at, 0, (long)FUTEX_BITSET_MATCH_ANY);
}

int percpu_ring_wait(struct percpu_ring *ring, int64_t timeout_ns)
{
	int64_t end = -1;

	if (!ring)
		return -EINVAL;
	if (has_any(ring))
		return 0;
	if (!timeout_ns)
		return -ETIMEDOUT;
	if (timeout_ns > 0 && __builtin_add_overflow(now_ns(), timeout_ns, &end))
		end = -1;
	for (;;) {
		uint32_t woken = __atomic_load_n(&ring->woken, __ATOMIC_SEQ_CST);
		int64_t until = end;
		long rc;

		/* Who cannot fence any more might miss a producer, so he does not sleep long. */
		if (wish(ring, PERCPU__RING_FUTEX)) {
			until = now_ns() + NAP_NS;
			if (end >= 0 && end < until)
				until = end;
		}
		if (has_any(ring))
			return 0;
		rc = sleep_until(ring, woken, until);
		if (has_any(ring) || __atomic_load_n(&ring->woken, __ATOMIC_RELAXED) != woken)
			return 0;
		if (rc == -ETIMEDOUT && until == end)
			return -ETIMEDOUT;
		if (rc == -EINTR)
			return -EINTR;
	}
}

int percpu_ring_eventfd(struct percpu_ring *ring)
{
	int32_t none = -1;
	long fd;

	if (!ring)
		return -EINVAL;
	if (__atomic_load_n(&ring->event, __ATOMIC_ACQUIRE) >= 0)
		return ring->event;
	fd = percpu__sys4(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK, 0, 0);
	if (fd < 0)
		return (int)fd;
	if (__atomic_compare_exchange_n(&ring->event, &none, (int32_t)fd, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return (int)fd;
	percpu__sys4(SYS_close, fd, 0, 0, 0);
	return none;
}

int percpu_ring_arm(struct percpu_ring *ring)
{
	int rc;

	if (!ring || __atomic_load_n(&ring->event, __ATOMIC_RELAXED) < 0)
		return -EINVAL;
	rc = wish(ring, PERCPU__RING_EVENT);
	return has_any(ring) ? 1 : rc;
}
