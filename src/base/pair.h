/* SPDX-License-Identifier: MIT */
/*
 * Compare and swap of two neighbouring words, for what must change together and is read word by word.
 */
#ifndef PERCPU_SRC_PAIR_H
#define PERCPU_SRC_PAIR_H

#include <stdbool.h>
#include <stdint.h>

/* Two words that lie at a multiple of 16: if they are the first two, makes them the second two. Acquires and releases. */
static inline bool percpu__swap_pair(uint64_t *at, uint64_t first, uint64_t second, uint64_t new_first,
				     uint64_t new_second)
{
	bool done;
#if defined __x86_64__
	__asm__ __volatile__("lock cmpxchg16b %1"
			     : "=@ccz"(done), "+m"(*(unsigned __int128 *)(void *)at), "+a"(first), "+d"(second)
			     : "b"(new_first), "c"(new_second)
			     : "memory");
#elif defined __aarch64__
	uint64_t was_first, was_second;
	uint32_t failed;

	__asm__ __volatile__("1:\n\tldaxp %[was_first], %[was_second], [%[at]]\n\t"
			     "cmp %[was_first], %[first]\n\tccmp %[was_second], %[second], #0, eq\n\tb.ne 2f\n\t"
			     "stlxp %w[failed], %[new_first], %[new_second], [%[at]]\n\tcbnz %w[failed], 1b\n"
			     "2:\n\tcset %w[failed], eq"
			     : [was_first] "=&r"(was_first), [was_second] "=&r"(was_second), [failed] "=&r"(failed)
			     : [at] "r"(at), [first] "r"(first), [second] "r"(second), [new_first] "r"(new_first),
			       [new_second] "r"(new_second)
			     : "memory", "cc");
	done = failed != 0;
#else
	unsigned __int128 *pair = (unsigned __int128 *)(void *)at;
	union {
		uint64_t words[2];
		unsigned __int128 pair;
	} from = { .words = { first, second } }, to = { .words = { new_first, new_second } };

	done = __atomic_compare_exchange_n(pair, &from.pair, to.pair, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
#endif
	return done;
}

#endif
