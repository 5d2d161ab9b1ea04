/* SPDX-License-Identifier: MIT */
/*
 * Operations before main and after it: in the program's preinit array, in its first constructor, in exit handlers and in
 * its last destructor. Also linked statically. Ends with status 1 if one of them was not reached or does not add up.
 */
#include "everything.h"

PERCPU_DEFINE(uint64_t, defined);

static unsigned places;

static void here(unsigned place)
{
	EXPECT(places == place);
	everything(0);
	places++;
}

#ifdef PREINIT
static void before_all(void)
{
	here(0);
}
__attribute__((section(".preinit_array"), used)) static void (*const preinit)(void) = before_all;
#define FIRST 1
#else
#define FIRST 0
#endif

__attribute__((constructor(101))) static void early(void)
{
	here(FIRST);
}

static void at_exit(void)
{
	here(FIRST + 2);
	EXPECT(sum_of_copies(defined) == 1);
}

__attribute__((destructor(101))) static void late(void)
{
	here(FIRST + 3);
	if (write(STDOUT_FILENO, "all places\n", 11) != 11)
		_exit(1);
}

int main(void)
{
	EXPECT(defined);
	percpu_this_add(defined, 1);
	here(FIRST + 1);
	EXPECT(atexit(at_exit) == 0);
	return 0;
}
