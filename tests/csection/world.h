/* SPDX-License-Identifier: MIT */
/* What the units share, a section among it. Included twice by some, as headers are. */
#ifndef CSECTION_WORLD_H
#define CSECTION_WORLD_H

#include <percpu.h>
#include <percpu/csection.h>

enum { COMMON, FIRST, SECOND, PLUGIN, WORDS };

struct cell {
	uint64_t word[WORDS];
};

struct call {
	uint64_t turns, seen;
};

/* Each unit has one of its own, of this name. */
PERCPU_SECTION(common, struct cell, cell, struct call, call)
{
	call->seen = cell->word[COMMON];
	return percpu_commit(&cell->word[COMMON], call->seen + 1);
}

#ifdef __cplusplus
extern "C" {
#endif
uint64_t first_work(struct cell *cells, uint64_t n, uint64_t turns);
uint64_t first_fast(struct cell *cells, uint64_t n);
uint64_t second_work(struct cell *cells, uint64_t n, uint64_t turns);
uint64_t second_fast(struct cell *cells, uint64_t n);
uint64_t plugin_work(struct cell *cells, uint64_t n, uint64_t turns);
uint64_t plugin_fast(struct cell *cells, uint64_t n);
#ifdef __cplusplus
}
#endif

#endif
