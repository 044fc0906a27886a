"""Where pages of a region stand that its process never touched: in the page cache, or in the kernel's image.

Knows which file's pages a region shows, and where [vdso] comes from. What the process touched is in its page tables:
`user_pages`' knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.contents.content import State
from vmi_inside.linux.contents.regions import Region
from vmi_inside.linux.files.page_cache import Cached, cached_pages
from vmi_inside.linux.memory.vmas import VM_HUGETLB
from vmi_inside.types import I64, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask

#: No image of a vdso is larger.
_IMAGE_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Held:
    """Pages of a region that stand somewhere, ascending: `va` (m,), `pa` (m,) or 0, `state` (m,) of `State`."""

    va: U64
    pa: U64
    state: U8

    def where(self, which: Mask | slice) -> Held:
        """Some of them."""
        return Held(self.va[which], self.pa[which], self.state[which])

    def merged(self, other: Held) -> Held:
        """Both by address; where both have a page, this one's counts."""
        extra = other.where(~np.isin(other.va, self.va, assume_unique=True))
        if not len(extra.va):
            return self
        va = np.concatenate((self.va, extra.va))
        order = np.argsort(va, kind="stable")
        pa, state = np.concatenate((self.pa, extra.pa)), np.concatenate((self.state, extra.state))
        return Held(va[order], pa[order], state[order])


class Backing:
    """What stands behind regions of the mm_struct at `mm`. Read when this is made; `faults` says where it was cut."""

    def __init__(self, kernel: Kernel, mm: int, regions: tuple[Region, ...]) -> None:
        self.kernel = kernel
        self.mm = mm
        self._regions = regions
        self._cached, self._row = self._files(regions)
        self.faults = self._cached.faults

    def pages(self, number: int, start: int, end: int) -> Held:
        """The pages behind region `number`, from `start` up to `end`."""
        region = self._regions[number]
        if region.path == "[vdso]":
            return self._image(region, start, end)
        row = int(self._row[number])
        rows = self._cached.of(row) if row >= 0 else slice(0, 0)
        index, pa, swapped = self._cached.index[rows], self._cached.pa[rows], self._cached.swapped[rows]
        first = (start - region.start + region.offset) >> PAGE_SHIFT
        inside = (index >= first) & (index < first + ((end - start) >> PAGE_SHIFT))
        # What was evicted from a cache is missing like all else that is not in it.
        inside &= (pa != 0) | (swapped & (region.rest == State.UNTOUCHED))
        va = np.uint64(start) + ((index[inside] - first).astype(np.uint64) << np.uint64(PAGE_SHIFT))
        state = np.where(pa[inside] != 0, State.CACHED, State.SWAPPED).astype(np.uint8)
        return Held(va, pa[inside], state)

    def _image(self, region: Region, start: int, end: int) -> Held:
        """The pages of the kernel that [vdso] shows, touched or not (arch/x86/entry/vdso/vma.c)."""
        ctype = self.kernel.struct("mm_struct")
        size = data = 0
        if ctype.has("context.vdso_image"):
            image = self.kernel.structs(ctype, [self.mm]).follow("context.vdso_image").fetch("data", "size")
            size, data = min(int(image.unsigned("size")[0]), _IMAGE_LIMIT), int(image.pointer("data")[0])
        if data & PAGE_MASK:  # no image lies so
            size = 0
        va = np.arange(start, min(end, region.start + size), PAGE_SIZE, dtype=np.uint64)
        pa, ok = self.kernel.space.translate(np.uint64(data) + (va - np.uint64(region.start)))
        return Held(va[ok], pa[ok], np.full(int(ok.sum()), State.CACHED, dtype=np.uint8))

    def _files(self, regions: tuple[Region, ...]) -> tuple[Cached, I64]:
        """The page cache of the regions' files, and the row of each region's file in it, -1 without."""
        # How a file of huge pages counts them differs between kernels; what was touched is in the page tables.
        file = np.array([0 if region.flags & VM_HUGETLB else region.file for region in regions], dtype=np.uint64)
        unique, back = np.unique(file, return_inverse=True)
        mapping = self.kernel.structs("file", unique).pointer("f_mapping")
        rows, again = np.unique(mapping, return_inverse=True)
        row = again[back].astype(np.int64)
        return cached_pages(self.kernel, rows), np.where(mapping[back] == 0, -1, row)
