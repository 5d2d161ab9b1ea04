/* SPDX-License-Identifier: MIT */
/* What is told: lines of text, or one JSON object at the end. */
#ifndef PERCPU_LINT_REPORT_H
#define PERCPU_LINT_REPORT_H

#include "lint/lint.h"

/* A finding that is not to count: of one section, or of all if @symbol is NULL. */
struct allowance {
	enum rule rule;
	const char *symbol;
};

struct report {
	bool json, verbose;
	const struct allowance *allowed;
	size_t allowed_count;
	size_t files, sections, findings, allowed_findings;
	void *root, *file; /* JSON */
};

int report_begin(struct report *report);
/* -ENOMEM or 0. */
int report_image(struct report *report, const struct image *image);
/* Writes what is left. */
int report_end(struct report *report);

#endif
