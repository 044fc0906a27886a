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
from vmi_inside.profile.ctypes import CType
from vmi_inside.space import AddressSpace
from vmi_inside.types import PAGE_SIZE, align_up

PADDING: Final = 0xCC
_LARGE: Final = 2 << 20
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


def padding(kernel: Kernel, size: int) -> int:
    """Where the last `size` bytes (whole pages) of the padding behind the entry text begin.

    Whether they still are padding is left to `is_padding`. Raises `Unsupported` where there is no such room.
    """
    try:
        start, text_end = kernel.symbol("__entry_text_end"), kernel.symbol("_etext")
    except NoSymbol as error:
        raise Unsupported(f"no room for code in this kernel: {error}") from None
    end = align_up(start, _LARGE)
    # Behind _etext the kernel gives unused room back to the page allocator (mark_rodata_ro).
    if end - size < start or end > text_end:
        raise Unsupported(
            f"no room for code in this kernel: its entry text ends at {start:#x}, its text at {text_end:#x}"
        )
    base = end - size
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


def holes(ctype: CType, size: int) -> Iterator[int]:
    """Offsets, aligned to `size`, of so many bytes that no member of a struct covers. The struct's tail is left out."""
    covered = 0
    for member in sorted(ctype.members.values(), key=lambda one: one.offset):
        at = align_up(covered, size)
        while at + size <= member.offset:
            yield at
            at += size
        covered = max(covered, member.offset + member.size)


def spare_words(kernel: Kernel) -> Iterator[int]:
    """Addresses of unused 64-bit words that the guest can write: holes in globals, all 0 and mapped so."""
    for name in _HOLED:
        try:
            base, ctype = kernel.symbol(name), kernel.profile.global_type(name)
            found = [base + at for at in holes(ctype, 8)]
            for va in found:
                if access(kernel.space, va).writable and not any(kernel.space.read(va, 8)):
                    yield va
        except (ProfileError, MemoryFault):
            continue  # this kernel has no such global, or none that can be read


def spare_bits(kernel: Kernel) -> int | None:
    """The offset of 32 unused bits in `task_struct` that children inherit, or None.

    A new task begins as a copy of its parent, holes and all (arch_dup_task_struct, arch/x86/kernel/process.c).
    """
    task = kernel.struct("task_struct")
    return next((at for at in holes(task, 4) if at), None)
