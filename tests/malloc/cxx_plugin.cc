/* SPDX-License-Identifier: MIT */
/*
 * What cxx_host.c loads: C++ in a program that has no C++ library until now, and does not see that of its plugin.
 */
#include <cstddef>
#include <limits>
#include <new>
#include <string>

namespace {

volatile std::size_t too_much = std::numeric_limits<std::ptrdiff_t>::max();
int calls;

void throws()
{
	calls++;
	throw std::bad_alloc();
}

void gives_up()
{
	calls++;
	std::set_new_handler(nullptr);
}

bool throws_bad_alloc()
{
	try {
		operator delete(operator new(too_much));
	} catch (const std::bad_alloc &) {
		return true;
	}
	return false;
}

} // namespace

/* 0, or which expectation was wrong. */
extern "C" int cxx_plugin()
{
	if (std::string(1000, 'x').find('y') != std::string::npos)
		return 1;
	if (!throws_bad_alloc())
		return 2;
	std::set_new_handler(throws);
	if (operator new(too_much, std::nothrow) || calls != 1)
		return 3;
	if (operator new[](too_much, std::align_val_t{ 64 }, std::nothrow) || calls != 2)
		return 4;
	if (!throws_bad_alloc() || calls != 3)
		return 5;
	std::set_new_handler(gives_up);
	if (operator new[](too_much, std::nothrow) || calls != 4 || std::get_new_handler())
		return 6;
	return 0;
}
