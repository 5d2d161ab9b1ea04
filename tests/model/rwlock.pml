/* SPDX-License-Identifier: MIT */
/*
 * The reader-writer lock: readers that count in and out by sections on an open copy, or by atomic instructions on the
 * remainder, or are let in from the queue, and that open the copy; writers that close, fence, sum and sleep
 * (src/ds/rwlock.c). There is one copy that can be open, and one more that counts what is behind a migration.
 *
 * A section's store waits in its thread's buffer, first in, first out, and reaches memory at any time: a fence, an atomic
 * instruction and a migration empty it. A fence also aborts sections. The first reader enters a second time while it is
 * inside. Nobody gives up in this model.
 *
 * Must hold: a writer is alone, nobody sleeps for ever, and a queued reader waits for one writer only.
 *
 * Controls, each of which must fail:
 *   NO_FENCE        the writer closes and sums, without a fence
 *   ENTERED_FIRST   the writer sums `entered`, then `left`
 *   LOOK_FIRST      an atomic reader looks at `closed`, then counts
 *   NO_RECHECK      the writer says that it sleeps after it has summed
 *   NO_GRANT        the writer wakes the queue without having counted it in
 *   STAY_CLOSED     `closed` is cleared after WRITER
 *   OPEN_ANY_TIME   a reader opens the copy without the lock among writers
 *   NO_BARRIER      who leaves by a section on a closed copy looks at `closed` without a barrier
 */
#ifndef READERS
#define READERS 2
#endif
#ifndef WRITERS
#define WRITERS 2
#endif
#define COPIES    3 /* the last is the remainder */
#define REMAINDER 2

byte entered[COPIES], left[COPIES];
/* Buffers: the copy + 1 of a store that is on its way; `enter` goes before `leave`. */
byte enter_pending[READERS], leave_pending[READERS];
bool armed[READERS], aborted[READERS];
bool opened;                     /* copy 0 */
bool closed, held, writer;       /* the queue's bit */
byte waiting, phase, woken;      /* of the queue; `woken` is the futex word */
byte gone;
bool asleep, writer_sleeps;
byte inside, writing, writers_since[READERS];

inline flush(r)
{
	if :: enter_pending[r] -> entered[enter_pending[r] - 1]++; enter_pending[r] = 0 :: else fi;
	if :: leave_pending[r] -> left[leave_pending[r] - 1]++; leave_pending[r] = 0 :: else fi
}

inline fence()
{
#ifdef NO_FENCE
	skip
#else
	d_step {
		byte i = 0;
		do
		:: i < READERS ->
		   flush(i);
		   if :: armed[i] -> armed[i] = false; aborted[i] = true :: else fi;
		   i++
		:: else -> break
		od;
		i = 0
	}
#endif
}

proctype memory(byte r)
{
end:	do
	:: d_step { enter_pending[r] -> entered[enter_pending[r] - 1]++; enter_pending[r] = 0 }
	:: d_step { !enter_pending[r] && leave_pending[r] -> left[leave_pending[r] - 1]++; leave_pending[r] = 0 }
	od
}

/* A reader left, and saw the lock closed. */
inline tell()
{
	d_step {
		flush(me);
		gone++;
		if :: asleep -> writer_sleeps = false :: else fi
	}
}

inline leave_atomically()
{
	d_step { flush(me); left[REMAINDER]++ };
	if
	:: closed -> tell()
	:: else
	fi
}

/* By an atomic instruction; sets ok. */
inline enter_atomically()
{
	ok = false;
	if
	:: closed
	:: else ->
#ifdef LOOK_FIRST
	   d_step { flush(me); entered[REMAINDER]++; ok = true }
#else
	   d_step { flush(me); entered[REMAINDER]++ };
	   if
	   :: !closed -> ok = true
	   :: else -> leave_atomically()
	   fi
#endif
	fi
}

/* By who is inside. */
inline open_copy()
{
	d_step {
#ifdef OPEN_ANY_TIME
		if :: !closed -> openable = true :: else fi
#else
		if :: !held -> flush(me); opened = true :: else fi
#endif
	}
#ifdef OPEN_ANY_TIME
	;
	if :: openable -> openable = false; opened = true :: else fi
#endif
}

/* On any copy, open or not; a store to another one is behind a migration. */
inline leave_slowly()
{
	if
	:: open_copy()
	:: true
	fi;
	if
	:: d_step { flush(me); leave_pending[me] = 1 }
	:: d_step { flush(me); leave_pending[me] = 2 }
	:: d_step { enter_pending[me] == 1 && !leave_pending[me] -> leave_pending[me] = 1 }
	:: d_step { enter_pending[me] == 2 && !leave_pending[me] -> leave_pending[me] = 2 }
	fi;
#ifndef NO_BARRIER
	d_step { flush(me) };
#endif
	if
	:: closed -> tell()
	:: else
	fi
}

inline leave_by_section()
{
	atomic { armed[me] = true; aborted[me] = false; c = false };
	atomic { if :: !aborted[me] && opened -> c = true :: else fi };
	atomic {
		if
		:: c && !aborted[me] ->
		   if :: leave_pending[me] || enter_pending[me] == 2 -> flush(me) :: else fi;
		   leave_pending[me] = 1
		:: else -> c = false
		fi;
		armed[me] = false
	};
	if
	:: c -> c = false
	:: else -> leave_slowly()
	fi
}

inline queue_up()
{
	queued = true;
	d_step { flush(me); waiting++; mine = phase; saw = writer; writers_since[me] = 0 };
	ok = false;
	if
	:: !saw -> enter_atomically()
	:: else
	fi;
	if
	:: ok ->
	   d_step {
		if
		:: phase == mine -> waiting--; mine = 255
		:: else
		fi
	   };
	   if :: mine != 255 -> leave_atomically() :: else fi /* let in as well */
	:: else ->
	   do
	   :: seen = woken;
	      if :: phase != mine -> break :: else fi;
	      woken != seen /* futex */
	   od
	fi;
	mine = 0;
	seen = 0
}

proctype reader(byte me)
{
	byte mine, seen;
	bool ok, saw, c, queued;
#ifdef OPEN_ANY_TIME
	bool openable;
#endif

again:
	if
	:: true -> /* a section */
	   atomic { armed[me] = true; aborted[me] = false };
	   atomic { if :: aborted[me] -> goto again :: else -> c = opened fi };
	   if
	   :: !c ->
	      armed[me] = false;
	      enter_atomically();
	      if :: ok -> skip :: else -> queue_up() fi;
	      if :: open_copy() :: true fi
	   :: else ->
	      atomic {
		if
		:: aborted[me] -> goto again
		:: else -> flush(me); enter_pending[me] = 1; armed[me] = false
		fi
	      }
	   fi
	:: me == READERS - 1 -> /* not served by the kernel */
	   enter_atomically();
	   if :: ok :: else -> queue_up() fi
	fi;
	c = false;
	atomic { inside++; assert(!writing); assert(!queued || writers_since[me] <= 1) };
	if
	:: me == 0 -> d_step { flush(me); enter_pending[me] = 2 }; leave_by_section()
	:: true
	fi;
	assert(!writing);
	atomic { assert(!writing); inside-- };
	if
	:: true -> leave_by_section()
	:: me == READERS - 1 -> leave_atomically()
	fi
}

inline add_up()
{
	sum = 0;
#ifdef ENTERED_FIRST
	sum = sum + entered[0]; sum = sum + entered[1]; sum = sum + entered[2];
	sum = sum - left[0]; sum = sum - left[1]; sum = sum - left[2]
#else
	sum = sum - left[0]; sum = sum - left[1]; sum = sum - left[2];
	sum = sum + entered[0]; sum = sum + entered[1]; sum = sum + entered[2]
#endif
}

proctype write()
{
	short sum;
	byte seen, given;

	atomic { !held -> held = true };
	writer = true;
	closed = true;
	if
	:: opened -> opened = false; fence()
	:: else
	fi;
	add_up();
	if
	:: sum == 0
	:: else ->
	   do
#ifdef NO_RECHECK
	   :: add_up();
	      if :: sum == 0 -> break :: else fi;
	      atomic { asleep = true; seen = gone };
#else
	   :: atomic { asleep = true; seen = gone };
	      add_up();
	      if :: sum == 0 -> break :: else fi;
#endif
	      atomic { if :: gone == seen -> writer_sleeps = true :: else fi };
	      !writer_sleeps
	   od;
	   asleep = false
	fi;
	atomic { assert(inside == 0); writing++; assert(writing == 1) };
	atomic {
		writing--;
#if READERS > 1
		writers_since[1]++;
#endif
		writers_since[0]++
	};
#ifndef STAY_CLOSED
	closed = false;
#endif
	do
	:: given != waiting ->
	   d_step {
#ifndef NO_GRANT
		entered[REMAINDER] = entered[REMAINDER] + waiting - given;
#endif
		given = waiting
	   }
	:: atomic { given == waiting -> waiting = 0; phase++; writer = false; break }
	od;
#ifdef STAY_CLOSED
	closed = false;
#endif
	woken++;
	held = false
}

init
{
	atomic {
		run memory(0);
		run reader(0);
#if READERS > 1
		run memory(1);
		run reader(1);
#endif
		run write();
#if WRITERS > 1
		run write();
#endif
	}
}
