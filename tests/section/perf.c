/* SPDX-License-Identifier: MIT */
/*
 * Interrupts the section that reads a performance counter in front of every instruction, and lets the kernel's part be
 * played meanwhile: the event moves to another counter, and its page says so, without the lock that a loop would rely on.
 * The counters are made up (fake_pmc.h).
 *
 * Interrupted inside, an attempt must say that it left; whatever it gives must be of one state. One that is never armed must
 * be found out, by a count of parts that do not belong together.
 */
#include "fake_pmc.h"

#include <linux/perf_event.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <percpu/perf.h>

#include "arch.h"
#include "harness.h"

#define NOINLINE   static __attribute__((noinline))
#define MOST_STEPS 400
#define BEFORE     1005
#define AFTER      2007

struct fake_pmc fake_pmc;

static struct perf_event_mmap_page page;
static const void **cpus;
static struct seen {
	uint64_t out[2];
	int rc;
} * seen;

NOINLINE void of_thread(void)
{
	seen->rc = percpu__try_perf(NULL, &page, seen->out);
}

NOINLINE void of_cpu(void)
{
	seen->rc = percpu__try_perf(cpus, NULL, seen->out);
}

/* The same instructions, but published nowhere. */
NOINLINE void never_armed(void)
{
	uint64_t *out = seen->out, nowhere[4] = { 0 };
	void *apart = nowhere;

	seen->rc = PERCPU__LEFT;
	__asm__ __volatile__ goto(PERCPU__DESCRIPTOR PERCPU__A_ARM("3b", "%[apart]") "1:\n\t" PERCPU__A_PERF_PAGE(
					  "page") PERCPU__A_PERF("4f") PERCPU__A_PERF_COMMIT("out") PERCPU__LEAVE
				  :
				  : [apart] "r"(apart), [page] "r"(&page), [out] "r"(out)
				  : "memory", PERCPU__SCRATCH, PERCPU__SCRATCH_PERF
				  : left);
	seen->rc = PERCPU__DONE;
left:
	return;
}

static const struct {
	const char *name;
	void (*run)(void);
	bool broken;
} runs[] = {
	{ "a thread's counter", of_thread, false },
	{ "a CPU's counter", of_cpu, false },
	{ "control: never armed", never_armed, true },
};
#define RUNS (sizeof runs / sizeof *runs)

/* ---- the child */

static void set_up(void)
{
	fake_pmc.value[0] = 5;
	fake_pmc.value[1] = 0xdead;
	page.index = 1;
	page.offset = 1000;
}

static void change(void)
{
	fake_pmc.value[0] = 0xbeef;
	fake_pmc.value[1] = 7;
	page.index = 2;
	page.offset = 2000;
}

static void *rival(void *arg)
{
	for (;;) {
		while (sem_wait(&control->go))
			;
		change();
		__atomic_store_n(&control->busy, false, __ATOMIC_RELEASE);
		sem_post(&control->done);
	}
	return arg;
}

static void on_signal(int signal)
{
	(void)signal;
	change();
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
	pthread_t thread;

	(void)subject, (void)cpu;
	sigaction(SIGUSR1, &act, NULL);
	page.capabilities = 4;
	page.pmc_width = 48;
	cpus = percpu_alloc(16, 16);
	if (!cpus || pthread_create(&thread, NULL, rival, NULL))
		_exit(1);
	for (unsigned i = 0; i < percpu_possible_cpus(); i++)
		*percpu_ptr(cpus, i) = &page;
	percpu_this_add((uint64_t *)(void *)cpus + 1, 0); /* registers */
	control->area = (uintptr_t)percpu__self;
	for (;;) {
		park();
		set_up();
		memset(seen, 0, sizeof *seen);
		runs[control->entry].run();
		finish();
	}
}

/* ---- the tracer */

static uintptr_t at[MOST_STEPS];
static unsigned steps;
static unsigned long points, inside_points, wrong_of[RUNS];

static void begin(unsigned run, enum interference how)
{
	control->entry = run;
	watch("%s, %s", runs[run].name, interference_names[how]);
}

static void learn(unsigned run)
{
	uintptr_t ip = (uintptr_t)runs[run].run;

	begin(run, NOTHING);
	plant(ip);
	while (go_on(0) != ip)
		;
	/* Disarmed at each step: the kernel would abort what is interrupted, and there would be no next instruction. */
	for (steps = 0; ip != (uintptr_t)&finish && steps < MOST_STEPS; ip = single_step()) {
		at[steps++] = ip;
		arm(0);
	}
	while (!is_parked(go_on(0)))
		;
}

static bool is_inside(uintptr_t ip)
{
	uint64_t descriptor = armed();

	for (struct percpu__descriptor *s = __start___rseq_cs; s < __stop___rseq_cs; s++)
		if (descriptor == (uint64_t)(uintptr_t)s && ip - s->start < s->length)
			return true;
	return false;
}

static void complain(unsigned run, uintptr_t where, enum interference how, const char *what)
{
	wrong_of[run]++;
	if (!runs[run].broken)
		printf("wrong: %s, at its byte %ld, while stopped: %s: %s\n", runs[run].name,
		       (long)(where - (uintptr_t)runs[run].run), interference_names[how], what);
}

static void interrupt(unsigned run, uintptr_t where, enum interference how)
{
	uintptr_t ip;
	bool inside;

	begin(run, how);
	plant(where);
	do
		ip = go_on(0);
	while (ip != where && !is_parked(ip));
	unplant_all();
	if (ip != where)
		return; /* the kernel's own interruption came first */
	points++;
	inside = is_inside(ip);
	inside_points += inside;
	if (how == BY_THREAD)
		let_rival();
	while (!is_parked(go_on(how == BY_HANDLER ? SIGUSR1 : 0)))
		;
	if (inside && seen->rc != PERCPU__LEFT)
		complain(run, where, how, "it was not aborted");
	else if (seen->rc == PERCPU__DONE && seen->out[0] != BEFORE && (seen->out[0] != AFTER || how == NOTHING))
		complain(run, where, how, "parts that do not belong together");
	else if (seen->rc != PERCPU__DONE && seen->out[0])
		complain(run, where, how, "it left, and has given a count");
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
			interrupt(run, at[i], NOTHING);
			interrupt(run, at[i], BY_THREAD);
			interrupt(run, at[i], BY_HANDLER);
		}
		printf("%-40s %3u instructions, wrong %lu times\n", runs[run].name, steps, wrong_of[run]);
		bad += runs[run].broken ? wrong_of[run] == 0 : wrong_of[run];
	}
	tracer_end();
	printf("trap points %lu, inside %lu, misjudged %lu\n", points, inside_points, bad);
	return bad || inside_points < 60;
}
