"""Routes of every namespace, held against what rtnetlink says in the guest (what `ip route show table all` reads)."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from typing import Any

from tests import netlink
from tests.lab.guest import LabGuest
from vmi_inside.linux.network.routes import PROTOCOLS, SCOPES, TABLES, TYPES

GETROUTE, DST, OIF, GATEWAY, PRIORITY, PREFSRC, METRICS, MULTIPATH, TABLE, VIA, NH_ID = (
    26,
    1,
    4,
    5,
    6,
    7,
    8,
    9,
    15,
    18,
    30,
)
CLONED = 0x200  # RTM_F_CLONED: a cached exception, no route
FLAGS = 1 | 4 | 16  # dead, onlink, linkdown
COMPARED = (
    "family", "table", "destination", "netmask", "type", "protocol", "scope", "metric", "source", "mtu", "hopcount",
    "nexthop_id", "tos", "interface", "gateway", "weight", "flags",
)  # fmt: skip


def hops(found: netlink.Attributes, flags: int) -> list[tuple[int, bytes, int, int]]:
    """Interface, gateway, weight and flags of each next hop."""
    if MULTIPATH not in found:
        gateway = found.get(GATEWAY, found.get(VIA, b"")[-16:] if VIA in found else b"")
        return [(netlink.number(found, OIF), gateway, 1, flags & FLAGS)]
    data, legs = found[MULTIPATH], []
    while len(data) >= 8:
        size, bits, more, index = struct.unpack_from("=HBBi", data)
        own = netlink.attributes(data[8:size])
        legs.append((index, own.get(GATEWAY, b""), more + 1, bits & FLAGS))
        data = data[(size + 3) & ~3 :]
    return legs


def told(guest: LabGuest, namespace: str) -> list[tuple[Any, ...]]:
    """All routes of one namespace, as the kernel tells them, one for each next hop."""
    links = netlink.dump(guest, namespace, netlink.ROUTE, 18, bytes(16))
    names = {struct.unpack_from("=i", head, 4)[0]: netlink.text(found, 3) for head, found in links}
    rows = []
    for head, found in netlink.dump(guest, namespace, netlink.ROUTE, GETROUTE, bytes(12)):
        family, bits, _, tos, _, protocol, scope, kind, flags = struct.unpack("=BBBBBBBBI", head)
        if flags & CLONED:
            continue
        table = netlink.number(found, TABLE)
        metrics = netlink.attributes(found.get(METRICS, b""))

        def shown(raw: bytes) -> str:
            return socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw) if raw else ""

        rows += [
            (
                "inet" if family == socket.AF_INET else "inet6", TABLES.get(table, str(table)),
                shown(found.get(DST, bytes(4 if family == socket.AF_INET else 16))), bits, TYPES[kind],
                PROTOCOLS.get(protocol, str(protocol)), SCOPES[scope], netlink.number(found, PRIORITY),
                shown(found.get(PREFSRC, b"")), netlink.number(metrics, 2), netlink.number(metrics, 10),
                netlink.number(found, NH_ID), tos, names.get(index, ""), shown(gateway), weight, dead,
            )
            for index, gateway, weight, dead in hops(found, flags)
        ]  # fmt: skip
    return rows


def test_every_route_cell_by_cell(lab_each: LabGuest) -> None:
    guest = lab_each
    said = Counter((inode, *row) for inode, rows in netlink.everywhere(guest, told).items() for row in rows)
    with guest.attach() as seen:
        table = seen.routes()
        assert table.notes == ()
        assert set(table.fault.tolist()) == {""}
        assert len(table) > 80
        columns = {name: table.column(name).tolist() for name in ("net_namespace", *COMPARED)}
        columns["flags"] = [each & FLAGS for each in columns["flags"]]
        mine = Counter(zip(*columns.values(), strict=True))
        assert mine - said == Counter()
        assert said - mine == Counter()
        lab = table.where(table.interface == "lan0")
        assert sorted(lab.weight[lab.destination == "10.72.0.0"].tolist()) == [1, 5]
        assert lab.mtu[(lab.destination == "203.0.113.0") & (lab.netmask == 24)].tolist() == [1300]
        assert set(lab.nexthop_id[lab.destination == "2001:db8:72::"].tolist()) == {22}
        few = seen.routes(["destination", "table"])
        assert few.columns == ("table", "destination", "fault")
