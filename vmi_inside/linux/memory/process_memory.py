"""What each process's memory consists of, as /proc/PID/status shows it; and with page tables walked, its fair share.

Knows what `mm_struct` counts (include/linux/mm_types.h; fs/proc/task_mmu.c `task_mem`). Walking page tables is
`resident`'s knowledge, regions are a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.memory import mm
from vmi_inside.linux.memory.resident import Shares, shares
from vmi_inside.linux.memory.vmas import user_memory
from vmi_inside.linux.names import task_names
from vmi_inside.linux.tasks import CHANGED, changed
from vmi_inside.linux.tasks import pids as all_pids
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, PAGE_SHIFT, PAGE_SIZE, Mask


class ProcessMemory(Table):
    """One row for each process that has user memory. Bytes; osquery's column names where it has them.

    `mapped`, `pss` and `uss` are found by walking all page tables, which costs more than all the rest: they are left
    out unless they are asked for by name. Kernels before 6.2 count late, by some pages for each thread; `mapped` is
    exact there, too.
    """

    pid: I64
    name: Text
    resident_size: I64  # anonymous, file and shmem together, as the kernel counts them
    anon: I64
    file: I64
    shmem: I64
    swap: I64
    total_size: I64
    peak_resident: I64
    peak_size: I64
    locked: I64
    pinned: I64
    data: I64
    stack: I64
    exe: I64  # the executable's code
    lib: I64  # other code
    page_tables: I64
    hugetlb: I64
    mapped: I64  # resident, by the page tables
    pss: I64  # each page divided by how many map it
    uss: I64  # pages that nobody else maps


#: MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES (include/linux/mm_types_task.h).
_FILE, _ANON, _SWAP, _SHMEM = range(4)
_SIZES: Final = ("total_vm", "hiwater_vm", "hiwater_rss", "locked_vm", "pinned_vm", "data_vm", "stack_vm", "exec_vm")
_CODE: Final = ("start_code", "end_code")
_COUNTERS: Final = ("pgtables_bytes.counter", "hugetlb_usage.counter", "pinned_vm.counter")


class _Memory:
    """The processes of one reading (n rows)."""

    def __init__(self, kernel: Kernel, number: I64, tasks: Structs, mms: Structs) -> None:
        self.kernel = kernel
        self.number = number
        self.tasks = tasks
        self.mms = mms
        self.mms.fetch(*(name for name in (*_SIZES, *_CODE, *_COUNTERS, "pgd") if mms.has(name)))

    def pages(self, name: str) -> I64:
        """A number of pages as bytes."""
        counter = f"{name}.counter"
        found = self.mms.number(counter) if self.mms.has(counter) else self.mms.number(name)
        return _bytes(found)

    def kind(self, which: int) -> I64:
        """Bytes of one of the kinds of pages that are counted."""
        return _bytes(np.maximum(self._counts[0][:, which], 0))

    @cached_property
    def _counts(self) -> tuple[I64, Mask]:
        return mm.counted_pages(self.kernel, self.mms, (_FILE, _ANON, _SWAP, _SHMEM))

    @property
    def exact(self) -> Mask:
        """Of which all counts could be read."""
        return self._counts[1]

    def resident(self) -> I64:
        """Bytes in memory."""
        return self.kind(_FILE) + self.kind(_ANON) + self.kind(_SHMEM)

    def peak_resident(self) -> I64:
        """Bytes; the kernel writes the peak down only when it shrinks from it."""
        return np.maximum(self.pages("hiwater_rss"), self.resident())

    def peak_size(self) -> I64:
        """Bytes."""
        return np.maximum(self.pages("hiwater_vm"), self.pages("total_vm"))

    def exe(self) -> I64:
        """Bytes of whole pages between the executable's first and last byte of code, of what may be executed at all."""
        first, last = self.mms.unsigned("start_code"), self.mms.unsigned("end_code")
        mask = ~np.uint64(PAGE_SIZE - 1)
        size = ((last + np.uint64(PAGE_SIZE - 1)) & mask) - (first & mask)
        return np.minimum(np.minimum(size, np.uint64(1 << 62)).astype(np.int64), self.pages("exec_vm"))

    @cached_property
    def shares(self) -> tuple[Shares, I64]:
        """By page tables, of each memory once; and (n,) which of them is whose."""
        _, first, back = np.unique(self.mms.address, return_index=True, return_inverse=True)
        return shares(self.kernel, self.mms.select(first)), back

    def share(self, name: str) -> I64:
        """Bytes by page tables."""
        found, back = self.shares
        column: I64 = getattr(found, name)[back]
        return column


def _bytes(pages: I64) -> I64:
    """Bytes, of a number of pages that may be anything."""
    return np.clip(pages, 0, 1 << 50) << PAGE_SHIFT


_COLUMNS: Final[dict[str, Callable[[_Memory], Column]]] = {
    "pid": lambda rows: rows.number,
    "name": lambda rows: text(task_names(rows.kernel, rows.tasks)),
    "resident_size": _Memory.resident,
    "anon": lambda rows: rows.kind(_ANON),
    "file": lambda rows: rows.kind(_FILE),
    "shmem": lambda rows: rows.kind(_SHMEM),
    "swap": lambda rows: rows.kind(_SWAP),
    "total_size": lambda rows: rows.pages("total_vm"),
    "peak_resident": _Memory.peak_resident,
    "peak_size": _Memory.peak_size,
    "locked": lambda rows: rows.pages("locked_vm"),
    "pinned": lambda rows: rows.pages("pinned_vm"),
    "data": lambda rows: rows.pages("data_vm"),
    "stack": lambda rows: rows.pages("stack_vm"),
    "exe": _Memory.exe,
    "lib": lambda rows: np.maximum(rows.pages("exec_vm") - rows.exe(), 0),
    "page_tables": lambda rows: np.maximum(rows.mms.number("pgtables_bytes.counter"), 0),
    "hugetlb": lambda rows: rows.pages("hugetlb_usage"),
    "mapped": lambda rows: rows.share("resident"),
    "pss": lambda rows: rows.share("pss"),
    "uss": lambda rows: rows.share("uss"),
}
_WALKED: Final = frozenset(("mapped", "pss", "uss"))
#: What is read where no columns are named.
PLAIN: Final = tuple(name for name in ProcessMemory.schema if name not in _WALKED)


def process_memory(
    kernel: Kernel, columns: Iterable[str] | None = None, *, pids: frozenset[int] | None = None
) -> ProcessMemory:
    """The memory of all processes, or of those in `pids`; `columns` asks for some columns, all otherwise but those
    that need page tables.

    Kernel threads and zombies have none. Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(PLAIN if columns is None else columns)
    ProcessMemory.check(wanted)
    with kernel.operation():
        every = all_pids(kernel)
        number, tasks = every.processes(kernel, pids)
        tasks.fetch("mm", "flags", "comm")
        mms = user_memory(kernel, tasks)
        there = (mms.address != 0) | tasks.fault
        rows = _Memory(kernel, number[there], tasks.select(there), mms.select(there))
        data = {name: _COLUMNS[name](rows) for name in wanted if name in _COLUMNS}
        faults = Faults(len(rows.number))
        faults.mark(rows.tasks.fault, "task unreadable")
        faults.mark(rows.mms.fault, "memory descriptor unreadable")
        faults.mark(~rows.exact, "counts incomplete")
        notes = list(every.faults)
        if _WALKED & set(wanted):
            found, back = rows.shares
            faults.mark(~found.whole[back], "page tables incomplete")
            notes += found.faults
        faults.mark(changed(rows.number, rows.tasks), CHANGED)
        data["fault"] = faults.column()
        return ProcessMemory(data, notes)
