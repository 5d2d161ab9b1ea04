/* SPDX-License-Identifier: MIT */
/*
 * The same as linked.c for new and delete: they are ours, throw what the program's library throws, and keep its handlers.
 */
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <malloc.h>
#include <map>
#include <new>
#include <string>
#include <thread>
#include <vector>

namespace {

volatile std::size_t too_much = std::numeric_limits<std::ptrdiff_t>::max();
int failures, calls;

#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #condition);                                \
			failures++;                                                                                    \
		}                                                                                                      \
	} while (0)

void throws()
{
	calls++;
	throw std::bad_alloc();
}

/* No other has this size for it. */
bool is_ours(void *p)
{
	return malloc_usable_size(p) == 112;
}

void forms()
{
	std::size_t size = 100;
	std::align_val_t align{ 64 };
	void *p;

	CHECK(is_ours(p = operator new(size)));
	operator delete(p);
	CHECK(is_ours(p = operator new[](size)));
	operator delete[](p, size);
	CHECK(is_ours(p = operator new(size, std::nothrow)));
	operator delete(p, std::nothrow);
	CHECK(is_ours(p = operator new[](size, std::nothrow)));
	operator delete[](p);
	p = operator new(size, align);
	CHECK(reinterpret_cast<uintptr_t>(p) % 64 == 0 && malloc_usable_size(p) == 128);
	operator delete(p, size, align);
}

void too_much_is_refused()
{
	bool thrown = false;

	try {
		operator delete(operator new(too_much));
	} catch (const std::bad_alloc &) {
		thrown = true;
	}
	CHECK(thrown);
	CHECK(!operator new(too_much, std::nothrow));
	std::set_new_handler(throws);
	CHECK(!operator new(too_much, std::nothrow));
	CHECK(!operator new[](too_much, std::align_val_t{ 4096 }, std::nothrow));
	CHECK(calls == 2);
	std::set_new_handler(nullptr);
}

void work(int seed)
{
	std::map<int, std::vector<std::string>> map;

	for (int i = 0; i < 30000; i++) {
		auto &list = map[(i * 7 + seed) % 500];

		list.push_back(std::string(static_cast<std::size_t>(i % 300), 'x') + std::to_string(i));
		if (list.size() > 20)
			list.clear();
	}
}

} // namespace

int main()
{
	forms();
	too_much_is_refused();
	std::vector<std::thread> threads;
	for (int i = 0; i < 4; i++)
		threads.emplace_back(work, i);
	for (auto &thread : threads)
		thread.join();
	return failures != 0;
}
