/* SPDX-License-Identifier: MIT */
/*
 * Operation vectors: a few small operations, executed at once with regard to every section and slow path of an index.
 *
 * For what does not fit one section: moving something from one index to another, changing two words together, reading
 * several words of one moment. The vector is the one proposed for Linux as the cpu_opv system call (Mathieu Desnoyers,
 * 2017 and 2018), which was never merged; here it runs in user space, under the gate.
 */
#ifndef PERCPU_OPV_H
#define PERCPU_OPV_H

#include <percpu/gate.h>

PERCPU_BEGIN_DECLS

#define PERCPU_OPV_MAX_OPS   16   /**< operations in one vector */
#define PERCPU_OPV_MAX_LEN   4096 /**< bytes of one comparison or copy */
#define PERCPU_OPV_MAX_TOTAL 4216 /**< bytes of all operations of a vector together */

enum percpu_opcode {
	PERCPU_OP_COMPARE_EQ, /**< stop here unless the @len bytes at @dst equal those at @src */
	PERCPU_OP_COMPARE_NE, /**< stop here if the @len bytes at @dst equal those at @src */
	PERCPU_OP_MEMCPY,     /**< copy @len bytes from @src to @dst, which must not overlap */
	PERCPU_OP_ADD,        /**< *dst += value; @len is 1, 2, 4 or 8 here and below */
	PERCPU_OP_OR,         /**< *dst |= value */
	PERCPU_OP_AND,        /**< *dst &= value */
	PERCPU_OP_XOR,        /**< *dst ^= value */
	PERCPU_OP_LSHIFT,     /**< *dst <<= value; value from 0 to 8 * len - 1 */
	PERCPU_OP_RSHIFT,     /**< *dst >>= value, unsigned */
	PERCPU_OP_MB,         /**< full memory barrier; @len, @dst, @src and @value must be 0 */
};

/** One operation. Pointers are addresses of copies (percpu_ptr()) or of ordinary memory; numbers need no alignment. */
struct percpu_op {
	uint32_t op;     /**< enum percpu_opcode */
	uint32_t len;    /**< bytes */
	void *dst;       /**< what is compared or changed */
	const void *src; /**< what it is compared with, or copied from; NULL for the others */
	uint64_t value;  /**< the operand of the arithmetic operations; 0 for the others */
};

/**
 * percpu_opv - execute up to PERCPU_OPV_MAX_OPS operations in order, as one.
 *
 * @ops: the vector; @n: how many, 0 to PERCPU_OPV_MAX_OPS
 * @index: whose copies are meant, 0 to percpu_copies() - 1. Addresses of copies must belong to this index or, to migrate
 *         data, to at most one other.
 * Nothing else happens to copies of these indexes in the areas that the vector names from its first operation to its
 * last: no section and no slow path. Ordinary memory gets no such protection.
 * Returns 0 when all were executed; k from 1 to n when operation k was a comparison that said stop (those before it are
 * done, it and the rest are not; so put comparisons first); -EINVAL for a bad number, length, opcode, index, operand
 * that is not used, overlapping copy or address inside an area's first 64 bytes or across the end of a copy; -E2BIG if
 * the lengths exceed PERCPU_OPV_MAX_TOTAL in all; -EFAULT for a NULL operand or memory that cannot be read or written;
 * -EDEADLK and -errno of membarrier(2) as percpu_gate_lock(). Everything is checked, and its memory made present, before
 * anything is changed.
 * May block, on holders of the same gates only. Async-signal-safe (in mode none see -EDEADLK). fork waits for it.
 */
PERCPU_API int percpu_opv(const struct percpu_op *ops, unsigned n, unsigned index);

PERCPU_END_DECLS

#endif
