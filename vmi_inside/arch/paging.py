"""Paging as data: how an architecture splits a virtual address and marks its table entries.

Knows the formats only. Walking a table is `space`'s, reading it a driver's.

Source: Intel SDM volume 3A chapter 4 (4-level, 5-level).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class Paging:
    """One paging mode.

    `splits` are the index bits of each level, root first; `large` the levels (1 is the leaf table) at which an entry
    with `large_bit` maps memory itself. `address` selects an entry's physical address; `canonical` is the number of
    meaningful bits of a virtual address, sign-extended above.
    """

    name: str
    splits: tuple[int, ...]
    page_shift: int
    entry_size: int
    present: int
    large_bit: int
    large: tuple[int, ...]
    address: int
    canonical: int

    @property
    def levels(self) -> int:
        """How many tables a walk reads at the most."""
        return len(self.splits)

    def shift(self, level: int) -> int:
        """The lowest virtual-address bit that indexes the table of `level`, 1 being the leaf table."""
        return self.page_shift + sum(self.splits[self.levels - level + 1 :])


X86_64: Final = Paging(
    name="x86_64, 4-level",
    splits=(9, 9, 9, 9),
    page_shift=12,
    entry_size=8,
    present=1 << 0,
    large_bit=1 << 7,
    large=(3, 2),
    address=0x000F_FFFF_FFFF_F000,
    canonical=48,
)
X86_64_LA57: Final = replace(X86_64, name="x86_64, 5-level", splits=(9, 9, 9, 9, 9), canonical=57)

BY_LEVELS: Final = {4: X86_64, 5: X86_64_LA57}
