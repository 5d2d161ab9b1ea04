/* SPDX-License-Identifier: MIT */
/*
 * The mode, decided once, and each thread's way into it.
 *
 * Mode libc is believed only where the kernel confirms it for the calling task: a raw clone's area is full of zeros, which
 * looks like CPU 0, or is its parent's. In mode own the area lies in static thread-local storage, which lives as long as
 * the kernel thread can return to user mode: nothing has to be undone at thread exit, as with the C library's own.
 *
 * percpu__private.own is a stand-in until mode own registers it: no CPU, and the remainder as index.
 */
#include <errno.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/utsname.h>

#include <percpu/arch.h>

#include "base/sys.h"
#include "rseq/thread.h"

#ifndef SYS_rseq
#error "the C library's headers do not know the rseq system call"
#endif

/* Not in every libc's headers. */
#define AUX_RSEQ_FEATURE_SIZE 27
#define AUX_RSEQ_ALIGN        28
#define PRCTL_RSEQ_SLICE      79
#define PRCTL_RSEQ_SLICE_GET  1
#define RSEQ_UNREGISTER       1
#define LEGACY_LENGTH         32
#define LEGACY_FEATURES       20
#define CID_FEATURES          28
#define V2_FEATURES           33

#ifdef PERCPU_NO_SECTIONS
#define PERCPU__SIGNATURE 0
#endif

_Static_assert(offsetof(struct percpu__rseq, cpu_id) == 4, "kernel ABI");
_Static_assert(offsetof(struct percpu__rseq, rseq_cs) == 8, "kernel ABI, and displacement in the ports");
_Static_assert(offsetof(struct percpu__rseq, node_id) == 20, "kernel ABI");
_Static_assert(offsetof(struct percpu__rseq, mm_cid) == 24, "kernel ABI");
_Static_assert(sizeof(struct percpu__rseq) == LEGACY_LENGTH, "kernel ABI");

/* glibc 2.35 and later; absent elsewhere. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

/* Where new threads point before their first slow path. Its index is set before the first area exists. */
struct percpu__rseq percpu__newcomer = { .cpu_id_start = ~0U, .node_id = ~0U };
/* Neither outside of a read section nor in the outermost one: so both its begin and its end go out of line. */
struct percpu__rcu_reader percpu__rcu_newcomer = { .state = UINT16_MAX }, percpu__rcu_lent = { .state = UINT16_MAX };

/* The attribute counts at the definition too: no call of __tls_get_addr, which may allocate, on any path. */
__thread struct percpu__thread percpu__thread
	__attribute__((tls_model("initial-exec"))) = { .self = &percpu__newcomer, .rcu = &percpu__rcu_newcomer };
__thread struct percpu__private percpu__private
	__attribute__((tls_model("initial-exec"))) = { .own = { .cpu_id_start = ~0U, .cpu_id = ~0U } };
struct percpu__process percpu__process;
uint32_t percpu__index_offset = offsetof(struct percpu__rseq, mm_cid);
uint32_t percpu__node_mask = ~0U;
uint32_t percpu__remainder;

static uint32_t decided; /* 0 not yet, 1 somebody is at it, 2 done */

static struct percpu__rseq *libc_area(void)
{
	return (struct percpu__rseq *)(void *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static long register_area(struct percpu__rseq *area, uint32_t length)
{
	return percpu__sys4(SYS_rseq, (long)area, length, 0, (long)(int)PERCPU__SIGNATURE);
}

/* A stand-in sends every section away: its index is the remainder's. */
static void make_stand_in(struct percpu__rseq *area)
{
	area->cpu_id_start = ~0U;
	area->node_id = ~0U;
	__atomic_store_n(&area->cpu_id, percpu__remainder, __ATOMIC_RELAXED);
	__atomic_store_n(&area->mm_cid, percpu__remainder, __ATOMIC_RELAXED);
}

/*
 * Asks without changing anything: an attempt to unregister with a wrong signature is not permitted if this area is
 * registered with this length for the calling task, and invalid otherwise.
 */
static long probe_registration(const struct percpu__rseq *area, uint32_t length)
{
	return percpu__sys4(SYS_rseq, (long)area, length, RSEQ_UNREGISTER, (long)(int)~PERCPU__SIGNATURE);
}

/* Whether the kernel serves the C library's area for the calling task. */
static bool libc_serves_this_task(void)
{
	unsigned long align = getauxval(AUX_RSEQ_ALIGN);
	struct percpu__rseq *area;
	uint32_t lengths[3];
	unsigned cpu = ~0U;

	if (!&__rseq_offset || !&__rseq_size || __rseq_size == 0)
		return false;
	area = libc_area();
	if ((int)*(volatile uint32_t *)&area->cpu_id < 0)
		return false;
	if (probe_registration(NULL, 0) == -EINVAL) {
		/* The length: 32 for all sizes up to that; else the size, which may have been rounded up. */
		lengths[0] = __rseq_size <= LEGACY_LENGTH ? LEGACY_LENGTH : __rseq_size;
		lengths[1] = (lengths[0] + LEGACY_LENGTH - 1) / LEGACY_LENGTH * LEGACY_LENGTH;
		lengths[2] = align ? (uint32_t)((lengths[0] + align - 1) / align * align) : lengths[1];
		for (int i = 0; i < 3; i++)
			if (probe_registration(area, lengths[i]) == -EPERM)
				return true;
		return false;
	}
	/* A sandbox forbids to ask: the area must name this CPU. */
	for (int i = 0; i < 3; i++)
		if (percpu__sys4(SYS_getcpu, (long)&cpu, 0, 0, 0) == 0 && *(volatile uint32_t *)&area->cpu_id == cpu)
			return true;
	return false;
}

static long register_own(void)
{
	struct percpu__rseq *area = &percpu__private.own;
	long rc;

	if (percpu__private.owned)
		return 0;
	/* As the ABI describes an area that is not registered. */
	area->cpu_id_start = 0;
	area->cpu_id = ~0U;
	area->rseq_cs = 0;
	area->flags = 0;
	area->mm_cid = percpu__remainder;
	rc = register_area(area, percpu__process.length);
	if (rc)
		make_stand_in(area);
	else
		percpu__private.owned = true; /* from now on only the kernel writes the ids */
	return rc;
}

static bool arm64_kernel_that_does_not_abort(void)
{
#ifdef __aarch64__
	struct utsname name;
	unsigned major = 0, minor = 0, patch = 0;
	const char *c;

	if (uname(&name))
		return false;
	for (c = name.release; *c >= '0' && *c <= '9'; c++)
		major = major * 10 + (unsigned)(*c - '0');
	for (c += *c == '.'; *c >= '0' && *c <= '9'; c++)
		minor = minor * 10 + (unsigned)(*c - '0');
	for (c += *c == '.'; *c >= '0' && *c <= '9'; c++)
		patch = patch * 10 + (unsigned)(*c - '0');
	return (major == 6 && minor >= 19) || (major == 7 && minor == 0 && patch <= 13);
#else
	return false;
#endif
}

static bool fence_works(void)
{
	long commands = percpu__sys4(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0, 0);

	return commands >= 0 && (commands & MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ) &&
	       percpu__sys4(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0, 0) == 0 &&
	       percpu__sys4(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0, 0) == 0;
}

static const char *why_not_own(long rc)
{
	switch (rc) {
	case -ENOSYS:
		return "the kernel, or the tool that stands in for it, has no rseq system call";
	case -EPERM:
	case -EACCES:
		return "the rseq system call is denied (a sandbox?)";
	case -EINVAL:
	case -EBUSY:
		return "another library has registered this thread";
	default:
		return "the kernel refused to register this thread";
	}
}

static enum percpu_mode decide(const char *wish, const char **reason)
{
	bool any = !wish || !*wish || strcmp(wish, "auto") == 0;
	bool libc = any || strcmp(wish, "libc") == 0, own = any || strcmp(wish, "own") == 0;
	long rc;

	if (!libc && !own && strcmp(wish, "off") != 0)
		any = libc = own = true;
	if (!libc && !own) {
		*reason = "PERCPU_RSEQ=off asks for it";
		return PERCPU_MODE_NONE;
	}
#ifdef PERCPU_NO_SECTIONS
	*reason = "the library was built without sections";
	return PERCPU_MODE_NONE;
#endif
	if (arm64_kernel_that_does_not_abort()) {
		*reason = "arm64 kernels from 6.19 to 7.0.13 do not abort sections on preemption";
		return PERCPU_MODE_NONE;
	}
	if (!fence_works()) {
		*reason = "membarrier's RSEQ fence is missing or denied";
		return PERCPU_MODE_NONE;
	}
	if (libc && libc_serves_this_task()) {
		*reason = "the C library has registered its threads";
		return PERCPU_MODE_LIBC;
	}
	if (!own) {
		*reason = "PERCPU_RSEQ=libc, but the C library has not registered this thread";
		return PERCPU_MODE_NONE;
	}
	if (!any && libc_serves_this_task()) {
		*reason = "PERCPU_RSEQ=own, but the C library holds the registration "
			  "(GLIBC_TUNABLES=glibc.pthread.rseq=0 switches that off)";
		return PERCPU_MODE_NONE;
	}
	rc = register_own();
	if (rc == 0) {
		*reason = any ? "the C library does not register threads, so the library does" : "PERCPU_RSEQ=own";
		return PERCPU_MODE_OWN;
	}
	*reason = why_not_own(rc);
	return PERCPU_MODE_NONE;
}

static void fill(void)
{
	struct percpu_description *about = &percpu__process.about;
	const char *wish = secure_getenv("PERCPU_RSEQ");
	const char *reason, *extra = "";
	unsigned long features = getauxval(AUX_RSEQ_FEATURE_SIZE), align = getauxval(AUX_RSEQ_ALIGN);
	uint32_t length = LEGACY_LENGTH;

	about->possible_cpus = percpu__topology("/sys/devices/system/cpu/possible", &about->topology);
	percpu__remainder = about->possible_cpus;
	make_stand_in(&percpu__newcomer);
	/* All that the kernel knows, if our storage has room for it; every thread registers the same length. */
	if (features > LEGACY_LENGTH && align && align <= 64 && (align & (align - 1)) == 0)
		length = (uint32_t)((features + align - 1) & ~(align - 1));
	percpu__process.length = length <= PERCPU__AREA_BYTES ? length : LEGACY_LENGTH;

	if (wish && *wish && strcmp(wish, "auto") && strcmp(wish, "libc") && strcmp(wish, "own") && strcmp(wish, "off"))
		extra = "; PERCPU_RSEQ has an unknown value, which was ignored";
	about->mode = decide(wish, &reason);
	strcpy(percpu__process.reason, reason);
	strcat(percpu__process.reason, extra);
	about->reason = percpu__process.reason;
	about->arch = PERCPU__ARCH_NAME;
	about->fence = fence_works();
	if (about->mode == PERCPU_MODE_NONE) {
		about->mode_name = "none";
		about->index_kind = "any";
		about->feature_size = features ? (unsigned)features : 0;
		return;
	}
	about->mode_name = about->mode == PERCPU_MODE_LIBC ? "libc" : "own";
	about->feature_size = features ? (unsigned)features : LEGACY_FEATURES;
	if (about->mode == PERCPU_MODE_OWN)
		about->registered_size = percpu__process.length;
	else
		about->registered_size = __rseq_size <= LEGACY_LENGTH ? LEGACY_LENGTH : __rseq_size;
	/* The kernel fills both ids in a registration of 32 bytes too, whatever size the C library announces. */
	about->concurrency_id = about->node_id = features >= CID_FEATURES;
	about->index_kind = about->concurrency_id ? "concurrency id" : "CPU number";
	about->v2 = about->registered_size > LEGACY_LENGTH && features >= V2_FEATURES;
	about->slice_extension =
		about->v2 && percpu__sys6(SYS_prctl, PRCTL_RSEQ_SLICE, PRCTL_RSEQ_SLICE_GET, 0, 0, 0, 0) >= 0;
	percpu__node_mask = about->node_id ? 0 : ~0U;
	percpu__index_offset =
		about->concurrency_id ? offsetof(struct percpu__rseq, mm_cid) : offsetof(struct percpu__rseq, cpu_id);
}

void percpu__init(void)
{
	uint64_t saved;
	uint32_t was = 0;

	if (__atomic_load_n(&decided, __ATOMIC_ACQUIRE) == 2)
		return;
	/* No handler may find this half done below it. */
	percpu__block_signals(&saved);
	if (__atomic_compare_exchange_n(&decided, &was, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
		fill();
		__atomic_store_n(&decided, 2, __ATOMIC_RELEASE);
		percpu__futex_wake(&decided, __INT_MAX__, ~0U);
	} else {
		while (__atomic_load_n(&decided, __ATOMIC_ACQUIRE) != 2)
			percpu__futex_wait(&decided, 1, ~0U);
	}
	percpu__restore_signals(&saved);
}

__attribute__((constructor(101))) static void init_early(void)
{
	percpu__init();
}

uint32_t percpu__task_id(void)
{
	return (uint32_t)percpu__sys4(SYS_gettid, 0, 0, 0, 0);
}

bool percpu__thread_start(void)
{
	struct percpu__private *me = &percpu__private;
	uint64_t saved;

	percpu__init();
	if (me->state != PERCPU__NEW)
		return me->state == PERCPU__REGISTERED;
	percpu__block_signals(&saved);
	if (me->state == PERCPU__NEW) {
		struct percpu__rseq *area = &me->own;

		me->id = percpu__task_id();
		me->spread = me->id % percpu__process.about.possible_cpus;
		if (percpu__mode() == PERCPU_MODE_NONE)
			me->state = PERCPU__NONE;
		else if (percpu__mode() == PERCPU_MODE_LIBC && libc_serves_this_task())
			me->state = PERCPU__REGISTERED, area = libc_area();
		else if (percpu__mode() == PERCPU_MODE_OWN && register_own() == 0)
			me->state = PERCPU__REGISTERED;
		else
			me->state = PERCPU__UNREGISTERED;
		if (me->state != PERCPU__REGISTERED)
			make_stand_in(area);
		__atomic_store_n(&percpu__self, area, __ATOMIC_RELAXED);
	}
	percpu__restore_signals(&saved);
	return me->state == PERCPU__REGISTERED;
}

struct percpu__rseq *percpu__lend_thread(void)
{
	struct percpu__rseq *area;

	percpu__thread_start();
	area = percpu__self;
	percpu__self = &percpu__newcomer;
	return area;
}

struct percpu__rseq *percpu__true_area(void)
{
	return percpu__mode() == PERCPU_MODE_LIBC ? libc_area() : &percpu__private.own;
}

void percpu__thread_force(enum percpu__force force)
{
	struct percpu__private *me = &percpu__private;

	percpu__thread_start();
	if (me->state != PERCPU__REGISTERED)
		return;
	me->force = (unsigned char)force;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	percpu__self = force == PERCPU__FORCE_OFF ? percpu__true_area() : &percpu__newcomer;
	percpu__thread.rcu = &percpu__rcu_newcomer; /* until its next read section */
}

int percpu__cpu_slow(void)
{
	unsigned cpu = 0;

	if (percpu__thread_start() && percpu__self != &percpu__newcomer)
		return (int)*(volatile uint32_t *)&percpu__self->cpu_id_start;
	return percpu__sys4(SYS_getcpu, (long)&cpu, 0, 0, 0) == 0 ? (int)cpu : 0;
}

int percpu__node_slow(void)
{
	unsigned node = 0;

	return percpu__sys4(SYS_getcpu, 0, (long)&node, 0, 0) == 0 ? (int)node : 0;
}

int percpu__cid_slow(void)
{
	uint32_t cid = percpu__remainder;

	if (percpu__thread_start() && percpu__self != &percpu__newcomer)
		cid = *(volatile uint32_t *)(void *)((char *)percpu__self + percpu__index_offset);
	if (cid >= percpu__remainder)
		cid = (uint32_t)percpu__cpu_slow();
	return cid < percpu__remainder ? (int)cid : 0;
}

int percpu_describe(struct percpu_description *out)
{
	if (!out)
		return -EINVAL;
	percpu__init();
	*out = percpu__process.about;
	out->thread_registered = percpu__thread_start();
	return 0;
}

unsigned percpu_possible_cpus(void)
{
	percpu__init();
	return percpu__process.about.possible_cpus;
}

unsigned percpu_copies(void)
{
	percpu__init();
	return percpu__remainder + 1;
}
