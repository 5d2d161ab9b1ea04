/* SPDX-License-Identifier: MIT */
/* Everything of libpercpu that needs no other library. Each header can also be included alone. */
#ifndef PERCPU_H
#define PERCPU_H

#include <percpu/base.h>
#include <percpu/rseq.h>
#include <percpu/area.h>
#include <percpu/gate.h>
#include <percpu/ops.h>
#include <percpu/opv.h>
#include <percpu/csection.h>
#include <percpu/counter.h>
#include <percpu/eventcount.h>
#include <percpu/histogram.h>
#include <percpu/malloc.h>
#include <percpu/mutex.h>
#include <percpu/perf.h>
#include <percpu/pool.h>
#include <percpu/rcu.h>
#include <percpu/record_ring.h>
#include <percpu/ref.h>
#include <percpu/ring.h>
#include <percpu/runqueue.h>
#include <percpu/rwlock.h>
#include <percpu/seqdata.h>
#include <percpu/spinlock.h>
#include <percpu/stack.h>
#include <percpu/timed.h>
#include <percpu/waitqueue.h>

#endif
