# SPDX-License-Identifier: MIT
# Sections by hand. EXPECT stands before each instruction that must be found, and names the rule; all else must pass.
.macro EXPECT rule
expect.\rule\().\@:
.endm

.macro BEGIN name
	.text
	.type \name, @function
\name:
	leaq descriptor.\name(%rip), %rax
	movq %rax, 8(%rdi)
.Lstart.\name:
.endm

.macro DESCRIPTOR name, version=0, flags=0
	.pushsection __rseq_cs, "aw", @progbits
	.balign 32
descriptor.\name:
	.long \version, \flags
	.quad .Lstart.\name, .Lend.\name - .Lstart.\name, .Labort.\name
	.popsection
.endm

.macro FINISH name, signature=0x53053053, version=0, flags=0
.Lend.\name:
	ret
	.byte 0x0f, 0xb9, 0x3d
	.long \signature
.Labort.\name:
	ret
	.size \name, . - \name
	DESCRIPTOR \name, \version, \flags
.endm

.macro EXIT name, to
	.pushsection __rseq_exit_point_array, "aw", @progbits
	.balign 8
	.quad .Lstart.\name, \to
	.popsection
.endm

# A section in C: the body is the function that was begun, the tail is as in the library's ports.
.macro BODY name
	.section percpu_cs.\name, "ax", @progbits
	.type \name\()__body, @function
\name\()__body:
.endm

.macro TAIL name
	.size \name\()__body, . - \name\()__body
entry.\name:
	leaq descriptor.\name(%rip), %rdx
	movq %rdx, 8(%rax)
	cmpl $0, (%rdx)
	jne left.\name
	call \name\()__body
	testq %rax, %rax
	je .Lend.\name
.endm

.macro COMMIT name
	movq %rdx, (%rax)
.Lend.\name:
	jmp *%r12
left.\name:
	jmp *%r12
	.byte 0x0f, 0xb9, 0x3d
	.long 0x53053053
.Labort.\name:
	jmp left.\name
	.pushsection .rodata.names, "aMS", @progbits, 1
.Lname.\name:
	.asciz "\name"
	.popsection
	.pushsection __rseq_cs, "aw", @progbits
	.balign 32
descriptor.\name:
	.long 0, 0
	.quad \name\()__body, .Lend.\name - \name\()__body, .Labort.\name
	.popsection
	.pushsection __percpu_c_sections, "aw", @progbits
	.balign 32
	.quad \name\()__body, entry.\name, descriptor.\name, .Lname.\name
	.popsection
	.pushsection __rseq_exit_point_array, "aw", @progbits
	.quad \name\()__body, left.\name
	.popsection
.endm

BEGIN good
	movl (%rdi), %eax
1:	testl %eax, %eax
	jne .Labort.good
	cmpq %rsi, (%rdx)
	jne .Lend.good
	cmpq %rcx, (%rdx)
	jne .Lexit.good
	decl %eax
	jns 1b
	movq %rax, (%rdx)       # through a pointer that cannot be judged
	movq %rax, -8(%rsp)
	addq $1, (%rdx)
FINISH good
	EXIT good, .Lexit.good
.Lexit.good:
	ret

# What cannot be reached is padding, and may be anything.
BEGIN good_padding
	jmp 1f
	.byte 0x06, 0xcc, 0xcc
	ud2
1:	movq %rsi, (%rdx)
FINISH good_padding

BEGIN good_marker
	ud2
FINISH good_marker

BEGIN calls
	EXPECT call
	call somebody
	EXPECT call
	call somebody@PLT
	EXPECT call
	call good
	EXPECT call
	call *%rax
	EXPECT call
	call *(%rax)
	EXPECT call
	call *somebody@GOTPCREL(%rip)
	EXPECT call
	syscall
	EXPECT call
	int $0x80
	EXPECT call
	call .Lstart.calls      # its own beginning: only sections in C may
	movq %rsi, (%rdx)
FINISH calls

BEGIN traps
	testl %eax, %eax
	je 1f
	EXPECT call
	ud2
1:	jne 1f
	EXPECT call
	int3
1:	movq %rsi, (%rdx)
FINISH traps

BEGIN jumps
	EXPECT jump
	jne .Loutside.jumps
	EXPECT jump
	jne somebody
	EXPECT jump
	jne .Lexit.good         # registered, but for another section
	EXPECT jump
	jrcxz .Lnear.jumps
	je 1f
	EXPECT jump
	jmp somebody@PLT
1:	je 1f
	EXPECT jump
	jmp *%rax
1:	je 1f
	EXPECT jump
	jmp *table(,%rax,8)
1:	je 1f
	EXPECT jump
	jmp *somebody@GOTPCREL(%rip)
1:	je 1f
	EXPECT jump
	ret
1:	EXPECT jump
	je 1f + 1
1:	movq %rsi, (%rdx)
FINISH jumps
.Lnear.jumps:
	nop
.Loutside.jumps:
	ret

BEGIN commits_nothing
	movq %rsi, (%rdx)
	EXPECT commit
	movq (%rdx), %rsi
FINISH commits_nothing

BEGIN compares
	EXPECT commit
	cmpq $0, (%rdx)
FINISH compares

BEGIN commits_many
	EXPECT commit
	rep stosq
FINISH commits_many

BEGIN commits_perhaps
	EXPECT commit
	cmpxchgq %rcx, (%rdx)
FINISH commits_perhaps

BEGIN commits_to_stack
	EXPECT commit
	pushq %rax
FINISH commits_to_stack

BEGIN commits_and_leaves
	movq %rsi, (%rdx)
	EXPECT commit
	je .Labort.commits_and_leaves
FINISH commits_and_leaves

BEGIN ends_inside
	EXPECT commit
	movq $1, (%rdx)
	.set .Lend.ends_inside, . - 2
	ret
	.byte 0x0f, 0xb9, 0x3d
	.long 0x53053053
.Labort.ends_inside:
	ret
	.size ends_inside, . - ends_inside
	DESCRIPTOR ends_inside

BEGIN empty
	EXPECT commit
FINISH empty

BEGIN commits_vector
	movups %xmm0, (%rdx)
FINISH commits_vector

BEGIN commits_locked
	lock addq $1, (%rdx)
FINISH commits_locked

BEGIN wrong_signature
	EXPECT signature
	movq %rsi, (%rdx)
FINISH wrong_signature, 0x53053054

BEGIN wrong_version
	EXPECT signature
	movq %rsi, (%rdx)
FINISH wrong_version, 0x53053053, 1

BEGIN wrong_flags
	EXPECT signature
	movq %rsi, (%rdx)
FINISH wrong_flags, 0x53053053, 0, 4

BEGIN abort_inside
	EXPECT signature
	nop
.Labort.abort_inside:
	movq %rsi, (%rdx)
.Lend.abort_inside:
	ret
	.size abort_inside, . - abort_inside
	DESCRIPTOR abort_inside

	.pushsection __rseq_cs, "aw", @progbits
	.balign 32
	EXPECT signature
	.long 0, 0
	.quad 0, 0, 0
	.popsection

	# Aligned by chance at most.
BEGIN misaligned
	EXPECT signature
	movq %rsi, (%rdx)
.Lend.misaligned:
	ret
	.byte 0x0f, 0xb9, 0x3d
	.long 0x53053053
.Labort.misaligned:
	ret
	.size misaligned, . - misaligned
	.pushsection __rseq_cs.odd, "aw", @progbits
	.balign 8
descriptor.misaligned:
	.long 0, 0
	.quad .Lstart.misaligned, .Lend.misaligned - .Lstart.misaligned, .Labort.misaligned
	.popsection

	# Where nobody looks for it.
BEGIN elsewhere
	EXPECT call
	call somebody
	movq %rsi, (%rdx)
.Lend.elsewhere:
	ret
	.byte 0x0f, 0xb9, 0x3d
	.long 0x53053053
.Labort.elsewhere:
	ret
	.size elsewhere, . - elsewhere
	.pushsection .data.rel.ro, "aw", @progbits
	.quad 0
	.balign 32
descriptor.elsewhere:
	.long 0, 0
	.quad .Lstart.elsewhere, .Lend.elsewhere - .Lstart.elsewhere, .Labort.elsewhere
	.popsection

BEGIN instruments
	EXPECT instrumented
	movq %fs:0x28, %rax
	EXPECT instrumented
	subq %fs:0x28, %rax
	EXPECT instrumented
	jne __stack_chk_fail
	EXPECT instrumented
	call __stack_chk_fail@PLT
	EXPECT instrumented
	movq __stack_chk_guard@GOTPCREL(%rip), %rax
	EXPECT instrumented
	call __asan_report_load8
	EXPECT instrumented
	call *__tsan_read8@GOTPCREL(%rip)
	EXPECT instrumented
	call __ubsan_handle_out_of_bounds
	EXPECT instrumented
	call __msan_warning
	EXPECT instrumented
	call __sanitizer_cov_trace_pc
	EXPECT instrumented
	addq $1, __gcov0.instruments(%rip)
	EXPECT instrumented
	leaq __gcov0.instruments(%rip), %rdi
	EXPECT instrumented
	incq .Lcounter(%rip)
	EXPECT instrumented
	call mcount
	EXPECT instrumented
	call __fentry__
	EXPECT instrumented
	call __cyg_profile_func_enter
	movq %fs:0x30, %rax
	movq %rsi, (%rdx)
FINISH instruments

BEGIN stores
	EXPECT store
	movq %rsi, global(%rip)
	EXPECT store
	movl $1, external(%rip)
	movq external@GOTPCREL(%rip), %rax
	EXPECT store
	movq %rsi, 8(%rax)
	leaq array(%rip), %rcx
	EXPECT store
	movq %rsi, (%rcx,%rax,8)
	EXPECT store
	movq %rsi, (%rax,%rcx)
	addq %rdx, %rcx
	EXPECT store
	incq (%rcx)
	EXPECT store
	sete flag(%rip)
	EXPECT store
	movups %xmm0, array(%rip)
	EXPECT store
	lock incq (%rdx)
	EXPECT store
	xchgq %rsi, (%rdx)
	EXPECT store
	lock cmpxchgq %rcx, (%rdx)
	movq global(%rip), %rax
	cmpq $0, global(%rip)
	testb $1, flag(%rip)
	btq $3, global(%rip)
	prefetchw global(%rip)
	movq %rsi, (%rax)        # what is loaded from there is unknown
	movq thread@gottpoff(%rip), %rax
	movq %rsi, %fs:(%rax)
	movq %rsi, global(%rip)  # the commit
FINISH stores

BEGIN stores_absolute
	EXPECT store
	movq %rsi, array(,%rax,8)
	movl $array, %ecx
	EXPECT store
	movq %rsi, 16(%rcx)
	movq $array, %rcx
	EXPECT store
	movq %rsi, 16(%rcx)
	movabsq $array, %rcx
	EXPECT store
	movq %rsi, 16(%rcx)
	movq %rsi, (%rdx)
FINISH stores_absolute

BEGIN states
	EXPECT state
	fldl (%rsi)
	EXPECT state
	fwait
	EXPECT state
	fldcw (%rsi)
	EXPECT state
	movq %mm0, %rax
	EXPECT state
	emms
	EXPECT state
	std
	cld
	EXPECT state
	popfq
	EXPECT state
	ldmxcsr (%rsi)
	stmxcsr -8(%rsp)
	EXPECT state
	wrfsbase %rax
	EXPECT state
	movl %eax, %gs
	movl %gs, %eax
	EXPECT state
	xend
	vaddps %ymm0, %ymm1, %ymm2
	vzeroupper
	movq %rsi, (%rdx)
FINISH states

BEGIN outer
	nop
	leaq descriptor.inner(%rip), %rax
	movq %rax, 8(%rdi)
	EXPECT nested
.Lstart.inner:
	movq %rcx, (%rbx)
.Lend.inner:
	movq %rsi, (%rdx)
.Lend.outer:
	ret
	.byte 0x0f, 0xb9, 0x3d
	.long 0x53053053
.Labort.outer:
.Labort.inner:
	ret
	.size outer, . - outer
	DESCRIPTOR outer
	DESCRIPTOR inner

BEGIN strange
	je 1f
	EXPECT decode
	.byte 0x06
1:	movq %rsi, (%rdx)
FINISH strange

BODY c_good
	pushq %rbp
	movq %rsp, %rbp
	subq $32, %rsp
	movq %rdi, -8(%rbp)
	movq -8(%rbp), %rax
	movq 8(%rax), %rcx
	movq %rsi, 16(%rax,%rcx,8)
	leaq (%rax,%rcx), %rax
	movq %rsi, 8(%rax)
	movq %rcx, (%rsi)
	testl %ecx, %ecx
	je 1f
	leave
	ret
1:	xorl %eax, %eax
	leave
	ret
TAIL c_good
COMMIT c_good

BODY c_stores
	EXPECT store
	movq %rsi, 8(%rdi)
	movq %rdi, %rax
	EXPECT store
	movq %rsi, (%rax)
	addq $24, %rax
	EXPECT store
	movl %esi, (%rax)
	leaq -8(%rax), %rcx
	EXPECT store
	movb %sil, (%rcx)
	pushq %rcx
	xorl %ecx, %ecx
	popq %rdx
	EXPECT store
	movq %rsi, (%rdx)
	subq $16, %rsp
	movq %rdx, (%rsp)
	testl %esi, %esi
	je 1f
	xorl %edx, %edx
1:	movq %rsi, (%rdx)        # on one path it is something else
	movq (%rsp), %rdx
	EXPECT store
	incq (%rdx)
	movl $0, (%rsp)
	movq (%rsp), %rdx
	incq (%rdx)
	addq $16, %rsp
	EXPECT store
	movups %xmm0, (%rdi)
	EXPECT store
	lock incq (%rsi)
	movl %edi, %edi
	movq %rsi, (%rdi)
	ret
TAIL c_stores
COMMIT c_stores

BODY c_calls
	EXPECT call
	call c_calls__body
	EXPECT call
	call somebody
	EXPECT jump
	jne somebody
	ret
TAIL c_calls
	EXPECT call
	call somebody
	EXPECT call
	call c_calls__body + 5
	je 1f
	EXPECT jump
	ret
1:
COMMIT c_calls

BODY c_unlike
	EXPECT signature
	ret
TAIL c_unlike
	movq %rdx, (%rax)
.Lend.c_unlike:
	ret
	.byte 0x0f, 0xb9, 0x3d
	.long 0x53053053
.Labort.c_unlike:
left.c_unlike:
	ret
	.pushsection __rseq_cs, "aw", @progbits
	.balign 32
descriptor.c_unlike:
	.long 0, 0
	.quad c_unlike__body, .Lend.c_unlike - c_unlike__body, .Labort.c_unlike
	.popsection
	.pushsection .rodata.names, "aMS", @progbits, 1
.Lname.c_unlike:
	.asciz "c_unlike"
	.popsection
	.pushsection __percpu_c_sections, "aw", @progbits
	.quad c_unlike__body + 1, entry.c_unlike, descriptor.c_unlike, .Lname.c_unlike
	.popsection

	.section __llvm_prf_cnts, "aw", @progbits
.Lcounter:
	.quad 0
	.data
	.type global, @object
	.size global, 8
global:
	.quad 0
	.type array, @object
	.size array, 64
array:
	.skip 64
table:
	.quad 0
flag:
	.byte 0
	.type __gcov0.instruments, @object
	.size __gcov0.instruments, 8
__gcov0.instruments:
	.quad 0
	.section .tbss, "awT", @nobits
thread:
	.skip 8
	.section .note.GNU-stack, "", @progbits
