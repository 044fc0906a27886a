"""How many times a page is mapped: what the kernel divides it by when it shares it out among processes.

Knows `struct page` and `struct folio` as far as that goes (include/linux/mm_types.h; fs/proc/task_mmu.c
`smaps_account`). Who maps which page is `resident`'s knowledge.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.errors import NoMember
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Column
from vmi_inside.types import I64, PAGE_SHIFT, U64, Mask

#: Shares are summed with so many bits behind the point (PSS_SHIFT).
SHARE_SHIFT: Final = 12
#: Frames of a page that is looked at frame by frame, and how many such pages at a time.
_FRAMES: Final = 512
_TORN: Final = 1 << 12
#: FOLIO_PAGES_MAPPED (mm/internal.h, 6.2).
_PIECES: Final = 0x7F_FFFF
#: Where all `struct page`s are, by levels of paging, where it is not drawn at boot (__VMEMMAP_BASE_L4, _L5).
_FIXED: Final = {4: 0xFFFF_EA00_0000_0000, 5: 0xFFD4_0000_0000_0000}
#: What names the head of a tail page is an address below this, a mask above (7.0).
_MASKS: Final = np.uint64(0xFFFF_FFFF_0000_0000)
_ZERO, _ONE = np.uint64(0), np.uint64(1)


class MapCounts:
    """How often pages are mapped, by their `struct page`s and the folios that these belong to."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.page = kernel.struct("page")
        fixed = kernel.profile.find_symbol("vmemmap_base") is None
        levels = kernel.space.paging.levels
        self.base = np.uint64(_FIXED[levels] if fixed and levels in _FIXED else kernel.pointer("vmemmap_base"))
        head = kernel.profile.enumerator("PG_head")
        if head is None:
            raise NoMember("PG_head")
        self.head = np.uint64(1 << head)
        # Until 6.1: mapped both whole and in pieces, in which case the pieces count the whole too.
        double = kernel.profile.enumerator("PG_double_map")
        self.double = np.uint64(0 if double is None else 1 << double)
        folio = kernel.find_struct("folio")
        self.pieces: int | None = None
        if folio is not None and folio.has("_entire_mapcount.counter"):
            self.entire = folio.member("_entire_mapcount").offset
            if folio.has("_nr_pages_mapped"):
                self.pieces = folio.member("_nr_pages_mapped").offset
        else:  # before 6.2 in the second page of the folio
            self.entire = self.page.size + self.page.member("compound_mapcount").offset

    def shares(self, pfn: U64, count: U64) -> tuple[I64, I64, Mask]:
        """Of pages (n,), each `count` frames long: its share, `SHARE_SHIFT` bits behind the point, and private bytes.

        And (n,) bool: of which that could be told.
        """
        mapcount, fine = self._mapcount(pfn)
        size = count.astype(np.int64) << PAGE_SHIFT
        large = np.flatnonzero(count > _ONE)
        parts = large[:0]
        if len(large):  # mapped whole: frame by frame only where somebody else maps pieces of it
            address = self.base + pfn[large] * np.uint64(self.page.size)
            entire, torn, read = self._folios(address)
            mapcount[large], fine[large] = np.maximum(entire, 1), read & (entire > 0)
            parts = large[torn & (count[large] <= np.uint64(_FRAMES))]
            fine[parts[_TORN:]] = False
            parts = parts[:_TORN]
        pss, uss = (size << SHARE_SHIFT) // mapcount, np.where(mapcount == 1, size, 0)
        for row in parts.tolist():
            frames, read = self._mapcount(pfn[row] + np.arange(count[row], dtype=np.uint64))
            pss[row] = int((np.int64(1 << PAGE_SHIFT + SHARE_SHIFT) // frames).sum())
            uss[row] = int((frames == 1).sum()) << PAGE_SHIFT
            fine[row] &= bool(read.all())
        return pss, uss, fine

    def _folios(self, head: U64) -> tuple[I64, Mask, Mask]:
        """Of folios (n,): how many map it whole; which are mapped in pieces too; of which that could be read."""
        raw, ok = self.kernel.space.gather(head + np.uint64(self.entire), 4)
        entire = raw.view("<i4")[:, 0].astype(np.int64) + 1
        if self.pieces is not None:  # how many pages are, and above them a bit that says: all
            raw, read = self.kernel.space.gather(head + np.uint64(self.pieces), 4)
            return entire, raw.view("<u4")[:, 0] & np.uint32(_PIECES) != 0, ok & read
        return entire, self._doubled(head), ok

    def _doubled(self, head: U64) -> Mask:
        """Which folios (n,) are mapped both whole and in pieces, where the kernel writes that down."""
        raw, _ = self.kernel.space.gather(head + np.uint64(self.page.size), 8)
        doubled: Mask = raw.view("<u8")[:, 0] & self.double != _ZERO
        return doubled

    def _mapcount(self, pfn: U64) -> tuple[I64, Mask]:
        """How many times each frame (n,) is mapped, 1 or more, and (n,) bool: of which that could be told."""
        unique, back = np.unique(pfn, return_inverse=True)
        address = self.base + unique * np.uint64(self.page.size)
        rows = self.kernel.structs(self.page, address).fetch("flags", ("compound_head", "compound_info"), "_mapcount")
        total = np.maximum(_signed(rows["_mapcount"]) + 1, 0)
        flags = np.ascontiguousarray(rows["flags"]).view("<u8").reshape(-1)  # a struct of its own since 6.18
        link = rows.unsigned("compound_head")
        tail = link & _ONE != _ZERO
        masked = tail & (link > _MASKS)
        head = np.where(masked, address & link & ~_ONE, np.where(tail, link & ~_ONE, address))
        large = np.flatnonzero(tail | (flags & self.head != _ZERO))
        fine = ~rows.fault
        if len(large):
            entire, _, ok = self._folios(head[large])
            total[large] += np.maximum(entire, 0) - self._doubled(head[large])
            fine[large[~ok]] = False
        total, fine = total[back], fine[back]
        return np.maximum(total, 1), fine & (total > 0)


def _signed(column: Column) -> I64:
    """An `atomic_t` column (n, 4) as (n,) int64."""
    return np.ascontiguousarray(column).view("<i4").reshape(-1).astype(np.int64)
