/* SPDX-License-Identifier: MIT */
/*
 * What the library knows of the process and of each thread, for its own use.
 *
 * A thread is NEW until its first slow path, which makes it REGISTERED (percpu__self leads to the area that the kernel
 * serves) or UNREGISTERED (percpu__self leads to its own stand-in, for ever), or NONE in mode none. percpu__self is
 * written once, as a whole, so a signal handler that interrupts its own thread anywhere sees one or the other.
 */
#ifndef PERCPU_SRC_THREAD_H
#define PERCPU_SRC_THREAD_H

#include <percpu/rseq.h>

/* Decided in percpu__init, constant afterwards. */
struct percpu__process {
	struct percpu_description about; /* all but thread_registered */
	uint32_t length;                 /* bytes that mode own registers */
	char reason[256];
};

enum percpu__state { PERCPU__NEW, PERCPU__REGISTERED, PERCPU__UNREGISTERED, PERCPU__NONE };

/* For tests: which way the calling thread's operations take. */
enum percpu__force {
	PERCPU__FORCE_OFF,
	PERCPU__FORCE_GATE,      /* registered, but each operation takes the gate of its current index */
	PERCPU__FORCE_REMAINDER, /* as a thread that is not registered */
};

#define PERCPU__AREA_BYTES 128

/* Only the thread itself reads and writes this, but for the kernel, which writes in `own`. */
struct percpu__private {
	struct percpu__rseq own __attribute__((aligned(64))); /* registered in mode own; else the stand-in */
	char own_rest[PERCPU__AREA_BYTES - sizeof(struct percpu__rseq)];
	uint32_t id;         /* of the task; set when the thread starts, and in a forked child */
	uint32_t spread;     /* mode none: the copy to try first */
	uint32_t busy;       /* of the gates held now, those under which several changes are made */
	uint32_t holding;    /* gates that this thread, or what its handlers interrupted, holds or is about to take */
	unsigned char state; /* enum percpu__state */
	unsigned char force; /* enum percpu__force */
	bool owned;          /* `own` is registered */
	bool rcu_worker;     /* a thread that runs callbacks of RCU */
	unsigned char slice; /* whether time slices may be extended: 0 not known, 1 yes, 2 no */
	uint16_t slices;     /* locks held now for which that was asked */
	struct percpu__rcu_reader *rcu; /* the thread's record, wherever percpu__thread.rcu leads */
	void *robust;                   /* the head of the C library's list of robust mutexes; NULL: not known */
};

extern PERCPU_HIDDEN __thread struct percpu__private percpu__private __attribute__((tls_model("initial-exec")));
extern PERCPU_HIDDEN struct percpu__process percpu__process;
/*
 * The stand-in that all threads start on. A thread whose state says REGISTERED but whose percpu__self leads here has lent
 * its thread-local storage to another task (vfork), or is forced; it acts as one that is not registered.
 */
extern PERCPU_HIDDEN struct percpu__rseq percpu__newcomer;

/*
 * Stand-ins for a thread's record of RCU: at first, and where a task may share this thread-local storage with another one
 * that runs at the same time. Never written.
 */
extern PERCPU_HIDDEN struct percpu__rcu_reader percpu__rcu_newcomer, percpu__rcu_lent;

/* Decides the mode, once; cheap afterwards. Async-signal-safe. */
PERCPU_HIDDEN void percpu__init(void);
/* A NEW thread becomes one of the others. Returns true if it can run sections now. */
PERCPU_HIDDEN bool percpu__thread_start(void);
/* The kernel's id of the calling task: at most 22 bits, never 0. */
PERCPU_HIDDEN uint32_t percpu__task_id(void);
PERCPU_HIDDEN void percpu__thread_force(enum percpu__force force);
/* The area that serves the calling thread if it is registered, wherever percpu__self leads now. */
PERCPU_HIDDEN struct percpu__rseq *percpu__true_area(void);
/* Before this thread's storage is used by another task: no sections until percpu__self is set to what this returned. */
PERCPU_HIDDEN struct percpu__rseq *percpu__lend_thread(void);

/* Finds the number of possible CPUs; sets *source. @sysfs is the file to read first. */
PERCPU_HIDDEN unsigned percpu__topology(const char *sysfs, const char **source);
/* Highest number in a kernel CPU list such as "0-3,8", or -1 if it is not one. */
PERCPU_HIDDEN long percpu__parse_cpu_list(const char *text);

static inline enum percpu_mode percpu__mode(void)
{
	return percpu__process.about.mode;
}

#endif
