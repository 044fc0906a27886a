"""VMCOREINFO: the lines of text that a kernel leaves for those who read its crash dump.

Knows the format and where to look for it. What it says is a clue, not a proof: stale copies survive reboots, and two of
one length may lie in RAM. Checking one is left to the caller.

Source: kernel/crash_core.c and kernel/vmcore_info.c (since 6.9), Documentation/admin-guide/kdump/vmcoreinfo.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from vmi_inside.memory import PhysicalMemory
from vmi_inside.profile import find
from vmi_inside.types import PAGE_SIZE

_START: Final = b"OSRELEASE="
#: VMCOREINFO_BYTES: a page.
LIMIT: Final = PAGE_SIZE


def parse(raw: bytes | memoryview) -> dict[str, str]:
    """The lines `KEY=value` up to the first NUL. Empty when it does not begin as it should.

    Keys are as the kernel writes them: `OSRELEASE`, `BUILD-ID`, `KERNELOFFSET` (hexadecimal, without 0x),
    `SYMBOL(swapper_pg_dir)` (hexadecimal), `NUMBER(phys_base)` (decimal, may be negative).
    """
    text = bytes(raw[:LIMIT]).partition(b"\0")[0]
    if not text.startswith(_START):
        return {}
    lines = text.decode("ascii", "backslashreplace").split("\n")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def number(info: Mapping[str, str], key: str, base: int = 10) -> int | None:
    """One value as a number, or None when it is missing or no number. Symbols and KERNELOFFSET have `base` 16."""
    try:
        return int(info[key], base)
    except (KeyError, ValueError):
        return None


def read(memory: PhysicalMemory, pointer: int, translate: Callable[[int], int | None]) -> dict[str, str]:
    """The running kernel's own, through the pointer `vmcoreinfo_data`, which stands at the physical address `pointer`.

    `translate` turns a virtual address into a physical one or None. Empty where it cannot be reached.
    """
    raw = memory.read(pointer, 8)
    pa = translate(int.from_bytes(raw, "little")) if raw is not None else None
    page = memory.read(pa, LIMIT) if pa is not None else None
    return parse(page) if page is not None else {}


def scan(memory: PhysicalMemory) -> Iterator[tuple[int, dict[str, str]]]:
    """Every copy that starts at the start of a page, by reading all of RAM: physical address and lines."""
    for pa, _ in find.scan(memory, _START):
        page = memory.read(pa, LIMIT) if pa % PAGE_SIZE == 0 else None
        info = parse(page) if page is not None else {}
        if info:
            yield pa, info
