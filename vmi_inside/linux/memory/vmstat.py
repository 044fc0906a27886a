"""What the kernel counts of its memory as a whole: the items of nodes and of zones, and the zones themselves.

Knows `vm_node_stat`, `vm_zone_stat` (mm/vmstat.c), their enums (include/linux/mmzone.h) and `node_data`. What the
counts add up to is left to tables.

CPUs keep small differences of their own (at most `stat_threshold` pages each) that the kernel adds now and then; the
files in /proc leave them out, and so do we.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.errors import NoMember, NoSymbol
from vmi_inside.kernel import Kernel
from vmi_inside.linux import percpu
from vmi_inside.structs import Structs
from vmi_inside.types import I64, PAGE_SIZE

#: MAX_NUMNODES is 1024 at the most on x86_64 (CONFIG_NODES_SHIFT).
NODE_LIMIT: Final = 1024
#: No counter is longer; an enum that says so lies.
_ITEM_LIMIT: Final = 4096


def globals_read(kernel: Kernel, names: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """The values of global 64-bit numbers by name, in one gather, and the names that are not there or unreadable."""
    wanted = list(names)
    found = [(name, at) for name in wanted if (at := kernel.profile.find_symbol(name)) is not None]
    address = np.array([at for _, at in found], dtype=np.uint64)
    raw, ok = kernel.space.gather(address, 8)
    values = raw.view("<i8")[:, 0].tolist()
    read = {name: value for (name, _), value, fine in zip(found, values, ok.tolist(), strict=True) if fine}
    return read, [name for name in wanted if name not in read]


@dataclass(frozen=True, slots=True)
class Counters:
    """Counts by the kernel's names of them (`NR_FREE_PAGES`); in pages, unless the name says otherwise (`_KB`).

    `nodes` are those of `enum node_stat_item`, `zones` those of `enum zone_stat_item`. Negative ones, which a reading
    between two CPUs' updates can give, are 0 as in /proc.
    """

    nodes: dict[str, int]
    zones: dict[str, int]
    faults: tuple[str, ...]

    def __getitem__(self, name: str) -> int:
        """A count by name; 0 where this kernel counts no such thing."""
        return self.nodes.get(name, self.zones.get(name, 0))

    def __contains__(self, name: str) -> bool:
        return name in self.nodes or name in self.zones


def counters(kernel: Kernel) -> Counters:
    """All counts, of all nodes and zones together. Raises `NoSymbol`, `NoMember`."""
    parts: list[dict[str, int]] = []
    faults: list[str] = []
    for symbol, enum in (("vm_node_stat", "node_stat_item"), ("vm_zone_stat", "zone_stat_item")):
        items = {name: number for name, number in kernel.profile.enum(enum).items() if 0 <= number < _ITEM_LIMIT}
        raw, ok = kernel.space.gather(np.array([kernel.symbol(symbol)], dtype=np.uint64), 8 * max(items.values()))
        if not ok.all():
            faults.append(f"{symbol} unreadable")
        values = np.maximum(raw.view("<i8")[0], 0).tolist()
        parts.append({name: values[number] for name, number in items.items() if number < len(values)})
    return Counters(parts[0], parts[1], tuple(faults))


class Zones:
    """The zones of all nodes that have any: `zones` (n,) structs, `node` (n,) the number of each one's node."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.node, self.zones, self.faults = self._find()

    def _find(self) -> tuple[I64, Structs, tuple[str, ...]]:
        kernel = self.kernel
        pgdat = kernel.struct("pglist_data")
        count = min(max(self._node_ids, 1), NODE_LIMIT)
        array = kernel.symbol("node_data") + 8 * np.arange(count, dtype=np.uint64)
        raw, ok = kernel.space.gather(array, 8)
        nodes = raw.view("<u8")[:, 0]
        there = np.flatnonzero(nodes)
        member, zone = pgdat.member("node_zones"), kernel.struct("zone")
        width = max(member.type.count, 1)
        step = np.uint64(zone.size) * np.arange(width, dtype=np.uint64)
        address = (nodes[there, None] + np.uint64(member.offset) + step[None, :]).ravel()
        found = kernel.structs(zone, address)
        faults = () if ok.all() else ("node_data could not be read",)
        return np.repeat(there, width), found, faults

    @property
    def _node_ids(self) -> int:
        try:
            return self.kernel.number(4, "nr_node_ids")
        except NoSymbol:
            return 1

    @cached_property
    def low_watermark(self) -> int:
        """Low watermarks of all zones together, in pages (`low_wmark_pages`)."""
        boost = ("watermark_boost",) if self.zones.has("watermark_boost") else ()
        low = self.kernel.profile.enumerator("WMARK_LOW")
        if low is None:
            raise NoMember("WMARK_LOW")
        names = (f"_watermark[{low}]", *boost)
        self.zones.fetch(*names)
        total: int = sum(int(self.zones.unsigned(name).sum(dtype=np.uint64)) for name in names)
        return total


def percpu_sum(kernel: Kernel, counter: Structs) -> int:
    """A `percpu_counter` (one row) with what each CPU keeps; not below 0 (`percpu_counter_sum_positive`)."""
    counter.fetch("count", "counters")
    more, whole = percpu.pending(kernel, counter.pointer("counters"))
    counter.fault[~whole] = True
    return max(int(counter.number("count")[0] + more[0]), 0)


def pages(count: int) -> int:
    """Bytes in that many pages."""
    return count * PAGE_SIZE
