"""eBPF's objects, by the numbers that bpf(2) gives them: programs, maps, links.

Knows `prog_idr`, `map_idr` and `link_idr` (kernel/bpf/syscall.c) and how the words of their enums are written. What
each kind of object is, is a table's matter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import NoMember, NoSymbol, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.table import Text, text
from vmi_inside.types import I64


def objects(kernel: Kernel, idr: str, ctype: str) -> tuple[I64, Structs, tuple[str, ...]]:
    """Numbers (n,), ascending, and structs of all objects of one kind, and where the walk was cut.

    Raises `Unsupported` where the kernel knows no such objects.
    """
    try:
        holder = kernel.object("idr", idr).fetch("idr_rt.xa_head")
        kind = kernel.struct(ctype)
    except (NoSymbol, NoMember) as error:
        raise Unsupported(f"eBPF: this kernel has none of these objects ({error})") from error
    head = int(holder.pointer("idr_rt.xa_head")[0])
    found = walk.xarray(kernel.space, head, kernel.struct("xa_node"), what=idr)
    order = np.argsort(found.owner, kind="stable")
    faults = (f"{idr} could not be read", *found.faults) if holder.fault.any() else found.faults
    return found.owner[order], kernel.structs(kind, found.address[order]), faults


def words(kernel: Kernel, enum: str, prefix: str) -> Mapping[int, str]:
    """An enum's names by value, as bpftool writes them: without their prefix, in small letters."""
    try:
        members = kernel.profile.enum(enum)
    except NoMember:
        return {}
    named = {value: name for name, value in members.items() if name.startswith(prefix)}
    return {value: name.removeprefix(prefix).lower() for value, name in named.items()}


def shown(codes: I64, names: Mapping[int, str]) -> Text:
    """Words (n,) for values of an enum; the number where it has none."""
    unique, back = np.unique(codes, return_inverse=True)
    return text(names.get(each, str(each)) for each in unique.tolist())[back]
