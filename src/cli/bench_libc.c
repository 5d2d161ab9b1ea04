/* SPDX-License-Identifier: MIT */
/*
 * percpu bench: functions of the C library that take a lock for all threads, beside what libpercpu-libc puts in their place;
 * and two that it leaves alone, beside what it could put there (ARCHITECTURE.md says why it does not).
 */
#include <dlfcn.h>
#include <errno.h>
#include <libintl.h>
#include <limits.h>
#include <link.h>
#include <locale.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/bench.h"
#include "libc/dladdr.h"
#include "libc/gettext.h"
#include "libc/phdr.h"

#undef dcgettext

/* The loader's objects: the first one, as unwinders that find theirs early, and all of them. */

static int stop_at_first(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)size;
	BENCH_USE(info->dlpi_phdr);
	BENCH_USE(info->dlpi_adds);
	return data != NULL;
}

#define PHDR_LOOP(name, function, data)                                                                                \
	BENCH_LOOP name(struct bench_worker *worker, uint64_t n)                                                       \
	{                                                                                                              \
		for (; n; n--)                                                                                         \
			BENCH_USE(function(stop_at_first, data));                                                      \
		(void)worker;                                                                                          \
	}
PHDR_LOOP(phdr_percpu, percpu__dl_iterate_phdr, worker)
PHDR_LOOP(phdr_all_percpu, percpu__dl_iterate_phdr, NULL)
PHDR_LOOP(phdr_glibc, dl_iterate_phdr, worker)
PHDR_LOOP(phdr_all_glibc, dl_iterate_phdr, NULL)

static const struct bench_subject phdr_subjects[] = {
	{ .name = "percpu", .what = "libpercpu-libc's, without a lock", .loop = phdr_percpu },
	{ .name = "glibc", .what = "the C library's, under the loader's lock", .loop = phdr_glibc },
	{ .name = NULL },
};

static const struct bench_subject phdr_all_subjects[] = {
	{ .name = "percpu", .what = "libpercpu-libc's, without a lock", .loop = phdr_all_percpu },
	{ .name = "glibc", .what = "the C library's, under the loader's lock", .loop = phdr_all_glibc },
	{ .name = NULL },
};

const struct bench bench_dl_iterate_phdr = {
	.name = "dl_iterate_phdr",
	.what = "dl_iterate_phdr(), whose callback stops at the first object",
	.subjects = phdr_subjects,
};

const struct bench bench_dl_iterate_phdr_all = {
	.name = "dl_iterate_phdr_all",
	.what = "dl_iterate_phdr(), through all objects",
	.subjects = phdr_all_subjects,
};

/* The name of a function of the C library's. */

#define DLADDR_LOOP(name, function)                                                                                    \
	BENCH_LOOP name(struct bench_worker *worker, uint64_t n)                                                       \
	{                                                                                                              \
		(void)worker;                                                                                          \
		for (; n; n--) {                                                                                       \
			Dl_info info;                                                                                  \
                                                                                                                       \
			BENCH_USE(function((void *)(uintptr_t)qsort, &info));                                          \
		}                                                                                                      \
	}
DLADDR_LOOP(dladdr_percpu, percpu__dladdr)
DLADDR_LOOP(dladdr_glibc, dladdr)

static const struct bench_subject dladdr_subjects[] = {
	{ .name = "percpu", .what = "libpercpu-libc's, without a lock", .loop = dladdr_percpu },
	{ .name = "glibc", .what = "the C library's, under the loader's lock", .loop = dladdr_glibc },
	{ .name = NULL },
};

const struct bench bench_dladdr = {
	.name = "dladdr",
	.what = "dladdr() of an address that was asked for before",
	.subjects = dladdr_subjects,
};

/* A message that has been translated before. */

#define LANGUAGE_NAME "xx"
#define DOMAIN_NAME   "percpu-bench"

/* The catalogue: the empty message, which says how it is encoded, and one of ours. */
static const struct {
	uint32_t magic, revision, count, ids, texts, hash_size, hash, id[4], text[4];
	char strings[64];
} catalogue = {
	.magic = 0x950412de,
	.count = 2,
	.ids = 28,
	.texts = 28 + 16,
	.hash = 28 + 32,
	.id = { 0, 60, 19, 61 },
	.text = { 28, 81, 8, 110 },
	.strings = "\0"
		   "cannot open the file\0"
		   "Content-Type: charset=UTF-8\n\0"
		   "geht nicht",
};
static char message[] = "cannot open the file", folder[] = "/tmp/percpu-bench-XXXXXX", *translated;

static const char *skip_locale(void)
{
	locale_t locale = newlocale(LC_MESSAGES_MASK, "C.UTF-8", (locale_t)0);

	if (!locale)
		return "there is no locale C.UTF-8";
	freelocale(locale);
	return NULL;
}

static int write_catalogue(const char *path)
{
	FILE *file = fopen(path, "w");
	bool ok = file && fwrite(&catalogue, sizeof(catalogue), 1, file) == 1;

	return file && !fclose(file) && ok ? 0 : -errno;
}

static int gettext_setup(unsigned threads)
{
	char path[64], *language = getenv("LANGUAGE");
	int rc;

	(void)threads;
	if (skip_locale())
		return 0;
	strcpy(folder + sizeof(folder) - 7, "XXXXXX");
	if (!mkdtemp(folder))
		return -errno;
	snprintf(path, sizeof(path), "%s/" LANGUAGE_NAME, folder);
	mkdir(path, 0700);
	strcat(path, "/LC_MESSAGES");
	mkdir(path, 0700);
	strcat(path, "/" DOMAIN_NAME ".mo");
	rc = write_catalogue(path);
	if (!rc && bindtextdomain(DOMAIN_NAME, folder) && textdomain(DOMAIN_NAME) &&
	    setlocale(LC_MESSAGES, "C.UTF-8") &&
	    (language = language ? strdup(language) : NULL, !setenv("LANGUAGE", LANGUAGE_NAME, 1))) {
		translated = dcgettext(NULL, message, LC_MESSAGES);
		if (language)
			setenv("LANGUAGE", language, 1);
		else
			unsetenv("LANGUAGE");
	}
	free(language);
	unlink(path);
	for (int i = 0; i < 3; i++) {
		*strrchr(path, '/') = '\0';
		rmdir(path);
	}
	return rc ? rc : translated && translated != message ? 0 : -ENOENT;
}

static void gettext_teardown(void)
{
	setlocale(LC_MESSAGES, "C");
	textdomain("messages");
}

BENCH_LOOP gettext_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		BENCH_USE(percpu__dcgettext(NULL, message, LC_MESSAGES));
}

BENCH_LOOP gettext_glibc(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--)
		BENCH_USE(dcgettext(NULL, message, LC_MESSAGES));
}

static const char *gettext_check(const uint64_t *done)
{
	(void)done;
	if (skip_locale())
		return NULL;
	if (percpu__dcgettext(NULL, message, LC_MESSAGES) != translated)
		return "a message is translated in two ways";
	return dcgettext(NULL, message, LC_MESSAGES) == translated ? NULL : "a message has lost its translation";
}

static const struct bench_subject gettext_subjects[] = {
	{ .name = "percpu", .what = "libpercpu-libc's, without a lock", .loop = gettext_percpu, .skip = skip_locale },
	{ .name = "glibc", .what = "the C library's, under two locks", .loop = gettext_glibc, .skip = skip_locale },
	{ .name = NULL },
};

const struct bench bench_gettext = {
	.name = "gettext",
	.what = "gettext() of a message that was translated before",
	.subjects = gettext_subjects,
	.setup = gettext_setup,
	.check = gettext_check,
	.teardown = gettext_teardown,
};

/* What new threads are made of. */

static union {
	uint64_t words[(sizeof(pthread_attr_t) + 7) / 8];
	pthread_attr_t attr;
} attr_default;
static struct percpu_seqdata *attr_copy;

BENCH_LOOP attr_percpu(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		pthread_attr_t attr;

		percpu_seqdata_read(attr_copy, &attr, sizeof(attr));
		BENCH_USE(&attr);
	}
}

BENCH_LOOP attr_glibc(struct bench_worker *worker, uint64_t n)
{
	(void)worker;
	for (; n; n--) {
		pthread_attr_t attr;

		if (!pthread_getattr_default_np(&attr)) {
			BENCH_USE(&attr);
			pthread_attr_destroy(&attr);
		}
	}
}

static int attr_setup(unsigned threads)
{
	(void)threads;
	return pthread_getattr_default_np(&attr_default.attr)
		       ? -ENOMEM
		       : percpu_seqdata_create(sizeof(attr_default.attr), &attr_default.attr, &attr_copy);
}

static void attr_teardown(void)
{
	percpu_seqdata_free(attr_copy);
	attr_copy = NULL;
}

static const struct bench_subject attr_subjects[] = {
	{ .name = "percpu", .what = "a copy in a percpu_seqdata: not in libpercpu-libc", .loop = attr_percpu },
	{ .name = "glibc", .what = "the C library's, under a lock", .loop = attr_glibc },
	{ .name = NULL },
};

const struct bench bench_pthread_getattr_default_np = {
	.name = "pthread_getattr_default_np",
	.what = "pthread_getattr_default_np() and pthread_attr_destroy()",
	.subjects = attr_subjects,
	.setup = attr_setup,
	.teardown = attr_teardown,
};

/* A thread that does nothing, with a stack of a megabyte and a page before it, which both keep for the next one. */

#define STACK_SIZE ((size_t)1 << 20)
#define GUARD_SIZE ((size_t)4096)

static struct percpu_stack stacks;

static void *do_nothing(void *arg)
{
	return arg;
}

static char *stack_of(struct percpu_stack_node *node)
{
	return (char *)node + sizeof(*node) - GUARD_SIZE - STACK_SIZE;
}

/* The node lies at the end, where the thread begins, and so in a page that is there. */
static struct percpu_stack_node *new_stack(void)
{
	char *memory = mmap(NULL, GUARD_SIZE + STACK_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	mprotect(memory, GUARD_SIZE, PROT_NONE);
	return (struct percpu_stack_node *)(memory + GUARD_SIZE + STACK_SIZE) - 1;
}

BENCH_LOOP create_percpu(struct bench_worker *worker, uint64_t n)
{
	pthread_attr_t attr;

	(void)worker;
	pthread_attr_init(&attr);
	for (; n; n--) {
		struct percpu_stack_node *node = percpu_stack_pop(&stacks);
		pthread_t thread;

		if (!node)
			node = new_stack();
		if (!node)
			break;
		pthread_attr_setstack(&attr, stack_of(node) + GUARD_SIZE, STACK_SIZE - 64);
		if (!pthread_create(&thread, &attr, do_nothing, NULL))
			pthread_join(thread, NULL);
		percpu_stack_push(&stacks, node);
	}
	pthread_attr_destroy(&attr);
}

BENCH_LOOP create_glibc(struct bench_worker *worker, uint64_t n)
{
	pthread_attr_t attr;

	(void)worker;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_SIZE);
	for (; n; n--) {
		pthread_t thread;

		if (!pthread_create(&thread, &attr, do_nothing, NULL))
			pthread_join(thread, NULL);
	}
	pthread_attr_destroy(&attr);
}

static int create_setup(unsigned threads)
{
	(void)threads;
	return percpu_stack_init(&stacks);
}

static void create_teardown(void)
{
	percpu_for_each_index(i) {
		struct percpu_stack_node *node = NULL;

		percpu_stack_steal(&stacks, i, &node);
		while (node) {
			char *memory = stack_of(node);

			node = node->next;
			munmap(memory, GUARD_SIZE + STACK_SIZE);
		}
	}
	percpu_stack_destroy(&stacks);
}

static const struct bench_subject create_subjects[] = {
	{ .name = "percpu", .what = "stacks kept by each CPU: not in libpercpu-libc", .loop = create_percpu },
	{ .name = "glibc", .what = "stacks kept by the C library, under a lock", .loop = create_glibc },
	{ .name = NULL },
};

const struct bench bench_thread_create = {
	.name = "thread_create",
	.what = "pthread_create() and pthread_join() of a thread that does nothing",
	.subjects = create_subjects,
	.setup = create_setup,
	.teardown = create_teardown,
};
