"""Threads: one row for each task, those of single-threaded processes included.

The finer view of what `processes` shows; both take their columns from `view`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vmi_inside.kernel import Kernel
from vmi_inside.linux import cputime, states
from vmi_inside.linux.names import task_names
from vmi_inside.linux.tasks import PIDTYPE_PID, pids
from vmi_inside.linux.view import DEFAULT_PRIORITY, View, make_columns, start_times
from vmi_inside.table import Column, Faults, Table, Text, text
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
    kernel_thread: Mask
    address: U64  # of the task_struct


def _times(view: View) -> tuple[I64, I64]:
    names = ("utime", "stime", "se.sum_exec_runtime")
    view.tasks.fetch(*names)
    return cputime.adjusted(*(view.tasks.unsigned(name) for name in names))


_COLUMNS: dict[str, Callable[[View], Column]] = {
    "pid": lambda view: view.tasks.number("tgid"),
    "tid": lambda view: view.number,
    "name": lambda view: text(task_names(view.kernel, view.tasks)),
    "state": lambda view: states.letters(view.tasks.number(states.STATE), view.tasks.number("exit_state")),
    "nice": lambda view: view.tasks.number("static_prio") - DEFAULT_PRIORITY,
    "start_time": start_times,
    "user_time": lambda view: _times(view)[0],
    "system_time": lambda view: _times(view)[1],
    "kernel_thread": lambda view: view.kernel_thread,
    "address": lambda view: view.tasks.address,
}


def threads(kernel: Kernel, columns: Iterable[str] | None = None) -> Threads:
    """All threads of all processes. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(Threads.schema if columns is None else columns)
    Threads.check(wanted)
    with kernel.operation():
        every = pids(kernel)
        number, pid, tasks = every.tasks(kernel, PIDTYPE_PID)
        faults = Faults(len(tasks))
        tasks.fetch("tgid", "pid", "comm", "flags", states.STATE, "exit_state", "static_prio", "start_boottime")
        faults.mark(pid.fault, "pid unreadable")
        faults.mark(tasks.fault, "task unreadable")
        faults.mark(~tasks.fault & (tasks.address != 0) & (tasks.number("pid") != number), "task has another pid")
        view = View(kernel, number, pid, tasks, faults, every)
        made = {name: _COLUMNS[name] for name in wanted if name in _COLUMNS}
        data, notes = make_columns(made, view, Threads)
        data["fault"] = faults.column()
        return Threads(data, (*every.faults, *notes))
