/* SPDX-License-Identifier: MIT */
/*
 * percpu bench malloc: redis-server, a real program whose work is to keep small objects.
 *
 * The child starts a server whose malloc is the one that the child itself has, by its path: also where the server is linked
 * to an allocator, as Debian's is to jemalloc, and the one to measure is the C library's. It makes sure of that before it
 * counts anything. The server listens on a socket in a folder of its own, and dies with the child.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/bench_malloc.h"
#include "cli/cli.h"

#define BATCH     500    /* commands that are sent at once */
#define NAME_MOST 48     /* bytes of a key, */
#define MOST      2048   /* and of a value */
#define KNOWN     100000 /* keys that redis-benchmark uses */
#define FIRST     10000  /* keys that tell in which allocator they are */
#define SIZE      "100"
#define CLIENTS   "20"
#define PIPELINE  "16"
#define LEAST     0.03 /* seconds of a test: redis-benchmark counts in milliseconds */

static char folder[] = "/tmp/percpu-bench-XXXXXX", path[sizeof(folder) + 8];
static pid_t server;
static int connection = -1;

static void stop(void)
{
	DIR *files;

	if (server)
		kill(server, SIGKILL);
	while (server && waitpid(server, NULL, 0) < 0 && errno == EINTR)
		;
	server = 0;
	files = opendir(folder);
	for (const struct dirent *file; files && (file = readdir(files));)
		unlinkat(dirfd(files), file->d_name, 0);
	if (files)
		closedir(files);
	rmdir(folder);
}

static _Noreturn void fail(const char *why)
{
	stop();
	malloc_give_up(why);
}

const char *malloc_skip_redis(void)
{
	static const char *const names[] = { "redis-server", "redis-benchmark" };
	static char why[64];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const char *place = getenv("PATH");
		bool found = false;

		for (size_t length; place && !found; place += length + (place[length] == ':')) {
			char file[4096];

			length = strcspn(place, ":");
			snprintf(file, sizeof(file), "%.*s/%s", (int)length, place, names[i]);
			found = length && !access(file, X_OK);
			if (!place[length])
				break;
		}
		if (!found) {
			snprintf(why, sizeof(why), "%s is not installed", names[i]);
			return why;
		}
	}
	return NULL;
}

/* Whether the server has an object; the loader that cannot preload one goes on without. */
static bool has_object(const char *object)
{
	char file[64], line[4400];
	bool found = false;
	FILE *maps;

	snprintf(file, sizeof(file), "/proc/%d/maps", server);
	maps = fopen(file, "re");
	while (maps && !found && fgets(line, sizeof(line), maps))
		found = strstr(line, object) != NULL;
	if (maps)
		fclose(maps);
	return found;
}

static void send_all(const char *text, size_t size)
{
	while (size) {
		ssize_t n = send(connection, text, size, MSG_NOSIGNAL);

		if (n <= 0)
			fail("redis-server is gone");
		text += n;
		size -= (size_t)n;
	}
}

/* As many replies of one line each. */
static void read_replies(unsigned count)
{
	static char text[16384];
	bool first = true;

	while (count) {
		ssize_t n = recv(connection, text, sizeof(text), 0);

		if (n <= 0)
			fail("redis-server is gone");
		for (ssize_t i = 0; i < n; i++) {
			if (first && text[i] == '-')
				fail("redis-server refuses a command");
			first = text[i] == '\n';
			count -= first;
		}
	}
}

/* A number that the server tells in INFO, 0 if there is none. */
static uint64_t ask(const char *key)
{
	static char text[16384];
	size_t used = 0;
	const char *at;

	send_all("INFO memory\r\n", 13);
	/* A length in a line, that many bytes, and a line's end. */
	for (size_t whole = 1; used < whole;) {
		ssize_t n = recv(connection, text + used, sizeof(text) - 1 - used, 0);

		if (n <= 0)
			fail("redis-server is gone");
		used += (size_t)n;
		text[used] = '\0';
		at = strchr(text, '\n');
		whole = at ? (size_t)(at + 1 - text) + strtoul(text + 1, NULL, 10) + 2 : used + 1;
	}
	at = strstr(text, key);
	return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

/* Of a server that is linked to jemalloc this is jemalloc's own count. */
static void check_allocator(const char *object)
{
	bool is_jemalloc = strstr(object, "jemalloc") != NULL;
	uint64_t used = ask("\nused_memory:"), linked = ask("\nallocator_allocated:");

	if (!has_object(object) || (!is_jemalloc && linked > used / 2 && has_object("libjemalloc")))
		fail("redis-server runs on another malloc");
}

static void start(void)
{
	char preload[4400];
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	double until = malloc_now() + 60e9;

	if (!mkdtemp(folder))
		malloc_give_up("cannot make a folder in /tmp");
	snprintf(path, sizeof(path), "%s/s", folder);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	snprintf(preload, sizeof(preload), "%s", malloc_path());
	server = fork();
	if (server < 0) {
		server = 0;
		fail("cannot start a process");
	}
	if (!server) {
		int null = open("/dev/null", O_RDWR);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
		setenv("LD_PRELOAD", preload, 1);
		execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", path, "--save", "",
		       "--appendonly", "no", "--daemonize", "no", "--dir", folder, "--hz", "10", (char *)NULL);
		_exit(127);
	}
	connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	while (connect(connection, (struct sockaddr *)&address, sizeof(address))) {
		if (waitpid(server, NULL, WNOHANG) == server) {
			server = 0;
			fail("redis-server does not start");
		}
		if (malloc_now() > until)
			fail("redis-server does not answer");
		usleep(2000);
	}
}

/* The same names and sizes for each allocator: of keys 10 to 40 bytes, of values 16 to 2048, as many of each magnitude. */
static size_t name_of(uint64_t i, char *out)
{
	uint64_t random = malloc_seed((unsigned)i);
	uint32_t length;

	malloc_random(&random);
	length = malloc_between(random, 10, 40);
	return (size_t)snprintf(out, NAME_MOST, "%0*llu", (int)length, (unsigned long long)i);
}

static uint32_t value_of(uint64_t i)
{
	uint64_t random = malloc_seed((unsigned)i);

	malloc_random(&random);
	malloc_random(&random);
	return (uint32_t)(16 * pow(MOST / 16.0, (double)malloc_below(random, 1U << 24) / (1U << 24)));
}

static bool is_deleted(uint64_t i)
{
	uint64_t random = malloc_seed((unsigned)i);

	for (int n = 0; n < 3; n++)
		malloc_random(&random);
	return random >> 63;
}

/* SET of @count keys, or DEL of half of them. Returns how many commands that was. */
static uint64_t tell(uint64_t count, bool delete)
{
	static char text[BATCH * (NAME_MOST + MOST + 64)], value[MOST];
	uint64_t commands = 0;
	unsigned pending = 0;
	char *end = text;

	memset(value, 'x', sizeof(value));
	for (uint64_t i = 0; i < count; i++) {
		char name[NAME_MOST];
		size_t length;

		if (delete &&!is_deleted(i))
			continue;
		length = name_of(i, name);
		if (delete) {
			end += sprintf(end, "*2\r\n$3\r\nDEL\r\n$%zu\r\n%s\r\n", length, name);
		} else {
			uint32_t size = value_of(i);

			end += sprintf(end, "*3\r\n$3\r\nSET\r\n$%zu\r\n%s\r\n$%u\r\n", length, name, size);
			end = mempcpy(mempcpy(end, value, size), "\r\n", 2);
		}
		commands++;
		if (++pending == BATCH) {
			send_all(text, (size_t)(end - text));
			read_replies(pending);
			pending = 0;
			end = text;
		}
	}
	send_all(text, (size_t)(end - text));
	read_replies(pending);
	return commands;
}

/* Requests per second of a test of redis-benchmark, in so many requests. */
static double benchmark_once(const char *test, uint64_t requests)
{
	char command[512], line[512];
	double rate = 0;
	FILE *out;

	/* The clients are the same for each allocator. */
	unsetenv("LD_PRELOAD");
	snprintf(command, sizeof(command),
		 "redis-benchmark -s %s -q -n %llu -r %d -d " SIZE " -c " CLIENTS " -P " PIPELINE
		 " -t %s 2>&1 | tr '\\r' '\\n'",
		 path, (unsigned long long)requests, KNOWN, test);
	out = popen(command, "re");
	while (out && fgets(line, sizeof(line), out)) {
		const char *found = strstr(line, " requests per second");
		const char *colon = strchr(line, ':');

		if (found && colon && colon < found)
			rate = strtod(colon + 1, NULL);
	}
	if (!out || pclose(out) || !(rate > 0))
		fail("redis-benchmark fails");
	return rate;
}

/* The same, in more requests if these are answered before its clock tells. */
static double benchmark(const char *test, uint64_t requests)
{
	for (;; requests *= 4) {
		double rate = benchmark_once(test, requests);

		if ((double)requests >= LEAST * rate)
			return rate;
	}
}

void malloc_run_redis(const struct malloc_task *task, struct malloc_report *report)
{
	const char *object = malloc_path();
	double begin;

	start();
	if (task->row == BENCH_MALLOC_REDIS_MEMORY) {
		uint64_t commands;

		begin = malloc_now();
		commands = tell(task->size, false);
		check_allocator(object);
		commands += tell(task->size, true);
		report->best = (malloc_now() - begin) / (double)commands;
		malloc_rest(task->rest);
		if (task->rest > 0)
			report->idle = malloc_resident(server);
	} else {
		tell(FIRST, false);
		check_allocator(object);
		/* All keys are there then, and buffers as large as they will be. */
		benchmark("set", task->size / 4 + 1);
		report->best = 1e9 / benchmark(task->row == BENCH_MALLOC_REDIS_SET ? "set" : "get", task->size);
	}
	report->median = report->best;
	report->peak = malloc_kib(server, "status", "VmHWM:");
	stop();
}
