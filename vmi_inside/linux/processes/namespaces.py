"""Namespaces of processes: the inode numbers by which /proc/PID/ns tells them apart.

Knows `nsproxy` (include/linux/nsproxy.h; its time namespace since 5.6) and the user namespace of `cred`. Network
namespaces' sockets, and what containers are made of namespaces, are left to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from vmi_inside.kernel import Kernel
from vmi_inside.linux.names import task_names
from vmi_inside.linux.processes.view import TaskColumn, View, process_table
from vmi_inside.table import Column, Table, Text, text
from vmi_inside.types import I64


class ProcessNamespaces(Table):
    """One row for each process; osquery's column names where it has them. Zombies have left most of theirs: 0."""

    pid: I64
    name: Text
    cgroup_namespace: I64  # inode number, as all of these
    ipc_namespace: I64
    mnt_namespace: I64
    net_namespace: I64
    pid_namespace: I64
    time_namespace: I64
    user_namespace: I64
    uts_namespace: I64
    pid_in_namespace: I64  # the pid that the process sees as its own


def _proxied(kind: str) -> Callable[[View], Column]:
    member = f"{kind}_ns"
    return lambda view: view.namespace_inode(view.proxies.follow(member), f"{kind} namespace")


def _user(view: View) -> Column:
    return view.namespace_inode(view.cred.follow("user_ns"), "user namespace")


_COLUMNS: Final[dict[str, TaskColumn[View]]] = {
    "pid": TaskColumn(lambda view: view.number),
    "name": TaskColumn(lambda view: text(task_names(view.kernel, view.tasks)), ("comm", "flags")),
    **{f"{kind}_namespace": TaskColumn(_proxied(kind), ("nsproxy",))
       for kind in ("cgroup", "ipc", "mnt", "net", "time", "uts")},
    "pid_namespace": TaskColumn(View.pid_namespace),
    "user_namespace": TaskColumn(_user, ("real_cred",)),
    "pid_in_namespace": TaskColumn(lambda view: view.innermost.number("nr")),
}  # fmt: skip


def process_namespaces(
    kernel: Kernel, columns: Iterable[str] | None = None, *, pids: frozenset[int] | None = None
) -> ProcessNamespaces:
    """The namespaces of all processes, or of those in `pids`; `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    return process_table(kernel, ProcessNamespaces, _COLUMNS, columns, pids, View)
