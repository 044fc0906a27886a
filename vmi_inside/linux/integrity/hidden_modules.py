"""Hidden kernel modules: what one way to the modules shows, and another one leaves out; and code that nobody owns.

Knows which of the ways should show which module. The ways themselves are `loaded`'s and `module_views`'.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from vmi_inside import walk
from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.linux.integrity import module_views
from vmi_inside.linux.integrity.findings import Finding
from vmi_inside.linux.integrity.reading import Reading
from vmi_inside.linux.integrity.views import View, missing, union
from vmi_inside.linux.symbols.loaded import MODULE_LIMIT, Loaded, of_modules
from vmi_inside.linux.symbols.modules import STATES
from vmi_inside.structs import Structs
from vmi_inside.types import PAGE_MASK, U64, Mask

_NONE: Final = np.empty(0, dtype=np.uint64)
#: Stretches of code among the modules that are looked at.
_RANGES: Final = 1 << 16
#: Who asks for memory for modules, until 6.9; later all code is asked for by one function.
_LOADERS: Final = ("load_module", "move_module", "layout_and_allocate", "module_memory_alloc")


def hidden_modules(kernel: Kernel, reading: Reading) -> Iterator[Finding]:
    """Modules that some views have and others lack."""
    rows: list[Finding] = []

    def view(name: str, read: Callable[[], View]) -> View:
        try:
            return read()
        except (ProfileError, MemoryFault) as error:
            rows.append(Finding("info", name, detail=f"not compared: {error}"))
            return View(name, _NONE)

    listed = view("modules", lambda: _listed(kernel))
    system = view("/sys/module", lambda: module_views.kobjects(kernel))
    tree = view("address tree", lambda: module_views.address_tree(kernel))
    types = view("btf_modules", lambda: module_views.btf(kernel))
    areas = module_views.Areas(_NONE, np.empty(0, dtype=np.int64), _NONE, ())
    try:
        areas = module_views.areas(kernel)
    except (ProfileError, MemoryFault) as error:
        rows.append(Finding("info", "vmalloc areas", detail=f"not compared: {error}"))
    memory = view("memory", lambda: module_views.in_memory(kernel, areas))
    yield from rows
    views = (listed, system, tree, types, memory)
    for name, faults in (*((each.name, each.faults) for each in views), ("vmalloc areas", areas.faults)):
        for fault in faults:
            yield Finding("medium", name, "a way that can be followed to its end", fault)
    found = kernel.structs("module", union(views)).fetch("name", "state")
    names = found.text("name")
    should = [(each, _should(each, found)) for each in views]
    for one in missing(found.address, should):
        yield Finding(
            "critical", names[one.row], f"in {', '.join(one.lack)}", f"not in {', '.join(one.lack)}",
            int(found.address[one.row]), detail=f"seen in {', '.join(one.have)}",
            fault="module unreadable" if found.fault[one.row] else "",
        )  # fmt: skip
    yield from _unclaimed(reading, of_modules(kernel, found), areas)


def _listed(kernel: Kernel) -> View:
    ctype = kernel.struct("module")
    found = walk.serial(kernel.space, kernel.symbol("modules"), what="modules", limit=MODULE_LIMIT)
    return View("modules", found.address - np.uint64(ctype.member("list").offset), found.faults)


def _should(view: View, rows: Structs) -> Mask:
    """Which (n,) of the modules a view should show: of those that come or go, none."""
    live: Mask = rows.fault | (rows.number("state") == STATES.index("Live"))
    if view.name == "btf_modules" or not len(view.seen):
        return np.zeros(len(rows), dtype=np.bool_)
    return live


def _unclaimed(reading: Reading, known: Loaded, areas: module_views.Areas) -> Iterator[Finding]:
    """Executable memory where modules lie, of which no module, program, trampoline or probe says that it is its own."""
    low, high = module_views.MODULE_SPACE
    code = reading.executable
    text = code.where((code.start >= np.uint64(low)) & (code.last < np.uint64(high)))
    claimed = _claimed(reading, known)
    ranges = zip(text.start[:_RANGES].tolist(), text.last[:_RANGES].tolist(), strict=True)
    for start, last in ranges:
        for first, end in _gaps(start, last + 1, claimed):
            yield _piece(reading, areas, first, end)
    if len(text.start) > _RANGES:
        yield Finding("medium", "code that nobody owns", f"at most {_RANGES} stretches of code", f"{len(text.start)}")


def _claimed(reading: Reading, known: Loaded) -> list[tuple[int, int]]:
    """Ranges of whole pages that somebody has, ascending, none touching another; the kernel's image is one of them."""
    ranges = [(base, base + size) for base, size in zip(known.base.tolist(), known.size.tolist(), strict=True)]
    profile = reading.kernel.profile
    image = (profile.find_symbol("_text", "_stext") or 0, profile.find_symbol("_end") or 0)
    joined: list[tuple[int, int]] = []
    for start, end in sorted((*ranges, *((piece.start, piece.end) for piece in reading.code.pieces), image)):
        first, last = start & ~PAGE_MASK, (end + PAGE_MASK) & ~PAGE_MASK
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


def _gaps(start: int, end: int, claimed: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of start..end that none of these ranges covers."""
    at = bisect_right(claimed, start, key=lambda one: one[1])
    here = start
    while at < len(claimed) and claimed[at][0] < end:
        if claimed[at][0] > here:
            yield here, claimed[at][0]
        here = claimed[at][1]
        at += 1
    if here < end:
        yield here, end


def _piece(reading: Reading, areas: module_views.Areas, first: int, end: int) -> Finding:
    inside = np.uint64(first) - areas.start < areas.size.astype(np.uint64)
    caller: U64 = areas.caller[inside][:1]
    name = reading.code.symbols(caller)[0] if len(caller) else ""
    asked = name.partition("+")[0] in _LOADERS
    words = f"asked for by {name}" if name else "in no area of vmalloc"
    return Finding(
        "high" if asked or not name else "info", "code that nobody owns", "code of a module, eBPF, ftrace or kprobes",
        f"{end - first:#x} bytes", first, name, words,
    )  # fmt: skip
