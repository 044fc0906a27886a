"""What a debugger needs to know of a kernel to open a dump of its memory.

Knows the text that kernels keep for those who dump them (VMCOREINFO: kernel/vmcore_info.c, kernel/crash_core.c before
6.9), and where they map all memory and themselves. What a dump's file looks like is left to `corefile`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmi_inside.errors import MemoryFault, NoSymbol
from vmi_inside.kernel import Kernel
from vmi_inside.linux.pages import Pages

#: VMCOREINFO_BYTES is a page.
_LIMIT: Final = 1 << 12
_IMAGE_LIMIT: Final = 1 << 30  # KERNEL_IMAGE_SIZE


@dataclass(frozen=True, slots=True)
class Mapped:
    """`size` bytes at the virtual address `va` that are mapped to adjoining physical ones from `pa` on."""

    va: int
    pa: int
    size: int


def vmcoreinfo(kernel: Kernel) -> bytes:
    """The text that the running kernel made at boot; empty where it keeps none (CONFIG_VMCORE_INFO), or it is damaged.

    It need not have told its hypervisor of it: no `-device vmcoreinfo` is needed.
    """
    try:
        at = kernel.pointer("vmcoreinfo_data")
        size = kernel.number(8, "vmcoreinfo_size")
        text = kernel.space.read(at, size) if 0 < size <= _LIMIT else b""
    except (NoSymbol, MemoryFault):
        return b""
    return text if text.startswith(b"OSRELEASE=") else b""


def direct_map(kernel: Kernel) -> int:
    """The virtual address at which all memory is mapped, one to one."""
    return Pages(kernel).direct


def image(kernel: Kernel) -> Mapped | None:
    """The kernel's own image, from `_text` to `_end`; None where that cannot be told."""
    start, end = kernel.profile.origin, kernel.profile.find_symbol("_end") or 0
    try:
        pa = kernel.space.translate_one(start)
    except MemoryFault:
        return None
    return Mapped(start, pa, end - start) if 0 < end - start <= _IMAGE_LIMIT else None
