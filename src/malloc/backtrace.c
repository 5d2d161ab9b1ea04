/* SPDX-License-Identifier: MIT */
/*
 * Taking stack traces, and naming their places.
 */
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/auxv.h>
#include <unwind.h>

#include "base/sys.h"
#include "malloc/backtrace.h"
#include "malloc/front.h"
#include "malloc/large.h"

/* More than that many frames are not looked at, whether they are kept or not. */
#define WALK_MOST (TRACE_FRAMES + 32U)
/* So deep at most are our own functions. */
#define DEPTH_MOST 10U

/* Where this object's own code is; empty where the program itself carries the allocator. */
static uintptr_t own_start, own_end;

/* Of a thread that unwinds: where to go on if that faults. */
static __thread sigjmp_buf *way_out __attribute__((tls_model("initial-exec")));

struct walk {
	struct percpu__trace *trace;
	uintptr_t from; /* nothing is kept before that address; 0: before we are out of our own code */
	bool keeping;
	unsigned looked_at;
};

/* In a static program the C library has made ready by then. */
static bool constructing;

__attribute__((constructor(101))) static void construct(void)
{
	constructing = true;
}

/*
 * The unwinder begins with its own frame, and aborts the program if that is unknown. Where the linker has made no index of
 * frames, as in most static programs, it would want memory and locks: there are no traces then.
 */
#ifdef DLFO_STRUCT_HAS_EH_DBASE
static bool find_own(void)
{
	struct dl_find_object found;

	if ((!constructing && !getauxval(AT_BASE)) || _dl_find_object((void *)(uintptr_t)find_own, &found) ||
	    !found.dlfo_eh_frame)
		return false;
	if (found.dlfo_link_map->l_name && found.dlfo_link_map->l_name[0]) {
		own_start = (uintptr_t)found.dlfo_map_start;
		own_end = (uintptr_t)found.dlfo_map_end;
	}
	return true;
}
#else
static bool find_own(void)
{
	return constructing || getauxval(AT_BASE);
}
#endif

void percpu__unwind_fault(uintptr_t instruction)
{
	const uint64_t faults = UINT64_C(1) << (SIGSEGV - 1);
	sigjmp_buf *way = way_out;

	/* (What a handler of the program does wrong that has interrupted us is another matter.) */
	if (!way || (own_end && (instruction < own_start || instruction >= own_end)))
		return;
	way_out = NULL;
	percpu__sys4(SYS_rt_sigprocmask, SIG_UNBLOCK, (long)&faults, 0, sizeof(faults));
	siglongjmp(*way, 1);
}

/* In a program that has all of this in itself: what leads to here from malloc and its kin. */
static bool is_entry(uintptr_t function)
{
	return function == (uintptr_t)percpu__take_slow || function == (uintptr_t)percpu__large_new ||
	       function == (uintptr_t)percpu__large_new_roomy || function == (uintptr_t)percpu__free_other ||
	       function == (uintptr_t)percpu__realloc_other || function == (uintptr_t)percpu__room_other;
}

static _Unwind_Reason_Code visit(struct _Unwind_Context *context, void *argument)
{
	struct walk *walk = argument;
	int before = 0;
	uintptr_t at = _Unwind_GetIPInfo(context, &before);

	if (!at || walk->looked_at++ == WALK_MOST)
		return _URC_END_OF_STACK;
	/* A return address is behind its call, perhaps in another function. */
	if (!before)
		at--;
	if (!walk->keeping)
		walk->keeping = walk->from ? at == walk->from : at < own_start || at >= own_end;
	if (walk->keeping)
		walk->trace->frames[walk->trace->count++] = at;
	if (!own_end && !walk->from && walk->looked_at < DEPTH_MOST && is_entry(_Unwind_GetRegionStart(context)))
		walk->trace->count = 0;
	return walk->trace->count == TRACE_FRAMES ? _URC_END_OF_STACK : _URC_NO_REASON;
}

static void walk_all(struct walk *walk)
{
	sigjmp_buf way;

	if (sigsetjmp(way, 0) == 0) {
		way_out = &way;
		_Unwind_Backtrace(visit, walk);
	}
	way_out = NULL;
}

static void take(struct percpu__trace *trace, uintptr_t from)
{
	struct walk walk = { .trace = trace, .from = from };
	const uint64_t but_faults = ~(UINT64_C(1) << (SIGSEGV - 1));
	static bool prepared;
	uint64_t saved;

	trace->count = 0;
	trace->thread = (uint32_t)percpu__sys4(SYS_gettid, 0, 0, 0, 0);
	/* (In a handler that has interrupted just this.) */
	if (way_out)
		return;
	if (__atomic_load_n(&prepared, __ATOMIC_ACQUIRE)) {
		walk_all(&walk);
		return;
	}
	/* The first time the unwinder prepares itself, under a pthread_once(): no handler of this thread may come to that. */
	percpu__sys4(SYS_rt_sigprocmask, SIG_BLOCK, (long)&but_faults, (long)&saved, sizeof(saved));
	if (find_own()) {
		walk_all(&walk);
		__atomic_store_n(&prepared, true, __ATOMIC_RELEASE);
	}
	percpu__restore_signals(&saved);
}

void percpu__unwind(struct percpu__trace *trace)
{
	take(trace, 0);
}

void percpu__unwind_from(struct percpu__trace *trace, uintptr_t instruction)
{
	take(trace, instruction);
	if (!trace->count) {
		/* There is no way back from where it crashed. */
		trace->frames[0] = instruction;
		trace->count = 1;
	}
}

#ifdef DLFO_STRUCT_HAS_EH_DBASE

/* What the loader noted of a module's symbols. */
struct symbols {
	const ElfW(Sym) * table;
	const char *names;
	size_t names_size, count;
};

/* The table has no length of its own: the hash tables tell. */
static size_t count_by_gnu_hash(const uint32_t *hash)
{
	uint32_t buckets = hash[0], first = hash[1], bloom = hash[2], last = 0;
	const uint32_t *bucket = hash + 4 + bloom * (sizeof(ElfW(Addr)) / 4), *chain = bucket + buckets;

	for (uint32_t i = 0; i < buckets; i++)
		if (bucket[i] > last)
			last = bucket[i];
	if (last < first)
		return first;
	while (!(chain[last - first] & 1))
		last++;
	return (size_t)last + 1;
}

static bool find_symbols(const struct link_map *module, struct symbols *symbols)
{
	const uint32_t *hash = NULL, *gnu_hash = NULL;

	memset(symbols, 0, sizeof(*symbols));
	for (const ElfW(Dyn) *entry = module->l_ld; entry && entry->d_tag != DT_NULL; entry++) {
		/* The loader has made addresses of them, but not in the kernel's own object. */
		uintptr_t address = entry->d_un.d_ptr + (entry->d_un.d_ptr < module->l_addr ? module->l_addr : 0);

		switch (entry->d_tag) {
		case DT_SYMTAB:
			symbols->table = (const void *)address;
			break;
		case DT_STRTAB:
			symbols->names = (const void *)address;
			break;
		case DT_STRSZ:
			symbols->names_size = entry->d_un.d_val;
			break;
		case DT_HASH:
			hash = (const void *)address;
			break;
		case DT_GNU_HASH:
			gnu_hash = (const void *)address;
			break;
		}
	}
	symbols->count = hash ? hash[1] : gnu_hash ? count_by_gnu_hash(gnu_hash) : 0;
	return symbols->table && symbols->names && symbols->count;
}

/* The function that @at is in, if it is one that the module exports. */
static const char *name_of(const struct link_map *module, uintptr_t at, uintptr_t *offset)
{
	struct symbols symbols;

	if (!find_symbols(module, &symbols))
		return NULL;
	for (size_t i = 0; i < symbols.count; i++) {
		const ElfW(Sym) *symbol = &symbols.table[i];
		uintptr_t distance = at - module->l_addr - symbol->st_value;

		if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && symbol->st_shndx != SHN_UNDEF &&
		    distance < symbol->st_size && symbol->st_name < symbols.names_size) {
			*offset = distance;
			return symbols.names + symbol->st_name;
		}
	}
	return NULL;
}

static void put_place(struct percpu__writer *w, uintptr_t at)
{
	struct dl_find_object found;
	const char *name, *path;
	char program[256];
	uintptr_t offset;
	long length;

	if (_dl_find_object((void *)at, &found))
		return;
	name = name_of(found.dlfo_link_map, at, &offset);
	if (name) {
		percpu__write_text(w, " ");
		percpu__write_text(w, name);
		percpu__write_text(w, "+");
		percpu__write_address(w, offset);
	}
	path = found.dlfo_link_map->l_name;
	if (!path || !*path) {
		length = percpu__sys4(SYS_readlinkat, -100 /* AT_FDCWD */, (long)"/proc/self/exe", (long)program,
				      sizeof(program) - 1);
		program[length > 0 ? length : 0] = '\0';
		path = program;
	}
	percpu__write_text(w, " (");
	percpu__write_text(w, path);
	percpu__write_text(w, "+");
	percpu__write_address(w, at - found.dlfo_link_map->l_addr);
	percpu__write_text(w, ")");
}

#else

static void put_place(struct percpu__writer *w, uintptr_t at)
{
	(void)w, (void)at;
}

#endif

void percpu__trace_put(struct percpu__writer *w, const struct percpu__trace *trace)
{
	for (uint32_t i = 0; i < trace->count && i < TRACE_FRAMES; i++) {
		percpu__write_text(w, "    #");
		percpu__write_number(w, i);
		percpu__write_text(w, " ");
		percpu__write_address(w, trace->frames[i]);
		put_place(w, trace->frames[i]);
		percpu__write_text(w, "\n");
		/* Line by line: the next one may be the end of a process whose memory is damaged. */
		percpu__write_end(w);
	}
}
