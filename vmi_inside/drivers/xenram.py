"""Which frames a Xen guest has: its RAM, as runs.

Knows how the hypervisor is asked for the types of frames, 1,024 at a time, and few of those that there may be. Of a PV
guest its own table tells instead (`xenpv`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vmi_inside.drivers.xenlib import Xen
from vmi_inside.memory import Run
from vmi_inside.types import PAGE_SHIFT, U64, Mask

_SLOT: Final = 512  # frames: of RAM that is looked for, one in each slot first
_TYPES: Final = 1024  # frames a call of xc_get_pfn_type_batch
_FRAMES_LIMIT: Final = 1 << 30  # 4 TiB
_KIND: Final = np.uint64(0xF000_0000)  # XEN_DOMCTL_PFINFO_XTAB: there is no such frame


def ram(xen: Xen, number: int) -> tuple[Run, ...]:
    """The RAM of the PVH or HVM guest of that domid. Raises as `Xen` does."""
    last = min(xen.last_frame(number), _FRAMES_LIMIT)
    slots = np.arange(0, last + 1, _SLOT, dtype=np.uint64)
    there = _populated(xen, number, slots)
    # Where a slot's neighbours are as it is, it is taken to be of one piece.
    edge = np.zeros(len(slots), dtype=np.bool_)
    edge[1:] |= there[1:] != there[:-1]
    edge[:-1] |= there[1:] != there[:-1]
    edge[[0, -1]] = True
    runs: list[tuple[int, int]] = []
    for start, is_edge, is_there in zip(slots.tolist(), edge.tolist(), there.tolist(), strict=True):
        if is_edge:
            frame = np.arange(start, min(start + _SLOT, last + 1), dtype=np.uint64)
            runs += stretches(frame[_populated(xen, number, frame)])
        elif is_there:
            runs.append((start, start + _SLOT))
    return joined(runs)


def _populated(xen: Xen, number: int, frame: U64) -> Mask:
    out = np.empty(len(frame), dtype=np.bool_)
    for first in range(0, len(frame), _TYPES):
        some = frame[first : first + _TYPES].copy()
        xen.frame_types(number, some)
        out[first : first + _TYPES] = some & _KIND != _KIND
    return out


def stretches(frame: U64) -> list[tuple[int, int]]:
    """Ascending frames as ranges: first, and the one behind the last."""
    if not len(frame):
        return []
    cut = np.flatnonzero(np.diff(frame) != 1) + 1
    starts, ends = frame[np.concatenate(([0], cut))], frame[np.concatenate((cut - 1, [len(frame) - 1]))]
    return [(start, end + 1) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def joined(ranges: list[tuple[int, int]]) -> tuple[Run, ...]:
    """Ranges of frames, ascending, as runs of RAM; those that adjoin are one."""
    out: list[list[int]] = []
    for start, end in ranges:
        if out and out[-1][1] == start:
            out[-1][1] = end
        else:
            out.append([start, end])
    return tuple(Run(start << PAGE_SHIFT, end - start << PAGE_SHIFT) for start, end in out)
