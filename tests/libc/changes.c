/* SPDX-License-Identifier: MIT */
/*
 * TZ and zone files that change while a program runs: ours, under names of our own, and the C library's see the same changes
 * at the same calls.
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "libc/calendar.h"
#include "libc/zone_set.h"

#define ZONES  "/usr/share/zoneinfo/"
#define SUMMER 1720000000

static char folder[] = "/tmp/percpu-changes-XXXXXX";

static void write_file(const char *path, const char *from)
{
	char bytes[65536], fresh[300];
	FILE *file = fopen(from, "r");
	size_t size;

	assert_non_null(file);
	size = fread(bytes, 1, sizeof(bytes), file);
	fclose(file);
	snprintf(fresh, sizeof(fresh), "%s.new", path);
	file = fopen(fresh, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(bytes, 1, size, file), size);
	assert_int_equal(fclose(file), 0);
	/* (The C library tells files apart by their numbers and whole seconds; a new one may have the old one's number.) */
	assert_int_equal(rename(fresh, path), 0);
}

static void same(const struct tm *ours, const struct tm *theirs, const char *zone)
{
	assert_int_equal(ours->tm_hour, theirs->tm_hour);
	assert_int_equal(ours->tm_min, theirs->tm_min);
	assert_int_equal(ours->tm_isdst, theirs->tm_isdst);
	assert_int_equal(ours->tm_gmtoff, theirs->tm_gmtoff);
	assert_string_equal(ours->tm_zone, theirs->tm_zone);
	if (zone)
		assert_string_equal(ours->tm_zone, zone);
}

/* What localtime_r() says before, and localtime() and localtime_r() after that looked. */
static void look(const char *before, const char *after)
{
	time_t t = SUMMER;
	struct tm ours, theirs;

	same(percpu__localtime_r(&t, &ours), localtime_r(&t, &theirs), before);
	same(percpu__localtime(&t), localtime(&t), after);
	same(percpu__localtime_r(&t, &ours), localtime_r(&t, &theirs), after);
}

static void variable(void **state)
{
	static char put[] = "TZ=Asia/Tokyo";

	(void)state;
	setenv("TZ", "Europe/Paris", 1);
	tzset();
	percpu__tzset();
	look("CEST", "CEST");
	setenv("TZ", "America/New_York", 1);
	look("CEST", "EDT");
	setenv("TZ", ":Europe/Paris", 1);
	look("EDT", "CEST");
	unsetenv("TZ");
	look("CEST", NULL);
	setenv("TZ", "", 1);
	look(NULL, "UTC");
	setenv("TZ", "XYZ-5", 1);
	look("UTC", "XYZ");
	putenv(put);
	look("XYZ", "JST");
	/* A text that was given by putenv() may be written to. */
	strcpy(put, "TZ=EST5");
	look("JST", "EST");
	unsetenv("TZ");
	look("EST", NULL);
}

static void others_that_look(void **state)
{
	time_t t = SUMMER;
	struct tm fields = { .tm_year = 124, .tm_mon = 6, .tm_mday = 3, .tm_isdst = -1 }, copy = fields;
	struct tm ours, theirs;

	(void)state;
	setenv("TZ", "Europe/Paris", 1);
	assert_int_equal(percpu__mktime(&fields), mktime(&copy));
	look("CEST", "CEST");
	setenv("TZ", "Asia/Tokyo", 1);
	/* These do not. */
	percpu__gmtime(&t);
	gmtime(&t);
	percpu__timegm(&fields);
	timegm(&copy);
	same(percpu__localtime_r(&t, &ours), localtime_r(&t, &theirs), "CEST");
	percpu__tzset();
	tzset();
	same(percpu__localtime_r(&t, &ours), localtime_r(&t, &theirs), "JST");
	assert_string_equal(tzname[0], "JST");
}

/* A file of TZ's is looked at when TZ changes, and not before. */
static void file_of_variable(void **state)
{
	char path[300], text[300];

	(void)state;
	snprintf(path, sizeof(path), "%s/Here", folder);
	snprintf(text, sizeof(text), ":%s", path);
	setenv("TZDIR", folder, 1);
	for (int i = 0; i < 2; i++) {
		const char *name = i ? path : "Here";

		setenv("TZ", "UTC0", 1);
		look(NULL, "UTC");
		write_file(path, ZONES "Europe/Paris");
		setenv("TZ", name, 1);
		look("UTC", "CEST");
		write_file(path, ZONES "Asia/Tokyo");
		look("CEST", "CEST");
		setenv("TZ", "UTC0", 1);
		look("CEST", "UTC");
		setenv("TZ", name, 1);
		look("UTC", "JST");
		unlink(path);
		look("JST", "JST");
		setenv("TZ", "UTC0", 1);
		look("JST", "UTC");
		setenv("TZ", name, 1);
		look("UTC", NULL);
	}
	unsetenv("TZDIR");
}

/* The default file is looked at each time. (Ours is a place of our own: /etc as nobody else sees it.) */
static void default_file(void **state)
{
	(void)state;
	if ((unshare(CLONE_NEWNS) && unshare(CLONE_NEWUSER | CLONE_NEWNS)) ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("none", "/etc", "tmpfs", 0, NULL)) {
		printf("not allowed to mount: the default file was not replaced\n");
		skip();
	}
	unsetenv("TZ");
	look(NULL, "UTC");
	write_file("/etc/localtime", ZONES "Europe/Paris");
	look("UTC", "CEST");
	write_file("/etc/localtime", ZONES "Asia/Tokyo");
	look("CEST", "JST");
	write_file("/etc/localtime", "/proc/self/cmdline"); /* not a zone */
	look("JST", "UTC");
	assert_int_equal(unlink("/etc/localtime"), 0);
	look("UTC", "UTC");
	assert_int_equal(symlink(ZONES "America/New_York", "/etc/localtime"), 0);
	look("UTC", "EDT");
	assert_int_equal(unlink("/etc/localtime"), 0);
	assert_int_equal(symlink(ZONES "right/Europe/Paris", "/etc/localtime"), 0);
	look("EDT", "CEST");
	/* Named, it is a file of TZ's. */
	setenv("TZ", "/etc/localtime", 1);
	look("CEST", "CEST");
	assert_int_equal(unlink("/etc/localtime"), 0);
	look("CEST", "CEST");
	unsetenv("TZ");
	look("CEST", "UTC");
}

static void trust(void **state)
{
	(void)state;
	assert_true(percpu__zone_path_trusted("Europe/Paris"));
	assert_true(percpu__zone_path_trusted("/etc/localtime"));
	assert_true(percpu__zone_path_trusted("/usr/share/zoneinfo/Europe/Paris"));
	assert_false(percpu__zone_path_trusted("/etc/localtime2"));
	assert_false(percpu__zone_path_trusted("/etc/shadow"));
	assert_false(percpu__zone_path_trusted("../../../etc/shadow"));
	assert_false(percpu__zone_path_trusted("/usr/share/zoneinfo/../../../etc/shadow"));
}

/* Names that are no files, or not such ones. */
static void no_files(void **state)
{
	static const char *const texts[] = { "Europe",    "/etc/passwd", "/nowhere", "/dev/zero",
					     "/dev/null", "../",         ".",        ":",
					     "::",        "Etc/GMT+25",  "zone.tab", "Europe/Paris/",
					     "a b",       "\xff\xfe" };
	char text[6000];

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		setenv("TZ", texts[i], 1);
		look(NULL, NULL);
	}
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	setenv("TZ", text, 1);
	look(NULL, NULL);
	strcpy(text + 5000, "3");
	setenv("TZ", text, 1);
	look(NULL, NULL);
}

static long pages_in_use(void)
{
	FILE *file = fopen("/proc/self/statm", "r");
	long all;

	assert_non_null(file);
	assert_int_equal(fscanf(file, "%ld", &all), 1);
	fclose(file);
	return all;
}

/* The same zones again and again take no more memory. */
static void bounded(void **state)
{
	static const char *const texts[] = { "Europe/Paris", "Asia/Tokyo", "EST5EDT,M3.2.0,M11.1.0", "right/UTC" };
	long pages[2] = { 0, 0 };
	time_t t = SUMMER;

	(void)state;
	for (int round = 0; round < 2000; round++) {
		for (size_t i = 0; i < 4; i++) {
			setenv("TZ", texts[i], 1);
			assert_non_null(percpu__localtime(&t));
		}
		if (round == 1 || round == 1999)
			pages[round != 1] = pages_in_use();
	}
	assert_int_equal(pages[0], pages[1]);
	tzset();
}

/* Nor does the same zone from a file that is written anew each time. */
static void bounded_files(void **state)
{
	char path[300];
	time_t t = SUMMER;
	long before = 0;

	(void)state;
	snprintf(path, sizeof(path), "%s/Here", folder);
	for (int round = 0; round < 300; round++) {
		write_file(path, round & 1 ? ZONES "Europe/Paris" : ZONES "Asia/Tokyo");
		setenv("TZ", path, 1);
		assert_int_equal(percpu__localtime(&t)->tm_gmtoff, round & 1 ? 7200 : 32400);
		setenv("TZ", "UTC0", 1);
		assert_int_equal(percpu__localtime(&t)->tm_gmtoff, 0);
		if (round == 2)
			before = pages_in_use();
	}
	assert_int_equal(pages_in_use(), before);
	unlink(path);
	tzset();
}

static int make_folder(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/percpu-changes-XXXXXX");
	return !mkdtemp(folder);
}

static int remove_folder(void **state)
{
	(void)state;
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(variable),
		cmocka_unit_test(others_that_look),
		cmocka_unit_test(trust),
		cmocka_unit_test_setup_teardown(file_of_variable, make_folder, remove_folder),
		cmocka_unit_test_setup_teardown(bounded_files, make_folder, remove_folder),
		cmocka_unit_test(no_files),
		cmocka_unit_test(bounded),
		cmocka_unit_test(default_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
