"""The registers with which threads will go on in user mode, from the top of their kernel stacks.

Knows where x86_64 puts `struct pt_regs` (arch/x86/include/asm/processor.h `task_pt_regs`, thread_info.h
TOP_OF_KERNEL_STACK_PADDING) and the order of a core's registers (arch/x86/include/asm/user_64.h). A thread that runs in
user mode at this moment has its registers in the processor: what is found here is what it had when it last left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import PAGE_SIZE, U64, Mask

#: Registers of `struct user_regs_struct`; the first ones are `pt_regs`, in the same order.
COUNT: Final = 27
_PT_REGS: Final = 21
_CS, _SS = 17, 20
_FS_BASE, _GS_BASE = 21, 22
#: THREAD_SIZE without KASAN, where the stack's own size is not known.
_STACK: Final = 4 * PAGE_SIZE
_STACK_LIMIT: Final = 64 * PAGE_SIZE
#: What kernels leave free above: nothing, or 16 bytes since 6.9 with FRED.
_PADDINGS: Final = (0, 16)


@dataclass(frozen=True, slots=True)
class UserRegisters:
    """Registers (n, 27) of n threads, in the order of `user_regs_struct`, zeros where `ok` (n,) is False.

    `running` (n,) says which threads were on a processor: theirs may be old.
    """

    values: U64
    ok: Mask
    running: Mask


def user_registers(kernel: Kernel, tasks: Structs) -> UserRegisters:
    """The user registers of threads. Kernel threads have none."""
    members = ["stack", "thread.fsbase", "thread.gsbase"]
    optional = [name for name in ("stack_vm_area", "on_cpu") if tasks.has(name)]
    tasks.fetch(*members, *optional)
    size = np.full(len(tasks), _STACK, dtype=np.uint64)
    if "stack_vm_area" in optional and kernel.find_struct("vm_struct") is not None:
        areas = tasks.follow("stack_vm_area", kernel.struct("vm_struct"))
        told = areas.unsigned("nr_pages") * np.uint64(PAGE_SIZE)
        believed = (told > 0) & (told <= np.uint64(_STACK_LIMIT))
        size = np.where(believed, told, size)
    top = tasks.pointer("stack") + size
    best = None
    for padding in _PADDINGS:
        raw, ok = kernel.space.gather(top - np.uint64(padding + 8 * _PT_REGS), 8 * _PT_REGS)
        words = raw.view("<u8").copy()
        words[:, [_CS, _SS]] &= np.uint64(0xFFFF)
        # From user mode: both selectors have the privilege 3.
        ok &= (words[:, _CS] & np.uint64(3) == 3) & (words[:, _SS] & np.uint64(3) == 3) & (words[:, _SS] < 0x100)
        if best is None or int(ok.sum()) > int(best[1].sum()):
            best = words, ok
    assert best is not None
    words, ok = best
    values = np.zeros((len(tasks), COUNT), dtype=np.uint64)
    values[:, :_PT_REGS] = words
    values[:, _FS_BASE], values[:, _GS_BASE] = tasks.unsigned("thread.fsbase"), tasks.unsigned("thread.gsbase")
    values[~ok] = 0
    running = tasks.number("on_cpu") != 0 if "on_cpu" in optional else np.zeros(len(tasks), dtype=np.bool_)
    return UserRegisters(values, ok, running)
