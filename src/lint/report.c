/* SPDX-License-Identifier: MIT */
/* Judges the sections of an image and tells what was found. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lint/report.h"

static const char *const kind_names[] = { [SECTION_ASM] = "assembly", [SECTION_C] = "C" };

/* What the section that is being judged has so far. */
struct telling {
	struct report *report;
	const struct image *image;
	json_t *findings;
	size_t count, allowed;
};

int report_begin(struct report *report)
{
	json_t *root = report->json ? json_object() : NULL;

	if (!report->json)
		return 0;
	report->root = root;
	return root && !json_object_set_new(root, "files", json_array()) ? 0 : -ENOMEM;
}

/* Names come from files, and may be anything; JSON is UTF-8. */
static json_t *json_text(const char *text)
{
	json_t *json = json_string(text);
	char *copy;

	if (json)
		return json;
	copy = strdup(text);
	for (char *c = copy; c && *c; c++)
		if (*c & 0x80)
			*c = '?';
	json = copy ? json_string(copy) : NULL;
	free(copy);
	return json;
}

/* Where something stands: in a section in C behind its name, otherwise behind the nearest symbol. */
static void place_in(const struct image *image, const struct section *section, uint64_t at, char *out, size_t size)
{
	uint64_t offset = at - section->start;

	if (section->label && offset < section->length)
		snprintf(out, size, offset ? "%s+%#llx" : "%s", section->label, (unsigned long long)offset);
	else
		name_place(image, at, out, size);
}

static bool is_allowed(const struct report *report, const struct section *section, enum rule rule)
{
	for (size_t i = 0; i < report->allowed_count; i++) {
		const struct allowance *allowed = &report->allowed[i];

		if (allowed->rule == rule && (!allowed->symbol || !strcmp(allowed->symbol, section->symbol) ||
					      (section->label && !strcmp(allowed->symbol, section->label))))
			return true;
	}
	return false;
}

static void found(void *context, const struct section *section, const struct finding *finding)
{
	struct telling *telling = context;
	struct report *report = telling->report;
	bool allowed = is_allowed(report, section, finding->rule);
	const char *rule = lint_rule_names[finding->rule];
	char place[512], code[256] = "";

	place_in(telling->image, section, finding->at, place, sizeof(place));
	telling->count += !allowed;
	telling->allowed += allowed;
	report->findings += !allowed;
	report->allowed_findings += allowed;
	if (report->json) {
		disasm_text(telling->image, finding->at, code, sizeof(code));
		json_array_append_new(telling->findings,
				      json_pack("{s:s, s:o, s:o, s:s, s:b}", "rule", rule, "place", json_text(place),
						"text", json_text(finding->text), "code", code, "allowed", allowed));
		return;
	}
	if (allowed && !report->verbose)
		return;
	printf("%s: %s: %s [%s]%s\n", telling->image->file, place, finding->text, rule, allowed ? " (allowed)" : "");
}

static const char *verdict(const struct telling *telling)
{
	return telling->count ? "bad" : telling->allowed ? "allowed" : "ok";
}

static int one_section(struct report *report, const struct image *image, const struct sections *sections,
		       struct section *section)
{
	struct telling telling = { .report = report, .image = image };
	char place[512];
	int r;

	if (report->json) {
		telling.findings = json_array();
		if (!telling.findings)
			return -ENOMEM;
	}
	r = section_judge(image, sections, section, found, &telling);
	report->sections++;
	place_in(image, section, section->broken ? section->descriptor : section->start, place, sizeof(place));
	if (report->json) {
		json_t *one = json_pack("{s:s, s:o, s:o, s:I, s:I, s:s, s:o}", "kind", kind_names[section->kind],
					"symbol", json_text(section->label ? section->label : section->symbol), "place",
					json_text(place), "bytes", (json_int_t)section->length, "instructions",
					(json_int_t)section->instructions, "verdict", verdict(&telling), "findings",
					telling.findings);

		if (json_array_append_new(json_object_get(report->file, "sections"), one))
			return -ENOMEM;
	} else if (report->verbose) {
		printf("%s: %s: section in %s, %zu instructions: %s\n", image->file, place, kind_names[section->kind],
		       section->instructions, verdict(&telling));
	}
	return r;
}

int report_image(struct report *report, const struct image *image)
{
	struct sections sections;
	int r = sections_find(image, &sections);

	if (r)
		return r;
	report->files++;
	if (report->json) {
		report->file = json_pack("{s:o, s:s, s:[]}", "file", json_text(image->file), "machine",
					 image->port->name, "sections");
		if (json_array_append_new(json_object_get(report->root, "files"), report->file)) {
			sections_free(&sections);
			return -ENOMEM;
		}
	}
	for (size_t i = 0; !r && i < sections.count; i++)
		r = one_section(report, image, &sections, &sections.all[i]);
	sections_free(&sections);
	return r;
}

int report_end(struct report *report)
{
	int r = 0;

	if (report->json) {
		json_object_set_new(report->root, "section_count", json_integer((json_int_t)report->sections));
		json_object_set_new(report->root, "finding_count", json_integer((json_int_t)report->findings));
		r = json_dumpf(report->root, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII);
		putchar('\n');
		json_decref(report->root);
	} else if (report->verbose) {
		printf("%zu sections in %zu objects, %zu findings", report->sections, report->files, report->findings);
		if (report->allowed_findings)
			printf(", %zu allowed", report->allowed_findings);
		putchar('\n');
	}
	return r ? -EIO : 0;
}
