/* SPDX-License-Identifier: MIT */
/*
 * A value that is read everywhere and changed rarely: configuration, a time zone, rates.
 *
 * Two slots and a version, whose low bit says which slot holds the newest value. A writer fills the other slot and then
 * publishes the next version; a reader copies the slot that the version names, and starts over if the version has changed
 * meanwhile. Readers write nothing shared. There is a complete value at every moment, so a writer that was preempted, or
 * stopped, or killed in the middle disturbs no reader: only a writer that has finished does.
 *
 * percpu_cached keeps, for each index, what a program makes of such a value (a parsed configuration) and the version it was
 * made from. Whoever finds it stale makes it anew, for himself at once and for its index by one commit.
 *
 * Ordering. Writer: word stores, then the version (release); before them a fence, so that whoever sees a word of the next
 * value sees this version too. Reader: version (acquire), word loads, a fence, the version again. The first pair makes a
 * new value complete; the second makes a reader notice that its slot was taken for the value after that.
 *
 * Source: the kernel's seqcount_latch, with one write instead of two for each change, as slots alternate.
 */
#ifndef PERCPU_SEQDATA_H
#define PERCPU_SEQDATA_H

#include <percpu/ops.h>

PERCPU_BEGIN_DECLS

/** The largest value in bytes. */
#define PERCPU_SEQDATA_MAX 65536
/* Tries of a reader, each spoiled by a writer that finished during it, before it does without racing. */
#define PERCPU__SEQDATA_TRIES 8
/* Values of at most this size, known to the compiler, are copied inline. */
#define PERCPU__SEQDATA_INLINE 256

/* ThreadSanitizer does not understand fences: there each word is ordered instead. */
#if defined __has_feature
#if __has_feature(thread_sanitizer)
#define PERCPU__WORD_FENCE(order) ((void)0)
#define PERCPU__WORD_LOAD         __ATOMIC_ACQUIRE
#define PERCPU__WORD_STORE        __ATOMIC_RELEASE
#endif
#endif
#if defined __SANITIZE_THREAD__ && !defined PERCPU__WORD_FENCE
#define PERCPU__WORD_FENCE(order) ((void)0)
#define PERCPU__WORD_LOAD         __ATOMIC_ACQUIRE
#define PERCPU__WORD_STORE        __ATOMIC_RELEASE
#endif
#ifndef PERCPU__WORD_FENCE
#define PERCPU__WORD_FENCE(order) __atomic_thread_fence(order)
#define PERCPU__WORD_LOAD         __ATOMIC_RELAXED
#define PERCPU__WORD_STORE        __ATOMIC_RELAXED
#endif

/** A value, in the caller's storage or the library's; two slots of whole cache lines follow. Fields belong to the library. */
struct percpu_seqdata {
	uint64_t version; /* of the newest value, from 1; its low bit names the slot. Written by the lock's holder */
	uint32_t size;    /* constant after init, as the next two */
	uint32_t shared;  /* between processes */
	uint32_t magic;   /* set last by init */
	uint32_t lock;    /* of writers; see src/ds/seqdata.c */
} __attribute__((aligned(64)));

/* Bytes of one slot, and bytes of storage for a value of that size. */
#define PERCPU__SEQDATA_SLOT(size) (((size_t)(size) + 63) & ~(size_t)63)
#define PERCPU_SEQDATA_BYTES(size) (sizeof(struct percpu_seqdata) + 2 * PERCPU__SEQDATA_SLOT(size))

/**
 * percpu_seqdata_init - make a value in the caller's storage.
 *
 * @storage: PERCPU_SEQDATA_BYTES(size) bytes, aligned to 64; all of the value lives there
 * @size: of the value, 1 to PERCPU_SEQDATA_MAX bytes
 * @value: what it is at first (version 1); NULL for zeros
 * Returns @storage as what it now is, or NULL if an argument is out of range. Wait-free, async-signal-safe. There is nothing
 * to undo: storage may be given back when no thread uses it any more.
 */
PERCPU_API struct percpu_seqdata *percpu_seqdata_init(void *storage, size_t size, const void *value);

/**
 * percpu_seqdata_init_shared - the same in memory that other processes map, at whatever addresses.
 *
 * They name it by percpu_seqdata_attach(). Readers may map it read-only. Writers of all processes exclude each other, and
 * one that was killed in the middle is noticed (by its process id: all must live in one PID namespace) and replaced; the
 * value stays as it was before. A process that stays alive but will never finish, such as a stopped one, keeps other
 * writers out; readers never.
 */
PERCPU_API struct percpu_seqdata *percpu_seqdata_init_shared(void *storage, size_t size, const void *value);

/**
 * percpu_seqdata_attach - find a value that another process has made by percpu_seqdata_init_shared().
 *
 * @storage: where this process has it mapped; @size: as init was told
 * Returns it, or NULL if there is none (yet) or its size differs. Wait-free, async-signal-safe.
 */
PERCPU_API struct percpu_seqdata *percpu_seqdata_attach(void *storage, size_t size);

/**
 * percpu_seqdata_create - percpu_seqdata_init() in storage of the library's (whole pages).
 *
 * @out: set to the value; untouched on error. Returns 0, -EINVAL or -ENOMEM. Async-signal-safe.
 */
PERCPU_API int percpu_seqdata_create(size_t size, const void *value, struct percpu_seqdata **out);

/** percpu_seqdata_free - free what percpu_seqdata_create() gave; no thread may use it any more. NULL does nothing. */
PERCPU_API void percpu_seqdata_free(struct percpu_seqdata *seqdata);

/**
 * percpu_seqdata_write - replace the value.
 *
 * @value: @size bytes, read under the writers' lock: they must not be changed meanwhile
 * @size: as init was told
 * Returns the new version, or -EINVAL if @size is another (nothing is changed then).
 * May block, on other writers only, with all signals blocked while it holds their lock: so it is async-signal-safe, and never
 * waits for what its own thread interrupted. A child of fork has a value of its own, and its lock is free whoever held
 * it (but see percpu(7) for forks without handlers).
 */
PERCPU_API int64_t percpu_seqdata_write(struct percpu_seqdata *seqdata, const void *value, size_t size);

PERCPU_API int64_t percpu__seqdata_read(const struct percpu_seqdata *seqdata, void *out, size_t size);

/**
 * percpu_seqdata_version - the version of the newest value, at least 1: "has it changed since?" for a load.
 *
 * It grows with each write. Who keeps something made from the value compares with the version that percpu_seqdata_read()
 * returned. Wait-free, async-signal-safe.
 */
PERCPU__INLINE int64_t percpu_seqdata_version(const struct percpu_seqdata *seqdata)
{
	return (int64_t)__atomic_load_n(&seqdata->version, __ATOMIC_ACQUIRE);
}

/* A slot's contents, which a writer may be changing. Lines by vectors where there is a port, the rest by words. */
PERCPU__INLINE void percpu__words_load(void *out, const uint64_t *from, size_t size)
{
	char *to = (char *)out;

#ifdef PERCPU__COPY_LINE
	for (; size >= 64; size -= 64, from += 8, to += 64)
		PERCPU__COPY_LINE(to, from);
#endif
	for (size_t i = 0; i < size; i += 8) {
		uint64_t word = __atomic_load_n(from + i / 8, PERCPU__WORD_LOAD);

		__builtin_memcpy(to + i, &word, size - i < 8 ? size - i : 8);
	}
}

/* One try: false if a writer finished meanwhile. @version: what the slots are numbered by. */
PERCPU__INLINE bool percpu__slot_read(const uint64_t *version, const void *slots, uint64_t now, void *out, size_t size)
{
	percpu__words_load(out, (const uint64_t *)slots + (now & 1) * (PERCPU__SEQDATA_SLOT(size) / 8), size);
	PERCPU__WORD_FENCE(__ATOMIC_ACQUIRE);
	return PERCPU__LIKELY(__atomic_load_n(version, __ATOMIC_RELAXED) == now);
}

/**
 * percpu_seqdata_read - copy the value.
 *
 * @out: @size bytes, set to the newest value as it was at one moment
 * @size: as init was told; a constant of up to 256 is copied inline
 * Returns the version of what was read, at least 1; -EINVAL if @size is another, and @out is untouched. Of a shared
 * value also -EAGAIN, if a thousand writes finished one after the other while it was being copied; @out is undefined then.
 * Wait-free as long as fewer than eight writes in a row finish during the copy, however slow writers are; then it takes its
 * turn among the writers, and may block on them. Async-signal-safe.
 */
PERCPU__INLINE int64_t percpu_seqdata_read(const struct percpu_seqdata *seqdata, void *out, size_t size)
{
	if (__builtin_constant_p(size) && size <= PERCPU__SEQDATA_INLINE) {
		uint64_t now = __atomic_load_n(&seqdata->version, __ATOMIC_ACQUIRE);

		if (PERCPU__LIKELY(seqdata->size == size) &&
		    percpu__slot_read(&seqdata->version, seqdata + 1, now, out, size))
			return (int64_t)now;
	}
	return percpu__seqdata_read(seqdata, out, size);
}

/**
 * A function that makes a derived value: reads @from, fills @out with as many bytes as percpu_cached_init() was told.
 *
 * Returns the version that percpu_seqdata_read() returned, or a negative error number. Called in the thread that found the
 * derived value stale, without any lock, maybe in several threads at once; what it gives must depend on the value alone.
 */
typedef int64_t percpu_derive(const struct percpu_seqdata *from, void *out, void *arg);

/** What is made of a value, one copy for each index. Constant after init; belongs to the library. */
struct percpu_cached {
	const struct percpu_seqdata *source;
	uint64_t *word; /* per-CPU: version << 1 | slot; two slots follow, a cache line behind it */
	size_t size;
	percpu_derive *derive;
	void *arg;
};

/**
 * percpu_cached_init - keep for each index what @derive makes of @source.
 *
 * @size: bytes of the derived value, 1 to PERCPU_SEQDATA_MAX; it is copied, so pointers in it are the program's affair
 * @arg: handed to @derive
 * Nothing is derived before the first read. Returns 0, -EINVAL or -ENOMEM. May block. Async-signal-safe.
 */
PERCPU_API int percpu_cached_init(struct percpu_cached *cached, const struct percpu_seqdata *source, size_t size,
				  percpu_derive *derive, void *arg);

/** percpu_cached_destroy - free what init allocated. No thread may use it any more. */
PERCPU_API void percpu_cached_destroy(struct percpu_cached *cached);

PERCPU_API int64_t percpu__cached_read(const struct percpu_cached *cached, void *out, size_t size);

/**
 * percpu_cached_read - copy the derived value, made from the newest version of its source or a newer one than that was when
 * the call began.
 *
 * @out: set to it; @size: as init was told; a constant of up to 256 is copied inline
 * Returns the version that it was made from; -EINVAL if @size is another (@out is untouched), or what @derive returned below 0
 * (@out is then as @derive left it). Reads two words and the copy where nothing has changed. Otherwise calls @derive,
 * straight into @out, and publishes that for its index. As wait-free and as safe in signal handlers as @derive is; a
 * handler that interrupts it may read too.
 */
PERCPU__INLINE int64_t percpu_cached_read(const struct percpu_cached *cached, void *out, size_t size)
{
	if (__builtin_constant_p(size) && size <= PERCPU__SEQDATA_INLINE && PERCPU__LIKELY(cached->size == size)) {
		int64_t newest = percpu_seqdata_version(cached->source);
		/* Any copy may be read; a thread that is not registered uses the remainder's. */
		uint32_t index = *(const volatile uint32_t *)(void *)((char *)percpu__self + percpu__index_offset);
		const uint64_t *word = percpu_ptr(cached->word, index);
		uint64_t now = __atomic_load_n(word, __ATOMIC_ACQUIRE);

		if (PERCPU__LIKELY((int64_t)(now >> 1) >= newest) && percpu__slot_read(word, word + 8, now, out, size))
			return (int64_t)(now >> 1);
	}
	return percpu__cached_read(cached, out, size);
}

PERCPU_END_DECLS

#endif
