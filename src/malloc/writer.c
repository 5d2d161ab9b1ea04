/* SPDX-License-Identifier: MIT */
/*
 * Text without the C library's streams; see writer.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/sys.h"
#include "malloc/writer.h"

#define PATIENCE_MS 2000

/* Returns 0 or -errno. Signals are blocked. */
static int write_all(int fd, const char *text, size_t n)
{
	while (n) {
		struct pollfd full = { fd, POLLOUT, 0 };
		struct timespec patience = { PATIENCE_MS / 1000, 0 };
		long done = percpu__sys4(SYS_write, fd, (long)text, (long)n, 0);

		if (done >= 0) {
			text += done;
			n -= (size_t)done;
		} else if (done == -EAGAIN) {
			if (percpu__sys6(SYS_ppoll, (long)&full, 1, (long)&patience, 0, 0, 0) <= 0)
				return -EAGAIN;
		} else if (done != -EINTR) {
			return (int)done;
		}
	}
	return 0;
}

/*
 * SIGPIPE and SIGXFSZ are sent to the thread itself, so with these blocked it can take what its own write has raised; one that
 * was pending before stays.
 */
static int write_quietly(int fd, const char *text, size_t n)
{
	const uint64_t raised = UINT64_C(1) << (SIGPIPE - 1) | UINT64_C(1) << (SIGXFSZ - 1);
	struct timespec now = { 0, 0 };
	uint64_t saved, pending = 0, mine;
	int rc;

	percpu__block_signals(&saved);
	percpu__sys4(SYS_rt_sigpending, (long)&pending, sizeof(pending), 0, 0);
	rc = write_all(fd, text, n);
	mine = raised & ~pending;
	if ((rc == -EPIPE || rc == -EFBIG) && mine)
		percpu__sys4(SYS_rt_sigtimedwait, (long)&mine, 0, (long)&now, sizeof(mine));
	percpu__restore_signals(&saved);
	return rc;
}

static void flush(struct percpu__writer *w)
{
	if (w->put)
		w->put(w->arg, w->text, w->n);
	else if (!w->error)
		w->error = write_quietly(w->fd, w->text, w->n);
	w->n = 0;
}

void percpu__write_to(struct percpu__writer *w, int fd)
{
	w->fd = fd;
	w->error = 0;
	w->put = NULL;
	w->arg = NULL;
	w->n = 0;
}

void percpu__write_text(struct percpu__writer *w, const char *text)
{
	for (; *text; text++) {
		if (w->n == sizeof(w->text))
			flush(w);
		w->text[w->n++] = *text;
	}
}

/* The digits end at @end. Returns where they begin. */
static char *digits_of(uint64_t value, unsigned base, char *end)
{
	*end = '\0';
	do
		*--end = "0123456789abcdef"[value % base];
	while (value /= base);
	return end;
}

void percpu__write_number(struct percpu__writer *w, uint64_t value)
{
	char text[24];

	percpu__write_text(w, digits_of(value, 10, text + 23));
}

void percpu__write_address(struct percpu__writer *w, uint64_t value)
{
	char text[24];

	percpu__write_text(w, "0x");
	percpu__write_text(w, digits_of(value, 16, text + 23));
}

void percpu__write_ratio(struct percpu__writer *w, uint64_t over, uint64_t under, const char *none)
{
	uint64_t rest;
	char text[4] = ".00";

	if (!under) {
		percpu__write_text(w, none);
		return;
	}
	rest = over % under * 100 / under;
	percpu__write_number(w, over / under);
	text[1] = (char)('0' + rest / 10);
	text[2] = (char)('0' + rest % 10);
	percpu__write_text(w, text);
}

void percpu__write_column(struct percpu__writer *w, uint64_t value, unsigned width)
{
	char text[24], *start = digits_of(value, 10, text + 23);

	for (size_t n = strlen(start); n < width; n++)
		percpu__write_text(w, " ");
	percpu__write_text(w, start);
}

void percpu__write_string(struct percpu__writer *w, const char *text)
{
	percpu__write_text(w, "\"");
	for (; *text; text++) {
		char one[3] = { *text };

		if (*text < ' ' || *text > '~') {
			one[0] = '?';
		} else if (*text == '"' || *text == '\\') {
			one[0] = '\\';
			one[1] = *text;
		}
		percpu__write_text(w, one);
	}
	percpu__write_text(w, "\"");
}

int percpu__write_end(struct percpu__writer *w)
{
	flush(w);
	return w->error;
}

int percpu__write_open(const char *name)
{
	char path[PATH_MAX], digits[24];
	size_t n = 0;

	for (; *name; name++) {
		const char *part = name;
		size_t length = 1;

		if (name[0] == '%' && name[1] == 'p') {
			part = digits_of((uint64_t)percpu__sys4(SYS_getpid, 0, 0, 0, 0), 10, digits + 23);
			length = strlen(part);
			name++;
		}
		if (n + length >= sizeof(path))
			return -ENAMETOOLONG;
		memcpy(path + n, part, length);
		n += length;
	}
	path[n] = '\0';
	/* A FIFO that nobody reads must not hold up the end of a program. */
	return (int)percpu__sys4(SYS_openat, AT_FDCWD, (long)path,
				 O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
}

void percpu__write_close(int fd)
{
	percpu__sys4(SYS_close, fd, 0, 0, 0);
}

/* Of the few errors that matter here; strerror() may allocate. */
static const char *reason_of(int error)
{
	switch (-error) {
	case 0:
		return NULL;
	case EACCES:
	case EPERM:
		return "Permission denied";
	case ENOENT:
		return "No such file or directory";
	case ENOTDIR:
		return "Not a directory";
	case EISDIR:
		return "Is a directory";
	case ENOSPC:
	case EDQUOT:
		return "No space left on device";
	case EPIPE:
		return "Broken pipe";
	case EFBIG:
		return "File too large";
	case EROFS:
		return "Read-only file system";
	case EMFILE:
	case ENFILE:
		return "Too many open files";
	case ENXIO:
		return "Nobody reads from the pipe";
	case ENAMETOOLONG:
		return "File name too long";
	}
	return "Input/output error";
}

void percpu__write_complaint(const char *what, const char *name, int error)
{
	struct percpu__writer w;
	const char *reason = reason_of(error);

	percpu__write_to(&w, STDERR_FILENO);
	percpu__write_text(&w, "percpu-malloc: ");
	percpu__write_text(&w, what);
	if (*name)
		percpu__write_text(&w, " ");
	/* It may be long, and contain what a terminal would obey. */
	for (unsigned i = 0; name[i] && i < 200; i++) {
		char one[2] = { name[i] };

		if ((unsigned char)*one < ' ' || *one == 127)
			*one = '?';
		percpu__write_text(&w, one);
	}
	if (reason) {
		percpu__write_text(&w, ": ");
		percpu__write_text(&w, reason);
	}
	percpu__write_text(&w, "\n");
	percpu__write_end(&w);
}
