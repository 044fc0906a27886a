/* A parent that tells what it sees of its child: `workload wait FILE PROGRAM ...`, a line for each wait status. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

noreturn void wait_for(const char *path, char **program)
{
	FILE *told = fopen(path, "we");
	pid_t child;
	int status;

	if (!told)
		die("open");
	setlinebuf(told);
	child = must(fork(), "fork");
	if (!child) {
		execvp(*program, program);
		_exit(127);
	}
	fprintf(told, "pid %d\n", child);
	while (waitpid(child, &status, WUNTRACED | WCONTINUED) == child) {
		if (WIFSTOPPED(status))
			fprintf(told, "stopped %d\n", WSTOPSIG(status));
		else if (WIFCONTINUED(status))
			fprintf(told, "continued\n");
		else if (WIFSIGNALED(status))
			fprintf(told, "killed %d\n", WTERMSIG(status));
		else
			fprintf(told, "exited %d\n", WEXITSTATUS(status));
	}
	exit(0);
}
