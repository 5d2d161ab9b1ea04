/* SPDX-License-Identifier: MIT */
/*
 * Which file a program name means, and whether a preloaded object can do its work there.
 *
 * The loader ignores preloaded objects in programs that gain rights by being executed, and statically linked programs
 * have no loader. Both would run as if nothing had been asked for, so they are refused beforehand. For a script, the program is
 * its interpreter. A file that cannot be read is taken as it is: the kernel may still execute it.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/target.h"

/* As many as the kernel follows. */
#define SCRIPT_DEPTH 5
/* Of symbols, or of their names: more than any program has. */
#define PART_MOST ((uint64_t)256 << 20)

#if defined __x86_64__
#define OUR_MACHINE EM_X86_64
#elif defined __aarch64__
#define OUR_MACHINE EM_AARCH64
#else
#error "which machine code is this?"
#endif

static enum target_use use;

static int refuse(const char *path, const char *why)
{
	cli_complain("%s %s", path, why);
	return EXIT_REFUSED;
}

static int refuse_as_useless(const char *path, const char *why)
{
	static const char *const useless[] = { [TARGET_COUNT] = "its calls cannot be counted",
					       [TARGET_ALLOCATE] = "the allocator cannot be preloaded",
					       [TARGET_LIBC] = "functions cannot be preloaded" };

	cli_complain("%s %s: %s", path, why, useless[use]);
	return EXIT_REFUSED;
}

static bool read_at(int fd, void *to, size_t n, uint64_t at)
{
	return at <= INT64_MAX && pread(fd, to, n, (off_t)at) == (ssize_t)n;
}

static int check_loader(const char *path, int fd, const Elf64_Phdr *header)
{
	char loader[4096] = "";
	const char *base;

	if (header->p_filesz >= sizeof(loader) || !read_at(fd, loader, header->p_filesz, header->p_offset))
		return refuse(path, "is damaged: the name of its loader cannot be read");
	base = strrchr(loader, '/') ? strrchr(loader, '/') + 1 : loader;
	if (!strncmp(base, "ld-musl", 7) || !strncmp(base, "linker", 6))
		return refuse_as_useless(path, "is linked with another C library than percpu");
	return 0;
}

/* Where in the file the byte is that will be loaded at an address; 0 if nowhere. */
static uint64_t offset_of(int fd, const Elf64_Ehdr *elf, uint64_t address)
{
	Elf64_Phdr header;

	for (unsigned i = 0; i < elf->e_phnum; i++)
		if (read_at(fd, &header, sizeof(header), elf->e_phoff + (uint64_t)i * elf->e_phentsize) &&
		    header.p_type == PT_LOAD && address >= header.p_vaddr && address - header.p_vaddr < header.p_filesz)
			return address - header.p_vaddr + header.p_offset;
	return 0;
}

/* The run-time libraries of sanitizers replace the same functions, and insist on being first or fail in other ways. */
static int check_needed(const char *path, int fd, const Elf64_Ehdr *elf, const Elf64_Phdr *dynamic)
{
	static const char *const rivals[] = { "libasan.so", "libtsan.so", "libhwasan.so", "liblsan.so", "libmsan.so" };
	uint64_t strings = 0;
	Elf64_Dyn entry;

	for (int pass = 0; pass < 2; pass++) {
		for (uint64_t at = 0; at + sizeof(entry) <= dynamic->p_filesz; at += sizeof(entry)) {
			char name[16] = "";

			if (!read_at(fd, &entry, sizeof(entry), dynamic->p_offset + at) || entry.d_tag == DT_NULL)
				break;
			if (!pass && entry.d_tag == DT_STRTAB)
				strings = offset_of(fd, elf, entry.d_un.d_ptr);
			if (!pass || entry.d_tag != DT_NEEDED || !strings ||
			    !read_at(fd, name, sizeof(name) - 1, strings + entry.d_un.d_val))
				continue;
			for (size_t i = 0; i < sizeof(rivals) / sizeof(rivals[0]); i++)
				if (!strncmp(name, rivals[i], strlen(rivals[i])))
					return refuse(path,
						      "is built with a sanitizer, which replaces the same functions");
		}
	}
	return 0;
}

/* All at once; to be freed. NULL: there is no memory, or not so much in the file. */
static void *read_part(int fd, const Elf64_Shdr *part)
{
	void *bytes = part->sh_size && part->sh_size < PART_MOST ? malloc(part->sh_size) : NULL;

	if (bytes && read_at(fd, bytes, part->sh_size, part->sh_offset))
		return bytes;
	free(bytes);
	return NULL;
}

/* Whether one of the symbols that the program gives to the loader is a malloc. */
static bool defines_malloc(int fd, const Elf64_Shdr *symbols, const Elf64_Shdr *strings)
{
	Elf64_Sym *symbol = read_part(fd, symbols);
	char *names = read_part(fd, strings);
	bool found = false;

	for (size_t i = 0; symbol && names && i < symbols->sh_size / sizeof(*symbol) && !found; i++)
		found = symbol[i].st_shndx != SHN_UNDEF && ELF64_ST_TYPE(symbol[i].st_info) == STT_FUNC &&
			strings->sh_size > sizeof("malloc") &&
			symbol[i].st_name <= strings->sh_size - sizeof("malloc") &&
			!memcmp(names + symbol[i].st_name, "malloc", sizeof("malloc"));
	free(symbol);
	free(names);
	return found;
}

/* A symbol of the program itself comes before those of preloaded objects. */
static void look_for_malloc(const char *path, int fd, const Elf64_Ehdr *elf)
{
	Elf64_Shdr symbols, strings;

	for (unsigned i = 0; i < elf->e_shnum; i++) {
		if (!read_at(fd, &symbols, sizeof(symbols), elf->e_shoff + (uint64_t)i * elf->e_shentsize))
			return;
		if (symbols.sh_type != SHT_DYNSYM || symbols.sh_link >= elf->e_shnum ||
		    !read_at(fd, &strings, sizeof(strings),
			     elf->e_shoff + (uint64_t)symbols.sh_link * elf->e_shentsize))
			continue;
		if (defines_malloc(fd, &symbols, &strings)) {
			cli_complain("%s brings a malloc of its own, which it uses instead of the allocator", path);
			return;
		}
	}
}

static int check_elf(const char *path, int fd)
{
	Elf64_Phdr loader = { .p_type = PT_NULL }, dynamic = loader, header;
	Elf64_Ehdr elf;
	int rc;

	if (!read_at(fd, &elf, sizeof(elf), 0) || elf.e_ident[EI_CLASS] != ELFCLASS64 || elf.e_machine != OUR_MACHINE)
		return refuse_as_useless(path, "is for another kind of machine than percpu");
	for (unsigned i = 0; i < elf.e_phnum; i++) {
		if (!read_at(fd, &header, sizeof(header), elf.e_phoff + (uint64_t)i * elf.e_phentsize))
			return refuse(path, "is damaged: its program headers cannot be read");
		if (header.p_type == PT_INTERP)
			loader = header;
		else if (header.p_type == PT_DYNAMIC)
			dynamic = header;
	}
	if (loader.p_type == PT_NULL)
		return refuse_as_useless(path, "is statically linked");
	rc = check_loader(path, fd, &loader);
	if (!rc && dynamic.p_type != PT_NULL)
		rc = check_needed(path, fd, &elf, &dynamic);
	if (!rc && use == TARGET_ALLOCATE)
		look_for_malloc(path, fd, &elf);
	return rc;
}

static int check_rights(const char *path, int fd, const struct stat *status)
{
	/* Without execution by the group, the set-group-id bit means something else. */
	if (status->st_mode & S_ISUID)
		return refuse(path, "is a set-user-id program: it must not be preloaded with other code");
	if ((status->st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP))
		return refuse(path, "is a set-group-id program: it must not be preloaded with other code");
	if ((fd >= 0 ? fgetxattr(fd, "security.capability", NULL, 0) : getxattr(path, "security.capability", NULL, 0)) >
	    0)
		return refuse(path, "has file capabilities: it must not be preloaded with other code");
	return 0;
}

/* The interpreter's name in a script's first line: false if there is none. */
static bool script_interpreter(char *line, size_t size, char **name)
{
	char *end;

	line[size] = '\0';
	line[strcspn(line, "\n")] = '\0';
	line += 2 + strspn(line + 2, " \t");
	end = line + strcspn(line, " \t");
	*end = '\0';
	*name = line;
	return *line;
}

static int check(const char *path, unsigned depth)
{
	struct stat status;
	char start[4096];
	char *interpreter;
	ssize_t n = -1;
	int rc = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	if (fd >= 0 ? fstat(fd, &status) : stat(path, &status)) {
		if (depth) /* the kernel will say so, in the name of the script */
			goto out;
		cli_complain("%s: %s", path, strerror(errno));
		rc = EXIT_NOT_EXEC;
		goto out;
	}
	if (fd >= 0)
		n = read(fd, start, sizeof(start) - 1);
	if (n >= 2 && start[0] == '#' && start[1] == '!') {
		/* The kernel gives no rights to scripts. */
		if (depth < SCRIPT_DEPTH && script_interpreter(start, (size_t)n, &interpreter))
			rc = check(interpreter, depth + 1);
		goto out;
	}
	rc = check_rights(path, fd, &status);
	if (!rc && n >= SELFMAG && !memcmp(start, ELFMAG, SELFMAG))
		rc = check_elf(path, fd);
	else if (!rc && n >= 0 && !depth)
		rc = check("/bin/sh", SCRIPT_DEPTH); /* execvp() gives what the kernel does not know to the shell */
out:
	if (fd >= 0)
		close(fd);
	return rc;
}

/* Returns 0, or the error that execve(2) would give for the file itself. */
static int executable(const char *path)
{
	struct stat status;

	if (stat(path, &status))
		return errno;
	if (!S_ISREG(status.st_mode) || faccessat(AT_FDCWD, path, X_OK, AT_EACCESS))
		return EACCES;
	return 0;
}

/* One element of PATH after the other. Returns 0 and sets @path, or ENOENT, EACCES, ENOMEM. */
static int search(const char *name, char **path)
{
	const char *at = getenv("PATH");
	int result = ENOENT;

	if (!at)
		at = "/bin:/usr/bin";
	for (;; at++) {
		size_t length = strcspn(at, ":");
		char *candidate = malloc(length + strlen(name) + 3);
		int error;

		if (!candidate)
			return ENOMEM;
		memcpy(candidate, length ? at : ".", length ? length : 1);
		candidate[length ? length : 1] = '/';
		strcpy(candidate + (length ? length : 1) + 1, name);
		error = executable(candidate);
		if (!error) {
			*path = candidate;
			return 0;
		}
		/* A folder that may not be searched says nothing about the program. */
		if (error == EACCES && !access(candidate, F_OK))
			result = EACCES;
		free(candidate);
		at += length;
		if (!*at)
			return result;
	}
}

int target_find(const char *name, enum target_use what_for, char **path)
{
	char *found = NULL;
	int error;

	use = what_for;
	if (strchr(name, '/')) {
		found = strdup(name);
		error = found ? executable(name) : ENOMEM;
	} else {
		error = *name ? search(name, &found) : ENOENT;
	}
	if (!error) {
		int rc = check(found, 0);

		if (rc)
			free(found);
		else
			*path = found;
		return rc;
	}
	free(found);
	cli_complain("%s: %s", name, error == ENOENT && !strchr(name, '/') ? "command not found" : strerror(error));
	return error == ENOENT || error == ENOTDIR ? EXIT_NOT_FOUND : error == ENOMEM ? EXIT_REFUSED : EXIT_NOT_EXEC;
}
