"""The kernel's code and constants, byte by byte, held against the image of the same build.

Knows which stretches of memory stand for which sections, and allows for what `patched` says that the kernel changes
itself; of the calls and jumps that it puts there, each must lead to code that somebody owns.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.errors import MemoryFault, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.patched import patched_places
from vmi_inside.linux.integrity.probes import kprobes
from vmi_inside.linux.integrity.reading import Reading, Stretch
from vmi_inside.profile.image import Image
from vmi_inside.types import U8, U64, Mask, distinct

#: Differences that are told one by one, and how far apart bytes of one difference are.
_ROWS: Final = 256
_NEAR: Final = 8
_SHOWN: Final = 16
_PROBE: Final = 5
_WRITTEN_ONCE: Final = ("__start_ro_after_init", "__end_ro_after_init")


class Expected:
    """What the kernel's memory should hold, by the image of its build. Raises `Unsupported` for another build's."""

    def __init__(self, kernel: Kernel, image: Image) -> None:
        self.kernel = kernel
        self.image = image
        if not {".text", ".rodata"} <= image.sections.keys():
            raise Unsupported(f"{image.name} has no sections .text and .rodata")
        banner = kernel.profile.banner.encode()
        if banner not in image.sections[".rodata"].data.tobytes():
            raise Unsupported(f"{image.name} is not the image of the kernel that runs: {kernel.profile.banner}")
        #: The code.
        self.text: U8 = image.relocated(".text", kernel.profile.slide)

    @cached_property
    def constants(self) -> U8:
        """The read-only data."""
        return self.image.relocated(".rodata", self.kernel.profile.slide)

    @cached_property
    def places(self) -> U64:
        """Offsets in the code of what the kernel patches."""
        return self._patched[0]

    @cached_property
    def may_differ(self) -> Mask:
        """Which bytes of the code the kernel may change."""
        offset, size = self._patched
        allowed = np.zeros(len(self.text) + int(size.max(initial=0)), dtype=np.bool_)
        for length in distinct(size).tolist():
            allowed[offset[size == length].astype(np.int64)[:, None] + np.arange(length)[None, :]] = True
        return allowed[: len(self.text)]

    @cached_property
    def _patched(self) -> tuple[U64, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        place, size = patched_places(self.kernel, self.image)
        offset = place - np.uint64(self.image.sections[".text"].address)
        inside = (offset < np.uint64(len(self.text))) & (size > 0)
        return offset[inside], size[inside]


def compared(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Bytes of the kernel's code and constants that are not as its image has them."""
    expected = reading.expected
    if expected is None:
        yield Finding("info", "image", detail="not compared: no image of this kernel was given (vmlinuz)")
        return
    slide = kernel.profile.slide
    start = expected.image.sections[".text"].address + slide
    code = Stretch(kernel, start, start + len(expected.text))
    allowed = expected.may_differ | _probed(kernel, start, len(expected.text))
    yield from _differences(reading, "code", code, expected.text, allowed)
    yield from _led_away(reading, code, expected)
    start = expected.image.sections[".rodata"].address + slide
    constants = Stretch(kernel, start, start + len(expected.constants))
    once = np.zeros(len(expected.constants), dtype=np.bool_)
    first, last = (kernel.profile.find_symbol(name) for name in _WRITTEN_ONCE)
    if first is not None and last is not None:
        once[max(first - start, 0) : max(last - start, 0)] = True
    yield from _differences(reading, "read-only data", constants, expected.constants, once)


def _probed(kernel: Kernel, start: int, size: int) -> Mask:
    """Which bytes of the code kprobes may have changed."""
    mask = np.zeros(size, dtype=np.bool_)
    try:
        rows, _ = kprobes(kernel)
    except (ProfileError, MemoryFault):
        return mask
    for address in rows.pointer("addr").tolist():
        if start <= address < start + size:
            mask[address - start : address - start + _PROBE] = True
    return mask


def _differences(reading: Reading, what: str, seen: Stretch, expected: U8, allowed: Mask) -> Iterator[Finding]:
    unread = np.flatnonzero(~seen.ok)
    if len(unread):
        yield Finding("medium", what, "pages that are there", f"{len(unread)} pages that could not be read",
                      fault="not all compared")  # fmt: skip
        allowed = allowed | np.repeat(~seen.ok, 4096)[seen.start & 4095 :][: len(expected)]
    other = np.flatnonzero((seen.data != expected) & ~allowed)
    first = np.flatnonzero(np.diff(other, prepend=-_NEAR - 1) > _NEAR)
    for row, at in enumerate(first[:_ROWS].tolist()):
        begin, end = int(other[at]), int(other[first[row + 1] - 1 if row + 1 < len(first) else -1]) + 1
        address = seen.start + begin
        symbol = reading.code.symbols(np.array([address], dtype=np.uint64))[0]
        shown = slice(begin, min(end, begin + _SHOWN))
        yield Finding(
            "critical", f"{what}: {symbol}", expected[shown].tobytes().hex(" "), seen.data[shown].tobytes().hex(" "),
            address, symbol, f"{end - begin} bytes differ from the image",
        )  # fmt: skip
    if len(first) > _ROWS:
        yield Finding("critical", what, "as in the image", f"{len(first)} stretches that differ", fault="not all told")


def _led_away(reading: Reading, code: Stretch, expected: Expected) -> Iterator[Finding]:
    """Calls and jumps, where the kernel may put some, that lead to what is nobody's."""
    at = expected.places.astype(np.int64)
    at = at[at + 5 <= len(code.data)]
    at = distinct(at[(code.data[at] == 0xE8) | (code.data[at] == 0xE9)])
    raw = np.ascontiguousarray(code.data[at[:, None] + np.arange(1, 5)[None, :]])
    place = np.uint64(code.start) + at.astype(np.uint64)
    target = place + np.uint64(5) + raw.view("<i4")[:, 0].astype(np.int64).view(np.uint64)
    away = np.flatnonzero(~code.holds(target))
    lost = away[reading.code.owners(target[away]) == ""]
    names, symbols = reading.code.symbols(place[lost]), reading.code.symbols(target[lost])
    for row, name, symbol in zip(lost.tolist(), names.tolist(), symbols.tolist(), strict=True):
        yield Finding(
            "critical", f"code: {name}", "a call or jump to code that somebody owns", f"{int(target[row]):#x}",
            int(place[row]), symbol,
        )  # fmt: skip
