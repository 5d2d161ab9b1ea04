/* SPDX-License-Identifier: MIT */
/*
 * What an architecture's assembly outside of the sections must get right: the doors to the slow path keep every register
 * that they promise, vfork and clone lend thread-local storage and take it back, a forked child goes on, and sections
 * that are interrupted half way abort. Prints how the library works here, for the table.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <rseq/thread.h>

#include "arch.h"

#define AUX_RSEQ_FEATURE_SIZE 27
#define STACK_BYTES           65536

static enum percpu_mode mode;
static struct percpu_counter counter;
static uint64_t *word;
static char child_stack[STACK_BYTES] __attribute__((aligned(64)));

static uint64_t sum_of(const uint64_t *object)
{
	uint64_t sum = 0;

	percpu_for_each_index(i)
		sum += *percpu_ptr((const volatile uint64_t *)object, i);
	return sum;
}

static void describe(void)
{
	struct percpu_description about;
	unsigned long features = getauxval(AUX_RSEQ_FEATURE_SIZE);
	const char *kind = mode == PERCPU_MODE_NONE ? "any" : features >= 28 ? "concurrency id" : "CPU number";

	percpu_describe(&about);
	printf("@index %s\n@size %u of %u\n@abi %s\n", about.index_kind, about.registered_size, about.feature_size,
	       mode == PERCPU_MODE_NONE ? "-"
	       : about.v2               ? "V2"
					: "legacy");
	printf("%s, %u possible CPUs (%s): %s\n", about.arch, about.possible_cpus, about.topology, about.reason);
	expect("the kind of index that this kernel gives", strcmp(about.index_kind, kind) == 0);
	expect("V2 just where the kernel and the length say so",
	       about.v2 == (mode != PERCPU_MODE_NONE && features >= 33 && about.registered_size > 32));
	expect("registered just where there are sections", about.thread_registered == (mode != PERCPU_MODE_NONE));
	expect_equal("possible CPUs", about.possible_cpus, (uint64_t)sysconf(_SC_NPROCESSORS_CONF));
}

/* On each CPU in turn, so that the answer is known. */
static void positions(void)
{
	bool cpus = true, nodes = true, ids = true;
	unsigned node;
	cpu_set_t all, one;

	sched_getaffinity(0, sizeof all, &all);
	for (int cpu = 0; cpu < (int)percpu_possible_cpus(); cpu++) {
		CPU_ZERO(&one);
		CPU_SET((size_t)cpu, &one);
		if (sched_setaffinity(0, sizeof one, &one))
			continue;
		must("getcpu", syscall(SYS_getcpu, NULL, &node, NULL) == 0);
		cpus &= percpu_cpu() == cpu;
		nodes &= percpu_node() == (int)node;
		ids &= percpu_cid() >= 0 && percpu_cid() < (int)percpu_possible_cpus();
	}
	sched_setaffinity(0, sizeof all, &all);
	expect("percpu_cpu", cpus);
	expect("percpu_node", nodes);
	expect("percpu_cid", ids);
}

/*
 * Many values in registers of both kinds across additions that all take a door to the slow path; the same once more with
 * no addition in between. Whatever the door loses makes a difference.
 */
static uint64_t keep_registers(bool add, unsigned rounds)
{
	double a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7, h = 8, i = 9, j = 10, k = 11, l = 12;
	uint64_t m = 1, n = 2, o = 3, p = 4, q = 5, r = 6, s = 7, t = 8, u = 9, v = 10;
	double all;
	uint64_t bits;

	for (unsigned round = 0; round < rounds; round++) {
		if (add) {
			percpu_counter_add(&counter, m & 1);
			percpu_this_add(word, n & 1);
		}
		a += b / 3, b += c / 5, c += d / 7, d += e / 11, e += f / 13, f += g / 17, g += h / 19, h += i / 23;
		i += j / 29, j += k / 31, k += l / 37, l += a / 41;
		a -= c / 2, d -= e / 2, g -= j / 2;
		m += n ^ o, n += o ^ p, o += p ^ q, p += q ^ r, q += r ^ s, r += s ^ t, s += t ^ u, t += u ^ v,
			u += v ^ m;
		v += m ^ n;
	}
	all = a + b + c + d + e + f + g + h + i + j + k + l;
	memcpy(&bits, &all, sizeof bits);
	return bits ^ m ^ n ^ o ^ p ^ q ^ r ^ s ^ t ^ u ^ v;
}

static void doors(void)
{
	uint64_t wanted = keep_registers(false, 2000);

	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	expect("registers kept on the way to the remainder", keep_registers(true, 2000) == wanted);
	percpu__thread_force(PERCPU__FORCE_GATE);
	expect("registers kept on the way to a gate", keep_registers(true, 2000) == wanted);
	percpu__thread_force(PERCPU__FORCE_OFF);
	expect("registers kept by sections", keep_registers(true, 2000) == wanted);
}

static bool on_sections(void)
{
	return percpu__self != &percpu__newcomer;
}

static void count_hundred(void)
{
	for (int i = 0; i < 50; i++) {
		percpu_counter_inc(&counter);
		percpu_this_add(word, 1);
	}
}

/* Values that live in callee-saved registers across the call that returns twice. */
static __attribute__((noinline)) bool vfork_once(uint64_t a, uint64_t b, uint64_t c, uint64_t d, double x, double y)
{
	struct percpu__rseq *area = percpu__self;
	int status = -1;
	pid_t pid = vfork();

	if (pid == 0) {
		/* The child: on its parent's storage, which the kernel serves for the parent only. */
		if (percpu__self == area && percpu__mode() != PERCPU_MODE_NONE && area != &percpu__newcomer)
			_exit(3);
		count_hundred();
		_exit(42);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return false;
	return WIFEXITED(status) && WEXITSTATUS(status) == 42 && percpu__self == area &&
	       a * 1000 + b * 100 + c * 10 + d == 1234 && x * y == 12;
}

static int clone_child(void *arg)
{
	count_hundred();
	return on_sections() && mode != PERCPU_MODE_NONE ? 3 : *(int *)arg;
}

static bool clone_once(int flags, int expected)
{
	int status = -1;
	pid_t pid = clone(clone_child, child_stack + sizeof child_stack, flags | SIGCHLD, &expected);

	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == expected;
}

static void deny(const int *calls, unsigned count)
{
	struct sock_filter filter[16] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)) };
	struct sock_fprog program = { .filter = filter };
	unsigned n = 1;

	for (unsigned i = 0; i < count; i++) {
		filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)calls[i], 0, 1);
		filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN);
	}
	filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	program.len = (unsigned short)n;
	must("seccomp",
	     prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* In a child of its own, for a filter never goes away. */
static int vfork_denied(void)
{
#ifdef SYS_vfork
	static const int calls[] = { SYS_clone, SYS_vfork };
#else
	static const int calls[] = { SYS_clone };
#endif
	struct percpu__rseq *area = percpu__self;

	deny(calls, sizeof calls / sizeof *calls);
	errno = 0;
	if (vfork() != -1 || errno != EAGAIN || percpu__self != area)
		return 1;
	errno = 0;
	if (clone(clone_child, child_stack + sizeof child_stack, CLONE_VM | SIGCHLD, NULL) != -1 || errno != EAGAIN ||
	    percpu__self != area)
		return 2;
	count_hundred();
	return sum_of(word) > 0 ? 0 : 3;
}

static int in_child(int (*what)(void))
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		fflush(stdout);
		_exit(what());
	}
	must("fork", pid > 0 && waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int count_in_child(void)
{
	uint64_t before = percpu_counter_read(&counter), words = sum_of(word);

	count_hundred();
	return percpu_counter_read(&counter) == before + 50 && sum_of(word) == words + 50 &&
			       vfork_once(1, 2, 3, 4, 3, 4) && percpu_counter_read(&counter) == before + 100 &&
			       sum_of(word) == words + 100
		       ? 0
		       : 1;
}

static void *lend_forever(void *arg)
{
	bool *right = arg;

	percpu_this_add(word, 0);
	*right = clone_once(CLONE_VM, 45) && (mode == PERCPU_MODE_NONE || !on_sections());
	count_hundred();
	return NULL;
}

static void tasks(void)
{
	uint64_t before = percpu_counter_read(&counter), words = sum_of(word);
	bool right = false;
	pthread_t thread;

	expect("vfork", vfork_once(1, 2, 3, 4, 3, 4) && vfork_once(1, 2, 3, 4, 3, 4));
	expect("clone that shares memory and waits", clone_once(CLONE_VM | CLONE_VFORK, 43));
	expect("clone that shares nothing", clone_once(0, 44) || mode != PERCPU_MODE_NONE);
	expect("back on sections afterwards", on_sections());
	must("thread", pthread_create(&thread, NULL, lend_forever, &right) == 0 && pthread_join(thread, NULL) == 0);
	expect("clone that shares memory and runs on", right);
	expect_equal("counted by such tasks", percpu_counter_read(&counter), before + 250);
	expect_equal("added by such tasks", sum_of(word), words + 250);
	expect_equal("fork", (uint64_t)in_child(count_in_child), 0);
	expect_equal("vfork and clone that are denied", (uint64_t)in_child(vfork_denied), 0);
}

static struct percpu_counter shared;

static int count_shared(void)
{
	for (int i = 0; i < 20000; i++)
		percpu_counter_add_shared(&shared, 1);
	return 0;
}

static void processes(void)
{
	int fd = memfd_create("shared", MFD_CLOEXEC), status, wrong = 0;
	void *base;

	must("shared area", fd >= 0 && percpu_area_map(fd, &base) == 0);
	must("shared counter", percpu_counter_init_shared(&shared, (uint64_t *)(void *)((char *)base + 64)) == 0);
	for (int i = 0; i < 3; i++)
		if (fork() == 0)
			_exit(count_shared());
	count_shared();
	while (wait(&status) > 0)
		wrong += status != 0;
	expect_equal("processes that count", (uint64_t)wrong, 0);
	expect_equal("shared counter", percpu_counter_read(&shared), 80000);
	must("unmap", percpu_area_unmap(base) == 0);
	close(fd);
}

#define LONG_BYTES 65536
#define LONG_TASKS 8
#define ENOUGH     40

struct patch {
	uint64_t version;
	unsigned char bytes[LONG_BYTES];
};

static struct patch *patch;
static atomic_uint aborts, commits;

static void on_alarm(int number)
{
	(void)number;
}

/* Sections long enough to be interrupted, tried once each: what returns "left" was aborted, for no gate is ever closed. */
static void *copy_long(void *arg)
{
	unsigned char *source = malloc(LONG_BYTES);
	unsigned number = (unsigned)(uintptr_t)arg;

	must("memory", source != NULL);
	memset(source, (int)number, LONG_BYTES);
	percpu_this_add(word, 0);
	for (unsigned i = 0; i < 10000 && atomic_load(&aborts) < ENOUGH; i++) {
		uint64_t version = *(volatile uint64_t *)&percpu_this_ptr(patch)->version;
#ifndef PERCPU_NO_SECTIONS
		switch (percpu__try_copy_store(&patch->version, version, patch->bytes, source, LONG_BYTES, version + 1,
					       PERCPU__BY_ID, i & 1 ? PERCPU__RELAXED : PERCPU__RELEASE)) {
		case PERCPU__DONE:
			atomic_fetch_add(&commits, 1);
			break;
		case PERCPU__LEFT:
			atomic_fetch_add(&aborts, 1);
			break;
		default:
			break;
		}
#endif
	}
	free(source);
	return NULL;
}

static void interruptions(void)
{
	struct itimerval tick = { { 0, 1000 }, { 0, 1000 } }, none = { { 0, 0 }, { 0, 0 } };
	struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	pthread_t threads[LONG_TASKS];
	uint64_t versions = 0;

	if (mode == PERCPU_MODE_NONE) {
		printf("@aborts -\n");
		return;
	}
	patch = percpu_alloc(sizeof *patch, 64);
	must("memory", patch != NULL);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &tick, NULL);
	for (uintptr_t i = 0; i < LONG_TASKS; i++)
		must("thread", pthread_create(&threads[i], NULL, copy_long, (void *)i) == 0);
	for (int i = 0; i < LONG_TASKS; i++)
		pthread_join(threads[i], NULL);
	setitimer(ITIMER_REAL, &none, NULL);
	percpu_for_each_index(i)
		versions += percpu_ptr(patch, i)->version;
	printf("@aborts %u\n%u commits\n", atomic_load(&aborts), atomic_load(&commits));
	expect("sections that were interrupted were aborted", atomic_load(&aborts) >= ENOUGH);
	expect_equal("sections that committed did so once", versions, atomic_load(&commits));
	percpu_free(patch);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	mode = arch_mode();
	must("counter", percpu_counter_init(&counter) == 0);
	word = percpu_alloc(sizeof *word, sizeof *word);
	must("word", word != NULL);
	describe();
	positions();
	doors();
	tasks();
	processes();
	interruptions();
	return arch_failures != 0;
}
