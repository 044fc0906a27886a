"""Pages that processes have in memory, by their page tables, and how many share each.

Knows x86 page-table entries as Linux uses them for user memory (arch/x86/include/asm/pgtable_types.h). How often a page
is mapped is `mapcounts`' knowledge, the processes' own counts of their pages are `mm`'s.

Tables of many processes are walked side by side, level by level, in portions that bound what is held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.memory.mapcounts import SHARE_SHIFT, MapCounts
from vmi_inside.linux.memory.vmas import regions
from vmi_inside.structs import Structs
from vmi_inside.types import I64, MASK64, PAGE_SHIFT, U64, Mask, distinct

#: Processes that are walked side by side, tables read at a time, and tables of one process that are believed.
_TOGETHER: Final = 128
_PORTION: Final = 2048
_TABLE_LIMIT: Final = 1 << 14  # 32 GiB of small pages
#: And of all processes of one reading.
_TABLES_IN_ALL: Final = 1 << 17
#: Bits of an entry: mapped though not present to the CPU (PROT_NONE), and with no page to count (`pte_special`).
_PROTNONE, _SPECIAL = np.uint64(1 << 8), np.uint64(1 << 9)
_VM_HUGETLB: Final = 1 << 22
_ZERO, _ONE = np.uint64(0), np.uint64(1)


@dataclass(frozen=True, slots=True)
class Shares:
    """Of `n` processes' pages: bytes `resident` (n,), `pss` (n,) shared by how many map each, `uss` (n,) nobody else's.

    Pages of hugetlbfs, and those that have no `struct page` of their own (the zero page, devices), do not count.
    `whole` (n,) says whose tables were read to their end and believed, `faults` what was wrong with others.
    """

    resident: I64
    pss: I64
    uss: I64
    whole: Mask
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Leaves:
    """Pages that are mapped: frame, how many frames it is long, row of the process, where it is in its memory."""

    pfn: U64
    count: U64
    owner: I64
    va: U64


def shares(kernel: Kernel, mms: Structs) -> Shares:
    """Walk the page tables of these mm_structs (n rows, each different). Call it in an `operation()`."""
    size = len(mms)
    sums = np.zeros((3, size), dtype=np.int64)
    whole = ~mms.fault & (mms.address != 0)
    root, mapped = kernel.space.translate(mms.pointer("pgd"))
    whole &= mapped
    faults: dict[str, None] = {}
    pages = MapCounts(kernel)
    zero = _huge_zero_page(kernel)
    huge = _Huge(kernel, mms)
    rows = np.flatnonzero(whole)
    left = _TABLES_IN_ALL
    for start in range(0, len(rows), _TOGETHER):
        some = rows[start : start + _TOGETHER]
        for leaves, torn, word, tables in _walk(kernel, root[some], some, left):
            left -= tables
            if len(torn):
                whole[torn] = False
                faults[word] = None
            kept = ~huge.hold(leaves) & ~((leaves.count > _ONE) & (leaves.pfn == zero))
            owner, length, pfn = leaves.owner[kept], leaves.count[kept], leaves.pfn[kept]
            pss, uss, fine = pages.shares(pfn, length)
            if not fine.all():
                whole[owner[~fine]] = False
                faults["a page that is mapped has no count of its users"] = None
            np.add.at(sums[0], owner, length.astype(np.int64) << PAGE_SHIFT)
            np.add.at(sums[1], owner, pss)
            np.add.at(sums[2], owner, uss)
    return Shares(sums[0], sums[1] >> SHARE_SHIFT, sums[2], whole, tuple(faults))


def _walk(kernel: Kernel, root: U64, row: I64, left: int) -> Iterator[tuple[_Leaves, I64, str, int]]:
    """Pages of processes, portion by portion; the rows of those whose tables are not believed, and why; tables read.

    No more than `left` tables are read.
    """
    paging = kernel.space.paging
    entries = 1 << paging.splits[-1]
    table, owner, base = root, row, np.zeros(len(root), dtype=np.uint64)
    seen = np.zeros(int(row.max()) + 1 if len(row) else 0, dtype=np.int64)
    for level in range(paging.levels, 0, -1):
        shift = np.uint64(paging.shift(level))
        onward: list[tuple[U64, I64, U64]] = []
        for start in range(0, len(table), _PORTION):
            part = slice(start, start + _PORTION)
            words, ok = kernel.space.tables(table[part])
            if level == paging.levels:
                words = words[:, : entries // 2]  # the other half is the kernel's
            at, index = np.nonzero(words)
            entry = words[at, index]
            whose = owner[part][at]
            va = base[part][at] + (index.astype(np.uint64) << shift)
            present = entry & np.uint64(paging.present) != _ZERO
            none = ~present & (entry & _PROTNONE != _ZERO)
            leaf = present | none if level == 1 else np.zeros(len(entry), dtype=np.bool_)
            if level > 1 and level in paging.large:
                leaf = (present | none) & (entry & np.uint64(paging.large_bit) != _ZERO)
            count = np.uint64(1) << (shift - np.uint64(PAGE_SHIFT))
            # Frames of what is mapped but not present are kept inverted (L1TF).
            frame = np.where(none, ~entry, entry) & np.uint64(paging.address)
            counted = leaf & (entry & _SPECIAL == _ZERO)
            pfn = (frame[counted] >> np.uint64(PAGE_SHIFT)) & ~(count - _ONE)
            leaves = _Leaves(pfn, np.full(len(pfn), count), whose[counted], va[counted])
            yield leaves, owner[part][~ok], "a page table could not be read", 0
            if level > 1:
                inner = present & ~leaf
                onward.append((frame[inner], whose[inner], va[inner]))
        if not onward:
            return
        table, owner, base = (np.concatenate([each[n] for each in onward]) for n in range(3))
        # No process has more tables than it can: one that says so runs in circles.
        fits = seen[owner] + _rank(owner) < _TABLE_LIMIT
        word = f"more than {_TABLE_LIMIT} page tables of one process"
        if int(fits.sum()) > left:
            fits &= np.cumsum(fits) <= left
            word = f"more than {_TABLES_IN_ALL} page tables in all"
        cut = distinct(owner[~fits])
        table, owner, base = table[fits], owner[fits], base[fits]
        seen += np.bincount(owner, minlength=len(seen))
        left -= len(table)
        yield _Leaves(table[:0], table[:0], owner[:0], base[:0]), cut, word, len(table)


def _rank(owner: I64) -> I64:
    """The number of each row (n,) among those of its owner."""
    order = np.argsort(owner, kind="stable")
    ordered = owner[order]
    first = np.searchsorted(ordered, ordered, "left")
    rank = np.empty(len(owner), dtype=np.int64)
    rank[order] = np.arange(len(owner)) - first
    return rank


class _Huge:
    """Regions of hugetlbfs, whose pages no process counts as resident."""

    def __init__(self, kernel: Kernel, mms: Structs) -> None:
        self.start = self.end = np.zeros(0, dtype=np.uint64)
        self.owner = np.zeros(0, dtype=np.int64)
        if not mms.has("hugetlb_usage.counter"):
            return
        rows = np.flatnonzero(mms.number("hugetlb_usage.counter") > 0)
        if len(rows):
            found = regions(kernel, mms.select(rows))
            mine = np.flatnonzero(found.flags & np.uint64(_VM_HUGETLB))
            self.start, self.end, self.owner = found.start[mine], found.end[mine], rows[found.owner[mine]]

    def hold(self, leaves: _Leaves) -> Mask:
        """Which pages lie in such regions."""
        out = np.zeros(len(leaves.va), dtype=np.bool_)
        for start, end, owner in zip(self.start.tolist(), self.end.tolist(), self.owner.tolist(), strict=True):
            out |= (leaves.owner == owner) & (leaves.va >= np.uint64(start)) & (leaves.va < np.uint64(end))
        return out


def _huge_zero_page(kernel: Kernel) -> np.uint64:
    """The frame of the huge page of zeros that all share; of no frame where there is none."""
    return np.uint64(kernel.pointer("huge_zero_pfn") if kernel.profile.find_symbol("huge_zero_pfn") else MASK64)
