/* SPDX-License-Identifier: MIT */
/*
 * fork: the child must never see a slow path half done, and nobody may wait for ever in the parent.
 *
 * A slow path locks its gate and then looks whether somebody forks; if so it opens the gate again and waits until that
 * is over. Whoever forks says so and then waits until no gate is held. Each writes first and reads the other's word
 * after it (Dekker), so at least one of them sees the other. A thread that holds one gate already takes its second
 * without looking: whoever forks waits for it. A hand-over does not wake whoever forks; the opening that follows does.
 *
 * "Half done" is two words per copy that a holder changes one after the other. The child gets a copy of everything at
 * one moment; gates that were handed over but not taken, and counts of waiting lockers, are put right in it.
 *
 * Controls, each of which must fail:
 *   LOOK_FIRST   the slow path looks for a fork, then locks
 *   WAIT_FIRST   whoever forks waits for the gates, then says so
 *   BUFFERED     its announcement still sits in a store buffer while it looks at the gates
 *   LOOK_TWICE   a slow path looks (and waits) also with its first gate held
 *   NO_REPAIR    the child keeps gates and counts as they were
 *   NO_WAKE      the end of the fork wakes nobody
 */
#define GATES    2
#ifndef HOLDERS
#define HOLDERS  3 /* slow paths: one that takes both gates, the others gate 1 */
#endif
#ifndef FORKERS
#define FORKERS  1
#endif
#ifndef PASSES
#define PASSES   1 /* hand-overs in a row before the gate must open */
#endif
#define HELD     1
#define SLEEPERS 2
#define PASSED   4
#define THREADS  (HOLDERS + FORKERS)

byte gate[GATES], lockers[GATES], passes[GATES];
byte first[GATES], second[GATES];
byte forking; /* 0, or the thread that forks + 1 */
bool announced; /* with BUFFERED: on its way to memory */
byte asleep[THREADS]; /* 0 awake, else 1 + gate, or 1 + GATES: waits for the end of a fork */
bool is_locker[THREADS];
byte done;

inline wake_all(place_)
{
	d_step {
		k = 0;
		do
		:: k < THREADS -> if :: asleep[k] == place_ -> asleep[k] = 0 :: else fi; k++
		:: else -> break
		od;
		k = 0
	}
}

inline wake_one_locker(i)
{
	atomic {
		if
		:: asleep[0] == 1 + i && is_locker[0] -> asleep[0] = 0
		:: asleep[1] == 1 + i && is_locker[1] -> asleep[1] = 0
#if HOLDERS > 2
		:: asleep[2] == 1 + i && is_locker[2] -> asleep[2] = 0
#endif
		:: else
		fi
	}
}

inline lock(i)
{
	atomic { lockers[i]++; ok = false };
	do
	:: ok -> break
	:: else ->
		atomic {
			g = gate[i];
			if
			:: !(g & HELD) -> gate[i] = (g & SLEEPERS) | HELD; lockers[i]--; ok = true
			:: else -> gate[i] = g | SLEEPERS
			fi
		};
		if
		:: ok
		:: else ->
			atomic {
				if
				:: gate[i] == (HELD | SLEEPERS) -> asleep[me] = 1 + i; is_locker[me] = true
				:: else
				fi
			};
			asleep[me] == 0
		fi
	od;
	g = 0
}

/* Whoever backs out opens the gate; only a holder that has done its work may hand it over. */
inline unlock(i, worked)
{
	if
	:: worked && lockers[i] > 0 && passes[i] < PASSES ->
		passes[i]++;
		gate[i] = PASSED | SLEEPERS;
		wake_one_locker(i)
	:: else ->
		passes[i] = 0;
		atomic { g = gate[i]; gate[i] = 0 };
		if :: g & SLEEPERS -> wake_all(1 + i) :: else fi;
		g = 0
	fi
}

inline wait_for_fork()
{
	atomic { if :: forking -> asleep[me] = 1 + GATES :: else fi };
	asleep[me] == 0
}

/* Locks the outermost gate of a slow path. */
inline enter(i)
{
	do
	:: atomic { out = false };
#ifdef LOOK_FIRST
	   do :: forking -> wait_for_fork() :: else -> break od;
	   lock(i);
	   break
#else
	   lock(i);
	   if
	   :: forking -> unlock(i, false); wait_for_fork()
	   :: else -> break
	   fi
#endif
	od
}

inline work(i)
{
	first[i]++;
	second[i]++
}

proctype holder(byte me)
{
	byte g, k;
	bool ok, out;

	if
	:: me == 0 ->
		enter(0);
#ifdef LOOK_TWICE
		enter(1);
#else
		lock(1);
#endif
		work(0);
		work(1);
		unlock(1, true);
		unlock(0, true)
	:: else ->
		enter(1);
		work(1);
		unlock(1, true)
	fi;
	done++
}

inline quiesce(i)
{
	do
	:: atomic {
		g = gate[i];
		if
		:: !(g & HELD) -> break
		:: (g & HELD) && !(g & SLEEPERS) -> gate[i] = g | SLEEPERS
		:: else
		fi
	   };
	   atomic { if :: gate[i] == (HELD | SLEEPERS) -> asleep[me] = 1 + i; is_locker[me] = false :: else fi };
	   asleep[me] == 0
	od
}

proctype forker(byte me)
{
	byte g, k, child[GATES];

#ifdef WAIT_FIRST
	quiesce(0);
	quiesce(1);
#endif
	do
#ifdef BUFFERED
	:: atomic { !announced && !forking -> announced = true; break }
#else
	:: atomic { !forking -> forking = me + 1; break }
#endif
	:: atomic { forking -> asleep[me] = 1 + GATES }; asleep[me] == 0
	od;
#ifndef WAIT_FIRST
	quiesce(0);
	quiesce(1);
#endif
#ifdef BUFFERED
	if :: announced -> atomic { forking = me + 1; announced = false } :: else fi;
#endif
	/* The child is this moment's memory, and only this thread in it. */
	atomic {
		assert(first[0] == second[0] && first[1] == second[1]);
		child[0] = gate[0];
		child[1] = gate[1];
#ifndef NO_REPAIR
		child[0] = 0;
		child[1] = 0;
#endif
		/* The child's only thread must find every gate open, or sections there would sleep for ever. */
		assert(child[0] == 0 && child[1] == 0);
		child[0] = 0;
		child[1] = 0
	};
	forking = 0;
#ifndef NO_WAKE
	wake_all(1 + GATES);
#endif
	done++
}

#ifdef BUFFERED
proctype buffer()
{
end:	do
	:: atomic { announced -> announced = false; forking = HOLDERS + 1 }
	od
}
#endif

init
{
	byte k;

	atomic {
		do :: k < HOLDERS -> run holder(k); k++ :: else -> break od;
		do :: k < THREADS -> run forker(k); k++ :: else -> break od;
#ifdef BUFFERED
		run buffer();
#endif
		k = 0
	};
	done == THREADS;
	assert(first[0] == 1 && second[0] == 1 && first[1] == HOLDERS && second[1] == HOLDERS);
	assert(gate[0] == 0 && gate[1] == 0 && lockers[0] == 0 && lockers[1] == 0)
}
