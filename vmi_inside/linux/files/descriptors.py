"""Descriptor tables: which process holds which `struct file` at which number.

Knows `files_struct` and `fdtable` (include/linux/fdtable.h). What a file is, is told by those who ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, Mask

#: fs.nr_open's ceiling for what one process is believed to hold.
DESCRIPTOR_LIMIT = 1 << 20
#: Descriptors that are listed of all tasks together: a large table that many are said to share counts for each.
_IN_ALL = 1 << 21
#: What is said of a row whose descriptor was closed, or given another file, while the row was read.
MOVED = "descriptor changed meanwhile"


@dataclass(frozen=True, slots=True)
class Descriptors:
    """One row for each open descriptor: `task` (n,) row of the tasks asked, `fd` (n,), `file` (n,) address.

    `slot` (n,) is the address that the pointer to the file was read at.
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
    fits = ragged.fitting(of_task, _IN_ALL)
    of_task = np.where(fits, of_task, 0)
    task = np.repeat(np.arange(len(back)), of_task)
    within = np.arange(len(task)) - np.repeat(np.cumsum(of_task) - of_task, of_task)
    row = first[back[task]] + within
    faults = []
    if (holders.fault | tables.fault).any() or not got.ok.all():
        faults.append("descriptor tables: some could not be read")
    if not fits.all():
        faults.append(
            f"descriptor tables: more than {_IN_ALL} in all: those of {int((~fits).sum())} tasks are left out"
        )
    fd = number[row]
    slot = tables.pointer("fd")[back[task]] + np.uint64(8) * fd.astype(np.uint64)
    return Descriptors(task, fd, word[row], slot, tuple(faults))


def moved(kernel: Kernel, found: Descriptors) -> Mask:
    """Which descriptors (n,) do not lead to their files any more: what was read of these may be another's.

    To be asked when all else was read, but before `tasks.changed`. A `struct file` is used again at once when it was
    closed; so the kernel itself looks a second time whether the descriptor still leads there (`__fget_files_rcu`,
    fs/file.c). Whether the table is still its process's, the task tells: it lets go of it before anything is closed.
    """
    raw, ok = kernel.space.gather(found.slot, 8)
    out: Mask = ~ok | (raw.view("<u8")[:, 0] != found.file)
    return out
