"""The places in a kernel's code that the kernel itself changes when it boots and while it runs, by its image's tables.

Knows alternatives, paravirtual calls, retpolines, return thunks, locks, landing pads, run-time constants (sections of
the image), jump labels, static calls and ftrace's places (between symbols). Each entry of a table holds a place, mostly
as the distance from itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.profile.image import Image
from vmi_inside.types import I64, U8, U64

#: Sections of 4-byte distances, and how many bytes there may change: the instruction, with its prefixes.
_SITES: Final = {
    ".retpoline_sites": 6, ".return_sites": 5, ".call_sites": 5, ".ibt_endbr_seal": 4, ".smp_locks": 1,
}  # fmt: skip
#: Sections of run-time constants (6.11): addresses and counts in the code.
_CONSTANTS: Final = {"runtime_ptr_": 8, "runtime_shift_": 1}
_CALL: Final = 5
#: Tables between symbols: size of an entry, and how many bytes may change.
_TABLES: Final = {
    ("__start___jump_table", "__stop___jump_table"): (16, _CALL),
    ("__start_static_call_sites", "__stop_static_call_sites"): (8, _CALL),
}  # fmt: skip
#: Calls in ftrace's own code, which lead to whoever traces (arch/x86/kernel/ftrace_64.S).
_TRACERS: Final = ("ftrace_call", "ftrace_regs_call", "ftrace_graph_call")
_TRAMPOLINES: Final = {"__SCT__": 8, "bpf_dispatcher_": 16}


def patched_places(kernel: Kernel, image: Image) -> tuple[U64, I64]:
    """Link addresses (n,) of places that may differ from the image, and how many bytes of each."""
    places, sizes = zip(*_places(kernel, image), strict=True)
    return np.concatenate(places), np.concatenate(sizes)


def _places(kernel: Kernel, image: Image) -> Iterator[tuple[U64, I64]]:
    for name, section in image.sections.items():
        size = _SITES.get(name) or next((size for start, size in _CONSTANTS.items() if name.startswith(start)), 0)
        if size:
            yield _all(_relative(section.data, section.address, 4), size)
    yield from _alternatives(kernel, image)
    paravirtual = image.sections.get(".parainstructions")
    if paravirtual is not None:
        rows = _rows(paravirtual.data, 16)  # struct paravirt_patch_site: address, type, length
        yield _words(rows[:, :8]), rows[:, 9].astype(np.int64)
    slide = kernel.profile.slide
    for bounds, (width, size) in _TABLES.items():
        found = _between(kernel, image, *bounds)
        if found is not None:
            yield _all(_relative(found[1], found[0], width), size)
    traced = _between(kernel, image, "__start_mcount_loc", "__stop_mcount_loc")
    if traced is not None:
        yield _all(_words(_rows(traced[1], 8)), _CALL)
    calls = [at - slide for at in map(kernel.profile.find_symbol, _TRACERS) if at is not None]
    yield _all(np.array(calls, dtype=np.uint64), _CALL)
    for prefix, size in _TRAMPOLINES.items():
        named = [address - slide for _, address in kernel.profile.symbols_like(prefix)]
        yield _all(np.array(named, dtype=np.uint64), size)


def _alternatives(kernel: Kernel, image: Image) -> Iterator[tuple[U64, I64]]:
    """`struct alt_instr` (arch/x86/include/asm/alternative.h), whose shape the kernel's own types tell."""
    section, ctype = image.sections.get(".altinstructions"), kernel.find_struct("alt_instr")
    if section is not None and ctype is not None:
        rows = _rows(section.data, ctype.size)
        length = rows[:, ctype.member("instrlen").offset].astype(np.int64)
        yield _relative(section.data, section.address, ctype.size), length


def _between(kernel: Kernel, image: Image, first: str, last: str) -> tuple[int, U8] | None:
    """The table between two symbols: its link address and its bytes."""
    start, end = kernel.profile.find_symbol(first), kernel.profile.find_symbol(last)
    if start is None or end is None:
        return None
    data = image.at(start - kernel.profile.slide, end - kernel.profile.slide)
    return None if data is None else (start - kernel.profile.slide, data)


def _rows(data: U8, width: int) -> U8:
    """Entries (n, width); the last may lack what fills it up."""
    whole = np.zeros(-(-len(data) // width) * width, dtype=np.uint8)
    whole[: len(data)] = data
    rows: U8 = whole.reshape(-1, width)
    return rows


def _words(raw: U8) -> U64:
    words: U64 = np.ascontiguousarray(raw).view("<u8")[:, 0]
    return words


def _relative(data: U8, address: int, width: int) -> U64:
    """What the first 4 bytes of each entry lead to, counted from themselves."""
    distance = np.ascontiguousarray(_rows(data, width)[:, :4]).view("<i4")[:, 0].astype(np.int64).view(np.uint64)
    return np.uint64(address) + np.arange(len(distance), dtype=np.uint64) * np.uint64(width) + distance


def _all(places: U64, size: int) -> tuple[U64, I64]:
    return places, np.full(len(places), size, dtype=np.int64)
