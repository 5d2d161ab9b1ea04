/* SPDX-License-Identifier: MIT */
/*
 * Reads files, and archives as ar makes them: GNU's and BSD's ways to write long names, and thin ones, whose members are
 * files beside them. Each object is copied, so that it is aligned, and nobody else can change it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lint/input.h"

#define MAGIC      "!<arch>\n"
#define THIN_MAGIC "!<thin>\n"

struct member_header {
	char name[16], date[12], user[6], group[6], mode[8], size[10], end[2];
};

static int read_all(const char *file, char **out, size_t *size)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC), r = 0;
	size_t room = 1 << 16, used = 0;
	struct stat status;
	char *bytes = NULL;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &status))
		r = -errno;
	else if (S_ISDIR(status.st_mode))
		r = -EISDIR;
	else if (status.st_size > 0)
		room = (size_t)status.st_size + 1;
	while (!r) {
		char *more = bytes && used < room ? bytes : realloc(bytes, bytes ? room *= 2 : room);
		ssize_t n;

		if (!more) {
			r = -ENOMEM;
			break;
		}
		bytes = more;
		n = read(fd, bytes + used, room - used);
		if (n == 0)
			break;
		if (n > 0)
			used += (size_t)n;
		else if (errno != EINTR)
			r = -errno;
	}
	close(fd);
	if (r) {
		free(bytes);
		return r;
	}
	*out = bytes;
	*size = used;
	return 0;
}

static bool number(const char *text, size_t length, uint64_t *out)
{
	size_t i = 0;

	*out = 0;
	for (; i < length && text[i] >= '0' && text[i] <= '9'; i++)
		*out = *out * 10 + (uint64_t)(text[i] - '0');
	return i > 0;
}

struct archive {
	const char *file;
	char *bytes;
	size_t size;
	bool thin;
	const char *names; /* GNU: long names, each ended by "/\n" */
	size_t names_size;
};

/* A copy of the bytes up to @end or the first of @ends in them. */
static char *name_until(const char *text, size_t length, const char *ends)
{
	size_t i = 0;

	while (i < length && text[i] && !strchr(ends, text[i]))
		i++;
	return strndup(text, i);
}

static int thin_member(const struct archive *archive, const char *name, object_fn each, void *context, const char **why)
{
	const char *slash = strrchr(archive->file, '/');
	size_t size = 0;
	char *path = NULL, *bytes = NULL;
	int r;

	if (asprintf(&path, "%.*s%s", *name != '/' && slash ? (int)(slash + 1 - archive->file) : 0, archive->file,
		     name) < 0)
		return -ENOMEM;
	r = read_all(path, &bytes, &size);
	if (r)
		*why = "a member of this thin archive cannot be read";
	else
		r = each(context, path, bytes, size);
	free(bytes);
	free(path);
	return r;
}

static int member(const struct archive *archive, const char *name, const char *data, size_t size, object_fn each,
		  void *context)
{
	char *whole = NULL, *copy = malloc(size ? size : 1);
	int r = -ENOMEM;

	if (copy && asprintf(&whole, "%s(%s)", archive->file, name) >= 0) {
		memcpy(copy, data, size);
		r = each(context, whole, copy, size);
		free(whole);
	}
	free(copy);
	return r;
}

/* The member at *at; goes on to the next. */
static int next_member(struct archive *archive, size_t *at, object_fn each, void *context, const char **why)
{
	struct member_header header;
	const char *data;
	uint64_t size, length;
	bool special;
	char *name;
	int r;

	*why = "this archive is damaged";
	if (archive->size - *at < sizeof(header))
		return -EINVAL;
	memcpy(&header, archive->bytes + *at, sizeof(header));
	*at += sizeof(header);
	data = archive->bytes + *at;
	if (memcmp(header.end, "`\n", 2) || !number(header.size, sizeof(header.size), &size))
		return -EINVAL;
	special = !memcmp(header.name, "/ ", 2) || !memcmp(header.name, "// ", 3) ||
		  !memcmp(header.name, "/SYM64/ ", 8) || !memcmp(header.name, "__.SYMDEF", 9);
	if (!archive->thin || special) {
		if (size > archive->size - *at)
			return -EINVAL;
		*at += size;
		if (*at & 1 && *at < archive->size)
			++*at;
	}
	if (!memcmp(header.name, "// ", 3)) {
		archive->names = data;
		archive->names_size = size;
	}
	if (special)
		return 0;
	if (header.name[0] == '/' && number(header.name + 1, sizeof(header.name) - 1, &length)) {
		if (length >= archive->names_size)
			return -EINVAL;
		name = name_until(archive->names + length, archive->names_size - length, "\n");
		if (name && *name && name[strlen(name) - 1] == '/')
			name[strlen(name) - 1] = '\0';
	} else if (!memcmp(header.name, "#1/", 3) && number(header.name + 3, sizeof(header.name) - 3, &length)) {
		if (archive->thin || length > size)
			return -EINVAL;
		name = name_until(data, length, "");
		data += length;
		size -= length;
	} else {
		name = name_until(header.name, sizeof(header.name), "/ ");
	}
	if (!name)
		return -ENOMEM;
	r = 0;
	if (archive->thin)
		r = thin_member(archive, name, each, context, why);
	else if (strncmp(name, "__.SYMDEF", 9))
		r = member(archive, name, data, size, each, context);
	free(name);
	return r;
}

int input_read(const char *file, object_fn each, void *context, const char **why)
{
	struct archive archive = { .file = file };
	size_t at = sizeof(MAGIC) - 1;
	int r = read_all(file, &archive.bytes, &archive.size);

	*why = NULL;
	if (r)
		return r;
	archive.thin = archive.size >= at && !memcmp(archive.bytes, THIN_MAGIC, at);
	if (!archive.thin && (archive.size < at || memcmp(archive.bytes, MAGIC, at))) {
		r = each(context, file, archive.bytes, archive.size);
		free(archive.bytes);
		return r;
	}
	while (!r && at < archive.size)
		r = next_member(&archive, &at, each, context, why);
	free(archive.bytes);
	return r;
}
