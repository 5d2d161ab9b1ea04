/* SPDX-License-Identifier: MIT */
/*
 * Values read everywhere, what is made of them, and timed code, all at once: readers and writers in many threads that are
 * moved from CPU to CPU, half of them forced onto slow paths, each interrupted by a timer whose handler reads, writes and
 * measures too, and forks in the middle, whose children read and write their own copy.
 *
 *   stress-seqdata [--mode libc|own|none] [--seconds N] [--threads N]
 *
 * Values must be whole and never older than one seen before; what is made of them must fit them; a measurement that calls
 * itself clean must have had no signal in it; and at the end there must be as many versions as writes.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <percpu.h>

#include "rseq/thread.h"

#define MOST_THREADS 64
#define SKIP         77

struct value {
	uint64_t words[13];
};
struct made {
	uint64_t sum, words[6];
};

struct worker {
	pthread_t thread;
	unsigned number;
	uint64_t random, writes, signals, clean, disturbed;
	int64_t seen, seen_by_handler;
	volatile bool ready;
	pid_t tid;
};

static struct worker workers[MOST_THREADS];
static __thread struct worker *self;
static unsigned threads = 8;
static bool stop;
static struct percpu_seqdata *common;
static struct percpu_cached cached;
static uint64_t forks, moves;

static void violation(const char *format, ...)
{
	char text[200];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(text, sizeof text, format, args);
	va_end(args);
	if (write(2, text, (size_t)length) < 0 || write(2, "\n", 1) < 0)
		_exit(2);
	_exit(1);
}

static uint64_t draw(struct worker *me)
{
	me->random ^= me->random << 13;
	me->random ^= me->random >> 7;
	me->random ^= me->random << 17;
	return me->random;
}

static struct value value_of(uint64_t number)
{
	struct value value;

	for (size_t i = 0; i < 13; i++)
		value.words[i] = number + i * 0x9e3779b97f4a7c15;
	return value;
}

static void check_value(const struct value *value, const char *where)
{
	struct value right = value_of(value->words[0]);

	if (memcmp(value, &right, sizeof right) != 0)
		violation("%s: a value of parts that do not belong together", where);
}

static int64_t make(const struct percpu_seqdata *from, void *out, void *arg)
{
	struct made *made = out;
	struct value value;
	int64_t version = percpu_seqdata_read(from, &value, sizeof value);

	(void)arg;
	made->sum = 0;
	for (size_t i = 0; i < 6; i++)
		made->sum += made->words[i] = value.words[i] ^ value.words[i + 6];
	return version;
}

static void read_and_check(int64_t *seen, const char *where)
{
	int64_t floor = percpu_seqdata_version(common), version;
	struct value value;
	struct made made;
	uint64_t sum = 0;

	version = percpu_seqdata_read(common, &value, sizeof value);
	if (version < floor || version < *seen)
		violation("%s: a value older than one seen before", where);
	check_value(&value, where);
	*seen = version;
	version = percpu_cached_read(&cached, &made, sizeof made);
	if (version < *seen)
		violation("%s: what was made is older than its value", where);
	for (size_t i = 0; i < 6; i++)
		sum += made.words[i];
	if (sum != made.sum)
		violation("%s: what was made is of parts that do not belong together", where);
	*seen = version;
}

static void write_one(struct worker *me, uint64_t number)
{
	struct value value = value_of(number);

	if (percpu_seqdata_write(common, &value, sizeof value) < 2)
		violation("a write failed");
	/* Handlers count too. */
	__atomic_fetch_add(&me->writes, 1, __ATOMIC_RELAXED);
}

static void measure(struct worker *me)
{
	volatile uint64_t *signals = &me->signals;
	struct percpu_timed_result result;
	struct percpu_timed timed;
	uint64_t before, after;
	bool clean;

	percpu_timed_begin(&timed);
	before = *signals;
	for (volatile unsigned turns = (unsigned)(draw(me) % 300); turns; turns--)
		;
	after = *signals;
	clean = percpu_timed_end(&timed, &result);
	if (clean && before != after)
		violation("a measurement with a signal in it calls itself clean");
	me->clean += clean;
	me->disturbed += !clean;
}

static void on_timer(int signal)
{
	struct worker *me = self;
	int saved = errno;

	(void)signal;
	if (me) {
		struct percpu_timed_result result;
		struct percpu_timed timed;

		me->signals++;
		percpu_timed_begin(&timed);
		read_and_check(&me->seen_by_handler, "handler");
		if (me->signals % 4 == 0)
			write_one(me, me->signals << 8 | me->number);
		/* Sometimes it is never ended. */
		if (me->signals % 3)
			percpu_timed_end(&timed, &result);
	}
	errno = saved;
}

static void *work(void *arg)
{
	static const enum percpu__force forces[] = { PERCPU__FORCE_OFF, PERCPU__FORCE_GATE, PERCPU__FORCE_OFF,
						     PERCPU__FORCE_REMAINDER };
	struct worker *me = arg;
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN };
	long every = 200000L * (threads / 2 + 1) + 7001L * me->number;
	struct itimerspec spec = { .it_value.tv_nsec = every, .it_interval.tv_nsec = every };
	timer_t timer;

	me->tid = (pid_t)syscall(SYS_gettid);
	me->random = 88172645463325252U + me->number;
	percpu__thread_force(forces[me->number % 4]);
	self = me;
	__atomic_store_n(&me->ready, true, __ATOMIC_RELEASE);
	event._sigev_un._tid = me->tid;
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &spec, NULL))
		violation("cannot start a timer");
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		read_and_check(&me->seen, "thread");
		measure(me);
		if (draw(me) % 64 == 0)
			write_one(me, draw(me));
	}
	timer_delete(timer);
	self = NULL;
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void *move_about(void *arg)
{
	cpu_set_t everywhere;
	uint64_t turn = 0;

	sched_getaffinity(0, sizeof everywhere, &everywhere);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct worker *who = &workers[turn++ % threads];
		size_t cpu = turn * 7 % CPU_SETSIZE;
		cpu_set_t one;

		while (!CPU_ISSET(cpu, &everywhere))
			cpu = (cpu + 1) % CPU_SETSIZE;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		if (__atomic_load_n(&who->ready, __ATOMIC_ACQUIRE)) {
			sched_setaffinity(who->tid, sizeof one, turn % 3 ? &one : &everywhere);
			moves++;
		}
		usleep(300);
	}
	return arg;
}

static void in_child(void)
{
	struct worker alone = { .number = 1 };
	int64_t before = percpu_seqdata_version(common);

	alarm(20);
	for (uint64_t i = 0; i < 20; i++) {
		read_and_check(&alone.seen, "child");
		write_one(&alone, i);
	}
	if (percpu_seqdata_version(common) != before + 20)
		violation("child: other writers in its own copy");
	_exit(0);
}

int main(int argc, char **argv)
{
	struct sigaction act = { .sa_handler = on_timer, .sa_flags = SA_RESTART };
	uint64_t writes = 0, signals = 0, clean = 0, disturbed = 0;
	struct value value = value_of(1);
	struct percpu_description about;
	const char *mode = NULL;
	pthread_t mover;
	double seconds = 5;
	time_t end;

	for (int i = 1; i + 1 < argc; i += 2) {
		if (strcmp(argv[i], "--mode") == 0)
			mode = argv[i + 1];
		else if (strcmp(argv[i], "--seconds") == 0)
			seconds = atof(argv[i + 1]);
		else if (strcmp(argv[i], "--threads") == 0)
			threads = (unsigned)atoi(argv[i + 1]);
	}
	if (threads < 1 || threads > MOST_THREADS || percpu_describe(&about))
		return 2;
	if (mode && strcmp(mode, about.mode_name) != 0) {
		printf("skipped: this is mode %s: %s\n", about.mode_name, about.reason);
		return SKIP;
	}
	if (percpu_seqdata_create(sizeof value, &value, &common) ||
	    percpu_cached_init(&cached, common, sizeof(struct made), make, NULL))
		return 2;
	sigaction(SIGRTMIN, &act, NULL);
	for (unsigned i = 0; i < threads; i++) {
		workers[i].number = i;
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			return 2;
	}
	if (pthread_create(&mover, NULL, move_about, NULL))
		return 2;
	for (end = time(NULL) + (time_t)seconds; time(NULL) < end; forks++) {
		pid_t child = fork();
		int status;

		if (child == 0)
			in_child();
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			violation("a child of fork failed: %x", status);
		usleep(2000);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		writes += workers[i].writes;
		signals += workers[i].signals;
		clean += workers[i].clean;
		disturbed += workers[i].disturbed;
	}
	pthread_join(mover, NULL);
	if ((uint64_t)percpu_seqdata_version(common) != 1 + writes)
		violation("%llu versions of %llu writes", (unsigned long long)percpu_seqdata_version(common),
			  (unsigned long long)writes);
	if (strcmp(about.mode_name, "none") != 0 && (!clean || !disturbed))
		violation("no clean measurement, or none that was disturbed");
	printf("mode %s: writes %llu, signals %llu, moves %llu, forks %llu, measurements clean %llu, disturbed %llu\n",
	       about.mode_name, (unsigned long long)writes, (unsigned long long)signals, (unsigned long long)moves,
	       (unsigned long long)forks, (unsigned long long)clean, (unsigned long long)disturbed);
	percpu_cached_destroy(&cached);
	percpu_seqdata_free(common);
	return 0;
}
