/* SPDX-License-Identifier: MIT */
/*
 * One copy of a spinlock: sections that may be aborted at every step, parties that lock by compare-and-swap, and somebody
 * who locks all copies.
 *
 * The kernel is modelled as in gate.pml. The plain store that unlocks may stay in its processor's buffer until that makes
 * an atomic step, another thread gets its CPU, or somebody fences; its own loads see it before. Sleeping and comparing are
 * one step; waiting for who has all is no more than that.
 *
 * Checked: one holder at a time; nobody sleeps for ever (else spin reports an invalid end state); no party is forgotten.
 *
 * Controls, each of which must fail:
 *   NO_FENCE     a party ends the bias but does not wait for the sections that saw it, nor for buffered stores
 *   NO_ABORT     ... but for the latter
 *   NOT_COUNTED  a party is none any more before it has the lock
 *   NO_WAKE      the unlock wakes nobody
 *   NO_PASS      who waits to have all keeps a wake-up that it has no use for
 *   LOOK_FIRST   who wants all looks whether the copy is held before it says so
 *   NO_LOOK      who has locked the copy does not look whether somebody has all
 *   TRUST_HELD   who wants all does not look for a bias that was given back meanwhile
 *   LOOK_ONCE    ... nor whether a section locked the copy before that bias was ended
 *   NO_CLOSING   who waits to have all lets the holder give the bias back
 */
#ifndef OWNERS
#define OWNERS 1 /* threads of the copy's CPU */
#endif
#ifndef REMOTES
#define REMOTES 1
#endif
#ifndef ALLS
#define ALLS 1 /* 0 or 1 */
#endif
#ifndef ROUNDS
#define ROUNDS 2 /* of each owner */
#endif

#define THREADS  (OWNERS + REMOTES + ALLS)
#define NOBODY   255
#define PATIENCE 0
#define OPEN     (biased && !closing && parties == 0) /* the word is 1 */

bool held, biased, closing, all;
byte parties, sleepers, inside, done;
byte armed = NOBODY;
bool aborted[THREADS], buffered[THREADS], asleep[THREADS];

#define FLUSH(t) if :: buffered[t] -> held = false; buffered[t] = false :: else fi

inline fence()
{
#ifndef NO_FENCE
	d_step {
		k = 0;
		do :: k < THREADS -> FLUSH(k); k++ :: else -> break od;
		k = 0;
#ifndef NO_ABORT
		if :: armed != NOBODY -> aborted[armed] = true; armed = NOBODY :: else fi
#endif
	}
#endif
	skip
}

inline wake_one()
{
#ifndef NO_WAKE
	if
	:: sleepers ->
		atomic {
			if
			:: asleep[0] -> asleep[0] = false
			:: THREADS > 1 && asleep[1] -> asleep[1] = false
#if OWNERS + REMOTES + ALLS > 2
			:: asleep[2] -> asleep[2] = false
#endif
#if OWNERS + REMOTES + ALLS > 3
			:: asleep[3] -> asleep[3] = false
#endif
			:: else
			fi
		}
	:: else
	fi;
#endif
	skip
}

inline futex_wait()
{
	atomic { FLUSH(me); if :: held -> asleep[me] = true :: else fi };
	!asleep[me]
}

inline try_hold()
{
	atomic { FLUSH(me); if :: held -> ok = false :: else -> held = true; ok = true fi }
}

inline hold()
{
	try_hold();
	if
	:: ok
	:: else ->
		sleepers++;
		do
		:: ok -> break
		:: !ok -> try_hold(); if :: ok :: else -> futex_wait() fi
		od;
		sleepers--
	fi
}

inline enter() { d_step { inside++; assert(inside == 1) } }

inline unlock()
{
	buffered[me] = true;
	if
	:: OPEN
	:: !OPEN -> atomic { FLUSH(me) }; wake_one()
	fi
}

inline lock_one(own)
{
	atomic { FLUSH(me); ended = biased; parties++ };
#ifdef NOT_COUNTED
	parties--;
#endif
	if
	:: ended -> fence(); biased = false
	:: else
	fi;
	hold();
	do
#ifdef NO_LOOK
	:: break
#else
	:: all -> unlock(); !all; hold()
	:: !all -> break
#endif
	od;
	enter();
	atomic {
#ifdef NOT_COUNTED
		if :: own && !ended && !closing && parties == 0 -> biased = true :: else fi
#elif defined NO_CLOSING
		if :: own && !ended && parties == 1 -> biased = true :: else fi;
		parties--
#else
		if :: own && !ended && !closing && parties == 1 -> biased = true :: else fi;
		parties--
#endif
		; ended = false
	}
	ok = false
}

/* One step of a section; any may be aborted instead. */
#define STEP(action) \
	atomic { \
		if \
		:: aborted[me] -> aborted[me] = false; goto again \
		:: !aborted[me] -> armed = NOBODY; goto again /* a signal */ \
		:: !aborted[me] -> action \
		fi \
	}

proctype owner(byte me)
{
	byte k, tries, rounds;
	bool ok, ended, left;

	do
	:: rounds < ROUNDS ->
		tries = 0;
again:
		atomic {
			left = false;
			if
			:: tries == 1 -> goto slow
			:: else -> tries++
			fi;
			/* Who had this CPU before is switched away from. */
			k = 0;
			do :: k < OWNERS -> if :: k != me -> FLUSH(k) :: else fi; k++ :: else -> break od;
			k = 0;
			if :: armed != NOBODY -> aborted[armed] = true :: else fi;
			armed = me;
			aborted[me] = false
		};
		STEP(left = !OPEN; if :: left -> armed = NOBODY :: else fi);
		if :: left -> goto slow :: else fi;
		STEP(left = held && !buffered[me]; if :: left -> armed = NOBODY :: else fi);
		if :: left -> goto slow :: else fi;
		STEP(held = true; buffered[me] = false; armed = NOBODY; inside++; assert(inside == 1));
		goto work;
slow:
		lock_one(true);
work:
		inside--;
		unlock();
		rounds++
	:: else -> break
	od;
	atomic { FLUSH(me); done++ }
}

proctype remote(byte me)
{
	byte k;
	bool ok, ended;

	lock_one(false);
	inside--;
	unlock();
	atomic { FLUSH(me); done++ }
}

inline wait_until_free()
{
	sleepers++;
	do
	:: held -> futex_wait()
	:: !held -> break
	od;
	sleepers--;
#ifndef NO_PASS
	wake_one()
#endif
}

proctype everything(byte me)
{
	byte k;
	bool ended;

	atomic { if :: biased -> closing = true; ended = true :: else fi };
	if :: ended -> fence() :: else fi;
#ifdef LOOK_FIRST
	if :: !closing && !held && !biased -> all = true; goto got :: else fi;
#endif
	all = true;
	if
	:: !closing ->
		if
		:: !held ->
#ifndef TRUST_HELD
			if
			:: !biased ->
#ifdef LOOK_ONCE
				goto got
#else
				if :: !held -> goto got :: else fi
#endif
			:: else
			fi
#else
			goto got
#endif
		:: held
		fi;
		atomic { ended = biased;
#ifdef NO_CLOSING
			if :: biased -> closing = true :: else fi
#else
			closing = true
#endif
		};
		if :: ended -> fence() :: else fi
	:: closing
	fi;
	if :: closing -> biased = false :: else fi;
	wait_until_free();
	closing = false;
got:
	enter();
	inside--;
	all = false;
	done++
}

/* Buffers empty themselves some time. */
proctype time()
{
end:
	do
	:: buffered[0] -> atomic { FLUSH(0) }
	:: THREADS > 1 && buffered[1] -> atomic { FLUSH(1) }
#if OWNERS + REMOTES + ALLS > 2
	:: buffered[2] -> atomic { FLUSH(2) }
#endif
#if OWNERS + REMOTES + ALLS > 3
	:: buffered[3] -> atomic { FLUSH(3) }
#endif
	od
}

init
{
	byte k;

	atomic {
		/* A copy with its bias, or a fresh one. */
		if :: biased = true :: biased = false fi;
		do :: k < OWNERS -> run owner(k); k++ :: else -> break od;
		do :: k < OWNERS + REMOTES -> run remote(k); k++ :: else -> break od;
		do :: k < THREADS -> run everything(k); k++ :: else -> break od;
		run time();
		k = 0
	};
	done == THREADS;
	assert(!held && parties == 0 && sleepers == 0 && !closing && !all)
}
