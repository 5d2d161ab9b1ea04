/* SPDX-License-Identifier: MIT */
/* The rules, on one section. An instruction that breaks several is told once, by the first that it breaks. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lint/lint.h"

const char *const lint_rule_names[RULES] = {
	[RULE_CALL] = "call",
	[RULE_JUMP] = "jump",
	[RULE_COMMIT] = "commit",
	[RULE_SIGNATURE] = "signature",
	[RULE_INSTRUMENTED] = "instrumented",
	[RULE_STORE] = "store",
	[RULE_STATE] = "state",
	[RULE_NESTED] = "nested",
	[RULE_DECODE] = "decode",
};

struct judge {
	const struct image *image;
	const struct sections *sections;
	struct section *section;
	struct code code;
	finding_fn found;
	void *context;
};

static void __attribute__((format(printf, 4, 5)))
tell(struct judge *judge, enum rule rule, uint64_t at, const char *format, ...)
{
	char text[1024];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	judge->found(judge->context, judge->section, &(struct finding){ .rule = rule, .at = at, .text = text });
}

static bool in_range(const struct section *section, uint64_t address)
{
	return address - section->start < section->length;
}

static bool is_body(const struct section *section, uint64_t address)
{
	return section->kind == SECTION_C && address >= section->start && address < section->entry;
}

/* Names, by prefix, of what compilers add to code. */
static const char *instrument(const char *name)
{
	static const struct {
		const char *prefix, *what;
	} known[] = {
		{ "__stack_chk_", "the stack protector; build it with -fno-stack-protector" },
		{ "__asan_", "a sanitizer; build it without -fsanitize" },
		{ "__hwasan_", "a sanitizer; build it without -fsanitize" },
		{ "__tsan_", "a sanitizer; build it without -fsanitize" },
		{ "__ubsan_", "a sanitizer; build it without -fsanitize" },
		{ "__msan_", "a sanitizer; build it without -fsanitize" },
		{ "__lsan_", "a sanitizer; build it without -fsanitize" },
		{ "__sancov_", "a sanitizer; build it without -fsanitize-coverage" },
		{ "__sanitizer_", "a sanitizer; build it without -fsanitize-coverage" },
		{ "__gcov", "coverage or profiling; build it without --coverage and -fprofile-generate" },
		{ "__llvm_gcov", "coverage or profiling; build it without --coverage and -fprofile-generate" },
		{ "__llvm_gcda", "coverage or profiling; build it without --coverage and -fprofile-generate" },
		{ "__llvm_prf", "coverage or profiling; build it without -fprofile-instr-generate" },
		{ "__llvm_profile", "coverage or profiling; build it without -fprofile-instr-generate" },
		{ "__profc_", "coverage or profiling; build it without -fprofile-instr-generate" },
		{ "__profd_", "coverage or profiling; build it without -fprofile-instr-generate" },
		{ "mcount", "profiling; build it without -pg" },
		{ "_mcount", "profiling; build it without -pg" },
		{ "__fentry__", "profiling; build it without -pg" },
		{ "__cyg_profile_", "profiling; build it without -finstrument-functions" },
	};

	for (size_t i = 0; name && i < sizeof(known) / sizeof(*known); i++)
		if (!strncmp(name, known[i].prefix, strlen(known[i].prefix)))
			return known[i].what;
	return NULL;
}

/* What of this kind stands at @address, by its symbol or by the ELF section it lies in. */
static const char *instrument_at(const struct image *image, uint64_t address, const char **name)
{
	const struct part *part;
	uint64_t offset;
	const char *what;

	address = follow_linkage(image, address);
	*name = name_of(image, address, &offset);
	what = instrument(*name);
	part = what ? NULL : image_part(image, address);
	if (part) {
		what = instrument(part->name);
		if (what)
			*name = part->name;
	}
	return what;
}

static bool judge_instruments(struct judge *judge, size_t at)
{
	const struct image *image = judge->image;
	const struct insn *insn = &judge->code.insns[at];
	const char *name = NULL, *what = NULL;
	bool called = false;

	if (insn->guard) {
		tell(judge, RULE_INSTRUMENTED, insn->at, "reads the canary of %s", instrument("__stack_chk_"));
		return true;
	}
	if (insn->flow == FLOW_CALL || insn->flow == FLOW_JUMP || insn->flow == FLOW_BRANCH) {
		called = !in_range(judge->section, insn->target);
		what = called ? instrument_at(image, insn->target, &name) : NULL;
	}
	for (unsigned i = 0; !what && i < insn->access_count; i++) {
		struct value place = judge->code.places[at][i];

		if (place.kind != VALUE_STATIC && place.kind != VALUE_SOMEWHERE)
			continue;
		what = instrument_at(image, (uint64_t)place.offset, &name);
		/* The address of what it looks at stands in a slot. */
		if (!what && slot_target(image, (uint64_t)place.offset))
			what = instrument_at(image, slot_target(image, (uint64_t)place.offset), &name);
		called = insn->flow == FLOW_CALL_INDIRECT || insn->flow == FLOW_JUMP_INDIRECT;
	}
	for (unsigned i = 0; !what && i < insn->move_count; i++) {
		struct value value = judge->code.results[at][i];

		if (insn->moves[i].exact && value.kind == VALUE_STATIC)
			what = instrument_at(image, (uint64_t)value.offset, &name);
	}
	if (what)
		tell(judge, RULE_INSTRUMENTED, insn->at, "%s %s, of %s", called ? "calls" : "uses", name, what);
	return what;
}

static bool is_exit(const struct judge *judge, uint64_t address)
{
	for (size_t i = 0; i < judge->sections->exit_count; i++)
		if (judge->sections->exits[i].start == judge->section->start && judge->sections->exits[i].to == address)
			return true;
	return false;
}

static void judge_jump(struct judge *judge, const struct insn *insn)
{
	const struct section *section = judge->section;
	uint64_t offset = insn->target - section->start;
	char name[512];

	if (offset < section->length) {
		if (judge->code.by_offset[offset] < 0)
			tell(judge, RULE_JUMP, insn->at, "jumps into the middle of an instruction");
		return;
	}
	if (offset == section->length || insn->target == section->abort || is_exit(judge, insn->target))
		return;
	name_callee(judge->image, insn->target, name, sizeof(name));
	tell(judge, RULE_JUMP, insn->at, "jumps out of the section, to %s", name);
}

/* Whom an indirect call reaches, if it goes through a slot of a known function. */
static bool slot_callee(const struct judge *judge, size_t at, char *out, size_t size)
{
	const struct insn *insn = &judge->code.insns[at];
	uint64_t target = 0;

	if (insn->access_count && judge->code.places[at][0].kind == VALUE_STATIC)
		target = slot_target(judge->image, (uint64_t)judge->code.places[at][0].offset);
	if (target)
		name_callee(judge->image, target, out, size);
	return target;
}

static bool judge_flow(struct judge *judge, size_t at)
{
	const struct insn *insn = &judge->code.insns[at];
	const struct section *section = judge->section;
	char name[512];

	switch (insn->flow) {
	case FLOW_NEXT:
		return false;
	case FLOW_BAD:
		if (judge->code.reached[at])
			tell(judge, RULE_DECODE, insn->at, "is no instruction that percpu-lint knows");
		return true;
	case FLOW_TRAP:
		if (judge->code.reached[at])
			tell(judge, RULE_CALL, insn->at, "traps inside a section");
		return true;
	case FLOW_SYSTEM_CALL:
		tell(judge, RULE_CALL, insn->at, "makes a system call inside a section");
		return true;
	case FLOW_CALL:
		/* From the tail to the body: what a C section consists of. */
		if (section->kind == SECTION_C && insn->at >= section->entry && insn->target == section->start)
			return true;
		name_callee(judge->image, insn->target, name, sizeof(name));
		tell(judge, RULE_CALL, insn->at, "calls %s inside a section", name);
		return true;
	case FLOW_CALL_INDIRECT:
		if (!slot_callee(judge, at, name, sizeof(name)))
			strcpy(name, "through a pointer");
		tell(judge, RULE_CALL, insn->at, "calls %s inside a section", name);
		return true;
	case FLOW_RETURN:
		if (!is_body(section, insn->at))
			tell(judge, RULE_JUMP, insn->at, "returns from inside a section");
		return true;
	case FLOW_JUMP_INDIRECT:
		if (slot_callee(judge, at, name, sizeof(name)))
			tell(judge, RULE_JUMP, insn->at, "jumps out of the section, to %s", name);
		else
			tell(judge, RULE_JUMP, insn->at,
			     "jumps through a table or pointer; if it is a switch, build it with -fno-jump-tables");
		return true;
	case FLOW_BRANCH:
	case FLOW_JUMP:
		judge_jump(judge, insn);
		return true;
	}
	return false;
}

/* Stores that others can see before the commit, as far as one can tell. */
static bool judge_stores(struct judge *judge, size_t at)
{
	const struct insn *insn = &judge->code.insns[at];
	char name[512];

	if (insn->atomic) {
		tell(judge, RULE_STORE, insn->at, "changes memory atomically before the commit");
		return true;
	}
	for (unsigned i = 0; i < insn->access_count; i++) {
		struct value place = judge->code.places[at][i];

		if (!insn->accesses[i].store)
			continue;
		if (place.kind == VALUE_STATIC || place.kind == VALUE_SOMEWHERE) {
			name_place(judge->image, (uint64_t)place.offset, name, sizeof(name));
			tell(judge, RULE_STORE, insn->at, "stores to %s%s before the commit",
			     place.kind == VALUE_SOMEWHERE ? "an element of " : "", name);
			return true;
		}
		if (place.kind == VALUE_COPY && is_body(judge->section, insn->at)) {
			tell(judge, RULE_STORE, insn->at, "stores to the copy, %s%#llx, before the commit",
			     place.offset < 0 ? "-" : "+",
			     (unsigned long long)(place.offset < 0 ? -(uint64_t)place.offset : (uint64_t)place.offset));
			return true;
		}
	}
	return false;
}

/* The last instruction of the range. */
static void judge_commit(struct judge *judge, const struct insn *insn)
{
	const struct section *section = judge->section;
	unsigned stores = 0;

	if (insn->at + insn->size != section->start + section->length) {
		tell(judge, RULE_COMMIT, insn->at, "the section ends in the middle of this instruction");
		return;
	}
	for (unsigned i = 0; i < insn->access_count; i++)
		stores += insn->accesses[i].store;
	if (!stores)
		tell(judge, RULE_COMMIT, insn->at, "the section's last instruction is not a store");
	else if (stores > 1 || !insn->single)
		tell(judge, RULE_COMMIT, insn->at, "the section's last instruction is not one plain store");
}

static bool judge_nested(struct judge *judge, const struct insn *insn)
{
	for (size_t i = 0; i < judge->sections->count; i++) {
		const struct section *other = &judge->sections->all[i];

		if (!other->broken && other != judge->section && other->start == insn->at &&
		    other->start != judge->section->start) {
			tell(judge, RULE_NESTED, insn->at, "another section begins inside this one");
			return true;
		}
	}
	return false;
}

static void judge_code(struct judge *judge)
{
	size_t count = judge->code.count;

	/* What begins with a trap is never run: a mere marker, whose descriptor tells by disappearing of an interruption. */
	if (judge->section->kind == SECTION_ASM && count && judge->code.insns[0].flow == FLOW_TRAP)
		return;
	for (size_t i = 0; i < count; i++) {
		const struct insn *insn = &judge->code.insns[i];
		bool last = i + 1 == count;

		if (judge_nested(judge, insn) || judge_instruments(judge, i) || (judge_flow(judge, i) && !last))
			continue;
		if (insn->state)
			tell(judge, RULE_STATE, insn->at, "%s, which an abort would not undo", insn->state);
		else if (last && (insn->flow == FLOW_NEXT || insn->flow == FLOW_BRANCH))
			judge_commit(judge, insn);
		else if (!last)
			judge_stores(judge, i);
	}
}

/* What the descriptor says. Returns whether there is code to look at. */
static bool judge_descriptor(struct judge *judge)
{
	const struct section *section = judge->section;
	size_t code_size = 0;

	if (section->broken) {
		tell(judge, RULE_SIGNATURE, section->descriptor, "the descriptor does not point to code");
		return false;
	}
	if (section->descriptor % 32)
		tell(judge, RULE_SIGNATURE, section->start, "the descriptor is not aligned to 32 bytes");
	if (section->version || section->flags)
		tell(judge, RULE_SIGNATURE, section->start, "the descriptor's version and flags are not 0");
	if (in_range(section, section->abort))
		tell(judge, RULE_SIGNATURE, section->start, "the abort label stands inside the section");
	else if (!image_signed(judge->image, section->abort))
		tell(judge, RULE_SIGNATURE, section->start, "no signature stands before the abort label");
	if (section->kind == SECTION_C && (section->body != section->start || section->entry <= section->start ||
					   !in_range(section, section->entry))) {
		tell(judge, RULE_SIGNATURE, section->start,
		     "the record of this C section does not match its descriptor");
		return false;
	}
	image_bytes(judge->image, section->start, &code_size);
	if (!section->length) {
		tell(judge, RULE_COMMIT, section->start, "the section is empty");
		return false;
	}
	if (section->length > code_size || code_size > INT32_MAX) {
		tell(judge, RULE_COMMIT, section->start, "the section is longer than the code");
		return false;
	}
	return true;
}

int section_judge(const struct image *image, const struct sections *sections, struct section *section, finding_fn found,
		  void *context)
{
	struct judge judge = {
		.image = image, .sections = sections, .section = section, .found = found, .context = context
	};
	uint64_t offset;
	const char *name;
	int r = 0;

	name = name_of(image, section->broken ? section->descriptor : section->start, &offset);
	snprintf(section->symbol, sizeof(section->symbol), "%s", name ? name : section->label ? section->label : "?");
	if (judge_descriptor(&judge)) {
		r = code_read(image, section, &judge.code);
		if (!r)
			r = code_follow(image, section, &judge.code);
		if (!r) {
			section->instructions = judge.code.count;
			judge_code(&judge);
		}
		code_free(&judge.code);
	}
	return r;
}
