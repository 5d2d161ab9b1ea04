/* SPDX-License-Identifier: MIT */
/*
 * Port: x86-64. Which way the code goes is read from the bytes, for these encodings never change; capstone tells lengths and
 * operands. What capstone says about reading and writing of memory is wrong for many vector instructions, so a memory
 * operand is taken for written where it is the destination: the last one in AT&T's order.
 */
#include <string.h>

#include "lint/disasm.h"

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };

/* Relocations, by the psABI. */
enum {
	ABS_64 = 1,
	PC_32 = 2,
	PLT_32 = 4,
	GLOB_DAT = 6,
	JUMP_SLOT = 7,
	RELATIVE = 8,
	GOTPCREL = 9,
	ABS_32 = 10,
	ABS_32S = 11,
	PC_16 = 13,
	PC_8 = 15,
	PC_64 = 24,
	GOTPCRELX = 41,
	REX_GOTPCRELX = 42,
};

/* The bytes behind the prefixes. */
struct opcode {
	uint8_t byte, second, modrm; /* second: behind 0x0f */
	bool lock, repeat, wide;
};

static struct opcode opcode_of(const uint8_t *code, size_t size)
{
	struct opcode op = { 0 };
	size_t i = 0;

	for (; i < size && code[i] && strchr("\x66\x67\xf2\xf3\xf0\x2e\x36\x3e\x26\x64\x65", code[i]); i++) {
		op.lock |= code[i] == 0xf0;
		op.repeat |= code[i] == 0xf2 || code[i] == 0xf3;
	}
	if (i < size && (code[i] & 0xf0) == 0x40)
		op.wide = code[i++] & 8;
	if (i < size)
		op.byte = code[i++];
	if (op.byte == 0x0f && i < size)
		op.second = code[i++];
	if (i < size)
		op.modrm = code[i];
	return op;
}

static int family(unsigned reg)
{
	switch (reg) {
	case X86_REG_RAX:
	case X86_REG_EAX:
	case X86_REG_AX:
	case X86_REG_AL:
	case X86_REG_AH:
		return RAX;
	case X86_REG_RCX:
	case X86_REG_ECX:
	case X86_REG_CX:
	case X86_REG_CL:
	case X86_REG_CH:
		return RCX;
	case X86_REG_RDX:
	case X86_REG_EDX:
	case X86_REG_DX:
	case X86_REG_DL:
	case X86_REG_DH:
		return RDX;
	case X86_REG_RBX:
	case X86_REG_EBX:
	case X86_REG_BX:
	case X86_REG_BL:
	case X86_REG_BH:
		return RBX;
	case X86_REG_RSP:
	case X86_REG_ESP:
	case X86_REG_SP:
	case X86_REG_SPL:
		return RSP;
	case X86_REG_RBP:
	case X86_REG_EBP:
	case X86_REG_BP:
	case X86_REG_BPL:
		return RBP;
	case X86_REG_RSI:
	case X86_REG_ESI:
	case X86_REG_SI:
	case X86_REG_SIL:
		return RSI;
	case X86_REG_RDI:
	case X86_REG_EDI:
	case X86_REG_DI:
	case X86_REG_DIL:
		return RDI;
	default:
		break;
	}
	if (reg >= X86_REG_R8 && reg <= X86_REG_R15)
		return 8 + (int)(reg - X86_REG_R8);
	if (reg >= X86_REG_R8B && reg <= X86_REG_R15B)
		return 8 + (int)(reg - X86_REG_R8B);
	if (reg >= X86_REG_R8D && reg <= X86_REG_R15D)
		return 8 + (int)(reg - X86_REG_R8D);
	if (reg >= X86_REG_R8W && reg <= X86_REG_R15W)
		return 8 + (int)(reg - X86_REG_R8W);
	return NO_REGISTER;
}

/* A whole register, or NO_REGISTER. */
static int whole(const cs_x86_op *op)
{
	return op->type == X86_OP_REG && op->size == 8 ? family(op->reg) : NO_REGISTER;
}

static bool is_jcc(struct opcode op)
{
	return (op.byte & 0xf0) == 0x70 || (op.byte >= 0xe0 && op.byte <= 0xe3) ||
	       (op.byte == 0x0f && (op.second & 0xf0) == 0x80);
}

static enum flow_kind flow_of(struct opcode op)
{
	if (is_jcc(op))
		return FLOW_BRANCH;
	switch (op.byte) {
	case 0xe8:
		return FLOW_CALL;
	case 0xe9:
	case 0xeb:
		return FLOW_JUMP;
	case 0xc2:
	case 0xc3:
	case 0xca:
	case 0xcb:
	case 0xcf:
		return FLOW_RETURN;
	case 0xcd:
		return FLOW_SYSTEM_CALL;
	case 0xcc:
	case 0xf1:
	case 0xf4:
		return FLOW_TRAP;
	case 0xff:
		switch (op.modrm >> 3 & 7) {
		case 2:
		case 3:
			return FLOW_CALL_INDIRECT;
		case 4:
		case 5:
			return FLOW_JUMP_INDIRECT;
		default:
			return FLOW_NEXT;
		}
	case 0x0f:
		switch (op.second) {
		case 0x05:
		case 0x34:
			return FLOW_SYSTEM_CALL;
		case 0x0b:
		case 0xb9:
		case 0xff:
			return FLOW_TRAP;
		default:
			return FLOW_NEXT;
		}
	default:
		return FLOW_NEXT;
	}
}

static const char *state_of(struct opcode op, const cs_insn *cs)
{
	const cs_x86 *x86 = &cs->detail->x86;

	if ((op.byte >= 0xd8 && op.byte <= 0xdf) || op.byte == 0x9b)
		return "uses the x87 unit";
	for (unsigned i = 0; i < x86->op_count; i++) {
		const cs_x86_op *operand = &x86->operands[i];

		if (operand->type != X86_OP_REG)
			continue;
		if (operand->reg >= X86_REG_MM0 && operand->reg <= X86_REG_MM7)
			return "uses an MMX register";
		if (op.byte == 0x8e)
			return "changes a segment register";
	}
	switch (cs->id) {
	case X86_INS_EMMS:
	case X86_INS_FEMMS:
		return "uses the MMX unit";
	case X86_INS_STD:
		return "sets the direction flag";
	case X86_INS_POPF:
	case X86_INS_POPFD:
	case X86_INS_POPFQ:
		return "changes all flags";
	case X86_INS_LDMXCSR:
	case X86_INS_VLDMXCSR:
		return "changes the floating-point modes";
	case X86_INS_FXRSTOR:
	case X86_INS_FXRSTOR64:
	case X86_INS_XRSTOR:
	case X86_INS_XRSTOR64:
	case X86_INS_XRSTORS:
	case X86_INS_XRSTORS64:
		return "restores processor state";
	case X86_INS_WRFSBASE:
	case X86_INS_WRGSBASE:
		return "changes a segment's base";
	case X86_INS_XBEGIN:
	case X86_INS_XEND:
	case X86_INS_XABORT:
		return "uses a transaction";
	default:
		return NULL;
	}
}

/* Last operands that are only read. */
static bool reads_last(unsigned id)
{
	switch (id) {
	case X86_INS_CMP:
	case X86_INS_TEST:
	case X86_INS_BT:
	case X86_INS_CMPSB:
	case X86_INS_CMPSW:
	case X86_INS_CMPSD:
	case X86_INS_CMPSQ:
	case X86_INS_SCASB:
	case X86_INS_SCASW:
	case X86_INS_SCASD:
	case X86_INS_SCASQ:
	case X86_INS_NOP:
	case X86_INS_LODSB:
	case X86_INS_LODSW:
	case X86_INS_LODSD:
	case X86_INS_LODSQ:
	case X86_INS_OUTSB:
	case X86_INS_OUTSW:
	case X86_INS_OUTSD:
	case X86_INS_INVPCID:
		return true;
	default:
		return false;
	}
}

/* Single operands that are written in several pieces, or without capstone saying so. */
static bool writes_many(unsigned id)
{
	switch (id) {
	case X86_INS_CMPXCHG8B:
	case X86_INS_CMPXCHG16B:
	case X86_INS_FXSAVE:
	case X86_INS_FXSAVE64:
	case X86_INS_XSAVE:
	case X86_INS_XSAVE64:
	case X86_INS_XSAVEC:
	case X86_INS_XSAVEC64:
	case X86_INS_XSAVEOPT:
	case X86_INS_XSAVEOPT64:
	case X86_INS_XSAVES:
	case X86_INS_XSAVES64:
		return true;
	default:
		return false;
	}
}

static bool is_exchange(unsigned id)
{
	return id == X86_INS_XCHG || id == X86_INS_XADD || id == X86_INS_CMPXCHG;
}

/* The relocation of the field at @field, if it has one. */
static const struct reloc *field_reloc(const struct image *image, const struct insn *insn, unsigned field)
{
	return image->relocatable && field ? reloc_at(image, insn->at + field) : NULL;
}

static bool is_pc_relative(uint32_t type)
{
	return type == PC_32 || type == PLT_32 || type == PC_8 || type == PC_16 || type == PC_64;
}

static bool is_slot(uint32_t type)
{
	return type == GOTPCREL || type == GOTPCRELX || type == REX_GOTPCRELX;
}

static bool is_absolute(uint32_t type)
{
	return type == ABS_32 || type == ABS_32S || type == ABS_64;
}

static uint64_t past(const struct insn *insn, const struct reloc *reloc)
{
	return reloc->symbol + (uint64_t)reloc->addend - reloc->where + insn->at + insn->size;
}

static struct access *add_access(struct insn *insn)
{
	struct access *access = &insn->accesses[insn->access_count++];

	*access = (struct access){ .base = NO_REGISTER, .index = NO_REGISTER, .reg = NO_REGISTER };
	return access;
}

/* Fills in the address of a memory operand. */
static void locate(const struct image *image, struct insn *insn, const cs_insn *cs, const cs_x86_op *op,
		   struct access *access)
{
	const struct reloc *reloc = field_reloc(image, insn, cs->detail->x86.encoding.disp_offset);
	bool thread = op->mem.segment == X86_REG_FS || op->mem.segment == X86_REG_GS;

	access->size = op->size;
	access->base = family(op->mem.base);
	access->index = family(op->mem.index);
	access->displacement = op->mem.disp;
	if (thread) {
		insn->guard |= op->mem.segment == X86_REG_FS && op->mem.disp == 0x28 && !op->mem.base &&
			       !op->mem.index && !reloc;
		access->base = access->index = NO_REGISTER;
	} else if (op->mem.base == X86_REG_RIP) {
		access->fixed = !reloc || is_pc_relative(reloc->type) || is_slot(reloc->type);
		if (!reloc)
			access->displacement += (int64_t)(insn->at + insn->size);
		else if (is_slot(reloc->type))
			access->displacement = (int64_t)(IMAGE_SLOTS + (uint64_t)(reloc - image->relocs) * IMAGE_SLOT);
		else
			access->displacement = (int64_t)past(insn, reloc);
	} else if (reloc) {
		access->fixed = is_absolute(reloc->type);
		access->displacement = (int64_t)(reloc->symbol + (uint64_t)reloc->addend);
	} else if (access->base == NO_REGISTER && access->index == NO_REGISTER && !op->mem.base && !op->mem.index) {
		access->fixed = true;
	} else if (image->fixed && op->mem.disp >= 0x10000 && image_part(image, (uint64_t)op->mem.disp)) {
		access->fixed = true;
	}
}

static void add_move(struct insn *insn, struct move move)
{
	insn->moves[insn->move_count++] = move;
}

static void decode_stack(struct insn *insn, const cs_insn *cs)
{
	const cs_x86_op *op = &cs->detail->x86.operands[0];
	bool push = cs->id == X86_INS_PUSH || cs->id == X86_INS_PUSHF || cs->id == X86_INS_PUSHFQ;
	struct access *access = add_access(insn);

	access->base = RSP;
	access->size = 8;
	access->load = !push;
	access->store = push;
	access->displacement = push ? -8 : 0;
	if (cs->detail->x86.op_count && op->type == X86_OP_REG)
		access->reg = whole(op);
	insn->single = false;
	add_move(insn, (struct move){ .to = RSP, .from = RSP, .plus = NO_REGISTER, .add = push ? -8 : 8 });
}

/* Moves of addresses between registers. */
static void decode_moves(const struct image *image, struct insn *insn, const cs_insn *cs)
{
	const cs_x86 *x86 = &cs->detail->x86;
	const cs_x86_op *source = &x86->operands[0], *destination = &x86->operands[1];
	const struct reloc *reloc = field_reloc(image, insn, x86->encoding.imm_offset);
	int to = destination->type == X86_OP_REG ? family(destination->reg) : NO_REGISTER;
	struct move move = { .to = to, .from = NO_REGISTER, .plus = NO_REGISTER };

	if (x86->op_count != 2 || to == NO_REGISTER || destination->size < 4)
		return;
	if (source->type == X86_OP_IMM && (cs->id == X86_INS_MOV || cs->id == X86_INS_MOVABS)) {
		if (reloc ? !is_absolute(reloc->type) : !image->fixed || !image_part(image, (uint64_t)source->imm))
			return;
		move.from = CONSTANT;
		move.add = reloc ? (int64_t)(reloc->symbol + (uint64_t)reloc->addend) : source->imm;
		move.exact = true;
	} else if (destination->size < 8) {
		return;
	} else if (cs->id == X86_INS_MOV && source->type == X86_OP_REG) {
		move.from = whole(source);
	} else if (cs->id == X86_INS_LEA) {
		struct access where = { .base = NO_REGISTER, .index = NO_REGISTER };

		locate(image, insn, cs, source, &where);
		move.add = where.displacement;
		if (where.fixed) {
			move.from = CONSTANT;
			move.plus = where.base != NO_REGISTER ? where.base : where.index;
			move.exact = move.plus == NO_REGISTER;
		} else if (where.base != NO_REGISTER) {
			move.from = where.base;
			move.plus = where.index;
		}
	} else if ((cs->id == X86_INS_ADD || cs->id == X86_INS_SUB) && source->type == X86_OP_IMM) {
		move.from = to;
		move.add = cs->id == X86_INS_ADD ? source->imm : -source->imm;
		if (reloc && cs->id == X86_INS_ADD) {
			move.from = CONSTANT;
			move.plus = to;
			move.add = (int64_t)(reloc->symbol + (uint64_t)reloc->addend);
		}
	} else if (cs->id == X86_INS_ADD && source->type == X86_OP_REG) {
		move.from = to;
		move.plus = whole(source);
		if (move.plus == NO_REGISTER)
			return;
	}
	if (move.from != NO_REGISTER)
		add_move(insn, move);
}

static void decode_memory(const struct image *image, struct insn *insn, const cs_insn *cs, struct opcode op)
{
	const cs_x86 *x86 = &cs->detail->x86;
	bool prefetch = op.byte == 0x0f && (op.second == 0x0d || op.second == 0x18 || op.second == 0xae) &&
			!(cs->id == X86_INS_STMXCSR || writes_many(cs->id));

	if (cs->id == X86_INS_LEA || cs->id == X86_INS_NOP)
		return;
	for (unsigned i = 0; i < x86->op_count && insn->access_count < 2; i++) {
		const cs_x86_op *operand = &x86->operands[i];
		const cs_x86_op *other = x86->op_count == 2 ? &x86->operands[1 - i] : NULL;
		bool last = i + 1 == x86->op_count;
		struct access *access;

		if (operand->type != X86_OP_MEM)
			continue;
		access = add_access(insn);
		locate(image, insn, cs, operand, access);
		if (x86->op_count == 1)
			access->store = (operand->access & CS_AC_WRITE) || writes_many(cs->id) ||
					cs->id == X86_INS_STMXCSR || cs->id == X86_INS_VSTMXCSR;
		else
			access->store = (last && !reads_last(cs->id) && !prefetch) || is_exchange(cs->id);
		access->load = !access->store || (operand->access & CS_AC_READ);
		if (cs->id == X86_INS_MOV && other) {
			access->load = !access->store;
			access->reg = whole(other);
		}
	}
	if (cs->id == X86_INS_MASKMOVQ || cs->id == X86_INS_MASKMOVDQU || cs->id == X86_INS_VMASKMOVDQU) {
		struct access *access = add_access(insn);

		access->base = RDI;
		access->store = true;
		access->size = 16;
	}
}

static void decode_writes(struct insn *insn, const cs_insn *cs)
{
	const cs_x86 *x86 = &cs->detail->x86;
	const cs_detail *detail = cs->detail;

	for (unsigned i = 0; i < detail->regs_write_count; i++)
		if (family(detail->regs_write[i]) >= 0)
			insn->writes |= UINT32_C(1) << family(detail->regs_write[i]);
	for (unsigned i = 0; i < x86->op_count; i++) {
		const cs_x86_op *op = &x86->operands[i];

		if (op->type == X86_OP_REG && family(op->reg) >= 0 &&
		    ((op->access & CS_AC_WRITE) || is_exchange(cs->id) ||
		     (i + 1 == x86->op_count && !reads_last(cs->id) && cs->id != X86_INS_PUSH)))
			insn->writes |= UINT32_C(1) << family(op->reg);
	}
	if (cs->id == X86_INS_CMPXCHG)
		insn->writes |= 1u << RAX;
}

static bool decode(const struct image *image, uint64_t at, const uint8_t *code, size_t size, struct insn *insn)
{
	struct opcode op = opcode_of(code, size);
	const cs_insn *cs = disasm_one(image->port, at, code, size);
	const struct reloc *reloc;

	*insn = (struct insn){ .at = at, .size = 1, .flow = FLOW_BAD };
	if (!cs)
		return false;
	insn->size = cs->size;
	insn->flow = flow_of(op);
	insn->state = state_of(op, cs);
	if (insn->flow == FLOW_BRANCH || insn->flow == FLOW_JUMP || insn->flow == FLOW_CALL) {
		insn->target = (uint64_t)cs->detail->x86.operands[0].imm;
		reloc = field_reloc(image, insn, cs->detail->x86.encoding.imm_offset);
		if (reloc)
			insn->target = past(insn, reloc);
		return true;
	}
	insn->single = !op.repeat || !(op.byte >= 0xa4 && op.byte <= 0xaf);
	if (writes_many(cs->id) || cs->id == X86_INS_CMPXCHG || cs->id == X86_INS_ENTER)
		insn->single = false;
	switch (cs->id) {
	case X86_INS_PUSH:
	case X86_INS_POP:
	case X86_INS_PUSHF:
	case X86_INS_PUSHFQ:
	case X86_INS_POPF:
	case X86_INS_POPFQ:
		decode_stack(insn, cs);
		break;
	case X86_INS_LEAVE: {
		struct access *access = add_access(insn);

		access->base = RBP;
		access->size = 8;
		access->load = true;
		access->reg = RBP;
		add_move(insn, (struct move){ .to = RSP, .from = RBP, .plus = NO_REGISTER, .add = 8 });
		return true;
	}
	default:
		break;
	}
	decode_memory(image, insn, cs, op);
	decode_writes(insn, cs);
	if (insn->flow == FLOW_NEXT && insn->access_count == 0)
		decode_moves(image, insn, cs);
	for (unsigned i = 0; i < insn->access_count; i++)
		insn->atomic |= insn->accesses[i].store && (op.lock || cs->id == X86_INS_XCHG);
	return true;
}

/* An entry is a jump through a slot, behind an endbr64 perhaps. */
static uint64_t linkage_slot(const struct image *image, uint64_t entry)
{
	for (int i = 0; i < 3; i++) {
		size_t size = 0;
		const uint8_t *code = image_bytes(image, entry, &size);
		struct insn insn;

		if (!code || !decode(image, entry, code, size, &insn))
			return 0;
		if (insn.flow == FLOW_JUMP_INDIRECT)
			return insn.access_count && insn.accesses[0].fixed ? (uint64_t)insn.accesses[0].displacement
									   : 0;
		if (insn.flow != FLOW_NEXT)
			return 0;
		entry += insn.size;
	}
	return 0;
}

const struct port lint_x86_64 = {
	.name = "x86-64",
	.machine = EM_X86_64,
	.step = 1,
	.first_argument = RDI,
	.stack_pointer = RSP,
	.signature = 0x53053053,
	.reloc_absolute = ABS_64,
	.reloc_relative = RELATIVE,
	.reloc_slot = JUMP_SLOT,
	.reloc_data = GLOB_DAT,
	.decode = decode,
	.linkage_slot = linkage_slot,
};
