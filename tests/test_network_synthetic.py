"""The network of made-up guests: what the tables show of each kind, and guests that lie."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.synthetic.guest import HOLE, NOWHERE
from tests.synthetic.network import NetworkGuest
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network.addresses import interface_addresses
from vmi_inside.linux.network.hooks import netfilter_hooks
from vmi_inside.linux.network.interfaces import interface_details
from vmi_inside.linux.network.neighbours import arp_cache
from vmi_inside.linux.network.nftables import nftables
from vmi_inside.linux.network.nftables_sets import nftables_sets
from vmi_inside.linux.network.routes import routes
from vmi_inside.linux.network.xtables import xtables
from vmi_inside.linux.sockets import process_open_sockets
from vmi_inside.profile.ctypes import CType
from vmi_inside.table import Table

TABLES: tuple[Callable[[Kernel], Table], ...] = (
    interface_details, interface_addresses, routes, arp_cache, netfilter_hooks, nftables, nftables_sets,
    xtables,
)  # fmt: skip
WILD = [NOWHERE, HOLE, (1 << 64) - 8, 8, 0x1234_5678_9ABC_DEF0]
KINDS: dict[str, dict[str, Any]] = {
    "newer": {}, "five levels, scattered": {"levels": 5, "scattered": True}, "older": {"older": True},
}  # fmt: skip


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def guest(request: pytest.FixtureRequest) -> NetworkGuest:
    return NetworkGuest(**request.param)


def cells(table: Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table.column(name).tolist() for name in names), strict=True))


def populate(guest: NetworkGuest) -> dict[str, int]:
    """One of everything."""
    lo = guest.device("lo", function="loopback_get_stats64", mac=bytes(6), flags=0x9, state=1, type=772, mtu=65536,
                      lstats=guest.percpu_counts((10, 1000)))  # fmt: skip
    eth = guest.device("eth0", function="dev_get_tstats64", mac=b"\2\0\0\0\0\1", flags=0x1003, state=1, operstate=6,
                       type=1, mtu=1500, promiscuity=1, tstats=guest.percpu_counts((1, 10, 2, 20)),
                       stats__rx_errors=3)  # fmt: skip
    bridge = guest.device("br0", mac=b"\2\0\0\0\0\2", stats__rx_packets=7)
    guest.master(eth, bridge)
    box = guest.furnish(guest.net(0xF0000002))
    inner = guest.device("eth0", box, function="vendor_get_stats64")
    made = {"lo": lo, "eth": eth, "bridge": bridge, "box": box, "inner": inner}
    made["first"] = guest.address4(eth, "192.0.2.1", ifa_prefixlen=24, ifa_flags=0x80, ifa_label=b"eth0",
                                   ifa_broadcast=socket.inet_aton("192.0.2.255"))  # fmt: skip
    guest.address4(eth, "192.0.2.2", ifa_prefixlen=24, ifa_flags=0x81, ifa_label=b"eth0:1")
    guest.address4(lo, "127.0.0.1", ifa_prefixlen=8, ifa_flags=0x80, ifa_scope=254)
    made["six"] = guest.addresses6(eth, "fe80::1", "2001:db8::1", scope=0x20, flags=0x80)[0]
    one, other = guest.nexthop(11, "192.0.2.11", eth), guest.nexthop(12, "2001:db8::12", eth)
    made["group"] = guest.nexthop_group(21, (one, 5), (other, 1))
    made["info"] = guest.info(("192.0.2.254", eth), fib_protocol=3, fib_metrics=guest.metrics(1300), fib_priority=50)
    several = guest.info(("192.0.2.3", eth), ("192.0.2.4", eth), fib_protocol=4)
    made["alias"] = guest.alias(made["info"], 0)
    made["leaf"] = guest.leaf("0.0.0.0", made["alias"])
    made["node"] = guest.inner(
        guest.leaf("10.0.0.0", guest.alias(several, 8), guest.alias(guest.info(nh=made["group"]), 16)),
        guest.leaf("127.0.0.1", guest.alias(guest.info(("", lo), fib_scope=254), 32, 255, 2)),
    )
    guest.table4(254, guest.inner(made["leaf"], made["node"]))
    made["route6"] = guest.route6("2001:db8:1::", 48, "fe80::fe", eth, fib6_metric=1024, fib6_protocol=2)
    made["node6"] = guest.new("fib6_node", leaf=made["route6"], fn_flags=4)
    guest.table6(254, left=guest.new("fib6_node", right=made["node6"], leaf=made["route6"]))
    guest.table6(255)
    made["neighbour"] = guest.neighbour("192.0.2.9", eth, mac=b"\2\0\0\0\0\x09", nud_state=0x80)
    guest.neighbour("192.0.2.10", eth, 3, mac=b"\2\0\0\0\0\x0a", nud_state=0x20)
    guest.neighbour("fe80::fe", eth, mac=b"\2\0\0\0\0\xfe", nud_state=4, flags=0x80)
    made["proxy"] = guest.proxy("192.0.2.200", eth)
    chain = guest.nft_chain("input", 3, hooknum=1, priority=-5, policy=0)
    plain = guest.nft_chain("plain", 1)
    made["set"] = guest.new("nft_set", name=guest.string("hosts"), klen=4, nelems__counter=9, ndeact=2, flags=1)
    made["table"] = guest.nft_table("filter", chain, plain, sets=(made["set"],))
    made["chain"] = chain
    guest.nft_tables(made["table"], guest.nft_table("empty", family=10, flags=1))
    made["xt"] = guest.xt_table("filter")
    made["hooks"] = guest.hooks(
        (guest.text["a_hook"], 0, -100), (guest.text["nft_do_chain"], chain, -5), (NOWHERE, 0, 300), kind=1
    )
    guest.put("net", guest.init_net, **{"nf.hooks_ipv4[1]": made["hooks"]})
    guest.put("net_device", eth, nf_hooks_ingress=guest.hooks((guest.text["a_hook"], 0, 5)))
    return made


def test_interfaces(guest: NetworkGuest) -> None:
    populate(guest)
    table = interface_details(guest.finish().kernel)
    assert table.notes == ()
    assert cells(table, "net_namespace", "interface", "state", "mac", "flag_names", "master", "promiscuous") == [
        (0xF0000001, "lo", "UNKNOWN", "00:00:00:00:00:00", "LOOPBACK,UP,LOWER_UP", "", False),
        (0xF0000001, "eth0", "UP", "02:00:00:00:00:01", "BROADCAST,MULTICAST,UP,LOWER_UP", "br0", True),
        (0xF0000001, "br0", "DOWN", "02:00:00:00:00:02", "", "", False),
        (0xF0000002, "eth0", "DOWN", "", "", "", False),
    ]
    assert cells(table, "ipackets", "opackets", "ibytes", "obytes", "ierrors") == [
        (21, 21, 2001, 2001, 0), (3, 5, 21, 41, 3), (7, 0, 0, 0, 0), (-1, -1, -1, -1, -1),
    ]  # fmt: skip
    assert table.fault.tolist() == ["", "", "", "counters: only the driver knows them (vendor_get_stats64)"]


def test_addresses(guest: NetworkGuest) -> None:
    populate(guest)
    table = interface_addresses(guest.finish().kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert cells(table, "interface", "label", "address", "mask", "broadcast", "scope", "flags") == [
        ("lo", "", "127.0.0.1", "255.0.0.0", "", "host", "permanent"),
        ("eth0", "eth0", "192.0.2.1", "255.255.255.0", "192.0.2.255", "global", "permanent"),
        ("eth0", "eth0:1", "192.0.2.2", "255.255.255.0", "", "global", "secondary permanent"),
        ("eth0", "", "fe80::1", "ffff:ffff:ffff:ffff::", "", "link", "permanent"),
        ("eth0", "", "2001:db8::1", "ffff:ffff:ffff:ffff::", "", "link", "permanent"),
    ]


def test_routes(guest: NetworkGuest) -> None:
    populate(guest)
    table = routes(guest.finish().kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert cells(table, "table", "destination", "netmask", "gateway", "interface", "metric", "mtu", "weight") == [
        ("main", "0.0.0.0", 0, "192.0.2.254", "eth0", 50, 1300, 1),
        ("main", "10.0.0.0", 8, "192.0.2.3", "eth0", 0, 0, 1),
        ("main", "10.0.0.0", 8, "192.0.2.4", "eth0", 0, 0, 1),
        ("main", "10.0.0.0", 16, "192.0.2.11", "eth0", 0, 0, 5),
        ("main", "10.0.0.0", 16, "2001:db8::12", "eth0", 0, 0, 1),
        ("local", "127.0.0.1", 32, "", "lo", 0, 0, 1),
        ("main", "2001:db8:1::", 48, "fe80::fe", "eth0", 1024, 0, 1),
    ]
    assert cells(table, "type", "protocol", "scope", "nexthop_id")[3:] == [
        ("unicast", "unspec", "global", 21),
        ("unicast", "unspec", "global", 21),
        ("local", "unspec", "host", 0),
        ("unicast", "kernel", "global", 0),
    ]


def test_neighbours(guest: NetworkGuest) -> None:
    populate(guest)
    table = arp_cache(guest.finish().kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert cells(table, "family", "address", "mac", "interface", "state", "permanent", "flags") == [
        ("inet", "192.0.2.9", "02:00:00:00:00:09", "eth0", "PERMANENT", True, ""),
        ("inet", "192.0.2.10", "", "eth0", "FAILED", False, ""),
        ("inet", "192.0.2.200", "", "eth0", "PROXY", False, "proxy"),
        ("inet6", "fe80::fe", "02:00:00:00:00:fe", "eth0", "STALE", False, "router"),
    ]
    assert set(table.net_namespace.tolist()) == {0xF0000001}


def test_hooks(guest: NetworkGuest) -> None:
    populate(guest)
    table = netfilter_hooks(guest.finish().kernel)
    assert table.notes == ()
    chain = "" if guest.older else "filter input"
    assert cells(table, "family", "hook", "priority", "interface", "function", "module", "chain") == [
        ("ipv4", "INPUT", -100, "", "a_hook", "kernel", ""),
        ("ipv4", "INPUT", -5, "", "nft_do_chain", "kernel", chain),
        ("ipv4", "INPUT", 300, "", f"{NOWHERE:#x}", "", ""),
        ("netdev", "INGRESS", 5, "eth0", "a_hook", "kernel", ""),
    ]
    assert table.fault.tolist()[2] == "the function is nobody's code that is known"


def test_nftables(guest: NetworkGuest) -> None:
    populate(guest)
    kernel = guest.finish().kernel
    table = nftables(kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert cells(table, "family", "table", "dormant", "chain", "type", "hook", "priority", "policy", "rules") == [
        ("inet", "filter", False, "input", "filter", "input", -5, "drop", 3),
        ("inet", "filter", False, "plain", "", "", 0, "", 1),
        ("ip6", "empty", True, "", "", "", 0, "", 0),
    ]
    names = ("table", "name", "flags", "key_length", "elements")
    assert cells(nftables_sets(kernel), *names) == [("filter", "hosts", "anonymous", 4, 7)]


def test_legacy_tables(guest: NetworkGuest) -> None:
    populate(guest)
    table = xtables(guest.finish().kernel)
    assert table.notes == ()
    assert set(table.fault) == {""}
    assert cells(table, "net_namespace", "family", "table", "hooks", "entries", "size", "module") == [
        (0xF0000001, "ipv4", "filter", "INPUT FORWARD OUTPUT", 4, 632, "iptable_filter"),
    ]


@pytest.mark.parametrize("make", TABLES, ids=lambda make: make.__name__)
def test_some_columns_cost_less(make: Callable[..., Table]) -> None:
    guest = NetworkGuest()
    populate(guest)
    guest.finish()
    make(guest.kernel)
    guest.memory.reset()
    whole = make(guest.kernel)
    everything = guest.memory.rows
    guest.memory.reset()
    table = make(guest.kernel, ["net_namespace"])
    assert guest.memory.rows <= everything
    assert (table.columns, len(table)) == (("net_namespace", "fault"), len(whole))
    with pytest.raises(AttributeError, match="no column 'nonsense'"):
        make(guest.kernel, ["nonsense"])


def faults(table: Table) -> list[str]:
    return [fault for fault in table.fault.tolist() if fault]


def pointers(ctype: CType, base: int = 0) -> Iterator[int]:
    """Where in a struct pointers are."""
    for member in ctype.members.values():
        at = base + member.offset
        if member.type.kind == "array" and member.type.target.kind == "pointer":
            yield from range(at, at + member.size, 8)
        elif member.type.kind == "pointer":
            yield at
        else:
            yield from pointers(member.type, at)


@pytest.mark.parametrize("wild", WILD[:3])
def test_no_pointer_is_believed(wild: int) -> None:
    """Each pointer of everything planted goes wild, one after the other; all tables end, and invent nothing."""
    guest = NetworkGuest()
    made = populate(guest)
    kernel = guest.finish().kernel
    planted = {
        "net_device": made["eth"], "net": made["box"], "in_ifaddr": made["first"], "inet6_ifaddr": made["six"],
        "fib_alias": made["alias"], "fib_info": made["info"], "nexthop": made["group"], "fib6_info": made["route6"],
        "fib6_node": made["node6"], "neighbour": made["neighbour"], "pneigh_entry": made["proxy"],
        "nft_table": made["table"], "nft_chain": made["chain"], "nft_set": made["set"],
        "xt_table": made["xt"],
    }  # fmt: skip
    before = [len(make(kernel)) for make in TABLES]
    for struct_name, at in planted.items():
        places = sorted(set(pointers(guest.profile.struct(struct_name))))
        assert places
        for place in places:
            held = guest.space.read(at + place, 8)
            guest.word(at + place, wild)
            tables = [make(kernel) for make in TABLES]
            guest.write(at + place, held)
            for table, most in zip(tables, before, strict=True):
                assert len(table) <= most + 1, (struct_name, place, table)
    assert [len(make(kernel)) for make in TABLES] == before


@pytest.mark.parametrize("wild", WILD)
def test_wild_pointers_mark_their_rows_only(wild: int) -> None:
    guest = NetworkGuest()
    made = populate(guest)
    guest.put("net_device", made["bridge"], dev_addr=wild, qdisc=wild, rtnl_link_ops=wild, netdev_ops=wild)
    guest.put("fib_info", made["info"], fib_metrics=wild)
    guest.put("fib6_info", made["route6"], nh=wild)
    guest.put("neighbour", made["neighbour"], dev=wild)
    guest.put("nft_set", made["set"], name=wild)
    kernel = guest.finish().kernel
    marked = [row for row in interface_details(kernel) if row.fault and row.net_namespace == 0xF0000001]
    assert [row.interface for row in marked] == ["br0"]
    assert {"mac unreadable", "kind unreadable", "qdisc unreadable"} <= set(marked[0].fault.split("; "))
    table = routes(kernel)
    assert [(row.destination, row.fault) for row in table if row.fault] == [
        ("0.0.0.0", "metrics unreadable"),
        ("2001:db8:1::", "next hop unreadable, or their number not believed"),
    ]
    table = arp_cache(kernel)
    assert [(row.address, row.fault) for row in table if row.fault] == [("192.0.2.9", "interface unreadable")]
    assert faults(nftables_sets(kernel)) == ["set unreadable"]


def test_circles_end() -> None:
    guest = NetworkGuest()
    made = populate(guest)
    link = guest.offset("net_device", "dev_list")
    guest.word(made["bridge"] + link, made["lo"] + link)  # the list of devices never comes to its head
    guest.put("in_ifaddr", made["first"], ifa_next=made["first"])
    guest.word(made["node"] + 8, made["node"])  # a node of the trie is its own child
    guest.word(made["alias"], made["alias"])
    guest.put("fib6_node", made["node6"], left=made["node6"], right=made["node6"])
    guest.put("fib6_info", made["route6"], fib6_next=made["route6"])
    guest.word(made["neighbour"], made["neighbour"])
    guest.word(made["proxy"], made["proxy"])
    for struct_name, member, at in (("nft_chain", "rules", made["chain"]), ("nft_table", "sets", made["table"])):
        first = guest.space.read_u64(at + guest.offset(struct_name, member))
        guest.word(first, first)
    guest.word(made["xt"], made["xt"])
    kernel = guest.finish().kernel
    for make in TABLES[:4]:
        table = make(kernel)
        assert 0 < len(table) < 20
        assert any("circle" in note or "twice" in note for note in table.notes), make.__name__
    for make in TABLES[5:]:
        table = make(kernel)
        assert 0 < len(table) < 20
        assert any("circle" in note for note in table.notes)


def test_numbers_that_lie() -> None:
    guest = NetworkGuest()
    made = populate(guest)
    guest.put("net_device", made["bridge"], addr_len=255, mtu=(1 << 32) - 1)
    guest.put("in_ifaddr", made["first"], ifa_prefixlen=255)
    guest.put("inet6_ifaddr", made["six"], prefix_len=(1 << 32) - 1)
    guest.put("key_vector", made["node"], bits=63)
    guest.put("fib_info", made["info"], fib_nhs=(1 << 31) - 1)
    guest.put("fib6_info", made["route6"], fib6_dst__plen=(1 << 31) - 1)
    for name in ("arp_tbl", "nd_tbl"):
        nht = guest.space.read_u64(guest.profile.symbols[name] + guest.offset("neigh_table", "nht"))
        guest.put("neigh_hash_table", nht, hash_shift=(1 << 32) - 1)
    guest.put("nf_hook_entries", made["hooks"], num_hook_entries=(1 << 16) - 1)
    kernel = guest.finish().kernel
    assert "mac unreadable" in faults(interface_details(kernel))
    assert faults(interface_addresses(kernel)) == ["prefix length not believed"] * 2
    table = routes(kernel)
    assert [(row.destination, row.fault) for row in table if row.fault] == [
        ("0.0.0.0", "next hop unreadable, or their number not believed"),
        ("2001:db8:1::", "netmask not believed"),
    ]
    assert any("makes no sense" in note for note in table.notes)
    assert any("not believed" in note for note in arp_cache(kernel).notes)
    hooks = netfilter_hooks(kernel)
    assert [row.hook for row in hooks] == ["INGRESS"]
    assert any("not believed" in note for note in hooks.notes)
    guest.write(guest.profile.symbols["nf_tables_net_id"], b"\xff" * 4)
    assert any("not believed" in note for note in nftables(kernel).notes)


def test_groups_that_lie() -> None:
    guest = NetworkGuest()
    eth = guest.device("eth0")
    guest.new("nexthop")
    wide = guest.nexthop_group(5, count=65535)
    inside = guest.nexthop_group(6, (NOWHERE, 1), (wide, 2))
    leaves = (
        guest.leaf(f"10.{at}.0.0", guest.alias(guest.info(nh=group), 16)) for at, group in enumerate((wide, inside))
    )
    guest.table4(254, guest.inner(*leaves))
    guest.table4(100, guest.leaf("10.9.0.0", guest.alias(guest.info(("192.0.2.1", eth), nhs=0), 16, 100)))
    table = routes(guest.finish().kernel)
    assert cells(table, "destination", "nexthop_id", "gateway") == [
        ("10.9.0.0", 0, ""),
        ("10.0.0.0", 5, ""),
        ("10.1.0.0", 6, ""),
        ("10.1.0.0", 6, ""),
    ]
    assert [bool(fault) for fault in table.fault.tolist()] == [False, True, True, True]


def test_rounds_do_not_grow_with_devices_and_routes() -> None:
    guest = NetworkGuest()
    devices = [guest.device(f"tap{number}", mac=bytes(6)) for number in range(120)]
    infos = [guest.info((f"10.0.0.{number % 250}", device)) for number, device in enumerate(devices)]
    leaves = [guest.leaf(f"10.0.{number}.0", guest.alias(info, 24)) for number, info in enumerate(infos)]
    guest.table4(254, guest.inner(*(guest.inner(*leaves[at : at + 8]) for at in range(0, 120, 8))))
    kernel = guest.finish().kernel
    for make, rounds in ((routes, 60), (interface_addresses, 150), (arp_cache, 60)):
        make(kernel)
        guest.memory.reset()
        make(kernel)
        assert guest.memory.gathers < rounds, make.__name__
    assert len(routes(kernel)) == 120


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_other_ends_of_unix_sockets(kind: dict[str, Any]) -> None:
    guest = NetworkGuest(**kind)
    ends = [guest.sock(1, 1, 0, 1, struct="unix_sock", inode=inode) for inode in (100, 200)]
    guest.put("unix_sock", ends[0], peer=ends[1])
    guest.put("unix_sock", ends[1], peer=ends[0])
    lost = guest.sock(1, 1, 0, 1, struct="unix_sock", inode=300, peer=NOWHERE)
    for bucket, each in enumerate((*ends, lost)):
        guest.hash_unix(each, bucket)
    table = process_open_sockets(guest.finish().kernel, ["inode", "peer_inode"])
    assert sorted(cells(table, "inode", "peer_inode", "fault")) == [
        (100, 200, ""), (200, 100, ""), (300, 0, "peer unreadable"),
    ]  # fmt: skip
