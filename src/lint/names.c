/* SPDX-License-Identifier: MIT */
/* What stands at an address. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lint/lint.h"

static int by_address(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	if (x->address != y->address)
		return x->address < y->address ? -1 : 1;
	return x->rank != y->rank ? x->rank - y->rank : strcmp(y->name, x->name);
}

static int rank(const GElf_Sym *symbol)
{
	int type = GELF_ST_TYPE(symbol->st_info);

	return (type == STT_FUNC || type == STT_GNU_IFUNC ? 8
		: type == STT_OBJECT                      ? 4
							  : 0) +
	       (symbol->st_size ? 2 : 0) + (GELF_ST_BIND(symbol->st_info) != STB_LOCAL);
}

static int read_symbols(struct image *image, Elf_Scn *scn, const GElf_Shdr *header, bool dynamic)
{
	Elf_Data *data = elf_getdata(scn, NULL);
	size_t count = data && header->sh_entsize ? header->sh_size / header->sh_entsize : 0;
	struct symbol *all = realloc(image->symbols, (image->symbol_count + count + 1) * sizeof(*all));

	if (!all)
		return -ENOMEM;
	image->symbols = all;
	/* Relocations of a linked file name the dynamic symbols, those of others the only ones. */
	if (dynamic != image->relocatable) {
		const char **names = realloc(image->undefined, (count + 1) * sizeof(*names));

		if (!names)
			return -ENOMEM;
		memset(names, 0, (count + 1) * sizeof(*names));
		image->undefined = names;
		image->undefined_count = count;
	}
	for (size_t i = 1; i < count; i++) {
		GElf_Sym symbol;
		const struct part *part = NULL;
		const char *name;
		int type;

		if (!gelf_getsym(data, (int)i, &symbol))
			break;
		name = elf_strptr(image->elf, header->sh_link, symbol.st_name);
		type = GELF_ST_TYPE(symbol.st_info);
		if (!name || !*name)
			continue;
		if (dynamic != image->relocatable)
			image->undefined[i] = name;
		/* ARM marks code and data by symbols "$x" and "$d". */
		if (type > STT_FUNC && type != STT_GNU_IFUNC)
			continue;
		if (*name == '$' || symbol.st_shndx == SHN_UNDEF || symbol.st_shndx >= SHN_LORESERVE)
			continue;
		if (image->relocatable) {
			part = image_part_by_index(image, symbol.st_shndx);
			if (!part)
				continue;
		}
		image->symbols[image->symbol_count++] = (struct symbol){
			.address = symbol.st_value + (part ? part->address : 0),
			.size = symbol.st_size,
			.name = name,
			.rank = rank(&symbol),
		};
	}
	return 0;
}

int names_read(struct image *image, const char **why)
{
	Elf_Scn *scn = NULL;
	int r = 0;

	(void)why;
	while (!r && (scn = elf_nextscn(image->elf, scn))) {
		GElf_Shdr header;

		if (gelf_getshdr(scn, &header) && (header.sh_type == SHT_SYMTAB || header.sh_type == SHT_DYNSYM))
			r = read_symbols(image, scn, &header, header.sh_type == SHT_DYNSYM);
	}
	if (!r && image->symbol_count)
		qsort(image->symbols, image->symbol_count, sizeof(*image->symbols), by_address);
	return r;
}

const char *name_of(const struct image *image, uint64_t address, uint64_t *offset)
{
	const struct part *part = image_part(image, address);
	size_t low = 0, high = image->symbol_count;

	*offset = 0;
	if (address >= IMAGE_UNDEFINED) {
		/* An addend may be negative, but not by much. */
		size_t index = (address - IMAGE_UNDEFINED + IMAGE_UNDEFINED_STEP / 2) / IMAGE_UNDEFINED_STEP;

		*offset = address - IMAGE_UNDEFINED - index * IMAGE_UNDEFINED_STEP;
		return index < image->undefined_count ? image->undefined[index] : NULL;
	}
	if (!part)
		return NULL;
	while (low < high) {
		size_t middle = (low + high) / 2;

		if (image->symbols[middle].address <= address)
			low = middle + 1;
		else
			high = middle;
	}
	/* A label inside a function stands nearer than the function, which is the better name. */
	for (size_t i = low, looked = 0; i-- && looked < 64; looked++) {
		const struct symbol *symbol = &image->symbols[i];

		if (symbol->address < part->address)
			break;
		if (address - symbol->address < symbol->size) {
			*offset = address - symbol->address;
			return symbol->name;
		}
	}
	/* Behind a symbol that knows its size, something else begins. */
	if (!low || image->symbols[low - 1].address < part->address || image->symbols[low - 1].size)
		return NULL;
	*offset = address - image->symbols[low - 1].address;
	return image->symbols[low - 1].name;
}

/* A damaged file shall not control a terminal. */
static void printable(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || *text == 127)
			*text = '?';
}

void name_place(const struct image *image, uint64_t address, char *out, size_t size)
{
	uint64_t offset;
	const char *name = name_of(image, address, &offset);
	const struct part *part = image_part(image, address);

	if (!name && part) {
		name = part->name;
		offset = address - part->address;
	}
	if (!name)
		snprintf(out, size, "%#llx", (unsigned long long)address);
	else if (!offset)
		snprintf(out, size, "%s", name);
	else if ((int64_t)offset < 0)
		snprintf(out, size, "%s-%#llx", name, (unsigned long long)-offset);
	else
		snprintf(out, size, "%s+%#llx", name, (unsigned long long)offset);
	printable(out);
}

uint64_t follow_linkage(const struct image *image, uint64_t address)
{
	const struct part *part = image_part(image, address);
	uint64_t slot, target;

	if (image->relocatable || !part || !(part->flags & SHF_EXECINSTR) ||
	    (strncmp(part->name, ".plt", 4) && strncmp(part->name, ".iplt", 5)))
		return address;
	slot = image->port->linkage_slot(image, address);
	target = slot ? slot_target(image, slot) : 0;
	return target ? target : address;
}

void name_callee(const struct image *image, uint64_t address, char *out, size_t size)
{
	name_place(image, follow_linkage(image, address), out, size);
}
