/* SPDX-License-Identifier: MIT */
/*
 * A domain of RCU: readers that count themselves in and out by sections on any copy, one that does so by atomic instructions
 * on the remainder, and an updater that changes the side and waits until as many have left by the old one as entered
 * (src/sync/rcu_domain.c).
 *
 * A section reads the side and commits, in two steps; a fence between them aborts it. What it commits waits in a buffer of one
 * place before others see it; the fence empties all of them. Copy 2 is the remainder.
 *
 * Must hold: what a reader found through the pointer is not freed while it is inside.
 *
 * Controls, each of which must fail:
 *   NO_FENCE      nothing aborts sections or empties buffers
 *   NO_ABORT      the fence empties the buffers, but sections go on
 *   SIDE_OUTSIDE  the side is read before the section begins
 *   ENTERED_FIRST those who entered are summed before those who left
 *   NO_RECHECK    who counts by atomic instructions does not look at the side again
 */
#ifndef SECTIONS
#define SECTIONS 1
#endif
#ifndef ATOMICS
#define ATOMICS 1
#endif
#ifndef TURNS
#define TURNS 2
#endif
#define UPDATES 2
#define EMPTY    100

byte pointer, side;
bool freed[UPDATES + 1];
/* By copy and side. */
byte entered[6], left[6];
bool armed[SECTIONS], aborted[SECTIONS];
/* A count that is not visible yet: its place, and 6 more if it is one of those who leave. */
byte buffer[SECTIONS];

inline reveal(who)
{
	if
	:: buffer[who] == EMPTY
	:: buffer[who] != EMPTY && buffer[who] < 6 -> entered[buffer[who]]++; buffer[who] = EMPTY
	:: buffer[who] != EMPTY && buffer[who] >= 6 -> left[buffer[who] - 6]++; buffer[who] = EMPTY
	fi
}

proctype drain(byte me)
{
end:	do
	:: d_step { buffer[me] != EMPTY -> reveal(me) }
	od
}

inline use()
{
	found = pointer;
	assert(!freed[found]);
	assert(!freed[found]);
	found = 0
}

proctype by_section(byte me)
{
	byte turn, found, seen, copy;

	for (turn : 1 .. TURNS) {
again:
#ifdef SIDE_OUTSIDE
		seen = side;
#endif
		atomic { armed[me] = true; aborted[me] = false };
#ifndef SIDE_OUTSIDE
		seen = side;
#endif
		atomic {
			buffer[me] == EMPTY;
			armed[me] = false;
			if
			:: aborted[me] -> goto again
			:: else -> buffer[me] = 2 * me + seen
			fi
		};
		use();
		/* On any copy that sections run on. */
		if :: copy = 0 :: copy = 1 fi;
		atomic { buffer[me] == EMPTY; buffer[me] = 6 + 2 * copy + seen };
		seen = 0;
		copy = 0
	}
}

#if ATOMICS
active proctype by_atomic()
{
	byte found, seen;

	do
	:: seen = side;
	   entered[4 + seen]++;
#ifdef NO_RECHECK
	   break
#else
	   if
	   :: side == seen -> break
	   :: else -> left[4 + seen]++
	   fi
#endif
	od;
	use();
	left[4 + seen]++
}
#endif

/* In steps: counts come in between. */
inline sum_entered()
{
	come = entered[old];
	come = come + entered[2 + old];
	come = come + entered[4 + old]
}

inline sum_left()
{
	gone = left[old];
	gone = gone + left[2 + old];
	gone = gone + left[4 + old]
}

active proctype updater()
{
	byte update, i, old, gone, come;

	for (i : 0 .. SECTIONS - 1) {
		buffer[i] = EMPTY
	}
	atomic {
		i = 0;
		do
		:: i < SECTIONS -> run by_section(i); run drain(i); i++
		:: else -> break
		od
	}
	for (update : 1 .. UPDATES) {
		pointer = update;
		old = side;
		side = 1 - side;
#ifndef NO_FENCE
		d_step {
			i = 0;
			do
			:: i < SECTIONS ->
				reveal(i);
#ifndef NO_ABORT
				if :: armed[i] -> aborted[i] = true :: else fi;
#endif
				i++
			:: else -> break
			od
		}
#endif
		do
		::
#ifdef ENTERED_FIRST
		   sum_entered();
		   sum_left();
#else
		   sum_left();
		   sum_entered();
#endif
		   if
		   :: come == gone -> break
		   :: else
		   fi
		od;
		freed[update - 1] = true;
		gone = 0;
		come = 0
	}
}
