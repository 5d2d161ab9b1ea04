/* SPDX-License-Identifier: MIT */
/* One ELF file as an image: its loaded parts and their addresses. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lint/lint.h"

/* Between the parts of a relocatable file: no jump or offset that leaves one shall land in another. */
#define PART_GAP ((uint64_t)1 << 32)

static int by_address(const void *a, const void *b)
{
	const struct part *x = a, *y = b;

	return x->address < y->address ? -1 : x->address > y->address;
}

static bool wanted(const GElf_Shdr *header)
{
	return (header->sh_flags & SHF_ALLOC) && header->sh_size &&
	       /* The space of uninitialised thread-local data is none: its addresses are those of what comes next. */
	       !((header->sh_flags & SHF_TLS) && header->sh_type == SHT_NOBITS);
}

static int read_parts(struct image *image, size_t count, const char **why)
{
	uint64_t next = PART_GAP;
	size_t strings;

	image->parts = calloc(count + 1, sizeof(*image->parts));
	if (!image->parts)
		return -ENOMEM;
	if (elf_getshdrstrndx(image->elf, &strings))
		strings = 0;
	for (size_t i = 1; i < count; i++) {
		Elf_Scn *scn = elf_getscn(image->elf, i);
		struct part *part = &image->parts[image->part_count];
		GElf_Shdr header;

		if (!scn || !gelf_getshdr(scn, &header)) {
			*why = "its section headers are damaged";
			return -EINVAL;
		}
		if (!wanted(&header))
			continue;
		part->name = elf_strptr(image->elf, strings, header.sh_name);
		if (!part->name)
			part->name = "?";
		part->index = i;
		part->flags = header.sh_flags;
		part->size = header.sh_size;
		part->address = header.sh_addr;
		if (header.sh_type != SHT_NOBITS) {
			Elf_Data *data = elf_rawdata(scn, NULL);

			if (!data || !data->d_buf || data->d_size < header.sh_size) {
				*why = "it is cut off";
				return -EINVAL;
			}
			part->bytes = data->d_buf;
		} else if (header.sh_flags & SHF_EXECINSTR) {
			*why = "it holds no code (is it a file of debugging information?)";
			return -EINVAL;
		}
		if (image->relocatable) {
			/* Not better aligned than it asks for: what is aligned by luck only shall be noticed. */
			part->address = next;
			if (header.sh_addralign && header.sh_addralign < 4096)
				part->address += header.sh_addralign;
			if (part->size > PART_GAP / 2) {
				*why = "a section is too large";
				return -EINVAL;
			}
			next += PART_GAP;
		} else if (part->address + part->size < part->address) {
			*why = "its section headers are damaged";
			return -EINVAL;
		}
		image->part_count++;
	}
	qsort(image->parts, image->part_count, sizeof(*image->parts), by_address);
	image->by_index = calloc(count, sizeof(const void *));
	if (!image->by_index)
		return -ENOMEM;
	image->index_count = count;
	for (size_t i = 0; i < image->part_count; i++)
		image->by_index[image->parts[i].index] = &image->parts[i];
	return 0;
}

static const struct port *port_of(const GElf_Ehdr *header)
{
	static const struct port *const ports[] = { &lint_x86_64, &lint_aarch64, NULL };

	for (const struct port *const *port = ports; *port; port++)
		if ((*port)->machine == header->e_machine)
			return *port;
	return NULL;
}

int image_open(struct image *image, const char *file, void *bytes, size_t size, const char **why)
{
	GElf_Ehdr header;
	size_t count;
	int r;

	memset(image, 0, sizeof(*image));
	image->file = file;
	*why = "it is LLVM's intermediate code; check what is linked from it";
	if (size >= 4 && !memcmp(bytes, "BC\xc0\xde", 4))
		return -EINVAL;
	*why = "it is no ELF file";
	if (size < SELFMAG || memcmp(bytes, ELFMAG, SELFMAG))
		return -EINVAL;
	*why = "its ELF header is damaged";
	image->elf = elf_memory(bytes, size);
	if (!image->elf)
		return -EINVAL;
	if (elf_kind(image->elf) != ELF_K_ELF || !gelf_getehdr(image->elf, &header))
		return -EINVAL;
	if (gelf_getclass(image->elf) != ELFCLASS64) {
		*why = "it is no 64-bit object";
		return -EINVAL;
	}
	if (header.e_type != ET_REL && header.e_type != ET_DYN && header.e_type != ET_EXEC) {
		*why = "it is no object file, library or program";
		return -EINVAL;
	}
	image->port = port_of(&header);
	if (!image->port) {
		*why = "it is for an architecture that percpu-lint does not know";
		return -EINVAL;
	}
	image->relocatable = header.e_type == ET_REL;
	image->fixed = header.e_type == ET_EXEC;
	image->big_endian = header.e_ident[EI_DATA] == ELFDATA2MSB;
	if (elf_getshdrnum(image->elf, &count))
		return -EINVAL;
	if (count < 2) {
		*why = "it has no section headers";
		return -EINVAL;
	}
	r = read_parts(image, count, why);
	if (!r)
		r = names_read(image, why);
	if (!r)
		r = relocs_read(image, why);
	if (r == -ENOMEM)
		*why = "there is not enough memory";
	return r;
}

void image_close(struct image *image)
{
	free(image->parts);
	free(image->by_index);
	free(image->relocs);
	free(image->symbols);
	free(image->undefined);
	if (image->elf)
		elf_end(image->elf);
	memset(image, 0, sizeof(*image));
}

const struct part *image_part(const struct image *image, uint64_t address)
{
	size_t low = 0, high = image->part_count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (image->parts[middle].address <= address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || address - image->parts[low - 1].address >= image->parts[low - 1].size)
		return NULL;
	return &image->parts[low - 1];
}

const struct part *image_part_by_index(const struct image *image, size_t index)
{
	return index < image->index_count ? image->by_index[index] : NULL;
}

const uint8_t *image_bytes(const struct image *image, uint64_t address, size_t *size)
{
	const struct part *part = image_part(image, address);

	if (!part || !part->bytes)
		return NULL;
	*size = part->size - (address - part->address);
	return part->bytes + (address - part->address);
}

uint64_t image_word(const struct image *image, const uint8_t *bytes, unsigned size)
{
	uint64_t word = 0;

	for (unsigned i = 0; i < size; i++)
		word |= (uint64_t)bytes[image->big_endian ? size - 1 - i : i] << (8 * i);
	return word;
}

bool image_signed(const struct image *image, uint64_t address)
{
	size_t size = 0;
	const uint8_t *code = address >= 4 ? image_bytes(image, address - 4, &size) : NULL;

	return code && size > 4 &&
	       (code[0] | (uint32_t)code[1] << 8 | (uint32_t)code[2] << 16 | (uint32_t)code[3] << 24) ==
		       image->port->signature;
}

bool image_pointer(const struct image *image, uint64_t address, uint64_t *value)
{
	const struct reloc *reloc = reloc_at(image, address);
	size_t size = 0;
	const uint8_t *bytes = image_bytes(image, address, &size);
	uint64_t content;

	if (!bytes || size < 8)
		return false;
	content = image_word(image, bytes, 8);
	if (!reloc) {
		*value = content;
		return true;
	}
	if (reloc->type != image->port->reloc_absolute && reloc->type != image->port->reloc_relative &&
	    reloc->type != image->port->reloc_slot && reloc->type != image->port->reloc_data)
		return false;
	*value = reloc->symbol + (reloc->in_place ? content : (uint64_t)reloc->addend);
	return true;
}

const char *image_string(const struct image *image, uint64_t address)
{
	size_t size = 0;
	const char *text = (const char *)image_bytes(image, address, &size);

	return text && memchr(text, 0, size) ? text : NULL;
}
