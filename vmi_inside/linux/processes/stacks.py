"""Kernel stacks: in which functions of the kernel each thread that does not run waits.

What /proc/PID/stack shows to root. How stacks are walked is `unwind`'s knowledge, whose code lies where `code`'s.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.names import task_names
from vmi_inside.linux.processes import unwind
from vmi_inside.linux.processes.sleeping import MEMBERS
from vmi_inside.linux.processes.view import View, process_view
from vmi_inside.linux.symbols.code import Code
from vmi_inside.linux.tasks import PIDTYPE_PID
from vmi_inside.table import Column, Table, Text, text
from vmi_inside.types import I64, U64


class ProcessStack(Table):
    """One row for each frame of each thread's stack, innermost first; without the scheduler's, as /proc has it."""

    pid: I64
    tid: I64
    name: Text  # of the thread
    frame: I64  # 0 is where it waits
    address: U64  # to which the function returns that was called there
    symbol: Text  # do_wait+0x160, nf_hook+0x10 [nf_tables]
    how: Text  # orc: as the kernel itself unwinds; scan: what looks like a return address


def process_stack(
    kernel: Kernel, columns: Iterable[str] | None = None, *, pids: frozenset[int] | None = None
) -> ProcessStack:
    """The kernel stacks of all threads, or of those of the processes in `pids`; `columns` asks for some columns only.

    A thread whose stack cannot be told (it runs, its stack is damaged) has one row without an address, which says why.
    Raises `AttributeError` for a column that the table does not have, `NoMember` where the kernel keeps its stacks
    otherwise.
    """
    wanted = list(ProcessStack.schema if columns is None else columns)
    ProcessStack.check(wanted)
    with kernel.operation():
        view = process_view(kernel, pids, ("tgid", "comm", "flags", *MEMBERS), View, PIDTYPE_PID)
        code = Code(kernel)
        found = unwind.frames(kernel, view.tasks, code)
        for which, word in found.faults:
            view.faults.mark(which, word)
        faults = view.fault()
        bare = np.setdiff1d(np.flatnonzero(faults != ""), found.owner)
        owner, address = (
            np.concatenate((found.owner, bare)),
            np.concatenate((found.address, bare.astype(np.uint64) * 0)),
        )
        order = np.argsort(owner, kind="stable")
        owner, address = owner[order], address[order]
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        data: dict[str, Column] = {
            "pid": view.tasks.number("tgid")[owner],
            "tid": view.number[owner],
            "name": text(task_names(kernel, view.tasks))[owner],
            "frame": np.arange(len(owner)) - np.repeat(first, np.diff(first, append=len(owner))),
            "address": address,
            "how": np.where(address == 0, "", found.how).astype(object),
            "fault": faults[owner],
        }
        if "symbol" in wanted:
            data["symbol"] = code.symbols(address, returns=True)
        notes = (
            () if found.how == "orc" else ("stacks: the kernel has no ORC tables that are known; they were scanned",)
        )
        return ProcessStack({name: data[name] for name in (*wanted, "fault")}, (*view.every.faults, *notes))
