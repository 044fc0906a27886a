"""The tables of legacy iptables, ip6tables, arptables: filter, nat, mangle ... as /proc/net/ip_tables_names has them.

Knows `struct xt_table` and `xt_table_info` (include/linux/netfilter/x_tables.h); they hang in `struct net` up to 5.14,
in a struct of the module's own since. What their rules say is left out; the hooks that they serve are `hooks`' matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import words
from vmi_inside.linux.network.devices import namespaces
from vmi_inside.linux.network.hooks import INET_HOOKS
from vmi_inside.linux.network.pernet import Part, part
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64


class Xtables(Table):
    """One row for each table of legacy iptables and its like."""

    net_namespace: I64  # inode number
    family: Text  # ipv4, ipv6, arp, bridge
    table: Text  # filter nat mangle raw security
    hooks: Text  # where it is asked
    entries: I64  # rules, the policies and the mark at the end among them
    size: I64  # bytes of its rules
    module: Text
    pointer: U64  # of the struct xt_table


#: NFPROTO_* (include/uapi/linux/netfilter.h).
FAMILIES: Final = {2: "ipv4", 3: "arp", 7: "bridge", 10: "ipv6"}


def _heads(kernel: Kernel) -> tuple[Structs | None, I64, Part | None, str, tuple[str, ...]]:
    """The structs that hold lists of tables, their namespaces, and where in them the lists are."""
    known = namespaces(kernel)
    if known.rows.has("xt.tables"):
        return known.rows, known.inode, None, "xt.tables", known.faults
    found = part(kernel, "x_tables", "xt_pernet_id", "xt_pernet")
    return found.own, found.known.inode, found, "tables", found.faults


def xtables(kernel: Kernel, columns: Iterable[str] | None = None) -> Xtables:
    """All tables of legacy iptables of all namespaces. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(Xtables.schema if columns is None else columns)
    Xtables.check(wanted)
    with kernel.operation():
        holders, inode, found, member, faults = _heads(kernel)
        if holders is None:
            return Xtables.empty(wanted, faults)
        families = holders.type.member(member).type.count
        step = kernel.struct("list_head").size
        heads = np.where(
            holders.address[:, None] == 0,
            np.uint64(0),
            holders.at(member)[:, None] + np.uint64(step) * np.arange(families, dtype=np.uint64)[None, :],
        ).ravel()
        first = kernel.structs("list_head", heads)
        listed = walk.chains(kernel.space, first.pointer("next"), end=heads, what="iptables' tables")
        order = np.argsort(listed.owner, kind="stable")
        owner = listed.owner[order]
        ctype = found.struct(kernel, "xt_table") if found else kernel.struct("xt_table")
        rows = kernel.structs(ctype, listed.address[order] - np.uint64(ctype.member("list").offset))
        rows.fetch("name", "valid_hooks", "private", "me")
        info = rows.follow("private", found.struct(kernel, "xt_table_info") if found else None).fetch("size", "number")
        module = rows.follow("me", kernel.struct("module")).fetch("name")
        marks = Faults(len(owner))
        marks.mark(rows.fault, "table unreadable")
        marks.mark(info.fault, "rules unreadable")
        marks.mark(module.fault, "module unreadable")
        data: dict[str, Column] = {
            "net_namespace": inode[owner // families],
            "family": words.code(owner % families, FAMILIES),
            "table": text(rows.text("name")),
            "hooks": words.flags(rows.number("valid_hooks"), {1 << at: name for at, name in enumerate(INET_HOOKS)}),
            "entries": info.number("number"),
            "size": info.number("size"),
            "module": text(module.text("name")),
            "pointer": rows.address,
        }
        data["fault"] = marks.column()
        notes = (*faults, *listed.faults)
        if (holders.fault.any() or first.fault.any()) and len(holders):
            notes = (*notes, "iptables' tables: a namespace's could not be read")
        return Xtables({name: data[name] for name in (*wanted, "fault")}, notes)
