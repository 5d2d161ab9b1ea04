/* SPDX-License-Identifier: MIT */
/*
 * Address space for areas: reserved at a multiple of the stride, so that a mask finds the start of a copy.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "area/area.h"
#include "base/sys.h"
#include "rseq/thread.h"

static size_t area_bytes(void)
{
	return (size_t)(percpu__remainder + 1) << PERCPU_STRIDE_SHIFT;
}

char *percpu__reserve(int fd, long *error)
{
	size_t bytes = area_bytes(), slack = PERCPU_STRIDE;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	int protection = fd < 0 ? PROT_READ | PROT_WRITE : PROT_NONE;
	long got = percpu__sys6(SYS_mmap, 0, (long)(bytes + slack), protection, flags, -1, 0);
	struct percpu__header *remainder;
	uintptr_t start, base;

	if (got < 0 && got > -4096) {
		*error = got;
		return NULL;
	}
	start = (uintptr_t)got;
	base = (start + PERCPU_STRIDE - 1) & ~(uintptr_t)(PERCPU_STRIDE - 1);
	if (base > start)
		percpu__sys4(SYS_munmap, (long)start, (long)(base - start), 0, 0);
	if (base < start + slack)
		percpu__sys4(SYS_munmap, (long)(base + bytes), (long)(start + slack - base), 0, 0);
	if (fd >= 0) {
		got = percpu__sys6(SYS_mmap, (long)base, (long)bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
				   fd, 0);
		if (got < 0 && got > -4096) {
			*error = got;
			percpu__sys4(SYS_munmap, (long)base, (long)bytes, 0, 0);
			return NULL;
		}
	}
	/* A huge page would make two whole copies real at the first touch of one. */
	percpu__sys4(SYS_madvise, (long)base, (long)bytes, MADV_NOHUGEPAGE, 0);
	remainder = percpu__header_of((void *)base, percpu__remainder);
	remainder->by_id.word = PERCPU__SHUT;
	remainder->by_cpu.word = PERCPU__SHUT;
	return (char *)base;
}

int percpu_area_map(int fd, void **base)
{
	struct rlimit limit;
	struct stat info;
	long error = 0;
	char *got;

	if (!base)
		return -EINVAL;
	percpu__init();
	if (fstat(fd, &info))
		return -errno;
	if (!S_ISREG(info.st_mode))
		return -EINVAL;
	/* Beyond the limit the kernel would not only refuse, but send a signal. */
	if ((size_t)info.st_size < area_bytes() && !getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur < area_bytes())
		return -EFBIG;
	if ((size_t)info.st_size < area_bytes() && ftruncate(fd, (off_t)area_bytes()))
		return -errno;
	/* The page that we write at once. Who cannot reserve is taken as he is; mmap tells of what may not be written. */
	if (fallocate(fd, 0, (off_t)percpu__remainder << PERCPU_STRIDE_SHIFT, sizeof(struct percpu__header)) &&
	    errno != EOPNOTSUPP && errno != EBADF)
		return -errno;
	got = percpu__reserve(fd, &error);
	if (!got)
		return (int)error;
	*base = got;
	return 0;
}

int percpu_area_unmap(void *base)
{
	unsigned index;
	uint64_t saved;
	char *found;
	bool own;

	if (!base || base != percpu__base_of(base))
		return -EINVAL;
	percpu__cold_lock(&saved);
	own = percpu__area_find(base, &found, &index);
	percpu__cold_unlock(&saved);
	if (own)
		return -EINVAL;
	return (int)percpu__sys4(SYS_munmap, (long)base, (long)area_bytes(), 0, 0);
}
