/* SPDX-License-Identifier: MIT */
/*
 * dl_iterate_phdr() against the C library's own, with objects that come and go, and while another thread has the loader's
 * lock: phdr PLUGIN PLUGIN-WITH-TLS. Run with libpercpu-libc preloaded, and with PERCPU_LIBC_PHDR=parallel or without: then
 * callbacks run one at a time.
 */
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST   200
#define ROUNDS 300

typedef int callback_fn(struct dl_phdr_info *, size_t, void *);

struct walk {
	unsigned count;
	size_t size;
	struct dl_phdr_info info[MOST];
};

static int (*theirs)(callback_fn *, void *);
static int (*their_dladdr)(const void *, Dl_info *);
static const char *plugin, *plugin_with_tls;

#define CHECK(...)                                                                                                     \
	do {                                                                                                           \
		if (!(__VA_ARGS__)) {                                                                                  \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #__VA_ARGS__);                              \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

static int keep(struct dl_phdr_info *info, size_t size, void *data)
{
	struct walk *walk = data;

	CHECK(walk->count < MOST);
	walk->size = size;
	walk->info[walk->count++] = *info;
	return 0;
}

static void *compare(void *arg)
{
	struct walk a = { 0 }, b = { 0 };

	(void)arg;
	memset(&a, 0, sizeof(a));
	memset(&b, 0, sizeof(b));
	CHECK(!dl_iterate_phdr(keep, &a));
	CHECK(!theirs(keep, &b));
	CHECK(a.size == b.size && a.count == b.count && a.count);
	for (unsigned i = 0; i < a.count; i++) {
		const struct dl_phdr_info *x = &a.info[i], *y = &b.info[i];

		CHECK(x->dlpi_addr == y->dlpi_addr && x->dlpi_name == y->dlpi_name);
		CHECK(x->dlpi_phdr == y->dlpi_phdr && x->dlpi_phnum == y->dlpi_phnum);
		CHECK(x->dlpi_adds == y->dlpi_adds && x->dlpi_subs == y->dlpi_subs);
		CHECK(x->dlpi_tls_modid == y->dlpi_tls_modid && x->dlpi_tls_data == y->dlpi_tls_data);
	}
	return NULL;
}

static void compare_everywhere(void)
{
	pthread_t thread;

	compare(NULL);
	CHECK(!pthread_create(&thread, NULL, compare, NULL));
	CHECK(!pthread_join(thread, NULL));
}

static void compare_address(const void *address)
{
	for (int i = 0; i < 2; i++) {
		Dl_info a, b;
		int found = dladdr(address, &a);

		CHECK(found == their_dladdr(address, &b));
		CHECK(!found || (a.dli_fname == b.dli_fname && a.dli_fbase == b.dli_fbase &&
				 a.dli_sname == b.dli_sname && a.dli_saddr == b.dli_saddr));
	}
}

static int compare_addresses(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)size;
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		const char *start = (const char *)(info->dlpi_addr + p->p_vaddr);

		/* With pages around it. */
		for (size_t at = 0; p->p_type == PT_LOAD && at < p->p_memsz + 8192; at += *(size_t *)data)
			compare_address(start - 4096 + at);
	}
	return 0;
}

static void *must_open(const char *path)
{
	void *handle = dlopen(path, RTLD_NOW);

	if (!handle)
		fprintf(stderr, "%s\n", dlerror());
	CHECK(handle);
	return handle;
}

static void with_plugins(void)
{
	void *one, *two;
	size_t step = 4099;
	void *word;

	compare_everywhere();
	dl_iterate_phdr(compare_addresses, &step);
	compare_address(NULL);
	one = must_open(plugin);
	compare_everywhere();
	word = dlsym(one, "plugin_word");
	compare_address(word);
	theirs(compare_addresses, &step);
	two = must_open(plugin_with_tls);
	compare_everywhere();
	*(int *)dlsym(two, "plugin_word") = 5; /* the thread's, now */
	compare_everywhere();
	dlclose(one);
	compare_everywhere();
	/* Of what comes and goes nothing is kept. */
	compare_address(word);
	dlclose(two);
	compare_everywhere();
	compare_address(word);
	one = must_open(plugin_with_tls);
	compare_address(word);
	dlclose(one);
	CHECK(!dlopen("/nonexistent/object.so", RTLD_NOW));
	compare_everywhere();
}

/* The number a callback returns is the walk's, and the walk ends there. */
static int third(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)info;
	(void)size;
	return ++*(int *)data == 3 ? 42 : 0;
}

static void stops(void)
{
	int n = 0;

	CHECK(dl_iterate_phdr(third, &n) == 42 && n == 3);
}

/* A thread has the loader's lock, inside its callback, for as long as it takes. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool inside, go_on;
} there = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void stay(void)
{
	pthread_mutex_lock(&there.lock);
	there.inside = true;
	pthread_cond_broadcast(&there.changed);
	while (!there.go_on)
		pthread_cond_wait(&there.changed, &there.lock);
	pthread_mutex_unlock(&there.lock);
}

static int wait_inside(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)info;
	(void)size;
	(void)data;
	stay();
	return 1;
}

static void start_staying(pthread_t *thread, void *(*work)(void *))
{
	there.inside = there.go_on = false;
	CHECK(!pthread_create(thread, NULL, work, NULL));
	pthread_mutex_lock(&there.lock);
	while (!there.inside)
		pthread_cond_wait(&there.changed, &there.lock);
	pthread_mutex_unlock(&there.lock);
}

static void end_staying(pthread_t thread)
{
	pthread_mutex_lock(&there.lock);
	there.go_on = true;
	pthread_cond_broadcast(&there.changed);
	pthread_mutex_unlock(&there.lock);
	CHECK(!pthread_join(thread, NULL));
}

static void *hold_lock(void *arg)
{
	(void)arg;
	CHECK(theirs(wait_inside, NULL) == 1);
	return NULL;
}

static jmp_buf jump;

static int leave_by_jump(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)info;
	(void)size;
	(void)data;
	longjmp(jump, 1);
}

static int again(struct dl_phdr_info *info, size_t size, void *data)
{
	int n = 0;

	(void)info;
	(void)size;
	(void)data;
	CHECK(dl_iterate_phdr(third, &n) == 42);
	return 0;
}

static int fork_inside(struct dl_phdr_info *info, size_t size, void *data)
{
	int status;
	pid_t child = fork();

	(void)info;
	(void)size;
	(void)data;
	CHECK(child >= 0);
	if (!child) {
		stops();
		_exit(7);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
	return 1;
}

static int cancel_inside(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)info;
	(void)size;
	(void)data;
	for (;;)
		pause();
	return 0;
}

static void *be_cancelled(void *arg)
{
	dl_iterate_phdr(cancel_inside, arg);
	return NULL;
}

static void handler(int number)
{
	(void)number;
	stops();
}

/* While nothing was loaded, nothing of this waits for the lock, nor leaves anything behind. */
static void without_lock(void)
{
	pthread_t thread, victim;
	struct walk walk = { 0 };
	void *result;
	int n = 0;

	start_staying(&thread, hold_lock);
	stops();
	CHECK(!dl_iterate_phdr(keep, &walk));
	CHECK(!dl_iterate_phdr(again, NULL));
	if (!setjmp(jump))
		dl_iterate_phdr(leave_by_jump, NULL);
	CHECK(dl_iterate_phdr(fork_inside, NULL) == 1);
	signal(SIGUSR1, handler);
	raise(SIGUSR1);
	CHECK(!pthread_create(&victim, NULL, be_cancelled, NULL));
	CHECK(!pthread_cancel(victim));
	CHECK(!pthread_join(victim, &result) && result == PTHREAD_CANCELED);
	CHECK(dl_iterate_phdr(third, &n) == 42);
	end_staying(thread);
}

/* The other lock of the loader is held while constructors run. */
static __thread bool stays_in_constructor;

void plugin_starts(void)
{
	if (stays_in_constructor)
		stay();
}

static void *hold_other_lock(void *arg)
{
	void *handle;

	stays_in_constructor = true;
	handle = must_open(plugin);
	stays_in_constructor = false;
	dlclose(handle);
	return arg;
}

static void without_other_lock(void)
{
	pthread_t thread;
	Dl_info info;

	CHECK(dladdr((const void *)(uintptr_t)compare_everywhere, &info));
	start_staying(&thread, hold_other_lock);
	CHECK(dladdr((const void *)(uintptr_t)compare_everywhere, &info) && info.dli_fbase);
	stops();
	end_staying(thread);
}

/* A callback that loads an object is shown it in the same walk, whose counts say so from then on. */
struct loading {
	unsigned seen, at;
	void *handle;
	bool shown;
	unsigned long long adds[MOST];
};

static int load_inside(struct dl_phdr_info *info, size_t size, void *data)
{
	struct loading *loading = data;

	(void)size;
	CHECK(loading->seen < MOST);
	loading->adds[loading->seen] = info->dlpi_adds;
	if (loading->seen++ == loading->at)
		loading->handle = must_open(plugin);
	loading->shown |= !strcmp(info->dlpi_name, plugin);
	return 0;
}

static void loads_inside(void)
{
	for (unsigned at = 0; at < 4; at++) {
		struct loading a = { .at = at }, b = { .at = at };

		dl_iterate_phdr(load_inside, &a);
		dlclose(a.handle);
		theirs(load_inside, &b);
		dlclose(b.handle);
		CHECK(a.seen == b.seen && a.shown && b.shown);
		for (unsigned i = 0; i < a.seen; i++)
			CHECK(a.adds[i] + 1 == b.adds[i]);
	}
	compare_everywhere();
}

/* Walks while others load and unload: each object's headers can be read, each walk is one that a moment has. */
static struct {
	bool stop;
	unsigned first;
} busy;

static int read_headers(struct dl_phdr_info *info, size_t size, void *data)
{
	struct walk *walk = data;
	unsigned long sum = 0;

	for (unsigned i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
			for (const ElfW(Dyn) *d = (void *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr); d->d_tag; d++)
				sum += d->d_un.d_val;
	CHECK(sum);
	return keep(info, size, walk);
}

static void *walk_on(void *arg)
{
	(void)arg;
	while (!__atomic_load_n(&busy.stop, __ATOMIC_RELAXED)) {
		struct walk walk;

		walk.count = 0;
		dl_iterate_phdr(read_headers, &walk);
		CHECK(walk.count >= busy.first);
		for (unsigned i = 0; i < walk.count; i++)
			for (unsigned j = 0; j < i; j++)
				CHECK(walk.info[i].dlpi_addr != walk.info[j].dlpi_addr);
	}
	return NULL;
}

static void *load_on(void *arg)
{
	const char *path = arg;

	for (int i = 0; i < ROUNDS; i++) {
		struct walk walk = { 0 };
		void *handle = must_open(path);
		bool shown = false;

		/* What was loaded before is seen. */
		dl_iterate_phdr(keep, &walk);
		for (unsigned j = 0; j < walk.count; j++)
			shown |= !strcmp(walk.info[j].dlpi_name, path);
		CHECK(shown);
		dlclose(handle);
	}
	return NULL;
}

static void under_load(void)
{
	struct walk walk = { 0 };
	pthread_t walkers[4], loaders[2];

	dl_iterate_phdr(keep, &walk);
	busy.first = walk.count;
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&walkers[i], NULL, walk_on, NULL));
	CHECK(!pthread_create(&loaders[0], NULL, load_on, (void *)plugin));
	CHECK(!pthread_create(&loaders[1], NULL, load_on, (void *)plugin_with_tls));
	for (int i = 0; i < 2; i++)
		CHECK(!pthread_join(loaders[i], NULL));
	__atomic_store_n(&busy.stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(walkers[i], NULL));
	compare_everywhere();
}

/* Callbacks of all threads share this without a lock of their own. */
static int alone(struct dl_phdr_info *info, size_t size, void *data)
{
	static int inside;

	(void)info;
	(void)size;
	(void)data;
	CHECK(!__atomic_fetch_add(&inside, 1, __ATOMIC_RELAXED));
	for (int i = 0; i < 20; i++)
		__asm__ __volatile__("" ::: "memory");
	if (!(rand() % 50))
		usleep(1);
	__atomic_fetch_sub(&inside, 1, __ATOMIC_RELAXED);
	return 0;
}

static void *walk_alone(void *arg)
{
	for (int i = 0; i < 300; i++)
		CHECK(!dl_iterate_phdr(alone, NULL));
	return arg;
}

static void one_at_a_time(void)
{
	pthread_t threads[4];

	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, walk_alone, NULL));
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(threads[i], NULL));
}

/* Another namespace: its objects count, though they are not shown. There is no way back, so this is last. */
static void other_namespace(void)
{
	void *handle = dlmopen(LM_ID_NEWLM, plugin, RTLD_NOW);

	CHECK(handle);
	compare_everywhere();
	dlclose(handle);
	compare_everywhere();
}

int main(int argc, char **argv)
{
	const char *parallel;

	CHECK(argc == 3);
	plugin = argv[1];
	plugin_with_tls = argv[2];
	*(void **)&theirs = dlsym(dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD), "dl_iterate_phdr");
	*(void **)&their_dladdr = dlsym(dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD), "dladdr");
	CHECK(theirs && theirs != dl_iterate_phdr && their_dladdr && their_dladdr != dladdr);
	alarm(100);
	/* The program's own libraries are loaded by now, and the cancelled thread's. */
	CHECK(dlopen("libgcc_s.so.1", RTLD_NOW));
	parallel = getenv("PERCPU_LIBC_PHDR");
	if (parallel)
		without_lock();
	else
		one_at_a_time();
	stops();
	with_plugins();
	if (parallel)
		without_lock();
	without_other_lock();
	loads_inside();
	under_load();
	if (parallel)
		without_lock();
	other_namespace();
	return 0;
}
