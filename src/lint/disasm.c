/* SPDX-License-Identifier: MIT */
/* Instructions as capstone sees them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "lint/disasm.h"

static csh x86_handle, arm_handle;
static cs_insn *x86_one, *arm_one;

int disasm_open(void)
{
	if (cs_open(CS_ARCH_X86, CS_MODE_64, &x86_handle) ||
	    cs_open(CS_ARCH_ARM64, CS_MODE_LITTLE_ENDIAN, &arm_handle) ||
	    cs_option(x86_handle, CS_OPT_SYNTAX, CS_OPT_SYNTAX_ATT) || cs_option(x86_handle, CS_OPT_DETAIL, CS_OPT_ON))
		return -ENOSYS;
	x86_one = cs_malloc(x86_handle);
	arm_one = cs_malloc(arm_handle);
	return x86_one && arm_one ? 0 : -ENOMEM;
}

void disasm_close(void)
{
	if (x86_one)
		cs_free(x86_one, 1);
	if (arm_one)
		cs_free(arm_one, 1);
	x86_one = arm_one = NULL;
	if (x86_handle)
		cs_close(&x86_handle);
	if (arm_handle)
		cs_close(&arm_handle);
}

const cs_insn *disasm_one(const struct port *port, uint64_t at, const uint8_t *code, size_t size)
{
	bool x86 = port == &lint_x86_64;
	cs_insn *insn = x86 ? x86_one : arm_one;

	return cs_disasm_iter(x86 ? x86_handle : arm_handle, &code, &size, &at, insn) ? insn : NULL;
}

void disasm_text(const struct image *image, uint64_t at, char *out, size_t size)
{
	size_t room = 0;
	const uint8_t *code = image_bytes(image, at, &room);
	const cs_insn *insn = code ? disasm_one(image->port, at, code, room) : NULL;

	if (insn) {
		snprintf(out, size, "%s%s%s", insn->mnemonic, *insn->op_str ? " " : "", insn->op_str);
	} else {
		size_t length = 0;

		*out = '\0';
		for (size_t i = 0; code && i < room && i < 4 && length + 4 < size; i++)
			length += (size_t)snprintf(out + length, size - length, "%s%02x", i ? " " : "", code[i]);
	}
}
