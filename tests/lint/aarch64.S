// SPDX-License-Identifier: MIT
// Sections by hand, as in x86_64.S.
.macro EXPECT rule
expect.\rule\().\@:
.endm

.macro BEGIN name
	.text
	.type \name, %function
\name:
	adrp x15, descriptor.\name
	add x15, x15, :lo12:descriptor.\name
	str x15, [x0, #8]
.Lstart.\name:
.endm

.macro DESCRIPTOR name, version=0, flags=0
	.pushsection __rseq_cs, "aw", %progbits
	.balign 32
descriptor.\name:
	.long \version, \flags
	.quad .Lstart.\name, .Lend.\name - .Lstart.\name, .Labort.\name
	.popsection
.endm

.macro FINISH name, signature=0xd428bc00, version=0, flags=0
.Lend.\name:
	ret
	.inst \signature
.Labort.\name:
	ret
	.size \name, . - \name
	DESCRIPTOR \name, \version, \flags
.endm

.macro EXIT name, to
	.pushsection __rseq_exit_point_array, "aw", %progbits
	.balign 8
	.quad .Lstart.\name, \to
	.popsection
.endm

.macro BODY name
	.section percpu_cs.\name, "ax", %progbits
	.type \name\()__body, %function
\name\()__body:
.endm

.macro TAIL name
	.size \name\()__body, . - \name\()__body
entry.\name:
	adrp x9, descriptor.\name
	add x9, x9, :lo12:descriptor.\name
	str x9, [x2, #8]
	ldr w9, [x9]
	cbnz w9, left.\name
	str x30, [sp, #-16]!
	bl \name\()__body
	ldr x30, [sp], #16
	cbz x0, .Lend.\name
.endm

.macro COMMIT name
	stlr x1, [x0]
.Lend.\name:
	ret
left.\name:
	ret
	.inst 0xd428bc00
.Labort.\name:
	b left.\name
	.pushsection .rodata.names, "aMS", %progbits, 1
.Lname.\name:
	.asciz "\name"
	.popsection
	.pushsection __rseq_cs, "aw", %progbits
	.balign 32
descriptor.\name:
	.long 0, 0
	.quad \name\()__body, .Lend.\name - \name\()__body, .Labort.\name
	.popsection
	.pushsection __percpu_c_sections, "aw", %progbits
	.balign 32
	.quad \name\()__body, entry.\name, descriptor.\name, .Lname.\name
	.popsection
	.pushsection __rseq_exit_point_array, "aw", %progbits
	.quad \name\()__body, left.\name
	.popsection
.endm

BEGIN good
	ldr w14, [x0, x1]
1:	cbnz w14, .Labort.good
	cmp x14, x2
	b.eq .Lend.good
	tbnz x3, #3, .Lexit.good
	subs w14, w14, #1
	b.hs 1b
	stp x2, x3, [x4], #16
	str q0, [x4, x5]
	ldar x6, [x4]
	ldapr x6, [x4]
	msr nzcv, x6
	mrs x6, tpidr_el0
	prfm pstl1keep, [x4]
	dmb ish
	stlr x2, [x3]
FINISH good
	EXIT good, .Lexit.good
.Lexit.good:
	ret

BEGIN good_padding
	b 1f
	.inst 0
	brk #1
1:	str x2, [x3]
FINISH good_padding

BEGIN good_marker
	brk #1
FINISH good_marker

BEGIN calls
	EXPECT call
	bl somebody
	EXPECT call
	bl good
	EXPECT call
	blr x3
	EXPECT call
	svc #0
	EXPECT call
	bl .Lstart.calls
	EXPECT call
	blraaz x3
	cbz x1, 1f
	EXPECT call
	brk #7
1:	str x2, [x3]
FINISH calls

BEGIN jumps
	EXPECT jump
	cbnz x1, .Loutside.jumps
	EXPECT jump
	tbz x1, #2, .Loutside.jumps
	EXPECT jump
	b.ne .Loutside.jumps
	EXPECT jump
	b.ne .Lexit.good
	cbz x1, 1f
	EXPECT jump
	b somebody
1:	cbz x1, 1f
	EXPECT jump
	br x3
1:	cbz x1, 1f
	EXPECT jump
	ret
1:	cbz x1, 1f
	EXPECT jump
	retaa
1:	str x2, [x3]
FINISH jumps
.Loutside.jumps:
	ret

BEGIN commits_nothing
	str x2, [x3]
	EXPECT commit
	ldr x2, [x3]
FINISH commits_nothing

BEGIN commits_pair
	EXPECT commit
	stp x2, x4, [x3]
FINISH commits_pair

BEGIN commits_perhaps
	EXPECT commit
	stlxr w4, x2, [x3]
FINISH commits_perhaps

BEGIN empty
	EXPECT commit
FINISH empty

BEGIN ends_inside
	EXPECT commit
	str x2, [x3]
	.set .Lend.ends_inside, . - 2
	ret
	.inst 0xd428bc00
.Labort.ends_inside:
	ret
	.size ends_inside, . - ends_inside
	DESCRIPTOR ends_inside

BEGIN commits_atomically
	stadd x2, [x3]
FINISH commits_atomically

BEGIN wrong_signature
	EXPECT signature
	str x2, [x3]
FINISH wrong_signature, 0xd428bc01

BEGIN wrong_flags
	EXPECT signature
	str x2, [x3]
FINISH wrong_flags, 0xd428bc00, 0, 4

BEGIN abort_inside
	EXPECT signature
	nop
.Labort.abort_inside:
	str x2, [x3]
.Lend.abort_inside:
	ret
	.size abort_inside, . - abort_inside
	DESCRIPTOR abort_inside

BEGIN instruments
	EXPECT instrumented
	bl __stack_chk_fail
	EXPECT instrumented
	b.ne __stack_chk_fail
	adrp x0, :got:__stack_chk_guard
	EXPECT instrumented
	ldr x0, [x0, :got_lo12:__stack_chk_guard]
	adrp x1, __gcov0.instruments
	EXPECT instrumented
	add x1, x1, :lo12:__gcov0.instruments
	EXPECT instrumented
	ldr x2, [x1]
	adrp x1, __gcov0.instruments
	EXPECT instrumented
	ldr x2, [x1, :lo12:__gcov0.instruments]
	EXPECT instrumented
	bl __asan_report_load8
	EXPECT instrumented
	bl _mcount
	str x2, [x3]
FINISH instruments

BEGIN stores
	adrp x5, global
	EXPECT store
	str x2, [x5, :lo12:global]
	add x6, x5, :lo12:global
	EXPECT store
	str w2, [x6]
	EXPECT store
	str x2, [x6, x4, lsl #3]
	EXPECT store
	str q0, [x6, #16]
	EXPECT store
	stp x2, x4, [x6, #16]
	EXPECT store
	st1 {v0.16b}, [x6]
	EXPECT store
	stlr x2, [x6]
	add x6, x6, x4, lsl #3
	EXPECT store
	strb w2, [x6]
	adrp x7, :got:external
	ldr x7, [x7, :got_lo12:external]
	EXPECT store
	str x2, [x7]
	adrp x8, array
	add x8, x8, :lo12:array
	EXPECT store
	str x2, [x8], #8
	EXPECT store
	str x2, [x8, #8]!
	mov x9, x8
	EXPECT store
	stur x2, [x9, #3]
	ldaxr x4, [x3]
	EXPECT store
	stxr w4, x2, [x3]
	EXPECT store
	stlxp w4, x2, x1, [x3]
	EXPECT store
	ldadd x2, x4, [x3]
	EXPECT store
	cas x2, x4, [x3]
	EXPECT store
	caspal x2, x3, x4, x5, [x10]
	EXPECT store
	swp x2, x4, [x3]
	ldr x6, [x8]
	str x2, [x6]
	mrs x6, tpidr_el0
	add x6, x6, :tprel_lo12:thread
	str x2, [x6]
	str x2, [x3]
FINISH stores

BEGIN states
	EXPECT state
	msr fpcr, x2
	EXPECT state
	msr fpsr, x2
	EXPECT state
	msr tpidr_el0, x2
	mrs x2, fpcr
	msr pmselr_el0, x2
	str x2, [x3]
FINISH states

BEGIN outer
	nop
	EXPECT nested
.Lstart.inner:
	str x2, [x4]
.Lend.inner:
	str x2, [x3]
.Lend.outer:
	ret
	.inst 0xd428bc00
.Labort.outer:
.Labort.inner:
	ret
	.size outer, . - outer
	DESCRIPTOR outer
	DESCRIPTOR inner

BEGIN strange
	cbz x1, 1f
	EXPECT decode
	.inst 0x00000000
1:	str x2, [x3]
FINISH strange

BODY c_good
	stp x29, x30, [sp, #-48]!
	mov x29, sp
	str x0, [sp, #24]
	ldr x0, [sp, #24]
	ldr x4, [x0, #8]
	str x1, [x0, x4, lsl #3]
	add x5, x0, x4, lsl #3
	str x1, [x5, #8]
	add x5, x0, w4, uxtw #3
	str x1, [x5, #8]
	str x4, [x1]
	cbz x4, 1f
	ldp x29, x30, [sp], #48
	ret
1:	mov x0, #0
	ldp x29, x30, [sp], #48
	ret
TAIL c_good
COMMIT c_good

BODY c_stores
	EXPECT store
	str x1, [x0, #8]
	mov x3, x0
	EXPECT store
	str w1, [x3]
	add x3, x3, #24
	EXPECT store
	strb w1, [x3]
	sub x4, x3, #8
	EXPECT store
	stp x1, x2, [x4]
	stp x4, x3, [sp, #-16]!
	mov x4, #0
	mov x3, #0
	str x1, [x3]
	ldp x4, x3, [sp]
	EXPECT store
	str x1, [x3]
	cbz x1, 1f
	mov x3, #0
1:	str x1, [x3]
	EXPECT store
	str x1, [x4], #8
	EXPECT store
	str q0, [x0]
	add sp, sp, #16
	mov w0, w0
	str x1, [x0]
	ret
TAIL c_stores
COMMIT c_stores

BODY c_calls
	EXPECT call
	bl c_calls__body
	EXPECT jump
	b.ne somebody
	ret
TAIL c_calls
	EXPECT call
	bl somebody
	cbz x0, 1f
	EXPECT jump
	ret
1:
COMMIT c_calls

	.data
	.balign 16
	.type global, %object
	.size global, 8
global:
	.quad 0
	.type array, %object
	.size array, 64
array:
	.skip 64
	.type __gcov0.instruments, %object
	.size __gcov0.instruments, 8
__gcov0.instruments:
	.quad 0
	.section .tbss, "awT", %nobits
thread:
	.skip 8
	.section .note.GNU-stack, "", %progbits
