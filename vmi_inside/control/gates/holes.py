"""Unused room in a running kernel's data: holes in structs, for a few words that the guest writes.

Knows that compilers leave holes between the members of structs, which the kernel's own types show. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vmi_inside.control.padding import access
from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.profile.ctypes import CType
from vmi_inside.types import align_up

#: Globals of one instance for the guest's whole life, whose type has holes; nobody copies or clears them as a whole.
_HOLED: Final = (
    "init_net", "tcp_hashinfo", "init_mm", "init_user_ns", "init_files", "init_pid_ns", "init_uts_ns", "cgrp_dfl_root",
    "init_css_set",
)  # fmt: skip


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
