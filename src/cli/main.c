/* SPDX-License-Identifier: MIT */
/* percpu: finds the subcommand. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <percpu/base.h>

#include "cli/cli.h"

static const char help_text[] = "Usage: percpu COMMAND [OPTION...]\n"
				"\n"
				"  info    what this machine and kernel give to per-CPU programs\n"
#ifdef HAVE_MALLOC
				"  run     run a program on the per-CPU allocator\n"
#endif
#ifdef HAVE_HEAP_PROFILE
				"  heap-profile  which functions have allocated what is in use\n"
#endif
				"  stat    run a program and count what it does, per CPU\n"
				"  bench   measure the operations beside their rivals\n"
				"  help    this text\n"
				"\n"
				"  --version  the version\n"
				"\n"
				"\"percpu COMMAND --help\" tells the options of each; the manual is percpu(1).\n";

static void complain(const char *format, va_list arguments)
{
	char line[4096] = "percpu: ";
	int n = (int)strlen(line);
	int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, format, arguments);

	if (m > 0)
		n += m < (int)sizeof(line) - n - 1 ? m : (int)sizeof(line) - n - 2;
	line[n++] = '\n';
	(void)!write(STDERR_FILENO, line, (size_t)n);
}

void cli_complain(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	complain(format, arguments);
	va_end(arguments);
}

int cli_usage(const char *command, const char *format, ...)
{
	char text[3072];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	cli_complain("%s; see \"percpu%s%s --help\"", text, *command ? " " : "", command);
	return EXIT_USAGE;
}

int cli_bad_option(const char *command, int result, char **argv)
{
	char letter[3] = { '-', (char)optopt, '\0' };
	const char *name = optopt > ' ' && optopt < 127 ? letter : argv[optind - 1];

	if (result == ':')
		return cli_usage(command, "option %s needs a value", name);
	return cli_usage(command, "unknown option %s", name);
}

int cli_close_stdout(void)
{
	int failed = ferror(stdout);

	errno = 0;
	if (fclose(stdout) || failed) {
		cli_complain("cannot write to standard output%s%s", errno ? ": " : "", errno ? strerror(errno) : "");
		return EXIT_FAILED;
	}
	return 0;
}

/*
 * A standard descriptor that was closed must not become one of our files. What stands there instead fails when used, as
 * a closed one does, and is closed again in a program that we start.
 */
static void keep_standard_descriptors(void)
{
	static const int unusable[] = { O_WRONLY, O_RDONLY, O_RDONLY };

	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			(void)!open("/dev/null", unusable[fd] | O_CLOEXEC);
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";

	keep_standard_descriptors();
	if (!strcmp(command, "info"))
		return percpu_info_main(argc - 1, argv + 1);
	if (!strcmp(command, "stat"))
		return percpu_stat_main(argc - 1, argv + 1);
#ifdef HAVE_MALLOC
	if (!strcmp(command, "run"))
		return percpu_run_main(argc - 1, argv + 1);
#endif
#ifdef HAVE_HEAP_PROFILE
	if (!strcmp(command, "heap-profile"))
		return percpu_heap_profile_main(argc - 1, argv + 1);
#endif
	if (!strcmp(command, "bench"))
		return percpu_bench_main(argc - 1, argv + 1);
	if (!strcmp(command, "bench-malloc-child"))
		return percpu_bench_malloc_child_main(argc - 1, argv + 1);
	if (!strcmp(command, "help") || !strcmp(command, "--help") || !strcmp(command, "-h")) {
		fputs(help_text, stdout);
		return cli_close_stdout();
	}
	if (!strcmp(command, "--version") || !strcmp(command, "-V")) {
		printf("percpu %s\n", percpu_version());
		return cli_close_stdout();
	}
	if (!*command)
		return cli_usage("", "which command? info, run, stat or bench");
	return cli_usage("", "unknown %s %s", *command == '-' ? "option" : "command", command);
}
