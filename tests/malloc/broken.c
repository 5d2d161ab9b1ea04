/* SPDX-License-Identifier: MIT */
/*
 * An allocator for tests/malloc/controls: the C library's, with one rule broken on purpose, the one that MALLOC_BREAK names.
 */
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ARENA    ((size_t)8 << 20) /* where objects overlap */
#define EXPORTED __attribute__((visibility("default")))

/* glibc's own, under the names that it keeps for those who stand before it. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *object, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *object);

void free_sized(void *object, size_t size);
void free_aligned_sized(void *object, size_t alignment, size_t size);
void *_Znwm(size_t size);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char rule[32];
static bool rule_known;
static uint64_t calls;
static char nothing[64] __attribute__((aligned(64)));
static void *volatile stack[64];
static volatile size_t depth, in_use;
static char arena[ARENA] __attribute__((aligned(64)));
static uint32_t arena_sizes[ARENA / 16];
static size_t arena_used;
static void *last; /* that malloc gave and that is large */

/* Without a call that could allocate. */
static bool broken(const char *name)
{
	/* A copy: some programs write their title over their environment. */
	if (!rule_known) {
		extern char **environ;

		rule_known = true;
		for (char **variable = environ; variable && *variable; variable++)
			if (strncmp(*variable, "MALLOC_BREAK=", 13) == 0)
				strncpy(rule, *variable + 13, sizeof rule - 1);
	}
	return strcmp(rule, name) == 0;
}

static void lock_before_fork(void)
{
	if (broken("atfork"))
		pthread_mutex_lock(&lock);
}

static void unlock_after_fork(void)
{
	if (broken("atfork"))
		pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void construct(void)
{
	pthread_atfork(lock_before_fork, unlock_after_fork, unlock_after_fork);
}

static bool in_arena(const void *object)
{
	return (const char *)object >= arena && (const char *)object < arena + ARENA;
}

/* Each object's last bytes are the first ones of the next. */
static void *overlapping(size_t size)
{
	size_t at = __atomic_fetch_add(&arena_used, size & ~(size_t)15, __ATOMIC_RELAXED);

	if (at + size > ARENA)
		return NULL;
	arena_sizes[at / 16] = (uint32_t)size;
	return arena + at;
}

/* What glibc keeps before each object: its size, and flags. */
static size_t usable(void *object)
{
	size_t head = ((size_t *)object)[-1];

	if (in_arena(object))
		return arena_sizes[((char *)object - arena) / 16];
	return (head & ~(size_t)7) - (head & 2 ? 16 : 8);
}

/* Where the object begins whose caller was told an address 8 bytes on. */
static void *real(void *object)
{
	return broken("align-8") && (uintptr_t)object % 16 == 8 ? (char *)object - 8 : object;
}

static void *refuse(void)
{
	if (broken("no-memory-aborts"))
		abort();
	if (broken("no-memory-errno"))
		errno = EAGAIN;
	return NULL;
}

EXPORTED void *malloc(size_t size)
{
	void *object;

	if (size == 0 && broken("zero-is-null"))
		return NULL;
	if (size == 0 && broken("zero-is-shared"))
		return nothing;
	if (broken("overlap") && size > 100 && size < 200 && (object = overlapping(size)))
		return object;
	if (broken("race") && size > 32 && size <= 64 && depth > 0) {
		/* As if nobody else were here. */
		object = stack[depth - 1];
		if (object) {
			for (volatile int wait = 0; wait < 50; wait++)
				;
			depth--;
			return object;
		}
	}
	if (broken("fork-lock") || broken("atfork"))
		pthread_mutex_lock(&lock);
	/* Long enough for a fork to fall into it. */
	if (broken("fork-lock") && __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) % 100 == 0)
		usleep(1000);
	if (broken("short") && size > 24 && size < PTRDIFF_MAX)
		size -= 24;
	object = __libc_malloc(broken("align-8") ? size + 16 : broken("race") && size > 32 && size <= 64 ? 64 : size);
	if (broken("fork-lock") || broken("atfork"))
		pthread_mutex_unlock(&lock);
	if (!object)
		return refuse();
	__atomic_add_fetch(&in_use, usable(object), __ATOMIC_RELAXED);
	if (size > 8000)
		last = object;
	return broken("align-8") ? (char *)object + 8 : object;
}

EXPORTED void free(void *object)
{
	if (!object || object == nothing || in_arena(object))
		return;
	if (broken("free-is-nothing") || (broken("hoard") && usable(object) > 64))
		return;
	if (broken("two-lines") && __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) && (uintptr_t)object % 16) {
		fprintf(stderr, "percpu-malloc: %p is wrong\nand so are you\n", object);
		abort();
	}
	if (broken("race") && usable(object) >= 64 && usable(object) < 80 && depth < 60) {
		stack[depth] = object;
		depth++;
		return;
	}
	if (broken("fork-lock") || broken("atfork"))
		pthread_mutex_lock(&lock);
	__atomic_sub_fetch(&in_use, usable(real(object)), __ATOMIC_RELAXED);
	if (last == object)
		last = NULL;
	__libc_free(real(object));
	if (broken("fork-lock") || broken("atfork"))
		pthread_mutex_unlock(&lock);
	if (broken("free-errno"))
		errno = EINVAL;
}

EXPORTED void *calloc(size_t count, size_t size)
{
	size_t total = count * size;
	char *object;

	if (!broken("calloc-overflow") && __builtin_mul_overflow(count, size, &total)) {
		errno = ENOMEM;
		return refuse();
	}
	object = malloc(total);
	if (object && object != nothing)
		memset(object, 0, total);
	/* (Where dirt was left, and not in what ld.so wants to be zero.) */
	if (object && broken("calloc-dirty") && total > 100 && __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) > 20)
		object[total - 1] = 1;
	return object;
}

EXPORTED void *realloc(void *object, size_t size)
{
	size_t before, kept;
	unsigned char *moved;

	if (!object || object == nothing)
		return malloc(size);
	if (size == 0) {
		free(object);
		return broken("realloc-to-zero") ? malloc(1) : NULL;
	}
	if (broken("align-8") || broken("short") || broken("race") || broken("overlap")) {
		before = malloc_usable_size(object);
		moved = malloc(size);
		if (moved) {
			memcpy(moved, object, before < size ? before : size);
			free(object);
		}
		return moved;
	}
	before = usable(object);
	kept = before < size ? before : size;
	moved = __libc_realloc(object, size);
	if (!moved)
		return refuse();
	if (broken("realloc-last-byte") && kept)
		moved[kept - 1] ^= 1;
	if (broken("realloc-first-page") && kept > 100000)
		memset(moved, 0, 4096);
	return moved;
}

EXPORTED void *reallocarray(void *object, size_t count, size_t size)
{
	size_t total;

	if (__builtin_mul_overflow(count, size, &total)) {
		errno = ENOMEM;
		return NULL;
	}
	return realloc(object, total);
}

EXPORTED void *memalign(size_t alignment, size_t size)
{
	void *object;

	if (broken("alignment-of-pages") && alignment > 4096)
		alignment = 4096;
	if (broken("alignment-of-32") && alignment > 32)
		alignment = 32;
	object = __libc_memalign(alignment, size);
	return object ? object : refuse();
}

EXPORTED void *aligned_alloc(size_t alignment, size_t size)
{
	return memalign(alignment, size);
}

EXPORTED void *valloc(size_t size)
{
	return memalign(4096, size);
}

EXPORTED void *pvalloc(size_t size)
{
	if (size > SIZE_MAX - 4095) {
		errno = ENOMEM;
		return NULL;
	}
	return memalign(4096, broken("pvalloc-not-rounded") ? size : (size + 4095) & ~(size_t)4095);
}

EXPORTED int posix_memalign(void **object, size_t alignment, size_t size)
{
	int saved = errno;
	void *made;

	if (!broken("posix-memalign-any") &&
	    (alignment % sizeof(void *) || alignment & (alignment - 1) || !alignment)) {
		if (broken("posix-memalign-errno"))
			errno = EINVAL;
		return EINVAL;
	}
	made = memalign(alignment, size);
	if (made || broken("posix-memalign-out"))
		*object = made;
	errno = saved;
	return made ? 0 : ENOMEM;
}

EXPORTED size_t malloc_usable_size(void *object)
{
	if (!object)
		return 0;
	if (object == nothing)
		return sizeof nothing;
	if (broken("usable-size"))
		return usable(object) + 16;
	if (broken("usable-size-changes"))
		return usable(object) - __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) % 2;
	return usable(real(object)) - (real(object) != object ? 8 : 0);
}

EXPORTED int malloc_trim(size_t keep)
{
	(void)keep;
	if (broken("trim-damages") && last)
		memset(last, 0, 64);
	return 0;
}

EXPORTED struct mallinfo2 mallinfo2(void)
{
	struct mallinfo2 info = { 0 };

	info.uordblks = broken("mallinfo-zero") ? 0 : in_use;
	return info;
}

EXPORTED int malloc_info(int options, FILE *stream)
{
	if (options)
		return EINVAL;
	fputs(broken("info-not-xml") ? "{ \"malloc\": 1 }\n" : "<malloc version=\"1\">\n</malloc>\n", stream);
	return 0;
}

EXPORTED void malloc_stats(void)
{
	if (!broken("stats-silent"))
		fprintf(stderr, "in use: %zu\n", in_use);
}

EXPORTED int mallopt(int parameter, int value)
{
	(void)value;
	return broken("mallopt-wild") ? parameter : 0;
}

EXPORTED void free_sized(void *object, size_t size)
{
	(void)size;
	free(object);
	if (broken("free-sized-errno"))
		errno = EINVAL;
}

EXPORTED void free_aligned_sized(void *object, size_t alignment, size_t size)
{
	(void)alignment;
	free_sized(object, size);
}

/* operator new */
EXPORTED void *_Znwm(size_t size)
{
	union {
		void *symbol;
		void *(*call)(size_t);
	} next;

	if (broken("new-is-null"))
		return malloc(size);
	next.symbol = dlsym(RTLD_NEXT, "_Znwm");
	return next.call(size);
}
