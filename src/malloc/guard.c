/* SPDX-License-Identifier: MIT */
/*
 * Pages for guarded objects.
 *
 * The range is a page that is never touched, then place after place: a page for an object, and again one that is never
 * touched. It is reserved when the first object is to be guarded. A place goes from UNUSED to LIVE, to FREED, and, when no
 * other one has been free for longer, to LIVE again. Between these its state is BUSY, and who made it so has it to himself;
 * so the lock is held only to choose a place, and to queue it up again. A page has memory only while its object lives.
 *
 * The state is what the functions here trust. The rest of a place may change under the eyes of who reports a fault, if
 * another thread goes on meanwhile; a report may then be of the next object. It never reads outside of the table.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "malloc/guard.h"
#include "malloc/lock.h"
#include "malloc/report.h"
#include "malloc/sample.h"

#define PLACES      1024U
#define PLACES_MANY 8192U
#define PLACES_FEW  64U
/* Where there are not many: so many at most are in use, and the others wait, as long as possible. */
#define LIVE_SHARE 8U
/* Of the address space, if that is limited. */
#define RANGE_SHARE 64U
/* One object in so many is at the start of its page, where it is what lies before it that shows at once. */
#define AT_START 4U
#define NOBODYS  0xd7 /* bytes beside an object */
#define NONE     UINT32_MAX

struct percpu__guard percpu__guard;
uint64_t percpu__guard_taken;

static uint32_t guard_word; /* a lock, of all that follows, and of the links between places */
static bool off;
static uint32_t first_freed = NONE, last_freed = NONE;
static uint32_t used, live, live_most; /* places so far, and those with an object */

bool percpu__guard_has(const void *p)
{
	size_t bytes = __atomic_load_n(&percpu__guard.bytes, __ATOMIC_ACQUIRE);

	return (uintptr_t)p - percpu__guard.base < bytes;
}

static uintptr_t page_of(uint32_t place)
{
	return percpu__guard.base + (2 * (uintptr_t)place + 1) * percpu__guard.page;
}

static uintptr_t map(size_t bytes, int protection)
{
	long p = percpu__sys6(SYS_mmap, 0, (long)bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p < 0 && p > -4096 ? 0 : (uintptr_t)p;
}

/* Under the lock. */
static bool reserve(bool many)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	size_t page = getauxval(AT_PAGESZ);

	percpu__sys4(SYS_prlimit64, 0, RLIMIT_AS, 0, (long)&limit);
	for (uint32_t places = many ? PLACES_MANY : PLACES; page && places >= PLACES_FEW; places /= 2) {
		size_t bytes = (2 * (size_t)places + 1) * page, table = places * sizeof(*percpu__guard.places);
		uintptr_t range, places_at;

		if (limit.rlim_cur != RLIM_INFINITY && (bytes + table) > limit.rlim_cur / RANGE_SHARE)
			continue;
		range = map(bytes, PROT_NONE);
		places_at = range ? map(table, PROT_READ | PROT_WRITE) : 0;
		if (places_at) {
			percpu__guard.places = (void *)places_at;
			percpu__guard.page = page;
			percpu__guard.count = places;
			percpu__guard.base = range;
			live_most = many ? places : places / LIVE_SHARE;
			__atomic_store_n(&percpu__guard.bytes, bytes, __ATOMIC_RELEASE);
			return true;
		}
		if (range)
			percpu__sys4(SYS_munmap, (long)range, (long)bytes, 0, 0);
	}
	return false;
}

static void set_state(struct percpu__guard_place *place, uint32_t state)
{
	__atomic_store_n(&place->state, state, __ATOMIC_RELEASE);
}

/* Signals are blocked meanwhile: a handler may allocate, too. */
static void lock(uint64_t *saved)
{
	percpu__block_signals(saved);
	percpu__malloc_lock(&guard_word);
}

static void unlock(const uint64_t *saved)
{
	percpu__malloc_unlock(&guard_word);
	percpu__restore_signals(saved);
}

/* One that has never been used; else that which is free for the longest time. */
static uint32_t take_place(bool many)
{
	uint32_t number = NONE;
	uint64_t saved;

	/* (A look without the lock: most of the time there is nothing to wait for.) */
	if (__atomic_load_n(&off, __ATOMIC_RELAXED) ||
	    (percpu__guard.bytes && __atomic_load_n(&live, __ATOMIC_RELAXED) >= live_most))
		return NONE;
	lock(&saved);
	if (!percpu__guard.bytes && !off && !reserve(many))
		off = true;
	if (!off && live < live_most) {
		if (used < percpu__guard.count) {
			number = used++;
		} else if (first_freed != NONE) {
			number = first_freed;
			first_freed = percpu__guard.places[number].next;
			if (first_freed == NONE)
				last_freed = NONE;
		}
		if (number != NONE) {
			__atomic_store_n(&live, live + 1, __ATOMIC_RELAXED);
			set_state(&percpu__guard.places[number], PLACE_BUSY);
		}
	}
	unlock(&saved);
	return number;
}

static void give_place(uint32_t number)
{
	uint64_t saved;

	lock(&saved);
	percpu__guard.places[number].next = NONE;
	if (last_freed == NONE)
		first_freed = number;
	else
		percpu__guard.places[last_freed].next = number;
	last_freed = number;
	__atomic_store_n(&live, live - 1, __ATOMIC_RELAXED);
	set_state(&percpu__guard.places[number], PLACE_FREED);
	unlock(&saved);
}

static long protect(uint32_t number, int protection)
{
	return percpu__sys4(SYS_mprotect, (long)page_of(number), (long)percpu__guard.page, protection, 0);
}

void *percpu__guard_new(size_t size, size_t align, bool many)
{
	size_t page = getauxval(AT_PAGESZ), room = size ? size : 1;
	struct percpu__guard_place *place;
	uintptr_t start, object;
	uint32_t number;
	long rc;

	if (room > page || align > page)
		return NULL;
	/* Where a program has its own way with faults, only who asks for it gets more of them. */
	if (!percpu__report_install() && !many)
		return NULL;
	number = take_place(many);
	if (number == NONE)
		return NULL;
	place = &percpu__guard.places[number];
	rc = protect(number, PROT_READ | PROT_WRITE);
	if (rc) {
		/* Too many mappings may be a matter of time; who may not do it at all need not try again. */
		if (rc != -ENOMEM)
			__atomic_store_n(&off, true, __ATOMIC_RELAXED);
		give_place(number);
		return NULL;
	}
	__atomic_fetch_add(&percpu__guard_taken, 1, __ATOMIC_RELAXED);
	start = page_of(number);
	object = start;
	if (percpu__sample_random() % AT_START)
		object = (start + page - room) & ~(uintptr_t)((align > QUANTUM ? align : QUANTUM) - 1);
	memset((void *)start, NOBODYS, page);
	place->object = object;
	place->size = size;
	place->freed.count = 0;
	percpu__unwind(&place->made);
	set_state(place, PLACE_LIVE);
	return (void *)object;
}

/* The first byte that is not as it was left; NULL: all are. */
static const unsigned char *first_changed(uintptr_t from, uintptr_t to)
{
	const uint64_t nobodys = UINT64_C(0x0101010101010101) * NOBODYS;

	while (from < to) {
		if (from % 8 == 0 && to - from >= 8 && *(const uint64_t *)from == nobodys)
			from += 8;
		else if (*(const unsigned char *)from == NOBODYS)
			from++;
		else
			return (const unsigned char *)from;
	}
	return NULL;
}

static void check_bytes(uint32_t number)
{
	const struct percpu__guard_place *place = &percpu__guard.places[number];
	uintptr_t start = page_of(number);
	const unsigned char *changed = first_changed(place->object + place->size, start + percpu__guard.page);

	if (changed)
		percpu__report_die("overflow", "seen when it is freed: byte changed at", changed, number);
	/* Not the first byte of them, but the one that is next to the object. */
	if (first_changed(start, place->object)) {
		changed = (const unsigned char *)place->object - 1;
		while (*changed == NOBODYS)
			changed--;
		percpu__report_die("underflow", "seen when it is freed: byte changed at", changed, number);
	}
}

/* The place of an object that lives; it is BUSY then, if so asked. */
static uint32_t place_at(const void *p, bool make_busy, const char *verb)
{
	uintptr_t page = ((uintptr_t)p - percpu__guard.base) / percpu__guard.page;
	uint32_t number = (uint32_t)(page / 2), state = PLACE_LIVE;
	struct percpu__guard_place *place;

	if (number >= percpu__guard.count)
		number = percpu__guard.count - 1;
	place = &percpu__guard.places[number];
	if (page % 2 == 1 && __atomic_load_n(&place->state, __ATOMIC_ACQUIRE) == PLACE_LIVE &&
	    (uintptr_t)p == place->object &&
	    (!make_busy ||
	     __atomic_compare_exchange_n(&place->state, &state, PLACE_BUSY, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)))
		return number;
	state = __atomic_load_n(&place->state, __ATOMIC_ACQUIRE);
	if (page % 2 == 1 && (state == PLACE_FREED || state == PLACE_BUSY) && (uintptr_t)p == place->object)
		percpu__report_die(make_busy ? "double free" : "use after free", verb, p, number);
	percpu__report_die(make_busy ? "invalid free" : "invalid pointer", verb, p, number);
}

void percpu__guard_free(void *p)
{
	uint32_t number = place_at(p, true, "free of");
	struct percpu__guard_place *place = &percpu__guard.places[number];

	check_bytes(number);
	if (live_most == percpu__guard.count || percpu__report_install())
		percpu__unwind(&place->freed);
	/* If the kernel refuses, who uses it goes unnoticed, and nothing else is wrong. */
	protect(number, PROT_NONE);
	percpu__sys4(SYS_madvise, (long)page_of(number), (long)percpu__guard.page, MADV_DONTNEED, 0);
	give_place(number);
}

size_t percpu__guard_size(const void *p)
{
	return percpu__guard.places[place_at(p, false, "size asked of")].size;
}

void percpu__guard_lock(void)
{
	percpu__lock_word(&guard_word);
}

void percpu__guard_unlock(void)
{
	percpu__unlock_word(&guard_word);
}

void percpu__guard_relock(void)
{
	__atomic_store_n(&guard_word, 1, __ATOMIC_RELAXED);
}
