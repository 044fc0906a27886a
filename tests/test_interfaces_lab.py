"""Network interfaces of every namespace, held against what rtnetlink says in the guest (`ip -d -s link`)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import vmi_inside
from tests import netlink
from tests.lab.guest import LabGuest
from vmi_inside.linux.network.interfaces import STATES, InterfaceDetails

GETLINK, NAME, ADDRESS, MTU, QDISC, MASTER, OPERSTATE, LINKINFO, ALIAS, STATS64, PROMISCUITY = (
    18, 3, 1, 4, 6, 10, 16, 18, 20, 23, 30,
)  # fmt: skip
COUNTS = (
    "ipackets", "opackets", "ibytes", "obytes", "ierrors", "oerrors", "idrops", "odrops", "multicast", "collisions",
)  # fmt: skip


def links(guest: LabGuest, namespace: str) -> list[dict[str, Any]]:
    """All links of one namespace, as the kernel tells them."""
    told = netlink.dump(guest, namespace, netlink.ROUTE, GETLINK, bytes(16))
    names = {struct.unpack_from("=i", head, 4)[0]: netlink.text(found, NAME) for head, found in told}
    rows = []
    for head, found in told:
        _, _, kind, index, flags, _ = struct.unpack("=BBHiII", head)
        info = netlink.attributes(found.get(LINKINFO, b""))
        rows.append({
            "interface": netlink.text(found, NAME), "ifindex": index, "type": kind, "flags": flags,
            "state": STATES[found[OPERSTATE][0]], "kind": netlink.text(info, 1),
            "mac": found.get(ADDRESS, b"").hex(":"), "mtu": netlink.number(found, MTU),
            "promiscuous": netlink.number(found, PROMISCUITY) > 0,
            "master": names.get(netlink.number(found, MASTER), ""), "qdisc": netlink.text(found, QDISC),
            "alias": netlink.text(found, ALIAS),
            **dict(zip(COUNTS, struct.unpack_from("=10Q", found[STATS64]), strict=True)),
        })  # fmt: skip
    return rows


def differing(guest: LabGuest, seen: vmi_inside.Guest) -> dict[Any, Any]:
    """Cells that differ. What is counted goes on: it was read before, and is read again behind, what the guest says."""
    before = by_key(seen.interface_details())
    told = {(inode, row["ifindex"]): row for inode, rows in netlink.everywhere(guest, links).items() for row in rows}
    after = by_key(seen.interface_details())
    # A namespace in which no task lives (a descriptor holds it) has no name inside: only from outside it is seen.
    known = {inode for inode, _ in told}
    assert [key[1] for key in after.keys() - told.keys() if key[0] not in known] == [1]
    assert told.keys() == {key for key in after if key[0] in known}
    wrong = {}
    for key, row in told.items():
        for name, value in row.items():
            first, last = before[key][name], after[key][name]
            right = first <= value <= last if name in COUNTS else last == value
            if not right and first != -1:
                wrong[key, name] = first, value, last
    return wrong


def by_key(table: InterfaceDetails) -> dict[Any, dict[str, Any]]:
    return {(row.net_namespace, row.ifindex): row._asdict() for row in table}


def test_every_interface_cell_by_cell(lab_each: LabGuest) -> None:
    guest = lab_each
    with guest.attach() as seen:
        first = differing(guest, seen)
        again = differing(guest, seen) if first else {}
        assert {key: again[key] for key in first.keys() & again.keys()} == {}
        table = seen.interface_details()
        assert table.notes == ()
        assert len(set(table.net_namespace.tolist())) >= 4
        # Whose counters are missing, is said: where modules have no types (before 5.11), veth's and TUN's.
        assert {row.kind for row in table if row.fault} == (
            {"veth", "tun"} if guest.shape.kernel == "5.10-cloud" else set()
        )
        assert all((row.ipackets == -1) == bool(row.fault) for row in table)
        lan = table.where(table.interface == "lan0")
        assert (lan.mac.tolist(), lan.mtu.tolist()) == (["02:00:00:00:0a:01"], [1400])
        assert lan.promiscuous.all()
        assert "PROMISC" in lan.flag_names[0]
        assert table.master[table.interface == "lan1"].tolist() == ["bridge0"]
        assert (table.ipackets[table.interface == "lo"] > 0).any()
        few = seen.interface_details(["interface", "mtu"])
        assert few.columns == ("interface", "mtu", "fault")
        assert set(few.fault.tolist()) == {""}


def test_a_virtio_card_and_its_router(lab_boot: Callable[..., LabGuest]) -> None:
    guest = lab_boot(nic="virtio", workload="none")
    guest.ask("ping -c 2 -W 5 10.0.2.2")
    with guest.attach() as seen:
        before = by_key(seen.interface_details())
        said = {
            (inode, row["ifindex"]): row for inode, rows in netlink.everywhere(guest, links).items() for row in rows
        }
        after = by_key(seen.interface_details())
        (key,) = (key for key, row in said.items() if row["interface"] == "eth0")
        for name, value in said[key].items():
            low, high = before[key][name], after[key][name]
            assert low <= value <= high if name in COUNTS else high == value, name
        assert after[key]["ipackets"] >= 2
        assert after[key]["fault"] == ""
        router = {row.address: row for row in seen.arp_cache() if row.interface == "eth0"}["10.0.2.2"]
        assert (router.mac, router.permanent) == ("52:55:0a:00:02:02", False)
        assert router.mac in guest.ask("cat /proc/net/arp")
        default = [row for row in seen.routes(["family", "destination", "netmask", "gateway"]) if not row.netmask]
        assert ("inet", "10.0.2.2") in {(row.family, row.gateway) for row in default}
