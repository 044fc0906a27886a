"""What `LinuxGuest` leaves out of the network: devices, addresses, routing tables, neighbours, hooks, nftables."""

from __future__ import annotations

import socket
import struct

from tests.synthetic.guest import CPUS
from tests.synthetic.layout import Layout
from tests.synthetic.linux import LinuxGuest
from tests.synthetic.structs import NEWER, OLDER

_NETWORK = """
netns_ipv4 700
    tcp_death_row 0x0 {death_row}
    udp_table 0x40 *udp_table
    fib_table_hash 0x100 *hlist_head
    rules_ops 0x108 *void
netns_ipv6 200
    fib_table_hash 0x10 *hlist_head
    fib6_local_tbl 0x18 *void
    fib6_null_entry 0x20 *fib6_info
netns_nf 200
    hooks_ipv4 0 *nf_hook_entries[5]
    hooks_ipv6 40 *nf_hook_entries[5]
    hooks_arp 80 *nf_hook_entries[3]
xt_pernet 256
    tables 0 list_head[13]
netns_xt 256
    tables 0 list_head[13]
module 1000
    name 0 char[56]
xt_table 96
    list 0 list_head
    valid_hooks 16 u32
    private 24 *xt_table_info
    me 40 *module
    name 56 char[32]
xt_table_info 64
    size 0 u32
    number 4 u32
net 4096
    {xt}
    list 0x28 list_head
    ns 0x70 ns_common
    dev_base_head 0x90 list_head
    gen 0xa8 *net_generic
    unx 0x100 netns_unix
    packet 0x140 netns_packet
    ipv4 0x200 netns_ipv4
    ipv6 0x600 netns_ipv6
    nf 0x800 netns_nf
net_generic 8
    ptr 0 *void[0]
net_device_stats 184
    rx_packets 0 u64
    tx_packets 8 u64
    rx_bytes 16 u64
    tx_bytes 24 u64
    rx_errors 32 u64
    tx_errors 40 u64
    rx_dropped 48 u64
    tx_dropped 56 u64
    multicast 64 u64
    collisions 72 u64
adjacency 16
    upper 0 list_head
u64_stats 8
    v 0 u64
atomic_long 8
    counter 0 i64
pcpu_lstats 16
    packets 0 u64_stats
    bytes 8 u64_stats
pcpu_sw_netstats 32
    rx_packets 0 u64
    rx_bytes 8 u64
    tx_packets 16 u64
    tx_bytes 24 u64
net_device_core_stats 32
    rx_dropped 0 u64
    tx_dropped 8 u64
net_device 1000
    name 0 char[16]
    dev_list 0x10 list_head
    adj_list 0x20 adjacency
    ifindex 0x30 i32
    flags 0x34 u32
    gflags 0x38 u16
    type 0x3a u16
    mtu 0x3c u32
    operstate 0x40 u8
    addr_len 0x41 u8
    promiscuity 0x44 u32
    state 0x48 u64
    stats 0x50 net_device_stats
    dev_addr 0x108 *void
    netdev_ops 0x110 *net_device_ops
    rtnl_link_ops 0x118 *rtnl_link_ops
    qdisc 0x120 *Qdisc
    ifalias 0x128 *dev_ifalias
    ip_ptr 0x130 *in_device
    ip6_ptr 0x138 *inet6_dev
    nd_net 0x140 possible_net
    lstats 0x148 *pcpu_lstats
    tstats 0x148 *pcpu_sw_netstats
    {core}
    nf_hooks_ingress 0x170 *nf_hook_entries
    num_rx_queues 0x178 u32
net_device_ops 64
    ndo_get_stats64 0 *void
    ndo_get_stats 8 *void
rtnl_link_ops 64
    kind 16 *char
Qdisc 64
    ops 8 *Qdisc_ops
Qdisc_ops 64
    id 16 char[16]
dev_ifalias 16
    ifalias 16 char[0]
netdev_adjacent 56
    dev 0 *net_device
    master 8 u8
    list 24 list_head
in_device 64
    ifa_list 16 *in_ifaddr
in_ifaddr 120
    ifa_next 16 *in_ifaddr
    ifa_local 48 u32
    ifa_address 52 u32
    ifa_broadcast 64 u32
    ifa_scope 68 u8
    ifa_prefixlen 69 u8
    ifa_flags 72 u32
    ifa_label 76 char[16]
inet6_dev 64
    addr_list 8 list_head
inet6_ifaddr 296
    addr 0 in6_addr
    prefix_len 16 u32
    flags 44 u32
    scope 50 u16
    if_list 200 list_head
    peer_addr 280 in6_addr
fib_table 48
    tb_hlist 0 hlist_node
    tb_id 16 u32
    tb_data 40 *void
trie 24
    kv 0 key_vector[1]
key_vector 16
    key 0 u32
    pos 4 u8
    bits 5 u8
    slen 6 u8
    leaf 8 hlist_head
    tnode 8 *key_vector[0]
fib_alias 56
    fa_list 0 hlist_node
    fa_info 16 *fib_info
    {tos} 24 u8
    fa_type 25 u8
    fa_slen 27 u8
    tb_id 28 u32
fib_info 128
    fib_protocol 69 u8
    fib_scope 70 u8
    fib_prefsrc 72 u32
    fib_priority 80 u32
    fib_metrics 88 *dst_metrics
    fib_nhs 96 i32
    nh 104 *nexthop
    fib_nh 128 fib_nh[0]
gateway 16
    ipv4 0 u32
    ipv6 0 in6_addr
fib_nh_common 72
    nhc_dev 0 *net_device
    nhc_gw_family 14 u8
    nhc_flags 15 u8
    nhc_gw 24 gateway
    nhc_weight 40 i32
fib_nh 112
    nh_common 0 fib_nh_common
fib6_nh 96
    nh_common 0 fib_nh_common
nexthop 136
    id 96 u32
    is_group 102 u8
    nh_info 128 *nh_info
nh_info 144
    fib_nhc 32 fib_nh_common
nh_group 24
    num_nh 8 u16
    nh_entries 24 nh_grp_entry[0]
nh_grp_entry 64
    nh 0 *nexthop
    weight 8 u8
dst_metrics 72
    metrics 0 u32[17]
fib6_table 128
    tb6_hlist 0 hlist_node
    tb6_id 16 u32
    tb6_root 24 fib6_node
fib6_node 72
    left 8 *fib6_node
    right 16 *fib6_node
    leaf 32 *fib6_info
    fn_flags 42 u16
rt6key 20
    addr 0 in6_addr
    plen 16 i32
fib6_info 168
    fib6_next 8 *fib6_info
    fib6_metrics 56 *dst_metrics
    fib6_dst 64 rt6key
    fib6_src 88 rt6key
    fib6_prefsrc 108 rt6key
    fib6_metric 128 u32
    fib6_protocol 132 u8
    fib6_type 133 u8
    nh 160 *nexthop
    fib6_nh 168 fib6_nh[0]
neigh_table 600
    nht 584 *neigh_hash_table
    phash_buckets 592 *void
neigh_hash_table 48
    {buckets} 0 *void
    hash_shift 8 u32
neighbour 304
    {link}
    nud_state 132 u8
    flags 136 u32
    ha 152 u8[32]
    dev 296 *net_device
    primary_key 304 u8[0]
pneigh_entry 32
    next 0 *pneigh_entry
    net 8 possible_net
    dev 16 *net_device
    flags 24 u32
    key 32 u32[0]
nf_hook_entries 8
    num_hook_entries 0 u16
    hooks 8 nf_hook_entry[0]
nf_hook_entry 16
    hook 0 *void
    priv 8 *void
nf_hook_ops 40
    hook 0 *void
    dev 8 *net_device
    priv 16 *void
    {kind}
    hooknum 28 u32
    priority 32 i32
nftables_pernet 64
    tables 0 list_head
nft_table 272
    list 0 list_head
    chains 152 list_head
    sets 168 list_head
    family 236 u16:6+0
    flags 236 u16:8+6
    name 248 *char
nft_chain 120
    rules 16 list_head
    list 32 list_head
    table 64 *nft_table
    flags 84 u8:5+0
    name 88 *char
nft_chain_type 96
    name 0 *char
nft_base_chain 216
    ops 0 nf_hook_ops
    hook_list 40 list_head
    type 56 *nft_chain_type
    policy 64 u8
    chain 80 nft_chain
nft_hook 72
    list 0 list_head
    ops 16 nf_hook_ops
nft_set 256
    list 0 list_head
    name 56 *char
    size 84 u32
    nelems 112 atomic
    ndeact 116 u32
    flags 200 u16:13+0
    klen 202 u8
    dlen 203 u8
nft_set_ops 168
    adjust_maxsize 96 *void
"""
_NEW = {
    "death_row": "death_row", "core": "core_stats 0x150 *net_device_core_stats", "tos": "fa_dscp",
    "buckets": "hash_heads", "link": "hash 0 hlist_node", "kind": "hook_ops_type 24 u8:8+0",
    "xt": "",
}  # fmt: skip
_OLD = {
    "death_row": "u64", "core": "rx_dropped 0x150 atomic_long\n    tx_dropped 0x158 atomic_long", "tos": "fa_tos",
    "buckets": "hash_buckets", "link": "next 0 *neighbour", "kind": "pf 24 u8",
    "xt": "xt 0xa00 netns_xt",
}  # fmt: skip


class NetworkGuest(LinuxGuest):
    """A guest whose namespaces have devices and all that hangs on them. Call `finish` before reading."""

    def __init__(self, levels: int = 4, *, older: bool = False, scattered: bool = False, seed: int = 1) -> None:
        super().__init__(levels, older=older, scattered=scattered, seed=seed)
        base = (NEWER, OLDER) if older else (NEWER,)
        more = _NETWORK.format(**(_OLD if older else _NEW))
        whole = Layout(*base, more).structs
        self.profile.layout.structs.update({name: whole[name] for name in Layout(more).structs})
        self.text = {name: self.global_(name, 64) for name in ("_stext", *FUNCTIONS)}
        self.profile.symbols["_etext"] = max(self.text.values()) + 64
        self.devices: dict[int, list[int]] = {}
        self.xt: dict[int, int] = {}
        self.net_id = 3
        self.write(self.global_("nf_tables_net_id", 4), struct.pack("<I", self.net_id))
        self.xt_id = 4
        self.write(self.global_("xt_pernet_id", 4), struct.pack("<I", self.xt_id))
        for name in ("arp_tbl", "nd_tbl"):
            hashed = self.new("neigh_hash_table", hash_shift=2)
            heads = self.alloc(8 * 4, "buckets")
            self.put("neigh_hash_table", hashed, hash_heads=heads, hash_buckets=heads)
            at = self.global_(name, self.size("neigh_table"))
            self.put("neigh_table", at, nht=hashed, phash_buckets=self.alloc(8 * 16, "buckets"))
        self.furnish(self.init_net)

    def furnish(self, net: int) -> int:
        """Give a namespace its lists and hashes."""
        null = self.new("fib6_info", fib6_type=7)
        self.put(
            "net", net, ipv4__fib_table_hash=self.alloc(8 * 256, "hash"), ipv6__fib6_null_entry=null,
            ipv6__fib_table_hash=self.alloc(8 * 256, "hash"), gen=self.alloc(8 * 16, "generic"),
        )  # fmt: skip
        own = self.new("nftables_pernet")
        self.word(self.space.read_u64(net + self.offset("net", "gen")) + 8 * self.net_id, own)
        self.ring(own, [])
        held = net + self.offset("net", "xt") if self.older else self.new("xt_pernet")
        self.word(self.space.read_u64(net + self.offset("net", "gen")) + 8 * self.xt_id, 0 if self.older else held)
        self.xt[net] = held
        for family in range(13):
            self.ring(held + 16 * family, [])
        self.devices[net] = []
        self.ring(net + self.offset("net", "dev_base_head"), [])
        return net

    def ring(self, head: int, nodes: list[int]) -> None:
        """A circular list; written at once, and again when it grows."""
        self.chain(head, nodes, head)

    def hang(self, head: int, node: int) -> None:
        """Put a node at the end of a list that ends in NULL."""
        while (following := self.space.read_u64(head)) != 0:
            head = following
        self.word(head, node)

    # -- devices and addresses --------------------------------------------------------------------------------------

    def device(self, name: str, net: int = 0, *, function: str = "", mac: bytes = b"", **members: int | bytes) -> int:
        """A device of a namespace; `function` is its driver's `ndo_get_stats64`."""
        net = net or self.init_net
        operations = self.new("net_device_ops", ndo_get_stats64=self.text[function] if function else 0)
        address = self.alloc(32, "mac")
        self.write(address, mac)
        at = self.new(
            "net_device", name=name.encode(), nd_net__net=net, netdev_ops=operations, dev_addr=address,
            addr_len=len(mac), ifindex=len(self.devices[net]) + 1, **members,
        )  # fmt: skip
        self.ring(at + self.offset("net_device", "adj_list.upper"), [])
        self.devices[net].append(at)
        link = self.offset("net_device", "dev_list")
        self.ring(net + self.offset("net", "dev_base_head"), [each + link for each in self.devices[net]])
        return at

    def percpu_counts(self, counts: tuple[int, ...]) -> int:
        """A per-CPU struct of 64-bit numbers, the same on each CPU but for the first, which counts one more."""
        at = self._percpu_next
        self._percpu_next += 64
        for cpu in range(CPUS):
            base = self.percpu[cpu] + at - 0x1000
            self.write(base, b"".join(struct.pack("<Q", count + (cpu == 0)) for count in counts))
        return at

    def master(self, port: int, above: int, *, master: int = 1) -> int:
        link = self.new("netdev_adjacent", dev=above, master=master)
        self.ring(port + self.offset("net_device", "adj_list.upper"), [link + self.offset("netdev_adjacent", "list")])
        return link

    def address4(self, device: int, ip: str, **members: int | bytes) -> int:
        holder = self.space.read_u64(device + self.offset("net_device", "ip_ptr")) or self.new("in_device")
        self.put("net_device", device, ip_ptr=holder)
        raw = socket.inet_aton(ip)
        members = {"ifa_address": raw, **members}
        at = self.new("in_ifaddr", ifa_local=raw, **members)
        head, link = holder + self.offset("in_device", "ifa_list"), self.offset("in_ifaddr", "ifa_next")
        while (following := self.space.read_u64(head)) != 0:
            head = following + link
        self.word(head, at)
        return at

    def addresses6(self, device: int, *ips: str, **members: int | bytes) -> list[int]:
        holder = self.new("inet6_dev")
        self.put("net_device", device, ip6_ptr=holder)
        made = [self.new("inet6_ifaddr", addr=socket.inet_pton(10, ip), prefix_len=64, **members) for ip in ips]
        self.ring(holder + 8, [at + self.offset("inet6_ifaddr", "if_list") for at in made])
        return made

    # -- routes -----------------------------------------------------------------------------------------------------

    def table4(self, number: int, root: int, net: int = 0) -> int:
        """A routing table over a trie with this root."""
        trie = self.new("trie")
        self.word(trie + 8, root)
        at = self.new("fib_table", tb_id=number, tb_data=trie)
        self.hang(self.space.read_u64((net or self.init_net) + self.offset("net", "ipv4.fib_table_hash")), at)
        return at

    def inner(self, *children: int, bits: int = 0) -> int:
        """A node of a trie; as many children as fit its bits."""
        bits = bits or max(1, (len(children) - 1).bit_length())
        at = self.alloc(16 + (8 << min(bits, 12)), "tnode")
        self.put("key_vector", at, bits=bits, pos=8)
        for number, child in enumerate(children):
            self.word(at + 8 + 8 * number, child)
        return at

    def leaf(self, key: str, *aliases: int) -> int:
        at = self.alloc(16, "leaf")
        self.put("key_vector", at, key=int.from_bytes(socket.inet_aton(key), "big"))
        self.chain(at + 8, list(aliases))
        return at

    def alias(self, info: int, bits: int, table: int = 254, kind: int = 1, tos: int = 0) -> int:
        return self.new(
            "fib_alias", fa_info=info, fa_slen=32 - bits, tb_id=table, fa_type=kind, fa_dscp=tos, fa_tos=tos
        )

    def info(self, *hops: tuple[str, int], nhs: int = -1, **members: int | bytes) -> int:
        """A fib_info with next hops: gateway and device of each."""
        at = self.alloc(self.size("fib_info") + self.size("fib_nh") * len(hops), f"fib_info{len(hops)}")
        members = {"fib_metrics": self.metrics(), **members}
        self.put("fib_info", at, fib_nhs=len(hops) if nhs < 0 else nhs, **members)
        for number, (gateway, device) in enumerate(hops):
            self.hop(at + self.size("fib_info") + number * self.size("fib_nh"), gateway, device)
        return at

    def hop(self, at: int, gateway: str, device: int) -> None:
        """Write a fib_nh_common."""
        family = 0 if not gateway else 10 if ":" in gateway else 2
        raw = socket.inet_pton(family, gateway) if gateway else b""
        self.put("fib_nh_common", at, nhc_dev=device, nhc_gw_family=family, nhc_gw=raw, nhc_weight=1)

    def metrics(self, mtu: int = 0) -> int:
        at = self.new("dst_metrics")
        self.write(at + 4, struct.pack("<I", mtu))
        return at

    def nexthop(self, number: int, gateway: str, device: int) -> int:
        info = self.new("nh_info")
        self.hop(info + self.offset("nh_info", "fib_nhc"), gateway, device)
        return self.new("nexthop", id=number, nh_info=info)

    def nexthop_group(self, number: int, *members: tuple[int, int], count: int = -1) -> int:
        """A group of nexthops with their weights."""
        at = self.alloc(self.size("nh_group") + self.size("nh_grp_entry") * len(members), "nh_group")
        self.put("nh_group", at, num_nh=len(members) if count < 0 else count)
        for place, (nexthop, weight) in enumerate(members):
            entry = at + self.size("nh_group") + place * self.size("nh_grp_entry")
            self.put("nh_grp_entry", entry, nh=nexthop, weight=weight)
        return self.new("nexthop", id=number, is_group=1, nh_info=at)

    def table6(self, number: int, leaf: int = 0, left: int = 0, right: int = 0, net: int = 0) -> int:
        net = net or self.init_net
        null = self.space.read_u64(net + self.offset("net", "ipv6.fib6_null_entry"))
        at = self.new(
            "fib6_table", tb6_id=number, tb6_root__leaf=leaf or null, tb6_root__fn_flags=7, tb6_root__left=left,
            tb6_root__right=right,
        )  # fmt: skip
        self.hang(self.space.read_u64(net + self.offset("net", "ipv6.fib_table_hash")), at)
        return at

    def route6(self, to: str, bits: int, gateway: str, device: int, **members: int | bytes) -> int:
        at = self.alloc(self.size("fib6_info") + self.size("fib6_nh"), "fib6_info")
        self.put(
            "fib6_info", at, fib6_dst__addr=socket.inet_pton(10, to), fib6_dst__plen=bits, fib6_type=1,
            fib6_metrics=self.metrics(), **members,
        )  # fmt: skip
        self.hop(at + self.size("fib6_info"), gateway, device)
        return at

    # -- neighbours, hooks, nftables --------------------------------------------------------------------------------

    def neighbour(self, ip: str, device: int, bucket: int = 0, *, mac: bytes = b"", **members: int) -> int:
        family = 10 if ":" in ip else 2
        at = self.alloc(self.size("neighbour") + 16, "neighbour")
        self.put("neighbour", at, dev=device, ha=mac, **members)
        self.write(at + self.size("neighbour"), socket.inet_pton(family, ip))
        table = self.profile.symbols["nd_tbl" if family == 10 else "arp_tbl"]
        hashed = self.space.read_u64(table + self.offset("neigh_table", "nht"))
        self.hang(self.space.read_u64(hashed) + 8 * bucket, at)
        return at

    def proxy(self, ip: str, device: int, net: int = 0) -> int:
        at = self.alloc(self.size("pneigh_entry") + 16, "pneigh")
        self.put("pneigh_entry", at, dev=device, net__net=net or self.init_net)
        self.write(at + 32, socket.inet_aton(ip))
        table = self.profile.symbols["arp_tbl"]
        self.hang(self.space.read_u64(table + self.offset("neigh_table", "phash_buckets")), at)
        return at

    def hooks(self, *functions: tuple[int, int, int], count: int = -1, kind: int = 0) -> int:
        """A list of hooks: function, what is handed to it, priority of each."""
        number = len(functions)
        at = self.alloc(8 + 24 * number, "hooks")
        self.put("nf_hook_entries", at, num_hook_entries=number if count < 0 else count)
        for place, (function, private, priority) in enumerate(functions):
            self.put("nf_hook_entry", at + 8 + 16 * place, hook=function, priv=private)
            operations = self.new("nf_hook_ops", hook=function, priv=private, priority=priority, hook_ops_type=kind)
            self.word(at + 8 + 16 * number + 8 * place, operations)
        return at

    def xt_table(self, name: str, family: int = 2, **members: int) -> int:
        """A table of legacy iptables, alone on its list."""
        info = self.new("xt_table_info", number=4, size=632)
        module = self.new("module", name=f"iptable_{name}".encode())
        at = self.new("xt_table", name=name.encode(), private=info, me=module, valid_hooks=0xE, **members)
        self.ring(self.xt[self.init_net] + 16 * family, [at])
        return at

    def nft_table(self, name: str, *chains: int, sets: tuple[int, ...] = (), family: int = 1, flags: int = 0) -> int:
        at = self.new("nft_table", name=self.string(name))
        self.write(at + self.offset("nft_table", "family"), struct.pack("<H", family | flags << 6))
        self.ring(at + self.offset("nft_table", "chains"), [each + self.offset("nft_chain", "list") for each in chains])
        self.ring(at + self.offset("nft_table", "sets"), list(sets))
        for each in chains:
            self.put("nft_chain", each, table=at)
        return at

    def nft_tables(self, *tables: int, net: int = 0) -> None:
        generic = self.space.read_u64((net or self.init_net) + self.offset("net", "gen"))
        self.ring(self.space.read_u64(generic + 8 * self.net_id), list(tables))

    def nft_chain(self, name: str, rules: int = 0, **base: int) -> int:
        """A chain; with members of a base chain's hook, it is one."""
        whole = self.new("nft_base_chain")
        at = whole + self.offset("nft_base_chain", "chain")
        self.put("nft_chain", at, name=self.string(name), flags=1 if base else 0)
        if base:
            kind = self.new("nft_chain_type", name=self.string("filter"))
            self.put("nft_base_chain", whole, type=kind, policy=base.pop("policy", 1))
            self.put("nf_hook_ops", whole, **base)
        self.ring(whole + self.offset("nft_base_chain", "hook_list"), [])
        self.ring(at + self.offset("nft_chain", "rules"), [self.alloc(24, "rule") for _ in range(rules)])
        return at


#: Functions in the made-up kernel's text.
FUNCTIONS = ("loopback_get_stats64", "dev_get_tstats64", "vendor_get_stats64", "a_hook", "nft_do_chain", "ipt_do_table")
