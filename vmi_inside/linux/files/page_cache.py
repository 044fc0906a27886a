"""The page cache: which pages of a file are in memory, and where.

Knows `address_space.i_pages` (include/linux/fs.h; 4.20 and later): pages and folios, large ones for several indices,
values for what was evicted or, in tmpfs, swapped out. Files and their names are left to others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import xarray
from vmi_inside.kernel import Kernel
from vmi_inside.linux.pages import Pages
from vmi_inside.structs import Structs
from vmi_inside.table import Text, text
from vmi_inside.types import I64, PAGE_SHIFT, U64, Mask

#: Pages of files that one reading gives at the most: 256 GiB.
PAGE_LIMIT: Final = 1 << 26
#: XA_MARK_0: PAGECACHE_TAG_DIRTY, to be written to the disk.
_DIRTY: Final = 1
#: Its pages are counted in huge ones, on some kernels: what is where in a file is not known.
HUGE: Final = "hugetlbfs"
#: File systems that keep files in memory alone: what is in no page there was never written, or is in swap.
IN_MEMORY: Final = frozenset(("tmpfs", "devtmpfs", "ramfs", "rootfs"))


@dataclass(frozen=True, slots=True)
class Cached:
    """Pages of `n` files (m rows), by file and page.

    `owner` (m,) is the file's row, `index` (m,) the page's number in the file, `pa` (m,) where it is: 0 for what is no
    page (`swapped` (m,): of a file in memory alone it is in swap, of others it was evicted). `lost` (m,) marks pages
    that are not the file's any more, or cannot be told. `whole` (n,) says which files were read to their end.
    """

    owner: I64
    index: I64
    pa: U64
    swapped: Mask
    dirty: Mask
    lost: Mask
    whole: Mask
    faults: tuple[str, ...]

    def of(self, owner: int) -> slice:
        """The rows of one file."""
        low, high = self.owner.searchsorted([owner, owner + 1]).tolist()
        return slice(low, high)


def cached_pages(kernel: Kernel, mapping: U64, *, verify: bool = True) -> Cached:
    """The pages of `n` `address_space`s. `verify` asks of each page whether it is that file's still.

    Raises `NoMember` on kernels without an xarray of pages.
    """
    rows = kernel.structs("address_space", mapping).fetch("i_pages.xa_head")
    found = xarray.entries(kernel.space, rows.pointer("i_pages.xa_head"), kernel.struct("xa_node"), what="page cache")
    faults = list(found.faults)
    if rows.fault.any():
        faults.append("page cache: a mapping could not be read")
    entry, owner, value = found.entry, found.owner, found.value
    pa, known = Pages(kernel).physical(entry & ~np.uint64(3))
    lost = ~known & ~value
    if verify:
        lost |= ~value & ~_belongs(kernel, entry, rows.address[owner], known)
    # Kernels before 5.17 have the same large page at each of its indices: of those the first is where it begins.
    again = np.zeros(len(entry), dtype=np.bool_)
    again[1:] = (entry[1:] == entry[:-1]) & (owner[1:] == owner[:-1]) & ~value[1:]
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(entry))))
    within = found.index - found.index[first]
    count = np.clip(found.count, 1, PAGE_LIMIT)
    whole = found.whole & ~rows.fault
    fitting = int(np.searchsorted(np.cumsum(count), PAGE_LIMIT, "right"))
    if fitting < len(count):
        faults.append(f"page cache: cut after {fitting} entries")
        whole[owner[fitting:]] = False
        count = count[:fitting]
    # One row for each page of what stands for several.
    row = np.repeat(np.arange(len(count)), count)
    step = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    here = pa[row] + ((within[row] + step).astype(np.uint64) << np.uint64(PAGE_SHIFT))
    none = value[row] | lost[row]
    dirty = found.marks[row] & np.uint8(_DIRTY) != 0
    return Cached(
        owner[row], found.index[row] + step, np.where(none, np.uint64(0), here), value[row], dirty, lost[row], whole,
        tuple(faults),
    )  # fmt: skip


def _belongs(kernel: Kernel, entry: U64, mapping: U64, known: Mask) -> Mask:
    """Which pages (m,) say themselves that they are that mapping's."""
    ctype = kernel.find_struct("folio") or kernel.struct("page")
    rows = Structs(kernel.space, ctype, np.where(known, entry & ~np.uint64(3), np.uint64(0)))
    mine: Mask = rows.pointer("mapping") == mapping
    return known & ~rows.fault & mine


def filesystems(kernel: Kernel, inodes: Structs) -> Text:
    """Types of the file systems (n,) that inodes are of; empty where that cannot be told."""
    unique, back = np.unique(inodes.pointer("i_sb"), return_inverse=True)
    types = kernel.structs("super_block", unique).follow("s_type")
    names, _ = kernel.strings(types.pointer("name"), 32)
    return text(names)[back]


def in_memory(kernel: Kernel, inodes: Structs) -> Mask:
    """Which inodes (n,) are of file systems that keep files in memory alone."""
    held: Mask = np.isin(filesystems(kernel, inodes), list(IN_MEMORY))
    return held
