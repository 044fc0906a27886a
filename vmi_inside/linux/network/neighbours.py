"""Neighbours on the link: the ARP cache, and IPv6's neighbour cache, as `ip neigh` shows them.

Knows `struct neigh_table`, `neighbour` and `pneigh_entry` (include/net/neighbour.h, net/core/neighbour.c); entries hang
in plain lists until 6.12, in hlists since 6.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside import ragged, walk
from vmi_inside.errors import ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.network import words
from vmi_inside.linux.network.devices import Named, named
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class ArpCache(Table):
    """One row for each neighbour of each network namespace; osquery's column names where it has them."""

    net_namespace: I64  # inode number
    family: Text  # inet (ARP), inet6 (neighbour discovery)
    address: Text
    mac: Text  # empty where it is not known
    interface: Text
    state: Text  # PERMANENT REACHABLE STALE DELAY PROBE INCOMPLETE FAILED NOARP; PROXY: answered for others
    permanent: Mask
    flags: Text  # ip's words: router proxy extern_learn managed ...
    pointer: U64  # of the struct neighbour or pneigh_entry


#: The tables, and the family of each (net/ipv4/arp.c, net/ipv6/ndisc.c).
TABLES: Final = (("arp_tbl", "inet", 4), ("nd_tbl", "inet6", 16))
#: NUD_* and NTF_* (include/uapi/linux/neighbour.h); the extended flags stand above the others.
STATES: Final = {
    0x00: "NONE", 0x01: "INCOMPLETE", 0x02: "REACHABLE", 0x04: "STALE", 0x08: "DELAY", 0x10: "PROBE", 0x20: "FAILED",
    0x40: "NOARP", 0x80: "PERMANENT",
}  # fmt: skip
FLAGS: Final = {
    0x01: "use", 0x02: "self", 0x04: "master", 0x08: "proxy", 0x10: "extern_learn", 0x20: "offload", 0x40: "sticky",
    0x80: "router", 0x100: "managed", 0x200: "locked", 0x400: "extern_valid",
}  # fmt: skip
_PERMANENT, _PROXY = 0x80, 0x08
_VALID: Final = 0x80 | 0x40 | 0x02 | 0x10 | 0x04 | 0x08  # NUD_VALID: the link-layer address is known
_SHIFT_LIMIT: Final = 20
_PROXIES: Final = 16  # PNEIGH_HASHMASK + 1


@dataclass(frozen=True, slots=True)
class _Found:
    """The entries (n) of one table: neighbours, or addresses that the guest answers for."""

    family: str
    rows: Structs
    key: str
    width: int
    proxy: bool
    faults: tuple[str, ...]


def _find(kernel: Kernel, symbol: str, family: str, width: int) -> tuple[_Found, _Found]:
    """What hangs in one table. Raises `NoSymbol`, `NoMember`."""
    table = kernel.object("neigh_table", symbol).fetch("nht", "phash_buckets")
    hashed = table.follow("nht", kernel.struct("neigh_hash_table"))
    shift = int(hashed.unsigned("hash_shift")[0])
    what = "ARP" if family == "inet" else "neighbour discovery"
    faults = []
    if shift > _SHIFT_LIMIT or table.fault.any() or hashed.fault.any():
        faults.append(f"{what}: the table could not be read, or a size of 2^{shift} is not believed")
        shift = 0
    ctype = kernel.struct("neighbour")
    hung = ctype.has("hash")
    link, back = (0, ctype.member("hash").offset) if hung else (ctype.member("next").offset, 0)
    buckets = hashed.pointer(("hash_heads", "hash_buckets"))
    neighbours, more = _hashed(kernel, buckets, 1 << shift, link, what)
    rows = kernel.structs(ctype, neighbours - np.uint64(back)).fetch("dev", "ha", "nud_state", "flags")
    entry = kernel.struct("pneigh_entry")
    link = entry.member("next").offset
    proxies, and_more = _hashed(kernel, table.pointer("phash_buckets"), _PROXIES, link, f"{what} proxies")
    answered = kernel.structs(entry, proxies).fetch("dev", "flags", "net.net")
    return (
        _Found(family, rows, "primary_key", width, False, (*faults, *more)),
        _Found(family, answered, "key", width, True, and_more),
    )


def _hashed(kernel: Kernel, base: U64, count: int, link: int, what: str) -> tuple[U64, tuple[str, ...]]:
    """The nodes in an array of `count` chains at `base` (1,)."""
    heads = ragged.gather(kernel.space, base, np.where(base == 0, np.int64(0), np.int64(8 * count)))
    first, _, _ = heads.words()
    found = walk.chains(kernel.space, first, link, what=what)
    bad = () if heads.ok.all() else (f"{what}: part of the table could not be read",)
    return found.address, (*found.faults, *bad)


class _Rows:
    """The neighbours of one table, and what hangs on them."""

    def __init__(self, kernel: Kernel, found: _Found) -> None:
        self.kernel = kernel
        self.found = found
        self.rows = found.rows
        self.faults = Faults(len(self.rows))
        self.faults.mark(self.rows.fault, "neighbour unreadable")

    @cached_property
    def device(self) -> Named:
        """The interfaces."""
        made = named(self.kernel, self.rows.pointer("dev"))
        self.faults.mark(made.fault, "interface unreadable")
        return made

    @property
    def state(self) -> I64:
        """NUD_*; a proxy has none."""
        none = np.zeros(len(self.rows), dtype=np.int64)
        return none if self.found.proxy else self.rows.number("nud_state")

    @property
    def flags(self) -> I64:
        """NTF_*; that of proxies is known from where they hang."""
        return self.rows.number("flags") | (_PROXY if self.found.proxy else 0)

    def net_namespace(self) -> I64:
        """Of the interface; a proxy says itself which it is of."""
        if not self.found.proxy:
            return self.device.inode
        owners = self.rows.follow("net.net", self.kernel.struct("net"))
        inode = owners.number("ns.inum")
        self.faults.mark(owners.fault, "net namespace unreadable")
        return inode

    def address(self) -> Text:
        """The key: an address of the table's family, behind the fixed part of the entry."""
        at = self.rows.at(self.found.key)
        raw = np.zeros((len(at), self.found.width), dtype=np.uint8)
        live = np.flatnonzero(at)
        raw[live], ok = self.kernel.space.gather(at[live], self.found.width)
        bad = np.zeros(len(at), dtype=np.bool_)
        bad[live[~ok]] = True
        self.faults.mark(bad, "address unreadable")
        return words.inet(raw)

    def mac(self) -> Text:
        """Link-layer addresses, where they are known."""
        if self.found.proxy:
            return text([""] * len(self.rows))
        devices = self.kernel.structs("net_device", self.rows.pointer("dev"))
        size = np.where(self.state & _VALID != 0, devices.number("addr_len"), 0)
        return words.hardware(np.ascontiguousarray(self.rows["ha"]).view(np.uint8), size)

    def state_names(self) -> Text:
        """In ip's words."""
        return text(["PROXY"] * len(self.rows)) if self.found.proxy else words.code(self.state, STATES)


_COLUMNS: Final[dict[str, Callable[[_Rows], Column]]] = {
    "net_namespace": _Rows.net_namespace,
    "family": lambda made: np.full(len(made.rows), made.found.family, dtype=object),
    "address": _Rows.address,
    "mac": _Rows.mac,
    "interface": lambda made: made.device.name,
    "state": _Rows.state_names,
    "permanent": lambda made: made.state & _PERMANENT != 0,
    "flags": lambda made: words.flags(made.flags, FLAGS),
    "pointer": lambda made: made.rows.address,
}


def arp_cache(kernel: Kernel, columns: Iterable[str] | None = None) -> ArpCache:
    """All neighbours of all namespaces. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have, `Unsupported` for a kernel without such tables.
    """
    wanted = list(ArpCache.schema if columns is None else columns)
    ArpCache.check(wanted)
    with kernel.operation():
        made: list[_Rows] = []
        notes: list[str] = []
        for symbol, family, width in TABLES:
            try:
                made += [_Rows(kernel, found) for found in _find(kernel, symbol, family, width)]
            except ProfileError as error:
                notes.append(f"{family} neighbours: {error}")
        if not made:
            raise Unsupported(notes[-1])
        data = {name: np.concatenate([_COLUMNS[name](one) for one in made]) for name in wanted if name in _COLUMNS}
        data["fault"] = np.concatenate([one.faults.column() for one in made])
        return ArpCache(data, (*notes, *(note for one in made for note in one.found.faults)))
