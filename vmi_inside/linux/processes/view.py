"""The tasks of one reading, and what hangs on them: shared by the tables of processes and of threads.

Knows `task_struct` and its neighbours (include/linux/sched.h, include/linux/cred.h, include/linux/sched/signal.h).
Which columns a table has is its own matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Generic, TypeVar

import numpy as np

from vmi_inside.errors import ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux import clock
from vmi_inside.linux.files import paths
from vmi_inside.linux.memory import mm
from vmi_inside.linux.processes import cgroups, cputime
from vmi_inside.linux.tasks import CHANGED, PF_KTHREAD, PIDTYPE_PID, PIDTYPE_TGID, Pids, changed
from vmi_inside.linux.tasks import pids as all_pids
from vmi_inside.structs import Names, Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask

DEFAULT_PRIORITY = 120  # MAX_RT_PRIO + NICE_WIDTH / 2: nice 0 (include/linux/sched/prio.h)
#: What stands in a column that cannot be made, and its type; numbers are 0.
_BLANK: Final[dict[str, tuple[Any, Any]]] = {
    "text": ("", object),
    "boolean": (False, np.bool_),
    "unsigned": (0, np.uint64),
}
_CRED = ("uid.val", "gid.val", "euid.val", "egid.val", "suid.val", "sgid.val")

T = TypeVar("T", bound=Table)
V = TypeVar("V", bound="View")
V_contra = TypeVar("V_contra", bound="View", contravariant=True)


class View:
    """The tasks of one reading, and the structs that hang on them, each fetched when first asked for."""

    #: The member of tasks that holds their `number`.
    own = "tgid"

    def __init__(self, kernel: Kernel, number: I64, pid: Structs, tasks: Structs, faults: Faults, every: Pids) -> None:
        self.kernel = kernel
        self.number = number
        self.pid = pid
        self.tasks = tasks
        self.faults = faults
        self.every = every

    def fault(self) -> Text:
        """What is wrong with each row; to be asked when all else was read."""
        self.faults.mark(changed(self.number, self.tasks, self.own), CHANGED)
        return self.faults.column()

    def noted(self, rows: Structs, what: str) -> Structs:
        """Mark the rows of which `what` could not be read."""
        self.faults.mark(rows.fault, f"{what} unreadable")
        return rows

    @cached_property
    def cred(self) -> Structs:
        """Credentials as other tasks see them (`real_cred`, what /proc shows)."""
        return self.noted(self.tasks.follow("real_cred").fetch(*_CRED), "credentials")

    @cached_property
    def signal(self) -> Structs:
        """What the threads of a process share."""
        return self.noted(
            self.tasks.follow("signal").fetch("nr_threads", "utime", "stime", "sum_sched_runtime"), "signal struct"
        )

    @cached_property
    def mm(self) -> Structs:
        """The user memory of each process; none for kernel threads, which may borrow somebody's."""
        address = np.where(self.kernel_thread, np.uint64(0), self.tasks.pointer("mm"))
        rows = Structs(self.kernel.space, self.kernel.struct("mm_struct"), address)
        return self.noted(rows.fetch("exe_file", "total_vm", *mm.CMDLINE), "memory descriptor")

    @cached_property
    def kernel_thread(self) -> Mask:
        """Which are kernel threads."""
        flagged: Mask = self.tasks.number("flags") & PF_KTHREAD != 0
        return flagged

    @cached_property
    def times(self) -> tuple[I64, I64]:
        """Of dead threads (summed in the signal struct) and living ones."""
        members = ("signal", "utime", "stime", "se.sum_exec_runtime")
        _, _, threads = self.every.tasks(self.kernel, PIDTYPE_PID)
        threads.fetch(*members)
        total = [self.signal.unsigned(name).copy() for name in ("utime", "stime", "sum_sched_runtime")]
        mine = self.signal.address
        order = np.argsort(mine, kind="stable")
        owner = threads.pointer("signal")
        at = np.searchsorted(mine[order], owner) if len(mine) else np.zeros(0, dtype=np.intp)
        hit = at < len(mine)
        hit[hit] = mine[order[at[hit]]] == owner[hit]
        hit &= (owner != 0) & ~threads.fault
        to = order[at[hit]]
        for column, name in zip(total, members[1:], strict=True):
            np.add.at(column, to, threads.unsigned(name)[hit])
        return cputime.adjusted(*total)

    @cached_property
    def boot_time(self) -> float:
        """When the guest booted, seconds since the epoch; 0 where that cannot be told."""
        found = clock.boot_time(self.kernel)
        if found is None:
            self.faults.mark(np.ones(len(self.tasks), dtype=np.bool_), "start_time counts from boot: clock unreadable")
            return 0.0
        return found

    def parent(self) -> Column:
        """Pids of the parents, as the initial namespace numbers them."""
        unique, back = np.unique(self.tasks.pointer("real_parent"), return_inverse=True)
        found = Structs(self.kernel.space, self.tasks.type, unique)
        numbers = found.number("tgid")
        self.faults.mark(found.fault[back], "parent unreadable")
        return numbers[back]

    def path(self) -> Column:
        """Paths of the executables."""
        files = self.noted(self.mm.follow("exe_file").fetch("f_path.dentry", "f_path.mnt"), "executable")
        found, ok = paths.paths(self.kernel, files.pointer("f_path.dentry"), files.pointer("f_path.mnt"))
        self.faults.mark(~ok, "path incomplete")
        return text(found)

    def cmdline(self) -> Column:
        """Command lines."""
        found, ok = mm.command_lines(self.kernel, self.mm)
        self.faults.mark(~ok, "cmdline not in memory")
        return text(found)

    def resident(self) -> Column:
        """Resident bytes."""
        found, ok = mm.resident_bytes(self.kernel, self.mm)
        self.faults.mark(~ok, "resident_size incomplete")
        return found

    def cgroup(self) -> Column:
        """Paths in the unified hierarchy."""
        found, ok = cgroups.cgroup_paths(self.kernel, self.tasks.pointer("cgroups"))
        self.faults.mark(~ok, "cgroup_path incomplete")
        return text(found)

    @cached_property
    def innermost(self) -> Structs:
        """The innermost of each pid's numbers: `nr`, the pid that the process itself sees, and `ns` (`ns_of_pid`)."""
        numbers = self.pid.type.member("numbers")
        upid = numbers.type.target if numbers.type.kind == "array" else self.kernel.struct("upid")
        level: U64 = np.minimum(self.pid.unsigned("level"), np.uint64(32))  # MAX_PID_NS_LEVEL
        address = self.pid.address + np.uint64(numbers.offset) + level * np.uint64(upid.size)
        return Structs(self.kernel.space, upid, address).fetch("nr", "ns")

    def pid_namespace(self) -> Column:
        """Inode numbers of pid namespaces."""
        return self.namespace_inode(self.innermost.follow("ns"), "pid namespace")

    @cached_property
    def proxies(self) -> Structs:
        """Where the namespaces of each task are; 0 for zombies, which have left theirs."""
        return self.noted(self.tasks.follow("nsproxy").fetch("net_ns"), "namespaces")

    def net_namespace(self) -> Column:
        """Inode numbers of network namespaces; 0 for zombies."""
        return self.namespace_inode(self.proxies.follow("net_ns"), "net namespace")

    def namespace_inode(self, namespaces: Structs, what: str) -> Column:
        """Inode numbers (n,) of namespaces, which are `what`; 0 for 0."""
        unique, back = np.unique(namespaces.address, return_inverse=True)
        found = Structs(self.kernel.space, namespaces.type, unique)
        inode = found.number("ns.inum")
        self.faults.mark(found.fault[back], f"{what} unreadable")
        return inode[back]


@dataclass(frozen=True, slots=True)
class TaskColumn(Generic[V_contra]):
    """How a column is made, and which members of the task itself it needs, so that these are one reading."""

    make: Callable[[V_contra], Column]
    task: tuple[Names, ...] = ()


def process_view(
    kernel: Kernel, pids: frozenset[int] | None, members: Iterable[Names], kind: type[V], by: int = PIDTYPE_TGID
) -> V:
    """All processes, or those in `pids`, with these members of their tasks, where the kernel has them.

    `by` PIDTYPE_PID it is all threads, or those of the processes in `pids`. Those that cannot be read or believed are
    marked. Call it in an `operation()`.
    """
    every = all_pids(kernel)
    own = "pid" if by == PIDTYPE_PID else "tgid"
    number, pid, tasks = every.tasks(kernel, by)
    if pids is not None:
        chosen = np.isin(tasks.number("tgid") if by == PIDTYPE_PID else number, list(pids))
        number, pid, tasks = number[chosen], pid.select(chosen), tasks.select(chosen)
    faults = Faults(len(tasks))
    tasks.fetch(own, *(names for names in members if tasks.has(*((names,) if isinstance(names, str) else names))))
    faults.mark(pid.fault, "pid unreadable")
    faults.mark(tasks.fault, "task unreadable")
    faults.mark(~tasks.fault & (tasks.address != 0) & (tasks.number(own) != number), "task has another pid")
    view = kind(kernel, number, pid, tasks, faults, every)
    view.own = own
    return view


def process_table(
    kernel: Kernel,
    table: type[T],
    makers: Mapping[str, TaskColumn[V]],
    columns: Iterable[str] | None,
    pids: frozenset[int] | None,
    kind: type[V],
    by: int = PIDTYPE_TGID,
) -> T:
    """A table of one row for each process, or for each in `pids`; `columns` asks for some columns only.

    `by` PIDTYPE_PID it is one row for each thread. Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(table.schema if columns is None else columns)
    table.check(wanted)
    asked = {name: makers[name] for name in wanted if name in makers}
    with kernel.operation():
        view = process_view(kernel, pids, (names for column in asked.values() for names in column.task), kind, by)
        data, notes = make_columns({name: column.make for name, column in asked.items()}, view, table)
        data["fault"] = view.fault()
        return table(data, (*view.every.faults, *notes))


def start_times(view: View) -> Column:
    """Seconds since the epoch at which each task began."""
    since_boot = view.tasks.unsigned("start_boottime").astype(np.float64) / 1e9
    return np.floor(since_boot + view.boot_time).astype(np.int64)


def make_columns(
    makers: Mapping[str, Callable[[V], Column]], view: V, table: type[Table]
) -> tuple[dict[str, Column], list[str]]:
    """Columns by name; one that this kernel has no members for is empty (0, "", False) and noted."""
    data: dict[str, Column] = {}
    notes: list[str] = []
    for name, make in makers.items():
        try:
            data[name] = make(view)
        except ProfileError as error:
            data[name] = np.full(len(view.tasks), *_BLANK.get(table.describe()[name], (0, np.int64)))
            notes.append(f"{name}: {error}")
    return data, notes
