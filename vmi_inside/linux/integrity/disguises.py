"""Processes that look like something else: like a kernel thread, or with no executable that could be looked at.

Knows how `ps` tells kernel threads (brackets), where these come from (kthreadd), and the marks of an executable that is
in no directory. What a process does is left to others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.opened import opened
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.memory import mm
from vmi_inside.linux.memory.vmas import user_memory
from vmi_inside.linux.tasks import PF_KTHREAD
from vmi_inside.types import U64

_KTHREADD: Final = 2
#: Beginnings of kernel threads' names, which no program is called by.
_KERNEL_NAMES: Final = ("kworker/", "ksoftirqd/", "migration/", "rcu_", "kthreadd", "irq/", "cpuhp/", "idle_inject/",
                        "kswapd", "kcompactd", "khugepaged")  # fmt: skip
_ARGUMENT: Final = 64


def disguised_processes(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """User processes with names of kernel threads, kernel threads that are none, executables without a name."""
    number, tasks = reading.processes
    names = tasks.text("comm")
    flags = tasks.number("flags")
    thread = flags & PF_KTHREAD != 0
    memory = user_memory(kernel, tasks).fetch("exe_file", *mm.CMDLINE)
    lines, _ = mm.command_lines(kernel, memory)

    def of(row: int, severity: str, expected: str, seen: str, detail: str = "") -> Finding:
        return Finding(
            severity, f"pid {number[row]} ({names[row]})", expected, seen, int(tasks.address[row]), detail=detail
        )

    for row in np.flatnonzero(memory.address).tolist():
        line, called = lines[row].strip(), names[row].startswith(_KERNEL_NAMES)
        if (line.startswith("[") and line.endswith("]")) or (called and not line):
            shown = line[:_ARGUMENT] or f"[{names[row]}]"
            yield of(row, "medium", "not shown as a kernel thread by ps: it is none", shown)
        elif called:
            line = f"command line {line[:_ARGUMENT]}"
            yield of(row, "low", "no name of a kernel thread: it is none", names[row], line)
    parents = kernel.structs(tasks.type, tasks.pointer("real_parent")).number("tgid")
    for row in np.flatnonzero(thread & (parents != _KTHREADD) & (number != _KTHREADD)).tolist():
        yield of(row, "medium", "kthreadd as the parent of a kernel thread", f"pid {parents[row]}")
    # A kernel thread may borrow a process's memory (kthread_use_mm), but has no executable of its own.
    for row in np.flatnonzero(thread & (tasks.pointer("mm") != 0)).tolist():
        yield of(row, "low", "a kernel thread without user memory", f"mm {int(tasks.pointer('mm')[row]):#x}")
    yield from _executables(kernel, number.tolist(), names, memory.pointer("exe_file"))


def _executables(kernel: Kernel, number: list[int], names: list[str], file: U64) -> Iterator[Finding]:
    what = opened(kernel, kernel.structs("file", file))
    deleted, path = what.deleted, what.path
    for row in np.flatnonzero(deleted & (file != 0)).tolist():
        memfd = path[row].startswith("/memfd:")
        yield Finding(
            "low" if memfd else "info", f"pid {number[row]} ({names[row]})", "an executable with a name",
            path[row], int(file[row]), detail="runs from memory alone" if memfd else "its executable is deleted",
        )  # fmt: skip
