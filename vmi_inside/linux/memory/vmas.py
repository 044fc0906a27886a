"""Regions of processes' memory: every `vm_area_struct` of many processes, found in a few rounds.

Knows `mm_struct` and how it keeps its regions (include/linux/mm_types.h): a maple tree since 6.1, a list before. What a
region holds, and what it is called, is left to those who ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import maple, walk
from vmi_inside.kernel import Kernel
from vmi_inside.linux.tasks import PF_KTHREAD
from vmi_inside.structs import Structs
from vmi_inside.types import I64, U64, Mask

VM_READ: Final = 1 << 0
VM_WRITE: Final = 1 << 1
VM_EXEC: Final = 1 << 2
VM_SHARED: Final = 1 << 3
VM_MAYSHARE: Final = 1 << 7
VM_GROWSDOWN: Final = 1 << 8
VM_PFNMAP: Final = 1 << 10
VM_IO: Final = 1 << 14
VM_HUGETLB: Final = 1 << 22

#: Where the flags are: `vm_flags` is constant to C since 6.3, and beside it lies what may be written.
FLAGS: Final = ("vm_flags", "__vm_flags", "flags")


@dataclass(frozen=True, slots=True)
class Regions:
    """One row for each region (m rows), by process and address.

    `owner` (m,) is the row of the mm that it belongs to; `start` and `end` (m,) are user addresses, `flags` VM_*,
    `file` the `struct file` that is mapped or 0, `offset` that of the region in the file in bytes (as `vm_pgoff` says,
    also without a file), `vma` the structs. `fault` (m,) marks regions that could not be read or believed: unreadable,
    another's, or with an end that is not behind its start. `whole` (n,) says which of the mms asked were read to
    their end, `faults` why others were not.
    """

    owner: I64
    start: U64
    end: U64
    flags: U64
    file: U64
    offset: U64
    vma: Structs
    fault: Mask
    whole: Mask
    faults: tuple[str, ...]


def user_memory(kernel: Kernel, tasks: Structs) -> Structs:
    """The mm_structs (n,) of tasks; 0 for zombies, and for kernel threads, which may borrow somebody's."""
    borrowed = tasks.number("flags") & PF_KTHREAD != 0
    return kernel.structs("mm_struct", np.where(borrowed, np.uint64(0), tasks.pointer("mm")))


def regions(kernel: Kernel, mms: Structs) -> Regions:
    """All regions of `n` mm_structs; an mm of 0 has none. One that several processes share counts for each.

    Call it in an `operation()`. Raises `NoMember` where the kernel keeps regions in neither way.
    """
    unique, back = np.unique(mms.address, return_inverse=True)
    holders = Structs(kernel.space, mms.type, unique)
    if holders.has("mm_mt.ma_root"):
        root = holders.pointer("mm_mt.ma_root")
        found = maple.entries(kernel.space, root, kernel.struct("maple_node"), what="memory map")
        address, owner, whole, faults = found.entry, found.owner, found.whole, found.faults
    else:
        first, following = holders.pointer("mmap"), kernel.struct("vm_area_struct").member("vm_next").offset
        listed = walk.chains(kernel.space, first, following, what="memory map")
        order = np.argsort(listed.owner, kind="stable")
        address, owner, faults = listed.address[order], listed.owner[order], listed.faults
        whole = np.full(len(unique), not faults, dtype=np.bool_)
    whole = whole & ~holders.fault
    if holders.fault.any():
        faults = (*faults, "memory map: a memory descriptor could not be read")
    vmas = kernel.structs("vm_area_struct", address)
    vmas.fetch("vm_start", "vm_end", FLAGS, "vm_file", "vm_pgoff", "vm_mm")
    start, end = vmas.pointer("vm_start"), vmas.pointer("vm_end")
    fault = vmas.fault | (end <= start) | (vmas.pointer("vm_mm") != unique[owner])
    # Each mm that was asked takes the regions of its like.
    count = np.bincount(owner, minlength=len(unique))
    first_row = np.cumsum(count) - count
    mine = count[back]
    task = np.repeat(np.arange(len(back)), mine)
    within = np.arange(len(task)) - np.repeat(np.cumsum(mine) - mine, mine)
    row = first_row[back[task]] + within
    vmas = vmas.select(row)
    return Regions(
        task, start[row], end[row], vmas.unsigned(FLAGS), vmas.pointer("vm_file"),
        vmas.unsigned("vm_pgoff") << np.uint64(12), vmas, fault[row], whole[back], faults,
    )  # fmt: skip
