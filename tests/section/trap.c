/* SPDX-License-Identifier: MIT */
/*
 * Interrupts every section in front of every instruction, and lets somebody else change the same data meanwhile.
 *
 *   trap [--one-way] [DISASSEMBLY]  the sections of sections.c and of the library: none may go wrong
 *   trap-control [DISASSEMBLY]      those of broken.c: each must be found wrong
 *
 * For each entry and case, a first run finds the sections it goes through, a second steps through each of them with the
 * section disarmed (the kernel aborts a section that is interrupted, so otherwise there would be no second step), which
 * gives the instructions in the order they are executed. Then, for each of these: interrupted there, interfered with in
 * each way, let go. An instruction's first visit is reached by a planted trap; later turns of a loop by stepping
 * disarmed to them and arming again. Also interrupted in front of the instruction that arms, and behind the commit.
 *
 * Wrong is: data that are not exact; a section interrupted inside that did not abort, or behind its commit that did; a
 * section that is not armed when its first instruction runs; an attempt that was aborted and says otherwise.
 * Never reached is: an instruction inside a section, as the disassembler sees it, that no run stood at.
 *
 * With --one-way each instruction is interfered with in one way only, the ways taking turns.
 *
 * DISASSEMBLY is the output of `objdump -dw` for this program, where that cannot be run; unused where all instructions
 * have one width.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <percpu/csection.h>

#include "arch.h"
#include "harness.h"

#define MOST_STEPS  400 /* instructions that one pass through a section executes */
#define MOST_WIDTH  200 /* instructions in a section */
#define MOST_PATH   8   /* sections that one operation goes through */
#define MOST_MISSES 100 /* rounds in a row in which the kernel's own interruptions came first */

typedef const struct percpu__descriptor section;

/*
 * Where a section's instructions begin to be executed, and how it is armed. Of one in assembly: the instruction in front of
 * its range, and the first of it. One whose body is in C begins in its tail, which lies inside the range and behind the
 * body: what comes before it is armed may abort, by the descriptor of its last use, or not.
 */
struct start {
	uintptr_t before[8];
	unsigned befores;
	uintptr_t first;
};
static struct start *starts;

/* One way through one section. */
struct pass {
	unsigned entry, which, path_length;
	section *path[MOST_PATH], *target;
	const struct start *start; /* the target's */
	unsigned steps;
	uintptr_t at[MOST_STEPS + 1];
};

enum place { BEFORE, INSIDE, BEHIND };

static unsigned long points, bad, never;
static unsigned *wrong_of_entry; /* how often, for each entry */
static bool **stood_at;          /* for each section, for each of its bytes */
static bool *passed;             /* for each section */
static bool one_way;

static bool inside(section *s, uintptr_t ip)
{
	return ip - s->start < s->length;
}

static void complain(const struct pass *p, uintptr_t at, enum interference how, const char *what)
{
	wrong_of_entry[p->entry]++;
	if (must_be_wrong || bad++ >= 20)
		return;
	printf("wrong: %s, case %u, section at %#lx%s, at its byte %ld, while stopped: %s: %s\n",
	       entries[p->entry].name, p->which, (unsigned long)p->target->start,
	       p->target == p->path[0] ? "" : " (the library's)", (long)(at - p->target->start),
	       interference_names[how], what);
}

static void missed(const struct pass *p, const char *what)
{
	if (must_be_wrong)
		return; /* a broken one may well never come by */
	never++;
	printf("never reached: %s, case %u, section at %#lx: %s\n", entries[p->entry].name, p->which,
	       p->target ? (unsigned long)p->target->start : 0, what);
}

static void begin(const struct pass *p, enum interference how)
{
	control->entry = p->entry;
	control->which = p->which;
	control->how = how;
	watch("%s, case %u, %s", entries[p->entry].name, p->which, interference_names[how]);
}

/* Runs the round to its end. */
static void end_round(uintptr_t ip)
{
	unplant_all();
	while (!is_parked(ip))
		ip = go_on(0);
}

static bool on_path(const struct pass *p, section *s)
{
	for (unsigned i = 0; i < p->path_length; i++)
		if (p->path[i] == s)
			return true;
	return false;
}

static uintptr_t first_of(section *s)
{
	return starts[s - __start___rseq_cs].first;
}

/* Runs to the target's first instruction, through the sections before it. */
static bool reach(const struct pass *p, uintptr_t at, uintptr_t *ip)
{
	for (unsigned i = 0; i < p->path_length && p->path[i] != p->target; i++)
		plant(first_of(p->path[i]));
	plant(at);
	do
		*ip = go_on(0);
	while (*ip != at && !is_parked(*ip));
	unplant_all();
	return *ip == at;
}

/* Which sections the entry goes through when each of them is interrupted. */
static void find_path(struct pass *p)
{
	uintptr_t ip;

	p->path_length = 0;
	begin(p, NOTHING);
	for (section *s = __start___rseq_cs; s < __stop___rseq_cs; s++)
		plant(first_of(s));
	while (!is_parked(ip = go_on(0)))
		for (section *s = __start___rseq_cs; s < __stop___rseq_cs; s++)
			if (ip == first_of(s) && !on_path(p, s) && p->path_length < MOST_PATH)
				p->path[p->path_length++] = s;
	unplant_all();
}

/* Steps through the target, disarmed. Returns whether it was reached. */
static bool find_steps(struct pass *p)
{
	uintptr_t ip;

	begin(p, NOTHING);
	if (!reach(p, p->start->first, &ip)) {
		end_round(ip);
		return false;
	}
	arm(0);
	p->steps = 0;
	while (inside(p->target, ip) && p->steps < MOST_STEPS) {
		p->at[p->steps++] = ip;
		ip = single_step();
	}
	p->at[p->steps] = ip; /* behind the commit, or where it left */
	end_round(ip);
	if (control->wrong)
		complain(p, p->start->first, NOTHING, control->wrong);
	return true;
}

static bool first_visit(const struct pass *p, unsigned step)
{
	for (unsigned i = 0; i < step; i++)
		if (p->at[i] == p->at[step])
			return false;
	return true;
}

/* Stops the subject at a step of the pass. */
static bool stand_at(const struct pass *p, enum place place, unsigned step, uintptr_t *ip)
{
	if (place == BEFORE)
		return reach(p, p->start->before[step], ip);
	if (first_visit(p, step))
		return reach(p, p->at[step], ip);
	if (!reach(p, p->start->first, ip))
		return false;
	arm(0);
	for (unsigned i = 0; i < step; i++)
		*ip = single_step();
	if (*ip != p->at[step])
		return false;
	arm((uint64_t)(uintptr_t)p->target);
	return true;
}

/* One interruption. Returns false if the subject did not come by. */
static bool interrupt(const struct pass *p, enum place place, unsigned step, enum interference how)
{
	section *s = p->target;
	bool aborted = false;
	uintptr_t ip, at;
	int signal = how == BY_HANDLER ? SIGUSR1 : 0;

	begin(p, how);
	if (!stand_at(p, place, step, &ip)) {
		end_round(ip);
		return false;
	}
	at = ip;
	points++;
	if (place == INSIDE && armed() != (uint64_t)(uintptr_t)s)
		complain(p, at, how, "the section runs without being armed");
	if (how != NOTHING && how != BY_HANDLER)
		let_rival();
	plant(s->abort);
	if (place == BEFORE)
		plant(p->start->first);
	for (ip = go_on(signal); !is_parked(ip); ip = go_on(0)) {
		aborted |= ip == s->abort;
		if (ip == p->start->first && armed() != (uint64_t)(uintptr_t)s)
			complain(p, at, how, "interrupted in front of it, it then runs without being armed");
	}
	unplant_all();
	if (control->wrong)
		complain(p, at, how, control->wrong);
	else if (place == INSIDE && !aborted)
		complain(p, at, how, "it was not aborted");
	else if (place == INSIDE && entries[p->entry].tries && control->rc != PERCPU__LEFT)
		complain(p, at, how, "it was aborted, and says otherwise");
	else if (place == BEHIND && aborted && !entries[p->entry].repeats &&
		 how != BY_HANDLER) /* (a handler's own section may abort by chance) */
		complain(p, at, how, "it was aborted behind its commit");
	else if (place == INSIDE)
		stood_at[s - __start___rseq_cs][at - s->start] = true;
	return true;
}

static void try_place(const struct pass *p, enum place place, unsigned step)
{
	bool again = place == INSIDE && !first_visit(p, step);

	for (enum interference how = NOTHING; how < INTERFERENCES; how++) {
		unsigned misses = 0;

		/* Later turns of a loop differ from the first by registers that are lost either way. */
		if (again && how != PLAINLY && how != BY_HANDLER)
			continue;
		if (one_way && place == INSIDE && how != (step + p->which) % INTERFERENCES)
			continue;
		while (!interrupt(p, place, step, how) && misses < MOST_MISSES)
			misses++;
		if (misses == MOST_MISSES) {
			missed(p, "the kernel's own interruptions came first, again and again");
			return;
		}
	}
}

static void test_section(struct pass *p)
{
	unsigned misses = 0;

	passed[p->target - __start___rseq_cs] = true;
	while (!find_steps(p))
		if (misses++ == MOST_MISSES) {
			missed(p, "the operation does not come by");
			return;
		}
	if (p->steps == MOST_STEPS) {
		missed(p, "it is too long");
		return;
	}
	for (unsigned i = 0; i < p->start->befores; i++)
		try_place(p, BEFORE, i);
	for (unsigned step = 0; step < p->steps; step++)
		try_place(p, INSIDE, step);
	if (p->at[p->steps] == p->target->start + p->target->length)
		try_place(p, BEHIND, p->steps);
}

/* The instructions of the tail of a section in C, from its entry until it is armed. */
static void find_start_in_tail(section *s, uintptr_t entry)
{
	struct start *start = &starts[s - __start___rseq_cs];
	uintptr_t at[sizeof start->before / sizeof *start->before];
	unsigned count = instructions(entry, s->start + s->length, at, sizeof at / sizeof *at);

	start->befores = 0;
	while (start->befores < count && start->befores < C_ARMS) {
		start->before[start->befores] = at[start->befores];
		stood_at[s - __start___rseq_cs][at[start->befores++] - s->start] = true;
	}
	start->first = at[start->befores];
}

static void find_starts(void)
{
	for (section *s = __start___rseq_cs; s < __stop___rseq_cs; s++) {
		struct start *start = &starts[s - __start___rseq_cs];

		start->first = s->start;
		start->before[0] = instruction_before(s->start);
		start->befores = 1;
	}
	for (const struct percpu__c_record *r = __start___percpu_c_sections; r < __stop___percpu_c_sections; r++)
		find_start_in_tail(r->descriptor, (uintptr_t)r->entry);
}

/* Compilers align what comes behind a jump; nobody comes by there. */
static bool is_padding(uintptr_t at)
{
	const unsigned char *byte = (const unsigned char *)at;

	if (FIXED_WIDTH)
		return *(const uint32_t *)at == NOP;
	while (*byte == 0x66 || *byte == 0x2e)
		byte++;
	return *byte == 0x90 || (byte[0] == 0x0f && byte[1] == 0x1f);
}

/* Instructions that no run stood at. */
static void count_unreached(void)
{
	uintptr_t begins[MOST_WIDTH];

	for (section *s = __start___rseq_cs; s < __stop___rseq_cs; s++) {
		if (&only_sections && !passed[s - __start___rseq_cs])
			continue;
		unsigned count = instructions(s->start, s->start + s->length, begins, MOST_WIDTH);

		if (!count || count == MOST_WIDTH) {
			never++;
			printf("cannot tell the instructions of the section at %#lx\n", (unsigned long)s->start);
		}
		for (unsigned i = 0; i < count; i++) {
			if (stood_at[s - __start___rseq_cs][begins[i] - s->start] || is_padding(begins[i]))
				continue;
			never++;
			printf("never reached: section at %#lx, its byte %lu\n", (unsigned long)s->start,
			       (unsigned long)(begins[i] - s->start));
		}
	}
}

/* Where the program has others than those under test. */
static void count_passed(size_t sections)
{
	unsigned count = 0;

	if (!&only_sections)
		return;
	for (size_t i = 0; i < sections; i++)
		count += passed[i];
	if (count == only_sections)
		return;
	never++;
	printf("the operations go through %u sections, not %u\n", count, only_sections);
}

static int report_control(void)
{
	unsigned missed_ones = 0;

	for (unsigned e = 0; e < entry_count; e++) {
		bool right = strncmp(entries[e].name, "right", 5) == 0;

		printf("%-40s wrong %u times\n", entries[e].name, wrong_of_entry[e]);
		missed_ones += (wrong_of_entry[e] != 0) == right;
	}
	printf("sections %zu, trap points %lu, misjudged %u\n", (size_t)entry_count, points, missed_ones);
	return missed_ones != 0;
}

int main(int argc, char **argv)
{
	size_t sections = (size_t)(__stop___rseq_cs - __start___rseq_cs);
	struct pass *p = calloc(1, sizeof *p);

	one_way = argc > 1 && !strcmp(argv[1], "--one-way");
	instructions_from(argc > 1 + one_way ? argv[1 + one_way] : NULL);
	wrong_of_entry = calloc(entry_count, sizeof *wrong_of_entry);
	starts = calloc(sections, sizeof *starts);
	stood_at = calloc(sections, sizeof *stood_at);
	passed = calloc(sections, sizeof *passed);
	if (!p || !wrong_of_entry || !starts || !stood_at || !passed)
		return 1;
	for (size_t i = 0; i < sections; i++) {
		stood_at[i] = calloc(__start___rseq_cs[i].length, 1);
		if (!stood_at[i])
			return 1;
	}
	find_starts();
	tracer_start(NORMAL);
	if (!control->area) {
		tracer_end();
		printf("no sections in this mode\n");
		return 77;
	}
	for (p->entry = 0; p->entry < entry_count; p->entry++) {
		for (p->which = 0; p->which < entries[p->entry].kind->cases; p->which++) {
			find_path(p);
			if (!p->path_length)
				missed(p, "the operation goes through no section");
			for (unsigned i = 0; i < p->path_length; i++) {
				p->target = p->path[i];
				p->start = &starts[p->target - __start___rseq_cs];
				test_section(p);
			}
		}
	}
	tracer_end();
	if (must_be_wrong)
		return report_control();
	count_unreached();
	count_passed(sections);
	printf("sections %zu, trap points %lu, bad %lu, never reached %lu\n", sections, points, bad, never);
	return bad || never;
}
