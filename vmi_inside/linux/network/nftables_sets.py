"""The sets and maps of nftables: what rules look addresses, ports and verdicts up in.

Knows `struct nft_set` (include/net/netfilter/nf_tables.h). Where tables hang is `nftables`' knowledge; the elements are
left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import words
from vmi_inside.linux.network.nftables import FAMILIES, names, nft_tables
from vmi_inside.table import Column, Faults, Table, Text
from vmi_inside.types import I64, U64


class NftablesSets(Table):
    """One row for each set or map of each table of nftables."""

    net_namespace: I64  # inode number
    family: Text  # inet ip ip6 arp bridge netdev
    table: Text
    name: Text  # __set0 ... for those that a rule brought along
    flags: Text  # nft's words: anonymous constant interval map timeout dynamic object concat
    key_length: I64  # bytes
    data_length: I64  # bytes of what a map gives; 0 for sets
    elements: I64  # an interval counts for its two ends; -1 where the kernel does not count
    size: I64  # elements at the most; 0 for no limit
    pointer: U64  # of the struct nft_set


#: NFT_SET_* (include/uapi/linux/netfilter/nf_tables.h).
FLAGS: Final = {
    1: "anonymous", 2: "constant", 4: "interval", 8: "map", 16: "timeout", 32: "dynamic", 64: "object", 128: "concat",
    256: "expr",
}  # fmt: skip


def nftables_sets(kernel: Kernel, columns: Iterable[str] | None = None) -> NftablesSets:
    """All sets and maps of all tables of nftables. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(NftablesSets.schema if columns is None else columns)
    NftablesSets.check(wanted)
    with kernel.operation():
        found = nft_tables(kernel)
        if found.rows is None:
            return NftablesSets.empty(wanted, found.faults)
        tables = found.rows.fetch("name", "family")
        heads = tables.at("sets")
        listed = walk.chains(kernel.space, tables.pointer("sets.next"), end=heads, what="nftables' sets")
        order = np.argsort(listed.owner, kind="stable")
        of = listed.owner[order]
        ctype = found.part.struct(kernel, "nft_set")
        rows = kernel.structs(ctype, listed.address[order] - np.uint64(ctype.member("list").offset))
        rows.fetch("name", "flags", "klen", "dlen", "nelems.counter", "ndeact", "size")
        # Sets without a limit are counted since 6.15, when their kinds learned to say how much a limit is.
        counted = found.part.struct(kernel, "nft_set_ops").has("adjust_maxsize")
        elements = np.maximum(rows.number("nelems.counter") - rows.number("ndeact"), 0)
        faults = Faults(len(of))
        faults.mark(rows.fault, "set unreadable")
        data: dict[str, Column] = {
            "net_namespace": found.inode[of],
            "family": words.code(tables.number("family")[of], FAMILIES),
            "table": names(kernel, tables.select(of), faults, "table"),
            "name": names(kernel, rows, faults, "set"),
            "flags": words.flags(rows.number("flags"), FLAGS),
            "key_length": rows.number("klen"),
            "data_length": rows.number("dlen"),
            "elements": np.where(counted | (rows.number("size") != 0), elements, -1),
            "size": rows.number("size"),
            "pointer": rows.address,
        }
        data["fault"] = faults.column()
        return NftablesSets({name: data[name] for name in (*wanted, "fault")}, (*found.faults, *listed.faults))
