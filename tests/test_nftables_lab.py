"""nftables' tables, chains, rules and sets, held against what nfnetlink says in the guest (what `nft list` reads)."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

from tests import netlink
from tests.lab.guest import LabGuest
from vmi_inside.linux.network.nftables import FAMILIES, HOOKS, INET_HOOKS
from vmi_inside.linux.network.nftables_sets import FLAGS

GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM = (10 << 8 | kind for kind in (1, 4, 7, 10, 13))
COMPARED = ("family", "table", "dormant", "chain", "type", "hook", "priority", "policy", "interface", "rules")
SETS = ("family", "table", "name", "flags", "key_length", "data_length")


def asked(guest: LabGuest, namespace: str, kind: int, more: bytes = b"", family: int = 0) -> netlink.Messages:
    return netlink.dump(guest, namespace, netlink.NETFILTER, kind, struct.pack("=BBH", family, 0, 0), more)


def chains(guest: LabGuest, namespace: str) -> list[tuple[Any, ...]]:
    """All chains of one namespace, as the kernel tells them."""
    dormant = {
        (head[0], netlink.text(found, 1)): bool(netlink.big(found, 2) & 1)
        for head, found in asked(guest, namespace, GETTABLE)
    }
    rules = Counter(
        (head[0], netlink.text(found, 1), netlink.text(found, 2)) for head, found in asked(guest, namespace, GETRULE)
    )
    rows = []
    for head, found in asked(guest, namespace, GETCHAIN):
        family, table, name = head[0], netlink.text(found, 1), netlink.text(found, 3)
        hook = netlink.attributes(found.get(4, b""))
        devices = [value.rstrip(b"\0").decode() for _, value in netlink.listed(hook.get(4, b""))]
        rows.append((
            FAMILIES[family], table, dormant[family, table], name, netlink.text(found, 7),
            HOOKS.get(family, INET_HOOKS)[netlink.big(hook, 1)] if hook else "", netlink.big(hook, 2, signed=True),
            {0: "drop", 1: "accept"}[netlink.big(found, 5)] if 5 in found else "",
            ",".join(devices) or netlink.text(hook, 3), rules[family, table, name],
        ))  # fmt: skip
    return rows


def sets(guest: LabGuest, namespace: str) -> list[tuple[Any, ...]]:
    """All sets of one namespace, as the kernel tells them."""
    return [
        (
            FAMILIES[head[0]], netlink.text(found, 1), netlink.text(found, 2),
            " ".join(word for bit, word in FLAGS.items() if netlink.big(found, 3) & bit), netlink.big(found, 5),
            netlink.big(found, 7),
        )
        for head, found in asked(guest, namespace, GETSET)
    ]  # fmt: skip


def test_every_chain_and_set_cell_by_cell(lab_each: LabGuest) -> None:
    guest = lab_each
    with guest.attach() as seen:
        if guest.shape.kernel == "5.10-cloud":  # whose modules have no types
            for table in (seen.nftables(), seen.nftables_sets()):
                assert len(table) == 0
                assert "no types" in table.notes[0]
            return
        for table, names, ask in ((seen.nftables(), COMPARED, chains), (seen.nftables_sets(), SETS, sets)):
            assert table.notes == ()
            assert set(table.fault.tolist()) == {""}
            columns = (table.column(name).tolist() for name in ("net_namespace", *names))
            said = {(inode, *row) for inode, rows in netlink.everywhere(guest, ask).items() for row in rows}
            assert set(zip(*columns, strict=True)) == said
        table = seen.nftables()
        assert {(row.chain, row.rules) for row in table if row.table == "lab"} == {
            ("input", 3), ("forward", 0), ("plain", 1),
        }  # fmt: skip
        assert table.dormant[table.table == "asleep"].all()
        elements = seen.nftables_sets().elements.tolist()
        assert elements == ([-1] if guest.shape.kernel == "6.1-cloud" else [5])  # which does not count
