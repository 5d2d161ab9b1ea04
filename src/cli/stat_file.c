/* SPDX-License-Identifier: MIT */
/*
 * The counts for other programs: JSON when the program has ended, OpenMetrics text again and again.
 *
 * A regular file is written beside its place and then renamed into it: a reader sees the old one or the new one, whole.
 * It belongs to the user alone, and no symbolic link is followed at its name. Anything else (a pipe, a device) is
 * written to directly.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/stat.h"

static bool complain(const char *name, int error)
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

static bool put(const char *name, const char *text, size_t n)
{
	bool regular = false;
	int error, fd;

	if (!strcmp(name, "-")) {
		error = write_all(STDOUT_FILENO, text, n);
		return error ? complain(name, error) : true;
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
	return error ? complain(name, error) : true;
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
		return error ? complain(name, error) : true;
	beside = name_beside(name);
	if (!beside)
		return complain(name, ENOMEM);
	fd = open_beside(beside);
	error = errno;
	if (fd >= 0) {
		close(fd);
		unlink(beside);
	}
	free(beside);
	return fd < 0 ? complain(name, error) : true;
}

/* JSON's integers are signed here; a sum beyond that is a request that no allocator can meet. */
static json_t *number(uint64_t value)
{
	return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

static json_t *by_index(const struct sample *now, const uint64_t *table, unsigned row)
{
	json_t *object = json_object();
	char text[16];

	for (unsigned index = 0; index < now->copies; index++) {
		uint64_t value = table[(size_t)row * now->copies + index];

		if (value)
			json_object_set_new(object, sample_index_name(now, index, text), number(value));
	}
	return object;
}

static json_t *counters(const struct sample *now)
{
	json_t *object = json_object();

	for (unsigned row = 0; row < ROWS; row++) {
		uint64_t sum = sample_sum(now, now->rows, row);
		json_t *counter = json_object();

		json_object_set_new(counter, "total", number(sum));
		json_object_set_new(counter, "per_second",
				    json_real(now->seconds > 0 ? (double)sum / now->seconds : 0));
		json_object_set_new(counter, "by_index", by_index(now, now->rows, row));
		json_object_set_new(object, stat_rows[row].name, counter);
	}
	return object;
}

static json_t *sizes(const struct sample *now)
{
	json_t *array = json_array();

	for (unsigned class = 0; class < SESSION_CLASSES; class ++) {
		json_t *size;

		if (!sample_sum(now, now->class_calls, class))
			continue;
		size = json_object();
		json_object_set_new(size, "low", number(class_low(class)));
		json_object_set_new(size, "high", number(class_high(class)));
		json_object_set_new(size, "calls", number(sample_sum(now, now->class_calls, class)));
		json_object_set_new(size, "bytes", number(sample_sum(now, now->class_bytes, class)));
		json_object_set_new(size, "calls_by_index", by_index(now, now->class_calls, class));
		json_object_set_new(size, "bytes_by_index", by_index(now, now->class_bytes, class));
		json_array_append_new(array, size);
	}
	return array;
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

bool file_write_json(const char *name, const struct sample *now, const struct run *run, char **argv)
{
	json_t *root = json_object();
	json_t *command = json_array();
	char *text, *lines;
	bool done;
	int n;

	for (char **arg = argv; *arg; arg++)
		json_array_append_new(command, string(*arg));
	json_object_set_new(root, "command", command);
	json_object_set_new(root, "seconds", json_real(now->seconds));
	if (WIFSIGNALED(run->status))
		json_object_set_new(root, "signal", json_integer(WTERMSIG(run->status)));
	else
		json_object_set_new(root, "exit_status", json_integer(WEXITSTATUS(run->status)));
	json_object_set_new(root, "programs", json_integer(session_header(run->base)->images));
	json_object_set_new(root, "possible_cpus", json_integer(now->copies - 1));
	json_object_set_new(root, "counters", counters(now));
	json_object_set_new(root, "allocation_sizes", sizes(now));
	text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
	json_decref(root);
	n = text ? asprintf(&lines, "%s\n", text) : -1;
	free(text);
	if (n < 0)
		return complain(name, ENOMEM);
	done = put(name, lines, (size_t)n);
	free(lines);
	return done;
}

bool file_write_openmetrics(const char *name, const struct sample *now)
{
	char *text = NULL;
	size_t n = 0;
	FILE *file = open_memstream(&text, &n);
	char index_name[16];
	uint64_t sum = 0;
	bool done;

	if (!file)
		return complain(name, errno);
	for (unsigned row = 0; row < ROWS; row++) {
		const char *metric = stat_rows[row].name;

		fprintf(file, "# TYPE percpu_%s counter\n", metric);
		if (stat_rows[row].bytes)
			fprintf(file, "# UNIT percpu_%s bytes\n", metric);
		fprintf(file, "# HELP percpu_%s %s.\n", metric, stat_rows[row].help);
		for (unsigned index = 0; index < now->copies; index++)
			fprintf(file, "percpu_%s_total{cpu=\"%s\"} %llu\n", metric,
				sample_index_name(now, index, index_name),
				(unsigned long long)now->rows[(size_t)row * now->copies + index]);
	}
	fputs("# TYPE percpu_alloc_size_bytes histogram\n# UNIT percpu_alloc_size_bytes bytes\n"
	      "# HELP percpu_alloc_size_bytes Sizes that allocation calls asked for.\n",
	      file);
	for (unsigned class = 0; class < SESSION_CLASSES - 1; class ++) {
		sum += sample_sum(now, now->class_calls, class);
		fprintf(file, "percpu_alloc_size_bytes_bucket{le=\"%llu\"} %llu\n",
			(unsigned long long)class_high(class), (unsigned long long)sum);
	}
	sum += sample_sum(now, now->class_calls, SESSION_CLASSES - 1);
	fprintf(file, "percpu_alloc_size_bytes_bucket{le=\"+Inf\"} %llu\npercpu_alloc_size_bytes_count %llu\n",
		(unsigned long long)sum, (unsigned long long)sum);
	fprintf(file, "percpu_alloc_size_bytes_sum %llu\n# EOF\n",
		(unsigned long long)sample_sum(now, now->rows, ROW_ALLOC_BYTES));
	if (fclose(file)) {
		free(text);
		return complain(name, ENOMEM);
	}
	done = put(name, text, n);
	free(text);
	return done;
}
