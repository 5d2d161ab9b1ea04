/* SPDX-License-Identifier: MIT */
/*
 * The kernel looks at `request` when it is about to preempt the thread on its way back to user space. If it lets the thread
 * run on, it clears that and sets `granted`, and sets that back when the time is over or at any system call. Both are only
 * ever changed by this thread or on its CPU, so plain stores and loads in program order are enough.
 */
#include "sync/slice.h"

#include "base/sys.h"

/* Not in every libc's headers. */
#define PRCTL_RSEQ_SLICE     79
#define PRCTL_RSEQ_SLICE_SET 2
#define RSEQ_SLICE_ENABLE    1
#define SYSCALL_SLICE_YIELD  471
#define REQUEST              0 /* bytes of slice_ctrl */
#define GRANTED              1

enum { UNKNOWN, YES, NO };

static volatile uint8_t *control(void)
{
	return (volatile uint8_t *)&percpu__true_area()->slice_ctrl;
}

bool percpu__slice_begin(void)
{
	struct percpu__private *me = &percpu__private;

	/* Each thread enables it for itself. Before it is registered there is nothing to ask. */
	if (me->state != PERCPU__REGISTERED)
		return false;
	if (me->slice == UNKNOWN)
		me->slice = percpu__sys6(SYS_prctl, PRCTL_RSEQ_SLICE, PRCTL_RSEQ_SLICE_SET, RSEQ_SLICE_ENABLE, 0, 0, 0)
				    ? NO
				    : YES;
	if (me->slice == NO || me->slices == UINT16_MAX)
		return false;
	if (me->slices++ == 0)
		control()[REQUEST] = 1;
	return true;
}

void percpu__slice_end(void)
{
	struct percpu__private *me = &percpu__private;

	/* A lock that another thread had asked for, and this one unlocks (a mistake, but not one to fail by). */
	if (!me->slices || --me->slices)
		return;
	control()[REQUEST] = 0;
	if (control()[GRANTED])
		percpu__sys4(SYSCALL_SLICE_YIELD, 0, 0, 0, 0);
}
