"""Where tasks are found: the PID IDR of the initial namespace, breadth first.

Knows `init_pid_ns.idr` and `struct pid` (kernel/pid.c, include/linux/pid.h; 5.10 and later). Every process and thread
of the machine has a number there, those in inner pid namespaces too. The idle tasks have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import MemoryFault
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import I64, Mask

#: enum pid_type: the slots of `struct pid.tasks` and `task_struct.pid_links`.
PIDTYPE_PID: Final = 0
PIDTYPE_TGID: Final = 1

#: What is said of a row whose task ended, or became another program or user, while the row was read.
CHANGED: Final = "task changed meanwhile"
#: What a task leaves behind when it ends or becomes another: what these lead to is then used again by others.
_OWN: Final = ("mm", "files", "fs", "signal", "real_cred", "nsproxy", "cgroups")

PF_WQ_WORKER: Final = 0x20
PF_KTHREAD: Final = 0x200000


@dataclass(frozen=True, slots=True)
class Pids:
    """All numbers in use: `number` (n,) and the `struct pid` of each, ascending; `faults` where the walk was cut."""

    number: I64
    pid: Structs
    faults: tuple[str, ...]

    def tasks(self, kernel: Kernel, kind: int) -> tuple[I64, Structs, Structs]:
        """The tasks that these numbers stand for as `kind`: thread (PIDTYPE_PID) or whole process (PIDTYPE_TGID).

        Gives numbers, pids and tasks of equal length: only those that have such a task, and those unreadable.
        """
        task = kernel.struct("task_struct")
        link = self.pid.pointer(f"tasks[{kind}].first")
        which = np.flatnonzero((link != 0) | self.pid.fault)
        offset = np.uint64(task.member(f"pid_links[{kind}]").offset)
        address = np.where(link[which] == 0, np.uint64(0), link[which] - offset)
        return self.number[which], self.pid.select(which), kernel.structs(task, address)

    def processes(self, kernel: Kernel, pids: frozenset[int] | None = None) -> tuple[I64, Structs]:
        """Numbers and tasks of all processes, or of those in `pids`."""
        number, _, tasks = self.tasks(kernel, PIDTYPE_TGID)
        if pids is None:
            return number, tasks
        chosen = np.isin(number, list(pids))
        return number[chosen], tasks.select(chosen)


def pids(kernel: Kernel) -> Pids:
    """Read the PID IDR: as many rounds as the tree is deep, and one for the pids."""
    idr = kernel.struct("pid_namespace").member("idr.idr_rt.xa_head").offset
    faults: tuple[str, ...] = ()
    head = 0
    try:
        head = kernel.space.read_u64(kernel.symbol("init_pid_ns") + idr)
    except MemoryFault:
        faults = ("pid table: init_pid_ns could not be read",)
    found = walk.xarray(kernel.space, head, kernel.struct("xa_node"), what="pid table")
    faults += found.faults
    order = np.argsort(found.owner, kind="stable")
    rows = kernel.structs("pid", found.address[order])
    rows.fetch("level", f"tasks[{PIDTYPE_PID}].first", f"tasks[{PIDTYPE_TGID}].first")
    if not len(rows) and not faults:
        faults = ("pid table: it is empty, which that of a kernel that runs never is",)
    return Pids(found.owner[order], rows, faults)


def changed(number: I64, tasks: Structs, own: str = "tgid") -> Mask:
    """Which tasks (n,) are not what they were any more: what was read of them in several rounds may be of two.

    To be asked when all else was read. `own` is the member that holds a task's `number`; beside it, of the pointers
    that were followed each must still lead to where it did: then what it leads to was the task's all the time. A task
    that was released has left its pid (`__unhash_process`, kernel/exit.c); its memory, and what it points to, may lie
    there unchanged for a while, and be of nobody or of others. A name is copied in pieces.
    """
    followed = [name for name in _OWN if tasks.fetched(name)]
    beside = [name for name in ("thread_pid",) if tasks.has(name)]
    beside += [name for name in ("comm",) if tasks.fetched(name)]
    now = Structs(tasks.space, tasks.type, tasks.address).fetch(own, *followed, *beside)
    out = now.fault | (now.number(own) != number)
    for name in followed:
        out |= now.pointer(name) != tasks.pointer(name)
    if "thread_pid" in beside:
        out |= now.pointer("thread_pid") == 0
    if "comm" in beside:
        out |= (now["comm"] != tasks["comm"]).any(axis=1)
    marked: Mask = out & (tasks.address != 0) & ~tasks.fault  # which is said already
    return marked
