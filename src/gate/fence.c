/* SPDX-License-Identifier: MIT */
/*
 * The fence: membarrier's private expedited RSEQ command.
 *
 * It interrupts every CPU that runs a thread of this process and makes the kernel look at that thread's section, which
 * aborts it if it is inside one. Threads that do not run will be looked at before they do. The CPU variant interrupts one
 * CPU, which is enough for data indexed by CPU number: a section on another CPU works on another copy.
 */
#include <errno.h>
#include <linux/membarrier.h>

#include <percpu/gate.h>

#include "base/sys.h"
#include "rseq/thread.h"

/* Linux 5.10; older headers than the kernel's own do not have it. */
#define FENCE_ONE_CPU 1

int percpu_fence(void)
{
	percpu__init();
	if (percpu__mode() == PERCPU_MODE_NONE) {
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		return 0;
	}
	return (int)percpu__sys4(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0, 0);
}

int percpu_fence_cpu(unsigned cpu)
{
	percpu__init();
	if (cpu >= percpu__process.about.possible_cpus)
		return -EINVAL;
	if (percpu__mode() == PERCPU_MODE_NONE) {
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		return 0;
	}
	return (int)percpu__sys4(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, FENCE_ONE_CPU, (long)cpu, 0);
}
