/* TCP in every state, over IPv4, IPv6 and IPv4-mapped addresses. What is stuck is stuck on purpose: see peer.c. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net.h"
#include "peer.h"
#include "workload.h"

static char data[4096];

static const struct {
	char suffix;
	const char *peer;
} families[] = { { '4', PEER_THERE4 }, { '6', PEER_THERE6 }, { 'm', "::ffff:" PEER_THERE4 } };

enum then { KEEP, SHUT, CLOSE };

/* Connect to `port`, send, wait for `before`, then do as told and wait for `after`. */
static const struct stuck {
	const char *name;
	int port, send, before;
	enum then then;
	int after;
} stuck[] = {
	{ "syn-sent", PEER_SILENT, 0, TCP_SYN_SENT, KEEP, TCP_SYN_SENT },
	{ "unacked", PEER_DEAF, 700, TCP_ESTABLISHED, KEEP, TCP_ESTABLISHED },
	{ "unsent", PEER_CLOSED_WINDOW, 900, TCP_ESTABLISHED, KEEP, TCP_ESTABLISHED },
	{ "unread", PEER_TALKER, 0, TCP_ESTABLISHED, KEEP, TCP_ESTABLISHED },
	{ "fin-wait1", PEER_DEAF, 300, TCP_ESTABLISHED, SHUT, TCP_FIN_WAIT1 },
	{ "fin-wait2", PEER_HALF, 0, TCP_ESTABLISHED, SHUT, TCP_FIN_WAIT2 },
	{ "closing", PEER_CROSSING, 0, TCP_ESTABLISHED, SHUT, TCP_CLOSING },
	{ "close-wait", PEER_CLOSER, 0, TCP_CLOSE_WAIT, KEEP, TCP_CLOSE_WAIT },
	{ "last-ack", PEER_CLOSER, 0, TCP_CLOSE_WAIT, SHUT, TCP_LAST_ACK },
	{ "time-wait", PEER_POLITE, 0, TCP_ESTABLISHED, SHUT, TCP_CLOSE },
	{ "o-finwait1", PEER_DEAF, 400, TCP_ESTABLISHED, CLOSE, 0 }, /* orphans: the socket lives on without its file */
	{ "o-finwait2", PEER_HALF, 0, TCP_ESTABLISHED, CLOSE, 0 },
	{ "o-closing", PEER_CROSSING, 0, TCP_ESTABLISHED, CLOSE, 0 },
	{ "o-lastack", PEER_CLOSER, 0, TCP_CLOSE_WAIT, CLOSE, 0 },
};

static void become_stuck(const struct stuck *s, const char *peer)
{
	int fd = tcp_dial(peer, s->port);

	tcp_reach(fd, s->before);
	if (s->send)
		must(send(fd, data, s->send, 0), "send");
	if (s->port == PEER_TALKER) {
		struct pollfd p = { .fd = fd, .events = POLLIN };

		must(poll(&p, 1, 20000) - 1, "no data came");
	}
	if (s->then == SHUT)
		shutdown(fd, SHUT_WR);
	if (s->then == CLOSE)
		close(fd);
	else
		tcp_reach(fd, s->after);
	settle();
}

/* Within the guest: pairs with data that nobody reads, an idle one, and connections that nobody accepts. */
static void ordinary(const char *self, int listener)
{
	int server, client = tcp_pair(listener, self, &server);

	must(send(client, data, 123, 0), "send");
	must(send(server, data, 45, 0), "send");
	tcp_pair(listener, self, &server);
	for (int i = 0; i < 2; i++) {
		int waiting = inet_socket(self, SOCK_STREAM, 0);

		inet_connect(waiting, self, local_port(listener));
		must(send(waiting, data, 10 + i, 0), "send");
	}
}

void tcp(int n)
{
	(void)n;
	tcp_listener("0.0.0.0", HERE_HALF_OPEN, 16, 0);
	tcp_listener("::", HERE_HALF_OPEN, 16, 1);
	tcp_listener("0.0.0.0", HERE_BACKLOG, 16, 0);
	tcp_listener("::", HERE_BACKLOG, 16, 1);
	tcp_listener("::", HERE_DUAL, 16, 0);
	start_peer();
	ordinary("127.0.0.1", tcp_listener("127.0.0.1", 7010, 16, 0));
	ordinary("::1", tcp_listener("::1", 7010, 16, 1));
	ordinary("::ffff:127.0.0.1", tcp_listener("::", 7011, 16, 0));
	ordinary("127.0.0.1", tcp_listener("::", 7012, 16, 0)); /* mapped on one side only */
	for (size_t f = 0; f < sizeof(families) / sizeof(*families); f++)
		for (size_t i = 0; i < sizeof(stuck) / sizeof(*stuck); i++)
			if (!spawn("%s-%c", stuck[i].name, families[f].suffix))
				become_stuck(&stuck[i], families[f].peer);
	if (!spawn("tcp-unused")) { /* in no hash table: found through their descriptors only */
		inet_socket("0.0.0.0", SOCK_STREAM, 0);
		inet_bound("127.0.0.1", 7020, SOCK_STREAM, 0);
		inet_bound("::1", 7020, SOCK_STREAM, 0);
		settle();
	}
	if (!spawn("mptcp")) {
		int fd = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
		struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(7030) };

		if (fd < 0 || bind(fd, (void *)&at, sizeof(at)) || listen(fd, 4))
			missing("mptcp");
		settle();
	}
}
