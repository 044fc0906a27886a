"""Places in a guest's memory by the names that people have for them.

Knows how such a name is read: an address, a symbol, a member of a typed global or of a process's task, through
pointers. What is written there is left to everybody else.

    0xffffffff81234567        an address
    jiffies_64, jiffies+8     a symbol, or so many bytes behind it
    init_uts_ns.name.nodename a member of a global whose type is known
    task_struct.comm          with a process: a member of its task
    task_struct.signal->oom_score_adj
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vmi_inside.control.places import KERNEL, find_process, task_space
from vmi_inside.errors import ControlError
from vmi_inside.kernel import Kernel
from vmi_inside.profile.ctypes import CType

_PLAIN: Final = re.compile(r"(0x[0-9a-fA-F]{1,16}|[A-Za-z_][\w$.]*?)(?:\+(0x[0-9a-fA-F]{1,16}|\d{1,19}))?$")
_STEPS: Final = 16


@dataclass(frozen=True, slots=True)
class Place:
    """An address, its space (see `places`), and what is known to be there: `size` in bytes, `type`; else 0 and None."""

    address: int
    size: int = 0
    type: CType | None = None
    space: str = KERNEL


def find_place(kernel: Kernel, text: str, pid: int | None = None) -> Place:
    """The place of that name. `pid` is the process whose task `task_struct` stands for.

    Raises `NoSymbol`, `NoMember`, `ControlError`, `PageFault` where a pointer on the way leads nowhere.
    """
    plain = _PLAIN.match(text)
    if plain and (text.startswith("0x") or kernel.profile.find_symbol(plain[1]) is not None):
        base = int(plain[1], 16) if plain[1].startswith("0x") else kernel.symbol(plain[1])
        return Place(base + int(plain[2] or "0", 0))
    space = KERNEL
    first, *onward = text.split("->")
    head, _, path = first.partition(".")
    if len(onward) > _STEPS or not path:
        kernel.symbol(text)  # says that there is no such symbol
    if head == "task_struct":
        if pid is None:
            raise ControlError(f"{text}: of which process? Give one with --pid")
        address, here = int(find_process(kernel, pid).address[0]), kernel.struct("task_struct")
        space = task_space(kernel, pid)
    else:
        address, here = kernel.symbol(head), kernel.profile.global_type(head)
    for step in (path, *onward):
        if step is not path:
            if here.kind != "pointer":
                raise ControlError(f"{text}: what stands before ->{step} is no pointer")
            address, here = kernel.space.read_u64(address), here.target
        member = here.member(step)
        if member.bit_size:
            raise ControlError(f"{text}: {step} is a bit field; bytes are written, not bits")
        address, here = address + member.offset, member.type
    return Place(address, here.size, here, space)
