/* SPDX-License-Identifier: MIT */
/*
 * The wait queue (src/sync/waitqueue.c): waiters that need a token each, and may cancel or lose patience once; wakers that
 * bring what is needed, and wake as many.
 *
 * The order of the list is not modelled: any that is in it may be taken. A waiter's place is its own: nobody may touch it
 * between its return and its being added again.
 *
 * Checked: everybody has a token in the end (else spin reports an invalid end state); no place is touched that has returned.
 *
 * Controls, each of which must fail:
 *   LOOK_FIRST   a waker looks for waiters before it has brought its token (no barrier)
 *   COUNT_LATE   a waiter counts itself after its look at the tokens
 *   BLIND        who is at it unlocks without a look at what was left to it
 *   NO_ANSWER    who has lost patience returns without waiting to be let go
 */
#ifndef WAITERS
#define WAITERS 2
#endif
#ifndef WAKERS
#define WAKERS 2
#endif
#ifndef PATIENCE
#define PATIENCE 0 /* waiters that may lose it */
#endif
#define EACH (WAITERS / WAKERS)

#define OUT     0
#define ADDED   1
#define LISTED  2
#define IN_HAND 3 /* + the thread */

#define WAITING           0
#define SLEEPING          1
#define CANCELLING        2
#define CANCELLING_ASLEEP 3
#define WOKEN             4
#define GONE              6

byte tokens, waiting, wakes, done;
bool locked, cancelling;
byte place[WAITERS], state[WAITERS];
bool asleep[WAITERS], returned[WAITERS] = true, patient = PATIENCE;

inline tell(w, s)
{
	atomic { assert(!returned[w]); old = state[w]; state[w] = s };
	if :: old & 1 -> asleep[w] = false :: else fi;
	old = 0
}

/* Sets mine: the caller is at it. */
inline enter(w, c)
{
	atomic { wakes = wakes + w; cancelling = cancelling || c; mine = !locked; locked = true }
}

inline serve(me)
{
	do
	:: atomic { wanted = wakes; wakes = 0; lets = cancelling; cancelling = false };
	   d_step { i = 0; do :: i < WAITERS -> if :: place[i] == ADDED -> place[i] = LISTED :: else fi; i++ :: else -> break od };
	   i = 0;
	   do
	   :: i < WAITERS && lets ->
	      if
	      :: place[i] == LISTED && (state[i] & CANCELLING) -> atomic { place[i] = OUT; waiting-- }; tell(i, GONE)
	      :: else
	      fi;
	      i++
	   :: else -> break
	   od;
	   skip;
	   d_step {
		   i = 0;
		   do
		   :: i < WAITERS ->
		      if :: wanted && place[i] == LISTED -> place[i] = IN_HAND + me; wanted--; waiting-- :: else fi;
		      i++
		   :: else -> break
		   od;
		   i = 0;
		   wanted = 0;
		   lets = false;
		   mine = false
	   };
	   skip;
#ifdef BLIND
	   atomic { locked = false; wakes = 0; cancelling = false };
	   break
#else
	   atomic { if :: wakes == 0 && !cancelling -> locked = false; break :: else fi }
#endif
	od;
	i = 0;
	do
	:: i < WAITERS ->
	   if :: place[i] == IN_HAND + me -> place[i] = OUT; tell(i, WOKEN) :: else fi;
	   i++
	:: else -> break
	od;
	i = 0
}

/* Sets seen: WOKEN or GONE. */
inline come_out(me)
{
	atomic { if :: state[me] != WOKEN -> state[me] = CANCELLING; mine = true :: else -> mine = false fi };
	if
	:: mine -> enter(0, true); if :: mine -> serve(me) :: else fi
	:: else
	fi;
	do
	:: atomic { state[me] & WOKEN -> seen = state[me]; mine = false }; break
	:: atomic { state[me] == CANCELLING -> state[me] = CANCELLING_ASLEEP };
	   atomic { if :: state[me] == CANCELLING_ASLEEP -> asleep[me] = true :: else fi };
	   !asleep[me]
	od
}

proctype waiter(byte me)
{
	byte i, old, wanted, seen;
	bool mine, lets, ok;

	do
	:: atomic { tokens -> tokens--; break }
	:: atomic { tokens == 0 -> state[me] = WAITING; returned[me] = false };
#ifndef COUNT_LATE
	   waiting++;
#endif
	   place[me] = ADDED;
	   ok = tokens > 0;
#ifdef COUNT_LATE
	   waiting++;
#endif
	   if
	   :: ok ->
	      come_out(me);
	      atomic { returned[me] = true; ok = false };
	      if
	      :: seen == WOKEN && waiting -> atomic { seen = 0; enter(1, false) }; if :: mine -> serve(me) :: else fi
	      :: else -> seen = 0
	      fi
	   :: else ->
	      atomic { if :: state[me] == WAITING -> state[me] = SLEEPING :: else fi };
rest:
	      atomic { if :: state[me] == SLEEPING -> asleep[me] = true :: else fi };
	      if
	      :: !asleep[me] ->
		 /* May be another's late wake-up for this place. */
		 if :: state[me] == SLEEPING -> goto rest :: else fi
	      :: atomic { patient && asleep[me] -> patient = false; asleep[me] = false };
#ifndef NO_ANSWER
		 come_out(me)
#endif
	      fi;
	      atomic { returned[me] = true; seen = 0 }
	   fi
	od;
	done++
}

proctype waker(byte me)
{
	byte i, old, wanted, seen;
	bool mine, lets, ok;

#ifdef LOOK_FIRST
	ok = waiting > 0;
	tokens = tokens + EACH;
#else
	tokens = tokens + EACH;
	ok = waiting > 0;
#endif
	if :: ok -> enter(EACH, false); if :: mine -> serve(me) :: else fi :: else fi;
	done++
}

init
{
	atomic {
		run waiter(0);
		run waiter(1);
		run waker(2);
#if WAKERS > 1
		run waker(3);
#endif
	};
	done == WAITERS + WAKERS;
	assert(waiting == 0 && !locked && wakes == 0)
}
