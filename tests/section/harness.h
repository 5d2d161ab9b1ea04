/* SPDX-License-Identifier: MIT */
/*
 * The two halves of the tests that stop a thread at a chosen instruction.
 *
 * A child process (world.c) holds the data. Its first thread, the *subject*, does one operation a round and checks the
 * outcome; it is traced. A second thread, the *rival*, is not traced and changes the same data while the subject stands
 * still. The parent (tracer.c) decides where the subject stops and what happens meanwhile. They share struct control.
 *
 * A round: the subject parks (a trap instruction in park()), the tracer names an entry, a case and a way to interfere,
 * plants traps and lets it go; it sets the data up, calls the entry's function, then finish(), then checks every copy.
 */
#ifndef TESTS_SECTION_HARNESS_H
#define TESTS_SECTION_HARNESS_H

#include <semaphore.h>
#include <stdbool.h>
#include <sys/types.h>

#include <percpu/stack.h>
#include <percpu/histogram.h>
#include <percpu/opv.h>

#include "rseq/thread.h"

/* What happens while the subject stands still. */
enum interference {
	NOTHING,
	PLAINLY,    /* as another thread's section on this copy would: plain stores */
	BY_VECTOR,  /* percpu_opv() or percpu_stack_steal() on the subject's copy */
	BY_THREAD,  /* another registered thread's operation, on the same CPU */
	UNDER_GATE, /* a slow change that begins now and ends after the subject went on */
	BY_HANDLER, /* an operation in a signal handler of the subject */
	INTERFERENCES,
};
extern const char *const interference_names[INTERFERENCES];

/* Arguments and results of one operation. */
struct call {
	uint64_t *p;
	const uint64_t *q;
	const uint32_t *flag, *open;
	ptrdiff_t *offset;
	uint64_t n, expected, expected2, desired;
	unsigned char *dst;
	const unsigned char *src;
	size_t len;
	uintptr_t nil, link_offset;
	uintptr_t first, *last;
	struct percpu_stack *stack;
	struct percpu_counter *counter;
	struct percpu_histogram *histogram;
	int rc; /* PERCPU__DONE, PERCPU__DIFFERS or PERCPU__LEFT */
	uintptr_t out;
};

typedef void operation(struct call *call);

/* A kind of data: how to set it up, interfere with it, and check it. */
struct kind {
	unsigned cases;
	void (*setup)(unsigned which, struct call *call);
	/* On one copy, or (BY_THREAD, BY_HANDLER) on whichever the caller is. */
	void (*interfere)(enum interference how, unsigned index);
	/* NULL if exact, else what is wrong. */
	const char *(*check)(const struct call *call);
};
extern const struct kind sum_kind, count_kind, unless_kind, store_kind, store2_kind, copy_kind, take_kind,
	take_all_kind, put_kind, chain_kind, exchange_kind;

/* One operation to test. */
struct entry {
	const char *name;
	const struct kind *kind;
	operation *run;
	operation *rival;                 /* the same on public functions */
	operation *take, *put, *exchange; /* lists: what rivals do */
	unsigned char indexed;            /* enum percpu__by */
	bool tries;                       /* a single attempt: may leave */
	bool repeats;                     /* may go through one section more than once */
	bool offset;                      /* adds elsewhere, through an offset */
	bool with_nil;                    /* lists end with an address of their own instead of NULL */
	unsigned char object;             /* which of world.c's objects: 0, or COUNTER, HISTOGRAM */
	uint64_t n;                       /* what is added, where the function itself says so; or 0 */
};
enum { CELL, COUNTER, HISTOGRAM };
extern const struct entry entries[];
extern const unsigned entry_count;
extern const bool must_be_wrong; /* they are there to be found out */
/* How many sections the entries go through, where that is not every one in the program. */
extern const unsigned only_sections __attribute__((weak));

/* How the subject was made. */
enum subject { NORMAL, FORCED_GATE, FORCED_REMAINDER, UNREGISTERED };

struct control {
	/* Set by the tracer while the subject is parked. */
	unsigned entry, which;
	enum interference how;
	/* Set by the child. */
	uintptr_t area;    /* the subject's registered words; 0 if it cannot run sections */
	const char *wrong; /* of the last round; the same address in both processes */
	int rc;
	unsigned changes; /* interferences that took place */
	bool busy;        /* the rival still works */
	bool handling;    /* the subject is in its signal handler */
	sem_t go, done;
};
extern struct control *control;

/* A rival holds the gate: lets the subject go on, and gives it time to meet that. */
void harness_held(void);
/* The child's main function. Never returns. */
void world_run(enum subject subject, int cpu) __attribute__((noreturn));
/* Where the subject stops by itself. */
void park(void);
void finish(void);

/* tracer.c */
extern pid_t subject_pid;
struct percpu__descriptor {
	uint32_t version, flags;
	uint64_t start, length, abort;
};
extern struct percpu__descriptor __start___rseq_cs[], __stop___rseq_cs[];

/* Starts the child; the subject is parked when this returns. The tracer and the child's threads share one CPU. */
void tracer_start(enum subject subject);
void tracer_end(void);
void plant(uintptr_t address);
void unplant_all(void);
/* Let the subject go, with a signal or 0, until it stops; returns the address of the next instruction. */
uintptr_t go_on(int signal);
uintptr_t single_step(void);
bool is_parked(uintptr_t ip);
uint64_t armed(void);
void arm(uint64_t descriptor);
/* Lets the rival do its change and waits until it is done (or, under a gate, half done). */
void let_rival(void);
/* The addresses at which instructions begin in [from, to), in order. Returns how many, at most max. */
unsigned instructions(uintptr_t from, uintptr_t to, uintptr_t *out, unsigned max);
/* The address of the instruction before this one; 0 if unknown. */
uintptr_t instruction_before(uintptr_t address);
void instructions_from(const char *file);
/* Names the round, for the message when it never ends. */
void watch(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
