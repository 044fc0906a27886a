"""Unused room for code in a running kernel: the executable padding behind its entry text.

Knows that x86_64 kernels fill their entry text up to 2 MiB with `int3` (arch/x86/kernel/vmlinux.lds.S,
ALIGN_ENTRY_TEXT_END). Who has which part of it, from the end down: gates (`linux.symbols.gated`), a page that stays
padding, a page for calls (`deferred`), one that stays padding, a page for calls by who comes by (`visit`), and another
one that stays padding. Nothing here writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmi_inside.errors import NoSymbol, PageFault, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.symbols.gated import area
from vmi_inside.space import AddressSpace
from vmi_inside.types import PAGE_SIZE

PADDING: Final = 0xCC
_WRITABLE: Final = 1 << 1
_NO_EXECUTE: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Access:
    """What a mapping allows to the kernel."""

    writable: bool
    executable: bool


def access(space: AddressSpace, va: int) -> Access:
    """What the page tables let the kernel do at `va`. Raises `PageFault`."""
    paging, table = space.paging, space.root
    writable = executable = True
    for level, bits in zip(range(paging.levels, 0, -1), paging.splits, strict=True):
        shift = paging.shift(level)
        entry = space.entry(table + ((va >> shift) & ((1 << bits) - 1)) * paging.entry_size)
        if not entry & paging.present:
            raise PageFault(va, level, entry)
        writable &= bool(entry & _WRITABLE)
        executable &= not entry & _NO_EXECUTE
        if level in paging.large and entry & paging.large_bit:
            break
        table = entry & paging.address
    return Access(writable, executable)


def padding(kernel: Kernel, size: int, offset: int = 0) -> int:
    """Where `size` bytes of the padding are that begin `offset` bytes from where gates' room begins.

    Whether they still are padding is left to `is_padding`. Raises `Unsupported` where there is no such room.
    """
    try:
        start, text_end = kernel.symbol("__entry_text_end"), kernel.symbol("_etext")
    except NoSymbol as error:
        raise Unsupported(f"no room for code in this kernel: {error}") from None
    base = (area(kernel) or 0) + offset
    end = base + size
    # Behind _etext the kernel gives unused room back to the page allocator (mark_rodata_ro).
    if base < start or end > text_end:
        raise Unsupported(
            f"no room for code in this kernel: its entry text ends at {start:#x}, its text at {text_end:#x}"
        )
    named = kernel.profile.symbol_at(end - 1)
    # Some kernels keep a few bytes of code in the middle of it (srso_alias_safe_ret): a page of distance to any symbol.
    if named is None or named[1] < size + PAGE_SIZE:
        raise Unsupported(
            f"no room for code in this kernel: {named[0] if named else 'nothing known'} is close to {end:#x}"
        )
    for page in range(base - PAGE_SIZE, end, PAGE_SIZE):
        try:
            found = access(kernel.space, page)
        except PageFault as error:
            raise Unsupported(f"no room for code in this kernel: {error}") from None
        if not found.executable:
            raise Unsupported(f"no room for code in this kernel: {page:#x} is mapped without the right to execute")
    return base


def is_padding(kernel: Kernel, base: int, size: int) -> bool:
    """Whether all of it, and the page before, is padding now. Raises `MemoryFault`."""
    raw = kernel.space.read(base - PAGE_SIZE, PAGE_SIZE + size)
    return raw.count(PADDING) == len(raw)
