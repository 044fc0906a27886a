"""What a process's page tables say of each page: where it is, or that it was swapped out.

Knows how x86_64 marks entries that the processor takes for absent (arch/x86/include/asm/pgtable.h, pgtable-invert.h,
pgtable_64.h): pages that nobody may touch (PROT_NONE), and swap entries. What an entry of 0 means is a region's matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.space import AddressSpace
from vmi_inside.types import I64, PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask

#: Page tables of one process that are looked at: 512 GiB of mapped pages.
TABLE_LIMIT: Final = 1 << 18
#: Tables that are read at once: they map 256 MiB, and make 65,536 rows.
_BATCH: Final = 1 << 7
#: _PAGE_PROTNONE: says of an entry that is not present that its page is there all the same. Swap entries leave it 0.
_PROTNONE: Final = np.uint64(1 << 8)
_ZERO: Final = np.uint64(0)

#: What becomes of a page: not in the tables, in memory, swapped out (or on its way to another place).
ABSENT, PRESENT, SWAPPED = range(3)


@dataclass(frozen=True, slots=True)
class Leaves:
    """Pages of 4 KiB, ascending: `va` (m,) and `pa` (m,) their addresses, `state` (m,) PRESENT or SWAPPED (`pa` 0)."""

    va: U64
    pa: U64
    state: U8

    def between(self, start: int, end: int) -> Leaves:
        """Those from `start` up to `end`."""
        low, high = self.va.searchsorted(np.array([start, end], dtype=np.uint64)).tolist()
        return self.where(slice(low, high))

    def where(self, which: Mask | slice) -> Leaves:
        """Some of them."""
        return Leaves(self.va[which], self.pa[which], self.state[which])


@dataclass(frozen=True, slots=True)
class _Units:
    """What maps memory itself: tables of the lowest level, and large pages; by address.

    `entry` (k,) is the physical address of a table where `level` (k,) is 1, a large page's entry else.
    """

    va: U64
    level: I64
    entry: U64


class UserPages:
    """The page tables under one root, as far as they map any of the ranges from `start` (n,) to `end` (n,), ascending.

    They are looked through once, when this is made. `cut` says that there were more tables than are believed. The
    kernel's own half is read so, too, if it is said to be no `user`'s: there, what is not present is nothing.
    """

    def __init__(self, space: AddressSpace, start: U64, end: U64, *, user: bool = True) -> None:
        self.space = space
        self._user = user
        self._start, self._end = start, end
        self.cut = False
        self._units = self._find()
        self._kept: tuple[int, Leaves] | None = None

    def leaves(self, start: int, end: int) -> Iterator[Leaves]:
        """What there is from `start` up to `end`, in pieces, ascending; what is absent is in none of them."""
        units = self._units
        size = np.uint64(1) << self._shift(units.level)
        first = int(np.searchsorted(units.va + (size - np.uint64(1)), np.uint64(start), "left"))
        last = int(np.searchsorted(units.va, np.uint64(end), "left"))
        for batch in range(first // _BATCH, -(-last // _BATCH)):
            if self._kept is None or self._kept[0] != batch:
                self._kept = batch, self._read(slice(batch * _BATCH, (batch + 1) * _BATCH))
            found = self._kept[1].between(start, end)
            if len(found.va):
                yield found

    def _shift(self, level: I64) -> U64:
        """The address bit that a level's entries begin at; for the lowest, the bit that its table begins at."""
        paging = self.space.paging
        shifts = np.array([0, *(paging.shift(max(each, 2)) for each in range(1, paging.levels + 1))], dtype=np.uint64)
        return shifts[level]

    def _find(self) -> _Units:
        paging = self.space.paging
        table = np.array([self.space.root & paging.address], dtype=np.uint64)
        base = np.zeros(1, dtype=np.uint64)
        found: list[tuple[U64, int, U64]] = []
        total = 0
        for level in range(paging.levels, 1, -1):
            total += len(table)
            if total > TABLE_LIMIT:
                self.cut = True
                table, base = table[: TABLE_LIMIT // 8], base[: TABLE_LIMIT // 8]
            entries = self._tables(table)
            row, column = np.nonzero(entries)
            entry = entries[row, column]
            va = base[row] + (column.astype(np.uint64) << np.uint64(paging.shift(level)))
            if level == paging.levels:  # addresses of the upper half have all bits above set
                top = np.uint64(1) << np.uint64(paging.canonical - 1)
                va = np.where(va & top != _ZERO, va | ~(top - np.uint64(1)), va)
            asked = self._wanted(va, 1 << paging.shift(level))
            va, entry = va[asked], entry[asked]
            present = entry & np.uint64(paging.present) != _ZERO
            large = np.zeros(len(entry), dtype=np.bool_)
            if level in paging.large:
                large = entry & np.uint64(paging.large_bit) != _ZERO
                leaf = large | ~present
                found.append((va[leaf], level, entry[leaf]))
            onward = present & ~large
            table, base = entry[onward] & np.uint64(paging.address), va[onward]
            if not len(table):
                break
        if len(table) > TABLE_LIMIT:
            self.cut = True
            table, base = table[:TABLE_LIMIT], base[:TABLE_LIMIT]
        found.append((base, 1, table))
        at = np.concatenate([each[0] for each in found])
        levels = np.concatenate([np.full(len(each[0]), each[1], dtype=np.int64) for each in found])
        order = np.argsort(at, kind="stable")
        return _Units(at[order], levels[order], np.concatenate([each[2] for each in found])[order])

    def _wanted(self, va: U64, size: int) -> Mask:
        """Which of these ranges of `size` bytes meet one that was asked for."""
        at = np.searchsorted(self._end, va, "right")
        there = at < len(self._start)
        wanted: Mask = there.copy()
        wanted[there] = self._start[at[there]] <= va[there] + np.uint64(size - 1)
        return wanted

    def _tables(self, table: U64) -> U64:
        """Whole tables (k, 512), zeros where they cannot be read."""
        return self.space.tables(table)[0]

    def _read(self, which: slice) -> Leaves:
        """The pages that these tables and large pages map, single ones."""
        paging = self.space.paging
        va, level, entry = self._units.va[which], self._units.level[which], self._units.entry[which]
        small = np.flatnonzero(level == 1)
        entries = self._tables(entry[small])
        row, column = np.nonzero(entries)
        parts = [
            (va[small][row] + (column.astype(np.uint64) << np.uint64(PAGE_SHIFT)), *self._place(entries[row, column]))
        ]
        for at in np.flatnonzero(level > 1).tolist():
            pages = 1 << paging.shift(int(level[at])) - PAGE_SHIFT
            offset = np.arange(pages, dtype=np.uint64) << np.uint64(PAGE_SHIFT)
            pa, state = self._place(entry[at : at + 1], int(level[at]))
            parts.append((va[at] + offset, np.where(state == PRESENT, pa + offset, _ZERO), np.repeat(state, pages)))
        address, pa, state = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(parts) > 1:
            order = np.argsort(address, kind="stable")
            address, pa, state = address[order], pa[order], state[order]
        return Leaves(address, pa, state)

    def _place(self, entry: U64, level: int = 1) -> tuple[U64, U8]:
        """Physical addresses (n,) and states (n,) of what entries, none of them 0, say."""
        paging = self.space.paging
        seen = entry & np.uint64(paging.present) != _ZERO
        hidden = ~seen & (entry & _PROTNONE != _ZERO) & self._user
        # The address of what is not present is kept upside down, so that a processor's guess leads nowhere (L1TF).
        address = np.uint64(paging.address & -(1 << paging.shift(level)))
        pa = np.where(hidden, ~entry, entry) & address
        state = np.where(seen | hidden, PRESENT, SWAPPED).astype(np.uint8)
        return np.where(state == PRESENT, pa, _ZERO), state


def runs(va: U64, most: int) -> Iterator[slice]:
    """Slices of ascending page addresses that adjoin, of at most `most` pages."""
    if not len(va):
        return
    breaks = np.flatnonzero(va[1:] - va[:-1] != np.uint64(PAGE_SIZE)) + 1
    for start, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(va)], strict=True):
        for at in range(start, end, most):
            yield slice(at, min(at + most, end))
