/* SPDX-License-Identifier: MIT */
/* The version of the library, from the numbers in its header. */
#include <percpu/base.h>

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)

const char *percpu_version(void)
{
	return TEXT(PERCPU_VERSION_MAJOR) "." TEXT(PERCPU_VERSION_MINOR) "." TEXT(PERCPU_VERSION_PATCH);
}
