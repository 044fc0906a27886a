"""Environment variables of processes, as they were when each began: what /proc/PID/environ shows.

Knows what a variable is. Where the environment lies is `mm`'s knowledge; what a process made of it later only the
process knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.linux.memory import mm
from vmi_inside.linux.names import task_names
from vmi_inside.linux.processes.view import View, process_view
from vmi_inside.table import Column, Table, Text, text
from vmi_inside.types import I64

#: Variables that are shown of one process, and of all.
_PER_PROCESS: Final = 1 << 13
_IN_ALL: Final = 1 << 18


class ProcessEnvs(Table):
    """One row for each variable of each process; osquery's column names where it has them."""

    pid: I64
    name: Text  # of the process
    key: Text  # up to the first =
    value: Text


def process_envs(
    kernel: Kernel, columns: Iterable[str] | None = None, *, pids: frozenset[int] | None = None
) -> ProcessEnvs:
    """The environments of all processes, or of those in `pids`. Kernel threads and zombies have none.

    A process whose environment cannot be read has one row without a variable, which says so. Raises `AttributeError`
    for a column that the table does not have.
    """
    wanted = list(ProcessEnvs.schema if columns is None else columns)
    ProcessEnvs.check(wanted)
    with kernel.operation():
        view = process_view(kernel, pids, ("mm", "flags", "comm"), View)
        raw, ok, cut = mm.environments(kernel, view.mm)
        view.faults.mark(~ok, "environment not in memory")
        parts = [[part for part in each.split(b"\0", _PER_PROCESS)[:_PER_PROCESS] if part] for each in raw]
        many = np.array([each.count(b"\0") > _PER_PROCESS for each in raw], dtype=np.bool_)
        view.faults.mark(cut | many, "environment cut")
        count = np.array([len(each) for each in parts], dtype=np.int64)
        left_out = ~ragged.fitting(count, _IN_ALL)
        view.faults.mark(left_out, "environment left out")
        faults = view.fault()
        for row in np.flatnonzero(left_out | ((count == 0) & (faults != ""))).tolist():
            parts[row] = [b""]
        owner = np.repeat(np.arange(len(parts)), [len(each) for each in parts])
        pairs = [part.decode("utf-8", "backslashreplace").partition("=") for each in parts for part in each]
        data: dict[str, Column] = {
            "pid": view.number[owner],
            "name": text(task_names(kernel, view.tasks))[owner],
            "key": text(key for key, _, _ in pairs),
            "value": text(value for _, _, value in pairs),
            "fault": faults[owner],
        }
        notes = ("environments: too many variables in all; the largest were left out",) if left_out.any() else ()
        return ProcessEnvs({name: data[name] for name in (*wanted, "fault")}, (*view.every.faults, *notes))
