/* SPDX-License-Identifier: MIT */
/*
 * percpu bench, inside: what a bench and its subjects are, and how the parts of the command meet.
 *
 * A bench is one operation ("add 1 to a counter"); its subjects are the ways to do it, one of them called "percpu". All
 * subjects of a bench run in the same threads in short rounds, round-robin with a rotating order, so that whatever
 * disturbs the machine disturbs them alike. A subject is a function with the whole loop in it: the compiler sees what it
 * would see in a user's loop.
 *
 * The time of a round is the wall time from the first thread's start to the last thread's end, divided by the operations
 * of one thread: nanoseconds per operation and thread. With more threads than CPUs it includes the wait for a CPU.
 */
#ifndef PERCPU_CLI_BENCH_H
#define PERCPU_CLI_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <percpu.h>
#include <rseq/thread.h>

#define BENCH_MAX_THREADS 1024
/* Two cache lines: the prefetcher of x86 fetches pairs. */
#define BENCH_ALIGNED __attribute__((aligned(128)))
/* Each subject's loop: never merged with another, and never better off by where it happens to lie. */
#define BENCH_LOOP static __attribute__((noinline, aligned(64))) void

/* Keeps a value, or a loop without one, from being optimised away. */
#define BENCH_USE(value) __asm__ __volatile__("" : : "r"(value))

/* The limit of any counter: load, add, store, to one word in memory, each time. */
#if defined __x86_64__
#define BENCH_PLAIN_ADD(word, n) __asm__ __volatile__("addq %1, %0" : "+m"(word) : "er"((uint64_t)(n)) : "cc")
#else
#define BENCH_PLAIN_ADD(word, n) (*(volatile uint64_t *)&(word) += (n))
#endif

/* One thread of a run. Only its own thread writes it while a round runs. */
struct bench_worker {
	unsigned id;
	double start, end; /* of this round, in ns; read by worker 0 between rounds */
	struct bench_run *run;
	BENCH_ALIGNED uint64_t plain; /* private words, in a line of their own */
};

struct bench_subject {
	const char *name;
	const char *what; /* a few words for --list */
	void (*loop)(struct bench_worker *worker, uint64_t n);
	const char *(*skip)(void); /* why it cannot run here, NULL if it can; may be NULL */
	bool alone;                /* worker 0 does it, while the others only keep their CPUs busy */
	enum percpu__force force;  /* how the thread is held off its sections while the loop runs */
	double published_ns;       /* by the 2018 talk, one thread; 0 if it has no such row */
	const char *published_ratio;
};

struct bench_cell;

struct bench {
	const char *name;
	const char *what;
	const struct bench_subject *subjects; /* ends with a NULL name; the first is the measure of the ratios */
	/* The name under which several are asked for, and this one runs only when it is asked for; or NULL. */
	const char *group;
	double weight;                 /* its share of the time beside others; 0 is 1 */
	unsigned threads, min_threads; /* in any case so many, and at least so many; 0: as --threads says */
	bool in_main;                  /* one thread is the process's first, not a new one */
	/* Instead of bench_run(), with the same duties; may be NULL. Fills in why a cell failed, and goes on. */
	int (*run)(const struct bench *bench, unsigned threads, double seconds, double round_ns,
		   struct bench_cell *cells, const char **error);
	int (*setup)(unsigned threads);             /* 0 or -errno; may be NULL, as those below */
	void (*begin)(struct bench_worker *worker); /* in each thread, before its first round */
	/* After the last round: what is wrong with the results, NULL if nothing. @done: operations by subject. */
	const char *(*check)(const uint64_t *done);
	void (*teardown)(void);
};

/* One result. */
struct bench_cell {
	const struct bench *bench;
	const struct bench_subject *subject;
	unsigned threads;
	const char *skipped; /* why there are no times, or NULL */
	char failed[192];    /* the same, where that is an error; else empty */
	double best, median; /* ns per operation and thread */
	/* What only some benches have; else 0 or empty. */
	double p9999;          /* of single operations, in ns */
	double p999;           /* the same of waiting for a lock, or for a wake-up */
	double unfairness;     /* operations of the thread that did most, divided by those of the one that did least */
	double resident_ratio; /* resident memory divided by what is live in it */
	uint64_t peak_kib;     /* the largest resident memory of the process */
	uint64_t idle_kib;     /* its resident memory after a rest, with everything given back */
	char note[96];         /* how this was done, where that depends on the time or the machine */
};

struct bench_results {
	struct bench_cell *cells;
	size_t count;
};

extern const struct bench *const bench_all[]; /* ends with NULL */
/* bench_words.c */
extern const struct bench bench_cpu_number, bench_counter_add, bench_histogram_record, bench_slow_path;
extern const struct bench bench_stack_pair;     /* bench_stack.c */
extern const struct bench bench_c_section_pair; /* bench_csection.c */
/* bench_pool.c */
extern const struct bench bench_pool_pair, bench_pool_bulk;
/* bench_ring.c */
extern const struct bench bench_ring_record_16, bench_ring_record_64, bench_ring_pointer_pair;
/* bench_runqueue.c */
extern const struct bench bench_runqueue_pair, bench_runqueue_steal;
/* bench_spinlock.c */
extern const struct bench bench_spinlock_pair, bench_spinlock_remote;
/* bench_rwlock.c */
extern const struct bench bench_rwlock_read_pair, bench_rwlock_write_pair, bench_ref_pair, bench_ref_kill;
extern const struct bench bench_rcu_read_pair, bench_rcu_synchronize, bench_rcu_call; /* bench_rcu.c */
extern const struct bench bench_seqdata_read;                                         /* bench_seqdata.c */
/* bench_timed.c */
extern const struct bench bench_timed_pair, bench_perf_read;
/* bench_mutex.c */
extern const struct bench bench_mutex_pair, bench_mutex_50ns, bench_mutex_1us, bench_mutex_crowd;
/* bench_wait.c */
extern const struct bench bench_eventcount_notify, bench_eventcount_turns, bench_eventcount_herd;
/* bench_gate.c */
extern const struct bench bench_fence, bench_opv;

/* bench_calendar.c, where there is libpercpu-libc */
extern const struct bench bench_localtime_r, bench_localtime_r_summer, bench_localtime, bench_mktime;
/* bench_libc.c, likewise */
extern const struct bench bench_dl_iterate_phdr, bench_dl_iterate_phdr_all, bench_dladdr, bench_gettext;
extern const struct bench bench_pthread_getattr_default_np, bench_thread_create;

/* bench_malloc.c: in the order of the table. */
enum bench_malloc_row {
	BENCH_MALLOC_PAIR_16,
	BENCH_MALLOC_PAIR_64,
	BENCH_MALLOC_PAIR_512,
	BENCH_MALLOC_PAIR_4096,
	BENCH_MALLOC_RANDOM,
	BENCH_MALLOC_LARSON,
	BENCH_MALLOC_PRODUCER_CONSUMER,
	BENCH_MALLOC_BURST,
	BENCH_MALLOC_THREADS_8,
	BENCH_MALLOC_THREADS_100,
	BENCH_MALLOC_THREADS_1000,
	BENCH_MALLOC_FRAGMENTATION,
	BENCH_MALLOC_REALLOC,
	BENCH_MALLOC_CALLOC_LARGE,
	BENCH_MALLOC_STARTUP,
	BENCH_MALLOC_REDIS_SET,
	BENCH_MALLOC_REDIS_GET,
	BENCH_MALLOC_REDIS_MEMORY,
	BENCH_MALLOC_ROWS,
};
extern const struct bench bench_malloc[BENCH_MALLOC_ROWS];

size_t bench_subjects(const struct bench *bench);
/* The CPUs that this process may use. */
unsigned bench_cpus(void);

/*
 * Run all subjects of a bench in @threads threads, for about @seconds in rounds of about @round_ns, and fill a cell for
 * each subject. Returns 0, or -errno with *@error set to what failed.
 */
int bench_run(const struct bench *bench, unsigned threads, double seconds, double round_ns, struct bench_cell *cells,
	      const char **error);

/* Why sections that find their thread through the C library's symbols cannot run; NULL if they can. */
const char *bench_skip_raw_rseq(void);
struct percpu__rseq *bench_raw_rseq(void);
const char *bench_skip_sched_getcpu(void);

/* Each writes to an open file, and returns 0 or -errno. */
int bench_write_table(FILE *out, const struct bench_results *results);
int bench_write_json(FILE *out, const struct bench_results *results);

enum bench_picture { BENCH_SVG, BENCH_PNG };
/*
 * Draws with gnuplot into an open file. Returns 0; -1 with *@rc set to -errno of writing, or to 0 when it has said on
 * stderr what gnuplot lacks.
 */
int bench_write_plot(FILE *out, enum bench_picture kind, const struct bench_results *results, int *rc);
/*
 * The geometric means of an allocator's times (ns) and peaks (KiB) over the cells that all allocators have; 0 if there
 * are none, else how many.
 */
size_t bench_malloc_means(const struct bench_results *results, const char *subject, double *ns, double *kib);
/* The geometric mean, over all cells, of ours divided by the best rival's: of times, or of peaks. 0 if there are none. */
double bench_malloc_beside_best(const struct bench_results *results, bool memory);
/* One line about the machine, to be read with the numbers. */
void bench_machine(char *line, size_t size);

int percpu_bench_main(int argc, char **argv);

#endif
