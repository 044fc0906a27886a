"""Netfilter's hooks: whose functions look at every packet, and in which order.

Knows `struct nf_hook_entries`, the `nf_hook_ops` behind them (include/linux/netfilter.h; 4.14 and later) and where they
hang in namespaces (include/net/netns/netfilter.h) and devices. What a function is called is `code`'s knowledge; the
rules behind nftables' hooks are a table of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import words
from vmi_inside.linux.network.devices import devices, namespaces
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.symbols.module_types import find_struct
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class NetfilterHooks(Table):
    """One row for each function on a hook, in the order in which a packet meets them."""

    net_namespace: I64  # inode number
    family: Text  # ipv4, ipv6, arp, bridge, netdev (of one interface)
    hook: Text  # PREROUTING INPUT FORWARD OUTPUT POSTROUTING, INGRESS EGRESS
    priority: I64  # the lowest comes first
    interface: Text  # of netdev hooks
    function: Text  # its symbol
    module: Text  # whose code that is; empty where it is nobody's that is known
    kind: Text  # nftables, bpf, flowtable, iptables; empty for others
    chain: Text  # nftables' table and chain, or iptables' table, where the function serves one
    pointer: U64  # of the function


INET_HOOKS: Final = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
#: Arrays of hooks in struct netns_nf, the family of each, and its hooks by number (include/uapi/linux/netfilter*.h).
FAMILIES: Final = {
    "nf.hooks_ipv4": ("ipv4", INET_HOOKS),
    "nf.hooks_ipv6": ("ipv6", INET_HOOKS),
    "nf.hooks_arp": ("arp", ("INPUT", "OUTPUT", "FORWARD")),
    "nf.hooks_bridge": ("bridge", (*INET_HOOKS, "BROUTING")),
}
DEVICES: Final = {"nf_hooks_ingress": "INGRESS", "nf_hooks_egress": "EGRESS"}
#: enum nf_hook_ops_type (5.14).
KINDS: Final = {0: "", 1: "nftables", 2: "bpf", 3: "flowtable"}
_NFTABLES: Final = 1
_HOOKS_LIMIT: Final = 1024  # MAX_HOOK_COUNT (net/netfilter/core.c)
_TOTAL_LIMIT: Final = 1 << 18
_POINTER: Final = 8
_NAME_LIMIT: Final = 256  # NFT_NAME_MAXLEN


@dataclass(frozen=True, slots=True)
class _Places:
    """Where hooks may hang (n): the list's address, 0 for an empty one, and which hook it is."""

    entries: U64
    inode: I64
    family: Text
    hook: Text
    interface: Text
    faults: tuple[str, ...]


def _places(kernel: Kernel) -> _Places:
    known = namespaces(kernel)
    parts: list[tuple[U64, I64, str, str, Text]] = []
    for member, (family, names) in FAMILIES.items():
        if not known.rows.has(member):
            continue
        count = min(known.rows.type.member(member).type.count, len(names))
        for number, name in enumerate(names[:count]):
            column = known.rows.pointer(f"{member}[{number}]")
            parts.append((column, known.inode, family, name, text([""] * len(column))))
    found = devices(kernel)
    label = text(found.rows.text("name"))
    for member, name in DEVICES.items():
        if found.rows.has(member):
            parts.append((found.rows.pointer(member), found.inode, "netdev", name, label))
    return _Places(
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        text(part[2] for part in parts for _ in range(len(part[0]))),
        text(part[3] for part in parts for _ in range(len(part[0]))),
        np.concatenate([part[4] for part in parts]),
        tuple(dict.fromkeys((*known.faults, *found.faults))),
    )


class _Rows:
    """The functions (m) on all hooks; `place` (m,) is the row of the hook that each hangs on."""

    def __init__(self, kernel: Kernel, places: _Places) -> None:
        self.kernel = kernel
        self.notes = list(places.faults)
        lists = kernel.structs("nf_hook_entries", places.entries).fetch("num_hook_entries")
        told = lists.number("num_hook_entries")
        count = np.where(told <= _HOOKS_LIMIT, told, 0)
        count = np.where(np.cumsum(count) <= _TOTAL_LIMIT, count, 0)
        if lists.fault.any() or (told != count).any():
            self.notes.append("hooks: a list could not be read, or its length is not believed")
        self.place = np.repeat(np.arange(len(told)), count)
        within = np.arange(len(self.place)) - np.repeat(np.cumsum(count) - count, count)
        entry = kernel.struct("nf_hook_entry")
        base = places.entries[self.place] + np.uint64(lists.type.member("hooks").offset)
        # Behind the functions, as many pointers to what they were registered with (nf_hook_entries_get_hook_ops).
        behind = base + (count[self.place] * entry.size + within * _POINTER).astype(np.uint64)
        self.entries = kernel.structs(entry, base + (within * entry.size).astype(np.uint64)).fetch("hook", "priv")
        raw, ok = kernel.space.gather(behind, _POINTER)
        operations = kernel.structs("nf_hook_ops", raw.view("<u8")[:, 0]).fetch("priority")
        self.operations = operations
        self.faults = Faults(len(self.place))
        self.faults.mark(self.entries.fault, "hook unreadable")
        self.faults.mark(operations.fault | ~ok, "priority unreadable")
        self.function = self.entries.pointer("hook")
        code = Code(kernel)
        self.symbol = code.symbols(self.function)
        self.module = code.owners(self.function)
        self.faults.mark(self.module == "", "the function is nobody's code that is known")

    @property
    def types(self) -> I64:
        """nf_hook_ops_type; 0 where the kernel does not tell."""
        if not self.operations.has("hook_ops_type"):
            return np.zeros(len(self.place), dtype=np.int64)
        return self.operations.number("hook_ops_type")

    @property
    def tables(self) -> Mask:
        """Which serve a table of iptables': what is handed to them is that table (since 5.13)."""
        plain = [each.partition("+")[0].partition(" ")[0] for each in self.symbol.tolist()]
        serving = np.array([each in ("ipt_do_table", "ip6t_do_table", "arpt_do_table") for each in plain], dtype=bool)
        found: Mask = serving & (self.entries.pointer("priv") != 0)
        return found

    def kind(self) -> Text:
        """What registered the function."""
        return np.where(self.tables, "iptables", words.code(self.types, KINDS)).astype(object)

    def chain(self) -> Text:
        """What the functions of nftables and iptables serve."""
        out = np.full(len(self.place), "", dtype=object)
        served = self.entries.pointer("priv")
        chains = np.flatnonzero((self.types == _NFTABLES) & (served != 0))
        chain, table = (find_struct(self.kernel, "nf_tables", name) for name in ("nft_chain", "nft_table"))
        if len(chains) and chain is not None and table is not None:
            rows = self.kernel.structs(chain, served[chains]).fetch("name", "table")
            owners = rows.follow("table", table)
            names = (self._strings(owners, chains), self._strings(rows, chains))
            out[chains] = [" ".join(pair) for pair in zip(*names, strict=True)]
        tables = np.flatnonzero(self.tables)
        ctype = find_struct(self.kernel, "x_tables", "xt_table")
        if len(tables) and ctype is not None:
            listed = self.kernel.structs(ctype, served[tables])
            out[tables] = listed.text("name")
            self._mark(tables[listed.fault])
        return out

    def _strings(self, rows: Structs, which: I64) -> list[str]:
        strings, ok = self.kernel.strings(rows.pointer("name"), _NAME_LIMIT)
        self._mark(which[rows.fault | ~ok])
        return strings

    def _mark(self, rows: I64) -> None:
        which = np.zeros(len(self.place), dtype=np.bool_)
        which[rows] = True
        self.faults.mark(which, "chain unreadable")


def netfilter_hooks(kernel: Kernel, columns: Iterable[str] | None = None) -> NetfilterHooks:
    """All functions on all of netfilter's hooks. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(NetfilterHooks.schema if columns is None else columns)
    NetfilterHooks.check(wanted)
    with kernel.operation():
        if kernel.find_struct("nf_hook_entries") is None:
            return NetfilterHooks.empty(wanted, ("this kernel has no netfilter, or one older than 4.14",))
        places = _places(kernel)
        rows = _Rows(kernel, places)
        priority = rows.operations.number("priority")
        data: dict[str, Column] = {
            "net_namespace": places.inode[rows.place],
            "family": places.family[rows.place],
            "hook": places.hook[rows.place],
            "priority": priority,
            "interface": places.interface[rows.place],
            "function": rows.symbol,
            "module": rows.module,
            "kind": rows.kind(),
            "pointer": rows.function,
        }
        if "chain" in wanted:
            data["chain"] = rows.chain()
        data["fault"] = rows.faults.column()
        order = np.argsort(data["net_namespace"], kind="stable")
        return NetfilterHooks({name: data[name][order] for name in (*wanted, "fault")}, rows.notes)
