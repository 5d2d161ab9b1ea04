/* SPDX-License-Identifier: MIT */
/*
 * What programs do wrong: each case in a child of its own, that must end by abort() with one line on stderr that names the
 * address.
 *
 *   malloc-abuse [--says REGEX] [--checked] [--list] [CASE...]
 *
 * The column `verdict` of the table says what is promised: a MUST is detected every time; a CHECKED is, if all is checked
 * (ours: PERCPU_MALLOC=check), and else is a MAY, which is detected in that way or goes unnoticed. Dying in another way, saying
 * nothing or more than a line, and never ending are failures of all.
 */
#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <pthread.h>
#include <regex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "subject.h"

#define PAGE          4096
#define CHILD_SECONDS 20

enum verdict { MUST, CHECKED, MAY };

/* For the parent: the address that the line must name. */
static void **culprit;
static char static_bytes[256] __attribute__((aligned(64)));
static volatile char sink;

/* Says which address is meant, and hides from the compiler what it is. */
static char *blame(void *object)
{
	__asm__("" : "+r"(object));
	*culprit = object;
	return object;
}

static char *make(size_t size)
{
	char *object = malloc(subject_opaque(size));

	if (!object)
		_exit(99);
	memset(object, 1, size);
	return object;
}

static void wrong_free(void *object)
{
	free(blame(object));
}

/* Allocates and frees so much that whatever is damaged inside should be met. */
static void stir(void)
{
	static void *objects[3000];
	uint64_t dice = 8;

	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			objects[i] = make(subject_random(&dice) % 600);
		for (size_t i = 0; i < SUBJECT_COUNT(objects); i++)
			free(objects[i]);
	}
}

static void double_free_small(void)
{
	char *object = make(40);

	free(object);
	wrong_free(object);
}

static void double_free_medium(void)
{
	char *object = make(20000);

	free(object);
	wrong_free(object);
}

static void double_free_large(void)
{
	char *object = make(3 << 20);

	free(object);
	wrong_free(object);
}

static void double_free_aligned(void)
{
	char *object = memalign(1024, 5000);

	free(object);
	wrong_free(object);
}

static void double_free_after_another(void)
{
	char *object = make(40), *other = make(40);

	free(object);
	free(other);
	wrong_free(object);
}

static void double_free_after_many(void)
{
	static char *others[5000];
	char *object = make(40);

	for (size_t i = 0; i < SUBJECT_COUNT(others); i++)
		others[i] = make(40);
	free(object);
	for (size_t i = 0; i < SUBJECT_COUNT(others); i++)
		free(others[i]);
	wrong_free(object);
}

static void double_free_after_trim(void)
{
	char *object = make(40);

	free(object);
	malloc_trim(0);
	wrong_free(object);
}

static void *free_it(void *object)
{
	free(object);
	return NULL;
}

static void double_free_by_another_thread(void)
{
	pthread_t thread;
	char *object = make(40);

	*culprit = object;
	if (pthread_create(&thread, NULL, free_it, object) || pthread_join(thread, NULL))
		_exit(99);
	wrong_free(object);
}

/* By then it is somebody else's: it is his second free that is seen, if any. */
static void double_free_of_reused(void)
{
	char *object = make(40), *again;

	free(object);
	again = make(40);
	wrong_free(object);
	free(again);
}

static void realloc_of_freed(void)
{
	char *object = make(40);

	free(object);
	sink = *(char *)realloc(blame(object), subject_opaque(4000));
}

static void usable_size_of_freed(void)
{
	char *object = make(40);

	free(object);
	sink = (char)malloc_usable_size(blame(object));
}

static void free_stack(void)
{
	char object[256] __attribute__((aligned(64)));

	memset(object, 0, sizeof object);
	wrong_free(object + 64);
}

static void free_static(void)
{
	wrong_free(static_bytes + 64);
}

static void free_code(void)
{
	wrong_free((void *)((uintptr_t)free_code & ~(uintptr_t)15));
}

static void free_mapping(void)
{
	char *mapping = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	wrong_free(mapping + PAGE);
}

static void free_unmapped(void)
{
	char *mapping = mmap(NULL, 1 << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	munmap(mapping, 1 << 30);
	wrong_free(mapping + (1 << 29));
}

static void free_number(void)
{
	wrong_free((void *)subject_opaque(0x1230));
}

static void free_noncanonical(void)
{
	wrong_free((void *)subject_opaque(0xdead00000000beef & ~(size_t)15));
}

static void realloc_stack(void)
{
	char object[256] __attribute__((aligned(64)));

	memset(object, 0, sizeof object);
	sink = *(char *)realloc(blame(object + 64), subject_opaque(4000));
}

static void usable_size_of_stack(void)
{
	char object[256] __attribute__((aligned(64)));

	memset(object, 0, sizeof object);
	sink = (char)malloc_usable_size(blame(object + 64));
}

static void free_off_by_one(void)
{
	wrong_free(make(100) + 1);
}

static void free_off_by_eight(void)
{
	wrong_free(make(100) + 8);
}

static void free_inside_small(void)
{
	wrong_free(make(100) + 16);
}

static void free_inside_medium(void)
{
	wrong_free(make(20000) + 4096);
}

static void free_inside_large(void)
{
	wrong_free(make(3 << 20) + (1 << 20));
}

static void free_page_inside_large(void)
{
	char *object = make(3 << 20);

	wrong_free((void *)(((uintptr_t)object + PAGE) & ~(uintptr_t)(PAGE - 1)));
}

static void free_never_given(void)
{
	/* A place where an object could be, that nobody has been given. */
	char *one = make(48), *two = make(48);

	wrong_free(two > one ? two + 20 * (two - one) : one + 20 * (one - two));
}

static void write_past_small(void)
{
	char *object = make(40);
	size_t usable = malloc_usable_size(object);

	/* What is seen, if anything, is damage of the next one. */
	for (size_t i = 0; i < 16; i++)
		blame(object + usable)[i] = 0x41;
	free(object);
	stir();
}

static void write_past_large(void)
{
	char *object = make((3 << 20) - 100);
	size_t usable = malloc_usable_size(object);

	blame(object)[usable - 1] = 0x41; /* the last that is the caller's: nothing to see */
	free(object);
}

static void write_before(void)
{
	char *object = make(40), *other = make(40);

	for (int i = 1; i <= 16; i++)
		blame(object)[-i] = 0x41;
	free(object);
	free(other);
	stir();
}

static void write_after_free(void)
{
	char *object = make(40);

	free(object);
	memset(blame(object), 0x41, 40);
	stir();
}

static const struct {
	const char *name;
	void (*body)(void);
	enum verdict verdict;
} cases[] = {
	{ "double-free-small", double_free_small, MUST },
	{ "double-free-medium", double_free_medium, MUST },
	{ "double-free-large", double_free_large, MUST },
	{ "double-free-aligned", double_free_aligned, MUST },
	{ "double-free-after-another", double_free_after_another, CHECKED },
	{ "double-free-after-many", double_free_after_many, CHECKED },
	{ "double-free-after-trim", double_free_after_trim, CHECKED },
	{ "double-free-by-another-thread", double_free_by_another_thread, CHECKED },
	{ "double-free-of-reused", double_free_of_reused, MAY },
	{ "realloc-of-freed", realloc_of_freed, CHECKED },
	{ "usable-size-of-freed", usable_size_of_freed, CHECKED },
	{ "free-stack", free_stack, MUST },
	{ "free-static", free_static, MUST },
	{ "free-code", free_code, MUST },
	{ "free-mapping", free_mapping, MUST },
	{ "free-unmapped", free_unmapped, MUST },
	{ "free-number", free_number, MUST },
	{ "free-noncanonical", free_noncanonical, MUST },
	{ "realloc-stack", realloc_stack, MUST },
	{ "usable-size-of-stack", usable_size_of_stack, MAY },
	{ "free-off-by-one", free_off_by_one, MUST },
	{ "free-off-by-eight", free_off_by_eight, MUST },
	{ "free-inside-small", free_inside_small, CHECKED },
	{ "free-inside-medium", free_inside_medium, CHECKED },
	{ "free-inside-large", free_inside_large, MUST },
	{ "free-page-inside-large", free_page_inside_large, MUST },
	{ "free-never-given", free_never_given, CHECKED },
	{ "write-past-small", write_past_small, MAY },
	{ "write-past-large", write_past_large, MAY },
	{ "write-before", write_before, MAY },
	{ "write-after-free", write_after_free, MAY },
};

/* Reads until there is no more, and as much as there is room for. */
static void read_all(int from, char *text, size_t room)
{
	size_t length = 0;
	ssize_t got;

	while (length < room - 1 && (got = read(from, text + length, room - 1 - length)) > 0)
		length += (size_t)got;
	text[length] = '\0';
}

/* What is wrong with how a case ended, NULL if nothing is. */
static const char *judge(enum verdict verdict, int status, const char *text, const regex_t *says, bool ours)
{
	char address[32];
	const char *newline = strchr(text, '\n');

	if (WIFEXITED(status) && WEXITSTATUS(status) == 99)
		return "could not be tried";
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return text[0] ? "was talked about, and went on" : verdict == MUST ? "went unnoticed" : NULL;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
		return WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? "did not end" : "died, but not by abort()";
	if (!text[0])
		return "aborted without a word";
	if (!newline || newline[1])
		return "said more than one line";
	if (regexec(says, text, 0, NULL, 0))
		return "said something else";
	snprintf(address, sizeof address, "%p", *culprit);
	return !ours || strstr(text, address) ? NULL : "did not name the address";
}

static bool run(size_t i, const regex_t *says, bool checked)
{
	enum verdict verdict = cases[i].verdict != CHECKED ? cases[i].verdict : checked ? MUST : MAY;
	char text[2000];
	const char *wrong;
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
		alarm(CHILD_SECONDS);
		cases[i].body();
		_exit(0);
	}
	close(out[1]);
	read_all(out[0], text, sizeof text);
	close(out[0]);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return false;
	wrong = judge(verdict, status, text, says, subject_is_ours());
	text[strcspn(text, "\n")] = '\0';
	printf("%-5s %-4s %-30s %s%s%s\n", wrong ? "FAIL" : "ok", verdict == MUST ? "must" : "may", cases[i].name,
	       wrong     ? wrong
	       : text[0] ? ""
			 : "unnoticed",
	       wrong && text[0] ? ": " : "", text);
	return !wrong;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "says", required_argument, NULL, 's' },
						 { "checked", no_argument, NULL, 'c' },
						 { "list", no_argument, NULL, 'l' },
						 { NULL, 0, NULL, 0 } };
	const char *pattern = "^percpu-malloc: .*0x[0-9a-f]+";
	unsigned failed = 0, done = 0;
	bool list = false, checked = false;
	regex_t says;

	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		if (option == 's')
			pattern = optarg;
		else if (option == 'c')
			checked = true;
		else if (option == 'l')
			list = true;
		else
			return 2;
	}
	subject_begin();
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
	/* glibc says its word on the terminal otherwise. */
	setenv("LIBC_FATAL_STDERR_", "1", 1);
	culprit = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (culprit == MAP_FAILED || regcomp(&says, pattern, REG_EXTENDED))
		return 2;
	for (size_t i = 0; i < SUBJECT_COUNT(cases); i++) {
		bool wanted = optind == argc;

		for (int j = optind; j < argc; j++)
			wanted |= strcmp(argv[j], cases[i].name) == 0;
		if (!wanted)
			continue;
		done++;
		if (list)
			puts(cases[i].name);
		else
			failed += !run(i, &says, checked);
	}
	printf("%u cases, %u failed\n", done, failed);
	return failed || !done;
}
