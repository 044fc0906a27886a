"""Unused room in a running kernel: executable padding for code, holes in structs for a few words that the guest writes.

Knows that x86_64 kernels fill their entry text up to 2 MiB with `int3` (arch/x86/kernel/vmlinux.lds.S,
ALIGN_ENTRY_TEXT_END), and that compilers leave holes between the members of structs, which the kernel's own types show.
Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vmi_inside.errors import MemoryFault, NoSymbol, PageFault, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.gated import AREA_SIZE, area
from vmi_inside.profile.ctypes import CType
from vmi_inside.space import AddressSpace
from vmi_inside.types import PAGE_SIZE, align_up

PADDING: Final = 0xCC
_WRITABLE: Final = 1 << 1
_NO_EXECUTE: Final = 1 << 63
#: Globals of one instance for the guest's whole life, whose type has holes; nobody copies or clears them as a whole.
_HOLED: Final = (
    "init_net", "tcp_hashinfo", "init_mm", "init_user_ns", "init_files", "init_pid_ns", "init_uts_ns", "cgrp_dfl_root",
    "init_css_set",
)  # fmt: skip


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


def padding(kernel: Kernel) -> int:
    """Where the last pages of the padding behind the entry text begin that are gates' room.

    Whether they still are padding is left to `is_padding`. Raises `Unsupported` where there is no such room.
    """
    try:
        start, text_end = kernel.symbol("__entry_text_end"), kernel.symbol("_etext")
    except NoSymbol as error:
        raise Unsupported(f"no room for code in this kernel: {error}") from None
    end = (area(kernel) or 0) + AREA_SIZE
    # Behind _etext the kernel gives unused room back to the page allocator (mark_rodata_ro).
    base = end - AREA_SIZE
    if base < start or end > text_end:
        raise Unsupported(
            f"no room for code in this kernel: its entry text ends at {start:#x}, its text at {text_end:#x}"
        )
    named = kernel.profile.symbol_at(end - 1)
    # Some kernels keep a few bytes of code in the middle of it (srso_alias_safe_ret): a page of distance to any symbol.
    if named is None or named[1] < AREA_SIZE + PAGE_SIZE:
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


def is_padding(kernel: Kernel, base: int) -> bool:
    """Whether all of it, and the page before, is padding now. Raises `MemoryFault`."""
    raw = kernel.space.read(base - PAGE_SIZE, PAGE_SIZE + AREA_SIZE)
    return raw.count(PADDING) == len(raw)


def holes(ctype: CType, size: int) -> Iterator[int]:
    """Offsets, aligned to `size`, of so many bytes that no member of a struct covers. The struct's tail is left out."""
    covered = 0
    for member in sorted(ctype.members.values(), key=lambda one: one.offset):
        at = align_up(covered, size)
        while at + size <= member.offset:
            yield at
            at += size
        covered = max(covered, member.offset + member.size)


def spare_words(kernel: Kernel) -> Iterator[tuple[int, int]]:
    """Unused 64-bit words that the guest can write, holes in globals: the address and the value of each.

    First those that are 0. Others can only be what an undone gate had counted: the kernel's types know no other use.
    """
    used: list[tuple[int, int]] = []
    for name in _HOLED:
        try:
            base, ctype = kernel.symbol(name), kernel.profile.global_type(name)
            for va in (base + at for at in holes(ctype, 8)):
                if access(kernel.space, va).writable:
                    value = kernel.space.read_u64(va)
                    if value:
                        used.append((va, value))
                    else:
                        yield va, 0
        except (ProfileError, MemoryFault):
            continue  # this kernel has no such global, or none that can be read
    yield from used
