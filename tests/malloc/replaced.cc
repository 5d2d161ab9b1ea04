/* SPDX-License-Identifier: MIT */
/*
 * A program that replaces the plain forms of new and delete, and no other, with a store of its own: all others must lead
 * there, whoever brings them. Aligned forms are not replaced, and must not lead there.
 */
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <new>

namespace {

alignas(16) char store[1 << 20];
std::size_t used;
long live;
bool full;

bool in_store(const void *p)
{
	return p >= store && p < store + sizeof store;
}

int failures;

#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: %s\n", __func__, __LINE__, #condition);                                \
			failures++;                                                                                    \
		}                                                                                                      \
	} while (0)

} // namespace

void *operator new(std::size_t size)
{
	void *p = store + used;

	if (full || size > sizeof store - used)
		throw std::bad_alloc();
	used += (size + 15) / 16 * 16;
	live++;
	return p;
}

void operator delete(void *p) noexcept
{
	if (!p)
		return;
	CHECK(in_store(p));
	live--;
}

#define CHECK_FORM(make, destroy)                                                                                      \
	do {                                                                                                           \
		void *p = make;                                                                                        \
		CHECK(in_store(p));                                                                                    \
		CHECK(live == 1);                                                                                      \
		destroy;                                                                                               \
		CHECK(live == 0);                                                                                      \
	} while (0)

int main()
{
	std::size_t size = 100;
	std::align_val_t align{ 64 };

	CHECK_FORM(operator new(size), operator delete(p));
	CHECK_FORM(operator new(size), operator delete(p, size));
	CHECK_FORM(operator new(size, std::nothrow), operator delete(p, std::nothrow));
	CHECK_FORM(operator new[](size), operator delete[](p));
	CHECK_FORM(operator new[](size), operator delete[](p, size));
	CHECK_FORM(operator new[](size, std::nothrow), operator delete[](p, std::nothrow));
	for (int array = 0; array < 2; array++) {
		void *p = array ? operator new[](size, align) : operator new(size, align);
		void *q = array ? operator new[](size, align, std::nothrow) : operator new(size, align, std::nothrow);

		CHECK(p && q && !in_store(p) && !in_store(q) && live == 0);
		array ? operator delete[](p, align) : operator delete(p, size, align);
		array ? operator delete[](q, align, std::nothrow) : operator delete(q, align, std::nothrow);
		CHECK(live == 0);
	}
	/* What the program's own throws stays in the forms that may not. */
	full = true;
	CHECK(operator new(size, std::nothrow) == nullptr);
	CHECK(operator new[](size, std::nothrow) == nullptr);
	return failures != 0;
}
