/* SPDX-License-Identifier: MIT */
/*
 * Finds the sections of an image. Descriptors stand in the ELF section __rseq_cs, by the convention of Linux's users of
 * rseq; some list them in __rseq_cs_ptr_array too. Linker scripts may have moved them elsewhere, so all data is searched
 * for what can only be a descriptor: four words of which the last points just behind a signature in code.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lint/lint.h"

#define DESCRIPTOR_SIZE 32
#define RECORD_SIZE     32 /* of __percpu_c_sections: body, entry, descriptor, name */

static bool named(const struct part *part, const char *name)
{
	size_t length = strlen(name);

	return !strncmp(part->name, name, length) && (!part->name[length] || part->name[length] == '.');
}

static bool in_code(const struct image *image, uint64_t address)
{
	const struct part *part = image_part(image, address);

	return part && (part->flags & SHF_EXECINSTR);
}

static struct section *known(struct sections *sections, uint64_t descriptor)
{
	for (size_t i = 0; i < sections->count; i++)
		if (sections->all[i].descriptor == descriptor)
			return &sections->all[i];
	return NULL;
}

/* Makes room by doubling, whenever a count is a power of two. */
static void *grown(void *array, size_t count, size_t size)
{
	return count & (count - 1) ? array : realloc(array, (count ? 2 * count : 1) * size);
}

static int add(const struct image *image, struct sections *sections, uint64_t descriptor, struct section **out)
{
	struct section *section, *all = grown(sections->all, sections->count, sizeof(*all));
	size_t size = 0;
	const uint8_t *bytes = image_bytes(image, descriptor, &size);

	if (!all)
		return -ENOMEM;
	sections->all = all;
	section = &all[sections->count++];
	memset(section, 0, sizeof(*section));
	section->descriptor = descriptor;
	if (bytes && size >= DESCRIPTOR_SIZE) {
		section->version = (uint32_t)image_word(image, bytes, 4);
		section->flags = (uint32_t)image_word(image, bytes + 4, 4);
		section->length = image_word(image, bytes + 16, 8);
	}
	section->broken = !bytes || size < DESCRIPTOR_SIZE || reloc_at(image, descriptor + 16) ||
			  !image_pointer(image, descriptor + 8, &section->start) ||
			  !image_pointer(image, descriptor + 24, &section->abort) || !in_code(image, section->start);
	if (out)
		*out = section;
	return 0;
}

static int by_descriptor(const void *a, const void *b)
{
	const struct section *x = a, *y = b;

	return x->descriptor < y->descriptor ? -1 : x->descriptor > y->descriptor;
}

/* Descriptors that several of our searches found count once. */
static void sort_out(struct sections *sections)
{
	size_t kept = 0;

	if (sections->count)
		qsort(sections->all, sections->count, sizeof(*sections->all), by_descriptor);
	for (size_t i = 0; i < sections->count; i++)
		if (!kept || sections->all[i].descriptor != sections->all[kept - 1].descriptor)
			sections->all[kept++] = sections->all[i];
	sections->count = kept;
}

static int read_array(const struct image *image, const struct part *part, struct sections *out)
{
	int r = 0;

	for (uint64_t i = 0; !r && i < part->size; i += DESCRIPTOR_SIZE)
		r = add(image, out, part->address + i, NULL);
	return r;
}

static int read_pointers(const struct image *image, const struct part *part, struct sections *out)
{
	int r = 0;

	for (uint64_t i = 0; !r && i + 8 <= part->size; i += 8) {
		uint64_t descriptor;

		if (image_pointer(image, part->address + i, &descriptor) && descriptor)
			r = add(image, out, descriptor, NULL);
	}
	return r;
}

static int search(const struct image *image, const struct part *part, struct sections *out)
{
	/* Descriptors are aligned to at least a word, or the kernel would not find them either. */
	uint64_t first = -part->address & 7;
	int r = 0;

	if (!part->bytes || (part->flags & SHF_EXECINSTR))
		return 0;
	for (uint64_t i = first; !r && i + DESCRIPTOR_SIZE <= part->size; i += 8) {
		uint64_t at = part->address + i, start, abort;

		if (image_pointer(image, at + 24, &abort) && in_code(image, abort) && image_signed(image, abort) &&
		    image_pointer(image, at + 8, &start) && in_code(image, start))
			r = add(image, out, at, NULL);
	}
	return r;
}

static int read_exits(const struct image *image, const struct part *part, struct sections *out)
{
	for (uint64_t i = 0; i + 16 <= part->size; i += 16) {
		struct exit_point point, *exits;

		if (!image_pointer(image, part->address + i, &point.start) ||
		    !image_pointer(image, part->address + i + 8, &point.to))
			continue;
		exits = grown(out->exits, out->exit_count, sizeof(*exits));
		if (!exits)
			return -ENOMEM;
		out->exits = exits;
		exits[out->exit_count++] = point;
	}
	return 0;
}

static int read_records(const struct image *image, const struct part *part, struct sections *out)
{
	for (uint64_t i = 0; i + RECORD_SIZE <= part->size; i += RECORD_SIZE) {
		uint64_t at = part->address + i, body, entry, descriptor, name;
		struct section *section;

		if (!image_pointer(image, at, &body) || !image_pointer(image, at + 8, &entry) ||
		    !image_pointer(image, at + 16, &descriptor))
			continue;
		section = known(out, descriptor);
		if (!section && add(image, out, descriptor, &section))
			return -ENOMEM;
		section->kind = SECTION_C;
		section->body = body;
		section->entry = entry;
		if (image_pointer(image, at + 24, &name))
			section->label = image_string(image, name);
	}
	return 0;
}

int sections_find(const struct image *image, struct sections *out)
{
	int r = 0;

	memset(out, 0, sizeof(*out));
	for (size_t i = 0; !r && i < image->part_count; i++) {
		const struct part *part = &image->parts[i];

		if (named(part, "__rseq_cs"))
			r = read_array(image, part, out);
		else if (named(part, "__rseq_cs_ptr_array"))
			r = read_pointers(image, part, out);
		else if (named(part, "__rseq_exit_point_array"))
			r = read_exits(image, part, out);
		else if (!named(part, "__percpu_c_sections"))
			r = search(image, part, out);
	}
	sort_out(out);
	for (size_t i = 0; !r && i < image->part_count; i++)
		if (named(&image->parts[i], "__percpu_c_sections"))
			r = read_records(image, &image->parts[i], out);
	if (r)
		sections_free(out);
	return r;
}

void sections_free(struct sections *sections)
{
	free(sections->all);
	free(sections->exits);
	memset(sections, 0, sizeof(*sections));
}
