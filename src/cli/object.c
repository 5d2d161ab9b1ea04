/* SPDX-License-Identifier: MIT */
/* Where the objects lie that the command puts in front of other programs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

int cli_find_object(const char *in_tree, const char *installed, char *path, size_t size)
{
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	int rc = -ENOENT;

	if (n > 0) {
		self[n] = '\0';
		*strrchr(self, '/') = '\0';
		for (int i = 0; i < 2; i++) {
			char *real;

			if (snprintf(path, size, "%s/%s%s", self, i ? PERCPU_LIBDIR_RELATIVE "/" : "",
				     i ? installed : in_tree) >= (int)size)
				continue;
			real = realpath(path, NULL);
			if (!real)
				continue;
			rc = strlen(real) < size && !access(real, R_OK) ? 0 : -errno;
			if (!rc)
				strcpy(path, real);
			free(real);
			break;
		}
	}
	if (rc && snprintf(path, size, "%s/%s", PERCPU_LIBDIR, installed) < (int)size)
		rc = access(path, R_OK) ? -errno : 0;
	return !rc && strpbrk(path, " :\t\n") ? -EINVAL : rc;
}
