/* Netlink in few words: see nl.h. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nl.h"
#include "workload.h"

static _Alignas(8) unsigned char batch[16384];
static size_t filled, begun;
static int waited, sequence;

static struct nlmsghdr *current(void)
{
	return (void *)(batch + begun);
}

void nl_raw(const void *data, size_t size)
{
	if (filled + size + 8 > sizeof(batch)) {
		errno = E2BIG;
		die("netlink batch");
	}
	memcpy(batch + filled, data, size);
	filled = NLMSG_ALIGN(filled + size);
	current()->nlmsg_len = filled - begun;
}

void nl_begin(int type, int more, const void *header, size_t size)
{
	struct nlmsghdr head = { .nlmsg_type = type, .nlmsg_seq = ++sequence };

	head.nlmsg_flags = NLM_F_REQUEST | more;
	waited += !!(more & NLM_F_ACK);
	begun = filled;
	nl_raw(&head, sizeof(head));
	nl_raw(header, size);
}

void nl_put(int type, const void *data, size_t size)
{
	struct nlattr attribute = { .nla_type = type, .nla_len = NLA_HDRLEN + size };

	nl_raw(&attribute, sizeof(attribute));
	nl_raw(data, size);
}

void nl_put32(int type, unsigned value)
{
	nl_put(type, &value, sizeof(value));
}

void nl_text(int type, const char *text)
{
	nl_put(type, text, strlen(text) + 1);
}

void nl_ip(int type, const char *ip)
{
	unsigned char raw[16];
	int six = strchr(ip, ':') != NULL;

	must(inet_pton(six ? AF_INET6 : AF_INET, ip, raw) - 1, ip);
	nl_put(type, raw, six ? 16 : 4);
}

size_t nl_nest(int type)
{
	size_t at = filled;
	struct nlattr attribute = { .nla_type = type, .nla_len = NLA_HDRLEN };

	nl_raw(&attribute, sizeof(attribute));
	return at;
}

void nl_end(size_t at)
{
	((struct nlattr *)(batch + at))->nla_len = filled - at;
}

void nl_send(int protocol, const char *what, int optional)
{
	static _Alignas(8) unsigned char answer[16384];
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol), error = fd < 0 ? errno : 0;

	if (!error && send(fd, batch, filled, 0) < 0)
		error = errno;
	while (!error && waited > 0) {
		ssize_t got = recv(fd, answer, sizeof(answer), 0);

		if (got < 0)
			error = errno;
		for (struct nlmsghdr *m = (void *)answer; NLMSG_OK(m, got) && !error; m = NLMSG_NEXT(m, got))
			if (m->nlmsg_type == NLMSG_ERROR) {
				error = -((struct nlmsgerr *)NLMSG_DATA(m))->error;
				waited--;
			}
	}
	if (fd >= 0)
		close(fd);
	filled = waited = 0;
	errno = error;
	if (error && optional)
		missing(what);
	else if (error)
		die(what);
}

static void print(const struct nlmsghdr *message)
{
	const unsigned char *data = NLMSG_DATA(message);
	size_t size = message->nlmsg_len - NLMSG_HDRLEN;

	printf("%d ", message->nlmsg_type);
	for (size_t i = 0; i < size; i++)
		printf("%02x", data[i]);
	putchar('\n');
}

int nl_dump(const char *namespace, int protocol, int type, const char *hex)
{
	static _Alignas(8) unsigned char answer[1 << 16];
	unsigned char header[64] = { 0 };
	size_t size = 0;
	int into = must(open(namespace, O_RDONLY), namespace);

	must(setns(into, CLONE_NEWNET), "setns");
	for (; sscanf(hex + 2 * size, "%2hhx", header + size) == 1 && size < sizeof(header) - 1; size++)
		;
	nl_begin(type, NLM_F_DUMP, header, size);
	int fd = must(socket(AF_NETLINK, SOCK_RAW, protocol), "netlink");
	must(send(fd, batch, filled, 0), "send");
	for (;;) {
		ssize_t got = must(recv(fd, answer, sizeof(answer), 0), "recv");

		for (struct nlmsghdr *m = (void *)answer; NLMSG_OK(m, got); m = NLMSG_NEXT(m, got)) {
			if (m->nlmsg_type == NLMSG_DONE)
				return 0;
			if (m->nlmsg_type == NLMSG_ERROR) {
				errno = -((struct nlmsgerr *)NLMSG_DATA(m))->error;
				die("dump");
			}
			print(m);
		}
	}
}
