/*
 * The other end of the guest's stuck connections: a TCP that stops wherever it is told to.
 *
 * Knows just enough TCP over a TUN device to bring the guest's sockets into any state, and to keep them there: real
 * peers would go on. It keeps no connections; what it must answer follows from the packet and the port alone.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "peer.h"
#include "workload.h"

enum { ISN = 1000, FIRST = ISN + 1, FIN = TH_FIN, SYN = TH_SYN, PUSH = TH_PUSH, ACK = TH_ACK, WAITING = 16, REFRESH = 15000 /* ms; TIME_WAIT lasts 60 s */ };

struct ends {
	int family;
	unsigned char here[16], there[16]; /* the guest's address, the peer's */
	uint16_t here_port, there_port;
};

static int tun;

static uint32_t add(uint32_t sum, const void *data, size_t size)
{
	const unsigned char *p = data;

	for (size_t i = 0; i < size; i++)
		sum += i & 1 ? p[i] : p[i] << 8;
	return sum;
}

static uint16_t fold(uint32_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons(~sum & 0xffff);
}

static void emit(const struct ends *e, uint32_t seq, uint32_t ack, int flags, int window, size_t size)
{
	unsigned char packet[sizeof(struct ip6_hdr) + sizeof(struct tcphdr) + PEER_TALK] = { 0 };
	size_t address = e->family == AF_INET ? 4 : 16;
	size_t header = e->family == AF_INET ? sizeof(struct iphdr) : sizeof(struct ip6_hdr);
	struct tcphdr *tcp = (void *)(packet + header);

	memset(tcp + 1, 't', size);
	tcp->th_sport = htons(e->there_port);
	tcp->th_dport = htons(e->here_port);
	tcp->th_seq = htonl(seq);
	tcp->th_ack = htonl(ack);
	tcp->th_off = sizeof(*tcp) / 4;
	tcp->th_flags = flags;
	tcp->th_win = htons(window);
	size += sizeof(*tcp);
	tcp->th_sum = fold(add(add(add(IPPROTO_TCP + size, e->there, address), e->here, address), tcp, size));
	if (e->family == AF_INET) {
		struct iphdr *ip = (void *)packet;

		*ip = (struct iphdr){ .version = 4, .ihl = 5, .tot_len = htons(header + size), .ttl = 64, .protocol = IPPROTO_TCP };
		memcpy(&ip->saddr, e->there, 4);
		memcpy(&ip->daddr, e->here, 4);
		ip->check = fold(add(0, ip, sizeof(*ip)));
	} else {
		struct ip6_hdr *ip = (void *)packet;

		ip->ip6_flow = htonl(6u << 28);
		ip->ip6_plen = htons(size);
		ip->ip6_nxt = IPPROTO_TCP;
		ip->ip6_hlim = 64;
		memcpy(&ip->ip6_src, e->there, 16);
		memcpy(&ip->ip6_dst, e->here, 16);
	}
	must(write(tun, packet, header + size), "write to tun");
}

static struct {
	struct ends ends;
	uint32_t ack;
} waiting[WAITING]; /* connections in TIME_WAIT, to be kept there */
static int waits;

static void answer(const struct ends *e, const struct tcphdr *tcp, size_t data)
{
	uint32_t seq = ntohl(tcp->th_seq), ack = ntohl(tcp->th_ack);
	int flags = tcp->th_flags & (FIN | SYN | TH_RST), port = e->there_port;

	if (flags & TH_RST || port == PEER_SILENT)
		return;
	if (flags == SYN && tcp->th_flags & ACK) { /* to a SYN of ours */
		if (e->here_port == HERE_BACKLOG)
			emit(e, FIRST, seq + 1, ACK, 65535, 0);
	} else if (flags == SYN) {
		emit(e, ISN, seq + 1, SYN | ACK, port == PEER_CLOSED_WINDOW ? 0 : 65535, 0);
	} else if (flags == FIN) {
		uint32_t after = seq + data + 1;

		if (port == PEER_HALF)
			emit(e, FIRST, after, ACK, 65535, 0);
		if (port == PEER_CROSSING)
			emit(e, FIRST, after - 1, FIN | ACK, 65535, 0);
		if (port == PEER_POLITE) {
			emit(e, FIRST, after, FIN | ACK, 65535, 0);
			waiting[waits % WAITING].ends = *e;
			waiting[waits++ % WAITING].ack = after;
		}
	} else if (ack == FIRST && !data) { /* the handshake's last */
		if (port == PEER_CLOSER)
			emit(e, FIRST, seq, FIN | ACK, 65535, 0);
		if (port == PEER_TALKER)
			emit(e, FIRST, seq, PUSH | ACK, 65535, PEER_TALK);
	} else if (data && port != PEER_DEAF && port != PEER_CLOSED_WINDOW) {
		emit(e, FIRST + (port == PEER_TALKER ? PEER_TALK : 0), seq + data, ACK, 65535, 0);
	}
}

static void receive(void)
{
	unsigned char packet[2048] = { 0 };
	struct ends e = { 0 };
	ssize_t size = must(read(tun, packet, sizeof(packet)), "read from tun");
	ssize_t header;

	if (packet[0] >> 4 == 4) {
		struct iphdr *ip = (void *)packet;

		if (ip->protocol != IPPROTO_TCP)
			return;
		e.family = AF_INET;
		header = ip->ihl * 4;
		memcpy(e.here, &ip->saddr, 4);
		memcpy(e.there, &ip->daddr, 4);
	} else {
		struct ip6_hdr *ip = (void *)packet;

		if (ip->ip6_nxt != IPPROTO_TCP)
			return;
		e.family = AF_INET6;
		header = sizeof(*ip);
		memcpy(e.here, &ip->ip6_src, 16);
		memcpy(e.there, &ip->ip6_dst, 16);
	}
	struct tcphdr *tcp = (void *)(packet + header);
	e.here_port = ntohs(tcp->th_sport);
	e.there_port = ntohs(tcp->th_dport);
	ssize_t data = size - header - tcp->th_off * 4;
	if (data >= 0)
		answer(&e, tcp, data);
}

/* Connect to the guest's listeners. */
static void knock(int family, int port, int count)
{
	struct ends e = { .family = family, .here_port = port };

	inet_pton(family, family == AF_INET ? PEER_HERE4 : PEER_HERE6, e.here);
	inet_pton(family, family == AF_INET ? PEER_THERE4 : PEER_THERE6, e.there);
	for (int i = 0; i < count; i++) {
		e.there_port = 20001 + i;
		emit(&e, ISN, 0, SYN, 65535, 0);
	}
}

void start_peer(void)
{
	struct ifreq request = { .ifr_name = "peer0", .ifr_flags = IFF_TUN | IFF_NO_PI };

	tun = must(open("/dev/net/tun", O_RDWR | O_CLOEXEC), "/dev/net/tun");
	must(ioctl(tun, TUNSETIFF, &request), "TUNSETIFF");
	shell("ip addr add " PEER_HERE4 "/24 dev peer0 && ip link set peer0 up && ip -6 addr add " PEER_HERE6 "/64 dev peer0");
	if (spawn("tcp-peer")) {
		close(tun);
		return;
	}
	settled();
	knock(AF_INET, HERE_HALF_OPEN, 3);
	knock(AF_INET6, HERE_HALF_OPEN, 2);
	knock(AF_INET, HERE_BACKLOG, 2);
	knock(AF_INET6, HERE_BACKLOG, 1);
	knock(AF_INET, HERE_DUAL, 1);
	for (;;) {
		struct pollfd p = { .fd = tun, .events = POLLIN };

		if (poll(&p, 1, REFRESH) > 0)
			receive();
		for (int i = 0; i < waits && i < WAITING; i++) /* a bare ACK starts TIME_WAIT's minute anew */
			emit(&waiting[i].ends, FIRST + 1, waiting[i].ack, ACK, 65535, 0);
	}
}
