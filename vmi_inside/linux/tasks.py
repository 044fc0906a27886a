"""Where tasks are found: the PID IDR of the initial namespace, breadth first.

Knows `init_pid_ns.idr` and `struct pid` (kernel/pid.c, include/linux/pid.h; 5.10 and later). Every process and thread
of the machine has a number there, those in inner pid namespaces too. The idle tasks have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import I64

#: enum pid_type: the slots of `struct pid.tasks` and `task_struct.pid_links`.
PIDTYPE_PID: Final = 0
PIDTYPE_TGID: Final = 1

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
    namespace = kernel.object("pid_namespace", "init_pid_ns").fetch("idr.idr_rt.xa_head")
    head = int(namespace.pointer("idr.idr_rt.xa_head")[0])
    found = walk.xarray(kernel.space, head, kernel.struct("xa_node"), what="pid table")
    order = np.argsort(found.owner, kind="stable")
    rows = kernel.structs("pid", found.address[order])
    rows.fetch("level", f"tasks[{PIDTYPE_PID}].first", f"tasks[{PIDTYPE_TGID}].first")
    faults = found.faults
    if namespace.fault.any():
        faults = ("pid table: init_pid_ns could not be read", *faults)
    return Pids(found.owner[order], rows, faults)
