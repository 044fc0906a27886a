"""Frames of a Xen guest, mapped many at a time, and kept for as long as one reading lasts.

Knows how mappings are made, found again and given back, and how many there may be. Which frame holds which of the
guest's addresses is `xen`'s knowledge.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vmi_inside.types import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask

#: Frames that may be mapped at a time, 256 MiB; and those of one call.
MOST: Final = 1 << 16
_CALL: Final = 1 << 12


class Mapper(Protocol):
    """What maps frames of a domain: `xenlib.Xen`."""

    def map(self, number: int, frames: int, errors: int, count: int, protection: int) -> int | None: ...  # noqa: D102
    def unmap(self, at: int, count: int) -> None: ...  # noqa: D102


class Frames:
    """Mapped frames of one domain, by their numbers."""

    def __init__(self, xen: Mapper, domain: int, most: int = MOST) -> None:
        self._xen = xen
        self._domain = domain
        self._most = most
        self._spans: list[tuple[int, int]] = []  # what to give back
        self._number = self._place = np.empty(0, dtype=np.uint64)  # ascending frame numbers, and their addresses
        self.failed = False  # whether a frame could not be mapped since this was last set

    def gather(self, frame: U64, offset: U64, out: U8) -> Mask:
        """Copy `out.shape[1]` bytes at an offset into each frame (n,); (n,) bool: which could be. The others are 0."""
        width = out.shape[1]
        ok = np.zeros(len(frame), dtype=np.bool_)
        if not len(frame):
            return ok
        unique, back = np.unique(frame, return_inverse=True)
        for first in range(0, len(unique), self._most):
            part = unique[first : first + self._most]
            place, good = self._places(part)
            rows = np.flatnonzero((back >= first) & (back < first + len(part))) if len(unique) > self._most else None
            which = back if rows is None else back[rows] - first
            fine = good[which]
            if not fine.any():
                continue
            at = place[which] + (offset if rows is None else offset[rows])
            wanted = fine.nonzero()[0] if rows is None else rows[fine]
            out.view(np.dtype((np.void, width)))[wanted, 0] = _rows(at[fine], width)
            ok[wanted] = True
        out[~ok] = 0
        return ok

    def _places(self, frame: U64) -> tuple[U64, Mask]:
        """The addresses of these frames (ascending, each once), and which of them are mapped."""
        at, known = self._find(frame)
        if not known.all():
            missing = frame[~known]
            if len(self._number) + len(missing) > self._most:
                self.release()
                missing = frame
            for first in range(0, len(missing), _CALL):
                self._map(missing[first : first + _CALL])
            at, known = self._find(frame)
        return at, known

    def _find(self, frame: U64) -> tuple[U64, Mask]:
        if not len(self._number):
            return np.zeros(len(frame), dtype=np.uint64), np.zeros(len(frame), dtype=np.bool_)
        at = np.minimum(self._number.searchsorted(frame), len(self._number) - 1)
        known: Mask = self._number[at] == frame
        return self._place[at], known

    def _map(self, frame: U64) -> None:
        frame = np.ascontiguousarray(frame)
        errors = np.zeros(len(frame), dtype=np.int32)
        at = self._xen.map(self._domain, frame.ctypes.data, errors.ctypes.data, len(frame), mmap.PROT_READ)
        if not at:
            self.failed = True
            return
        self._spans.append((at, len(frame)))
        good = errors == 0
        self.failed |= not good.all()
        place = np.uint64(at) + (np.arange(len(frame), dtype=np.uint64) << np.uint64(PAGE_SHIFT))
        number = np.concatenate((self._number, frame[good]))
        order = number.argsort(kind="stable")
        self._number, self._place = number[order], np.concatenate((self._place, place[good]))[order]

    def write(self, frame: int, offset: int, data: bytes) -> bool:
        """Write into one frame; False when it cannot be mapped for it."""
        number, error = np.array([frame], dtype=np.uint64), np.zeros(1, dtype=np.int32)
        both = mmap.PROT_READ | mmap.PROT_WRITE
        at = self._xen.map(self._domain, number.ctypes.data, error.ctypes.data, 1, both)
        if not at:
            return False
        try:
            if error[0]:
                return False
            ctypes.memmove(at + offset, data, len(data))
            return True
        finally:
            self._xen.unmap(at, 1)

    def view(self, frame: U64) -> U8 | None:
        """These frames side by side, for good: a view of their bytes; None when one of them cannot be mapped."""
        frame = np.ascontiguousarray(frame)
        errors = np.zeros(len(frame), dtype=np.int32)
        at = self._xen.map(self._domain, frame.ctypes.data, errors.ctypes.data, len(frame), mmap.PROT_READ)
        if not at:
            return None
        if errors.any():
            self._xen.unmap(at, len(frame))
            return None
        return _bytes(at, len(frame) << PAGE_SHIFT)

    def forget(self, view: U8) -> None:
        """Give back what `view` gave."""
        self._xen.unmap(view.ctypes.data, view.size >> PAGE_SHIFT)

    def release(self) -> None:
        """Give back all that is mapped but for views."""
        for at, count in self._spans:
            self._xen.unmap(at, count)
        self._spans.clear()
        self._number = self._place = np.empty(0, dtype=np.uint64)


def _bytes(at: int, size: int) -> U8:
    found: U8 = np.frombuffer(memoryview((ctypes.c_ubyte * size).from_address(at)), np.uint8)
    found.flags.writeable = False
    return found


def _rows(at: U64, width: int) -> NDArray[np.void]:
    """`width` bytes at each of these addresses, all of which are mapped; none crosses a page."""
    base = int(at.min())
    span = int(at.max()) - base + width
    everything = memoryview((ctypes.c_ubyte * span).from_address(base)).cast("B")
    rows: NDArray[np.void] = np.ndarray((span - width + 1,), np.dtype((np.void, width)), everything, 0, (1,))
    return rows[(at - np.uint64(base)).view(np.int64)]


def split(pa: U64) -> tuple[U64, U64]:
    """Pages and offsets in them."""
    return pa >> np.uint64(PAGE_SHIFT), pa & np.uint64(PAGE_MASK)


def pages(start: int, size: int) -> U64:
    """The pages that `size` bytes at `start` lie in."""
    return np.arange(start >> PAGE_SHIFT, (start + size + PAGE_SIZE - 1) >> PAGE_SHIFT, dtype=np.uint64)
