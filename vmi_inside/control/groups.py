"""Processes that belong together: a process group, a cgroup.

Knows `struct signal_struct.pids` (include/linux/sched/signal.h, 4.19 and later). Processes themselves are a table.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.processes.processes import Processes
from vmi_inside.linux.tasks import PIDTYPE_TGID, pids

PIDTYPE_PGID: Final = 2  # enum pid_type (include/linux/pid.h)


def in_group(kernel: Kernel, group: int) -> list[int]:
    """The processes of that process group, by the initial namespace's numbers."""
    with kernel.operation():
        every = pids(kernel)
        where = np.flatnonzero(every.number == group)
        if not len(where):
            return []
        leader = every.pid.address[where[0]]
        number, _, tasks = every.tasks(kernel, PIDTYPE_TGID)
        held = tasks.follow("signal").pointer(f"pids[{PIDTYPE_PGID}]")
    return [int(one) for one in number[held == leader].tolist()]


def in_cgroup(table: Processes, path: str) -> list[int]:
    """The processes of that cgroup and of those below it."""
    path = "/" + path.strip("/")
    below = path.rstrip("/") + "/"
    return [row.pid for row in table if row.cgroup_path == path or row.cgroup_path.startswith(below)]
