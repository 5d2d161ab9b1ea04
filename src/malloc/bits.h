/* SPDX-License-Identifier: MIT */
/*
 * Bitmaps with a bit for each page of a region; operations on the bits [from, to).
 */
#ifndef PERCPU_SRC_MALLOC_BITS_H
#define PERCPU_SRC_MALLOC_BITS_H

#include "malloc/heap.h"

#define REGION_WORDS (REGION_PAGES / 64)

/* The bits of word @w that are in [from, to). */
static inline uint64_t percpu__bits_mask(unsigned w, unsigned from, unsigned to)
{
	unsigned first = w * 64 < from ? from - w * 64 : 0, last = w * 64 + 64 < to ? 64 : to - w * 64;

	return (last - first == 64 ? ~UINT64_C(0) : (UINT64_C(1) << (last - first)) - 1) << first;
}

static inline void percpu__bits_set(uint64_t *bits, unsigned from, unsigned to)
{
	for (unsigned w = from / 64; w * 64 < to; w++)
		bits[w] |= percpu__bits_mask(w, from, to);
}

static inline void percpu__bits_clear(uint64_t *bits, unsigned from, unsigned to)
{
	for (unsigned w = from / 64; w * 64 < to; w++)
		bits[w] &= ~percpu__bits_mask(w, from, to);
}

static inline unsigned percpu__bits_count(const uint64_t *bits, unsigned from, unsigned to)
{
	unsigned count = 0;

	for (unsigned w = from / 64; w * 64 < to; w++)
		count += (unsigned)__builtin_popcountl(bits[w] & percpu__bits_mask(w, from, to));
	return count;
}

static inline bool percpu__bits_any(const uint64_t *bits)
{
	uint64_t all = 0;

	for (unsigned w = 0; w < REGION_WORDS; w++)
		all |= bits[w];
	return all != 0;
}

/* The next bit from `i` on that is as asked; REGION_PAGES if there is none. */
static inline unsigned percpu__bits_next(const uint64_t *bits, unsigned i, bool set)
{
	while (i < REGION_PAGES) {
		uint64_t word = (set ? bits[i / 64] : ~bits[i / 64]) >> (i % 64);

		if (word)
			return i + (unsigned)__builtin_ctzl(word);
		i = (i / 64 + 1) * 64;
	}
	return REGION_PAGES;
}

/* Behind the last bit that is set; @from if there is none. */
static inline unsigned percpu__bits_end(const uint64_t *bits, unsigned from, unsigned to)
{
	for (unsigned w = (to + 63) / 64; w * 64 > from; w--) {
		uint64_t word = bits[w - 1] & percpu__bits_mask(w - 1, from, to);

		if (word)
			return w * 64 - (unsigned)__builtin_clzl(word);
	}
	return from;
}

#endif
