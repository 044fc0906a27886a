"""Neighbours of every namespace, held against what rtnetlink says in the guest (what `ip neigh` reads)."""

from __future__ import annotations

import socket
import struct
from typing import Any

from tests import netlink
from tests.lab.guest import LabGuest
from vmi_inside.linux.network.neighbours import FLAGS, STATES

GETNEIGH, DST, LLADDR, EXTENDED = 30, 1, 2, 15
PROXY = 8


def told(guest: LabGuest, namespace: str) -> list[tuple[Any, ...]]:
    """All neighbours of one namespace, and the addresses it answers for, as the kernel tells them."""
    links = netlink.dump(guest, namespace, netlink.ROUTE, 18, bytes(16))
    names = {struct.unpack_from("=i", head, 4)[0]: netlink.text(found, 3) for head, found in links}
    rows = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for asked in (0, PROXY):
            header = struct.pack("=BBHiHBB", family, 0, 0, 0, 0, asked, 0)
            for head, found in netlink.dump(guest, namespace, netlink.ROUTE, GETNEIGH, header):
                of, _, _, index, state, flags, _ = struct.unpack("=BBHiHBB", head)
                bits = flags | netlink.number(found, EXTENDED) << 8
                rows.append((
                    "inet" if of == socket.AF_INET else "inet6", socket.inet_ntop(of, found[DST]),
                    found.get(LLADDR, b"").hex(":"), names[index], "PROXY" if asked else STATES[state],
                    " ".join(name for bit, name in FLAGS.items() if bits & bit),
                ))  # fmt: skip
    return rows


def test_every_neighbour_cell_by_cell(lab_each: LabGuest) -> None:
    guest = lab_each
    with guest.attach() as seen:

        def differences() -> set[tuple[Any, ...]]:
            said = {(inode, *row) for inode, rows in netlink.everywhere(guest, told).items() for row in rows}
            table = seen.arp_cache()
            assert table.notes == ()
            assert set(table.fault.tolist()) == {""}
            names = ("net_namespace", "family", "address", "mac", "interface", "state", "flags")
            return said ^ set(zip(*(table.column(name).tolist() for name in names), strict=True))

        first = differences()  # a neighbour may turn stale between the two
        assert not first or not first & differences()
        table = seen.arp_cache()
        lab = table.where(table.interface == "lan0")
        assert len(lab) > 25
        by_address = {row.address: row for row in lab}
        assert by_address["192.0.2.9"].permanent
        assert by_address["192.0.2.10"].state == "NOARP"
        assert (by_address["192.0.2.11"].state, by_address["192.0.2.11"].flags) == ("STALE", "router")
        assert by_address["2001:db8::9"].mac == "02:00:00:00:06:09"
        assert {row.address for row in lab if row.state == "PROXY"} == {"192.0.2.200", "2001:db8::200"}
        assert any(row.address == "10.8.0.2" and row.interface == "cable0" and row.mac for row in table)
