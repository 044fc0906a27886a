"""Where timers wait: each CPU's trees of high-resolution timers, and its timer wheels.

Knows `hrtimer_cpu_base` (include/linux/hrtimer_defs.h; trees of timerqueue nodes, linked ones in newer kernels) and
`timer_base` (kernel/time/timer.c: two wheels a CPU, three since 6.9). What waits there is left to `timers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vmi_inside import ragged, rbtree, walk
from vmi_inside.errors import NoMember
from vmi_inside.kernel import Kernel
from vmi_inside.structs import Structs
from vmi_inside.table import Text, text
from vmi_inside.types import I64, Mask

#: CLOCK_* (include/uapi/linux/time.h) of the trees.
_CLOCKS: Final = {0: "realtime", 1: "monotonic", 7: "boottime", 11: "tai"}
#: A CPU has eight trees: of four clocks, those whose timers end in a hard interrupt, then those of soft ones.
_TREES_LIMIT: Final = 32
#: Wheels of a CPU, by how many it has: NR_BASES (kernel/time/timer.c).
_WHEELS: Final = {1: ("standard",), 2: ("standard", "deferrable"), 3: ("local", "global", "deferrable")}
#: A tree that the guest turns while it is read is read again; more often it does not help.
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Waiting:
    """Timers (n,): the `hrtimer`s or `timer_list`s, their CPU, the word for where they wait.

    `offset` (n,) is what the clock is ahead of the monotonic one, in ns; `sure` (n,) which hang where they say.
    """

    rows: Structs
    cpu: I64
    base: Text
    offset: I64
    sure: Mask
    faults: tuple[str, ...]


def high_resolution(kernel: Kernel) -> Waiting:
    """All `hrtimer`s that wait, by CPU and clock, the first to end first."""
    owner = kernel.struct("hrtimer_cpu_base")
    trees = owner.member("clock_base")
    base = trees.type.target
    count = min(trees.type.count, _TREES_LIMIT)
    cpus = np.uint64(kernel.symbol("hrtimer_bases") + trees.offset) + kernel.percpu_offset
    at = (cpus[:, None] + np.uint64(base.size) * np.arange(count, dtype=np.uint64)[None, :]).ravel()
    timer, node = kernel.struct("hrtimer"), kernel.struct("rb_node")
    for _ in range(_TRIES):
        rows = kernel.structs(base, at).fetch("active.rb_root.rb_root.rb_node", "clockid", "offset")
        roots = rows.pointer("active.rb_root.rb_root.rb_node")
        found = rbtree.nodes(kernel.space, roots, node, what="high-resolution timers")
        if not found.faults:
            break
    soft = np.arange(len(at)) % count >= count // 2
    words = [_CLOCKS.get(each, f"clock {each}") for each in rows.number("clockid").tolist()]
    named = text(f"{word} soft" if each else word for word, each in zip(words, soft.tolist(), strict=True))
    faults = ("high-resolution timers: a CPU's could not be read", *found.faults) if rows.fault.any() else found.faults
    return Waiting(
        kernel.structs(timer, found.address - np.uint64(timer.member("node.node").offset)), found.owner // count,
        named[found.owner], rows.number("offset")[found.owner], found.sure, faults,
    )  # fmt: skip


def wheels(kernel: Kernel) -> Waiting:
    """All `timer_list`s that wait, by CPU and wheel."""
    base, timer = kernel.struct("timer_base"), kernel.struct("timer_list")
    slots = base.member("vectors")
    count = _wheels(kernel, base.size)
    cpus = np.uint64(kernel.symbol("timer_bases") + slots.offset) + kernel.percpu_offset
    at = (cpus[:, None] + np.uint64(base.size) * np.arange(count, dtype=np.uint64)[None, :]).ravel()
    size = np.full(len(at), min(slots.size, base.size), dtype=np.int64)
    raw = ragged.gather(kernel.space, at, size)
    first, row, _ = raw.words()
    found = walk.chains(kernel.space, first, what="timers")
    order = np.argsort(row[found.owner], kind="stable")
    owner = row[found.owner][order]
    words = text(_WHEELS[count][each % count] for each in range(len(at)))
    faults = found.faults if raw.ok.all() else ("timers: a CPU's wheel could not be read", *found.faults)
    rows = kernel.structs(timer, found.address[order] - np.uint64(timer.member("entry").offset))
    none = np.zeros(len(rows), dtype=np.int64)
    return Waiting(rows, owner // count, words[owner], none, np.ones(len(rows), dtype=np.bool_), faults)


def _wheels(kernel: Kernel, size: int) -> int:
    """How many wheels a CPU has: as the kernel types say, else as many as there is room for."""
    try:
        count = kernel.profile.global_type("timer_bases").count
    except NoMember:
        count = kernel.profile.room("timer_bases") // size
    return min(max(count, 1), max(_WHEELS))
