"""The interrupt descriptor table: each gate must lead into the kernel's code.

Knows `idt_table` and `struct gate_struct` (arch/x86/include/asm/desc_defs.h). Which table a CPU uses stands in its
register IDTR, which memory does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.reading import Reading

_GATES: Final = 256
_PRESENT: Final = np.uint64(1 << 47)
#: Gates of vectors that never come are left as they were while the kernel booted; that code is gone.
_EARLY: Final = "early_idt_handler_array"


def interrupt_gates(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Gates that lead out of the kernel's code."""
    start = kernel.symbol("idt_table")
    raw = np.frombuffer(reading.read(start, 16 * _GATES), "<u8").reshape(-1, 2)
    low, high = raw[:, 0], raw[:, 1]
    target = (low & np.uint64(0xFFFF)) | (low >> np.uint64(48) << np.uint64(16)) | (high << np.uint64(32))
    owners = reading.code.owners(target)
    away = np.flatnonzero((low & _PRESENT != 0) & (owners != "kernel"))
    for vector, symbol in zip(away.tolist(), reading.code.symbols(target[away]).tolist(), strict=True):
        if not symbol.startswith(_EARLY):
            yield Finding(
                "critical", f"idt_table[{vector}]", "code of the kernel",
                f"{int(target[vector]):#x}, {owners[vector] or 'nobody'}'s", start + 16 * vector, symbol,
            )  # fmt: skip
