/*
 * A process that does a little of everything, over and over, and writes down how each of it goes.
 *
 * `workload echo PORT` answers TCP and UDP, and keeps count in /run/resets of connections that were reset. `workload exercise NAME IP PORT [UID]` keeps connections to it open, numbers what it
 * sends, and holds what comes back against that; beside it writes to pipes, files and unix sockets, and counts in a second
 * thread. /run/exercise/NAME has a line for each: how often it went well, how often it was refused, with which errno last,
 * and how often what came back was wrong. SIGUSR1 makes a child of the same kind (NAME.child), SIGUSR2 one whose parent
 * ends (NAME.orphan). `workload receiver FILE IP PORT [1]` waits for what never comes, and writes down how that ended; with 1 a
 * child holds the same connection. `workload cost N` prints what a call on a socket takes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "net.h"
#include "workload.h"

enum { ROUND = 5000 /* us */ };

struct count {
	const char *name;
	unsigned long ok, refused, wrong;
	int error;
};

/* In the order of the lines. */
enum { TCP4, TCP6, UDP4, UDP6, PACKET, MAKE, BIND, DIAL, SENDFILE, SPLICE, UNIX, PIPE, FILES, OPEN, EXEC, KILL, SELF, TRACE, MEMORY, THREAD, KINDS };
static struct count counts[KINDS] = {
	{ .name = "tcp4" }, { .name = "tcp6" }, { .name = "udp4" }, { .name = "udp6" }, { .name = "packet" }, { .name = "make" }, { .name = "bind" },
	{ .name = "dial" }, { .name = "sendfile" }, { .name = "splice" }, { .name = "unix" }, { .name = "pipe" },
	{ .name = "files" }, { .name = "open" }, { .name = "exec" }, { .name = "kill" }, { .name = "self" },
	{ .name = "trace" }, { .name = "memory" }, { .name = "thread" },
};
static unsigned int block[1 << 16]; /* of a pattern, which stays */
static volatile sig_atomic_t wanted;
static volatile unsigned long ticks;

static void count_reset(void)
{
	static int resets;
	int file = open("/run/resets", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);

	if (file >= 0) {
		dprintf(file, "%d\n", __atomic_add_fetch(&resets, 1, __ATOMIC_SEQ_CST));
		close(file);
	}
}

static void *answer(void *data)
{
	char text[4096];
	int fd = (intptr_t)data;

	for (;;) {
		ssize_t n = recv(fd, text, sizeof(text), 0);
		if (n < 0 && errno == ECONNRESET)
			count_reset();
		if (n <= 0)
			break;
		for (ssize_t done = 0; done < n;) {
			ssize_t sent = send(fd, text + done, n - done, MSG_NOSIGNAL);
			if (sent <= 0)
				break;
			done += sent;
		}
	}
	close(fd);
	return NULL;
}

static void *answer_udp(void *data)
{
	char text[4096];
	int fd = (intptr_t)data;

	for (;;) {
		struct sockaddr_storage from;
		socklen_t size = sizeof(from);
		ssize_t n = recvfrom(fd, text, sizeof(text), 0, (void *)&from, &size);

		if (n > 0)
			sendto(fd, text, n, MSG_NOSIGNAL, (void *)&from, size);
	}
	return NULL;
}

noreturn void echo(int port)
{
	int listener = tcp_listener("::", port, 64, 0);
	pthread_t thread;

	rename_self("echo");
	pthread_create(&thread, NULL, answer_udp, (void *)(intptr_t)inet_bound("::", port, SOCK_DGRAM, 0));
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			pthread_create(&thread, NULL, answer, (void *)(intptr_t)fd);
	}
}

static void *tick(void *unused)
{
	for (;;) {
		ticks++;
		usleep(1000);
	}
	return unused;
}

static void on_signal(int number)
{
	wanted = number;
}

static int count(int kind, long result)
{
	if (result >= 0) {
		counts[kind].ok++;
		return 1;
	}
	if (errno != EAGAIN && errno != EINPROGRESS) {
		counts[kind].refused++;
		counts[kind].error = errno;
	}
	return 0;
}

/* Send the next numbers, take those that came back: all of them, in order, is right. */
static void stream(int kind, int fd, uint64_t *sent, uint64_t *seen)
{
	uint64_t number = *sent + 1;

	if (count(kind, send(fd, &number, sizeof(number), MSG_DONTWAIT | MSG_NOSIGNAL)))
		*sent = number;
	/* Whole numbers only; between looking and taking a call may come to be refused. */
	while (recv(fd, &number, sizeof(number), MSG_DONTWAIT | MSG_PEEK) == sizeof(number)) {
		if (recv(fd, &number, sizeof(number), MSG_DONTWAIT) != sizeof(number))
			break;
		if (number != ++*seen)
			counts[kind].wrong++;
	}
	if (recv(fd, &number, sizeof(number), MSG_DONTWAIT | MSG_PEEK) < 0)
		count(kind, -1);
}

static void datagram(int kind, int fd, uint64_t *sent)
{
	uint64_t number = *sent + 1;

	if (count(kind, send(fd, &number, sizeof(number), MSG_DONTWAIT | MSG_NOSIGNAL)))
		*sent = number;
	if (recv(fd, &number, sizeof(number), MSG_DONTWAIT) < 0)
		count(kind, -1);
}

/* Through a pair of descriptors, or into a file, and back. */
static void local(int kind, int in, int out)
{
	char text[8] = "", back[8] = "?";

	snprintf(text, sizeof(text), "%lu", counts[kind].ok % 1000000);
	if (!count(kind, in == out ? pwrite(in, text, sizeof(text), 0) : write(in, text, sizeof(text))))
		return;
	if ((in == out ? pread(in, back, sizeof(back), 0) : read(out, back, sizeof(back))) != sizeof(back) || strcmp(text, back))
		counts[kind].wrong++;
}

static void write_down(int fd)
{
	char text[4096];
	size_t size = 0;

	for (int i = 0; i < KINDS; i++)
		size += snprintf(text + size, sizeof(text) - size, "%s %lu %lu %d %lu\n", counts[i].name, counts[i].ok,
				 counts[i].refused, counts[i].error, counts[i].wrong);
	if (pwrite(fd, text, size, 0) == (ssize_t)size) /* it grows only */
		return;
	die("status");
}

/* A connected socket, or -1 and a refusal counted. */
static int dial(int kind, const char *ip, int type, int port)
{
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int v6 = strchr(ip, ':') != NULL, fd = socket(v6 ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, 0);

	inet_pton(AF_INET, ip, &four.sin_addr);
	inet_pton(AF_INET6, ip, &six.sin6_addr);
	if (fd >= 0 && connect(fd, v6 ? (void *)&six : (void *)&four, v6 ? sizeof(six) : sizeof(four))) {
		close(fd);
		fd = -1;
	}
	if (fd < 0)
		count(kind, -1);
	return fd;
}

/* Fill the block, or count whether it still is as it was filled. */
static void remember(int fill)
{
	unsigned int wrong = 0;

	for (unsigned int i = 0; i < sizeof(block) / sizeof(*block); i++)
		if (fill)
			block[i] = i * 2654435761u;
		else
			wrong += block[i] != i * 2654435761u;
	counts[MEMORY].ok += !fill && !wrong;
	counts[MEMORY].wrong += wrong;
}

/* What is not done all the time: new sockets, files, programs, signals. */
static void act(int bulk, const char *ip, int port)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in any = { .sin_family = AF_INET };
	int file = open("/run/exercise/.data", O_RDONLY | O_CLOEXEC), pipes[2], status = 0;
	off_t start = 0;

	inet_pton(AF_INET, ip, &here.sin_addr);
	if (count(OPEN, file)) {
		if (bulk >= 0)
			count(SENDFILE, sendfile(bulk, file, &start, 8));
		close(file);
	}
	if (bulk >= 0 && !pipe2(pipes, O_CLOEXEC | O_NONBLOCK)) {
		struct pollfd p = { .fd = bulk, .events = POLLIN };

		poll(&p, 1, 100);
		count(SPLICE, splice(bulk, NULL, pipes[1], NULL, 4096, SPLICE_F_NONBLOCK));
		close(pipes[0]);
		close(pipes[1]);
	}
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (count(MAKE, fd)) {
		count(BIND, bind(fd, (void *)&any, sizeof(any)));
		count(DIAL, connect(fd, (void *)&here, sizeof(here)));
		close(fd);
	}
	if (count(PACKET, fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)))
		close(fd);
	pid_t child = fork();
	if (!child) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(errno);
	}
	if (child > 0 && waitpid(child, &status, 0) == child) {
		errno = WEXITSTATUS(status);
		count(EXEC, WEXITSTATUS(status) ? -1 : 0);
	}
	count(KILL, kill(getppid(), 0));
	count(SELF, kill(getpid(), 0));
	if (pipe2(pipes, O_CLOEXEC))
		return;
	child = fork();
	if (!child) {
		close(pipes[1]);
		_exit(read(pipes[0], &status, 1)); /* until its parent lets go of the other end */
	}
	count(TRACE, ptrace(PTRACE_SEIZE, child, 0, 0));
	close(pipes[0]);
	close(pipes[1]);
	waitpid(child, &status, 0);
}

/* A copy of this process, of which nothing is kept open; with `orphan` its parent ends. */
static int multiply(int orphan)
{
	pid_t child = fork();

	if (child)
		return 0;
	if (orphan && fork())
		_exit(0);
	ticks = 0;
	for (int i = 0; i < KINDS; i++)
		counts[i].ok = counts[i].refused = counts[i].wrong = counts[i].error = 0;
	return 1;
}

noreturn void exercise(const char *name, const char *ip, int port, int uid)
{
	uint64_t sent[4] = { 0 }, seen[2] = { 0 };
	int fd[5] = { -1, -1, -1, -1, -1 }, pair[2], pipes[2], file, status;
	char path[256];
	pthread_t thread;

	signal(SIGUSR1, on_signal);
	signal(SIGUSR2, on_signal);
	signal(SIGPIPE, SIG_IGN);
	remember(1);
	mkdir("/run/exercise", 0777);
	chmod("/run/exercise", 0777);
	if ((file = open("/run/exercise/.data", O_WRONLY | O_CREAT, 0666)) >= 0) {
		must(write(file, "01234567", 8), "write");
		close(file);
	}
	must(setuid(uid), "setuid");
again:
	snprintf(path, sizeof(path), "/run/exercise/%s", name);
	rename_self("%s", name);
	status = must(open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), path);
	snprintf(path, sizeof(path), "/run/exercise/.%s", name);
	file = must(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), path);
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
	must(pipe2(pipes, O_CLOEXEC), "pipe");
	pthread_create(&thread, NULL, tick, NULL);
	for (unsigned long round = 0;; round++) {
		for (int kind = TCP4; kind <= UDP6; kind++)
			if (fd[kind] < 0 && round % 20 == 0) {
				int v6 = kind == TCP6 || kind == UDP6;

				fd[kind] = dial(kind, v6 ? "::1" : ip, kind < UDP4 ? SOCK_STREAM : SOCK_DGRAM, port);
			}
		if (fd[4] < 0 && round % 20 == 0)
			if ((fd[4] = dial(DIAL, ip, SOCK_STREAM, port)) >= 0)
				fcntl(fd[4], F_SETFL, O_NONBLOCK);
		for (int kind = TCP4; kind <= UDP6; kind++)
			if (fd[kind] >= 0 && kind < UDP4)
				stream(kind, fd[kind], &sent[kind], &seen[kind]);
			else if (fd[kind] >= 0)
				datagram(kind, fd[kind], &sent[kind]);
		local(UNIX, pair[0], pair[1]);
		local(PIPE, pipes[1], pipes[0]);
		local(FILES, file, file);
		if (round % 20 == 10) {
			act(fd[4], ip, port);
			remember(0);
		}
		counts[THREAD].ok = ticks;
		write_down(status);
		usleep(ROUND);
		if (wanted) {
			int orphan = wanted == SIGUSR2;
			static char longer[128];
			char before[64];

			wanted = 0;
			if (multiply(orphan)) {
				for (int i = 0; i < 5; i++) {
					close(fd[i]);
					fd[i] = -1;
				}
				memset(sent, 0, sizeof(sent));
				memset(seen, 0, sizeof(seen));
				snprintf(before, sizeof(before), "%.40s", name);
				snprintf(longer, sizeof(longer), "%s.%s", before, orphan ? "orphan" : "child");
				name = longer;
				goto again;
			}
		}
	}
}

noreturn void receiver(const char *path, const char *ip, int port, int shared)
{
	char byte;
	int file = must(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), path);
	int fd = must(dial(TCP4, ip, SOCK_STREAM, port), "dial");

	rename_self("receiver");
	if (shared && !fork()) {
		rename_self("sharer");
		pause();
	}
	dprintf(file, "waits\n");
	ssize_t n = recv(fd, &byte, 1, 0);
	dprintf(file, "%zd %d\n", n, errno);
	for (;;)
		pause();
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

/* Nanoseconds that the shortest call on a socket takes: receiving where nothing waits. The best of ten rounds. */
void cost(int n)
{
	char byte;
	int fd = inet_bound("127.0.0.1", 0, SOCK_DGRAM, 0);
	double best = 1e18;

	for (int round = 0; round < 10; round++) {
		double start = now();

		for (int i = 0; i < n; i++)
			recv(fd, &byte, 1, MSG_DONTWAIT);
		double took = (now() - start) / n;
		best = took < best ? took : best;
	}
	printf("%.0f\n", best);
}
