/* SPDX-License-Identifier: MIT */
/*
 * Timed code, cold half: the descriptors that the kernel takes away, threads that have no area, and the clock's rate.
 */
#include <errno.h>
#include <sys/resource.h>
#include <time.h>

#include <percpu/timed.h>

#include "base/sys.h"
#include "rseq/thread.h"

#ifdef PERCPU_NO_SECTIONS
const struct percpu__marker percpu__timed_markers[PERCPU__MARKERS];
#else
/*
 * A range, and an abort address outside of it behind a signature: the kernel kills a thread whose descriptor has none. The
 * signature is an instruction that traps, should anybody ever come by.
 */
__asm__(".pushsection .text.percpu_timed, \"ax\", @progbits\n\t.balign 16\n"
	".hidden percpu__timed_range\n.globl percpu__timed_range\npercpu__timed_range:\n\t" PERCPU__SIGNATURE_ASM
	".hidden percpu__timed_range_end\n.globl percpu__timed_range_end\npercpu__timed_range_end:\n\t" PERCPU__SIGNATURE_ASM
	".hidden percpu__timed_abort\n.globl percpu__timed_abort\npercpu__timed_abort:\n\t" PERCPU__SIGNATURE_ASM
	".popsection");
extern PERCPU_HIDDEN const char percpu__timed_range[], percpu__timed_abort[];

/* One instruction of each port is at least as long. */
#define MARKER                                                                                                         \
	{                                                                                                              \
		.start = (uintptr_t)percpu__timed_range, .length = 4, .abort = (uintptr_t)percpu__timed_abort          \
	}
#define FOUR    MARKER, MARKER, MARKER, MARKER
#define SIXTEEN FOUR, FOUR, FOUR, FOUR
const struct percpu__marker percpu__timed_markers[PERCPU__MARKERS] = { SIXTEEN, SIXTEEN, SIXTEEN, SIXTEEN };
#endif

#define NS       UINT64_C(1000000000)
#define COMPARED 10000000 /* ns for which the clock is compared */
#define NAP      100000

__extension__ typedef unsigned __int128 wide;

static uint64_t rate; /* ticks in a second; 0 until known. Whoever finds it 0 finds it out */

uint64_t percpu__clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_RAW, &now);
	return (uint64_t)now.tv_sec * NS + (uint64_t)now.tv_nsec;
}

static int64_t count_switches(void)
{
	struct rusage usage = { 0 };

	if (percpu__sys4(SYS_getrusage, 1 /* RUSAGE_THREAD */, (long)&usage, 0, 0))
		return -1;
	return usage.ru_nvcsw + usage.ru_nivcsw;
}

void percpu__timed_begin_slow(struct percpu_timed *timed)
{
	struct percpu__rseq *area;

	percpu__thread_start();
	area = percpu__self;
	if ((int)*(const volatile uint32_t *)&area->cpu_id_start >= 0) {
		percpu__timed_arm(timed, area);
		return;
	}
	*timed = (struct percpu_timed){ .cpu = percpu__cpu_slow(), .switches = count_switches() };
}

void percpu__timed_end_slow(const struct percpu_timed *timed, struct percpu_timed_result *result)
{
	int64_t switches = timed->area || timed->switches < 0 ? -1 : count_switches();

	result->flags = PERCPU_TIMED_UNKNOWN;
	result->method = timed->area ? PERCPU_TIMED_BY_DESCRIPTOR : PERCPU_TIMED_BY_COUNTS;
	result->switches = switches < 0 ? -1 : switches - timed->switches;
	if (timed->area)
		return;
	/* What counts began with may be another thread's; then they may also have gone back. */
	if (result->switches != 0 && switches >= 0)
		result->flags = PERCPU_TIMED_INTERRUPTED;
	if (percpu__cpu_slow() != timed->cpu)
		result->flags = PERCPU_TIMED_INTERRUPTED | PERCPU_TIMED_MIGRATED;
}

static bool is_quiet(const struct percpu_timed_result *result)
{
	return result->flags == 0 || (result->method == PERCPU_TIMED_BY_COUNTS && result->switches == 0);
}

int percpu_timed_best(void (*fn)(void *arg), void *arg, unsigned tries, struct percpu_timed_result *result)
{
	struct percpu_timed_result best = { .ticks = UINT64_MAX }, now;
	struct percpu_timed timed;

	if (!fn || !result || !tries)
		return -EINVAL;
	for (unsigned i = 0; i < tries; i++) {
		percpu_timed_begin(&timed);
		fn(arg);
		percpu_timed_end(&timed, &now);
		if (is_quiet(&now) || now.ticks < best.ticks)
			best = now;
		if (is_quiet(&now))
			break;
	}
	*result = best;
	return best.flags == 0 ? 0 : best.method == PERCPU_TIMED_BY_COUNTS ? -ENOTSUP : -EAGAIN;
}

static void sleep_ns(long ns)
{
	struct timespec time = { .tv_nsec = ns };

	percpu__sys4(SYS_nanosleep, (long)&time, 0, 0, 0);
}

#ifndef __aarch64__
/* The clock in ns and in ticks at one moment: between the two readings of the ticks that lie closest together. */
static void both_clocks(uint64_t *ns, uint64_t *ticks)
{
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < 10; i++) {
		uint64_t before = percpu__ticks(), now = percpu__clock_ns(), after = percpu__ticks();

		if (after - before < least) {
			least = after - before;
			*ns = now;
			*ticks = before + least / 2;
		}
	}
}
#endif

static uint64_t find_rate(void)
{
	uint64_t found;
#ifdef __aarch64__
	__asm__("mrs %0, cntfrq_el0" : "=r"(found));
#else
	uint64_t ns = 0, ticks = 0, ns_then = 0, ticks_then = 0;

	both_clocks(&ns_then, &ticks_then);
	do {
		sleep_ns(COMPARED);
		both_clocks(&ns, &ticks);
	} while (ns - ns_then < COMPARED);
	found = (uint64_t)((wide)(ticks - ticks_then) * NS / (ns - ns_then));
#endif
	return found ? found : 1;
}

static uint64_t known_rate(void)
{
	uint64_t known = __atomic_load_n(&rate, __ATOMIC_RELAXED), found;

	if (known)
		return known;
	found = find_rate();
	/* One answer for all, for ever. */
	return __atomic_compare_exchange_n(&rate, &known, found, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED) ? found : known;
}

uint64_t percpu_timed_ns(uint64_t ticks)
{
	return (uint64_t)((wide)ticks * NS / known_rate());
}

int percpu_timed_clock(struct percpu_timed_clock *out)
{
	struct percpu_timed_result result;
	struct percpu_timed timed;

	if (!out)
		return -EINVAL;
	*out = (struct percpu_timed_clock){ .ticks_per_second = known_rate(),
					    .overhead = UINT64_MAX,
					    .name = PERCPU__TICKS_NAME };
	for (int i = 0; i < 100; i++) {
		percpu_timed_begin(&timed);
		percpu_timed_end(&timed, &result);
		if (result.ticks < out->overhead)
			out->overhead = result.ticks;
	}
	percpu_timed_begin(&timed);
	sleep_ns(NAP);
	percpu_timed_end(&timed, &result);
	out->sees_sleep = result.flags & PERCPU_TIMED_INTERRUPTED;
	out->method = result.method;
	return 0;
}
