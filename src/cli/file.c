/* SPDX-License-Identifier: MIT */
/*
 * Files with results; see file.h. A regular file is written beside its place and then renamed into it: a reader sees the old
 * one or the new one, whole. Anything else (a pipe, a device) is written to directly.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/file.h"

bool file_failed(const char *name, int error)
{
	cli_complain("cannot write %s: %s", strcmp(name, "-") ? name : "to standard output",
		     error == ELOOP ? "it is a symbolic link" : strerror(error));
	return false;
}

/* Returns 0 or an error number. */
static int write_all(int fd, const char *text, size_t n)
{
	while (n) {
		ssize_t done = write(fd, text, n);

		if (done < 0 && errno != EINTR)
			return errno;
		if (done > 0) {
			text += done;
			n -= (size_t)done;
		}
	}
	return 0;
}

/* The name while it is being written; NULL if there is no memory. To be freed. */
static char *name_beside(const char *name)
{
	char *beside;

	return asprintf(&beside, "%s.percpu-%d", name, (int)getpid()) < 0 ? NULL : beside;
}

static int open_beside(const char *beside)
{
	/* Whatever stands at our own name is what an earlier process of that number left behind. */
	unlink(beside);
	return open(beside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
}

/* Returns an error number, or 0 and whether the name is that of a file which can be replaced. */
static int look_at(const char *name, bool *regular)
{
	struct stat status;

	if (lstat(name, &status)) {
		*regular = true;
		return errno == ENOENT ? 0 : errno;
	}
	if (S_ISLNK(status.st_mode))
		return ELOOP;
	if (S_ISDIR(status.st_mode))
		return EISDIR;
	*regular = S_ISREG(status.st_mode);
	return 0;
}

static int replace(const char *name, const char *text, size_t n)
{
	char *beside = name_beside(name);
	int fd, error;

	if (!beside)
		return ENOMEM;
	fd = open_beside(beside);
	error = fd < 0 ? errno : write_all(fd, text, n);
	if (fd >= 0 && close(fd) && !error)
		error = errno;
	if (!error && rename(beside, name))
		error = errno;
	if (error && fd >= 0)
		unlink(beside);
	free(beside);
	return error;
}

bool file_put(const char *name, const char *text, size_t n)
{
	bool regular = false;
	int error, fd;

	if (!strcmp(name, "-")) {
		error = write_all(STDOUT_FILENO, text, n);
		return error ? file_failed(name, error) : true;
	}
	error = look_at(name, &regular);
	if (!error && regular) {
		error = replace(name, text, n);
	} else if (!error) {
		fd = open(name, O_WRONLY | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY);
		error = fd < 0 ? errno : write_all(fd, text, n);
		if (fd >= 0)
			close(fd);
	}
	return error ? file_failed(name, error) : true;
}

bool file_check(const char *name)
{
	bool regular = false;
	char *beside;
	int error, fd;

	if (!strcmp(name, "-"))
		return true;
	error = look_at(name, &regular);
	if (error || !regular)
		return error ? file_failed(name, error) : true;
	beside = name_beside(name);
	if (!beside)
		return file_failed(name, ENOMEM);
	fd = open_beside(beside);
	error = errno;
	if (fd >= 0) {
		close(fd);
		unlink(beside);
	}
	free(beside);
	return fd < 0 ? file_failed(name, error) : true;
}

json_t *file_number(uint64_t value)
{
	return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

/* An argument need not be text; what is not UTF-8 is shown as "?". */
static json_t *string(const char *text)
{
	json_t *value = json_string(text);
	char *copy;

	if (value)
		return value;
	copy = strdup(text);
	for (char *at = copy; at && *at; at++)
		if (*at & 0x80)
			*at = '?';
	value = json_string(copy ? copy : "");
	free(copy);
	return value;
}

json_t *file_command(char **argv)
{
	json_t *command = json_array();

	for (char **arg = argv; *arg; arg++)
		json_array_append_new(command, string(*arg));
	return command;
}

void file_set_end(json_t *root, int status)
{
	if (WIFSIGNALED(status))
		json_object_set_new(root, "signal", json_integer(WTERMSIG(status)));
	else
		json_object_set_new(root, "exit_status", json_integer(WEXITSTATUS(status)));
}

bool file_put_json(const char *name, json_t *root)
{
	char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12)), *lines;
	int n = text ? asprintf(&lines, "%s\n", text) : -1;
	bool done;

	json_decref(root);
	free(text);
	if (n < 0)
		return file_failed(name, ENOMEM);
	done = file_put(name, lines, (size_t)n);
	free(lines);
	return done;
}
