/* SPDX-License-Identifier: MIT */
/* The memory of one run of `percpu stat`; see session.h. Compiled into the command and into the preloaded object. */
#include "cli/session.h"

_Static_assert(SESSION_AT_HEADER + sizeof(struct session_header) <= SESSION_AT_COUNTERS, "header");
_Static_assert(SESSION_AT_COUNTERS + 8 * SESSION_COUNTS <= SESSION_AT_BYTES, "counters");
_Static_assert(SESSION_AT_BYTES + 8 * SESSION_CLASSES <= SESSION_AT_SIZES, "bytes");
_Static_assert(SESSION_AT_SIZES + 8 * PERCPU_HISTOGRAM_BUCKETS(SESSION_PRECISION) <= PERCPU_STRIDE, "sizes");

#define X_NAME(id, unit, name, help) name " "
static const char layout[] = SESSION_COUNTERS(X_NAME);

uint64_t session_layout(void)
{
	const uint64_t numbers[] = { PERCPU_STRIDE,       SESSION_PRECISION, SESSION_CLASSES,
				     SESSION_AT_COUNTERS, SESSION_AT_BYTES,  SESSION_AT_SIZES };
	uint64_t hash = 0xcbf29ce484222325ULL;

	for (size_t i = 0; i < sizeof(layout); i++)
		hash = (hash ^ (unsigned char)layout[i]) * 0x100000001b3ULL;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		hash = (hash ^ numbers[i]) * 0x100000001b3ULL;
	return hash;
}
