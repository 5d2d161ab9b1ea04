/* SPDX-License-Identifier: MIT */
/*
 * Performance counters: the ladder from the page over read(2) to a reason why not, with what this machine has (software
 * events everywhere), and the arithmetic of pages that were made up.
 */
#include "../section/fake_pmc.h"

#include <dirent.h>
#include <linux/perf_event.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "sandbox.h"
#include "unit.h"

#include "rseq/thread.h"

struct fake_pmc fake_pmc;

static unsigned open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	assert_non_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

/* Whether software events can be had at all; a sandbox may forbid it. */
static bool offered(enum percpu_perf_event event, enum percpu_perf_scope scope)
{
	struct percpu_perf perf;
	const char *reason = "not set";
	int rc = percpu_perf_open(&perf, event, scope, &reason);

	if (rc == 0) {
		percpu_perf_close(&perf);
		return true;
	}
	assert_int_equal(rc, -ENOTSUP);
	assert_true(strlen(reason) > 20);
	return false;
}

static struct percpu_perf_value now(const struct percpu_perf *perf)
{
	struct percpu_perf_value value;

	assert_int_equal(percpu_perf_read(perf, &value), 0);
	return value;
}

static void software_events_of_a_thread(void **state)
{
	static const enum percpu_perf_event events[] = { PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_PAGE_FAULTS,
							 PERCPU_PERF_CONTEXT_SWITCHES, PERCPU_PERF_MIGRATIONS };
	unsigned files = open_files();

	(void)state;
	if (!offered(PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD))
		skip();
	for (size_t i = 0; i < UNIT_COUNT(events); i++) {
		struct percpu_perf_value before, after;
		struct timespec nap = { .tv_nsec = 1000000 };
		const char *reason = NULL;
		struct percpu_perf perf;
		char *pages;

		assert_int_equal(percpu_perf_open(&perf, events[i], PERCPU_PERF_THREAD, &reason), 0);
		assert_non_null(reason); /* a software event is never read from its page */
		before = now(&perf);
		pages = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		madvise(pages, 64 * 4096, MADV_NOHUGEPAGE);
		for (size_t page = 0; page < 64; page++)
			pages[page * 4096] = 1;
		munmap(pages, 64 * 4096);
		nanosleep(&nap, NULL);
		after = now(&perf);
		assert_false(after.by_page);
		assert_int_equal(after.cpu, -1);
		assert_true(after.enabled >= before.enabled && after.running == after.enabled);
		assert_true(after.count >= before.count);
		if (events[i] == PERCPU_PERF_TASK_CLOCK)
			assert_true(after.count > before.count);
		if (events[i] == PERCPU_PERF_PAGE_FAULTS)
			assert_true(after.count >= before.count + 64);
		if (events[i] == PERCPU_PERF_CONTEXT_SWITCHES && !percpu_perf_is_user_only(&perf))
			assert_true(after.count > before.count);
		percpu_perf_close(&perf);
	}
	assert_int_equal(open_files(), files);
}

static void software_events_of_cpus(void **state)
{
	unsigned files = open_files();
	struct percpu_perf_value value;
	struct percpu_perf perf;
	cpu_set_t everywhere;

	(void)state;
	if (!offered(PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_CPU))
		skip();
	sched_getaffinity(0, sizeof everywhere, &everywhere);
	assert_int_equal(percpu_perf_open(&perf, PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_CPU, NULL), 0);
	for (unsigned cpu = 0; cpu < percpu_possible_cpus(); cpu++) {
		if (!CPU_ISSET(cpu, &everywhere))
			continue;
		assert_int_equal(unit_pin((int)cpu), 0);
		value = now(&perf);
		assert_int_equal(value.cpu, cpu);
		assert_int_equal(percpu_perf_read_cpu(&perf, cpu, &value), 0);
		assert_int_equal(value.cpu, cpu);
		assert_false(value.by_page);
	}
	sched_setaffinity(0, sizeof everywhere, &everywhere);
	assert_int_equal(percpu_perf_read_cpu(&perf, percpu_possible_cpus(), &value), -EINVAL);
	assert_int_equal(percpu_perf_read_cpu(&perf, UINT32_MAX, &value), -EINVAL);
	percpu_perf_close(&perf);
	percpu_perf_close(&perf);
	assert_int_equal(open_files(), files);
}

/* With counters or without: it can be read, or there is a reason. */
static void hardware_events(void **state)
{
	(void)state;
	for (enum percpu_perf_event event = PERCPU_PERF_CYCLES; event <= PERCPU_PERF_BRANCH_MISSES; event++) {
		for (enum percpu_perf_scope scope = PERCPU_PERF_THREAD; scope <= PERCPU_PERF_CPU; scope++) {
			const char *reason = "not set";
			struct percpu_perf perf;
			int rc = percpu_perf_open(&perf, event, scope, &reason);

			if (rc) {
				assert_int_equal(rc, -ENOTSUP);
				assert_true(strlen(reason) > 20);
				continue;
			}
			for (uint64_t last = 0, i = 0; i < 100; i++) {
				struct percpu_perf_value value = now(&perf);

				if (reason)
					assert_false(value.by_page);
				if (scope == PERCPU_PERF_THREAD)
					assert_true(value.count >= last);
				last = value.count;
			}
			percpu_perf_close(&perf);
		}
	}
}

static void arguments(void **state)
{
	struct percpu_perf_value value = { .count = 5 };
	struct percpu_perf perf, untouched;
	const char *reason = NULL;

	(void)state;
	memset(&perf, 0x44, sizeof perf);
	untouched = perf;
	assert_int_equal(percpu_perf_open(NULL, PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD, &reason), -EINVAL);
	assert_non_null(reason);
	assert_int_equal(percpu_perf_open(&perf, (enum percpu_perf_event)99, PERCPU_PERF_THREAD, NULL), -EINVAL);
	assert_int_equal(percpu_perf_open(&perf, (enum percpu_perf_event) - 1, PERCPU_PERF_THREAD, &reason), -EINVAL);
	assert_int_equal(percpu_perf_open(&perf, PERCPU_PERF_CYCLES, (enum percpu_perf_scope)2, &reason), -EINVAL);
	assert_int_equal(percpu_perf_open_raw(&perf, 4000000, 1, PERCPU_PERF_THREAD, &reason), -ENOTSUP);
	assert_true(strlen(reason) > 20);
	assert_int_equal(percpu_perf_open_raw(&perf, PERF_TYPE_SOFTWARE, 77777, PERCPU_PERF_CPU, &reason), -ENOTSUP);
	assert_memory_equal(&perf, &untouched, sizeof perf);
	assert_int_equal(percpu_perf_read(NULL, &value), -EINVAL);
	assert_int_equal(percpu_perf_read(&perf, NULL), -EINVAL);
	percpu_perf_close(NULL);
	if (!offered(PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD))
		skip();
	assert_int_equal(
		percpu_perf_open_raw(&perf, PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK, PERCPU_PERF_THREAD, NULL), 0);
	assert_int_equal(percpu_perf_read_cpu(&perf, 0, &value), -EINVAL);
	percpu_perf_close(&perf);
	assert_int_equal(percpu_perf_read(&perf, &value), -ENODEV);
	assert_int_equal(value.count, 5);
}

/* ---- other threads, other processes, sandboxes */

static struct percpu_perf common;

static void *read_elsewhere(void *arg)
{
	struct percpu_perf_value value;

	if (percpu_perf_read(&common, &value) == 0)
		*(uint64_t *)arg = value.count;
	return NULL;
}

static int read_in_child(void)
{
	struct percpu_perf_value value;

	if (percpu_perf_read(&common, &value) || value.by_page)
		return 1;
	percpu_perf_close(&common);
	return percpu_perf_open(&common, PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD, NULL) ||
	       percpu_perf_read(&common, &value);
}

static void threads_and_children(void **state)
{
	uint64_t first, elsewhere = 0;
	pthread_t thread;

	(void)state;
	if (!offered(PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD))
		skip();
	assert_int_equal(percpu_perf_open(&common, PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD, NULL), 0);
	first = now(&common).count;
	assert_int_equal(pthread_create(&thread, NULL, read_elsewhere, &elsewhere), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_true(elsewhere >= first && elsewhere <= now(&common).count);
	assert_int_equal(unit_in_child(read_in_child), 0);
	assert_true(now(&common).count >= elsewhere);
	percpu_perf_close(&common);
}

static int denied(int error, const char *word)
{
	struct percpu_perf perf = { .file = 1234 };
	const char *reason = NULL;

	if (sandbox_deny(SYS_perf_event_open, error))
		return 0;
	for (enum percpu_perf_scope scope = PERCPU_PERF_THREAD; scope <= PERCPU_PERF_CPU; scope++)
		if (percpu_perf_open(&perf, PERCPU_PERF_TASK_CLOCK, scope, &reason) != -ENOTSUP || !reason ||
		    !strstr(reason, word) || perf.file != 1234)
			return 1;
	return 0;
}

static int denied_by_nosys(void)
{
	return denied(ENOSYS, "no perf_event_open");
}

static int denied_by_perm(void)
{
	return denied(EPERM, "denied");
}

static int denied_by_acces(void)
{
	return denied(EACCES, "denied");
}

static int machine_without(void)
{
	return denied(ENOENT, "this machine");
}

/* The page cannot be mapped, but the file can be read. */
static int page_denied(void)
{
	struct percpu_perf_value value;
	struct percpu_perf perf;
	const char *reason = NULL;

	if (sandbox_deny(SYS_mmap, EPERM))
		return 0;
	if (percpu_perf_open(&perf, PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD, &reason))
		return 1;
	return !reason || percpu_perf_read(&perf, &value) || value.by_page ? 2 : 0;
}

static int no_files_left(void)
{
	struct rlimit none = { 0, 0 };
	struct percpu_perf perf;
	const char *reason = NULL;
	int rc;

	if (setrlimit(RLIMIT_NOFILE, &none))
		return 1;
	rc = percpu_perf_open(&perf, PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD, &reason);
	return rc == -EMFILE && strstr(reason, "files") ? 0 : 2;
}

/* The lowest descriptor is free: 0 must not be taken for none. */
static int standard_input_closed(void)
{
	struct percpu_perf_value value;
	struct percpu_perf perf;

	close(0);
	if (percpu_perf_open(&perf, PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD, NULL))
		return 1;
	return percpu_perf_read(&perf, &value) ? 2 : 0;
}

static void what_is_denied(void **state)
{
	(void)state;
	assert_int_equal(unit_in_child(denied_by_nosys), 0);
	assert_int_equal(unit_in_child(denied_by_perm), 0);
	assert_int_equal(unit_in_child(denied_by_acces), 0);
	assert_int_equal(unit_in_child(machine_without), 0);
	if (!offered(PERCPU_PERF_TASK_CLOCK, PERCPU_PERF_THREAD))
		skip();
	assert_int_equal(unit_in_child(page_denied), 0);
	assert_int_equal(unit_in_child(no_files_left), 0);
	assert_int_equal(unit_in_child(standard_input_closed), 0);
}

/* ---- pages that were made up */

static struct perf_event_mmap_page page_of(uint32_t index, int64_t offset, uint16_t width)
{
	struct perf_event_mmap_page page = { .lock = 6, .index = index, .offset = offset, .pmc_width = width };

	page.time_enabled = page.time_running = 1000;
	page.capabilities = 4;
	return page;
}

static int try(const struct perf_event_mmap_page *page, uint64_t *count)
{
	uint64_t out[2] = { 0x1111, 0 };
	int rc = PERCPU__LEFT;

	/* The machine has other work. */
	for (int i = 0; i < 100 && rc == PERCPU__LEFT; i++)
		rc = percpu__try_perf(NULL, page, out);
	if (rc == PERCPU__LEFT)
		assert_int_equal(out[0], 0x1111);
	*count = out[0];
	return rc;
}

static void arithmetic(void **state)
{
	static const struct {
		uint32_t index;
		uint16_t width;
		int64_t offset;
		uint64_t raw, count;
	} cases[] = {
		{ 1, 48, 0, 5, 5 },
		{ 1, 48, 1000, 5, 1005 },
		{ 32, 64, 7, 3, 10 },
		{ 2, 48, UINT64_C(1) << 47, UINT64_C(0x800000000001), 1 }, /* bit 47 is the sign */
		{ 3, 48, -3, UINT64_C(0x7fffffffffff), UINT64_C(0x7ffffffffffc) },
		{ 4, 32, 10, UINT64_C(0xffffffff), 9 },
		{ 5, 40, 0, UINT64_C(0x8000000000), UINT64_C(0xffffff8000000000) },
		{ 6, 48, 100, UINT64_C(0xabcd000000000001), 101 }, /* bits above the width do not count */
		{ 7, 64, 1, UINT64_MAX, 0 },
		{ 8, 64, INT64_MIN, UINT64_C(1) << 63, 0 },
	};
	struct perf_event_mmap_page page;
	uint64_t count;

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE)) {
		page = page_of(1, 0, 48);
		assert_int_equal(try(&page, &count), PERCPU__LEFT);
		skip();
	}
	memset(&fake_pmc, 0, sizeof fake_pmc);
	for (size_t i = 0; i < UNIT_COUNT(cases); i++) {
		page = page_of(cases[i].index, cases[i].offset, cases[i].width);
		fake_pmc.value[cases[i].index - 1] = cases[i].raw;
		assert_int_equal(try(&page, &count), PERCPU__DONE);
		assert_true(count == cases[i].count);
		fake_pmc.value[cases[i].index - 1] = 0;
	}
}

/* What a page may say that forbids to read a counter. */
static void pages_that_forbid(void **state)
{
	struct perf_event_mmap_page page;
	uint64_t count;

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	memset(&fake_pmc, 0, sizeof fake_pmc);
	page = page_of(1, 0, 48);
	assert_int_equal(try(&page, &count), PERCPU__DONE);
	page.capabilities = ~UINT64_C(4);
	assert_int_equal(try(&page, &count), PERCPU__LEFT);
	page = page_of(0, 0, 48); /* in no counter now */
	assert_int_equal(try(&page, &count), PERCPU__LEFT);
	page = page_of(1, 0, 48);
	page.time_running--; /* has shared its counter */
	assert_int_equal(try(&page, &count), PERCPU__LEFT);
	page = page_of(1, 0, 48);
	fake_pmc.bump = 2; /* the kernel was there meanwhile */
	assert_int_equal(try(&page, &count), PERCPU__LEFT);
	assert_true(page.lock >= 8);
	memset(&fake_pmc, 0, sizeof fake_pmc);
	page = page_of(1, 0, 48);
	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	assert_int_equal(try(&page, &count), PERCPU__LEFT);
	percpu__thread_force(PERCPU__FORCE_OFF);
}

struct of_cpu {
	const struct perf_event_mmap_page *page;
	int file, unused;
};

static void each_cpu_reads_its_own(void **state)
{
	struct perf_event_mmap_page pages[64];
	cpu_set_t everywhere;
	struct of_cpu *cpus;
	unsigned read = 0;

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE) || percpu_possible_cpus() > UNIT_COUNT(pages))
		skip();
	memset(&fake_pmc, 0, sizeof fake_pmc);
	cpus = percpu_alloc(sizeof *cpus, sizeof *cpus);
	assert_non_null(cpus);
	for (unsigned cpu = 0; cpu < percpu_possible_cpus(); cpu++) {
		pages[cpu] = page_of(cpu % 32 + 1, 1000 * (int64_t)cpu, 48);
		fake_pmc.value[cpu % 32] = cpu % 32 + 1;
		percpu_ptr(cpus, cpu)->page = &pages[cpu];
	}
	sched_getaffinity(0, sizeof everywhere, &everywhere);
	for (unsigned cpu = 0; cpu < percpu_possible_cpus(); cpu++) {
		uint64_t out[2] = { 0 };
		int rc = PERCPU__LEFT;

		if (!CPU_ISSET(cpu, &everywhere))
			continue;
		assert_int_equal(unit_pin((int)cpu), 0);
		for (int i = 0; i < 100 && rc == PERCPU__LEFT; i++)
			rc = percpu__try_perf(cpus, NULL, out);
		assert_int_equal(rc, PERCPU__DONE);
		assert_int_equal(out[0], 1000 * cpu + cpu % 32 + 1);
		assert_int_equal((out[1] - (uintptr_t)cpus) >> PERCPU_STRIDE_SHIFT, cpu);
		read++;
		/* One that is not counted. */
		percpu_ptr(cpus, cpu)->page = NULL;
		assert_int_equal(percpu__try_perf(cpus, NULL, out), PERCPU__LEFT);
		percpu_ptr(cpus, cpu)->page = &pages[cpu];
	}
	assert_true(read > 0);
	sched_setaffinity(0, sizeof everywhere, &everywhere);
	/* Moved about: whatever CPU it was, the parts of a count belong together. */
	for (int i = 0; i < 20000; i++) {
		uint64_t out[2], cpu;

		if (i % 1000 == 0)
			sched_yield();
		if (percpu__try_perf(cpus, NULL, out) != PERCPU__DONE)
			continue;
		cpu = (out[1] - (uintptr_t)cpus) >> PERCPU_STRIDE_SHIFT;
		assert_true(out[0] == 1000 * cpu + cpu % 32 + 1);
	}
	percpu_free(cpus);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(software_events_of_a_thread),
		cmocka_unit_test(software_events_of_cpus),
		cmocka_unit_test(hardware_events),
		cmocka_unit_test(arguments),
		cmocka_unit_test(threads_and_children),
		cmocka_unit_test(what_is_denied),
		cmocka_unit_test(arithmetic),
		cmocka_unit_test(pages_that_forbid),
		cmocka_unit_test(each_cpu_reads_its_own),
	};

	return unit_main(tests);
}
