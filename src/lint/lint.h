/* SPDX-License-Identifier: MIT */
/*
 * percpu-lint: reads compiled objects and finds sections that break the rules of restartable sequences.
 *
 * An object file becomes an image: every loaded ELF section has an address, and so has everything that a relocation can
 * name. In linked files these are the real ones. In relocatable files we deal them out ourselves: to sections, far apart
 * from each other; to undefined symbols, above IMAGE_UNDEFINED; to the slots of the global offset table that a linker would
 * make, above IMAGE_SLOTS. So code is judged in the same way before and after linking.
 *
 * A port (x86_64.c, aarch64.c) turns an instruction into a struct insn; flow.c follows addresses through registers and
 * spills; rules.c judges. Input is not trusted: every address is looked up before it is read.
 */
#ifndef PERCPU_LINT_LINT_H
#define PERCPU_LINT_LINT_H

#include <gelf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMAGE_UNDEFINED      ((uint64_t)1 << 62)
#define IMAGE_UNDEFINED_STEP ((uint64_t)1 << 32)
#define IMAGE_SLOTS          ((uint64_t)1 << 61)
#define IMAGE_SLOT           16

/* A loaded ELF section. */
struct part {
	const char *name;
	uint64_t address, size;
	const uint8_t *bytes; /* NULL if the file holds none */
	uint64_t flags;
	size_t index;
};

/* A relocation, at an address; @symbol is an address too (0 without symbol). */
struct reloc {
	uint64_t where;
	uint32_t type;
	bool in_place; /* the addend stands in the memory that is relocated */
	uint64_t symbol;
	int64_t addend;
};

struct symbol {
	uint64_t address, size;
	const char *name;
	int rank; /* of several at one address, the best name has the highest */
};

struct image {
	const char *file; /* as findings name it: FILE or ARCHIVE(MEMBER) */
	Elf *elf;
	const struct port *port;
	bool relocatable, big_endian;
	bool fixed;         /* linked to run at one address: constants in code may be addresses */
	struct part *parts; /* by address */
	size_t part_count;
	const struct part **by_index; /* by the number of the ELF section; NULL for those that are not loaded */
	size_t index_count;
	struct reloc *relocs; /* by address */
	size_t reloc_count;
	struct symbol *symbols; /* by address, then rank */
	size_t symbol_count;
	const char **undefined; /* names, by index of the symbol table that relocations use */
	size_t undefined_count;
};

/* Registers: a port's numbers for what can hold an address, below REGISTERS. */
enum { REGISTERS = 32, NO_REGISTER = -1, CONSTANT = -2 };

enum flow_kind {
	FLOW_NEXT,
	FLOW_BRANCH, /* to target, or the next instruction */
	FLOW_JUMP,
	FLOW_JUMP_INDIRECT,
	FLOW_CALL,
	FLOW_CALL_INDIRECT,
	FLOW_RETURN,
	FLOW_SYSTEM_CALL,
	FLOW_TRAP,
	FLOW_BAD, /* cannot be decoded */
};

/* What an instruction does with memory. The address is base + index + displacement, or, if @fixed, @displacement (+ index). */
struct access {
	bool load, store, fixed;
	int base, index;
	int64_t displacement;
	unsigned size;
	int reg; /* a whole address register that is loaded or stored, or NO_REGISTER */
};

/* to = from + plus + add; from may be CONSTANT, plus NO_REGISTER. All read what was before the instruction. */
struct move {
	int to, from, plus;
	int64_t add;
	bool exact; /* the result is an address, not a part of one */
};

struct insn {
	uint64_t at, target;
	unsigned size;
	enum flow_kind flow;
	const char *state; /* what of the processor's state it changes that an abort would not restore */
	bool atomic;       /* locked or exclusive: seen by others at once */
	bool single;       /* if it stores: in one piece, and without fail */
	bool guard;        /* reads the stack protector's canary */
	unsigned access_count;
	struct access accesses[3];
	unsigned move_count;
	struct move moves[3];
	uint32_t writes; /* registers that are written, but for what moves and loads say */
};

struct port {
	const char *name;
	unsigned machine;
	unsigned step; /* to go on after bytes that are no instruction */
	int first_argument, stack_pointer;
	uint32_t signature; /* as little-endian bytes in front of the abort label */
	uint32_t reloc_absolute, reloc_relative, reloc_slot, reloc_data;
	/* Fills *insn from @size bytes at @code; false if they are no instruction. */
	bool (*decode)(const struct image *image, uint64_t at, const uint8_t *code, size_t size, struct insn *insn);
	/* The slot through which the code at an entry of a procedure linkage table jumps, or 0. */
	uint64_t (*linkage_slot)(const struct image *image, uint64_t entry);
};
extern const struct port lint_x86_64, lint_aarch64;

enum section_kind { SECTION_ASM, SECTION_C };

/* A restartable sequence: [start, end), and where it goes when it is aborted. */
struct section {
	enum section_kind kind;
	uint64_t descriptor, start, length, abort;
	uint32_t version, flags;
	bool broken;          /* the descriptor cannot be read: start is 0 */
	uint64_t body, entry; /* of a C section: body <= code of the function < entry */
	const char *label;    /* of a C section: its name, or NULL */
	size_t instructions;
	char symbol[256]; /* the function that contains it */
};

struct exit_point {
	uint64_t start, to;
};

struct sections {
	struct section *all;
	size_t count;
	struct exit_point *exits;
	size_t exit_count;
};

enum rule {
	RULE_CALL,
	RULE_JUMP,
	RULE_COMMIT,
	RULE_SIGNATURE,
	RULE_INSTRUMENTED,
	RULE_STORE,
	RULE_STATE,
	RULE_NESTED,
	RULE_DECODE,
	RULES
};
extern const char *const lint_rule_names[RULES];

/* object.c. -errno or 0; *why is a plain sentence on failure. */
int image_open(struct image *image, const char *file, void *bytes, size_t size, const char **why);
void image_close(struct image *image);
const struct part *image_part(const struct image *image, uint64_t address);
const struct part *image_part_by_index(const struct image *image, size_t index);
/* The bytes at @address, *size of them to the end of their ELF section; NULL if there are none. */
const uint8_t *image_bytes(const struct image *image, uint64_t address, size_t *size);
uint64_t image_word(const struct image *image, const uint8_t *bytes, unsigned size);
/* Whether the 4 bytes before @address are the port's signature; instructions are little-endian everywhere. */
bool image_signed(const struct image *image, uint64_t address);
/* A word of 8 bytes at @address, relocated. */
bool image_pointer(const struct image *image, uint64_t address, uint64_t *value);
const char *image_string(const struct image *image, uint64_t address);

/* reloc.c */
int relocs_read(struct image *image, const char **why);
/* The first relocation in [address, address + size), or NULL. */
const struct reloc *reloc_in(const struct image *image, uint64_t address, uint64_t size);
const struct reloc *reloc_at(const struct image *image, uint64_t address);
/* The address that a slot of the global offset table holds; 0 if @slot is none, or holds something else. */
uint64_t slot_target(const struct image *image, uint64_t slot);

/* names.c */
int names_read(struct image *image, const char **why);
/* The symbol that contains @address or stands last before it, and how far in front; NULL if there is none. */
const char *name_of(const struct image *image, uint64_t address, uint64_t *offset);
/* "function+0x12", ".text+0x123". */
void name_place(const struct image *image, uint64_t address, char *out, size_t size);
/* Who is called at @address: follows linkage tables. */
void name_callee(const struct image *image, uint64_t address, char *out, size_t size);
uint64_t follow_linkage(const struct image *image, uint64_t address);

/* find.c */
int sections_find(const struct image *image, struct sections *out);
void sections_free(struct sections *sections);

/* flow.c: what a register holds. */
enum value_kind {
	VALUE_UNSEEN, /* no path has come here yet */
	VALUE_ANY,
	VALUE_COPY,      /* this copy's address + offset */
	VALUE_FRAME,     /* the stack pointer at the body's first instruction + offset */
	VALUE_STATIC,    /* the address @offset */
	VALUE_SOMEWHERE, /* behind the address @offset */
};
struct value {
	enum value_kind kind;
	int64_t offset;
};

/* The code of a section: its instructions, and for each what its accesses reach. */
struct code {
	struct insn *insns;
	size_t count;
	int32_t *by_offset; /* index of the instruction that begins there, or -1 */
	bool *reached;
	struct value (*places)[3];  /* of insns[i].accesses */
	struct value (*results)[3]; /* of insns[i].moves */
};
int code_read(const struct image *image, const struct section *section, struct code *code);
int code_follow(const struct image *image, const struct section *section, struct code *code);
void code_free(struct code *code);

/* rules.c: judges one section; calls @found for each finding. -ENOMEM or 0. */
struct finding {
	enum rule rule;
	uint64_t at;
	const char *text;
};
typedef void (*finding_fn)(void *context, const struct section *section, const struct finding *finding);
int section_judge(const struct image *image, const struct sections *sections, struct section *section, finding_fn found,
		  void *context);

/* disasm.c */
int disasm_open(void);
void disasm_close(void);
/* An instruction as assembly text, on one line. */
void disasm_text(const struct image *image, uint64_t at, char *out, size_t size);

#endif
