/* SPDX-License-Identifier: MIT */
/*
 * Performance counters, read without a system call where the machine and the kernel allow it.
 *
 * perf_event_open(2) gives a page for each event, in which the kernel says in which hardware counter the event is now, what to
 * add, and whether user code may read it. The event of a thread follows it from CPU to CPU, that of a CPU stays; in both
 * cases what the page says holds only until the thread is preempted. So all of it is read in a section: if the thread was
 * interrupted between the page and the counter, it starts over. No counter of another CPU (of another kind, on machines
 * with different cores) is ever read by mistake, nor one that belongs to somebody else by then.
 *
 * Where that is not possible, read(2); where the event cannot be opened at all, an error and a reason. The instruction
 * that reads a counter (rdpmc; mrs of the counters of 64-bit ARM) is never executed unless the page allows it.
 *
 * What has run: everything but that instruction itself, for want of a machine. Software events on real kernels; the pages'
 * arithmetic and the section on made-up pages, with a load in place of the instruction.
 *
 * Source: the comment in <linux/perf_event.h> on struct perf_event_mmap_page; the section in place of its retry loop is ours.
 */
#ifndef PERCPU_PERF_H
#define PERCPU_PERF_H

#include <percpu/area.h>

PERCPU_BEGIN_DECLS

/** What is counted. The last four are counted by the kernel: always by read(2), but to be had on every machine. */
enum percpu_perf_event {
	PERCPU_PERF_CYCLES,
	PERCPU_PERF_INSTRUCTIONS,
	PERCPU_PERF_CACHE_MISSES,
	PERCPU_PERF_BRANCH_MISSES,
	PERCPU_PERF_TASK_CLOCK, /**< nanoseconds on a CPU */
	PERCPU_PERF_PAGE_FAULTS,
	PERCPU_PERF_CONTEXT_SWITCHES,
	PERCPU_PERF_MIGRATIONS,
};

/** Whose events are counted. */
enum percpu_perf_scope {
	PERCPU_PERF_THREAD, /**< the calling thread's, wherever it runs */
	PERCPU_PERF_CPU, /**< each CPU's, whoever runs there: needs CAP_PERFMON, or kernel.perf_event_paranoid below 1 */
};

/** An open event, in the caller's storage. Belongs to the library. */
struct percpu_perf {
	void *cpus;          /* scope CPU, per-CPU by CPU number: a page and a file; else NULL */
	const void *page;    /* scope thread: the page, or NULL */
	const void *owner;   /* scope thread: the area of the thread that it counts */
	const char *reason;  /* why reads take a system call, as far as is known at open; NULL if they need not */
	int file;            /* scope thread */
	uint32_t fork_count; /* pages are not inherited */
	uint32_t scope;
	uint32_t user_only; /* what the kernel does is not counted */
};

/** What percpu_perf_read() tells. */
struct percpu_perf_value {
	uint64_t count; /**< since open */
	uint64_t
		enabled; /**< ns for which it should have been counted; 0 if the count is complete and read from the page */
	uint64_t
		running; /**< ns for which it was: less, where events had to share counters. Scale by enabled / running */
	int cpu;         /**< scope CPU: which CPU's; scope thread: -1 */
	bool by_page;    /**< no system call was needed */
};

/**
 * percpu_perf_open - start to count an event.
 *
 * @perf: set to it; untouched on error. @event, @scope: what and whose
 * @reason: if not NULL, set in any case to one sentence: on error why, else why reads take a system call, or NULL if
 * they need not. It lives as long as the library.
 * If the kernel's own work may not be counted it is left out (percpu_perf_is_user_only()).
 * Returns 0; -EINVAL for an argument out of range; -ENOTSUP if this machine, kernel, sandbox or its settings do not offer it;
 * -EMFILE, -ENFILE or -ENOMEM. Opens a file (and maps a page), for scope CPU one for each CPU that is online.
 * May block. Async-signal-safe.
 */
PERCPU_API int percpu_perf_open(struct percpu_perf *perf, enum percpu_perf_event event, enum percpu_perf_scope scope,
				const char **reason);

/**
 * percpu_perf_open_raw - the same, named as perf_event_open(2) does.
 *
 * @type, @config: fields of struct perf_event_attr. An unknown event is -ENOTSUP.
 */
PERCPU_API int percpu_perf_open_raw(struct percpu_perf *perf, uint32_t type, uint64_t config,
				    enum percpu_perf_scope scope, const char **reason);

/** percpu_perf_close - stop to count, close and unmap. No thread may use it any more. NULL does nothing. */
PERCPU_API void percpu_perf_close(struct percpu_perf *perf);

/** percpu_perf_is_user_only - whether what the kernel does is left out, for want of permission. */
PERCPU__INLINE bool percpu_perf_is_user_only(const struct percpu_perf *perf)
{
	return perf->user_only != 0;
}

/**
 * percpu_perf_read - the count now.
 *
 * Scope CPU: that of the CPU that the calling thread is on, as @value tells. Scope thread: of the thread that opened it; other
 * threads may read it too, by a system call.
 * @value: filled completely; untouched on error
 * Returns 0; -EINVAL for NULL; -ENODEV if the event is not counted on this CPU; -errno of read(2). Eight attempts without a
 * system call, then one: wait-free but for the kernel. Async-signal-safe. In a child of fork it reads its parent's counts.
 */
PERCPU_API int percpu_perf_read(const struct percpu_perf *perf, struct percpu_perf_value *value);

/**
 * percpu_perf_read_cpu - the count of one CPU, by a system call.
 *
 * @cpu: 0 to percpu_possible_cpus() - 1. Returns as percpu_perf_read(); -EINVAL also for scope thread.
 */
PERCPU_API int percpu_perf_read_cpu(const struct percpu_perf *perf, unsigned cpu, struct percpu_perf_value *value);

#ifndef PERCPU_NO_SECTIONS
/* clang-format off */
#define PERCPU__PERF_READ(which)                                                                                       \
	__asm__ __volatile__ goto(                                                                                     \
		PERCPU__ENTER_UNGATED which PERCPU__A_PERF("4f") PERCPU__A_PERF_COMMIT("out") PERCPU__LEAVE                \
		:                                                                                                      \
		: [self] "r"(PERCPU__SELF_OPERAND), [index] "r"(PERCPU__INDEX(PERCPU__BY_CPU)), [object] "r"(cpus),        \
		  [limit] PERCPU__LIMIT_OPERAND(percpu__remainder), [page] "r"(page), [out] "r"(out)                       \
		: "memory", PERCPU__SCRATCH, PERCPU__SCRATCH_PERF                                                      \
		: left)
/* clang-format on */

/*
 * out[0] = the count, by the page at the start of this CPU's copy of *cpus, whose address becomes out[1]; by @page, if cpus is
 * NULL. Left also where the page does not allow it.
 */
PERCPU__INLINE int percpu__try_perf(const void *cpus, const void *page, uint64_t *out)
{
	if (cpus)
		PERCPU__PERF_READ(PERCPU__A_PERF_PAGE_OF_COPY("out", "4f"));
	else
		PERCPU__PERF_READ(PERCPU__A_PERF_PAGE("page"));
	return PERCPU__DONE;
left:
	return PERCPU__LEFT;
}
#endif

PERCPU_END_DECLS

#endif
