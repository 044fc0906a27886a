/* Opening internet sockets in one line; see net.h. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net.h"
#include "workload.h"

static socklen_t address(const char *ip, int port, struct sockaddr_storage *out)
{
	struct sockaddr_in *four = (void *)out;
	struct sockaddr_in6 *six = (void *)out;

	memset(out, 0, sizeof(*out));
	if (inet_pton(AF_INET, ip, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(port);
		return sizeof(*four);
	}
	must(inet_pton(AF_INET6, ip, &six->sin6_addr) - 1, ip);
	six->sin6_family = AF_INET6;
	six->sin6_port = htons(port);
	return sizeof(*six);
}

void set_option(int fd, int level, int option, int value)
{
	must(setsockopt(fd, level, option, &value, sizeof(value)), "setsockopt");
}

int inet_socket(const char *ip, int type, int protocol)
{
	return must(socket(strchr(ip, ':') ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, protocol), "socket");
}

int inet_bound(const char *ip, int port, int type, int protocol)
{
	struct sockaddr_storage to;
	int fd = inet_socket(ip, type, protocol);

	set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	must(bind(fd, (void *)&to, address(ip, port, &to)), "bind");
	return fd;
}

void inet_connect(int fd, const char *ip, int port)
{
	struct sockaddr_storage to;

	if (connect(fd, (void *)&to, address(ip, port, &to)) && errno != EINPROGRESS)
		die("connect");
}

int tcp_listener(const char *ip, int port, int backlog, int only6)
{
	struct sockaddr_storage to;
	int fd = inet_socket(ip, SOCK_STREAM, 0);

	set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	if (only6)
		set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	must(bind(fd, (void *)&to, address(ip, port, &to)), "bind");
	must(listen(fd, backlog), "listen");
	return fd;
}

int tcp_state(int fd)
{
	struct tcp_info info;
	socklen_t size = sizeof(info);

	must(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size), "TCP_INFO");
	return info.tcpi_state;
}

int tcp_dial(const char *ip, int port)
{
	int fd = inet_socket(ip, SOCK_STREAM | SOCK_NONBLOCK, 0);

	inet_connect(fd, ip, port);
	return fd;
}

void tcp_reach(int fd, int state)
{
	for (int i = 0; i < 2000; i++) {
		if (tcp_state(fd) == state)
			return;
		usleep(10000);
	}
	errno = ETIMEDOUT;
	die("a TCP state is not reached");
}

int local_port(int fd)
{
	struct sockaddr_storage at;
	socklen_t size = sizeof(at);

	must(getsockname(fd, (void *)&at, &size), "getsockname");
	return ntohs(((struct sockaddr_in *)&at)->sin_port); /* at the same place in IPv6's */
}

int tcp_pair(int listener, const char *ip, int *accepted)
{
	int client = inet_socket(ip, SOCK_STREAM, 0);

	inet_connect(client, ip, local_port(listener));
	*accepted = must(accept4(listener, NULL, NULL, SOCK_CLOEXEC), "accept");
	return client;
}
