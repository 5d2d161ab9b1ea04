/* SPDX-License-Identifier: MIT */
/* Topology, the mode and its reasons, and where the thread is. */
#include "unit.h"

#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/membarrier.h>

#include "rseq/thread.h"
#include "sandbox.h"

extern const unsigned int __rseq_size __attribute__((weak));

static const struct {
	const char *text;
	long highest;
} lists[] = {
	{ "0", 0 },
	{ "0\n", 0 },
	{ "0-3", 3 },
	{ "0-3,8,10-11", 11 },
	{ "0-3,8,10-11\n", 11 },
	{ "10-11,0-3", 11 },
	{ "5", 5 },
	{ "7-7", 7 },
	{ "0-65535", 65535 },
	{ "007", 7 },
	{ "", -1 },
	{ "\n", -1 },
	{ ",", -1 },
	{ "-1", -1 },
	{ "-", -1 },
	{ "0-", -1 },
	{ "0-\n", -1 },
	{ "0,", -1 },
	{ "0,\n", -1 },
	{ "0,,1", -1 },
	{ "3-0", -1 },
	{ "0-3-5", -1 },
	{ "0-3;8", -1 },
	{ " 0", -1 },
	{ "0 ", -1 },
	{ "0x3", -1 },
	{ "zero", -1 },
	{ "65536", -1 },
	{ "0-65536", -1 },
	{ "18446744073709551617", -1 },
	{ "99999999999999999999999999999999", -1 },
	{ "0,99999999999999999999999999999999", -1 },
};

static void cpu_lists(void **state)
{
	(void)state;
	for (size_t i = 0; i < UNIT_COUNT(lists); i++) {
		long highest = percpu__parse_cpu_list(lists[i].text);

		if (highest != lists[i].highest)
			fail_msg("\"%s\" gave %ld, not %ld", lists[i].text, highest, lists[i].highest);
	}
}

/* The name of a file with that text, which is gone when the process ends. */
static const char *file_with(const char *text, size_t length)
{
	static char path[64];
	static int fd = -1;

	if (fd >= 0)
		close(fd);
	fd = memfd_create("cpus", MFD_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, length), length);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return path;
}

static void topology_believes_the_list(void **state)
{
	const char *source = NULL;
	char text[16384];
	size_t length = 0;

	(void)state;
	for (size_t i = 0; i < UNIT_COUNT(lists); i++) {
		if (lists[i].highest < 0)
			continue;
		assert_int_equal(percpu__topology(file_with(lists[i].text, strlen(lists[i].text)), &source),
				 lists[i].highest + 1);
		assert_non_null(strstr(source, "possible"));
		assert_null(strstr(source, "mask"));
	}
	/* As long as the kernel can make it: one page. */
	for (int cpu = 0; length < 4000; cpu += 2)
		length += (size_t)snprintf(text + length, sizeof text - length, "%s%d", cpu ? "," : "", cpu);
	length += (size_t)snprintf(text + length, sizeof text - length, ",60000\n");
	assert_int_equal(percpu__topology(file_with(text, length), &source), 60001);
}

static void topology_without_the_list(void **state)
{
	const char *source;
	unsigned missing, highest = 0;
	cpu_set_t set;

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
	for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &set))
			highest = cpu;
	source = NULL;
	missing = percpu__topology("/nonexistent/file", &source);
	assert_true(missing > highest);
	assert_true(missing >= percpu_possible_cpus());
	assert_non_null(strstr(source, "mask"));
	for (size_t i = 0; i < UNIT_COUNT(lists); i++) {
		if (lists[i].highest >= 0)
			continue;
		source = NULL;
		assert_int_equal(percpu__topology(file_with(lists[i].text, strlen(lists[i].text)), &source), missing);
		assert_non_null(strstr(source, "mask"));
	}
	/* A folder can be opened but not read. */
	assert_int_equal(percpu__topology("/", &source), missing);
}

static int topology_in_a_sandbox(void)
{
	const char *source = NULL;
	unsigned cpus;

	if (sandbox_deny(SYS_sched_getaffinity, EPERM))
		return UNIT_SKIPPED;
	cpus = percpu__topology("/nonexistent/file", &source);
	return !(cpus >= 64 && cpus % 64 == 0 && strstr(source, "guess"));
}

static void topology_without_list_and_affinity(void **state)
{
	int rc = unit_in_child(topology_in_a_sandbox);

	(void)state;
	if (rc == UNIT_SKIPPED)
		skip();
	assert_int_equal(rc, 0);
}

static void description(void **state)
{
	struct percpu_description about;
	unsigned long features = getauxval(27);
	const char *source;

	(void)state;
	assert_int_equal(percpu_describe(NULL), -EINVAL);
	memset(&about, 0xaa, sizeof about);
	assert_int_equal(percpu_describe(&about), 0);
	assert_int_equal(about.possible_cpus, percpu_possible_cpus());
	assert_int_equal(about.possible_cpus, percpu__topology("/sys/devices/system/cpu/possible", &source));
	assert_string_equal(about.topology, source);
	assert_int_equal(percpu_copies(), about.possible_cpus + 1);
	assert_true(strlen(about.reason) > 10);
#if defined __x86_64__
	assert_string_equal(about.arch, "x86_64");
#elif defined __aarch64__
	assert_string_equal(about.arch, "aarch64");
#endif
	switch (about.mode) {
	case PERCPU_MODE_NONE:
		assert_string_equal(about.mode_name, "none");
		assert_string_equal(about.index_kind, "any");
		assert_int_equal(about.registered_size, 0);
		assert_false(about.thread_registered);
		assert_false(about.v2);
		assert_false(about.slice_extension);
		break;
	case PERCPU_MODE_LIBC:
	case PERCPU_MODE_OWN:
		assert_string_equal(about.mode_name, about.mode == PERCPU_MODE_OWN ? "own" : "libc");
		assert_true(about.fence);
		assert_true(about.thread_registered);
		assert_true(about.registered_size >= 20);
		assert_int_equal(about.feature_size, features ? features : 20);
		if (features >= 28) {
			assert_true(about.concurrency_id);
			assert_true(about.node_id);
		}
		assert_string_equal(about.index_kind, about.concurrency_id ? "concurrency id" : "CPU number");
		if (about.v2)
			assert_true(features >= 33 && about.registered_size > 32);
		break;
	default:
		fail();
	}
}

/* What the calling thread is told, on each CPU where it may run. */
static const char *look_around(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof set, &set))
		return "no affinity";
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		unsigned there, node;

		if (!CPU_ISSET((size_t)cpu, &set))
			continue;
		if (unit_pin(cpu) || syscall(SYS_getcpu, &there, &node, NULL))
			return "cannot be pinned";
		if (percpu_cpu() != cpu || sched_getcpu() != cpu)
			return "not the CPU where it is pinned";
		if (percpu_node() != (int)node)
			return "not the node of this CPU";
		if (percpu_cid() < 0 || (unsigned)percpu_cid() >= percpu_possible_cpus())
			return "a concurrency id out of range";
	}
	sched_setaffinity(0, sizeof set, &set);
	return NULL;
}

static void *look_around_in_a_thread(void *arg)
{
	struct {
		enum percpu__force force;
		const char *wrong;
	} *how = arg;

	/* Once as a thread that never did anything, once as one that the library knows, and once forced. */
	how->wrong = look_around();
	percpu__thread_start();
	if (!how->wrong)
		how->wrong = look_around();
	percpu__thread_force(how->force);
	if (!how->wrong)
		how->wrong = look_around();
	percpu__thread_force(PERCPU__FORCE_OFF);
	if (!how->wrong)
		how->wrong = look_around();
	return NULL;
}

static void where_the_thread_is(void **state)
{
	struct {
		enum percpu__force force;
		const char *wrong;
	} how[] = { { PERCPU__FORCE_OFF, NULL }, { PERCPU__FORCE_GATE, NULL }, { PERCPU__FORCE_REMAINDER, NULL } };

	(void)state;
	assert_null(look_around());
	unit_threads(UNIT_COUNT(how), look_around_in_a_thread, how, sizeof *how);
	for (size_t i = 0; i < UNIT_COUNT(how); i++)
		if (how[i].wrong)
			fail_msg("forced %zu: %s", i, how[i].wrong);
}

static int where_in_a_sandbox(void)
{
	if (sandbox_deny(SYS_getcpu, EPERM))
		return UNIT_SKIPPED;
	percpu__thread_force(PERCPU__FORCE_REMAINDER);
	return percpu_cpu() != 0 || percpu_node() != 0 || percpu_cid() < 0 ||
	       (unsigned)percpu_cid() >= percpu_possible_cpus();
}

/* Zero where neither the kernel's words nor the system call can be had; never a number out of range. */
static void where_if_nobody_says(void **state)
{
	int rc;

	(void)state;
	rc = unit_in_child(where_in_a_sandbox);
	if (rc == UNIT_SKIPPED)
		skip();
	assert_int_equal(rc, 0);
}

static void *start_and_describe(void *arg)
{
	struct percpu_description about;
	bool *registered = arg;

	*registered = percpu_describe(&about) == 0 && about.thread_registered;
	return NULL;
}

static void every_thread_registers(void **state)
{
	bool registered[40];

	(void)state;
	unit_threads(UNIT_COUNT(registered), start_and_describe, registered, sizeof *registered);
	for (size_t i = 0; i < UNIT_COUNT(registered); i++)
		assert_int_equal(registered[i], !unit_in_mode(PERCPU_MODE_NONE));
}

/*
 * The mode, through a new process for each environment. That process also says what it found without the library's help:
 * whether libc registered it, whether the kernel has rseq and the fence, and what the auxiliary vector says.
 */
static int tell(void)
{
	struct percpu_description about;
	long commands = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
	bool kernel = syscall(SYS_rseq, NULL, 0, 0, 0) == 0 || errno == EINVAL || errno == EBUSY || errno == EPERM;

	percpu_describe(&about);
	printf("%s libc=%d kernel=%d fence=%d %s\n", about.mode_name, &__rseq_size && __rseq_size > 0, kernel,
	       commands > 0 && (commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ), about.reason);
	return 0;
}

static void ask(const char *wish, bool libc_rseq, char *answer, int size)
{
	char path[4096] = "";
	const char *environment[4];
	size_t n = 0;
	char variable[64];
	int fds[2], status;
	ssize_t length, got;
	pid_t child;

	assert_true(readlink("/proc/self/exe", path, sizeof path - 1) > 0);
	if (wish) {
		snprintf(variable, sizeof variable, "PERCPU_RSEQ=%s", wish);
		environment[n++] = variable;
	}
	if (!libc_rseq)
		environment[n++] = "GLIBC_TUNABLES=glibc.pthread.rseq=0";
	environment[n++] = "ASAN_OPTIONS=detect_leaks=0";
	environment[n] = NULL;
	assert_int_equal(pipe(fds), 0);
	child = fork();
	if (child == 0) {
		dup2(fds[1], 1);
		execve(path, (char *[]){ path, (char *)"--tell", NULL }, (char **)(uintptr_t)environment);
		_exit(98);
	}
	close(fds[1]);
	for (length = 0; (got = read(fds[0], answer + length, (size_t)(size - 1 - length))) > 0; length += got)
		;
	answer[length] = '\0';
	close(fds[0]);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

static void the_environment_decides(void **state)
{
	static const struct {
		const char *wish;
		bool libc_rseq;
		char expected; /* as libc and kernel allow: l, o, none, a whichever comes first */
		const char *reason;
	} cases[] = {
		{ NULL, true, 'a', "" },
		{ "", true, 'a', "" },
		{ "auto", true, 'a', "" },
		{ "libc", true, 'l', "" },
		{ "own", true, 'n', "PERCPU_RSEQ=own" },
		{ "off", true, 'n', "PERCPU_RSEQ=off" },
		{ "rubbish", true, 'a', "unknown value" },
		{ NULL, false, 'a', "" },
		{ "auto", false, 'a', "" },
		{ "libc", false, 'l', "PERCPU_RSEQ=libc" },
		{ "own", false, 'o', "PERCPU_RSEQ=own" },
		{ "off", false, 'n', "PERCPU_RSEQ=off" },
		{ "OFF", false, 'a', "unknown value" },
	};

	(void)state;
	for (size_t i = 0; i < UNIT_COUNT(cases); i++) {
		char answer[512], mode[16];
		int libc, kernel, fence;
		const char *expected = "none";

		ask(cases[i].wish, cases[i].libc_rseq, answer, sizeof answer);
		assert_int_equal(sscanf(answer, "%15s libc=%d kernel=%d fence=%d", mode, &libc, &kernel, &fence), 4);
		if (!cases[i].libc_rseq)
			assert_int_equal(libc, 0);
		if (fence && (cases[i].expected == 'a' || cases[i].expected == 'l') && libc)
			expected = "libc";
		else if (fence && kernel && !libc && (cases[i].expected == 'a' || cases[i].expected == 'o'))
			expected = "own";
		if (strcmp(mode, expected) != 0 || (fence && kernel && !strstr(answer, cases[i].reason)))
			fail_msg("PERCPU_RSEQ=%s: expected %s, got %s", cases[i].wish ? cases[i].wish : "(unset)",
				 expected, answer);
	}
}

static int describe_in_a_sandbox(int call, int error)
{
	if (sandbox_deny(call, error))
		return UNIT_SKIPPED;
	execl("/proc/self/exe", "rseq", "--tell", NULL);
	return 98;
}

static int without_membarrier(void)
{
	return describe_in_a_sandbox(SYS_membarrier, EPERM);
}

static int without_rseq(void)
{
	return describe_in_a_sandbox(SYS_rseq, ENOSYS);
}

static int with_rseq_denied(void)
{
	return describe_in_a_sandbox(SYS_rseq, EPERM);
}

/* The sandbox closes after the library has decided, before its first operation. */
static int tell_in_a_late_sandbox(void)
{
	struct percpu_description about;
	uint64_t *object;

	if (sandbox_deny(SYS_rseq, EPERM))
		return UNIT_SKIPPED;
	object = percpu_alloc(sizeof *object, sizeof *object);
	percpu_this_add(object, 1);
	percpu_describe(&about);
	printf("%s registered=%d remainder=%d\n", about.mode_name, about.thread_registered,
	       (int)*(volatile uint64_t *)percpu_ptr(object, percpu_copies() - 1));
	return 0;
}

static int late_sandbox(void)
{
	execl("/proc/self/exe", "rseq", "--tell-late", NULL);
	return 98;
}

/*
 * Another library may have registered the thread before we come. This one does, in a process that is asked to: it runs
 * before all constructors.
 */
static char foreign_area[64] __attribute__((aligned(64)));

static void register_foreign(int argc, char **argv, char **environment)
{
	(void)argc;
	(void)argv;
	for (; *environment; environment++)
		if (strcmp(*environment, "PERCPU_UNIT_FOREIGN=1") == 0)
			syscall(SYS_rseq, foreign_area, 32, 0, 0x12345678);
}

__attribute__((section(".preinit_array"), used)) static void (*const run_early)(int argc, char **argv,
										char **environment) = register_foreign;

static int foreign(void)
{
	setenv("PERCPU_UNIT_FOREIGN", "1", 1);
	setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0", 1);
	unsetenv("PERCPU_RSEQ");
	execl("/proc/self/exe", "rseq", "--tell", NULL);
	return 98;
}

static int output_of(int (*what)(void), char *out, size_t size)
{
	int rc, saved = dup(1), fd = memfd_create("output", MFD_CLOEXEC);
	ssize_t length;

	fflush(stdout);
	dup2(fd, 1);
	rc = unit_in_child(what);
	dup2(saved, 1);
	close(saved);
	length = pread(fd, out, size - 1, 0);
	out[length > 0 ? length : 0] = '\0';
	close(fd);
	return rc;
}

static void a_sandbox_decides(void **state)
{
	static const struct {
		int (*what)(void);
		const char *reason;
	} cases[] = { { without_membarrier, "membarrier" },
		      { without_rseq, "no rseq system call" },
		      { with_rseq_denied, "denied" } };
	char out[512];

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	for (size_t i = 0; i < UNIT_COUNT(cases); i++) {
		int rc = output_of(cases[i].what, out, sizeof out);

		if (rc == UNIT_SKIPPED)
			skip();
		assert_int_equal(rc, 0);
		assert_memory_equal(out, "none ", 5);
		if (!strstr(out, cases[i].reason))
			fail_msg("not \"%s\" but %s", cases[i].reason, out);
	}
}

static void a_sandbox_that_closes_late(void **state)
{
	char out[512];
	int rc;

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	rc = output_of(late_sandbox, out, sizeof out);
	if (rc == UNIT_SKIPPED)
		skip();
	assert_int_equal(rc, 0);
	/* The kernel still serves the thread that was registered before. */
	assert_string_equal(out, unit_in_mode(PERCPU_MODE_LIBC) ? "libc registered=1 remainder=0\n"
								: "own registered=1 remainder=0\n");
}

static void another_library_was_first(void **state)
{
	char out[512];

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	assert_int_equal(output_of(foreign, out, sizeof out), 0);
	assert_memory_equal(out, "none ", 5);
	assert_non_null(strstr(out, "another library"));
}

/* New threads that cannot register work on the remainder, beside one that is registered. */
static uint64_t *object;

static void *add_unregistered(void *arg)
{
	struct percpu_description about;

	for (int i = 0; i < 1000; i++)
		percpu_this_add(object, 1);
	percpu_describe(&about);
	*(int *)arg = about.thread_registered;
	return NULL;
}

static int threads_in_a_sandbox(void)
{
	int registered[3] = { 1, 1, 1 };
	uint64_t sum = 0;
	pthread_t threads[3];

	object = percpu_alloc(sizeof *object, sizeof *object);
	percpu_this_add(object, 1);
	if (!object || sandbox_deny(SYS_rseq, EPERM))
		return UNIT_SKIPPED;
	for (int i = 0; i < 3; i++)
		if (pthread_create(&threads[i], NULL, add_unregistered, &registered[i]))
			return 1;
	for (int i = 0; i < 1000; i++)
		percpu_this_add(object, 1);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	percpu_for_each_index(index)
		sum += *(volatile uint64_t *)percpu_ptr(object, index);
	if (registered[0] || registered[1] || registered[2])
		return 2;
	return sum == 4001 && *(volatile uint64_t *)percpu_ptr(object, percpu_copies() - 1) == 3000 ? 0 : 3;
}

static void threads_that_cannot_register(void **state)
{
	int rc;

	(void)state;
	/* A C library that cannot register a thread ends the process. */
	if (!unit_in_mode(PERCPU_MODE_OWN))
		skip();
	rc = unit_in_child(threads_in_a_sandbox);
	if (rc == UNIT_SKIPPED)
		skip();
	assert_int_equal(rc, 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cpu_lists),
		cmocka_unit_test(topology_believes_the_list),
		cmocka_unit_test(topology_without_the_list),
		cmocka_unit_test(topology_without_list_and_affinity),
		cmocka_unit_test(description),
		cmocka_unit_test(where_the_thread_is),
		cmocka_unit_test(where_if_nobody_says),
		cmocka_unit_test(every_thread_registers),
		cmocka_unit_test(the_environment_decides),
		cmocka_unit_test(a_sandbox_decides),
		cmocka_unit_test(a_sandbox_that_closes_late),
		cmocka_unit_test(another_library_was_first),
		cmocka_unit_test(threads_that_cannot_register),
	};

	if (argc > 1 && strcmp(argv[1], "--tell") == 0)
		return tell();
	if (argc > 1 && strcmp(argv[1], "--tell-late") == 0)
		return tell_in_a_late_sandbox();
	return unit_main(tests);
}
