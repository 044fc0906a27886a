"""A real guest's RAM out of an ELF core, in memory of our own: it can be damaged, and made whole again.

Knows pages and physical addresses; and what a reading asks memory for, which is where damage is worth doing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.fuzz.watch import Violation
from vmi_inside.arch.paging import BY_LEVELS
from vmi_inside.drivers.mapped import MappedMemory
from vmi_inside.guest import Guest
from vmi_inside.kernel import Kernel
from vmi_inside.memory import PhysicalMemory, Run
from vmi_inside.profile.learn import Learned, learn
from vmi_inside.space import AddressSpace
from vmi_inside.types import U8, U64, Mask

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LOAD = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """One reading of memory: `width` bytes at each of the physical addresses `pa` (n,)."""

    pa: U64
    width: int


class WatchedMemory:
    """A `PhysicalMemory` that counts what is asked of it, keeps it in `asked` if wanted, and ends what goes too far.

    `rounds` counts gathers and single reads, `moved` bytes. Beyond `round_limit` and `byte_limit` it raises
    `Violation`.
    """

    def __init__(self, memory: PhysicalMemory, *, keep: bool = False) -> None:
        self.memory = memory
        self.asked: list[Asked] | None = [] if keep else None
        self.round_limit = self.byte_limit = 1 << 62
        self.rounds = self.moved = 0

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.memory.runs

    def gather(self, pa: U64, out: U8) -> Mask:
        if not out.flags.c_contiguous or out.shape[0] != len(pa):
            raise Violation("gather: rows and addresses do not match")
        if len(pa) and int(((pa & np.uint64(4095)) + np.uint64(out.shape[1])).max()) > 4096:
            raise Violation("gather: a row crosses a page")
        self._count(pa, out.shape[1])
        return self.memory.gather(pa, out)

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        if pa < 0 or size < 0:
            raise Violation(f"read: {size} bytes at {pa}")
        self._count(np.array([pa & (1 << 64) - 1], dtype=np.uint64), size)
        return self.memory.read(pa, size)

    def close(self) -> None:
        """The image outlives whoever reads it."""

    def _count(self, pa: U64, width: int) -> None:
        self.rounds += 1
        self.moved += len(pa) * width
        if self.rounds > self.round_limit or self.moved > self.byte_limit:
            raise Violation(f"went on: {self.rounds} rounds of reading, {self.moved} bytes")
        if self.asked is not None and len(pa):
            self.asked.append(Asked(pa.copy(), width))


class Image:
    """The guest in the ELF core at `path`. `learned` is what its undamaged memory tells."""

    def __init__(self, path: Path) -> None:
        self.name = path.name.removesuffix(".core")
        runs, arrays = _segments(path)
        self.size = sum(run.size for run in runs)
        self._runs, self._arrays = runs, arrays
        self.memory = MappedMemory(zip(runs, arrays, strict=True))
        self.learned: Learned = learn(self.memory)
        self._before: list[tuple[NDArray[np.uint8], bytes]] = []

    def kernel(self, memory: PhysicalMemory | None = None) -> Kernel:
        """A kernel that remembers nothing, over this memory."""
        space = AddressSpace(memory or self.memory, BY_LEVELS[self.learned.levels], self.learned.root)
        return Kernel(space, self.learned.profile)

    def guest(self, memory: PhysicalMemory | None = None) -> Guest:
        """A guest as `attach` makes it; closing it leaves the image as it is."""
        return Guest(self.name, WatchedMemory(memory or self.memory), self.learned, live=False)

    def damage(self, pa: int, data: bytes) -> None:
        """Write over guest memory; where there is none, nothing happens."""
        for run, array in zip(self._runs, self._arrays, strict=True):
            if run.start <= pa < run.end:
                place = array[pa - run.start : pa - run.start + len(data)]
                self._before.append((place, place.tobytes()))
                place[:] = np.frombuffer(data, np.uint8)[: len(place)]
                return

    def repair(self) -> None:
        """Undo all damage."""
        while self._before:
            place, data = self._before.pop()
            place[:] = np.frombuffer(data, np.uint8)


def _segments(path: Path) -> tuple[list[Run], list[U8]]:
    """The runs of RAM of an ELF core, each a private, writable mapping of the file."""
    with open(path, "rb") as file:
        fields = _HEADER.unpack(file.read(_HEADER.size))
        file.seek(fields[5])
        raw = file.read(fields[10] * _SEGMENT.size)
    runs: list[Run] = []
    arrays: list[U8] = []
    # The kernel's image is a segment of its own, too, of the same bytes in the file: the larger one counts.
    for kind, _, offset, _, pa, size, _, _ in sorted(_SEGMENT.iter_unpack(raw), key=lambda one: -one[5]):
        if kind == _LOAD and size and not any(run.start < pa + size and pa < run.end for run in runs):
            runs.append(Run(pa, size))
            arrays.append(np.memmap(path, np.uint8, "c", offset, size).view(np.ndarray))
    return runs, arrays
