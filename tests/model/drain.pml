/* SPDX-License-Identifier: MIT */
/*
 * The drain of a counter: words only grow; what a drain takes is their sum now less the sum at the last drain.
 *
 * Two adders, each with a word of its own (a section has no other writer; the remainder's atomic additions look the same
 * from here), and two threads that drain and read. A drain reads `drained`, then the words one by one, and replaces
 * `drained` by their sum, if nobody else did meanwhile.
 *
 * Checked: no drain and no read is ever negative (more taken than there was), and at the end what was drained and what is
 * left is all that was added.
 *
 * Controls, each of which must fail:
 *   NO_COMPARE  `drained` is stored without looking whether it changed
 *   READ_LATE   a read looks at `drained` after the words
 *   SUM_FIRST   a drain looks at `drained` after the words
 */
#define WORDS 2
#define ADDS  2
#define DRAINS 2

short word[WORDS], drained, taken;
byte done;

proctype adder(byte me)
{
	byte n;

	do
	:: n < ADDS -> atomic { word[me]++; n++ }
	:: else -> break
	od;
	done++
}

inline sum()
{
	s = word[0];
	s = s + word[1]
}

proctype drainer()
{
	byte n;
	short d, s;
	bool ok;

	do
	:: n < DRAINS ->
#ifdef SUM_FIRST
		sum();
		d = drained;
#else
		d = drained;
		sum();
#endif
		atomic {
#ifdef NO_COMPARE
			ok = true;
#else
			ok = drained == d;
#endif
			if
			:: ok -> drained = s; assert(s - d >= 0); taken = taken + s - d; n++
			:: else
			fi;
			ok = false; s = 0; d = 0
		}
	:: else -> break
	od;
#ifdef READ_LATE
	sum();
	d = drained;
#else
	d = drained;
	sum();
#endif
	assert(s - d >= 0);
	done++
}

init
{
	atomic { run adder(0); run adder(1); run drainer(); run drainer() };
	done == 4;
	assert(taken + word[0] + word[1] - drained == WORDS * ADDS);
	assert(taken == drained)
}
