/* SPDX-License-Identifier: MIT */
/*
 * A program of which is known who allocates what: for tests/malloc/profile, which compares that with the heap profile.
 *
 *   malloc-profile
 *
 * Each site is a function. It prints a line for each: name, live bytes, live objects, bytes and objects so far.
 */
#include <malloc.h>
#include <pthread.h>
#include <sys/wait.h>

#include "subject.h"

#define MIB ((size_t)1 << 20)

struct counts {
	uint64_t live, live_objects, all, all_objects;
};

static void tell(const char *name, const struct counts *counts)
{
	printf("%s %llu %llu %llu %llu\n", name, (unsigned long long)counts->live,
	       (unsigned long long)counts->live_objects, (unsigned long long)counts->all,
	       (unsigned long long)counts->all_objects);
}

static void add(struct counts *counts, size_t size)
{
	__atomic_add_fetch(&counts->live, size, __ATOMIC_RELAXED);
	__atomic_add_fetch(&counts->live_objects, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&counts->all, size, __ATOMIC_RELAXED);
	__atomic_add_fetch(&counts->all_objects, 1, __ATOMIC_RELAXED);
}

static void subtract(struct counts *counts, size_t size)
{
	__atomic_sub_fetch(&counts->live, size, __ATOMIC_RELAXED);
	__atomic_sub_fetch(&counts->live_objects, 1, __ATOMIC_RELAXED);
}

/* Not inlined, seen by others, and no call is the last thing that they do: so each has a frame and a name. */
#define SITE __attribute__((noinline))
SITE void *site_small(size_t size);
SITE void *site_mixed(size_t size);
SITE void *site_large(size_t size);
SITE void *site_zero(size_t size);
SITE void *site_aligned(size_t size);
SITE void *site_grown(void *old, size_t size);
SITE void *site_thread(size_t size);
SITE void *site_gone(size_t size);
SITE void *site_child(size_t size);

static struct counts small, mixed, large, zero, aligned, grown, thread, gone, child;

#define ALLOCATE(name, expression)                                                                                     \
	void *site_##name(size_t size)                                                                                 \
	{                                                                                                              \
		void *object = expression;                                                                             \
                                                                                                                       \
		if (!object)                                                                                           \
			_exit(99);                                                                                     \
		add(&name, size);                                                                                      \
		return object;                                                                                         \
	}

ALLOCATE(small, malloc(size))
ALLOCATE(mixed, malloc(size))
ALLOCATE(large, malloc(size))
ALLOCATE(zero, calloc(1, size))
ALLOCATE(aligned, memalign(256, size))
ALLOCATE(thread, malloc(size))
ALLOCATE(gone, malloc(size))
ALLOCATE(child, malloc(size))

void *site_grown(void *old, size_t size)
{
	void *object = realloc(old, size);

	if (!object)
		_exit(99);
	grown.live = size;
	grown.live_objects = 1;
	grown.all += size;
	grown.all_objects++;
	return object;
}

/* Each size counts as an object that was allocated. */
static void grow(void)
{
	size_t size = 300000;
	void *object = NULL;

	while (size < 60 * MIB) {
		object = site_grown(object, size);
		memset(object, 1, 1);
		size += size / 16;
	}
}

static void *in_thread(void *unused)
{
	void *some[1000];

	for (size_t i = 0; i < 1000 * SUBJECT_COUNT(some); i++) {
		size_t size = 16 + i * 7 % 500;

		if (i >= SUBJECT_COUNT(some)) {
			size_t old = i - SUBJECT_COUNT(some);

			subtract(&thread, 16 + old * 7 % 500);
			free(some[i % SUBJECT_COUNT(some)]);
		}
		some[i % SUBJECT_COUNT(some)] = site_thread(size);
	}
	return unused;
}

static void in_child(void)
{
	for (int i = 0; i < 30000; i++)
		memset(site_child(2000), 1, 1);
	tell("child", &child);
	fflush(stdout);
}

int main(void)
{
	static void *mixes[50000];
	pthread_t threads[4];
	uint64_t dice = 1;
	int status;
	pid_t pid;

	subject_begin();
	/* Its buffer, too, is the allocator's. */
	setvbuf(stdout, NULL, _IONBF, 0);
	for (int i = 0; i < 1000000; i++)
		memset(site_small(48), 1, 1);
	for (size_t i = 0; i < SUBJECT_COUNT(mixes); i++)
		mixes[i] = site_mixed(1 + subject_random(&dice) % 8000);
	dice = 1;
	for (size_t i = 0; i < SUBJECT_COUNT(mixes); i++) {
		size_t size = 1 + subject_random(&dice) % 8000;

		if (i % 3) {
			free(mixes[i]);
			subtract(&mixed, size);
		}
	}
	for (size_t i = 0; i < 200; i++)
		memset(site_large(300000 + i * 10000), 1, 1);
	for (int i = 0; i < 20000; i++)
		if (subject_not_zero(site_zero(3000), 3000) != 3000)
			_exit(1);
	for (int i = 0; i < 20000; i++)
		if ((uintptr_t)site_aligned(700) % 256)
			_exit(1);
	grow();
	for (size_t i = 0; i < SUBJECT_COUNT(threads); i++)
		if (pthread_create(&threads[i], NULL, in_thread, NULL))
			_exit(99);
	for (size_t i = 0; i < SUBJECT_COUNT(threads); i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 1000000; i++) {
		free(site_gone(100));
		subtract(&gone, 100);
	}
	pid = fork();
	if (pid == 0) {
		in_child();
		exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		_exit(1);
	printf("pid %d\n", (int)pid);
	tell("small", &small);
	tell("mixed", &mixed);
	tell("large", &large);
	tell("zero", &zero);
	tell("aligned", &aligned);
	tell("grown", &grown);
	tell("thread", &thread);
	tell("gone", &gone);
	return 0;
}
