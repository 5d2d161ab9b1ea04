/* SPDX-License-Identifier: MIT */
/*
 * Operations on the calling thread's copy of a per-CPU object.
 *
 * Each is a section (<percpu/section.h>), and goes on in the slow path when that left: the caller never sees an abort.
 * All are correct in every mode, in any thread, in signal handlers at any instruction, and after fork.
 *
 * There are four of each, by their prefix and suffix:
 *   percpu_this_NAME()              indexed by concurrency id
 *   percpu_this_NAME_release()      the same; its store becomes visible after everything the thread did before it
 *   percpu_this_cpu_NAME()          indexed by CPU number
 *   percpu_this_cpu_NAME_release()
 * One object must always be used with the same kind of index. Which copy was meant is decided inside the operation: a
 * thread that is not registered works on the remainder (or, in mode none, on any copy).
 *
 *   void     NAME add(uint64_t *p, uint64_t n)
 *            *p += n.
 *   void     NAME add_offset(uint64_t *p, const ptrdiff_t *offset, uint64_t n)
 *            *(p + *offset bytes) += n, where *offset (ordinary memory) is read inside the section: who changes it and
 *            calls percpu_fence() knows that no section adds to the old place any more. (For slow paths that are under
 *            way, take and release the copy's gate.)
 *   bool     NAME store_if_eq(uint64_t *p, uint64_t expected, uint64_t desired)
 *            if *p == expected, store desired; tells whether it did.
 *   bool     NAME store_if_eq2(uint64_t *p, uint64_t expected, const uint64_t *q, uint64_t expected2, uint64_t desired)
 *            if *p == expected and *q == expected2, store desired in *p; tells whether it did. p and q lie in one area.
 *   bool     NAME copy_store(uint64_t *p, uint64_t expected, void *dst, const void *src, size_t len, uint64_t desired)
 *            if *p == expected, copy len bytes from src (ordinary memory) to dst (a per-CPU pointer into the same area,
 *            to bytes that nobody reads before *p says so) and then store desired in *p; tells whether it did. An
 *            interrupted attempt may leave part of the copy. len up to PERCPU_COPY_MAX.
 *   bool     NAME follow(uintptr_t *p, uintptr_t nil, ptrdiff_t offset, uintptr_t *out)
 *            if *p != nil: *out = *p, and *p = the word at address *p + offset; tells whether it did. *p must be nil or
 *            an address other than 1.
 *   void *   NAME pop(void **p, size_t offset)
 *            takes the first node off a list linked at `offset` bytes in each node, NULL if it is empty.
 *   void     NAME push(void **p, void *node, size_t offset)
 *   void     NAME push_chain(void **p, void *first, void *last, size_t offset)
 *            puts one node, or a chain of them, in front of a list.
 *   uint64_t NAME xchg(uint64_t *p, uint64_t value)
 *            stores value, returns what was there.
 *
 * Progress: wait-free but for the slow path, which an operation enters after PERCPU_ABORT_BUDGET aborts in a row, when
 * the gate of its copy is closed, or when its thread is not registered; there it may block on other holders of that gate.
 * Async-signal-safe. Invalid pointers are undefined behaviour, as for any load and store.
 * Sources: restartable sequences after Paul Turner and Andrew Hunter (2015), Mathieu Desnoyers (Linux 4.18); list pop
 * without ABA after the same.
 */
#ifndef PERCPU_OPS_H
#define PERCPU_OPS_H

#include <percpu/gate.h>

PERCPU_BEGIN_DECLS

/** Aborts in a row after which an operation takes the slow path. */
#define PERCPU_ABORT_BUDGET 8
/** The longest copy of copy_store in bytes: short enough to finish between two interrupts. */
#define PERCPU_COPY_MAX 65536

/*
 * One operation on its way through the slow path, which runs attempt() a few times and, if that goes on leaving, plainly()
 * under the gate of one copy. First member of what else an operation needs; see src/gate/slow.c.
 */
struct percpu__task {
	/* Its section, once: PERCPU__LEFT, or any other result, which is then that of the whole. */
	int (*attempt)(struct percpu__task *task);
	/*
	 * The same with plain loads and stores on copy @index, whose gate is held. It commits by one store as well: a child
	 * of fork may begin with the memory of any moment of it.
	 */
	int (*plainly)(struct percpu__task *task, unsigned index);
	void *object;     /* a per-CPU pointer: its area's gates guard the copy */
	unsigned char by; /* enum percpu__by */
};

/*
 * Runs it to the end; returns its result. Blocks all signals while it holds a gate (in mode none only for the
 * remainder's). It never fails: who cannot fence any more works on the remainder.
 */
PERCPU_API int percpu__slow_task(struct percpu__task *task) PERCPU__COLD;

/* The operations of this file, as tasks. */
struct percpu__request {
	struct percpu__task task;
	unsigned char section; /* enum percpu__section */
	unsigned char order;
	uint64_t expected, desired; /* also: nil, the number added */
	uint64_t expected2;
	const void *second; /* also: source, offset word, link */
	void *dst;
	size_t len; /* also: offset of a followed word */
	uintptr_t out;
};

enum percpu__section {
	PERCPU__ADD,
	PERCPU__ADD_OFFSET,
	PERCPU__STORE_EQ,
	PERCPU__STORE_EQ2,
	PERCPU__COPY,
	PERCPU__FOLLOW_NE,
	PERCPU__PUSH_LINK,
};

#ifdef PERCPU_NO_SECTIONS
#define PERCPU__TRY(call)      PERCPU__LEFT
#define PERCPU__TRY_WORD(call) PERCPU__LEFT_WORD
#else
#define PERCPU__TRY(call)      (call)
#define PERCPU__TRY_WORD(call) (call)
#endif

/* The cold halves: out of line, so that the hot half carries one call. */
PERCPU_API void percpu__slow_add(uint64_t *p, uint64_t n, enum percpu__by by, enum percpu__order order) PERCPU__COLD;
PERCPU_API void percpu__slow_add_offset(uint64_t *p, const ptrdiff_t *offset, uint64_t n, enum percpu__by by,
					enum percpu__order order) PERCPU__COLD;
PERCPU_API int percpu__slow_store_if_eq(uint64_t *p, uint64_t expected, uint64_t desired, enum percpu__by by,
					enum percpu__order order) PERCPU__COLD;
PERCPU_API int percpu__slow_store_if_eq2(uint64_t *p, uint64_t expected, const uint64_t *q, uint64_t expected2,
					 uint64_t desired, enum percpu__by by, enum percpu__order order) PERCPU__COLD;
PERCPU_API int percpu__slow_copy_store(uint64_t *p, uint64_t expected, void *dst, const void *src, size_t len,
				       uint64_t desired, enum percpu__by by, enum percpu__order order) PERCPU__COLD;
PERCPU_API uintptr_t percpu__slow_follow(uintptr_t *p, uintptr_t nil, ptrdiff_t offset, enum percpu__by by,
					 enum percpu__order order) PERCPU__COLD;
PERCPU_API void percpu__slow_push(uintptr_t *p, uintptr_t word, uintptr_t *link, enum percpu__by by,
				  enum percpu__order order) PERCPU__COLD;

PERCPU_API void percpu__unreachable(void) __attribute__((noreturn)) PERCPU__COLD;

/* Adds to the remainder (in mode none to any copy) by an atomic instruction: for words that are only ever summed. */
PERCPU_API void percpu__slow_count(uint64_t *p, uint64_t n, enum percpu__by by) PERCPU__COLD;

PERCPU__INLINE void percpu__count(uint64_t *p, uint64_t n, enum percpu__by by)
{
#ifdef PERCPU_NO_SECTIONS
	percpu__slow_count(p, n, by);
#else
	if (PERCPU__UNLIKELY(percpu__try_count(p, n, by) == PERCPU__LEFT)) {
		uintptr_t a = (uintptr_t)p, b = n, c = (uintptr_t)by, result;

		/* The test of the result is what makes its user contain an ordinary call. */
		PERCPU__COLD_CALL("percpu__slow_count_cold", a, b, c, result);
		if (PERCPU__UNLIKELY(result != 0))
			percpu__unreachable();
	}
#endif
}

PERCPU__INLINE void percpu__add(uint64_t *p, uint64_t n, enum percpu__by by, enum percpu__order order)
{
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_add(p, n, by, order)) == PERCPU__LEFT))
		percpu__slow_add(p, n, by, order);
}

PERCPU__INLINE void percpu__add_offset(uint64_t *p, const ptrdiff_t *offset, uint64_t n, enum percpu__by by,
				       enum percpu__order order)
{
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_add_offset(p, offset, n, by, order)) == PERCPU__LEFT))
		percpu__slow_add_offset(p, offset, n, by, order);
}

PERCPU__INLINE bool percpu__store_if_eq(uint64_t *p, uint64_t expected, uint64_t desired, enum percpu__by by,
					enum percpu__order order)
{
	int rc = PERCPU__TRY(percpu__try_store_if_eq(p, expected, desired, by, order));

	if (PERCPU__UNLIKELY(rc == PERCPU__LEFT))
		rc = percpu__slow_store_if_eq(p, expected, desired, by, order);
	return rc == PERCPU__DONE;
}

PERCPU__INLINE bool percpu__store_if_eq2(uint64_t *p, uint64_t expected, const uint64_t *q, uint64_t expected2,
					 uint64_t desired, enum percpu__by by, enum percpu__order order)
{
	int rc = PERCPU__TRY(percpu__try_store_if_eq2(p, expected, q, expected2, desired, by, order));

	if (PERCPU__UNLIKELY(rc == PERCPU__LEFT))
		rc = percpu__slow_store_if_eq2(p, expected, q, expected2, desired, by, order);
	return rc == PERCPU__DONE;
}

PERCPU__INLINE bool percpu__copy_store(uint64_t *p, uint64_t expected, void *dst, const void *src, size_t len,
				       uint64_t desired, enum percpu__by by, enum percpu__order order)
{
	int rc = PERCPU__TRY(percpu__try_copy_store(p, expected, dst, src, len, desired, by, order));

	if (PERCPU__UNLIKELY(rc == PERCPU__LEFT))
		rc = percpu__slow_copy_store(p, expected, dst, src, len, desired, by, order);
	return rc == PERCPU__DONE;
}

PERCPU__INLINE bool percpu__follow(uintptr_t *p, uintptr_t nil, ptrdiff_t offset, uintptr_t *out, enum percpu__by by,
				   enum percpu__order order)
{
	uintptr_t word = PERCPU__TRY_WORD(percpu__try_follow(p, nil, offset, by, order));

	if (PERCPU__UNLIKELY(word == PERCPU__LEFT_WORD))
		word = percpu__slow_follow(p, nil, offset, by, order);
	if (word == nil)
		return false;
	*out = word;
	return true;
}

PERCPU__INLINE void *percpu__pop(void **p, size_t offset, enum percpu__by by, enum percpu__order order)
{
	uintptr_t word = PERCPU__TRY_WORD(percpu__try_follow((uintptr_t *)p, 0, (ptrdiff_t)offset, by, order));

	/* One test for "empty" and "left": the caller's own test for NULL then costs nothing. */
	if (PERCPU__UNLIKELY(word <= PERCPU__LEFT_WORD))
		word = word ? percpu__slow_follow((uintptr_t *)p, 0, (ptrdiff_t)offset, by, order) : 0;
	return (void *)word;
}

PERCPU__INLINE void percpu__push(uintptr_t *p, uintptr_t word, uintptr_t *link, enum percpu__by by,
				 enum percpu__order order)
{
	if (PERCPU__UNLIKELY(PERCPU__TRY(percpu__try_push(p, word, link, by, order)) == PERCPU__LEFT))
		percpu__slow_push(p, word, link, by, order);
}

#define PERCPU__OPERATIONS(prefix, suffix, by, order)                                                                  \
	PERCPU__INLINE void prefix##_add##suffix(uint64_t *p, uint64_t n)                                              \
	{                                                                                                              \
		percpu__add(p, n, by, order);                                                                          \
	}                                                                                                              \
	PERCPU__INLINE void prefix##_add_offset##suffix(uint64_t *p, const ptrdiff_t *offset, uint64_t n)              \
	{                                                                                                              \
		percpu__add_offset(p, offset, n, by, order);                                                           \
	}                                                                                                              \
	PERCPU__INLINE bool prefix##_store_if_eq##suffix(uint64_t *p, uint64_t expected, uint64_t desired)             \
	{                                                                                                              \
		return percpu__store_if_eq(p, expected, desired, by, order);                                           \
	}                                                                                                              \
	PERCPU__INLINE bool prefix##_store_if_eq2##suffix(uint64_t *p, uint64_t expected, const uint64_t *q,           \
							  uint64_t expected2, uint64_t desired)                        \
	{                                                                                                              \
		return percpu__store_if_eq2(p, expected, q, expected2, desired, by, order);                            \
	}                                                                                                              \
	PERCPU__INLINE bool prefix##_copy_store##suffix(uint64_t *p, uint64_t expected, void *dst, const void *src,    \
							size_t len, uint64_t desired)                                  \
	{                                                                                                              \
		return percpu__copy_store(p, expected, dst, src, len, desired, by, order);                             \
	}                                                                                                              \
	PERCPU__INLINE bool prefix##_follow##suffix(uintptr_t *p, uintptr_t nil, ptrdiff_t offset, uintptr_t *out)     \
	{                                                                                                              \
		return percpu__follow(p, nil, offset, out, by, order);                                                 \
	}                                                                                                              \
	PERCPU__INLINE void *prefix##_pop##suffix(void **p, size_t offset)                                             \
	{                                                                                                              \
		return percpu__pop(p, offset, by, order);                                                              \
	}                                                                                                              \
	PERCPU__INLINE void prefix##_push_chain##suffix(void **p, void *first, void *last, size_t offset)              \
	{                                                                                                              \
		percpu__push((uintptr_t *)p, (uintptr_t)first, (uintptr_t *)(void *)((char *)last + offset), by,       \
			     order);                                                                                   \
	}                                                                                                              \
	PERCPU__INLINE void prefix##_push##suffix(void **p, void *node, size_t offset)                                 \
	{                                                                                                              \
		prefix##_push_chain##suffix(p, node, node, offset);                                                    \
	}                                                                                                              \
	PERCPU__INLINE uint64_t prefix##_xchg##suffix(uint64_t *p, uint64_t value)                                     \
	{                                                                                                              \
		uintptr_t old;                                                                                         \
		percpu__push((uintptr_t *)p, (uintptr_t)value, &old, by, order);                                       \
		return old;                                                                                            \
	}

PERCPU__OPERATIONS(percpu_this, , PERCPU__BY_ID, PERCPU__RELAXED)
PERCPU__OPERATIONS(percpu_this, _release, PERCPU__BY_ID, PERCPU__RELEASE)
PERCPU__OPERATIONS(percpu_this_cpu, , PERCPU__BY_CPU, PERCPU__RELAXED)
PERCPU__OPERATIONS(percpu_this_cpu, _release, PERCPU__BY_CPU, PERCPU__RELEASE)

PERCPU_END_DECLS

#endif
