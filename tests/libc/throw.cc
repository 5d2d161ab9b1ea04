/* SPDX-License-Identifier: MIT */
/*
 * Exceptions from many threads while plugins come and go: throw [--threads N] [--throws N] [PLUGIN...]. Prints the time of a
 * throw. Each is caught where it should be, through frames that have something to destroy.
 */
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <dlfcn.h>

static thread_local long destroyed;
static bool stop;

struct guard {
	~guard()
	{
		destroyed++;
	}
};

static __attribute__((noinline)) void descend(int depth, long number)
{
	guard here;

	if (!depth)
		throw std::runtime_error(std::to_string(number));
	descend(depth - 1, number);
	__asm__ __volatile__("");
}

static void throw_all(long throws, bool *ok)
{
	long caught = 0;

	for (long i = 0; i < throws; i++) {
		try {
			descend(4, i);
		} catch (const std::exception &e) {
			caught += std::stol(e.what()) == i;
		}
	}
	*ok = caught == throws && destroyed == 5 * throws;
}

static void load_and_unload(const char *path)
{
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		void *handle = dlopen(path, RTLD_NOW);

		if (!handle)
			abort();
		dlclose(handle);
	}
}

int main(int argc, char **argv)
{
	int threads = 8, at = 1;
	long throws = 5000;
	std::vector<std::thread> working, loading;

	for (; at + 1 < argc && argv[at][0] == '-'; at += 2)
		(!std::strcmp(argv[at], "--threads") ? (void)(threads = std::atoi(argv[at + 1])) :
						       (void)(throws = std::atol(argv[at + 1])));
	std::vector<char> ok(threads);
	for (; at < argc; at++)
		loading.emplace_back(load_and_unload, argv[at]);
	auto start = std::chrono::steady_clock::now();
	for (int i = 0; i < threads; i++)
		working.emplace_back(throw_all, throws, reinterpret_cast<bool *>(&ok[i]));
	for (auto &thread : working)
		thread.join();
	std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (auto &thread : loading)
		thread.join();
	for (char one : ok)
		if (!one)
			return 1;
	std::printf("%.2f us for each throw, in %d threads\n", took.count() / double(throws), threads);
}
