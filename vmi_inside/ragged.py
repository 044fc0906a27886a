"""Byte ranges of differing lengths, read in one gather.

Knows only addresses and sizes: argument lists, descriptor tables, strings and hash tables are all this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmi_inside.space import AddressSpace
from vmi_inside.types import PAGE_SIZE, U8, U64, Mask

#: No single reading takes more than this, whatever sizes the guest claims.
TOTAL_LIMIT = 64 << 20
_NONE = np.uint64(0)


@dataclass(frozen=True, slots=True)
class Ragged:
    """`n` byte ranges: range `i` is `data[start[i] : start[i] + size[i]]`; `ok[i]` says that all of it was read."""

    data: U8
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    ok: Mask

    def row(self, index: int) -> bytes:
        """Range `index` as bytes, zeros where it could not be read."""
        start = int(self.start[index])
        return self.data[start : start + int(self.size[index])].tobytes()

    def rows(self) -> list[bytes]:
        """All ranges as bytes."""
        whole = self.data.tobytes()
        return [whole[a : a + n] for a, n in zip(self.start.tolist(), self.size.tolist(), strict=True)]

    def words(self) -> tuple[U64, NDArray[np.intp], NDArray[np.int64]]:
        """The 64-bit words of all ranges that are not 0, (m,) which range each came from, and its number in that range.

        Ranges begin at multiples of 8, as all arrays of the kernel's do; of others nothing is given.
        """
        rows = np.flatnonzero((self.size > 0) & (self.start & 7 == 0))
        every = self.data.view("<u8")
        if not len(rows):
            return every[:0], rows, np.empty(0, dtype=np.int64)
        used = np.flatnonzero(every != _NONE)  # a mask has its own, quicker way to be looked through
        inner = rows[np.argsort(self.start[rows], kind="stable")]  # as they lie in `data`
        first = self.start[inner] >> 3
        at = first.searchsorted(used, "right") - 1
        index = used - first[at]
        inside = (at >= 0) & (index < self.size[inner][at] >> 3)
        word, row, index = every[used[inside]], inner[at[inside]], index[inside]
        if (row[1:] < row[:-1]).any():
            order = np.argsort(row, kind="stable")
            word, row, index = word[order], row[order], index[order]
        return word, row, index


def fitting(size: NDArray[np.int64], limit: int) -> Mask:
    """Which of these sizes (n,), none negative, fit into `limit` all together.

    The largest are left out, of equal ones the last.
    """
    fits: Mask = size <= limit
    if int(np.where(fits, size, 0).sum()) > limit:
        order = np.argsort(size, kind="stable")
        order = order[fits[order]]
        fits[order[np.cumsum(size[order]) > limit]] = False
    return fits


def gather(space: AddressSpace, va: U64, size: NDArray[np.int64], roots: U64 | None = None) -> Ragged:
    """Read `size[i]` bytes at `va[i]` for all `i`; a negative size counts as 0.

    Where the whole would be more than `TOTAL_LIMIT`, the largest ranges are left out: size 0, not `ok`.
    """
    size = np.maximum(size, 0)
    cut = ~fitting(size, TOTAL_LIMIT)
    size = np.where(cut, 0, size)
    common = _common(va, size)
    if common and roots is None:
        alike = size == common
        pieces, ok = space.gather(va[alike], common)
        if ok.all():  # by units part of a range may be had that cannot be read whole
            data, start, ok = pieces.ravel(), np.zeros(len(va), dtype=np.int64), ~cut
            start[alike] = common * np.arange(len(pieces))
            if len(pieces) < np.count_nonzero(size):
                rest = _gather_units(space, va, np.where(alike, 0, size), None)
                start[~alike] = rest.start[~alike] + len(data)
                data = np.concatenate((data, rest.data))
                ok &= rest.ok
            return Ragged(data, start, size, ok)
    got = _gather_units(space, va, size, roots)
    got.ok[cut] = False
    return got


def _common(va: U64, size: NDArray[np.int64]) -> int:
    """The size that most of the ranges have which are not empty, where there is one; 0 where it pays not to know.

    Descriptor tables, and hash tables of one kind, are such: then nothing around them need be read.
    """
    some = size[size > 0]
    if not len(some):
        return 0
    middle = int(np.sort(some)[len(some) // 2])  # what more than half have stands in the middle
    alike = size == middle
    fine = middle <= PAGE_SIZE and not middle & 7 and 2 * np.count_nonzero(alike) > len(some)
    return middle if fine and not (va[alike] & np.uint64(7)).any() else 0


def _gather_units(space: AddressSpace, va: U64, size: NDArray[np.int64], roots: U64 | None) -> Ragged:
    """As `gather`, by pieces of one width."""
    some = size[size > 0]
    mean = int(some.mean()) if len(some) else 0
    unit = min(PAGE_SIZE, max(64, 1 << mean.bit_length()))
    # Units are aligned, so none crosses a page; the few bytes around a range come along.
    low = va & ~np.uint64(unit - 1)
    lead = (va - low).astype(np.int64)
    count = np.where(size > 0, (lead + size + unit - 1) // unit, 0)
    owner = np.repeat(np.arange(len(va)), count)
    first = np.cumsum(count) - count
    within = (np.arange(len(owner)) - first[owner]).astype(np.uint64)
    pieces, good = space.gather(low[owner] + within * np.uint64(unit), unit, None if roots is None else roots[owner])
    ok = np.ones(len(va), dtype=np.bool_)
    ok[owner[~good]] = False
    return Ragged(pieces.ravel(), first * unit + lead, size, ok)
