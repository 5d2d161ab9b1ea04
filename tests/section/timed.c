/* SPDX-License-Identifier: MIT */
/*
 * Interrupts timed code in front of every instruction, from before its begin until behind its end, one measurement in
 * another included, and lets a handler measure or run a section there.
 *
 * Whichever measurement's descriptor was armed when the thread was stopped must say so, and so must the one around it. A
 * stop elsewhere must not be told by all: a measurement that is never clean would pass the first rule. The broken ones put
 * descriptors in or back by a load and a store; they must be found out, by a false "clean".
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <percpu/timed.h>

#include "arch.h"
#include "harness.h"

#define NOINLINE   static __attribute__((noinline))
#define MOST_STEPS 2000
#define TRIES      60 /* of a round that should be clean; the machine may have other work */

enum handler { NO_HANDLER, MEASURES, MEASURES_WITHOUT_END, RUNS_A_SECTION, HANDLERS };
static const char *const handler_names[HANDLERS] = { "no signal", "a handler that measures",
						     "a handler that begins to measure", "a handler with a section" };

/* What the subject tells of a round. */
static struct seen {
	struct percpu_timed outer, inner;
	struct percpu_timed_result of_outer, of_inner;
	bool nested;
} * seen;

NOINLINE void plain(void)
{
	percpu_timed_begin(&seen->outer);
	percpu_timed_end(&seen->outer, &seen->of_outer);
}

NOINLINE void nested(void)
{
	percpu_timed_begin(&seen->outer);
	percpu_timed_begin(&seen->inner);
	percpu_timed_end(&seen->inner, &seen->of_inner);
	percpu_timed_end(&seen->outer, &seen->of_outer);
	seen->nested = true;
}

/* Remembers what was there and then stores: what the kernel did in between is lost, and undone by end. */
NOINLINE void arms_by_two(void)
{
	struct percpu__rseq *area = percpu__self;

	percpu_timed_begin(&seen->outer);
	seen->inner = seen->outer;
	seen->inner.marker = (uint64_t)(uintptr_t)&percpu__timed_markers[percpu__thread.timed++ % PERCPU__MARKERS];
	seen->inner.previous = *(volatile uint64_t *)&area->rseq_cs;
	*(volatile uint64_t *)&area->rseq_cs = seen->inner.marker;
	percpu_timed_end(&seen->inner, &seen->of_inner);
	percpu_timed_end(&seen->outer, &seen->of_outer);
	seen->nested = true;
}

/* Looks and then puts back. */
NOINLINE void ends_by_two(void)
{
	struct percpu__rseq *area = percpu__self;

	percpu_timed_begin(&seen->outer);
	percpu_timed_begin(&seen->inner);
	seen->of_inner.flags = PERCPU_TIMED_INTERRUPTED;
	if (*(volatile uint64_t *)&area->rseq_cs == seen->inner.marker) {
		seen->of_inner.flags = 0;
		*(volatile uint64_t *)&area->rseq_cs = seen->inner.previous;
	}
	percpu_timed_end(&seen->outer, &seen->of_outer);
	seen->nested = true;
}

static const struct {
	const char *name;
	void (*run)(void);
	bool broken;
} runs[] = {
	{ "one measurement", plain, false },
	{ "one in another", nested, false },
	{ "control: armed by two instructions", arms_by_two, true },
	{ "control: put back by two instructions", ends_by_two, true },
};
#define RUNS (sizeof runs / sizeof *runs)

/* ---- the subject */

static struct percpu_counter counter;

static void on_signal(int signal)
{
	struct percpu_timed_result result;
	struct percpu_timed timed;

	(void)signal;
	if (control->which == RUNS_A_SECTION) {
		percpu_counter_inc(&counter);
		return;
	}
	percpu_timed_begin(&timed);
	if (control->which == MEASURES)
		percpu_timed_end(&timed, &result);
}

__attribute__((noinline)) void park(void)
{
	__asm__ __volatile__(TRAP_ASM ::: "memory");
}

__attribute__((noinline)) void finish(void)
{
	__asm__ __volatile__("" ::: "memory");
}

void world_run(enum subject subject, int cpu)
{
	struct sigaction act = { .sa_handler = on_signal };

	(void)subject, (void)cpu;
	sigaction(SIGUSR1, &act, NULL);
	if (percpu_counter_init(&counter))
		_exit(1);
	percpu_counter_inc(&counter); /* registers */
	control->area = (uintptr_t)percpu__self;
	for (;;) {
		park();
		memset(seen, 0, sizeof *seen);
		runs[control->entry].run();
		finish();
	}
}

/* ---- the tracer */

static uintptr_t at[MOST_STEPS];
static unsigned steps;
static unsigned long points, armed_points, wrong_of[RUNS];

static void begin(unsigned run, enum handler handler)
{
	control->entry = run;
	control->which = handler;
	watch("%s, %s", runs[run].name, handler_names[handler]);
}

static bool known(uintptr_t ip)
{
	for (unsigned i = 0; i < steps; i++)
		if (at[i] == ip)
			return true;
	return false;
}

/* Each instruction once. */
static void learn(unsigned run)
{
	uintptr_t ip = (uintptr_t)runs[run].run;

	begin(run, NO_HANDLER);
	plant(ip);
	while (go_on(0) != ip)
		;
	for (steps = 0; ip != (uintptr_t)&finish && steps < MOST_STEPS; ip = single_step())
		if (!known(ip))
			at[steps++] = ip;
	while (!is_parked(go_on(0)))
		;
}

/* Returns whether the outer measurement said that nothing came in between. */
static bool interrupt(unsigned run, uintptr_t where, enum handler handler)
{
	uint64_t was;
	uintptr_t ip;
	bool told = true;

	begin(run, handler);
	plant(where);
	do
		ip = go_on(0);
	while (ip != where && !is_parked(ip));
	unplant_all();
	if (ip != where)
		return true; /* a way that is only taken after an interruption */
	points++;
	was = armed();
	while (!is_parked(go_on(handler ? SIGUSR1 : 0)))
		;
	if (was && was == seen->outer.marker)
		told = seen->of_outer.flags != 0;
	else if (was && seen->nested && was == seen->inner.marker)
		told = seen->of_outer.flags && seen->of_inner.flags;
	else
		return !seen->of_outer.flags;
	armed_points++;
	if (!told) {
		wrong_of[run]++;
		if (!runs[run].broken)
			printf("wrong: %s, at its byte %ld, %s: says that nothing came in between\n", runs[run].name,
			       (long)(where - (uintptr_t)runs[run].run), handler_names[handler]);
	}
	return true;
}

int main(void)
{
	unsigned long bad = 0;

	seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (seen == MAP_FAILED)
		return 1;
	tracer_start(NORMAL);
	for (unsigned run = 0; run < RUNS; run++) {
		learn(run);
		for (unsigned i = 0; i < steps; i++) {
			for (enum handler handler = NO_HANDLER; handler < HANDLERS; handler++) {
				unsigned tries = 0;

				while (!interrupt(run, at[i], handler) && tries < TRIES)
					tries++;
				if (tries == TRIES && !runs[run].broken) {
					printf("wrong: %s, at its byte %ld: never clean, though nothing was measured there\n",
					       runs[run].name, (long)(at[i] - (uintptr_t)runs[run].run));
					bad++;
				}
			}
		}
		printf("%-40s %3u instructions, wrong %lu times\n", runs[run].name, steps, wrong_of[run]);
		bad += runs[run].broken ? wrong_of[run] == 0 : wrong_of[run];
	}
	tracer_end();
	printf("trap points %lu, armed %lu, misjudged %lu\n", points, armed_points, bad);
	return bad || !armed_points;
}
