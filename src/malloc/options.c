/* SPDX-License-Identifier: MIT */
/*
 * Reading the options; see options.h. One table says what there is.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include <percpu/rseq.h>

#include "base/sys.h"
#include "malloc/front.h"
#include "malloc/options.h"
#include "malloc/sample.h"
#include "malloc/writer.h"

#define VARIABLE "PERCPU_MALLOC"
#define K        ((uint64_t)1 << 10)
#define M        (K << 10)
#define G        (M << 10)

struct percpu__malloc_options percpu__malloc_options = { .guard = PERCPU__GUARD_USUAL };

enum kind { FLAG, SIZE, NUMBER, FILE_NAME, FLAG_OR_FILE, WORD, SIGNAL };

/* Without pointers: it may be read before the loader has put any in. */
struct known {
	char name[20];
	enum kind kind;
	uint64_t least, most; /* of a number or size */
	uint32_t at;          /* in struct percpu__malloc_options; of a file's name, too */
	uint32_t flag;        /* of FLAG_OR_FILE */
};

#define AT(field) ((uint32_t)offsetof(struct percpu__malloc_options, field))
static const struct known known[] = {
	{ "cache", SIZE, 64 * K, G, AT(cache), 0 },
	{ "cache-total", SIZE, 64 * K, 1024 * G, AT(cache_total), 0 },
	{ "check", FLAG, 0, 0, AT(check), 0 },
	{ "count", FLAG, 0, 0, AT(count), 0 },
	{ "decay", WORD, 0, 0, AT(decay), 0 },
	{ "guard", NUMBER, 0, UINT32_MAX, AT(guard), 0 },
	{ "huge", WORD, 0, 0, AT(huge), 0 },
	{ "keep", SIZE, 1, 1024 * G, AT(keep), 0 },
	{ "nodes", NUMBER, 1, 64, AT(nodes), 0 },
	{ "profile", FILE_NAME, 0, 0, AT(profile_file), 0 },
	{ "profile-interval", SIZE, 1, 1024 * G, AT(profile), 0 },
	{ "random", FLAG, 0, 0, AT(random), 0 },
	{ "stats", FLAG_OR_FILE, 0, 0, AT(stats_file), AT(stats) },
	{ "stats-json", FILE_NAME, 0, 0, AT(json_file), 0 },
	{ "stats-signal", SIGNAL, 0, 0, AT(stats_signal), 0 },
	{ "zero", FLAG, 0, 0, AT(zero), 0 },
};
#define KNOWN (sizeof(known) / sizeof(known[0]))

/* Names of files: of profile, stats, stats-json. */
static char names[3][PATH_MAX];

static void *field_at(uint32_t at)
{
	return (char *)&percpu__malloc_options + at;
}

static void write_size(struct percpu__writer *w, uint64_t size)
{
	static const char units[][2] = { "", "K", "M", "G" };
	unsigned unit = 0;

	for (; unit < 3 && size >= 1024 && size % 1024 == 0; unit++)
		size /= 1024;
	percpu__write_number(w, size);
	percpu__write_text(w, units[unit]);
}

static void write_permitted(struct percpu__writer *w, const struct known *option)
{
	switch (option->kind) {
	case FLAG:
		percpu__write_text(w, "it takes no value");
		break;
	case SIZE:
		percpu__write_text(w, "it must be a size, ");
		write_size(w, option->least);
		percpu__write_text(w, " to ");
		write_size(w, option->most);
		break;
	case NUMBER:
		percpu__write_text(w, "it must be a number, ");
		percpu__write_number(w, option->least);
		percpu__write_text(w, " to ");
		percpu__write_number(w, option->most);
		break;
	case FILE_NAME:
	case FLAG_OR_FILE:
		percpu__write_text(w, "it must be the name of a file, of less than 4096 bytes");
		break;
	case WORD:
		percpu__write_text(w, "it must be never, auto or always");
		break;
	case SIGNAL:
		percpu__write_text(w,
				   "it must be a signal, by number or as USR2, that is not KILL, STOP or for a crash");
		break;
	}
}

/* "OPTION: " and what is permitted, or @why. */
static void explain(struct percpu__writer *w, const char *text, size_t length, const struct known *option,
		    const char *why)
{
	for (size_t i = 0; i < length && i < 100; i++) {
		char one[2] = { text[i] };

		if ((unsigned char)*one < ' ' || *one == 127)
			*one = '?';
		percpu__write_text(w, one);
	}
	percpu__write_text(w, length > 100 ? "...: " : ": ");
	if (why) {
		percpu__write_text(w, why);
	} else if (option) {
		write_permitted(w, option);
	} else {
		percpu__write_text(w, "there is no such option; known are ");
		for (size_t i = 0; i < KNOWN; i++) {
			percpu__write_text(w, i ? ", " : "");
			percpu__write_text(w, known[i].name);
		}
	}
}

/* All of it must be digits. UINT64_MAX: it is no number. */
static uint64_t number_of(const char *text, size_t length)
{
	uint64_t value = 0;

	for (size_t i = 0; i < length; i++) {
		if (text[i] < '0' || text[i] > '9' || value > UINT64_MAX / 16)
			return UINT64_MAX;
		value = value * 10 + (uint64_t)(text[i] - '0');
	}
	return length ? value : UINT64_MAX;
}

/* Digits, then perhaps K, M or G. UINT64_MAX: it is no size, or none that fits. */
static uint64_t size_of(const char *text, size_t length)
{
	static const char units[] = "KMG";
	unsigned shift = 0;
	uint64_t value;

	for (unsigned i = 0; length && units[i]; i++)
		if ((text[length - 1] & ~0x20) == units[i])
			shift = (i + 1) * 10;
	value = number_of(text, length - (shift != 0));
	return value > UINT64_MAX >> shift ? UINT64_MAX : value << shift;
}

static bool is_word(const char *text, size_t length, const char *word)
{
	return strlen(word) == length && !memcmp(text, word, length);
}

/* 0: it is none, or one that must not be used for this. */
static uint64_t signal_of(const char *text, size_t length)
{
	static const struct {
		char name[8];
		uint8_t number;
	} usable[] = { { "HUP", SIGHUP },       { "INT", SIGINT },   { "QUIT", SIGQUIT },   { "USR1", SIGUSR1 },
		       { "USR2", SIGUSR2 },     { "PIPE", SIGPIPE }, { "ALRM", SIGALRM },   { "TERM", SIGTERM },
		       { "CHLD", SIGCHLD },     { "CONT", SIGCONT }, { "TSTP", SIGTSTP },   { "TTIN", SIGTTIN },
		       { "TTOU", SIGTTOU },     { "URG", SIGURG },   { "XCPU", SIGXCPU },   { "XFSZ", SIGXFSZ },
		       { "VTALRM", SIGVTALRM }, { "PROF", SIGPROF }, { "WINCH", SIGWINCH }, { "IO", SIGIO },
		       { "PWR", SIGPWR } };
	uint64_t number;

	if (length > 3 && !memcmp(text, "SIG", 3)) {
		text += 3;
		length -= 3;
	}
	number = number_of(text, length);
	/* Those between 31 and SIGRTMIN belong to the C library. */
	if (number != UINT64_MAX && number >= (uint64_t)SIGRTMIN && number <= (uint64_t)SIGRTMAX)
		return number;
	for (size_t i = 0; i < sizeof(usable) / sizeof(usable[0]); i++)
		if (usable[i].number == number || is_word(text, length, usable[i].name))
			return usable[i].number;
	return 0;
}

/* Names are absolute from here on: who writes the file may be elsewhere by then. */
static bool set_name(const struct known *option, const char *text, size_t length)
{
	char *name = names[option->at == AT(profile_file) ? 0 : option->at == AT(stats_file) ? 1 : 2];
	size_t n = 0;
	long rc;

	if (!length)
		return false;
	if (*text != '/') {
		rc = percpu__sys4(SYS_getcwd, (long)name, PATH_MAX - 1, 0, 0);
		/* With the 0 at the end. A folder that is gone, or out of reach, has no name. */
		n = rc > 1 && *name == '/' ? (size_t)rc - 1 : 0;
		if (n && name[n - 1] != '/')
			name[n++] = '/';
	}
	if (n + length >= PATH_MAX)
		return false;
	memcpy(name + n, text, length);
	name[n + length] = '\0';
	*(const char **)field_at(option->at) = name;
	return true;
}

/* @value: NULL if there is none. */
static bool set(const struct known *option, const char *value, size_t length)
{
	static const char words[][8] = {
		[PERCPU__WHEN_AUTO] = "auto", [PERCPU__WHEN_NEVER] = "never", [PERCPU__WHEN_ALWAYS] = "always"
	};
	uint64_t number;

	if (option->kind == FLAG || (option->kind == FLAG_OR_FILE && !value)) {
		if (value)
			return false;
		*(bool *)field_at(option->kind == FLAG ? option->at : option->flag) = true;
		return true;
	}
	if (!value)
		return false;
	switch (option->kind) {
	case SIZE:
	case NUMBER:
		number = option->kind == SIZE ? size_of(value, length) : number_of(value, length);
		if (number == UINT64_MAX || number < option->least || number > option->most)
			return false;
		break;
	case SIGNAL:
		number = signal_of(value, length);
		if (!number)
			return false;
		break;
	case WORD:
		for (number = 0; !is_word(value, length, words[number]); number++)
			if (number == PERCPU__WHEN_ALWAYS)
				return false;
		break;
	default:
		if (!set_name(option, value, length))
			return false;
		if (option->kind == FLAG_OR_FILE)
			*(bool *)field_at(option->flag) = true;
		return true;
	}
	*(uint64_t *)field_at(option->at) = number;
	return true;
}

/* False: it is wrong, and @w says why. */
static bool read_option(const char *text, size_t length, struct percpu__writer *w)
{
	const char *equals = memchr(text, '=', length);
	size_t name = equals ? (size_t)(equals - text) : length;
	const struct known *option = NULL;

	for (size_t i = 0; i < KNOWN && !option; i++)
		if (is_word(text, name, known[i].name))
			option = &known[i];
	/* Who starts a program with another's rights must not choose what it writes to. */
	if (option && (option->kind == FILE_NAME || (option->kind == FLAG_OR_FILE && equals)) && getauxval(AT_SECURE))
		explain(w, text, length, option, "ignored, as the program has rights of its own");
	else if (!option || !set(option, equals ? equals + 1 : NULL, equals ? length - name - 1 : 0))
		explain(w, text, length, option, NULL);
	else
		return true;
	return false;
}

struct text {
	char *at, *end;
};

static void append(void *arg, const char *from, size_t n)
{
	struct text *to = arg;

	for (; n && to->at < to->end; n--)
		*to->at++ = *from++;
	*to->at = '\0';
}

bool percpu__malloc_try_option(const char *text, size_t length, char *why, size_t size)
{
	const struct percpu__malloc_options before = percpu__malloc_options;
	struct text room = { why, why + size - 1 };
	struct percpu__writer w;
	bool ok;

	percpu__write_to(&w, -1);
	w.put = append;
	w.arg = &room;
	ok = read_option(text, length, &w);
	percpu__write_end(&w);
	/* It is for another process: this one must not write files at its end. */
	percpu__malloc_options = before;
	return ok;
}

void percpu__malloc_parse_options(const char *text)
{
	uint64_t interval, total;

	while (text && *text) {
		size_t length = strcspn(text, ",");
		struct percpu__writer w;

		percpu__write_to(&w, STDERR_FILENO);
		percpu__write_text(&w, "percpu-malloc: " VARIABLE ": ");
		if (length && !read_option(text, length, &w)) {
			percpu__write_text(&w, "\n");
			percpu__write_end(&w);
		}
		text += length + (text[length] == ',');
	}
	interval = percpu__malloc_options.profile;
	percpu__malloc_options.profile = !percpu__malloc_options.profile_file ? 0
					 : interval                           ? interval
									      : PERCPU__PROFILE_INTERVAL;
	if (interval && !percpu__malloc_options.profile)
		percpu__write_complaint(VARIABLE ": profile-interval: there is no profile=FILE", "", 0);
	if (percpu__malloc_options.cache)
		percpu__front_room = percpu__malloc_options.cache;
	if (percpu__malloc_options.keep)
		percpu__heap_keep = percpu__malloc_options.keep;
	total = percpu__malloc_options.cache_total;
	if (total && total / percpu_possible_cpus() < percpu__front_room)
		percpu__front_room = total / percpu_possible_cpus();
	percpu__malloc_watched |= (percpu__malloc_options.count ? PERCPU__WATCH_COUNT : 0U) |
				  (percpu__sample_start() ? PERCPU__WATCH_SAMPLE : 0U) |
				  (percpu__malloc_options.zero ? PERCPU__WATCH_ZERO : 0U) |
				  (percpu__malloc_options.check ? PERCPU__WATCH_CHECK : 0U);
}

static bool was_read, has_environment;

bool percpu__malloc_read_options(void)
{
	if (was_read)
		return true;
	if (!environ && !has_environment)
		return false;
	was_read = true;
	percpu__malloc_parse_options(getenv(VARIABLE));
	return true;
}

/* By now there is an environment, or the program is to have none. */
__attribute__((constructor(101))) static void after_loading(void)
{
	has_environment = true;
}
