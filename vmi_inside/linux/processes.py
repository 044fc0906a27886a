"""Processes: one row for each thread group, zombies, kernel threads and containers' processes included.

Knows which members make which column; the structs themselves are `view`'s. Threads, files and mappings have tables of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux import names, states
from vmi_inside.linux.tasks import PIDTYPE_TGID, pids
from vmi_inside.linux.view import DEFAULT_PRIORITY, View, make_columns, start_times
from vmi_inside.structs import Names
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, PAGE_SIZE, U64


class Processes(Table):
    """One row for each process; osquery's column names where it has them."""

    pid: I64
    parent: I64
    name: Text
    path: Text  # of the executable
    cmdline: Text
    state: Text  # R S D T t X Z P I, as ps shows it
    uid: I64
    gid: I64
    euid: I64
    egid: I64
    suid: I64
    sgid: I64
    threads: I64
    nice: I64
    start_time: I64  # seconds since the epoch
    user_time: I64  # milliseconds
    system_time: I64  # milliseconds
    resident_size: I64  # bytes
    total_size: I64  # bytes
    cgroup_path: Text
    pid_namespace: I64  # inode number
    net_namespace: I64  # inode number
    kernel_thread: np.ndarray[tuple[int], np.dtype[np.bool_]]
    address: U64  # of the task_struct


@dataclass(frozen=True, slots=True)
class _Column:
    """How a column is made, and which members of the task itself it needs, so that these are one reading."""

    make: Callable[[View], Column]
    task: tuple[Names, ...] = ()


def _cred(name: str) -> _Column:
    return _Column(lambda view: view.cred.number(f"{name}.val"), ("real_cred",))


_COLUMNS: dict[str, _Column] = {
    "pid": _Column(lambda view: view.number),
    "parent": _Column(View.parent, ("real_parent",)),
    "name": _Column(lambda view: text(names.task_names(view.kernel, view.tasks)), ("comm", "flags")),
    "path": _Column(View.path, ("mm", "flags")),
    "cmdline": _Column(View.cmdline, ("mm", "flags")),
    "state": _Column(
        lambda view: states.letters(view.tasks.number(states.STATE), view.tasks.number("exit_state")),
        (states.STATE, "exit_state"),
    ),
    **{name: _cred(name) for name in ("uid", "gid", "euid", "egid", "suid", "sgid")},
    "threads": _Column(lambda view: view.signal.number("nr_threads"), ("signal",)),
    "nice": _Column(lambda view: view.tasks.number("static_prio") - DEFAULT_PRIORITY, ("static_prio",)),
    "start_time": _Column(start_times, ("start_boottime",)),
    "user_time": _Column(lambda view: view.times[0], ("signal",)),
    "system_time": _Column(lambda view: view.times[1], ("signal",)),
    "resident_size": _Column(View.resident, ("mm", "flags")),
    "total_size": _Column(lambda view: view.mm.number("total_vm") * PAGE_SIZE, ("mm", "flags")),
    "cgroup_path": _Column(View.cgroup, ("cgroups",)),
    "pid_namespace": _Column(View.pid_namespace),
    "net_namespace": _Column(View.net_namespace, ("nsproxy",)),
    "kernel_thread": _Column(lambda view: view.kernel_thread, ("flags",)),
    "address": _Column(lambda view: view.tasks.address),
}


def _alternatives(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def processes(kernel: Kernel, columns: Iterable[str] | None = None) -> Processes:
    """All processes. `columns` asks for some of them only: what they do not need is not read.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(Processes.schema if columns is None else columns)
    Processes.check(wanted)
    with kernel.operation():
        every = pids(kernel)
        number, pid, tasks = every.tasks(kernel, PIDTYPE_TGID)
        faults = Faults(len(tasks))
        members = [member for name in wanted if name in _COLUMNS for member in _COLUMNS[name].task]
        tasks.fetch("tgid", *(member for member in members if tasks.has(*_alternatives(member))))
        faults.mark(pid.fault, "pid unreadable")
        faults.mark(tasks.fault, "task unreadable")
        faults.mark(~tasks.fault & (tasks.address != 0) & (tasks.number("tgid") != number), "task has another pid")
        view = View(kernel, number, pid, tasks, faults, every)
        data, notes = make_columns({name: _COLUMNS[name].make for name in wanted if name in _COLUMNS}, view, len(tasks))
        data["fault"] = faults.column()
        return Processes(data, (*every.faults, *notes))
