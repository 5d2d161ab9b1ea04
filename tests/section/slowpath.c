/* SPDX-License-Identifier: MIT */
/*
 * Interrupts every operation, the slow path included, at every instruction by a signal whose handler works on the same
 * data.
 *
 * One thread for each way that operations can take: as it comes, with the gate forced, with the remainder forced, in a
 * thread that the kernel does not serve (mode libc only, where a thread can give its registration back). In mode none
 * there is one way only. Each public operation and case is stepped through once to learn its instructions. Then:
 *   single  for each instruction: interrupted there, once, the handler runs, all goes on at full speed
 *   storm   one run, interrupted at each of its instructions
 * Where signals are blocked they stay pending, as they would. What counts are exact data, and an end: a round that takes
 * half a minute has met a deadlock.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

#define MOST_STEPS 100000
#define MOST_WRONG 20

static const struct {
	const char *name;
	enum subject subject;
} ways[] = {
	{ "as it comes", NORMAL },
	{ "forced gate", FORCED_GATE },
	{ "forced remainder", FORCED_REMAINDER },
	{ "unregistered", UNREGISTERED },
};
static uintptr_t *at;
static unsigned steps;
static unsigned long points, bad;

static void begin(unsigned entry, unsigned which, const char *way, const char *kind)
{
	control->entry = entry;
	control->which = which;
	control->how = BY_HANDLER;
	watch("%s, case %u, %s, %s", entries[entry].name, which, way, kind);
	plant((uintptr_t)entries[entry].run);
	while (go_on(0) != (uintptr_t)entries[entry].run)
		;
}

/* @signal: with which it goes on, or 0. */
static void end(unsigned entry, unsigned which, const char *way, long where, int signal)
{
	for (; !is_parked(go_on(signal)); signal = 0)
		;
	if (control->wrong && bad++ < MOST_WRONG)
		printf("wrong: %s, case %u, %s, at its instruction %ld: %s\n", entries[entry].name, which, way, where,
		       control->wrong);
}

static void learn(unsigned entry, unsigned which, const char *way)
{
	uintptr_t ip = (uintptr_t)entries[entry].run;

	begin(entry, which, way, "learning");
	for (steps = 0; ip != (uintptr_t)&finish && steps < MOST_STEPS; ip = single_step())
		at[steps++] = ip;
	end(entry, which, way, -1, 0);
	if (steps == MOST_STEPS) {
		bad++;
		printf("wrong: %s, case %u, %s: no end after %u steps\n", entries[entry].name, which, way, steps);
	}
}

/* How often the run was here before. */
static unsigned earlier_visits(unsigned step)
{
	unsigned count = 0;

	for (unsigned i = 0; i < step; i++)
		count += at[i] == at[step];
	return count;
}

/* A run at full speed need not come by where a run in steps did: a section that is not interrupted does not leave. */
static void single(unsigned entry, unsigned which, const char *way, unsigned step)
{
	unsigned visits = earlier_visits(step);
	uintptr_t ip;

	begin(entry, which, way, "single");
	do {
		plant(at[step]);
		plant((uintptr_t)&finish); /* the check that follows may come by too */
		ip = step ? go_on(0) : at[0];
		if (ip != at[step])
			break;
		if (visits)
			ip = single_step();
	} while (visits--);
	unplant_all();
	points += ip == at[step];
	end(entry, which, way, step, ip == at[step] ? SIGUSR1 : 0);
}

/* Where the subject can go on after a signal: where it was, or where its section's abort leads. */
static void plant_return(uintptr_t ip)
{
	plant(ip);
	for (const struct percpu__descriptor *s = __start___rseq_cs; s < __stop___rseq_cs; s++)
		if (ip - s->start < s->length)
			plant(s->abort);
}

static void storm(unsigned entry, unsigned which, const char *way)
{
	uintptr_t ip = (uintptr_t)entries[entry].run, back;
	unsigned long count = 0;

	begin(entry, which, way, "storm");
	for (; ip != (uintptr_t)&finish && count < MOST_STEPS; count++) {
		plant_return(ip);
		back = go_on(SIGUSR1);
		/* The handler may come by here itself. */
		while (__atomic_load_n(&control->handling, __ATOMIC_RELAXED)) {
			unplant_all();
			single_step();
			plant_return(ip);
			back = go_on(0);
		}
		unplant_all();
		/* Where it was, step; where an abort leads, the next signal comes first. */
		ip = back == ip ? single_step() : back;
	}
	points += count;
	end(entry, which, way, -1, 0);
	if (count == MOST_STEPS) {
		bad++;
		printf("wrong: %s, case %u, %s: no end under constant signals\n", entries[entry].name, which, way);
	}
}

/* Variants share their slow path but for the index, cases but for what the handler does: two of each will do. */
static bool is_worth_it(const struct entry *e, unsigned which)
{
	if (e->tries || strstr(e->name, "id_release") || strstr(e->name, "cpu_relaxed") || strstr(e->name, "_shared"))
		return false;
	return which < 2 || (e->kind == &copy_kind && which == e->kind->cases - 2);
}

/* The variant by CPU number takes what else there is in its storm. */
static bool is_worth_each_instruction(const struct entry *e, unsigned which)
{
	return which == 0 && !strstr(e->name, "cpu_release");
}

static void test_way(enum subject subject, const char *way)
{
	unsigned long points_before = points, longest = 0;

	tracer_start(subject);
	for (unsigned e = 0; e < entry_count; e++) {
		for (unsigned which = 0; which < entries[e].kind->cases; which++) {
			if (!is_worth_it(&entries[e], which))
				continue;
			learn(e, which, way);
			longest = steps > longest ? steps : longest;
			for (unsigned step = 0; step < steps && is_worth_each_instruction(&entries[e], which); step++)
				single(e, which, way, step);
			storm(e, which, way);
		}
	}
	tracer_end();
	printf("%-16s  longest operation %5lu instructions, %6lu interruptions\n", way, longest,
	       points - points_before);
}

int main(void)
{
	struct percpu_description about;
	pid_t asks;
	enum percpu_mode mode;
	int status;

	at = calloc(MOST_STEPS, sizeof *at);
	if (!at)
		return 1;
	/* A child asks for the mode, since to ask is to be registered, and each subject's thread must be new. */
	asks = _Fork();
	if (!asks)
		_exit(percpu_describe(&about) ? 100 : (int)about.mode);
	if (asks < 0 || waitpid(asks, &status, 0) != asks || !WIFEXITED(status) || WEXITSTATUS(status) == 100)
		return 1;
	mode = (enum percpu_mode)WEXITSTATUS(status);
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
		if (ways[i].subject == NORMAL || mode == PERCPU_MODE_LIBC ||
		    (ways[i].subject != UNREGISTERED && mode == PERCPU_MODE_OWN))
			test_way(ways[i].subject, ways[i].name);
	free(at);
	printf("interruptions %lu, bad %lu\n", points, bad);
	return bad != 0;
}
