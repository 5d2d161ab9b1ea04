/* SPDX-License-Identifier: MIT */
/*
 * Finding the session and the functions behind ours.
 *
 * Both happen in the constructor, or at the first call if that comes earlier (the loader and other objects'
 * constructors). The program must run untouched if there is no session, or one that cannot be trusted: the file must be
 * a memory file of our own user, with the layout, the key and the number of CPUs that we expect. Nothing here goes
 * through a function that the program, or another preloaded object, may have replaced.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload/count.h"

void *session_base;

extern const struct real __start_percpu_real[] PERCPU_HIDDEN;
extern const struct real __stop_percpu_real[] PERCPU_HIDDEN;

/* One way: UNDECIDED to TRYING, then to TRIED, or back if it was too early to tell. */
static enum { UNDECIDED, TRYING, TRIED } state;

/* "/proc/PID/fd/N KEY", and nothing else: whoever sets our environment must not make us open other files. */
static bool parse(const char *value, char path[static 64], uint64_t *key)
{
	static const char *const parts[] = { "/proc/", "/fd/" };
	const char *at = value;
	uint64_t number = 0;

	for (unsigned i = 0; i < 2; i++) {
		size_t digits;

		if (strncmp(at, parts[i], strlen(parts[i])))
			return false;
		at += strlen(parts[i]);
		digits = strspn(at, "0123456789");
		if (!digits || digits > 10)
			return false;
		at += digits;
	}
	if (*at != ' ' || strspn(at + 1, "0123456789abcdef") != 16 || at[17])
		return false;
	memcpy(path, value, (size_t)(at - value));
	path[at - value] = '\0';
	for (unsigned i = 1; i <= 16; i++)
		number = number << 4 | (uint64_t)(at[i] <= '9' ? at[i] - '0' : at[i] - 'a' + 10);
	*key = number;
	return true;
}

static bool trusted(int fd)
{
	struct stat status;

	return !syscall(SYS_fstat, fd, &status) && S_ISREG(status.st_mode) && status.st_nlink == 0 &&
	       status.st_uid == (uid_t)syscall(SYS_geteuid) &&
	       (uint64_t)status.st_size >= (uint64_t)percpu_copies() * PERCPU_STRIDE;
}

static void *map(const char *path, uint64_t key)
{
	char target[sizeof(SESSION_LINK)];
	struct session_header *header;
	void *base = NULL;
	int fd;

	/* Look before opening: the number may belong to another process by now, and to open a device can do things. */
	if (syscall(SYS_readlinkat, AT_FDCWD, path, target, sizeof(target)) != sizeof(target) ||
	    memcmp(target, SESSION_LINK " ", sizeof(target)) != 0)
		return NULL;
	fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return NULL;
	if (!trusted(fd) || percpu_area_map(fd, &base))
		base = NULL;
	syscall(SYS_close, fd);
	if (!base)
		return NULL;
	header = session_header(base);
	if (header->magic != SESSION_MAGIC || header->layout != session_layout() || header->key != key ||
	    header->copies != percpu_copies()) {
		percpu_area_unmap(base);
		return NULL;
	}
	__atomic_fetch_add(&header->images, 1, __ATOMIC_RELAXED);
	return base;
}

void *session_attach(void)
{
	int seen = UNDECIDED;
	int saved = errno;
	const char *value;
	char path[64];
	uint64_t key;
	void *base = NULL;

	if (!__atomic_compare_exchange_n((int *)&state, &seen, TRYING, false, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE))
		return __atomic_load_n(&session_base, __ATOMIC_RELAXED);
	if (!environ) {
		/* The loader calls us before the C library has started. */
		__atomic_store_n((int *)&state, UNDECIDED, __ATOMIC_RELEASE);
		return NULL;
	}
	value = secure_getenv(SESSION_ENV);
	if (value && parse(value, path, &key))
		base = map(path, key);
	__atomic_store_n(&session_base, base, __ATOMIC_RELAXED);
	__atomic_store_n((int *)&state, TRIED, __ATOMIC_RELEASE);
	errno = saved;
	return base;
}

__thread bool real_looking __attribute__((tls_model("initial-exec")));

static void *look(const struct real *real)
{
	void *found = NULL;

	if (real->version)
		found = dlvsym(RTLD_NEXT, real->name, real->version);
	return found ? found : dlsym(RTLD_NEXT, real->name);
}

/* All at once, and none before all are found: meanwhile the loader's own allocations come from one place. */
static void look_up_all(void)
{
	size_t n = (size_t)(__stop_percpu_real - __start_percpu_real);
	void *found[n];

	real_looking = true;
	for (size_t i = 0; i < n; i++)
		found[i] = look(&__start_percpu_real[i]);
	for (size_t i = 0; i < n; i++)
		if (found[i])
			__atomic_store_n((void **)__start_percpu_real[i].slot, found[i], __ATOMIC_RELAXED);
	real_looking = false;
}

void real_lookup(const struct real *real)
{
	static const char text[] = "percpu: the C library does not have the function ";
	int saved = errno;

	if (real_looking) {
		void *found = look(real);

		if (found)
			__atomic_store_n((void **)real->slot, found, __ATOMIC_RELAXED);
	} else {
		look_up_all();
	}
	errno = saved;
	if (__atomic_load_n((void **)real->slot, __ATOMIC_RELAXED) != real->first)
		return;
	syscall(SYS_write, STDERR_FILENO, text, sizeof(text) - 1);
	syscall(SYS_write, STDERR_FILENO, real->name, strlen(real->name));
	syscall(SYS_write, STDERR_FILENO, "\n", 1);
	abort();
}

/* Signal handlers and children of vfork may be the first to call a function: the loader's locks must not wait there. */
__attribute__((constructor(101))) static void start(void)
{
	int saved = errno;

	look_up_all();
	session_attach();
	errno = saved;
}
