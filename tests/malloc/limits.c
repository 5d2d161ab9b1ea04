/* SPDX-License-Identifier: MIT */
/*
 * A malloc where memory ends: NULL and ENOMEM, never damage or death, and all is well again once something was freed.
 *
 *   malloc-limits address-space|exec|threads|cgroup
 *
 * Each case in a child. Under a limit of the address space nothing more can be mapped; a memory control group gives no
 * error at all, it kills: there it must do with what it has, use memory of one size again for another, and give back what
 * malloc_trim() asks for. The group is made below that of the process, if that was delegated to who runs there, as systemd
 * marks it; or below the directory that PERCPU_TEST_CGROUP names. Any other has an owner who makes groups there alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "subject.h"

#define MIB           ((size_t)1 << 20)
#define ROOM          (64 * MIB)
#define GROUP_LIMIT   (96 * MIB)
#define CHILD_SECONDS 60
#define MOST_OBJECTS  (ROOM / 16)

static const size_t sizes[] = { 16, 48, 200, 1000, 4096, 20000, 100000, 300000, 2 * MIB, 5 * MIB };

/* Not from malloc. */
static void **objects;
static const char *what = "";
static bool started; /* under the limit */

__attribute__((format(printf, 1, 2), noreturn)) static void wrong(const char *format, ...)
{
	char line[300];
	va_list list;
	size_t length = (size_t)snprintf(line, sizeof line / 2, "%s: ", what);

	va_start(list, format);
	vsnprintf(line + length, sizeof line - length - 1, format, list);
	va_end(list);
	length = strlen(line);
	line[length++] = '\n';
	if (write(STDERR_FILENO, line, length) < 0)
		_exit(2);
	_exit(1);
}

static void *map(size_t size)
{
	void *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (mapping == MAP_FAILED)
		wrong("no memory for the test itself");
	return mapping;
}

static void limit_address_space(size_t more)
{
	struct rlimit limit = { subject_address_space() + more, RLIM_INFINITY };

	if (limit.rlim_cur == more || setrlimit(RLIMIT_AS, &limit))
		wrong("setrlimit: %s", strerror(errno));
}

/* By one of the family's functions after the other. */
static void *allocate(size_t i, size_t size)
{
	void *object = NULL;

	switch (i % 5) {
	case 0:
		return calloc(1, size);
	case 1:
		return realloc(NULL, size);
	case 2:
		errno = posix_memalign(&object, 32, size);
		return errno ? NULL : object;
	default:
		return malloc(size);
	}
}

/* The table of them must leave room for the objects. */
static size_t most_started(void)
{
	struct rlimit limit = { 0, 0 };

	getrlimit(RLIMIT_AS, &limit);
	return limit.rlim_cur / 48 < MOST_OBJECTS / 2 ? limit.rlim_cur / 48 : MOST_OBJECTS / 2;
}

/* Until there is no more. Returns how many. */
static size_t fill(size_t size)
{
	size_t n = 0, most = started ? most_started() : MOST_OBJECTS;

	if (most > 4 * ROOM / size)
		most = 4 * ROOM / size;
	for (; n < most; n++) {
		errno = 0;
		objects[n] = allocate(n, size);
		if (!objects[n])
			break;
		subject_fill(objects[n], size, n);
	}
	if (n == most) {
		/* What was reserved before counts no more. (Where the limit is there from the start, this cannot be.) */
		printf("%s: more than %zu objects of %zu bytes, from what was reserved before\n", what, n, size);
		fflush(stdout);
		_exit(started);
	}
	if (errno != ENOMEM)
		wrong("NULL for %zu bytes, and errno is %d", size, errno);
	return n;
}

static void verify(size_t from, size_t n, size_t step, size_t size)
{
	for (size_t i = from; i < n; i += step)
		if (objects[i] && subject_damage(objects[i], size, i, size) != size)
			wrong("object %zu of %zu, of %zu bytes, is damaged", i, n, size);
}

static void free_some(size_t from, size_t n, size_t step)
{
	int before = errno = 77;

	for (size_t i = from; i < n; i += step) {
		free(objects[i]);
		objects[i] = NULL;
		if (errno != before)
			wrong("free changed errno to %d", errno);
	}
}

/* At the limit every function says so, again and again, and objects that are there stay whole. */
static void check_refusals(size_t size)
{
	char *object = objects[0], *same = object;
	void *out = &out;

	for (int i = 0; i < 50; i++) {
		size_t more = ROOM + (size_t)i * 4096;

#define refused(call)                                                                                                  \
	do {                                                                                                           \
		errno = 0;                                                                                             \
		if ((call) != NULL || errno != ENOMEM)                                                                 \
			wrong("%s: errno %d", #call, errno);                                                           \
	} while (0)
		refused(malloc(more));
		refused(calloc(more, 1));
		refused(realloc(object, more));
		refused(aligned_alloc(4096, more));
		refused(memalign(1 << 21, more));
		refused(valloc(more));
		if (posix_memalign(&out, 64, more) != ENOMEM || out != &out)
			wrong("posix_memalign");
	}
	if (object != same || subject_damage(object, size, 0, size) != size)
		wrong("a refused realloc changed its object");
}

static void at_the_limit(size_t size)
{
	size_t n = fill(size), again = 0, other = size < 10000 ? 300000 : 100;

	if (n * (size + 16) < ROOM / 2)
		wrong("only %zu objects of %zu bytes within %zu", n, size, ROOM);
	check_refusals(size);
	verify(0, n, 1, size);
	/* Every other one goes: about as many of them can be had again. (Aligned ones may have been of another class.) */
	free_some(1, n, 2);
	for (size_t i = 1; i < n && (objects[i] = malloc(size)); i += 2, again++)
		subject_fill(objects[i], size, i);
	if (again < n / 2 / 4 * 3)
		wrong("%zu of %zu bytes were freed, then only %zu could be had", n / 2, size, again);
	verify(0, n, 1, size);
	free_some(0, n, 1);
	again = fill(size);
	if (again < n / 4 * 3)
		wrong("%zu of %zu bytes at first, all freed, then %zu", n, size, again);
	verify(0, again, 1, size);
	free_some(0, again, 1);
	/* What was of one size serves another. */
	again = fill(other);
	if (again * other < n * size / 2)
		wrong("%zu of %zu bytes, all freed, then only %zu of %zu", n, size, again, other);
	verify(0, again, 1, other);
	free_some(0, again, 1);
}

static size_t current_size;

static int address_space_case(void)
{
	limit_address_space(ROOM);
	at_the_limit(current_size);
	return 0;
}

/* --- threads --- */

static pthread_barrier_t barrier;

/* Its first malloc of all is at the limit. */
static void *begin_at_limit(void *arg)
{
	cpu_set_t set;
	void *object;

	CPU_ZERO(&set);
	CPU_SET((size_t)(uintptr_t)arg % (size_t)sysconf(_SC_NPROCESSORS_ONLN), &set);
	sched_setaffinity(0, sizeof set, &set);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	for (size_t i = 0; i < SUBJECT_COUNT(sizes); i++) {
		errno = 0;
		object = malloc(sizes[i]);
		if (!object && errno != ENOMEM)
			wrong("in a new thread, NULL and errno %d", errno);
		if (object)
			subject_fill(object, sizes[i], i);
		free(object);
	}
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	object = malloc(1000);
	if (!object)
		wrong("NULL in a thread after another had freed everything");
	free(object);
	return NULL;
}

static void *nothing(void *arg)
{
	return arg;
}

static int threads_case(void)
{
	pthread_t some[4], more;
	size_t n[2];

	pthread_barrier_init(&barrier, NULL, SUBJECT_COUNT(some) + 1);
	for (uintptr_t i = 0; i < SUBJECT_COUNT(some); i++)
		if (pthread_create(&some[i], NULL, begin_at_limit, (void *)i))
			wrong("no thread");
	pthread_barrier_wait(&barrier);
	limit_address_space(ROOM);
	/* What is large first, then what is small in between. */
	n[0] = fill(4096);
	objects += n[0];
	n[1] = fill(24);
	objects -= n[0];
	pthread_barrier_wait(&barrier);
	/* (A new thread needs a stack; it may not get it, that is all.) */
	if (pthread_create(&more, NULL, nothing, NULL) == 0)
		pthread_join(more, NULL);
	if (fopen("/dev/null", "r") == NULL && errno != ENOMEM)
		wrong("fopen: errno %d", errno);
	pthread_barrier_wait(&barrier);
	verify(0, n[0], 1, 4096);
	free_some(0, n[0] + n[1], 1);
	pthread_barrier_wait(&barrier);
	for (size_t i = 0; i < SUBJECT_COUNT(some); i++)
		pthread_join(some[i], NULL);
	if (pthread_create(&more, NULL, nothing, NULL) || pthread_join(more, NULL))
		wrong("no thread after everything was freed");
	return 0;
}

/* --- a program that starts under the limit --- */

static int exec_case(void)
{
	struct rlimit limit = { current_size, RLIM_INFINITY };

	if (setrlimit(RLIMIT_AS, &limit))
		wrong("setrlimit: %s", strerror(errno));
	execl("/proc/self/exe", "malloc-limits", "started", (char *)NULL);
	wrong("execl: %s", strerror(errno));
}

static int started_case(void)
{
	size_t n = 0;

	for (size_t i = 0; i < SUBJECT_COUNT(sizes); i++) {
		void *object = malloc(sizes[i]);

		if (!object)
			wrong("no %zu bytes", sizes[i]);
		subject_fill(object, sizes[i], i);
		if (subject_damage(object, sizes[i], i, sizes[i]) != sizes[i])
			wrong("an object of %zu bytes is damaged", sizes[i]);
		free(object);
	}
	errno = 0;
	while (n < 200000 && malloc(100000))
		n++;
	if (n == 200000)
		wrong("there is no limit");
	if (errno != ENOMEM || n < 100)
		wrong("%zu of 100000 bytes, then errno %d", n, errno);
	return 0;
}

static int started_full_case(void)
{
	at_the_limit(current_size);
	return 0;
}

/* --- a control group --- */

static char group[PATH_MAX];

static bool write_text(const char *name, const char *text)
{
	char path[PATH_MAX + 100];
	int fd;
	bool done;

	snprintf(path, sizeof path, "%s/%s", group, name);
	fd = open(path, O_WRONLY);
	done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	if (fd >= 0)
		close(fd);
	return done;
}

/* The directory of the group that this process is in: where the memory controller is, of version 1 or 2. */
static bool own_group(char *path, size_t room)
{
	char line[PATH_MAX];
	FILE *list = fopen("/proc/self/cgroup", "r");
	bool found = false;

	while (list && !found && fgets(line, sizeof line, list)) {
		char *controllers = strchr(line, ':'), *name = controllers ? strchr(controllers + 1, ':') : NULL;

		line[strcspn(line, "\n")] = '\0';
		if (!name)
			continue;
		*name++ = '\0';
		if (strcmp(controllers + 1, "memory") == 0)
			snprintf(path, room, "/sys/fs/cgroup/memory%s", name);
		else if (controllers[1] == '\0')
			snprintf(path, room, "/sys/fs/cgroup%s", name);
		else
			continue;
		found = controllers[1] != '\0' || access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;
	}
	if (list)
		fclose(list);
	return found;
}

static int skip(const char *why, const char *path)
{
	printf("skipped: no memory control group can be made: %s%s%s\n", why, path[0] ? ": " : "", path);
	return SUBJECT_SKIPPED;
}

/* Two thirds of the limit in one size after another. Memory that one size keeps is missing to the next: the kernel kills. */
static int cgroup_case(void)
{
	char limit[30];

	snprintf(limit, sizeof limit, "%d", getpid());
	if (!write_text("cgroup.procs", limit))
		return 98;
	for (size_t round = 0; round < 2 * SUBJECT_COUNT(sizes); round++) {
		size_t size = sizes[round * 7 % SUBJECT_COUNT(sizes)], n = 0;

		/* (Of small ones the allocator's own part may be as much again.) */
		while (n < MOST_OBJECTS && n * (size < 100 ? size + 32 : size) < GROUP_LIMIT / 3 * 2) {
			objects[n] = malloc(size);
			if (!objects[n])
				wrong("NULL for %zu bytes", size);
			memset(objects[n], 1, size);
			n++;
		}
		free_some(0, n, 1);
		malloc_trim(0);
	}
	return 0;
}

static int run(int (*body)(void))
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(CHILD_SECONDS);
		objects = map((started ? most_started() : 2 * MOST_OBJECTS) * sizeof *objects);
		_exit(body());
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	if (WIFSIGNALED(status))
		fprintf(stderr, "%s: died by signal %d\n", what, WTERMSIG(status));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static int in_group(void)
{
	const char *named = getenv("PERCPU_TEST_CGROUP");
	char limit[30], delegated = '0';
	int status;

	if (named)
		snprintf(group, sizeof group, "%s", named);
	else if (!own_group(group, sizeof group))
		return skip("no group has the memory controller", "");
	else if (getxattr(group, "user.delegate", &delegated, 1) != 1 &&
		 getxattr(group, "trusted.delegate", &delegated, 1) != 1)
		return skip("not delegated (PERCPU_TEST_CGROUP may name one that is)", group);
	else if (delegated != '1')
		return skip("not delegated", group);
	snprintf(group + strlen(group), sizeof group - strlen(group), "/percpu-malloc-%d", getpid());
	if (mkdir(group, 0755))
		return skip(strerror(errno), group);
	snprintf(limit, sizeof limit, "%zu", GROUP_LIMIT);
	if (!write_text("memory.max", limit) && !write_text("memory.limit_in_bytes", limit)) {
		rmdir(group);
		return skip("it has no limit", group);
	}
	write_text("memory.swap.max", "0");
	status = run(cgroup_case);
	rmdir(group);
	return status == 98 ? skip("no process may enter it", group) : status;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";
	int failed = 0;

	subject_begin();
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
	if (strcmp(name, "started") == 0) {
		struct rlimit limit;

		what = "a program that started under a limit";
		started = true;
		getrlimit(RLIMIT_AS, &limit);
		/* (Smaller ones are more than there is room for to note them.) */
		for (size_t i = 2; i < SUBJECT_COUNT(sizes) && limit.rlim_cur < 200 * MIB && limit.rlim_cur > 100 * MIB;
		     i++) {
			current_size = sizes[i];
			failed |= run(started_full_case);
		}
		return failed || run(started_case);
	}
	if (strcmp(name, "cgroup") == 0) {
		what = "in a control group";
		return in_group();
	}
	if (strcmp(name, "address-space") == 0) {
		what = "under a limit of the address space";
		for (size_t i = 0; i < SUBJECT_COUNT(sizes); i++) {
			current_size = sizes[i];
			failed |= run(address_space_case);
		}
		return failed;
	}
	if (strcmp(name, "exec") == 0) {
		what = "a program that started under a limit";
		for (current_size = 48 * MIB; current_size < 10000 * MIB; current_size *= 4)
			failed |= run(exec_case);
		return failed;
	}
	if (strcmp(name, "threads") == 0) {
		what = "threads under a limit";
		return run(threads_case);
	}
	return 2;
}
