/* SPDX-License-Identifier: MIT */
/*
 * The gate and the fence: sections that may be aborted at every step, and slow paths, add to the same copies.
 *
 * The kernel is modelled as what it promises: a section that is interrupted by another thread of its CPU, or by a fence,
 * takes no further step and starts over. So arming a section on a CPU aborts whoever was armed there, a fence aborts all
 * that are armed, and every section may also be aborted for no reason (a signal).
 *
 * The futex is modelled as what it promises: falling asleep and comparing the word are one step; lockers and sections
 * sleep under different bits of one word, so that a hand-over cannot wake a section in the place of a locker.
 *
 * Checked: every addition is in the sum exactly once; one holder at a time; no section commits between a fence and the
 * opening of the gate; everybody gets done (else spin reports an invalid end state).
 *
 * Controls, each of which must fail:
 *   NO_FENCE       the gate is closed but nobody waits for the sections that saw it open
 *   REOPEN         a hand-over opens the gate for a moment, and its taker skips the fence
 *   NO_WAKE        the opening does not wake the sleepers
 *   ONE_QUEUE      a hand-over wakes any one sleeper, be it a locker or not
 *   UNCOUNTED      a locker falls asleep without the SLEEPERS bit, trusting that its count was seen
 *   BLIND_OPEN     the opening is a load and a store, not one exchange: a bit set in between is lost
 *   INDEX_OUTSIDE  the index is loaded before the section begins
 *   NO_BLOCK       (with HANDLER) signals are not blocked while the gate is held
 */
#ifndef SECTIONS
#define SECTIONS 2 /* threads that use sections */
#endif
#ifndef LOCKERS
#define LOCKERS 2 /* threads that only use the slow path */
#endif
#ifndef COPIES
#define COPIES 1 /* CPUs, and so copies */
#endif
#ifndef TRIES
#define TRIES 2 /* attempts before a section becomes a locker */
#endif
#ifndef PASSES
#define PASSES 1 /* hand-overs in a row before the gate must open */
#endif

#define THREADS  (SECTIONS + LOCKERS)
#define NOBODY   255
#define HELD     1
#define SLEEPERS 2
#define PASSED   4

byte gate[COPIES], lockers[COPIES], passes[COPIES], data[COPIES];
byte armed[COPIES]; /* the thread inside a section on this CPU */
bool aborted[THREADS];
byte asleep[THREADS]; /* 0 awake, 1 as a section, 2 as a locker */
byte place[THREADS];  /* the word on which it sleeps */
byte holders[COPIES];
bool fenced[COPIES]; /* no section may commit now */
byte done;
#ifdef HANDLER
bool blocked, handling; /* of thread 0 */
#endif

#define CAS(word, old, new, ok) if :: word == old -> word = new; ok = true :: else -> ok = false fi

inline fence()
{
#ifndef NO_FENCE
	d_step {
		k = 0;
		do
		:: k < COPIES ->
			if :: armed[k] != NOBODY -> aborted[armed[k]] = true; armed[k] = NOBODY :: else fi;
			k++
		:: else -> break
		od;
		k = 0
	}
#endif
	skip
}

/* Sleeps unless the word has changed. */
inline futex_wait(i, value, kind)
{
	atomic {
		if :: gate[i] == value -> asleep[me] = kind; place[me] = i :: else fi
	};
	asleep[me] == 0
}

inline wake_all(i)
{
	d_step {
		k = 0;
		do
		:: k < THREADS -> if :: asleep[k] && place[k] == i -> asleep[k] = 0 :: else fi; k++
		:: else -> break
		od;
		k = 0
	}
}

inline wake_one_locker(i)
{
	atomic {
		k = NOBODY;
#ifdef ONE_QUEUE
#define WAKEABLE(t) (asleep[t] && place[t] == i)
#else
#define WAKEABLE(t) (asleep[t] == 2 && place[t] == i)
#endif
		if
		:: WAKEABLE(0) -> k = 0
		:: WAKEABLE(1) -> k = 1
#if SECTIONS + LOCKERS > 2
		:: WAKEABLE(2) -> k = 2
#endif
#if SECTIONS + LOCKERS > 3
		:: WAKEABLE(3) -> k = 3
#endif
		:: else
		fi;
		if :: k != NOBODY -> asleep[k] = 0 :: else fi;
		k = 0
	}
}

inline lock(i)
{
	atomic { g = gate[i]; if :: g & HELD -> ok = false :: else -> gate[i] = (g & SLEEPERS) | HELD; ok = true fi };
	if
	:: ok
	:: else ->
		atomic { lockers[i]++; ok = false };
		do
		:: ok -> break
		:: else ->
			g = gate[i];
			if
			:: !(g & HELD) -> atomic { CAS(gate[i], g, ((g & SLEEPERS) | HELD), ok) }
#ifdef UNCOUNTED
			:: (g & HELD) -> futex_wait(i, g, 2)
#else
			:: (g & HELD) && !(g & SLEEPERS) -> atomic { CAS(gate[i], g, (g | SLEEPERS), ok); ok = false }
			:: (g & HELD) && (g & SLEEPERS) -> futex_wait(i, g, 2)
#endif
			fi
		od;
		lockers[i]--
	fi;
#ifdef REOPEN
	if :: passes[i] == 0 -> fence() :: else fi;
#else
	/* A gate that was handed over has not been open since the last fence. */
	if :: !(g & PASSED) -> fence() :: else fi;
#endif
	d_step { g = 0; ok = false; holders[i]++; assert(holders[i] == 1); fenced[i] = true }
}

inline unlock(i)
{
	d_step { holders[i]--; fenced[i] = false };
	if
	:: lockers[i] > 0 && passes[i] < PASSES ->
		passes[i]++;
#ifdef REOPEN
		atomic { gate[i] = gate[i] & SLEEPERS; g = 0 };
#else
		atomic { gate[i] = (gate[i] & SLEEPERS) | PASSED; g = 0 };
#endif
		wake_one_locker(i)
	:: else ->
		passes[i] = 0;
#ifdef BLIND_OPEN
		g = gate[i];
		gate[i] = 0;
#else
		atomic { g = gate[i]; gate[i] = 0 };
#endif
#ifndef NO_WAKE
		if :: g & SLEEPERS -> wake_all(i) :: else fi;
#endif
		g = 0
	fi
}

inline add_locked(i)
{
	lock(i);
	v = data[i];
	data[i] = v + 1;
	v = 0;
	unlock(i)
}

/* One step of a section; any may be aborted instead. */
#define STEP(action) \
	atomic { \
		if \
		:: aborted[me] -> aborted[me] = false; goto again \
		:: !aborted[me] -> armed[cpu] = NOBODY; goto again /* a signal */ \
		:: !aborted[me] -> action \
		fi \
	}

proctype section(byte me)
{
	byte cpu, i, g, v, k, tries;
	bool ok;

again:
	atomic {
		g = 0; v = 0; ok = false;
		if
		:: tries == TRIES -> goto slow
		:: tries < TRIES -> tries++; cpu = 0
#if COPIES > 1
		:: tries < TRIES -> tries++; cpu = 1
#endif
		fi
#ifdef INDEX_OUTSIDE
		; i = cpu
	};
	atomic {
		if :: cpu = 0 :: cpu = 1 fi
#endif
		;
		if :: armed[cpu] != NOBODY -> aborted[armed[cpu]] = true :: else fi;
		armed[cpu] = me; aborted[me] = false
	};
#ifndef INDEX_OUTSIDE
	STEP(i = cpu);
#endif
	STEP(g = gate[i]; if :: g -> armed[cpu] = NOBODY :: else fi);
	if
	:: g ->
		if
		:: g & SLEEPERS
		:: else -> atomic { CAS(gate[i], g, (g | SLEEPERS), ok); if :: ok -> g = g | SLEEPERS :: else -> goto again fi }
		fi;
		futex_wait(i, g, 1);
		goto again
	:: else
	fi;
	STEP(v = data[i]);
	STEP(data[i] = v + 1; armed[cpu] = NOBODY; assert(!fenced[i]));
	goto out;
slow:
	add_locked(i);
out:
	done++
}

proctype locker(byte me)
{
	byte i, g, v, k;
	bool ok;

	if :: i = 0
#if COPIES > 1
	:: i = 1
#endif
	fi;
	add_locked(i);
	done++
}

#ifdef HANDLER
/* A thread that takes the slow path, and a handler of it that does the same on the same copy. */
proctype interrupted(byte me) provided (!handling)
{
	byte g, v, k;
	bool ok;

#ifndef NO_BLOCK
	blocked = true;
#endif
	add_locked(0);
	blocked = false;
	done++
}

proctype handler(byte me)
{
	byte g, v, k;
	bool ok;

	atomic { !blocked -> handling = true };
	add_locked(0);
	handling = false;
	done++
}
#endif

init
{
	byte k;

	atomic {
		do :: k < COPIES -> armed[k] = NOBODY; k++ :: else -> break od;
#ifdef HANDLER
		run interrupted(0);
		run handler(1);
		run locker(2);
#else
		k = 0;
		do :: k < SECTIONS -> run section(k); k++ :: else -> break od;
		do :: k < THREADS -> run locker(k); k++ :: else -> break od;
#endif
		k = 0
	};
	done == THREADS;
#if COPIES > 1
	assert(data[0] + data[1] == THREADS);
#else
	assert(data[0] == THREADS);
#endif
	/* Nothing is left behind that would keep somebody out. */
	assert(gate[0] == 0 && lockers[0] == 0)
}
