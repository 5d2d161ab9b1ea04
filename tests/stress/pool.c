/* SPDX-License-Identifier: MIT */
/*
 * Pools under everything at once: threads that get, put, pass objects on and are moved; their signal handlers; threads held
 * off their sections; trims; forks; pools so small that they are empty most of the time.
 *
 *   stress-pool [--mode libc|own|none] [--seconds N] [--threads N] [--lie]
 *
 * Each object bears the number of who has it, 0 while it is free: it is exchanged by who gets it and by who puts it, so
 * that two holders, or one who puts what is not his, are seen. No more than the maximum are ever held, as counted by
 * holders themselves. A forked child finds every object but those that others could hold. At the end all are there.
 * --lie is the control: the kernel's fence does nothing, and the test succeeds if that is found. It takes CPUs that are
 * free: where threads rarely run at the same time it may not be.
 */
#include <errno.h>
#include <getopt.h>
#include <linux/filter.h>
#include <linux/membarrier.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <percpu.h>

#include "rseq/thread.h"

#define MOST_THREADS  32
#define HAND          24 /* objects of one pool that a context may hold */
#define PAGE          4096
#define MAIL          16 /* places where objects are passed on */
#define IN_MAIL       0xffffffffU
#define CHILD_SECONDS 30

struct object {
	uint32_t holder;
	uint32_t pool;
	uint64_t times;
};

/* Most that may be out, 0 for no limit, and their size. */
static const struct {
	size_t max, size;
} kinds[] = { { 7, 16 }, { 60, 64 }, { 4000, 3000 }, { 0, 32 } };
#define POOLS (sizeof kinds / sizeof *kinds)

/* A thread, or its signal handler. */
struct context {
	uint64_t random, steps, failed;
	uint32_t number, held[POOLS];
	uint32_t may_hold[POOLS]; /* a bound on what it holds; raised before a get, lowered after a put */
	struct object *hand[POOLS][HAND];
	void **fresh; /* a page */
} __attribute__((aligned(128)));

static struct percpu_pool pools[POOLS];
static uint32_t held_now[POOLS]; /* counted after a get and before a put: never more than are out */
static struct object *mail[POOLS][MAIL];
static struct context contexts[2 * MOST_THREADS];
static pid_t tids[MOST_THREADS];
static unsigned threads = 6;
static volatile bool stop;
static bool lying;
static __thread struct context *handlers_context;

__attribute__((format(printf, 1, 2), noreturn)) static void violation(const char *what, ...)
{
	char line[200];
	va_list list;
	int length;

	va_start(list, what);
	length = vsnprintf(line, sizeof line, what, list);
	va_end(list);
	dprintf(lying ? 1 : 2, "violation: %.*s\n", length, line);
	_exit(lying ? 0 : 1);
}

static uint64_t draw(struct context *me, uint64_t below)
{
	me->random ^= me->random << 13;
	me->random ^= me->random >> 7;
	me->random ^= me->random << 17;
	return me->random % below;
}

static void claim(struct object *object, uint32_t from, uint32_t to, unsigned pool)
{
	uint32_t was = __atomic_exchange_n(&object->holder, to, __ATOMIC_RELAXED);

	if (was != from)
		violation("pool %u, object %p: holder %u instead of %u became %u", pool, (void *)object, was, from, to);
}

static void count_held(unsigned p, uint32_t n)
{
	uint32_t now = __atomic_add_fetch(&held_now[p], n, __ATOMIC_RELAXED);

	if (kinds[p].max && now > kinds[p].max)
		violation("pool %u: %u objects are held, of %zu", p, now, kinds[p].max);
}

static void may_hold(struct context *me, unsigned p, uint32_t n)
{
	__atomic_store_n(&me->may_hold[p], n, __ATOMIC_RELEASE);
}

/*
 * Into a page that the kernel has yet to find: the section then takes so long that who does not wait for it meets it.
 */
static bool get_slowly(struct context *me, unsigned p, void **out, uint32_t n)
{
	if (madvise(me->fresh, PAGE, MADV_DONTNEED) || !percpu_pool_get_bulk(&pools[p], me->fresh, n))
		return false;
	memcpy(out, me->fresh, n * sizeof *out);
	return true;
}

static void get_some(struct context *me, unsigned p)
{
	uint32_t n = (uint32_t)draw(me, HAND + 1 - me->held[p]);
	struct object **at = &me->hand[p][me->held[p]];
	bool did = true;

	if (draw(me, 3))
		n = n ? 1 : 0;
	may_hold(me, p, me->held[p] + n);
	if (n == 1)
		did = (*at = percpu_pool_get(&pools[p])) != NULL;
	else if (n && draw(me, 2))
		did = get_slowly(me, p, (void **)at, n);
	else if (n)
		did = percpu_pool_get_bulk(&pools[p], (void **)at, n);
	if (did) {
		for (uint32_t i = 0; i < n; i++) {
			claim(at[i], 0, me->number, p);
			at[i]->times++;
		}
		count_held(p, n);
		me->held[p] += n;
	} else {
		me->failed++;
		if (!kinds[p].max)
			violation("pool %u: none left", p);
	}
	may_hold(me, p, me->held[p]);
}

static void put_some(struct context *me, unsigned p, uint32_t n)
{
	struct object **at = &me->hand[p][me->held[p] -= n];

	for (uint32_t i = 0; i < n; i++)
		claim(at[i], me->number, 0, p);
	__atomic_sub_fetch(&held_now[p], n, __ATOMIC_RELAXED);
	if (n == 1)
		percpu_pool_put(&pools[p], *at);
	else
		percpu_pool_put_bulk(&pools[p], (void *const *)at, n);
	may_hold(me, p, me->held[p]);
}

/* Puts an object where somebody else finds it, and takes what is there. */
static void pass_on(struct context *me, unsigned p)
{
	struct object *mine = NULL, *theirs;

	if (me->held[p]) {
		mine = me->hand[p][--me->held[p]];
		claim(mine, me->number, IN_MAIL, p);
	} else {
		may_hold(me, p, 1);
	}
	theirs = __atomic_exchange_n(&mail[p][draw(me, MAIL)], mine, __ATOMIC_ACQ_REL);
	if (theirs) {
		claim(theirs, IN_MAIL, me->number, p);
		me->hand[p][me->held[p]++] = theirs;
	}
	may_hold(me, p, me->held[p]);
}

static void step(struct context *me)
{
	unsigned p = (unsigned)draw(me, POOLS);

	switch (draw(me, 8)) {
	case 0:
	case 1:
	case 2:
		get_some(me, p);
		break;
	case 3:
		pass_on(me, p);
		break;
	default:
		if (me->held[p])
			put_some(me, p, draw(me, 3) ? 1 : (uint32_t)draw(me, me->held[p]) + 1);
	}
	__atomic_store_n(&me->steps, me->steps + 1, __ATOMIC_RELAXED);
}

static void on_signal(int sig)
{
	int saved = errno;

	(void)sig;
	if (handlers_context)
		for (int i = 0; i < 6; i++)
			step(handlers_context);
	errno = saved;
}

static void *work(void *arg)
{
	unsigned number = (unsigned)(uintptr_t)arg;
	struct context *me = &contexts[number];

	__atomic_store_n(&tids[number], (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
	handlers_context = &contexts[MOST_THREADS + number];
	while (!stop) {
		/* Some of them are always held off their sections, others now and then. */
		enum percpu__force force = number % 4 == 3 ? PERCPU__FORCE_REMAINDER
					   : draw(me, 4)   ? PERCPU__FORCE_OFF
							   : (enum percpu__force)draw(me, 3);

		percpu__thread_force(force);
		for (int i = 0; i < 200 && !stop; i++)
			step(me);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	__atomic_store_n(&tids[number], 0, __ATOMIC_RELEASE);
	handlers_context = NULL;
	return NULL;
}

/* Signals and moves. */
static void *disturb(void *arg)
{
	struct context dice = { .random = 777 };
	cpu_set_t all, one;

	(void)arg;
	sched_getaffinity(0, sizeof all, &all);
	while (!stop) {
		pid_t tid = __atomic_load_n(&tids[draw(&dice, threads)], __ATOMIC_ACQUIRE);
		size_t cpu = (size_t)draw(&dice, (uint64_t)CPU_COUNT(&all));

		if (tid && draw(&dice, 2))
			syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		if (tid)
			sched_setaffinity(tid, sizeof one, draw(&dice, 3) ? &one : &all);
		nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
	}
	return NULL;
}

static void *trim(void *arg)
{
	struct context dice = { .random = 4242 };
	struct percpu_pool_stats stats;

	(void)arg;
	while (!stop) {
		unsigned p = (unsigned)draw(&dice, POOLS);

		percpu_pool_trim(&pools[p], draw(&dice, 2) ? 0 : (size_t)draw(&dice, 5000));
		percpu_pool_stats(&pools[p], &stats);
		if (stats.strays)
			violation("pool %u: an object came to the depot twice", p);
		nanosleep(&(struct timespec){ .tv_nsec = 300000 }, NULL);
	}
	return NULL;
}

/* All that can be got: each bears nobody's number, and then ours. */
static size_t take_everything(unsigned p, size_t bound, struct object **all)
{
	size_t n = 0;

	while (n < bound && (all[n] = percpu_pool_get(&pools[p])))
		claim(all[n++], 0, 1, p);
	return n;
}

static void child(void)
{
	static struct object *all[5000];

	lying = false;
	for (unsigned p = 0; p < POOLS; p++) {
		struct percpu_pool_stats stats;
		size_t out = 0, n;

		for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++)
			out += contexts[i].may_hold[p];
		/* Somebody may have had one in each hand. */
		for (size_t i = 0; i < MAIL; i++)
			out += mail[p][i] != NULL;
		out += 2 * threads;
		if (percpu_pool_stats(&pools[p], &stats) || stats.out > out || stats.strays)
			violation("child, pool %u: %zu out, at most %zu held, %zu strays", p, stats.out, out,
				  stats.strays);
		n = take_everything(p, kinds[p].max ? kinds[p].max + 1 : 5000, all);
		if (kinds[p].max && n != kinds[p].max - stats.out)
			violation("child, pool %u: %zu of %zu that are not out", p, n, kinds[p].max - stats.out);
		percpu_pool_put_bulk(&pools[p], (void *const *)all, n);
		percpu_pool_trim(&pools[p], 0);
		if (percpu_pool_stats(&pools[p], &stats) || stats.magazines || stats.strays)
			violation("child, pool %u: %zu in magazines, %zu strays", p, stats.magazines, stats.strays);
	}
	_exit(0);
}

static void fork_once(void)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		alarm(CHILD_SECONDS);
		child();
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		violation("a forked child ended with status %#x", pid < 0 ? 0U : (unsigned)status);
}

/* The kernel says that it fenced. */
static void make_fence_lie(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof code / sizeof *code, .filter = code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		exit(77);
}

static void check_end(void)
{
	static struct object *all[5000];

	for (unsigned p = 0; p < POOLS; p++) {
		struct percpu_pool_stats stats;
		size_t n;

		for (size_t i = 0; i < MAIL; i++) {
			if (!mail[p][i])
				continue;
			claim(mail[p][i], IN_MAIL, 0, p);
			percpu_pool_put(&pools[p], mail[p][i]);
		}
		for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++)
			if (contexts[i].held[p])
				put_some(&contexts[i], p, contexts[i].held[p]);
		if (percpu_pool_stats(&pools[p], &stats) || stats.out || stats.strays)
			violation("pool %u: in the end %zu are out, %zu strays", p, stats.out, stats.strays);
		n = take_everything(p, kinds[p].max ? kinds[p].max + 1 : 5000, all);
		if (kinds[p].max && n != kinds[p].max)
			violation("pool %u: in the end %zu of %zu", p, n, kinds[p].max);
		percpu_pool_put_bulk(&pools[p], (void *const *)all, n);
		if (percpu_pool_destroy(&pools[p]))
			violation("pool %u: cannot be destroyed", p);
	}
}

static void begin(const char *mode)
{
	struct percpu_description about;

	if (percpu_describe(&about))
		exit(1);
	if (mode && strcmp(mode, about.mode_name)) {
		printf("skipped: this is mode %s, not %s: %s\n", about.mode_name, mode, about.reason);
		exit(77);
	}
	for (unsigned p = 0; p < POOLS; p++)
		if (percpu_pool_init(&pools[p], kinds[p].size, 8, kinds[p].max, 0))
			exit(1);
	for (unsigned i = 0; i < sizeof contexts / sizeof *contexts; i++) {
		contexts[i].number = i + 2;
		contexts[i].fresh = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (contexts[i].fresh == MAP_FAILED)
			exit(1);
		contexts[i].random = 88172645463325252 + i * UINT64_C(2654435761);
	}
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal, .sa_flags = SA_RESTART }, NULL);
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "mode", required_argument, NULL, 'm' },
						 { "seconds", required_argument, NULL, 's' },
						 { "threads", required_argument, NULL, 't' },
						 { "lie", no_argument, NULL, 'l' },
						 { NULL, 0, NULL, 0 } };
	pthread_t workers[MOST_THREADS], others[2];
	uint64_t steps = 0, failed = 0, forks = 0, last = 0;
	unsigned seconds = 5, still = 0;
	const char *mode = NULL;
	struct timespec start, now;

	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		if (option == 'm')
			mode = optarg;
		else if (option == 's')
			seconds = (unsigned)atoi(optarg);
		else if (option == 't')
			threads = (unsigned)atoi(optarg) % (MOST_THREADS + 1);
		else if (option == 'l')
			lying = true;
		else
			return 2;
	}
	begin(mode);
	if (lying)
		make_fence_lie();
	for (uintptr_t i = 0; i < threads; i++)
		if (pthread_create(&workers[i], NULL, work, (void *)i))
			return 1;
	if (pthread_create(&others[0], NULL, disturb, NULL) || pthread_create(&others[1], NULL, trim, NULL))
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
		if (!lying) {
			fork_once();
			forks++;
		}
		steps = 0;
		for (unsigned i = 0; i < threads; i++)
			steps += __atomic_load_n(&contexts[i].steps, __ATOMIC_RELAXED);
		still = steps == last ? still + 1 : 0;
		last = steps;
		if (still > 1000)
			violation("stuck: nobody has made a step");
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - start.tv_sec < (time_t)seconds);
	stop = true;
	for (unsigned i = 0; i < threads; i++)
		pthread_join(workers[i], NULL);
	pthread_join(others[0], NULL);
	pthread_join(others[1], NULL);
	for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++)
		failed += contexts[i].failed;
	check_end();
	printf("%llu steps, %llu gets found none, %llu forks\n", (unsigned long long)steps, (unsigned long long)failed,
	       (unsigned long long)forks);
	if (lying)
		printf("the lie was not found\n");
	return lying;
}
