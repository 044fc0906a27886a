/*
 * Processes that come and go as quickly as the guest can make them: `workload churn N` runs N makers of them for ever.
 *
 * Each child says who it is in all that a reader may put together wrongly: its name is `churn-PID`, its user 10000 + PID % 1000,
 * its TCP connection comes from port 20000 + PID % 10000, and the file it holds open is /tmp/churn/PID.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

enum { PORT = 7200 };

static int tcp_socket(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct linger hard = { .l_onoff = 1 };
	int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"), on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)); /* nothing stays behind in TIME_WAIT */
	if (bind(fd, (void *)&address, sizeof(address)) < 0)
		return close(fd), -1;
	return fd;
}

static void live(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int pid = getpid(), uid = 10000 + pid % 1000;
	char path[64];

	rename_self("churn-%d", pid);
	snprintf(path, sizeof(path), "/tmp/churn/%d", pid);
	open(path, O_RDWR | O_CREAT, 0600);
	int fd = tcp_socket(20000 + pid % 10000);
	if (fd >= 0)
		connect(fd, (void *)&to, sizeof(to));
	if (setresuid(uid, uid, uid) < 0)
		_exit(1);
	for (int i = 0; i < 8; i++) { /* regions that come and go */
		char *at = mmap(NULL, 8192 * (i + 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		*at = 1;
		sched_yield();
		if (i & 1)
			munmap(at, 8192 * (i + 1));
	}
	_exit(0);
}

noreturn void churn(int n)
{
	mkdir("/tmp/churn", 0777);
	signal(SIGCHLD, SIG_DFL);
	int listener = must(tcp_socket(PORT), "bind");
	must(listen(listener, 64), "listen");
	for (int i = 0; i < n; i++) {
		if (fork())
			continue;
		close(listener);
		rename_self("maker");
		for (;;) {
			pid_t child = fork();
			char path[64];

			if (!child)
				live();
			waitpid(child, NULL, 0);
			snprintf(path, sizeof(path), "/tmp/churn/%d", child);
			unlink(path);
		}
	}
	rename_self("answerer");
	for (;;)
		close(accept(listener, NULL, NULL));
}
