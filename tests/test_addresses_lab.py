"""IP addresses of every namespace, held against what rtnetlink says in the guest (what `ip addr` reads)."""

from __future__ import annotations

import socket
import struct
from typing import Any

from tests import netlink
from tests.lab.guest import LabGuest
from vmi_inside.linux.network.addresses import FLAGS, SCOPES

GETADDR, ADDRESS, LOCAL, LABEL, BROADCAST, BITS = 22, 1, 2, 3, 4, 8
FAMILIES = {socket.AF_INET: "inet", socket.AF_INET6: "inet6"}
COMPARED = (
    "interface", "ifindex", "family", "address", "prefix_length", "broadcast", "point_to_point", "scope", "label",
    "flags",
)  # fmt: skip


def told(guest: LabGuest, namespace: str) -> list[tuple[Any, ...]]:
    """All addresses of one namespace, as the kernel tells them."""
    links = netlink.dump(guest, namespace, netlink.ROUTE, 18, bytes(16))
    names = {struct.unpack_from("=i", head, 4)[0]: netlink.text(found, 3) for head, found in links}
    rows = []
    for head, found in netlink.dump(guest, namespace, netlink.ROUTE, GETADDR, bytes(8)):
        family, bits, _, scope, index = struct.unpack("=BBBBI", head)
        local = found.get(LOCAL, found[ADDRESS])
        peer = found[ADDRESS] if found[ADDRESS] != local else b""
        flags = netlink.number(found, BITS)
        words = {1: "secondary" if family == socket.AF_INET else "temporary", **FLAGS}
        rows.append((
            names[index], index, FAMILIES[family], socket.inet_ntop(family, local), bits,
            socket.inet_ntop(family, found[BROADCAST]) if BROADCAST in found else "",
            socket.inet_ntop(family, peer) if peer else "", SCOPES[scope], netlink.text(found, LABEL),
            " ".join(word for bit, word in words.items() if flags & bit),
        ))  # fmt: skip
    return rows


def test_every_address_cell_by_cell(lab_each: LabGuest) -> None:
    guest = lab_each
    said = {(inode, *row) for inode, rows in netlink.everywhere(guest, told).items() for row in rows}
    with guest.attach() as seen:
        table = seen.interface_addresses()
        assert table.notes == ()
        assert set(table.fault.tolist()) == {""}
        columns = (table.column(name).tolist() for name in ("net_namespace", *COMPARED))
        assert set(zip(*columns, strict=True)) == said
        lan = table.where((table.interface == "lan0") & (table.family == "inet"))
        assert "192.0.2.1" in lan.address
        assert set(lan.mask[lan.address == "192.0.2.1"].tolist()) == {"255.255.255.0"}
        assert lan.point_to_point[lan.address == "198.51.100.1"].tolist() == ["198.51.100.2"]
        assert set(table.mask[table.prefix_length == 64].tolist()) == {"ffff:ffff:ffff:ffff::"}
        few = seen.interface_addresses(["interface", "mask"])
        assert few.columns == ("interface", "mask", "fault")
