"""What `LinuxGuest` leaves out of the network: devices, addresses, routing tables, neighbours, hooks, nftables."""

from __future__ import annotations

import socket
import struct

from tests.synthetic.guest import CPUS
from tests.synthetic.layout import Layout
from tests.synthetic.linux import LinuxGuest
from tests.synthetic.network_structs import NETWORK, NEWER_NETWORK, OLDER_NETWORK
from tests.synthetic.structs import NEWER, OLDER

#: Functions in the made-up kernel's text.
FUNCTIONS = ("loopback_get_stats64", "dev_get_tstats64", "vendor_get_stats64", "a_hook", "nft_do_chain", "ipt_do_table")


class NetworkGuest(LinuxGuest):
    """A guest whose namespaces have devices and all that hangs on them. Call `finish` before reading."""

    def __init__(self, levels: int = 4, *, older: bool = False, scattered: bool = False, seed: int = 1) -> None:
        super().__init__(levels, older=older, scattered=scattered, seed=seed)
        base = (NEWER, OLDER) if older else (NEWER,)
        more = NETWORK.format(**(OLDER_NETWORK if older else NEWER_NETWORK))
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
