/* SPDX-License-Identifier: MIT */
/*
 * The layout of an area, for the layers that work on its gates, and the list of all areas.
 */
#ifndef PERCPU_SRC_AREA_H
#define PERCPU_SRC_AREA_H

#include <percpu/area.h>

/* One gate; see src/gate/gate.c for who writes what. In every copy of every area. */
struct percpu__gate {
	uint32_t word;    /* read by every section: 0 is open */
	uint32_t lockers; /* threads that wait to hold it; atomic */
	uint32_t passes;  /* hand-overs since it was last open; the holder's */
	uint32_t unused;
};

/* The first bytes of each copy. */
struct percpu__header {
	struct percpu__gate by_id;
	struct percpu__gate by_cpu;
	uint32_t
		gated; /* in the remainder's copy only: 1 + the highest index whose gate was ever taken; atomic, grows */
	uint32_t unused[7];
};

#define PERCPU__SHUT 8U /* gate word of the remainder: never open to sections */

_Static_assert(offsetof(struct percpu__header, by_id) == PERCPU__GATE_BY_ID, "headers and library agree");
_Static_assert(offsetof(struct percpu__header, by_cpu) == PERCPU__GATE_BY_CPU, "headers and library agree");
_Static_assert(sizeof(struct percpu__header) == 64, "reserved at the start of each copy");

static inline char *percpu__base_of(const void *object)
{
	return (char *)((uintptr_t)object & ~(uintptr_t)(PERCPU_STRIDE - 1));
}

static inline struct percpu__header *percpu__header_of(const void *base, unsigned index)
{
	return (struct percpu__header *)(void *)((char *)(uintptr_t)base + ((size_t)index << PERCPU_STRIDE_SHIFT));
}

/*
 * One lock for the list of areas, their bitmaps and the registry; blocks all signals. The thread that forks owns it from
 * its prepare handler on and may enter again.
 */
PERCPU_HIDDEN void percpu__cold_lock(uint64_t *saved);
PERCPU_HIDDEN void percpu__cold_unlock(const uint64_t *saved);

/* Defined in src/gate/fork.c. The thread that is forking, by the address of its private data; 0 if none. */
extern PERCPU_HIDDEN uintptr_t percpu__forker;
extern PERCPU_HIDDEN uint32_t percpu__cold_word;

/* Under the lock: calls visit for the base of each area. */
PERCPU_HIDDEN void percpu__each_area(void (*visit)(char *base, void *arg), void *arg);

/* Under the lock: whether an address lies in an area; its base and index, if so. */
PERCPU_HIDDEN bool percpu__area_find(const void *address, char **base, unsigned *index);

/* Reserves copies at a multiple of the stride. fd -1: private memory. Returns NULL or sets *error to -errno. */
PERCPU_HIDDEN char *percpu__reserve(int fd, long *error);

#endif
