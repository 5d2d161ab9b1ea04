/* SPDX-License-Identifier: MIT */
/*
 * Every operation, both kinds of index and both orders, from 1 to 16 threads at once, and sums that must come out exact.
 *
 * Meanwhile other threads send signals (whose handlers use the same objects), move the workers from CPU to CPU, close the
 * gates of random copies and change them with plain stores, flip words under operation vectors and drain counters. Some
 * workers are forced to take the gate for each operation, others to act as if they were not registered. No result
 * depends on how fast any of them is.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <rseq/thread.h>

#include "arch.h"

#define MOST_THREADS 16
#define NODES        8 /* of each worker, in each list */
#define LOG_BYTES    1024
#define BUCKETS      PERCPU_HISTOGRAM_BUCKETS(2)

struct node {
	struct percpu_stack_node link;
	uint32_t owned; /* 1 while it is in nobody's list */
};

struct log {
	uint64_t tail;
	unsigned char bytes[LOG_BYTES];
};

/* Per-CPU pointers, once for each kind of index. */
struct objects {
	uint64_t *sum;
	uint64_t *two;   /* added to through `offset` */
	uint64_t *steps; /* stored by comparison */
	uint64_t *guarded;
	uint64_t *guard; /* `guarded` may change only where this is 0 */
	uint64_t *slot;  /* of tokens */
	struct log *log;
	void **list;      /* ends in NULL */
	uintptr_t *chain; /* ends in &chain_end */
};

/* What a worker (or its signal handler, in a second one) did. */
struct tally {
	uint64_t sum, two, steps, guarded, logged, drained, counted, recorded;
	uint64_t token;
	uint32_t random;
	struct node *mine[2][NODES];
};

struct worker {
	pthread_t thread;
	pid_t tid;
	unsigned number, rounds;
	uint32_t ready, finished;
	struct tally main[2], handler[2]; /* by kind */
	struct node nodes[2][2][NODES];   /* by kind, by list */
	struct percpu_stack_node *stacked;
};

static struct objects objects[2];
static struct worker workers[MOST_THREADS];
static struct percpu_counter counter;
static struct percpu_histogram histogram;
static struct percpu_stack stack;
static struct node chain_end;
static ptrdiff_t offset;
static uint32_t stop;
static unsigned thread_count;
static uint64_t handled;
static __thread struct worker *self;

static unsigned some_index(struct tally *tally)
{
	return random_of(&tally->random) % percpu_copies();
}

/* Where the next operation will probably be; any copy serves, for each operation compares. */
static unsigned likely_index(struct tally *tally, int kind)
{
	if ((random_of(&tally->random) & 7) == 0)
		return some_index(tally);
	if (percpu__self == &percpu__newcomer && (random_of(&tally->random) & 1))
		return percpu_copies() - 1;
	return (unsigned)(kind ? percpu_cpu() : percpu_cid());
}

static uint64_t look(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static void own(struct node *node)
{
	must("a node taken twice", __atomic_exchange_n(&node->owned, 1, __ATOMIC_ACQ_REL) == 0);
}

static void disown(struct node *node)
{
	must("a node put twice", __atomic_exchange_n(&node->owned, 0, __ATOMIC_ACQ_REL) == 1);
}

/* A record is its length and then bytes that repeat it: a torn one shows. */
static size_t make_record(struct tally *tally, unsigned char *record)
{
	size_t length = 1 + random_of(&tally->random) % 77;

	memset(record, (int)length, length);
	return length;
}

static void check_log(const struct log *log)
{
	for (size_t at = 0; at < log->tail; at += log->bytes[at]) {
		must("a record of the log without length", log->bytes[at] > 0 && at + log->bytes[at] <= log->tail);
		for (size_t i = 1; i < log->bytes[at]; i++)
			must("a torn record in the log", log->bytes[at + i] == log->bytes[at]);
	}
}

#define WORK(name, prefix, suffix, kind)                                                                               \
	static void name(struct tally *t, bool in_handler)                                                             \
	{                                                                                                              \
		struct objects *o = &objects[kind];                                                                    \
		uint64_t n = random_of(&t->random) & 15, seen;                                                         \
		unsigned index = likely_index(t, kind), i;                                                             \
		unsigned char record[80];                                                                              \
		struct node *node;                                                                                     \
		uintptr_t word;                                                                                        \
		size_t length;                                                                                         \
                                                                                                                       \
		prefix##_add##suffix(o->sum, n);                                                                       \
		t->sum += n;                                                                                           \
		prefix##_add##suffix(o->sum, 3);                                                                       \
		t->sum += 3;                                                                                           \
		prefix##_add_offset##suffix(o->two, &offset, n);                                                       \
		t->two += n;                                                                                           \
		seen = look(percpu_ptr(o->steps, index));                                                              \
		t->steps += prefix##_store_if_eq##suffix(o->steps, seen, seen + 1);                                    \
		seen = look(percpu_ptr(o->guarded, index));                                                            \
		t->guarded += prefix##_store_if_eq2##suffix(o->guarded, seen, o->guard, 0, seen + 1);                  \
		length = make_record(t, record);                                                                       \
		seen = look(&percpu_ptr(o->log, index)->tail);                                                         \
		if (seen + length > LOG_BYTES) {                                                                       \
			if (prefix##_store_if_eq##suffix(&o->log->tail, seen, 0))                                      \
				t->drained += seen;                                                                    \
		} else if (prefix##_copy_store##suffix(&o->log->tail, seen, o->log->bytes + seen, record, length,      \
						       seen + length)) {                                               \
			t->logged += length;                                                                           \
		}                                                                                                      \
		t->token = prefix##_xchg##suffix(o->slot, t->token);                                                   \
		if (in_handler)                                                                                        \
			return;                                                                                        \
		i = random_of(&t->random) % NODES;                                                                     \
		if (t->mine[0][i]) {                                                                                   \
			disown(t->mine[0][i]);                                                                         \
			prefix##_push##suffix(o->list, t->mine[0][i], offsetof(struct node, link));                    \
			t->mine[0][i] = NULL;                                                                          \
		} else if ((node = prefix##_pop##suffix(o->list, offsetof(struct node, link)))) {                      \
			own(node);                                                                                     \
			t->mine[0][i] = node;                                                                          \
		}                                                                                                      \
		if (t->mine[1][i] && t->mine[1][(i + 1) % NODES]) {                                                    \
			struct node *first = t->mine[1][i], *last = t->mine[1][(i + 1) % NODES];                       \
                                                                                                                       \
			disown(first);                                                                                 \
			disown(last);                                                                                  \
			first->link.next = &last->link;                                                                \
			prefix##_push_chain##suffix((void **)(void *)o->chain, first, last,                            \
						    offsetof(struct node, link));                                      \
			t->mine[1][i] = t->mine[1][(i + 1) % NODES] = NULL;                                            \
		} else if (!t->mine[1][i] && prefix##_follow##suffix(o->chain, (uintptr_t)&chain_end,                  \
								     offsetof(struct node, link), &word)) {            \
			own((struct node *)word);                                                                      \
			t->mine[1][i] = (struct node *)word;                                                           \
		}                                                                                                      \
	}

WORK(by_id, percpu_this, , 0)
WORK(by_id_release, percpu_this, _release, 0)
WORK(by_cpu, percpu_this_cpu, , 1)
WORK(by_cpu_release, percpu_this_cpu, _release, 1)

static void work(struct tally tally[2], bool in_handler)
{
	by_id(&tally[0], in_handler);
	by_id_release(&tally[0], in_handler);
	by_cpu(&tally[1], in_handler);
	by_cpu_release(&tally[1], in_handler);
	percpu_counter_inc(&counter);
	percpu_counter_add(&counter, tally->random & 3);
	tally->counted += 1 + (tally->random & 3);
	percpu_histogram_record(&histogram, tally->random >> (tally->random & 31));
	tally->recorded++;
}

static void handle(int number)
{
	(void)number;
	work(self->handler, true);
	__atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
}

static void use_stack(struct worker *me)
{
	struct percpu_stack_node *node = me->stacked;

	if (!node) {
		me->stacked = percpu_stack_pop(&stack);
	} else if (node->next) {
		struct percpu_stack_node *last = node;

		while (last->next)
			last = last->next;
		percpu_stack_push_chain(&stack, node, last);
		me->stacked = NULL;
	} else {
		percpu_stack_push(&stack, node);
		me->stacked = NULL;
		if ((me->main->random & 7) == 0)
			me->stacked = percpu_stack_pop_all(&stack);
		return;
	}
	if (me->stacked)
		me->stacked->next = NULL;
}

static void *worker(void *arg)
{
	struct worker *me = arg;
	sigset_t signals;

	self = me;
	me->tid = (pid_t)syscall(SYS_gettid);
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
	__atomic_store_n(&me->ready, 1, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < me->rounds; i++) {
		/* Seldom: a fence takes about a millisecond on an emulated machine. */
		if (me->number % 4 == 1)
			percpu__thread_force((i & 63) == 1 ? PERCPU__FORCE_GATE : PERCPU__FORCE_OFF);
		if (me->number % 4 == 2)
			percpu__thread_force(i & 32 ? PERCPU__FORCE_REMAINDER : PERCPU__FORCE_OFF);
		work(me->main, false);
		use_stack(me);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	__atomic_store_n(&me->finished, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* Signals to random workers, and other CPUs for them. */
static void *annoy(void *arg)
{
	uint32_t random = 77;

	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		struct worker *whom = &workers[random_of(&random) % thread_count];
		cpu_set_t cpus;

		if (!__atomic_load_n(&whom->ready, __ATOMIC_ACQUIRE))
			continue;
		pthread_kill(whom->thread, SIGUSR1);
		if (random & 1)
			continue;
		CPU_ZERO(&cpus);
		CPU_SET(random_of(&random) % percpu_possible_cpus(), &cpus);
		CPU_SET(random_of(&random) % percpu_possible_cpus(), &cpus);
		sched_setaffinity(whom->tid, sizeof cpus, &cpus);
		usleep(300);
	}
	return NULL;
}

/* Plain work on copies whose gate is held; words watched while `guard` says that they must stand still. */
static void *meddle(void *arg)
{
	struct tally *tally = arg;
	struct percpu_gate gate;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		int kind = random_of(&tally->random) & 1;
		struct objects *o = &objects[kind];
		unsigned index = some_index(tally), other = some_index(tally);
		uint64_t before, after = 0;
		struct percpu_op freeze[] = {
			{ PERCPU_OP_MEMCPY, 8, &before, percpu_ptr(o->guarded, index), 0 },
			{ PERCPU_OP_ADD, 8, percpu_ptr(o->guard, index), NULL, 1 },
		};
		struct percpu_op thaw[] = {
			{ PERCPU_OP_ADD, 8, percpu_ptr(o->guard, index), NULL, (uint64_t)-1 },
			{ PERCPU_OP_MEMCPY, 8, &after, percpu_ptr(o->guarded, index), 0 },
		};
		struct percpu_op migrate[] = {
			{ PERCPU_OP_ADD, 8, percpu_ptr(o->sum, index), NULL, (uint64_t)-5 },
			{ PERCPU_OP_ADD, 8, percpu_ptr(o->sum, other), NULL, 6 },
		};
		struct percpu_stack_node *stolen;

		must("gate", percpu_gate_lock(o->sum, index, &gate) == 0);
		*percpu_ptr(o->sum, index) += 11;
		tally[kind].sum += 11;
		check_log(percpu_ptr(o->log, index));
		percpu_gate_unlock(&gate);
		must("vector", percpu_opv(migrate, 2, index) == 0);
		tally[kind].sum++;
		must("vector", percpu_opv(freeze, 2, index) == 0);
		__atomic_store_n(&offset, (ptrdiff_t)(random_of(&tally->random) & 8), __ATOMIC_RELAXED);
		sched_yield();
		must("vector", percpu_opv(thaw, 2, index) == 0);
		must("a word changed although its guard forbade it", before == after);
		must("fence", percpu_fence() == 0 && percpu_fence_cpu(index % percpu_possible_cpus()) == 0);
		must("steal", percpu_stack_steal(&stack, index, &stolen) == 0);
		while (stolen) {
			struct percpu_stack_node *next = stolen->next;

			percpu_stack_push(&stack, stolen);
			stolen = next;
		}
		usleep(5000);
	}
	return NULL;
}

/* Tallies: what drains took. */
static void *drain(void *arg)
{
	struct percpu_snapshot snapshot;
	struct tally *tally = arg;
	uint64_t got;

	must("snapshot", percpu_snapshot_init(&snapshot, 2) == 0);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		must("drain", percpu_counter_drain(&counter, &got) == 0);
		tally->counted += got;
		must("drain", percpu_histogram_drain(&histogram, &snapshot) == 0);
		usleep(700);
	}
	percpu_counter_drain(&counter, &got);
	tally->counted += got;
	percpu_histogram_drain(&histogram, &snapshot);
	tally->recorded = snapshot.total;
	percpu_snapshot_destroy(&snapshot);
	return NULL;
}

static uint64_t sum_of(const uint64_t *object)
{
	uint64_t sum = 0;

	percpu_for_each_index(i)
		sum += look(percpu_ptr(object, i));
	return sum;
}

static void make(struct objects *o)
{
	struct words {
		uint64_t sum, two[2], steps, guarded, guard, slot;
		struct log log;
		void *list;
		uintptr_t chain;
	} *words = percpu_alloc(sizeof *words, 64);

	must("allocate", words != NULL);
	*o = (struct objects){ .sum = &words->sum,
			       .two = words->two,
			       .steps = &words->steps,
			       .guarded = &words->guarded,
			       .guard = &words->guard,
			       .slot = &words->slot,
			       .log = &words->log,
			       .list = &words->list,
			       .chain = &words->chain };
	percpu_for_each_index(i)
		*percpu_ptr(o->chain, i) = (uintptr_t)&chain_end;
}

/* Nodes in every copy of a list, which none but this thread uses any more. */
static uint64_t nodes_in(void *const *list, const void *end)
{
	uint64_t count = 0;

	percpu_for_each_index(i)
		for (const struct node *n = *percpu_ptr(list, i); n != end;
		     n = (const struct node *)(const void *)n->link.next)
			count++;
	return count;
}

static void check(const char *kind, struct objects *o, int k, const struct tally *meddled)
{
	uint64_t sum = meddled[k].sum, two = 0, steps = 0, guarded = 0, logged = 0, drained = 0, in_log = 0;
	uint64_t tokens = 0, seen = 0, lists = 0, chains = 0;
	char what[80];

	for (unsigned i = 0; i < thread_count; i++) {
		struct tally *both[] = { &workers[i].main[k], &workers[i].handler[k] };

		for (int j = 0; j < 2; j++) {
			sum += both[j]->sum;
			two += both[j]->two;
			steps += both[j]->steps;
			guarded += both[j]->guarded;
			logged += both[j]->logged;
			drained += both[j]->drained;
			seen += both[j]->token;
			tokens += 1ULL << (2 * i + (unsigned)j);
		}
		for (int j = 0; j < NODES; j++) {
			lists += both[0]->mine[0][j] != NULL;
			chains += both[0]->mine[1][j] != NULL;
		}
	}
	percpu_for_each_index(i) {
		check_log(percpu_ptr(o->log, i));
		in_log += percpu_ptr(o->log, i)->tail;
	}
#define CHECK(name, got, wanted) (snprintf(what, sizeof what, name ", %s", kind), expect_equal(what, got, wanted))
	CHECK("add", sum_of(o->sum), sum);
	CHECK("add_offset", sum_of(o->two) + sum_of(o->two + 1), two);
	CHECK("store_if_eq", sum_of(o->steps), steps);
	CHECK("store_if_eq2", sum_of(o->guarded), guarded);
	CHECK("copy_store", in_log + drained, logged);
	CHECK("xchg", sum_of(o->slot) + seen, tokens);
	CHECK("push, pop", nodes_in(o->list, NULL) + lists, thread_count * NODES);
	CHECK("push_chain, follow", nodes_in((void *const *)(const void *)o->chain, &chain_end) + chains,
	      thread_count * NODES);
	snprintf(what, sizeof what, "comparisons that held, %s", kind);
	expect(what, steps > 0 && guarded > 0 && logged > 0);
}

static void storm(unsigned threads, unsigned rounds)
{
	struct tally meddled[2] = { { .random = 5 }, { .random = 7 } }, drained = { 0 };
	uint64_t counted = 0, recorded = 0, stacked = 0, got;
	pthread_t annoyer, meddler, drainer;
	struct percpu_stack_node *nodes;

	memset(workers, 0, sizeof workers);
	thread_count = threads;
	stop = 0;
	make(&objects[0]);
	make(&objects[1]);
	must("counter", percpu_counter_init(&counter) == 0);
	must("histogram", percpu_histogram_init(&histogram, 2) == 0);
	must("stack", percpu_stack_init(&stack) == 0);
	nodes = calloc(threads, 2 * sizeof *nodes);
	must("memory", nodes != NULL);
	for (unsigned i = 0; i < 2 * threads; i++)
		percpu_stack_push(&stack, &nodes[i]);
	for (unsigned i = 0; i < threads; i++) {
		struct worker *w = &workers[i];

		w->number = i;
		w->rounds = rounds;
		for (unsigned k = 0; k < 2; k++) {
			/* Tokens: a bit each, so that a sum shows which is missing. */
			w->main[k].token = 1ULL << (2 * i);
			w->handler[k].token = 1ULL << (2 * i + 1);
			w->main[k].random = 2 * i + k + 1;
			w->handler[k].random = 1000 + 2 * i + k;
			for (int n = 0; n < NODES; n++)
				for (int list = 0; list < 2; list++) {
					w->nodes[k][list][n].owned = 1;
					w->main[k].mine[list][n] = &w->nodes[k][list][n];
				}
		}
		must("thread", pthread_create(&w->thread, NULL, worker, w) == 0);
	}
	must("thread", pthread_create(&annoyer, NULL, annoy, NULL) == 0);
	must("thread", pthread_create(&meddler, NULL, meddle, meddled) == 0);
	must("thread", pthread_create(&drainer, NULL, drain, &drained) == 0);
	for (unsigned i = 0; i < threads; i++)
		while (!__atomic_load_n(&workers[i].ready, __ATOMIC_ACQUIRE))
			sched_yield();
	/* A finished thread may still be sent signals, but not once it is joined. */
	for (unsigned done = 0; done < threads;) {
		usleep(1000);
		done = 0;
		for (unsigned i = 0; i < threads; i++)
			done += __atomic_load_n(&workers[i].finished, __ATOMIC_ACQUIRE);
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	pthread_join(annoyer, NULL);
	pthread_join(meddler, NULL);
	for (unsigned i = 0; i < threads; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_join(drainer, NULL);
	printf("%u threads, %llu signals\n", threads, (unsigned long long)handled);
	check("concurrency id", &objects[0], 0, meddled);
	check("CPU number", &objects[1], 1, meddled);
	percpu_counter_drain(&counter, &got);
	for (unsigned i = 0; i < threads; i++) {
		counted += workers[i].main->counted + workers[i].handler->counted;
		recorded += workers[i].main->recorded + workers[i].handler->recorded;
		for (struct percpu_stack_node *n = workers[i].stacked; n; n = n->next)
			stacked++;
	}
	percpu_for_each_index(i) {
		struct percpu_stack_node *stolen = NULL;

		must("steal", percpu_stack_steal(&stack, i, &stolen) == 0);
		for (; stolen; stolen = stolen->next)
			stacked++;
	}
	expect_equal("counter", drained.counted + got, counted);
	expect_equal("histogram", drained.recorded, recorded);
	expect_equal("stack", stacked, 2 * threads);
	free(nodes);
	percpu_counter_destroy(&counter);
	percpu_histogram_destroy(&histogram);
	percpu_stack_destroy(&stack);
	must("free", percpu_free(objects[0].sum) == 0 && percpu_free(objects[1].sum) == 0);
}

int main(int argc, char **argv)
{
	unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 3000; /* of all threads together */
	struct sigaction action = { .sa_handler = handle, .sa_flags = SA_RESTART };
	static const unsigned counts[] = { 1, 2, 4, 16 };
	sigset_t signals;

	arch_mode();
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	sigaction(SIGUSR1, &action, NULL);
	for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++)
		storm(counts[i], rounds / counts[i]);
	expect("signals were handled", handled > 0);
	return arch_failures != 0;
}
