/* SPDX-License-Identifier: MIT */
/* C++: sections of one name in two namespaces and in none, used in inline functions and templates; linked with a second unit. */
#include "world.h"
#include "world.h"

namespace one {
PERCPU_SECTION(add, struct cell, cell, struct call, call)
{
	call->seen = 1;
	return percpu_commit(&cell->word[FIRST], cell->word[FIRST] + 1);
}
}

namespace two {
namespace {
PERCPU_SECTION(add, struct cell, cell, struct call, call)
{
	call->seen = 2;
	return percpu_commit(&cell->word[FIRST], cell->word[FIRST] + 1);
}
}
}

PERCPU_SECTION(add, struct cell, cell, struct call, call)
{
	call->seen = 3;
	return percpu_commit(&cell->word[FIRST], cell->word[FIRST] + 1);
}

template <int N> struct user {
	static inline uint64_t use(cell *cells)
	{
		call call = { 0, 0 };
		uint64_t seen = 0;

		add(cells, &call), seen += call.seen;
		one::add(cells, &call), seen += call.seen;
		two::add(cells, &call), seen += call.seen;
		return seen;
	}
};

inline uint64_t either(cell *cells, uint64_t i)
{
	return i % 2 ? user<1>::use(cells) : user<2>::use(cells);
}

extern "C" uint64_t first_work(cell *cells, uint64_t n, uint64_t turns)
{
	uint64_t bad = 0;
	call call = { turns, 0 };

	for (uint64_t i = 0; i < n; i++)
		bad += (either(cells, i) != 6) + !common(cells, &call);
	return bad;
}

extern "C" uint64_t first_fast(cell *, uint64_t n)
{
	/* Asked for often, wanted once: an object of its own, so that the totals stay. */
	static cell *others = (cell *)percpu_alloc(sizeof(cell), 64);
	uint64_t done = 0;
	call call = { 0, 0 };

	for (uint64_t i = 0; i < n; i++) {
		done += percpu__try_c(&one::add__section, others, &call, PERCPU__BY_ID) != PERCPU__LEFT_WORD;
		done += percpu__try_c(&two::add__section, others, &call, PERCPU__BY_ID) != PERCPU__LEFT_WORD;
		done += percpu__try_c(&add__section, others, &call, PERCPU__BY_ID) != PERCPU__LEFT_WORD;
	}
	return done / 3;
}
