/* SPDX-License-Identifier: MIT */
/*
 * Reports about guarded objects.
 *
 * The signal's handler tells, gives the signal back its default action, and returns: so the access is made again and ends the
 * program where and as it would have ended without us. A handler that the program has installed is never replaced; one that
 * it installs later replaces this one, and may call it.
 */
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/sys.h"
#include "malloc/guard.h"
#include "malloc/report.h"

static uint32_t reporter; /* the task that has begun to report, which is the last thing that this process does */

static void put_bytes(struct percpu__writer *w, size_t bytes)
{
	percpu__write_number(w, bytes);
	percpu__write_text(w, bytes == 1 ? " byte" : " bytes");
}

static void put_stack(struct percpu__writer *w, const char *what, const struct percpu__trace *trace)
{
	percpu__write_text(w, what);
	percpu__write_number(w, trace->thread);
	percpu__write_text(w, ":\n");
	percpu__trace_put(w, trace);
}

/* One report of a process; another thread's is what follows from the first, or can wait for ever. */
static void begin(struct percpu__writer *w)
{
	uint32_t nobody = 0, me = (uint32_t)percpu__sys4(SYS_gettid, 0, 0, 0, 0);

	percpu__write_to(w, STDERR_FILENO);
	if (__atomic_compare_exchange_n(&reporter, &nobody, me, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) ||
	    nobody == me)
		return;
	for (int i = 0; i < 100; i++) {
		struct timespec tenth = { 0, 100000000 };

		percpu__sys4(SYS_nanosleep, (long)&tenth, 0, 0, 0);
	}
}

static void report(struct percpu__writer *w, const char *what, const char *verb, uintptr_t at, uint32_t number)
{
	const struct percpu__guard_place *place = &percpu__guard.places[number];
	uintptr_t object = place->object, end = object + place->size;

	percpu__write_text(w, "percpu-malloc: ");
	percpu__write_text(w, what);
	percpu__write_text(w, ": ");
	percpu__write_text(w, verb);
	percpu__write_text(w, " ");
	percpu__write_address(w, at);
	percpu__write_text(w, ", ");
	if (__atomic_load_n(&place->state, __ATOMIC_ACQUIRE) == PLACE_UNUSED) {
		percpu__write_text(w, "where no object has been yet\n");
		percpu__write_end(w);
		return;
	}
	if (at < object) {
		put_bytes(w, object - at);
		percpu__write_text(w, " before");
	} else if (at == object) {
		percpu__write_text(w, "the start of");
	} else if (at < end) {
		put_bytes(w, at - object);
		percpu__write_text(w, " into");
	} else if (at == end) {
		percpu__write_text(w, "just behind");
	} else {
		put_bytes(w, at - end);
		percpu__write_text(w, " behind");
	}
	percpu__write_text(w, " an object of ");
	put_bytes(w, place->size);
	percpu__write_text(w, " at ");
	percpu__write_address(w, object);
	percpu__write_text(w, "\n");
	percpu__write_end(w);
}

static void put_stacks(struct percpu__writer *w, const struct percpu__trace *here, uint32_t number)
{
	const struct percpu__guard_place *place = &percpu__guard.places[number];
	uint32_t state = __atomic_load_n(&place->state, __ATOMIC_ACQUIRE);

	put_stack(w, "  by thread ", here);
	if (state == PLACE_UNUSED)
		return;
	put_stack(w, "  allocated by thread ", &place->made);
	if (place->freed.count && state != PLACE_LIVE)
		put_stack(w, "  freed by thread ", &place->freed);
	percpu__write_end(w);
}

void percpu__report_die(const char *what, const char *verb, const void *address, uint32_t number)
{
	struct percpu__trace here;
	struct percpu__writer w;

	begin(&w);
	report(&w, what, verb, (uintptr_t)address, number);
	percpu__unwind(&here);
	put_stacks(&w, &here, number);
	abort();
}

/* Of the two places beside a guard page: the one whose object is meant more likely. */
static uint32_t nearest(uintptr_t page, uintptr_t at, bool *behind)
{
	uint32_t left = page ? (uint32_t)(page / 2 - 1) : 0, right = (uint32_t)(page / 2);
	bool left_lives, right_lives;

	if (page == 0 || right >= percpu__guard.count) {
		*behind = page != 0;
		return *behind ? left : right;
	}
	left_lives = __atomic_load_n(&percpu__guard.places[left].state, __ATOMIC_ACQUIRE) == PLACE_LIVE;
	right_lives = __atomic_load_n(&percpu__guard.places[right].state, __ATOMIC_ACQUIRE) == PLACE_LIVE;
	*behind = left_lives != right_lives ? left_lives
					    : (at - percpu__guard.base) % percpu__guard.page < percpu__guard.page / 2;
	return *behind ? left : right;
}

static uintptr_t instruction_of(const ucontext_t *context)
{
#if defined __x86_64__
	return (uintptr_t)context->uc_mcontext.gregs[REG_RIP];
#elif defined __aarch64__
	return (uintptr_t)context->uc_mcontext.pc;
#else
	(void)context;
	return 0;
#endif
}

static void report_fault(uintptr_t at, const ucontext_t *context)
{
	uintptr_t page = (at - percpu__guard.base) / percpu__guard.page;
	uint32_t number = (uint32_t)(page / 2);
	const char *what = "use after free", *verb = "access to";
	struct percpu__trace here;
	struct percpu__writer w;
	bool behind = false;

#if defined __x86_64__
	verb = context->uc_mcontext.gregs[REG_ERR] & 2 ? "write to" : "read of";
#endif
	if (page % 2 == 0) {
		number = nearest(page, at, &behind);
		what = behind ? "overflow" : "underflow";
	}
	begin(&w);
	report(&w, what, verb, at, number);
	percpu__unwind_from(&here, instruction_of(context));
	put_stacks(&w, &here, number);
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	struct sigaction action = { .sa_handler = SIG_DFL };

	if (info->si_code > 0)
		percpu__unwind_fault(instruction_of(context));
	if (info->si_code > 0 && percpu__guard_has(info->si_addr))
		report_fault((uintptr_t)info->si_addr, context);
	sigaction(number, &action, NULL);
	/* One that somebody sent does not come by itself again. */
	if (info->si_code <= 0)
		percpu__sys4(SYS_tgkill, getpid(), percpu__sys4(SYS_gettid, 0, 0, 0, 0), number, 0);
}

bool percpu__report_install(void)
{
	static bool done;
	struct sigaction now, action = { .sa_flags = SA_SIGINFO | SA_ONSTACK };

	if (sigaction(SIGSEGV, NULL, &now))
		return false;
	if (now.sa_flags & SA_SIGINFO)
		return now.sa_sigaction == on_fault;
	if (now.sa_handler != SIG_DFL || __atomic_exchange_n(&done, true, __ATOMIC_RELAXED))
		return false;
	action.sa_sigaction = on_fault;
	sigemptyset(&action.sa_mask);
	return sigaction(SIGSEGV, &action, NULL) == 0;
}
