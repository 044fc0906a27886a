"""Guest memory that somebody else reads for us, a range at a time: libvirt's virDomainMemoryPeek on a remote host.

Knows how to need few round trips. Who is asked, and how, is the caller's: a `peek` function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from vmi_inside.drivers.placement import Placement
from vmi_inside.memory import Run
from vmi_inside.types import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask

MOST: Final = 1 << 20  # bytes a peek; libvirt's protocol allows 1 MiB or more since 0.9 (remote_protocol.x)
_GAP: Final = (
    64  # pages between two wanted ones that cost less to read along than a round trip does (7 ms; 1 MiB: 11 ms)
)

Peek = Callable[[int, int], bytes | None]


class PeekMemory:
    """`PhysicalMemory` through `peek`, which gives `size` bytes at a guest-physical address, or None if it cannot.

    Nothing is kept from one read to the next. `how` and `notices` are as in `MappedMemory`.
    """

    def __init__(
        self,
        peek: Peek,
        runs: Sequence[Run],
        *closers: Callable[[], object],
        how: str = "peek",
        notices: Iterable[str] = (),
    ) -> None:
        self.how = how
        self.notices = list(notices)
        self.runs = tuple(sorted(runs))
        self._peek = peek
        self._closers = closers
        self._placement = Placement(self.runs, [run.start for run in self.runs])

    def gather(self, pa: U64, out: U8) -> Mask:
        """See `PhysicalMemory.gather`. One round trip for each cluster of pages, whatever the number of rows."""
        width = out.shape[1]
        out[:] = 0
        _, ok, _ = self._placement.locate(pa, width)
        order = np.argsort(pa[ok], kind="stable")
        wanted = np.flatnonzero(ok)[order]
        for rows in self._clusters(pa[wanted]):
            some = wanted[rows]
            first = int(pa[some[0]])
            data = self._peek(first, int(pa[some[-1]]) + width - first)
            if data is None:
                ok[some] = False
                continue
            at = (pa[some] - np.uint64(first)).view(np.int64)
            out[some] = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), width)[at]
        return ok

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        """See `PhysicalMemory.read`. A round trip for each MiB."""
        if self._placement.parts(pa, size) is None:
            return None
        data = [self._peek(at, min(MOST, pa + size - at)) for at in range(pa, pa + size, MOST)]
        good = [part for part in data if part is not None]
        return b"".join(good) if len(good) == len(data) else None

    def close(self) -> None:
        """Let go of whoever was asked."""
        self.runs = ()
        self._placement = Placement((), ())
        for closer in self._closers:
            closer()
        self._closers = ()

    def _clusters(self, pa: U64) -> list[slice]:
        """Ascending `pa` cut into slices, each of which one peek serves."""
        if not len(pa):
            return []
        page = pa >> np.uint64(PAGE_SHIFT)
        run = np.searchsorted(np.array([run.start for run in self.runs], np.uint64), pa, "right")
        far = (np.diff(page) > _GAP) | (np.diff(run) != 0)
        cuts = [0, *(np.flatnonzero(far) + 1).tolist(), len(pa)]
        slices = []
        for first, end in pairwise(cuts):
            start = first
            while start < end:
                room = np.uint64((int(pa[start]) & ~PAGE_MASK) + MOST - PAGE_SIZE)
                stop = max(start + 1, start + int(np.searchsorted(pa[start:end], room, "left")))
                slices.append(slice(start, stop))
                start = stop
        return slices
