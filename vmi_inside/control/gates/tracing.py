"""The kernel's list of the NOPs that it may turn into calls of a tracer, and how it is told to leave one alone.

Knows `struct ftrace_page` and `struct dyn_ftrace` (kernel/trace/ftrace.c, include/linux/ftrace.h; 5.10 to 7.2). A
tracer that finds other bytes than it left warns, and is shut down for good; a record that is marked as disabled it
passes over.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside import ragged
from vmi_inside.errors import MemoryFault, ProfileError
from vmi_inside.kernel import Kernel
from vmi_inside.types import U64

#: The kernel's and its modules' together.
_GROUP_LIMIT: Final = 1 << 14
_RECORD_LIMIT: Final = 1 << 16


class Records:
    """The records of one kernel's tracer; empty where it has none."""

    def __init__(self, kernel: Kernel) -> None:
        self.disabled = kernel.profile.enumerator("FTRACE_FL_DISABLED") or 0
        try:
            self._places, self._flags = _records(kernel) if self.disabled else (_NOBODY, _NOBODY)
        except (ProfileError, MemoryFault):
            self._places, self._flags = _NOBODY, _NOBODY

    def flags(self, place: int) -> int:
        """The address of the flags (8 bytes) that belong to a place in the kernel's text; 0 where it is not traced."""
        at = int(np.searchsorted(self._places, np.uint64(place)))
        known = at < len(self._places) and int(self._places[at]) == place
        return int(self._flags[at]) if known else 0


_NOBODY: Final[U64] = np.empty(0, dtype=np.uint64)


def _records(kernel: Kernel) -> tuple[U64, U64]:
    """Places (n,), ascending, and where the flags of each are."""
    group, record = kernel.struct("ftrace_page"), kernel.struct("dyn_ftrace")
    if record.member("ip").size != 8 or record.member("flags").size != 8:
        return _NOBODY, _NOBODY
    base, count = [], []
    with kernel.operation():
        here = kernel.pointer("ftrace_pages_start")
        for _ in range(_GROUP_LIMIT):
            if not here:
                break
            row = kernel.structs(group, [here]).fetch("next", "records", "index")
            if row.fault.any():
                break
            base.append(int(row.pointer("records")[0]))
            count.append(min(max(int(row.number("index")[0]), 0), _RECORD_LIMIT))
            here = int(row.pointer("next")[0])
        start = np.array(base, dtype=np.uint64)
        listed = np.array(count, dtype=np.int64)
        read = ragged.gather(kernel.space, start, listed * record.size)
    places, flags = [_NOBODY], [_NOBODY]
    for at, number in enumerate(count):
        if read.ok[at] and number:
            rows = np.frombuffer(read.row(at), dtype=np.uint8).reshape(number, record.size)
            offset = record.member("ip").offset
            places.append(np.ascontiguousarray(rows[:, offset : offset + 8]).view("<u8")[:, 0])
            flags.append(start[at] + np.uint64(record.size) * np.arange(number, dtype=np.uint64))
    place = np.concatenate(places)
    order = np.argsort(place, kind="stable")
    return place[order], np.concatenate(flags)[order] + np.uint64(record.member("flags").offset)
