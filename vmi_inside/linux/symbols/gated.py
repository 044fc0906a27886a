"""What `vmi-inside deny` left in a kernel's text, for those who look at that text: a header, and the functions changed.

Knows where it lies and how it begins; the rules, and how it gets there, are `control.gates`'. A kernel's text that was
changed so was changed from outside, by the machine's own operator.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vmi_inside.errors import MemoryFault
from vmi_inside.kernel import Kernel
from vmi_inside.types import PAGE_SIZE, align_up

AREA_SIZE: Final = 6 * PAGE_SIZE
MAGIC: Final = b"vmi-gate"
#: Of these records. One who finds another leaves it alone.
VERSION: Final = 2
#: MAGIC, VERSION, rules, hooks, the offset of a spare word in task_struct, size of the code, what names the code.
HEADER: Final = struct.Struct("<8sIIIII8s")
HEADER_SIZE: Final = 64
#: Where five bytes were changed, and what stood there.
HOOK: Final = struct.Struct("<Q5s3x")
HOOK_LIMIT: Final = (PAGE_SIZE // 2 - HEADER_SIZE) // HOOK.size
#: Kernels fill their entry text up to this (arch/x86/kernel/vmlinux.lds.S, ALIGN_ENTRY_TEXT_END).
_LARGE: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class Gated:
    """The room that gates take, first and last address, and the original bytes of each place that leads there."""

    start: int
    end: int
    hooks: dict[int, bytes]


def area(kernel: Kernel) -> int | None:
    """Where gates are if there are any: at the end of the padding behind the entry text. None where there is none."""
    start = kernel.profile.find_symbol("__entry_text_end")
    return None if start is None else align_up(start, _LARGE) - AREA_SIZE


def gated(kernel: Kernel) -> Gated | None:
    """What stands there; None where nothing does that can be read. A guest can make this up like anything else."""
    base = area(kernel)
    if base is None:
        return None
    try:
        raw = kernel.space.read(base, PAGE_SIZE)
    except MemoryFault:
        return None
    magic, version, _, hooks, *_ = HEADER.unpack_from(raw)
    if magic != MAGIC or version != VERSION or hooks > HOOK_LIMIT:
        return None
    found = dict(HOOK.unpack_from(raw, HEADER_SIZE + at * HOOK.size) for at in range(hooks))
    return Gated(base, base + AREA_SIZE - 1, found)
