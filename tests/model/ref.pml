/* SPDX-License-Identifier: MIT */
/*
 * The reference count: users that get and put by sections on any copy, or by atomic instructions on the shared word, and a
 * kill (src/ds/ref.c).
 *
 * A section looks at `dead` and commits, in two steps; a fence between them aborts it. Each user has two lives of a
 * reference: it tries to get one as long as the count is live, and puts it, each time on any copy.
 *
 * Must hold: released exactly once, when nobody has a reference, and nobody gets one when the kill has returned.
 *
 * Controls, each of which must fail:
 *   NO_FENCE      the kill marks and sums, without a fence
 *   ON_A_COPY     who cannot run sections looks at `dead` and then adds to the remainder
 *   NO_BIAS       the shared word is not held up while the copies count too
 *   DROP_FIRST    the kill drops the initial reference, then adds the copies
 *   LOOK_AT_DEAD  who cannot run sections gets a live one by a look at `dead`
 */
#define USERS 2
#define TURNS 2
#ifdef NO_BIAS
#define BIAS 0
#else
#define BIAS 100
#endif

short copy[2], shared = BIAS + 1;
bool dead, killed;
byte has, released;
bool armed[USERS], aborted[USERS];

inline put_shared()
{
	atomic {
		shared--;
		if
		:: shared == 0 -> released++; assert(has == 0); assert(released == 1)
		:: else
		fi
	}
}

/* Sets ok. What a user has it has from the commit on. */
inline section(c, n)
{
	atomic { armed[me] = true; aborted[me] = false; ok = false };
	atomic { if :: aborted[me] -> skip :: else -> looked = dead fi };
	atomic {
		if
		:: aborted[me] || looked -> armed[me] = false
		:: else -> copy[c] = copy[c] + n; has = has + n; ok = true; armed[me] = false; assert(n < 0 || !killed)
		fi
	}
	looked = false
}

inline get_slowly()
{
#ifdef ON_A_COPY
	looked = dead;
	if
	:: looked -> skip
	:: else -> atomic { copy[1]++; has++; ok = true }
	fi;
#else
#ifdef LOOK_AT_DEAD
	looked = dead;
	if
	:: looked -> skip
	:: else -> atomic { if :: shared > 0 -> shared++; has++; ok = true; assert(!killed) :: else fi }
	fi;
#else
	atomic { if :: shared >= BIAS / 2 && shared > 0 -> shared++; has++; ok = true; assert(!killed) :: else fi };
#endif
#endif
	looked = false
}

inline put_slowly()
{
#ifdef ON_A_COPY
	looked = dead;
	if
	:: looked -> atomic { has--; put_shared() }
	:: else -> atomic { copy[1]--; has-- }
	fi;
	looked = false
#else
	atomic { has--; put_shared() }
#endif
}

proctype user(byte me)
{
	byte turn;
	bool ok, looked;

	do
	:: turn < TURNS ->
	   turn++;
	   if
	   :: section(0, 1)
	   :: section(1, 1)
	   :: ok = false
	   fi;
	   if :: !ok -> get_slowly() :: else fi;
	   if
	   :: ok ->
	      assert(released == 0);
	      if
	      :: section(0, -1)
	      :: section(1, -1)
	      :: ok = false
	      fi;
	      if :: !ok -> put_slowly() :: else fi;
	      ok = false
	   :: else
	   fi
	:: else -> break
	od
}

proctype kill()
{
	short sum;

	dead = true;
#ifndef NO_FENCE
	d_step {
		if :: armed[0] -> armed[0] = false; aborted[0] = true :: else fi;
		if :: armed[1] -> armed[1] = false; aborted[1] = true :: else fi
	};
#endif
#ifdef DROP_FIRST
	shared = shared - BIAS;
	put_shared();
	sum = copy[0];
	sum = sum + copy[1];
	shared = shared + sum;
#else
	sum = copy[0];
	sum = sum + copy[1];
	shared = shared + sum - BIAS;
	killed = true; /* for all that others can tell */
	put_shared()
#endif
}

init
{
	atomic { run user(0); run user(1); run kill() };
	_nr_pr == 1;
	assert(released == 1);
	assert(has == 0)
}
