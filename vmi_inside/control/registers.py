"""The registers of all vCPUs as a table.

Knows which of them point into the kernel's code. Reading them is left to `vcpus`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vmi_inside.control.vcpus import Vcpus
from vmi_inside.kernel import Kernel
from vmi_inside.table import Table, Text, text
from vmi_inside.types import I64, U64


class Registers(Table):
    """One row for each register of each vCPU."""

    vcpu: I64
    register: Text  # gdb's names
    value: U64
    symbol: Text  # of the kernel's, where the value is an address in its image


def registers(kernel: Kernel, vcpus: Vcpus, which: Iterable[int] | None = None) -> Registers:
    """The registers of these vCPUs, or of all, at one moment: the guest is paused for it."""
    rows: list[tuple[int, str, int, str]] = []
    with vcpus.debugger() as debugger:
        count = len(debugger.threads)
        for vcpu in range(count) if which is None else sorted(set(which)):
            for name, value in debugger.registers(vcpu).items() if 0 <= vcpu < count else ():
                found = kernel.profile.symbol_at(value)
                shown = "" if found is None else f"{found[0]}+{found[1]:#x}" if found[1] else found[0]
                rows.append((vcpu, name, value, shown))
    return Registers({
        "vcpu": np.array([row[0] for row in rows], dtype=np.int64),
        "register": text(row[1] for row in rows),
        "value": np.array([row[2] for row in rows], dtype=np.uint64),
        "symbol": text(row[3] for row in rows),
        "fault": text("" for _ in rows),
    })  # fmt: skip
