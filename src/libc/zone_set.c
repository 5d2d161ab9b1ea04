/* SPDX-License-Identifier: MIT */
/*
 * The process's zone. Changes are made under a lock; who sees that nothing has changed takes none.
 *
 * While somebody makes a change, nothing is settled: he says so before he reads TZ, and who calls tzset() after setenv() either
 * finds that said, and waits, or was early enough for his TZ to be read. (Both sides write, then read. setenv() ends in an
 * atomic exchange; where that is no full barrier, there is one here.) What localtime_r() goes by changes in between by one
 * store of a pointer.
 *
 * TZ itself is read as the C library reads it: not while another thread calls setenv(), putenv() or unsetenv(), whose texts it
 * never frees, but whose array it may.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>

#include "gate/fork.h"
#include "libc/pages.h"
#include "libc/zone_set.h"

#define DEFAULT_FILE   "/etc/localtime"
#define DEFAULT_FOLDER "/usr/share/zoneinfo"
/* No zone file is a hundredth of it. */
#define FILE_MOST ((size_t)1 << 20)
#define PATH_MOST 4096
#define CHUNK     ((size_t)1 << 16)
#define HEADS     256

const struct percpu__zone *percpu__zone_published;

static struct percpu__zone_setting *settled; /* NULL while that changes */

/* All of these: who has the lock. */
static struct percpu__fork_lock lock;
static struct percpu__zone_setting *settings[HEADS]; /* by their text */
static struct percpu__zone *zones[HEADS];            /* by what they were made from */
static char *chunk;
static size_t left;

/* What there is when there is no memory for anything else. */
static const uint16_t utc_seg[1] = { 0 };
static const struct percpu__zone_info utc_info = { .name = "UTC", .vars = { { "UTC", "UTC" }, 0, 0 } };
static const struct percpu__zone utc = { .seg = utc_seg, .info = &utc_info, .vars = { { "UTC", "UTC" }, 0, 0 } };
static struct percpu__zone_setting no_memory = { .zone = &utc, .path = "", .rules = "" };

__attribute__((constructor)) static void start(void)
{
	percpu__fork_lock_add(&lock);
}

static void *get(size_t bytes)
{
	char *at;

	bytes = (bytes + 15) & ~(size_t)15;
	if (bytes > CHUNK / 4)
		return percpu__pages_get(bytes);
	if (bytes > left) {
		chunk = percpu__pages_get(CHUNK);
		left = chunk ? CHUNK : 0;
		if (!chunk)
			return NULL;
	}
	at = chunk;
	chunk += bytes;
	left -= bytes;
	return at;
}

static const char *copy(const char *text)
{
	size_t size = strlen(text) + 1;
	char *at = get(size);

	return at ? memcpy(at, text, size) : NULL;
}

static uint64_t mix(uint64_t sum, uint64_t value)
{
	sum = (sum ^ value) * UINT64_C(0x9e3779b97f4a7c15);
	return sum ^ sum >> 29;
}

static uint64_t sum_of(uint64_t sum, const void *bytes, size_t size)
{
	const unsigned char *at = bytes;

	for (size_t i = 0; i < size; i++)
		sum = (sum ^ at[i]) * UINT64_C(0x100000001b3);
	return sum ^ sum >> 32;
}

static uint64_t identity_of_status(const struct stat *status)
{
	uint64_t sum = mix(0, (uint64_t)status->st_dev);

	sum = mix(sum, (uint64_t)status->st_ino);
	sum = mix(sum, (uint64_t)status->st_size);
	sum = mix(sum, (uint64_t)status->st_mtim.tv_sec);
	return mix(sum, (uint64_t)status->st_mtim.tv_nsec) | 1;
}

/* 0: it is not there. */
static uint64_t identity_of_file(const char *path)
{
	struct stat status = { 0 };

	if (!*path || percpu__sys4(SYS_newfstatat, AT_FDCWD, (long)path, (long)&status, 0))
		return 0;
	return identity_of_status(&status);
}

static uint64_t identity_of(const char *path, const char *rules)
{
	uint64_t identity = identity_of_file(path);

	return *rules ? mix(identity, identity_of_file(rules)) : identity;
}

/*
 * Texts lead to files. In a program that gained rights by being executed, who started it must not choose which file it opens:
 * only those of the system's folder, and the default.
 */
bool percpu__zone_path_trusted(const char *path)
{
	if (strstr(path, "../"))
		return false;
	return *path != '/' || !strcmp(path, DEFAULT_FILE) || !strncmp(path, DEFAULT_FOLDER, strlen(DEFAULT_FOLDER));
}

/* Where the file of a name is. "": it may not be read, or there is no such name. */
static void find_path(const char *name, char path[static PATH_MOST])
{
	const char *folder = getenv("TZDIR");
	bool secure = getauxval(AT_SECURE);
	size_t length, n;

	if (!folder || !*folder || secure)
		folder = DEFAULT_FOLDER;
	if (*name == '/')
		folder = "";
	*path = '\0';
	length = strlen(folder);
	n = strlen(name);
	if (!n || length + n + 2 > PATH_MOST || (secure && !percpu__zone_path_trusted(name)))
		return;
	memcpy(path, folder, length);
	if (length)
		path[length++] = '/';
	memcpy(path + length, name, n + 1);
}

/* Bytes in pages of their own, and what file they are of. */
struct contents {
	unsigned char *bytes;
	size_t size, mapped;
	uint64_t identity;
};

static bool read_all(int fd, struct contents *contents)
{
	size_t n = 0;
	long got = 1;

	while (n < contents->size && got > 0) {
		got = percpu__sys4(SYS_read, fd, (long)(contents->bytes + n), (long)(contents->size - n), 0);
		if (got == -EINTR)
			got = 1;
		else if (got > 0)
			n += (size_t)got;
	}
	return n == contents->size;
}

/* False: there is no such file of a sensible size. Who changes it in place while it is read gets what there is at last. */
static bool read_file(const char *path, struct contents *contents)
{
	long fd =
		*path ? percpu__sys4(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0)
		      : -ENOENT;
	struct stat status, after;
	bool whole = false;

	if (fd < 0)
		return false;
	if (!fstat((int)fd, &status) && S_ISREG(status.st_mode) && status.st_size > 0 &&
	    (uint64_t)status.st_size <= FILE_MOST) {
		contents->size = (size_t)status.st_size;
		contents->mapped = contents->size + 1;
		contents->bytes = percpu__pages_get(contents->mapped);
		whole = contents->bytes && read_all((int)fd, contents) && !fstat((int)fd, &after);
		contents->identity = identity_of_status(&status);
		/* Next time it is another. */
		if (whole && identity_of_status(&after) != contents->identity)
			contents->identity = 0;
	}
	percpu__sys4(SYS_close, fd, 0, 0, 0);
	if (!whole && contents->bytes)
		percpu__pages_put(contents->bytes, contents->mapped);
	if (!whole)
		contents->bytes = NULL;
	return whole;
}

/* Everything that a zone is made of, in one piece. */
struct recipe {
	const char *text; /* a rule; NULL: there is no need for one */
	struct contents *contents;
};

static bool same(const struct percpu__zone *zone, const struct recipe *recipe, size_t text, size_t size)
{
	return zone->source_size == text + size && (!text || !memcmp(zone->source, recipe->text, text)) &&
	       (!size || !memcmp(zone->source + text, recipe->contents->bytes, size));
}

/* As text: what it says by itself, or with the file that says when. Otherwise the file. */
static struct percpu__zone *make(const struct recipe *recipe)
{
	struct percpu__zone_rule rule, footer;
	struct percpu__zone_file file;
	bool has_file = recipe->contents->bytes &&
			percpu__zone_file_parse(recipe->contents->bytes, recipe->contents->size, &file);

	if (has_file && file.footer)
		percpu__zone_rule_parse(file.footer, file.footer_length, &footer);
	if (recipe->text)
		percpu__zone_rule_parse(recipe->text, strlen(recipe->text), &rule);
	if (!recipe->text)
		return has_file ? percpu__zone_make(&file, file.footer ? &footer : NULL, NULL, get) : NULL;
	if (has_file && file.types > 1)
		return percpu__zone_make(&file, file.footer ? &footer : NULL, &rule, get);
	return percpu__zone_make(NULL, &rule, NULL, get);
}

static struct percpu__zone *find_or_make(const struct recipe *recipe)
{
	size_t text = recipe->text ? strlen(recipe->text) + 1 : 0,
	       size = recipe->contents->bytes ? recipe->contents->size : 0;
	uint64_t sum = sum_of(sum_of(mix(1, text), recipe->text, text), recipe->contents->bytes, size);
	struct percpu__zone *zone = zones[sum % HEADS];
	unsigned char *source;

	while (zone && (zone->sum != sum || !same(zone, recipe, text, size)))
		zone = zone->next;
	if (zone)
		return zone;
	zone = make(recipe);
	source = zone ? get(text + size) : NULL;
	if (!source)
		return NULL;
	if (text)
		memcpy(source, recipe->text, text);
	if (size)
		memcpy(source + text, recipe->contents->bytes, size);
	zone->source = source;
	zone->source_size = text + size;
	zone->sum = sum;
	zone->next = zones[sum % HEADS];
	zones[sum % HEADS] = zone;
	return zone;
}

/* A file if there is one, else what the text says. @identity is that of the files that were looked at. */
static struct percpu__zone *load(const char *text, const char *path, const char **rules, char room[static PATH_MOST],
				 uint64_t *identity)
{
	struct contents contents = { 0 }, none = { 0 };
	struct recipe recipe = { NULL, &contents };
	struct percpu__zone *zone = NULL;
	struct percpu__zone_rule rule;

	*rules = "";
	if (read_file(path, &contents)) {
		*identity = contents.identity;
		zone = find_or_make(&recipe);
		percpu__pages_put(contents.bytes, contents.mapped);
		if (zone)
			return zone;
		contents = none;
	} else {
		*identity = identity_of_file(path);
	}
	if (!text || !*text || !strcmp(text, DEFAULT_FILE))
		text = "UTC0";
	recipe.text = text;
	percpu__zone_rule_parse(text, strlen(text), &rule);
	if (rule.incomplete) {
		find_path("posixrules", room);
		*rules = room;
		read_file(room, &contents);
		*identity = mix(*identity, contents.identity);
	}
	zone = find_or_make(&recipe);
	if (!zone && contents.bytes) {
		recipe.contents = &none;
		zone = find_or_make(&recipe);
	}
	if (contents.bytes)
		percpu__pages_put(contents.bytes, contents.mapped);
	return zone;
}

static bool same_text(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

/* Of the zone's contents; equal ones are there once. NULL: no memory. */
static struct percpu__zone_setting *make_setting(const char *text, const char *path, struct percpu__zone_setting **head)
{
	char room[PATH_MOST];
	const char *rules;
	uint64_t identity;
	struct percpu__zone *zone = load(text, path, &rules, room, &identity);
	struct percpu__zone_setting *setting = *head;

	if (!zone)
		return NULL;
	while (setting && !(same_text(setting->text, text) && !strcmp(setting->path, path) &&
			    !strcmp(setting->rules, rules) && setting->zone == zone))
		setting = setting->next;
	if (!setting) {
		setting = get(sizeof(*setting));
		if (!setting)
			return NULL;
		setting->text = text ? copy(text) : NULL;
		setting->path = copy(path);
		setting->rules = copy(rules);
		setting->zone = zone;
		setting->watched = !text || *rules;
		if ((text && !setting->text) || !setting->path || !setting->rules)
			return NULL;
		setting->next = *head;
		*head = setting;
	}
	__atomic_store_n(&setting->identity, identity, __ATOMIC_RELAXED);
	return setting;
}

/* TZ: what it says, without what has no meaning. NULL: it is not set. */
static const char *read_environment(void)
{
	const char *text = getenv("TZ");

	if (text && !*text)
		return "Universal";
	return text && *text == ':' ? text + 1 : text;
}

static bool still(const struct percpu__zone_setting *setting)
{
	return !setting->watched ||
	       __atomic_load_n(&setting->identity, __ATOMIC_RELAXED) == identity_of(setting->path, setting->rules);
}

static void tell(const struct percpu__zone_vars *vars)
{
	__atomic_store_n(&tzname[0], (char *)vars->name[0], __ATOMIC_RELAXED);
	__atomic_store_n(&tzname[1], (char *)vars->name[1], __ATOMIC_RELAXED);
	__atomic_store_n(&timezone, vars->west, __ATOMIC_RELAXED);
	__atomic_store_n(&daylight, vars->daylight, __ATOMIC_RELAXED);
}

static struct percpu__zone_setting *choose(void)
{
	const char *text = read_environment();
	uint64_t sum = text ? sum_of(1, text, strlen(text)) : 0;
	struct percpu__zone_setting **head = &settings[sum % HEADS], *setting;
	char path[PATH_MOST];

	find_path(text ? text : DEFAULT_FILE, path);
	for (setting = *head; setting; setting = setting->next)
		if (same_text(setting->text, text) && !strcmp(setting->path, path) &&
		    setting->identity == identity_of(setting->path, setting->rules))
			return setting;
	setting = make_setting(text, path, head);
	return setting ? setting : &no_memory;
}

/* By another name. The C library does not read it again then, and leaves its variables as they are. */
static bool same_file(const struct percpu__zone_setting *a, const struct percpu__zone_setting *b)
{
	return a->zone == b->zone && a->identity == b->identity && !a->zone->only_rule && !*a->rules && a != &no_memory;
}

static const struct percpu__zone_setting *change(void)
{
	static struct percpu__zone_setting *last; /* what is published */
	struct percpu__zone_setting *setting;
	uint64_t saved;

	percpu__fork_lock(&lock, &saved);
	__atomic_store_n(&settled, NULL, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	/* Others may have come first, and the C library's variables stay as they are where nothing changes. */
	if (!last || last == &no_memory || !same_text(last->text, read_environment()) || !still(last)) {
		setting = choose();
		__atomic_store_n(&percpu__zone_published, setting->zone, __ATOMIC_RELEASE);
		if (!last || !same_file(last, setting))
			tell(&setting->zone->vars);
		last = setting;
	}
	setting = last;
	if (setting != &no_memory)
		__atomic_store_n(&settled, setting, __ATOMIC_RELEASE);
	percpu__fork_unlock(&lock, &saved);
	return setting;
}

const struct percpu__zone_setting *percpu__zone_settle(void)
{
	const struct percpu__zone_setting *setting;

#ifndef __x86_64__
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
	setting = __atomic_load_n(&settled, __ATOMIC_ACQUIRE);
	return setting && same_text(setting->text, read_environment()) && still(setting) ? setting : change();
}

void percpu__zone_tell(const struct percpu__zone_setting *setting, const struct percpu__zone_vars *vars)
{
	uint64_t saved;

	if (__atomic_load_n(&tzname[0], __ATOMIC_RELAXED) == vars->name[0] &&
	    __atomic_load_n(&tzname[1], __ATOMIC_RELAXED) == vars->name[1] &&
	    __atomic_load_n(&timezone, __ATOMIC_RELAXED) == vars->west &&
	    __atomic_load_n(&daylight, __ATOMIC_RELAXED) == vars->daylight)
		return;
	percpu__fork_lock(&lock, &saved);
	if (percpu__zone_published == setting->zone)
		tell(vars);
	percpu__fork_unlock(&lock, &saved);
}
