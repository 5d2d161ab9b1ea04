/* SPDX-License-Identifier: MIT */
/*
 * Guarded objects: what is said about wrong uses of them, each in a child of its own, and that right uses are not disturbed.
 *
 *   malloc-guard [--list] [CASE...]
 *
 * Run with PERCPU_MALLOC=guard=1. Cases whose name begins with "usual" execute the program anew, without that.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <regex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#include "subject.h"

#define CHILD_SECONDS 60
#define STACK         32768
#define EXIT_UNTRIED  99

#define ADDRESS "0x[0-9a-f]+"
#define OBJECT  "an object of 40 bytes at " ADDRESS "\n"
/* Frames: any, then a certain function. */
#define IN(function)                                                                                                   \
	"(    #[0-9]+ .*\n)*    #[0-9]+ " ADDRESS " " function "\\+" ADDRESS " \\(.*malloc-guard\\+" ADDRESS "\\)\n"
#define BY    "  by thread [0-9]+:\n"
#define MADE  "(    #.*\n)*  allocated by thread [0-9]+:\n" IN("make")
#define FREED "(    #.*\n)*  freed by thread [0-9]+:\n" IN("drop")
#define END   "(    #.*\n)*$"

static volatile char sink;

static void wrong(const char *what)
{
	fprintf(stderr, "%s\n", what);
	_exit(1);
}

/* These are to be found in stacks, so they are functions that others can see, and call something last that they wait for. */
__attribute__((noinline)) char *make(size_t size);
__attribute__((noinline)) void drop(void *object);
__attribute__((noinline)) char look(volatile char *at);
__attribute__((noinline)) void spoil(volatile char *at);

char *make(size_t size)
{
	char *object = malloc(subject_opaque(size));

	if (!object)
		_exit(EXIT_UNTRIED);
	memset(object, 1, size);
	return object;
}

void drop(void *object)
{
	__asm__("" : "+r"(object));
	free(object);
	sink = 0;
}

char look(volatile char *at)
{
	return *at;
}

void spoil(volatile char *at)
{
	*at = 'X';
}

/* Which of the ends of its page an object is at, is by chance. */
static char *make_at(bool start, size_t size)
{
	for (int i = 0; i < 1000; i++) {
		char *object = make(size);

		if ((((uintptr_t)object & 4095) == 0) == start)
			return object;
	}
	wrong("a thousand objects at the same end of their page");
	return NULL;
}

static void read_after_free(void)
{
	char *object = make(40);

	drop(object);
	sink = look(object + 4);
}

static void write_after_free(void)
{
	char *object = make(40);

	drop(object);
	spoil(object + 39);
}

/* Nearer to the next place, where nobody has been yet. */
static void read_far_behind(void)
{
	sink = look(make_at(false, 48) + 48 + 3000);
}

static void read_behind(void)
{
	/* 40 bytes at the end of a page, at a multiple of 16, leave 8. */
	sink = look(make_at(false, 40) + 48);
}

static void write_behind(void)
{
	spoil(make_at(false, 48) + 48);
}

static void read_before(void)
{
	sink = look(make_at(true, 40) - 1);
}

static void write_just_behind(void)
{
	char *object = make(40);

	spoil(object + 40);
	drop(object);
}

static void write_just_before(void)
{
	char *object = make_at(false, 40);

	spoil(object - 1);
	drop(object);
}

static void double_free(void)
{
	char *object = make(40);

	drop(object);
	free(object);
}

static void double_free_late(void)
{
	char *object = make(40);

	drop(object);
	/* Others come and go, but not yet there. */
	for (int i = 0; i < 2000; i++)
		free(make(40));
	free(object);
}

static void free_inside(void)
{
	free(make(40) + 16);
}

static void free_beside(void)
{
	free((void *)(((uintptr_t)make(40) | 4095) + 1));
}

static void realloc_of_freed(void)
{
	char *object = make(40);

	drop(object);
	sink = *(char *)realloc(object, subject_opaque(4000));
}

static void size_of_freed(void)
{
	char *object = make(40);

	drop(object);
	sink = (char)malloc_usable_size(object);
}

static void *drop_it(void *object)
{
	fprintf(stderr, "thread %ld\n", syscall(SYS_gettid));
	drop(object);
	return NULL;
}

static void freed_by_another(void)
{
	char *object = make(40);
	pthread_t thread;

	if (pthread_create(&thread, NULL, drop_it, object) || pthread_join(thread, NULL))
		_exit(EXIT_UNTRIED);
	sink = look(object);
}

static void in_a_forked_child(void)
{
	char *object = make(40);
	int status;
	pid_t child;

	drop(object);
	child = fork();
	if (child == 0) {
		free(make(40));
		sink = look(object);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		_exit(EXIT_UNTRIED);
	if (WIFSIGNALED(status))
		raise(WTERMSIG(status));
	_exit(WEXITSTATUS(status));
}

static char *culprit;

/* So deep that there is no room for a handler. */
static void almost_full(void)
{
	volatile char most[STACK - 1400];

	most[0] = look(culprit);
	sink = most[0];
}

static void on_other_stack(void)
{
	static char bytes[65536];
	stack_t stack = { .ss_sp = bytes, .ss_size = sizeof bytes };
	static ucontext_t here, there;
	char *small = mmap(NULL, 3 * STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	/* (So that nothing has to be bound there.) */
	culprit = make(40);
	look(culprit);
	drop(culprit);
	if (small == MAP_FAILED || mprotect(small + STACK, STACK, PROT_READ | PROT_WRITE) ||
	    sigaltstack(&stack, NULL) || getcontext(&there))
		_exit(EXIT_UNTRIED);
	there.uc_stack.ss_sp = small + STACK;
	there.uc_stack.ss_size = STACK;
	there.uc_link = &here;
	makecontext(&there, almost_full, 0);
	swapcontext(&here, &there);
}

static void catch_it(int number)
{
	static const char text[] = "the program's own\n";

	(void)number;
	_exit(write(STDERR_FILENO, text, sizeof text - 1) > 0 ? 3 : 1);
}

/* The handler is installed with the first object, which by now there has been; a program that brings its own keeps it. */
static void own_handler(void)
{
	signal(SIGSEGV, catch_it);
	read_after_free();
}

static struct sigaction before;

static void pass_on(int number, siginfo_t *info, void *context)
{
	static const char text[] = "passed on\n";

	if (write(STDERR_FILENO, text, sizeof text - 1) < 0 || !(before.sa_flags & SA_SIGINFO))
		_exit(1);
	before.sa_sigaction(number, info, context);
}

static void passed_on(void)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO };

	free(make(1));
	action.sa_sigaction = pass_on;
	sigaction(SIGSEGV, &action, &before);
	read_after_free();
}

static void other_fault(void)
{
	free(make(1));
	sink = look((char *)subject_opaque(16));
}

static void sent_signal(void)
{
	free(make(1));
	kill(getpid(), SIGSEGV);
	sleep(10);
}

static void work(void)
{
	for (int i = 0; i < 2000; i++)
		free(make(40));
}

static void right_uses(void)
{
	uint64_t dice = 5;

	for (int i = 0; i < 4000; i++) {
		size_t size = subject_random(&dice) % 5000, larger = subject_random(&dice) % 9000,
		       align = (size_t)1 << subject_random(&dice) % 14, kept = size < larger ? size : larger;
		char *object = malloc(subject_opaque(size)), *zeros, *straight;

		if (malloc_usable_size(object) < size)
			wrong("too small");
		subject_fill(object, size, (uint64_t)i);
		zeros = calloc(subject_opaque(1), size);
		if (subject_not_zero(zeros, size) != size)
			wrong("not zero");
		memset(zeros, 1, size);
		straight = memalign(align, size);
		if ((uintptr_t)straight % align)
			wrong("not aligned");
		memset(straight, 1, size);
		object = realloc(object, subject_opaque(larger + 1));
		if (subject_damage(object, size, (uint64_t)i, kept) != kept)
			wrong("not what it was before realloc");
		free(zeros);
		free(straight);
		free(object);
	}
}

static void exact_size(void)
{
	for (size_t size = 0; size <= 4096; size += 13) {
		char *object = malloc(subject_opaque(size));

		if (malloc_usable_size(object) != size)
			wrong("not guarded");
		free(object);
	}
}

/* More than there are places for. */
static void many(void)
{
	static char *objects[20000];

	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++) {
			objects[i] = make(100);
			subject_fill(objects[i], 100, i);
		}
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++) {
			if (subject_damage(objects[i], 100, i, 100) != 100)
				wrong("damaged");
			free(objects[i]);
		}
	}
}

static void errno_stays(void)
{
	char *object = make(40);

	errno = 12345;
	free(object);
	object = malloc(subject_opaque(50));
	if (errno != 12345)
		wrong("errno has changed");
	free(object);
}

/* Says that the word on top of the stack is where it returns to, which it is not. */
#if defined __x86_64__
void call_badly(void (*function)(void));
__asm__(".text\n.globl call_badly\n.type call_badly, @function\ncall_badly:\n.cfi_startproc\npushq $0x1000\ncall *%rdi\n"
	"addq $8, %rsp\nret\n.cfi_endproc\n.size call_badly, . - call_badly\n");
#else
static void call_badly(void (*function)(void))
{
	function();
}
#endif

static void bad_frames(void)
{
	call_badly(work);
	call_badly(right_uses);
	read_after_free();
}

static volatile bool stop;

static void *come_and_go(void *unused)
{
	uint64_t dice = (uintptr_t)&dice;

	(void)unused;
	while (!stop) {
		char *objects[30];

		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			objects[i] = make(subject_random(&dice) % 4096);
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			free(objects[i]);
	}
	return NULL;
}

static void forks_among_threads(void)
{
	pthread_t threads[3];
	int status;

	for (size_t i = 0; i < SUBJECT_COUNT(threads); i++)
		if (pthread_create(&threads[i], NULL, come_and_go, NULL))
			_exit(EXIT_UNTRIED);
	for (int i = 0; i < 50; i++) {
		pid_t child = fork();

		if (child == 0) {
			alarm(CHILD_SECONDS / 2);
			for (int j = 0; j < 100; j++)
				free(make(100));
			_exit(0);
		}
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			wrong("a child did not end well");
	}
	stop = true;
	for (size_t i = 0; i < SUBJECT_COUNT(threads); i++)
		pthread_join(threads[i], NULL);
}

static void vforked(void)
{
	char *object = make(40), *volatile other;
	int status;
	pid_t child = vfork();

	if (child == 0) {
		other = make(50);
		free(object);
		_exit(7);
	}
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7)
		wrong("a child did not end well");
	memset(other, 2, 50);
	free(other);
}

static volatile sig_atomic_t handled;

static void allocate(int number)
{
	(void)number;
	free(make(64));
	handled++;
}

static void handlers_that_allocate(void)
{
	struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { { 0, 0 }, { 0, 0 } };

	signal(SIGALRM, allocate);
	setitimer(ITIMER_REAL, &often, NULL);
	while (handled < 3000)
		free(make(64));
	setitimer(ITIMER_REAL, &never, NULL);
}

static bool deny(int call)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { SUBJECT_COUNT(code), code };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void no_mprotect(void)
{
	static char *objects[100];

	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
		objects[i] = make(40);
	if (!deny(SYS_mprotect))
		_exit(EXIT_UNTRIED);
	for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
		free(objects[i]);
	work();
}

static void no_more_mappings(void)
{
	struct rlimit limit = { 1 << 20, RLIM_INFINITY };

	if (setrlimit(RLIMIT_AS, &limit))
		_exit(EXIT_UNTRIED);
	work();
}

static void locked(void)
{
	if (mlockall(MCL_FUTURE) && errno != EPERM && errno != ENOMEM)
		_exit(EXIT_UNTRIED);
	work();
	right_uses();
}

/* With nothing said about guards: found sooner or later, in a program that allocates much. */
static void usual(void)
{
	static char *objects[20000];
	uint64_t dice = 3;

	for (;;) {
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			objects[i] = make(1 + subject_random(&dice) % 1000);
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			drop(objects[i]);
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			sink = look(objects[i]);
	}
}

/* Who has a handler of its own is left alone. */
static void usual_own_handler(void)
{
	static char *objects[20000];

	signal(SIGSEGV, catch_it);
	for (int round = 0; round < 200; round++) {
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			objects[i] = make(1 + i % 1000);
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			drop(objects[i]);
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			sink = look(objects[i]);
	}
}

static uint64_t milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* And rare: however long this takes, there is at most one in 20 ms. (The clock that is looked at goes by steps of up to 10.) */
static void usual_is_rare(void)
{
	static char *objects[20000];
	uint64_t dice = 3, begin = milliseconds(), guarded = 0;

	for (int round = 0; round < 50; round++) {
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++) {
			size_t size = subject_random(&dice) % 1000 | 1;

			objects[i] = make(size);
			guarded += malloc_usable_size(objects[i]) == size;
		}
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			drop(objects[i]);
	}
	if (guarded > (milliseconds() - begin) / 10 + 2)
		wrong("too many");
}

static const struct {
	const char *name;
	void (*body)(void);
	int signal;       /* that ends it; 0: it ends by itself */
	const char *says; /* on stderr; NULL: nothing */
} cases[] = {
	{ "read-after-free", read_after_free, SIGSEGV,
	  "^percpu-malloc: use after free: (read of|access to) " ADDRESS ", 4 bytes into " OBJECT BY IN("look")
		  MADE FREED END },
	{ "write-after-free", write_after_free, SIGSEGV,
	  "^percpu-malloc: use after free: (write to|access to) " ADDRESS ", 39 bytes into " OBJECT BY IN("spoil")
		  MADE FREED END },
	{ "read-behind", read_behind, SIGSEGV,
	  "^percpu-malloc: overflow: (read of|access to) " ADDRESS ", 8 bytes behind " OBJECT BY IN("look") MADE END },
	{ "read-far-behind", read_far_behind, SIGSEGV,
	  "^percpu-malloc: overflow: (read of|access to) " ADDRESS ", 3000 bytes behind an object of 48 bytes" },
	{ "write-behind", write_behind, SIGSEGV,
	  "^percpu-malloc: overflow: (write to|access to) " ADDRESS ", just behind an object of 48 bytes at " ADDRESS
	  "\n" BY IN("spoil") MADE END },
	{ "read-before", read_before, SIGSEGV,
	  "^percpu-malloc: underflow: (read of|access to) " ADDRESS ", 1 byte before " OBJECT BY IN("look") MADE END },
	{ "write-just-behind", write_just_behind, SIGABRT,
	  "^percpu-malloc: overflow: seen when it is freed: byte changed at " ADDRESS
	  ", just behind " OBJECT BY IN("drop") MADE END },
	{ "write-just-before", write_just_before, SIGABRT,
	  "^percpu-malloc: underflow: seen when it is freed: byte changed at " ADDRESS
	  ", 1 byte before " OBJECT BY IN("drop") MADE END },
	{ "double-free", double_free, SIGABRT,
	  "^percpu-malloc: double free: free of " ADDRESS ", the start of " OBJECT BY "(    #.*\n)+" MADE FREED END },
	{ "double-free-late", double_free_late, SIGABRT,
	  "^percpu-malloc: double free: free of " ADDRESS ", the start of " OBJECT BY "(    #.*\n)+" MADE FREED END },
	{ "free-inside", free_inside, SIGABRT,
	  "^percpu-malloc: invalid free: free of " ADDRESS ", 16 bytes into " OBJECT BY "(    #.*\n)+" MADE END },
	{ "free-beside", free_beside, SIGABRT, "^percpu-malloc: invalid free: free of " ADDRESS ", " },
	{ "realloc-of-freed", realloc_of_freed, SIGABRT,
	  "^percpu-malloc: use after free: .* of " ADDRESS ", the start of " OBJECT BY "(    #.*\n)+" MADE FREED END },
	{ "size-of-freed", size_of_freed, SIGABRT,
	  "^percpu-malloc: use after free: .* of " ADDRESS ", the start of " OBJECT BY "(    #.*\n)+" MADE FREED END },
	{ "freed-by-another", freed_by_another, SIGSEGV,
	  "^thread ([0-9]+)\npercpu-malloc: use after free: .*" BY IN("look") MADE
	  "(    #.*\n)*  freed by thread \\1:\n" IN("drop") END },
	{ "in-a-forked-child", in_a_forked_child, SIGSEGV,
	  "^percpu-malloc: use after free: .*" BY IN("look") MADE FREED END },
	{ "on-other-stack", on_other_stack, SIGSEGV,
	  "^percpu-malloc: use after free: .*" BY IN("look") MADE FREED END },
	{ "own-handler", own_handler, -3, "^the program's own\n$" },
	{ "passed-on", passed_on, SIGSEGV,
	  "^passed on\npercpu-malloc: use after free: .*" BY IN("look") MADE FREED END },
	{ "other-fault", other_fault, SIGSEGV, NULL },
	{ "sent-signal", sent_signal, SIGSEGV, NULL },
	{ "right-uses", right_uses, 0, NULL },
	{ "exact-size", exact_size, 0, NULL },
	{ "many", many, 0, NULL },
	{ "errno", errno_stays, 0, NULL },
	{ "bad-frames", bad_frames, SIGSEGV, "^percpu-malloc: use after free: .*" BY IN("look") MADE FREED END },
	{ "forks-among-threads", forks_among_threads, 0, NULL },
	{ "vfork", vforked, 0, NULL },
	{ "handlers-that-allocate", handlers_that_allocate, 0, NULL },
	{ "no-mprotect", no_mprotect, 0, NULL },
	{ "no-more-mappings", no_more_mappings, 0, NULL },
	{ "locked", locked, 0, NULL },
	{ "usual", usual, SIGSEGV, "^percpu-malloc: use after free: .*" BY IN("look") MADE FREED END },
	{ "usual-own-handler", usual_own_handler, 0, NULL },
	{ "usual-is-rare", usual_is_rare, 0, NULL },
};

static void read_all(int from, char *text, size_t room)
{
	size_t length = 0;
	ssize_t got;

	while (length < room - 1 && (got = read(from, text + length, room - 1 - length)) > 0)
		length += (size_t)got;
	text[length] = '\0';
}

static const char *judge(size_t i, int status, const char *text)
{
	regex_t says;
	bool fits;

	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_UNTRIED)
		return "could not be tried";
	if (cases[i].signal > 0 && (!WIFSIGNALED(status) || WTERMSIG(status) != cases[i].signal))
		return WIFEXITED(status) ? "did not die" : "died of another signal";
	if (cases[i].signal <= 0 && (!WIFEXITED(status) || WEXITSTATUS(status) != -cases[i].signal))
		return WIFEXITED(status) ? "ended with another status" : "died";
	if (!cases[i].says)
		return text[0] ? "said something" : NULL;
	if (regcomp(&says, cases[i].says, REG_EXTENDED | REG_NOSUB))
		return "has a bad pattern";
	fits = regexec(&says, text, 0, NULL, 0) == 0;
	regfree(&says);
	return fits ? NULL : "said something else";
}

/* Options are read once: what goes without them begins anew. */
static void run_in_child(const char *program, size_t i)
{
	alarm(CHILD_SECONDS);
	if (strncmp(cases[i].name, "usual", 5) == 0) {
		unsetenv("PERCPU_MALLOC");
		setenv("MALLOC_GUARD_USUAL", "1", 1);
		execl(program, program, cases[i].name, (char *)NULL);
		_exit(EXIT_UNTRIED);
	}
	cases[i].body();
	_exit(0);
}

static bool run(const char *program, size_t i)
{
	static char text[20000];
	const char *problem;
	int out[2], status;
	pid_t pid;

	fflush(stdout);
	if (pipe(out))
		return false;
	pid = fork();
	if (pid == 0) {
		dup2(out[1], STDERR_FILENO);
		close(out[0]);
		close(out[1]);
		run_in_child(program, i);
	}
	close(out[1]);
	read_all(out[0], text, sizeof text);
	close(out[0]);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return false;
	problem = judge(i, status, text);
	printf("%-4s %-24s %s\n", problem ? "FAIL" : "ok", cases[i].name, problem ? problem : "");
	if (problem)
		printf("status 0x%x\n%s", (unsigned)status, text);
	return !problem;
}

int main(int argc, char **argv)
{
	unsigned failed = 0, done = 0;

	subject_begin();
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
	for (size_t i = 0; i < SUBJECT_COUNT(cases); i++) {
		bool wanted = argc == 1;

		for (int j = 1; j < argc; j++)
			wanted |= strcmp(argv[j], cases[i].name) == 0;
		if (argc == 2 && strcmp(argv[1], "--list") == 0) {
			puts(cases[i].name);
			done++;
			continue;
		}
		if (!wanted)
			continue;
		if (getenv("MALLOC_GUARD_USUAL")) {
			cases[i].body();
			_exit(0);
		}
		done++;
		failed += !run(argv[0], i);
	}
	printf("%u cases, %u failed\n", done, failed);
	return failed || !done;
}
