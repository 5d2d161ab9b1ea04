/* SPDX-License-Identifier: MIT */
/*
 * One function for each operation, to be compiled in many ways: a port's constraints, labels and relocations must hold
 * however the compiler uses them. C and C++.
 */
#include <percpu.h>

#ifdef __cplusplus
#define EXTERN extern "C"
#else
#define EXTERN
#endif

#define USES(prefix, suffix)                                                                                           \
	EXTERN void use_##prefix##_add##suffix(uint64_t *p, uint64_t n);                                               \
	EXTERN void use_##prefix##_add##suffix(uint64_t *p, uint64_t n)                                                \
	{                                                                                                              \
		prefix##_add##suffix(p, n);                                                                            \
		prefix##_add##suffix(p, 1);                                                                            \
		prefix##_add##suffix(p + 1, (uint64_t)-1);                                                             \
		prefix##_add##suffix(p, UINT64_C(0x123456789abcdef));                                                  \
	}                                                                                                              \
	EXTERN void use_##prefix##_offset##suffix(uint64_t *p, const ptrdiff_t *offset);                               \
	EXTERN void use_##prefix##_offset##suffix(uint64_t *p, const ptrdiff_t *offset)                                \
	{                                                                                                              \
		prefix##_add_offset##suffix(p, offset, 2);                                                             \
	}                                                                                                              \
	EXTERN int use_##prefix##_store##suffix(uint64_t *p, uint64_t a, uint64_t b, uint64_t c);                      \
	EXTERN int use_##prefix##_store##suffix(uint64_t *p, uint64_t a, uint64_t b, uint64_t c)                       \
	{                                                                                                              \
		return prefix##_store_if_eq##suffix(p, a, b) + prefix##_store_if_eq2##suffix(p, a, p + 1, b, c) +      \
		       prefix##_store_if_eq##suffix(p, 0, 1) + prefix##_store_if_eq2##suffix(p, 0, p + 1, 0, 1);       \
	}                                                                                                              \
	EXTERN int use_##prefix##_copy##suffix(uint64_t *p, uint64_t a, char *to, const char *from, size_t n);         \
	EXTERN int use_##prefix##_copy##suffix(uint64_t *p, uint64_t a, char *to, const char *from, size_t n)          \
	{                                                                                                              \
		return prefix##_copy_store##suffix(p, a, to, from, n, a + n) +                                         \
		       prefix##_copy_store##suffix(p, 0, to, from, 24, 1);                                             \
	}                                                                                                              \
	EXTERN uintptr_t use_##prefix##_follow##suffix(uintptr_t *p, uintptr_t nil, ptrdiff_t offset);                 \
	EXTERN uintptr_t use_##prefix##_follow##suffix(uintptr_t *p, uintptr_t nil, ptrdiff_t offset)                  \
	{                                                                                                              \
		uintptr_t out = 0;                                                                                     \
                                                                                                                       \
		return prefix##_follow##suffix(p, nil, offset, &out) + out;                                            \
	}                                                                                                              \
	EXTERN void *use_##prefix##_list##suffix(void **p, void *first, void *last);                                   \
	EXTERN void *use_##prefix##_list##suffix(void **p, void *first, void *last)                                    \
	{                                                                                                              \
		prefix##_push##suffix(p, first, 0);                                                                    \
		prefix##_push_chain##suffix(p, first, last, 8);                                                        \
		return (char *)prefix##_pop##suffix(p, 8) + prefix##_xchg##suffix((uint64_t *)(void *)p, 0);           \
	}

USES(percpu_this, )
USES(percpu_this, _release)
USES(percpu_this_cpu, )
USES(percpu_this_cpu, _release)

EXTERN void use_objects(struct percpu_counter *counter, struct percpu_histogram *histogram, struct percpu_stack *stack);
EXTERN void use_objects(struct percpu_counter *counter, struct percpu_histogram *histogram, struct percpu_stack *stack)
{
	struct percpu_stack_node *node = percpu_stack_pop(stack), *all = percpu_stack_pop_all(stack);

	for (int i = 0; i < 3; i++)
		percpu_counter_add(counter, (uint64_t)percpu_cpu() + (uint64_t)percpu_node() + (uint64_t)percpu_cid());
	percpu_counter_inc(counter);
	percpu_counter_add_shared(counter, 7);
	percpu_histogram_record(histogram, 9);
	percpu_histogram_record_shared(histogram, 9);
	percpu_stack_push(stack, node);
	percpu_stack_push_chain(stack, all, node);
}
