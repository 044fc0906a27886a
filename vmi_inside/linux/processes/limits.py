"""Resource limits of processes: what /proc/PID/limits and `ulimit` show.

Knows `signal_struct.rlim` (include/uapi/asm-generic/resource.h) and the names that /proc gives its members.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.names import task_names
from vmi_inside.linux.processes.view import View, process_view
from vmi_inside.table import Column, Table, Text, text
from vmi_inside.types import I64, MASK64, U64

#: What "unlimited" is in numbers: RLIM_INFINITY.
UNLIMITED: Final = MASK64
#: Names and units by number (fs/proc/base.c, lnames).
_RESOURCES: Final = (
    ("Max cpu time", "seconds"), ("Max file size", "bytes"), ("Max data size", "bytes"), ("Max stack size", "bytes"),
    ("Max core file size", "bytes"), ("Max resident set", "bytes"), ("Max processes", "processes"),
    ("Max open files", "files"), ("Max locked memory", "bytes"), ("Max address space", "bytes"),
    ("Max file locks", "locks"), ("Max pending signals", "signals"), ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""), ("Max realtime priority", ""), ("Max realtime timeout", "us"),
)  # fmt: skip


class ProcessLimits(Table):
    """One row for each resource of each process."""

    pid: I64
    name: Text  # of the process
    resource: Text  # as /proc/PID/limits calls it
    soft: U64  # what holds now; 2^64-1 is no limit
    hard: U64  # how far a process without privilege may raise it
    unit: Text


def process_limits(
    kernel: Kernel, columns: Iterable[str] | None = None, *, pids: frozenset[int] | None = None
) -> ProcessLimits:
    """The limits of all processes, or of those in `pids`; `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(ProcessLimits.schema if columns is None else columns)
    ProcessLimits.check(wanted)
    with kernel.operation():
        view = process_view(kernel, pids, ("signal", "comm", "flags"), View)
        shared = view.tasks.follow("signal").fetch("rlim")
        view.noted(shared, "limits")
        count = min(shared.type.member("rlim").type.count, len(_RESOURCES))
        # soft and hard of each resource, in pairs (struct rlimit)
        pairs = np.ascontiguousarray(shared["rlim"]).view("<u8")[:, : 2 * count]
        owner = np.repeat(np.arange(len(shared)), count)
        data: dict[str, Column] = {
            "pid": view.number[owner],
            "name": text(task_names(kernel, view.tasks))[owner],
            "resource": text([word for word, _ in _RESOURCES[:count]] * len(shared)),
            "soft": pairs[:, 0::2].ravel(),
            "hard": pairs[:, 1::2].ravel(),
            "unit": text([unit for _, unit in _RESOURCES[:count]] * len(shared)),
            "fault": view.fault()[owner],
        }
        return ProcessLimits({name: data[name] for name in (*wanted, "fault")}, view.every.faults)
