/* SPDX-License-Identifier: MIT */
/*
 * Port: none. No section at all: every operation leaves for the slow path at once. For machines without a port, for
 * tools that must see each access (ThreadSanitizer), and for whoever defines PERCPU_NO_SECTIONS. Code built so works on
 * the same data, at the same time, as code built with sections.
 */
#ifndef PERCPU_ARCH_NONE_H
#define PERCPU_ARCH_NONE_H

#define PERCPU__ARCH_NAME "none"

#endif
