"""What the kernel's page tables map, and as what: writable, executable.

Knows the entries' bits (Intel SDM volume 3A chapter 4) and that the kernel has the upper half. Whether a mapping is as
it should be is the detectors' matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.space import AddressSpace
from vmi_inside.types import U64, Mask

_WRITABLE: Final = np.uint64(1 << 1)
_NO_EXECUTE: Final = np.uint64(1 << 63)
#: Tables that are read at the most: 256 MiB of them.
TABLE_LIMIT: Final = 1 << 16
_AT_ONCE: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class Mappings:
    """Ranges (n rows), ascending, of adjoining pages that are mapped alike; `last` is the last address of each.

    `whole` says that no table was left out.
    """

    start: U64
    last: U64
    writable: Mask
    executable: Mask
    whole: bool

    def where(self, which: Mask) -> Mappings:
        """These ranges only."""
        return Mappings(
            self.start[which], self.last[which], self.writable[which], self.executable[which], self.whole
        )  # fmt: skip

    def hold(self, address: U64) -> Mask:
        """Which of the addresses (m,) lie in one of the ranges."""
        if not len(self.start):
            return np.zeros(len(address), dtype=np.bool_)
        row = self.start.searchsorted(address, "right") - 1
        inside: Mask = (row >= 0) & (address <= self.last[row])
        return inside


def kernel_mappings(space: AddressSpace) -> Mappings:
    """All that the upper half of the address space maps, level by level.

    A table that is met again with the same rights is not followed again: some are entered in thousands of places.
    """
    paging = space.paging
    entries = 1 << paging.splits[-1]
    high = ((1 << 64) - (1 << paging.canonical)) & ((1 << 64) - 1)
    table = np.array([space.root], dtype=np.uint64)
    base = np.zeros(1, dtype=np.uint64)
    write, execute = np.ones(1, dtype=np.bool_), np.ones(1, dtype=np.bool_)
    found: list[tuple[U64, Mask, Mask, U64]] = []
    total, whole = 0, True
    for level in range(paging.levels, 0, -1):
        if total + len(table) > TABLE_LIMIT:
            table, whole = table[: TABLE_LIMIT - total], False
        total += len(table)
        shift = np.uint64(paging.shift(level))
        if not len(table):
            break
        below: list[tuple[U64, U64, Mask, Mask]] = []
        for first in range(0, len(table), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            entry, readable = space.tables(table[part])
            whole &= bool(readable.all())
            if level == paging.levels:
                entry[:, : entries // 2] = 0  # the lower half is a process's
            row, index = np.nonzero(entry & np.uint64(paging.present))
            value = entry[row, index]
            start = base[part][row] + (index.astype(np.uint64) << shift)
            if level == paging.levels:
                start |= np.uint64(high)
            may_write = write[part][row] & (value & _WRITABLE != 0)
            may_execute = execute[part][row] & (value & _NO_EXECUTE == 0)
            leaf = np.full(len(value), level == 1)
            if level in paging.large:
                leaf |= value & np.uint64(paging.large_bit) != 0
            found.append((start[leaf], may_write[leaf], may_execute[leaf], np.full(int(leaf.sum()), shift)))
            onward = ~leaf
            below.append((value[onward] & np.uint64(paging.address), start[onward], may_write[onward],
                          may_execute[onward]))  # fmt: skip
        table, base = np.concatenate([part[0] for part in below]), np.concatenate([part[1] for part in below])
        write, execute = np.concatenate([part[2] for part in below]), np.concatenate([part[3] for part in below])
        kind = table | write.astype(np.uint64) | execute.astype(np.uint64) << np.uint64(1)
        _, distinct = np.unique(kind, return_index=True)
        table, base, write, execute = table[distinct], base[distinct], write[distinct], execute[distinct]
    return _joined(found, whole)


def _joined(found: list[tuple[U64, Mask, Mask, U64]], whole: bool) -> Mappings:
    start, shift = np.concatenate([part[0] for part in found]), np.concatenate([part[3] for part in found])
    order = np.argsort(start)
    start = start[order]
    write = np.concatenate([part[1] for part in found])[order]
    execute = np.concatenate([part[2] for part in found])[order]
    last = start + ((np.uint64(1) << shift[order]) - np.uint64(1))  # the topmost page ends where addresses do
    new = np.ones(len(start), dtype=np.bool_)
    new[1:] = (start[1:] != last[:-1] + np.uint64(1)) | (write[1:] != write[:-1]) | (execute[1:] != execute[:-1])
    head = np.flatnonzero(new)
    tail = np.append(head[1:], len(start)) - 1 if len(head) else head
    return Mappings(start[head], last[tail], write[head], execute[head], whole)
