"""Hidden processes and threads: what one way to the tasks shows, and another one leaves out.

Knows which of the ways should show which task. The ways themselves are `tasks`' and `task_views`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity import task_views
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.integrity.views import View, missing, union
from vmi_inside.linux.tasks import PIDTYPE_PID
from vmi_inside.structs import Structs
from vmi_inside.types import U64, Mask

PF_EXITING: Final = 0x4
_EXIT_DEAD: Final = 0x10
#: task_struct.usage, a refcount_t: 0 in a place that is free.
_USAGE: Final = ("usage.refs.counter", "usage.counter")
_MEMBERS: Final = (
    "pid", "tgid", "comm", "flags", "exit_state", "group_leader", "real_parent", "signal", "thread_pid", "stack", "mm",
)  # fmt: skip
_KERNEL_HALF: Final = np.uint64(1 << 63)
_NONE: Final = np.empty(0, dtype=np.uint64)
#: Views without which no task lives: ps goes by the first two.
_GRAVE: Final = ("PID table", "task list", "threads' lists")


def hidden_tasks(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Tasks that some views have and others lack."""
    lost: list[Finding] = []

    def view(name: str, read: Callable[[], View]) -> View:
        try:
            return read()
        except (ProfileError, MemoryFault) as error:
            lost.append(Finding("info", name, detail=f"not compared: {error}"))
            return View(name, _NONE)

    _, _, tasks = reading.pids.tasks(kernel, PIDTYPE_PID)
    table = View("PID table", tasks.address, reading.pids.faults)
    listed = view("task list", lambda: task_views.task_list(kernel, table.seen))
    queues = view("run queues", lambda: task_views.run_queues(kernel))
    groups = view("control groups", lambda: task_views.control_groups(kernel, table.seen))
    slab = view("slab", lambda: task_views.slab(kernel))
    idle = task_views.idle_tasks(kernel)
    known = union((table, listed, queues, groups))
    found = _fetched(kernel, np.concatenate((known, np.setdiff1d(slab.seen, known))))
    # What the slab alone shows may be free memory that was a task once.
    found = found.select(np.isin(found.address, known) | (_alive(found) & ~found.fault))
    parents = kernel.structs(found.type, np.union1d(found.address, idle))  # init_task is one
    threads, children = task_views.threads(found), task_views.children(parents)
    more = np.setdiff1d(union((threads, children)), found.address)
    found = _fetched(kernel, np.setdiff1d(np.concatenate((found.address, more)), idle))
    yield from lost
    for each in (table, listed, queues, groups, slab, threads, children):
        for fault in each.faults:
            yield Finding("medium", each.name, "a way that can be followed to its end", fault)
    names = found.text("comm")
    every = [(each, _should(each, found)) for each in (table, listed, threads, children, groups, slab)]
    for one in missing(found.address, (*every, (queues, np.zeros(len(found), dtype=np.bool_)))):
        yield _finding(found, names, one.row, one.lack, one.have)
    # Not one that should be seen, being dead or unreadable, but it runs.
    for row in np.flatnonzero(~_registered(found) & np.isin(found.address, queues.seen)).tolist():
        yield _finding(found, names, row, ("PID table",), ("run queues",))


def _fetched(kernel: Kernel, address: U64) -> Structs:
    rows = kernel.structs("task_struct", address)
    usage = tuple(name for name in _USAGE if rows.has(name))
    return rows.fetch(*_MEMBERS, *((usage,) if usage else ()))


def _alive(rows: Structs) -> Mask:
    """Which (n,) are tasks, and no free places or what a failed fork left: they have users, a stack and a number."""
    usage = next((name for name in _USAGE if rows.has(name)), None)
    used = rows.number(usage) > 0 if usage else np.ones(len(rows), dtype=np.bool_)
    dead = (rows.pointer("thread_pid") == 0) & (rows.number("exit_state") & _EXIT_DEAD != 0)
    pointed = (rows.pointer("stack") >= _KERNEL_HALF) & (rows.pointer("signal") >= _KERNEL_HALF)
    alive: Mask = used & pointed & (rows.number("pid") > 0) & (~dead | (rows.pointer("mm") != 0))
    return alive


def _registered(rows: Structs) -> Mask:
    """Which (n,) have a number, so that the other ways should show them, too."""
    dead = (rows.pointer("thread_pid") == 0) & (rows.number("exit_state") & _EXIT_DEAD != 0)
    registered: Mask = ~rows.fault & (rows.number("pid") > 0) & (~dead | (rows.pointer("mm") != 0))
    return registered


def _should(view: View, rows: Structs) -> Mask:
    """Which (n,) of the tasks a view should show."""
    every = _registered(rows)
    if view.name in ("control groups", "slab") and not len(view.seen):
        return np.zeros(len(rows), dtype=np.bool_)  # without it
    if view.name in ("task list", "children's lists"):
        every &= (rows.pointer("group_leader") == rows.address) & (rows.pointer("real_parent") != 0)
    if view.name == "control groups":  # the dying leave
        every &= (rows.number("exit_state") == 0) & (rows.number("flags") & PF_EXITING == 0)
    return every


def _finding(rows: Structs, names: list[str], row: int, lack: tuple[str, ...], have: tuple[str, ...]) -> Finding:
    pid, tgid = int(rows.number("pid")[row]), int(rows.number("tgid")[row])
    thread = f" thread of pid {tgid}" if tgid != pid else ""
    return Finding(
        "critical" if set(lack) & set(_GRAVE) else "high",
        f"pid {pid} ({names[row]}){thread}",
        f"in {', '.join(lack)}",
        f"not in {', '.join(lack)}",
        int(rows.address[row]),
        detail=f"seen in {', '.join(have)}",
        fault="task unreadable" if rows.fault[row] else "",
    )
