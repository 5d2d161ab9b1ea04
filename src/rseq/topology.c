/* SPDX-License-Identifier: MIT */
/*
 * How many copies an object needs: the highest possible CPU number, plus one.
 *
 * The answer must never be too low: an index beyond it would reach foreign memory. The kernel's list of possible CPUs is
 * exact. Where it is hidden, the size of the kernel's CPU mask is a bound for every CPU number (nr_cpu_ids rounded up):
 * the affinity call returns that size whatever the mask contains. Last comes the C library's count of configured CPUs,
 * rounded up generously, for kernels that are not Linux's own.
 */
#include <fcntl.h>
#include <stddef.h>
#include <unistd.h>

#include "base/sys.h"
#include "rseq/thread.h"

/* Linux supports 8192 CPUs at most; a larger number is not one. */
#define MOST_CPUS 65536L

long percpu__parse_cpu_list(const char *text)
{
	long highest = -1;
	const char *c = text;

	while (*c >= '0' && *c <= '9') {
		long number = 0, first = -1;

		for (;;) {
			number = 0;
			if (*c < '0' || *c > '9')
				return -1;
			for (; *c >= '0' && *c <= '9'; c++) {
				number = number * 10 + (*c - '0');
				if (number >= MOST_CPUS)
					return -1;
			}
			if (*c != '-' || first >= 0)
				break;
			first = number;
			c++;
		}
		if (number < first)
			return -1;
		if (number > highest)
			highest = number;
		if (*c != ',')
			break;
		c++;
		if (*c < '0' || *c > '9')
			return -1;
	}
	return *c == '\0' || *c == '\n' ? highest : -1;
}

static long from_sysfs(const char *path)
{
	char text[16384];
	long fd = percpu__sys4(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0);
	long length = 0, got = 0;

	if (fd < 0)
		return -1;
	while (length < (long)sizeof text - 1) {
		got = percpu__sys4(SYS_read, fd, (long)(text + length), (long)sizeof text - 1 - length, 0);
		if (got <= 0)
			break;
		length += got;
	}
	percpu__sys4(SYS_close, fd, 0, 0, 0);
	if (got < 0 || length == 0)
		return -1;
	text[length] = '\0';
	return percpu__parse_cpu_list(text);
}

unsigned percpu__topology(const char *sysfs, const char **source)
{
	unsigned long mask[MOST_CPUS / (8 * sizeof(long))];
	long highest = from_sysfs(sysfs), bytes, configured;

	if (highest >= 0) {
		*source = "the kernel's list of possible CPUs";
		return (unsigned)highest + 1;
	}
	bytes = percpu__sys4(SYS_sched_getaffinity, 0, sizeof mask, (long)mask, 0);
	if (bytes > 0) {
		*source = "the size of the kernel's CPU mask (no list of possible CPUs)";
		return (unsigned)bytes * 8;
	}
	configured = sysconf(_SC_NPROCESSORS_CONF);
	*source = "a guess from the number of configured CPUs (no list of possible CPUs, no affinity)";
	return configured > 0 && configured < MOST_CPUS ? (unsigned)(configured + 63) / 64 * 64 : 64;
}
