"""RAM in NumPy arrays, page tables written into it, and a memory that counts how often it is asked.

Knows x86_64's table format from the writing side, independent of the walker under test.
"""

from __future__ import annotations

import random
import struct

import numpy as np

from vmi_inside.drivers.mapped import MappedMemory
from vmi_inside.memory import PhysicalMemory, Run
from vmi_inside.types import U8, U64, Mask

PRESENT, WRITE, USER, LARGE, NX = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63
#: Bits that hardware and kernels set in entries and a walker has to ignore: accessed, dirty, software's own, NX.
NOISE = (1 << 5) | (1 << 6) | (1 << 9) | (1 << 58) | NX
GIB = 1 << 30


class Ram:
    """Runs of RAM, by default one at 0 and one at 4 GiB; its frames are handed out in a random order."""

    def __init__(self, *sizes: tuple[int, int], seed: int = 1) -> None:
        self.runs = [Run(start, size) for start, size in sizes or ((0, 48 << 20), (4 * GIB, 48 << 20))]
        self.arrays = [np.zeros(run.size, dtype=np.uint8) for run in self.runs]
        self.memory = MappedMemory(zip(self.runs, self.arrays, strict=True))
        self.random = random.Random(seed)
        self._free: dict[int, list[int]] = {}
        blocks = [at for run in self.runs for at in range(run.start, run.end, 1 << 15)]
        self.random.shuffle(blocks)
        self._blocks = blocks

    def write(self, pa: int, data: bytes) -> None:
        for run, array in zip(self.runs, self.arrays, strict=True):
            if run.start <= pa and pa + len(data) <= run.end:
                array[pa - run.start : pa - run.start + len(data)] = np.frombuffer(data, np.uint8)
                return
        raise ValueError(f"no RAM at {pa:#x}")

    def frames(self, count: int = 1) -> int:
        """The address of `count` contiguous free frames, at most eight."""
        size = 4096 * count
        free = self._free.setdefault(size, [])
        if not free:
            block = self._blocks.pop()
            free.extend(range(block, block + (1 << 15) - size + 1, size))
            self.random.shuffle(free)
        return free.pop()


class PageTables:
    """Tables of 4 or 5 levels under one root, written entry by entry."""

    def __init__(self, ram: Ram, levels: int = 4) -> None:
        self.ram = ram
        self.levels = levels
        self.root = ram.frames()
        self._tables: dict[tuple[int, int], int] = {}

    def map(self, va: int, pa: int, level: int = 1) -> None:
        """Map the page at `va` to `pa`; of 4 KiB, 2 MiB or 1 GiB for a `level` of 1, 2, 3."""
        self.put(va, level, pa | PRESENT | NOISE | (LARGE if level > 1 else 0))

    def put(self, va: int, level: int, entry: int) -> None:
        """Write one entry of the table of `level` that `va` selects, making the tables above it."""
        table = self.root
        for here in range(self.levels, level, -1):
            key = (here, va >> self._shift(here))
            below = self._tables.get(key)
            if below is None:
                below = self._tables[key] = self.ram.frames()
                self._entry(table, va, here, below | PRESENT | WRITE | USER)
            table = below
        self._entry(table, va, level, entry)

    def share(self, other: PageTables) -> None:
        """Take over the upper half of another root, as every process has the kernel's."""
        half = self.ram.memory.read(other.root + 2048, 2048)
        assert half is not None
        self.ram.write(self.root + 2048, bytes(half))

    def _entry(self, table: int, va: int, level: int, entry: int) -> None:
        index = va >> self._shift(level) & 511
        self.ram.write(table + 8 * index, struct.pack("<Q", entry))

    @staticmethod
    def _shift(level: int) -> int:
        return 12 + 9 * (level - 1)


class CountingMemory:
    """A `PhysicalMemory` that passes everything on and counts it: rounds (`gathers`), rows in them, single `reads`."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self.gathers = self.rows = self.reads = 0

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.memory.runs

    def gather(self, pa: U64, out: U8) -> Mask:
        width = out.shape[1]
        assert not len(pa) or int(((pa & np.uint64(4095)) + np.uint64(width)).max()) <= 4096, "a row crosses a page"
        assert out.flags.c_contiguous
        self.gathers += 1
        self.rows += len(pa)
        return self.memory.gather(pa, out)

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        self.reads += 1
        return self.memory.read(pa, size)

    def reset(self) -> None:
        self.gathers = self.rows = self.reads = 0

    def close(self) -> None:
        self.memory.close()
