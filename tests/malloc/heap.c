/* SPDX-License-Identifier: MIT */
/*
 * The page heap alone, linked statically: spans of all sizes on several threads beside a plain model, what it notes of its
 * regions, what it gives back and keeps, failing system calls, nodes, fork.
 */
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "../unit/sandbox.h"
#include "../unit/unit.h"
#include "malloc/options.h"
#include "malloc/region.h"

#define MIB     ((size_t)1 << 20)
#define THREADS 4
#define HELD    64 /* spans of a thread */
#define MOST    ((size_t)1 << 17)

/* Who has a page: 0 nobody. */
static uint8_t owners[MOST];
static unsigned wrong;
static bool with_nodes;

static void complain(const char *what, uint64_t a, uint64_t b)
{
	if (__atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED) < 10)
		fprintf(stderr, "%s: %llu, %llu\n", what, (unsigned long long)a, (unsigned long long)b);
}

static void claim(uint64_t page, uint64_t pages, uint8_t owner)
{
	for (uint64_t i = page; i < page + pages && i < MOST; i++) {
		uint8_t was = __atomic_exchange_n(&owners[i], owner, __ATOMIC_RELAXED);

		if ((was != 0) == (owner != 0))
			complain("a page changes hands", i, was);
	}
}

/* Each page has its number in its first and last word. */
static void write_pages(uint64_t page, uint64_t from, uint64_t pages, uint64_t tag)
{
	for (uint64_t i = from; i < pages; i++) {
		uint64_t *words = (uint64_t *)(void *)percpu__page_address(page + i);

		words[0] = tag + i;
		words[PAGE / 8 - 1] = ~(tag + i);
	}
}

static void check_pages(uint64_t page, uint64_t pages, uint64_t tag)
{
	for (uint64_t i = 0; i < pages; i++) {
		const uint64_t *words = (const uint64_t *)(const void *)percpu__page_address(page + i);

		if (words[0] != tag + i || words[PAGE / 8 - 1] != ~(tag + i)) {
			complain("a page lost what was in it", page + i, words[0]);
			return;
		}
	}
}

static void check_zero(const struct percpu__span *span)
{
	for (uint64_t i = 0; i < span->pages; i++) {
		const uint64_t *words = (const uint64_t *)(const void *)percpu__page_address(span->page + i);

		if (i == span->dirty && i < span->dirty_end) {
			i = span->dirty_end - 1;
			continue;
		}
		for (size_t k = 0; k < PAGE / 8; k += i % 16 ? PAGE / 8 - 1 : 1)
			if (words[k]) {
				complain("a page that should be zero is not", span->page + i, k);
				return;
			}
	}
}

struct actor {
	unsigned id;
	uint64_t random;
	unsigned turns;
	struct percpu__span *spans[HELD];
	uint64_t tags[HELD];
};

static size_t some_pages(uint64_t *random)
{
	uint64_t word = unit_random(random);
	unsigned kind = (unsigned)(word % 16);

	word >>= 8;
	return kind < 9 ? 1 + word % 8 : kind < 13 ? 1 + word % 100 : kind < 15 ? 1 + word % 600 : 1 + word % 2500;
}

static void take(struct actor *a, unsigned i)
{
	size_t pages = some_pages(&a->random), align = (size_t)1 << unit_random(&a->random) % 10, fresh = 0;
	unsigned kind = (unsigned)(unit_random(&a->random) % 8), node = with_nodes ? a->id % 3 : 0;
	struct percpu__span *span;

	if (kind == 0)
		span = percpu__span_new_roomy(pages, node, &fresh), align = 1;
	else
		span = percpu__span_new(pages, align = kind < 6 ? 1 : align, kind % 2 ? 5 : 0, node);
	if (!span) {
		complain("no memory", pages, align);
		return;
	}
	if ((uintptr_t)percpu__page_address(span->page) % (align << PAGE_LOG))
		complain("not aligned", span->page, align);
	if (span->pages != pages || percpu__span_of(percpu__page_address(span->page)) != span || fresh > pages)
		complain("not the span", span->page, pages);
	if (span->class && percpu__span_of(percpu__page_address(span->page + pages) - 1) != span)
		complain("not the span of its last page", span->page, pages);
	for (uint64_t p = span->page; p < span->page + pages; p += REGION_PAGES)
		if (percpu__regions.all[p / REGION_PAGES].node != node)
			complain("memory of another node", p, node);
	claim(span->page, pages, (uint8_t)(a->id + 1));
	if (!span->class)
		check_zero(span);
	a->spans[i] = span;
	a->tags[i] = unit_random(&a->random);
	write_pages(span->page, 0, pages, a->tags[i]);
}

static void change(struct actor *a, unsigned i)
{
	struct percpu__span *span = a->spans[i], *other;
	size_t pages = span->pages, more, fresh;

	if (span->class)
		return;
	more = pages + some_pages(&a->random);
	switch (unit_random(&a->random) % 3) {
	case 0:
		more = pages - unit_random(&a->random) % pages;
		if (more == pages)
			return;
		claim(span->page + more, pages - more, 0);
		percpu__span_cut(span, more);
		break;
	case 1:
		if (!percpu__span_grow(span, more))
			return;
		claim(span->page + pages, more - pages, (uint8_t)(a->id + 1));
		write_pages(span->page, pages, more, a->tags[i]);
		break;
	default:
		other = percpu__span_new_roomy(more, span->node, &fresh);
		if (!other) {
			complain("no memory", more, 0);
			return;
		}
		claim(other->page, more, (uint8_t)(a->id + 1));
		fresh = percpu__span_move(other, span, pages);
		check_pages(other->page, fresh, a->tags[i]);
		write_pages(other->page, fresh, more, a->tags[i]);
		claim(span->page, pages, 0);
		percpu__span_free(span);
		a->spans[i] = span = other;
	}
	if (span->pages != more)
		complain("not as many pages as asked for", span->pages, more);
}

static void drop(struct actor *a, unsigned i)
{
	struct percpu__span *span = a->spans[i];

	check_pages(span->page, span->pages, a->tags[i]);
	claim(span->page, span->pages, 0);
	percpu__span_free(span);
	a->spans[i] = NULL;
}

static void *act(void *arg)
{
	struct actor *a = arg;

	for (unsigned turn = 0; turn < a->turns; turn++) {
		unsigned i = (unsigned)(unit_random(&a->random) % HELD);

		if (!a->spans[i])
			take(a, i);
		else if (unit_random(&a->random) % 4 == 0)
			change(a, i);
		else
			drop(a, i);
		/* All at once, now and then. */
		for (i = 0; turn % 1000 == 999 && i < HELD; i++)
			if (a->spans[i])
				drop(a, i);
	}
	for (unsigned i = 0; i < HELD; i++)
		if (a->spans[i])
			drop(a, i);
	return NULL;
}

/* --- what is noted of regions, seen as a whole --- */

static unsigned longest_run(const struct region *r)
{
	unsigned longest = 0, run = 0;

	for (unsigned i = 0; i < REGION_PAGES; i++) {
		run = r->used[i / 64] >> i % 64 & 1 ? 0 : run + 1;
		longest = run > longest ? run : longest;
	}
	return longest;
}

static void check_region(uint32_t i, uint64_t *used, uint64_t *idle)
{
	const struct region *r = &percpu__regions.all[i];
	unsigned count = percpu__bits_count(r->used, 0, REGION_PAGES);

	for (unsigned w = 0; w < REGION_WORDS; w++) {
		*idle += (uint64_t)__builtin_popcountll(r->backed[w] & ~r->used[w]) << PAGE_LOG;
		if (r->written[w] & ~r->backed[w])
			complain("written pages without memory", i, w);
	}
	*used += (uint64_t)count << PAGE_LOG;
	if (r->count != count)
		complain("pages in use", r->count, count);
	if (r->free != (count == 0))
		complain("a region is lost", i, count);
	if (r->longest != (r->held || !count ? 0 : longest_run(r)))
		complain("longest run", r->longest, longest_run(r));
	if (r->idle != (r->free && percpu__bits_any(r->backed)))
		complain("idle", i, r->idle);
	if (r->held && !count)
		complain("held", i, 0);
	if (!r->first)
		return;
	for (uint32_t k = 0; k < r->run; k++)
		if (!percpu__regions.all[i + k].free || (k && percpu__regions.all[i + k].first))
			complain("a run", i, k);
	if (percpu__regions.all[i + r->run - 1].run != r->run || (i && percpu__regions.all[i - 1].free) ||
	    (i + r->run < percpu__regions.top && percpu__regions.all[i + r->run].free))
		complain("ends of a run", i, r->run);
}

static void check_all(bool quiet)
{
	uint64_t used = 0, idle = 0;

	percpu__heap_lock();
	for (uint32_t i = 0; i < percpu__regions.top; i++)
		check_region(i, &used, &idle);
	if (percpu__heap_stats.used != used)
		complain("bytes in use", percpu__heap_stats.used, used);
	if (percpu__heap_stats.free != idle)
		complain("bytes free", percpu__heap_stats.free, idle);
	percpu__heap_unlock();
	if (quiet && used)
		complain("something is left", used, 0);
}

static void run_actors(unsigned turns)
{
	struct actor actors[THREADS] = { 0 };

	for (unsigned i = 0; i < THREADS; i++) {
		actors[i].id = i;
		actors[i].random = 7 + i;
		actors[i].turns = turns;
	}
	unit_threads(THREADS, act, actors, sizeof(*actors));
}

static void test_spans(void **state)
{
	(void)state;
	run_actors(6000);
	check_all(true);
	assert_int_equal(wrong, 0);
}

static void test_huge(void **state)
{
	(void)state;
	percpu__malloc_options.huge = PERCPU__WHEN_ALWAYS;
	run_actors(1500);
	percpu__malloc_options.huge = PERCPU__WHEN_NEVER;
	run_actors(1500);
	percpu__malloc_options.huge = PERCPU__WHEN_AUTO;
	check_all(true);
	assert_int_equal(wrong, 0);
}

/* Where they are slow, they are tried less and less often; as usual again where they are not. */
static void test_slow_huge_pages(void **state)
{
	static struct percpu__span *spans[200];
	unsigned huge[2] = { 0, 0 };

	(void)state;
	percpu__heap_lock();
	percpu__heap_release(SIZE_MAX, 0);
	percpu__heap_unlock();
	for (unsigned i = 0; i < UNIT_COUNT(spans); i++) {
		spans[i] = percpu__span_new(REGION_PAGES, 1, 1, 0);
		assert_non_null(spans[i]);
		if (i < 10 || percpu__regions.all[spans[i]->page / REGION_PAGES].advice != ADVICE_HUGE)
			continue;
		huge[i / 100]++;
		/* What it really took does not count. */
		for (unsigned k = 0; k < 3; k++)
			percpu__region_huge_took(i < 100 ? 1000000000 : 1000);
	}
	/* Eight, sixteen, then 32 without; and then each. */
	assert_in_range(huge[0], 1, 5);
	assert_in_range(huge[1], 60, 100);
	for (unsigned i = 0; i < UNIT_COUNT(spans); i++)
		percpu__span_free(spans[i]);
	check_all(true);
	assert_int_equal(wrong, 0);
}

static void test_nodes(void **state)
{
	(void)state;
	with_nodes = true;
	run_actors(3000);
	with_nodes = false;
	check_all(true);
	assert_int_equal(wrong, 0);
	percpu__malloc_options.nodes = 2;
	assert_in_range(percpu__heap_node(), 0, 1);
	percpu__malloc_options.nodes = 0;
	assert_in_range(percpu__heap_node(), 0, NODES - 1);
}

/* --- what is kept --- */

static void burst(struct percpu__span **spans, unsigned n, size_t pages)
{
	for (unsigned i = 0; i < n; i++) {
		spans[i] = percpu__span_new(pages, 1, 1, 0);
		assert_non_null(spans[i]);
		write_pages(spans[i]->page, 0, pages, i);
	}
}

static void end_burst(struct percpu__span **spans, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		percpu__span_free(spans[i]);
}

/* 64 MiB in spans of 64 KiB. */
#define BURST 1024

static void test_release(void **state)
{
	static struct percpu__span *spans[BURST], *block;
	uint32_t start, ms;

	(void)state;
	/* What others of this process wanted again is long ago. */
	usleep(2100000);
	burst(spans, 1, 8);
	end_burst(spans, 1);
	for (unsigned i = 0; i < 10 && (!i || percpu__heap_stats.free >= 16 * MIB); i++) {
		usleep(1100000);
		burst(spans, BURST, 8);
		/* What was only just taken would be kept. */
		usleep(1100000);
		end_burst(spans, BURST);
	}
	assert_in_range(percpu__heap_stats.free, 8 * MIB, 16 * MIB);
	/* Soon again: it stays. */
	start = percpu__heap_ms();
	burst(spans, BURST, 8);
	end_burst(spans, BURST);
	ms = percpu__heap_ms() - start;
	if (ms < 500)
		assert_in_range(percpu__heap_stats.free, 40 * MIB, 80 * MIB);
	percpu__heap_lock();
	assert_in_range(percpu__heap_release(SIZE_MAX, 0), 8 * MIB, 80 * MIB);
	percpu__heap_unlock();
	assert_int_equal(percpu__heap_stats.free, 0);
	/* Much at once: a bounded part, the rest as others come by. */
	usleep(1100000);
	block = percpu__span_new(200 * MIB >> PAGE_LOG, 1, 0, 0);
	assert_non_null(block);
	usleep(1100000);
	percpu__span_free(block);
	assert_in_range(percpu__heap_stats.free, 130 * MIB, 150 * MIB);
	for (unsigned i = 0; i < 80; i++) {
		burst(spans, 1, 1);
		end_burst(spans, 1);
	}
	assert_in_range(percpu__heap_stats.free, 8 * MIB, 100 * MIB);
	check_all(true);
	assert_int_equal(wrong, 0);
}

/* Given back is given back: the kernel says how much is there. */
static void test_release_is_real(void **state)
{
	struct percpu__span *span = percpu__span_new(2 * REGION_PAGES, 1, 0, 0);
	unsigned char there[2 * REGION / 4096];
	char *at = percpu__page_address(span->page);
	size_t count = 0;

	(void)state;
	memset(at, 1, 2 * REGION);
	percpu__span_free(span);
	percpu__heap_lock();
	percpu__heap_release(SIZE_MAX, 0);
	percpu__heap_unlock();
	assert_int_equal(mincore(at, 2 * REGION, there), 0);
	for (size_t i = 0; i < sizeof(there); i++)
		count += there[i] & 1;
	assert_int_equal(count, 0);
	check_all(true);
	assert_int_equal(wrong, 0);
}

/* --- no memory --- */

static size_t fill(struct percpu__span **spans, size_t most, size_t pages)
{
	size_t n = 0;

	while (n < most && (spans[n] = percpu__span_new(pages, 1, n % 2, 0))) {
		write_pages(spans[n]->page, 0, pages, n);
		n++;
	}
	return n;
}

static int without_mprotect(void)
{
	static struct percpu__span *spans[MOST];
	size_t n = fill(spans, 100, 100), again;
	uint32_t top;

	while (n)
		percpu__span_free(spans[--n]);
	top = percpu__regions.top;
	if (sandbox_deny(SYS_mprotect, ENOMEM))
		return UNIT_SKIPPED;
	n = fill(spans, MOST, 100);
	if (n < 50 || n > 300 || percpu__regions.top != top || percpu__span_new(REGION_PAGES * 400, 1, 0, 0))
		return 1;
	check_all(false);
	for (size_t i = 0; i < n; i++) {
		check_pages(spans[i]->page, 100, i);
		percpu__span_free(spans[i]);
	}
	again = fill(spans, MOST, 100);
	check_all(false);
	return wrong || again < n;
}

/* What is too much is refused, and nothing is half made. */
static int without_data(void)
{
	static struct percpu__span *spans[MOST];
	struct rlimit limit = { 64 * MIB, RLIM_INFINITY };
	size_t n, again;
	uint32_t top;

	if (setrlimit(RLIMIT_DATA, &limit))
		return UNIT_SKIPPED;
	top = percpu__regions.top;
	if (percpu__span_new(REGION_PAGES * (top + 100UL), 1, 0, 0) || percpu__regions.top != top)
		return 1;
	n = fill(spans, MOST, 100);
	if (!n || n == MOST)
		return 2;
	check_all(false);
	for (size_t i = 0; i < n; i++)
		percpu__span_free(spans[i]);
	again = fill(spans, MOST, 100);
	check_all(false);
	return wrong ? 3 : again < n ? 4 : 0;
}

/* Memory that may not be given back, as it is locked: it stays usable, and nobody asks again and again. */
static int without_madvise(void)
{
	if (sandbox_deny(SYS_madvise, EINVAL))
		return UNIT_SKIPPED;
	run_actors(500);
	check_all(true);
	return wrong != 0;
}

static int without_mremap(void)
{
	if (sandbox_deny(SYS_mremap, ENOSYS))
		return UNIT_SKIPPED;
	run_actors(500);
	check_all(true);
	return wrong != 0;
}

static void in_child(int (*what)(void))
{
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		alarm(100);
		_exit(what());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == UNIT_SKIPPED)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_without_mprotect(void **state)
{
	(void)state;
	in_child(without_mprotect);
}

static void test_without_data(void **state)
{
	(void)state;
	in_child(without_data);
}

static void test_without_madvise(void **state)
{
	(void)state;
	in_child(without_madvise);
}

static void test_without_mremap(void **state)
{
	(void)state;
	in_child(without_mremap);
}

/* --- fork, while others give memory back --- */

static bool over;

static void *burst_again_and_again(void *arg)
{
	static __thread struct percpu__span *spans[BURST / 4];

	while (!__atomic_load_n(&over, __ATOMIC_RELAXED)) {
		for (unsigned i = 0; i < BURST / 4; i++) {
			spans[i] = percpu__span_new(32, 1, 1, 0);
			write_pages(spans[i]->page, 0, 1, i);
		}
		for (unsigned i = 0; i < BURST / 4; i++)
			percpu__span_free(spans[i]);
		percpu__heap_lock();
		percpu__heap_release(SIZE_MAX, 0);
		percpu__heap_unlock();
	}
	return arg;
}

static void test_fork(void **state)
{
	pthread_t threads[2];
	int status;

	(void)state;
	for (unsigned i = 0; i < UNIT_COUNT(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, burst_again_and_again, NULL), 0);
	for (unsigned i = 0; i < 50; i++) {
		pid_t pid;

		percpu__heap_lock();
		pid = fork();
		if (pid == 0) {
			percpu__heap_relock();
			percpu__heap_unlock();
			check_all(false);
			_exit(wrong != 0);
		}
		percpu__heap_unlock();
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
	__atomic_store_n(&over, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < UNIT_COUNT(threads); i++)
		pthread_join(threads[i], NULL);
	check_all(true);
	assert_int_equal(wrong, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		/* While the heap is small. */
		cmocka_unit_test(test_without_mprotect),
		cmocka_unit_test(test_without_data),
		cmocka_unit_test(test_spans),
		cmocka_unit_test(test_huge),
		cmocka_unit_test(test_slow_huge_pages),
		cmocka_unit_test(test_nodes),
		cmocka_unit_test(test_release_is_real),
		cmocka_unit_test(test_release),
		cmocka_unit_test(test_without_madvise),
		cmocka_unit_test(test_without_mremap),
		cmocka_unit_test(test_fork),
	};

	if (percpu__heap_start())
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
