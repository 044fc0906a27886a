"""Guest RAM that lies in byte arrays of our own process: a shared memory-backend mapped, a dump file mapped.

Knows pieces, one array for each run of RAM, and how to gather from all of them in one indexing operation. What the
arrays are and which guest-physical address each starts at is told by `qemu` and by the readers of dump formats.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.drivers.placement import Placement
from vmi_inside.errors import AttachError
from vmi_inside.memory import Run
from vmi_inside.types import PAGE_SIZE, U8, U64, Mask

#: With a limit on resident pages, rows after which they are counted: the kernel maps up to 16 pages around each row.
_LOOK_EVERY: Final = 512
_PIECE: Final = 1 << 17  # bytes that are taken at once: they stay in the processor's cache


def map_file(fd: int, size: int | None = None, offset: int = 0, *, name: str = "the file") -> U8:
    """Map `size` bytes (all that follow, if None) at `offset` of the open file `fd`, read-only: (size,) uint8.

    `offset` is a multiple of the page size (of the huge page size on hugetlbfs). `fd` may be closed afterwards; the
    mapping lives as long as the array. Raises `AttachError` when the file ends before the range does: touching such
    a mapping would be a SIGBUS.
    """
    there = os.lseek(fd, 0, os.SEEK_END)  # unlike st_size, right for block devices too
    size = there - offset if size is None else size
    if size <= 0 or offset + size > there:
        raise AttachError(f"{name} is {there} bytes long, not the {offset + max(size, 1)} that are needed")
    return np.frombuffer(mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset), np.uint8)


def _shared_pages() -> int:
    """Pages of files and shared memory that are mapped into this process now (proc(5), statm)."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[2])


def _mapping(array: U8) -> mmap.mmap | None:
    """The mapping that an array lies in, if `map_file` made it."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    return base if isinstance(base, mmap.mmap) else None


class MappedMemory:
    """`PhysicalMemory` over pieces: pairs of a `Run` and a C-contiguous uint8 array of exactly its size.

    Zero-copy: `read` gives views, `gather` copies each row once. `closers` are called by `close`. `how` says for
    people how the guest is reached, `notices` what they should know about it. Raises ValueError for pieces that
    overlap or do not have their run's size.
    """

    #: See `Flat`.
    flat = True

    def __init__(
        self,
        pieces: Iterable[tuple[Run, U8]],
        *closers: Callable[[], object],
        how: str = "mapped",
        notices: Iterable[str] = (),
    ) -> None:
        found = sorted(((run, array) for run, array in pieces if run.size), key=lambda piece: piece[0])
        for run, array in found:
            if array.shape != (run.size,) or array.dtype != np.uint8 or not array.flags.c_contiguous:
                raise ValueError(f"the piece at {run.start:#x} is not {run.size} contiguous bytes")
        self.how = how
        self.notices = list(notices)
        self.runs: tuple[Run, ...] = tuple(run for run, _ in found)
        self._views = [array.data.toreadonly() for _, array in found]
        little = sys.byteorder == "little"
        self._words = [view.cast("Q") if little and not len(view) & 7 else None for view in self._views]
        self._mappings = list({id(one): one for _, array in found if (one := _mapping(array)) is not None}.values())
        #: See `Releasing.resident_limit`.
        self.resident_limit = 0
        self._rows_read = 0
        self._shared_before = _shared_pages()
        self._closers = closers
        # One array over everything from the lowest mapped address to the highest lets any number of pieces be read by
        # one indexing operation. What lies between the pieces is never touched: every index is checked first.
        at = [array.ctypes.data for _, array in found]
        self._base = min(at, default=0)
        self._span = max((a + run.size for a, run in zip(at, self.runs, strict=True)), default=0) - self._base
        self._placement = Placement(self.runs, [a - self._base for a in at])
        self._by_width: dict[int, NDArray[np.void]] = {}

    def gather(self, pa: U64, out: U8) -> Mask:
        """See `PhysicalMemory.gather`. About 20 ns a row of 64 bytes in the processor's cache."""
        if not self.resident_limit or not self._mappings:
            return self._gather(pa, out)
        ok = np.empty(len(pa), np.bool_)
        for start in range(0, len(pa), _LOOK_EVERY):
            part = slice(start, start + _LOOK_EVERY)
            ok[part] = self._gather(pa[part], out[part])
            self._rows_read += len(pa[part])
            if self._rows_read >= _LOOK_EVERY:
                self._rows_read = 0
                if _shared_pages() - self._shared_before > self.resident_limit // PAGE_SIZE:
                    self.release()
        return ok

    def _gather(self, pa: U64, out: U8) -> Mask:
        width = out.shape[1]
        place, ok, complete = self._placement.locate(pa, width)
        index = place.view(np.int64)
        if complete and len(pa):
            rows = self._rows(width)
            into = out.view(rows.dtype)[:, 0]
            # NumPy takes rows into an array of its own first: a large one is new memory from the system each time.
            step = max(_PIECE // width, 1)
            for start in range(0, len(index), step):
                into[start : start + step] = rows[index[start : start + step]]
            return ok
        out[~ok] = 0
        if ok.any():
            rows = self._rows(width)
            out.view(rows.dtype)[ok, 0] = rows[index[ok]]
        # Runs of a dump may meet inside a page: such a row begins in one piece and ends in the next.
        for row in np.flatnonzero(~ok).tolist():
            joined = self.read(int(pa[row]), width)
            if joined is not None:
                out[row] = np.frombuffer(joined, np.uint8)
                ok[row] = True
        return ok

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        """See `PhysicalMemory.read`: a read-only view inside one piece, bytes across pieces that adjoin."""
        one = self._placement.within(pa, size)
        if one is not None:
            return self._views[one[0]][one[1] : one[1] + size]
        parts = self._placement.parts(pa, size)
        if parts is None:
            return None
        return b"".join([self._views[piece][offset : offset + length] for piece, offset, length in parts])

    def word(self, pa: int) -> int | None:
        """See `Words.word`."""
        one = self._placement.within(pa, 8)
        if one is None or one[1] & 7:
            return None
        words = self._words[one[0]]
        return None if words is None else words[one[1] >> 3]

    def release(self) -> None:
        """See `Releasing.release`. Only file mappings can be let go of without losing what they hold."""
        for mapping in self._mappings:
            mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the arrays; a mapping ends when the last view of it does."""
        self.runs = ()
        self._placement = Placement((), ())
        self._views.clear()
        self._words.clear()
        self._mappings.clear()
        self._by_width.clear()
        for closer in self._closers:
            closer()
        self._closers = ()

    def _rows(self, width: int) -> NDArray[np.void]:
        """A view that has a row of `width` bytes at every byte of the span."""
        rows = self._by_width.get(width)
        if rows is None:
            everything = memoryview((ctypes.c_ubyte * self._span).from_address(self._base)).cast("B")
            rows = np.ndarray((self._span - width + 1,), np.dtype((np.void, width)), everything, 0, (1,))
            rows.flags.writeable = False
            self._by_width[width] = rows
        return rows
