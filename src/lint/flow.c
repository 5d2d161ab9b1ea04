/* SPDX-License-Identifier: MIT */
/*
 * The code of a section, and what its registers hold where: the first argument of a C section's body is the copy, and is
 * followed through moves, additions of constants and spills; so are addresses of static data. Where two paths meet that
 * disagree, a value is unknown. Values only ever become less known, so the search ends.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lint/lint.h"

#define SPILLS 48

/* What is known before an instruction. A spill is a whole register at @at bytes from the frame. */
struct state {
	struct value regs[REGISTERS];
	unsigned spill_count;
	struct spill {
		int64_t at;
		struct value value;
	} spills[SPILLS];
};

int code_read(const struct image *image, const struct section *section, struct code *code)
{
	size_t size = 0, room = 0, at = 0;
	const uint8_t *bytes = image_bytes(image, section->start, &size);

	memset(code, 0, sizeof(*code));
	code->by_offset = malloc((section->length + 1) * sizeof(*code->by_offset));
	if (!code->by_offset)
		return -ENOMEM;
	memset(code->by_offset, 0xff, (section->length + 1) * sizeof(*code->by_offset));
	while (bytes && at < section->length) {
		struct insn *insn;

		if (code->count == room) {
			struct insn *more = realloc(code->insns, (room ? 2 * room : 64) * sizeof(*more));

			if (!more)
				return -ENOMEM;
			code->insns = more;
			room = room ? 2 * room : 64;
		}
		insn = &code->insns[code->count];
		if (!image->port->decode(image, section->start + at, bytes + at, size - at, insn))
			insn->size = image->port->step;
		code->by_offset[at] = (int32_t)code->count++;
		at += insn->size;
	}
	code->reached = calloc(code->count + 1, sizeof(*code->reached));
	code->places = calloc(code->count + 1, sizeof(*code->places));
	code->results = calloc(code->count + 1, sizeof(*code->results));
	return code->reached && code->places && code->results ? 0 : -ENOMEM;
}

void code_free(struct code *code)
{
	free(code->insns);
	free(code->by_offset);
	free(code->reached);
	free(code->places);
	free(code->results);
	memset(code, 0, sizeof(*code));
}

static const struct value any = { VALUE_ANY, 0 };

static struct value join(struct value a, struct value b)
{
	bool fixed = (a.kind == VALUE_STATIC || a.kind == VALUE_SOMEWHERE) &&
		     (b.kind == VALUE_STATIC || b.kind == VALUE_SOMEWHERE);

	if (a.kind == VALUE_UNSEEN)
		return b;
	if (b.kind == VALUE_UNSEEN || (a.kind == b.kind && a.offset == b.offset))
		return a;
	/* Either is static data; a, so that it does not go to and fro. */
	return fixed ? (struct value){ VALUE_SOMEWHERE, a.offset } : any;
}

static const struct spill *spilled(const struct state *state, int64_t at)
{
	for (unsigned i = 0; i < state->spill_count; i++)
		if (state->spills[i].at == at)
			return &state->spills[i];
	return NULL;
}

static void spill(struct state *state, int64_t at, unsigned size, struct value value)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < state->spill_count; i++)
		if (state->spills[i].at + 8 <= at || at + (int64_t)size <= state->spills[i].at)
			state->spills[kept++] = state->spills[i];
	if (value.kind > VALUE_ANY && kept < SPILLS)
		state->spills[kept++] = (struct spill){ at, value };
	state->spill_count = kept;
}

/* Returns whether @into became another. */
static bool merge(struct state *into, const struct state *from)
{
	struct state old = *into;

	for (int i = 0; i < REGISTERS; i++)
		into->regs[i] = join(old.regs[i], from->regs[i]);
	into->spill_count = 0;
	for (unsigned i = 0; i < old.spill_count; i++) {
		const struct spill *other = spilled(from, old.spills[i].at);
		struct value value = other ? join(old.spills[i].value, other->value) : any;

		if (value.kind > VALUE_ANY)
			into->spills[into->spill_count++] = (struct spill){ old.spills[i].at, value };
	}
	for (int i = 0; i < REGISTERS; i++)
		if (into->regs[i].kind != old.regs[i].kind || into->regs[i].offset != old.regs[i].offset)
			return true;
	if (into->spill_count != old.spill_count)
		return true;
	for (unsigned i = 0; i < old.spill_count; i++)
		if (into->spills[i].value.kind != old.spills[i].value.kind ||
		    into->spills[i].value.offset != old.spills[i].value.offset)
			return true;
	return false;
}

static struct value reg(const struct state *state, int number)
{
	return number >= 0 && number < REGISTERS ? state->regs[number] : any;
}

static struct value moved(struct value value, int64_t by)
{
	if (value.kind > VALUE_ANY)
		value.offset = (int64_t)((uint64_t)value.offset + (uint64_t)by);
	return value;
}

/* The sum with what is not known: somewhere in the same static data, or anywhere. */
static struct value indexed(struct value value)
{
	return value.kind == VALUE_STATIC || value.kind == VALUE_SOMEWHERE
		       ? (struct value){ VALUE_SOMEWHERE, value.offset }
		       : any;
}

static struct value place(const struct state *state, const struct access *access)
{
	struct value base = reg(state, access->base), index = reg(state, access->index);

	if (access->fixed) {
		base = (struct value){ VALUE_STATIC, access->displacement };
		return access->base == NO_REGISTER && access->index == NO_REGISTER ? base : indexed(base);
	}
	if (access->index == NO_REGISTER)
		return moved(base, access->displacement);
	if (indexed(base).kind != VALUE_ANY)
		return indexed(base);
	return access->base == NO_REGISTER ? any : indexed(index);
}

static struct value result(const struct state *state, const struct move *move)
{
	struct value from = move->from == CONSTANT ? (struct value){ VALUE_STATIC, move->add }
						   : moved(reg(state, move->from), move->add);

	if (move->plus == NO_REGISTER)
		return from;
	return indexed(from).kind != VALUE_ANY ? indexed(from) : indexed(reg(state, move->plus));
}

static struct value loaded(const struct image *image, const struct state *state, struct value from)
{
	const struct spill *found = from.kind == VALUE_FRAME ? spilled(state, from.offset) : NULL;
	uint64_t target = from.kind == VALUE_STATIC ? slot_target(image, (uint64_t)from.offset) : 0;

	if (found)
		return found->value;
	return target ? (struct value){ VALUE_STATIC, (int64_t)target } : any;
}

static void run(const struct image *image, struct code *code, size_t at, struct state *state)
{
	const struct insn *insn = &code->insns[at];
	struct value values[3] = { any, any, any };

	for (unsigned i = 0; i < insn->access_count; i++) {
		code->places[at][i] = place(state, &insn->accesses[i]);
		values[i] = insn->accesses[i].load ? loaded(image, state, code->places[at][i])
						   : reg(state, insn->accesses[i].reg);
	}
	for (unsigned i = 0; i < insn->move_count; i++)
		code->results[at][i] = result(state, &insn->moves[i]);
	for (unsigned i = 0; i < insn->access_count; i++)
		if (insn->accesses[i].store && code->places[at][i].kind == VALUE_FRAME)
			spill(state, code->places[at][i].offset, insn->accesses[i].size,
			      insn->accesses[i].load ? any : values[i]);
	for (int i = 0; i < REGISTERS; i++)
		if (insn->writes >> i & 1)
			state->regs[i] = any;
	for (unsigned i = 0; i < insn->access_count; i++)
		if (insn->accesses[i].load && insn->accesses[i].reg != NO_REGISTER)
			state->regs[insn->accesses[i].reg] = values[i];
	for (unsigned i = 0; i < insn->move_count; i++)
		state->regs[insn->moves[i].to] = code->results[at][i];
	if (insn->flow == FLOW_CALL || insn->flow == FLOW_CALL_INDIRECT)
		for (int i = 0; i < REGISTERS; i++)
			if (i != image->port->stack_pointer)
				state->regs[i] = any;
}

struct search {
	struct code *code;
	struct state *before;
	size_t *stack, depth;
	bool *waiting;
};

static void reach(struct search *search, const struct section *section, uint64_t address, const struct state *state)
{
	int32_t next =
		address - section->start < section->length ? search->code->by_offset[address - section->start] : -1;

	if (next < 0)
		return;
	if (!search->code->reached[next]) {
		search->code->reached[next] = true;
		search->before[next] = *state;
	} else if (!merge(&search->before[next], state)) {
		return;
	}
	if (!search->waiting[next]) {
		search->waiting[next] = true;
		search->stack[search->depth++] = (size_t)next;
	}
}

int code_follow(const struct image *image, const struct section *section, struct code *code)
{
	struct search search = { .code = code };
	struct state state = { 0 };

	search.before = malloc((code->count + 1) * sizeof(*search.before));
	search.stack = malloc((code->count + 1) * sizeof(*search.stack));
	search.waiting = calloc(code->count + 1, sizeof(*search.waiting));
	if (!search.before || !search.stack || !search.waiting) {
		free(search.before);
		free(search.stack);
		free(search.waiting);
		return -ENOMEM;
	}
	for (int i = 0; i < REGISTERS; i++)
		state.regs[i] = any;
	if (section->kind == SECTION_C) {
		reach(&search, section, section->entry, &state);
		state.regs[image->port->first_argument] = (struct value){ VALUE_COPY, 0 };
		state.regs[image->port->stack_pointer] = (struct value){ VALUE_FRAME, 0 };
	}
	reach(&search, section, section->start, &state);
	while (search.depth) {
		size_t at = search.stack[--search.depth];
		const struct insn *insn = &code->insns[at];

		search.waiting[at] = false;
		state = search.before[at];
		run(image, code, at, &state);
		if (insn->flow == FLOW_BRANCH || insn->flow == FLOW_JUMP)
			reach(&search, section, insn->target, &state);
		if (insn->flow == FLOW_NEXT || insn->flow == FLOW_BRANCH || insn->flow == FLOW_CALL ||
		    insn->flow == FLOW_CALL_INDIRECT || insn->flow == FLOW_SYSTEM_CALL)
			reach(&search, section, insn->at + insn->size, &state);
	}
	free(search.before);
	free(search.stack);
	free(search.waiting);
	return 0;
}
