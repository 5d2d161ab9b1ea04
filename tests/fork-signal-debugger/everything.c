/* SPDX-License-Identifier: MIT */
/*
 * Every operation, in two threads: for tools and places that the process is put into.
 *
 *   everything [TOPOLOGY]    its source must contain this word
 */
#include <pthread.h>

#include "everything.h"

static void *in_thread(void *arg)
{
	(void)arg;
	everything(0);
	return NULL;
}

int main(int argc, char **argv)
{
	struct percpu_description about;
	pthread_t thread;

	EXPECT(percpu_describe(&about) == 0);
	printf("mode %s, %u possible CPUs from %s\n", about.mode_name, about.possible_cpus, about.topology);
	EXPECT(argc < 2 || strstr(about.topology, argv[1]));
	everything(0);
	EXPECT(pthread_create(&thread, NULL, in_thread, NULL) == 0);
	EXPECT(pthread_join(thread, NULL) == 0);
	return 0;
}
