/* SPDX-License-Identifier: MIT */
/*
 * The registry of named counters: a list in the order of creation, guarded by a mutex of its own.
 *
 * It allocates, so it is not for signal handlers; a fork waits for it, so that the child finds it whole.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <percpu/counter.h>

#define NAME_MAX_BYTES 255

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct percpu_counter *oldest;

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&lock);
}

/* After the gates' handlers, and so before them when a fork begins: creating a counter takes this lock, then theirs. */
__attribute__((constructor(103))) static void watch_forks(void)
{
	pthread_atfork(before_fork, after_fork, after_fork);
}

/* The link that leads to the counter of that name, or the one at the end. */
static struct percpu_counter **find(const char *name)
{
	struct percpu_counter **link = &oldest;

	while (*link && strcmp((*link)->name, name) != 0)
		link = &(*link)->next;
	return link;
}

static int create(const char *name, struct percpu_counter **link)
{
	/* Its own cache line: additions read it, nothing near it may be written. */
	struct percpu_counter *counter = aligned_alloc(64, (sizeof *counter + 63) / 64 * 64);
	char *copy = strdup(name);
	int rc = counter && copy ? percpu_counter_init(counter) : -ENOMEM;

	if (rc) {
		free(counter);
		free(copy);
		return rc;
	}
	counter->name = copy;
	*link = counter;
	return 0;
}

int percpu_counter_create(const char *name, struct percpu_counter **out)
{
	struct percpu_counter **link;
	int rc = 0;

	if (!name || !out || !*name || strlen(name) > NAME_MAX_BYTES)
		return -EINVAL;
	pthread_mutex_lock(&lock);
	link = find(name);
	if (!*link)
		rc = create(name, link);
	if (!rc) {
		(*link)->users++;
		*out = *link;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

void percpu_counter_put(struct percpu_counter *counter)
{
	struct percpu_counter **link;

	if (!counter || !counter->name)
		return;
	pthread_mutex_lock(&lock);
	if (--counter->users == 0) {
		link = find(counter->name);
		*link = counter->next;
		percpu_counter_destroy(counter);
		free((char *)(uintptr_t)counter->name);
		free(counter);
	}
	pthread_mutex_unlock(&lock);
}

struct percpu_counter *percpu_counter_find(const char *name)
{
	struct percpu_counter *counter;

	if (!name)
		return NULL;
	pthread_mutex_lock(&lock);
	counter = *find(name);
	pthread_mutex_unlock(&lock);
	return counter;
}

int percpu_counter_for_each(int (*visit)(struct percpu_counter *counter, void *arg), void *arg)
{
	int rc = 0;

	if (!visit)
		return -EINVAL;
	pthread_mutex_lock(&lock);
	for (struct percpu_counter *counter = oldest; counter && !rc; counter = counter->next)
		rc = visit(counter, arg);
	pthread_mutex_unlock(&lock);
	return rc;
}

const char *percpu_counter_name(const struct percpu_counter *counter)
{
	return counter ? counter->name : NULL;
}
