/* SPDX-License-Identifier: MIT */
/*
 * Chooses the port: strings and constants for one architecture, of which <percpu/section.h> makes the sections.
 *
 * Define PERCPU_NO_SECTIONS to build code that always takes the slow path. ThreadSanitizer cannot see what sections do,
 * so code built for it gets that port too.
 */
#ifndef PERCPU_ARCH_H
#define PERCPU_ARCH_H

#if defined __has_feature
#if __has_feature(thread_sanitizer) && !defined PERCPU_NO_SECTIONS
#define PERCPU_NO_SECTIONS
#endif
#endif
#if defined __SANITIZE_THREAD__ && !defined PERCPU_NO_SECTIONS
#define PERCPU_NO_SECTIONS
#endif

#if defined PERCPU_NO_SECTIONS
#include <percpu/arch/none.h>
#elif defined __x86_64__ && defined __LP64__
#include <percpu/arch/x86_64.h>
#elif defined __aarch64__ && defined __LP64__
#include <percpu/arch/aarch64.h>
#else
#error "libpercpu has no port for this architecture; define PERCPU_NO_SECTIONS to build without sections"
#endif

#endif
