/* SPDX-License-Identifier: MIT */
/*
 * Attributes, export marks and the version. Included by every other header of libpercpu; holds no state.
 */
#ifndef PERCPU_BASE_H
#define PERCPU_BASE_H

#define PERCPU_VERSION_MAJOR 0
#define PERCPU_VERSION_MINOR 1
#define PERCPU_VERSION_PATCH 0

#ifdef __cplusplus
#define PERCPU_BEGIN_DECLS extern "C" {
#define PERCPU_END_DECLS   }
#else
#define PERCPU_BEGIN_DECLS
#define PERCPU_END_DECLS
#endif

#if !defined __GNUC__
#error "libpercpu needs GNU C extended asm: use gcc or clang"
#endif
#if !defined __linux__
#error "libpercpu is for Linux: restartable sequences are a Linux system call"
#endif

/** Marks a symbol that the shared library exports. */
#define PERCPU_API __attribute__((visibility("default")))
/** Marks a symbol that stays inside the library. */
#define PERCPU_HIDDEN __attribute__((visibility("hidden")))

#define PERCPU__INLINE      static inline __attribute__((always_inline, unused))
#define PERCPU__COLD        __attribute__((cold, noinline))
#define PERCPU__LIKELY(x)   __builtin_expect(!!(x), 1)
#define PERCPU__UNLIKELY(x) __builtin_expect(!!(x), 0)

PERCPU_BEGIN_DECLS

/**
 * percpu_version - the version of the library that is loaded, as "major.minor.patch".
 *
 * Returns a string that lives as long as the library. Wait-free, async-signal-safe.
 */
PERCPU_API const char *percpu_version(void);

PERCPU_END_DECLS

#endif
