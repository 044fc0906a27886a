"""Where a Linux kernel's image may lie in guest RAM, without registers and without reading all of it.

Knows what a kernel's banner looks like and where it stands. A banner alone proves nothing: copies of it lie in the
kernel log, and old kernels may have survived a reboot. Believing one is left to `learn`.

Source: x86_64 kernels are loaded at a multiple of 2 MiB (CONFIG_PHYSICAL_ALIGN, arch/x86/Kconfig), and their .rodata
starts at one as well (arch/x86/kernel/vmlinux.lds.S). init/version.c is linked first, so that a banner stands in the
first bytes of .rodata: seen at 0xe0 to 0x200 from 5.10 to 7.2. Since 6.1 that is a spare copy; the symbol
`linux_banner` is another one, some MiB behind it (init/version-timestamp.c).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.memory import PhysicalMemory, Releasing
from vmi_inside.types import PAGE_SIZE, U64, align_down, align_up

#: Kernel images start, and so do their .rodata, at a multiple of this.
SLOT: Final = 2 << 20
#: From a place in the kernel's text to its .rodata is not farther.
_NEAR: Final = 64 << 20

_START: Final = b"Linux version "
_BANNER: Final = re.compile(rb"Linux version (\S{1,64}) \([^\n\0]{1,960}\n\0")
BANNER_LIMIT: Final = 1040  # bytes that a banner takes at the most
_BATCH: Final = 512  # slots looked at in one gather: a GiB of RAM
_CHUNK: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Banner:
    """A banner in guest RAM: `pa` is where it stands, `text` all of it with its newline."""

    pa: int
    text: bytes

    @property
    def release(self) -> str:
        """What `uname -r` says."""
        return self.text.split(b" ", 3)[2].decode("ascii", "backslashreplace")


def match(raw: bytes | memoryview, pa: int) -> Iterator[Banner]:
    """The banners in `raw`, which was read at `pa`. The format string of /proc/version is none."""
    for hit in _BANNER.finditer(raw):
        yield Banner(pa + hit.start(), hit.group()[:-1])


def near(memory: PhysicalMemory, hint: int) -> Iterator[Banner]:
    """Banners at the start of the 2 MiB slots at and behind the physical address `hint`, a place in a kernel's text."""
    start = align_down(hint, SLOT)
    yield from _slots(memory, np.arange(start, start + _NEAR, SLOT, dtype=np.uint64))


def everywhere(memory: PhysicalMemory) -> Iterator[Banner]:
    """Banners at the start of every 2 MiB slot of RAM, ascending: one page in 512 is read."""
    starts = [np.arange(align_up(run.start, SLOT), run.end, SLOT, dtype=np.uint64) for run in memory.runs]
    slots = np.concatenate(starts) if starts else np.zeros(0, np.uint64)  # dumps may have many short runs
    for at in range(0, len(slots), _BATCH):
        yield from _slots(memory, slots[at : at + _BATCH])
        if isinstance(memory, Releasing):
            memory.release()  # the kernel maps pages around each that was looked at: gigabytes on a large guest


def _slots(memory: PhysicalMemory, pa: U64) -> Iterator[Banner]:
    rows = np.empty((len(pa), PAGE_SIZE), np.uint8)
    memory.gather(pa, rows)
    text = rows.tobytes()
    at = text.find(_START)
    while at >= 0:
        row = at // PAGE_SIZE
        yield from match(text[at : min(at + BANNER_LIMIT, (row + 1) * PAGE_SIZE)], int(pa[row]) + at % PAGE_SIZE)
        at = text.find(_START, at + 1)


def region(memory: PhysicalMemory, pa: int, size: int) -> bytes | memoryview | None:
    """`size` bytes from the page-aligned `pa` on, zeros where pages are missing; None where all of them are.

    Less than `size` at the end of RAM. Dumps leave pages out.
    """
    size = min(size, max((run.end for run in memory.runs), default=0) - pa)
    whole = memory.read(pa, size) if size > 0 else None
    if whole is not None or size <= 0:
        return whole
    rows = np.empty((align_up(size, PAGE_SIZE) // PAGE_SIZE, PAGE_SIZE), np.uint8)
    there = memory.gather(np.arange(pa, pa + size, PAGE_SIZE, dtype=np.uint64), rows)
    return rows.reshape(-1)[:size].data if there.any() else None


def scan(memory: PhysicalMemory, *needles: bytes) -> Iterator[tuple[int, bytes]]:
    """All of RAM at memory speed, 4 MiB at a time: where each of `needles` stands, with the `BANNER_LIMIT` bytes there.

    The last resort: on a guest whose RAM is not all in use it makes the host provide the rest.
    """
    for run in memory.runs:
        for start in range(run.start, run.end, _CHUNK):
            size = min(_CHUNK, run.end - start)
            raw = memory.read(start, min(size + BANNER_LIMIT, run.end - start))
            if raw is None:
                continue
            text = bytes(raw)
            for needle in needles:
                at = text.find(needle, 0, size + len(needle) - 1)
                while at >= 0:
                    yield start + at, text[at : at + BANNER_LIMIT]
                    at = text.find(needle, at + 1, size + len(needle) - 1)


def all_banners(memory: PhysicalMemory) -> Iterator[Banner]:
    """Banners wherever they stand, by reading all of RAM."""
    for pa, text in scan(memory, _START):
        for banner in match(text, pa):
            if banner.pa == pa:
                yield banner
