/* SPDX-License-Identifier: MIT */
/*
 * Where the running thread is, and what this machine and kernel give.
 *
 * Each thread has one pointer in static thread-local storage, to the words that the kernel keeps up to date for it
 * (struct rseq of Linux's <linux/rseq.h>). A thread that the kernel does not serve (new, not registered, or a task that
 * borrows its parent's thread-local storage) points at a stand-in whose index is the remainder: a copy of every area
 * whose gate is shut, so that its sections always leave for the slow path.
 *
 * The library's mode is decided once and never changes afterwards:
 *   libc   the C library registered its threads with the kernel; we share that registration
 *   own    the C library did not; each thread registers itself at its first operation
 *   none   sections cannot be used; every operation takes the gate (or an atomic instruction)
 * The environment variable PERCPU_RSEQ=auto|libc|own|off narrows the choice ("off" asks for none); it is ignored in
 * set-user-id programs.
 */
#ifndef PERCPU_RSEQ_H
#define PERCPU_RSEQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <percpu/base.h>

PERCPU_BEGIN_DECLS

/* The kernel's layout of the registered area, as far as the library reads it. Offsets are checked in src/rseq. */
struct percpu__rseq {
	uint32_t cpu_id_start;
	uint32_t cpu_id;
	uint64_t rseq_cs;
	uint32_t flags;
	uint32_t node_id;
	uint32_t mm_cid;
	uint32_t slice_ctrl;
};

/*
 * What <percpu/rcu.h> knows of one thread. `state` is 0 outside of read sections; inside, their depth in its low 16 bits and
 * above it the number of the grace period that was the last one when it entered.
 */
struct percpu__rcu_reader {
	uint64_t state; /* written by its thread only, but for one bit; read by whoever waits for readers */
	uint32_t owner; /* the task that has this record; 0: nobody */
	char apart[116];
};

/* What sections need to know of the calling thread. Written only by it. */
struct percpu__thread {
	/*
	 * The area that its sections use. One pointer, so that it always changes as a whole: either the area that the kernel
	 * serves for this very task, or a stand-in (in src/rseq).
	 */
	struct percpu__rseq *self;
	/*
	 * What an abort of a section in C needs to get back to its caller (<percpu/csection.h>): the stack pointer, and what
	 * the port says. The stack pointer is not 0 while the thread is in such a section; at the begin of one that means that
	 * this is a signal handler which interrupted one: it goes out of line, where that one's words are put aside.
	 */
	uintptr_t c_stack, c_saved[3];
	uint32_t timed; /* measurements begun (<percpu/timed.h>) */
	/* Its record, or a stand-in that sends both the begin and the end of a read section out of line. */
	struct percpu__rcu_reader *rcu;
};
extern PERCPU_API __thread struct percpu__thread percpu__thread __attribute__((tls_model("initial-exec")));
#define percpu__self (percpu__thread.self)

/* Decided once, before the first area exists. */
extern PERCPU_API uint32_t
	percpu__index_offset;                 /* in the area: of mm_cid, or of cpu_id where the kernel has no mm_cid */
extern PERCPU_API uint32_t percpu__node_mask; /* all ones where the kernel does not maintain node_id */
extern PERCPU_API uint32_t percpu__remainder; /* the last index, which is that of the stand-in: possible CPUs */

PERCPU_API int percpu__cpu_slow(void) __attribute__((cold));
PERCPU_API int percpu__node_slow(void) __attribute__((cold));
PERCPU_API int percpu__cid_slow(void) __attribute__((cold));

/**
 * percpu_cpu - the number of the CPU that runs the calling thread.
 *
 * The answer may be stale when it arrives. Returns a number in [0, percpu_possible_cpus()). One load and one test;
 * a thread that is not registered asks the kernel (vDSO), and gets 0 if the kernel will not say.
 * Wait-free, async-signal-safe, usable after fork and vfork.
 */
PERCPU__INLINE int percpu_cpu(void)
{
	int cpu = (int)*(const volatile uint32_t *)&percpu__self->cpu_id_start;

	return PERCPU__LIKELY(cpu >= 0) ? cpu : percpu__cpu_slow();
}

/**
 * percpu_node - the NUMA node of the CPU that runs the calling thread.
 *
 * Returns a node number, 0 on machines without NUMA. Same cost and guarantees as percpu_cpu().
 */
PERCPU__INLINE int percpu_node(void)
{
	int node = (int)(*(const volatile uint32_t *)&percpu__self->node_id | percpu__node_mask);

	return PERCPU__LIKELY(node >= 0) ? node : percpu__node_slow();
}

/**
 * percpu_cid - the concurrency id of the calling thread.
 *
 * Two threads of one process that run at the same moment never have the same one, and the kernel keeps them dense:
 * below min(threads, allowed CPUs) wherever it can. Where the kernel has none (before 6.3) this is the CPU number.
 * Returns a number in [0, percpu_possible_cpus()). Same cost and guarantees as percpu_cpu().
 */
PERCPU__INLINE int percpu_cid(void)
{
	uint32_t cid = *(const volatile uint32_t *)(void *)((char *)percpu__self + percpu__index_offset);

	return PERCPU__LIKELY(cid < percpu__remainder) ? (int)cid : percpu__cid_slow();
}

/** How the library works in this process. */
enum percpu_mode {
	PERCPU_MODE_NONE, /**< no sections: gates and atomic instructions */
	PERCPU_MODE_LIBC, /**< sections, on the C library's registration */
	PERCPU_MODE_OWN,  /**< sections, on the library's own registration */
};

/** What percpu_describe() tells. */
struct percpu_description {
	enum percpu_mode mode;
	const char *mode_name;  /**< "libc", "own" or "none" */
	const char *reason;     /**< one sentence: why this mode */
	const char *index_kind; /**< "concurrency id", "CPU number", or "any" in mode none */
	const char *topology;   /**< where the number of possible CPUs was read */
	const char *arch;       /**< the port that the library was built with */
	unsigned possible_cpus; /**< highest possible CPU number + 1 */
	unsigned feature_size;  /**< the kernel's rseq feature size in bytes; 20 where it names none; 0 without rseq */
	unsigned registered_size; /**< bytes registered for each thread, 0 in mode none */
	bool v2;                  /**< registered with more than 32 bytes on a kernel that treats those differently */
	bool fence;               /**< membarrier's RSEQ fence is available */
	bool node_id;             /**< the kernel maintains the NUMA node id */
	bool concurrency_id;      /**< the kernel maintains the concurrency id */
	bool slice_extension;     /**< the kernel offers time-slice extensions to this process */
	bool thread_registered;   /**< the calling thread can run sections */
};

/**
 * percpu_describe - how the library works in this process, and why.
 *
 * @out: filled completely. Strings live as long as the library.
 * Returns 0, or -EINVAL if @out is NULL. Decides the mode if no other call has yet. Async-signal-safe.
 */
PERCPU_API int percpu_describe(struct percpu_description *out);

/**
 * percpu_possible_cpus - the highest CPU number that can ever appear on this machine, plus one.
 *
 * CPU numbers may be sparse: this is a bound for indexes, not a count of CPUs. At least 1. Async-signal-safe.
 */
PERCPU_API unsigned percpu_possible_cpus(void);

/**
 * percpu_copies - how many copies each per-CPU object has: percpu_possible_cpus() + 1.
 *
 * The last copy, index percpu_copies() - 1, is the remainder: no thread runs sections on it. It holds what was done by
 * threads that are not registered with the kernel. A sum over all copies must include it. Async-signal-safe.
 */
PERCPU_API unsigned percpu_copies(void);

PERCPU_END_DECLS

#endif
