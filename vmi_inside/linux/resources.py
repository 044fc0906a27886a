"""Which addresses and ports belong to what: /proc/iomem and /proc/ioports.

Knows `struct resource` (include/linux/ioport.h) and the two trees of them, `iomem_resource` and `ioport_resource`
(kernel/resource.c). What the devices are that hold them is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.trees import descend
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class Resources(Table):
    """One row for each range, as /proc has them: each before those that lie in it."""

    start: U64
    end: U64  # the last address or port, not the one behind it
    name: Text
    depth: I64  # 0 for the outermost
    busy: Mask  # a driver, or the kernel, uses it
    address: U64  # of struct resource


#: IORESOURCE_BUSY.
_BUSY: Final = 1 << 31
_NAME_LIMIT: Final = 256
_NAMELESS: Final = "<BAD>"


def iomem(kernel: Kernel, columns: Iterable[str] | None = None) -> Resources:
    """Ranges of physical addresses, those of RAM too. `columns` asks for some columns only."""
    return _resources(kernel, "iomem_resource", columns)


def ioports(kernel: Kernel, columns: Iterable[str] | None = None) -> Resources:
    """Ranges of x86's ports. `columns` asks for some columns only."""
    return _resources(kernel, "ioport_resource", columns)


def _resources(kernel: Kernel, symbol: str, columns: Iterable[str] | None) -> Resources:
    wanted = list(Resources.schema if columns is None else columns)
    Resources.check(wanted)
    with kernel.operation():
        address, depth, notes = _tree(kernel, symbol)
        rows = kernel.structs("resource", address).fetch("start", "end", "name", "flags")
        faults = Faults(len(rows))
        faults.mark(rows.fault, "range unreadable")
        start, end = rows.unsigned("start"), rows.unsigned("end")
        faults.mark((end < start) & (end + np.uint64(1) != start), "ends before it starts")
        data: dict[str, Column] = {
            "start": start,
            "end": end,
            "depth": depth,
            "busy": rows.unsigned("flags") & np.uint64(_BUSY) != 0,
            "address": address,
        }
        if "name" in wanted:
            names, ok = kernel.strings(rows.pointer("name"), _NAME_LIMIT)
            faults.mark(~ok, "name unreadable")
            unnamed = ((rows.pointer("name") == 0) & ~rows.fault).tolist()
            data["name"] = text(_NAMELESS if none else name for name, none in zip(names, unnamed, strict=True))
        data["fault"] = faults.column()
    return Resources({name: data[name] for name in dict.fromkeys((*wanted, "fault"))}, notes)


def _tree(kernel: Kernel, symbol: str) -> tuple[U64, I64, tuple[str, ...]]:
    """Addresses and depths of all below the root, each before its children, and where the tree was cut."""
    ctype = kernel.struct("resource")
    sibling = ctype.member("sibling").offset

    def children(above: U64) -> walk.Walk:
        return walk.chains(kernel.space, kernel.structs(ctype, above).pointer("child"), sibling, what=symbol)

    found = descend(np.array([kernel.symbol(symbol)], dtype=np.uint64), children, symbol)
    return found.address[1:], found.depth[1:] - 1, found.faults  # /proc does not show the root
