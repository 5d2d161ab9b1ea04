/* SPDX-License-Identifier: MIT */
/*
 * Who gives memory back when nobody comes by any more.
 */
#ifndef PERCPU_SRC_MALLOC_DECAY_H
#define PERCPU_SRC_MALLOC_DECAY_H

#include <percpu/base.h>

/* Starts the thread that gives back what has decayed, if there may be one and there is none. Under the heap's lock. */
PERCPU_HIDDEN void percpu__decay_start(void);
PERCPU_HIDDEN void percpu__decay_after_fork(void);

#endif
