"""Whether anybody stands in code that is about to change: a vCPU, or a task that was interrupted there and waits.

Knows kernel stacks (`task_struct.stack`, `thread.sp`; arch/x86/include/asm/processor.h): what waits there may come back
to an address that lies on its stack. What changes, and what to do about it, is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.errors import MemoryFault, NoMember, ProfileError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.linux.processes.unwind import frames
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.tasks import PIDTYPE_PID, pids
from vmi_inside.structs import Structs
from vmi_inside.types import PAGE_MASK, Mask, distinct

#: THREAD_SIZE where the types do not tell (arch/x86/include/asm/page_64_types.h).
_STACK_SIZE: Final = 16 << 10
_STACK_LIMIT: Final = 1 << 20
Range = tuple[int, int]


def standing(
    kernel: Kernel, ranges: Sequence[Range], registers: Iterable[Mapping[str, int]], *, tasks: bool = True
) -> str:
    """Who stands in one of the ranges (first and last address, both included), in words; empty for nobody.

    `registers` are those of the vCPUs, which must stand still. `tasks` looks through the stacks of all tasks, too, for
    addresses to come back to: any word that looks like one counts, unless the stack's frames tell better.
    """
    vcpus = list(registers)
    for number, one in enumerate(vcpus):
        if any(low <= one["rip"] <= high for low, high in ranges):
            return f"vCPU {number} stands at {one['rip']:#x}"
    if not tasks:
        return ""
    size = _stack_size(kernel)
    with kernel.operation():
        _, _, rows = pids(kernel).tasks(kernel, PIDTYPE_PID)
        # Idle tasks have no number. One that does not run waits in the scheduler, and nowhere else.
        running = _running(kernel)
        address = distinct(np.concatenate((rows.address, np.array(list(running), dtype=np.uint64))))
        found = kernel.structs("task_struct", address).fetch("stack", "thread.sp", "pid")
        base, top = found.pointer("stack"), found.pointer("thread.sp").copy()
        for row in np.flatnonzero(np.isin(address, np.array(list(running), dtype=np.uint64))).tolist():
            top[row] = _in_use(int(base[row]), size, running[int(address[row])], vcpus)
        live = (base != 0) & ~found.fault
        # Where it cannot be told how much of a stack is in use, all of it counts.
        start = np.where(top - base <= np.uint64(size), top, base)[live]
        length = (base[live] + np.uint64(size) - start).astype(np.int64)
        # An interrupt may have a stack of its own.
        own = [(one["rsp"], (one["rsp"] | PAGE_MASK) + 1) for one in vcpus if one["rip"] >> 63]
        start = np.concatenate((start, np.array([low for low, _ in own], dtype=np.uint64)))
        length = np.concatenate((length, np.array([high - low for low, high in own], dtype=np.int64)))
        read = ragged.gather(kernel.space, start & ~np.uint64(7), np.minimum(length, _STACK_LIMIT))
        words, owner, _ = read.words()
    hit: Mask = np.zeros(len(words), dtype=np.bool_)
    for low, high in ranges:
        hit |= (words >= np.uint64(low)) & (words <= np.uint64(high))
    if not hit.any():
        return ""
    # A word that looks like it may be left from an earlier call, within a frame that does not use all of its bytes; as
    # long as the task sleeps (a stopped one does for good) it stays there.
    suspect = distinct(owner[hit])
    suspect = suspect[suspect < live.sum()]
    stale = ~_comes_back(kernel, found.select(np.flatnonzero(live)[suspect]), ranges)
    hit &= ~np.isin(owner, suspect[stale])
    if not hit.any():
        return ""
    row, at = int(owner[hit][0]), int(words[hit][0])
    named = found["pid"][live]
    return (
        f"task {named[row]} may come back to {at:#x}" if row < len(named) else f"an interrupt may come back to {at:#x}"
    )


def _comes_back(kernel: Kernel, tasks: Structs, ranges: Sequence[Range]) -> Mask:
    """Which (n,) of these tasks may come back to one of the ranges.

    All but those whose stacks are known frame by frame to their end, and of which no frame does.
    """
    back = np.ones(len(tasks), dtype=np.bool_)
    try:
        with kernel.operation():
            found = frames(kernel, tasks, Code(kernel))
    except (ProfileError, MemoryFault, Unsupported):
        return back
    if found.how == "orc":
        torn = np.zeros(len(tasks), dtype=np.bool_)
        for which, _ in found.faults:
            torn |= which
        back = torn | ~np.isin(np.arange(len(tasks)), found.owner)
        for low, high in ranges:
            inside = (found.address >= np.uint64(low)) & (found.address <= np.uint64(high))
            back[found.owner[inside]] = True
    return back


def _stack_size(kernel: Kernel) -> int:
    try:
        return min(kernel.struct("thread_union").size or _STACK_SIZE, _STACK_LIMIT)
    except NoMember:
        return _STACK_SIZE


def current_offset(kernel: Kernel) -> int:
    """Where each CPU has the pointer to the task that it runs, relative to its per-CPU area.

    `current_task` was per CPU until 6.1 and is again since 6.15; between, it lay in `pcpu_hot`. Raises `NoSymbol`.
    """
    at = kernel.profile.find_symbol("current_task")
    return at if at is not None else kernel.symbol("pcpu_hot") + kernel.struct("pcpu_hot").member("current_task").offset


def _running(kernel: Kernel) -> dict[int, int]:
    """The task that each CPU runs, and where that CPU's per-CPU area is."""
    bases = kernel.percpu_offset
    raw, ok = kernel.space.gather(bases + np.uint64(current_offset(kernel)), 8)
    found = zip(raw.view("<u8")[:, 0].tolist(), bases.tolist(), ok.tolist(), strict=True)
    return {task: base for task, base, good in found if good and task}


def _in_use(stack: int, size: int, base: int, vcpus: Iterable[Mapping[str, int]]) -> int:
    """From where on the stack of a task is in use that runs on the CPU with that per-CPU area; 0 for unknown.

    What lies below is left from earlier calls, and nobody comes back to it.
    """
    for one in vcpus:
        if base in (one.get("gs_base"), one.get("k_gs_base")):
            if not one["rip"] >> 63:
                return stack + size  # it is in user mode: nothing is in use
            if stack <= one["rsp"] < stack + size:
                return one["rsp"]
    return 0
