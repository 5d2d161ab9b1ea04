/* SPDX-License-Identifier: MIT */
/*
 * Sections in C: results, every way through the slow path, handlers that run sections inside sections, first uses, and what
 * the compiler keeps around a section.
 */
#include "unit.h"

#include <sys/time.h>

#include <percpu/csection.h>

#include "rseq/thread.h"

struct cell {
	uint64_t count;
	void *pointer;
	int64_t number;
};

struct call {
	uint64_t add, seen;
	volatile uint64_t turns, inside; /* of the loop that makes a body long; whether a body is in it */
	void *copy;
};

PERCPU_SECTION(add, struct cell, cell, struct call, call)
{
	call->seen = cell->count;
	call->copy = cell;
	return percpu_commit(&cell->count, cell->count + call->add);
}

PERCPU_SECTION_BY_CPU(add_by_cpu, struct cell, cell, struct call, call)
{
	call->copy = cell;
	return percpu_commit(&cell->count, cell->count + call->add);
}

/* Long enough to be interrupted, with a value that a lost interruption would make wrong. */
PERCPU_SECTION(add_slowly, struct cell, cell, struct call, call)
{
	uint64_t before = cell->count;

	call->inside = 1;
	for (uint64_t i = 0; i < call->turns; i++)
		__asm__ __volatile__("" : : : "memory");
	call->inside = 0;
	return percpu_commit(&cell->count, before + 1);
}

PERCPU_SECTION(look, struct cell, cell, struct call, call)
{
	call->seen = cell->count;
	return percpu_no_commit();
}

PERCPU_SECTION(store_nowhere, struct cell, cell, struct call, call)
{
	call->seen = cell->count;
	return percpu_commit((uint64_t *)NULL, 5);
}

PERCPU_SECTION(point, struct cell, cell, void, target)
{
	return percpu_commit(&cell->pointer, target);
}

PERCPU_SECTION(set_number, struct cell, cell, const int, number)
{
	return percpu_commit(&cell->number, *number);
}

static struct cell *cells, *by_cpu;
static cpu_set_t everywhere;

static void clear(void)
{
	percpu_for_each_index(index) {
		memset(percpu_ptr(cells, index), 0, sizeof *cells);
		memset(percpu_ptr(by_cpu, index), 0, sizeof *by_cpu);
	}
}

static uint64_t sum(const struct cell *object)
{
	uint64_t total = 0;

	percpu_for_each_index(index)
		total += percpu_ptr(object, index)->count;
	return total;
}

static int stay(void **state)
{
	(void)state;
	clear();
	return sched_getaffinity(0, sizeof everywhere, &everywhere) || unit_pin(sched_getcpu());
}

static int leave(void **state)
{
	(void)state;
	percpu__thread_force(PERCPU__FORCE_OFF);
	return sched_setaffinity(0, sizeof everywhere, &everywhere);
}

static void results(void **state)
{
	(void)state;
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		struct call call = { .add = 3 };
		int minus = -7;

		clear();
		percpu__thread_force(force);
		for (uint64_t i = 0; i < 100; i++) {
			assert_true(add(cells, &call));
			assert_int_equal(call.seen, 3 * i);
		}
		call.seen = 0;
		assert_false(look(cells, &call));
		assert_int_equal(call.seen, 300);
		call.seen = 0;
		assert_false(store_nowhere(cells, &call));
		assert_int_equal(call.seen, 300);
		assert_int_equal(sum(cells), 300);
		assert_true(point(cells, &call));
		assert_ptr_equal(((struct cell *)call.copy)->pointer, &call);
		assert_true(set_number(cells, &minus));
		assert_true(((struct cell *)call.copy)->number == -7);
		if (force == PERCPU__FORCE_REMAINDER && !unit_in_mode(PERCPU_MODE_NONE))
			assert_ptr_equal(call.copy, percpu_ptr(cells, percpu_copies() - 1));
	}
}

static void the_copy_of_the_cpu(void **state)
{
	struct call call = { .add = 1 };

	(void)state;
	for (int cpu = 0; cpu < (int)percpu_possible_cpus() && cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET((size_t)cpu, &everywhere) || unit_pin(cpu))
			continue;
		for (int i = 0; i < 10; i++)
			assert_true(add_by_cpu(by_cpu, &call));
		if (!unit_in_mode(PERCPU_MODE_NONE)) {
			assert_ptr_equal(call.copy, percpu_ptr(by_cpu, cpu));
			assert_int_equal(percpu_ptr(by_cpu, cpu)->count, 10);
		}
	}
	assert_int_equal(sum(by_cpu) % 10, 0);
	assert_int_not_equal(sum(by_cpu), 0);
}

/* Whether an attempt gets through by itself, without the slow path. */
static void the_fast_path_is_taken(void **state)
{
#ifndef PERCPU_NO_SECTIONS
	struct call call = { .add = 1 };
	int done = 0;

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	add(cells, &call);
	for (int i = 0; i < 1000; i++)
		done += percpu__try_c(&add__section, cells, &call, PERCPU__BY_ID) != PERCPU__LEFT_WORD;
	assert_true(done > 500);
	assert_int_equal(sum(cells), done + 1);
#else
	(void)state;
	skip();
#endif
}

/* --- the compiler's side --- */

/* Its only call is in the slow path, and the last thing it does. */
static __attribute__((noinline)) bool as_a_tail(struct cell *object, struct call *call)
{
	return add(object, call);
}

PERCPU_SECTION(align, struct cell, cell, struct call, call)
{
	uint64_t local[2] __attribute__((aligned(16))) = { cell->count, 1 };
	uint64_t *hidden = local;

	__asm__("" : "+r"(hidden) : : "memory");
	call->seen = (uintptr_t)hidden % 16;
	return percpu_commit(&cell->count, hidden[0] + hidden[1]);
}

static __attribute__((noinline)) bool as_an_aligned_tail(struct cell *object, struct call *call)
{
	return align(object, call);
}

static void tail_calls(void **state)
{
	struct call call = { .add = 1 };

	(void)state;
	for (int i = 0; i < 100; i++) {
		assert_true(as_a_tail(cells, &call));
		assert_true(as_an_aligned_tail(cells, &call));
		assert_int_equal(call.seen, 0);
	}
	assert_int_equal(sum(cells), 200);
}

static volatile uint64_t ticks;

static void tick(int signal)
{
	(void)signal;
	ticks++;
}

static void timer(void (*handler)(int), int signal, int which, int microseconds)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
	struct itimerval interval = { { 0, microseconds }, { 0, microseconds } };

	assert_int_equal(sigaction(signal, &action, NULL), 0);
	assert_int_equal(setitimer((__itimer_which_t)which, &interval, NULL), 0);
}

static void no_timer(void)
{
	struct itimerval none = { 0 };

	setitimer(ITIMER_REAL, &none, NULL);
	setitimer(ITIMER_VIRTUAL, &none, NULL);
}

/* A body that changes all registers that it may change. */
PERCPU_SECTION(add_with_all_registers, struct cell, cell, struct call, call)
{
	uint64_t before = cell->count, a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7, h = 8;
	double x = 1, y = 2, z = 3;

	for (uint64_t i = 0; i < call->turns; i++) {
		__asm__ __volatile__("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
		__asm__ __volatile__("" : "+r"(e), "+r"(f), "+r"(g), "+r"(h));
		a += b, b += c, c += d, d += e, e += f, f += g, g += h, h += i, x += y, y += z, z += x;
	}
	call->seen = a ^ b ^ c ^ d ^ e ^ f ^ g ^ h ^ (x + y + z > 1e300);
	return percpu_commit(&cell->count, before + 1);
}

/* More values than there are registers, of all kinds, across sections that are aborted in the middle of their bodies. */
static void what_lives_around_a_section(void **state)
{
	struct call call = { .turns = 1000 };
	uint64_t a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0, n = 0;
	double x = 0, y = 0.5;

	(void)state;
	timer(tick, SIGALRM, ITIMER_REAL, 200);
	for (ticks = 0; ticks < 500; n++) {
		a += 1, b += 2, c += 3, d += 4, e += 5, f += 6, g += 7, h += 8, x += 1, y += 2;
		assert_true(add_with_all_registers(cells, &call));
		__asm__ __volatile__("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
		__asm__ __volatile__("" : "+r"(e), "+r"(f), "+r"(g), "+r"(h));
	}
	no_timer();
	assert_true(a == n && b == 2 * n && c == 3 * n && d == 4 * n);
	assert_true(e == 5 * n && f == 6 * n && g == 7 * n && h == 8 * n);
	assert_true(x == (double)n && y == 0.5 + 2 * (double)n);
	assert_int_equal(sum(cells), n);
}

#ifndef PERCPU_NO_SECTIONS
/* Frames that a compiler addresses by all means it has: the alignment is more than the stack's, the size is not known. */
static __attribute__((noinline)) uint64_t with_a_difficult_frame(struct call *call, size_t size, uint64_t n)
{
	volatile uint64_t aligned __attribute__((aligned(256))) = n, copy = n + 1;
	volatile unsigned char *array = __builtin_alloca(size);

	array[size - 1] = (unsigned char)n;
	if (percpu__try_c(&add_with_all_registers__section, cells, call, PERCPU__BY_ID) == PERCPU__LEFT_WORD)
		copy++;
	if (copy > n + 2)
		percpu__unreachable();
	return ((uintptr_t)&aligned % 256) + (aligned ^ n) + (array[size - 1] ^ (unsigned char)n) + (copy - n - 1);
}

/* A value in the floating-point unit that an abort resets. No call keeps the compiler from leaving it there. */
static __attribute__((noinline)) long double long_double(struct call *call, long double z, uint64_t *left)
{
	z = z * 3 + 1;
	*left += percpu__try_c(&add_with_all_registers__section, cells, call, PERCPU__BY_ID) == PERCPU__LEFT_WORD;
	if (*left == UINT64_MAX)
		percpu__unreachable();
	return z;
}
#endif

static void aborted_attempts(void **state)
{
#ifndef PERCPU_NO_SECTIONS
	struct call call = { .turns = 1000 };
	uint64_t n = 0, left = 0;

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	assert_true(add_with_all_registers(cells, &call));
	timer(tick, SIGALRM, ITIMER_REAL, 200);
	while (left < 300) {
		assert_true(long_double(&call, 1 + (long double)n, &left) == 3 * (1 + (long double)n) + 1);
		assert_in_range(with_a_difficult_frame(&call, n % 400 + 1, n), 0, 1);
		n++;
	}
	no_timer();
#else
	(void)state;
	skip();
#endif
}

/* --- the slow path --- */

static uint32_t stop;

static void *fence(void *arg)
{
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		if (percpu_fence())
			*(unsigned *)arg += 1;
	return NULL;
}

/* The descriptor of an attempt must not be there any more when the body runs under the gate. */
static void a_body_under_the_gate_is_no_section(void **state)
{
	struct call once = { .turns = 1 }, call = { .turns = 100000 };
	unsigned errors = 0;
	pthread_t other;

	(void)state;
	clear();
	__atomic_store_n(&stop, 0, __ATOMIC_RELAXED);
	assert_int_equal(pthread_create(&other, NULL, fence, &errors), 0);
	for (uint64_t i = 0; i < 100; i++) {
		percpu__thread_force(PERCPU__FORCE_OFF);
		assert_true(add_slowly(cells, &once));
		percpu__thread_force(i % 2 ? PERCPU__FORCE_GATE : PERCPU__FORCE_REMAINDER);
		assert_true(add_slowly(cells, &call));
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	assert_int_equal(pthread_join(other, NULL), 0);
	assert_int_equal(errors, 0);
	assert_int_equal(sum(cells), 200);
}

struct holder {
	unsigned index, holds;
	uint64_t seen, later;
};

static void *hold(void *arg)
{
	struct holder *h = arg;
	struct percpu_gate gate;

	if (percpu_gate_lock(cells, h->index, &gate))
		return arg;
	h->seen = percpu_ptr(cells, h->index)->count;
	__atomic_store_n(&h->holds, 1, __ATOMIC_RELEASE);
	for (volatile int i = 0; i < 3000000; i++)
		;
	h->later = percpu_ptr(cells, h->index)->count;
	percpu_gate_unlock(&gate);
	return NULL;
}

/* Who is kept out by every copy's gate waits, and then does it. */
static void closed_gates(void **state)
{
	struct call call = { .add = 1 };
	struct holder holders[64] = { 0 };
	pthread_t threads[64];
	unsigned n = percpu_copies() - 1;
	void *failed;

	(void)state;
	clear();
	if (unit_in_mode(PERCPU_MODE_NONE) || n > UNIT_COUNT(threads))
		skip();
	for (unsigned i = 0; i < n; i++) {
		holders[i].index = i;
		assert_int_equal(pthread_create(&threads[i], NULL, hold, &holders[i]), 0);
	}
	for (unsigned i = 0; i < n; i++)
		while (!__atomic_load_n(&holders[i].holds, __ATOMIC_ACQUIRE))
			sched_yield();
	for (int i = 0; i < 50; i++)
		assert_true(add(cells, &call));
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
		assert_int_equal(holders[i].seen, holders[i].later);
	}
	assert_int_equal(sum(cells), 50);
}

#define THREADS 6
#define TURNS   20000

static void *all_ways(void *arg)
{
	unsigned me = *(unsigned *)arg;
	struct call call = { .add = 1, .turns = 20 };

	for (unsigned i = 0; i < TURNS; i++) {
		if (i % 100 == 0)
			percpu__thread_force((enum percpu__force)((me + i / 100) % 8 == 1 ? PERCPU__FORCE_GATE
								  : (me + i / 100) % 2    ? PERCPU__FORCE_REMAINDER
											  : PERCPU__FORCE_OFF));
		if (!(i % 2 ? add_slowly(cells, &call) : add(cells, &call)) || !add_by_cpu(by_cpu, &call))
			return arg;
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	*(unsigned *)arg = UINT32_MAX;
	return NULL;
}

static void all_ways_at_once(void **state)
{
	unsigned numbers[THREADS];

	(void)state;
	clear();
	for (unsigned i = 0; i < THREADS; i++)
		numbers[i] = i;
	unit_threads(THREADS, all_ways, numbers, sizeof *numbers);
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(numbers[i], UINT32_MAX);
	assert_int_equal(sum(cells), THREADS * TURNS);
	assert_int_equal(sum(by_cpu), THREADS * TURNS);
}

/* --- handlers --- */

static volatile uint64_t in_handlers, failures;

static void work_in_handler(int signal)
{
	struct call call = { .add = 1, .turns = 50 };

	(void)signal;
	for (int i = 0; i < 3; i++)
		failures += !add_slowly(cells, &call) || !add(cells, &call);
	in_handlers += 6;
}

static void handlers_inside_sections(void **state)
{
	struct call call = { .add = 1, .turns = 3000 };
	uint64_t mine = 0;

	(void)state;
	in_handlers = failures = 0;
	/* Two, of which one may interrupt the other. */
	timer(work_in_handler, SIGVTALRM, ITIMER_VIRTUAL, 1000);
	timer(work_in_handler, SIGALRM, ITIMER_REAL, 150);
	for (; in_handlers < 6 * 1500; mine++) {
		assert_true(add_slowly(cells, &call));
		assert_int_equal(call.turns, 3000);
	}
	no_timer();
	assert_int_equal(failures, 0);
	assert_int_equal(sum(cells), mine + in_handlers);
	assert_true(percpu__thread.c_stack == 0);
}

/* A section that is first used by a handler, while its thread is in another. */
PERCPU_SECTION(only_in_handler, struct cell, cell, struct call, call)
{
	return percpu_commit(&cell->count, cell->count + call->add);
}

static struct call *interrupted;

/* Under a gate no handler runs, but in mode none. */
static bool bodies_are_interrupted(void)
{
#ifdef PERCPU_NO_SECTIONS
	return unit_in_mode(PERCPU_MODE_NONE);
#else
	return true;
#endif
}

static volatile bool was_inside;

static void first_use(int signal)
{
	struct call call = { .add = 1000 };

	(void)signal;
	if (was_inside || !interrupted->inside)
		return;
	was_inside = true;
	failures += !only_in_handler(cells, &call);
}

static void first_use_in_a_handler(void **state)
{
	struct call call = { .turns = 100000 };
	uint64_t n = 0;

	(void)state;
	if (!bodies_are_interrupted())
		skip();
	failures = 0;
	was_inside = false;
	interrupted = &call;
	timer(first_use, SIGALRM, ITIMER_REAL, 500);
	for (; !was_inside; n++)
		assert_true(add_slowly(cells, &call));
	no_timer();
	assert_int_equal(failures, 0);
	assert_int_equal(sum(cells), n + 1000);
}

static sigjmp_buf out;

static void jump_out(int signal)
{
	(void)signal;
	if (interrupted->inside) {
		interrupted->inside = 0;
		siglongjmp(out, 1);
	}
}

/* The thread stays on the slow path, correct. */
static void jumping_out_of_a_section(void **state)
{
	static struct call call = { .add = 1, .turns = 200000 };
	static volatile uint64_t n, jumps;

	(void)state;
	if (!bodies_are_interrupted() || unit_in_mode(PERCPU_MODE_NONE))
		skip(); /* there a gate may be held: see percpu(7) */
	interrupted = &call;
	n = jumps = 0;
	timer(jump_out, SIGALRM, ITIMER_REAL, 1000);
	if (sigsetjmp(out, 1))
		jumps++;
	while (jumps < 20) {
		assert_true(add_slowly(cells, &call));
		n++;
	}
	no_timer();
	for (int i = 0; i < 1000; i++, n++)
		assert_true(add(cells, &call));
	assert_int_equal(sum(cells), n);
	percpu__thread.c_stack = 0; /* for the tests that follow */
}

/* A handler forks; both processes go back into the body that it interrupted. */
static volatile pid_t child;

static void fork_in_handler(int signal)
{
	(void)signal;
	if (child < 0 && interrupted->inside) {
		child = fork();
		if (child == 0)
			alarm(20);
	}
}

static void fork_inside_a_section(void **state)
{
	struct call call = { .turns = 100000 };
	uint64_t n = 0;
	int status;

	(void)state;
	if (!bodies_are_interrupted())
		skip();
	interrupted = &call;
	child = -1;
	timer(fork_in_handler, SIGALRM, ITIMER_REAL, 1000);
	for (; child < 0 || n < 10; n++)
		assert_true(add_slowly(cells, &call));
	if (child == 0)
		_exit(sum(cells) != n);
	no_timer();
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(sum(cells), n);
}

/* --- other tasks --- */

static int add_some(void)
{
	struct call call = { .add = 1, .turns = 10 };
	uint64_t before = sum(cells);

	for (int i = 0; i < 1000; i++)
		if (!add(cells, &call) || !add_slowly(cells, &call))
			return 1;
	return sum(cells) != before + 2000;
}

static int add_in_clone(void *arg)
{
	(void)arg;
	return add_some();
}

static int add_in_clones(void)
{
	static char stack_of_clone[1 << 18] __attribute__((aligned(64)));

	for (int flags = CLONE_VM | CLONE_VFORK;; flags = CLONE_VM) {
		pid_t pid = clone(add_in_clone, stack_of_clone + sizeof stack_of_clone, flags | SIGCHLD, NULL);
		int status;

		if (pid < 0 || waitpid(pid, &status, 0) != pid || status || add_some())
			return 2;
		if (!(flags & CLONE_VFORK))
			return sum(cells) != 8000;
	}
}

static void children(void **state)
{
	(void)state;
	assert_int_equal(unit_in_child(add_some), 0);
	assert_int_equal(sum(cells), 0);
	assert_int_equal(add_some(), 0);
	assert_int_equal(unit_in_child(add_some), 0);
	clear();
	if (!UNIT_ASAN) /* which cannot follow two tasks on one thread's storage */
		assert_int_equal(unit_in_child(add_in_clones), 0);
}

/* Sections that nobody has used yet. */
#define FRESH(n)                                                                                                       \
	PERCPU_SECTION(fresh_##n, struct cell, cell, struct call, call)                                                \
	{                                                                                                              \
		return percpu_commit(&cell->count, cell->count + call->add);                                           \
	}
FRESH(0)
FRESH(1)
FRESH(2)
FRESH(3)
FRESH(4)
FRESH(5)
FRESH(6)
FRESH(7)

static pthread_barrier_t barrier;

static void *use_all(void *arg)
{
	struct call call = { .add = 1 };
	unsigned done = 0;

#define USE(n) (pthread_barrier_wait(&barrier), done += fresh_##n(cells, &call))
	USE(0), USE(1), USE(2), USE(3), USE(4), USE(5), USE(6), USE(7);
	*(unsigned *)arg = done;
	return NULL;
}

static void first_uses_at_once(void **state)
{
	unsigned done[THREADS] = { 0 };

	(void)state;
	clear();
	assert_int_equal(pthread_barrier_init(&barrier, NULL, THREADS), 0);
	unit_threads(THREADS, use_all, done, sizeof *done);
	pthread_barrier_destroy(&barrier);
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(done[i], 8);
	assert_int_equal(sum(cells), 8 * THREADS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(results, stay, leave),
		cmocka_unit_test_setup_teardown(the_copy_of_the_cpu, stay, leave),
		cmocka_unit_test_setup_teardown(the_fast_path_is_taken, stay, leave),
		cmocka_unit_test_setup_teardown(tail_calls, stay, leave),
		cmocka_unit_test_setup_teardown(what_lives_around_a_section, stay, leave),
		cmocka_unit_test_setup_teardown(aborted_attempts, stay, leave),
		cmocka_unit_test(a_body_under_the_gate_is_no_section),
		cmocka_unit_test(closed_gates),
		cmocka_unit_test(all_ways_at_once),
		cmocka_unit_test_setup_teardown(handlers_inside_sections, stay, leave),
		cmocka_unit_test_setup_teardown(first_use_in_a_handler, stay, leave),
		cmocka_unit_test_setup_teardown(jumping_out_of_a_section, stay, leave),
		cmocka_unit_test_setup_teardown(fork_inside_a_section, stay, leave),
		cmocka_unit_test_setup_teardown(children, stay, leave),
		cmocka_unit_test(first_uses_at_once),
	};

	cells = percpu_alloc(sizeof *cells, 64);
	by_cpu = percpu_alloc(sizeof *by_cpu, 64);
	if (!cells || !by_cpu)
		return 1;
	return unit_main(tests);
}
