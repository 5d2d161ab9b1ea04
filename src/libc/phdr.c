/* SPDX-License-Identifier: MIT */
/*
 * dl_iterate_phdr(3) without the loader's lock.
 *
 * The lock keeps objects from being unloaded while a callback reads them. Those that the process began with, the program,
 * what is preloaded, and what these need, never are. While they are the only ones, their table, made once, can be walked
 * with nothing held: no lock, no count, nothing to be left behind by a callback that throws, jumps, forks or is cancelled.
 * While another one is loaded, the C library's function is called: who unloads does not look at anything but its lock, and
 * not all who unload can be seen from here (the C library does by itself, and so does a dlopen that fails).
 *
 * Whether there are others is read from what the loader publishes for debuggers (<link.h>): objects are added behind the
 * last one, so its l_next says it; and r_version says that there is, or was, another namespace.
 *
 * Callbacks are also told how many objects were ever added (the C library's own count, of all namespaces) and how many
 * removed, by which they know their caches to be stale. That count is a word of the loader's that has no public name. It is
 * looked for under the lock, among the words of the loader's state, by the value which a callback was told; all that had it
 * are kept, and while they agree the count is known. Where they do not agree they are looked at again, and there are fewer.
 *
 * The lock has one more effect: callbacks run one at a time. Unwinders rely on it (libgcc before GCC 12, also where it is linked
 * statically; LLVM's with a cache of frame headers), though no document says so. So the C library's name is this function only
 * where the program's environment says that its callbacks can do without.
 *
 * What happened before the call is seen, as by who takes the lock: it is in those words. What happens meanwhile may be
 * missed, as by who had the lock first. The callback's own dlopen is seen, since the words are read before each object.
 */
#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/sys.h"
#include "libc/phdr.h"

/* Words of the loader's that happen to have the same value: one, two in most programs before they load anything. */
#define FEW 4

typedef int callback_fn(struct dl_phdr_info *, size_t, void *);
typedef int iterate_fn(callback_fn *, void *);

/* One of those that stay. */
struct object {
	struct dl_phdr_info info; /* but for adds, subs and the thread's */
	ptrdiff_t tls;            /* from the thread pointer, where there is a module */
};

/* What a walk looks at: in one place, and never changed once it is published. */
struct view {
	const uint64_t
		*words[FEW]; /* of the loader, one of which counts what was added; the last ones may be the same */
	struct link_map *const *next; /* behind the last of those that stay */
	const int *version;
	const struct object *objects, *end;
	uint64_t count;
};

/* The view now believed; NULL: none (yet, or for ever). The next one has fewer words, so these are enough. */
static const struct view *view;
static struct view all_views[FEW];
static uint32_t narrowing; /* a lock, only tried */
static bool made;          /* the table of objects, which holds even where there is no view any more */

bool percpu__phdr_parallel;

static uintptr_t real_known;

static iterate_fn *real(void)
{
	uintptr_t next = __atomic_load_n(&real_known, __ATOMIC_RELAXED);

	if (__builtin_expect(!next, 0)) {
		next = (uintptr_t)dlsym(RTLD_NEXT, "dl_iterate_phdr");
		if (!next)
			abort();
		__atomic_store_n(&real_known, next, __ATOMIC_RELAXED);
	}
	return (iterate_fn *)next;
}

static inline bool others_are_loaded(const struct view *v)
{
	return __atomic_load_n(v->next, __ATOMIC_ACQUIRE) || __atomic_load_n(v->version, __ATOMIC_ACQUIRE) != 1;
}

static inline bool agree(const struct view *v, uint64_t adds)
{
	uint64_t different = 0;

#pragma GCC unroll 4
	for (unsigned i = 0; i < FEW; i++)
		different |= __atomic_load_n(v->words[i], __ATOMIC_ACQUIRE) ^ adds;
	return !different;
}

/* Under the loader's lock: which of a view's words have the value. Those that do not are replaced by one that does. */
struct narrow {
	const struct view *from;
	struct view *to;
};

static int narrow_down(struct dl_phdr_info *info, size_t size, void *data)
{
	struct narrow *n = data;
	const uint64_t *right = NULL;

	(void)size;
	for (unsigned i = 0; i < FEW; i++)
		if (*n->from->words[i] == info->dlpi_adds)
			right = n->from->words[i];
	for (unsigned i = 0; i < FEW; i++)
		n->to->words[i] = *n->from->words[i] == info->dlpi_adds ? n->from->words[i] : right;
	return 1;
}

static unsigned different_words(const struct view *v)
{
	unsigned n = 0;

	for (unsigned i = 0; i < FEW; i++) {
		bool first = true;

		for (unsigned j = 0; j < i; j++)
			first &= v->words[i] != v->words[j];
		n += first;
	}
	return n;
}

/*
 * The words did not agree: one of them was wrong, or they were read while objects were added. A signal handler that comes in
 * between leaves it to those that follow.
 */
static void look_again(const struct view *now)
{
	struct view next = *now;
	struct narrow narrow = { now, &next };
	uint32_t free = 0;

	if (!__atomic_compare_exchange_n(&narrowing, &free, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	if (__atomic_load_n(&view, __ATOMIC_RELAXED) == now) {
		real()(narrow_down, &narrow);
		if (!next.words[0]) {
			__atomic_store_n(&view, NULL, __ATOMIC_RELEASE);
		} else if (different_words(&next) < different_words(now)) {
			struct view *place = (struct view *)now + 1;

			*place = next;
			__atomic_store_n(&view, place, __ATOMIC_RELEASE);
		}
	}
	__atomic_store_n(&narrowing, 0, __ATOMIC_RELEASE);
}

/* The rest of a walk that began without the lock. */
struct rest {
	callback_fn *callback;
	void *data;
	uint64_t done;
};

static int pass_on(struct dl_phdr_info *info, size_t size, void *data)
{
	struct rest *rest = data;

	if (rest->done) {
		rest->done--;
		return 0;
	}
	return rest->callback(info, size, rest->data);
}

/* The callback has loaded an object, or another thread did: goes on as with the lock, which the callback's thread may take again. */
static __attribute__((noinline)) int walk_rest(callback_fn *callback, void *data, uint64_t done)
{
	struct rest rest = { callback, data, done };

	return real()(pass_on, &rest);
}

/* Not in the walk's function, whose last call would not be a jump. */
static __attribute__((noinline)) int walk_with_lock(callback_fn *callback, void *data, const struct view *v)
{
	if (v && !others_are_loaded(v))
		look_again(v);
	/* A jump: the C library looks at its caller to know which namespace's objects to tell of. */
	return real()(callback, data);
}

int percpu__dl_iterate_phdr(callback_fn *callback, void *data)
{
	const struct view *v = __atomic_load_n(&view, __ATOMIC_ACQUIRE);
	const char *thread = __builtin_thread_pointer();
	uint64_t adds;

	if (__builtin_expect(!v, 0))
		return walk_with_lock(callback, data, NULL);
	adds = __atomic_load_n(v->words[0], __ATOMIC_ACQUIRE);
	/* The words last: nothing was added since the first was read, so when `next` was, there was this count and no other object. */
	if (__builtin_expect(others_are_loaded(v) || !agree(v, adds), 0))
		return walk_with_lock(callback, data, v);
	for (const struct object *object = v->objects;;) {
		struct dl_phdr_info info;
		size_t modid = object->info.dlpi_tls_modid;
		int rc;

		/* One by one: a copy in larger pieces would hold up who reads a field. */
		info.dlpi_addr = object->info.dlpi_addr;
		info.dlpi_name = object->info.dlpi_name;
		info.dlpi_phdr = object->info.dlpi_phdr;
		info.dlpi_phnum = object->info.dlpi_phnum;
		info.dlpi_adds = adds;
		info.dlpi_subs = adds - v->count;
		info.dlpi_tls_modid = modid;
		info.dlpi_tls_data = modid ? (void *)(thread + object->tls) : NULL;
		rc = callback(&info, sizeof(info), data);
		if (rc)
			return rc;
		if (++object == v->end && !__atomic_load_n(v->next, __ATOMIC_ACQUIRE))
			return 0;
		if (__builtin_expect(!agree(v, adds) || object == v->end, 0))
			return walk_rest(callback, data, (uint64_t)(object - v->objects));
	}
}

int percpu__dl_iterate_phdr_behind(callback_fn *callback, void *data)
{
	return real()(callback, data);
}

bool percpu__is_initial(const void *address)
{
	const struct view *v = &all_views[0];

	if (!__atomic_load_n(&made, __ATOMIC_ACQUIRE))
		return false;
	for (const struct object *object = v->objects; object < v->end; object++) {
		const struct dl_phdr_info *info = &object->info;

		for (unsigned i = 0; i < info->dlpi_phnum; i++)
			if (info->dlpi_phdr[i].p_type == PT_LOAD &&
			    (uintptr_t)address - info->dlpi_addr - info->dlpi_phdr[i].p_vaddr <
				    info->dlpi_phdr[i].p_memsz)
				return true;
	}
	return false;
}

/* The table. */

static const ElfW(Dyn) * dynamic_of(const struct dl_phdr_info *info)
{
	for (unsigned i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
			return (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
	return NULL;
}

static const char *strings_of(const struct dl_phdr_info *info, const ElfW(Dyn) * dynamic)
{
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++)
		if (dynamic->d_tag == DT_STRTAB) {
			uintptr_t at = dynamic->d_un.d_ptr;

			/* The loader has made it an address, but where it cannot write: in the kernel's object. */
			return (const char *)(at < info->dlpi_addr ? at + info->dlpi_addr : at);
		}
	return NULL;
}

static bool is_named(const struct dl_phdr_info *info, const char *name)
{
	const ElfW(Dyn) *dynamic = dynamic_of(info);
	const char *strings = strings_of(info, dynamic), *base = strrchr(info->dlpi_name, '/');

	if (!strcmp(info->dlpi_name, name) || (base && !strcmp(base + 1, name)))
		return true;
	for (; strings && dynamic->d_tag != DT_NULL; dynamic++)
		if (dynamic->d_tag == DT_SONAME)
			return !strcmp(strings + dynamic->d_un.d_val, name);
	return false;
}

/* Marks what a marked object needs; returns the number of those marked newly. The first of a name is the loader's choice, too. */
static unsigned mark_needed(const struct object *objects, bool *marks, unsigned count, unsigned of)
{
	const ElfW(Dyn) *dynamic = dynamic_of(&objects[of].info);
	const char *strings = strings_of(&objects[of].info, dynamic);
	unsigned marked = 0;

	for (; strings && dynamic->d_tag != DT_NULL; dynamic++) {
		if (dynamic->d_tag != DT_NEEDED)
			continue;
		for (unsigned i = 0; i < count; i++)
			if (is_named(&objects[i].info, strings + dynamic->d_un.d_val)) {
				marked += !marks[i];
				marks[i] = true;
				break;
			}
	}
	return marked;
}

/*
 * How many of the first were there when the program began. The program is the first, and what it needs was there; so was
 * all before the last of these, and what that needs in turn. (Objects that were loaded later are behind them all.)
 */
static unsigned count_initial(const struct object *objects, bool *marks, unsigned count)
{
	unsigned initial = 1, marked;

	marks[0] = true;
	do {
		marked = 0;
		for (unsigned i = 0; i < initial && initial < count; i++) {
			marks[i] = true;
			marked += mark_needed(objects, marks, count, i);
			for (unsigned j = initial; j < count; j++)
				if (marks[j])
					initial = j + 1;
		}
	} while (marked);
	return initial;
}

struct making {
	unsigned count, room;
	struct object *objects;
	const struct link_map *map;
	const uint64_t *state; /* the loader's */
	size_t state_words;
	uint64_t adds, subs;
	bool wrong;
};

/* False: there are none, or too many to tell. */
static bool find_words(const struct making *making)
{
	unsigned found = 0;

	for (size_t i = 0; i < making->state_words; i++) {
		if (making->state[i] != making->adds)
			continue;
		if (found == FEW)
			return false;
		for (unsigned j = found++; j < FEW; j++)
			all_views[0].words[j] = &making->state[i];
	}
	return found;
}

static int count_one(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)info;
	(void)size;
	++*(unsigned *)data;
	return 0;
}

/* Under the loader's lock. */
static int note(struct dl_phdr_info *info, size_t size, void *data)
{
	struct making *making = data;
	struct object *object = &making->objects[making->count];

	/* What debuggers are told and what callbacks are told must be the same. */
	if (size != sizeof(*info) || making->count == making->room || !making->map ||
	    making->map->l_addr != info->dlpi_addr || making->map->l_name != info->dlpi_name ||
	    (info->dlpi_tls_modid && !info->dlpi_tls_data)) {
		making->wrong = true;
		return 1;
	}
	if (!making->count) {
		making->adds = info->dlpi_adds;
		making->subs = info->dlpi_subs;
		making->wrong = !find_words(making);
	}
	object->info = *info;
	object->tls = (const char *)info->dlpi_tls_data - (const char *)__builtin_thread_pointer();
	making->count++;
	making->map = making->map->l_next;
	return 0;
}

static int find_debug(struct dl_phdr_info *info, size_t size, void *data)
{
	(void)size;
	for (const ElfW(Dyn) *dynamic = dynamic_of(info); dynamic && dynamic->d_tag != DT_NULL; dynamic++)
		if (dynamic->d_tag == DT_DEBUG)
			*(const struct r_debug **)data = (const struct r_debug *)(uintptr_t)dynamic->d_un.d_ptr;
	return 1; /* the program is the first */
}

static bool find_state(struct making *making)
{
	const ElfW(Sym) *symbol = NULL;
	Dl_info info;

	making->state = dlvsym(RTLD_DEFAULT, "_rtld_global", "GLIBC_PRIVATE");
	if (!making->state || !dladdr1(making->state, &info, (void **)&symbol, RTLD_DL_SYMENT) || !symbol)
		return false;
	making->state_words = symbol->st_size / sizeof(uint64_t);
	return true;
}

/* Since 2.35 the first namespace's r_version tells of others. Behind us may be somebody's function who has other ideas. */
static bool suits(void)
{
	const char *version = gnu_get_libc_version();
	Dl_info function, libc;
	char *end;
	long major = strtol(version, &end, 10);

	if (!dladdr((const void *)(uintptr_t)real(), &function) ||
	    !dladdr((const void *)(uintptr_t)gnu_get_libc_version, &libc) || function.dli_fbase != libc.dli_fbase)
		return false;
	return sizeof(void *) == 8 && (major > 2 || (major == 2 && *end == '.' && strtol(end + 1, NULL, 10) >= 35));
}

/* The objects, in memory of their own; false: they could not be told for certain. */
static bool make_table(struct making *making, const struct r_debug *debug)
{
	struct view *v = &all_views[0];
	struct link_map *last = debug->r_map;
	unsigned initial;
	bool *marks;

	real()(note, making);
	/* One namespace, and nobody counts differently. */
	if (making->wrong || making->count != making->room || making->adds - making->subs != making->count)
		return false;
	marks = (bool *)(making->objects + making->count);
	initial = count_initial(making->objects, marks, making->count);
	for (unsigned i = 1; i < initial; i++)
		last = last->l_next;
	v->next = &last->l_next;
	v->version = &debug->r_version;
	v->objects = making->objects;
	v->end = making->objects + initial;
	v->count = initial;
	return true;
}

__attribute__((constructor)) static void start(void)
{
	struct making making = { 0 };
	const char *parallel = secure_getenv("PERCPU_LIBC_PHDR");
	const struct r_debug *debug = NULL;
	size_t size;
	void *memory;

	percpu__phdr_parallel = parallel && !strcmp(parallel, "parallel");
	if (!suits() || !find_state(&making))
		return;
	real()(find_debug, &debug);
	if (!debug || debug->r_version != 1)
		return;
	real()(count_one, &making.room);
	size = making.room * (sizeof(struct object) + sizeof(bool));
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return;
	making.objects = memory;
	making.map = debug->r_map;
	if (!make_table(&making, debug)) {
		munmap(memory, size);
		return;
	}
	__atomic_store_n(&made, true, __ATOMIC_RELEASE);
	__atomic_store_n(&view, &all_views[0], __ATOMIC_RELEASE);
}
