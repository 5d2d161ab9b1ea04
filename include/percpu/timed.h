/* SPDX-License-Identifier: MIT */
/*
 * How long a piece of code took, if nothing came in between; and whether something did.
 *
 * percpu_timed_begin() arms the thread's registered area with a descriptor of ours whose range no thread ever executes. The
 * kernel, whenever it preempts the thread, moves it or gives it a signal, finds it outside of that range and sets the word to
 * 0 (so <linux/rseq.h> says). percpu_timed_end() looks whether the descriptor is still there. If so, nothing of that kind
 * has happened: that is proof, not a guess by durations. Each begin takes another of a set of descriptors and puts it there
 * by one instruction, end puts back what it found; so sections of timed code may be nested, also by signal handlers.
 *
 * What is seen: being preempted, moved to another CPU, stopped, signalled; sleeping in a system call or a page fault (on
 * kernels that look at the word on every switch, see struct percpu_timed_clock); percpu_fence() in another thread. What is
 * not: interrupts that return to this thread, page faults and system calls that do not sleep, a hypervisor that takes the
 * CPU away, system management mode. Between begin and end any other operation of this library (but reading) arms its own
 * descriptor; then it cannot be told any more, and is called PERCPU_TIMED_UNKNOWN, unless the CPU differs. Not to be used
 * inside a section written in C (<percpu/csection.h>): that would be disarmed.
 *
 * Source: a use of restartable sequences of our own. The fences around the clock are those of Intel's white paper "How to
 * benchmark code execution times" (2010), with lfence in place of cpuid.
 */
#ifndef PERCPU_TIMED_H
#define PERCPU_TIMED_H

#include <percpu/arch/ticks.h>
#include <percpu/section.h>

PERCPU_BEGIN_DECLS

/** Bits of struct percpu_timed_result.flags; none of them: nothing came in between. */
enum {
	PERCPU_TIMED_INTERRUPTED = 1, /**< preempted, moved, stopped, signalled, or asleep */
	PERCPU_TIMED_MIGRATED = 2,    /**< ended on another CPU than it began (it may also have come back: not seen) */
	PERCPU_TIMED_UNKNOWN = 4,     /**< cannot be told */
};

/** How it was found out. */
enum percpu_timed_method {
	PERCPU_TIMED_BY_DESCRIPTOR, /**< as described above */
	/**
	 * The thread is not registered (mode none): getrusage(2) at begin and end, 0.2 to 0.5 us each, outside of what is
	 * measured. It counts switches to other threads, but nobody counts signals: INTERRUPTED or UNKNOWN, never neither.
	 */
	PERCPU_TIMED_BY_COUNTS,
};

/** What percpu_timed_end() tells. */
struct percpu_timed_result {
	uint64_t ticks;   /**< of the processor's clock, from begin to end; see percpu_timed_ns() */
	uint32_t flags;   /**< PERCPU_TIMED_* */
	uint32_t method;  /**< enum percpu_timed_method */
	int64_t switches; /**< to other threads meanwhile, if method is BY_COUNTS; else, and if not known, -1 */
};

/** A measurement under way, in the caller's storage; belongs to the library. */
struct percpu_timed {
	struct percpu__rseq *area; /* NULL: by counts */
	uint64_t marker, previous; /* what begin put into the area, and what it found there */
	uint64_t start;
	int64_t switches; /* by counts */
	int32_t cpu;
	uint32_t unused;
};

/* Valid for the kernel, but for a range that no thread ever is in. */
#define PERCPU__MARKERS 64
struct percpu__marker {
	uint32_t version, flags;
	uint64_t start, length, abort;
} __attribute__((aligned(32)));
extern PERCPU_API const struct percpu__marker percpu__timed_markers[];

PERCPU_API void percpu__timed_begin_slow(struct percpu_timed *timed) PERCPU__COLD;
PERCPU_API void percpu__timed_end_slow(const struct percpu_timed *timed, struct percpu_timed_result *result)
	PERCPU__COLD;

/* Puts the next descriptor where sections put theirs. */
PERCPU__INLINE void percpu__timed_arm(struct percpu_timed *timed, struct percpu__rseq *area)
{
	/* A handler in between may take the same one: by the time we use it, its measurement is over. */
	uint32_t number = percpu__thread.timed++ % PERCPU__MARKERS;
	uint64_t marker = (uint64_t)(uintptr_t)&percpu__timed_markers[number];
	uint64_t found = *(volatile uint64_t *)&area->rseq_cs, was;

	/* By one instruction: what end puts back must not have been set to 0 since it was read. */
	while ((was = percpu__swap_local(&area->rseq_cs, found, marker)) != found)
		found = was;
	timed->area = area;
	timed->marker = marker;
	/* A section's descriptor is of no use any more; that of an outer measurement is. */
	timed->previous =
		found - (uint64_t)(uintptr_t)percpu__timed_markers < PERCPU__MARKERS * sizeof(struct percpu__marker)
			? found
			: 0;
	timed->cpu = (int32_t) * (const volatile uint32_t *)&area->cpu_id_start;
}

/**
 * percpu_timed_begin - start to measure.
 *
 * @timed: caller's storage, until percpu_timed_end() in the same thread. One that is never ended does no harm.
 * Wait-free, async-signal-safe. A child of fork may end what its parent began: it is told INTERRUPTED or UNKNOWN.
 */
PERCPU__INLINE void percpu_timed_begin(struct percpu_timed *timed)
{
	struct percpu__rseq *area = percpu__self;

	/* A stand-in has no CPU. */
	if (PERCPU__LIKELY((int)*(const volatile uint32_t *)&area->cpu_id_start >= 0))
		percpu__timed_arm(timed, area);
	else
		percpu__timed_begin_slow(timed);
	timed->start = percpu__ticks();
}

/**
 * percpu_timed_end - stop to measure.
 *
 * @result: filled completely
 * Returns whether nothing came in between: flags is 0. Wait-free, async-signal-safe.
 */
PERCPU__INLINE bool percpu_timed_end(const struct percpu_timed *timed, struct percpu_timed_result *result)
{
	struct percpu__rseq *area = timed->area;
	uint64_t found;
	int32_t cpu;

	result->ticks = percpu__ticks() - timed->start;
	/* Not this thread's area any more: another thread, or one that has lent its storage (vfork). */
	if (PERCPU__UNLIKELY(!area || area != percpu__self)) {
		percpu__timed_end_slow(timed, result);
		return false;
	}
	cpu = (int32_t) * (const volatile uint32_t *)&area->cpu_id_start;
	/* By one instruction: an interruption that concerns an outer measurement too must not be undone. */
	found = percpu__swap_local(&area->rseq_cs, timed->marker, timed->previous);
	result->flags = found == timed->marker ? 0
			: cpu != timed->cpu    ? PERCPU_TIMED_INTERRUPTED | PERCPU_TIMED_MIGRATED
			: found                ? PERCPU_TIMED_UNKNOWN
					       : PERCPU_TIMED_INTERRUPTED;
	result->method = PERCPU_TIMED_BY_DESCRIPTOR;
	result->switches = -1;
	return result->flags == 0;
}

/**
 * percpu_timed_best - call a function until a call was not disturbed.
 *
 * @fn: called with @arg, at least once and at most @tries times; @tries: from 1
 * @result: set to the first call that nothing disturbed; if there was none, to the fastest
 * Returns 0; -EAGAIN if each call was disturbed; -ENOTSUP if that cannot be told here: then @result is of the first
 * call during which no switch was counted, or the fastest; -EINVAL (@result is untouched, and @fn not called).
 */
PERCPU_API int percpu_timed_best(void (*fn)(void *arg), void *arg, unsigned tries, struct percpu_timed_result *result);

/** What percpu_timed_clock() tells. */
struct percpu_timed_clock {
	uint64_t ticks_per_second;
	uint64_t overhead; /**< ticks that the shortest of many measurements of nothing took */
	const char *name;  /**< "rdtsc", "cntvct_el0" or "clock_gettime" */
	uint32_t method;   /**< enum percpu_timed_method, of the calling thread */
	/**
	 * Whether a sleep in a system call is seen: tried out. Linux 6.19 and later do not look at the word then, unless the
	 * thread is registered with 32 bytes from 7.0.10 on. Elsewhere only preemption and signals are seen.
	 */
	bool sees_sleep;
};

/**
 * percpu_timed_clock - what the ticks are, and what is seen.
 *
 * @out: filled completely. The first call compares the clock with CLOCK_MONOTONIC_RAW for 10 ms (aarch64 knows its rate),
 * which is good for 1 in 100,000, and each sleeps for 0.1 ms. Where the processor's clock stops or differs between CPUs, which
 * Linux tells by another clocksource than "tsc", so do ticks. Returns 0 or -EINVAL. Async-signal-safe.
 */
PERCPU_API int percpu_timed_clock(struct percpu_timed_clock *out);

/** percpu_timed_ns - ticks in nanoseconds, rounded down. The first call may take 10 ms, as above. Async-signal-safe. */
PERCPU_API uint64_t percpu_timed_ns(uint64_t ticks);

PERCPU_END_DECLS

#endif
