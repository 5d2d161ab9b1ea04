/* SPDX-License-Identifier: MIT */
/*
 * Values read everywhere, cold half: writers, and readers that were overtaken too often.
 *
 * The writers' lock is a futex word: HELD, SLEEPERS, and above them who could hold it: the process id for a value that is
 * shared between processes, else the number of forks that this process descends from. A holder that this names and that
 * cannot exist any more (a process that has died; a thread of the parent, seen from the child) has left nothing but a half
 * written slot that no version names: the next writer takes the lock over and writes that slot again.
 */
#include <errno.h>
#include <sys/mman.h>
#include <time.h>

#include <percpu/seqdata.h>

#include "base/sys.h"
#include "gate/gate.h"
#include "rseq/thread.h"

#define MAGIC        0x5e9da7a1U
#define HELD         1U
#define SLEEPERS     2U
#define OWNER        2 /* first bit of who could hold it */
#define SHARED_TRIES 1000
#define LOOK_AGAIN   20000000 /* ns after which a sleeper asks whether the holder still lives */

static uint32_t my_tag(const struct percpu_seqdata *seqdata)
{
	long who = seqdata->shared ? percpu__sys4(SYS_getpid, 0, 0, 0, 0)
				   : (long)__atomic_load_n(&percpu__fork_count, __ATOMIC_RELAXED);

	return (uint32_t)who << OWNER;
}

static bool holder_is_gone(const struct percpu_seqdata *seqdata, uint32_t word, uint32_t tag)
{
	if (word >> OWNER == tag >> OWNER)
		return false;
	return !seqdata->shared || percpu__sys4(SYS_kill, (long)(word >> OWNER), 0, 0, 0) == -ESRCH;
}

/* Signals are blocked. */
static void lock(struct percpu_seqdata *seqdata)
{
	struct timespec look_again = { .tv_nsec = LOOK_AGAIN };
	uint32_t tag = my_tag(seqdata), slept = 0;

	for (;;) {
		uint32_t word = __atomic_load_n(&seqdata->lock, __ATOMIC_RELAXED);

		if (!(word & HELD) || holder_is_gone(seqdata, word, tag)) {
			/* Who has slept does not know who else does. Acquire: pairs with the release in unlock(). */
			if (__atomic_compare_exchange_n(&seqdata->lock, &word, tag | HELD | slept | (word & SLEEPERS),
							0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
				return;
			continue;
		}
		if (!(word & SLEEPERS) && !__atomic_compare_exchange_n(&seqdata->lock, &word, word | SLEEPERS, 0,
								       __ATOMIC_RELAXED, __ATOMIC_RELAXED))
			continue;
		slept = SLEEPERS;
		percpu__sys4(SYS_futex, (long)&seqdata->lock,
			     seqdata->shared ? FUTEX_WAIT : FUTEX_WAIT | FUTEX_PRIVATE_FLAG, (long)(word | SLEEPERS),
			     seqdata->shared ? (long)&look_again : 0);
	}
}

static void unlock(struct percpu_seqdata *seqdata)
{
	if (__atomic_exchange_n(&seqdata->lock, 0, __ATOMIC_RELEASE) & SLEEPERS)
		percpu__sys4(SYS_futex, (long)&seqdata->lock,
			     seqdata->shared ? FUTEX_WAKE : FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, 0);
}

static uint64_t *slot_of(const struct percpu_seqdata *seqdata, uint64_t version, size_t size)
{
	return (uint64_t *)(uintptr_t)(seqdata + 1) + (version & 1) * (PERCPU__SEQDATA_SLOT(size) / 8);
}

static void words_store(uint64_t *to, const void *from, size_t size)
{
	for (size_t i = 0; i < size; i += 8) {
		uint64_t word = 0;

		__builtin_memcpy(&word, (const char *)from + i, size - i < 8 ? size - i : 8);
		__atomic_store_n(to + i / 8, word, PERCPU__WORD_STORE);
	}
}

static bool fits(size_t size)
{
	return size >= 1 && size <= PERCPU_SEQDATA_MAX;
}

static struct percpu_seqdata *make(void *storage, size_t size, const void *value, bool shared)
{
	struct percpu_seqdata *seqdata = storage;
	const uint64_t first = 1;

	if (!storage || (uintptr_t)storage % _Alignof(struct percpu_seqdata) || !fits(size))
		return NULL;
	__builtin_memset(storage, 0, PERCPU_SEQDATA_BYTES(size));
	seqdata->version = first;
	seqdata->size = (uint32_t)size;
	seqdata->shared = shared;
	if (value)
		words_store(slot_of(seqdata, first, size), value, size);
	/* Pairs with the acquire in percpu_seqdata_attach(). */
	__atomic_store_n(&seqdata->magic, MAGIC, __ATOMIC_RELEASE);
	return seqdata;
}

struct percpu_seqdata *percpu_seqdata_init(void *storage, size_t size, const void *value)
{
	return make(storage, size, value, false);
}

struct percpu_seqdata *percpu_seqdata_init_shared(void *storage, size_t size, const void *value)
{
	return make(storage, size, value, true);
}

struct percpu_seqdata *percpu_seqdata_attach(void *storage, size_t size)
{
	struct percpu_seqdata *seqdata = storage;

	if (!storage || (uintptr_t)storage % _Alignof(struct percpu_seqdata) ||
	    __atomic_load_n(&seqdata->magic, __ATOMIC_ACQUIRE) != MAGIC || !seqdata->shared || seqdata->size != size)
		return NULL;
	return seqdata;
}

int percpu_seqdata_create(size_t size, const void *value, struct percpu_seqdata **out)
{
	long got;

	if (!out || !fits(size))
		return -EINVAL;
	got = percpu__sys6(SYS_mmap, 0, (long)PERCPU_SEQDATA_BYTES(size), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (got < 0 && got > -4096)
		return -ENOMEM;
	*out = make((void *)got, size, value, false);
	return 0;
}

void percpu_seqdata_free(struct percpu_seqdata *seqdata)
{
	if (seqdata)
		percpu__sys4(SYS_munmap, (long)seqdata, (long)PERCPU_SEQDATA_BYTES(seqdata->size), 0, 0);
}

int64_t percpu_seqdata_write(struct percpu_seqdata *seqdata, const void *value, size_t size)
{
	uint64_t saved, next;

	if (!seqdata || !value || seqdata->size != size)
		return -EINVAL;
	percpu__block_signals(&saved);
	lock(seqdata);
	next = seqdata->version + 1;
	/*
	 * The slot still holds the last value but one. Pairs with the fence in percpu__slot_read(): a reader of that
	 * value who sees one of our words also sees that its version is over.
	 */
	PERCPU__WORD_FENCE(__ATOMIC_RELEASE);
	words_store(slot_of(seqdata, next, size), value, size);
	/* Pairs with the reader's first load: who sees the version sees all words. */
	__atomic_store_n(&seqdata->version, next, __ATOMIC_RELEASE);
	unlock(seqdata);
	percpu__restore_signals(&saved);
	return (int64_t)next;
}

static int64_t try_read(const struct percpu_seqdata *seqdata, void *out, size_t size)
{
	uint64_t now = __atomic_load_n(&seqdata->version, __ATOMIC_ACQUIRE);

	return percpu__slot_read(&seqdata->version, seqdata + 1, now, out, size) ? (int64_t)now : 0;
}

int64_t percpu__seqdata_read(const struct percpu_seqdata *seqdata, void *out, size_t size)
{
	struct percpu_seqdata *mine = (struct percpu_seqdata *)(uintptr_t)seqdata;
	int64_t version = 0;
	uint64_t saved;

	if (!seqdata || !out || seqdata->size != size)
		return -EINVAL;
	for (int i = 0; i < (seqdata->shared ? SHARED_TRIES : PERCPU__SEQDATA_TRIES) && !version; i++)
		version = try_read(seqdata, out, size);
	if (version)
		return version;
	/* It may be mapped read-only. */
	if (seqdata->shared)
		return -EAGAIN;
	percpu__block_signals(&saved);
	lock(mine);
	version = try_read(seqdata, out, size);
	unlock(mine);
	percpu__restore_signals(&saved);
	return version;
}

/* ---- what is made of a value, for each index */

int percpu_cached_init(struct percpu_cached *cached, const struct percpu_seqdata *source, size_t size,
		       percpu_derive *derive, void *arg)
{
	uint64_t *word;

	if (!cached || !source || !derive || !fits(size))
		return -EINVAL;
	word = percpu_alloc(64 + 2 * PERCPU__SEQDATA_SLOT(size), 64);
	if (!word)
		return -ENOMEM;
	*cached = (struct percpu_cached){ .source = source, .word = word, .size = size, .derive = derive, .arg = arg };
	return 0;
}

void percpu_cached_destroy(struct percpu_cached *cached)
{
	if (!cached)
		return;
	percpu_free(cached->word);
	cached->word = NULL;
	cached->size = 0;
}

/* The slot, behind copy 0's word, that the next value goes to, and what then names it. */
static char *next_slot(const struct percpu_cached *cached, uint64_t now, int64_t version, uint64_t *next)
{
	*next = (uint64_t)version << 1 | (~now & 1);
	return (char *)(cached->word + 8) + (*next & 1) * PERCPU__SEQDATA_SLOT(cached->size);
}

/*
 * Puts a value that was just made into the copy of an index where @now was found. If that is not there any more, or the
 * thread is elsewhere where something else is, somebody else has made it: a word names its version and slot, so the same
 * word at another index asks for the same change.
 */
static void publish(const struct percpu_cached *cached, uint32_t index, uint64_t now, int64_t version,
		    const void *value)
{
	uint64_t *word = percpu_ptr(cached->word, index), next;
	char *slot = next_slot(cached, now, version, &next);

	/*
	 * As in percpu_seqdata_write(): whoever sees a byte of the new value also sees `now`, by which its reader knows
	 * that the value before that is over. What was stored by this thread itself is not ordered by having been read.
	 */
	PERCPU__WORD_FENCE(__ATOMIC_RELEASE);
	if (index != percpu__remainder) {
		percpu_this_copy_store_release(cached->word, now, slot, value, cached->size, next);
	} else {
		struct percpu_gate gate = { .base = percpu__base_of(cached->word), .kinds = PERCPU__KIND_ID };

		percpu__gate_lock_remainder(&gate);
		if (*word == now) {
			words_store((uint64_t *)(void *)percpu_ptr(slot, index), value, cached->size);
			__atomic_store_n(word, next, __ATOMIC_RELEASE);
		}
		percpu__gates_unlock(&gate, 1, false);
	}
}

int64_t percpu__cached_read(const struct percpu_cached *cached, void *out, size_t size)
{
	int64_t version;
	uint64_t now;
	uint32_t index;

	if (!cached || !out || cached->size != size)
		return -EINVAL;
	percpu__thread_start();
	version = percpu_seqdata_version(cached->source);
	index = *(const volatile uint32_t *)(void *)((char *)percpu__self + percpu__index_offset);
	for (int i = 0; i < PERCPU__SEQDATA_TRIES; i++) {
		const uint64_t *word = percpu_ptr(cached->word, index);

		now = __atomic_load_n(word, __ATOMIC_ACQUIRE);
		if ((int64_t)(now >> 1) < version)
			break;
		if (percpu__slot_read(word, word + 8, now, out, size))
			return (int64_t)(now >> 1);
	}
	version = cached->derive(cached->source, out, cached->arg);
	if (version > 0 && (int64_t)(now >> 1) < version)
		publish(cached, index, now, version, out);
	return version;
}
