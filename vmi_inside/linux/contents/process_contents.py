"""One process's memory: its regions, and what stands in them.

Joins `regions`, `user_pages`' page tables and what is behind them (`backing`): a page of a file that the process never
touched is read from the page cache. What is in swap or on the guest's disk alone cannot be read, and is told apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from vmi_inside.errors import MemoryFault, NoProcess, NoSymbol, NotInMemory, PageFault
from vmi_inside.kernel import Kernel
from vmi_inside.linux.contents.backing import Backing, Held
from vmi_inside.linux.contents.content import READABLE, WHY, Content, State, check_size
from vmi_inside.linux.contents.regions import USER_END, Region, regions_of
from vmi_inside.linux.memory import user_pages
from vmi_inside.linux.memory.user_pages import UserPages, runs
from vmi_inside.linux.names import task_names
from vmi_inside.linux.tasks import PF_KTHREAD, PIDTYPE_TGID
from vmi_inside.linux.tasks import pids as all_pids
from vmi_inside.types import MASK64, PAGE_SHIFT, PAGE_SIZE, U8, U64, Mask, align_down, align_up

#: Bytes that are read at once, unless said otherwise.
CHUNK: Final = 4 << 20
#: Up to this many bytes are read one page after the other.
_FEW: Final = 2 * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Part:
    """Pages that adjoin and were read together: `data` are the bytes from `va` on, `bad` (n,) says of each page
    whether it could not be read after all, and is zeros."""

    va: int
    data: U8
    bad: Mask


class ProcessContents:
    """The memory of the process `pid` as it is when asked. Raises `NoProcess` where there is none, or no memory.

    `root` is the physical address of its top-level page table, the kernel's half of a pair where kernels keep two
    (KPTI). Nothing that was read is kept: each reading sees the process as it is then.
    """

    def __init__(self, kernel: Kernel, pid: int) -> None:
        self.kernel = kernel
        self.pid = pid
        self._task, self.name = _task(kernel, pid)
        self.mm, self.root = self._memory()
        #: Where the last reading of the regions and their pages was cut, in words.
        self.notes: tuple[str, ...] = ()
        self._region_notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<ProcessContents of {self.pid} {self.name}>"

    @property
    def task(self) -> int:
        """Address of the task_struct."""
        return self._task

    def regions(self) -> tuple[Region, ...]:
        """The regions, ascending, without the kernel's own [vsyscall]. Raises `NoProcess` when the process ended."""
        self.mm, self.root = self._memory()
        found, self._region_notes = regions_of(self.kernel, self.pid)
        return found

    def read(self, va: int, size: int) -> bytes:
        """`size` bytes at `va`. Raises `PageFault` where no region is, `NotInMemory` where one is, but no memory."""
        self.mm, self.root = self._memory()
        if size <= _FEW:
            with contextlib.suppress(MemoryFault):
                return self.kernel.space.with_root(self.root).read(va, size)
        found = self.content(va, size)
        for number, state in enumerate(found.state.tolist()):
            at = va if number == 0 else align_down(va, PAGE_SIZE) + number * PAGE_SIZE
            if state == State.UNMAPPED:
                raise PageFault(at)
            if state not in READABLE:
                raise NotInMemory(at, WHY[State(state)])
        return found.data

    def content(self, va: int, size: int) -> Content:
        """`size` bytes at `va`, and what each page is: of those not known the bytes are zeros.

        Raises ValueError for more than 1 GiB: take parts of that.
        """
        check_size(size)
        low, high = align_down(va & MASK64, PAGE_SIZE), align_up((va & MASK64) + size, PAGE_SIZE)
        va &= MASK64
        data = np.zeros(high - low, dtype=np.uint8)
        state = np.zeros((high - low) >> PAGE_SHIFT, dtype=np.uint8)
        for region, pages in self.held(between=(low, high)):
            start, end = (min(max(at, low), high) - low for at in (region.start, region.end))
            beyond = min(max(region.limit - low, start), end)
            state[start >> PAGE_SHIFT : beyond >> PAGE_SHIFT] = region.rest
            state[beyond >> PAGE_SHIFT : end >> PAGE_SHIFT] = State.MISSING
            for held in pages:
                state[((held.va - np.uint64(low)) >> np.uint64(PAGE_SHIFT)).astype(np.intp)] = held.state
                for part in self.parts_of(held):
                    at = part.va - low
                    data[at : at + len(part.data)] = part.data
                    state[at >> PAGE_SHIFT : (at + len(part.data)) >> PAGE_SHIFT][part.bad] = State.UNREADABLE
        return Content(va, data[va - low : va - low + size].tobytes(), state)

    def parts(self, regions: Iterable[Region] | None = None, *, size: int = CHUNK) -> Iterator[Part]:
        """All that is in memory of these regions, or of all, in parts of at most `size` bytes."""
        for _, pages in self.held(regions):
            for held in pages:
                yield from self.parts_of(held, size=size)

    def held(
        self, regions: Iterable[Region] | None = None, *, between: tuple[int, int] = (0, USER_END)
    ) -> Iterator[tuple[Region, Iterator[Held]]]:
        """Each region, and where its pages stand, as far as they lie `between`; pages that stand nowhere are left out.

        The pages of a region come in pieces; take them before asking for the next region.
        """
        low, high = between
        chosen = self.regions() if regions is None else tuple(regions)
        chosen = tuple(region for region in chosen if region.start < high and region.end > low)
        if not chosen:
            return
        start = np.array([max(region.start, low) for region in chosen], dtype=np.uint64)
        end = np.array([min(region.end, high) for region in chosen], dtype=np.uint64)
        with self.kernel.operation():
            tables = UserPages(self.kernel.space.with_root(self.root), start, end)
            backing = Backing(self.kernel, self.mm, chosen)
        cut = (f"page tables: cut after {user_pages.TABLE_LIMIT} of them",) if tables.cut else ()
        self.notes = (*self._region_notes, *cut, *backing.faults)
        for number, region in enumerate(chosen):
            here, there = max(region.start, low), min(region.end, high)
            zeros = self._zero_page if region.rest == State.UNTOUCHED else None
            yield region, self._pages(tables, backing.pages(number, here, there), here, there, zeros)

    def parts_of(self, held: Held, *, size: int = CHUNK) -> Iterator[Part]:
        """The bytes of these pages, as far as they are in memory."""
        there = held.where(held.pa != 0)
        for run in runs(there.va, max(size >> PAGE_SHIFT, 1)):
            pa = there.pa[run]
            rows = np.empty((len(pa), PAGE_SIZE), dtype=np.uint8)
            ok = self.kernel.space.memory.gather(pa, rows)
            yield Part(int(there.va[run.start]), rows.reshape(-1), ~ok)

    @cached_property
    def _zero_page(self) -> U64 | None:
        """The page that stands for all that were read but never written (fixed at boot)."""
        try:
            at = self.kernel.symbol("empty_zero_page")
            return np.array(self.kernel.space.translate_one(at), dtype=np.uint64)
        except (NoSymbol, MemoryFault):
            return None

    def _pages(self, tables: UserPages, behind: Held, start: int, end: int, zeros: U64 | None) -> Iterator[Held]:
        """The pages of a region: those of the page tables, and what stands `behind` the others."""
        for found in tables.leaves(start, end):
            leaves = found if zeros is None else found.where(found.pa != zeros)
            if not len(leaves.va):
                continue
            state = np.where(leaves.state == user_pages.PRESENT, State.PRESENT, State.SWAPPED).astype(np.uint8)
            last = int(np.searchsorted(behind.va, leaves.va[-1], "right"))
            yield Held(leaves.va, leaves.pa, state).merged(behind.where(slice(0, last)))
            behind = behind.where(slice(last, None))
        if len(behind.va):
            yield behind

    def _memory(self) -> tuple[int, int]:
        """Addresses of the mm_struct and, physical, of the page tables, as they are now."""
        row = self.kernel.structs("task_struct", [self._task]).fetch("tgid", "mm", "flags")
        mm = row.follow("mm").fetch("pgd")
        if row.fault.any() or int(row.number("tgid")[0]) != self.pid:
            raise NoProcess(f"process {self.pid} has ended")
        if int(row.number("flags")[0]) & PF_KTHREAD:
            raise NoProcess(f"process {self.pid} ({self.name}) is a kernel thread: it has no memory of its own")
        if not mm.address.any():
            raise NoProcess(f"process {self.pid} ({self.name}) has ended: it has no memory any more")
        try:
            return int(mm.address[0]), self.kernel.space.translate_one(int(mm.pointer("pgd")[0]))
        except MemoryFault as fault:
            raise NoProcess(f"process {self.pid} ({self.name}): its page tables cannot be found ({fault})") from fault


def _task(kernel: Kernel, pid: int) -> tuple[int, str]:
    """The task_struct of a process, and its name."""
    with kernel.operation():
        number, _, tasks = all_pids(kernel).tasks(kernel, PIDTYPE_TGID)
        rows = np.flatnonzero(number == pid)
        if not len(rows):
            raise NoProcess(f"there is no process {pid}; `ps` lists them (a thread's memory is its process's)")
        task = tasks.select(rows[:1]).fetch("comm", "flags")
        return int(task.address[0]), task_names(kernel, task)[0]
