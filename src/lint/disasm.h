/* SPDX-License-Identifier: MIT */
/* Capstone, for the ports that use it. */
#ifndef PERCPU_LINT_DISASM_H
#define PERCPU_LINT_DISASM_H

#include <capstone/capstone.h>

#include "lint/lint.h"

/* The instruction at @code, or NULL; valid until the next call. Operands are in the order of AT&T: destination last. */
const cs_insn *disasm_one(const struct port *port, uint64_t at, const uint8_t *code, size_t size);

#endif
