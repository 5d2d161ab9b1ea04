/* SPDX-License-Identifier: MIT */
/*
 * Longer time slices around locks that others wait for (Linux 7.0 and later, where percpu_describe() says
 * slice_extension): a thread asks before it is about to be preempted, the kernel may then let it run on for some
 * microseconds, and the thread must give the CPU back as soon as it does not need it any more.
 *
 * Only for locks that the thread had to wait for: a lock that nobody else wants loses nothing when its holder is
 * preempted, and must not pay for the question.
 */
#ifndef PERCPU_SRC_SLICE_H
#define PERCPU_SRC_SLICE_H

#include "rseq/thread.h"

PERCPU_HIDDEN bool percpu__slice_begin(void) PERCPU__COLD;
PERCPU_HIDDEN void percpu__slice_end(void) PERCPU__COLD;

/* Returns whether it has asked: then percpu__slice_end() must follow. */
static inline bool percpu__slice_ask(void)
{
	return percpu__process.about.slice_extension && percpu__slice_begin();
}

#endif
