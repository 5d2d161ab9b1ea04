/* SPDX-License-Identifier: MIT */
/*
 * Operation vectors.
 *
 * First everything is checked without touching anything: numbers, then where each operand lies. Operands in areas name
 * the gates to take, all of one or two indexes; each other operand is probed page by page through the kernel, which
 * answers for memory that cannot be read or written instead of killing us, and brings it in, so that no fault is taken
 * under a gate. Then the gates are closed, in address order and with one fence, and the operations run.
 */
#include <errno.h>
#include <string.h>

#include <percpu/opv.h>

#include "base/sys.h"
#include "gate/gate.h"

#define PAGE       4096U
#define MOST_GATES (2 * PERCPU_OPV_MAX_OPS)

struct plan {
	struct percpu_gate gates[MOST_GATES]; /* by address, remainders' last */
	unsigned count;
	unsigned index, other; /* the two indexes that may be named; other is UINT32_MAX until it is */
};

/* Moves no sleeper to nowhere, if the word has some value: whatever it has, it is only read. */
static int probe_read(uintptr_t at)
{
	uint32_t nobody = 0;
	long rc = percpu__sys6(SYS_futex, (long)at, FUTEX_CMP_REQUEUE | FUTEX_PRIVATE_FLAG, 0, 0, (long)&nobody, 0);

	return rc == -EFAULT ? -EFAULT : 0;
}

/* A wake with an operation adds 0 to the word, atomically. */
static int probe_write(uintptr_t at)
{
	uint32_t nobody = 0;
	long rc = percpu__sys6(SYS_futex, (long)&nobody, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, 0, (long)at,
			       FUTEX_OP(FUTEX_OP_ADD, 0, FUTEX_OP_CMP_EQ, 0));

	return rc == -EFAULT ? -EFAULT : 0;
}

static int probe(const void *memory, uint32_t len, int (*how)(uintptr_t at))
{
	uintptr_t at = (uintptr_t)memory, end = at + len;

	if (end < at)
		return -EFAULT;
	for (; at < end; at = (at | (PAGE - 1)) + 1)
		if (how(at & ~(uintptr_t)3))
			return -EFAULT;
	return 0;
}

/* The lock order. */
static bool comes_before(const struct percpu_gate *a, const struct percpu_gate *b)
{
	bool last_a = a->index == percpu__remainder, last_b = b->index == percpu__remainder;

	if (last_a != last_b)
		return last_b;
	return percpu_ptr((char *)a->base, a->index) < percpu_ptr((char *)b->base, b->index);
}

static int add_gate(struct plan *plan, char *base, unsigned index)
{
	struct percpu_gate gate = { .base = base, .index = index, .kinds = PERCPU__KINDS };
	struct percpu_gate *gates = plan->gates;
	unsigned at = 0;

	if (index != plan->index && index != plan->other) {
		if (plan->other != UINT32_MAX)
			return -EINVAL;
		plan->other = index;
	}
	while (at < plan->count && comes_before(&gates[at], &gate))
		at++;
	if (at < plan->count && !comes_before(&gate, &gates[at]))
		return 0;
	memmove(&gates[at + 1], &gates[at], (plan->count - at) * sizeof *gates);
	plan->count++;
	gates[at] = gate;
	return 0;
}

/* Where an operand lies: in a copy, whose gate is noted (0), or in ordinary memory, still to be probed (1). */
static int place(struct plan *plan, const void *memory, uint32_t len)
{
	char *base;
	unsigned index;

	if (percpu__area_find(memory, &base, &index)) {
		size_t at = (uintptr_t)memory & (PERCPU_STRIDE - 1);

		if (at < sizeof(struct percpu__header) || at + len > PERCPU_STRIDE)
			return -EINVAL;
		return add_gate(plan, base, index);
	}
	if (len && percpu__area_find((const void *)((uintptr_t)memory + len - 1), &base, &index))
		return -EINVAL;
	return 1;
}

static bool is_number(uint32_t len)
{
	return len == 1 || len == 2 || len == 4 || len == 8;
}

static bool overlap(const struct percpu_op *op)
{
	uintptr_t dst = (uintptr_t)op->dst, src = (uintptr_t)op->src;

	return dst < src + op->len && src < dst + op->len;
}

/* The numbers of one operation, without looking at memory. */
static int check(const struct percpu_op *op)
{
	switch (op->op) {
	case PERCPU_OP_COMPARE_EQ:
	case PERCPU_OP_COMPARE_NE:
	case PERCPU_OP_MEMCPY:
		if (op->len > PERCPU_OPV_MAX_LEN || op->value)
			return -EINVAL;
		if (!op->dst || !op->src)
			return -EFAULT;
		return op->op == PERCPU_OP_MEMCPY && overlap(op) ? -EINVAL : 0;
	case PERCPU_OP_LSHIFT:
	case PERCPU_OP_RSHIFT:
		if (op->value >= 8 * (uint64_t)op->len)
			return -EINVAL;
		__attribute__((fallthrough));
	case PERCPU_OP_ADD:
	case PERCPU_OP_OR:
	case PERCPU_OP_AND:
	case PERCPU_OP_XOR:
		if (!is_number(op->len) || op->src)
			return -EINVAL;
		return op->dst ? 0 : -EFAULT;
	case PERCPU_OP_MB:
		return op->len || op->dst || op->src || op->value ? -EINVAL : 0;
	default:
		return -EINVAL;
	}
}

static int make_plan(struct plan *plan, const struct percpu_op *ops, unsigned n)
{
	unsigned plain_dst = 0, plain_src = 0; /* a bit for each operation */
	uint64_t total = 0, saved;
	int rc = 0;

	for (unsigned i = 0; i < n; i++) {
		rc = check(&ops[i]);
		if (rc)
			return rc;
		total += ops[i].len;
	}
	if (total > PERCPU_OPV_MAX_TOTAL)
		return -E2BIG;
	percpu__cold_lock(&saved);
	for (unsigned i = 0; i < n && rc >= 0; i++) {
		if (ops[i].op == PERCPU_OP_MB)
			continue;
		rc = place(plan, ops[i].dst, ops[i].len);
		plain_dst |= (unsigned)(rc == 1) << i;
		if (rc < 0 || !ops[i].src)
			continue;
		rc = place(plan, ops[i].src, ops[i].len);
		plain_src |= (unsigned)(rc == 1) << i;
	}
	percpu__cold_unlock(&saved);
	if (rc < 0)
		return rc;
	for (unsigned i = 0; i < n; i++) {
		bool compares = ops[i].op == PERCPU_OP_COMPARE_EQ || ops[i].op == PERCPU_OP_COMPARE_NE;

		rc = plain_dst >> i & 1 ? probe(ops[i].dst, ops[i].len, compares ? probe_read : probe_write) : 0;
		if (!rc && plain_src >> i & 1)
			rc = probe(ops[i].src, ops[i].len, probe_read);
		if (rc)
			return rc;
	}
	return 0;
}

static void compute(const struct percpu_op *op)
{
	uint64_t number = 0;

	/* The low bytes of a word: its first ones or its last. */
	char *low = (char *)&number + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? sizeof number - op->len : 0);

	memcpy(low, op->dst, op->len);
	switch (op->op) {
	case PERCPU_OP_ADD:
		number += op->value;
		break;
	case PERCPU_OP_OR:
		number |= op->value;
		break;
	case PERCPU_OP_AND:
		number &= op->value;
		break;
	case PERCPU_OP_XOR:
		number ^= op->value;
		break;
	case PERCPU_OP_LSHIFT:
		number <<= op->value;
		break;
	default:
		number >>= op->value;
		break;
	}
	/* One store where the machine has one: copies may be read by others at any time. */
	switch (op->len) {
	case 1:
		__atomic_store_n((uint8_t *)op->dst, (uint8_t)number, __ATOMIC_RELAXED);
		break;
	case 8:
		if ((uintptr_t)op->dst % 8 == 0) {
			__atomic_store_n((uint64_t *)op->dst, number, __ATOMIC_RELAXED);
			break;
		}
		__attribute__((fallthrough));
	default:
		memcpy(op->dst, low, op->len);
	}
}

static int execute(const struct percpu_op *ops, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		const struct percpu_op *op = &ops[i];

		switch (op->op) {
		case PERCPU_OP_COMPARE_EQ:
			if (memcmp(op->dst, op->src, op->len) != 0)
				return (int)i + 1;
			break;
		case PERCPU_OP_COMPARE_NE:
			if (memcmp(op->dst, op->src, op->len) == 0)
				return (int)i + 1;
			break;
		case PERCPU_OP_MEMCPY:
			memcpy(op->dst, op->src, op->len);
			break;
		case PERCPU_OP_MB:
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
			break;
		default:
			compute(op);
		}
	}
	return 0;
}

int percpu_opv(const struct percpu_op *ops, unsigned n, unsigned index)
{
	struct plan plan = { .index = index, .other = UINT32_MAX };
	struct percpu_op copy[PERCPU_OPV_MAX_OPS];
	int rc;

	if (n > PERCPU_OPV_MAX_OPS || index >= percpu_copies())
		return -EINVAL;
	if (n && !ops)
		return -EFAULT;
	/* What was checked is what is executed, whoever else writes to the vector. */
	if (n)
		memcpy(copy, ops, n * sizeof *ops);
	rc = make_plan(&plan, copy, n);
	if (rc)
		return rc;
	if (plan.count) {
		rc = percpu__gates_lock(plan.gates, plan.count, true);
		if (rc)
			return rc;
	}
	rc = execute(copy, n);
	if (plan.count)
		percpu__gates_unlock(plan.gates, plan.count, true);
	return rc;
}
