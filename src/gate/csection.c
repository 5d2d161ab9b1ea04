/* SPDX-License-Identifier: MIT */
/*
 * Sections in C, cold half: finding the tail of a section at its first use, and the body under the gate.
 *
 * A section is defined as a static function, whose tail the assembler makes; no symbol leads there that link-time
 * optimisation could not tear from it. So the tail says in a record where it is, and the section looks its body up among
 * the records of its object.
 */
#include <percpu/csection.h>

#include "gate/gate.h"
#include "rseq/thread.h"

struct c_task {
	struct percpu__task task;
	struct percpu__c_section *section;
	void *argument;
};

#ifdef PERCPU_NO_SECTIONS
void percpu__c_leave(void)
{
}
#elif defined __x86_64__
__asm__(".pushsection .text.unlikely, \"ax\", @progbits\n\t.globl percpu__c_leave\n\t"
	".type percpu__c_leave, @function\npercpu__c_leave:\n\t.cfi_startproc\n\tendbr64\n\tmovl $1, %eax\n\tjmp *%r12\n\t"
	".cfi_endproc\n\t.size percpu__c_leave, . - percpu__c_leave\n\t.popsection");

/* A shadow stack would have to be unwound by an abort too. Its thread stays on the slow path. */
static bool has_shadow_stack(void)
{
	uintptr_t top = 0;

	__asm__ __volatile__("rdsspq %0" : "+r"(top));
	return top != 0;
}
#elif defined __aarch64__
__asm__(".pushsection .text.unlikely, \"ax\", %progbits\n\t.globl percpu__c_leave\n\t"
	".type percpu__c_leave, %function\npercpu__c_leave:\n\t.cfi_startproc\n\thint #34\n\tmov x0, #1\n\tret\n\t"
	".cfi_endproc\n\t.size percpu__c_leave, . - percpu__c_leave\n\t.popsection");

static bool has_shadow_stack(void)
{
	register uint64_t features __asm__("x16") = 1;

	/* CHKFEAT: clears the bit of what is enabled; does nothing on a processor that has neither. */
	__asm__ __volatile__("hint #40" : "+r"(features));
	return !(features & 1);
}
#endif

/* Not inlined: a call makes attempt() keep clear of the memory below its stack pointer (see the x86-64 port). */
static __attribute__((noinline)) void find_entry(struct percpu__c_section *section)
{
#ifdef PERCPU_NO_SECTIONS
	(void)section;
#else
	if (__atomic_load_n(&section->entry, __ATOMIC_RELAXED) != percpu__c_leave || has_shadow_stack())
		return;
	for (const struct percpu__c_record *r = section->records; r != section->records_end; r++)
		if (r->body == section->body)
			__atomic_store_n(&section->entry, r->entry, __ATOMIC_RELAXED);
#endif
}

/*
 * An attempt that ended leaves its descriptor in the thread's area until the kernel looks next. It must not be there when
 * code that it covers runs without being a section: the body under the gate, and what comes behind the commit of another
 * section, if link-time optimisation put both into one text section and a handler ran this one there.
 */
static void forget_descriptor(void)
{
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (percpu__private.state == PERCPU__REGISTERED)
		__atomic_store_n(&percpu__true_area()->rseq_cs, 0, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static int attempt(struct percpu__task *task)
{
	struct c_task *c = (struct c_task *)(void *)task;
	/* Of the section that our thread's handler interrupted: it will abort, and then needs these. */
	struct percpu__thread outer = percpu__thread;
	uintptr_t slot;

	percpu__thread.c_stack = 0;
	__asm__ __volatile__("" : : : "memory");
	find_entry(c->section);
	slot = percpu__try_c(c->section, task->object, c->argument, c->section->by);
	__asm__ __volatile__("" : : : "memory");
	/* First: while it is 0 another handler would take the fast path, and overwrite what has been put back already. */
	percpu__thread.c_stack = outer.c_stack;
	__asm__ __volatile__("" : : : "memory");
	for (unsigned i = 0; i < sizeof outer.c_saved / sizeof *outer.c_saved; i++)
		percpu__thread.c_saved[i] = outer.c_saved[i];
	/* Last: from here on handlers that run sections come here too, and leave nothing behind. */
	forget_descriptor();
	return slot == PERCPU__LEFT_WORD ? PERCPU__LEFT : slot ? PERCPU__DONE : PERCPU__DIFFERS;
}

static int plainly(struct percpu__task *task, unsigned index)
{
	struct c_task *c = (struct c_task *)(void *)task;
	struct percpu_commit commit;

	forget_descriptor();
	commit = c->section->body(percpu_ptr((char *)task->object, index), c->argument);
	if (!commit.slot)
		return PERCPU__DIFFERS;
	__atomic_store_n(commit.slot, commit.value, __ATOMIC_RELEASE);
	return PERCPU__DONE;
}

bool percpu__slow_c(struct percpu__c_section *section, void *object, void *argument)
{
	struct c_task c = {
		.task = { .attempt = attempt, .plainly = plainly, .object = object, .by = (unsigned char)section->by },
		.section = section,
		.argument = argument
	};

	return percpu__slow_task(&c.task) == PERCPU__DONE;
}
