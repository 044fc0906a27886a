"""Containers: processes that are in one container's control group, or in a pid namespace of their own.

Knows how processes are put together. Which group is whose is `container_names`' knowledge, where groups are `cgroups`'.
What a container's image is, no kernel knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.errors import ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.names import task_names
from vmi_inside.linux.processes import cgroups
from vmi_inside.linux.processes.container_names import Container, container, unit
from vmi_inside.linux.processes.view import View, process_view
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class Containers(Table):
    """One row for each container that has processes."""

    id: Text  # as its runtime has it; of what has no runtime the inode number of its pid namespace
    name: Text  # where its group tells, else the beginning of its id
    runtime: Text  # docker containerd cri-o podman kubepods lxc systemd-nspawn machine; systemd; namespaces
    pod: Text  # uid of the Kubernetes pod
    unit: Text  # of systemd, that its processes belong to
    hostname: Text  # that it sees
    pid: I64  # of its first process
    init: Text  # what that is called
    processes: I64  # how many, zombies included
    cgroup_path: Text
    pid_namespace: I64  # inode numbers, of its first process
    net_namespace: I64
    mnt_namespace: I64


#: Columns of text that are taken over from what its group told.
_TOLD: Final = ("id", "name", "runtime", "pod", "cgroup_path", "unit")


class _View(View):
    """Processes, and which container each is in."""

    @cached_property
    def groups(self) -> tuple[list[tuple[str, ...]], Mask]:
        """The paths of each one's groups."""
        return cgroups.all_paths(self.kernel, self.tasks.pointer("cgroups"))

    @cached_property
    def outer(self) -> U64:
        """The outermost pid namespace (n,) that is not the machine's: 0 for none. Its processes hang together."""
        numbers, upid = self.pid.type.member("numbers"), self.kernel.struct("upid")
        inside = self.pid.unsigned("level") > 0
        second = np.uint64(numbers.offset + upid.size)
        rows = self.kernel.structs(upid, np.where(inside, self.pid.address + second, np.uint64(0)))
        found = rows.pointer("ns")
        self.noted(rows, "pid namespace")
        return found

    @cached_property
    def containers(self) -> list[Container | None]:
        """The container of each (n,)."""
        known: dict[tuple[tuple[str, ...], int], Container | None] = {}
        inode = self.namespace_inode(self.kernel.structs("pid_namespace", self.outer), "pid namespace").tolist()
        for key in zip(self.groups[0], inode, strict=True):
            if key not in known:
                known[key] = _told(*key)
        return [known[key] for key in zip(self.groups[0], inode, strict=True)]


def _told(paths: tuple[str, ...], namespace: int) -> Container | None:
    """What container a process of these groups and of that outer pid namespace (0 for the machine's) is in."""
    named = next(filter(None, map(container, paths)), None)
    if named is not None or not namespace:
        return named
    service = _unit(paths)
    runtime = "systemd" if service else "namespaces"
    return Container(runtime, str(namespace), service or str(namespace), "", paths[0] if paths else "")


def _unit(paths: tuple[str, ...]) -> str:
    return next(filter(None, map(unit, paths)), "")


def memberships(view: View) -> tuple[Text, Text]:
    """The ids of the containers and the units of systemd that processes (n,) are in; empty for none.

    The columns of `processes`; only what a group's name tells counts here.
    """
    paths, ok = cgroups.all_paths(view.kernel, view.tasks.pointer("cgroups"))
    view.faults.mark(~ok, "control groups incomplete")
    known: dict[tuple[str, ...], tuple[str, str]] = {}
    for each in paths:
        if each not in known:
            named = next(filter(None, map(container, each)), None)
            known[each] = (named.id if named else "", _unit(each))
    return text(known[each][0] for each in paths), text(known[each][1] for each in paths)


def containers(kernel: Kernel, columns: Iterable[str] | None = None) -> Containers:
    """All containers that have processes. `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have, `NoMember` where the kernel has no control
    groups.
    """
    wanted = list(Containers.schema if columns is None else columns)
    Containers.check(wanted)
    with kernel.operation():
        view = process_view(kernel, None, ("cgroups", "nsproxy", "comm", "flags", "start_boottime"), _View)
        paths, ok = view.groups
        view.faults.mark(~ok, "control groups incomplete")
        rows: dict[tuple[str, str], list[int]] = {}
        for row, told in enumerate(view.containers):
            if told is not None:
                rows.setdefault((told.runtime, told.id), []).append(row)
        firsts = _firsts(view, list(rows.values()))
        told_of = [view.containers[row] for row in firsts.tolist()]
        names = task_names(kernel, view.tasks)
        data: dict[str, Column] = {
            **{name: text(getattr(told, "path" if name == "cgroup_path" else name) for told in told_of if told)
               for name in _TOLD if name != "unit"},
            "unit": text(_unit(paths[row]) for row in firsts.tolist()),
            "pid": view.number[firsts],
            "init": text(names[row] for row in firsts.tolist()),
            "processes": np.array([len(each) for each in rows.values()], dtype=np.int64),
        }  # fmt: skip
        notes: list[str] = []
        for name, make in (("hostname", _hostnames), ("pid_namespace", View.pid_namespace),
                           ("net_namespace", View.net_namespace), ("mnt_namespace", _mnt)):  # fmt: skip
            if name not in wanted:
                continue
            try:
                data[name] = make(view)[firsts]
            except ProfileError as error:
                data[name] = text("" for _ in firsts) if name == "hostname" else np.zeros(len(firsts), dtype=np.int64)
                notes.append(f"{name}: {error}")
        data["fault"] = _joined(view.fault(), list(rows.values()))
        order = np.argsort(data["pid"], kind="stable")
        return Containers({name: data[name][order] for name in (*wanted, "fault")}, (*view.every.faults, *notes))


def _firsts(view: _View, members: list[list[int]]) -> I64:
    """The row of each container's first process: the one that its namespace counts from, else the oldest."""
    inner, level = view.innermost.number("nr"), view.pid.number("level")
    begun = view.tasks.unsigned("start_boottime")
    found = []
    for rows in members:
        mine = np.array(rows)
        # In the outermost namespace's order; a container in the machine's own has no process 1.
        inits = mine[(inner[mine] == 1) & (level[mine] > 0)]
        chosen = inits[np.argsort(level[inits], kind="stable")] if len(inits) else mine[np.argsort(begun[mine])]
        found.append(int(chosen[0]))
    return np.array(found, dtype=np.int64)


def _hostnames(view: View) -> Column:
    unique, back = np.unique(view.proxies.pointer("uts_ns"), return_inverse=True)
    spaces = view.kernel.structs("uts_namespace", unique)
    names = text(spaces.text("name.nodename"))
    view.faults.mark(spaces.fault[back], "uts namespace unreadable")
    return names[back]


def _mnt(view: View) -> Column:
    return view.namespace_inode(view.proxies.follow("mnt_ns"), "mnt namespace")


def _joined(faults: Text, members: list[list[int]]) -> Text:
    """What is wrong with any process of each container, each word once."""
    out = Faults(len(members))
    for row, mine in enumerate(members):
        which = np.zeros(len(members), dtype=np.bool_)
        which[row] = True
        for word in dict.fromkeys(word for at in mine for word in faults[at].split("; ") if word):
            out.mark(which, word)
    return out.column()
