"""Code in processes that no file came with: executable memory that is anonymous, or writable, or holds an ELF image.

Knows that compilers at run time (JITs) need such memory, so that only an image of a program in it is more than
information. Regions are `vmas`' knowledge.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.memory.vmas import VM_EXEC, VM_WRITE, regions, user_memory
from vmi_inside.types import U64, Mask

_ELF: Final = 0x464C457F  # "\x7fELF"
#: Rows for one process: some have thousands of such regions.
_ROWS: Final = 16


def user_code(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Regions of processes that hold code which is in no file."""
    number, tasks = reading.processes
    names = tasks.text("comm")
    memory = user_memory(kernel, tasks)
    found = regions(kernel, memory)
    flags = found.flags
    runs = (flags & np.uint64(VM_EXEC) != 0) & ~found.fault
    written = runs & (flags & np.uint64(VM_WRITE) != 0)
    special = np.isin(found.vma.pointer("vm_ops"), _special(kernel))
    anonymous = runs & (found.file == 0) & ~special
    rows = np.flatnonzero(written | anonymous)
    roots, _ = kernel.space.translate(memory.pointer("pgd"))
    image = _images(kernel, found.start[rows], roots[found.owner[rows]]) & anonymous[rows]
    told: dict[int, int] = {}
    for row, elf in zip(rows.tolist(), image.tolist(), strict=True):
        task = int(found.owner[row])
        told[task] = told.get(task, 0) + 1
        if told[task] > _ROWS and not elf:
            continue
        start, size = int(found.start[row]), int(found.end[row] - found.start[row])
        what = "anonymous" if anonymous[row] else "of a file"
        rights = "writable and executable" if written[row] else "executable"
        yield Finding(
            "medium" if elf else "info", f"pid {number[task]} ({names[task]})",
            "no image of a program in memory without a file" if elf else "executable memory that came with a file",
            f"{size:#x} bytes, {what}, {rights}" + (", with an ELF header" if elf else ""), start,
        )  # fmt: skip


def _special(kernel: Kernel) -> U64:
    """The operations of regions that the kernel mapped itself: [vdso] and its like."""
    known = (kernel.profile.find_symbol(name) for name in ("special_mapping_vmops", "legacy_special_mapping_vmops"))
    return np.array([at for at in known if at is not None], dtype=np.uint64)


def _images(kernel: Kernel, start: U64, roots: U64) -> Mask:
    """Which regions (n,) begin with an ELF header, each seen through its process's page tables."""
    raw, ok = kernel.space.gather(start, 4, roots)
    image: Mask = ok & (raw.view("<u4")[:, 0] == _ELF)
    return image
