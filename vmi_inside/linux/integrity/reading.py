"""What several detectors need, read once: the code's owners, the kernel's mappings, its text, its tasks.

Knows no check. A reading is of one moment; to look again, make a new one.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.mappings import Mappings, kernel_mappings
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.tasks import PIDTYPE_TGID, Pids, pids
from vmi_inside.structs import Structs
from vmi_inside.types import I64, PAGE_SIZE, U8, U64, Mask

if TYPE_CHECKING:
    from vmi_inside.linux.integrity.compared import Expected

#: No stretch of the kernel's image is believed to be longer.
IMAGE_LIMIT: Final = 256 << 20


class Stretch:
    """One piece of the kernel's image: `start`, its bytes, and which of its pages could be read."""

    def __init__(self, kernel: Kernel, start: int, end: int) -> None:
        low = start & ~(PAGE_SIZE - 1)
        count = (min(end - low, IMAGE_LIMIT) + PAGE_SIZE - 1) // PAGE_SIZE
        pages = np.uint64(low) + np.uint64(PAGE_SIZE) * np.arange(count, dtype=np.uint64)
        raw, self.ok = kernel.space.gather(pages, PAGE_SIZE)
        self.start = start
        self.data: U8 = raw.ravel()[start - low : end - low]

    @property
    def words(self) -> U64:
        """Its 64-bit words (n,); it starts at a multiple of 8."""
        whole: U64 = self.data[: len(self.data) & ~7].view("<u8")
        return whole

    def holds(self, address: U64) -> Mask:
        """Which addresses (n,) lie in it."""
        inside: Mask = (address - np.uint64(self.start)) < np.uint64(len(self.data))
        return inside


class Reading:
    """What detectors share; each part is read when first asked for."""

    def __init__(self, kernel: Kernel, expected: Expected | None = None) -> None:
        self.kernel = kernel
        #: What an image of the kernel says that its memory holds, where one was given.
        self.expected = expected

    @cached_property
    def code(self) -> Code:
        """Whose code lies where."""
        return Code(self.kernel)

    @cached_property
    def mappings(self) -> Mappings:
        """All that the kernel's page tables map."""
        return kernel_mappings(self.kernel.space)

    @cached_property
    def executable(self) -> Mappings:
        """The executable ranges of these."""
        return self.mappings.where(self.mappings.executable)

    @cached_property
    def pids(self) -> Pids:
        """The PID IDR."""
        return pids(self.kernel)

    @cached_property
    def processes(self) -> tuple[I64, Structs]:
        """Numbers and tasks of all processes, with what most checks ask of them."""
        number, _, tasks = self.pids.tasks(self.kernel, PIDTYPE_TGID)
        tasks.fetch("tgid", "comm", "flags", "mm", "real_cred", "cred", "real_parent", "files", "exit_state")
        return number, tasks

    @cached_property
    def text(self) -> Stretch:
        """The kernel's code. Raises `NoSymbol`."""
        return Stretch(self.kernel, self.kernel.symbol("_stext", "_text"), self.kernel.symbol("_etext"))

    @cached_property
    def functions(self) -> U64:
        """Where a symbol of the kernel's code stands (n,), ascending, each address once."""
        address = self._placed("tTwW")
        start, end = self.kernel.symbol("_stext", "_text"), self.kernel.symbol("_etext")
        return address[(address >= np.uint64(start)) & (address < np.uint64(end))]

    @cached_property
    def objects(self) -> U64:
        """Where any symbol of the kernel's image stands (n,), ascending, each address once."""
        return self._placed("")

    def _placed(self, kinds: str) -> U64:
        symbols = self.kernel.profile.symbols
        value = symbols.values[symbols.fixed :]  # ascending
        if kinds:
            letter = np.zeros(256, dtype=np.bool_)
            letter[np.frombuffer(kinds.encode(), np.uint8)] = True
            value = value[letter[symbols.text[symbols.starts[:-1][symbols.fixed :]]]]
        first = np.ones(len(value), dtype=np.bool_)
        np.not_equal(value[1:], value[:-1], out=first[1:])
        placed: U64 = value[first].astype(np.uint64) + np.uint64(self.kernel.profile.origin)
        return placed

    def unowned(self, address: U64) -> NDArray[np.intp]:
        """The rows of the addresses (n,) that can be executed, and are nobody's code."""
        rows = np.flatnonzero(self.executable.hold(address))
        nobody: NDArray[np.intp] = rows[self.code.owners(address[rows]) == ""]
        return nobody

    def read(self, address: int, size: int) -> bytes:
        """Bytes at an address, zeros where it cannot be read."""
        got = ragged.gather(self.kernel.space, np.array([address], dtype=np.uint64), np.array([size]))
        return got.row(0)
