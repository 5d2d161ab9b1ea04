/* SPDX-License-Identifier: MIT */
/* Operation vectors: what each does, what is refused before anything is changed, and that they happen as one. */
#include "unit.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include "gate/gate.h"
#include "rseq/thread.h"
#include "sandbox.h"

#define BYTES 8192

static char *object;    /* per-CPU, BYTES each */
static char *elsewhere; /* per-CPU, in another area */

static char *at(unsigned index, size_t offset)
{
	return percpu_ptr(object, index) + offset;
}

static struct percpu_op op(enum percpu_opcode code, const void *dst, const void *src, uint32_t len)
{
	return (struct percpu_op){ .op = code, .len = len, .dst = (void *)(uintptr_t)dst, .src = src };
}

static struct percpu_op arithmetic(enum percpu_opcode code, const void *dst, uint64_t value, uint32_t len)
{
	return (struct percpu_op){ .op = code, .len = len, .dst = (void *)(uintptr_t)dst, .value = value };
}

static int one(struct percpu_op o, unsigned index)
{
	return percpu_opv(&o, 1, index);
}

static void fill(char *copies, int byte)
{
	percpu_for_each_index(index)
		memset(percpu_ptr(copies, index), byte, BYTES);
}

static bool is_filled(char *copies, int byte)
{
	bool good = true;

	percpu_for_each_index(index) {
		const char *copy = percpu_ptr(copies, index);

		good &= *copy == (char)byte && memcmp(copy, copy + 1, BYTES - 1) == 0;
	}
	return good;
}

static uint64_t result_of(enum percpu_opcode code, uint64_t number, uint64_t value)
{
	switch (code) {
	case PERCPU_OP_ADD:
		return number + value;
	case PERCPU_OP_OR:
		return number | value;
	case PERCPU_OP_AND:
		return number & value;
	case PERCPU_OP_XOR:
		return number ^ value;
	case PERCPU_OP_LSHIFT:
		return number << value;
	default:
		return number >> value;
	}
}

static void arithmetic_operations(void **state)
{
	static const uint32_t lengths[] = { 1, 2, 4, 8 };
	uint64_t seed = 5;

	(void)state;
	for (unsigned code = PERCPU_OP_ADD; code <= PERCPU_OP_RSHIFT; code++) {
		bool shifts = code == PERCPU_OP_LSHIFT || code == PERCPU_OP_RSHIFT;

		for (size_t l = 0; l < UNIT_COUNT(lengths); l++) {
			uint32_t len = lengths[l];
			uint64_t mask = len == 8 ? ~UINT64_C(0) : (UINT64_C(1) << 8 * len) - 1;

			/* At all alignments, on copies and on ordinary memory, with operands wider than the number. */
			for (size_t turn = 0; turn < 64; turn++) {
				char local[32];
				unsigned index = (unsigned)(turn % percpu_copies());
				char *target = turn % 5 ? at(index, 64 + turn % 16) : local + turn % 16;
				uint64_t number = unit_random(&seed) & mask, value = unit_random(&seed), got = 0;

				if (turn < 4)
					value = (uint64_t[]){ 0, 1, ~UINT64_C(0), mask }[turn];
				if (shifts)
					value = turn < 3 ? (uint64_t[]){ 0, 1, 8 * len - 1 }[turn] : value % (8 * len);
				memset(target - turn % 16, 0x77, 32);
				memcpy(target, (char *)&number, len);
				assert_int_equal(one(arithmetic(code, target, value, len), index), 0);
				memcpy((char *)&got, target, len);
				assert_int_equal(got, result_of(code, number, value) & mask);
				for (size_t i = 0; i < 32; i++)
					if (i < turn % 16 || i >= turn % 16 + len)
						assert_int_equal(*(target - turn % 16 + i), 0x77);
			}
		}
	}
	assert_int_equal(one(op(PERCPU_OP_MB, NULL, NULL, 0), 0), 0);
}

static void comparisons_and_copies(void **state)
{
	static char buffer[BYTES];
	uint64_t seed = 6;

	(void)state;
	for (uint32_t len = 0; len <= PERCPU_OPV_MAX_LEN; len += len < 70 ? 1 : 61) {
		for (size_t turn = 0; turn < 4; turn++) {
			unsigned index = (unsigned)((len + turn) % percpu_copies());
			char *copy = at(index, 100 + len % 13), *plain = buffer + len % 7;
			size_t byte;

			memset(at(index, 0), 0x33, BYTES);
			for (uint32_t i = 0; i < len; i++)
				plain[i] = (char)unit_random(&seed);
			assert_int_equal(one(op(PERCPU_OP_MEMCPY, copy, plain, len), index), 0);
			assert_memory_equal(copy, plain, len);
			assert_int_equal(copy[-1], 0x33);
			assert_int_equal(copy[len], 0x33);
			assert_int_equal(one(op(PERCPU_OP_COMPARE_EQ, copy, plain, len), index), 0);
			assert_int_equal(one(op(PERCPU_OP_COMPARE_EQ, plain, copy, len), index), 0);
			assert_int_equal(one(op(PERCPU_OP_COMPARE_NE, copy, plain, len), index), 1);
			if (!len)
				continue;
			byte = turn == 0 ? 0 : turn == 1 ? len - 1 : unit_random(&seed) % len;
			copy[byte] = (char)(copy[byte] ^ 1 << turn);
			assert_int_equal(one(op(PERCPU_OP_COMPARE_EQ, copy, plain, len), index), 1);
			assert_int_equal(one(op(PERCPU_OP_COMPARE_NE, copy, plain, len), index), 0);
			/* Back from the copy, and from ordinary to ordinary memory. */
			assert_int_equal(one(op(PERCPU_OP_MEMCPY, plain, copy, len), index), 0);
			assert_memory_equal(copy, plain, len);
			assert_int_equal(
				one(op(PERCPU_OP_MEMCPY, buffer + BYTES / 2 + 8, plain, len > 3000 ? 0 : len), index),
				0);
			assert_memory_equal(buffer + BYTES / 2 + 8, plain, len > 3000 ? 0 : len);
		}
	}
}

static void the_number_of_the_stop(void **state)
{
	uint64_t zero = 0, one_word = 1;

	(void)state;
	assert_int_equal(percpu_opv(NULL, 0, 0), 0);
	for (unsigned n = 1; n <= PERCPU_OPV_MAX_OPS; n++) {
		for (unsigned stop = 1; stop <= n + 1; stop++) {
			struct percpu_op ops[PERCPU_OPV_MAX_OPS];
			unsigned index = (n + stop) % percpu_copies();

			memset(at(index, 0), 0, 16 * 8);
			for (unsigned i = 0; i < n; i++)
				ops[i] = arithmetic(PERCPU_OP_ADD, at(index, i * 8), i + 1, 8);
			if (stop <= n)
				ops[stop - 1] = stop % 2 ? op(PERCPU_OP_COMPARE_EQ, &zero, &one_word, 8)
							 : op(PERCPU_OP_COMPARE_NE, &zero, &zero, 8);
			assert_int_equal(percpu_opv(ops, n, index), stop <= n ? stop : 0);
			/* Those before the stop are done, those behind it are not. */
			for (unsigned i = 0; i < n; i++)
				assert_int_equal(*(uint64_t *)(void *)at(index, i * 8), i + 1 < stop ? i + 1 : 0);
		}
	}
}

/* Each refusal beside good operations before and behind it, none of which may happen. */
static void assert_refused(struct percpu_op bad, unsigned index, int error)
{
	static char plain[64];

	for (unsigned n = 1; n <= 4; n++) {
		for (unsigned position = 0; position < n; position++) {
			struct percpu_op ops[4];

			for (unsigned i = 0; i < n; i++)
				ops[i] = i % 2 ? arithmetic(PERCPU_OP_ADD, plain, 1, 8)
					       : arithmetic(PERCPU_OP_XOR, at(index, 8), 0xff, 8);
			ops[position] = bad;
			memset(plain, 0x44, sizeof plain);
			memset(at(index, 0), 0x44, 64);
			if (percpu_opv(ops, n, index) != error)
				fail_msg("op %u len %u: not %d but %d", bad.op, bad.len, error,
					 percpu_opv(ops, n, index));
			assert_int_equal(plain[0], 0x44);
			assert_memory_equal(at(index, 0), plain, 64);
		}
	}
}

static void refused_numbers(void **state)
{
	static const uint32_t odd[] = { 0, 3, 5, 6, 7, 9, 12, 16, 4096, UINT32_MAX };
	struct percpu_op ops[PERCPU_OPV_MAX_OPS + 1];
	uint64_t word = 0;
	char *copy = at(0, 64);

	(void)state;
	for (size_t i = 0; i < UNIT_COUNT(ops); i++)
		ops[i] = arithmetic(PERCPU_OP_ADD, copy, 1, 8);
	memset(copy, 0, 8);
	assert_int_equal(percpu_opv(ops, PERCPU_OPV_MAX_OPS + 1, 0), -EINVAL);
	assert_int_equal(percpu_opv(ops, UINT32_MAX, 0), -EINVAL);
	assert_int_equal(percpu_opv(ops, 1, percpu_copies()), -EINVAL);
	assert_int_equal(percpu_opv(ops, 0, percpu_copies()), -EINVAL);
	assert_int_equal(percpu_opv(ops, 1, UINT32_MAX), -EINVAL);
	assert_int_equal(percpu_opv(NULL, 1, 0), -EFAULT);
	assert_int_equal(*(uint64_t *)(void *)copy, 0);
	assert_int_equal(percpu_opv(ops, PERCPU_OPV_MAX_OPS, 0), 0);
	assert_int_equal(*(uint64_t *)(void *)copy, PERCPU_OPV_MAX_OPS);

	assert_refused(op(PERCPU_OP_MB + 1, copy, &word, 8), 0, -EINVAL);
	assert_refused(op((enum percpu_opcode)UINT32_MAX, copy, &word, 8), 0, -EINVAL);
	for (unsigned code = PERCPU_OP_ADD; code <= PERCPU_OP_RSHIFT; code++) {
		struct percpu_op with_source = arithmetic(code, copy, 0, 8);

		for (size_t i = 0; i < UNIT_COUNT(odd); i++)
			assert_refused(arithmetic(code, copy, 0, odd[i]), 0, -EINVAL);
		with_source.src = &word;
		assert_refused(with_source, 0, -EINVAL);
		assert_refused(arithmetic(code, NULL, 0, 8), 0, -EFAULT);
	}
	for (uint32_t len = 1; len <= 8; len *= 2) {
		assert_refused(arithmetic(PERCPU_OP_LSHIFT, copy, 8 * len, len), 0, -EINVAL);
		assert_refused(arithmetic(PERCPU_OP_RSHIFT, copy, 8 * len, len), 0, -EINVAL);
		assert_refused(arithmetic(PERCPU_OP_RSHIFT, copy, UINT64_MAX, len), 0, -EINVAL);
		assert_refused(arithmetic(PERCPU_OP_LSHIFT, copy, UINT64_C(1) << 32, len), 0, -EINVAL);
	}
	for (unsigned code = PERCPU_OP_COMPARE_EQ; code <= PERCPU_OP_MEMCPY; code++) {
		struct percpu_op with_value = op(code, copy, &word, 8);

		with_value.value = 1;
		assert_refused(with_value, 0, -EINVAL);
		assert_refused(op(code, copy, &word, PERCPU_OPV_MAX_LEN + 1), 0, -EINVAL);
		assert_refused(op(code, copy, &word, UINT32_MAX), 0, -EINVAL);
		assert_refused(op(code, NULL, &word, 8), 0, -EFAULT);
		assert_refused(op(code, copy, NULL, 8), 0, -EFAULT);
	}
	assert_refused(op(PERCPU_OP_MB, copy, NULL, 0), 0, -EINVAL);
	assert_refused(op(PERCPU_OP_MB, NULL, &word, 0), 0, -EINVAL);
	assert_refused(op(PERCPU_OP_MB, NULL, NULL, 1), 0, -EINVAL);
	assert_refused(arithmetic(PERCPU_OP_MB, NULL, 1, 0), 0, -EINVAL);
	/* Overlapping copies, on either side; neighbours are none. */
	assert_refused(op(PERCPU_OP_MEMCPY, copy, copy, 1), 0, -EINVAL);
	assert_refused(op(PERCPU_OP_MEMCPY, copy + 7, copy, 8), 0, -EINVAL);
	assert_refused(op(PERCPU_OP_MEMCPY, copy, copy + 7, 8), 0, -EINVAL);
	assert_int_equal(one(op(PERCPU_OP_MEMCPY, copy + 8, copy, 8), 0), 0);
	assert_int_equal(one(op(PERCPU_OP_MEMCPY, copy, copy + 8, 8), 0), 0);
	/* A comparison with itself is allowed. */
	assert_int_equal(one(op(PERCPU_OP_COMPARE_EQ, copy, copy + 1, 8), 0), 1);
	assert_int_equal(one(op(PERCPU_OP_COMPARE_EQ, copy, copy, 8), 0), 0);
}

static void the_total_limit(void **state)
{
	static char plain[3][PERCPU_OPV_MAX_LEN];
	const uint32_t rest = PERCPU_OPV_MAX_TOTAL - PERCPU_OPV_MAX_LEN;
	struct percpu_op ops[3] = { op(PERCPU_OP_MEMCPY, plain[1], plain[0], PERCPU_OPV_MAX_LEN),
				    op(PERCPU_OP_COMPARE_EQ, plain[1], plain[0], rest) };

	(void)state;
	plain[0][0] = 1;
	assert_int_equal(percpu_opv(ops, 2, 0), 0);
	assert_int_equal(plain[1][0], 1);
	plain[0][0] = 2;
	ops[1].len = rest + 1;
	assert_int_equal(percpu_opv(ops, 2, 0), -E2BIG);
	assert_int_equal(plain[1][0], 1);
	ops[1].len = rest;
	ops[2] = arithmetic(PERCPU_OP_ADD, plain[2], 1, 1);
	assert_int_equal(percpu_opv(ops, 3, 0), -E2BIG);
	assert_int_equal(plain[2][0], 0);
	ops[1].len = rest - 1;
	assert_int_equal(percpu_opv(ops, 3, 0), 0);
	assert_int_equal(plain[2][0], 1);
}

static void refused_memory(void **state)
{
	char *pages = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *none = pages + 4096, *read_only = pages + 2 * 4096, *good = pages;
	char buffer[64] = { 0 };
	void *base;
	int fd;

	(void)state;
	assert_ptr_not_equal(pages, MAP_FAILED);
	assert_int_equal(munmap(none, 4096), 0);
	assert_int_equal(mprotect(read_only, 4096, PROT_READ), 0);
	for (unsigned code = PERCPU_OP_COMPARE_EQ; code <= PERCPU_OP_MEMCPY; code++) {
		bool writes = code == PERCPU_OP_MEMCPY;
		char *bad[] = {
			none,         none + 4095,           none + 2001,           good + 4096 - 7,
			(char *)4096, (char *)(uintptr_t)-8, (char *)(uintptr_t)-1, (char *)(UINTPTR_MAX / 2 + 1)
		};

		for (size_t i = 0; i < UNIT_COUNT(bad); i++) {
			assert_refused(op(code, bad[i], buffer, 8), 0, -EFAULT);
			assert_refused(op(code, buffer, bad[i], 8), 0, -EFAULT);
			assert_refused(op(code, at(0, 64), bad[i], 8), 0, -EFAULT);
		}
		/* Over two page borders: only the page in the middle is bad. */
		assert_refused(op(code, good + 2048, buffer, 4096), 0, -EFAULT);
		if (writes)
			assert_refused(op(code, read_only, buffer, 8), 0, -EFAULT);
		else
			assert_int_equal(one(op(PERCPU_OP_COMPARE_EQ, read_only, buffer, 8), 0), 0);
		assert_int_equal(one(op(code, buffer, read_only, 8), 0), code == PERCPU_OP_COMPARE_NE ? 1 : 0);
	}
	for (unsigned code = PERCPU_OP_ADD; code <= PERCPU_OP_RSHIFT; code++) {
		assert_refused(arithmetic(code, none, 1, 8), 0, -EFAULT);
		assert_refused(arithmetic(code, read_only, 1, 8), 0, -EFAULT);
		assert_refused(arithmetic(code, good + 4096 - 1, 1, 2), 0, -EFAULT);
		assert_refused(arithmetic(code, (char *)(uintptr_t)-1, 1, 1), 0, -EFAULT);
	}
	/* The last good bytes before the hole, and pages that were never touched. */
	assert_int_equal(one(op(PERCPU_OP_MEMCPY, good + 4096 - 8, buffer, 8), 0), 0);
	assert_int_equal(one(arithmetic(PERCPU_OP_ADD, good + 4096 - 1, 1, 1), 0), 0);
	assert_int_equal(munmap(pages, 4096), 0);
	assert_int_equal(munmap(pages + 2 * 4096, 2 * 4096), 0);

	/* A mapping beyond the end of its file would kill whoever touched it. */
	fd = memfd_create("short", MFD_CLOEXEC);
	assert_int_equal(ftruncate(fd, 4096), 0);
	pages = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(pages, MAP_FAILED);
	assert_refused(op(PERCPU_OP_MEMCPY, pages + 4096, buffer, 8), 0, -EFAULT);
	assert_refused(op(PERCPU_OP_MEMCPY, buffer, pages + 4090, 8), 0, -EFAULT);
	assert_int_equal(one(arithmetic(PERCPU_OP_ADD, pages + 4088, 5, 8), 0), 0);
	assert_int_equal(pages[4088], 5);
	munmap(pages, 2 * 4096);
	close(fd);

	/* A shared area is ordinary memory here. */
	fd = memfd_create("area", MFD_CLOEXEC);
	assert_int_equal(percpu_area_map(fd, &base), 0);
	assert_int_equal(one(arithmetic(PERCPU_OP_ADD, (char *)base + 64, 3, 8), 0), 0);
	assert_int_equal(*((char *)base + 64), 3);
	assert_int_equal(percpu_area_unmap(base), 0);
	close(fd);
}

static void headers_and_ends_of_copies(void **state)
{
	char buffer[64] = { 0 };

	(void)state;
	percpu_for_each_index(index) {
		uintptr_t start = (uintptr_t)at(index, 0) & ~(uintptr_t)(PERCPU_STRIDE - 1);
		char *copy = (char *)start, *end = copy + PERCPU_STRIDE;

		for (int i = 0; i < 64; i++) {
			assert_int_equal(one(arithmetic(PERCPU_OP_ADD, copy + i, 1, 1), index), -EINVAL);
			assert_int_equal(one(op(PERCPU_OP_COMPARE_EQ, buffer, copy + i, 1), index), -EINVAL);
		}
		/* From before it into it. */
		assert_int_equal(one(op(PERCPU_OP_MEMCPY, buffer, copy - 4, 8), index), index ? -EINVAL : -EINVAL);
		assert_int_equal(one(op(PERCPU_OP_MEMCPY, copy + 60, buffer, 8), index), -EINVAL);
		/* The last bytes are good; across the end is not. */
		assert_int_equal(one(op(PERCPU_OP_COMPARE_EQ, end - 8, buffer, 8), index), 0);
		assert_int_equal(one(op(PERCPU_OP_MEMCPY, end - 8, buffer, 9), index), -EINVAL);
		assert_int_equal(one(arithmetic(PERCPU_OP_ADD, end - 1, 1, 2), index), -EINVAL);
		assert_int_equal(one(op(PERCPU_OP_MEMCPY, buffer, end - 1, 8), index), -EINVAL);
	}
}

static void two_indexes_but_not_three(void **state)
{
	unsigned copies = percpu_copies();
	struct percpu_op ops[4];

	(void)state;
	fill(object, 0x55);
	fill(elsewhere, 0x55);
	for (unsigned a = 0; a < copies; a++) {
		for (unsigned b = 0; b < copies; b++) {
			/* Move a word from a to b, in two areas at once. */
			memset(at(a, 0), 1, 8);
			memset(percpu_ptr(elsewhere, a), 2, 8);
			ops[0] = op(PERCPU_OP_MEMCPY, at(b, 16), at(a, 0), 8);
			ops[1] = op(PERCPU_OP_MEMCPY, percpu_ptr(elsewhere, b) + 16, percpu_ptr(elsewhere, a), 8);
			ops[2] = arithmetic(PERCPU_OP_AND, at(a, 0), 0, 8);
			ops[3] = arithmetic(PERCPU_OP_AND, percpu_ptr(elsewhere, a), 0, 8);
			/* Named by either of the two. */
			assert_int_equal(percpu_opv(ops, 4, a), 0);
			assert_int_equal(*at(b, 16), 1);
			assert_int_equal(percpu_ptr(elsewhere, b)[16], 2);
			assert_int_equal(*at(a, 0), 0);
			assert_int_equal(percpu_opv(ops, 4, b), 0);
			assert_int_equal(*at(b, 16), 0);
			for (unsigned c = 0; c < copies; c++) {
				char before[BYTES];

				if (c == a || c == b || a == b)
					continue;
				memcpy(before, at(b, 0), BYTES);
				assert_int_equal(percpu_opv(ops, 4, c), -EINVAL);
				ops[2] = arithmetic(PERCPU_OP_ADD, at(c, 0), 1, 8);
				memset(at(a, 0), 9, 8);
				assert_int_equal(percpu_opv(ops, 4, a), -EINVAL);
				assert_memory_equal(at(b, 0), before, BYTES);
				ops[2] = arithmetic(PERCPU_OP_AND, at(a, 0), 0, 8);
			}
			fill(object, 0x55);
			fill(elsewhere, 0x55);
		}
	}
	assert_true(is_filled(object, 0x55));
	assert_true(is_filled(elsewhere, 0x55));
	/* As many places as there can be, all of one gate each. */
	for (unsigned i = 0; i < PERCPU_OPV_MAX_OPS; i++) {
		struct percpu_op many[PERCPU_OPV_MAX_OPS];

		for (unsigned j = 0; j < PERCPU_OPV_MAX_OPS; j++)
			many[j] = op(PERCPU_OP_MEMCPY, percpu_ptr(j % 2 ? object : elsewhere, j % 4 / 2) + 512 + j * 8,
				     percpu_ptr(j % 3 ? elsewhere : object, j % 8 / 4) + 1024 + i * 8, 8);
		assert_int_equal(percpu_opv(many, PERCPU_OPV_MAX_OPS, 0), 0);
	}
}

/* Two words of one copy that threads change together, by vectors and by sections, and that must always agree. */
#define HAMMERS 3
#define TURNS   4000

static uint64_t *pair; /* per-CPU: a count, its negative, and words that sections add to */
static uint32_t stop;

static void *hammer(void *arg)
{
	uint64_t added = 0;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		percpu_this_add(pair + 2, 1);
		percpu_this_cpu_add(pair + 3, 1);
		added++;
	}
	*(uint64_t *)arg = added;
	return NULL;
}

static void *change_both(void *arg)
{
	uint64_t *errors = arg, seed = 0x1234 + (uint64_t)(uintptr_t)arg;

	*errors = 0;
	for (int i = 0; i < TURNS; i++) {
		unsigned a = (unsigned)(unit_random(&seed) % percpu_copies());
		unsigned b = (unsigned)(unit_random(&seed) % percpu_copies());
		uint64_t seen[3] = { 0 };
		struct percpu_op move[] = { arithmetic(PERCPU_OP_ADD, percpu_ptr(pair, a), 1, 8),
					    arithmetic(PERCPU_OP_ADD, percpu_ptr(pair, b) + 1, (uint64_t)-1, 8),
					    arithmetic(PERCPU_OP_ADD, percpu_ptr(pair, b), (uint64_t)-1, 8),
					    arithmetic(PERCPU_OP_ADD, percpu_ptr(pair, a) + 1, 1, 8) };
		/* The sections' word twice, with another of them in between: nobody adds meanwhile. */
		struct percpu_op look[] = { op(PERCPU_OP_MEMCPY, &seen[0], percpu_ptr(pair, a) + 2, 8),
					    op(PERCPU_OP_MEMCPY, &seen[1], percpu_ptr(pair, a), 8),
					    op(PERCPU_OP_MEMCPY, &seen[2], percpu_ptr(pair, a) + 1, 8),
					    op(PERCPU_OP_MB, NULL, NULL, 0),
					    op(PERCPU_OP_COMPARE_EQ, percpu_ptr(pair, a) + 2, &seen[0], 8) };

		*errors += percpu_opv(move, 4, a) != 0;
		*errors += percpu_opv(look, 5, a) != 0;
		*errors += seen[1] != seen[2];
		/* A word that sections change, changed plainly too. */
		*errors += one(arithmetic(PERCPU_OP_ADD, percpu_ptr(pair, b) + 2, 1000000, 8), b) != 0;
	}
	return NULL;
}

static void vectors_happen_as_one(void **state)
{
	uint64_t counts[HAMMERS], errors[2], sums[4] = { 0 }, total = 0;
	pthread_t threads[HAMMERS];

	(void)state;
	for (size_t i = 0; i < HAMMERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, hammer, &counts[i]), 0);
	unit_threads(2, change_both, errors, sizeof *errors);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (size_t i = 0; i < HAMMERS; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		total += counts[i];
	}
	assert_int_equal(errors[0] + errors[1], 0);
	percpu_for_each_index(index)
		for (size_t word = 0; word < 4; word++)
			sums[word] += percpu_ptr(pair, index)[word];
	assert_int_equal(sums[0], 0);
	assert_int_equal(sums[1], 0);
	assert_int_equal(sums[2], total + UINT64_C(1000000) * 2 * TURNS);
	assert_int_equal(sums[3], total);
}

static void where_the_gate_is_held(void **state)
{
	struct percpu_gate gate;

	(void)state;
	memset(at(0, 0), 0, 8);
	assert_int_equal(percpu_gate_lock(object, 0, &gate), 0);
	assert_int_equal(one(arithmetic(PERCPU_OP_ADD, at(0, 0), 1, 8), 0), -EDEADLK);
	percpu_gate_unlock(&gate);
	assert_int_equal(*at(0, 0), 0);
	assert_int_equal(one(arithmetic(PERCPU_OP_ADD, at(0, 0), 1, 8), 0), 0);
	assert_int_equal(*at(0, 0), 1);
}

static int without_the_fence(void)
{
	unsigned last = percpu_copies() - 1;

	memset(at(0, 0), 0, 8);
	memset(at(last, 0), 0, 8);
	if (sandbox_deny(SYS_membarrier, EPERM))
		return UNIT_SKIPPED;
	if (one(arithmetic(PERCPU_OP_ADD, at(0, 0), 1, 8), 0) != -EPERM || *at(0, 0))
		return 1;
	return one(arithmetic(PERCPU_OP_ADD, at(last, 0), 1, 8), last) || *at(last, 0) != 1;
}

static void a_fence_that_is_refused(void **state)
{
	int rc;

	(void)state;
	if (unit_in_mode(PERCPU_MODE_NONE))
		skip();
	rc = unit_in_child(without_the_fence);
	if (rc == UNIT_SKIPPED)
		skip();
	assert_int_equal(rc, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arithmetic_operations),
		cmocka_unit_test(comparisons_and_copies),
		cmocka_unit_test(the_number_of_the_stop),
		cmocka_unit_test(refused_numbers),
		cmocka_unit_test(the_total_limit),
		cmocka_unit_test(refused_memory),
		cmocka_unit_test(headers_and_ends_of_copies),
		cmocka_unit_test(two_indexes_but_not_three),
		cmocka_unit_test(vectors_happen_as_one),
		cmocka_unit_test(where_the_gate_is_held),
		cmocka_unit_test(a_fence_that_is_refused),
	};

	object = percpu_alloc(BYTES, 64);
	pair = percpu_alloc(4 * sizeof *pair, 64);
	/* The largest leaves no room for this one beside it. */
	if (!percpu_alloc(PERCPU_ALLOC_MAX, 8))
		return 1;
	elsewhere = percpu_alloc(PERCPU_ALLOC_MAX, 8);
	if (!object || !pair || !elsewhere)
		return 1;
	return unit_main(tests);
}
