"""The packet filters of nftables: tables, their chains, how many rules each has.

Knows `struct nftables_pernet`, `nft_table`, `nft_chain` and `nft_base_chain` (include/net/netfilter/nf_tables.h), types
that the module brings along; so of kernels whose modules have types in memory (5.11, Debian's from 6.1 on). Sets are
`nftables_sets`' matter, what a rule says is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import words
from vmi_inside.linux.network.pernet import Part, part
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class Nftables(Table):
    """One row for each chain of each table, and one for a table without any."""

    net_namespace: I64  # inode number
    family: Text  # inet ip ip6 arp bridge netdev
    table: Text
    dormant: Mask  # the whole table sleeps: no packet meets it
    chain: Text  # empty for a table without chains
    type: Text  # of a base chain: filter nat route; empty for one that others jump to
    hook: Text  # of a base chain: prerouting input forward output postrouting ingress egress
    priority: I64
    policy: Text  # of a base chain: accept, drop
    interface: Text  # of netdev chains, joined by commas
    rules: I64
    pointer: U64  # of the struct nft_chain, or of the nft_table


#: NFPROTO_* in nft's words, and the hooks of each (include/uapi/linux/netfilter.h).
INET_HOOKS: Final = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
HOOKS: Final = {3: ("input", "output", "forward"), 5: ("ingress", "egress")}
_DORMANT: Final = 1 << 0  # NFT_TABLE_F_DORMANT
_BASE: Final = 1 << 0  # NFT_CHAIN_BASE
_NAME_LIMIT: Final = 256  # NFT_NAME_MAXLEN


@dataclass(frozen=True, slots=True)
class NftTables:
    """The tables (n) of all namespaces, `inode` (n,) of their namespaces; or none, and `faults` may say why."""

    rows: Structs | None
    inode: I64
    faults: tuple[str, ...]
    part: Part


def nft_tables(kernel: Kernel) -> NftTables:
    """All tables of nftables. A kernel without nf_tables has none; of one without its types that is said."""
    found = part(kernel, "nf_tables", "nf_tables_net_id", "nftables_pernet")
    if found.own is None:
        return NftTables(None, np.empty(0, dtype=np.int64), found.faults, found)
    heads = found.own.at("tables")
    listed = walk.chains(kernel.space, found.own.pointer("tables.next"), end=heads, what="nftables")
    order = np.argsort(listed.owner, kind="stable")
    ctype = found.struct(kernel, "nft_table")
    rows = kernel.structs(ctype, listed.address[order] - np.uint64(ctype.member("list").offset))
    bad = ("nftables: a namespace's could not be read",) if found.own.fault.any() else ()
    return NftTables(rows, found.known.inode[listed.owner[order]], (*found.faults, *listed.faults, *bad), found)


def names(kernel: Kernel, rows: Structs, faults: Faults, what: str) -> Text:
    """The names of tables, chains or sets; those that cannot be read are marked."""
    strings, ok = kernel.strings(rows.pointer("name"), _NAME_LIMIT)
    faults.mark(rows.fault | ~ok, f"{what} unreadable")
    return text(strings)


class _Rows:
    """Chains (n), and tables without any; `of` (n,) is the row of the table."""

    def __init__(self, kernel: Kernel, found: NftTables, tables: Structs) -> None:
        chain = found.part.struct(kernel, "nft_chain")
        self.kernel = kernel
        self.found = found
        self.inode = found.inode
        self.tables = tables.fetch("name", "family", "flags")
        heads = tables.at("chains")
        listed = walk.chains(kernel.space, tables.pointer("chains.next"), end=heads, what="nftables' chains")
        self.notes = [*found.faults, *listed.faults]
        bare = np.setdiff1d(np.arange(len(tables)), listed.owner)
        of = np.concatenate((listed.owner, bare))
        address = listed.address - np.uint64(chain.member("list").offset)
        address = np.concatenate((address, np.zeros(len(bare), dtype=np.uint64)))
        order = np.argsort(of, kind="stable")
        self.of = of[order]
        self.chains = kernel.structs(chain, address[order]).fetch("name", "flags")
        self.faults = Faults(len(self.of))
        self.faults.mark(self.tables.fault[self.of], "table unreadable")
        self.faults.mark(self.chains.fault, "chain unreadable")

    @cached_property
    def base(self) -> Structs:
        """The base chains: around the chains that hang on a hook; none for others."""
        ctype = self.found.part.struct(self.kernel, "nft_base_chain")
        hung = (self.chains.number("flags") & _BASE != 0) & ~self.chains.fault
        inner = Structs(self.kernel.space, self.chains.type, np.where(hung, self.chains.address, np.uint64(0)))
        rows = inner.holder(ctype, "chain").fetch("type", "policy", "ops.hooknum", "ops.priority")
        self.faults.mark(rows.fault, "base chain unreadable")
        return rows

    def family(self) -> I64:
        """NFPROTO_* of the tables."""
        return self.tables.number("family")[self.of]

    def type(self) -> Text:
        """Which packets a base chain is for."""
        return names(self.kernel, self.base.follow("type").fetch("name"), self.faults, "type")

    def hook(self) -> Text:
        """Where a base chain hangs."""
        rows = zip(
            self.base.address.tolist(), self.family().tolist(), self.base.number("ops.hooknum").tolist(), strict=True
        )
        return text(_hook(family, number) if address else "" for address, family, number in rows)

    def policy(self) -> Text:
        """What becomes of packets that no rule decides on."""
        told = words.code(self.base.number("policy"), {0: "drop", 1: "accept"})
        return np.where(self.base.address == 0, "", told).astype(object)

    def interfaces(self) -> Text:
        """The interfaces of netdev chains: a list of what was asked for, by name since 6.16, by device before."""
        out: list[list[str]] = [[] for _ in self.of]
        if self.base.has("hook_list"):
            heads = self.base.at("hook_list")
            # Other chains' lists are empty, or were never made one.
            wanted = np.where(self.family() == 5, self.base.pointer("hook_list.next"), np.uint64(0))
            found = walk.chains(self.kernel.space, wanted, end=heads, what="nftables' interfaces")
            self.notes += found.faults
            hook = self.found.part.struct(self.kernel, "nft_hook")
            rows = self.kernel.structs(hook, found.address - np.uint64(hook.member("list").offset))
            if hook.has("ifname"):
                shown = rows.text("ifname")
            else:
                shown = rows.follow("ops.dev", self.kernel.struct("net_device")).text("name")
            for owner, name in zip(found.owner.tolist(), shown, strict=True):
                out[owner].append(name)
        return text(",".join(each) for each in out)

    def rules(self) -> I64:
        """How many rules each chain has."""
        heads = self.chains.at("rules")
        found = walk.chains(self.kernel.space, self.chains.pointer("rules.next"), end=heads, what="nftables' rules")
        self.notes += found.faults
        return np.bincount(found.owner, minlength=len(self.of)).astype(np.int64)


def _hook(family: int, number: int) -> str:
    listed = HOOKS.get(family, INET_HOOKS)
    return listed[number] if number < len(listed) else str(number)


_COLUMNS: Final[dict[str, Callable[[_Rows], Column]]] = {
    "net_namespace": lambda made: made.inode[made.of],
    "family": lambda made: words.code(made.family(), FAMILIES),
    "table": lambda made: names(made.kernel, made.tables.select(made.of), made.faults, "table"),
    "dormant": lambda made: (made.tables.number("flags") & _DORMANT != 0)[made.of],
    "chain": lambda made: names(made.kernel, made.chains, made.faults, "chain"),
    "type": _Rows.type,
    "hook": _Rows.hook,
    "priority": lambda made: made.base.number("ops.priority"),
    "policy": _Rows.policy,
    "interface": _Rows.interfaces,
    "rules": _Rows.rules,
    "pointer": lambda made: np.where(made.chains.address == 0, made.tables.address[made.of], made.chains.address),
}


def nftables(kernel: Kernel, columns: Iterable[str] | None = None) -> Nftables:
    """All chains of all tables of nftables. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(Nftables.schema if columns is None else columns)
    Nftables.check(wanted)
    with kernel.operation():
        found = nft_tables(kernel)
        if found.rows is None:
            return Nftables.empty(wanted, found.faults)
        made = _Rows(kernel, found, found.rows)
        data = {name: _COLUMNS[name](made) for name in wanted if name in _COLUMNS}
        data["fault"] = made.faults.column()
        return Nftables(data, made.notes)
