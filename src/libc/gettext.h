/* SPDX-License-Identifier: MIT */
/* Messages by the C library's functions, but without its locks where it has answered before, see gettext.c. */
#ifndef PERCPU_SRC_LIBC_GETTEXT_H
#define PERCPU_SRC_LIBC_GETTEXT_H

#include <percpu/base.h>

/* As dcgettext(3) and dcngettext(3); gettext() and the others are the same with less said. */
PERCPU_HIDDEN char *percpu__dcgettext(const char *domain, const char *msgid, int category);
PERCPU_HIDDEN char *percpu__dcngettext(const char *domain, const char *msgid, const char *plural, unsigned long n,
				       int category);

#endif
