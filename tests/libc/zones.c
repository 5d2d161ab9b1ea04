/* SPDX-License-Identifier: MIT */
/*
 * The calendar's functions against the C library's own, field by field. Ours are linked under their names of our own, so the
 * C library's are what they are called; both see the same environment.
 *
 *   zones [--random N] [--texts N] [--damaged N] [ZONE...]   without zones: all that are installed
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libc/calendar.h"
#include "libc/zone.h"

#define FOLDER "/usr/share/zoneinfo"
#define FIRST  INT64_C(-2177452800) /* 1901 */
#define LAST   INT64_C(16725225600) /* 2500 */
#define WEEK   INT64_C(604800)
/* From the year 5.8 million on the C library's own arithmetic overflows. */
#define FARTHEST INT64_C(170000000000000)

/* Before the year 1 its weekdays are not those of the calendar, where a rule wants one. */
#define RULE_FIRST (INT64_C(-62135596800))

static int64_t earliest = -FARTHEST;
static uint64_t seed = 88172645463325252;
static const char *zone;
static long compared, different;

static uint64_t chance(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * UINT64_C(2685821657736338717) >> 1;
}

static int64_t between(int64_t from, int64_t to)
{
	return from + (int64_t)(chance() % (uint64_t)(to - from + 1));
}

static void print(const char *who, const struct tm *tm)
{
	if (!tm)
		printf("   %-5s NULL\n", who);
	else
		printf("   %-5s %d-%02d-%02d %02d:%02d:%02d week day %d day %d summer %d offset %ld %s\n", who,
		       tm->tm_year + 1900, tm->tm_mon + 1, tm->tm_mday, tm->tm_hour, tm->tm_min, tm->tm_sec,
		       tm->tm_wday, tm->tm_yday, tm->tm_isdst, tm->tm_gmtoff, tm->tm_zone);
}

static bool same(const struct tm *a, const struct tm *b)
{
	return a->tm_sec == b->tm_sec && a->tm_min == b->tm_min && a->tm_hour == b->tm_hour &&
	       a->tm_mday == b->tm_mday && a->tm_mon == b->tm_mon && a->tm_year == b->tm_year &&
	       a->tm_wday == b->tm_wday && a->tm_yday == b->tm_yday && a->tm_isdst == b->tm_isdst &&
	       a->tm_gmtoff == b->tm_gmtoff && !strcmp(a->tm_zone, b->tm_zone);
}

static void differ(const char *what, int64_t t, const struct tm *ours, const struct tm *theirs)
{
	if (different++ > 20)
		return;
	printf("TZ=%s: %s %" PRId64 "\n", zone ? zone : "(unset)", what, t);
	print("ours", ours);
	print("libc", theirs);
}

static void check_fields(const char *what, int64_t t, const struct tm *ours, int our_error, const struct tm *theirs,
			 int their_error)
{
	compared++;
	if (!ours != !theirs || (ours && !same(ours, theirs)) || (!ours && our_error != their_error))
		differ(what, t, ours, theirs);
}

struct vars {
	char name[2][64];
	long west;
	int daylight;
};

static void note(struct vars *vars)
{
	for (int i = 0; i < 2; i++)
		snprintf(vars->name[i], sizeof(vars->name[i]), "%s", tzname[i]);
	vars->west = timezone;
	vars->daylight = daylight;
}

/* So that it shows who does not set them; and as the C library left them, which relies on that. */
struct saved {
	char *name[2];
	long west;
	int daylight;
};

static struct saved scribble(void)
{
	static char nothing[] = "?";
	struct saved saved = { { tzname[0], tzname[1] }, timezone, daylight };

	tzname[0] = tzname[1] = nothing;
	timezone = 4711;
	daylight = 47;
	return saved;
}

static void restore(const struct saved *saved)
{
	tzname[0] = saved->name[0];
	tzname[1] = saved->name[1];
	timezone = saved->west;
	daylight = saved->daylight;
}

static void check_vars(const char *what, int64_t t, const struct vars *ours, const struct vars *theirs)
{
	compared++;
	if (!strcmp(ours->name[0], theirs->name[0]) && !strcmp(ours->name[1], theirs->name[1]) &&
	    ours->west == theirs->west && ours->daylight == theirs->daylight)
		return;
	if (different++ > 20)
		return;
	printf("TZ=%s: %s %" PRId64 "\n   ours  %s %s %ld %d\n   libc  %s %s %ld %d\n", zone ? zone : "(unset)", what,
	       t, ours->name[0], ours->name[1], ours->west, ours->daylight, theirs->name[0], theirs->name[1],
	       theirs->west, theirs->daylight);
}

static void check_moment(int64_t moment)
{
	struct tm ours, theirs, *a, *b;
	int our_error = 0, their_error = 0;
	struct vars our_vars, their_vars;
	struct saved saved;
	time_t t = moment;

	errno = 0;
	b = localtime_r(&t, &theirs);
	their_error = errno;
	a = percpu__localtime_r(&t, &ours);
	our_error = errno;
	check_fields("localtime_r", t, a, our_error, b, their_error);
	b = localtime(&t);
	their_error = errno;
	note(&their_vars);
	saved = scribble();
	a = percpu__localtime(&t);
	our_error = errno;
	note(&our_vars);
	restore(&saved);
	check_fields("localtime", t, a, our_error, b, their_error);
	if (b)
		check_vars("localtime's variables", t, &our_vars, &their_vars);
	b = gmtime_r(&t, &theirs);
	their_error = errno;
	a = percpu__gmtime_r(&t, &ours);
	our_error = errno;
	check_fields("gmtime_r", t, a, our_error, b, their_error);
}

static void check_back(const struct tm *from, bool local)
{
	struct tm ours = *from, theirs = *from;
	int our_error, their_error;
	struct vars our_vars, their_vars;
	struct saved saved;
	time_t a, b;

	errno = 0;
	b = local ? mktime(&theirs) : timegm(&theirs);
	their_error = errno;
	note(&their_vars);
	saved = scribble();
	errno = 0;
	a = local ? percpu__mktime(&ours) : percpu__timegm(&ours);
	our_error = errno;
	note(&our_vars);
	restore(&saved);
	compared++;
	if (a != b || (a == -1 && !our_error != !their_error)) {
		if (different < 20)
			printf("%" PRId64 " and %" PRId64 " of:\n", (int64_t)a, (int64_t)b);
		differ(local ? "mktime" : "timegm", a, from, from);
		return;
	}
	if (a == -1 && our_error)
		return;
	check_fields(local ? "mktime's fields" : "timegm's fields", a, &ours, 0, &theirs, 0);
	if (local)
		check_vars("mktime's variables", a, &our_vars, &their_vars);
}

/* What a clock shows there, and what it does not: with each answer to whether it is summer. */
static void check_clock(int64_t moment, int minutes, bool odd)
{
	time_t t = moment;
	struct tm tm;

	if (!localtime_r(&t, &tm))
		return;
	tm.tm_min += minutes;
	if (odd) {
		tm.tm_sec += (int)between(-100, 100);
		tm.tm_min += (int)between(-100, 100);
		tm.tm_hour += (int)between(-40, 40);
		tm.tm_mday += (int)between(-400, 400);
		tm.tm_mon += (int)between(-40, 40);
	}
	for (int isdst = -1; isdst < 2; isdst++) {
		tm.tm_isdst = isdst;
		check_back(&tm, true);
	}
	check_back(&tm, false);
}

static void check_around(int64_t moment)
{
	for (int d = -2; d <= 2; d++)
		check_moment(moment + d);
	for (int d = -1; d <= 1; d++) {
		check_clock(moment + d, 0, false);
		check_clock(moment + d * 3600, 0, false);
		check_clock(moment - 1800 + d * 3600, 0, false);
	}
	/* What no clock shows, from both sides; and further on. */
	for (int minutes = 1; minutes < 200; minutes *= 5) {
		check_clock(moment - 1, minutes, false);
		check_clock(moment, -minutes, false);
	}
}

static bool alike(int64_t first, int64_t second)
{
	time_t a = first, b = second;
	struct tm one, two;

	return localtime_r(&a, &one) && localtime_r(&b, &two) && one.tm_isdst == two.tm_isdst &&
	       one.tm_gmtoff == two.tm_gmtoff && !strcmp(one.tm_zone, two.tm_zone);
}

/* Those of a rule are in no file. */
static void check_changes(int64_t from, int64_t to)
{
	for (int64_t t = from; t < to; t += WEEK) {
		int64_t low = t, high = t + WEEK;

		if (alike(low, high))
			continue;
		while (high - low > 1) {
			int64_t middle = low + (high - low) / 2;

			if (alike(low, middle))
				low = middle;
			else
				high = middle;
		}
		check_around(high);
	}
}

static void check_file_changes(const char *path)
{
	static unsigned char bytes[1 << 20];
	struct percpu__zone_file file;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd >= 0 ? read(fd, bytes, sizeof(bytes)) : -1;

	if (fd >= 0)
		close(fd);
	if (size < 0 || !percpu__zone_file_parse(bytes, (size_t)size, &file))
		return;
	for (size_t i = 0; i < file.changes; i++)
		check_around(percpu__zone_file_when(&file, i));
	for (size_t i = 0; i < file.leaps; i++)
		check_around(percpu__zone_file_leap(&file, i).when);
}

static void choose(const char *text)
{
	struct vars ours, theirs;

	zone = text;
	if (text)
		setenv("TZ", text, 1);
	else
		unsetenv("TZ");
	/* (What it makes of "posixrules" depends on what it made of it before.) */
	tzset();
	tzset();
	note(&theirs);
	percpu__tzset();
	note(&ours);
	check_vars("tzset", 0, &ours, &theirs);
}

static int64_t random_moment(void)
{
	static const int64_t reach[] = { 1 << 20, INT64_C(1) << 31, INT64_C(1) << 36, INT64_C(1) << 40, FARTHEST };

	int64_t least = -reach[chance() % 5];

	if (chance() % 2)
		return between(FIRST, LAST);
	return between(least < earliest ? earliest : least, reach[chance() % 5]);
}

static void check_random(long n)
{
	for (long i = 0; i < n; i++) {
		int64_t t = random_moment();

		check_moment(t);
		if (i % 4 == 0)
			check_clock(t, 0, i % 8);
	}
}

static void check_zone(const char *name, long random)
{
	char path[PATH_MAX];

	choose(name);
	snprintf(path, sizeof(path), "%s%s%s", *name == '/' ? "" : FOLDER, *name == '/' ? "" : "/", name);
	check_file_changes(path);
	check_changes(FIRST, LAST);
	check_random(random);
}

static void check_folder(const char *name, long random)
{
	char path[PATH_MAX];
	struct dirent **entry;
	int n;

	snprintf(path, sizeof(path), FOLDER "/%s", name);
	n = scandir(path, &entry, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		char next[PATH_MAX];
		struct stat status;

		snprintf(next, sizeof(next), "%s%s%s", name, *name ? "/" : "", entry[i]->d_name);
		snprintf(path, sizeof(path), FOLDER "/%s", next);
		if (*entry[i]->d_name != '.' && !stat(path, &status)) {
			if (S_ISDIR(status.st_mode))
				check_folder(next, random);
			else
				check_zone(next, random);
		}
		free(entry[i]);
	}
	free(n < 0 ? NULL : entry);
}

/* Texts of all forms; what follows the names is as likely to be extreme as usual. */
static void add(char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(char *text, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vsnprintf(text + strlen(text), 200 - strlen(text), format, list);
	va_end(list);
}

static void add_name(char *text)
{
	bool quoted = chance() % 3 == 0;
	long n = between(3, 8);

	add(text, "%s", quoted ? "<" : "");
	for (long i = 0; i < n; i++)
		add(text, "%c", quoted ? "ABCxyz0189+-"[chance() % 12] : "ABCDEFXYZabcz"[chance() % 13]);
	add(text, "%s", quoted ? ">" : "");
}

static void add_time(char *text, int hours)
{
	add(text, "%s%d", (const char *[]){ "", "-", "+" }[chance() % (hours > 24 ? 2 : 3)], (int)between(0, hours));
	if (chance() % 3 == 0)
		add(text, ":%02d", (int)between(0, 59));
	else if (chance() % 3 == 0)
		add(text, ":%d:%d", (int)between(0, 59), (int)between(0, 59));
}

static void add_change(char *text)
{
	switch (chance() % 4) {
	case 0:
		add(text, ",J%d", (int)between(1, 365));
		break;
	case 1:
		add(text, ",%d", (int)between(0, 365));
		break;
	default:
		add(text, ",M%d.%d.%d", (int)between(1, 12), (int)between(1, 5), (int)between(0, 6));
	}
	if (chance() % 2) {
		add(text, "/");
		add_time(text, chance() % 2 ? 167 : 23);
	}
}

static void make_text(char *text)
{
	*text = '\0';
	add(text, "%s", chance() % 8 ? "" : ":");
	add_name(text);
	add_time(text, 24);
	if (chance() % 8 == 0)
		return;
	add_name(text);
	if (chance() % 2)
		add_time(text, 24);
	if (chance() % 8 == 0)
		return;
	add_change(text);
	add_change(text);
}

/* Wrong ones, too. (But no months: there the C library reads outside of its tables.) */
static void check_texts(long n)
{
	char text[200];

	earliest = RULE_FIRST;
	for (long i = 0; i < n; i++) {
		make_text(text);
		if (i % 4 == 0 && !strchr(text, 'M'))
			text[chance() % strlen(text)] = "A+-<>,/:J012 3"[chance() % 14];
		choose(text);
		check_random(60);
		if (i % 16 == 0)
			check_changes(FIRST + (int64_t)(chance() % 64) * WEEK * 400, FIRST + INT64_C(27500) * WEEK);
	}
}

/*
 * A file cut short, one of the first version only, and files in which something is not as it was. Not the moments, though, nor the
 * text: if these are not in order the C library's results mean nothing, and it has assertions about other things, too.
 */
static size_t damage(unsigned char *bytes, size_t size)
{
	struct percpu__zone_file file;
	size_t at, when;

	if (!percpu__zone_file_parse(bytes, size, &file))
		return size;
	when = (size_t)(file.when - bytes);
	switch (chance() % 4) {
	case 0:
		return (size_t)between(0, file.universal - bytes + (int64_t)file.universals + 2);
	case 1:
		bytes[4] = 0;
		return size;
	default:
		for (long n = between(1, 3); n; n--) {
			do
				at = (size_t)between(0, (int64_t)size - 1);
			while ((at >= 44 && at < when - 44) || (at >= when && at < when + 8 * file.changes) ||
			       at >= (size_t)(file.universal - bytes) + file.universals);
			bytes[at] = (unsigned char)chance();
		}
		return size;
	}
}

/* How a child ended that looked at a file: with the C library's functions beside ours, or without. */
static int look_at(const char *path, bool both)
{
	pid_t pid;
	int status;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		if (!both) {
			setenv("TZ", path, 1);
			for (int i = 0; i < 1000; i++) {
				time_t t = random_moment();
				struct tm tm;

				if (percpu__localtime(&t)) {
					percpu__localtime_r(&t, &tm);
					percpu__mktime(&tm);
				}
			}
			_exit(0);
		}
		close(2);
		compared = different = 0;
		choose(path);
		check_random(100);
		fflush(stdout);
		_exit(different != 0);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid ? status : -1;
}

static void check_damaged(const char *name, long n)
{
	static unsigned char bytes[1 << 20], copy[1 << 20];
	char path[PATH_MAX], folder[] = "/tmp/percpu-zones-XXXXXX";
	long skipped = 0;
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), FOLDER "/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	size = fd >= 0 ? read(fd, bytes, sizeof(bytes)) : -1;
	if (fd >= 0)
		close(fd);
	if (size <= 0 || !mkdtemp(folder))
		return;
	for (long i = 0; i < n; i++) {
		size_t length;

		memcpy(copy, bytes, (size_t)size);
		length = damage(copy, (size_t)size);
		snprintf(path, sizeof(path), "%s/%ld", folder, i);
		fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0 || write(fd, copy, length) != (ssize_t)length)
			break;
		close(fd);
		if (look_at(path, false)) {
			printf("%s: ours died of a file like that, which is kept\n", path);
			different++;
			continue;
		}
		fd = look_at(path, true);
		skipped += WIFSIGNALED(fd);
		if (WIFEXITED(fd) && WEXITSTATUS(fd)) {
			different++;
			printf("%s differs, and is kept\n", path);
		} else {
			unlink(path);
		}
		compared++;
	}
	rmdir(folder);
	printf("%s: %ld damaged files, of which the C library did not survive %ld\n", name, n, skipped);
}

int main(int argc, char **argv)
{
	static const struct option known[] = { { "random", required_argument, NULL, 'r' },
					       { "texts", required_argument, NULL, 't' },
					       { "damaged", required_argument, NULL, 'd' },
					       { NULL, 0, NULL, 0 } };
	long random = 1000, texts = 0, damaged = 0;
	int c;

	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		if (c == 'r')
			random = atol(optarg);
		else if (c == 't')
			texts = atol(optarg);
		else if (c == 'd')
			damaged = atol(optarg);
		else
			return 2;
	}
	for (int i = optind; damaged && i < argc; i++)
		check_damaged(argv[i], damaged);
	choose(NULL);
	check_random(random);
	choose("");
	check_random(random);
	for (int i = optind; i < argc; i++)
		check_zone(argv[i], random);
	if (optind == argc)
		check_folder("", random);
	check_texts(texts);
	printf("%ld comparisons, %ld differences\n", compared, different);
	return different != 0;
}
