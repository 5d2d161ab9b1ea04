/* SPDX-License-Identifier: MIT */
/*
 * System calls as plain functions that return -errno.
 *
 * Not through the C library: slow paths run inside signal handlers and under interposed functions, where errno must
 * stay what it was and no wrapper may be entered twice.
 */
#ifndef PERCPU_SRC_SYS_H
#define PERCPU_SRC_SYS_H

#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

#if defined __x86_64__
static inline long percpu__sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ __volatile__("syscall"
			     : "=a"(ret)
			     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			     : "rcx", "r11", "memory");
	return ret;
}
#elif defined __aarch64__
static inline long percpu__sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ __volatile__("svc #0"
			     : "+r"(x0)
			     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			     : "memory", "cc");
	return x0;
}
#else
#include <errno.h>
#include <unistd.h>

static inline long percpu__sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	int saved = errno;
	long ret = syscall(nr, a, b, c, d, e, f);

	if (ret < 0)
		ret = -errno;
	errno = saved;
	return ret;
}
#endif

static inline long percpu__sys4(long nr, long a, long b, long c, long d)
{
	return percpu__sys6(nr, a, b, c, d, 0, 0);
}

/* Sleeps while *word == value; wakers name a set of bits that must meet this one. */
static inline void percpu__futex_wait(uint32_t *word, uint32_t value, uint32_t set)
{
	percpu__sys6(SYS_futex, (long)word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, (long)value, 0, 0, (long)set);
}

/* The same until a moment of CLOCK_MONOTONIC (NULL: for ever); -ETIMEDOUT when that has come. */
static inline int percpu__futex_wait_until(uint32_t *word, uint32_t value, uint32_t set, const struct timespec *moment)
{
	return (int)percpu__sys6(SYS_futex, (long)word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, (long)value,
				 (long)moment, 0, (long)set);
}

static inline void percpu__futex_wake(uint32_t *word, int how_many, uint32_t set)
{
	percpu__sys6(SYS_futex, (long)word, FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG, how_many, 0, 0, (long)set);
}

/* The moment of CLOCK_MONOTONIC that is @ns nanoseconds from now, or the last there is. */
static inline void percpu__moment_in(uint64_t ns, struct timespec *moment)
{
	const uint64_t second = 1000000000, last = INT64_MAX / 1000000000 * 9 / 10; /* what the kernel takes */
	uint64_t fraction;

	percpu__sys4(SYS_clock_gettime, CLOCK_MONOTONIC, (long)moment, 0, 0);
	fraction = (uint64_t)moment->tv_nsec + ns % second;
	moment->tv_sec += (time_t)(ns / second + fraction / second);
	moment->tv_nsec = (long)(fraction % second);
	if ((uint64_t)moment->tv_sec > last)
		moment->tv_sec = (time_t)last;
}

/* All signals, also those that the C library keeps for itself: a handler must not run where a gate is held. */
static inline void percpu__block_signals(uint64_t *saved)
{
	uint64_t all = ~UINT64_C(0);

	percpu__sys4(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, (long)&all, (long)saved, sizeof all);
}

static inline void percpu__restore_signals(const uint64_t *saved)
{
	percpu__sys4(SYS_rt_sigprocmask, 2, (long)saved, 0, sizeof *saved);
}

static inline void percpu__pause(void)
{
#if defined __x86_64__
	__builtin_ia32_pause();
#elif defined __aarch64__
	__asm__ __volatile__("yield");
#endif
}

#endif
