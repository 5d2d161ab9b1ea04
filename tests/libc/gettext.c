/* SPDX-License-Identifier: MIT */
/*
 * gettext() and its family against the C library's own: the same pointer for each message of catalogues of its own making
 * and of all that are installed, while everything changes that an answer depends on. gettext [DOMAIN]. Run with
 * libpercpu-libc preloaded, in an empty folder; with LOCPATH also in the locales LOCALES names, as threads have them.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <libintl.h>
#include <locale.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#undef gettext
#undef dgettext
#undef dcgettext
#undef ngettext
#undef dngettext
#undef dcngettext

#define CHECK(...)                                                                                                     \
	do {                                                                                                           \
		if (!(__VA_ARGS__)) {                                                                                  \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #__VA_ARGS__);                              \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

extern int _nl_msg_cat_cntr;

static struct {
	char *(*gettext)(const char *);
	char *(*dgettext)(const char *, const char *);
	char *(*dcgettext)(const char *, const char *, int);
	char *(*ngettext)(const char *, const char *, unsigned long);
	char *(*dngettext)(const char *, const char *, const char *, unsigned long);
	char *(*dcngettext)(const char *, const char *, const char *, unsigned long, int);
} theirs;

static unsigned long compared;

/* Twice: the second answer may be remembered. */
static void same(const char *domain, const char *msgid, const char *plural, unsigned long n, int category)
{
	for (int i = 0; i < 2; i++) {
		errno = 1234;
		CHECK(dcgettext(domain, msgid, category) == theirs.dcgettext(domain, msgid, category));
		CHECK(dcngettext(domain, msgid, plural, n, category) ==
		      theirs.dcngettext(domain, msgid, plural, n, category));
		CHECK(errno == 1234);
	}
	compared++;
}

static void same_six(const char *msgid, const char *plural, unsigned long n)
{
	const char *domain = textdomain(NULL);

	for (int i = 0; i < 2; i++) {
		CHECK(gettext(msgid) == theirs.gettext(msgid));
		CHECK(dgettext(domain, msgid) == theirs.dgettext(domain, msgid));
		CHECK(dgettext("nothing", msgid) == theirs.dgettext("nothing", msgid));
		CHECK(ngettext(msgid, plural, n) == theirs.ngettext(msgid, plural, n));
		CHECK(dngettext(domain, msgid, plural, n) == theirs.dngettext(domain, msgid, plural, n));
		CHECK(dngettext("nothing", msgid, plural, n) == theirs.dngettext("nothing", msgid, plural, n));
	}
	for (int category = -1; category < 20; category++)
		same(n & 1 ? NULL : domain, msgid, plural, n, category);
}

/* Catalogues. */

#define MESSAGES 3000

static void put(FILE *file, uint32_t value)
{
	CHECK(fwrite(&value, 4, 1, file) == 1);
}

/* Sorted: the header, then m0000 and so on; the 7th and each 10th after has a plural, each 10th is missing. */
static void make_catalogue(const char *language, const char *domain, const char *plural_forms)
{
	static char ids[MESSAGES][32], texts[MESSAGES][300];
	static uint32_t id_length[MESSAGES], text_length[MESSAGES];
	char path[300];
	uint32_t count = 0, at;
	FILE *file;

	for (int i = -1; i < MESSAGES - 1; i++) {
		if (i >= 0 && i % 10 == 9)
			continue;
		if (i < 0) {
			id_length[count] = 0;
			text_length[count] = (uint32_t)sprintf(
				texts[count], "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: %s\n",
				plural_forms);
		} else if (i % 10 == 7) {
			id_length[count] = (uint32_t)sprintf(ids[count], "m%04d%cm%04ds", i, 0, i);
			text_length[count] =
				(uint32_t)sprintf(texts[count], "%s %s %d one%c%s %s %d two%c%s %s %d three", language,
						  domain, i, 0, language, domain, i, 0, language, domain, i);
		} else {
			id_length[count] = (uint32_t)sprintf(ids[count], "m%04d", i);
			text_length[count] = (uint32_t)sprintf(texts[count], "%s %s %d \xc3\xa4", language, domain, i);
		}
		count++;
	}
	mkdir("catalogues", 0700);
	snprintf(path, sizeof(path), "catalogues/%s", language);
	mkdir(path, 0700);
	snprintf(path, sizeof(path), "catalogues/%s/LC_MESSAGES", language);
	mkdir(path, 0700);
	snprintf(path, sizeof(path), "catalogues/%s/LC_MESSAGES/%s.mo", language, domain);
	file = fopen(path, "w");
	CHECK(file);
	put(file, 0x950412de);
	put(file, 0);
	put(file, count);
	put(file, 28);
	put(file, 28 + 8 * count);
	put(file, 0);
	put(file, 28 + 16 * count);
	at = 28 + 16 * count;
	for (uint32_t i = 0; i < count; at += id_length[i++] + 1) {
		put(file, id_length[i]);
		put(file, at);
	}
	for (uint32_t i = 0; i < count; at += text_length[i++] + 1) {
		put(file, text_length[i]);
		put(file, at);
	}
	for (uint32_t i = 0; i < count; i++)
		CHECK(fwrite(ids[i], id_length[i] + 1, 1, file) == 1);
	for (uint32_t i = 0; i < count; i++)
		CHECK(fwrite(texts[i], text_length[i] + 1, 1, file) == 1);
	CHECK(!fclose(file));
}

static void make_catalogues(void)
{
	static const char *const forms[] = { "nplurals=2; plural=n != 1;", "nplurals=1; plural=0;",
					     "nplurals=3; plural=n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 && "
					     "(n%100<10 || n%100>=20) ? 1 : 2;" };
	static const char *const languages[] = { "aa", "bb", "cc" };

	for (int i = 0; i < 3; i++) {
		make_catalogue(languages[i], "first", forms[i]);
		make_catalogue(languages[i], "second", forms[(i + 1) % 3]);
	}
	make_catalogue("de", "first", forms[0]);
	make_catalogue("fr", "first", forms[0]);
	make_catalogue("pl", "first", forms[2]);
}

static void all_messages(void)
{
	for (int i = 0; i < MESSAGES; i++) {
		char msgid[16], plural[16];

		snprintf(msgid, sizeof(msgid), "m%04d", i);
		snprintf(plural, sizeof(plural), "m%04ds", i);
		same(i & 1 ? NULL : "second", msgid, plural, (unsigned long)i % 125, LC_MESSAGES);
		same("first", msgid, plural, 0, LC_MESSAGES);
	}
	same_six("", "", 3);
	for (unsigned long n = 0; n < 300; n++)
		same_six("m0007", "m0007s", n);
	same_six("m0007", "m0007s", -1UL);
	same_six("m0001", "unused", 1);
	same_six("m0009", "none", 2);
}

static void set_language(const char *language)
{
	setenv("LANGUAGE", language, 1);
	_nl_msg_cat_cntr++;
}

static void expect(const char *start)
{
	char *one = gettext("m0001"), *other = ngettext("m0007", "m0007s", 1);

	CHECK(one == theirs.gettext("m0001") && other == theirs.ngettext("m0007", "m0007s", 1));
	if (strncmp(one, start, strlen(start)) || strncmp(other, start, strlen(start))) {
		fprintf(stderr, "\"%s\", \"%s\" instead of \"%s...\"\n", one, other, start);
		abort();
	}
}

/* What an answer depends on, changed after the answer is remembered. */
static void changes(void)
{
	char changing[6] = "m0002", domain[8], *was;
	char cwd[4096];

	set_language("aa");
	expect("aa first");
	expect("aa first");
	/* Nobody says so: what was found stays. */
	setenv("LANGUAGE", "bb", 1);
	expect("aa first");
	was = theirs.gettext("m0011");
	CHECK(!strncmp(was, "bb", 2) && gettext("m0011") == was);
	set_language("bb");
	expect("bb first");
	textdomain("second");
	expect("bb second");
	textdomain("first");
	expect("bb first");
	/* The same address, another message. */
	for (int i = 0; i < 9; i++) {
		changing[4] = (char)('0' + i);
		CHECK(gettext(changing) == theirs.gettext(changing));
		CHECK(strstr(gettext(changing), changing + 4));
	}
	/* And of the domain. */
	for (int i = 0; i < 2; i++) {
		strcpy(domain, i ? "second" : "first");
		CHECK(dgettext(domain, "m0003") == theirs.dgettext(domain, "m0003"));
		CHECK(strstr(dgettext(domain, "m0003"), domain));
	}
	/* What is not translated may be later, and nobody says so. */
	setenv("LANGUAGE", "xx", 1);
	CHECK(!strcmp(gettext("m0021"), "m0021"));
	CHECK(!strcmp(ngettext("m0027", "m0027s", 2), "m0027s") && !strcmp(ngettext("m0027", "another", 2), "another"));
	setenv("LANGUAGE", "cc", 1);
	CHECK(!strncmp(ngettext("m0027", "m0027s", 2), "cc first", 8));
	CHECK(!strncmp(gettext("m0021"), "cc first", 8));
	set_language("cc");
	expect("cc first");
	CHECK(bindtextdomain("first", "/nonexistent"));
	expect("m0");
	CHECK(getcwd(cwd, sizeof(cwd) - 20));
	strcat(cwd, "/catalogues");
	CHECK(bindtextdomain("first", cwd));
	expect("cc first");
	was = gettext("m0001");
	CHECK(strstr(was, "\xc3\xa4"));
	CHECK(bind_textdomain_codeset("first", "ISO-8859-1"));
	expect("cc first");
	CHECK(strstr(gettext("m0001"), "\xe4"));
	CHECK(strstr(was, "\xc3\xa4")); /* still readable */
	CHECK(bind_textdomain_codeset("first", "UTF-8"));
	expect("cc first");
	CHECK(setlocale(LC_MESSAGES, "C"));
	expect("m0");
	all_messages();
	CHECK(setlocale(LC_MESSAGES, "C.UTF-8"));
	expect("cc first");
	CHECK(setlocale(LC_ALL, "C"));
	expect("m0");
	CHECK(setlocale(LC_ALL, "C.UTF-8"));
	expect("cc first");
}

/* Somebody has the C library's lock for writing, inside bindtextdomain, which allocates. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool inside, go_on;
} there = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
static __thread volatile bool stays; /* (The compiler believes that bindtextdomain() does not call us.) */

extern void *__libc_malloc(size_t size);

void *malloc(size_t size)
{
	if (stays) {
		stays = false;
		pthread_mutex_lock(&there.lock);
		there.inside = true;
		pthread_cond_broadcast(&there.changed);
		while (!there.go_on)
			pthread_cond_wait(&there.changed, &there.lock);
		pthread_mutex_unlock(&there.lock);
	}
	return __libc_malloc(size);
}

static void *hold_lock(void *arg)
{
	stays = true;
	CHECK(bindtextdomain(arg, "/nonexistent"));
	CHECK(!stays);
	return NULL;
}

static void without_lock(void)
{
	char *one = gettext("m0001"), *other = ngettext("m0007", "m0007s", 5);
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, hold_lock, "another"));
	pthread_mutex_lock(&there.lock);
	while (!there.inside)
		pthread_cond_wait(&there.changed, &there.lock);
	pthread_mutex_unlock(&there.lock);
	for (int i = 0; i < 10; i++)
		CHECK(gettext("m0001") == one && ngettext("m0007", "m0007s", 5) == other);
	pthread_mutex_lock(&there.lock);
	there.go_on = true;
	pthread_cond_broadcast(&there.changed);
	pthread_mutex_unlock(&there.lock);
	CHECK(!pthread_join(thread, NULL));
}

/* Readers see one of the two languages, whole, while the domain and the catalogues change. */
static bool stop;

static void *read_on(void *arg)
{
	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		for (int i = 0; i < MESSAGES; i += 7) {
			char msgid[16], expected[2][64], *text;

			if (i % 10 == 9 || i % 10 == 7)
				continue;
			snprintf(msgid, sizeof(msgid), "m%04d", i);
			snprintf(expected[0], sizeof(expected[0]), "cc first %d \xc3\xa4", i);
			snprintf(expected[1], sizeof(expected[1]), "cc second %d \xc3\xa4", i);
			text = gettext(msgid);
			CHECK(i == MESSAGES - 1 || !strcmp(text, expected[0]) || !strcmp(text, expected[1]));
			text = dgettext("second", msgid);
			CHECK(!strcmp(text, expected[1]));
		}
	return NULL;
}

static void under_changes(void)
{
	pthread_t readers[4];

	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&readers[i], NULL, read_on, NULL));
	for (int i = 0; i < 600; i++) {
		const char *domain = i & 1 ? "first" : "second";
		char expected[64];

		textdomain(domain);
		snprintf(expected, sizeof(expected), "cc %s", domain);
		expect(expected);
		if (i % 150 == 0) {
			int status;
			pid_t child = fork();

			if (!child) {
				expect(expected);
				expect(expected);
				_exit(7);
			}
			CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
		}
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(readers[i], NULL));
	textdomain("first");
}

/* More messages than there is room for: the rest is answered as ever. */
static void too_many(void)
{
	char *message = malloc(100001);

	memset(message, 'x', 100000);
	message[100000] = '\0';
	for (int i = 0; i < 200; i++) {
		message[i] = 'y';
		same(NULL, message, "m", 2, LC_MESSAGES);
	}
	free(message);
	for (int i = 0; i < 5000; i++)
		same("first", "m0007", "m0007s", (unsigned long)i, LC_MESSAGES);
}

/* Installed catalogues: each message of each language. */
static unsigned check_catalogue(const char *domain, const char *path)
{
	static const unsigned long numbers[] = { 0,  1,  2,  3,  4,   5,   6,   7,   11,     12,
						 20, 21, 22, 25, 100, 101, 102, 111, 1000000 };
	FILE *file = fopen(path, "r");
	uint32_t header[7], *ids;
	unsigned count = 0;
	char *data;
	long size;

	CHECK(file && !fseek(file, 0, SEEK_END));
	size = ftell(file);
	rewind(file);
	data = malloc((size_t)size);
	CHECK(data && fread(data, (size_t)size, 1, file) == 1);
	fclose(file);
	memcpy(header, data, sizeof(header));
	if (header[0] == 0x950412de) {
		ids = (uint32_t *)(data + header[3]);
		for (; count < header[2]; count++) {
			const char *msgid = data + ids[2 * count + 1];
			size_t length = strlen(msgid);
			bool plural = length < ids[2 * count];

			/* A number of each kind that a language of these has. */
			for (unsigned i = 0; i < (plural ? sizeof(numbers) / sizeof(numbers[0]) : 1); i++)
				same(domain, msgid, plural ? msgid + length + 1 : "none", numbers[i], LC_MESSAGES);
		}
	}
	free(data);
	return count;
}

static void installed(const char *domain)
{
	DIR *folder = opendir("/usr/share/locale");
	unsigned languages = 0, messages = 0;

	CHECK(bindtextdomain(domain, "/usr/share/locale"));
	for (struct dirent *entry; folder && (entry = readdir(folder));) {
		char path[600];
		unsigned n;

		snprintf(path, sizeof(path), "/usr/share/locale/%s/LC_MESSAGES/%s.mo", entry->d_name, domain);
		if (entry->d_name[0] == '.' || access(path, R_OK))
			continue;
		set_language(entry->d_name);
		n = check_catalogue(domain, path);
		messages += n;
		languages += n != 0;
	}
	if (folder)
		closedir(folder);
	printf("%s: %u messages in %u languages\n", domain, messages, languages);
}

/* Threads with locales of their own, which come and go at the same addresses. */
static void *own_locale(void *arg)
{
	char *names = strdup(getenv("LOCALES")), *save, *list[16];
	unsigned count = 0, seed = (unsigned)(uintptr_t)arg;

	for (char *name = strtok_r(names, " ", &save); name; name = strtok_r(NULL, " ", &save))
		list[count++] = name;
	for (int i = 0; i < 300; i++) {
		const char *name = list[(seed + (unsigned)i) % count];
		locale_t locale = newlocale(LC_ALL_MASK, name, (locale_t)0);
		char expected[16];

		CHECK(locale);
		uselocale(locale);
		snprintf(expected, sizeof(expected), "%.2s first", name);
		for (int j = 0; j < 5; j++)
			expect(expected);
		same_six("m0007", "m0007s", (unsigned long)i);
		uselocale(LC_GLOBAL_LOCALE);
		CHECK(!strncmp(gettext("m0001"), list[0], 2));
		freelocale(locale);
	}
	free(names);
	return NULL;
}

static void own_locales(void)
{
	const char *names = getenv("LOCALES");
	pthread_t threads[4];
	char first[64];

	unsetenv("LANGUAGE");
	snprintf(first, sizeof(first), "%.*s", (int)strcspn(names, " "), names);
	CHECK(setlocale(LC_ALL, first));
	all_messages();
	for (uintptr_t i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, own_locale, (void *)i));
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_join(threads[i], NULL));
	/* And the process's, one after the other. */
	for (int i = 0; i < 20; i++)
		for (const char *at = names; *at; at += strspn(at, " ")) {
			char name[64], expected[64];
			size_t length = strcspn(at, " ");

			snprintf(name, sizeof(name), "%.*s", (int)length, at);
			snprintf(expected, sizeof(expected), "%.2s first", name);
			CHECK(setlocale(LC_ALL, name));
			expect(expected);
			expect(expected);
			at += length;
		}
	printf("locales: %s\n", names);
}

#define FIND(name) CHECK(*(void **)&theirs.name = dlsym(libc, #name), (void *)theirs.name != (void *)name)

int main(int argc, char **argv)
{
	void *libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
	char cwd[4096];

	FIND(gettext);
	FIND(dgettext);
	FIND(dcgettext);
	FIND(ngettext);
	FIND(dngettext);
	FIND(dcngettext);
	alarm(300);
	if (!setlocale(LC_ALL, "C.UTF-8")) {
		printf("skipped: there is no locale C.UTF-8\n");
		return 77;
	}
	make_catalogues();
	CHECK(getcwd(cwd, sizeof(cwd) - 20));
	strcat(cwd, "/catalogues");
	CHECK(bindtextdomain("first", cwd) && bindtextdomain("second", cwd) && textdomain("first"));
	changes();
	without_lock();
	all_messages();
	under_changes();
	for (int i = 1; i < argc; i++)
		installed(argv[i]);
	set_language("aa:cc");
	all_messages();
	if (getenv("LOCALES"))
		own_locales();
	too_many();
	printf("%lu compared\n", compared);
	return 0;
}
