"""What there is to look through in a guest: processes' memory, the kernel's, all of RAM, files in the page cache.

Each is a stream of pieces that stand in memory, in ascending order. What is looked for is left to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside.errors import NoProcess, NoSymbol
from vmi_inside.kernel import Kernel
from vmi_inside.linux.contents.backing import Held
from vmi_inside.linux.contents.process_contents import ProcessContents
from vmi_inside.linux.files.cached_files import cached_files
from vmi_inside.linux.files.file_content import FileContent, contents
from vmi_inside.linux.memory.user_pages import PRESENT, UserPages, runs
from vmi_inside.linux.pages import Pages
from vmi_inside.linux.tasks import PF_KTHREAD, PIDTYPE_TGID
from vmi_inside.linux.tasks import pids as all_pids
from vmi_inside.types import PAGE_SHIFT, PAGE_SIZE, align_down, align_up

#: Bytes of a piece at the most.
PIECE: Final = 16 << 20
#: Files whose page caches are read together.
_FILES: Final = 256
#: Where the kernel's own mappings begin, and end: its image, modules, what is fixed.
_IMAGE: Final = 0xFFFF_FFFF_8000_0000
_TOP: Final = 0xFFFF_FFFF_FFFF_F000

Pieces = Iterator[tuple[int, bytes]]
Choice = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Stream:
    """One thing to look through: `kind` is process, kernel, physical or file.

    `pid` and `name` are a process's (0 and empty else), `path` is the region's or the file's. `pieces` are (address,
    bytes); of a file the address is the offset in it.
    """

    kind: str
    pid: int
    name: str
    path: str
    pieces: Pieces


def of_processes(kernel: Kernel, pids: Iterable[int] | None = None) -> Iterator[Stream]:
    """The regions of processes' memory: of all that have some, or of those asked for. Raises `NoProcess` for these."""
    for pid in _with_memory(kernel) if pids is None else pids:
        try:
            memory = ProcessContents(kernel, pid)
            for region, pages in memory.held():
                yield Stream("process", pid, memory.name, region.path, _process_pieces(memory, pages))
        except NoProcess:
            if pids is not None:
                raise


def of_kernel(kernel: Kernel) -> Iterator[Stream]:
    """The kernel's image, its modules, and what it maps page by page (vmalloc, stacks, per-CPU memory).

    The direct map of all RAM and the array of `struct page` are left out: physical memory has these once.
    """
    pages = Pages(kernel)
    start = [_IMAGE]
    try:
        start.insert(0, kernel.pointer("vmalloc_base"))
    except NoSymbol:
        start.insert(0, pages.direct + (1 << (kernel.space.paging.canonical - 3)))
    end = [max(pages.base, start[0]), _TOP]
    tables = UserPages(kernel.space, np.array(start, dtype=np.uint64), np.array(end, dtype=np.uint64), user=False)
    for low, high, path in zip(start, end, ("vmalloc", "image"), strict=True):
        yield Stream("kernel", 0, "kernel", path, _kernel_pieces(kernel, tables, low, high))


def of_physical(kernel: Kernel) -> Iterator[Stream]:
    """All of RAM, run by run."""
    for run in kernel.space.memory.runs:
        yield Stream("physical", 0, "", "", _physical_pieces(kernel, run.start, run.end))


def of_files(kernel: Kernel, choice: Choice = bool) -> Iterator[Stream]:
    """The regular files in the page cache whose path is a `choice`; those without a path have an empty one."""
    table = cached_files(kernel, ["path", "type", "pages", "bare", "address"])
    fits = np.array([choice is bool or choice(path) for path in table.path.tolist()], dtype=np.bool_)
    table = table.where(fits & (table.pages > 0) & np.isin(table.type, ("reg", "memfd")))
    for first in range(0, len(table), _FILES):
        some = table.where(slice(first, first + _FILES))
        for path, content in zip(some.path.tolist(), contents(kernel, some.address.tolist()), strict=True):
            yield Stream("file", 0, "", path, _file_pieces(content))


def _with_memory(kernel: Kernel) -> list[int]:
    """The processes that have memory of their own."""
    with kernel.operation():
        number, _, tasks = all_pids(kernel).tasks(kernel, PIDTYPE_TGID)
        tasks.fetch("flags", "mm")
        own = (tasks.number("flags") & PF_KTHREAD == 0) & (tasks.pointer("mm") != 0)
        return [int(pid) for pid in number[own].tolist()]


def _process_pieces(memory: ProcessContents, pages: Iterator[Held]) -> Pieces:
    for held in pages:
        for part in memory.parts_of(held, size=PIECE):
            yield part.va, part.data.tobytes()


def _kernel_pieces(kernel: Kernel, tables: UserPages, start: int, end: int) -> Pieces:
    for leaves in tables.leaves(start, end):
        here = leaves.state == PRESENT
        va, pa = leaves.va[here], leaves.pa[here]
        for run in runs(va, PIECE >> PAGE_SHIFT):
            rows = np.empty((run.stop - run.start, PAGE_SIZE), dtype=np.uint8)
            ok = kernel.space.memory.gather(pa[run], rows)
            if ok.any():
                yield int(va[run.start]), rows.tobytes()


def _physical_pieces(kernel: Kernel, start: int, end: int) -> Pieces:
    for at in range(start, end, PIECE):
        stop = min(at + PIECE, end)
        data = kernel.space.memory.read(at, stop - at)
        if data is not None:
            yield at, bytes(data)
            continue
        low, high = align_up(at, PAGE_SIZE), align_down(stop, PAGE_SIZE)
        pages = np.arange(low, high, PAGE_SIZE, dtype=np.uint64)
        rows = np.empty((len(pages), PAGE_SIZE), dtype=np.uint8)
        ok = kernel.space.memory.gather(pages, rows)
        for run in runs(pages[ok], PIECE >> PAGE_SHIFT):
            yield int(pages[ok][run.start]), rows[ok][run].tobytes()


def _file_pieces(content: FileContent) -> Pieces:
    return ((chunk.offset, chunk.data.tobytes()) for chunk in content.chunks(PIECE))
