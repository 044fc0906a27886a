/*
 * Runs the host's commands, which come over a serial port, and sends back what they print.
 *
 * A request is STX, "TOKEN SECONDS SIZE\n", and SIZE bytes of sh; its answer STX, "TOKEN STATUS SIZE\n", and SIZE
 * bytes. The host makes up the token, so nothing that a command prints can pass for an answer. A request that stops half
 * way (its sender was killed) is dropped after five seconds; a command that takes longer than SECONDS is killed. What it
 * leaves running in the background goes on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "workload.h"

enum { STX = 2, MOST_COMMAND = 1 << 16, MOST_OUTPUT = 32 << 20, PATIENCE = 5000 /* ms */ };

static void write_all(int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t n = write(fd, data, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("write to the host");
		data += n;
		size -= n;
	}
}

/* One byte, or -1 when none came within `timeout` ms. */
static int byte(int fd, int timeout)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	unsigned char c;

	if (poll(&p, 1, timeout) <= 0 || read(fd, &c, 1) != 1)
		return -1;
	return c;
}

static int run(const char *command, int seconds, char **output, size_t *size)
{
	char chunk[1 << 14];
	int ends[2], status = 0, ended = 0;
	time_t deadline = time(NULL) + seconds;
	size_t all = 0;

	must(pipe2(ends, O_CLOEXEC), "pipe");
	pid_t child = must(fork(), "fork");
	if (child == 0) {
		setsid();
		dup2(must(open("/dev/null", O_RDONLY | O_CLOEXEC), "/dev/null"), 0);
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	FILE *kept = open_memstream(output, size);
	for (;;) {
		struct pollfd p = { .fd = ends[0], .events = POLLIN };

		if (poll(&p, 1, ended ? 0 : 10) > 0) {
			ssize_t n = read(ends[0], chunk, sizeof(chunk));

			if (n > 0 && all < MOST_OUTPUT)
				all += fwrite(chunk, 1, n, kept);
			if (n > 0)
				continue;
			if (!ended)
				waitpid(child, &status, 0);
			break;
		}
		if (ended)
			break;
		if (time(NULL) > deadline)
			kill(-child, SIGKILL);
		ended = waitpid(child, &status, WNOHANG) != 0;
	}
	fclose(kept);
	close(ends[0]);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void agent(const char *path)
{
	static char command[MOST_COMMAND + 1];
	struct termios raw;
	int tty = must(open(path, O_RDWR | O_NOCTTY | O_CLOEXEC), path);

	tcgetattr(tty, &raw);
	cfmakeraw(&raw);
	tcsetattr(tty, TCSAFLUSH, &raw);
	if (must(fork(), "fork")) /* whoever started it goes on when the port is ready, and not before */
		_exit(0);
	for (;;) {
		char header[128], token[65], answer[160], *output;
		size_t length = 0, size, got = 0, made;
		int c, seconds;

		if (byte(tty, -1) != STX)
			continue;
		while ((c = byte(tty, PATIENCE)) >= 0 && c != '\n' && length < sizeof(header) - 1)
			header[length++] = c;
		header[length] = 0;
		if (sscanf(header, "%64s %d %zu", token, &seconds, &size) != 3 || size > MOST_COMMAND)
			continue;
		while (got < size && (c = byte(tty, PATIENCE)) >= 0)
			command[got++] = c;
		if (got < size)
			continue;
		command[size] = 0;
		int status = run(command, seconds, &output, &made);
		snprintf(answer, sizeof(answer), "%c%s %d %zu\n", STX, token, status, made);
		write_all(tty, answer, strlen(answer));
		write_all(tty, output, made);
		free(output);
	}
}
