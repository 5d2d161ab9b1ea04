/* SPDX-License-Identifier: MIT */
/*
 * gettext(3) and its family, without locks where the C library has answered the same before.
 *
 * The C library remembers each translation that it found, by message, domain, category and name of the locale, for as long as
 * its counter _nl_msg_cat_cntr stays as it is. setlocale, textdomain, bindtextdomain and bind_textdomain_codeset count there,
 * and so does a program that sets LANGUAGE and wants to see it. So a translation that it gave holds while the counter stays,
 * and until then it gives the same pointer; those stay valid for ever. Here is a table of such answers, with the same keys.
 * What it gave no translation for it looks for each time anew (LANGUAGE may have changed), so that is left to it, but for the
 * locale "C": there a message is its own translation, whatever is set.
 *
 * A place in the table is a few words behind a sequence number, so readers write nothing, and no memory is ever freed under
 * them. It is chosen by the address of the message and what else the caller said; contents are compared with a copy, for an
 * address may have come to hold another message. Copies are made once for each message, domain and locale, and kept, as the C
 * library does; there is a limit, beyond which messages that have no copy yet are left to it. Where places are used up, a newer
 * answer takes that of an older one.
 *
 * The name of the process's locale belongs to setlocale, which frees it, and counts. So it is never read: while the counter
 * stays, so does the name; only whether it is "C" is noted, from its address. That of a thread's own locale can be read,
 * because it must not be freed while it is in use; and it must be, for nobody counts when the thread gets another one.
 */
#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <libintl.h>
#include <locale.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "libc/gettext.h"

#define SETS       1024
#define WAYS       4
#define COPIES     4096
#define MOST_BYTES (UINT64_C(16) << 20)

#define PLURAL 0x100U /* beside the category */
#define OWN    0x200U /* the thread has a locale of its own */

/* What makes answers equal, by content. Never changed, never freed. */
struct copy {
	struct copy *next;
	uint64_t hash;
	const char *domain, *name; /* behind the message; NULL as in a question */
	char msgid[];
};

/* One answer. Odd: being written. All is read and written by single words, and believed only if `sequence` stays. */
struct place {
	uint32_t sequence;
	int32_t counter;
	const char *msgid, *domain, *name;
	uint64_t n;
	char *answer;
	const struct copy *copy;
	uint32_t kind;
	uint32_t unused;
};
_Static_assert(sizeof(struct place) == 64, "a cache line");

struct question {
	const char *msgid, *domain, *name; /* a NULL is the default domain, the process's locale */
	uint64_t n;
	uint32_t kind;
	int32_t counter;
};

extern int _nl_msg_cat_cntr;

#define READ(word)         __atomic_load_n(&(word), __ATOMIC_RELAXED)
#define WRITE(word, value) __atomic_store_n(&(word), value, __ATOMIC_RELAXED)

static struct place table[SETS][WAYS] __attribute__((aligned(64)));

/* The writer's: one at a time, and who finds another one there does without. */
static uint32_t writing;
static struct place *written; /* while it is odd */
static struct copy *copies[COPIES];
static char *room;
static uint64_t used;
static unsigned turn;

static const char *c_name; /* the name that the locale "C" has wherever it is set; NULL: no answer is kept */
/* For each category the last counter, and 1 above it, with which the process's locale was "C". */
static uint64_t c_counter[LC_IDENTIFICATION + 1];

typedef char *dcgettext_fn(const char *, const char *, int);
typedef char *dcngettext_fn(const char *, const char *, const char *, unsigned long, int);

static struct {
	uintptr_t dcgettext, dcngettext;
} next;

static uintptr_t find_next(uintptr_t *known, const char *name)
{
	uintptr_t function = __atomic_load_n(known, __ATOMIC_RELAXED);

	if (__builtin_expect(!function, 0)) {
		function = (uintptr_t)dlsym(RTLD_NEXT, name);
		if (!function)
			abort();
		__atomic_store_n(known, function, __ATOMIC_RELAXED);
	}
	return function;
}

#define NEXT(name) ((name##_fn *)find_next(&next.name, #name))

/* False: only the C library knows. */
static inline bool ask(struct question *q, const char *domain, const char *msgid, int category, uint32_t kind,
		       uint64_t n)
{
	locale_t locale;

	if (__builtin_expect((unsigned)category > LC_IDENTIFICATION || category == LC_ALL || !msgid, 0))
		return false;
	q->counter = __atomic_load_n(&_nl_msg_cat_cntr, __ATOMIC_ACQUIRE);
	locale = uselocale((locale_t)0);
	q->kind = (uint32_t)category | kind;
	if (locale == LC_GLOBAL_LOCALE) {
		q->name = NULL;
	} else {
		q->name = locale->__names[category];
		q->kind |= OWN;
	}
	q->msgid = msgid;
	q->domain = domain;
	q->n = n;
	return true;
}

static inline unsigned category_of(const struct question *q)
{
	return q->kind & (PLURAL - 1);
}

static inline uint64_t counter_of(const struct question *q)
{
	return (uint32_t)q->counter | UINT64_C(1) << 32;
}

static inline bool is_c(const struct question *q)
{
	return q->kind & OWN ? q->name == c_name : READ(c_counter[category_of(q)]) == counter_of(q);
}

static inline struct place *set_of(const struct question *q)
{
	uint64_t x = (uintptr_t)q->msgid ^ (uintptr_t)q->domain << 20 ^ (uintptr_t)q->name << 7 ^ q->n << 32;

	return table[x * UINT64_C(0x9e3779b97f4a7c15) >> 54];
}

static inline bool says(const struct question *q, const struct copy *copy)
{
	return !strcmp(q->msgid, copy->msgid) && (!q->domain || !strcmp(q->domain, copy->domain)) &&
	       (!q->name || !strcmp(q->name, copy->name));
}

static inline char *answer_to(const struct question *q)
{
	struct place *place = set_of(q);

	for (unsigned way = 0; way < WAYS; way++, place++) {
		uint32_t sequence = __atomic_load_n(&place->sequence, __ATOMIC_ACQUIRE);
		const struct copy *copy;
		char *answer;

		if (READ(place->msgid) != q->msgid || READ(place->counter) != q->counter || READ(place->n) != q->n ||
		    READ(place->domain) != q->domain || READ(place->name) != q->name || READ(place->kind) != q->kind)
			continue;
		answer = READ(place->answer);
		copy = READ(place->copy);
		/* Pairs with the fence in keep(): who reads a word of the next answer reads another sequence number then. */
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (sequence & 1 || READ(place->sequence) != sequence)
			continue;
		if (says(q, copy))
			return answer;
	}
	return NULL;
}

static uint64_t mix(uint64_t hash, const char *text)
{
	while (*text)
		hash = (hash ^ (unsigned char)*text++) * UINT64_C(0x100000001b3);
	return hash * 31;
}

static void *take(size_t size)
{
	uint64_t at = used;

	size = (size + 15) / 16 * 16;
	if (!room) {
		void *memory = mmap(NULL, MOST_BYTES, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (memory == MAP_FAILED)
			return NULL;
		room = memory;
	}
	if (size > MOST_BYTES - used)
		return NULL;
	used += size;
	return room + at;
}

/* By the writer: the copy of what is asked, which is made if there is none. */
static const struct copy *copy_of(const struct question *q)
{
	const char *name = q->name;
	uint64_t hash = mix(mix(mix(5381, q->msgid), q->domain ? q->domain : ""), name ? name : "");
	struct copy **head = &copies[hash % COPIES], *copy;
	size_t msgid, domain, bytes;
	char *at;

	for (copy = *head; copy; copy = copy->next)
		if (copy->hash == hash && !copy->domain == !q->domain && !copy->name == !name && says(q, copy))
			return copy;
	msgid = strlen(q->msgid) + 1;
	domain = q->domain ? strlen(q->domain) + 1 : 0;
	bytes = name ? strlen(name) + 1 : 0;
	copy = take(sizeof(*copy) + msgid + domain + bytes);
	if (!copy)
		return NULL;
	copy->hash = hash;
	at = memcpy(copy->msgid, q->msgid, msgid);
	copy->domain = domain ? memcpy(at + msgid, q->domain, domain) : NULL;
	copy->name = name ? memcpy(at + msgid + domain, name, bytes) : NULL;
	copy->next = *head;
	__atomic_store_n(head, copy, __ATOMIC_RELEASE); /* for the child of a fork by another thread */
	return copy;
}

static struct place *place_for(const struct question *q)
{
	struct place *set = set_of(q);

	for (unsigned way = 0; way < WAYS; way++)
		if (set[way].counter != q->counter || !set[way].msgid)
			return &set[way];
	return &set[turn++ % WAYS];
}

static __attribute__((noinline)) void keep(const struct question *q, char *answer)
{
	struct place *place;
	const struct copy *copy;
	uint32_t sequence;

	if (__atomic_exchange_n(&writing, 1, __ATOMIC_ACQUIRE))
		return;
	copy = copy_of(q);
	if (copy) {
		place = place_for(q);
		WRITE(written, place);
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		sequence = place->sequence;
		WRITE(place->sequence, sequence + 1);
		/* Pairs with the fence in answer_to(). */
		__atomic_thread_fence(__ATOMIC_RELEASE);
		WRITE(place->msgid, q->msgid);
		WRITE(place->domain, q->domain);
		WRITE(place->name, q->name);
		WRITE(place->n, q->n);
		WRITE(place->kind, q->kind);
		WRITE(place->counter, q->counter);
		WRITE(place->answer, answer);
		WRITE(place->copy, copy);
		__atomic_store_n(&place->sequence, sequence + 2, __ATOMIC_RELEASE);
		__atomic_signal_fence(__ATOMIC_SEQ_CST);
		WRITE(written, NULL);
	}
	__atomic_store_n(&writing, 0, __ATOMIC_RELEASE);
}

/* What the C library has answered is the answer for this counter, unless somebody has counted meanwhile. */
static void consider(const struct question *q, char *answer, bool translated)
{
	bool c = !(q->kind & OWN) && setlocale((int)category_of(q), NULL) == c_name;

	/* Pairs with the lock that the C library had: who counted before that is seen. */
	if (__atomic_load_n(&_nl_msg_cat_cntr, __ATOMIC_ACQUIRE) != q->counter)
		return;
	if (c)
		WRITE(c_counter[category_of(q)], counter_of(q));
	else if (translated)
		keep(q, answer);
}

static __attribute__((noinline)) char *ask_one(const struct question *q)
{
	char *answer = NEXT(dcgettext)(q->domain, q->msgid, (int)category_of(q));

	consider(q, answer, answer && answer != q->msgid);
	return answer;
}

static __attribute__((noinline)) char *ask_plural(const struct question *q, const char *plural)
{
	char *answer = NEXT(dcngettext)(q->domain, q->msgid, plural, q->n, (int)category_of(q));

	consider(q, answer, answer && answer != q->msgid && answer != plural);
	return answer;
}

char *percpu__dcgettext(const char *domain, const char *msgid, int category)
{
	struct question q;
	char *answer;

	if (__builtin_expect(!c_name || !ask(&q, domain, msgid, category, 0, 0), 0))
		return NEXT(dcgettext)(domain, msgid, category);
	if (is_c(&q))
		return (char *)msgid;
	answer = answer_to(&q);
	return __builtin_expect(answer != NULL, 1) ? answer : ask_one(&q);
}

char *percpu__dcngettext(const char *domain, const char *msgid, const char *plural, unsigned long n, int category)
{
	struct question q;
	char *answer;

	if (__builtin_expect(!c_name || !ask(&q, domain, msgid, category, PLURAL, n), 0))
		return NEXT(dcngettext)(domain, msgid, plural, n, category);
	if (is_c(&q))
		return (char *)(n == 1 ? msgid : plural);
	answer = answer_to(&q);
	return __builtin_expect(answer != NULL, 1) ? answer : ask_plural(&q, plural);
}

/* Another thread may have been in keep(). */
static void in_child(void)
{
	struct place *place = written;

	if (place && place->sequence & 1) {
		place->msgid = NULL;
		place->sequence++;
	}
	written = NULL;
	writing = 0;
}

/* Where others stand before the C library's functions, what these answer is theirs to say. */
static bool is_libc(uintptr_t function)
{
	Dl_info info, libc;

	return dladdr((const void *)function, &info) && dladdr((const void *)(uintptr_t)gnu_get_libc_version, &libc) &&
	       info.dli_fbase == libc.dli_fbase;
}

__attribute__((constructor)) static void start(void)
{
	locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* always the same one, never freed */

	if (!c || strcmp(c->__names[LC_MESSAGES], "C") != 0 || !is_libc((uintptr_t)NEXT(dcgettext)) ||
	    !is_libc((uintptr_t)NEXT(dcngettext)) || pthread_atfork(NULL, NULL, in_child))
		return;
	__atomic_store_n(&c_name, c->__names[LC_MESSAGES], __ATOMIC_RELEASE);
}
