/* SPDX-License-Identifier: MIT */
/*
 * Performance counters: opening, and reading by the page or by a system call.
 *
 * Ladder of open: with the kernel's work, without it, not at all. On 64-bit ARM each step first asks for user access, which
 * only events of threads are given. Ladder of read: the section, read(2).
 */
#include <errno.h>
#include <linux/perf_event.h>
#include <sys/mman.h>
#include <unistd.h>

#include <percpu/ops.h>
#include <percpu/perf.h>

#include "base/sys.h"
#include "gate/gate.h"
#include "rseq/thread.h"

typedef struct perf_event_mmap_page info_page;

/* What the ports have in their strings. */
_Static_assert(offsetof(info_page, lock) == 8 && offsetof(info_page, index) == 12, "kernel ABI");
_Static_assert(offsetof(info_page, offset) == 16 && offsetof(info_page, time_enabled) == 24, "kernel ABI");
_Static_assert(offsetof(info_page, time_running) == 32 && offsetof(info_page, capabilities) == 40, "kernel ABI");
_Static_assert(offsetof(info_page, pmc_width) == 48, "kernel ABI");

#define CAP_USER_RDPMC 4U
#define ARM_LONG       1U /* config1: a counter of 64 bits */
#define ARM_USER       2U /* config1: readable in user mode */

/* One CPU's event, in its copy. The page comes first: the section loads it. */
struct of_cpu {
	const info_page *page;
	int file; /* 0: none */
	int unused;
};

static long page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

static const char *why_not(long rc)
{
	switch (rc) {
	case -ENOSYS:
		return "the kernel has no perf_event_open, or a sandbox says so";
	case -EPERM:
	case -EACCES:
		return "perf_event_open is denied (kernel.perf_event_paranoid, or a sandbox)";
	case -ENOENT:
	case -ENODEV:
	case -EOPNOTSUPP:
	case -ENXIO:
		return "this machine counts no such event (virtual machines often have no counters)";
	case -EINVAL:
		return "the kernel does not know this event";
	case -EBUSY:
		return "the counters are in somebody else's hands";
	case -EMFILE:
	case -ENFILE:
		return "there are too many open files";
	default:
		return "the kernel refused to open the event";
	}
}

/* Returns a file or -errno. */
static long open_one(uint32_t type, uint64_t config, int pid, int cpu, bool user_only, bool user_access)
{
	struct perf_event_attr attr = {
		.type = type,
		.size = PERF_ATTR_SIZE_VER5,
		.config = config,
		.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING,
		.exclude_kernel = user_only,
		.exclude_hv = user_only,
		.config1 = user_access ? ARM_LONG | ARM_USER : 0,
	};
	long file = percpu__sys6(SYS_perf_event_open, (long)&attr, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC, 0);

	/* 0 stands for none. */
	if (file == 0) {
		file = percpu__sys4(SYS_fcntl, 0, 1030 /* F_DUPFD_CLOEXEC */, 1, 0);
		percpu__sys4(SYS_close, 0, 0, 0, 0);
	}
	return file;
}

static bool has_user_access(uint32_t type, int pid)
{
#ifdef __aarch64__
	return pid >= 0 && type != PERF_TYPE_SOFTWARE && type != PERF_TYPE_TRACEPOINT && type != PERF_TYPE_BREAKPOINT;
#else
	(void)type, (void)pid;
	return false;
#endif
}

static long open_event(uint32_t type, uint64_t config, int pid, int cpu, uint32_t *user_only)
{
	long file;

	for (;;) {
		file = has_user_access(type, pid) ? open_one(type, config, pid, cpu, *user_only, true) : -EINVAL;
		if (file < 0)
			file = open_one(type, config, pid, cpu, *user_only, false);
		if ((file != -EACCES && file != -EPERM) || *user_only)
			return file;
		*user_only = true;
	}
}

/* NULL if there is none. */
static const info_page *map_page(long file)
{
	long got = percpu__sys6(SYS_mmap, 0, page_size(), PROT_READ, MAP_SHARED, file, 0);

	return got < 0 && got > -4096 ? NULL : (const info_page *)got;
}

static void close_one(const info_page *page, int file)
{
	if (page)
		percpu__sys4(SYS_munmap, (long)page, page_size(), 0, 0);
	if (file > 0)
		percpu__sys4(SYS_close, file, 0, 0, 0);
}

static const char *why_by_read(const info_page *page)
{
#ifdef PERCPU_NO_SECTIONS
	(void)page;
	return "the library was built without sections";
#endif
	if (percpu__mode() == PERCPU_MODE_NONE)
		return "sections cannot be used in this process";
	if (!page)
		return "the event's page cannot be mapped";
	if (!(page->capabilities & CAP_USER_RDPMC))
		return "the kernel does not let user code read this event's counter";
	return NULL;
}

static int open_for_cpus(struct percpu_perf *perf, uint32_t type, uint64_t config)
{
	struct of_cpu *cpus = percpu_alloc(sizeof *cpus, sizeof *cpus);
	long error = -ENODEV, file;
	const char *why;

	if (!cpus)
		return -ENOMEM;
	perf->cpus = cpus;
	for (unsigned cpu = 0; cpu < percpu_possible_cpus(); cpu++) {
		struct of_cpu *mine = percpu_ptr(cpus, cpu);

		file = open_event(type, config, -1, (int)cpu, &perf->user_only);
		if (file < 0) {
			/* A CPU that is offline is told by ENODEV, and has none. */
			if (file == -ENODEV)
				continue;
			error = file;
			break;
		}
		mine->file = (int)file;
		mine->page = map_page(file);
		why = why_by_read(mine->page);
		/* Of no use only if it is so on each of them. */
		perf->reason = error || !why ? why : perf->reason;
		error = 0;
	}
	if (error)
		percpu_perf_close(perf);
	return (int)error;
}

static int open_for_thread(struct percpu_perf *perf, uint32_t type, uint64_t config)
{
	long file = open_event(type, config, 0, -1, &perf->user_only);

	if (file < 0)
		return (int)file;
	perf->file = (int)file;
	perf->page = map_page(file);
	perf->reason = why_by_read(perf->page);
	perf->owner = percpu__self;
	return 0;
}

int percpu_perf_open_raw(struct percpu_perf *perf, uint32_t type, uint64_t config, enum percpu_perf_scope scope,
			 const char **reason)
{
	struct percpu_perf made = { .scope = scope, .fork_count = percpu__fork_count };
	int rc;

	if (!perf || (scope != PERCPU_PERF_THREAD && scope != PERCPU_PERF_CPU)) {
		if (reason)
			*reason = "an argument is out of range";
		return -EINVAL;
	}
	percpu__thread_start();
	rc = scope == PERCPU_PERF_CPU ? open_for_cpus(&made, type, config) : open_for_thread(&made, type, config);
	if (reason)
		*reason = !rc ? made.reason : rc == -ENOMEM ? "there is no memory" : why_not(rc);
	if (!rc)
		*perf = made;
	return !rc || rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE ? rc : -ENOTSUP;
}

int percpu_perf_open(struct percpu_perf *perf, enum percpu_perf_event event, enum percpu_perf_scope scope,
		     const char **reason)
{
	static const struct {
		uint32_t type;
		uint32_t config;
	} names[] = {
		[PERCPU_PERF_CYCLES] = { PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES },
		[PERCPU_PERF_INSTRUCTIONS] = { PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS },
		[PERCPU_PERF_CACHE_MISSES] = { PERF_TYPE_HARDWARE, PERF_COUNT_HW_CACHE_MISSES },
		[PERCPU_PERF_BRANCH_MISSES] = { PERF_TYPE_HARDWARE, PERF_COUNT_HW_BRANCH_MISSES },
		[PERCPU_PERF_TASK_CLOCK] = { PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK },
		[PERCPU_PERF_PAGE_FAULTS] = { PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS },
		[PERCPU_PERF_CONTEXT_SWITCHES] = { PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CONTEXT_SWITCHES },
		[PERCPU_PERF_MIGRATIONS] = { PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_MIGRATIONS },
	};

	if ((unsigned)event >= sizeof names / sizeof *names) {
		if (reason)
			*reason = "an argument is out of range";
		return -EINVAL;
	}
	return percpu_perf_open_raw(perf, names[event].type, names[event].config, scope, reason);
}

void percpu_perf_close(struct percpu_perf *perf)
{
	/* A child of fork has the files, but no pages. */
	bool mapped = perf && perf->fork_count == percpu__fork_count;

	if (!perf)
		return;
	if (perf->cpus) {
		struct of_cpu *cpus = perf->cpus;

		for (unsigned cpu = 0; cpu < percpu_possible_cpus(); cpu++) {
			struct of_cpu *one = percpu_ptr(cpus, cpu);

			close_one(mapped ? one->page : NULL, one->file);
		}
		percpu_free(cpus);
	}
	close_one(mapped ? perf->page : NULL, perf->file);
	*perf = (struct percpu_perf){ .scope = perf->scope };
}

static int by_read(int file, int cpu, struct percpu_perf_value *value)
{
	uint64_t got[3];
	long rc;

	if (file <= 0)
		return -ENODEV;
	rc = percpu__sys4(SYS_read, file, (long)got, sizeof got, 0);
	if (rc != (long)sizeof got)
		return rc < 0 ? (int)rc : -ENODEV;
	*value = (struct percpu_perf_value){ .count = got[0], .enabled = got[1], .running = got[2], .cpu = cpu };
	return 0;
}

#ifndef PERCPU_NO_SECTIONS
static bool by_page(const struct percpu_perf *perf, struct percpu_perf_value *value)
{
	uint64_t out[2] = { 0 };

	/* Known at open to be of no use; not this process's pages; another thread's page. */
	if (perf->reason || perf->fork_count != percpu__fork_count || (!perf->cpus && perf->owner != percpu__self))
		return false;
	for (int i = 0; i < PERCPU_ABORT_BUDGET; i++) {
		if (percpu__try_perf(perf->cpus, perf->page, out) != PERCPU__DONE)
			continue;
		*value = (struct percpu_perf_value){ .count = out[0], .cpu = -1, .by_page = true };
		if (perf->cpus)
			value->cpu = (int)((out[1] - (uintptr_t)perf->cpus) >> PERCPU_STRIDE_SHIFT);
		return true;
	}
	return false;
}
#endif

int percpu_perf_read(const struct percpu_perf *perf, struct percpu_perf_value *value)
{
	if (!perf || !value)
		return -EINVAL;
#ifndef PERCPU_NO_SECTIONS
	if (by_page(perf, value))
		return 0;
#endif
	if (perf->scope == PERCPU_PERF_THREAD)
		return by_read(perf->file, -1, value);
	return percpu_perf_read_cpu(perf, (unsigned)percpu_cpu(), value);
}

int percpu_perf_read_cpu(const struct percpu_perf *perf, unsigned cpu, struct percpu_perf_value *value)
{
	if (!perf || !value || perf->scope != PERCPU_PERF_CPU || cpu >= percpu_possible_cpus())
		return -EINVAL;
	return perf->cpus ? by_read(percpu_ptr((struct of_cpu *)perf->cpus, cpu)->file, (int)cpu, value) : -ENODEV;
}
