"""Places in a guest's memory, and the physical pieces they consist of.

Knows kernel, process and physical addresses, and which of a process's pages are its own to be written. What stands
there is left to everybody else.

A space says what an address is, and for how long it means something: "kernel" and "physical" ones always do,
"process PID STARTED" is the memory of a process, "task PID STARTED" a kernel address that is a process's, such as its
`task_struct`: when the process ends, somebody else may have it. "thread TID STARTED" is the same of one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.errors import Conflict, ControlError, NoMemory, PageFault, Unsafe
from vmi_inside.kernel import Kernel
from vmi_inside.linux.tasks import PIDTYPE_PID, PIDTYPE_TGID, pids
from vmi_inside.space import AddressSpace
from vmi_inside.structs import Structs
from vmi_inside.types import MASK64, PAGE_MASK, PAGE_SIZE

KERNEL: Final = "kernel"
PHYSICAL: Final = "physical"
_START: Final = ("start_boottime", "real_start_time")
#: Bit 1 of an entry at any level: what lies below may be written (Intel SDM, volume 3, 4.5).
_WRITABLE: Final = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that lie in one page: their physical address, and where they stand in the whole."""

    pa: int
    start: int
    end: int


def process_space(kernel: Kernel, pid: int) -> str:
    """The space of a process's memory. Raises `ControlError` when there is no such process."""
    return f"process {pid} {started(find_process(kernel, pid))}"


def task_space(kernel: Kernel, pid: int) -> str:
    """The space of what the kernel keeps of a process. Raises `ControlError` when there is no such process."""
    return f"task {pid} {started(find_process(kernel, pid))}"


def find_process(kernel: Kernel, pid: int, kind: int = PIDTYPE_TGID) -> Structs:
    """The `task_struct` of a process, one row. Raises `ControlError` when there is none."""
    number, _, tasks = pids(kernel).tasks(kernel, kind)
    rows = [row for row, one in enumerate(number.tolist()) if one == pid]
    found = tasks.select(np.array(rows[:1], dtype=np.intp))
    if not rows or found.address[0] == 0:
        raise ControlError(f"there is no process {pid} in the guest")
    return found


def thread_space(tid: int, born: int) -> str:
    """The space of what the kernel keeps of a thread, by its number and when it was started."""
    return f"thread {tid} {born}"


class Spaces:
    """Spaces as they are at one moment: who there is is read once, however many spaces are asked for."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._every: dict[int, dict[tuple[int, int], int]] = {}

    def there(self, space: str) -> bool:
        """Whether that space still is: a process's ends with it."""
        try:
            self.tables(space)
        except ControlError:
            return False
        return True

    def tables(self, space: str) -> AddressSpace:
        """The page tables of a space; of "physical" there are none. Raises `Conflict` when its process is gone."""
        if space in (KERNEL, PHYSICAL):
            return self.kernel.space
        match space.split(" "):
            case [("process" | "task" | "thread") as word, number, born] if number.isdigit() and born.isdigit():
                pass
            case _:
                raise ControlError(f"{space!r} is no space of addresses")
        kind = PIDTYPE_PID if word == "thread" else PIDTYPE_TGID
        task = self._tasks(kind).get((int(number), int(born)))
        if task is None:
            raise Conflict(f"the {word.replace('task', 'process')} {number} that is meant has ended")
        if word != "process":
            return self.kernel.space
        rows = self.kernel.structs("task_struct", [task])
        mm = rows.follow("mm", self.kernel.struct("mm_struct"))
        if mm.address[0] == 0:
            raise ControlError(f"process {number} has no memory of its own: it is a kernel thread, or has ended")
        root = self.kernel.space.translate_one(int(mm.fetch("pgd").pointer("pgd")[0]))
        return self.kernel.space.with_root(root)

    def _tasks(self, kind: int) -> dict[tuple[int, int], int]:
        """The tasks that are processes, or threads: the address of each by its number and when it was started."""
        if kind not in self._every:
            number, _, tasks = pids(self.kernel).tasks(self.kernel, kind)
            born = tasks.fetch(_START).unsigned(_START)
            whole = (tasks.address != 0) & ~tasks.fault
            rows = zip(number[whole].tolist(), born[whole].tolist(), tasks.address[whole].tolist(), strict=True)
            self._every[kind] = {(one, when): address for one, when, address in rows}
        return self._every[kind]


def started(task: Structs) -> int:
    """When a task was started, in nanoseconds since boot: with its pid it names the task for good."""
    return int(task.fetch(_START).unsigned(_START)[0])


def pieces(
    kernel: Kernel, space: str, address: int, size: int, *, write: bool = False, spaces: Spaces | None = None
) -> list[Piece]:
    """The pieces of `size` bytes at `address`, all of them, or an error. `spaces` may be shared by several.

    Raises `PageFault`, `NoMemory`, `Unsafe`, and `Conflict` where the space is of a process that has ended.
    """
    if size <= 0 or address < 0 or address + size > MASK64 + 1:
        raise ControlError(f"{size} bytes at {address:#x} are no place in memory")
    tables = None if space == PHYSICAL else (spaces or Spaces(kernel)).tables(space)
    found = list(_pieces(kernel, tables, address, size, write))
    for piece in found:
        if kernel.space.memory.read(piece.pa, piece.end - piece.start) is None:
            raise NoMemory(piece.pa, piece.end - piece.start)
    return found


def _pieces(kernel: Kernel, tables: AddressSpace | None, address: int, size: int, write: bool) -> Iterator[Piece]:
    start = 0
    while start < size:
        here = address + start
        end = min(size, start + PAGE_SIZE - (here & PAGE_MASK))
        if tables is None:
            pa = here
        else:
            pa = tables.translate_one(here)
            if write and tables is not kernel.space and not _writable(tables, here):
                raise Unsafe(
                    f"{here:#x} of that process is in a page that it may not write itself: others may share it, "
                    "such as the file it is of; nothing was written"
                )
        yield Piece(pa, start, end)
        start = end


def _writable(space: AddressSpace, va: int) -> bool:
    """Whether every level of the tables lets that address be written. Raises `PageFault`."""
    paging, table = space.paging, space.root
    for level in range(paging.levels, 0, -1):
        shift = paging.shift(level)
        entry = space.entry(table + ((va >> shift) & ((1 << paging.splits[-level]) - 1)) * paging.entry_size)
        if not entry & paging.present:
            raise PageFault(va, level, entry)
        if not entry & _WRITABLE:
            return False
        if level == 1 or (level in paging.large and entry & paging.large_bit):
            return True
        table = entry & paging.address
    return False
