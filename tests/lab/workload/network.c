/* A network namespace of its own, with links, addresses, routes, neighbours and packet filters of many kinds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter_ipv4.h>
#include <linux/netlink.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net.h"
#include "nl.h"
#include "workload.h"

enum { NEW = NLM_F_CREATE | NLM_F_ACK };

static void links(void)
{
	shell("ip link set lo up");
	shell("ip link add lan0 type dummy && ip link set lan0 address 02:00:00:00:0a:01 mtu 1400 promisc on && ip link set lan0 up");
	shell("ip link add lan1 type dummy && ip link set lan1 up");
	shell("ip link add down0 type dummy");
	if (system("ip link add bridge0 type bridge 2>/dev/null && ip link set lan1 master bridge0 && ip link set bridge0 up"))
		missing("bridge");
	shell("ip addr add 192.0.2.1/24 broadcast + dev lan0");
	shell("ip addr add 192.0.2.2/24 dev lan0 label lan0:one");
	shell("ip addr add 198.51.100.1 peer 198.51.100.2/32 dev lan0");
	shell("ip addr add 10.99.0.1/8 dev lan0 scope link");
	shell("ip -6 addr add 2001:db8::1/64 dev lan0 && ip -6 addr add 2001:db8:5::1/128 dev lan0");
	shell("ping -c 3 -i 0.1 -W 1 127.0.0.1 >/dev/null; ping -c 2 -W 1 ::1 >/dev/null; true");
}

static void neighbour(const char *ip, int state, int flags, const char *mac)
{
	struct ndmsg head = {
		.ndm_family = strchr(ip, ':') ? AF_INET6 : AF_INET, .ndm_ifindex = if_nametoindex("lan0"),
		.ndm_state = state, .ndm_flags = flags,
	};

	nl_begin(RTM_NEWNEIGH, NEW, &head, sizeof(head));
	nl_ip(NDA_DST, ip);
	if (mac)
		nl_put(NDA_LLADDR, mac, 6);
	nl_send(NETLINK_ROUTE, ip, 0);
}

static void neighbours(void)
{
	char ip[32];

	neighbour("192.0.2.9", NUD_PERMANENT, 0, "\2\0\0\0\0\x09");
	neighbour("192.0.2.10", NUD_NOARP, 0, "\2\0\0\0\0\x0a");
	neighbour("192.0.2.11", NUD_STALE, NTF_ROUTER, "\2\0\0\0\0\x0b");
	neighbour("2001:db8::9", NUD_PERMANENT, 0, "\2\0\0\0\x06\x09");
	neighbour("2001:db8::fe", NUD_STALE, NTF_ROUTER, "\2\0\0\0\x06\xfe");
	neighbour("192.0.2.200", 0, NTF_PROXY, NULL);
	neighbour("2001:db8::200", 0, NTF_PROXY, NULL);
	for (int i = 20; i < 40; i++) {
		snprintf(ip, sizeof(ip), "192.0.2.%d", i);
		neighbour(ip, NUD_PERMANENT, 0, "\2\0\0\0\1\1");
	}
}

/* RTM_NEWROUTE with its destination; what more there is follows, then nl_send(). */
static void route(const char *to, int bits, int type, int table, int protocol)
{
	struct rtmsg head = {
		.rtm_family = strchr(to, ':') ? AF_INET6 : AF_INET, .rtm_dst_len = bits, .rtm_table = RT_TABLE_UNSPEC,
		.rtm_type = type, .rtm_protocol = protocol, .rtm_scope = RT_SCOPE_UNIVERSE,
	};

	nl_begin(RTM_NEWROUTE, NEW | NLM_F_APPEND, &head, sizeof(head));
	nl_put32(RTA_TABLE, table);
	if (bits)
		nl_ip(RTA_DST, to);
}

static void hops(const char *const *gateways)
{
	size_t all = nl_nest(RTA_MULTIPATH);

	for (int i = 0; gateways[i]; i++) {
		unsigned char place[256];
		struct rtnexthop *hop = (void *)place;
		int six = strchr(gateways[i], ':') != NULL;
		struct nlattr *via = (void *)(hop + 1);

		memset(hop, 0, sizeof(*hop));
		hop->rtnh_len = sizeof(*hop) + NLA_HDRLEN + (six ? 16 : 4);
		hop->rtnh_hops = i;
		hop->rtnh_ifindex = if_nametoindex("lan0");
		via->nla_type = RTA_GATEWAY;
		via->nla_len = NLA_HDRLEN + (six ? 16 : 4);
		must(inet_pton(six ? AF_INET6 : AF_INET, gateways[i], via + 1) - 1, gateways[i]);
		nl_raw(hop, hop->rtnh_len);
	}
	nl_end(all);
}

static void nexthop(unsigned id, const char *gateway)
{
	struct nhmsg head = { .nh_family = strchr(gateway, ':') ? AF_INET6 : AF_INET };

	nl_begin(RTM_NEWNEXTHOP, NEW, &head, sizeof(head));
	nl_put32(NHA_ID, id);
	nl_put32(NHA_OIF, if_nametoindex("lan0"));
	nl_ip(NHA_GATEWAY, gateway);
	nl_send(NETLINK_ROUTE, "nexthop", 0);
}

static void nexthop_group(unsigned id, unsigned one, unsigned other)
{
	struct nhmsg head = { .nh_family = AF_UNSPEC };
	struct nexthop_grp group[2] = { { .id = one, .weight = 4 }, { .id = other } };

	nl_begin(RTM_NEWNEXTHOP, NEW, &head, sizeof(head));
	nl_put32(NHA_ID, id);
	nl_put(NHA_GROUP, group, sizeof(group));
	nl_send(NETLINK_ROUTE, "nexthop group", 0);
}

static void routes(void)
{
	static const char *const four[] = { "192.0.2.251", "192.0.2.252", "192.0.2.253", NULL };
	static const char *const six[] = { "2001:db8::51", "2001:db8::52", NULL };
	static const struct {
		const char *four, *six;
		int type;
	} refusals[] = {
		{ "10.66.0.0", "2001:db8:66::", RTN_BLACKHOLE }, { "10.67.0.0", "2001:db8:67::", RTN_UNREACHABLE },
		{ "10.68.0.0", "2001:db8:68::", RTN_PROHIBIT }, { "10.69.0.0", "2001:db8:69::", RTN_THROW },
	};
	char ip[32];

	shell("ip route add default via 192.0.2.254");
	shell("ip route add default via 192.0.2.253 metric 500 proto static");
	shell("ip route add 203.0.113.0/24 via 192.0.2.254 metric 50 mtu 1300");
	shell("ip route add 203.0.113.128/25 dev lan0 src 192.0.2.2");
	shell("ip route add 203.0.113.7 dev lan0 scope link");
	shell("ip -6 route add default via fe80::1 dev lan0");
	shell("ip -6 route add 2001:db8:1::/48 via 2001:db8::fe metric 77");
	for (size_t i = 0; i < sizeof(refusals) / sizeof(*refusals); i++) {
		route(refusals[i].four, 16, refusals[i].type, RT_TABLE_MAIN, RTPROT_STATIC);
		nl_send(NETLINK_ROUTE, refusals[i].four, 0);
		route(refusals[i].six, 48, refusals[i].type, RT_TABLE_MAIN, RTPROT_STATIC);
		nl_send(NETLINK_ROUTE, refusals[i].six, 0);
	}
	for (int i = 16; i < 24; i++) { /* a table beside, wide enough for its trie to have branches */
		snprintf(ip, sizeof(ip), "172.%d.0.0", i);
		route(ip, 20, RTN_UNICAST, 1000, RTPROT_BOOT);
		nl_ip(RTA_GATEWAY, "192.0.2.254");
		nl_put32(RTA_PRIORITY, i);
		nl_send(NETLINK_ROUTE, ip, 0);
	}
	route("2001:db8:100::", 48, RTN_UNICAST, 1000, RTPROT_ZEBRA);
	nl_ip(RTA_GATEWAY, "2001:db8::fe");
	nl_send(NETLINK_ROUTE, "an IPv6 table", 0);
	route("10.70.0.0", 16, RTN_UNICAST, RT_TABLE_MAIN, RTPROT_STATIC);
	hops(four);
	nl_send(NETLINK_ROUTE, "multipath", 0);
	route("2001:db8:70::", 48, RTN_UNICAST, RT_TABLE_MAIN, RTPROT_STATIC);
	hops(six);
	nl_send(NETLINK_ROUTE, "IPv6 multipath", 0);
	nexthop(11, "192.0.2.241");
	nexthop(12, "192.0.2.242");
	nexthop(13, "2001:db8::43");
	nexthop(14, "2001:db8::44");
	nexthop_group(21, 11, 12);
	nexthop_group(22, 13, 14);
	for (int i = 0; i < 4; i++) {
		static const struct {
			const char *to;
			int bits, id;
		} by[] = {
			{ "10.71.0.0", 16, 11 }, { "10.72.0.0", 16, 21 }, { "2001:db8:71::", 48, 13 }, { "2001:db8:72::", 48, 22 },
		};
		route(by[i].to, by[i].bits, RTN_UNICAST, RT_TABLE_MAIN, RTPROT_STATIC);
		nl_put32(RTA_NH_ID, by[i].id);
		nl_send(NETLINK_ROUTE, by[i].to, 0);
	}
}

static void nf_begin(int type, int family)
{
	struct nfgenmsg head = { .nfgen_family = family };

	if (type == NFNL_MSG_BATCH_BEGIN || type == NFNL_MSG_BATCH_END) {
		head.res_id = htons(NFNL_SUBSYS_NFTABLES);
		nl_begin(type, 0, &head, sizeof(head));
	} else {
		nl_begin(NFNL_SUBSYS_NFTABLES << 8 | type, NEW, &head, sizeof(head));
	}
}

static void chain(int family, const char *table, const char *name, const char *type, int hook, int priority, int policy)
{
	nf_begin(NFT_MSG_NEWCHAIN, family);
	nl_text(NFTA_CHAIN_TABLE, table);
	nl_text(NFTA_CHAIN_NAME, name);
	if (!type)
		return;
	size_t at = nl_nest(NFTA_CHAIN_HOOK | NLA_F_NESTED);
	nl_put32(NFTA_HOOK_HOOKNUM, htonl(hook));
	nl_put32(NFTA_HOOK_PRIORITY, htonl(priority));
	if (family == NFPROTO_NETDEV)
		nl_text(NFTA_HOOK_DEV, "lan0");
	nl_end(at);
	nl_put32(NFTA_CHAIN_POLICY, htonl(policy));
	nl_text(NFTA_CHAIN_TYPE, type);
}

/* A rule of one expression: a verdict. */
static void rule(int family, const char *table, const char *name, int verdict)
{
	nf_begin(NFT_MSG_NEWRULE, family);
	nl_text(NFTA_RULE_TABLE, table);
	nl_text(NFTA_RULE_CHAIN, name);
	size_t all = nl_nest(NFTA_RULE_EXPRESSIONS | NLA_F_NESTED), one = nl_nest(NFTA_LIST_ELEM | NLA_F_NESTED);
	nl_text(NFTA_EXPR_NAME, "immediate");
	size_t data = nl_nest(NFTA_EXPR_DATA | NLA_F_NESTED);
	nl_put32(NFTA_IMMEDIATE_DREG, htonl(NFT_REG_VERDICT));
	size_t value = nl_nest(NFTA_IMMEDIATE_DATA | NLA_F_NESTED), code = nl_nest(NFTA_DATA_VERDICT | NLA_F_NESTED);
	nl_put32(NFTA_VERDICT_CODE, htonl(verdict));
	nl_end(code);
	nl_end(value);
	nl_end(data);
	nl_end(one);
	nl_end(all);
}

static void filters(void)
{
	nf_begin(NFNL_MSG_BATCH_BEGIN, AF_UNSPEC);
	nf_begin(NFT_MSG_NEWTABLE, NFPROTO_INET);
	nl_text(NFTA_TABLE_NAME, "lab");
	nf_begin(NFT_MSG_NEWTABLE, NFPROTO_IPV6);
	nl_text(NFTA_TABLE_NAME, "asleep");
	nl_put32(NFTA_TABLE_FLAGS, htonl(NFT_TABLE_F_DORMANT));
	nf_begin(NFT_MSG_NEWTABLE, NFPROTO_NETDEV);
	nl_text(NFTA_TABLE_NAME, "early");
	chain(NFPROTO_INET, "lab", "input", "filter", NF_INET_LOCAL_IN, -5, NF_ACCEPT);
	chain(NFPROTO_INET, "lab", "forward", "filter", NF_INET_FORWARD, 10, NF_DROP);
	chain(NFPROTO_INET, "lab", "plain", NULL, 0, 0, 0);
	chain(NFPROTO_IPV6, "asleep", "output", "filter", NF_INET_LOCAL_OUT, 0, NF_ACCEPT);
	chain(NFPROTO_NETDEV, "early", "wire", "filter", 0 /* NF_NETDEV_INGRESS */, -500, NF_ACCEPT);
	for (int i = 0; i < 3; i++)
		rule(NFPROTO_INET, "lab", "input", NF_ACCEPT);
	rule(NFPROTO_INET, "lab", "plain", NF_DROP);
	nf_begin(NFT_MSG_NEWSET, NFPROTO_INET);
	nl_text(NFTA_SET_TABLE, "lab");
	nl_text(NFTA_SET_NAME, "addresses");
	nl_put32(NFTA_SET_KEY_TYPE, htonl(7)); /* ipv4_addr, in nft's words */
	nl_put32(NFTA_SET_KEY_LEN, htonl(4));
	nl_put32(NFTA_SET_ID, htonl(1));
	nf_begin(NFT_MSG_NEWSETELEM, NFPROTO_INET);
	nl_text(NFTA_SET_ELEM_LIST_TABLE, "lab");
	nl_text(NFTA_SET_ELEM_LIST_SET, "addresses");
	nl_put32(NFTA_SET_ELEM_LIST_SET_ID, htonl(1));
	size_t all = nl_nest(NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED);
	for (int i = 0; i < 5; i++) {
		size_t one = nl_nest(NFTA_LIST_ELEM | NLA_F_NESTED), key = nl_nest(NFTA_SET_ELEM_KEY | NLA_F_NESTED);
		nl_put32(NFTA_DATA_VALUE, htonl(0xc0000200 + i));
		nl_end(key);
		nl_end(one);
	}
	nl_end(all);
	nf_begin(NFNL_MSG_BATCH_END, AF_UNSPEC);
	nl_send(NETLINK_NETFILTER, "nftables", 1);
}

/* A chain for what leaves an interface: since 5.17. */
static void egress(void)
{
	nf_begin(NFNL_MSG_BATCH_BEGIN, AF_UNSPEC);
	chain(NFPROTO_NETDEV, "early", "out", "filter", 1 /* NF_NETDEV_EGRESS */, 7, NF_ACCEPT);
	nf_begin(NFNL_MSG_BATCH_END, AF_UNSPEC);
	nl_send(NETLINK_NETFILTER, "egress", 1);
}

/* Asking for a table of iptables' makes it. */
static void iptables(void)
{
	struct { char name[32]; unsigned more[13]; } info = { .name = "filter" };
	socklen_t size = sizeof(info);
	int fd = must(socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW), "raw");

	if (getsockopt(fd, IPPROTO_IP, 64 /* IPT_SO_GET_INFO */, &info, &size))
		missing("iptables");
	close(fd);
}

void network(int n)
{
	(void)n;
	must(unshare(CLONE_NEWNET), "CLONE_NEWNET");
	links();
	neighbours();
	routes();
	filters();
	egress();
	iptables();
}
