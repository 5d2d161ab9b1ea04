/* SPDX-License-Identifier: MIT */
/*
 * What `percpu run --stats` and the program under it agree on: a memory file of the command's, which the program maps.
 *
 * The program writes where its words are, and at its end the statistics themselves. While it runs the command reads the words
 * out of the program's memory: the program does nothing for it. Only the process that the command has started writes here, so
 * its children garble nothing; when it executes another program, that one begins anew.
 *
 * `sequence` is odd while the program writes. As the addresses may by now mean something else, there is a word in the program
 * that holds the session's key.
 */
#ifndef PERCPU_SRC_MALLOC_SESSION_H
#define PERCPU_SRC_MALLOC_SESSION_H

#include <stdint.h>

#include "malloc/stats.h"

/* "/proc/PID/fd/N KEY PROCESS": the file, its key, and who may write to it. */
#define PERCPU__SESSION_ENV   "PERCPU_MALLOC_SESSION"
#define PERCPU__SESSION_NAME  "percpu-run"
#define PERCPU__SESSION_LINK  "/memfd:" PERCPU__SESSION_NAME
#define PERCPU__SESSION_MAGIC 0x6d616c6c6f6370c5ULL

enum percpu__session_state { PERCPU__SESSION_NEW, PERCPU__SESSION_RUNNING, PERCPU__SESSION_ENDED };

/* Addresses in the program. */
struct percpu__session_where {
	uint64_t key;
	uint64_t heap; /* struct percpu__heap_stats */
	struct percpu__central_words central;
	uint64_t front;             /* the first copy's struct percpu__front; 0: there is none */
	uint64_t top;               /* uint32_t: one more than the highest index that was used */
	uint64_t guarded, profiled; /* words */
};

struct percpu__session {
	/* By the command, before the program starts. */
	uint64_t magic;
	uint64_t layout; /* percpu__session_layout() of the command: another version stays away */
	uint64_t key;
	uint64_t copies;
	/* By the program. */
	uint64_t sequence;
	uint64_t images; /* programs so far */
	uint64_t state;
	uint64_t counted; /* hits are */
	char mode[8], index_kind[24];
	struct percpu__session_where where;
	/* Its last words. */
	struct percpu__stats_process process;
	struct percpu__stats_class classes[CLASSES + 1];
	struct percpu__stats_index indexes[]; /* copies */
};

PERCPU_HIDDEN uint64_t percpu__session_layout(void);

/* In the program: when the allocator starts, and at the end. */
PERCPU_HIDDEN void percpu__session_start(void);
PERCPU_HIDDEN void percpu__session_end(void);

#endif
