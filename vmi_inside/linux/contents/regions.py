"""One process's regions, and what a page of each is that stands nowhere: zeros, or a part of a file.

Joins `memory_map`'s table with what is mapped. Which pages stand somewhere is `process_contents`'s knowledge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.contents.content import State
from vmi_inside.linux.files.page_cache import in_memory
from vmi_inside.linux.memory import vmas
from vmi_inside.linux.memory.memory_map import process_memory_map
from vmi_inside.types import PAGE_SIZE, align_up

#: User addresses end here at the latest (5-level paging).
USER_END: Final = 1 << 56
#: What the kernel maps of itself: pages that nobody touched are not zeros.
_SPECIAL: Final = frozenset(("[vdso]", "[vvar]", "[vvar_vclock]", "[uprobes]"))


@dataclass(frozen=True, slots=True)
class Region:
    """A region of a process's memory, from `start` up to `end`; `file` is the `struct file` that is mapped, or 0.

    `rest` is what pages are that stand nowhere; those from `limit` on, behind the end of their file, are `MISSING`.
    """

    start: int
    end: int
    permissions: str
    path: str
    offset: int
    file: int
    flags: int
    rest: State
    limit: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def regions_of(kernel: Kernel, pid: int) -> tuple[tuple[Region, ...], tuple[str, ...]]:
    """The regions of a process, ascending, without the kernel's own [vsyscall]; and what is wrong with them, in words.

    What overlaps a region before it is left out, and noted: no process has such.
    """
    table = process_memory_map(kernel, pids=frozenset({pid}))
    notes = [*table.notes, *dict.fromkeys(fault for fault in table.fault.tolist() if fault)]
    table = table.where((table.start < np.uint64(USER_END)) & (table.end > table.start)).sorted("start")
    areas = kernel.structs("vm_area_struct", table.address).fetch("vm_file")
    file = areas.pointer("vm_file")
    inodes = kernel.structs("file", file).follow("f_inode").fetch("i_sb", "i_size")
    held = in_memory(kernel, inodes)
    device = table.flags & np.uint64(vmas.VM_PFNMAP | vmas.VM_IO) != 0
    special = (file == 0) & np.array([path in _SPECIAL for path in table.path.tolist()], dtype=np.bool_)
    huge = table.flags & np.uint64(vmas.VM_HUGETLB) != 0
    rest = np.where(((file == 0) | held) & ~huge, State.UNTOUCHED, State.MISSING)
    rest = np.where(device | special, State.UNREADABLE, rest)
    columns = (
        table.start, table.end, table.permissions, table.path, table.offset, file, table.flags, rest,
        inodes.number("i_size"),
    )  # fmt: skip
    out: list[Region] = []
    behind = 0
    for start, end, permissions, path, offset, mapped, flags, left, length in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        if start < behind or end > USER_END or (start | end) & (PAGE_SIZE - 1):
            notes.append("regions overlap, or make no sense: some are left out")
            continue
        behind = end
        limit = align_up(max(start + length - offset, start), PAGE_SIZE) if mapped else end
        out.append(Region(start, end, permissions, path, offset, mapped, flags, State(left), min(limit, end)))
    return tuple(out), tuple(dict.fromkeys(notes))
