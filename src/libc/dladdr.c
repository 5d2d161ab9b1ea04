/* SPDX-License-Identifier: MIT */
/*
 * dladdr(3) without the loader's lock, for addresses that it was asked for before.
 *
 * The C library looks through all symbols of the object, under a lock that is held while constructors run. What it answers for
 * an address in an object that the process began with (phdr.c) is true for ever. Such answers are kept in a table, whose places
 * are a few words behind a sequence number, as in gettext.c: readers write nothing, a newer answer takes the place of an older.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "libc/dladdr.h"
#include "libc/phdr.h"

#define PLACES 4096

/* Odd: being written. All words are read and written singly, and believed only if `sequence` stays. */
struct place {
	uint32_t sequence;
	const void *address;
	const char *file, *symbol;
	void *base, *start;
} __attribute__((aligned(64)));

static struct place table[PLACES];
static uint32_t writing; /* a lock, only tried */
static struct place *written;
static bool watched; /* forks: otherwise nothing is kept */

#define READ(word)         __atomic_load_n(&(word), __ATOMIC_RELAXED)
#define WRITE(word, value) __atomic_store_n(&(word), value, __ATOMIC_RELAXED)

typedef int dladdr_fn(const void *, Dl_info *);

static dladdr_fn *real(void)
{
	static uintptr_t known;
	uintptr_t next = READ(known);

	if (__builtin_expect(!next, 0)) {
		next = (uintptr_t)dlsym(RTLD_NEXT, "dladdr");
		if (!next)
			abort();
		WRITE(known, next);
	}
	return (dladdr_fn *)next;
}

static inline struct place *place_of(const void *address)
{
	return &table[(uintptr_t)address * UINT64_C(0x9e3779b97f4a7c15) >> 52];
}

static __attribute__((noinline)) void keep(const void *address, const Dl_info *info)
{
	struct place *place = place_of(address);
	uint32_t sequence;

	if (__atomic_exchange_n(&writing, 1, __ATOMIC_ACQUIRE))
		return;
	WRITE(written, place);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	sequence = place->sequence;
	WRITE(place->sequence, sequence + 1);
	/* Pairs with the fence in percpu__dladdr(). */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	WRITE(place->address, address);
	WRITE(place->file, info->dli_fname);
	WRITE(place->base, info->dli_fbase);
	WRITE(place->symbol, info->dli_sname);
	WRITE(place->start, info->dli_saddr);
	__atomic_store_n(&place->sequence, sequence + 2, __ATOMIC_RELEASE);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	WRITE(written, NULL);
	__atomic_store_n(&writing, 0, __ATOMIC_RELEASE);
}

static __attribute__((noinline)) int ask(const void *address, Dl_info *info)
{
	int found = real()(address, info);

	if (found && READ(watched) && percpu__is_initial(address))
		keep(address, info);
	return found;
}

int percpu__dladdr(const void *address, Dl_info *info)
{
	struct place *place = place_of(address);
	uint32_t sequence = __atomic_load_n(&place->sequence, __ATOMIC_ACQUIRE);
	Dl_info answer;

	if (!sequence || READ(place->address) != address)
		return ask(address, info);
	answer.dli_fname = READ(place->file);
	answer.dli_fbase = READ(place->base);
	answer.dli_sname = READ(place->symbol);
	answer.dli_saddr = READ(place->start);
	/* Pairs with the fence in keep(): who reads a word of the next answer reads another sequence number then. */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (sequence & 1 || READ(place->sequence) != sequence)
		return ask(address, info);
	*info = answer;
	return 1;
}

/* Another thread may have been in keep(). */
static void in_child(void)
{
	if (written && written->sequence & 1) {
		written->address = NULL;
		written->sequence++;
	}
	written = NULL;
	writing = 0;
}

__attribute__((constructor)) static void start(void)
{
	(void)real();
	WRITE(watched, !pthread_atfork(NULL, NULL, in_child));
}
