"""The stacks of tasks that sleep: their bytes, from the saved stack pointer up.

Knows where a task's kernel stack is (`task_struct.stack`, `thread.sp`; arch/x86/include/asm/processor.h). What the
bytes mean is `unwind`'s knowledge. Each stack is read once; nothing outside of it is ever read.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmi_inside import ragged
from vmi_inside.kernel import Kernel
from vmi_inside.linux.processes.view import TaskColumn, View
from vmi_inside.structs import Structs
from vmi_inside.table import Text
from vmi_inside.types import U64, Mask

#: THREAD_SIZE (arch/x86/include/asm/page_64_types.h).
_STACK_SIZE: Final = 16 << 10
_KASAN_STACK_SIZE: Final = 32 << 10
#: Members of the task that must be there.
MEMBERS: Final = ("stack", "thread.sp", "on_cpu")
#: What is no fault of a stack: its task was not asleep.
RUNS: Final = "runs: its stack is on a processor"
_EIGHT: Final = np.uint64(8)


class Stacks:
    """The stacks of `n` tasks: bytes from the saved pointer up, and reading in them alone."""

    def __init__(self, kernel: Kernel, tasks: Structs) -> None:
        size = _KASAN_STACK_SIZE if kernel.profile.find_symbol("kasan_init") is not None else _STACK_SIZE
        self.base, self.top = tasks.pointer("stack"), tasks.pointer("stack") + np.uint64(size)
        self.low = tasks.pointer("thread.sp")
        self.there = self.base != 0
        running = tasks.number("on_cpu") != 0
        self.sane = (self.low >= self.base) & (self.low < self.top) & (self.low & np.uint64(7) == 0)
        taken = self.there & self.sane & ~running
        length = np.where(taken, self.top - self.low, np.uint64(0)).astype(np.int64)
        self._got = ragged.gather(kernel.space, self.low, length)
        self._words = self._got.data.view("<u8") if len(self._got.data) else np.zeros(1, dtype=np.uint64)
        self.usable = taken & self._got.ok
        self.faults = [
            (self.there & running, RUNS),
            (self.there & ~running & ~self.sane, "stack pointer outside of its stack"),
            (taken & ~self._got.ok, "stack unreadable"),
        ]

    def word(self, row: NDArray[np.intp], address: U64) -> tuple[U64, Mask]:
        """The words at addresses (k,) in the stacks of tasks `row` (k,), and which of them lie there whole."""
        ok: Mask = (address >= self.low[row]) & (address <= self.top[row] - _EIGHT) & (address & np.uint64(7) == 0)
        at = (self._got.start[row] >> 3) + np.where(ok, (address - self.low[row]) >> np.uint64(3), 0).astype(np.int64)
        return np.where(ok, self._words[np.where(ok, at, 0)], np.uint64(0)), ok

    def all_words(self) -> tuple[U64, NDArray[np.intp]]:
        """Every word that is not 0, and the task of each, upwards."""
        words, owner, _ = self._got.words()
        mine = self.usable[owner]
        return words[mine], owner[mine]


def _wait_channel(view: View) -> Text:
    """The function that each waits in: what finds it is loaded when it is asked for."""
    from vmi_inside.linux.processes.unwind import wait_channel

    return wait_channel(view)


#: The column of processes and threads.
COLUMNS: Final[dict[str, TaskColumn[View]]] = {"wchan": TaskColumn(_wait_channel, MEMBERS)}
