/* SPDX-License-Identifier: MIT */
/*
 * Memory order: a section that sees an open gate must also see what the last holder wrote, and a holder behind its fence
 * must see what sections committed.
 *
 * One data word and its gate. Stores go to a buffer of their CPU, from where they reach memory one by one, in any order,
 * at any time. A store with release leaves the buffer only when it is empty but for it. Loads of a section are executed
 * in any order, unless an address dependency (or an acquire) puts the data behind the gate. A fence empties all buffers
 * and aborts the section, early loads included. The compare-and-swap that closes the gate works on memory itself.
 *
 * FENCE_AGAIN models the other way to do it: neither release nor dependency, but a second fence before the opening.
 *
 * Controls, each of which must fail:
 *   NO_RELEASE     the holder's opening may overtake its data
 *   NO_DEPENDENCY  the section's load of the data may overtake that of the gate
 *   NO_BARRIER     the fence aborts, but does not empty the buffers of other CPUs
 */
#define HOLDERS 2
#define ADDS    2 /* by the section's thread */

#ifdef FENCE_AGAIN
#define NO_RELEASE
#define NO_DEPENDENCY
#endif

byte gate, data;
bool armed, aborted;
byte done;
/* Buffers: one for each holder, the last for the section. */
bool data_pending[HOLDERS + 1], gate_pending[HOLDERS + 1];
byte data_buffer[HOLDERS + 1];

inline drain_buffer(cpu)
{
	if :: data_pending[cpu] -> data = data_buffer[cpu]; data_pending[cpu] = false :: else fi;
	if :: gate_pending[cpu] -> gate = 0; gate_pending[cpu] = false :: else fi
}

inline fence()
{
	d_step {
		if :: armed -> armed = false; aborted = true :: else fi;
#ifdef NO_BARRIER
		drain_buffer(me)
#else
		drain_buffer(0);
		drain_buffer(1);
		drain_buffer(2)
#endif
	}
}

proctype memory(byte me)
{
end:	do
	:: atomic { data_pending[me] -> data = data_buffer[me]; data_pending[me] = false }
#ifdef NO_RELEASE
	:: atomic { gate_pending[me] -> gate = 0; gate_pending[me] = false }
#else
	:: atomic { gate_pending[me] && !data_pending[me] -> gate = 0; gate_pending[me] = false }
#endif
	od
}

proctype holder(byte me)
{
	byte v;

	atomic { gate == 0 -> drain_buffer(me); gate = 1 };
	fence();
	v = data;
	d_step { data_buffer[me] = v + 1; data_pending[me] = true };
#ifdef FENCE_AGAIN
	fence();
#endif
	gate_pending[me] = true;
	done++
}

#define STEP(action) \
	atomic { if :: aborted -> aborted = false; goto again :: else -> action fi }

proctype section(byte me)
{
	byte g, v, n;

again:
	atomic { armed = true; aborted = false; g = 0; v = 0 };
	if
	:: true ->
	   STEP(g = gate);
	   STEP(if :: data_pending[me] -> v = data_buffer[me] :: else -> v = data fi)
#ifdef NO_DEPENDENCY
	:: true ->
	   STEP(if :: data_pending[me] -> v = data_buffer[me] :: else -> v = data fi);
	   STEP(g = gate)
#endif
	fi;
	if
	:: g -> armed = false; goto again
	:: else
	fi;
	STEP(data_buffer[me] = v + 1; data_pending[me] = true; armed = false; n++);
	if :: n < ADDS -> goto again :: else fi;
	done++
}

init
{
	atomic {
		run memory(0); run memory(1); run memory(2);
		run holder(0); run holder(1);
		run section(2)
	};
	(done == HOLDERS + 1 && !data_pending[0] && !data_pending[1] && !data_pending[2] &&
	 !gate_pending[0] && !gate_pending[1]);
	assert(data == HOLDERS + ADDS);
	assert(gate == 0)
}
