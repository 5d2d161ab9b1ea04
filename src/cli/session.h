/* SPDX-License-Identifier: MIT */
/*
 * The memory of one run of `percpu stat`: what the command and the object that it preloads agree on.
 *
 * It is an area of libpercpu (percpu_area_map()) in a memory file without a name. Every process of the run maps it and
 * counts in the copy of the CPU that it runs on; the command reads. Nobody ever takes anything out, so a process may be
 * killed at any instruction. In each copy, behind the 64 bytes that the library keeps for itself:
 *
 *   64    the header, in copy 0 only; written by the command before the program starts, then only `images` changes
 *   256   one word for each of SESSION_COUNTERS
 *   512   bytes allocated, one word for each power of two of the size
 *   1024  calls by size of the allocation: the buckets of a histogram
 *
 * A process finds the file through the environment variable SESSION_ENV: "/proc/PID/fd/N KEY". That file belongs to the
 * command's user, and goes away with the last process that has it mapped.
 */
#ifndef PERCPU_CLI_SESSION_H
#define PERCPU_CLI_SESSION_H

#include <percpu/histogram.h>

#define SESSION_ENV "PERCPU_STAT_SESSION"
/* The name of the memory file, as the links in /proc/PID/fd show it. */
#define SESSION_NAME "percpu-stat"
#define SESSION_LINK "/memfd:" SESSION_NAME

/* X(identifier, unit, name, help). The order is the order in memory and in every output. */
#define SESSION_COUNTERS(X)                                                                                            \
	X(REALLOC_CALLS, CALLS, "realloc_calls", "Allocation calls that were realloc or reallocarray")                 \
	X(FREE_CALLS, CALLS, "free_calls", "Blocks given back with free")                                              \
	X(LOCK_CALLS, CALLS, "mutex_lock_calls", "Mutex lock, timed lock and clock lock calls")                        \
	X(LOCK_WAITS, CALLS, "mutex_lock_waits", "Mutex lock calls that found the mutex held")                         \
	X(TRYLOCK_CALLS, CALLS, "mutex_trylock_calls", "Mutex try-lock calls")                                         \
	X(UNLOCK_CALLS, CALLS, "mutex_unlock_calls", "Mutex unlock calls")                                             \
	X(COND_WAITS, CALLS, "cond_wait_calls", "Waits for a condition variable")                                      \
	X(LOCALTIME_CALLS, CALLS, "localtime_calls", "Calls of localtime and localtime_r")                             \
	X(GMTIME_CALLS, CALLS, "gmtime_calls", "Calls of gmtime and gmtime_r")                                         \
	X(MKTIME_CALLS, CALLS, "mktime_calls", "Calls of mktime")                                                      \
	X(THREADS, CALLS, "thread_create_calls", "Threads created")                                                    \
	X(READ_CALLS, CALLS, "read_calls", "Calls of read, pread, readv and their kin")                                \
	X(READ_BYTES, BYTES, "read_bytes", "Bytes that these read")                                                    \
	X(WRITE_CALLS, CALLS, "write_calls", "Calls of write, pwrite, writev and their kin")                           \
	X(WRITE_BYTES, BYTES, "write_bytes", "Bytes that these wrote")                                                 \
	X(RECV_CALLS, CALLS, "recv_calls", "Calls of recv, recvfrom, recvmsg and recvmmsg")                            \
	X(RECV_BYTES, BYTES, "recv_bytes", "Bytes that these received")                                                \
	X(SEND_CALLS, CALLS, "send_calls", "Calls of send, sendto, sendmsg and sendmmsg")                              \
	X(SEND_BYTES, BYTES, "send_bytes", "Bytes that these sent")

#define SESSION_X_ENUM(id, unit, name, help) COUNT_##id,
enum session_count { SESSION_COUNTERS(SESSION_X_ENUM) SESSION_COUNTS };

#define SESSION_PRECISION 2
#define SESSION_CLASSES   64

#define SESSION_AT_HEADER   64
#define SESSION_AT_COUNTERS 256
#define SESSION_AT_BYTES    512
#define SESSION_AT_SIZES    1024

#define SESSION_MAGIC 0x74617473756370c5ULL

struct session_header {
	uint64_t magic;
	uint64_t layout; /* session_layout() of who made it: a process with another one stays away */
	uint64_t key;    /* random; also in the environment variable */
	uint32_t copies; /* as the command sees the machine: a sandboxed process that sees another one stays away */
	uint32_t images; /* programs that attached, atomically; a forked child without exec shares its parent's */
};

/* The power of two that an allocation's size falls under: 2^class <= size < 2^(class + 1), and 0 in class 0. */
static inline unsigned session_class(size_t size)
{
	return 63U - (unsigned)__builtin_clzll((unsigned long long)size | 1);
}

static inline struct session_header *session_header(void *base)
{
	return (struct session_header *)(void *)((char *)base + SESSION_AT_HEADER);
}

/* A number that changes whenever the layout above does. */
uint64_t session_layout(void);

/*
 * The library's objects over a mapped session, as percpu_counter_init_shared() and percpu_histogram_init_shared() make
 * them. Made anew at each use: the compiler then knows all about them but the base, and where their gate is.
 */
static inline __attribute__((always_inline)) uint64_t *session_words(void *base, size_t at)
{
	return (uint64_t *)(void *)((char *)__builtin_assume_aligned(base, PERCPU_STRIDE) + at);
}

static inline __attribute__((always_inline)) struct percpu_counter session_counter(void *base, enum session_count what)
{
	return (struct percpu_counter){ .words = session_words(base, SESSION_AT_COUNTERS) + what, .by_cpu = true };
}

/* The bytes asked for by allocations of one class. */
static inline __attribute__((always_inline)) struct percpu_counter session_bytes(void *base, unsigned class)
{
	return (struct percpu_counter){ .words = session_words(base, SESSION_AT_BYTES) + class, .by_cpu = true };
}

/* The allocation calls by size. */
static inline __attribute__((always_inline)) struct percpu_histogram session_sizes(void *base)
{
	return (struct percpu_histogram){ .buckets = session_words(base, SESSION_AT_SIZES),
					  .precision = SESSION_PRECISION,
					  .count = PERCPU_HISTOGRAM_BUCKETS(SESSION_PRECISION),
					  .by_cpu = true };
}

#endif
