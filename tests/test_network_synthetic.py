"""The network of made-up guests: what the tables show of each kind, and guests that lie."""

from __future__ import annotations

import socket
from collections.abc import Callable
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
from vmi_inside.table import Table

TABLES: tuple[Callable[[Kernel], Table], ...] = (
    interface_details, interface_addresses, routes, arp_cache, netfilter_hooks, nftables, nftables_sets,
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
