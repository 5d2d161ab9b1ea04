/* SPDX-License-Identifier: MIT */
/*
 * Who gives memory back when nobody comes by any more.
 *
 * After a peak the heap keeps more than it needs, for some time (release.c). A program that rests then makes no call in which
 * that could go. So where there are several threads anyway, one more looks ten times a second, and ends when there is nothing
 * left to decay. It also empties the magazines of indexes on which nobody is seen.
 *
 * It is no thread of the C library's: it is started in a call of free(), which that library makes also where it holds the locks
 * that a thread of its own would take. So it has no part in that library: a stack that is ours, zeros for thread-local storage, all signals
 * blocked; it calls nothing but the kernel and what only takes the heap's locks.
 *
 * There is none in a program with one thread, which may rely on that (as unshare and setns do), nor in one that has given itself
 * a filter of system calls, which may kill who makes a thread. A filter that was there from the start, as in a container, let
 * the other threads pass.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/single_threaded.h>

#include "base/sys.h"
#include "malloc/decay.h"
#include "malloc/front.h"
#include "malloc/options.h"
#include "malloc/region.h"

#define TICK_NS     ((uint64_t)100 * 1000 * 1000)
#define DRAIN_TICKS 20U
/* For so long it stays when nothing decays: indexes that are not used are known by two looks. */
#define LAST_TICKS 45U
/* After the kernel, or a filter, would not have it. */
#define REFUSED_MS 10000U

#define FLAGS                                                                                                          \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |             \
	 CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

/* Two, as the last one may still be on its stack when the next is wanted. */
static struct worker {
	char stack[(size_t)32 << 10] __attribute__((aligned(64)));
	uintptr_t storage[512] __attribute__((aligned(64))); /* what the thread pointer leads to */
	uint32_t tid;                                        /* the kernel makes it 0 when the stack is free */
} workers[2];
static bool working; /* under the heap's lock */
static uint32_t refused_at;
static long filters = -1;

static void work(void)
{
	static uint32_t nobody;
	unsigned last = 0;
	bool more = true;

	percpu__sys4(SYS_prctl, PR_SET_NAME, (long)"percpu-decay", 0, 0);
	for (unsigned tick = 1; more; tick++) {
		struct timespec moment = { 0, 0 };

		percpu__moment_in(TICK_NS, &moment);
		percpu__futex_wait_until(&nobody, 0, ~0U, &moment);
		if (tick % DRAIN_TICKS == 0)
			percpu__front_drain(false);
		percpu__heap_lock();
		last = percpu__release_decayed() ? 0 : last + 1;
		more = last < LAST_TICKS;
		working = more;
		percpu__heap_unlock();
	}
}

/* Returns the thread's number or -errno. */
static long make_thread(struct worker *w)
{
	char *top = w->stack + sizeof(w->stack);
	/* x86-64 finds the thread pointer there. */
	uintptr_t *storage = &w->storage[256];

	*storage = (uintptr_t)storage;
#if defined __x86_64__
	long ret;
	register long ctid __asm__("r10") = (long)&w->tid;
	register long tls __asm__("r8") = (long)storage;

	__asm__ __volatile__("syscall\n\ttestq %%rax, %%rax\n\tjnz 1f\n\txorl %%ebp, %%ebp\n\tcall *%[run]\n\t"
			     "xorl %%edi, %%edi\n\tmovl %[exit], %%eax\n\tsyscall\n\thlt\n1:"
			     : "=a"(ret)
			     : "a"((long)SYS_clone), "D"((long)FLAGS), "S"(top), "d"(&w->tid), "r"(ctid),
			       "r"(tls), [run] "b"(work), [exit] "i"(SYS_exit)
			     : "rcx", "r11", "memory", "cc");
	return ret;
#elif defined __aarch64__
	register long x8 __asm__("x8") = SYS_clone;
	register long x0 __asm__("x0") = FLAGS;
	register long x1 __asm__("x1") = (long)top;
	register long x2 __asm__("x2") = (long)&w->tid;
	register long x3 __asm__("x3") = (long)storage;
	register long x4 __asm__("x4") = (long)&w->tid;
	register long x19 __asm__("x19") = (long)work;

	__asm__ __volatile__(
		"svc 0\n\tcbnz x0, 1f\n\tmov x29, xzr\n\tblr x19\n\tmov x0, xzr\n\tmov x8, %[exit]\n\tsvc 0\n1:"
		: "+r"(x0)
		: "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x19), [exit] "i"(SYS_exit)
		: "memory", "cc");
	return x0;
#else
	(void)top;
	return -ENOSYS;
#endif
}

/* How many filters of system calls this process has; -1: unknown. */
static long count_filters(void)
{
	static const char key[] = "\nSeccomp_filters:";
	static char text[4096];
	long fd, n = 0, some, count = 0;
	const char *at;

	if (percpu__sys4(SYS_prctl, PR_GET_SECCOMP, 0, 0, 0) == 0)
		return 0;
	fd = percpu__sys4(SYS_openat, AT_FDCWD, (long)"/proc/self/status", O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	while ((some = percpu__sys4(SYS_read, fd, (long)text + n, (long)sizeof(text) - 1 - n, 0)) > 0)
		n += some;
	percpu__sys4(SYS_close, fd, 0, 0, 0);
	text[n] = '\0';
	at = strstr(text, key);
	if (!at)
		return -1;
	for (at += sizeof(key) - 1; *at == '\t' || *at == ' '; at++)
		;
	for (; *at >= '0' && *at <= '9'; at++)
		count = count * 10 + (*at - '0');
	return count;
}

/* Those that the process was started with. */
__attribute__((constructor)) static void look_at_filters(void)
{
	filters = count_filters();
}

static bool may_start(void)
{
	uint32_t now = percpu__heap_ms();

	if (percpu__malloc_options.decay == PERCPU__WHEN_NEVER ||
	    (percpu__malloc_options.decay == PERCPU__WHEN_AUTO && __libc_single_threaded) ||
	    (refused_at && now - refused_at < REFUSED_MS))
		return false;
	if (filters >= 0 && count_filters() == filters)
		return true;
	refused_at = now;
	return false;
}

void percpu__decay_start(void)
{
	struct worker *w = __atomic_load_n(&workers[0].tid, __ATOMIC_ACQUIRE) ? &workers[1] : &workers[0];
	uint64_t saved;

	if (working || __atomic_load_n(&w->tid, __ATOMIC_ACQUIRE) || !may_start())
		return;
	percpu__block_signals(&saved);
	working = make_thread(w) > 0;
	percpu__restore_signals(&saved);
	if (!working)
		refused_at = percpu__heap_ms();
}

void percpu__decay_after_fork(void)
{
	working = false;
	for (unsigned i = 0; i < sizeof(workers) / sizeof(workers[0]); i++)
		workers[i].tid = 0;
}
