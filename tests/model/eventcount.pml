/* SPDX-License-Identifier: MIT */
/*
 * The event count (src/sync/eventcount.c): waiters that need a token each, and may cancel; notifiers that bring one each and
 * notify one. A waiter may sleep with an older epoch than another; waking takes any of them. Comparing the epoch and
 * sleeping are one step.
 *
 * Checked: everybody has a token in the end (else spin reports an invalid end state).
 *
 * Controls, each of which must fail:
 *   LOOK_FIRST     a notifier looks for waiters before it has brought its token (no barrier)
 *   KEY_LATE       a waiter takes its key after its look at the tokens
 *   SLEEPERS_FIRST a notifier looks for sleepers before it changes the epoch
 *   SLEEP_FIRST    a waiter counts itself among the sleepers when it sleeps already
 */
#define WAITERS 2
#define TOKENS WAITERS

byte tokens, epoch, waiting, sleepers, done;
bool asleep[WAITERS];

inline wake()
{
	atomic {
		if
		:: asleep[0] -> asleep[0] = false
		:: asleep[1] -> asleep[1] = false
		:: else
		fi
	}
}

proctype waiter(byte me)
{
	byte key;

	do
	:: atomic { tokens -> tokens--; break }
	:: tokens == 0 ->
	   waiting++;
	   key = epoch;
	   if
	   :: tokens > 0
	   :: tokens == 0 ->
#ifdef KEY_LATE
	      key = epoch;
#endif
#ifndef SLEEP_FIRST
	      sleepers++;
#endif
	      atomic { if :: epoch == key -> asleep[me] = true :: else fi };
#ifdef SLEEP_FIRST
	      sleepers++;
#endif
	      !asleep[me];
	      sleepers--
	   fi;
	   waiting--
	od;
	done++
}

proctype notifier()
{
	bool any;

#ifdef LOOK_FIRST
	any = waiting > 0;
	tokens++;
#else
	tokens++;
	any = waiting > 0;
#endif
	if
	:: any ->
#ifdef SLEEPERS_FIRST
	   any = sleepers > 0;
	   epoch++;
#else
	   epoch++;
	   any = sleepers > 0;
#endif
	   if :: any -> wake() :: else fi
	:: else
	fi;
	done++
}

init
{
	atomic {
		run waiter(0);
		run waiter(1);
		run notifier();
		run notifier();
	};
	done == WAITERS + TOKENS;
	assert(waiting == 0 && sleepers == 0)
}
