/* SPDX-License-Identifier: MIT */
/*
 * An object with sections is unloaded while threads that ran them sleep or spin.
 *
 *   dlclose PLUGIN pinned        the object asks to stay: nothing happens to anybody, and it is still mapped
 *   dlclose PLUGIN unpinned      the control: it does not ask, and somebody must die by SIGSEGV
 *   dlclose PLUGIN fence-spin    not asked, but fenced before it is unloaded: spinning threads must live
 *   dlclose PLUGIN fence-sleep   not asked, but fenced: what happens to sleeping threads is printed, not judged
 *
 * The controls need a kernel that looks at an ended section's descriptor (exit status 77 elsewhere).
 */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "everything.h"

#define THREADS 4

typedef void work_function(uint64_t *word, unsigned n);

static work_function *work;
static uint64_t *word;
static unsigned ready;     /* atomic */
static volatile bool gone; /* the object */
static bool spins, sleeps, fences;

static void *run(void *number)
{
	bool sleeper = sleeps && (!spins || (uintptr_t)number % 2);

	work(word, 1000);
	__atomic_fetch_add(&ready, 1, __ATOMIC_RELEASE);
	if (sleeper) {
		nanosleep(&(struct timespec){ .tv_nsec = 400000000 }, NULL);
	} else {
		/* Preempted often, as there are more of them than CPUs. */
		for (struct timespec now, end = { 0, 0 };;) {
			clock_gettime(CLOCK_MONOTONIC, &now);
			if (!end.tv_sec)
				end = (struct timespec){ now.tv_sec + 1, now.tv_nsec };
			if (now.tv_sec > end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec >= end.tv_nsec))
				break;
		}
	}
	return NULL;
}

static void in_child(const char *plugin, bool stays)
{
	void *object = dlopen(plugin, RTLD_NOW);
	pthread_t threads[THREADS];
	union {
		void *address;
		work_function *function;
	} symbol;

	if (!object)
		fprintf(stderr, "%s\n", dlerror());
	EXPECT(object);
	symbol.address = dlsym(object, "plugin_work");
	EXPECT(symbol.address);
	work = symbol.function;
	word = percpu_alloc(8, 8);
	EXPECT(word);
	for (uintptr_t i = 0; i < THREADS; i++)
		EXPECT(pthread_create(&threads[i], NULL, run, (void *)i) == 0);
	while (__atomic_load_n(&ready, __ATOMIC_ACQUIRE) < THREADS)
		sched_yield();
	usleep(100000);
	if (fences)
		EXPECT(percpu_fence() == 0);
	EXPECT(dlclose(object) == 0);
	gone = true;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	EXPECT(sum_of_copies(word) == THREADS * 1000);
	object = dlopen(plugin, RTLD_NOW | RTLD_NOLOAD);
	EXPECT(!object == !stays);
	if (stays)
		work(word, 1);
	_exit(0);
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	const char *what;
	int status;
	pid_t pid;

	if (argc != 3)
		return 2;
	what = argv[2];
	percpu_describe(&about);
	if (about.mode == PERCPU_MODE_NONE || about.v2) {
		printf("mode %s%s: the kernel does not look at ended sections\n", about.mode_name,
		       about.v2 ? " V2" : "");
		if (strcmp(what, "pinned"))
			return 77;
	}
	spins = strcmp(what, "fence-sleep") != 0;
	sleeps = strcmp(what, "fence-spin") != 0;
	fences = !strncmp(what, "fence", 5);
	pid = fork();
	if (pid == 0)
		in_child(argv[1], !strcmp(what, "pinned"));
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	printf("%s: %s\n", what, WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : status ? "failed" : "lived");
	if (!strcmp(what, "unpinned"))
		return !(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	if (!strcmp(what, "fence-sleep"))
		return !(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV));
	return status != 0;
}
