/* SPDX-License-Identifier: MIT */
/*
 * fork: the child must never see a slow path half done, and nobody may wait for ever in the parent.
 *
 * Who makes several changes takes all the gates he needs, marks them BUSY, and then looks whether somebody forks; if so he
 * opens the gates again and waits until that is over. Whoever forks says so and then waits until no gate is BUSY. Each
 * writes first and reads the other's word after it (Dekker), so at least one of them sees the other. A hand-over does not
 * wake whoever forks; the opening that follows does. (Slow paths of one store mark nothing: the child may see them at any
 * instruction.)
 *
 * "Half done" is two words per copy that a holder changes one after the other. The child gets a copy of everything at
 * one moment; gates that were handed over but not taken, and counts of waiting lockers, are put right in it.
 *
 * Controls, each of which must fail:
 *   LOOK_FIRST   the holder looks for a fork, then locks and marks
 *   WAIT_FIRST   whoever forks waits for the gates, then says so
 *   BUFFERED     its announcement still sits in a store buffer while it looks at the gates
 *   KEEP_GATES   who sees a fork waits for its end without opening his gates
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
#define BUSY     8
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
				:: gate[i] == (g | SLEEPERS) -> asleep[me] = 1 + i; is_locker[me] = true
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

inline mark(i)
{
	atomic { gate[i] = gate[i] | BUSY }
}

/* Takes gate 1, and gate 0 before it if both, for several changes. */
inline enter(both)
{
	do
	:: true ->
#ifdef LOOK_FIRST
		do :: forking -> wait_for_fork() :: else -> break od;
#endif
		if :: both -> lock(0) :: else fi;
		lock(1);
		if :: both -> mark(0) :: else fi;
		mark(1);
#ifdef LOOK_FIRST
		break
#else
		if
		:: !forking -> break
		:: else
		fi;
#ifdef KEEP_GATES
		wait_for_fork();
		break
#else
		unlock(1, false);
		if :: both -> unlock(0, false) :: else fi;
		wait_for_fork()
#endif
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
	bool ok;

	if
	:: me == 0 ->
		enter(true);
		work(0);
		work(1);
		unlock(1, true);
		unlock(0, true)
	:: else ->
		enter(false);
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
		:: !(g & BUSY) -> break
		:: (g & BUSY) && !(g & SLEEPERS) -> gate[i] = g | SLEEPERS
		:: else
		fi
	   };
	   atomic { if :: gate[i] == (g | SLEEPERS) -> asleep[me] = 1 + i; is_locker[me] = false :: else fi };
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
