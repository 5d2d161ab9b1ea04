/* SPDX-License-Identifier: MIT */
/*
 * The allocator linked into a program, shared, from the archive, and in one that is linked statically as a whole: it is the
 * only malloc there, for the C library's own calls too, and is whole: also with threads and in children.
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #condition);                                \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

/* No other has this size for it. */
static int is_ours(void *p)
{
	return p && malloc_usable_size(p) == 112 && (uintptr_t)p % 16 == 0;
}

static void every_function(void)
{
	void *blocks[11], *out = NULL;

	blocks[0] = malloc(100);
	blocks[1] = calloc(10, 10);
	blocks[2] = realloc(NULL, 100);
	blocks[3] = reallocarray(NULL, 10, 10);
	blocks[4] = aligned_alloc(16, 100);
	blocks[5] = memalign(16, 100);
	CHECK(posix_memalign(&out, 16, 100) == 0);
	blocks[6] = out;
	blocks[7] = strndup("a string that is as long as a string has to be, so that there are a hundred of its bytes, "
			    "and no more than that, I say",
			    99);
	blocks[8] = malloc(1);
	blocks[8] = realloc(blocks[8], 100);
	for (int i = 0; i < 9; i++) {
		CHECK(is_ours(blocks[i]));
		memset(blocks[i], i, 112);
	}
	blocks[9] = valloc(100);
	blocks[10] = pvalloc(100);
	CHECK((uintptr_t)blocks[9] % 4096 == 0 && (uintptr_t)blocks[10] % 4096 == 0);
	for (int i = 1; i < 11; i++)
		free(blocks[i]);
	CHECK(malloc_trim(0) == 1 && mallinfo2().arena > 0 && mallopt(-12345, 1) == 0);
	free(blocks[0]);
}

/* What the C library allocates comes from here as well, and may be freed here. */
static void the_c_library(void)
{
	size_t before = mallinfo2().uordblks, length = 0, room = 0;
	char *text = NULL, *line = NULL;
	FILE *stream = open_memstream(&text, &length);

	CHECK(stream);
	for (int i = 0; i < 100000; i++)
		CHECK(fprintf(stream, "%d\n", i) > 0);
	CHECK(fclose(stream) == 0);
	CHECK(length == 10 * 2 + 90 * 3 + 900 * 4 + 9000 * 5 + 90000 * 6);
	CHECK(mallinfo2().uordblks >= before + length);
	stream = fmemopen(text, length, "r");
	CHECK(stream);
	for (int i = 0; i < 100000; i++)
		CHECK(getline(&line, &room, stream) > 0 && atoi(line) == i);
	fclose(stream);
	free(line);
	free(text);
}

static void *work(void *seed)
{
	enum { BLOCKS = 500 };
	unsigned char *blocks[BLOCKS] = { NULL };
	uintptr_t dice = (uintptr_t)seed;

	for (int i = 0; i < 100000; i++) {
		size_t at = dice % BLOCKS, size;

		dice = dice * 6364136223846793005U + 1442695040888963407U;
		size = (dice >> 33) % (i % 100 ? 500 : 100000) + 1;
		if (blocks[at])
			CHECK(blocks[at][0] == at % 256);
		free(blocks[at]);
		CHECK((blocks[at] = malloc(size)) != NULL);
		memset(blocks[at], (int)(at % 256), size);
	}
	for (int i = 0; i < BLOCKS; i++)
		free(blocks[i]);
	return NULL;
}

static void threads_and_children(void)
{
	pthread_t threads[4];
	int status = -1;
	pid_t child;

	for (uintptr_t i = 0; i < 4; i++)
		CHECK(pthread_create(&threads[i], NULL, work, (void *)(i + 1)) == 0);
	for (int i = 0; i < 5; i++) {
		child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			alarm(60);
			work((void *)7);
			_exit(0);
		}
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(void)
{
	every_function();
	the_c_library();
	threads_and_children();
	return 0;
}
