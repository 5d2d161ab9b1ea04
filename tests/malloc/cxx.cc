/* SPDX-License-Identifier: MIT */
/*
 * Every form of operator new and delete, what they do when there is no more, and containers on top of them.
 */
#include <cerrno>
#include <cstdio>
#include <deque>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "subject.h"

namespace {

int failures;
int handler_calls;

#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #condition);                                \
			failures++;                                                                                    \
		}                                                                                                      \
	} while (0)

constexpr std::size_t sizes[] = { 0, 1, 7, 8, 16, 17, 40, 64, 100, 1000, 4096, 5000, 40000, 300000, 3000000 };
const std::size_t too_much = subject_opaque(std::numeric_limits<std::ptrdiff_t>::max());

void check_object(void *object, std::size_t size, std::size_t alignment)
{
	CHECK(object != nullptr);
	CHECK(reinterpret_cast<uintptr_t>(object) % alignment == 0);
	if (!object)
		return;
	subject_fill(object, size, size);
	CHECK(subject_damage(object, size, size, size) == size);
}

/* As mangled by the Itanium ABI where size_t is unsigned long. */
void every_form_is_the_subjects()
{
	static const char *const forms[] = {
		"_Znwm", "_Znam", "_ZnwmRKSt9nothrow_t", "_ZnamRKSt9nothrow_t",
		"_ZnwmSt11align_val_t", "_ZnamSt11align_val_t",
		"_ZnwmSt11align_val_tRKSt9nothrow_t", "_ZnamSt11align_val_tRKSt9nothrow_t",
		"_ZdlPv", "_ZdaPv", "_ZdlPvm", "_ZdaPvm", "_ZdlPvRKSt9nothrow_t", "_ZdaPvRKSt9nothrow_t",
		"_ZdlPvSt11align_val_t", "_ZdaPvSt11align_val_t", "_ZdlPvmSt11align_val_t", "_ZdaPvmSt11align_val_t",
		"_ZdlPvSt11align_val_tRKSt9nothrow_t", "_ZdaPvSt11align_val_tRKSt9nothrow_t",
	};

	for (const char *form : forms) {
		if (subject_has(form) || !subject_is_ours())
			continue;
		fprintf(stderr, "%s is not the subject's\n", form);
		failures++;
	}
}

void plain_forms()
{
	for (std::size_t size : sizes) {
		void *objects[6] = { operator new(size), operator new(size), operator new(size, std::nothrow),
				     operator new[](size), operator new[](size), operator new[](size, std::nothrow) };

		for (void *object : objects)
			check_object(object, size, subject_alignment(size));
		for (int i = 0; i < 6; i++)
			for (int j = 0; j < i; j++)
				CHECK(objects[i] != objects[j]);
		operator delete(objects[0]);
		operator delete(objects[1], size);
		operator delete(objects[2], std::nothrow);
		operator delete[](objects[3]);
		operator delete[](objects[4], size);
		operator delete[](objects[5], std::nothrow);
	}
	operator delete(nullptr);
	operator delete(nullptr, std::size_t(8));
	operator delete[](nullptr);
	operator delete[](nullptr, std::size_t(8));
}

void aligned_forms()
{
	for (std::size_t alignment = 1; alignment <= 1 << 20; alignment *= 2) {
		std::align_val_t to{ alignment };

		for (std::size_t size : sizes) {
			void *objects[6] = { operator new(size, to), operator new(size, to),
					     operator new(size, to, std::nothrow), operator new[](size, to),
					     operator new[](size, to), operator new[](size, to, std::nothrow) };

			for (void *object : objects)
				check_object(object, size, alignment);
			operator delete(objects[0], to);
			operator delete(objects[1], size, to);
			operator delete(objects[2], to, std::nothrow);
			operator delete[](objects[3], to);
			operator delete[](objects[4], size, to);
			operator delete[](objects[5], to, std::nothrow);
		}
	}
	operator delete(nullptr, std::align_val_t{ 64 });
	operator delete[](nullptr, std::size_t(64), std::align_val_t{ 64 });
}

/* Memory of one family goes back by the other: libraries do it, and glibc allows it. */
void mixed()
{
	for (std::size_t size : sizes) {
		free(operator new(size));
		operator delete(malloc(size));
		free(operator new(size, std::align_val_t{ 256 }));
	}
}

bool throws_bad_alloc(const std::function<void *()> &allocate)
{
	try {
		allocate();
	} catch (const std::bad_alloc &error) {
		return error.what()[0] != '\0';
	} catch (...) {
		return false;
	}
	return false;
}

const std::function<void *()> throwing[] = {
	[] { return operator new(too_much); },
	[] { return operator new[](too_much); },
	[] { return operator new(too_much, std::align_val_t{ 64 }); },
	[] { return operator new[](too_much, std::align_val_t{ 4096 }); },
};

const std::function<void *()> silent[] = {
	[] { return operator new(too_much, std::nothrow); },
	[] { return operator new[](too_much, std::nothrow); },
	[] { return operator new(too_much, std::align_val_t{ 64 }, std::nothrow); },
	[] { return operator new[](too_much, std::align_val_t{ 4096 }, std::nothrow); },
};

void too_much_throws()
{
	CHECK(std::get_new_handler() == nullptr);
	for (const auto &allocate : throwing)
		CHECK(throws_bad_alloc(allocate));
	for (const auto &allocate : silent)
		CHECK(allocate() == nullptr);
	CHECK(throws_bad_alloc([] { return new char[too_much]; }));
	CHECK(throws_bad_alloc([] {
		std::vector<int> numbers;
		numbers.reserve(numbers.max_size());
		return static_cast<void *>(nullptr);
	}));
}

/* Called again and again until it gives up. */
void third_time_uninstalls()
{
	if (++handler_calls == 3)
		std::set_new_handler(nullptr);
}

void throws_at_once()
{
	handler_calls++;
	throw std::bad_alloc();
}

struct other_error : std::bad_alloc {
	const char *what() const noexcept override
	{
		return "other";
	}
};

void throws_another()
{
	throw other_error();
}

void handlers()
{
	for (const auto &allocate : throwing) {
		handler_calls = 0;
		CHECK(std::set_new_handler(third_time_uninstalls) == nullptr);
		CHECK(std::get_new_handler() == third_time_uninstalls);
		CHECK(throws_bad_alloc(allocate));
		CHECK(handler_calls == 3);
		CHECK(std::get_new_handler() == nullptr);
		handler_calls = 0;
		std::set_new_handler(throws_at_once);
		CHECK(throws_bad_alloc(allocate));
		CHECK(handler_calls == 1);
		std::set_new_handler(throws_another);
		try {
			allocate();
			CHECK(!"thrown");
		} catch (const std::bad_alloc &error) {
			CHECK(std::string(error.what()) == "other");
		}
		std::set_new_handler(nullptr);
	}
	for (const auto &allocate : silent) {
		handler_calls = 0;
		std::set_new_handler(third_time_uninstalls);
		CHECK(allocate() == nullptr);
		CHECK(handler_calls == 3);
		handler_calls = 0;
		std::set_new_handler(throws_at_once);
		CHECK(allocate() == nullptr);
		CHECK(handler_calls == 1);
		std::set_new_handler(nullptr);
	}
	/* What can be had needs no handler, and malloc never calls one. */
	handler_calls = 0;
	std::set_new_handler(throws_at_once);
	operator delete(operator new(1000));
	errno = 0;
	CHECK(malloc(too_much) == nullptr && errno == ENOMEM);
	CHECK(handler_calls == 0);
	std::set_new_handler(nullptr);
}

struct alignas(128) wide {
	char bytes[200];
};

void containers()
{
	std::map<std::string, std::vector<int>> map;
	std::unordered_map<int, std::string> table;
	std::deque<std::unique_ptr<wide>> deque;
	std::list<std::shared_ptr<std::string>> list;
	std::vector<wide> wides;
	std::ostringstream text;
	uint64_t dice = 11;
	long sum = 0, expected = 0;

	for (int i = 0; i < 20000; i++) {
		int number = static_cast<int>(subject_random(&dice) % 1000);

		map["key " + std::to_string(number)].push_back(i);
		table[i] = std::string(static_cast<std::size_t>(number), 'x');
		deque.push_back(std::make_unique<wide>());
		CHECK(reinterpret_cast<uintptr_t>(deque.back().get()) % 128 == 0);
		list.push_back(std::make_shared<std::string>(std::to_string(i)));
		if (i % 3 == 0) {
			table.erase(i / 2);
			deque.pop_front();
			list.pop_front();
		}
		text << i;
		expected += i;
	}
	for (const auto &[key, numbers] : map)
		for (int i : numbers)
			sum += i;
	CHECK(sum == expected);
	for (const auto &[i, string] : table)
		CHECK(string.find_first_not_of('x') == std::string::npos);
	CHECK(list.back()->compare("19999") == 0);
	wides.resize(1000);
	wides.shrink_to_fit();
	CHECK(reinterpret_cast<uintptr_t>(wides.data()) % 128 == 0);
	CHECK(text.str().size() == 10 + 90 * 2 + 900 * 3 + 9000 * 4 + 10000 * 5);
}

void threads()
{
	std::vector<std::thread> some;
	std::vector<std::string> results(8);

	for (std::size_t i = 0; i < results.size(); i++)
		some.emplace_back([i, &results] {
			thread_local std::vector<std::string> mine;

			for (int j = 0; j < 5000; j++)
				mine.emplace_back(static_cast<std::size_t>(j % 500), static_cast<char>('a' + i));
			results[i] = mine.back();
		});
	for (auto &thread : some)
		thread.join();
	for (std::size_t i = 0; i < results.size(); i++)
		CHECK(results[i] == std::string(4999 % 500, static_cast<char>('a' + i)));
	/* An exception is an object too, and one that another thread frees. */
	std::exception_ptr error;
	std::thread([&error] {
		try {
			throw other_error();
		} catch (...) {
			error = std::current_exception();
		}
	}).join();
	try {
		std::rethrow_exception(error);
	} catch (const std::bad_alloc &thrown) {
		CHECK(std::string(thrown.what()) == "other");
	}
}

/* Made before main, and destroyed after it. */
struct early {
	std::string text = std::string(1000, 'e');
	~early()
	{
		if (text != std::string(1000, 'e'))
			_Exit(1);
	}
} before_main;

} // namespace

int main()
{
	subject_begin();
	every_form_is_the_subjects();
	plain_forms();
	aligned_forms();
	mixed();
	too_much_throws();
	handlers();
	containers();
	threads();
	if (failures)
		fprintf(stderr, "%d failures\n", failures);
	return failures != 0;
}
