/* SPDX-License-Identifier: MIT */
/*
 * A log formatter: threads that put the local time before each line of a file, as servers do, again and again until there are
 * enough lines.
 *
 *   stamp THREADS LINES FILE      the stamped lines' sum on standard output, seconds on standard error
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BEGINNING 1600000000

struct job {
	pthread_t thread;
	unsigned id;
	uint64_t sum;
};

static struct job *jobs;
static unsigned threads;
static long lines, known;
static const char **line;

static uint64_t add(uint64_t sum, const char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		sum = (sum ^ (unsigned char)bytes[i]) * UINT64_C(0x100000001b3);
	return sum;
}

/* Every thread its part of the lines; a line's moment depends on its number only. */
static void *stamp(void *arg)
{
	struct job *job = arg;
	char text[4096];

	for (long i = job->id; i < lines; i += threads) {
		time_t t = BEGINNING + i * 61;
		struct tm tm;
		size_t n;

		localtime_r(&t, &tm);
		n = strftime(text, 64, "%d/%b/%Y:%H:%M:%S %z (%Z) ", &tm);
		n += (size_t)snprintf(text + n, 1000, "%s", line[i % known]);
		job->sum ^= add((uint64_t)i, text, n);
	}
	return NULL;
}

static int read_lines(const char *path)
{
	FILE *file = fopen(path, "r");
	long room = 0;
	size_t size = 0;
	char *text = NULL;

	if (!file)
		return -1;
	while (getline(&text, &size, file) >= 0) {
		if (known == room) {
			room = room ? 2 * room : 1024;
			line = realloc(line, (size_t)room * sizeof(*line));
			if (!line)
				return -1;
		}
		text[strcspn(text, "\n")] = '\0';
		line[known++] = strdup(text);
	}
	free(text);
	fclose(file);
	return known ? 0 : -1;
}

int main(int argc, char **argv)
{
	struct timespec start, end;
	uint64_t sum = 0;

	if (argc != 4 || read_lines(argv[3]))
		return 2;
	threads = (unsigned)atoi(argv[1]);
	lines = atol(argv[2]);
	jobs = calloc(threads, sizeof(*jobs));
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (unsigned i = 0; i < threads; i++) {
		jobs[i].id = i;
		if (pthread_create(&jobs[i].thread, NULL, stamp, &jobs[i]))
			return 2;
	}
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(jobs[i].thread, NULL);
		sum ^= jobs[i].sum;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%016jx\n", (uintmax_t)sum);
	fprintf(stderr, "%.3f s\n", (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9);
	return 0;
}
