/* SPDX-License-Identifier: MIT */
/*
 * percpu bench malloc: the rows in which memory is what matters. Each does a given amount of work, so that all allocators
 * are asked for the same blocks, and has everything given back before it looks at the memory at rest.
 */
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cli/bench_malloc.h"

#define STACK (256 << 10)

/* Whole pages that are no part of what the allocator does. */
static void *own_memory(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		malloc_give_up("no memory");
	return memory;
}

void malloc_rest(double seconds)
{
	struct timespec time = { .tv_sec = (time_t)seconds };

	time.tv_nsec = (long)((seconds - (double)time.tv_sec) * 1e9);
	while (nanosleep(&time, &time))
		;
}

static void rest(const struct malloc_task *task, struct malloc_report *report)
{
	if (task->rest <= 0)
		return;
	malloc_rest(task->rest);
	report->idle = malloc_resident(0);
}

/* Threads that work side by side from one barrier to the next. */
struct party {
	BENCH_ALIGNED unsigned id;
	const struct malloc_task *task;
	void (*work)(struct party *party);  /* counts its operations */
	void (*clear)(struct party *party); /* gives everything back that is left */
	struct malloc_report *report;       /* the first one writes it */
	double start, end;
	uint64_t operations, live; /* bytes */
	void **blocks;
	pthread_t thread;
};

static pthread_barrier_t barrier;

static void *take_part(void *arg)
{
	struct party *party = arg;

	pthread_barrier_wait(&barrier);
	party->start = malloc_now();
	party->work(party);
	party->end = malloc_now();
	pthread_barrier_wait(&barrier);
	if (party->id == 0 && party->live)
		party->report->ratio = (double)malloc_resident(0) * 1024 / ((double)party->live * party->task->threads);
	pthread_barrier_wait(&barrier);
	party->clear(party);
	pthread_barrier_wait(&barrier);
	if (party->id == 0)
		rest(party->task, party->report);
	/* Threads that are still there keep what is cached for them. */
	pthread_barrier_wait(&barrier);
	return NULL;
}

static void run_party(const struct malloc_task *task, struct malloc_report *report, void (*work)(struct party *party),
		      void (*clear)(struct party *party))
{
	static struct party parties[BENCH_MAX_THREADS];
	double time = 0;
	pthread_attr_t attr;

	pthread_barrier_init(&barrier, NULL, task->threads);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	for (unsigned i = 0; i < task->threads; i++) {
		parties[i] = (struct party){ .id = i, .task = task, .work = work, .clear = clear, .report = report };
		if (i && pthread_create(&parties[i].thread, &attr, take_part, &parties[i]))
			malloc_give_up("cannot make the threads");
	}
	pthread_attr_destroy(&attr);
	take_part(&parties[0]);
	for (unsigned i = 1; i < task->threads; i++)
		pthread_join(parties[i].thread, NULL);
	for (unsigned i = 0; i < task->threads; i++)
		time += (parties[i].end - parties[i].start) / (double)parties[i].operations;
	report->best = report->median = time / task->threads;
	report->peak = malloc_peak();
}

/* Small objects in a list, as many MiB in all as the task says; then all are freed, the oldest first. */
struct link {
	struct link *next;
};

static void burst(struct party *party)
{
	uint64_t bytes = (party->task->size << 20) / party->task->threads, random = malloc_seed(party->id);

	for (int i = 0; i < MALLOC_BURSTS; i++) {
		struct link *first = NULL, **last = &first;

		for (uint64_t live = 0; live < bytes; party->operations++) {
			uint32_t size = malloc_between(malloc_random(&random), 16, 240);
			struct link *link = malloc_checked(size);

			link->next = NULL;
			*last = link;
			last = &link->next;
			live += size;
		}
		while (first) {
			struct link *next = first->next;

			free(first);
			first = next;
		}
	}
}

static void nothing(struct party *party)
{
	(void)party;
}

void malloc_run_burst(const struct malloc_task *task, struct malloc_report *report)
{
	run_party(task, report, burst, nothing);
}

/*
 * Always 32 MiB are live, but their sizes drift: twice as large on average in each phase, then back. In a phase four times
 * the live bytes are allocated, and as many freed at random, so one in fifty of what was there stays between the new.
 */
#define LIVE (32ULL << 20)
#define LOW  128U

static void drift(struct party *party)
{
	uint64_t target = LIVE / party->task->threads, random = malloc_seed(party->id), live = 0;
	uint32_t *sizes;
	size_t count = 0;

	party->blocks = own_memory(target / (LOW / 4) * sizeof(*party->blocks));
	for (uint64_t phase = 0; phase < party->task->size; phase++) {
		unsigned step = (unsigned)(phase % MALLOC_PHASES);
		uint32_t mean = LOW << (step <= MALLOC_PHASES / 2 ? step : MALLOC_PHASES - step);

		for (uint64_t allocated = 0; allocated < 4 * target; party->operations++) {
			uint32_t size = malloc_between(malloc_random(&random), mean / 8, 2 * mean - mean / 8);

			sizes = malloc_checked(size);
			*sizes = size;
			party->blocks[count++] = sizes;
			allocated += size;
			live += size;
			while (live > target) {
				size_t at = malloc_below(malloc_random(&random), (uint32_t)count);

				sizes = party->blocks[at];
				live -= *sizes;
				free(sizes);
				party->blocks[at] = party->blocks[--count];
			}
		}
	}
	party->blocks[count] = NULL;
	party->live = live;
}

static void free_all(struct party *party)
{
	for (void **block = party->blocks; *block; block++)
		free(*block);
}

void malloc_run_fragmentation(const struct malloc_task *task, struct malloc_report *report)
{
	run_party(task, report, drift, free_all);
}

/*
 * Many threads, each with 200 objects of 16 to 864 bytes, 440 on average: 84 MiB in 1000 threads. They work in turns, as
 * many at once as there are CPUs, and else wait. Only the time inside of turns counts, so not that of waking the next one.
 */
#define OBJECTS  200
#define IN_TURN  100
#define SMALLEST 16
#define LARGEST  864

struct idler {
	sem_t turn;
	unsigned id;
	uint64_t operations;
	double time;
	pthread_t thread;
	void *objects[OBJECTS];
};

static struct idler *idlers;
static unsigned idler_count, lanes;
static sem_t lane_done;
static uint64_t turns;

static void *new_object(uint64_t *random)
{
	uint32_t size = malloc_between(malloc_random(random), SMALLEST, LARGEST);
	char *object = malloc_checked(size);

	/* Both of the pages that it may lie on. */
	object[0] = object[size - 1] = 1;
	return object;
}

/* Wakes the next one of the lane; @once: the first one has had it before. */
static void pass(struct idler *self, bool once)
{
	unsigned next = self->id + lanes;

	if (next < idler_count)
		sem_post(&idlers[next].turn);
	else
		sem_post(once ? &lane_done : &idlers[self->id % lanes].turn);
}

static void my_turn(struct idler *self)
{
	while (sem_wait(&self->turn))
		;
}

static void *idle(void *arg)
{
	struct idler *self = arg;
	uint64_t random = malloc_seed(self->id);

	my_turn(self);
	for (unsigned i = 0; i < OBJECTS; i++)
		self->objects[i] = new_object(&random);
	pass(self, false);
	for (uint64_t turn = 0; turn < turns; turn++) {
		double start;

		my_turn(self);
		start = malloc_now();
		for (unsigned i = 0; i < IN_TURN; i++) {
			void **object = &self->objects[malloc_below(malloc_random(&random), OBJECTS)];

			free(*object);
			*object = new_object(&random);
		}
		self->time += malloc_now() - start;
		pass(self, false);
	}
	my_turn(self);
	for (unsigned i = 0; i < OBJECTS; i++)
		free(self->objects[i]);
	pass(self, true);
	/* Still there while the memory is looked at. */
	my_turn(self);
	return NULL;
}

void malloc_run_threads(const struct malloc_task *task, struct malloc_report *report)
{
	pthread_attr_t attr;
	double time = 0;

	idler_count = task->threads;
	lanes = bench_cpus() < idler_count ? bench_cpus() : idler_count;
	turns = task->size;
	idlers = own_memory(idler_count * sizeof(*idlers));
	sem_init(&lane_done, 0, 0);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	for (unsigned i = 0; i < idler_count; i++) {
		idlers[i].id = i;
		sem_init(&idlers[i].turn, 0, 0);
		if (pthread_create(&idlers[i].thread, &attr, idle, &idlers[i]))
			malloc_give_up("cannot make the threads");
	}
	pthread_attr_destroy(&attr);
	for (unsigned i = 0; i < lanes; i++)
		sem_post(&idlers[i].turn);
	for (unsigned i = 0; i < lanes; i++)
		while (sem_wait(&lane_done))
			;
	rest(task, report);
	report->peak = malloc_peak();
	for (unsigned i = 0; i < idler_count; i++)
		sem_post(&idlers[i].turn);
	for (unsigned i = 0; i < idler_count; i++) {
		pthread_join(idlers[i].thread, NULL);
		time += idlers[i].time;
	}
	report->best = report->median = time / ((double)idler_count * (double)turns * IN_TURN);
}
