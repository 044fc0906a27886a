"""All objects that a slab cache has room for: found by looking at every page of RAM, not by any list.

Knows `kmem_cache` and `struct slab`, which lies over `struct page` since 5.17 and was a part of it before (mm/slab.h,
include/linux/mm_types.h), and that `vmemmap` has one for each page of RAM. Whether an object is in use is for those to
say who know what it is.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.types import PAGE_SHIFT, PAGE_SIZE, U64

#: Of a guest with more RAM only so much is looked at.
RAM_LIMIT: Final = 256 << 30
_AT_ONCE: Final = 1 << 12
_ORDER_LIMIT: Final = 10
_OBJECTS_LIMIT: Final = 1 << 15


def slab_objects(kernel: Kernel, cache: int) -> tuple[U64, tuple[str, ...]]:
    """Addresses of all places for objects of the `kmem_cache` at `cache`, free ones too, and what was left out.

    Raises `ProfileError`, `MemoryFault`.
    """
    rows = kernel.structs("kmem_cache", [cache]).fetch("size", "oo.x", "min.x")
    size = int(rows.unsigned("size")[0])
    order = min(int(rows.unsigned(name)[0]) >> 16 for name in ("oo.x", "min.x"))
    most = min(int(rows.unsigned("oo.x")[0]) & 0xFFFF, _OBJECTS_LIMIT)
    if rows.fault.any() or not size or not most or order > _ORDER_LIMIT:
        return np.empty(0, dtype=np.uint64), ("slabs: the cache could not be read or makes no sense",)
    page = kernel.struct("page")
    slab = kernel.find_struct("slab") or page
    at = slab.member("slab_cache").offset
    head, faults = _heads(kernel, cache, page.size, at, order)
    slabs = kernel.structs(slab, head).fetch("objects")
    count = np.where(slabs.fault, 0, np.minimum(slabs.number("objects"), most))
    frame = (head - np.uint64(kernel.pointer("vmemmap_base"))) // np.uint64(page.size)
    base = np.uint64(kernel.pointer("page_offset_base")) + (frame << np.uint64(PAGE_SHIFT))
    first = np.repeat(base, count)
    number = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return first + number.astype(np.uint64) * np.uint64(size), faults


def _heads(kernel: Kernel, cache: int, size: int, at: int, order: int) -> tuple[U64, tuple[str, ...]]:
    """The page structs whose `slab_cache`, `at` bytes in, is the cache: those of the first page of each slab.

    A slab of 2**order pages begins at a multiple of that (the buddy allocator's rule).
    """
    vmemmap = np.uint64(kernel.pointer("vmemmap_base"))
    a_page = PAGE_SIZE // size  # page structs that lie in one page: all of them, whatever their number
    if a_page * size != PAGE_SIZE:
        return np.empty(0, dtype=np.uint64), ("slabs: page structs do not fill pages",)
    step = min(1 << order, a_page)
    found: list[U64] = [np.empty(0, dtype=np.uint64)]
    left, faults = RAM_LIMIT >> PAGE_SHIFT, []
    for run in kernel.space.memory.runs:
        first, end = (run.start >> PAGE_SHIFT) // a_page, -(-(run.end >> PAGE_SHIFT) // a_page)
        if (end - first) * a_page > left:
            faults = [f"slabs: only {RAM_LIMIT >> 30} GiB of RAM were looked at"]
            end = first + left // a_page
        left -= (end - first) * a_page
        for start in range(first, end, _AT_ONCE):
            block = np.arange(start, min(start + _AT_ONCE, end), dtype=np.uint64)
            address = vmemmap + block * np.uint64(PAGE_SIZE)
            raw, _ = kernel.space.gather(address, PAGE_SIZE)
            word = raw.view("<u8").reshape(len(block), -1)[:, at // 8 :: step * size // 8]
            row, column = np.nonzero(word == np.uint64(cache))
            found.append(address[row] + column.astype(np.uint64) * np.uint64(step * size))
    return np.concatenate(found), tuple(faults)
