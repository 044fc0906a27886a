"""Rights of the kernel's pages: nothing is writable and executable, its code and its constants are not writable.

The kernel looks for the first itself when it boots (CONFIG_DEBUG_WX, mm/ptdump.c); this looks now. What pages hold is
left to others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.mappings import Mappings
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.types import PAGE_SIZE, U64, Mask

#: Stretches that are not writable once the kernel has booted: first and last symbol, and what they are.
CONSTANT: Final = (("_text", "_etext", "code"), ("__start_rodata", "__end_rodata", "read-only data"))
#: Rows for one stretch: who opens all of the kernel's pages one by one fills no screen.
_ROWS: Final = 64


def page_rights(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Ranges that are writable and executable; pages of code and of constants that are writable or not mapped."""
    mappings = reading.mappings
    if not mappings.whole:
        yield Finding("info", "page tables", detail="not all was looked at: some tables could not be read")
    both = mappings.where(mappings.writable & mappings.executable)
    for start, last in list(zip(both.start.tolist(), both.last.tolist(), strict=True))[:_ROWS]:
        yield Finding(
            "high", "kernel memory", "not writable and executable at once",
            f"{last + 1 - start:#x} bytes that are both", start, _symbol(reading, start),
        )  # fmt: skip
    writable = mappings.where(mappings.writable)
    for first, behind, what in CONSTANT:
        start, end = kernel.profile.find_symbol(first), kernel.profile.find_symbol(behind)
        if start is None or end is None or start >= end:
            yield Finding("info", what, detail="not looked at: the kernel does not say where it lies")
            continue
        for at, size in _within(writable, start, end)[:_ROWS]:
            yield Finding("high", what, "not writable", f"{size:#x} bytes that are", at, _symbol(reading, at))
        pages = np.arange(start, end, PAGE_SIZE, dtype=np.uint64)
        alias, ok = _alias(reading, pages)
        for at in pages[ok & writable.hold(alias)].tolist()[:_ROWS]:
            yield Finding(
                "medium", what, "not writable where all of RAM is mapped", "a page that is", at, _symbol(reading, at)
            )


def _within(ranges: Mappings, start: int, end: int) -> list[tuple[int, int]]:
    """Where ranges lie in start..end: address and bytes."""
    low = np.maximum(ranges.start, np.uint64(start)).tolist()
    high = np.minimum(ranges.last, np.uint64(end - 1)).tolist()
    return [(first, last + 1 - first) for first, last in zip(low, high, strict=True) if first <= last]


def _alias(reading: Reading, pages: U64) -> tuple[U64, Mask]:
    """Where the same memory is mapped among all of RAM (n,), and which pages are mapped at all."""
    physical, ok = reading.kernel.space.translate(pages)
    return physical + np.uint64(reading.kernel.pointer("page_offset_base")), ok


def _symbol(reading: Reading, address: int) -> str:
    return str(reading.code.symbols(np.array([address], dtype=np.uint64))[0])
