"""`struct page`: which page of memory one stands for.

Knows x86_64's virtual memory map (arch/x86/include/asm/pgtable_64_types.h, include/asm-generic/memory_model.h): one
array of `struct page` for all of memory, in the order of page frames. What a page is used for is left to others.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.errors import MemoryFault, NoSymbol
from vmi_inside.kernel import Kernel
from vmi_inside.types import PAGE_SHIFT, U64, Mask

#: Where the array begins on kernels that do not move it, by the levels of paging (__VMEMMAP_BASE_L4, _L5).
_FIXED: Final = {4: 0xFFFF_EA00_0000_0000, 5: 0xFFD4_0000_0000_0000}
#: Where the direct map of all memory begins on these (__PAGE_OFFSET_BASE_L4, _L5).
_DIRECT: Final = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}
#: MAXMEM of x86_64 with 5-level paging: 52 bits of physical address.
_FRAMES: Final = 1 << 40


class Pages:
    """The array of `struct page`, and the direct map beside it. Raises `NoMember` where `struct page` is not known."""

    def __init__(self, kernel: Kernel) -> None:
        levels = kernel.space.paging.levels
        #: Bytes of a `struct page`.
        self.size = kernel.struct("page").size
        #: Address of the first one.
        self.base = _variable(kernel, "vmemmap_base", _FIXED[levels])
        #: Where all memory is mapped, one to one.
        self.direct = _variable(kernel, "page_offset_base", _DIRECT[levels])

    def physical(self, page: U64) -> tuple[U64, Mask]:
        """Guest-physical addresses (n,) of the pages whose `struct page`s lie at `page` (n,); (n,) bool: which are one.

        What is no address of a `struct page` has address 0.
        """
        offset = page - np.uint64(self.base)
        frame = offset // np.uint64(self.size)
        ok: Mask = (frame * np.uint64(self.size) == offset) & (frame < np.uint64(_FRAMES))
        return np.where(ok, frame << np.uint64(PAGE_SHIFT), np.uint64(0)), ok


def _variable(kernel: Kernel, name: str, otherwise: int) -> int:
    """A base that CONFIG_RANDOMIZE_MEMORY keeps in a variable; it is a constant without."""
    try:
        return kernel.pointer(name)
    except (NoSymbol, MemoryFault):
        return otherwise
