"""Bytes of a range of memory, and what is known of each page: the kernel's memory, and guest-physical memory.

Processes' memory, which may be in swap or on a disk, is `process_contents`'s knowledge; it answers in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.types import MASK64, PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask, align_down, align_up


class State(IntEnum):
    """What a page is."""

    UNMAPPED = 0  # in no region, or mapped by no page table
    PRESENT = 1  # in memory, and in the page tables
    CACHED = 2  # in memory, but only in the page cache: the process did not touch it
    UNTOUCHED = 3  # never written: it reads as zeros
    SWAPPED = 4  # in swap, or on its way from one place in memory to another
    MISSING = 5  # of a file, and not in memory
    UNREADABLE = 6  # not RAM (a device's), or RAM that could not be read


#: More is not given in one piece.
SIZE_LIMIT: Final = 1 << 30
#: States whose bytes are known.
READABLE: Final = (State.PRESENT, State.CACHED, State.UNTOUCHED)
#: The others in words.
WHY: Final = {
    State.UNMAPPED: "not mapped",
    State.SWAPPED: "in swap",
    State.MISSING: "of a file, and not in the page cache",
    State.UNREADABLE: "no RAM, or RAM that could not be read",
}


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a range from `start` on, zeros where they are not known; `state` (n,) of each page it touches."""

    start: int
    data: bytes
    state: U8

    @property
    def whole(self) -> bool:
        """Whether all of the bytes are known."""
        return bool(np.isin(self.state, READABLE).all())

    def gaps(self) -> Iterator[tuple[int, int, State]]:
        """What is not known: ranges of addresses, from the first up to the one behind the last, and why."""
        end = self.start + len(self.data)
        edges = np.flatnonzero(np.diff(self.state)) + 1
        base = align_down(self.start, PAGE_SIZE)
        for first, behind in zip([0, *edges.tolist()], [*edges.tolist(), len(self.state)], strict=True):
            state = State(int(self.state[first])) if len(self.state) else State.PRESENT
            if state not in READABLE:
                low, high = base + (first << PAGE_SHIFT), base + (behind << PAGE_SHIFT)
                yield max(low, self.start), min(high, end), state


def kernel_content(kernel: Kernel, va: int, size: int) -> Content:
    """`size` bytes of the kernel's memory. Raises ValueError for more than 1 GiB, or less than nothing."""
    pages = _pages(va, size)
    with kernel.operation():
        pa, mapped = kernel.space.translate(pages)
    return _content(kernel, va, size, pa, mapped)


def physical_content(kernel: Kernel, pa: int, size: int) -> Content:
    """`size` bytes of guest-physical memory. Raises ValueError for more than 1 GiB, or less than nothing."""
    pages = _pages(pa, size)
    return _content(kernel, pa, size, pages, np.ones(len(pages), dtype=np.bool_))


def check_size(size: int) -> None:
    """Raises ValueError for what is not given in one piece."""
    if not 0 <= size <= SIZE_LIMIT:
        raise ValueError(f"{size} bytes are not given in one piece: from none to {SIZE_LIMIT} are")


def _pages(start: int, size: int) -> U64:
    check_size(size)
    first = align_down(start, PAGE_SIZE)
    count = (align_up(start + size, PAGE_SIZE) - first) >> PAGE_SHIFT
    # Behind the last address comes 0.
    offset = np.arange(count, dtype=np.uint64) << np.uint64(PAGE_SHIFT)
    return np.uint64(first & MASK64) + offset


def _content(kernel: Kernel, start: int, size: int, pa: U64, mapped: Mask) -> Content:
    rows = np.empty((len(pa), PAGE_SIZE), dtype=np.uint8)
    ok = kernel.space.memory.gather(pa, rows)
    rows[~mapped] = 0
    state = np.where(ok, State.PRESENT, State.UNREADABLE)
    skip = start & (PAGE_SIZE - 1)
    data = rows.reshape(-1)[skip : skip + size].tobytes()
    return Content(start, data, np.where(mapped, state, State.UNMAPPED).astype(np.uint8))
