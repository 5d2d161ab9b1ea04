/* SPDX-License-Identifier: MIT */
/*
 * Mutexes, condition variables and thread creation.
 *
 * To tell whether a lock call had to wait, it tries first: every type and protocol of mutex answers a try as it answers
 * a lock (EOWNERDEAD, ENOTRECOVERABLE, EAGAIN, EINVAL, success for the owner of a recursive one), except that where the
 * lock would wait, or would report EDEADLK, the try says EBUSY. Then the lock itself decides.
 *
 * With a single thread the C library locks without an atomic instruction, but tries with one. There nobody can hold the
 * mutex but another process, so only a mutex between processes is tried.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/single_threaded.h>
#include <threads.h>
#include <time.h>

#include "preload/count.h"

/* x86-64 has had two kinds of condition variable; the older one's symbols are left to the C library. */
#if defined __x86_64__
#define COND_VERSION "GLIBC_2.3.2"
#else
#define COND_VERSION NULL
#endif

REAL(int, pthread_mutex_lock, (pthread_mutex_t * mutex), (mutex))
REAL(int, pthread_mutex_trylock, (pthread_mutex_t * mutex), (mutex))
REAL(int, pthread_mutex_timedlock, (pthread_mutex_t * mutex, const struct timespec *until), (mutex, until))
REAL(int, pthread_mutex_clocklock, (pthread_mutex_t * mutex, clockid_t clock, const struct timespec *until),
     (mutex, clock, until))
REAL(int, pthread_mutex_unlock, (pthread_mutex_t * mutex), (mutex))
REAL_VERSION(int, pthread_cond_wait, (pthread_cond_t * cond, pthread_mutex_t *mutex), (cond, mutex), COND_VERSION)
REAL_VERSION(int, pthread_cond_timedwait, (pthread_cond_t * cond, pthread_mutex_t *mutex, const struct timespec *until),
	     (cond, mutex, until), COND_VERSION)
REAL(int, pthread_cond_clockwait,
     (pthread_cond_t * cond, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until),
     (cond, mutex, clock, until))
REAL(int, pthread_create, (pthread_t * thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg),
     (thread, attr, start, arg))
REAL(int, mtx_lock, (mtx_t * mutex), (mutex))
REAL(int, mtx_trylock, (mtx_t * mutex), (mutex))
REAL(int, mtx_timedlock, (mtx_t * mutex, const struct timespec *until), (mutex, until))
REAL(int, mtx_unlock, (mtx_t * mutex), (mutex))
REAL(int, cnd_wait, (cnd_t * cond, mtx_t *mutex), (cond, mutex))
REAL(int, cnd_timedwait, (cnd_t * cond, mtx_t *mutex, const struct timespec *until), (cond, mutex, until))
REAL(int, thrd_create, (thrd_t * thread, thrd_start_t start, void *arg), (thread, start, arg))

/* In the kind of a mutex, as the C library's static initialisers and pthread_mutex_init() have it. */
#define SHARED_BIT 128

static inline bool cannot_wait(const pthread_mutex_t *mutex)
{
	return __libc_single_threaded && !(mutex->__data.__kind & SHARED_BIT);
}

EXPORT int pthread_mutex_lock(pthread_mutex_t *mutex)
{
	int rc;

	count(COUNT_LOCK_CALLS, 1);
	if (cannot_wait(mutex))
		return real_pthread_mutex_lock(mutex);
	rc = real_pthread_mutex_trylock(mutex);
	if (PERCPU__LIKELY(rc != EBUSY))
		return rc;
	count(COUNT_LOCK_WAITS, 1);
	return real_pthread_mutex_lock(mutex);
}

EXPORT int pthread_mutex_trylock(pthread_mutex_t *mutex)
{
	count(COUNT_TRYLOCK_CALLS, 1);
	return real_pthread_mutex_trylock(mutex);
}

EXPORT int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until)
{
	int rc;

	count(COUNT_LOCK_CALLS, 1);
	rc = real_pthread_mutex_trylock(mutex);
	if (PERCPU__LIKELY(rc != EBUSY))
		return rc;
	count(COUNT_LOCK_WAITS, 1);
	return real_pthread_mutex_timedlock(mutex, until);
}

EXPORT int pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until)
{
	int rc;

	count(COUNT_LOCK_CALLS, 1);
	/* A clock that it does not take is an error even where it need not wait. */
	if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC)
		return real_pthread_mutex_clocklock(mutex, clock, until);
	rc = real_pthread_mutex_trylock(mutex);
	if (PERCPU__LIKELY(rc != EBUSY))
		return rc;
	count(COUNT_LOCK_WAITS, 1);
	return real_pthread_mutex_clocklock(mutex, clock, until);
}

EXPORT int pthread_mutex_unlock(pthread_mutex_t *mutex)
{
	count(COUNT_UNLOCK_CALLS, 1);
	return real_pthread_mutex_unlock(mutex);
}

EXPORT int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
	count(COUNT_COND_WAITS, 1);
	return real_pthread_cond_wait(cond, mutex);
}

EXPORT int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until)
{
	count(COUNT_COND_WAITS, 1);
	return real_pthread_cond_timedwait(cond, mutex, until);
}

EXPORT int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock,
				  const struct timespec *until)
{
	count(COUNT_COND_WAITS, 1);
	return real_pthread_cond_clockwait(cond, mutex, clock, until);
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg)
{
	count(COUNT_THREADS, 1);
	return real_pthread_create(thread, attr, start, arg);
}

/* The C11 names; inside the C library they do not go through the ones above. */

EXPORT int mtx_lock(mtx_t *mutex)
{
	int rc;

	count(COUNT_LOCK_CALLS, 1);
	rc = real_mtx_trylock(mutex);
	if (PERCPU__LIKELY(rc != thrd_busy))
		return rc;
	count(COUNT_LOCK_WAITS, 1);
	return real_mtx_lock(mutex);
}

EXPORT int mtx_trylock(mtx_t *mutex)
{
	count(COUNT_TRYLOCK_CALLS, 1);
	return real_mtx_trylock(mutex);
}

EXPORT int mtx_timedlock(mtx_t *restrict mutex, const struct timespec *restrict until)
{
	int rc;

	count(COUNT_LOCK_CALLS, 1);
	rc = real_mtx_trylock(mutex);
	if (PERCPU__LIKELY(rc != thrd_busy))
		return rc;
	count(COUNT_LOCK_WAITS, 1);
	return real_mtx_timedlock(mutex, until);
}

EXPORT int mtx_unlock(mtx_t *mutex)
{
	count(COUNT_UNLOCK_CALLS, 1);
	return real_mtx_unlock(mutex);
}

EXPORT int cnd_wait(cnd_t *cond, mtx_t *mutex)
{
	count(COUNT_COND_WAITS, 1);
	return real_cnd_wait(cond, mutex);
}

EXPORT int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict until)
{
	count(COUNT_COND_WAITS, 1);
	return real_cnd_timedwait(cond, mutex, until);
}

EXPORT int thrd_create(thrd_t *thread, thrd_start_t start, void *arg)
{
	count(COUNT_THREADS, 1);
	return real_thrd_create(thread, start, arg);
}
