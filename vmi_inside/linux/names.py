"""What a task is called: its `comm`, and for kernel threads the longer name that `ps` shows.

Source: fs/proc/array.c `proc_task_name`, kernel/kthread.c `get_kthread_comm` (long names since 5.17),
kernel/workqueue.c `wq_worker_comm`.
"""

from __future__ import annotations

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.tasks import PF_KTHREAD, PF_WQ_WORKER
from vmi_inside.structs import Structs

_NAME_LIMIT = 64  # ps shows no more of it (proc_task_name)
#: Where a kernel thread keeps its `struct kthread`; before 5.17 in a member that user tasks use otherwise.
KTHREAD = ("worker_private", "set_child_tid")


def task_names(kernel: Kernel, tasks: Structs) -> list[str]:
    """Names (n,) of tasks whose `comm` and `flags` were fetched."""
    names = tasks.text("comm")
    flags = tasks.number("flags")
    rows = np.flatnonzero(flags & PF_KTHREAD)
    if not len(rows) or not tasks.has(*KTHREAD):
        return names
    ctype = kernel.find_struct("kthread")
    if ctype is None:
        return names
    some = tasks.select(rows)
    kthreads = kernel.structs(ctype, some.pointer(KTHREAD))
    kthreads.fetch(*(name for name in ("full_name", "data") if kthreads.has(name)))
    if kthreads.has("full_name"):
        for row, name in zip(rows.tolist(), kernel.strings(kthreads.pointer("full_name"), _NAME_LIMIT)[0], strict=True):
            names[row] = name or names[row]
    worker = kernel.find_struct("worker")
    busy = np.flatnonzero(flags[rows] & PF_WQ_WORKER)
    if worker is None or not kthreads.has("data") or not len(busy):
        return names
    workers = kthreads.select(busy).follow("data", worker).fetch("pool", "desc", "current_work")
    shown = workers.text("desc")
    active = workers.pointer("current_work") != 0
    for at, desc, on, pool in zip(
        rows[busy].tolist(), shown, active.tolist(), workers.pointer("pool").tolist(), strict=True
    ):
        if pool and desc:
            names[at] += ("+" if on else "-") + desc
    return names
