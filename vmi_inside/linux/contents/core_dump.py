"""One process's memory as an ELF core, as gdb opens it.

Knows the form of the file (include/uapi/linux/elf.h, fs/binfmt_elf.c): a segment for each region, split where a part
is not in the guest's memory, so that a debugger says "cannot access" there and nothing is invented. What notes say is
`core_notes`' knowledge, where pages are `process_contents`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import IO, Final

import numpy as np

from vmi_inside import elf
from vmi_inside.kernel import Kernel
from vmi_inside.linux.contents import core_notes
from vmi_inside.linux.contents.backing import Held
from vmi_inside.linux.contents.content import State
from vmi_inside.linux.contents.process_contents import ProcessContents
from vmi_inside.linux.contents.regions import Region
from vmi_inside.linux.memory import vmas
from vmi_inside.types import PAGE_SHIFT, PAGE_SIZE, align_up

#: Kinds of regions that can be asked for.
KINDS: Final = ("heap", "stack", "anon", "file")

#: Pages that were never written are zeros in the core, unless so many of them adjoin: then they are left out.
_ZEROS_LIMIT: Final = 1 << 14


@dataclass(slots=True)
class Core:
    """What was written: `size` bytes of file, of which `written` are memory's; `missing` bytes by why they are."""

    size: int = 0
    written: int = 0
    regions: int = 0
    threads: int = 0
    missing: Counter[State] = field(default_factory=Counter)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Segment:
    """A range of addresses: `filled` ones have bytes in the file."""

    region: Region
    start: int
    end: int
    filled: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """The segments of one region, and its pages that are in memory."""

    segments: tuple[_Segment, ...]
    held: Held


def kind(region: Region) -> str:
    """Which of `KINDS` a region is of."""
    if region.path in ("[heap]", "[stack]"):
        return region.path[1:-1]
    return "file" if region.file else "anon"


def write_core(
    kernel: Kernel,
    memory: ProcessContents,
    file: IO[bytes],
    *,
    kinds: Collection[str] = KINDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Core:
    """Write a core of that process to a file that is empty and can seek.

    Regions of other `kinds` are named in it, without bytes. `progress` is told how many bytes of how many were written.
    Raises `NoProcess` when the process ends meanwhile, before anything of memory is written.
    """
    core = Core()
    regions = memory.regions()
    notes = core_notes.notes(kernel, memory, regions)
    plans = []
    with kernel.operation():
        wanted = [region for region in regions if kind(region) in kinds]
        made = {region.start: _plan(region, _gathered(pages), core) for region, pages in memory.held(wanted)}
        for region in regions:
            plans.append(made.get(region.start) or _empty(region))
    segments = [segment for plan in plans for segment in plan.segments]
    core.regions, core.threads, core.warnings = len(regions), notes.threads, (*notes.warnings, *memory.notes)
    offset = _write_headers(file, segments, notes.data)
    total = sum(int((plan.held.pa != 0).sum()) << PAGE_SHIFT for plan in plans)
    for plan in plans:
        at = {}
        for segment in plan.segments:
            if segment.filled:
                at[segment.start] = offset
                offset += segment.end - segment.start
        starts = np.array(list(at), dtype=np.uint64)
        for part in memory.parts_of(plan.held):
            # Pages that adjoin are of one segment: what divides segments is missing pages.
            segment_start = int(starts[np.searchsorted(starts, np.uint64(part.va), "right") - 1])
            file.seek(at[segment_start] + part.va - segment_start)
            file.write(part.data.data)
            core.written += len(part.data)
            core.missing[State.UNREADABLE] += int(part.bad.sum()) << PAGE_SHIFT
            progress(core.written, total)
    file.truncate(offset)
    core.size = offset
    core.missing = Counter({state: size for state, size in core.missing.items() if size})
    return core


def _gathered(pages: Iterator[Held]) -> Held:
    parts = list(pages)
    none = np.empty(0, dtype=np.uint64)
    if not parts:
        return Held(none, none, np.empty(0, dtype=np.uint8))
    return Held(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("va", "pa", "state")))


def _empty(region: Region) -> _Plan:
    none = np.empty(0, dtype=np.uint64)
    return _Plan((_Segment(region, region.start, region.end, False),), Held(none, none, np.empty(0, dtype=np.uint8)))


def _plan(region: Region, held: Held, core: Core) -> _Plan:
    """Where a region has bytes in the file; what is missing of it is counted."""
    there = held.pa != 0
    for state, count in zip(*np.unique(held.state[~there], return_counts=True), strict=True):
        core.missing[State(int(state))] += int(count) << PAGE_SHIFT
    limit = (region.limit - region.start) >> PAGE_SHIFT
    number = ((held.va - np.uint64(region.start)) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    if region.rest not in (State.UNTOUCHED, State.UNREADABLE):  # the kernel's cores leave devices' memory out, too
        core.missing[region.rest] += max(limit - int((number < limit).sum()), 0) << PAGE_SHIFT
    if not there.any():
        return _empty(region)
    # Runs of pages that are there, or not; between them is what stands nowhere.
    edge = np.flatnonzero((np.diff(number) != 1) | (there[1:] != there[:-1])) + 1
    first = np.concatenate(([0], edge))
    last = np.concatenate((edge - 1, [len(number) - 1]))
    filled: list[list[int]] = []
    here = 0
    pages = (region.end - region.start) >> PAGE_SHIFT
    runs = [*zip(number[first].tolist(), (number[last] + 1).tolist(), there[first].tolist(), strict=True)]
    for start, end, known in [*runs, (pages, pages, False)]:
        if here < start <= limit and region.rest == State.UNTOUCHED and start - here <= _ZEROS_LIMIT:
            _extend(filled, here, start)
        if known:
            _extend(filled, start, end)
        here = end
    segments: list[_Segment] = []
    here = 0
    for start, end in [*filled, [pages, pages]]:
        for low, high, known in ((here, start, False), (start, end, True)):
            if low < high:
                low, high = (region.start + (page << PAGE_SHIFT) for page in (low, high))  # noqa: PLW2901
                segments.append(_Segment(region, low, high, known))
        here = end
    return _Plan(tuple(segments), held)


def _extend(ranges: list[list[int]], start: int, end: int) -> None:
    """Add a range behind the others, joined to the last if they adjoin."""
    if ranges and ranges[-1][1] == start:
        ranges[-1][1] = end
    else:
        ranges.append([start, end])


def _write_headers(file: IO[bytes], segments: list[_Segment], notes: bytes) -> int:
    """Write what stands before memory's bytes; gives the offset at which these begin."""
    count = len(segments) + 1
    many = count >= elf.PN_XNUM
    table = elf.HEADER.size + count * elf.PROGRAM.size
    at = table + (elf.SECTION.size if many else 0)
    offset = align_up(at + len(notes), PAGE_SIZE)
    begin = offset
    file.write(elf.HEADER.pack(
        elf.IDENT, elf.ET_CORE, elf.EM_X86_64, 1, 0, elf.HEADER.size, table if many else 0, 0, elf.HEADER.size,
        elf.PROGRAM.size, elf.PN_XNUM if many else count, elf.SECTION.size if many else 0, int(many), 0,
    ))  # fmt: skip
    file.write(elf.PROGRAM.pack(elf.PT_NOTE, 0, at, 0, 0, len(notes), 0, 4))
    for segment in segments:
        size = segment.end - segment.start
        inside = size if segment.filled else 0
        file.write(elf.PROGRAM.pack(
            elf.PT_LOAD, _flags(segment.region), offset, segment.start, 0, inside, size, PAGE_SIZE
        ))  # fmt: skip
        offset += inside
    if many:
        file.write(elf.SECTION.pack(0, 0, 0, 0, 0, 1, 0, count, 0, 0))
    file.write(notes)
    return begin


def _flags(region: Region) -> int:
    """PF_R, PF_W, PF_X."""
    bits = ((vmas.VM_READ, 4), (vmas.VM_WRITE, 2), (vmas.VM_EXEC, 1))
    return sum(flag for bit, flag in bits if region.flags & bit)
