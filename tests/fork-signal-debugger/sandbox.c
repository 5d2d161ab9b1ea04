/* SPDX-License-Identifier: MIT */
/*
 * Sandboxes that deny what the library asks the kernel for, before the program starts or later.
 *
 *   sandbox            run all cases, each in processes of its own
 *   sandbox --inside MODE REASON   what runs under a filter: must have this mode, for a reason that contains the word
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "everything.h"

static bool deny(long number, int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof code / sizeof *code, .filter = code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void *other_thread(void *targeted)
{
	everything(targeted ? -EPERM : 0);
	return NULL;
}

static void in_threads(int targeted)
{
	pthread_t thread;

	everything(targeted);
	EXPECT(pthread_create(&thread, NULL, other_thread, targeted ? &thread : NULL) == 0);
	EXPECT(pthread_join(thread, NULL) == 0);
}

static int inside(const char *mode, const char *reason)
{
	struct percpu_description about;

	EXPECT(percpu_describe(&about) == 0);
	if (strcmp(about.mode_name, mode) || !strstr(about.reason, reason)) {
		fprintf(stderr, "mode %s, not %s; reason '%s' without '%s'\n", about.mode_name, mode, about.reason,
			reason);
		return 1;
	}
	in_threads(0);
	return 0;
}

struct filter {
	const char *name;
	long first, second; /* system calls; 0 for none */
	int error;
	const char *reason; /* a word of it, where the process gets mode none */
};

static int ended(pid_t pid, const char *name)
{
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	if (status)
		fprintf(stderr, "%s: failed, wait status 0x%x\n", name, (unsigned)status);
	return status != 0;
}

static int under(const struct filter *filter, const char *program)
{
	pid_t pid = fork();

	if (pid == 0) {
		if (!deny(filter->first, filter->error) || (filter->second && !deny(filter->second, filter->error)))
			_exit(77);
		execl(program, program, "--inside", "none", filter->reason, (char *)NULL);
		_exit(127);
	}
	return ended(pid, filter->name);
}

/* The fence is refused in the middle of work: sections go on, what needs a fence says so, and nothing is lost. */
static int late(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		struct percpu_description about;

		EXPECT(percpu_describe(&about) == 0);
		in_threads(0);
		EXPECT(deny(SYS_membarrier, EPERM));
		in_threads(about.mode == PERCPU_MODE_NONE ? 0 : -EPERM);
		_exit(0);
	}
	return ended(pid, "membarrier denied later");
}

static int little_memory(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		struct rlimit old, tiny = { 1 << 20, 1 << 20 };
		void *first = percpu_alloc(8, 8), *more[64];
		unsigned got = 0;

		EXPECT(first && getrlimit(RLIMIT_AS, &old) == 0);
		tiny.rlim_max = old.rlim_max;
		EXPECT(setrlimit(RLIMIT_AS, &tiny) == 0);
		while (got < 64 && (more[got] = percpu_alloc(PERCPU_ALLOC_MAX / 2, 8)))
			got++;
		EXPECT(got < 64);
		percpu_this_add(first, 1);
		EXPECT(setrlimit(RLIMIT_AS, &old) == 0);
		EXPECT((more[got] = percpu_alloc(PERCPU_ALLOC_MAX / 2, 8)));
		for (unsigned i = 0; i <= got; i++)
			EXPECT(percpu_free(more[i]) == 0);
		everything(0);
		_exit(0);
	}
	return ended(pid, "little memory");
}

int main(int argc, char **argv)
{
	static const struct filter filters[] = {
		{ "rseq: EPERM", SYS_rseq, 0, EPERM, "rseq" },
		{ "rseq: ENOSYS", SYS_rseq, 0, ENOSYS, "rseq" },
		{ "membarrier: EPERM", SYS_membarrier, 0, EPERM, "membarrier" },
		{ "membarrier: ENOSYS", SYS_membarrier, 0, ENOSYS, "membarrier" },
		{ "both: EPERM", SYS_rseq, SYS_membarrier, EPERM, "membarrier" },
		{ "both: ENOSYS", SYS_rseq, SYS_membarrier, ENOSYS, "membarrier" },
	};
	int failed = 0;

	if (argc == 4 && !strcmp(argv[1], "--inside"))
		return inside(argv[2], argv[3]);
	for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
		failed += under(&filters[i], argv[0]);
	failed += late();
	failed += little_memory();
	return failed != 0;
}
