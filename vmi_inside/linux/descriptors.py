"""Descriptor tables: which process holds which `struct file` at which number.

Knows `files_struct` and `fdtable` (include/linux/fdtable.h). What a file is, is told by those who ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64

#: fs.nr_open's ceiling for what one process is believed to hold.
DESCRIPTOR_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Descriptors:
    """One row for each open descriptor: `task` (n,) row of the tasks asked, `fd` (n,), `file` (n,) address.

    `slot` (n,) is where the table has that address.
    """

    task: I64
    fd: I64
    file: U64
    slot: U64
    faults: tuple[str, ...]


def descriptors(kernel: Kernel, tasks: Structs) -> Descriptors:
    """All open descriptors of these tasks. A table that several share is read once and counts for each."""
    unique, back = np.unique(tasks.pointer("files"), return_inverse=True)
    holders = Structs(kernel.space, kernel.struct("files_struct"), unique)
    tables = holders.follow("fdt").fetch("max_fds", "fd")
    size = np.clip(tables.number("max_fds"), 0, DESCRIPTOR_LIMIT) * 8
    got = ragged.gather(kernel.space, tables.pointer("fd"), size)
    word, table, number = got.words()
    # Each task takes the rows of its table.
    count = np.bincount(table, minlength=len(unique))
    first = np.cumsum(count) - count
    of_task = count[back]
    task = np.repeat(np.arange(len(back)), of_task)
    within = np.arange(len(task)) - np.repeat(np.cumsum(of_task) - of_task, of_task)
    row = first[back[task]] + within
    faults = []
    if (holders.fault | tables.fault).any() or not got.ok.all():
        faults.append("descriptor tables: some could not be read")
    slot = tables.pointer("fd")[table[row]] + np.uint64(8) * number[row].astype(np.uint64)
    return Descriptors(task, number[row], word[row], slot, tuple(faults))
