/* SPDX-License-Identifier: MIT */
/* What tests/libc/phdr.c loads and unloads, with or without thread-local storage. */
#ifdef PLUGIN_TLS
__thread int plugin_word[100] = { 1 };
#else
int plugin_word[100] = { 1 };
#endif

/* The program's, where it wants to know. */
__attribute__((weak)) void plugin_starts(void);

__attribute__((constructor)) static void start(void)
{
	if (plugin_starts)
		plugin_starts();
}
