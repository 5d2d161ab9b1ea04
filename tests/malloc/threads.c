/* SPDX-License-Identifier: MIT */
/*
 * A malloc under everything that programs do at once: threads that allocate, resize and free, hand objects to one another,
 * are moved between CPUs, get signals, and end while their objects live on; TLS destructors, atfork handlers, constructors,
 * destructors and atexit functions that allocate and free; libraries with thread-local data that come and go; children that
 * are forked while others allocate, and threads of theirs; processes that exit while others allocate.
 *
 *   malloc-threads [--seconds N] [--threads N] [--patience SECONDS] [--plugin FILE] [--early-atfork]
 *
 * Every object is full of a pattern of its own, looked at before it is freed, resized or passed on. Exits 1 with one line
 * on any damage, and where a child or all threads stand still for longer than patience is. --early-atfork: fork handlers registered before any library's constructor run, so that they allocate
 * after the allocator's own prepare handler and before its parent and child handlers.
 */
#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "subject.h"

#define MOST_THREADS 32
#define SLOTS        300
#define MAIL         128
#define LEGACY       24 /* objects that an ending thread leaves */

/* The head of an object in the mail: its pattern follows. */
struct letter {
	uint64_t seed, size, check;
};

struct slot {
	unsigned char *object;
	size_t size;
	uint64_t seed;
};

struct context {
	struct slot slots[SLOTS];
	uint64_t dice, steps;
} __attribute__((aligned(128)));

static struct context contexts[MOST_THREADS];
static struct letter *mail[MAIL];
static pid_t tids[MOST_THREADS];
static unsigned threads = 6, patience = 60;
static volatile bool stop;
static uint64_t signals, forks, ended, loads;
static pthread_key_t key;
static const char *plugin_file;
static bool early_atfork;
/*
 * Held by who may be inside the dynamic linker, and around a fork whose child will need it: the C library has no fork
 * handler for the linker's own lock.
 */
static pthread_mutex_t linker = PTHREAD_MUTEX_INITIALIZER;

__attribute__((format(printf, 1, 2), noreturn)) static void damage(const char *what, ...)
{
	char line[200] = "damage: ";
	va_list list;
	size_t length = strlen(line);

	va_start(list, what);
	vsnprintf(line + length, sizeof line - length - 1, what, list);
	va_end(list);
	length = strlen(line);
	line[length++] = '\n';
	if (write(STDERR_FILENO, line, length) < 0)
		_exit(2);
	_exit(1);
}

static void *must(void *object, size_t size)
{
	if (!object)
		damage("nothing was allocated: errno %d", errno);
	if ((uintptr_t)object % subject_alignment(size))
		damage("%p is not aligned", object);
	return object;
}

static void nap(long nanoseconds)
{
	nanosleep(&(struct timespec){ .tv_nsec = nanoseconds }, NULL);
}

/* Only whole lines that need no memory: the allocator may be stuck. */
static void on_alarm(int sig)
{
	(void)sig;
	damage("stuck: a process has not ended for %u s", patience);
}

/* --- objects --- */

static void slot_verify(const struct slot *slot, const char *when)
{
	size_t at = subject_damage(slot->object, slot->size, slot->seed, slot->size);

	if (at != slot->size)
		damage("%s: byte %zu of the %zu at %p", when, at, slot->size, (void *)slot->object);
}

static void slot_make(struct slot *slot, uint64_t *dice)
{
	void *aligned = NULL;

	slot->size = subject_size(dice);
	slot->seed = subject_random(dice);
	switch (slot->seed % 16) {
	case 0:
		slot->object = must(calloc(1, slot->size), slot->size);
		if (subject_not_zero(slot->object, slot->size) != slot->size)
			damage("calloc of %zu at %p is not zero", slot->size, (void *)slot->object);
		break;
	case 1:
		if (posix_memalign(&aligned, (size_t)16 << slot->seed / 16 % 10, slot->size))
			damage("posix_memalign of %zu", slot->size);
		if ((slot->size || subject_is_strict()) && (uintptr_t)aligned % ((size_t)16 << slot->seed / 16 % 10))
			damage("posix_memalign: %p is not aligned", aligned);
		slot->object = aligned;
		break;
	default:
		slot->object = must(malloc(slot->size), slot->size);
	}
	subject_fill(slot->object, slot->size, slot->seed);
}

static void slot_free(struct slot *slot, const char *when)
{
	int before = errno = (int)(slot->seed % 100);

	slot_verify(slot, when);
	free(slot->object);
	slot->object = NULL;
	if (errno != before)
		damage("free changed errno to %d", errno);
}

static void slot_resize(struct slot *slot, uint64_t *dice)
{
	size_t size = subject_size(dice) + 1, kept = size < slot->size ? size : slot->size, at;

	slot_verify(slot, "before realloc");
	if (kept)
		slot->object[kept - 1] = subject_byte(slot->seed, kept - 1);
	slot->object = must(realloc(slot->object, size), size);
	at = subject_damage(slot->object, slot->size, slot->seed, kept);
	if (at != kept || (kept && slot->object[kept - 1] != subject_byte(slot->seed, kept - 1)))
		damage("realloc from %zu to %zu at %p: byte %zu", slot->size, size, (void *)slot->object, at);
	slot->size = size;
	subject_fill(slot->object, slot->size, slot->seed);
}

/* --- passing on --- */

static uint64_t letter_check(const struct letter *letter)
{
	return letter->seed ^ letter->size ^ (uintptr_t)letter;
}

static struct letter *letter_write(uint64_t *dice)
{
	size_t size = sizeof(struct letter) + subject_size(dice);
	struct letter *letter = must(malloc(size), size);

	letter->seed = subject_random(dice);
	letter->size = size;
	letter->check = letter_check(letter);
	subject_fill(letter + 1, size - sizeof *letter, letter->seed);
	return letter;
}

static void letter_verify(const struct letter *letter)
{
	size_t size = letter->size - sizeof *letter;

	if (letter->check != letter_check(letter))
		damage("head of the object in the mail at %p", (const void *)letter);
	if (subject_damage(letter + 1, size, letter->seed, size) != size)
		damage("object of %zu bytes in the mail at %p", size, (const void *)letter);
}

static void letter_free(struct letter *letter)
{
	if (!letter)
		return;
	letter_verify(letter);
	letter->check = 0; /* who meets it again, sees */
	free(letter);
}

static void pass_on(struct letter *letter, uint64_t *dice)
{
	letter_free(__atomic_exchange_n(&mail[subject_random(dice) % MAIL], letter, __ATOMIC_ACQ_REL));
}

/* --- workers --- */

static void step(struct context *me)
{
	struct slot *slot = &me->slots[subject_random(&me->dice) % SLOTS];

	switch (subject_random(&me->dice) % 8) {
	case 0:
		pass_on(letter_write(&me->dice), &me->dice);
		break;
	case 1:
		pass_on(NULL, &me->dice);
		break;
	case 2:
		if (slot->object)
			slot_resize(slot, &me->dice);
		break;
	default:
		if (slot->object)
			slot_free(slot, "before free");
		else
			slot_make(slot, &me->dice);
	}
	__atomic_store_n(&me->steps, me->steps + 1, __ATOMIC_RELAXED);
}

static void *work(void *arg)
{
	unsigned number = (unsigned)(uintptr_t)arg;
	struct context *me = &contexts[number];

	__atomic_store_n(&tids[number], (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
	while (!stop)
		step(me);
	__atomic_store_n(&tids[number], 0, __ATOMIC_RELEASE);
	return NULL;
}

static void on_signal(int sig)
{
	(void)sig;
	__atomic_add_fetch(&signals, 1, __ATOMIC_RELAXED);
}

static uint64_t all_steps(void)
{
	uint64_t steps = 0;

	for (unsigned i = 0; i < threads; i++)
		steps += __atomic_load_n(&contexts[i].steps, __ATOMIC_RELAXED);
	return steps;
}

/* Moves threads, sends them signals, and watches that somebody gets on: it never allocates, so it cannot be stuck itself. */
static void *disturb(void *arg)
{
	uint64_t dice = 777, last = 0;
	struct timespec now, since = { 0 };
	cpu_set_t all, one;

	(void)arg;
	sched_getaffinity(0, sizeof all, &all);
	while (!stop) {
		pid_t tid = __atomic_load_n(&tids[subject_random(&dice) % threads], __ATOMIC_ACQUIRE);

		clock_gettime(CLOCK_MONOTONIC, &now);
		if (!since.tv_sec || all_steps() + __atomic_load_n(&forks, __ATOMIC_RELAXED) != last)
			since = now;
		last = all_steps() + __atomic_load_n(&forks, __ATOMIC_RELAXED);
		if (now.tv_sec - since.tv_sec > (time_t)patience)
			damage("stuck: nobody has made a step for %u s", patience);
		CPU_ZERO(&one);
		CPU_SET(subject_random(&dice) % (uint64_t)CPU_COUNT(&all), &one);
		if (tid && subject_random(&dice) % 2)
			syscall(SYS_tgkill, getpid(), tid, SIGUSR1);
		if (tid)
			sched_setaffinity(tid, sizeof one, subject_random(&dice) % 3 ? &one : &all);
		nap(200000);
	}
	return NULL;
}

/* --- threads that end --- */

/* What a thread keeps in the key: its destructor frees it, allocates, and asks for another round, three times. */
struct will {
	struct slot slots[8];
	uint64_t dice;
	int rounds;
};

static void at_thread_exit(void *arg)
{
	struct will *old = arg, *will;

	for (size_t i = 0; i < SUBJECT_COUNT(old->slots); i++)
		slot_free(&old->slots[i], "in a TLS destructor");
	pass_on(letter_write(&old->dice), &old->dice);
	if (old->rounds < 3) {
		will = must(malloc(sizeof *will), sizeof *will);
		*will = *old;
		will->rounds++;
		for (size_t i = 0; i < SUBJECT_COUNT(will->slots); i++)
			slot_make(&will->slots[i], &will->dice);
		pthread_setspecific(key, will);
	}
	free(old);
}

static void at_cxx_thread_exit(void *arg)
{
	slot_free(arg, "in a C++ TLS destructor");
	free(arg);
}

extern int __cxa_thread_atexit_impl(void (*destructor)(void *), void *object, void *dso);
extern void *__dso_handle;

static void *live_shortly(void *arg)
{
	struct will *will = must(calloc(1, sizeof *will), sizeof *will);
	struct slot *cxx = must(calloc(1, sizeof *cxx), sizeof *cxx);

	will->dice = (uintptr_t)arg * 7919 + 1;
	for (size_t i = 0; i < SUBJECT_COUNT(will->slots); i++)
		slot_make(&will->slots[i], &will->dice);
	pthread_setspecific(key, will);
	slot_make(cxx, &will->dice);
	pthread_mutex_lock(&linker);
	__cxa_thread_atexit_impl(at_cxx_thread_exit, cxx, &__dso_handle);
	pthread_mutex_unlock(&linker);
	for (int i = 0; i < LEGACY; i++)
		pass_on(letter_write(&will->dice), &will->dice);
	if ((uintptr_t)arg % 3 == 0)
		pthread_exit(NULL);
	if ((uintptr_t)arg % 3 == 1) {
		/* Cancelled where it waits, so that destructors run from there. */
		pthread_cancel(pthread_self());
		nap(1);
	}
	return NULL;
}

static void *spawn(void *arg)
{
	uintptr_t number = 1;

	(void)arg;
	while (!stop) {
		pthread_t some[6];
		size_t n = 0;

		pthread_mutex_lock(&linker);
		while (n < SUBJECT_COUNT(some) && pthread_create(&some[n], NULL, live_shortly, (void *)number++) == 0)
			n++;
		pthread_mutex_unlock(&linker);
		for (size_t i = 0; i < n; i++)
			pthread_join(some[i], NULL);
		__atomic_add_fetch(&ended, n, __ATOMIC_RELAXED);
		if (number % 48 == 1)
			malloc_trim(0);
		nap(500000);
	}
	return NULL;
}

/* A library whose constructor, functions and destructor allocate, and that has thread-local data. */
static void *load(void *arg)
{
	uint64_t dice = 5;

	(void)arg;
	while (!stop && plugin_file) {
		union {
			void *symbol;
			int (*call)(void);
		} use;
		void *handle;

		pthread_mutex_lock(&linker);
		handle = dlopen(plugin_file, subject_random(&dice) % 2 ? RTLD_NOW : RTLD_LAZY);
		if (!handle)
			damage("dlopen: %s", dlerror());
		use.symbol = dlsym(handle, "plugin_use");
		if (!use.symbol || use.call())
			damage("an object of a loaded library");
		if (dlclose(handle))
			damage("dlclose: %s", dlerror());
		pthread_mutex_unlock(&linker);
		loads++;
		nap(1000000);
	}
	return NULL;
}

/* --- fork --- */

static struct slot held[3][8]; /* by prepare for parent and child, each kind of handler its own */
static uint64_t handler_dice = 31;

static void prepare(int kind)
{
	for (size_t i = 0; i < SUBJECT_COUNT(held[kind]); i++)
		slot_make(&held[kind][i], &handler_dice);
}

static void release(int kind)
{
	struct slot more = { 0 };

	slot_make(&more, &handler_dice);
	for (size_t i = 0; i < SUBJECT_COUNT(held[kind]); i++)
		slot_free(&held[kind][i], "in a fork handler");
	slot_free(&more, "in a fork handler");
}

static void prepare_early(void)
{
	prepare(0);
}

static void release_early(void)
{
	release(0);
}

static void prepare_constructed(void)
{
	prepare(1);
}

static void release_constructed(void)
{
	release(1);
}

static void prepare_late(void)
{
	prepare(2);
}

static void release_late(void)
{
	release(2);
}

/* Before every constructor, that of a preloaded allocator too. */
static void before_constructors(int argc, char **argv, char **environment)
{
	(void)environment;
	for (int i = 1; i < argc; i++)
		early_atfork |= strcmp(argv[i], "--early-atfork") == 0;
	if (early_atfork)
		pthread_atfork(prepare_early, release_early, release_early);
}

__attribute__((section(".preinit_array"), used)) static void (*preinit)(int, char **, char **) = before_constructors;

static struct slot from_constructor;

__attribute__((constructor)) static void construct(void)
{
	uint64_t dice = 3;

	slot_make(&from_constructor, &dice);
	pthread_atfork(prepare_constructed, release_constructed, release_constructed);
}

__attribute__((destructor)) static void destruct(void)
{
	uint64_t dice = 4;
	struct slot another = { 0 };

	slot_free(&from_constructor, "in a destructor");
	slot_make(&another, &dice);
	slot_free(&another, "in a destructor");
}

static struct slot for_atexit;

static void at_exit(void)
{
	uint64_t dice = 6;
	struct slot another = { 0 };

	slot_free(&for_atexit, "in an atexit function");
	slot_make(&another, &dice);
	slot_free(&another, "in an atexit function");
}

static void *work_in_child(void *arg)
{
	struct context *me = arg;

	for (int i = 0; i < 2000; i++)
		step(me);
	for (size_t i = 0; i < SLOTS; i++)
		if (me->slots[i].object)
			slot_free(&me->slots[i], "in a child");
	return NULL;
}

/* Only the caller's own objects and what lies in the mail are whole: other threads were stopped anywhere. */
static void child(unsigned number)
{
	static struct context mine;
	pthread_t other;

	memset(&mine, 0, sizeof mine);
	mine.dice = 1000 + number;
	for (size_t i = 0; i < MAIL; i++)
		letter_free(__atomic_exchange_n(&mail[i], NULL, __ATOMIC_ACQ_REL));
	work_in_child(&mine);
	if (number % 4 == 0) {
		contexts[0] = (struct context){ .dice = number + 1 };
		if (pthread_create(&other, NULL, work_in_child, &contexts[0]) || pthread_join(other, NULL))
			damage("no thread in a child");
	}
	if (number % 8 == 1) {
		pid_t pid = fork();
		int status;

		if (pid == 0) {
			work_in_child(&mine);
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			damage("a child's child ended with status %#x", pid < 0 ? 0U : (unsigned)status);
	}
	if (number % 4 == 2)
		exit(0); /* atexit functions and destructors */
	_exit(0);
}

/* The child's own alarm is not set before its fork handlers are done. */
static void wait_for(pid_t pid, const char *what)
{
	struct timespec start, now;
	pid_t ended = 0;
	int status = 0;

	if (pid < 0)
		damage("fork: errno %d", errno);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while ((ended = waitpid(pid, &status, WNOHANG)) == 0) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec - start.tv_sec > (time_t)patience + 2) {
			kill(pid, SIGKILL);
			damage("%s is stuck in fork", what);
		}
		nap(500000);
	}
	if (ended != pid || status)
		damage("%s ended with status %#x", what, (unsigned)status);
}

static void fork_once(void)
{
	bool needs_linker = __atomic_add_fetch(&forks, 1, __ATOMIC_RELAXED) % 2 == 0;
	pid_t pid;

	if (needs_linker)
		pthread_mutex_lock(&linker);
	pid = fork();
	if (needs_linker)
		pthread_mutex_unlock(&linker);
	if (pid == 0) {
		alarm(patience);
		child((unsigned)forks);
	}
	wait_for(pid, "a forked child");
}

/* A process that exits while its threads allocate. */
static void exit_busy(void)
{
	pid_t pid;

	pthread_mutex_lock(&linker);
	pid = fork();
	pthread_mutex_unlock(&linker);
	if (pid == 0) {
		pthread_t others[3];

		alarm(patience);
		memset(contexts, 0, sizeof contexts);
		for (uintptr_t i = 0; i < SUBJECT_COUNT(others); i++) {
			contexts[i].dice = i + 1;
			if (pthread_create(&others[i], NULL, work, (void *)i))
				damage("no thread in a child");
		}
		nap(3000000);
		exit(0);
	}
	wait_for(pid, "a process that exited while others allocated");
}

static void check_end(void)
{
	for (size_t i = 0; i < MAIL; i++)
		letter_free(mail[i]);
	for (size_t i = 0; i < MOST_THREADS; i++)
		for (size_t j = 0; j < SLOTS; j++)
			if (contexts[i].slots[j].object)
				slot_free(&contexts[i].slots[j], "in the end");
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "seconds", required_argument, NULL, 's' },
						 { "threads", required_argument, NULL, 't' },
						 { "patience", required_argument, NULL, 'w' },
						 { "plugin", required_argument, NULL, 'p' },
						 { "early-atfork", no_argument, NULL, 'e' },
						 { "long", no_argument, NULL, 'l' },
						 { NULL, 0, NULL, 0 } };
	static void *(*const bodies[])(void *) = { disturb, spawn, load };
	pthread_t workers[MOST_THREADS], others[SUBJECT_COUNT(bodies)];
	struct timespec start, now;
	unsigned seconds = 5;
	uint64_t dice = 9;

	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		if (option == 's')
			seconds = (unsigned)atoi(optarg);
		else if (option == 'l')
			seconds =
				getenv("PERCPU_STRESS_SECONDS") ? (unsigned)atoi(getenv("PERCPU_STRESS_SECONDS")) : 300;
		else if (option == 't')
			threads = (unsigned)atoi(optarg) % (MOST_THREADS + 1);
		else if (option == 'w')
			patience = (unsigned)atoi(optarg);
		else if (option == 'p')
			plugin_file = optarg;
		else if (option != 'e')
			return 2;
	}
	subject_begin();
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = on_signal, .sa_flags = SA_RESTART }, NULL);
	pthread_key_create(&key, at_thread_exit);
	pthread_atfork(prepare_late, release_late, release_late);
	slot_make(&for_atexit, &dice);
	atexit(at_exit);
	/* Before the first thread too. */
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL);
	alarm(patience);
	fork_once();
	alarm(0);
	for (uintptr_t i = 0; i < threads; i++) {
		contexts[i].dice = 88172645463325252 + i * UINT64_C(2654435761);
		if (pthread_create(&workers[i], NULL, work, (void *)i))
			return 2;
	}
	for (size_t i = 0; i < SUBJECT_COUNT(bodies); i++)
		if (pthread_create(&others[i], NULL, bodies[i], NULL))
			return 2;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		nap(10000000);
		fork_once();
		if (forks % 16 == 0)
			exit_busy();
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - start.tv_sec < (time_t)seconds);
	stop = true;
	for (unsigned i = 0; i < threads; i++)
		pthread_join(workers[i], NULL);
	for (size_t i = 0; i < SUBJECT_COUNT(bodies); i++)
		pthread_join(others[i], NULL);
	check_end();
	printf("%llu steps, %llu signals, %llu threads ended, %llu forks, %llu loads\n",
	       (unsigned long long)all_steps(), (unsigned long long)signals, (unsigned long long)ended,
	       (unsigned long long)forks, (unsigned long long)loads);
	return 0;
}
