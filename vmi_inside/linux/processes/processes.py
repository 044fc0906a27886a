"""Processes: one row for each thread group, zombies, kernel threads and containers' processes included.

Knows which members make which column; the structs themselves are `view`'s. Threads, files and mappings have tables of
their own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux import names
from vmi_inside.linux.processes import places, scheduling, sleeping, states
from vmi_inside.linux.processes.view import DEFAULT_PRIORITY, TaskColumn, View, process_table, start_times
from vmi_inside.table import Table, Text, text
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
    cwd: Text
    root: Text
    on_disk: I64  # 1: the executable has a name; 0: it was deleted or never had one (memfd); -1: there is none
    tty: Text  # pts/3, ttyS0; empty without a terminal
    pgroup: I64
    session: I64
    container: Text  # id of the container that its control group names, as `containers` has it
    unit: Text  # of systemd
    oom_score_adj: I64
    policy: Text  # scheduling class: other fifo rr batch idle deadline ext
    rt_priority: I64  # 1 to 99 in fifo and rr
    processor: I64  # CPU that its first thread runs on, or ran on last
    wchan: Text  # the kernel's function that it waits in
    kernel_thread: np.ndarray[tuple[int], np.dtype[np.bool_]]
    address: U64  # of the task_struct


def _cred(name: str) -> TaskColumn[View]:
    return TaskColumn(lambda view: view.cred.number(f"{name}.val"), ("real_cred",))


_COLUMNS: dict[str, TaskColumn[places.Placed]] = {
    "pid": TaskColumn(lambda view: view.number),
    "parent": TaskColumn(View.parent, ("real_parent",)),
    "name": TaskColumn(lambda view: text(names.task_names(view.kernel, view.tasks)), ("comm", "flags")),
    "path": TaskColumn(View.path, ("mm", "flags")),
    "cmdline": TaskColumn(View.cmdline, ("mm", "flags")),
    "state": TaskColumn(
        lambda view: states.letters(view.tasks.number(states.STATE), view.tasks.number("exit_state")),
        (states.STATE, "exit_state"),
    ),
    **{name: _cred(name) for name in ("uid", "gid", "euid", "egid", "suid", "sgid")},
    "threads": TaskColumn(lambda view: view.signal.number("nr_threads"), ("signal",)),
    "nice": TaskColumn(lambda view: view.tasks.number("static_prio") - DEFAULT_PRIORITY, ("static_prio",)),
    "start_time": TaskColumn(start_times, ("start_boottime",)),
    "user_time": TaskColumn(lambda view: view.times[0], ("signal",)),
    "system_time": TaskColumn(lambda view: view.times[1], ("signal",)),
    "resident_size": TaskColumn(View.resident, ("mm", "flags")),
    "total_size": TaskColumn(lambda view: view.mm.number("total_vm") * PAGE_SIZE, ("mm", "flags")),
    "cgroup_path": TaskColumn(View.cgroup, ("cgroups",)),
    "pid_namespace": TaskColumn(View.pid_namespace),
    "net_namespace": TaskColumn(View.net_namespace, ("nsproxy",)),
    **places.COLUMNS,
    **scheduling.COLUMNS,
    **sleeping.COLUMNS,
    "kernel_thread": TaskColumn(lambda view: view.kernel_thread, ("flags",)),
    "address": TaskColumn(lambda view: view.tasks.address),
}


def processes(kernel: Kernel, columns: Iterable[str] | None = None) -> Processes:
    """All processes. `columns` asks for some of them only: what they do not need is not read.

    Raises `AttributeError` for a column that the table does not have.
    """
    return process_table(kernel, Processes, _COLUMNS, columns, None, places.Placed)
