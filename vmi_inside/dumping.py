"""Dumps of a guest's memory: ELF cores with VMCOREINFO, raw images, LiME.

Knows what these files look like, and how memory gets out of a guest quickly: in large pieces, each read while the one
before is written. How a file is written is `sink`'s, what stands before memory in a core `corefile`'s knowledge;
whether the guest stands still, the caller's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from vmi_inside import corefile
from vmi_inside.kernel import Kernel
from vmi_inside.memory import PhysicalMemory, Releasing, Run
from vmi_inside.sink import Sink
from vmi_inside.types import PAGE_SHIFT, PAGE_SIZE, U8, U64

FORMATS: Final = ("elf", "raw", "lime")

Progress = Callable[[int, int], None]
Registers = Mapping[str, int]

_STEP: Final = 4 << 20  # bytes that are read at once
_RELEASED: Final = 64 << 20  # bytes after which mapped memory is let go of
#: LiME, version 1: magic, version, first and last address.
_LIME: Final = struct.Struct("<4sIQQ8x")


@dataclass(slots=True)
class Dumped:
    """What became a file: of `memory` bytes `zeros` are holes, and `missing` could not be read and are zeros too.

    `size` is the file's length, `stored` what it takes on disk; `checksum` is the file's, made by `algorithm`.
    `paused` are the seconds for which the guest was kept standing. `vcpus` of them have their registers in it.
    """

    path: str
    format: str
    memory: int = 0
    zeros: int = 0
    missing: int = 0
    size: int = 0
    stored: int = 0
    checksum: str = ""
    algorithm: str = "sha256"
    seconds: float = 0.0
    paused: float = 0.0
    vcpus: int = 0
    vmcoreinfo: bool = False
    notices: list[str] = field(default_factory=list)


def write_dump(
    kernel: Kernel, sink: Sink, made: Dumped, *, registers: Sequence[Registers] = (), progress: Progress | None = None
) -> None:
    """Write all of the guest's memory in the format `made.format`, and into `made` what was written.

    `registers` are those of each vCPU, by gdb's names, for a core. Raises `GuestGone`, OSError.
    """
    memory, told = kernel.space.memory, progress or (lambda done, total: None)
    runs = memory.runs
    total = sum(run.size for run in runs)
    if made.format == "elf":
        header = corefile.header(kernel, runs, registers)
        made.vcpus, made.vmcoreinfo = len(registers), header.vmcoreinfo
        if not header.vmcoreinfo:
            made.notices.append("the kernel keeps no VMCOREINFO: crash and drgn will not know the dump")
        sink.write(header.data)
    end = 0
    for run in runs:
        if made.format == "lime":
            sink.write(_LIME.pack(b"EMiL", 1, run.start, run.end - 1))
        elif made.format == "raw":
            sink.zeros(run.start - end)
            end = run.end
        for data in _pieces(memory, run, made):
            made.zeros += sink.memory(data)
            made.memory += len(data)
            told(made.memory, total)
        if made.format == "elf":
            sink.zeros(-run.size % PAGE_SIZE)
    if made.missing:
        made.notices.append(f"{made.missing:#x} bytes could not be read; zeros stand for them")


def _pieces(memory: PhysicalMemory, run: Run, made: Dumped) -> Iterator[U8]:
    """A run's bytes, piece by piece; each is read while the one before is written. A piece is lost with the next."""
    rooms = [np.empty(min(_STEP, run.size), np.uint8) for _ in range(2)]
    # A piece ends where a page does, and rows of pages can be gathered.
    edges = [run.start, *range((run.start & ~(PAGE_SIZE - 1)) + _STEP, run.end, _STEP), run.end]
    with ThreadPoolExecutor(1) as pool:
        reading: Future[int] | None = None
        filled: U8 | None = None
        since = 0
        for number, (start, end) in enumerate(pairwise(edges)):
            if reading is not None:
                made.missing += reading.result()
            room = rooms[number & 1][: end - start]
            reading = pool.submit(_fill, memory, start, room)
            if filled is not None:
                yield filled
            filled = room
            since += end - start
            if since >= _RELEASED and isinstance(memory, Releasing):
                memory.release()
                since = 0
        if reading is not None and filled is not None:
            made.missing += reading.result()
            yield filled


def _fill(memory: PhysicalMemory, start: int, room: U8) -> int:
    """Memory from `start` on as it is now into `room` (n,) uint8; gives how many bytes could not be read: zeros."""
    head = min(-start % PAGE_SIZE, len(room))
    tail = (len(room) - head) % PAGE_SIZE
    missing = _part(memory, start, room[:head]) + _part(memory, start + len(room) - tail, room[len(room) - tail :])
    rows = room[head : len(room) - tail].reshape(-1, PAGE_SIZE)
    pa: U64 = np.arange(start + head, start + head + rows.size, PAGE_SIZE, dtype=np.uint64)
    ok = memory.gather(pa, rows)
    return missing + (int(len(ok) - np.count_nonzero(ok)) << PAGE_SHIFT)


def _part(memory: PhysicalMemory, start: int, room: U8) -> int:
    """The same for less than a page."""
    found = memory.read(start, len(room)) if len(room) else b""
    room[:] = np.frombuffer(found, np.uint8) if found else 0
    return len(room) if found is None else 0
