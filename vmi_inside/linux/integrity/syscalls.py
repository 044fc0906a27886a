"""System-call tables: each entry must be the start of a function of the kernel's that is called after a system call.

Knows `sys_call_table` and its sisters for 32-bit and x32 callers (arch/x86/entry). Since 6.9 (and in updates of older
kernels) calls go through the code of `x64_sys_call`, which the check `functions` looks at, and the tables only tell
tracers; they are held to the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.types import U64

TABLES: Final = ("sys_call_table", "ia32_sys_call_table", "x32_sys_call_table")
#: A table is not believed to be longer: the highest number was 472 in 7.2, x32's end at 547.
_ENTRY_LIMIT: Final = 4096
_NAMED: Final = ("__x64_sys_", "__ia32_sys_", "__ia32_compat_sys_", "__x32_compat_sys_", "__x64_compat_sys_", "sys_",
                 "__do_sys_", "compat_sys_")  # fmt: skip
_NOT_IMPLEMENTED: Final = "sys_ni_syscall"
#: x32's own numbers begin here, and lead to functions that others have, too.
_X32: Final = 512


def system_calls(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Entries that lead out of the kernel's code, into no system call, or to where another entry leads, too."""
    for table in TABLES:
        start = kernel.profile.find_symbol(table)
        if start is not None:
            yield from _table(reading, table, start)
    yield Finding("info", "MSR_LSTAR", detail="not looked at: it is in the vCPUs' registers, not in memory")


def _table(reading: Reading, table: str, start: int) -> Iterator[Finding]:
    objects = reading.objects
    after = int(objects[min(int(objects.searchsorted(np.uint64(start), "right")), len(objects) - 1)])
    count = min(max(after - start, 0) // 8, _ENTRY_LIMIT)
    entry: U64 = np.frombuffer(reading.read(start, 8 * count), "<u8")
    used = np.flatnonzero(entry)
    entry = entry[: int(used[-1]) + 1 if len(used) else 0]  # what is behind fills up a cache line
    owners, symbols = reading.code.owners(entry), reading.code.symbols(entry)
    first: dict[str, int] = {}
    for number, (owner, symbol) in enumerate(zip(owners.tolist(), symbols.tolist(), strict=True)):
        name, at = f"{table}[{number}]", start + 8 * number
        if owner != "kernel":
            yield Finding(
                "critical", name, "code of the kernel", f"{int(entry[number]):#x}, {owner or 'nobody'}'s", at, symbol
            )
        elif "+" in symbol or not symbol.startswith(_NAMED):
            yield Finding("critical", name, "the start of a system call's function", symbol, at, symbol)
        elif not symbol.endswith(_NOT_IMPLEMENTED) and number < _X32 and table == TABLES[0]:
            other = first.setdefault(symbol, number)
            if other != number:
                yield Finding("high", name, "a function of its own", f"the same as {table}[{other}]", at, symbol)
