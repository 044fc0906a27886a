"""What all readers of memory dumps share: a file mapped safely, ranges made disjoint, RAM with notes beside it.

Knows that a dump is a regular file, and that nothing written in it can be believed. What its bytes mean is left to
`elfcore`, `lime`, `kdump` and `raw`; which of them to ask, to `dump`.

A mapping is as long as the file was when it was opened. Whoever truncates the file while it is being read makes the
kernel answer with SIGBUS, as for every mapped file; a dump still being written should be opened when it is done.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import numpy as np

from vmi_inside.drivers.mapped import MappedMemory, map_file
from vmi_inside.drivers.notes import Notes
from vmi_inside.errors import AttachError, BadDump, NoSuchDomain, PermissionDenied
from vmi_inside.memory import PhysicalMemory, Run
from vmi_inside.types import I64, U8

LIMIT: Final = 1 << 56  # no architecture has more physical address bits: what ends behind is a lie


class Dump(PhysicalMemory, Protocol):
    """Guest memory out of a file: `how` names the format for people, `notices` what they should know about it."""

    how: str
    notices: list[str]
    notes: Notes


class Source(Protocol):
    """Bytes by offset, of a file or of what a file describes."""

    path: str
    size: int

    def bytes(self, offset: int, size: int) -> bytes | None:
        """`size` bytes at `offset`, or None when not all of them are there."""
        ...


class DumpFile:
    """A dump opened read-only and mapped whole: `data` is (size,) uint8, paged in by the kernel where it is touched.

    Raises `NoSuchDomain` for a path that does not exist, `PermissionDenied`, and `BadDump` for anything that is no
    regular file (opening a FIFO or a device could block, or do something) or is empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            _regular(self.path, os.stat(self.path))
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                _regular(self.path, os.fstat(fd))  # again: the path may have become another file since
                self.data: U8 = map_file(fd, name=self.path)
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise NoSuchDomain(f"{self.path}: there is no such file") from None
        except PermissionError:
            raise PermissionDenied(f"{self.path}: permission denied; dumps are often root's: try sudo") from None
        except AttachError as error:
            if isinstance(error, BadDump):
                raise
            raise BadDump(f"{self.path} is empty") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise BadDump(f"{self.path}: cannot be opened as a dump: {error}") from None
        self.size = len(self.data)

    def bytes(self, offset: int, size: int) -> bytes | None:
        """See `Source.bytes`."""
        return self.data[offset : offset + size].tobytes() if 0 <= offset <= self.size - size and size >= 0 else None


def _regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise BadDump(f"{path} is {kind}, not a memory dump; give the path of a regular file")


def need(source: Source, offset: int, size: int, what: str) -> bytes:
    """`size` bytes at `offset`; raises `BadDump`, naming `what`, when the file ends before."""
    found = source.bytes(offset, size)
    if found is None:
        raise BadDump(f"{source.path} is truncated or damaged: {what} should be {size} bytes at offset {offset:#x}, "
                      f"but the file has {source.size} bytes")  # fmt: skip
    return found


class MappedDump(MappedMemory):
    """A dump whose RAM lies uncompressed in the file: `ranges` are rows of (gpa, size, file offset), inside the file.

    Where rows overlap the earlier one is believed.
    """

    def __init__(self, file: DumpFile, ranges: I64, how: str, notices: Iterable[str] = (), notes: Notes | None = None):
        pieces = ((Run(a, n), file.data[at : at + n]) for a, n, at in disjoint(ranges).tolist())
        super().__init__(pieces, how=how, notices=notices)
        self.notes = notes or Notes()


def inside(file: DumpFile, ranges: Sequence[tuple[int, int, int]], notices: list[str], partial: bool) -> I64:
    """Those of `ranges` (gpa, size, file offset) that can be believed, cut at the file's end: (n, 3) int64.

    What is left out or cut is said in `notices`. Memory that the file should hold but does not is a `BadDump`, unless
    `partial` asks for what there is.
    """
    found: list[tuple[int, int, int]] = []
    missing: list[tuple[int, int]] = []
    for start, size, offset in ranges:
        if start + size > LIMIT:
            notices.append(f"left out {size:#x} bytes at {start:#x}: no such physical address can be")
            continue
        there = max(0, min(size, file.size - offset))
        if there:
            found.append((start, there, offset))
        if there < size:
            missing.append((start + there, start + size))
    if missing:
        total = sum(end - start for start, end in missing)
        start, end = missing[0]
        text = f"truncated: {total:#x} bytes of guest memory are not in it, the first at {start:#x}-{end - 1:#x}"
        if not partial:
            raise BadDump(f"{file.path} is {text}; make the dump again, or read the rest with partial=True")
        notices.append(text)
    if not found:
        raise BadDump(f"{file.path} has no guest memory in it")
    return np.array(found, np.int64)


def disjoint(ranges: I64) -> I64:
    """`ranges`, rows of (start, size, offset), ascending, without overlaps, joined where both sides go on: (n, 3).

    Where ranges overlap, the row that came first is kept. Sizes are positive and no end is over 2**63.
    """
    order = np.argsort(ranges[:, 0], kind="stable")
    rows = ranges[order]
    if (rows[1:, 0] < rows[:-1, 0] + rows[:-1, 1]).any():
        rows = _sweep(rows, order)
    ends = rows[:, 0] + rows[:, 1]
    joins = (rows[1:, 0] == ends[:-1]) & (rows[1:, 2] == rows[:-1, 2] + rows[:-1, 1])
    first = np.flatnonzero(np.concatenate(([True], ~joins)))
    last = np.concatenate((first[1:], [len(rows)])) - 1
    return np.stack((rows[first, 0], ends[last] - rows[first, 0], rows[first, 2]), axis=1)


def _sweep(rows: I64, order: I64) -> I64:
    """Cut overlaps, once over ascending `rows`; `order` ranks them. Each step ends a row or meets the next one."""
    out: list[tuple[int, int, int]] = []
    open_rows: list[tuple[int, int, int]] = []  # a heap of (rank, end, offset - start)
    here = 0
    nobody = (0, 1 << 63, 0, 0)
    for rank, start, size, offset in [*zip(order.tolist(), *rows.T.tolist(), strict=True), nobody]:
        upto = start if size else 1 << 63
        while open_rows and here < upto:
            _, end, delta = open_rows[0]
            if end <= here:
                heapq.heappop(open_rows)
                continue
            stop = min(end, upto)
            out.append((here, stop - here, here + delta))
            here = stop
        if size:
            here = start
            heapq.heappush(open_rows, (rank, start + size, offset - start))
    return np.array(out, np.int64)
