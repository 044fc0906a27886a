"""A change that is gone through without being made, to know beforehand what it would write.

Knows what stands in the guest now, and nothing of pauses or the journal. Making changes is left to `transaction`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from vmi_inside.control.journal import Write
from vmi_inside.control.places import KERNEL, pieces
from vmi_inside.errors import ControlError
from vmi_inside.kernel import Kernel

_BYTES_LIMIT: Final = 1 << 20


class Changing(Protocol):
    """What changes something: a change that is made, or one that is gone through only."""

    kernel: Kernel

    def read(self, address: int, size: int, space: str = KERNEL) -> bytes:
        """What stands there."""
        ...

    def write(self, address: int, new: bytes, *, expect: bytes | None = None, space: str = KERNEL) -> None:
        """Write data."""
        ...

    def apply(
        self, writes: Iterable[tuple[int, bytes, bytes | None]], *, code: bool = False, space: str = KERNEL
    ) -> None:
        """Several writes of (address, new, expect) as one."""
        ...


class Rehearsal:
    """Goes through a change while the guest runs: `writes` are what it would write, `code` whether code is among it.

    What stands there by then may be other bytes: that is compared when the change is made.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.writes: list[Write] = []

    @property
    def code(self) -> bool:
        """Whether code would be written."""
        return any(one.code for one in self.writes)

    def read(self, address: int, size: int, space: str = KERNEL) -> bytes:
        """What stands there now. Raises `PageFault`, `NoMemory`."""
        where = pieces(self.kernel, space, address, size)
        return b"".join(bytes(self.kernel.space.memory.read(one.pa, one.end - one.start) or b"") for one in where)

    def write(self, address: int, new: bytes, *, expect: bytes | None = None, space: str = KERNEL) -> None:
        """See `Changing`."""
        self.apply([(address, new, expect)], space=space)

    def apply(
        self, writes: Iterable[tuple[int, bytes, bytes | None]], *, code: bool = False, space: str = KERNEL
    ) -> None:
        """See `Changing`. Raises `ControlError` for a write that is none, and what `read` raises."""
        for one in checked(writes, code=code, space=space):
            pieces(self.kernel, space, one.address, len(one.new), write=True)
            self.writes.append(Write(one.address, self.read(one.address, len(one.new), space), one.new, code, space))


def checked(writes: Iterable[tuple[int, bytes, bytes | None]], *, code: bool, space: str) -> list[Write]:
    """Writes of (address, new, expect); `old` is empty where nothing is expected. Raises `ControlError`."""
    found = []
    for address, new, expect in writes:
        found.append(Write(address, b"" if expect is None else expect, bytes(new), code, space))
        if not 0 < len(new) <= _BYTES_LIMIT or (expect is not None and len(expect) != len(new)):
            raise ControlError(f"a change at {address:#x} of {len(new)} bytes, where other than that many are expected")
    return found
