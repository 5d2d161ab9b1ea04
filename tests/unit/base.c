/* SPDX-License-Identifier: MIT */
/* The version, the lock of cold data and the system calls below everything. */
#include "unit.h"

#include <sys/mman.h>

#include "base/lock.h"

static void version(void **state)
{
	char text[64];

	(void)state;
	snprintf(text, sizeof text, "%d.%d.%d", PERCPU_VERSION_MAJOR, PERCPU_VERSION_MINOR, PERCPU_VERSION_PATCH);
	assert_string_equal(percpu_version(), text);
}

static void system_calls_return_errors_and_leave_errno_alone(void **state)
{
	(void)state;
	errno = 12345;
	assert_int_equal(percpu__sys4(SYS_close, -1, 0, 0, 0), -EBADF);
	assert_int_equal(percpu__sys6(SYS_mmap, 0, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), -EINVAL);
	assert_int_equal(percpu__sys4(SYS_getpid, 0, 0, 0, 0), getpid());
	assert_int_equal(errno, 12345);
}

static void all_signals_are_blocked_and_come_back(void **state)
{
	sigset_t before, during, after;
	uint64_t saved;

	(void)state;
	sigemptyset(&before);
	sigaddset(&before, SIGUSR2);
	assert_int_equal(pthread_sigmask(SIG_BLOCK, &before, NULL), 0);
	pthread_sigmask(SIG_SETMASK, NULL, &before);
	percpu__block_signals(&saved);
	pthread_sigmask(SIG_SETMASK, NULL, &during);
	percpu__restore_signals(&saved);
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	for (int signal = 1; signal < NSIG; signal++) {
		if (signal != SIGKILL && signal != SIGSTOP && (signal < 32 || signal >= SIGRTMIN))
			assert_int_equal(sigismember(&during, signal), 1);
		assert_int_equal(sigismember(&after, signal), sigismember(&before, signal));
	}
	assert_int_equal(sigismember(&after, SIGUSR2), 1);
	assert_int_equal(sigismember(&after, SIGUSR1), 0);
}

#define THREADS 4
#define TURNS   20000

static uint32_t word;
static volatile uint64_t shared;

static pthread_barrier_t together;

static void *take_turns(void *arg)
{
	(void)arg;
	pthread_barrier_wait(&together);
	for (int i = 0; i < TURNS; i++) {
		uint64_t saved;

		percpu__lock(&word, &saved);
		/* As long as the way around it, so that two would often be in it at once. */
		for (uint64_t read = shared, spin = 0; spin <= 300; spin++)
			shared = read + (spin == 300);
		percpu__unlock(&word, &saved);
	}
	return NULL;
}

static void the_lock_excludes(void **state)
{
	(void)state;
	pthread_barrier_init(&together, NULL, THREADS);
	unit_threads(THREADS, take_turns, NULL, 0);
	pthread_barrier_destroy(&together);
	assert_int_equal(shared, THREADS * TURNS);
	assert_int_equal(word, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(version),
		cmocka_unit_test(system_calls_return_errors_and_leave_errno_alone),
		cmocka_unit_test(all_signals_are_blocked_and_come_back),
		cmocka_unit_test(the_lock_excludes),
	};

	return unit_main(tests);
}
