/* SPDX-License-Identifier: MIT */
/*
 * The fence and the gate: how to act on a copy without being the thread that runs there.
 *
 * A gate is closed (from then on no section starts on that copy of that area), a fence makes sure that none is still
 * running, the holder works with plain loads and stores, and opens it again. Every difficult case of the library goes
 * this way: sections that were interrupted again and again, threads that are not registered, other indexes' copies,
 * vectors of operations. ARCHITECTURE.md tells the whole protocol.
 */
#ifndef PERCPU_GATE_H
#define PERCPU_GATE_H

#include <percpu/area.h>

PERCPU_BEGIN_DECLS

/**
 * percpu_fence - no section that was running in this process when the call began is still running when it returns.
 *
 * Each has either committed, visibly to the caller, or was aborted and starts over after the call began. Also a full
 * memory barrier between the caller and every running thread of the process.
 * Returns 0 (also in mode none, where there are no sections), or -errno of membarrier(2) if the kernel has begun to
 * refuse it (a sandbox entered after start). Wait-free apart from the kernel's interrupts to other CPUs (0.5 to 7 us
 * typically). Async-signal-safe. Does not reach other processes, nor a child of vfork.
 */
PERCPU_API int percpu_fence(void);

/**
 * percpu_fence_cpu - percpu_fence() for sections on data indexed by CPU number, on one CPU.
 *
 * @cpu: 0 to percpu_possible_cpus() - 1. Returns -EINVAL if out of range, else as percpu_fence().
 * Of no use for data indexed by concurrency id: that may be any CPU's.
 */
PERCPU_API int percpu_fence_cpu(unsigned cpu);

/** A held gate; filled by percpu_gate_lock(), in the caller's storage. Fields belong to the library. */
struct percpu_gate {
	void *base;
	uint64_t saved_signals;
	uint32_t index;
	uint32_t kinds;
};

/**
 * percpu_gate_lock - close the gate of one copy and wait until no section is running on it.
 *
 * @object: a per-CPU pointer; the gate is that of its whole area
 * @index: which copy, 0 to percpu_copies() - 1
 * @gate: caller's storage, must stay where it is until percpu_gate_unlock()
 * Between lock and unlock the caller may read and write that copy with plain loads and stores. All signals are blocked.
 * Nothing that allocates, logs, waits or calls back may run there, nor any operation of this library
 * but those on counters and histograms. Returns 0; -EINVAL for an argument out of range; -EDEADLK if the calling thread holds a gate already and
 * this one is taken (in mode none also in a signal handler that interrupted an operation while it held one); -errno of
 * membarrier(2) if the kernel has begun to refuse it.
 * May block, on other holders only. Async-signal-safe. Held gates never cross a fork: fork waits for them.
 */
PERCPU_API int percpu_gate_lock(void *object, unsigned index, struct percpu_gate *gate);

/** percpu_gate_unlock - open the gate again. Takes what percpu_gate_lock() filled. Wait-free, async-signal-safe. */
PERCPU_API void percpu_gate_unlock(struct percpu_gate *gate);

PERCPU_END_DECLS

#endif
