/* SPDX-License-Identifier: MIT */
/*
 * The mutex (src/sync/mutex.c): its word, spinners that are counted beside it, sleepers.
 *
 * Who waits may spin or not, and give up at any moment; unlocking may wake somebody although there are spinners. Sleeping
 * and comparing the word are one step. One thread may lose patience while it sleeps. WANTED is left out: it only delays.
 *
 * Checked: one holder at a time; nobody sleeps for ever (else spin reports an invalid end state).
 *
 * Controls, each of which must fail:
 *   NO_WAKE       unlocking wakes nobody
 *   FORGETFUL     who was woken does not say that others may sleep
 *   IMPATIENT     who loses patience does not say so either
 *   NO_LEFT       a spinner that gives up does not change the word
 *   COUNTS_ALL    ... has changed it, but who unlocks relies on another that is counted
 *   LEFT_FIRST    ... changes it before it counts itself out
 */
#ifndef THREADS
#define THREADS 3
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif
#define LIMIT 1

#define HELD     1
#define SLEEPERS 2
#define LEFT     4

#ifdef COUNTS_ALL
#define NOT_LEFT
#else
#define NOT_LEFT && !(seen & LEFT)
#endif

byte word, spinners, inside, done;
bool asleep[THREADS], patient = true;

/* Sets ok. */
#define SWAP(to) atomic { if :: word == seen -> word = to; ok = true :: else -> ok = false fi }

inline wake()
{
	atomic {
		if
		:: asleep[0] -> asleep[0] = false
		:: asleep[1] -> asleep[1] = false
#if THREADS > 2
		:: asleep[2] -> asleep[2] = false
#endif
		:: else
		fi
	}
}

proctype thread(byte me)
{
	byte turn, seen, keep, count;
	bool ok, wakes;

	do
	:: turn == ROUNDS -> break
	:: turn < ROUNDS ->
	   turn++;
	   keep = 0;
	   seen = 0;
	   SWAP(HELD);
	   if :: ok -> goto locked :: else fi;
again:
	   seen = word;
	   if
	   :: !(seen & HELD) ->
	      SWAP((seen & SLEEPERS) | keep | HELD);
	      if :: ok -> goto locked :: else -> goto again fi
	   :: else
	   fi;
	   atomic { if :: spinners < LIMIT -> spinners++ :: true -> goto sleep fi };
	   do
	   :: seen = word;
	      if
	      :: !(seen & HELD) ->
		 SWAP((seen & SLEEPERS) | keep | HELD);
		 if :: ok -> spinners--; goto locked :: else fi
	      :: else -> break
	      fi
	   od;
#ifndef LEFT_FIRST
	   spinners--;
#endif
#ifndef NO_LEFT
	   do
	   :: seen = word;
	      if
	      :: !(seen & HELD) ->
		 SWAP((seen & SLEEPERS) | keep | HELD);
		 if
		 :: ok ->
#ifdef LEFT_FIRST
		    spinners--;
#endif
		    goto locked
		 :: else
		 fi
	      :: else ->
		 SWAP(seen | LEFT);
		 if :: ok -> break :: else fi
	      fi
	   od;
#endif
#ifdef LEFT_FIRST
	   spinners--;
#endif
sleep:
	   seen = word;
	   if :: !(seen & HELD) -> goto again :: else fi;
	   if
	   :: !(seen & SLEEPERS) ->
	      SWAP(seen | SLEEPERS);
	      if :: ok -> seen = seen | SLEEPERS :: else -> goto again fi
	   :: else
	   fi;
#ifndef FORGETFUL
	   keep = SLEEPERS;
#endif
	   atomic { if :: word == seen -> asleep[me] = true :: else -> goto again fi };
	   if
	   :: !asleep[me] -> goto again
	   :: atomic { me == 0 && patient -> patient = false; asleep[me] = false }
	   fi;
	   /* Has lost patience; or has been woken and looks at the clock. */
	   do
	   :: seen = word;
	      if
	      :: !(seen & HELD) ->
		 SWAP((seen & SLEEPERS) | keep | HELD);
		 if :: ok -> goto locked :: else fi
	      :: (seen & HELD) && (seen & SLEEPERS) -> break
	      :: else ->
#ifdef IMPATIENT
		 break
#else
		 SWAP(seen | SLEEPERS);
		 if :: ok -> break :: else fi
#endif
	      fi
	   od;
	   goto next;
locked:
	   inside++;
	   assert(inside == 1);
	   inside--;
	   seen = HELD;
	   SWAP(0);
	   if :: ok -> goto next :: else fi;
	   do
	   :: seen = word;
	      count = spinners;
	      if
	      :: seen & SLEEPERS -> wakes = true
	      :: (seen & SLEEPERS) && count NOT_LEFT -> wakes = false
	      :: !(seen & SLEEPERS) -> wakes = false
	      fi;
	      SWAP((wakes -> 0 : seen & SLEEPERS));
	      if :: ok -> break :: else fi
	   od;
#ifndef NO_WAKE
	   if :: wakes -> wake() :: else fi;
#endif
next:
	   skip
	od;
	done++
}

init
{
	atomic {
		run thread(0);
		run thread(1);
#if THREADS > 2
		run thread(2);
#endif
	};
	done == THREADS;
	assert(spinners == 0 && !(word & HELD))
}
