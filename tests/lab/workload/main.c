/*
 * What runs inside a lab guest, as one static binary.
 *
 * `agent TTY` answers the host, `init` reaps orphans, `bpf` lists eBPF's objects, `hold NAME ...` sits there, `wait FILE ...` waits
 * for a program, `netlink ...` asks the kernel what it knows of the network, and `start SCENARIO[=N] ...` makes processes and
 * sockets of shapes that a view from outside must get right. `start` returns when all of them are there, and prints what
 * went wrong: every process of a scenario holds the end of one pipe until it has settled.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nl.h"
#include "workload.h"

enum { PATIENCE = 60000 /* ms without a word */ };

static int starter = STDERR_FILENO; /* the pipe to `start` */
static const char *scenario_name = "workload";

static void report(const char *what, const char *verb)
{
	dprintf(starter, "%s: %s: %s: %s\n", scenario_name, verb, what, strerror(errno));
}

void die(const char *what)
{
	report(what, "failed");
	_exit(1);
}

void missing(const char *what)
{
	report(what, "missing");
}

int must(int value, const char *what)
{
	if (value < 0)
		die(what);
	return value;
}

void settled(void)
{
	if (starter != STDERR_FILENO)
		close(starter);
	starter = STDERR_FILENO;
}

void settle(void)
{
	settled();
	for (;;)
		pause();
}

void rename_self(const char *name, ...)
{
	char text[64];
	va_list args;

	va_start(args, name);
	vsnprintf(text, sizeof(text), name, args);
	va_end(args);
	prctl(PR_SET_NAME, text);
}

pid_t spawn(const char *name, ...)
{
	char text[64];
	va_list args;
	pid_t child = must(fork(), "fork");

	if (child == 0) {
		va_start(args, name);
		vsnprintf(text, sizeof(text), name, args);
		va_end(args);
		prctl(PR_SET_NAME, text);
	}
	return child;
}

void shell(const char *command, ...)
{
	char text[1024];
	va_list args;

	va_start(args, command);
	vsnprintf(text, sizeof(text), command, args);
	va_end(args);
	if (system(text)) {
		errno = ECANCELED;
		die(text);
	}
}

/* `workload title NAME TEXT PADDING`: TEXT over the arguments and what lies behind them, as setproctitle() does. */
noreturn static void title(char **argv)
{
	char *text = strdup(argv[3]), *end = argv[4] + strlen(argv[4]) + 1;
	size_t length = strlen(text);

	rename_self("%s", argv[2]);
	for (char **variable = environ; *variable; variable++)
		if (*variable == end)
			end += strlen(end) + 1;
	memset(argv[0], 0, end - argv[0]);
	if (argv[0] + length >= end)
		die("title");
	memcpy(argv[0], text, length);
	settle();
}

static const struct entry *find(const char *name, size_t length)
{
	const struct entry *all[] = { process_scenarios, socket_scenarios };

	for (size_t i = 0; i < 2; i++)
		for (const struct entry *e = all[i]; e->name; e++)
			if (strlen(e->name) == length && !memcmp(e->name, name, length))
				return e;
	errno = ENOENT;
	die(name);
}

static int start(int count, char **words)
{
	char text[4096];
	int ends[2], failed = 0;
	struct rlimit files = { 16384, 16384 };

	setrlimit(RLIMIT_NOFILE, &files);
	must(pipe2(ends, O_CLOEXEC), "pipe");
	int null = must(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null");
	for (int i = 0; i < count; i++) {
		size_t length = strcspn(words[i], "=");
		const struct entry *e = find(words[i], length);
		int n = words[i][length] ? atoi(words[i] + length + 1) : e->n;

		if (spawn("%s", e->name))
			continue;
		setsid();
		for (int fd = 0; fd < 3; fd++)
			dup2(null, fd);
		close(ends[0]);
		starter = ends[1];
		scenario_name = e->name;
		e->set_up(n);
		settle();
	}
	close(ends[1]);
	for (;;) {
		struct pollfd p = { .fd = ends[0], .events = POLLIN };

		if (poll(&p, 1, PATIENCE) <= 0) {
			printf("workload: failed: a scenario does not settle\n");
			return 1;
		}
		ssize_t n = read(ends[0], text, sizeof(text) - 1);
		if (n <= 0)
			return failed;
		text[n] = 0;
		failed |= strstr(text, ": failed: ") != NULL;
		fputs(text, stdout);
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (!strcmp(mode, "agent") && argc == 3)
		agent(argv[2]);
	if (!strcmp(mode, "hold") && argc > 2) {
		rename_self("%s", argv[2]);
		settle();
	}
	if (!strcmp(mode, "wait") && argc > 3)
		wait_for(argv[2], argv + 3);
	if (!strcmp(mode, "title") && argc == 5)
		title(argv);
	if (!strcmp(mode, "netlink") && argc == 6)
		return nl_dump(argv[2], atoi(argv[3]), atoi(argv[4]), argv[5]);
	if (!strcmp(mode, "bpf"))
		list_bpf();
	if (!strcmp(mode, "echo") && argc == 3)
		echo(atoi(argv[2]));
	if (!strcmp(mode, "receiver") && (argc == 5 || argc == 6))
		receiver(argv[2], argv[3], atoi(argv[4]), argc == 6);
	if (!strcmp(mode, "exercise") && (argc == 5 || argc == 6))
		exercise(argv[2], argv[3], atoi(argv[4]), argc == 6 ? atoi(argv[5]) : 0);
	if (!strcmp(mode, "cost") && argc == 3)
		return cost(atoi(argv[2])), 0;
	if (!strcmp(mode, "churn") && argc == 3)
		churn(atoi(argv[2]));
	if (!strcmp(mode, "start"))
		return start(argc - 2, argv + 2);
	if (!strcmp(mode, "init"))
		for (;;)
			if (wait(NULL) < 0)
				pause();
	fprintf(stderr, "usage: workload agent TTY | init | bpf | hold NAME ... | netlink NAMESPACE PROTOCOL TYPE HEX | "
		"start SCENARIO[=N] ...\n");
	return 2;
}
