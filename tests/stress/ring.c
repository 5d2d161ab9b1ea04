/* SPDX-License-Identifier: MIT */
/*
 * Rings under load: ring [--mode NAME] [--seconds N]
 *
 * Producers write numbered records and push numbered pointers, with both policies, on whichever CPU they are sent to, by
 * sections, under gates and on the remainder, and in signal handlers that interrupt them anywhere. Consumers take them,
 * sleeping in between, one in the rings and one on event descriptors; processes are forked meanwhile, and look at what they
 * find. In the end each entry was taken once, whole, or was counted as lost; a wake-up that is lost shows as a test that
 * does not end.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <percpu.h>

#include "rseq/thread.h"

#define PRODUCERS 4U
#define SEQUENCES (2 * PRODUCERS + 1) /* each has another one for its handler; children of fork have the last */
#define MEMORY    (1U << 16)          /* entries of a sequence of which it is remembered whether they were taken */
#define KINDS     4U                  /* bit 0: it overwrites; bit 1: records */

struct sequence {
	_Alignas(64) uint64_t next, refused;
};

static struct percpu_ring pointers[2];
static struct percpu_record_ring records[2];
static struct sequence sequences[KINDS][SEQUENCES];
static uint32_t taken[KINDS][SEQUENCES][MEMORY];
static uint64_t counts[KINDS];
static uint32_t stop, quiet;
static uint64_t wrong, forks, handled, sleeps;
static __thread unsigned me;
static cpu_set_t allowed;

static void complain(const char *what)
{
	if (__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED) < 20)
		fprintf(stderr, "wrong: %s\n", what);
}

static uint64_t random_of(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

/* Follows from the number: 8 to 207 bytes, most of them few. */
static size_t length_of(uint64_t id)
{
	return 8 + (id * 2654435761U >> 7) % (id % 16 ? 50 : 200);
}

static void payload(uint64_t id, unsigned char *out, size_t length)
{
	memcpy(out, &id, 8);
	for (size_t i = 8; i < length; i++)
		out[i] = (unsigned char)(id * 7 + i);
}

/* The id is not 0: the sequence's number, and above it which sequence. */
static int put(unsigned kind, uint64_t id)
{
	unsigned char data[256];

	if (!(kind & 2))
		return percpu_ring_push(&pointers[kind & 1], (void *)(uintptr_t)id);
	if (id % 3 == 0) {
		payload(id, data, 24);
		return percpu_record_ring_write(&records[kind & 1], 24, data, 24);
	}
	payload(id, data, length_of(id));
	return percpu_record_ring_write(&records[kind & 1], (uint32_t)length_of(id), data, length_of(id));
}

static void produce(unsigned kind, unsigned sequence)
{
	struct sequence *s = &sequences[kind][sequence];
	int rc = put(kind, (uint64_t)sequence << 40 | s->next);

	if (rc == 0)
		s->next++;
	else if (rc == -ENOBUFS && !(kind & 1))
		s->refused++;
	else
		complain("a write failed");
}

static void took(unsigned kind, uint64_t id)
{
	uint64_t sequence = id >> 40, number = id & ((UINT64_C(1) << 40) - 1);
	uint32_t mark = (uint32_t)number + 1;

	if (sequence >= SEQUENCES) {
		complain("an entry that nobody wrote");
		return;
	}
	if (__atomic_exchange_n(&taken[kind][sequence][number % MEMORY], mark, __ATOMIC_RELAXED) == mark)
		complain("an entry was taken twice");
}

static void took_record(unsigned kind, const struct percpu_record *record)
{
	const unsigned char *data = percpu_record_data(record);
	unsigned char expected[256];
	uint64_t id;

	memcpy(&id, data, 8);
	if (record->length != record->tag || record->length != (id % 3 ? length_of(id) : 24)) {
		complain("a record has another length");
		return;
	}
	payload(id, expected, record->length);
	if (memcmp(data, expected, record->length))
		complain("a record is not whole");
	took(kind, id);
}

static unsigned take(unsigned kind, unsigned most)
{
	static __thread uint64_t buffer[4096 / 8];
	const struct percpu_record *record = NULL;
	struct percpu_record_batch batch;
	void *out[128];
	int rc;

	if (!(kind & 2)) {
		rc = percpu_ring_pop(&pointers[kind & 1], out, most);
		for (int i = 0; i < rc; i++)
			took(kind, (uintptr_t)out[i]);
	} else {
		rc = percpu_record_ring_read(&records[kind & 1], buffer,
					     256 + 32 * most > 4096 ? 4096 : 256 + 32 * most, &batch);
		while (rc == 1 && (record = percpu_record_next(buffer, &batch, record)))
			took_record(kind, record);
		rc = rc == 1 ? (int)batch.count : rc;
	}
	if (rc < 0)
		complain("a read failed");
	__atomic_fetch_add(&counts[kind], (uint64_t)(rc > 0 ? rc : 0), __ATOMIC_RELAXED);
	return rc > 0 ? (unsigned)rc : 0;
}

static void on_signal(int sig)
{
	static __thread unsigned turn;

	(void)sig;
	if (me == 0)
		return; /* not a producer */
	turn++;
	produce(turn % KINDS, PRODUCERS + me - 1);
	if (turn % 7 == 0)
		take(turn / 7 % KINDS, 3);
	__atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
}

static void send_to_random_cpu(uint64_t *random)
{
	cpu_set_t one;
	int cpu;

	do
		cpu = (int)(random_of(random) % CPU_SETSIZE);
	while (!CPU_ISSET((size_t)cpu, &allowed));
	CPU_ZERO(&one);
	CPU_SET((size_t)cpu, &one);
	sched_setaffinity(0, sizeof one, random_of(random) % 3 ? &allowed : &one);
}

static void *producer(void *arg)
{
	uint64_t random = 88172645463325252 + (uintptr_t)arg;

	me = (unsigned)(uintptr_t)arg + 1;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		unsigned burst = (unsigned)(random_of(&random) % 400), kind = (unsigned)(random_of(&random) % KINDS);

		percpu__thread_force((enum percpu__force)(random_of(&random) % 8 < 6 ? PERCPU__FORCE_OFF
										     : 1 + random_of(&random) % 2));
		while (burst--)
			produce(kind, me - 1);
		if (random_of(&random) % 64 == 0)
			send_to_random_cpu(&random);
		/* Now and then nobody writes anything: consumers sleep, and must be woken. */
		if (random_of(&random) % 16 == 0)
			usleep((unsigned)(random_of(&random) % 300));
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

/* One ring for each kind: whoever waits for one of them must not miss what comes into it. */
static void *consumer(void *arg)
{
	unsigned kind = (unsigned)(uintptr_t)arg;
	struct percpu_ring *ring = kind & 2 ? &records[kind & 1].ring : &pointers[kind & 1];
	uint64_t random = 1181783497276652981 + kind, count;
	bool by_event = kind == 1 || kind == 2;
	struct pollfd fd = { .fd = percpu_ring_eventfd(ring), .events = POLLIN };

	while (!__atomic_load_n(&quiet, __ATOMIC_ACQUIRE)) {
		int rc;

		while (take(kind, 1 + (unsigned)(random_of(&random) % 128)))
			;
		__atomic_fetch_add(&sleeps, 1, __ATOMIC_RELAXED);
		if (!by_event) {
			rc = percpu_ring_wait(ring, -1);
			if (rc && rc != -EINTR)
				complain("a wait failed");
			continue;
		}
		rc = percpu_ring_arm(ring);
		if (rc < 0)
			complain("could not arm");
		if (rc == 0 && poll(&fd, 1, -1) == 1 && read(fd.fd, &count, sizeof count) < 0 && errno != EAGAIN)
			complain("could not read the event descriptor");
	}
	return NULL;
}

/* In a child of fork: all that is there can be read, and the rings go on. */
static int child(void)
{
	uint64_t before;

	for (unsigned kind = 0; kind < KINDS; kind++) {
		for (unsigned i = 0; i < 3000; i++)
			produce(kind, SEQUENCES - 1);
		memset(taken[kind], 0, sizeof taken[kind]);
		before = counts[kind];
		while (take(kind, 50))
			;
		if (counts[kind] == before)
			return 2;
	}
	return wrong ? 1 : 0;
}

static void *forker(void *arg)
{
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		int status = 0;
		pid_t pid = fork();

		if (pid == 0) {
			signal(SIGALRM, SIG_IGN);
			alarm(0);
			wrong = 0;
			_exit(child());
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			complain("a child of fork found something wrong");
		forks++;
		usleep(3000);
	}
	return arg;
}

static uint64_t produced(unsigned kind)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < SEQUENCES; i++)
		sum += sequences[kind][i].next;
	return sum;
}

static void check_sums(void)
{
	static const char *const names[KINDS] = { "pointers, refused", "pointers, overwritten", "records, refused",
						  "records, overwritten" };

	for (unsigned kind = 0; kind < KINDS; kind++) {
		uint64_t lost =
			kind & 2 ? percpu_record_ring_lost(&records[kind & 1]) : percpu_ring_lost(&pointers[kind & 1]);

		while (take(kind, 100))
			;
		printf("%-22s written %9lu, taken %9lu, lost %9lu\n", names[kind], (unsigned long)produced(kind),
		       (unsigned long)counts[kind], (unsigned long)lost);
		if (counts[kind] + lost != produced(kind))
			complain("the sums differ");
		if (!(kind & 1) && lost)
			complain("a ring that refuses has dropped something");
		if (!counts[kind])
			complain("nothing was taken");
	}
}

static int run(double seconds)
{
	struct itimerval often = { .it_value = { .tv_usec = 700 }, .it_interval = { .tv_usec = 700 } }, never;
	pthread_t producers[PRODUCERS], consumers[KINDS], forking;

	sched_getaffinity(0, sizeof allowed, &allowed);
	for (unsigned i = 0; i < 2; i++)
		if (percpu_ring_init(&pointers[i], 256, i) || percpu_record_ring_init(&records[i], 2048, i))
			return 1;
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_signal, .sa_flags = SA_RESTART }, NULL);
	for (uintptr_t i = 0; i < KINDS; i++)
		if (pthread_create(&consumers[i], NULL, consumer, (void *)i))
			return 1;
	for (uintptr_t i = 0; i < PRODUCERS; i++)
		if (pthread_create(&producers[i], NULL, producer, (void *)i))
			return 1;
	if (pthread_create(&forking, NULL, forker, NULL))
		return 1;
	/* Signals go to whichever thread; all but producers ignore them. */
	setitimer(ITIMER_REAL, &often, NULL);
	for (time_t end = time(NULL) + (time_t)seconds; time(NULL) < end;) {
		for (unsigned i = 0; i < PRODUCERS; i++)
			pthread_kill(producers[i], SIGALRM);
		usleep(200);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < PRODUCERS; i++)
		pthread_join(producers[i], NULL);
	pthread_join(forking, NULL);
	memset(&never, 0, sizeof never);
	setitimer(ITIMER_REAL, &never, NULL);
	__atomic_store_n(&quiet, 1, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < 2; i++) {
		percpu_ring_wake_up(&pointers[i]);
		percpu_record_ring_wake_up(&records[i]);
	}
	/* One that was about to arm does so behind that wake-up, and needs another. */
	for (unsigned i = 0; i < KINDS; i++) {
		while (pthread_tryjoin_np(consumers[i], NULL)) {
			percpu_ring_wake_up(i & 2 ? &records[i & 1].ring : &pointers[i & 1]);
			usleep(1000);
		}
	}
	check_sums();
	printf("forks %lu, handlers %lu, times asleep %lu, wrong %lu\n", (unsigned long)forks, (unsigned long)handled,
	       (unsigned long)sleeps, (unsigned long)wrong);
	return wrong != 0 || !forks || !handled || !sleeps;
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	const char *mode = NULL;
	double seconds = 5;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--mode"))
			mode = argv[i + 1];
		else if (!strcmp(argv[i], "--seconds"))
			seconds = atof(argv[i + 1]);
	}
	if (percpu_describe(&about))
		return 1;
	if (mode && strcmp(mode, about.mode_name)) {
		printf("skipped: this is mode %s: %s\n", about.mode_name, about.reason);
		return 77;
	}
	return run(seconds);
}
