/* SPDX-License-Identifier: MIT */
/*
 * Port: 64-bit ARM. Instructions are 4 bytes, little-endian in both byte orders, and their groups are told apart by a few
 * bits (Arm Architecture Reference Manual, C4.1): it is all read from these, so that extensions which a disassembler does
 * not know yet are understood too.
 */
#include <string.h>

#include "lint/lint.h"

enum { SP = 31 };

/* Relocations, by the ABI. */
enum {
	ABS_64 = 257,
	GLOB_DAT = 1025,
	JUMP_SLOT = 1026,
	RELATIVE = 1027,
	ADR_PREL_LO21 = 274,
	ADR_PREL_PG_HI21 = 275,
	ADR_PREL_PG_HI21_NC = 276,
	ADD_ABS_LO12_NC = 277,
	LDST8_ABS_LO12_NC = 278,
	TSTBR14 = 279,
	CONDBR19 = 280,
	JUMP26 = 282,
	CALL26 = 283,
	LDST16_ABS_LO12_NC = 284,
	LDST32_ABS_LO12_NC = 285,
	LDST64_ABS_LO12_NC = 286,
	LDST128_ABS_LO12_NC = 299,
	ADR_GOT_PAGE = 311,
	LD64_GOT_LO12_NC = 312,
	LD64_GOTPAGE_LO15 = 313,
};

static unsigned field(uint32_t word, unsigned low, unsigned count)
{
	return word >> low & ((1u << count) - 1);
}

static int64_t signed_field(uint32_t word, unsigned low, unsigned count)
{
	int64_t value = field(word, low, count);

	return value & (INT64_C(1) << (count - 1)) ? value - (INT64_C(1) << count) : value;
}

static struct access *add_access(struct insn *insn, bool load, int base, int64_t displacement, unsigned size)
{
	struct access *access = &insn->accesses[insn->access_count++];

	*access = (struct access){
		.load = load,
		.store = !load,
		.base = base,
		.index = NO_REGISTER,
		.displacement = displacement,
		.size = size,
		.reg = NO_REGISTER,
	};
	return access;
}

static void add_move(struct insn *insn, struct move move)
{
	insn->moves[insn->move_count++] = move;
}

static void writes(struct insn *insn, unsigned reg)
{
	if (reg < 31)
		insn->writes |= UINT32_C(1) << reg;
}

static void write_back(struct insn *insn, int base, int64_t add)
{
	add_move(insn, (struct move){ .to = base, .from = base, .plus = NO_REGISTER, .add = add });
}

static bool is_store_page(uint32_t type)
{
	return type == LDST8_ABS_LO12_NC || type == LDST16_ABS_LO12_NC || type == LDST32_ABS_LO12_NC ||
	       type == LDST64_ABS_LO12_NC || type == LDST128_ABS_LO12_NC;
}

/* An access whose offset a relocation gives. */
static void relocate_access(const struct image *image, struct insn *insn, struct access *access)
{
	const struct reloc *reloc = image->relocatable ? reloc_at(image, insn->at) : NULL;

	if (!reloc)
		return;
	if (is_store_page(reloc->type)) {
		access->fixed = true;
		access->base = NO_REGISTER;
		access->displacement = (int64_t)(reloc->symbol + (uint64_t)reloc->addend);
	} else if (reloc->type == LD64_GOT_LO12_NC || reloc->type == LD64_GOTPAGE_LO15) {
		access->fixed = true;
		access->base = NO_REGISTER;
		access->displacement = (int64_t)(IMAGE_SLOTS + (uint64_t)(reloc - image->relocs) * IMAGE_SLOT);
	} else {
		/* Thread-local, or unknown. */
		access->base = NO_REGISTER;
	}
}

static bool decode_branch(const struct image *image, uint32_t word, struct insn *insn)
{
	const struct reloc *reloc = image->relocatable ? reloc_at(image, insn->at) : NULL;
	uint64_t at = insn->at;

	if (field(word, 26, 5) == 0x05) {
		insn->flow = word >> 31 ? FLOW_CALL : FLOW_JUMP;
		insn->target = at + 4 * (uint64_t)signed_field(word, 0, 26);
	} else if (field(word, 25, 7) == 0x2a || field(word, 25, 6) == 0x1a) {
		/* b.cond, bc.cond; cbz, cbnz */
		insn->flow = FLOW_BRANCH;
		insn->target = at + 4 * (uint64_t)signed_field(word, 5, 19);
		/* An unconditional condition. */
		if (field(word, 25, 7) == 0x2a && field(word, 1, 3) == 7)
			insn->flow = FLOW_JUMP;
	} else if (field(word, 25, 6) == 0x1b) {
		insn->flow = FLOW_BRANCH;
		insn->target = at + 4 * (uint64_t)signed_field(word, 5, 14);
	} else if (field(word, 25, 7) == 0x6b) {
		/* To a register; bit 24 and others are for authentication. */
		switch (field(word, 21, 3)) {
		case 0:
			insn->flow = FLOW_JUMP_INDIRECT;
			break;
		case 1:
			insn->flow = FLOW_CALL_INDIRECT;
			break;
		case 2:
			insn->flow = FLOW_RETURN;
			break;
		default:
			insn->flow = FLOW_TRAP;
		}
		return true;
	} else if (field(word, 24, 8) == 0xd4) {
		/* svc, hvc, smc; the others stop */
		insn->flow = !field(word, 21, 3) && field(word, 0, 2) ? FLOW_SYSTEM_CALL : FLOW_TRAP;
		return true;
	} else if (field(word, 22, 10) == 0x354) {
		/* msr and mrs; moves to status and control registers, but the condition flags */
		if (field(word, 19, 3) == 3 && !field(word, 21, 1)) {
			unsigned to = field(word, 5, 14) | 1 << 14;

			if (to == 0x5a20)
				insn->state = "changes the floating-point modes";
			else if (to == 0x5a21)
				insn->state = "changes the floating-point status";
			else if (to == 0x5e82 || to == 0x5e85)
				insn->state = "changes the thread pointer";
			else if (to != 0x5a10 && to != 0x5ce5) /* nzcv; pmselr_el0, which only selects a counter */
				insn->state = "changes a system register";
		} else if (!field(word, 19, 3) && field(word, 12, 4) == 4 &&
			   (field(word, 16, 3) || field(word, 5, 3) > 2)) {
			insn->state = "changes processor state";
		}
		if (field(word, 21, 1))
			writes(insn, field(word, 0, 5));
		return true;
	} else {
		return false;
	}
	if (reloc &&
	    (reloc->type == CALL26 || reloc->type == JUMP26 || reloc->type == CONDBR19 || reloc->type == TSTBR14))
		insn->target = reloc->symbol + (uint64_t)reloc->addend;
	return true;
}

static void decode_exclusive(uint32_t word, struct insn *insn)
{
	bool load = field(word, 22, 1), ordered = field(word, 23, 1), pair = field(word, 21, 1);
	int base = (int)field(word, 5, 5);
	unsigned size = 1u << field(word, 30, 2);
	struct access *access = add_access(insn, load, base, 0, size);

	if (ordered && !pair) { /* ldar, stlr */
		if (size == 8 && field(word, 0, 5) < 31)
			access->reg = (int)field(word, 0, 5);
		if (load)
			writes(insn, field(word, 0, 5));
		return;
	}
	insn->atomic = !load || (pair && (ordered || !field(word, 31, 1)));
	if (insn->atomic)
		access->store = true;
	insn->single = ordered && pair ? false : !insn->atomic;
	if (ordered || (pair && !field(word, 31, 1)) || !load)
		writes(insn, field(word, 16, 5)); /* the old value, or the status */
	if (load) {
		writes(insn, field(word, 0, 5));
		writes(insn, field(word, 10, 5));
	}
}

static void decode_pair(uint32_t word, struct insn *insn)
{
	bool load = field(word, 22, 1), vector = field(word, 26, 1);
	unsigned opc = field(word, 30, 2), mode = field(word, 23, 2);
	unsigned size = vector ? 4u << opc : opc == 2 ? 8 : 4;
	int base = (int)field(word, 5, 5);
	int64_t offset = signed_field(word, 15, 7) * (opc == 1 && !vector && !load ? 16 : size);
	int64_t first = mode == 1 ? 0 : offset;
	unsigned regs[2] = { field(word, 0, 5), field(word, 10, 5) };

	for (unsigned i = 0; i < 2; i++) {
		struct access *access = add_access(insn, load, base, first + (int64_t)(i * size), size);

		if (!vector && size == 8 && regs[i] < 31)
			access->reg = (int)regs[i];
		if (!vector && load)
			writes(insn, regs[i]);
	}
	insn->single = false;
	if (mode & 1)
		write_back(insn, base, offset);
}

/* One register, loaded or stored. */
static void decode_single(const struct image *image, uint32_t word, struct insn *insn)
{
	unsigned scale = field(word, 30, 2), opc = field(word, 22, 2), reg = field(word, 0, 5);
	bool vector = field(word, 26, 1), load = vector ? opc & 1 : opc != 0;
	int base = (int)field(word, 5, 5);
	struct access *access;
	unsigned size;

	if (vector && opc & 2)
		scale += 4;
	size = 1u << scale;
	if (!vector && scale == 3 && opc == 2)
		return; /* prefetch */
	if (field(word, 24, 1)) {
		access = add_access(insn, load, base, (int64_t)field(word, 10, 12) * size, size);
		relocate_access(image, insn, access);
	} else if (!field(word, 21, 1)) {
		unsigned mode = field(word, 10, 2);
		int64_t offset = signed_field(word, 12, 9);

		access = add_access(insn, load, base, mode == 1 ? 0 : offset, size);
		if (mode & 1)
			write_back(insn, base, offset);
	} else if (field(word, 10, 2) == 2) {
		access = add_access(insn, load, base, 0, size);
		access->index = (int)field(word, 16, 5);
		if (access->index == 31)
			access->index = NO_REGISTER;
	} else if (field(word, 10, 2) != 0) { /* ldraa, ldrab */
		add_access(insn, true, base, 0, 8);
		writes(insn, reg);
		if (field(word, 11, 1))
			insn->writes |= 1u << base;
		return;
	} else {
		unsigned what = field(word, 12, 4);

		if (what == 12) { /* ldapr */
			add_access(insn, true, base, 0, size);
		} else if (scale == 3 && what >= 9 && what <= 13 && !field(word, 23, 1)) { /* 64 bytes */
			add_access(insn, what == 13, base, 0, 64);
			insn->single = false;
		} else {
			access = add_access(insn, true, base, 0, size);
			access->store = true;
			insn->atomic = true;
		}
		writes(insn, reg);
		return;
	}
	if (!vector && load)
		writes(insn, reg);
	/* Only plain loads and stores of whole registers carry addresses. */
	if (!vector && size == 8 && reg < 31 && opc < 2)
		access->reg = (int)reg;
}

static void decode_memory(const struct image *image, uint32_t word, struct insn *insn)
{
	int base = (int)field(word, 5, 5);

	switch (field(word, 27, 3)) {
	case 1:
		if (field(word, 26, 1)) {
			/* Structures of vectors. */
			add_access(insn, field(word, 22, 1), base, 0, 16);
			insn->single = false;
			if (field(word, 23, 1))
				insn->writes |= base < 31 ? UINT32_C(1) << base : 0;
		} else {
			decode_exclusive(word, insn);
		}
		break;
	case 3:
		if (field(word, 24, 1)) {
			bool tags = field(word, 21, 1) || field(word, 30, 2) == 3 || field(word, 10, 2) == 1;

			/* Unscaled with release or acquire; otherwise memory tags, copies and fills. */
			add_access(insn, !tags && field(word, 22, 2), base, tags ? 0 : signed_field(word, 12, 9),
				   tags ? 16 : 1u << field(word, 30, 2));
			if (field(word, 30, 2) == 3 && !field(word, 21, 1) &&
			    !field(word, 10, 2)) { /* 8 bytes, no tags */
				insn->accesses[0].load = field(word, 22, 2);
				insn->accesses[0].store = !insn->accesses[0].load;
				insn->accesses[0].displacement = signed_field(word, 12, 9);
				insn->accesses[0].size = 8;
				tags = false;
			}
			insn->single = !tags;
			writes(insn, field(word, 0, 5));
		} else {
			struct access *access;

			if (field(word, 30, 2) == 3 && !field(word, 26, 1))
				break; /* prefetch */
			access = add_access(insn, true, NO_REGISTER, 0, 8);
			access->fixed = true;
			access->displacement = (int64_t)(insn->at + 4 * (uint64_t)signed_field(word, 5, 19));
			if (!field(word, 26, 1))
				writes(insn, field(word, 0, 5));
		}
		break;
	case 5:
		decode_pair(word, insn);
		break;
	case 7:
		decode_single(image, word, insn);
		break;
	default:
		insn->flow = FLOW_BAD;
	}
}

static void decode_immediate(const struct image *image, uint32_t word, struct insn *insn)
{
	const struct reloc *reloc = image->relocatable ? reloc_at(image, insn->at) : NULL;
	unsigned to = field(word, 0, 5), from = field(word, 5, 5);

	if (field(word, 24, 5) == 0x10) { /* adr, adrp */
		uint64_t offset = (uint64_t)(signed_field(word, 5, 19) * 4 + field(word, 29, 2));
		bool page = word >> 31;
		struct move move = { .to = (int)to, .from = CONSTANT, .plus = NO_REGISTER, .exact = !page };

		writes(insn, to);
		if (to == 31)
			return;
		move.add = (int64_t)(page ? (insn->at & ~UINT64_C(4095)) + (offset << 12) : insn->at + offset);
		if (reloc) {
			/* The page of a slot, or thread-local: what comes next says it again. */
			if (reloc->type != ADR_PREL_LO21 && reloc->type != ADR_PREL_PG_HI21 &&
			    reloc->type != ADR_PREL_PG_HI21_NC)
				return;
			move.add = (int64_t)(reloc->symbol + (uint64_t)reloc->addend);
		} else if (image->relocatable) {
			return;
		}
		add_move(insn, move);
	} else if (field(word, 23, 6) == 0x22) { /* add, sub */
		int64_t add = (int64_t)field(word, 10, 12) << (field(word, 22, 1) ? 12 : 0);
		bool flags = field(word, 29, 1);
		struct move move = { .to = (int)to, .from = (int)from, .plus = NO_REGISTER, .exact = true };

		if (flags)
			writes(insn, to);
		else
			insn->writes |= to < 31 ? UINT32_C(1) << to : 0;
		if (!(word >> 31) || (flags && to == 31))
			return;
		move.add = field(word, 30, 1) ? -add : add;
		if (reloc) {
			if (reloc->type != ADD_ABS_LO12_NC)
				return;
			move.from = CONSTANT;
			move.add = (int64_t)(reloc->symbol + (uint64_t)reloc->addend);
		}
		add_move(insn, move);
	} else {
		writes(insn, to);
	}
}

static void decode_register(uint32_t word, struct insn *insn)
{
	unsigned to = field(word, 0, 5), first = field(word, 5, 5), second = field(word, 16, 5);

	writes(insn, to);
	/* mov is "orr to, xzr, second"; what is added to an address may be shifted, or extended. */
	if ((word & 0xffe0ffe0) == 0xaa0003e0 && second < 31 && to < 31)
		add_move(insn, (struct move){ .to = (int)to, .from = (int)second, .plus = NO_REGISTER });
	else if (((word & 0xff200000) == 0x8b000000 && first < 31 && second < 31 && to < 31))
		add_move(insn, (struct move){ .to = (int)to, .from = (int)first, .plus = (int)second });
	else if ((word & 0xffe00000) == 0x8b200000 && second < 31)
		add_move(insn, (struct move){ .to = (int)to, .from = (int)first, .plus = (int)second });
}

static bool decode(const struct image *image, uint64_t at, const uint8_t *code, size_t size, struct insn *insn)
{
	uint32_t word;

	*insn = (struct insn){ .at = at, .size = 4, .flow = FLOW_BAD };
	if (size < 4)
		return false;
	word = code[0] | (uint32_t)code[1] << 8 | (uint32_t)code[2] << 16 | (uint32_t)code[3] << 24;
	insn->flow = FLOW_NEXT;
	insn->single = true;
	switch (field(word, 25, 4)) {
	case 0:
		if (word >> 31) {
			insn->state = "uses the matrix extension";
			break;
		}
		/* fall through */
	case 1:
	case 3:
		insn->flow = FLOW_BAD;
		break;
	case 2: /* scalable vectors */
		if (field(word, 29, 3) == 7) {
			add_access(insn, false, (int)field(word, 5, 5), 0, 16);
			insn->single = false;
		}
		/* Some count elements into a general register. */
		writes(insn, field(word, 0, 5));
		break;
	case 4:
	case 6:
	case 12:
	case 14:
		decode_memory(image, word, insn);
		break;
	case 8:
	case 9:
		decode_immediate(image, word, insn);
		break;
	case 10:
	case 11:
		if (!decode_branch(image, word, insn))
			insn->flow = FLOW_BAD;
		break;
	case 5:
	case 13:
		decode_register(word, insn);
		break;
	default: /* vectors and floating point: some results go to general registers */
		if ((word & 0x5f20fc00) == 0x1e200000 || (word & 0xbfe0ec00) == 0x0e002c00)
			writes(insn, field(word, 0, 5));
		break;
	}
	return insn->flow != FLOW_BAD;
}

/* An entry is adrp x16; ldr x17, [x16, slot]; add; br x17, behind a landing pad perhaps. */
static uint64_t linkage_slot(const struct image *image, uint64_t entry)
{
	uint64_t page = 0;

	for (int i = 0; i < 4; i++, entry += 4) {
		size_t size = 0;
		const uint8_t *code = image_bytes(image, entry, &size);
		struct insn insn;

		if (!code || !decode(image, entry, code, size, &insn))
			return 0;
		if (insn.move_count && insn.moves[0].from == CONSTANT && insn.moves[0].to == 16)
			page = (uint64_t)insn.moves[0].add;
		else if (page && insn.access_count && insn.accesses[0].base == 16 && insn.accesses[0].load)
			return page + (uint64_t)insn.accesses[0].displacement;
	}
	return 0;
}

const struct port lint_aarch64 = {
	.name = "aarch64",
	.machine = EM_AARCH64,
	.step = 4,
	.first_argument = 0,
	.stack_pointer = SP,
	.signature = 0xd428bc00,
	.reloc_absolute = ABS_64,
	.reloc_relative = RELATIVE,
	.reloc_slot = JUMP_SLOT,
	.reloc_data = GLOB_DAT,
	.decode = decode,
	.linkage_slot = linkage_slot,
};
