"""Where runs of guest RAM lie in something flat: a process's address space, the mappings of our own.

Knows the arithmetic from guest-physical addresses to places, for batches and for single ranges. What lies at those
places, and how it is read, is left to `mapped` and `process_vm`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from vmi_inside.memory import Run
from vmi_inside.types import U64, Mask


class Placement:
    """`runs`, ascending and disjoint, the first byte of each at the place `at` of the same index.

    Raises ValueError for runs that are empty or overlap.
    """

    def __init__(self, runs: Sequence[Run], at: Sequence[int]) -> None:
        for run, behind in zip(runs, [*runs[1:], None], strict=False):
            if run.start < 0 or run.size <= 0 or (behind is not None and behind.start < run.end):
                raise ValueError(f"the run at {run.start:#x} ({run.size:#x} bytes) is empty or overlaps its neighbour")
        self.runs = tuple(runs)
        self._begins, self._ends = [run.start for run in runs], [run.end for run in runs]
        self._starts = np.array([run.start for run in runs], np.uint64)
        self._sizes = np.array([run.size for run in runs], np.uint64)
        # Added to an address in the run, modulo 2**64, this gives its place.
        self._shifts = np.array(at, np.uint64) - self._starts

    def locate(self, pa: U64, width: int) -> tuple[U64, Mask, bool]:
        """The places of rows of `width` bytes at `pa` (n,); which of them lie in one run (n,); and whether all do.

        A place counts only where the mask is True.
        """
        if not len(pa) or not self.runs:
            return pa, np.zeros(len(pa), np.bool_), not len(pa)
        # Most batches stay in the run where they begin: three cheap operations instead of a search for every row.
        guess = min(bisect_right(self._ends, int(pa[0])), len(self.runs) - 1)
        ok: Mask = pa - self._starts[guess] < max(self.runs[guess].size - width + 1, 0)
        if ok.all():
            return pa + self._shifts[guess], ok, True
        room = np.maximum(self._sizes, np.uint64(width - 1)) - np.uint64(width - 1)
        if len(self.runs) == 1:
            return pa + self._shifts[0], ok, False
        # Below the first run this is -1, the last: there the offset wraps, and is far too large.
        run = self._starts.searchsorted(pa, "right") - 1
        ok = pa - self._starts[run] < room[run]
        return pa + self._shifts[run], ok, bool(ok.all())

    def within(self, pa: int, size: int) -> tuple[int, int] | None:
        """The run, by its index, that `size` bytes at `pa` lie in, and their offset in there; None if in no one run."""
        index = bisect_right(self._ends, pa)
        if index == len(self._ends) or pa + size > self._ends[index] or size < 0:
            return None
        offset = pa - self._begins[index]
        return (index, offset) if offset >= 0 else None

    def parts(self, pa: int, size: int) -> Iterator[tuple[int, int, int]] | None:
        """`size` bytes at `pa` as (index, offset, size) of each run they lie in; None if not all of them do."""
        first = bisect_right(self._ends, pa)
        if first == len(self.runs) or pa < self.runs[first].start or size < 0:
            return None
        last = first
        while pa + size > self._ends[last]:
            last += 1
            if last == len(self.runs) or self.runs[last].start != self._ends[last - 1]:
                return None
        return self._cut(pa, size, first, last)

    def _cut(self, pa: int, size: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        for index in range(first, last + 1):
            run = self.runs[index]
            start = max(pa, run.start)
            yield index, start - run.start, min(pa + size, run.end) - start
