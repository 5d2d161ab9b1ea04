/* SPDX-License-Identifier: MIT */
/*
 * Relocations: of a relocatable file, or those that the dynamic linker would do. Packed ones (SHT_RELR) need no reading: the
 * word that they relocate holds the address as linked, which is what we call it too.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lint/lint.h"

static int by_address(const void *a, const void *b)
{
	const struct reloc *x = a, *y = b;

	return x->where < y->where ? -1 : x->where > y->where;
}

static struct reloc *add(struct image *image, size_t *room)
{
	struct reloc *more = image->relocs;

	if (image->reloc_count == *room) {
		*room = *room ? 2 * *room : 256;
		more = realloc(image->relocs, *room * sizeof(*more));
		if (!more)
			return NULL;
		image->relocs = more;
	}
	more += image->reloc_count++;
	memset(more, 0, sizeof(*more));
	return more;
}

/* Where a relocation's symbol stands; one that is not in this file gets an address of its own. */
static uint64_t symbol_address(const struct image *image, Elf_Data *symbols, Elf_Data *extended, size_t index)
{
	GElf_Sym symbol;
	Elf32_Word section = 0;
	const struct part *part;

	if (!index || !symbols || !gelf_getsymshndx(symbols, extended, (int)index, &symbol, &section))
		return 0;
	if (symbol.st_shndx != SHN_XINDEX)
		section = symbol.st_shndx;
	if (symbol.st_shndx == SHN_ABS)
		return symbol.st_value;
	if (symbol.st_shndx == SHN_UNDEF || symbol.st_shndx == SHN_COMMON)
		return IMAGE_UNDEFINED + index * IMAGE_UNDEFINED_STEP;
	if (!image->relocatable)
		return symbol.st_value;
	part = image_part_by_index(image, section);
	return part ? part->address + symbol.st_value : 0;
}

static Elf_Data *extended_indexes(const struct image *image, size_t symbols)
{
	Elf_Scn *scn = NULL;
	GElf_Shdr header;

	while ((scn = elf_nextscn(image->elf, scn)))
		if (gelf_getshdr(scn, &header) && header.sh_type == SHT_SYMTAB_SHNDX && header.sh_link == symbols)
			return elf_getdata(scn, NULL);
	return NULL;
}

/* SHT_RELA and SHT_REL. In linked files offsets are addresses, in others they count from their section's start. */
static int read_table(struct image *image, Elf_Scn *scn, const GElf_Shdr *header, size_t *room)
{
	Elf_Data *data = elf_getdata(scn, NULL), *symbols = NULL, *extended = NULL;
	const struct part *target = image->relocatable ? image_part_by_index(image, header->sh_info) : NULL;
	Elf_Scn *linked = elf_getscn(image->elf, header->sh_link);
	size_t count;

	if (image->relocatable ? !target : !(header->sh_flags & SHF_ALLOC))
		return 0;
	if (!data || !header->sh_entsize)
		return 0;
	if (linked && header->sh_link) {
		symbols = elf_getdata(linked, NULL);
		extended = extended_indexes(image, header->sh_link);
	}
	count = header->sh_size / header->sh_entsize;
	for (size_t i = 0; i < count; i++) {
		struct reloc *reloc;
		GElf_Rela rela = { 0 };
		GElf_Rel rel;

		if (header->sh_type == SHT_RELA) {
			if (!gelf_getrela(data, (int)i, &rela))
				break;
		} else {
			if (!gelf_getrel(data, (int)i, &rel))
				break;
			rela.r_offset = rel.r_offset;
			rela.r_info = rel.r_info;
		}
		reloc = add(image, room);
		if (!reloc)
			return -ENOMEM;
		reloc->where = rela.r_offset + (target ? target->address : 0);
		reloc->type = (uint32_t)GELF_R_TYPE(rela.r_info);
		reloc->in_place = header->sh_type == SHT_REL;
		reloc->symbol = symbol_address(image, symbols, extended, GELF_R_SYM(rela.r_info));
		reloc->addend = rela.r_addend;
	}
	return 0;
}

int relocs_read(struct image *image, const char **why)
{
	Elf_Scn *scn = NULL;
	size_t room = 0;
	int r = 0;

	(void)why;
	while (!r && (scn = elf_nextscn(image->elf, scn))) {
		GElf_Shdr header;

		if (!gelf_getshdr(scn, &header))
			continue;
		if (header.sh_type == SHT_RELA || header.sh_type == SHT_REL)
			r = read_table(image, scn, &header, &room);
	}
	if (!r && image->reloc_count)
		qsort(image->relocs, image->reloc_count, sizeof(*image->relocs), by_address);
	return r;
}

const struct reloc *reloc_in(const struct image *image, uint64_t address, uint64_t size)
{
	size_t low = 0, high = image->reloc_count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (image->relocs[middle].where < address)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == image->reloc_count || image->relocs[low].where - address >= size)
		return NULL;
	return &image->relocs[low];
}

const struct reloc *reloc_at(const struct image *image, uint64_t address)
{
	return reloc_in(image, address, 1);
}

uint64_t slot_target(const struct image *image, uint64_t slot)
{
	const struct part *part;
	uint64_t value;

	if (slot >= IMAGE_SLOTS && slot < IMAGE_UNDEFINED) {
		size_t index = (slot - IMAGE_SLOTS) / IMAGE_SLOT;

		return index < image->reloc_count ? image->relocs[index].symbol : 0;
	}
	part = image_part(image, slot);
	if (!part || strncmp(part->name, ".got", 4) || !image_pointer(image, slot, &value))
		return 0;
	return value;
}
