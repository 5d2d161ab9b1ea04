/* SPDX-License-Identifier: MIT */
/*
 * Huge pages: which regions have them, and whether they are worth it. Under the heap's lock, but for what they took.
 *
 * Small objects of large heaps lie on huge pages, as a fault costs them several times less per byte. Small heaps do not, and
 * large blocks do not: who asks for much may use little of it.
 */
#include <sys/mman.h>

#include "base/sys.h"
#include "malloc/options.h"
#include "malloc/region.h"

/* From so much in use on. */
#define HUGE_USED ((uint64_t)64 << 20)
/*
 * A huge page that took longer than this cost more than small ones, as where the machine is a virtual one that gives its host
 * large free blocks back. Then regions do without, eight at first and up to 512, before the next one tries again.
 */
#define HUGE_NS        1000000U
#define HUGE_SKIP      8U
#define HUGE_SKIP_MOST 512U
/* Each place where the advice changes is one where the kernel's list of mappings has one more. It has 65530 at most. */
#define CHANGES_MOST 8192U

static uint32_t huge_skip, huge_left; /* regions without huge pages, in a row: how many, and how many to come */
static uint32_t changes;              /* of advice, from one region to the next */

static struct region *at(uint32_t i)
{
	return &percpu__regions.all[i];
}

/* It does not change what memory there is. */
void percpu__region_advise(uint32_t i, enum advice advice)
{
	static const int values[] = { [ADVICE_HUGE] = MADV_HUGEPAGE, [ADVICE_SMALL] = MADV_NOHUGEPAGE };
	struct region *r = at(i);
	unsigned before = i ? at(i - 1)->advice : ADVICE_NONE,
		 after = i + 1 < percpu__regions.top ? at(i + 1)->advice : ADVICE_NONE;

	if (r->advice == advice || (changes >= CHANGES_MOST && before != advice && after != advice))
		return;
	if (percpu__sys4(SYS_madvise, (long)percpu__page_address((uint64_t)i * REGION_PAGES), REGION, values[advice],
			 0))
		return;
	changes += (uint32_t)((before != advice) + (after != advice));
	changes -= (uint32_t)((before != r->advice) + (after != r->advice));
	r->advice = (uint8_t)advice;
}

void percpu__region_huge_took(uint64_t ns)
{
	uint32_t skip = 0;

	if (ns > HUGE_NS) {
		skip = 2 * __atomic_load_n(&huge_skip, __ATOMIC_RELAXED);
		skip = skip < HUGE_SKIP ? HUGE_SKIP : skip < HUGE_SKIP_MOST ? skip : HUGE_SKIP_MOST;
	}
	__atomic_store_n(&huge_skip, skip, __ATOMIC_RELAXED);
	__atomic_store_n(&huge_left, skip, __ATOMIC_RELAXED);
}

bool percpu__region_wants_huge(bool small)
{
	uint32_t left;

	if (percpu__malloc_options.huge == PERCPU__WHEN_ALWAYS)
		return true;
	if (percpu__malloc_options.huge != PERCPU__WHEN_AUTO || !small || percpu__heap_stats.used < HUGE_USED)
		return false;
	left = __atomic_load_n(&huge_left, __ATOMIC_RELAXED);
	if (left)
		__atomic_store_n(&huge_left, left - 1, __ATOMIC_RELAXED);
	return !left;
}
