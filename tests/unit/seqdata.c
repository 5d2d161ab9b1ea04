/* SPDX-License-Identifier: MIT */
/* Values read everywhere: every size, readers that are overtaken, writers that die, forks, and what is made of them. */
#include <sys/mman.h>

#include "unit.h"

#include "gate/gate.h"
#include "rseq/thread.h"

#define PAGE 4096

static struct percpu_seqdata *made(size_t size, const void *value)
{
	struct percpu_seqdata *seqdata = NULL;

	assert_int_equal(percpu_seqdata_create(size, value, &seqdata), 0);
	assert_non_null(seqdata);
	return seqdata;
}

static void every_size(void **state)
{
	static const size_t sizes[] = { 1,
					2,
					3,
					7,
					8,
					9,
					15,
					16,
					24,
					31,
					32,
					40,
					63,
					64,
					65,
					71,
					72,
					127,
					128,
					129,
					255,
					256,
					257,
					511,
					512,
					700,
					999,
					4096,
					5003,
					65535,
					PERCPU_SEQDATA_MAX };
	unsigned char *in = malloc(PERCPU_SEQDATA_MAX), *out = malloc(PERCPU_SEQDATA_MAX + 9);
	uint64_t seed = 5;

	(void)state;
	for (size_t s = 0; s < UNIT_COUNT(sizes); s++) {
		size_t size = sizes[s];
		struct percpu_seqdata *seqdata = made(size, NULL);

		memset(out, 0xee, size + 9);
		assert_int_equal(percpu_seqdata_read(seqdata, out + 1, size), 1);
		for (size_t i = 0; i < size; i++)
			assert_int_equal(out[i + 1], 0);
		for (int64_t version = 2; version < 6; version++) {
			for (size_t i = 0; i < size; i++)
				in[i] = (unsigned char)unit_random(&seed);
			assert_int_equal(percpu_seqdata_write(seqdata, in, size), version);
			assert_int_equal(percpu_seqdata_version(seqdata), version);
			memset(out, 0xee, size + 9);
			assert_int_equal(percpu_seqdata_read(seqdata, out + 1, size), version);
			assert_memory_equal(out + 1, in, size);
			assert_int_equal(out[0], 0xee);
			for (size_t i = size + 1; i < size + 9; i++)
				assert_int_equal(out[i], 0xee);
		}
		percpu_seqdata_free(seqdata);
	}
	free(in);
	free(out);
}

#define CONSTANT_SIZE(n)                                                                                               \
	do {                                                                                                           \
		unsigned char in[n], out[(n) + 2];                                                                     \
		struct percpu_seqdata *seqdata;                                                                        \
                                                                                                                       \
		for (size_t i = 0; i < (n); i++)                                                                       \
			in[i] = (unsigned char)(i * 7 + 1);                                                            \
		memset(out, 0xee, sizeof out);                                                                         \
		seqdata = made(n, in);                                                                                 \
		assert_int_equal(percpu_seqdata_read(seqdata, out + 1, n), 1);                                         \
		assert_memory_equal(out + 1, in, n);                                                                   \
		assert_int_equal(out[0], 0xee);                                                                        \
		assert_int_equal(out[(n) + 1], 0xee);                                                                  \
		in[0] ^= 0xff;                                                                                         \
		assert_int_equal(percpu_seqdata_write(seqdata, in, n), 2);                                             \
		assert_int_equal(percpu_seqdata_read(seqdata, out + 1, n), 2);                                         \
		assert_memory_equal(out + 1, in, n);                                                                   \
		assert_int_equal(percpu_seqdata_read(seqdata, out, (n) + 1), -EINVAL);                                 \
		percpu_seqdata_free(seqdata);                                                                          \
	} while (0)

static void sizes_known_to_the_compiler(void **state)
{
	(void)state;
	CONSTANT_SIZE(1);
	CONSTANT_SIZE(8);
	CONSTANT_SIZE(12);
	CONSTANT_SIZE(64);
	CONSTANT_SIZE(65);
	CONSTANT_SIZE(100);
	CONSTANT_SIZE(192);
	CONSTANT_SIZE(256);
	CONSTANT_SIZE(257);
}

static int64_t never(const struct percpu_seqdata *from, void *out, void *arg)
{
	(void)from, (void)out, (void)arg;
	return -EIO;
}

static void arguments(void **state)
{
	static _Alignas(64) unsigned char room[PERCPU_SEQDATA_BYTES(10)], before[sizeof room];
	struct percpu_seqdata *seqdata, *untouched = (void *)room;
	struct percpu_cached cached, as_it_was;
	unsigned char out[11] = { 7 };
	volatile size_t ten = 10, eleven = 11;

	(void)state;
	assert_null(percpu_seqdata_init(NULL, 10, out));
	assert_null(percpu_seqdata_init(room, 0, out));
	assert_null(percpu_seqdata_init(room, PERCPU_SEQDATA_MAX + 1, out));
	assert_null(percpu_seqdata_init(room + 8, 10, out));
	assert_null(percpu_seqdata_init_shared(NULL, 10, out));
	assert_memory_equal(room, before, sizeof room);
	assert_int_equal(percpu_seqdata_create(0, NULL, &untouched), -EINVAL);
	assert_int_equal(percpu_seqdata_create(PERCPU_SEQDATA_MAX + 1, NULL, &untouched), -EINVAL);
	assert_int_equal(percpu_seqdata_create(SIZE_MAX, NULL, &untouched), -EINVAL);
	assert_int_equal(percpu_seqdata_create(10, NULL, NULL), -EINVAL);
	assert_ptr_equal(untouched, room);
	percpu_seqdata_free(NULL);

	assert_null(percpu_seqdata_attach(room, 10));
	seqdata = percpu_seqdata_init(room, 10, NULL);
	assert_ptr_equal(seqdata, room);
	assert_null(percpu_seqdata_attach(room, 10)); /* not shared */
	assert_int_equal(percpu_seqdata_write(seqdata, out, eleven), -EINVAL);
	assert_int_equal(percpu_seqdata_write(seqdata, NULL, 10), -EINVAL);
	assert_int_equal(percpu_seqdata_write(NULL, out, 10), -EINVAL);
	assert_int_equal(percpu_seqdata_read(seqdata, out, eleven), -EINVAL);
	assert_int_equal(percpu_seqdata_read(NULL, out, ten), -EINVAL);
	assert_int_equal(percpu_seqdata_read(seqdata, NULL, ten), -EINVAL);
	assert_int_equal(out[0], 7);
	assert_int_equal(percpu_seqdata_version(seqdata), 1);
	seqdata = percpu_seqdata_init_shared(room, 10, out);
	assert_ptr_equal(percpu_seqdata_attach(room, 10), seqdata);
	assert_null(percpu_seqdata_attach(room, 11));
	assert_null(percpu_seqdata_attach(room + 1, 10));
	assert_null(percpu_seqdata_attach(NULL, 10));

	memset(&cached, 0x55, sizeof cached);
	as_it_was = cached;
	assert_int_equal(percpu_cached_init(NULL, seqdata, 8, never, NULL), -EINVAL);
	assert_int_equal(percpu_cached_init(&cached, NULL, 8, never, NULL), -EINVAL);
	assert_int_equal(percpu_cached_init(&cached, seqdata, 0, never, NULL), -EINVAL);
	assert_int_equal(percpu_cached_init(&cached, seqdata, PERCPU_SEQDATA_MAX + 1, never, NULL), -EINVAL);
	assert_int_equal(percpu_cached_init(&cached, seqdata, 8, NULL, NULL), -EINVAL);
	assert_memory_equal(&cached, &as_it_was, sizeof cached);
	assert_int_equal(percpu_cached_init(&cached, seqdata, 10, never, NULL), 0);
	assert_int_equal(percpu_cached_read(&cached, out, eleven), -EINVAL);
	assert_int_equal(percpu_cached_read(&cached, NULL, ten), -EINVAL);
	assert_int_equal(percpu_cached_read(NULL, out, ten), -EINVAL);
	assert_int_equal(percpu_cached_read(&cached, out, 10), -EIO);
	percpu_cached_destroy(&cached);
	percpu_cached_destroy(&cached);
	percpu_cached_destroy(NULL);
}

/*
 * A reader that is overtaken, always: each page of its output faults, and the handler writes. The page behind it is taken
 * away again, so that the next try faults too.
 */
static struct {
	struct percpu_seqdata *seqdata;
	unsigned char *out, *in;
	size_t pages;
	unsigned faults, most;
} overtaken;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	size_t page = (size_t)((unsigned char *)info->si_addr - overtaken.out) / PAGE;

	(void)signal, (void)context;
	if (page >= overtaken.pages)
		_exit(50);
	overtaken.faults++;
	memset(overtaken.in, (int)overtaken.faults, overtaken.pages * PAGE);
	if (percpu_seqdata_write(overtaken.seqdata, overtaken.in, overtaken.pages * PAGE) != 1 + overtaken.faults)
		_exit(51);
	if (overtaken.faults >= overtaken.most) {
		mprotect(overtaken.out, overtaken.pages * PAGE, PROT_READ | PROT_WRITE);
		return;
	}
	mprotect(overtaken.out + page * PAGE, PAGE, PROT_READ | PROT_WRITE);
	mprotect(overtaken.out + (page ? page - 1 : overtaken.pages - 1) * PAGE, PAGE, PROT_NONE);
}

/* Reads while every try is spoiled, until so many writes have been. */
static int64_t read_overtaken(bool shared, unsigned most)
{
	struct sigaction act = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO }, old;
	size_t size = 2 * PAGE, room = PERCPU_SEQDATA_BYTES(size);
	void *storage = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int64_t version;

	overtaken.pages = 2;
	overtaken.faults = 0;
	overtaken.most = most;
	overtaken.in = malloc(size);
	overtaken.out = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	overtaken.seqdata = (shared ? percpu_seqdata_init_shared : percpu_seqdata_init)(storage, size, NULL);
	sigaction(SIGSEGV, &act, &old);
	version = percpu_seqdata_read(overtaken.seqdata, overtaken.out, size);
	sigaction(SIGSEGV, &old, NULL);
	if (version > 0)
		for (size_t i = 0; i < size; i++)
			assert_int_equal(overtaken.out[i], (unsigned char)overtaken.faults);
	munmap(overtaken.out, size);
	munmap(storage, room);
	free(overtaken.in);
	return version;
}

static void a_reader_is_overtaken(void **state)
{
	(void)state;
	/* Two faults a try, but for the first byte of the last. */
	for (unsigned most = 1; most <= 2 * PERCPU__SEQDATA_TRIES; most++) {
		assert_int_equal(read_overtaken(false, most), 1 + most);
		assert_int_equal(overtaken.faults, most);
	}
	/* Where no lock may be taken it gives up at last. */
	assert_int_equal(read_overtaken(true, 100), 101);
	assert_int_equal(read_overtaken(true, 1000000), -EAGAIN);
	assert_in_range(overtaken.faults, 1000, 10000);
}

/* ---- threads, signals */

struct value {
	uint64_t words[11];
};
static struct percpu_seqdata *common;
static struct percpu_cached derived;
static uint32_t stop;

static struct value value_of(uint64_t number)
{
	struct value value;

	for (size_t i = 0; i < UNIT_COUNT(value.words); i++)
		value.words[i] = number * (i + 1);
	return value;
}

static bool is_whole(const struct value *value)
{
	struct value right = value_of(value->words[0]);

	return memcmp(value, &right, sizeof right) == 0;
}

/* Twice what the source is, and half as much again. */
struct half {
	uint64_t words[5];
};

static int64_t halve(const struct percpu_seqdata *from, void *out, void *arg)
{
	struct value value;
	struct half *half = out;
	int64_t version = percpu_seqdata_read(from, &value, sizeof value);

	if (arg)
		__atomic_fetch_add((unsigned *)arg, 1, __ATOMIC_RELAXED);
	if (version < 0)
		return version;
	for (size_t i = 0; i < UNIT_COUNT(half->words); i++)
		half->words[i] = value.words[2 * i] + value.words[2 * i + 1];
	return version;
}

static bool half_is_whole(const struct half *half)
{
	uint64_t number = half->words[0] / 3;

	for (size_t i = 0; i < UNIT_COUNT(half->words); i++)
		if (half->words[i] != number * (4 * i + 3))
			return false;
	return true;
}

static unsigned read_once(int64_t *last, uint64_t *number)
{
	struct value value;
	struct half half;
	int64_t floor = percpu_seqdata_version(common), version = percpu_seqdata_read(common, &value, sizeof value);
	unsigned errors = version < floor || version < *last || !is_whole(&value) || value.words[0] < *number;

	*last = version;
	*number = value.words[0];
	version = percpu_cached_read(&derived, &half, sizeof half);
	errors += version < *last || !half_is_whole(&half) || half.words[0] / 3 < *number;
	return errors;
}

static __thread int64_t seen_by_handler;
static __thread uint64_t number_in_handler;
static unsigned handler_errors;

static void on_signal(int signal)
{
	int saved = errno;

	(void)signal;
	__atomic_fetch_add(&handler_errors, read_once(&seen_by_handler, &number_in_handler), __ATOMIC_RELAXED);
	errno = saved;
}

static void *read_all_the_time(void *arg)
{
	unsigned *errors = arg, me = *errors;
	uint64_t number = 0, turns = 0;
	int64_t last = 0;

	*errors = 0;
	percpu__thread_force((enum percpu__force)(me % 3));
	do {
		*errors += read_once(&last, &number);
		if (++turns % 256 == 0)
			raise(SIGUSR1);
	} while (!__atomic_load_n(&stop, __ATOMIC_RELAXED));
	percpu__thread_force(PERCPU__FORCE_OFF);
	return NULL;
}

static void readers_see_whole_values(void **state)
{
	struct sigaction act = { .sa_handler = on_signal, .sa_flags = SA_RESTART }, old;
	unsigned errors[4] = { 0, 1, 2, 3 }, wrong = 0, derivations = 0;
	struct value value = value_of(1);
	pthread_t threads[4];

	(void)state;
	common = made(sizeof value, &value);
	assert_int_equal(percpu_cached_init(&derived, common, sizeof(struct half), halve, &derivations), 0);
	sigaction(SIGUSR1, &act, &old);
	__atomic_store_n(&stop, 0, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_all_the_time, &errors[i]), 0);
	for (uint64_t i = 2; i < 30000; i++) {
		value = value_of(i);
		wrong += percpu_seqdata_write(common, &value, sizeof value) != (int64_t)i;
		if (i % 64 == 0)
			sched_yield();
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_int_equal(errors[i], 0);
	}
	sigaction(SIGUSR1, &old, NULL);
	assert_int_equal(wrong, 0);
	assert_int_equal(handler_errors, 0);
	assert_int_not_equal(derivations, 0);
	percpu_cached_destroy(&derived);
	percpu_seqdata_free(common);
}

/* Each writes what it read and one more: a sum would be lost if two wrote at once, but versions are not. */
static void *write_some(void *arg)
{
	unsigned *errors = arg;
	uint64_t seed = *errors + 77;
	int64_t last = 0;

	*errors = 0;
	for (int i = 0; i < 5000; i++) {
		struct value value = value_of(unit_random(&seed) >> 8);
		int64_t version = percpu_seqdata_write(common, &value, sizeof value);

		*errors += version <= last;
		last = version;
		*errors += percpu_seqdata_read(common, &value, sizeof value) < version || !is_whole(&value);
	}
	return NULL;
}

static void writers_take_turns(void **state)
{
	unsigned errors[6] = { 0, 1, 2, 3, 4, 5 };

	(void)state;
	common = made(sizeof(struct value), NULL);
	unit_threads(6, write_some, errors, sizeof *errors);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(errors[i], 0);
	assert_int_equal(percpu_seqdata_version(common), 1 + 6 * 5000);
	assert_int_equal(common->lock, 0);
	percpu_seqdata_free(common);
}

/* ---- forks, dead writers, other processes */

static int write_in_child(void)
{
	struct value value = value_of(99);
	int64_t version = percpu_seqdata_version(common), now = percpu_seqdata_write(common, &value, sizeof value);

	memset(&value, 0, sizeof value);
	if (now != version + 1 || percpu_seqdata_read(common, &value, sizeof value) != now || value.words[0] != 99)
		return 1;
	return is_whole(&value) ? 0 : 2;
}

static void *write_until_stopped(void *arg)
{
	for (uint64_t i = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++) {
		struct value value = value_of(i);

		percpu_seqdata_write(common, &value, sizeof value);
	}
	return arg;
}

static void forks_between_writes(void **state)
{
	pthread_t writer;
	uint32_t held;

	(void)state;
	common = made(sizeof(struct value), NULL);
	/* Held by another thread at the moment of the fork. */
	held = common->lock = percpu__fork_count << 2 | 3;
	assert_int_equal(unit_in_child(write_in_child), 0);
	assert_int_equal(common->lock, held);
	common->lock = 0;
	__atomic_store_n(&stop, 0, __ATOMIC_RELAXED);
	assert_int_equal(pthread_create(&writer, NULL, write_until_stopped, NULL), 0);
	for (int i = 0; i < 50; i++)
		assert_int_equal(unit_in_child(write_in_child), 0);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	assert_int_equal(pthread_join(writer, NULL), 0);
	percpu_seqdata_free(common);
}

static int read_and_write_elsewhere(void)
{
	struct value value;
	struct percpu_seqdata *found = percpu_seqdata_attach(common, sizeof value);

	if (!found || percpu_seqdata_read(found, &value, sizeof value) < 1 || !is_whole(&value))
		return 1;
	value = value_of(5);
	if (percpu_seqdata_write(found, &value, sizeof value) < 2)
		return 2;
	if (mprotect(found, PERCPU_SEQDATA_BYTES(sizeof value), PROT_READ))
		return 3;
	return percpu_seqdata_read(found, &value, sizeof value) == 2 && value.words[0] == 5 ? 0 : 4;
}

static int go_away(void)
{
	return 0;
}

static void *end_the_child(void *arg)
{
	pid_t child = *(pid_t *)arg;

	usleep(30000);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return NULL;
}

static void between_processes(void **state)
{
	size_t room = PERCPU_SEQDATA_BYTES(sizeof(struct value));
	struct value value = value_of(3);
	pthread_t killer;
	pid_t child;

	(void)state;
	common = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(common, MAP_FAILED);
	assert_null(percpu_seqdata_attach(common, sizeof value));
	assert_ptr_equal(percpu_seqdata_init_shared(common, sizeof value, &value), common);
	assert_int_equal(unit_in_child(read_and_write_elsewhere), 0);
	assert_int_equal(percpu_seqdata_read(common, &value, sizeof value), 2);
	assert_int_equal(value.words[0], 5);

	/* A writer that died in the middle, and one that dies while we wait. */
	child = fork();
	if (child == 0)
		_exit(go_away());
	assert_int_equal(waitpid(child, NULL, 0), child);
	common->lock = (uint32_t)child << 2 | 1;
	assert_int_equal(percpu_seqdata_read(common, &value, sizeof value), 2);
	assert_int_equal(percpu_seqdata_write(common, &value, sizeof value), 3);
	assert_int_equal(common->lock, 0);
	child = fork();
	if (child == 0) {
		pause();
		_exit(0);
	}
	common->lock = (uint32_t)child << 2 | 1;
	assert_int_equal(pthread_create(&killer, NULL, end_the_child, &child), 0);
	assert_int_equal(percpu_seqdata_write(common, &value, sizeof value), 4);
	assert_int_equal(pthread_join(killer, NULL), 0);
	assert_int_equal(common->lock & 1, 0);
	munmap(common, room);
}

/* ---- what is made of a value */

static void derived_once_for_each_index(void **state)
{
	unsigned count = 0;
	cpu_set_t everywhere;
	struct value value = value_of(10);
	struct half half;
	volatile size_t size = sizeof half;

	(void)state;
	sched_getaffinity(0, sizeof everywhere, &everywhere);
	unit_pin(sched_getcpu());
	common = made(sizeof value, &value);
	assert_int_equal(percpu_cached_init(&derived, common, sizeof half, halve, &count), 0);
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		unsigned before = count;

		percpu__thread_force(force);
		for (int i = 0; i < 1000; i++) {
			assert_int_equal(percpu_cached_read(&derived, &half, sizeof half),
					 percpu_seqdata_version(common));
			assert_int_equal(half.words[0], value.words[0] * 3);
			assert_true(half_is_whole(&half));
		}
		/* One index, or (none of them forced) the remainder after the first. */
		assert_in_range(count - before, force == PERCPU__FORCE_REMAINDER ? 0 : 1, 2);
		before = count;
		value = value_of(20 + force);
		percpu_seqdata_write(common, &value, sizeof value);
		for (int i = 0; i < 1000; i++) {
			memset(&half, 0, sizeof half);
			assert_int_equal(percpu_cached_read(&derived, &half, size), percpu_seqdata_version(common));
			assert_int_equal(half.words[0], value.words[0] * 3);
		}
		assert_int_equal(count - before, 1);
		value = value_of(30 + force);
		percpu_seqdata_write(common, &value, sizeof value);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	percpu_cached_destroy(&derived);
	percpu_seqdata_free(common);
	sched_setaffinity(0, sizeof everywhere, &everywhere);
}

/* Is overtaken while it derives: by a newer value, which is derived and published meanwhile. */
static int64_t overtaken_while_deriving(const struct percpu_seqdata *from, void *out, void *arg)
{
	unsigned *count = arg;
	int64_t version = percpu_seqdata_read(from, out, sizeof(uint64_t));

	if (++*count == 1) {
		uint64_t newer = 2000, found = 0;

		percpu_seqdata_write(common, &newer, sizeof newer);
		if (percpu_cached_read(&derived, &found, sizeof found) != 2 || found != newer)
			return -EIO;
	}
	return version;
}

static void what_is_older_does_not_replace_what_is_newer(void **state)
{
	cpu_set_t everywhere;

	(void)state;
	sched_getaffinity(0, sizeof everywhere, &everywhere);
	unit_pin(sched_getcpu());
	for (enum percpu__force force = PERCPU__FORCE_OFF; force <= PERCPU__FORCE_REMAINDER; force++) {
		uint64_t first = 1000, found = 0;
		unsigned count = 0;

		percpu__thread_force(force);
		common = made(sizeof first, &first);
		assert_int_equal(percpu_cached_init(&derived, common, sizeof found, overtaken_while_deriving, &count),
				 0);
		/* What it has made is right, but old. */
		assert_int_equal(percpu_cached_read(&derived, &found, sizeof found), 1);
		assert_int_equal(found, first);
		assert_int_equal(count, 2);
		assert_int_equal(percpu_cached_read(&derived, &found, sizeof found), 2);
		assert_int_equal(found, 2000);
		assert_int_equal(count, 2);
		percpu_cached_destroy(&derived);
		percpu_seqdata_free(common);
	}
	percpu__thread_force(PERCPU__FORCE_OFF);
	sched_setaffinity(0, sizeof everywhere, &everywhere);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_size),
		cmocka_unit_test(sizes_known_to_the_compiler),
		cmocka_unit_test(arguments),
		cmocka_unit_test(a_reader_is_overtaken),
		cmocka_unit_test(readers_see_whole_values),
		cmocka_unit_test(writers_take_turns),
		cmocka_unit_test(forks_between_writes),
		cmocka_unit_test(between_processes),
		cmocka_unit_test(derived_once_for_each_index),
		cmocka_unit_test(what_is_older_does_not_replace_what_is_newer),
	};

	return unit_main(tests);
}
