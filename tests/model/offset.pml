/* SPDX-License-Identifier: MIT */
/*
 * Turning an offset over: additions go where an offset says that is read inside the section, somebody turns it over,
 * fences, and takes what is in the old place.
 *
 * Two threads add by sections on two copies, each copy with two words (sets A and B); one thread that cannot run sections
 * adds to the remainder, one word, with an atomic instruction. A drain takes the old set with plain loads and stores and
 * the remainder with an exchange. Two threads drain, one after the other (a lock).
 *
 * Checked at the end: what was drained and what a read shows (the set in use and the remainder) is all that was added.
 *
 * Controls, each of which must fail:
 *   NO_FENCE         an addition that read the old offset may still be running
 *   OFFSET_OUTSIDE   the offset is loaded before the section begins
 *   PLAIN_REMAINDER  the remainder is read and then cleared
 *   LATE_REMAINDER   the remainder has two sets as well, chosen by the offset: no fence waits for a thread without sections
 *   TWO_DRAINS       drains do not exclude each other
 */
#define COPIES 2
#ifndef ADDS
#define ADDS   2
#endif
#define DRAINS 2

byte word[4]; /* copy 0 set A, copy 1 set A, copy 0 set B, copy 1 set B */
byte rest[2]; /* the remainder; [1] only with LATE_REMAINDER */
byte offset;
bool armed[COPIES], aborted[COPIES];
byte drained, done;
bool draining;

#define STEP(action) \
	atomic { \
		if \
		:: aborted[me] -> aborted[me] = false; goto again \
		:: !aborted[me] -> armed[me] = false; goto again \
		:: !aborted[me] -> action \
		fi \
	}

proctype adder(byte me)
{
	byte n, o, v;

again:
#ifdef OFFSET_OUTSIDE
	o = offset;
#endif
	atomic { armed[me] = true; aborted[me] = false; v = 0 };
#ifndef OFFSET_OUTSIDE
	STEP(o = offset);
#endif
	STEP(v = word[o * 2 + me]);
	STEP(word[o * 2 + me] = v + 1; armed[me] = false; n++);
	o = 0;
	if :: n < ADDS -> goto again :: else fi;
	done++
}

proctype slow_adder()
{
	byte n, o;

	do
	:: n < ADDS ->
#ifdef LATE_REMAINDER
		o = offset;
#endif
		rest[o]++;
		n++
	:: else -> break
	od;
	done++
}

proctype drainer()
{
	byte n, o, v, k;

	do
	:: n < DRAINS / 2 ->
#ifndef TWO_DRAINS
		atomic { !draining -> draining = true };
#endif
		o = offset;
		offset = 1 - o;
#ifndef NO_FENCE
		d_step {
			if :: armed[0] -> armed[0] = false; aborted[0] = true :: else fi;
			if :: armed[1] -> armed[1] = false; aborted[1] = true :: else fi
		};
#endif
		k = 0;
		do
		:: k < COPIES ->
			v = word[o * 2 + k];
			word[o * 2 + k] = 0;
			atomic { drained = drained + v; v = 0; k++ }
		:: else -> break
		od;
#ifdef PLAIN_REMAINDER
		v = rest[0];
		rest[0] = 0;
#else
#ifdef LATE_REMAINDER
		atomic { v = rest[o]; rest[o] = 0 };
#else
		atomic { v = rest[0]; rest[0] = 0 };
#endif
#endif
		atomic { drained = drained + v; v = 0; k = 0; n++ };
		draining = false
	:: else -> break
	od;
	done++
}

init
{
	atomic { run adder(0); run adder(1); run slow_adder(); run drainer(); run drainer() };
	done == 5;
#ifdef LATE_REMAINDER
	assert(drained + word[offset * 2] + word[offset * 2 + 1] + rest[offset] == 3 * ADDS)
#else
	assert(drained + word[offset * 2] + word[offset * 2 + 1] + rest[0] == 3 * ADDS)
#endif
}
