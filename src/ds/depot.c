/* SPDX-License-Identifier: MIT */
/*
 * The memory of a pool: see depot.h.
 *
 * A chunk is new (never used), in use, or released. In use it is in the list `partial` if objects of it are free.
 */
#include <errno.h>
#include <sys/mman.h>

#include "base/sys.h"
#include "ds/depot.h"

#define PAGE         ((size_t)4096)
#define CHUNK_BYTES  ((size_t)64 << 10)
#define REGION_BYTES ((size_t)1 << 20) /* the first; each further one is twice as long */
#define MOST_BYTES   (SIZE_MAX / 8)

struct percpu__chunk {
	struct percpu__chunk *next, *previous; /* `released` uses next only */
	char *data;                            /* NULL if new */
	uint32_t free;
	bool used;
	uint64_t map[]; /* a bit for each object that is free */
};

struct percpu__region {
	struct percpu__region *next;
	char *data;
	size_t bytes; /* of the whole mapping, which begins here */
	size_t chunks, fresh;
	uint64_t table[]; /* chunks */
};

static size_t round_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

static size_t map_words(const struct percpu__store *store)
{
	return (store->per_chunk + 63) / 64;
}

static size_t chunk_size(const struct percpu__store *store)
{
	return sizeof(struct percpu__chunk) + map_words(store) * sizeof(uint64_t);
}

static struct percpu__chunk *chunk_of(const struct percpu__store *store, struct percpu__region *region, size_t number)
{
	return (struct percpu__chunk *)(void *)((char *)region->table + number * chunk_size(store));
}

void percpu__store_init(struct percpu__store *store, size_t size, size_t align, size_t max)
{
	size_t stride = round_up(size, align);
	size_t bytes = round_up(stride > CHUNK_BYTES ? stride : CHUNK_BYTES, PAGE);

	*store = (struct percpu__store){
		.stride = stride, .per_chunk = bytes / stride, .chunk_bytes = bytes, .max = max ? max : SIZE_MAX
	};
}

void percpu__store_destroy(struct percpu__store *store)
{
	while (store->regions) {
		struct percpu__region *region = store->regions;

		store->regions = region->next;
		percpu__sys4(SYS_munmap, (long)region, (long)region->bytes, 0, 0);
	}
}

static bool map_region(struct percpu__store *store, size_t chunks)
{
	size_t table = round_up(sizeof(struct percpu__region) + chunks * chunk_size(store), PAGE);
	size_t bytes = table + chunks * store->chunk_bytes;
	struct percpu__region *region;
	long got;

	if (chunks > MOST_BYTES / (store->chunk_bytes + chunk_size(store)))
		return false;
	got = percpu__sys6(SYS_mmap, 0, (long)bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (got < 0 && got > -4096)
		return false;
	region = (struct percpu__region *)got;
	region->data = (char *)region + table;
	region->bytes = bytes;
	region->chunks = chunks;
	region->next = store->regions;
	store->regions = region;
	store->chunks += chunks;
	store->table_bytes += table;
	return true;
}

static bool add_region(struct percpu__store *store)
{
	size_t first = REGION_BYTES / store->chunk_bytes, chunks = store->chunks, most;

	first = first ? first : 1;
	chunks = chunks > first ? chunks : first;
	most = store->max / store->per_chunk + (store->max % store->per_chunk != 0);
	/* Every object that may be taken has its place already. */
	if (most <= store->chunks)
		return false;
	if (chunks > most - store->chunks)
		chunks = most - store->chunks;
	first = first < chunks ? first : chunks;
	return map_region(store, chunks) || map_region(store, first) || map_region(store, 1);
}

static void link_partial(struct percpu__store *store, struct percpu__chunk *chunk)
{
	chunk->previous = NULL;
	chunk->next = store->partial;
	if (chunk->next)
		chunk->next->previous = chunk;
	store->partial = chunk;
}

static void unlink_partial(struct percpu__store *store, struct percpu__chunk *chunk)
{
	if (chunk->next)
		chunk->next->previous = chunk->previous;
	if (chunk->previous)
		chunk->previous->next = chunk->next;
	else
		store->partial = chunk->next;
}

/* Takes one more chunk into use: a released one, or a new one. */
static bool open_chunk(struct percpu__store *store)
{
	struct percpu__chunk *chunk = store->released;

	if (chunk) {
		store->released = chunk->next;
	} else {
		struct percpu__region *region = store->regions;

		if (!region || region->fresh == region->chunks) {
			if (!add_region(store))
				return false;
			region = store->regions;
		}
		chunk = chunk_of(store, region, region->fresh);
		chunk->data = region->data + region->fresh * store->chunk_bytes;
		region->fresh++;
	}
	chunk->used = true;
	chunk->free = (uint32_t)store->per_chunk;
	for (size_t i = 0; i < map_words(store); i++) {
		size_t left = store->per_chunk - i * 64;

		chunk->map[i] = left >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << left) - 1;
	}
	link_partial(store, chunk);
	store->free += store->per_chunk;
	store->used_chunks++;
	return true;
}

static size_t take_from(struct percpu__store *store, struct percpu__chunk *chunk, void **out, size_t n)
{
	size_t got = 0;

	n = n < chunk->free ? n : chunk->free;
	for (size_t i = 0; got < n; i++) {
		uint64_t word = chunk->map[i];

		for (; word && got < n; word &= word - 1)
			out[got++] = chunk->data + (i * 64 + (size_t)__builtin_ctzll(word)) * store->stride;
		chunk->map[i] = word;
	}
	chunk->free -= (uint32_t)got;
	if (!chunk->free)
		unlink_partial(store, chunk);
	return got;
}

size_t percpu__store_take(struct percpu__store *store, void **out, size_t n)
{
	size_t got = 0;

	n = n < store->max - store->taken ? n : store->max - store->taken;
	while (got < n && (store->partial || open_chunk(store)))
		got += take_from(store, store->partial, out + got, n - got);
	store->taken += got;
	store->free -= got;
	return got;
}

static struct percpu__chunk *find(struct percpu__store *store, uintptr_t address, size_t *number)
{
	for (struct percpu__region *region = store->regions; region; region = region->next) {
		size_t distance = address - (uintptr_t)region->data, inside;

		if (address < (uintptr_t)region->data || distance >= region->fresh * store->chunk_bytes)
			continue;
		inside = distance % store->chunk_bytes;
		*number = inside / store->stride;
		if (inside % store->stride || *number >= store->per_chunk)
			return NULL;
		return chunk_of(store, region, distance / store->chunk_bytes);
	}
	return NULL;
}

void percpu__store_give(struct percpu__store *store, void *const *objects, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		size_t number = 0;
		struct percpu__chunk *chunk = find(store, (uintptr_t)objects[i], &number);
		uint64_t bit = UINT64_C(1) << number % 64;

		if (!chunk || !chunk->used || (chunk->map[number / 64] & bit)) {
			store->strays++;
			continue;
		}
		chunk->map[number / 64] |= bit;
		if (!chunk->free++)
			link_partial(store, chunk);
		store->free++;
		store->taken--;
	}
}

size_t percpu__store_trim(struct percpu__store *store, size_t keep)
{
	struct percpu__chunk *chunk = store->partial, *next;
	size_t bytes = 0;

	for (; chunk; chunk = next) {
		next = chunk->next;
		if (chunk->free < store->per_chunk || store->free - store->per_chunk < keep)
			continue;
		unlink_partial(store, chunk);
		for (size_t i = 0; i < map_words(store); i++)
			chunk->map[i] = 0;
		chunk->free = 0;
		chunk->used = false;
		chunk->next = store->released;
		store->released = chunk;
		store->free -= store->per_chunk;
		store->used_chunks--;
		percpu__sys4(SYS_madvise, (long)chunk->data, (long)store->chunk_bytes, MADV_DONTNEED, 0);
		bytes += store->chunk_bytes;
	}
	return bytes;
}
