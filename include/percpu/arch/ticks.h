/* SPDX-License-Identifier: MIT */
/*
 * The processor's clock, and a compare-and-swap that only has to be atomic with regard to the own thread's interruptions.
 * Apart from the ports, because neither needs sections: code built without them measures in the same ticks.
 */
#ifndef PERCPU_ARCH_TICKS_H
#define PERCPU_ARCH_TICKS_H

#include <stdint.h>

#include <percpu/base.h>

PERCPU_BEGIN_DECLS
/* CLOCK_MONOTONIC_RAW in ns. */
PERCPU_API uint64_t percpu__clock_ns(void);
PERCPU_END_DECLS

#if defined __x86_64__
#define PERCPU__TICKS_NAME "rdtsc"
/*
 * lfence waits until everything before it has been executed (but for stores on their way to memory) and lets nothing behind
 * it begin: in front, so that the clock is not read early; behind, so that what follows is not executed early.
 */
PERCPU__INLINE uint64_t percpu__ticks(void)
{
	uint32_t low, high;

	__asm__ __volatile__("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

/* One instruction, so no interruption can come in between; no lock prefix, as no other CPU writes there. */
PERCPU__INLINE uint64_t percpu__swap_local(uint64_t *word, uint64_t expected, uint64_t desired)
{
	__asm__ __volatile__("cmpxchgq %2, %1" : "+a"(expected), "+m"(*word) : "r"(desired) : "cc", "memory");
	return expected;
}
#else
#if defined __aarch64__
#define PERCPU__TICKS_NAME "cntvct_el0"
/* isb in front, so that the clock is not read early; behind, so that what follows is not executed early. */
PERCPU__INLINE uint64_t percpu__ticks(void)
{
	uint64_t ticks;

	__asm__ __volatile__("isb\n\tmrs %0, cntvct_el0\n\tisb" : "=r"(ticks) : : "memory");
	return ticks;
}
#else
#define PERCPU__TICKS_NAME "clock_gettime"
PERCPU__INLINE uint64_t percpu__ticks(void)
{
	return percpu__clock_ns();
}
#endif

/* One instruction, or a pair whose second half fails after every interruption. */
PERCPU__INLINE uint64_t percpu__swap_local(uint64_t *word, uint64_t expected, uint64_t desired)
{
	__atomic_compare_exchange_n(word, &expected, desired, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	return expected;
}
#endif

#endif
