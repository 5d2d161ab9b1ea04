/* SPDX-License-Identifier: MIT */
/* A section that compilers like to add to; BARE lets them. */
#include <percpu/csection.h>

#ifdef BARE
#undef PERCPU__C_PURE
#define PERCPU__C_PURE
#endif

struct shelf {
	uint64_t count, slots[32];
};
struct wish {
	uint64_t want, list[8];
};

PERCPU_SECTION(put, struct shelf, shelf, struct wish, wish)
{
	volatile uint64_t sums[8];
	uint64_t sum = 0;

	for (unsigned i = 0; i < 8; i++)
		sums[i] = wish->list[i] + shelf->slots[wish->want & 31];
	for (unsigned i = 0; i < 8; i++)
		sum += sums[(i + wish->want) & 7];
	return percpu_commit(&shelf->slots[shelf->count & 31], sum);
}

bool use(struct shelf *shelves, struct wish *wish)
{
	return put(shelves, wish);
}
