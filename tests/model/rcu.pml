/* SPDX-License-Identifier: MIT */
/*
 * The one RCU for all: readers that publish the number of the last grace period that they know, and an updater that replaces
 * a pointer, and waits until nobody is inside with a lower number (src/sync/rcu_reader.c).
 *
 * A reader's stores wait in a buffer of one place before others see them; the fence empties all buffers. Each reader has two
 * read sections, and the updater as many grace periods.
 *
 * Must hold: what a reader found through the pointer is not freed while it is inside.
 *
 * Variant: NONE, readers store their state by an atomic instruction, and the fence empties no buffer.
 * Controls, each of which must fail:
 *   NO_FENCE     nothing empties the buffers but time
 *   NO_ACQUIRE   a reader loads the pointer before the number
 *   NUMBER_FIRST the updater publishes the number before the pointer
 *   ONE_BIT      only the lowest bit of the number is published: with one wait that is not enough
 *   NOT_WAITED   the updater looks once
 */
#ifndef READERS
#define READERS 2
#endif
#define TURNS   2
#define UPDATES 2
#define EMPTY   100

#ifdef ONE_BIT
#define PUBLISHED (1 + now % 2)
#define OLD(s)    (s != 0 && s != 1 + now % 2)
#else
#define PUBLISHED (1 + now)
#define OLD(s)    (s != 0 && s < 1 + now)
#endif

byte pointer, now;
bool freed[UPDATES + 1];
byte state[READERS], buffer[READERS];

inline store(value)
{
	atomic {
		buffer[me] == EMPTY;
#ifdef NONE
		state[me] = value
#else
		buffer[me] = value
#endif
	}
}

proctype drain(byte me)
{
end:	do
	:: atomic { buffer[me] != EMPTY -> state[me] = buffer[me]; buffer[me] = EMPTY }
	od
}

proctype reader(byte me)
{
	byte turn, found, number;

	for (turn : 1 .. TURNS) {
#ifdef NO_ACQUIRE
		found = pointer;
#endif
		number = PUBLISHED;
		store(number);
#ifndef NO_ACQUIRE
		found = pointer;
#endif
		assert(!freed[found]);
		assert(!freed[found]);
		store(0);
		found = 0;
		number = 0
	}
}

active proctype updater()
{
	byte update, i;

	for (i : 0 .. READERS - 1) {
		buffer[i] = EMPTY
	}
	atomic {
		i = 0;
		do
		:: i < READERS -> run reader(i); run drain(i); i++
		:: else -> break
		od
	}
	for (update : 1 .. UPDATES) {
#ifdef NUMBER_FIRST
		now++;
		pointer = update;
#else
		pointer = update;
		now++;
#endif
#if !defined NO_FENCE && !defined NONE
		d_step {
			i = 0;
			do
			:: i < READERS ->
				if
				:: buffer[i] != EMPTY -> state[i] = buffer[i]; buffer[i] = EMPTY
				:: else
				fi;
				i++
			:: else -> break
			od
		}
#endif
		i = 0;
		do
		:: i < READERS ->
#ifndef NOT_WAITED
			!OLD(state[i]);
#endif
			i++
		:: else -> break
		od;
		freed[update - 1] = true
	}
}
