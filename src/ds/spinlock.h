/* SPDX-License-Identifier: MIT */
/* For tests. */
#ifndef PERCPU_SRC_SPINLOCK_H
#define PERCPU_SRC_SPINLOCK_H

#include <percpu/spinlock.h>

/* Acquisitions by its own CPU's threads after which a copy gets its bias back. Read by the holder. */
extern PERCPU_HIDDEN uint32_t percpu__spinlock_patience;

#endif
