/* SPDX-License-Identifier: MIT */
/* gettext(3) and its family by the C library's names. */
#include <libintl.h>
#include <locale.h>

#include "libc/gettext.h"

#undef gettext
#undef dgettext
#undef dcgettext
#undef ngettext
#undef dngettext
#undef dcngettext

#define NAME __attribute__((visibility("default")))

NAME char *gettext(const char *msgid)
{
	return percpu__dcgettext(NULL, msgid, LC_MESSAGES);
}

NAME char *dgettext(const char *domain, const char *msgid)
{
	return percpu__dcgettext(domain, msgid, LC_MESSAGES);
}

NAME char *dcgettext(const char *domain, const char *msgid, int category)
{
	return percpu__dcgettext(domain, msgid, category);
}

NAME char *ngettext(const char *msgid, const char *plural, unsigned long n)
{
	return percpu__dcngettext(NULL, msgid, plural, n, LC_MESSAGES);
}

NAME char *dngettext(const char *domain, const char *msgid, const char *plural, unsigned long n)
{
	return percpu__dcngettext(domain, msgid, plural, n, LC_MESSAGES);
}

NAME char *dcngettext(const char *domain, const char *msgid, const char *plural, unsigned long n, int category)
{
	return percpu__dcngettext(domain, msgid, plural, n, category);
}
