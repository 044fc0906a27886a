"""Memory maps: one row for each region of each process's memory, as /proc/PID/maps shows them.

Knows what regions without a file are called (fs/proc/task_mmu.c). How regions are found is `vmas`' knowledge, what a
file is `opened`'s; what regions hold is left to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.errors import MemoryFault
from vmi_inside.kernel import Kernel
from vmi_inside.linux.files.opened import Opened, opened
from vmi_inside.linux.memory import vmas
from vmi_inside.linux.tasks import CHANGED, changed
from vmi_inside.linux.tasks import pids as all_pids
from vmi_inside.structs import Structs
from vmi_inside.table import Column, Faults, Table, Text, text
from vmi_inside.types import I64, U64, Mask


class MemoryMap(Table):
    """One row for each region; osquery's column names where it has them."""

    pid: I64
    start: U64  # user address
    end: U64  # the first address behind it
    permissions: Text  # rwxp as in /proc/PID/maps; s for shared
    offset: U64  # bytes, in the file; 0 without one
    device: Text  # of the file's file system, major:minor
    inode: I64
    path: Text  # of the file; [heap], [stack], [vdso], [anon:NAME] ...; empty for other anonymous memory
    pseudo: Mask  # the path leads to no file in any directory
    flags: U64  # VM_*
    address: U64  # of the vm_area_struct; the kernel's own for [vsyscall]


_ANON_NAME_LIMIT: Final = 80  # ANON_VMA_NAME_MAX_LEN (include/linux/mm_types.h)
#: MM_CONTEXT_HAS_VSYSCALL: a bit's number in mm_context_t.flags (arch/x86/include/asm/mmu.h).
_HAS_VSYSCALL: Final = 1 << 1
#: The last of EMULATE, XONLY, NONE (arch/x86/entry/vsyscall/vsyscall_64.c).
_VSYSCALL_NONE: Final = 2
_LETTERS: Final = tuple(
    f"{'-r'[bits & 1]}{'-w'[bits >> 1 & 1]}{'-x'[bits >> 2 & 1]}{'ps'[bits >> 3]}" for bits in range(16)
)


class _Map:
    """The regions of all processes asked: by task and address, those that are the kernel's own behind them."""

    def __init__(self, kernel: Kernel, number: I64, tasks: Structs) -> None:
        self.kernel = kernel
        self.number = number
        self.tasks = tasks
        self.memory = vmas.user_memory(kernel, tasks)
        found = self.regions = vmas.regions(kernel, self.memory)
        gate, self.gate_fault = self._gate()
        holders = self._gate_holders() if gate is not None else np.zeros(0, dtype=np.int64)
        count = len(holders)
        task = np.concatenate((found.owner, holders))
        self.order = np.argsort(task, kind="stable")
        self.task = task[self.order]

        def column(of_regions: U64, of_gate: int) -> U64:
            return np.concatenate((of_regions, np.full(count, of_gate, dtype=of_regions.dtype)))[self.order]

        start, end, flags, address = gate or (0, 0, 0, 0)
        self.start, self.end = column(found.start, start), column(found.end, end)
        self.flags = column(found.flags, flags)
        self.address = column(found.vma.address, address)
        self.file = column(found.file, 0)
        self.pgoff = column(found.offset, 0)
        self.fault = np.concatenate((found.fault, np.zeros(count, dtype=np.bool_)))[self.order]
        self.is_gate = self.order >= len(found.owner)

    def _gate(self) -> tuple[tuple[int, int, int, int] | None, bool]:
        """Start, end, flags and address of the one region that no tree holds: `gate_vma` (arch/x86/entry/vsyscall)."""
        at, mode = self.kernel.profile.find_symbol("gate_vma"), self.kernel.profile.find_symbol("vsyscall_mode")
        if at is None:
            return None, False
        try:
            if mode is not None and self.kernel.number(4, "vsyscall_mode") == _VSYSCALL_NONE:
                return None, False
        except MemoryFault:
            return None, True
        row = self.kernel.structs("vm_area_struct", [at]).fetch("vm_start", "vm_end", vmas.FLAGS)
        if row.fault.any():
            return None, True
        start, end, flags = (int(row.unsigned(name)[0]) for name in ("vm_start", "vm_end", vmas.FLAGS))
        return (start, end, flags, at), False

    def _gate_holders(self) -> NDArray[np.int64]:
        """The tasks (m,) that have it: 64-bit ones."""
        if not self.memory.has("context.flags"):
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero(self.memory.unsigned("context.flags") & np.uint64(_HAS_VSYSCALL))

    @cached_property
    def _files(self) -> tuple[Opened, Structs, NDArray[np.intp]]:
        """What the mapped files are, each once; and which one each row has (0 where it has none)."""
        unique, back = np.unique(np.append(self.file, np.uint64(0)), return_inverse=True)
        files = self.kernel.structs("file", unique).fetch("f_path.dentry", "f_path.mnt", "f_inode", "f_mode")
        return opened(self.kernel, files), files, back[:-1]

    def of_file(self, column: Column) -> Column:
        """A column of the files as a column of the table."""
        return column[self._files[2]]

    @property
    def opened(self) -> Opened:
        """What the mapped files are."""
        return self._files[0]

    @cached_property
    def file_fault(self) -> Mask:
        """Which rows (m,) have a file that could not be read."""
        what, files, back = self._files
        bad: Mask = (files.fault | what.fault)[back]
        return bad

    @cached_property
    def path(self) -> Text:
        """Paths, and names in brackets."""
        out: Text = self.of_file(self.opened.path).copy()
        rows = np.flatnonzero((self.file == 0) & ~self.is_gate)
        out[self.is_gate] = "[vsyscall]"
        memory = self.memory.fetch("brk", "start_brk", "start_stack")
        task, start, end = self.task[rows], self.start[rows], self.end[rows]
        brk, start_brk, stack = (memory.unsigned(name)[task] for name in ("brk", "start_brk", "start_stack"))
        out[rows[(start < brk) & (end > start_brk)]] = "[heap]"
        out[rows[(start <= stack) & (end >= stack)]] = "[stack]"
        self._named(out)
        self._special(out)
        return out

    @cached_property
    def _vmas(self) -> Structs:
        """The structs, one a row, with what tells their names."""
        rows = self.kernel.structs(self.regions.vma.type, self.address)
        return rows.fetch("vm_ops", "vm_private_data", *(name for name in ("anon_name",) if rows.has(name)))

    def _named(self, out: Text) -> None:
        """Put in names that the process gave (prctl PR_SET_VMA; 5.17 and later)."""
        ctype = self._vmas.type
        if not ctype.has("anon_name"):
            return
        given = self._vmas.follow("anon_name")
        named = (given.address != 0) & ~self.is_gate
        if ctype.has("shared") and ctype.member("shared").offset == ctype.member("anon_name").offset:
            named &= self.file == 0  # until 6.1, regions of files have something else there
        rows = np.flatnonzero(named)
        if not len(rows) or not given.has("name"):
            return
        names, _ = self.kernel.strings(given.select(rows).at("name"), _ANON_NAME_LIMIT)
        for row, name in zip(rows.tolist(), names, strict=True):
            if self.file[row]:
                out[row] = f"[anon_shmem:{name}]"
            elif not out[row]:
                out[row] = f"[anon:{name}]"

    def _special(self, out: Text) -> None:
        """Put in names that the kernel gave to what it mapped itself: [vdso], [vvar], [uprobes] ..."""
        known = (
            self.kernel.profile.find_symbol(name) for name in ("special_mapping_vmops", "legacy_special_mapping_vmops")
        )
        operations = [at for at in known if at is not None]
        rows = np.flatnonzero(np.isin(self._vmas.pointer("vm_ops"), np.array(operations, dtype=np.uint64)))
        mapping = self.kernel.find_struct("vm_special_mapping")
        if mapping is None or not len(rows):
            return
        unique, back = np.unique(self._vmas.pointer("vm_private_data")[rows], return_inverse=True)
        names, _ = self.kernel.strings(self.kernel.structs(mapping, unique).pointer("name"), 64)
        out[rows] = text(names)[back]

    def pseudo(self) -> Mask:
        """Whether the path leads to no file."""
        pseudo: Mask = (self.file == 0) | self.of_file(self.opened.pseudo)
        return pseudo

    def permissions(self) -> Text:
        """rwxp."""
        shared = (self.flags & np.uint64(vmas.VM_MAYSHARE) != 0).astype(np.uint64) << np.uint64(3)
        shown: Text = text(_LETTERS)[((self.flags & np.uint64(7)) | shared).astype(np.intp)]
        return shown


_COLUMNS: Final[dict[str, Callable[[_Map], Column]]] = {
    "pid": lambda rows: rows.number[rows.task],
    "start": lambda rows: rows.start,
    "end": lambda rows: rows.end,
    "permissions": _Map.permissions,
    "offset": lambda rows: np.where(rows.file == 0, np.uint64(0), rows.pgoff),
    "device": lambda rows: rows.of_file(rows.opened.device),
    "inode": lambda rows: rows.of_file(rows.opened.inode),
    "path": lambda rows: rows.path,
    "pseudo": _Map.pseudo,
    "flags": lambda rows: rows.flags,
    "address": lambda rows: rows.address,
}


def process_memory_map(
    kernel: Kernel, columns: Iterable[str] | None = None, *, pids: frozenset[int] | None = None
) -> MemoryMap:
    """The memory maps of all processes, or of those in `pids`; `columns` asks for some columns only.

    Raises `AttributeError` for a column that the table does not have.
    """
    wanted = list(MemoryMap.schema if columns is None else columns)
    MemoryMap.check(wanted)
    with kernel.operation():
        every = all_pids(kernel)
        number, tasks = every.processes(kernel, pids)
        tasks.fetch("mm", "flags", "comm")
        rows = _Map(kernel, number, tasks)
        data = {name: _COLUMNS[name](rows) for name in wanted if name in _COLUMNS}
        faults = Faults(len(rows.task))
        faults.mark(rows.fault, "region unreadable or not believable")
        faults.mark(~rows.regions.whole[rows.task], "memory map incomplete")
        if {"path", "device", "inode", "pseudo"} & set(wanted):
            faults.mark(rows.file_fault, "file unreadable")
        if "path" in wanted:
            faults.mark(~rows.of_file(rows.opened.path_whole), "path incomplete")
        faults.mark(changed(number, tasks)[rows.task], CHANGED)
        data["fault"] = faults.column()
        gate = ("[vsyscall] could not be read",) if rows.gate_fault else ()
        return MemoryMap(data, (*every.faults, *rows.regions.faults, *gate))
