"""Threads: one row for each task, those of single-threaded processes included.

The finer view of what `processes` shows; both take their columns from `view`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vmi_inside.kernel import Kernel
from vmi_inside.linux.names import task_names
from vmi_inside.linux.processes import cputime, scheduling, sleeping, states
from vmi_inside.linux.processes.view import DEFAULT_PRIORITY, TaskColumn, View, process_table, start_times
from vmi_inside.linux.tasks import PIDTYPE_PID
from vmi_inside.table import Table, Text, text
from vmi_inside.types import I64, U64, Mask


class Threads(Table):
    """One row for each thread."""

    pid: I64  # of the process
    tid: I64
    name: Text
    state: Text  # R S D T t X Z P I, as ps shows it
    nice: I64
    start_time: I64  # seconds since the epoch
    user_time: I64  # milliseconds
    system_time: I64  # milliseconds
    policy: Text  # scheduling class: other fifo rr batch idle deadline ext
    rt_priority: I64  # 1 to 99 in fifo and rr
    processor: I64  # CPU that it runs on, or ran on last
    wchan: Text  # the kernel's function that it waits in
    kernel_thread: Mask
    address: U64  # of the task_struct


def _times(view: View) -> tuple[I64, I64]:
    return cputime.adjusted(*(view.tasks.unsigned(name) for name in _TIMES))


_TIMES: Final = ("utime", "stime", "se.sum_exec_runtime")
_COLUMNS: Final[dict[str, TaskColumn[View]]] = {
    "pid": TaskColumn(lambda view: view.tasks.number("tgid"), ("tgid",)),
    "tid": TaskColumn(lambda view: view.number),
    "name": TaskColumn(lambda view: text(task_names(view.kernel, view.tasks)), ("comm", "flags")),
    "state": TaskColumn(
        lambda view: states.letters(view.tasks.number(states.STATE), view.tasks.number("exit_state")),
        (states.STATE, "exit_state"),
    ),
    "nice": TaskColumn(lambda view: view.tasks.number("static_prio") - DEFAULT_PRIORITY, ("static_prio",)),
    "start_time": TaskColumn(start_times, ("start_boottime",)),
    "user_time": TaskColumn(lambda view: _times(view)[0], _TIMES),
    "system_time": TaskColumn(lambda view: _times(view)[1], _TIMES),
    **scheduling.COLUMNS,
    **sleeping.COLUMNS,
    "kernel_thread": TaskColumn(lambda view: view.kernel_thread, ("flags",)),
    "address": TaskColumn(lambda view: view.tasks.address),
}


def threads(kernel: Kernel, columns: Iterable[str] | None = None) -> Threads:
    """All threads of all processes. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    return process_table(kernel, Threads, _COLUMNS, columns, None, View, PIDTYPE_PID)
