/* SPDX-License-Identifier: MIT */
/* Mutexes and robust mutexes: arguments, who has one, timeouts, fork, processes, owners that die, beside the C library's. */
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "unit.h"

#include "rseq/thread.h"

static struct timespec in_ms(clockid_t clock, long ms)
{
	struct timespec moment;

	clock_gettime(clock, &moment);
	moment.tv_nsec += ms % 1000 * 1000000;
	moment.tv_sec += ms / 1000 + moment.tv_nsec / 1000000000;
	moment.tv_nsec %= 1000000000;
	return moment;
}

static bool is_over(clockid_t clock, const struct timespec *moment)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec > moment->tv_sec || (now.tv_sec == moment->tv_sec && now.tv_nsec >= moment->tv_nsec);
}

/* As the kernel sees it: asked for while a mutex is held that had to be taken in the slow path, and no longer. */
static void longer_slices(void **state)
{
	struct percpu_mutex mutex = PERCPU_MUTEX_INIT, other = PERCPU_MUTEX_INIT;
	bool was = percpu__process.about.slice_extension;
	unsigned char known = percpu__private.slice;
	volatile uint8_t *control;

	(void)state;
	percpu_cpu();
	if (percpu__private.state != PERCPU__REGISTERED)
		return;
	control = (volatile uint8_t *)&percpu__true_area()->slice_ctrl;
	percpu__process.about.slice_extension = true;
	percpu__private.slice = 1;
	percpu_mutex_lock(&mutex);
	assert_int_equal(control[0], 0);
	percpu_mutex_unlock(&mutex);
	mutex.word = other.word = 0x01000000; /* wanted by somebody who is not there */
	percpu_mutex_lock(&mutex);
	assert_int_equal(control[0], 1);
	assert_int_equal(percpu_mutex_trylock(&other), 0);
	percpu_mutex_unlock(&mutex);
	assert_int_equal(control[0], 1); /* for the other one */
	control[1] = 1;
	percpu_mutex_unlock(&other);
	assert_int_equal(control[0], 0);
	assert_int_equal(percpu__private.slices, 0);
	assert_int_equal(mutex.word | other.word, 0);
	control[1] = 0;
	/* Refused by the kernel. */
	percpu__private.slice = 2;
	mutex.word = 0x01000000;
	percpu_mutex_lock(&mutex);
	assert_int_equal(control[0], 0);
	percpu_mutex_unlock(&mutex);
	percpu__private.slice = known;
	percpu__process.about.slice_extension = was;
}

static void *shared_memory(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(memory, MAP_FAILED);
	return memory;
}

static void arguments(void **state)
{
	struct percpu_mutex mutex = PERCPU_MUTEX_INIT;
	struct timespec moment = in_ms(CLOCK_MONOTONIC, -1), bad = { .tv_nsec = 1000000000 };

	(void)state;
	assert_int_equal(percpu_mutex_init(NULL, 0), -EINVAL);
	assert_int_equal(percpu_mutex_init(&mutex, 2), -EINVAL);
	assert_int_equal(percpu_mutex_timedlock(&mutex, CLOCK_MONOTONIC, &moment), 0);
	assert_int_equal(percpu_mutex_timedlock(&mutex, CLOCK_MONOTONIC, &moment), -ETIMEDOUT);
	assert_int_equal(percpu_mutex_timedlock(&mutex, CLOCK_PROCESS_CPUTIME_ID, &moment), -EINVAL);
	assert_int_equal(percpu_mutex_timedlock(&mutex, CLOCK_MONOTONIC, &bad), -EINVAL);
	bad.tv_nsec = -1;
	assert_int_equal(percpu_mutex_timedlock(&mutex, CLOCK_REALTIME, &bad), -EINVAL);
	assert_int_equal(percpu_mutex_timedlock(&mutex, CLOCK_REALTIME, NULL), -EINVAL);
	moment.tv_sec = -5;
	assert_int_equal(percpu_mutex_timedlock(&mutex, CLOCK_REALTIME, &moment), -ETIMEDOUT);
	assert_int_equal(percpu_mutex_trylock(&mutex), -EBUSY);
	percpu_mutex_unlock(&mutex);
	assert_int_equal(mutex.word, 0);
	assert_int_equal(percpu_mutex_trylock(&mutex), 0);
	assert_int_equal(percpu_mutex_init(&mutex, PERCPU_MUTEX_SHARED), 0);
	assert_int_equal(percpu_mutex_trylock(&mutex), 0);
	percpu_mutex_unlock(&mutex);
}

static void the_word_names_the_cpu(void **state)
{
	struct percpu_mutex mutex = PERCPU_MUTEX_INIT;
	cpu_set_t everywhere;
	int cpu = sched_getcpu();

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof everywhere, &everywhere), 0);
	assert_int_equal(unit_pin(cpu), 0);
	percpu_cpu();
	percpu_mutex_lock(&mutex);
	if (unit_in_mode(PERCPU_MODE_NONE))
		assert_int_equal(mutex.word, 0x8000);
	else
		assert_int_equal(mutex.word, cpu + 1);
	percpu_mutex_unlock(&mutex);
	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	percpu_mutex_lock(&mutex);
	assert_int_equal(mutex.word, 0x8000);
	percpu_mutex_unlock(&mutex);
	percpu__thread_force(PERCPU__FORCE_OFF);
	assert_int_equal(sched_setaffinity(0, sizeof everywhere, &everywhere), 0);
}

static void timeouts(void **state)
{
	static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_REALTIME };
	struct percpu_mutex mutex = PERCPU_MUTEX_INIT;
	struct percpu_robust_mutex robust;
	struct timespec moment;

	(void)state;
	assert_int_equal(percpu_robust_mutex_init(&robust, 0), 0);
	percpu_mutex_lock(&mutex);
	for (size_t i = 0; i < UNIT_COUNT(clocks); i++) {
		moment = in_ms(clocks[i], 30);
		assert_int_equal(percpu_mutex_timedlock(&mutex, clocks[i], &moment), -ETIMEDOUT);
		assert_true(is_over(clocks[i], &moment));
	}
	/* What those who gave up left behind does no harm. */
	percpu_mutex_unlock(&mutex);
	assert_int_equal(percpu_mutex_trylock(&mutex), 0);
	percpu_mutex_unlock(&mutex);
	assert_int_equal(mutex.word, 0);
}

static struct {
	struct percpu_mutex mutex;
	struct percpu_robust_mutex robust;
	uint64_t count;
	int seen, wrong;
} world;

static void *add_many(void *arg)
{
	struct timespec moment;

	for (int i = 0; i < 20000; i++) {
		int how = (i + *(int *)arg) % 3;

		if (how == 0)
			percpu_mutex_lock(&world.mutex);
		while (how == 1 && percpu_mutex_trylock(&world.mutex))
			sched_yield();
		if (how == 2)
			do
				moment = in_ms(i % 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME, i % 7);
			while (percpu_mutex_timedlock(&world.mutex, i % 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME, &moment));
		world.count++;
		percpu_mutex_unlock(&world.mutex);
	}
	return NULL;
}

static void several_threads(void **state)
{
	int numbers[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };

	(void)state;
	world.count = 0;
	percpu_mutex_init(&world.mutex, 0);
	unit_threads(UNIT_COUNT(numbers), add_many, numbers, sizeof *numbers);
	assert_int_equal(world.count, 20000 * UNIT_COUNT(numbers));
	assert_int_equal(percpu_mutex_trylock(&world.mutex), 0);
	percpu_mutex_unlock(&world.mutex);
}

/* One that the last user frees: nobody may write to it afterwards. */
struct counted {
	struct percpu_mutex mutex;
	int users;
	struct counted *next;
};

static struct counted *volatile offered[2];

static void *drop_many(void *arg)
{
	(void)arg;
	for (int i = 0; i < 2000; i++) {
		struct counted *mine;
		int left;

		while (!(mine = __atomic_exchange_n(&offered[*(int *)arg], NULL, __ATOMIC_ACQ_REL))) {
			struct counted *made = calloc(1, sizeof *made);

			if (*(int *)arg) {
				free(made);
				sched_yield();
				continue;
			}
			made->users = 2;
			offered[1] = made;
			mine = made;
			break;
		}
		percpu_mutex_lock(&mine->mutex);
		left = --mine->users;
		percpu_mutex_unlock(&mine->mutex);
		if (!left) {
			memset(mine, 0xff, sizeof *mine);
			free(mine);
		}
		while (*(int *)arg == 0 && offered[1])
			sched_yield();
	}
	return NULL;
}

static void freed_by_its_last_user(void **state)
{
	int sides[2] = { 0, 1 };

	(void)state;
	unit_threads(2, drop_many, sides, sizeof *sides);
}

static int child_unlocks(void)
{
	int numbers[2] = { 0, 1 };
	pthread_t threads[2];

	percpu_mutex_unlock(&world.mutex);
	world.count = 0;
	for (int i = 0; i < 2; i++)
		if (pthread_create(&threads[i], NULL, add_many, &numbers[i]))
			return 1;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	return world.count != 40000;
}

static void *lock_and_unlock(void *arg)
{
	while (!__atomic_load_n((bool *)arg, __ATOMIC_RELAXED)) {
		percpu_mutex_lock(&world.mutex);
		percpu_mutex_unlock(&world.mutex);
	}
	return NULL;
}

/* While others spin and sleep: the child has their traces, but not them. */
static void a_child_goes_on(void **state)
{
	pthread_t threads[3];
	bool stop = false;

	(void)state;
	percpu_mutex_init(&world.mutex, 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, lock_and_unlock, &stop), 0);
	for (int i = 0; i < 20; i++) {
		percpu_mutex_lock(&world.mutex);
		usleep(i % 2 ? 3 : 200);
		assert_int_equal(unit_in_child(child_unlocks), 0);
		percpu_mutex_unlock(&world.mutex);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

struct shared {
	struct percpu_mutex mutex;
	struct percpu_robust_mutex robust;
	uint64_t count, twice;
	int told;
};

static struct shared *shared;

static int add_shared(void)
{
	for (int i = 0; i < 20000; i++) {
		percpu_mutex_lock(&shared->mutex);
		shared->count++;
		percpu_mutex_unlock(&shared->mutex);
		if (percpu_robust_mutex_lock(&shared->robust))
			return 1;
		shared->twice++;
		if (percpu_robust_mutex_unlock(&shared->robust))
			return 2;
	}
	return 0;
}

static void several_processes(void **state)
{
	pid_t children[3];
	int status;

	(void)state;
	shared = shared_memory(sizeof *shared);
	percpu_mutex_init(&shared->mutex, PERCPU_MUTEX_SHARED);
	percpu_robust_mutex_init(&shared->robust, PERCPU_MUTEX_SHARED);
	for (int i = 0; i < 3; i++) {
		children[i] = fork();
		if (children[i] == 0) {
			alarm(60);
			_exit(add_shared());
		}
	}
	for (int i = 0; i < 3; i++) {
		assert_int_equal(waitpid(children[i], &status, 0), children[i]);
		assert_int_equal(status, 0);
	}
	assert_int_equal(shared->count, 60000);
	assert_int_equal(shared->twice, 60000);
	munmap(shared, sizeof *shared);
}

static void robust_arguments(void **state)
{
	struct percpu_robust_mutex robust = { 0 };
	struct timespec moment = in_ms(CLOCK_MONOTONIC, 20), bad = { .tv_nsec = -1 };

	(void)state;
	assert_int_equal(percpu_robust_mutex_init(NULL, 0), -EINVAL);
	assert_int_equal(percpu_robust_mutex_init(&robust, 4), -EINVAL);
	assert_int_equal(percpu_robust_mutex_lock(&robust), -EINVAL);
	assert_int_equal(percpu_robust_mutex_lock(NULL), -EINVAL);
	assert_int_equal(percpu_robust_mutex_unlock(NULL), -EPERM);
	assert_int_equal(percpu_robust_mutex_init(&robust, 0), 0);
	assert_int_equal(percpu_robust_mutex_timedlock(&robust, CLOCK_MONOTONIC, NULL), -EINVAL);
	assert_int_equal(percpu_robust_mutex_unlock(&robust), -EPERM);
	assert_int_equal(percpu_robust_mutex_consistent(&robust), -EINVAL);
	assert_int_equal(percpu_robust_mutex_lock(&robust), 0);
	assert_int_equal(percpu_robust_mutex_consistent(&robust), -EINVAL);
	assert_int_equal(percpu_robust_mutex_lock(&robust), -EDEADLK);
	assert_int_equal(percpu_robust_mutex_timedlock(&robust, CLOCK_MONOTONIC, &bad), -EINVAL);
	assert_int_equal(percpu_robust_mutex_timedlock(&robust, CLOCK_BOOTTIME, &moment), -EINVAL);
	assert_int_equal(percpu_robust_mutex_timedlock(&robust, CLOCK_MONOTONIC, &moment), -EDEADLK);
	assert_int_equal(percpu_robust_mutex_trylock(&robust), -EBUSY);
	assert_int_equal(percpu_robust_mutex_unlock(&robust), 0);
	assert_int_equal(percpu_robust_mutex_unlock(&robust), -EPERM);
}

static void *wait_robust(void *arg)
{
	struct timespec moment;

	for (int i = 0; i < 2; i++) {
		clockid_t clock = i ? CLOCK_REALTIME : CLOCK_MONOTONIC;

		moment = in_ms(clock, i ? 150 : 20);
		if (percpu_robust_mutex_timedlock(arg, clock, &moment) != -ETIMEDOUT || !is_over(clock, &moment))
			world.wrong++;
	}
	if (percpu_robust_mutex_unlock(arg) != -EPERM || percpu_robust_mutex_trylock(arg) != -EBUSY)
		world.wrong++;
	return NULL;
}

static void robust_timeouts(void **state)
{
	pthread_t thread;

	(void)state;
	world.wrong = 0;
	percpu_robust_mutex_init(&world.robust, 0);
	assert_int_equal(percpu_robust_mutex_lock(&world.robust), 0);
	assert_int_equal(pthread_create(&thread, NULL, wait_robust, &world.robust), 0);
	pthread_join(thread, NULL);
	assert_int_equal(world.wrong, 0);
	assert_int_equal(percpu_robust_mutex_unlock(&world.robust), 0);
}

static void *lock_and_die(void *arg)
{
	__atomic_store_n(&world.seen, percpu_robust_mutex_lock(arg), __ATOMIC_RELAXED);
	return NULL;
}

static void die_with(struct percpu_robust_mutex *mutex, int expected)
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, lock_and_die, mutex), 0);
	pthread_join(thread, NULL);
	assert_int_equal(world.seen, expected);
}

static void *lock_late(void *arg)
{
	struct timespec moment = in_ms(CLOCK_MONOTONIC, 20000);

	world.wrong += percpu_robust_mutex_timedlock(arg, CLOCK_MONOTONIC, &moment) != -ENOTRECOVERABLE;
	return NULL;
}

static void owners_die(void **state)
{
	pthread_t thread;

	(void)state;
	world.wrong = 0;
	percpu_robust_mutex_init(&world.robust, 0);
	die_with(&world.robust, 0);
	assert_int_equal(percpu_robust_mutex_trylock(&world.robust), -EOWNERDEAD);
	assert_int_equal(percpu_robust_mutex_consistent(&world.robust), 0);
	assert_int_equal(percpu_robust_mutex_unlock(&world.robust), 0);
	/* Two in a row. */
	die_with(&world.robust, 0);
	die_with(&world.robust, -EOWNERDEAD);
	assert_int_equal(percpu_robust_mutex_lock(&world.robust), -EOWNERDEAD);
	assert_int_equal(pthread_create(&thread, NULL, lock_late, &world.robust), 0);
	usleep(20000);
	/* Not mended. */
	assert_int_equal(percpu_robust_mutex_unlock(&world.robust), 0);
	pthread_join(thread, NULL);
	assert_int_equal(world.wrong, 0);
	assert_int_equal(percpu_robust_mutex_lock(&world.robust), -ENOTRECOVERABLE);
	assert_int_equal(percpu_robust_mutex_trylock(&world.robust), -ENOTRECOVERABLE);
	assert_int_equal(percpu_robust_mutex_unlock(&world.robust), -EPERM);
	percpu_robust_mutex_init(&world.robust, 0);
	assert_int_equal(percpu_robust_mutex_lock(&world.robust), 0);
	assert_int_equal(percpu_robust_mutex_unlock(&world.robust), 0);
}

static struct percpu_robust_mutex ours[4];
static pthread_mutex_t theirs[4];

/* Ours and the C library's in one list, unlocked in any order. */
static void lock_both(int order, int until)
{
	uint64_t random = (uint64_t)order + 1;
	int held[8], count = 8;

	for (int i = 0; i < 8; i++) {
		held[i] = i;
		if ((i + order) % 2 ? percpu_robust_mutex_lock(&ours[i / 2]) : pthread_mutex_lock(&theirs[i / 2]))
			world.wrong++;
	}
	while (count > until) {
		int which = (int)(unit_random(&random) % (uint64_t)count), i = held[which];

		held[which] = held[--count];
		if ((i + order) % 2 ? percpu_robust_mutex_unlock(&ours[i / 2]) : pthread_mutex_unlock(&theirs[i / 2]))
			world.wrong++;
	}
}

static void *die_with_some(void *arg)
{
	lock_both(*(int *)arg, 3);
	return NULL;
}

static void beside_the_c_librarys(void **state)
{
	pthread_mutexattr_t attr;
	pthread_t thread;

	(void)state;
	world.wrong = 0;
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	for (int i = 0; i < 4; i++) {
		pthread_mutex_init(&theirs[i], &attr);
		percpu_robust_mutex_init(&ours[i], 0);
	}
	for (int order = 0; order < 100; order++) {
		int dead = 0;

		lock_both(order, 0);
		assert_int_equal(pthread_create(&thread, NULL, die_with_some, &order), 0);
		pthread_join(thread, NULL);
		for (int i = 0; i < 4; i++) {
			int rc = percpu_robust_mutex_lock(&ours[i]), other = pthread_mutex_lock(&theirs[i]);

			if (rc == -EOWNERDEAD)
				dead++, percpu_robust_mutex_consistent(&ours[i]);
			if (other == EOWNERDEAD)
				dead++, pthread_mutex_consistent(&theirs[i]);
			assert_int_equal(percpu_robust_mutex_unlock(&ours[i]), 0);
			assert_int_equal(pthread_mutex_unlock(&theirs[i]), 0);
		}
		assert_int_equal(dead, 3);
	}
	assert_int_equal(world.wrong, 0);
}

static int child_is_not_the_owner(void)
{
	if (percpu_robust_mutex_unlock(&world.robust) != -EPERM)
		return 1;
	return percpu_robust_mutex_trylock(&world.robust) != -EBUSY;
}

static void robust_and_fork(void **state)
{
	(void)state;
	percpu_robust_mutex_init(&world.robust, 0);
	assert_int_equal(percpu_robust_mutex_lock(&world.robust), 0);
	assert_int_equal(unit_in_child(child_is_not_the_owner), 0);
	assert_int_equal(percpu_robust_mutex_unlock(&world.robust), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arguments),        cmocka_unit_test(the_word_names_the_cpu),
		cmocka_unit_test(longer_slices),    cmocka_unit_test(timeouts),
		cmocka_unit_test(several_threads),  cmocka_unit_test(freed_by_its_last_user),
		cmocka_unit_test(a_child_goes_on),  cmocka_unit_test(several_processes),
		cmocka_unit_test(robust_arguments), cmocka_unit_test(robust_timeouts),
		cmocka_unit_test(owners_die),       cmocka_unit_test(beside_the_c_librarys),
		cmocka_unit_test(robust_and_fork),
	};

	return unit_main(tests);
}
