/* SPDX-License-Identifier: MIT */
/*
 * The program's side of `percpu run --stats`; see session.h. Whoever sets our environment must not make us open or change
 * other files: it must be a memory file of our own user, with the name, the layout and the key that we expect.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <percpu/area.h>
#include <percpu/rseq.h>

#include "base/sys.h"
#include "malloc/front.h"
#include "malloc/guard.h"
#include "malloc/profile.h"
#include "malloc/session.h"

static struct percpu__session *session;
static uint64_t key, process;

uint64_t percpu__session_layout(void)
{
	const uint64_t numbers[] = { CLASSES,
				     PERCPU_STRIDE,
				     sizeof(struct percpu__session),
				     sizeof(struct percpu__front),
				     sizeof(struct percpu__front_stats),
				     sizeof(struct percpu__class_stats),
				     sizeof(struct percpu__heap_stats),
				     offsetof(struct percpu__front, counts),
				     percpu__class_size(CLASSES) };
	uint64_t hash = 0xcbf29ce484222325ULL;

	for (const char *at = percpu_version(); *at; at++)
		hash = (hash ^ (unsigned char)*at) * 0x100000001b3ULL;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		hash = (hash ^ numbers[i]) * 0x100000001b3ULL;
	return hash;
}

/* A number of @base at *@at, which is moved behind it. False: there is none. */
static bool number_at(const char **at, unsigned base, uint64_t *out)
{
	const char *start = *at;

	for (*out = 0; *at - start < 20; ++*at) {
		char c = **at;
		unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
				 : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
							: 99;

		if (digit >= base)
			break;
		*out = *out * base + digit;
	}
	return *at != start;
}

static bool skip(const char **at, const char *text)
{
	size_t n = strlen(text);

	if (strncmp(*at, text, n) != 0)
		return false;
	*at += n;
	return true;
}

/* Sets the name of the file, the key and the process; false: it is not what percpu run writes. */
static bool parse(const char *value, char path[static 64])
{
	const char *at = value;
	uint64_t number;

	if (!skip(&at, "/proc/") || !number_at(&at, 10, &number) || !skip(&at, "/fd/") ||
	    !number_at(&at, 10, &number) || at - value >= 64)
		return false;
	memcpy(path, value, (size_t)(at - value));
	path[at - value] = '\0';
	return skip(&at, " ") && number_at(&at, 16, &key) && key && skip(&at, " ") && number_at(&at, 10, &process) &&
	       !*at;
}

static bool trusted(long fd, size_t *bytes)
{
	struct stat status = { 0 };

	if (percpu__sys4(SYS_fstat, fd, (long)&status, 0, 0) || !S_ISREG(status.st_mode) || status.st_nlink ||
	    status.st_uid != (uid_t)percpu__sys4(SYS_geteuid, 0, 0, 0, 0))
		return false;
	*bytes = (size_t)status.st_size;
	return *bytes >= sizeof(*session) + percpu_copies() * sizeof(session->indexes[0]);
}

static struct percpu__session *map(const char *path)
{
	char target[sizeof(PERCPU__SESSION_LINK)];
	struct percpu__session *found;
	size_t bytes = 0;
	long fd, p = -1;

	/* Look before opening: the number may belong to another process by now, and to open a device can do things. */
	if (percpu__sys4(SYS_readlinkat, AT_FDCWD, (long)path, (long)target, sizeof(target)) != sizeof(target) ||
	    memcmp(target, PERCPU__SESSION_LINK " ", sizeof(target)) != 0)
		return NULL;
	fd = percpu__sys4(SYS_openat, AT_FDCWD, (long)path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
	if (fd < 0)
		return NULL;
	if (trusted(fd, &bytes))
		p = percpu__sys6(SYS_mmap, 0, (long)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	percpu__sys4(SYS_close, fd, 0, 0, 0);
	if (p < 0 && p > -4096)
		return NULL;
	found = (struct percpu__session *)p;
	if (found->magic == PERCPU__SESSION_MAGIC && found->layout == percpu__session_layout() && found->key == key &&
	    found->copies == percpu_copies())
		return found;
	percpu__sys4(SYS_munmap, p, (long)bytes, 0, 0);
	return NULL;
}

/* Release, and a fence: the reader looks at the sequence before and after. */
static void begin(void)
{
	__atomic_store_n(&session->sequence, session->sequence | 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

static void end(enum percpu__session_state state)
{
	session->state = state;
	__atomic_store_n(&session->sequence, session->sequence + 1, __ATOMIC_RELEASE);
}

void percpu__session_start(void)
{
	const char *value = secure_getenv(PERCPU__SESSION_ENV);
	struct percpu_description how;
	char path[64];

	if (!value || !parse(value, path) || process != (uint64_t)percpu__sys4(SYS_getpid, 0, 0, 0, 0))
		return;
	session = map(path);
	if (!session)
		return;
	percpu_describe(&how);
	begin();
	session->where = (struct percpu__session_where){
		.key = (uintptr_t)&key,
		.heap = (uintptr_t)&percpu__heap_stats,
		.guarded = (uintptr_t)&percpu__guard_taken,
		.profiled = (uintptr_t)&percpu__profile_live,
		.front = percpu__front ? (uintptr_t)percpu_ptr(percpu__front, 0) : 0,
		.top = (uintptr_t)&percpu__front_top,
	};
	percpu__central_words(&session->where.central);
	session->images++;
	session->counted = percpu__malloc_watched & PERCPU__WATCH_COUNT;
	strncpy(session->mode, how.mode_name, sizeof(session->mode) - 1);
	strncpy(session->index_kind, how.index_kind, sizeof(session->index_kind) - 1);
	end(PERCPU__SESSION_RUNNING);
}

void percpu__session_end(void)
{
	if (!session || process != (uint64_t)percpu__sys4(SYS_getpid, 0, 0, 0, 0))
		return;
	begin();
	percpu__stats_process(NULL, &session->process);
	for (unsigned i = 1; i <= CLASSES; i++)
		percpu__stats_class(NULL, i, &session->classes[i]);
	for (unsigned i = 0; i < percpu_copies(); i++)
		percpu__stats_index(NULL, i, &session->indexes[i]);
	end(PERCPU__SESSION_ENDED);
}
