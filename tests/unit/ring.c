/* SPDX-License-Identifier: MIT */
/* Rings of pointers: order, both policies, every copy, sleeping and waking, and that each entry is met exactly once. */
#include "unit.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include "rseq/thread.h"
#include "sandbox.h"

#define SMALL 64U

static cpu_set_t everywhere;
static struct percpu_ring ring;

/* One thread on one CPU stays at one index. */
static int stay(void **state)
{
	(void)state;
	return sched_getaffinity(0, sizeof everywhere, &everywhere) || unit_pin(sched_getcpu());
}

static int leave(void **state)
{
	(void)state;
	return sched_setaffinity(0, sizeof everywhere, &everywhere);
}

static void *number(uintptr_t n)
{
	return (void *)n;
}

static struct percpu__ring_copy *copy_of(const struct percpu_ring *r, unsigned index)
{
	return percpu_ptr((struct percpu__ring_copy *)r->copies, index);
}

static void **slots_of(const struct percpu_ring *r, unsigned index)
{
	return (void **)(void *)(copy_of(r, index) + 1);
}

static void arguments(void **state)
{
	void *untouched = number(7), *out[2] = { untouched, untouched };
	struct percpu_ring unused = { .mask = 123 };

	(void)state;
	assert_int_equal(percpu_ring_init(NULL, SMALL, PERCPU_RING_REFUSE), -EINVAL);
	assert_int_equal(percpu_ring_init(&unused, 0, PERCPU_RING_REFUSE), -EINVAL);
	assert_int_equal(percpu_ring_init(&unused, 1, PERCPU_RING_REFUSE), -EINVAL);
	assert_int_equal(percpu_ring_init(&unused, 48, PERCPU_RING_REFUSE), -EINVAL);
	assert_int_equal(percpu_ring_init(&unused, SMALL, 4), -EINVAL);
	assert_int_equal(percpu_ring_init(&unused, 2 * PERCPU_RING_MAX, PERCPU_RING_REFUSE), -E2BIG);
	assert_int_equal(unused.mask, 123);
	percpu_ring_destroy(NULL);
	assert_int_equal(percpu_ring_init(&ring, SMALL, PERCPU_RING_OVERWRITE), 0);
	assert_int_equal(percpu_ring_pop(NULL, out, 1), -EINVAL);
	assert_int_equal(percpu_ring_pop(&ring, NULL, 1), -EINVAL);
	assert_int_equal(percpu_ring_pop(&ring, out, 0), -EINVAL);
	assert_int_equal(percpu_ring_pop(&ring, out, (unsigned)INT32_MAX + 1), -EINVAL);
	assert_int_equal(percpu_ring_pop_index(NULL, 0, out, 1), -EINVAL);
	assert_int_equal(percpu_ring_pop_index(&ring, 0, NULL, 1), -EINVAL);
	assert_int_equal(percpu_ring_pop_index(&ring, 0, out, 0), -EINVAL);
	assert_int_equal(percpu_ring_pop_index(&ring, percpu_copies(), out, 1), -EINVAL);
	assert_int_equal(percpu_ring_pop_index(&ring, UINT32_MAX, out, 1), -EINVAL);
	assert_int_equal(percpu_ring_pop(&ring, out, 2), 0);
	assert_ptr_equal(out[0], untouched);
	assert_false(percpu_ring_is_empty(NULL, 0));
	assert_false(percpu_ring_is_empty(&ring, percpu_copies()));
	assert_true(percpu_ring_is_empty(&ring, percpu_copies() - 1));
	assert_int_equal(percpu_ring_lost(NULL), 0);
	assert_int_equal(percpu_ring_wait(NULL, 0), -EINVAL);
	percpu_ring_wake_up(NULL);
	assert_int_equal(percpu_ring_eventfd(NULL), -EINVAL);
	assert_int_equal(percpu_ring_arm(NULL), -EINVAL);
	assert_int_equal(percpu_ring_arm(&ring), -EINVAL);
	percpu_ring_destroy(&ring);
	percpu_ring_destroy(&ring);
}

static void oldest_first_and_full(void **state)
{
	void *out[2 * SMALL];

	(void)state;
	for (unsigned capacity = 2; capacity <= SMALL; capacity *= 2) {
		uintptr_t in = 0, next = 0;

		assert_int_equal(percpu_ring_init(&ring, capacity, PERCPU_RING_REFUSE), 0);
		for (unsigned turn = 0; turn < 100; turn++) {
			unsigned batch = turn % (capacity + 3) + 1;
			int got;

			percpu__thread_force(turn % 7 == 3 ? PERCPU__FORCE_GATE : PERCPU__FORCE_OFF);
			while (percpu_ring_push(&ring, number(in)) == 0)
				in++;
			assert_int_equal(in - next, capacity);
			percpu__thread_force(PERCPU__FORCE_OFF);
			got = percpu_ring_pop(&ring, out, batch);
			assert_int_equal(got, batch < capacity ? batch : capacity);
			for (int i = 0; i < got; i++)
				assert_ptr_equal(out[i], number(next++));
		}
		assert_int_equal(percpu_ring_lost(&ring), 0);
		percpu_ring_destroy(&ring);
	}
}

/* The newest stay, in order, without gaps; all others are counted. */
static void oldest_are_dropped(void **state)
{
	void *out[SMALL];

	(void)state;
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		for (unsigned capacity = 2; capacity <= SMALL; capacity *= 2) {
			uintptr_t in = 0, taken = 0;

			assert_int_equal(percpu_ring_init(&ring, capacity, PERCPU_RING_OVERWRITE), 0);
			percpu__thread_force(force);
			for (unsigned turn = 1; turn < 60; turn++) {
				int got;

				for (unsigned i = 0; i < turn * turn; i++)
					assert_int_equal(percpu_ring_push(&ring, number(in++)), 0);
				assert_true(in - taken - percpu_ring_lost(&ring) <= capacity);
				got = percpu_ring_pop(&ring, out, turn % 5 ? SMALL : 1);
				assert_true(got > 0);
				for (int i = 0; i < got; i++)
					assert_ptr_equal(out[i],
							 number(taken + percpu_ring_lost(&ring) + (uintptr_t)i));
				taken += (uintptr_t)got;
				if (turn % 5)
					assert_int_equal(taken + percpu_ring_lost(&ring), in);
				if (turn % 5 && turn * turn >= capacity)
					assert_true((unsigned)got >= capacity - (capacity < 8 ? 1 : capacity / 8));
			}
			percpu__thread_force(PERCPU__FORCE_OFF);
			percpu_ring_destroy(&ring);
		}
	}
}

/* As if threads there had pushed; in turn, and each one alone. */
static void every_copy(void **state)
{
	void *out[4];

	(void)state;
	assert_int_equal(percpu_ring_init(&ring, SMALL, PERCPU_RING_REFUSE), 0);
	percpu_for_each_index(index) {
		slots_of(&ring, index)[0] = number(index + 1);
		slots_of(&ring, index)[1] = number(index + 1001);
		copy_of(&ring, index)->tail = 16;
		percpu_for_each_index(other)
			assert_int_equal(percpu_ring_is_empty(&ring, other), other != index);
		assert_int_equal(percpu_ring_pop_index(&ring, (index + 1) % percpu_copies(), out, 4), 0);
		assert_int_equal(percpu_ring_pop_index(&ring, index, out, 4), 2);
		assert_ptr_equal(out[0], number(index + 1));
		assert_ptr_equal(out[1], number(index + 1001));
	}
	/* Whatever the first one holds, the others have their turn. */
	percpu_for_each_index(index)
		copy_of(&ring, index)->tail = 40;
	for (unsigned turn = 0; turn < 3; turn++) {
		percpu_for_each_index(index) {
			uint64_t before = 0, after = 0;

			percpu_for_each_index(i)
				before += copy_of(&ring, i)->head;
			assert_int_equal(percpu_ring_pop(&ring, out, 1), 1);
			percpu_for_each_index(i)
				after += copy_of(&ring, i)->head;
			assert_int_equal(after - before, 8);
		}
		percpu_for_each_index(index)
			assert_int_equal(copy_of(&ring, index)->head, 24 + 8 * turn);
	}
	percpu_for_each_index(index)
		copy_of(&ring, index)->tail = 48;
	assert_int_equal(percpu_ring_discard(&ring, percpu_copies()), -EINVAL);
	assert_int_equal(percpu_ring_discard(NULL, 0), -EINVAL);
	percpu_for_each_index(index)
		assert_int_equal(percpu_ring_discard(&ring, index), 0);
	percpu_for_each_index(index)
		assert_true(percpu_ring_is_empty(&ring, index));
	assert_int_equal(percpu_ring_lost(&ring), 0);
	percpu_ring_destroy(&ring);
}

/* Consumers, also those that go to sleep, do not make copies real that no producer has used. */
static void unused_copies_stay_unused(void **state)
{
	unsigned char present[sizeof(struct percpu__ring_copy) / 64];
	unsigned used = 0;
	void *out[4], *fresh;

	(void)state;
	fresh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sysconf(_SC_PAGESIZE) != 4096 || fresh == MAP_FAILED || mincore(fresh, 4096, present) || (present[0] & 1))
		skip();
	munmap(fresh, 4096);
	assert_int_equal(percpu_ring_init(&ring, PERCPU_RING_MAX, PERCPU_RING_OVERWRITE), 0);
	assert_true(percpu_ring_eventfd(&ring) >= 0);
	percpu_ring_push(&ring, out);
	assert_int_equal(percpu_ring_pop(&ring, out, 4), 1);
	assert_int_equal(percpu_ring_arm(&ring), 0);
	assert_int_equal(percpu_ring_wait(&ring, 1000), -ETIMEDOUT);
	percpu_for_each_index(index)
		assert_int_equal(percpu_ring_discard(&ring, index), 0);
	percpu_for_each_index(index) {
		char *page = (char *)((uintptr_t)copy_of(&ring, index) & ~(uintptr_t)4095) + 4096;

		assert_int_equal(mincore(page - 4096, 4096, present), 0);
		used += present[0] & 1 && copy_of(&ring, index)->tail == 0;
		assert_int_equal(mincore(page, 4096, present), 0);
		assert_int_equal(present[0] & 1, 0);
	}
	/* The first page of each copy has the gates in it, and may be real for their sake, if the object begins there. */
	if (((uintptr_t)ring.copies & (PERCPU_STRIDE - 1)) >= 4096)
		assert_int_equal(used, 0);
	percpu_ring_destroy(&ring);
}

/* Threads: each entry reaches one consumer, or is counted as lost. */

#define PRODUCERS 4U
#define CONSUMERS 2U
#define EACH      60000U

static unsigned char met[PRODUCERS][EACH];
static uint32_t done, doubled, errors;
static uint64_t received;

static void *produce(void *arg)
{
	unsigned me = *(unsigned *)arg;

	for (uintptr_t i = 0; i < EACH; i++) {
		if (i % 512 == 0)
			percpu__thread_force((enum percpu__force)((i / 512 + me) % 9 == 0   ? PERCPU__FORCE_GATE
								  : (i / 512 + me) % 4 == 0 ? PERCPU__FORCE_REMAINDER
											    : PERCPU__FORCE_OFF));
		while (percpu_ring_push(&ring, number((uintptr_t)me << 32 | i)) != 0)
			sched_yield();
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void take_all(unsigned n)
{
	void *out[100];
	int got;

	while ((got = percpu_ring_pop(&ring, out, n)) > 0) {
		for (int i = 0; i < got; i++) {
			unsigned who = (unsigned)((uintptr_t)out[i] >> 32);
			uint32_t what = (uint32_t)(uintptr_t)out[i];

			if (who >= PRODUCERS || what >= EACH)
				__atomic_fetch_add(&errors, 1, __ATOMIC_RELAXED);
			else if (__atomic_fetch_add(&met[who][what], 1, __ATOMIC_RELAXED))
				__atomic_fetch_add(&doubled, 1, __ATOMIC_RELAXED);
		}
		__atomic_fetch_add(&received, (uint64_t)got, __ATOMIC_RELAXED);
	}
	if (got < 0)
		__atomic_fetch_add(&errors, 1, __ATOMIC_RELAXED);
}

static void *consume(void *arg)
{
	unsigned me = *(unsigned *)arg;

	/* One waits as long as it takes, so a wake-up that is lost is a test that does not end. */
	while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE)) {
		int rc = percpu_ring_wait(&ring, me ? 3000000 : -1);

		if (rc && rc != -ETIMEDOUT)
			__atomic_fetch_add(&errors, 1, __ATOMIC_RELAXED);
		take_all(me ? 7 : 100);
	}
	return NULL;
}

static void each_entry_once(unsigned policy)
{
	unsigned numbers[PRODUCERS + CONSUMERS];
	pthread_t consumers[CONSUMERS];

	memset(met, 0, sizeof met);
	done = doubled = errors = 0;
	received = 0;
	assert_int_equal(percpu_ring_init(&ring, SMALL, policy), 0);
	for (unsigned i = 0; i < PRODUCERS; i++)
		numbers[i] = i;
	for (unsigned i = 0; i < CONSUMERS; i++) {
		numbers[PRODUCERS + i] = i;
		assert_int_equal(pthread_create(&consumers[i], NULL, consume, &numbers[PRODUCERS + i]), 0);
	}
	unit_threads(PRODUCERS, produce, numbers, sizeof *numbers);
	__atomic_store_n(&done, 1, __ATOMIC_RELEASE);
	percpu_ring_wake_up(&ring);
	for (unsigned i = 0; i < CONSUMERS; i++)
		assert_int_equal(pthread_join(consumers[i], NULL), 0);
	take_all(100);
	assert_int_equal(errors, 0);
	assert_int_equal(doubled, 0);
	assert_int_equal(received + percpu_ring_lost(&ring), PRODUCERS * EACH);
	if (policy == PERCPU_RING_REFUSE)
		assert_int_equal(percpu_ring_lost(&ring), 0);
	percpu_ring_destroy(&ring);
}

static void each_entry_once_refused(void **state)
{
	(void)state;
	each_entry_once(PERCPU_RING_REFUSE);
}

static void each_entry_once_or_lost(void **state)
{
	(void)state;
	each_entry_once(PERCPU_RING_OVERWRITE);
}

/* Sleeping and waking. */

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void timeouts(void **state)
{
	int64_t start = now_ns();

	(void)state;
	assert_int_equal(percpu_ring_init(&ring, SMALL, PERCPU_RING_REFUSE), 0);
	assert_int_equal(percpu_ring_wait(&ring, 0), -ETIMEDOUT);
	assert_int_equal(percpu_ring_wait(&ring, 20000000), -ETIMEDOUT);
	assert_true(now_ns() - start >= 20000000);
	assert_int_equal(percpu_ring_push(&ring, NULL), 0);
	assert_int_equal(percpu_ring_wait(&ring, 0), 0);
	assert_int_equal(percpu_ring_wait(&ring, -1), 0);
	assert_int_equal(percpu_ring_wait(&ring, INT64_MAX), 0);
	percpu_ring_destroy(&ring);
}

static struct percpu_ring answers;
#define ROUNDS 2000U

static void *answer(void *arg)
{
	void *out;

	percpu__thread_force((enum percpu__force)(*(unsigned *)arg));
	for (uintptr_t i = 0; i < ROUNDS; i++) {
		while (percpu_ring_pop(&ring, &out, 1) != 1)
			if (percpu_ring_wait(&ring, -1))
				__atomic_fetch_add(&errors, 1, __ATOMIC_RELAXED);
		if (out != number(i) || percpu_ring_push(&answers, out))
			__atomic_fetch_add(&errors, 1, __ATOMIC_RELAXED);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

/* To and fro: whoever misses a wake-up sleeps for ever. */
static void no_wake_up_is_lost(void **state)
{
	pthread_t other;

	(void)state;
	errors = 0;
	for (unsigned force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		assert_int_equal(percpu_ring_init(&ring, SMALL, PERCPU_RING_REFUSE), 0);
		assert_int_equal(percpu_ring_init(&answers, SMALL, PERCPU_RING_REFUSE), 0);
		assert_int_equal(pthread_create(&other, NULL, answer, &force), 0);
		for (uintptr_t i = 0; i < ROUNDS; i++) {
			void *out = NULL;

			assert_int_equal(percpu_ring_push(&ring, number(i)), 0);
			while (percpu_ring_pop(&answers, &out, 1) != 1)
				assert_int_equal(percpu_ring_wait(&answers, -1), 0);
			assert_ptr_equal(out, number(i));
		}
		assert_int_equal(pthread_join(other, NULL), 0);
		percpu_ring_destroy(&ring);
		percpu_ring_destroy(&answers);
	}
	assert_int_equal(errors, 0);
}

#define RACES 6000U

/* Sees the entry without sleeping, and answers while the other one is about to. */
static void *answer_soon(void *arg)
{
	uint64_t random = 88172645463325252;
	void *out;

	for (uintptr_t i = 0; i < RACES; i++) {
		while (percpu_ring_pop(&ring, &out, 1) != 1)
			;
		for (unsigned delay = (unsigned)(unit_random(&random) % 1500); delay; delay--)
			__asm__ __volatile__("");
		if (percpu_ring_push(&answers, out))
			__atomic_fetch_add(&errors, 1, __ATOMIC_RELAXED);
	}
	return arg;
}

static void going_to_sleep_races_with_pushes(void **state)
{
	pthread_t other;

	(void)state;
	errors = 0;
	assert_int_equal(percpu_ring_init(&ring, SMALL, PERCPU_RING_REFUSE), 0);
	assert_int_equal(percpu_ring_init(&answers, SMALL, PERCPU_RING_ONE_CONSUMER), 0);
	assert_int_equal(pthread_create(&other, NULL, answer_soon, NULL), 0);
	for (uintptr_t i = 0; i < RACES; i++) {
		void *out = NULL;

		assert_int_equal(percpu_ring_push(&ring, number(i)), 0);
		while (percpu_ring_pop(&answers, &out, 1) != 1)
			assert_int_equal(percpu_ring_wait(&answers, INT64_C(20000000000)), 0);
		assert_ptr_equal(out, number(i));
	}
	assert_int_equal(pthread_join(other, NULL), 0);
	assert_int_equal(errors, 0);
	percpu_ring_destroy(&ring);
	percpu_ring_destroy(&answers);
}

static bool is_readable(int fd)
{
	struct pollfd poll_one = { .fd = fd, .events = POLLIN };

	return poll(&poll_one, 1, 0) == 1;
}

static void event_descriptor(void **state)
{
	uint64_t count;
	void *out[2];
	int fd;

	(void)state;
	assert_int_equal(percpu_ring_init(&ring, SMALL, PERCPU_RING_REFUSE), 0);
	fd = percpu_ring_eventfd(&ring);
	assert_true(fd >= 0);
	assert_int_equal(percpu_ring_eventfd(&ring), fd);
	assert_int_equal(percpu_ring_push(&ring, out), 0);
	assert_false(is_readable(fd)); /* nobody asked */
	assert_int_equal(percpu_ring_arm(&ring), 1);
	assert_int_equal(percpu_ring_pop(&ring, out, 2), 1);
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		percpu__thread_force(force);
		assert_int_equal(percpu_ring_arm(&ring), 0);
		assert_int_equal(percpu_ring_arm(&ring), 0);
		assert_false(is_readable(fd));
		assert_int_equal(percpu_ring_push(&ring, out), 0);
		assert_true(is_readable(fd));
		assert_int_equal(read(fd, &count, sizeof count), sizeof count);
		assert_int_equal(percpu_ring_push(&ring, out), 0);
		assert_false(is_readable(fd));
		assert_int_equal(percpu_ring_pop(&ring, out, 2), 2);
		percpu__thread_force(PERCPU__FORCE_OFF);
	}
	assert_int_equal(percpu_ring_arm(&ring), 0);
	percpu_ring_wake_up(&ring);
	assert_true(is_readable(fd));
	percpu_ring_destroy(&ring);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void nothing(int sig)
{
	(void)sig;
}

static void interrupted(void **state)
{
	struct itimerval soon = { .it_value = { .tv_usec = 20000 } };

	(void)state;
	assert_int_equal(percpu_ring_init(&ring, SMALL, PERCPU_RING_REFUSE), 0);
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = nothing }, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
	assert_int_equal(percpu_ring_wait(&ring, -1), -EINTR);
	signal(SIGALRM, SIG_DFL);
	percpu_ring_destroy(&ring);
}

/* A kernel that begins to refuse the fence. */
static int wait_without_fence(void)
{
	unsigned number_of_thread = PERCPU__FORCE_OFF;
	pthread_t other;
	void *out;

	if (percpu_ring_init(&ring, SMALL, PERCPU_RING_REFUSE) ||
	    percpu_ring_init(&answers, SMALL, PERCPU_RING_REFUSE) || percpu_ring_push(&ring, number(0)) ||
	    percpu_ring_pop(&ring, &out, 1) != 1)
		return 1;
	if (percpu_ring_eventfd(&ring) < 0)
		return 2;
	if (sandbox_deny(SYS_membarrier, EPERM))
		return UNIT_SKIPPED;
	if (percpu_ring_arm(&ring) != (unit_in_mode(PERCPU_MODE_NONE) ? 0 : -EPERM))
		return 3;
	if (percpu_ring_wait(&ring, 5000000) != -ETIMEDOUT)
		return 4;
	if (pthread_create(&other, NULL, answer, &number_of_thread))
		return 5;
	/* The other one wants more, and is left waiting. */
	for (uintptr_t i = 0; i < ROUNDS / 20; i++) {
		if (percpu_ring_push(&ring, number(i)))
			return 6;
		while (percpu_ring_pop(&answers, &out, 1) != 1)
			if (percpu_ring_wait(&answers, -1))
				return 7;
	}
	return 0;
}

static void fence_refused(void **state)
{
	int status;

	(void)state;
	status = unit_in_child(wait_without_fence);
	if (status == UNIT_SKIPPED)
		skip();
	assert_int_equal(status, 0);
}

/* A child has what was there, and both go on alone. */
static int in_child_of_fork(void)
{
	void *out[SMALL];

	if (percpu_ring_pop(&ring, out, SMALL) != 10 || out[0] != number(1))
		return 1;
	for (uintptr_t i = 0; i < SMALL / 2; i++)
		if (percpu_ring_push(&ring, number(i)))
			return 2;
	return percpu_ring_pop(&ring, out, SMALL) == (int)SMALL / 2 ? 0 : 3;
}

static void forked(void **state)
{
	void *out[SMALL];

	(void)state;
	assert_int_equal(percpu_ring_init(&ring, SMALL, PERCPU_RING_REFUSE), 0);
	for (uintptr_t i = 1; i <= 10; i++)
		assert_int_equal(percpu_ring_push(&ring, number(i)), 0);
	assert_int_equal(unit_in_child(in_child_of_fork), 0);
	assert_int_equal(percpu_ring_pop(&ring, out, SMALL), 10);
	assert_ptr_equal(out[9], number(10));
	percpu_ring_destroy(&ring);
}

/* Handlers push and pop, wherever they find their thread. */
static uint64_t handled;

static void push_and_pop(int sig)
{
	void *out[3];
	int got;

	(void)sig;
	for (uintptr_t i = 0; i < 3; i++)
		handled += percpu_ring_push(&ring, number(5)) == 0;
	got = percpu_ring_pop(&ring, out, 3);
	received += got > 0 ? (unsigned)got : 0;
	errors += got < 0;
}

static void in_handlers(void **state)
{
	struct itimerval often = { .it_value = { .tv_usec = 50 }, .it_interval = { .tv_usec = 50 } },
			 never = { { 0, 0 }, { 0, 0 } };
	uint64_t pushed = 0, taken = 0;
	int64_t end = now_ns() + 400000000;
	void *out[5];

	(void)state;
	for (unsigned policy = PERCPU_RING_REFUSE; policy <= PERCPU_RING_OVERWRITE; policy++) {
		errors = 0;
		handled = received = pushed = taken = 0;
		assert_int_equal(percpu_ring_init(&ring, 16, policy), 0);
		sigaction(SIGALRM, &(struct sigaction){ .sa_handler = push_and_pop }, NULL);
		setitimer(ITIMER_REAL, &often, NULL);
		while (now_ns() < end) {
			int got;

			for (int i = 0; i < 4; i++)
				pushed += percpu_ring_push(&ring, number(6)) == 0;
			got = percpu_ring_pop(&ring, out, 5);
			taken += got > 0 ? (unsigned)got : 0;
		}
		setitimer(ITIMER_REAL, &never, NULL);
		signal(SIGALRM, SIG_IGN);
		for (int got; (got = percpu_ring_pop(&ring, out, 5)) > 0;)
			taken += (unsigned)got;
		assert_int_equal(errors, 0);
		assert_int_equal(pushed + handled, taken + received + percpu_ring_lost(&ring));
		percpu_ring_destroy(&ring);
		end = now_ns() + 400000000;
	}
	signal(SIGALRM, SIG_DFL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arguments),
		cmocka_unit_test_setup_teardown(oldest_first_and_full, stay, leave),
		cmocka_unit_test_setup_teardown(oldest_are_dropped, stay, leave),
		cmocka_unit_test(every_copy),
		cmocka_unit_test_setup_teardown(unused_copies_stay_unused, stay, leave),
		cmocka_unit_test(each_entry_once_refused),
		cmocka_unit_test(each_entry_once_or_lost),
		cmocka_unit_test(timeouts),
		cmocka_unit_test(no_wake_up_is_lost),
		cmocka_unit_test(going_to_sleep_races_with_pushes),
		cmocka_unit_test(event_descriptor),
		cmocka_unit_test(interrupted),
		cmocka_unit_test(fence_refused),
		cmocka_unit_test(forked),
		cmocka_unit_test(in_handlers),
	};

	return unit_main(tests);
}
