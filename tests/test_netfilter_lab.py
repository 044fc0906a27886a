"""Netfilter's hooks of every namespace, held against what nfnetlink says in the guest (what `nft list hooks` reads)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tests import netlink
from tests.lab.guest import LabGuest
from vmi_inside.linux.network.hooks import DEVICES, FAMILIES, NetfilterHooks

GET = 12 << 8  # NFNL_SUBSYS_HOOK, NFNL_MSG_HOOK_GET; told since 5.14, but not by Debian's 6.1
HOOKNUM, PRIORITY, DEVICE, FUNCTION, MODULE = 1, 2, 3, 4, 5
NFPROTO = {"ipv4": 2, "ipv6": 10, "arp": 3, "bridge": 7}
NETDEV = 5


def hook(guest: LabGuest, namespace: str, family: int, number: int, device: str = "") -> list[tuple[Any, ...]]:
    """Priority, function and module of all that is on one hook, in order."""
    header = struct.pack("=BBH", family, 0, 0)
    asked = struct.pack("=HH", 8, HOOKNUM) + struct.pack(">I", number)
    if device:
        name = device.encode() + b"\0"
        asked += struct.pack("=HH", 4 + len(name), DEVICE) + name + bytes(-len(name) % 4)
    rows = []
    for _, found in netlink.dump(guest, namespace, netlink.NETFILTER, GET, header, asked):
        priority = netlink.big(found, PRIORITY, signed=True)
        rows.append((priority, netlink.text(found, FUNCTION), netlink.text(found, MODULE) or "kernel"))
    return rows


def test_every_hook_in_order(lab_each: LabGuest) -> None:
    guest = lab_each
    if not guest.ask("grep -w nfnetlink_hook /proc/modules", check=False):
        assert guest.shape.kernel in ("5.10-cloud", "6.1-cloud")  # which do not tell
        return
    with guest.attach() as seen:
        table = seen.netfilter_hooks()
        assert table.notes == ()
        assert set(table.fault.tolist()) == {""}
        checked = 0
        for inode, namespace in netlink.namespaces(guest).items():
            mine = table.where(table.net_namespace == inode)
            for family, names in FAMILIES.values():
                for number, name in enumerate(names[:5]):
                    found = mine.where((mine.family == family) & (mine.hook == name))
                    assert rows(found) == hook(guest, namespace, NFPROTO[family], number), (inode, family, name)
                    checked += len(found)
            devices = mine.where(mine.family == "netdev")
            for device in set(devices.interface.tolist()):
                for number, name in enumerate(DEVICES.values()):
                    found = devices.where((devices.interface == device) & (devices.hook == name))
                    assert rows(found) == hook(guest, namespace, NETDEV, number, device), (device, name)
                    checked += len(found)
        # A namespace in which no task lives has hooks, too; the guest has no name for it.
        named = np.isin(table.net_namespace, list(netlink.namespaces(guest)))
        assert checked == len(table.where(named)) > 5


def rows(table: NetfilterHooks) -> list[tuple[Any, ...]]:
    names = [each.partition(" ")[0] for each in table.function.tolist()]
    return list(zip(table.priority.tolist(), names, table.module.tolist(), strict=True))


def test_what_the_hooks_serve(lab_each: LabGuest) -> None:
    guest = lab_each
    with guest.attach() as seen:
        table = seen.netfilter_hooks()
        assert set(table.fault.tolist()) == {""}
        lab = {(row.family, row.hook, row.priority): row for row in table if row.module == "nf_tables"}
        assert lab["ipv4", "INPUT", -5].function.startswith("nft_do_chain_inet")
        assert lab["ipv6", "FORWARD", 10].function.startswith("nft_do_chain_inet")
        wire = lab["netdev", "INGRESS", -500]
        assert (wire.interface, wire.function.partition(" ")[0]) == ("lan0", "nft_do_chain_netdev")
        legacy = [row for row in table if row.module in ("iptable_filter", "ip_tables")]
        assert {(row.family, row.hook, row.priority) for row in legacy} == {
            ("ipv4", "INPUT", 0), ("ipv4", "FORWARD", 0), ("ipv4", "OUTPUT", 0),
        }  # fmt: skip
        if guest.shape.kernel != "5.10-cloud":  # whose modules have no types
            assert lab["ipv4", "INPUT", -5].chain == "lab input"
            assert wire.chain == "early wire"
            out = lab["netdev", "EGRESS", 7]
            assert (out.interface, out.chain) == ("lan0", "early out")
            assert {row.chain for row in legacy} == {"filter"}
            assert {row.kind for row in legacy} == {"iptables"}


def test_tables_of_legacy_iptables(lab_each: LabGuest) -> None:
    guest = lab_each
    spaces = netlink.namespaces(guest)
    said = set()
    for inode, path in spaces.items():
        for family, name in (("ipv4", "ip_tables_names"), ("ipv6", "ip6_tables_names")):
            told = guest.ask(f"cat {path.removesuffix('ns/net')}net/{name}", check=False)
            said |= {(inode, family, table) for table in told.split() if "/" not in told}
    assert {table for _, _, table in said} == {"filter"}
    with guest.attach() as seen:
        table = seen.xtables()
    assert table.notes == ()
    assert set(table.fault.tolist()) == {""}
    assert {(row.net_namespace, row.family, row.table) for row in table if row.net_namespace in spaces} == said
    # Three policies and the mark at the end.
    assert {(row.hooks, row.entries) for row in table} == {("INPUT FORWARD OUTPUT", 4)}
    assert set(table.module.tolist()) <= {"iptable_filter", "ip6table_filter"}
