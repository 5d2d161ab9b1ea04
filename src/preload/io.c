/* SPDX-License-Identifier: MIT */
/*
 * Reading, writing, receiving and sending: the call when it is made (read and write of a process with one thread: when it
 * returns), the bytes when it returns.
 *
 * The names with "_chk" are what the compiler makes of the plain ones where _FORTIFY_SOURCE is on, as distributions do;
 * those with "64" what it makes of them in programs with large files. errno is the real function's: counting keeps it.
 */
#undef _FILE_OFFSET_BITS /* else the plain names below would mean the ones with "64" */
#include <dlfcn.h>
#include <errno.h>
#include <sys/single_threaded.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/sys.h"
#include "preload/count.h"

#define CALL(kind, function, parameters, arguments)                                                                    \
	REAL(ssize_t, function, parameters, arguments)                                                                 \
	EXPORT ssize_t function parameters                                                                             \
	{                                                                                                              \
		ssize_t done;                                                                                          \
                                                                                                                       \
		count(COUNT_##kind##_CALLS, 1);                                                                        \
		done = real_##function arguments;                                                                      \
		if (done > 0)                                                                                          \
			count(COUNT_##kind##_BYTES, (uint64_t)done);                                                   \
		return done;                                                                                           \
	}

/*
 * read and write of a process with one thread, where the next definition is the C library's, which does just this then (no
 * cancellation, no lock): a system call. One frame less to return through after the kernel has emptied the processor's
 * return predictor, and both counts together: 3 ns added to a write to /dev/null instead of 8 (tests/cli/cost.py).
 */
static bool straight;

static bool in_libc(const void *function)
{
	Dl_info libc, info;

	return dladdr((const void *)(uintptr_t)&__errno_location, &libc) && dladdr(function, &info) &&
	       libc.dli_fbase == info.dli_fbase;
}

#define STRAIGHT_CALL(kind, function, number, parameters, arguments, buffer)                                           \
	REAL(ssize_t, function, parameters, arguments)                                                                 \
	EXPORT ssize_t function parameters                                                                             \
	{                                                                                                              \
		ssize_t done;                                                                                          \
                                                                                                                       \
		if (straight && __libc_single_threaded) {                                                              \
			done = percpu__sys4(number, fd, (long)buffer, (long)n, 0);                                     \
			if (PERCPU__UNLIKELY(done < 0)) {                                                              \
				errno = (int)-done;                                                                    \
				done = -1;                                                                             \
			}                                                                                              \
			count(COUNT_##kind##_CALLS, 1);                                                                \
		} else {                                                                                               \
			count(COUNT_##kind##_CALLS, 1);                                                                \
			done = real_##function arguments;                                                              \
		}                                                                                                      \
		if (done > 0)                                                                                          \
			count(COUNT_##kind##_BYTES, (uint64_t)done);                                                   \
		return done;                                                                                           \
	}

ssize_t __read_chk(int fd, void *to, size_t n, size_t room);
ssize_t __pread_chk(int fd, void *to, size_t n, off_t at, size_t room);
ssize_t __pread64_chk(int fd, void *to, size_t n, off64_t at, size_t room);
ssize_t __recv_chk(int fd, void *to, size_t n, size_t room, int flags);
ssize_t __recvfrom_chk(int fd, void *to, size_t n, size_t room, int flags, __SOCKADDR_ARG from, socklen_t *length);

STRAIGHT_CALL(READ, read, SYS_read, (int fd, void *to, size_t n), (fd, to, n), to)
CALL(READ, __read_chk, (int fd, void *to, size_t n, size_t room), (fd, to, n, room))
CALL(READ, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
CALL(READ, pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
CALL(READ, __pread_chk, (int fd, void *to, size_t n, off_t at, size_t room), (fd, to, n, at, room))
CALL(READ, __pread64_chk, (int fd, void *to, size_t n, off64_t at, size_t room), (fd, to, n, at, room))
CALL(READ, readv, (int fd, const struct iovec *to, int n), (fd, to, n))
CALL(READ, preadv, (int fd, const struct iovec *to, int n, off_t at), (fd, to, n, at))
CALL(READ, preadv64, (int fd, const struct iovec *to, int n, off64_t at), (fd, to, n, at))
CALL(READ, preadv2, (int fd, const struct iovec *to, int n, off_t at, int flags), (fd, to, n, at, flags))
CALL(READ, preadv64v2, (int fd, const struct iovec *to, int n, off64_t at, int flags), (fd, to, n, at, flags))

STRAIGHT_CALL(WRITE, write, SYS_write, (int fd, const void *from, size_t n), (fd, from, n), from)

__attribute__((constructor)) static void look_for_libc(void)
{
	real_lookup(&entry_write);
	straight = in_libc((const void *)(uintptr_t)real_read) && in_libc((const void *)(uintptr_t)real_write);
}

CALL(WRITE, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
CALL(WRITE, pwrite64, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
CALL(WRITE, writev, (int fd, const struct iovec *from, int n), (fd, from, n))
CALL(WRITE, pwritev, (int fd, const struct iovec *from, int n, off_t at), (fd, from, n, at))
CALL(WRITE, pwritev64, (int fd, const struct iovec *from, int n, off64_t at), (fd, from, n, at))
CALL(WRITE, pwritev2, (int fd, const struct iovec *from, int n, off_t at, int flags), (fd, from, n, at, flags))
CALL(WRITE, pwritev64v2, (int fd, const struct iovec *from, int n, off64_t at, int flags), (fd, from, n, at, flags))

CALL(RECV, recv, (int fd, void *to, size_t n, int flags), (fd, to, n, flags))
CALL(RECV, __recv_chk, (int fd, void *to, size_t n, size_t room, int flags), (fd, to, n, room, flags))
CALL(RECV, recvfrom, (int fd, void *restrict to, size_t n, int flags, __SOCKADDR_ARG from, socklen_t *restrict length),
     (fd, to, n, flags, from, length))
CALL(RECV, __recvfrom_chk, (int fd, void *to, size_t n, size_t room, int flags, __SOCKADDR_ARG from, socklen_t *length),
     (fd, to, n, room, flags, from, length))
CALL(RECV, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))

CALL(SEND, send, (int fd, const void *from, size_t n, int flags), (fd, from, n, flags))
CALL(SEND, sendto, (int fd, const void *from, size_t n, int flags, __CONST_SOCKADDR_ARG to, socklen_t length),
     (fd, from, n, flags, to, length))
CALL(SEND, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))

/* These return a number of messages. */
REAL(int, recvmmsg, (int fd, struct mmsghdr *messages, unsigned n, int flags, struct timespec *timeout),
     (fd, messages, n, flags, timeout))
REAL(int, sendmmsg, (int fd, struct mmsghdr *messages, unsigned n, int flags), (fd, messages, n, flags))

static uint64_t bytes_of(const struct mmsghdr *messages, int n)
{
	uint64_t bytes = 0;

	for (int i = 0; i < n; i++)
		bytes += messages[i].msg_len;
	return bytes;
}

EXPORT int recvmmsg(int fd, struct mmsghdr *messages, unsigned n, int flags, struct timespec *timeout)
{
	int done;

	count(COUNT_RECV_CALLS, 1);
	done = real_recvmmsg(fd, messages, n, flags, timeout);
	if (done > 0)
		count(COUNT_RECV_BYTES, bytes_of(messages, done));
	return done;
}

EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned n, int flags)
{
	int done;

	count(COUNT_SEND_CALLS, 1);
	done = real_sendmmsg(fd, messages, n, flags);
	if (done > 0)
		count(COUNT_SEND_BYTES, bytes_of(messages, done));
	return done;
}
