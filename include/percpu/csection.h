/* SPDX-License-Identifier: MIT */
/*
 * Sections in C: write the body of a restartable sequence as a C function, without assembly.
 *
 *	struct list { struct node *first; };
 *	struct batch { struct node *nodes; unsigned want, got; };
 *
 *	PERCPU_SECTION(take_batch, struct list, list, struct batch, batch)
 *	{
 *		struct node *node = list->first;
 *		for (batch->got = 0; node && batch->got < batch->want; batch->got++)
 *			node = node->next;
 *		batch->nodes = list->first;
 *		return percpu_commit(&list->first, node);
 *	}
 *
 *	static struct list *lists;                       // from percpu_alloc()
 *	struct batch batch = { .want = 10 };
 *	take_batch(lists, &batch);
 *
 * The body runs on the calling thread's own copy. If the thread is preempted, migrated or gets a signal before the commit,
 * nothing has happened and the body starts again; after PERCPU_ABORT_BUDGET aborts, or where sections cannot run, it runs
 * under the gate of its copy. So a body
 *   - may read anything, any number of times, in loops;
 *   - may write its own variables, *argument, and memory that nobody else looks at before the commit (a node that is not
 *     yet in the list, the free part of a buffer): it may be run again at any moment, from the beginning;
 *   - changes shared memory by its commit only: one word of 8 bytes, stored after the body has returned;
 *   - calls nothing: no function that is not inlined (declare helpers PERCPU_SECTION_INLINE), no system
 *     call, no memcpy that the compiler does not expand, no long double, no switch that becomes a table of jumps.
 * The compiler cannot check the last three: percpu-lint(1) does, run it on your objects.
 *
 * How: the body is a function in a text section of its own, behind it stands a tail that arms, finds the copy, looks at
 * the gate, calls the body and makes the store that it asked for; the restartable range goes from the body's first byte to
 * that store. An abort restores the stack pointer from a frame that the caller left in thread-local storage (with those
 * registers that a compiler may not let anybody change), and returns to the caller as having left. The compiler saves what
 * else is live around a section, as around a call. A handler may run sections of its own: it puts the frame aside.
 */
#ifndef PERCPU_CSECTION_H
#define PERCPU_CSECTION_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/* Compilers must add nothing to a body: no calls, no stores that are not written there. */
#if defined __clang__
#define PERCPU__C_PURE                                                                                                 \
	__attribute__((no_stack_protector, no_instrument_function, no_profile_instrument_function,                     \
		       no_sanitize("address", "thread", "memory", "undefined", "hwaddress", "coverage", "cfi",         \
				   "safe-stack")))
#define PERCPU__C_ALONE __attribute__((noinline, used, no_builtin))
#elif __GNUC__ >= 12
#define PERCPU__C_PURE                                                                                                 \
	__attribute__((no_stack_protector, no_instrument_function, no_profile_instrument_function,                     \
		       no_sanitize_coverage,                                                                           \
		       no_sanitize("address,hwaddress,thread,undefined,pointer-compare,pointer-subtract")))
#define PERCPU__C_ALONE __attribute__((noipa, used))
#else
#define PERCPU__C_PURE                                                                                                 \
	__attribute__((optimize("no-stack-protector"), no_instrument_function, no_profile_instrument_function,         \
		       no_sanitize("address,thread,undefined")))
#define PERCPU__C_ALONE __attribute__((noipa, used))
#endif

/**
 * PERCPU_SECTION_INLINE - before a function that bodies call: inlined into them whatever the options, and nothing added to it.
 */
#define PERCPU_SECTION_INLINE PERCPU__INLINE PERCPU__C_PURE

/** What a body returns; made by percpu_commit() or percpu_no_commit(). */
struct percpu_commit {
	uint64_t *slot; /**< the word to store to, in the copy that the body was given; NULL for none */
	uint64_t value;
};

/**
 * percpu_commit - end a body: store @value in *@slot.
 *
 * @slot: address of a word of 8 bytes in the body's copy, integer or pointer; @value: converted to it
 * The store is visible to other threads after everything that the body wrote (release).
 */
#define percpu_commit(slot, value)                                                                                     \
	percpu__commit((uint64_t *)(void *)(slot),                                                                     \
		       PERCPU__WORD_OF(value) + 0 * sizeof(char[sizeof(__typeof__(*(slot))) == 8 ? 1 : -1]))
#ifdef __cplusplus
#define PERCPU__WORD_OF(value) ((uint64_t)(value))
#else
#define PERCPU__WORD_OF(value) ((uint64_t)(uintptr_t)(value))
#endif

/** percpu_no_commit - end a body without storing anything: the section then returns false. */
#define percpu_no_commit() percpu__commit((uint64_t *)0, 0)

PERCPU_SECTION_INLINE struct percpu_commit percpu__commit(uint64_t *slot, uint64_t value)
{
	struct percpu_commit commit;

	commit.slot = slot;
	commit.value = value;
	return commit;
}

typedef struct percpu_commit percpu__c_body(void *copy, void *argument);
typedef void percpu__c_entry(void);

/* Where the parts of one section in C stand; written by the assembler, one for each in the object. */
struct percpu__c_record {
	percpu__c_body *body;
	percpu__c_entry *entry;
	const void *descriptor;
	const char *name;
};
/* Of this object; its address range is the linker's work. */
extern const struct percpu__c_record __start___percpu_c_sections[] __attribute__((visibility("hidden"), weak));
extern const struct percpu__c_record __stop___percpu_c_sections[] __attribute__((visibility("hidden"), weak));

struct percpu__c_section {
	percpu__c_entry *entry; /* where the tail begins; percpu__c_leave until the first use has found it */
	percpu__c_body *body;
	const struct percpu__c_record *records, *records_end;
	enum percpu__by by;
};

/* A tail that always leaves. */
PERCPU_API percpu__c_entry percpu__c_leave;
/* Goes on where an attempt left; tells whether it committed. */
PERCPU_API bool percpu__slow_c(struct percpu__c_section *section, void *object, void *argument) PERCPU__COLD;

#ifndef PERCPU_NO_SECTIONS
/* One attempt: the slot that was stored to, 0 (the body did not want to commit) or PERCPU__LEFT_WORD. */
PERCPU__INLINE uintptr_t percpu__try_c(const struct percpu__c_section *section, void *object, void *argument,
				       enum percpu__by by)
{
	percpu__c_entry *entry = __atomic_load_n(&section->entry, __ATOMIC_RELAXED);
	uintptr_t slot;

	/* (This thread's handlers put back what they change, so this is known to be 0 behind another section.) */
	if (PERCPU__UNLIKELY(percpu__thread.c_stack))
		return PERCPU__LEFT_WORD;
	PERCPU__C_CALL(entry, object, argument, PERCPU__INDEX(by), slot);
	percpu__thread.c_stack = 0;
	return slot;
}
#define PERCPU__C_TAIL(body_, name, by)                                                                                \
	__asm__ __volatile__(PERCPU__A_TAIL(name)                                                                      \
			     :                                                                                         \
			     : [body] PERCPU__SYMBOL_OPERAND(body_), [gate] "i"((by) == PERCPU__BY_CPU                 \
											? PERCPU__GATE_BY_CPU          \
											: PERCPU__GATE_BY_ID))
#else
PERCPU__INLINE uintptr_t percpu__try_c(const struct percpu__c_section *section, void *object, void *argument,
				       enum percpu__by by)
{
	(void)section, (void)object, (void)argument, (void)by;
	return PERCPU__LEFT_WORD;
}
#define PERCPU__C_TAIL(body, name, by) (void)0
#endif

/*
 * Behind the ordinary call that a user of PERCPU__C_CALL must contain: a tail call is none. A function that makes no other
 * is a leaf to the compiler, which keeps things below its stack pointer and leaves that misaligned.
 */
#define PERCPU__NO_TAIL_CALL(result) __asm__ __volatile__("" : "+r"(result))

#define PERCPU__TEXT_(n, name) "percpu_cs." #n "." name
#define PERCPU__TEXT(n, name)  PERCPU__TEXT_(n, name)

/**
 * PERCPU_SECTION - define a section whose body is a C function.
 *
 * @name: of the function; @type, @copy: struct type of the per-CPU object, and the body's name for a pointer to its copy
 * @argument_type, @argument: type and name of what the caller hands in and gets back, by pointer
 *
 * Defines `static inline bool name(type *object, argument_type *argument)`, where @object is a per-CPU pointer. The body
 * follows in braces and ends with `return percpu_commit(slot, value)` or `return percpu_no_commit()`. The function returns
 * true if it has committed. *@argument is then as the run of the body that committed left it; written by attempts that did
 * not, it may have been changed in between.
 * Progress: as the operations of <percpu/ops.h>, if the body's loops end. Async-signal-safe. After fork the child owns a copy.
 * Source: the sequences are as in <percpu/section.h>; C bodies behind a trampoline are this library's own.
 */
#define PERCPU_SECTION(name, type, copy, argument_type, argument)                                                      \
	PERCPU__C_SECTION(name, type, copy, argument_type, argument, PERCPU__BY_ID)
/** PERCPU_SECTION_BY_CPU - the same for an object that is indexed by CPU number in all its uses. */
#define PERCPU_SECTION_BY_CPU(name, type, copy, argument_type, argument)                                               \
	PERCPU__C_SECTION(name, type, copy, argument_type, argument, PERCPU__BY_CPU)

#define PERCPU__C_SECTION(name, type, copy, argument_type, argument, by)                                               \
	PERCPU_SECTION_INLINE struct percpu_commit name##__written(type *copy, argument_type *argument);               \
	PERCPU__C_ALONE PERCPU__C_PURE                                                                                 \
		__attribute__((section(PERCPU__TEXT(__COUNTER__, #name)))) static struct percpu_commit name##__body(   \
			void *percpu__copy, void *percpu__argument)                                                    \
	{                                                                                                              \
		PERCPU__C_TAIL(name##__body, #name, by);                                                               \
		return name##__written((type *)percpu__copy, (argument_type *)percpu__argument);                       \
	}                                                                                                              \
	static struct percpu__c_section name##__section = { percpu__c_leave, name##__body,                             \
							    __start___percpu_c_sections, __stop___percpu_c_sections,   \
							    by };                                                      \
	PERCPU__INLINE bool name(type *copy, argument_type *argument)                                                  \
	{                                                                                                              \
		uintptr_t percpu__slot = percpu__try_c(&name##__section, (void *)copy, (void *)argument, by);          \
		if (PERCPU__UNLIKELY(percpu__slot <= PERCPU__LEFT_WORD)) {                                             \
			bool percpu__done = false;                                                                     \
			if (percpu__slot) {                                                                            \
				percpu__done = percpu__slow_c(&name##__section, (void *)copy, (void *)argument);       \
				PERCPU__NO_TAIL_CALL(percpu__done);                                                    \
			}                                                                                              \
			return percpu__done;                                                                           \
		}                                                                                                      \
		return true;                                                                                           \
	}                                                                                                              \
	static inline struct percpu_commit name##__written(type *copy, argument_type *argument)

PERCPU_END_DECLS

#endif
