"""Pages of a guest, copied at one moment: what several tables are read from when they are to agree with each other.

Knows which pages a reading touches, and how to copy these in one go. Whether the guest stands still meanwhile, and when
a reading is to be repeated, is the caller's matter.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.drivers.mapped import MappedMemory
from vmi_inside.errors import Unsupported
from vmi_inside.memory import PhysicalMemory, Run
from vmi_inside.types import PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask, distinct

#: Bytes that one capture may hold.
LIMIT: Final = 1 << 30


class CapturedMemory:
    """`PhysicalMemory` over another one, `live`: pages that were captured come from their copy.

    Others come from `live`, and are noted: `missed` is how many such pages were read since the last `capture`, which
    takes all that were ever read.
    """

    def __init__(self, live: PhysicalMemory) -> None:
        self.runs: tuple[Run, ...] = live.runs
        self._live = live
        self._copy = MappedMemory(())
        self._wanted = np.empty(0, dtype=np.uint64)  # page numbers, ascending
        self._missed: list[U64] = []

    @property
    def missed(self) -> int:
        """How many pages were read from the guest itself since the last capture."""
        return len(distinct(np.concatenate(self._missed))) if self._missed else 0

    @property
    def pages(self) -> int:
        """How many pages a capture copies."""
        return len(self._wanted)

    def prepare(self) -> None:
        """Make everything ready for `capture`: what need not happen while the guest stands still.

        Raises `Unsupported` when it would be more than `LIMIT`.
        """
        self._wanted = distinct(np.concatenate((self._wanted, *self._missed)))
        self._missed = []
        if len(self._wanted) * PAGE_SIZE > LIMIT:
            raise Unsupported(
                f"a picture of these tables takes {len(self._wanted) >> 8} MiB, more than {LIMIT >> 20} MiB; "
                "read fewer tables at once"
            )
        self._into = np.zeros((len(self._wanted), PAGE_SIZE), dtype=np.uint8)  # its memory is there when it is needed

    def capture(self) -> None:
        """Copy the pages: one gather."""
        self._ok = self._live.gather(self._wanted << np.uint64(PAGE_SHIFT), self._into)

    def settle(self) -> None:
        """Read from the copy from now on."""
        # Pages that follow one another are one run of the copy.
        numbers, rows = self._wanted[self._ok], np.flatnonzero(self._ok)
        new = np.ones(len(numbers), dtype=np.bool_)
        new[1:] = (np.diff(numbers) != 1) | (np.diff(rows) != 1)
        starts = np.flatnonzero(new)
        ends = np.append(starts[1:], len(numbers))
        flat = self._into.reshape(-1)
        pieces = []
        for first, end in zip(starts.tolist(), ends.tolist(), strict=True):
            at, size = int(rows[first]) * PAGE_SIZE, (end - first) * PAGE_SIZE
            pieces.append((Run(int(numbers[first]) * PAGE_SIZE, size), flat[at : at + size]))
        self._copy = MappedMemory(pieces)

    def gather(self, pa: U64, out: U8) -> Mask:
        """See `PhysicalMemory.gather`."""
        ok = self._copy.gather(pa, out)
        if not ok.all():
            rows = np.flatnonzero(~ok)
            self._missed.append(distinct(pa[rows] >> np.uint64(PAGE_SHIFT)))
            some = np.empty((len(rows), out.shape[1]), dtype=np.uint8)
            ok[rows] = self._live.gather(pa[rows], some)
            out[rows] = some
        return ok

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        """See `PhysicalMemory.read`."""
        found = self._copy.read(pa, size)
        if found is None:
            last = (pa + max(size, 1) - 1) >> PAGE_SHIFT
            self._missed.append(np.arange(pa >> PAGE_SHIFT, last + 1, dtype=np.uint64))
            found = self._live.read(pa, size)
        return found

    def close(self) -> None:
        """Let go of the copy; the guest stays attached."""
        self._copy.close()
