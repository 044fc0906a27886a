"""Guest-physical memory, read by batch.

Knows runs of RAM and rows of bytes. Page tables, kernels and the ways of reaching a guest are left to others.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vmi_inside.types import U8, U64, Mask


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """One contiguous range of guest RAM: `start` is a guest-physical address, `size` in bytes."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The first address behind the run."""
        return self.start + self.size


@runtime_checkable
class PhysicalMemory(Protocol):
    """What a driver gives: guest RAM, addressed by guest-physical address.

    Reads never raise for an address that holds no RAM: the batch form marks the row, the scalar form gives
    `None`. What they raise is `GuestGone`, when the guest behind the memory went away.
    """

    @property
    def runs(self) -> tuple[Run, ...]:
        """What RAM there is, ascending, disjoint, holes left out."""
        ...

    def gather(self, pa: U64, out: U8) -> Mask:
        """Read `out.shape[1]` bytes at each of the `n` addresses `pa` (n,) into the rows of `out` (n, width).

        `out` is C-contiguous. A row never crosses a page. Gives (n,) bool: False, and a zeroed row, where the
        memory could not be read.
        """
        ...

    def read(self, pa: int, size: int) -> bytes | memoryview | None:
        """`size` bytes at `pa` as one bytes-like object, or None when not all of it is readable RAM.

        `size` is not limited to a page. A view is into live memory where the driver maps it: zero-copy, and
        changing under the reader's eyes; take `bytes()` of it to keep it.
        """
        ...

    def close(self) -> None:
        """Release mappings and descriptors. Reading afterwards is a programming error."""
        ...


@runtime_checkable
class WritableMemory(PhysicalMemory, Protocol):
    """Guest RAM that can be written to, too. Memory that was not opened for it, and every dump, has no such thing.

    Writing raises `NoMemory` when not all of it is RAM, and then nothing was written, and `GuestGone`.
    """

    def write(self, pa: int, data: bytes) -> None:
        """Write `data` at `pa`. Of what lies in one page nothing is ever left half written."""
        ...

    def scatter(self, pa: U64, data: U8) -> None:
        """Write the rows of `data` (n, width) at the `n` addresses `pa`; first all of them are known to be RAM."""
        ...


@runtime_checkable
class Releasing(Protocol):
    """What mapped memory can do beside: give back the pages that reading brought into this process."""

    #: Bytes of guest RAM that may stay resident in this process, about; 0 for any number. Mapped RAM counts as our own
    #: memory, and reading again what was given back costs a page fault.
    resident_limit: int

    def release(self) -> None:
        """Let go of resident pages. They stay readable: the next reading brings them in again."""
        ...


@runtime_checkable
class Flat(Protocol):
    """What memory can do beside that is reached as it lies, and not page by page."""

    #: Whether rows of `gather` may cross pages, and be of any width. A row that could be read in two halves, but not in
    #: one, is marked as unreadable.
    flat: bool


@runtime_checkable
class Words(Protocol):
    """What mapped memory can do beside: give single numbers without making bytes of them, for walks of page tables."""

    def word(self, pa: int) -> int | None:
        """The little-endian 64-bit number at `pa`, a multiple of 8; None where `read` has to be asked.

        It does not look whether the guest is still there: a reading that ends with `read` does.
        """
        ...


@runtime_checkable
class Holding(Protocol):
    """What memory can do beside that is mapped piece by piece: keep the pieces for as long as one reading lasts."""

    def hold(self) -> AbstractContextManager[None]:
        """A block in which what was mapped stays mapped. Nests."""
        ...


@runtime_checkable
class Paravirtual(Protocol):
    """Memory of a guest whose page tables do not hold its own physical addresses, but its hypervisor's."""

    def entries(self, entry: U64) -> U64:
        """Page-table entries (any shape) as if they held the guest's own; those that map nothing of it become 0."""
        ...
