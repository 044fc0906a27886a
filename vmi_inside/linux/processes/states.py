"""The letter that `ps` shows for a task's state.

Source: include/linux/sched.h (`TASK_*`, `task_state_index`), fs/proc/array.c; 4.14 and later.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside.types import I64

#: task_struct.state renamed in 5.14.
STATE: Final = ("__state", "state")

_REPORT: Final = (
    0x7F  # running 0, interruptible 1, uninterruptible 2, stopped 4, traced 8, dead 0x10, zombie 0x20, parked 0x40
)
_UNINTERRUPTIBLE: Final = 0x02
_NOLOAD: Final = 0x400
_IDLE: Final = _UNINTERRUPTIBLE | _NOLOAD
_RTLOCK: Final = 0x1000
_FROZEN: Final = 0x8000
_LETTERS: Final = "RSDTtXZP"
_BY_REPORT: Final = np.array([_LETTERS[value.bit_length()] for value in range(_REPORT + 1)], dtype=object)


def letters(state: I64, exit_state: I64) -> NDArray[np.object_]:
    """State letters (n,) from `task_struct.__state` and `exit_state`, both (n,)."""
    report = (state | exit_state) & _REPORT
    report = np.where((state & (_RTLOCK | _FROZEN)) != 0, _UNINTERRUPTIBLE, report)
    out: NDArray[np.object_] = _BY_REPORT[report]
    out[(state & _IDLE) == _IDLE] = "I"
    return out
