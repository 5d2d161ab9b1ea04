/* SPDX-License-Identifier: MIT */
/* The memory for counts of `percpu stat`, and how the program finds it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/stat.h"

int run_prepare(struct run *run)
{
	struct session_header *header;
	void *base = NULL;
	int rc;

	*run = (struct run){ .fd = child_file_make(SESSION_NAME) };
	rc = run->fd < 0 ? run->fd : percpu_area_map(run->fd, &base);
	if (rc) {
		cli_complain("cannot make the memory for counts: %s", strerror(-rc));
		return EXIT_REFUSED;
	}
	header = session_header(base);
	rc = child_file_share(run->fd, run->path, &header->key);
	if (rc)
		return rc;
	header->magic = SESSION_MAGIC;
	header->layout = session_layout();
	header->copies = percpu_copies();
	run->base = base;
	return 0;
}

struct variables {
	const struct run *run;
	const char *preload;
};

static bool set_variables(void *arg)
{
	const struct variables *variables = arg;
	char session[96];

	snprintf(session, sizeof(session), "%s %016" PRIx64, variables->run->path,
		 session_header(variables->run->base)->key);
	return child_preload(variables->preload) && !setenv(SESSION_ENV, session, 1);
}

int run_start(struct run *run, const char *path, char **argv)
{
	char preload[4096];
	struct variables variables = { run, preload };
	int rc = cli_find_object("../preload/libpercpu-stat.so", "percpu/libpercpu-stat.so", preload, sizeof(preload));

	if (rc == -EINVAL) {
		cli_complain("%s has a space or a colon in its name: it cannot be preloaded", preload);
		return EXIT_REFUSED;
	}
	if (rc) {
		cli_complain("cannot find the object to preload, %s: %s", preload, strerror(-rc));
		return EXIT_REFUSED;
	}
	return child_start(&run->child, path, argv, set_variables, &variables);
}
