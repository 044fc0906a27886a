"""How a task is scheduled: columns that processes and threads share.

Knows `task_struct.policy` (include/uapi/linux/sched.h; `ext` since 6.12). Times and states are others' matters.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.linux.processes.view import TaskColumn, View
from vmi_inside.table import Text, text

#: SCHED_NORMAL, FIFO, RR, BATCH, ISO (never made), IDLE, DEADLINE, EXT, as chrt calls them.
POLICIES: Final = ("other", "fifo", "rr", "batch", "iso", "idle", "deadline", "ext")
_CPU: Final = ("thread_info.cpu", "cpu")  # moved into thread_info in 5.16


def policy(view: View) -> Text:
    """Scheduling classes in words (n,)."""
    code = view.tasks.number("policy")
    known = (code >= 0) & (code < len(POLICIES))
    view.faults.mark(~known, "no such scheduling policy")
    return text((*POLICIES, ""))[np.where(known, code, len(POLICIES))]


COLUMNS: Final[dict[str, TaskColumn[View]]] = {
    "policy": TaskColumn(policy, ("policy",)),
    "rt_priority": TaskColumn(lambda view: view.tasks.number("rt_priority"), ("rt_priority",)),
    "processor": TaskColumn(lambda view: view.tasks.number(_CPU), (_CPU,)),
}
