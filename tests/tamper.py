"""Make a lab guest lie: write its memory from outside, through its QEMU process, and put everything back.

The guest is paused while it lies, unless it is told to go on: what is written may be what it stands on. Only for guests
that nobody else looks at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.guest import LabGuest
from vmi_inside.drivers import qemu_layout
from vmi_inside.guest import Guest
from vmi_inside.types import PAGE_SIZE


class Tamper:
    """Writes to a guest's memory, and what stood there before."""

    def __init__(self, guest: LabGuest, seen: Guest) -> None:
        self.guest = guest
        self.kernel = seen.kernel
        self.space = seen.kernel.space
        argv = [os.fsdecode(word) for word in Path(f"/proc/{guest.pid}/cmdline").read_bytes().split(b"\0")[:-1]]
        maps = qemu_layout.parse_maps(Path(f"/proc/{guest.pid}/maps").read_text())
        layout = qemu_layout.layout(argv)
        self._extents = qemu_layout.extents(layout, qemu_layout.find(layout.blocks, maps))
        self._memory = os.open(f"/proc/{guest.pid}/mem", os.O_RDWR)
        self._before: list[tuple[int, bytes]] = []

    def physical(self, pa: int, data: bytes) -> None:
        """Write guest-physical memory; `data` lies in one page."""
        extent = next(one for one in self._extents if one.run.start <= pa < one.run.end)
        at = extent.address + pa - extent.run.start
        self._before.append((at, os.pread(self._memory, len(data), at)))
        assert os.pwrite(self._memory, data, at) == len(data)

    def write(self, va: int, data: bytes) -> None:
        """Write at an address of the kernel's."""
        while data:
            step = min(len(data), PAGE_SIZE - va % PAGE_SIZE)
            self.physical(self.space.translate_one(va), data[:step])
            va, data = va + step, data[step:]

    def word(self, va: int, value: int) -> None:
        self.write(va, (value & (1 << 64) - 1).to_bytes(8, "little"))

    def member(self, struct: str, at: int, *names: str) -> int:
        """The address of a member of the struct at `at`."""
        return at + self.kernel.struct(struct).member(*names).offset

    def unlink(self, node: int) -> None:
        """Take a node out of its `list_head`, as a rootkit does."""
        after, before = self.space.read_u64(node), self.space.read_u64(node + 8)
        self.word(before, after)
        self.word(after + 8, before)

    def restore(self) -> None:
        """Put back what stood there, the last write first."""
        while self._before:
            at, data = self._before.pop()
            assert os.pwrite(self._memory, data, at) == len(data)

    def close(self) -> None:
        os.close(self._memory)


@contextmanager
def lying(guest: LabGuest, seen: Guest) -> Iterator[Tamper]:
    """The guest, paused, to be written; restored and resumed in the end."""
    tamper = Tamper(guest, seen)
    guest.domain.suspend()
    try:
        yield tamper
    finally:
        try:
            tamper.restore()
        finally:
            guest.domain.resume()
            tamper.close()


@contextmanager
def going_on(guest: LabGuest) -> Iterator[None]:
    """Let a lying guest run for a while."""
    guest.domain.resume()
    try:
        yield
    finally:
        guest.domain.suspend()
