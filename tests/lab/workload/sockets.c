/* Sockets of every family but TCP (see tcp.c): UDP, raw, ping, unix, netlink, packet, vsock, and odd owners. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/vm_sockets.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "net.h"
#include "workload.h"

static char data[4096];

static void udp(int n)
{
	static const struct {
		const char *any, *self;
		int port;
	} families[] = { { "0.0.0.0", "127.0.0.1", 5300 }, { "::", "::1", 5301 }, { "::", "::ffff:127.0.0.1", 5302 } };

	(void)n;
	for (size_t i = 0; i < sizeof(families) / sizeof(*families); i++) {
		int waiting = inet_bound(families[i].any, families[i].port, SOCK_DGRAM, 0); /* with unread data */
		int connected = inet_bound(families[i].self, families[i].port + 100, SOCK_DGRAM, 0);

		inet_connect(connected, families[i].self, families[i].port);
		must(send(connected, data, 200 + i, 0), "send");
		must(send(connected, data, 300, 0), "send");
		(void)waiting;
	}
	int device = inet_socket("0.0.0.0", SOCK_DGRAM, 0);
	must(setsockopt(device, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3), "SO_BINDTODEVICE");
	set_option(device, SOL_SOCKET, SO_REUSEPORT, 1);
	for (int i = 0; i < 2; i++) { /* two on one port */
		int shared = inet_socket("0.0.0.0", SOCK_DGRAM, 0);
		struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(5350) };

		set_option(shared, SOL_SOCKET, SO_REUSEPORT, 1);
		must(bind(shared, (void *)&at, sizeof(at)), "bind");
	}
	inet_socket("0.0.0.0", SOCK_DGRAM, 0); /* unbound: in no table */
	if (!spawn("udp-lite")) {
		int fd = socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDPLITE);
		struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(5360) };

		if (fd < 0 || bind(fd, (void *)&at, sizeof(at)))
			missing("udp-lite");
		settle();
	}
	if (!spawn("udp-as-user")) {
		must(setgid(3001), "setgid");
		must(setuid(2001), "setuid");
		inet_bound("127.0.0.1", 5370, SOCK_DGRAM, 0);
		settle();
	}
}

static void raw(int n)
{
	struct icmphdr echo4 = { .type = ICMP_ECHO };
	struct icmp6_hdr echo6 = { .icmp6_type = ICMP6_ECHO_REQUEST };

	(void)n;
	if (!spawn("raw")) {
		inet_socket("0.0.0.0", SOCK_RAW, IPPROTO_ICMP);
		inet_socket("0.0.0.0", SOCK_RAW, IPPROTO_RAW);
		inet_socket("::", SOCK_RAW, IPPROTO_ICMPV6);
		inet_connect(inet_bound("127.0.0.1", 0, SOCK_RAW, IPPROTO_UDP), "127.0.0.2", 0);
		inet_connect(inet_bound("::1", 0, SOCK_RAW, 200), "::1", 0);
		settle();
	}
	if (!spawn("ping")) { /* as unprivileged ping makes them; the port is the echo's id */
		int four = inet_bound("127.0.0.1", 4444, SOCK_DGRAM, IPPROTO_ICMP);
		int six = inet_bound("::1", 6666, SOCK_DGRAM, IPPROTO_ICMPV6);

		inet_connect(four, "127.0.0.1", 0);
		must(send(four, &echo4, sizeof(echo4), 0), "ping");
		inet_connect(six, "::1", 0);
		must(send(six, &echo6, sizeof(echo6), 0), "ping6");
		settle();
	}
}

/* `path` may start with a NUL (`size` bytes then): an abstract name. */
static int unix_socket(int type, const char *path, size_t size)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = must(socket(AF_UNIX, type | SOCK_CLOEXEC, 0), "unix socket");

	memcpy(at.sun_path, path, size);
	if (size)
		must(bind(fd, (void *)&at, offsetof(struct sockaddr_un, sun_path) + size), "unix bind");
	return fd;
}

static int unix_dial(int type, const char *path, size_t size)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd = must(socket(AF_UNIX, type | SOCK_CLOEXEC, 0), "unix socket");

	memcpy(to.sun_path, path, size);
	must(connect(fd, (void *)&to, offsetof(struct sockaddr_un, sun_path) + size), "unix connect");
	return fd;
}

/* A listener, one accepted connection with unread data both ways, one that waits to be accepted. */
static void unix_server(int type, const char *path, size_t size)
{
	int listener = unix_socket(type, path, size);

	must(listen(listener, 5), "unix listen");
	int client = unix_dial(type, path, size);
	int server = must(accept4(listener, NULL, NULL, SOCK_CLOEXEC), "unix accept");
	must(send(client, data, 321, 0), "send");
	must(send(server, data, 54, 0), "send");
	must(send(unix_dial(type, path, size), data, 7, 0), "send");
}

static void unix_sockets(int n)
{
	int pair[2];
	char longest[sizeof(((struct sockaddr_un *)0)->sun_path)] = "/tmp/";

	(void)n;
	memset(longest + 5, 'p', sizeof(longest) - 5); /* as long as it goes: no NUL at the end */
	if (!spawn("unix-stream")) {
		unix_server(SOCK_STREAM, "/run/stream.sock", 17);
		unix_server(SOCK_STREAM, "\0abstract\0name", 14);
		unix_server(SOCK_STREAM, longest, sizeof(longest));
		unix_server(SOCK_STREAM, "/run/odd \033[1m\nname", 19);
		must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
		must(send(pair[0], data, 99, 0), "send");
		unix_socket(SOCK_STREAM, "", 0);
		settle();
	}
	if (!spawn("unix-seqpacket")) {
		unix_server(SOCK_SEQPACKET, "/run/seq.sock", 14);
		must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), "socketpair");
		settle();
	}
	if (!spawn("unix-dgram")) {
		unix_socket(SOCK_DGRAM, "/run/dgram.sock", 16);
		must(send(unix_dial(SOCK_DGRAM, "/run/dgram.sock", 16), data, 77, 0), "send");
		unix_socket(SOCK_DGRAM, "\0dgram", 6);
		must(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair), "socketpair");
		settle();
	}
	if (!spawn("unix-unlinked")) {
		must(listen(unix_socket(SOCK_STREAM, "/run/unlinked.sock", 19), 1), "listen");
		unlink("/run/unlinked.sock");
		settle();
	}
}

static void netlink(int n)
{
	static const struct {
		int protocol;
		unsigned groups;
	} all[] = { { NETLINK_ROUTE, 0x11 }, { NETLINK_GENERIC, 0 }, { NETLINK_KOBJECT_UEVENT, 1 }, { NETLINK_SOCK_DIAG, 0 }, { NETLINK_AUDIT, 0 }, { NETLINK_CONNECTOR, 0 }, { NETLINK_FIB_LOOKUP, 0 }, { NETLINK_XFRM, 0 } };

	(void)n;
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		struct sockaddr_nl at = { .nl_family = AF_NETLINK, .nl_groups = all[i].groups };
		int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, all[i].protocol);

		if (fd < 0 || bind(fd, (void *)&at, sizeof(at))) {
			char name[32];

			snprintf(name, sizeof(name), "netlink protocol %d", all[i].protocol);
			missing(name);
		}
	}
	must(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), "netlink"); /* unbound */
}

static void packet(int n)
{
	struct sockaddr_ll lo = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP), .sll_ifindex = if_nametoindex("lo") };

	(void)n;
	must(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), "packet");
	int fd = must(socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "packet");
	must(bind(fd, (void *)&lo, sizeof(lo)), "packet bind");
	fd = must(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), "packet");
	lo.sll_protocol = htons(ETH_P_ALL);
	must(bind(fd, (void *)&lo, sizeof(lo)), "packet bind");
}

static void vsock(int n)
{
	struct sockaddr_vm at = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 1234 };
	int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)n;
	if (listener < 0) {
		missing("vsock");
		return;
	}
	must(bind(listener, (void *)&at, sizeof(at)), "vsock bind");
	must(listen(listener, 4), "vsock listen");
	int client = must(socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0), "vsock");
	at.svm_cid = VMADDR_CID_LOCAL;
	if (connect(client, (void *)&at, sizeof(at))) {
		missing("vsock loopback");
		return;
	}
	must(accept4(listener, NULL, NULL, SOCK_CLOEXEC), "vsock accept");
	must(send(client, data, 88, 0), "vsock send");
}

/* Families that few tools know. */
static void others(int n)
{
	static const struct {
		const char *name;
		int family, type, protocol;
	} all[] = { { "alg", AF_ALG, SOCK_SEQPACKET, 0 }, { "xdp", 44, SOCK_RAW, 0 }, { "sctp", AF_INET, SOCK_SEQPACKET, IPPROTO_SCTP } };

	(void)n;
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		int fd = socket(all[i].family, all[i].type | SOCK_CLOEXEC, all[i].protocol);
		struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(5400) };

		if (fd < 0)
			missing(all[i].name);
		else if (all[i].protocol == IPPROTO_SCTP && (bind(fd, (void *)&at, sizeof(at)) || listen(fd, 4)))
			missing("sctp listen");
	}
}

static void *hop(void *unused)
{
	must(unshare(CLONE_NEWNET), "CLONE_NEWNET");
	rename_self("hopped-thread");
	tcp_listener("0.0.0.0", 7777, 4, 0);
	*(volatile int *)unused = 1;
	for (;;)
		pause();
	return NULL;
}

/* Sockets whose owners are not obvious. */
static void owners(int n)
{
	(void)n;
	if (!spawn("shared-parent")) { /* one socket, two processes, one of them twice */
		int fd = inet_bound("127.0.0.1", 5500, SOCK_DGRAM, 0);

		if (!spawn("shared-child"))
			settle();
		must(dup2(fd, 1000), "dup2");
		settle();
	}
	if (!spawn("in-flight")) { /* passed to nobody: no process has it, it is in a message */
		int pair[2], fd = tcp_listener("127.0.0.1", 7040, 4, 0);
		struct iovec one = { data, 1 };
		union {
			struct cmsghdr header;
			char room[CMSG_SPACE(sizeof(int))];
		} control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
		struct msghdr message = { .msg_iov = &one, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };

		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
		must(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair), "socketpair");
		must(sendmsg(pair[0], &message, 0), "sendmsg");
		close(fd);
		settle();
	}
	if (!spawn("netns-holder")) { /* a network namespace with a socket in it, and no process */
		int home = must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "ns/net");

		must(unshare(CLONE_NEWNET), "CLONE_NEWNET");
		tcp_listener("0.0.0.0", 7070, 4, 0);
		must(setns(home, CLONE_NEWNET), "setns");
		settle();
	}
	if (!spawn("netns-thread")) { /* the second thread lives in another network namespace */
		pthread_t thread;
		volatile int there = 0;

		errno = pthread_create(&thread, NULL, hop, (void *)&there);
		while (!errno && !there)
			usleep(1000);
		settle();
	}
}

/* `n` more sockets in one process: 5 of 10 TCP connections' ends, 1 listener, 2 UDP, 2 unix. */
static void bulk(int n)
{
	int listener = tcp_listener("127.0.0.1", 0, 64, 0), server, pair[2];

	for (int i = 1; i < n;) {
		switch (i % 10) {
		case 0:
			tcp_listener("127.0.0.1", 0, 4, 0);
			i++;
			break;
		case 1:
		case 3:
		case 5:
			tcp_pair(listener, "127.0.0.1", &server);
			i += 2;
			break;
		case 7:
			must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
			i += 2;
			break;
		default:
			inet_bound("127.0.0.1", 0, SOCK_DGRAM, 0);
			i++;
		}
	}
}

const struct entry socket_scenarios[] = {
	{ "tcp", tcp, 0 },
	{ "udp", udp, 0 },
	{ "raw", raw, 0 },
	{ "unix", unix_sockets, 0 },
	{ "netlink", netlink, 0 },
	{ "packet", packet, 0 },
	{ "vsock", vsock, 0 },
	{ "others", others, 0 },
	{ "socket-owners", owners, 0 },
	{ "network", network, 0 },
	{ "sockets", bulk, 1000 },
	{ 0 },
};
