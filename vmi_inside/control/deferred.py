"""Functions of the guest's kernel called where they may sleep: by one of its own workers, as work of the kernel's.

Knows the kernel functions that queue work and tell whether it is done (kernel/workqueue.c), and when a few instructions
for it may come into padding of the kernel's text, and go. What these are is told by `work`; what is worth calling is
left to others.

The order: pages are asked for; code and rows are written, as one change; the work is queued; when the kernel says that
it neither waits nor runs, the code is taken out, and the pages are given back. Work that was queued cannot be called
back for sure, so what a controller leaves when it dies is completed, never put back: the next call does, and `undo`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from vmi_inside.control.borrow import borrow
from vmi_inside.control.journal import UNDO, Entry, Write
from vmi_inside.control.padding import is_padding, padding
from vmi_inside.control.transaction import Change
from vmi_inside.control.work import (
    EMPTY,
    HEAD_SIZE,
    Calls,
    NotOurs,
    Table,
    code_page,
    order_for,
    read_page,
    returned,
    table_bytes,
    table_size,
)
from vmi_inside.errors import Conflict, ControlError, MemoryFault, NoSymbol, NotUndoable, Unsafe, Unsupported, VmiError
from vmi_inside.kernel import Kernel
from vmi_inside.types import PAGE_SIZE

if TYPE_CHECKING:
    from vmi_inside.control.controls import Controls

#: What the journal calls code and rows that stand in the guest.
KIND: Final = "deferred"
TIMEOUT: Final = 10.0
#: One page below the one that stays padding below gates.
_OFFSET: Final = -2 * PAGE_SIZE
_QUEUES: Final = ("system_unbound_wq", "system_dfl_wq")  # renamed in 6.17
_ALLOCATORS: Final = ("__get_free_pages", "get_free_pages_noprof")  # renamed in 6.10
_NEEDED: Final = ("queue_work_on", "work_busy", "free_pages")
#: Functions that only kernels have which it cannot be done in: control flow integrity by the compiler, PREEMPT_RT.
_OBSTACLES: Final = {
    "report_cfi_failure": "it checks the types of functions that it calls",
    "rt_spin_lock": "its interrupts may not ask for memory",
}
#: `refcount_t` counts no further (include/linux/refcount.h).
_MOST: Final = (1 << 31) - 1
_FIRST_CPU: Final = 0
_POLL: Final = 0.01
_TRIES: Final = 20


class Deferring:
    """Calls in one guest that may sleep, one set of them at a time."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self.kernel: Kernel = controls.kernel

    def run(
        self, find: Callable[[], Calls], reason: str, detail: dict[str, Any], timeout: float = TIMEOUT
    ) -> list[int]:
        """Call what `find` finds, and give what was returned for each row (RAX, unsigned): ROW_LIMIT at the most.

        It is asked again when the guards do not hold. Raises `Unsafe` when the calls have not ended in `timeout`
        seconds: they go on, and what stands in the guest for them is taken out by the next one, or by `undo`. Raises
        `Conflict`, `Unsupported`.
        """
        with self.controls.transaction_lock():
            room = self.room()
            queue = self._queue()
            self.finish(timeout)
            expected = len(find().rows)
            if not expected:
                return []
            table = self._allocate(expected)
            try:
                count = self._place(room, table, find, reason, detail)
            except BaseException:
                with suppress(VmiError):  # what went wrong first is what is told
                    if self._left(room) is None:
                        self._free(table)
                raise
            self._start(queue, table.pages)
            return self._complete(room, table, timeout, count)

    def finish(self, timeout: float = TIMEOUT) -> bool:
        """Complete what an earlier controller left, if it did. Raises `Conflict` where something else stands there."""
        with self.controls.transaction_lock():
            room = self.room()
            left = self._left(room)
            if left is None:
                return False
            done, every = self._progress(left)
            if done < every and not self._call("work_busy", left.pages) & 0xFFFF_FFFF:
                self._start(self._queue(), left.pages)
            self._complete(room, left, timeout, 0)
            return True

    def undo(self, entry: Entry) -> Entry:
        """The same, for one entry of the journal; gives the entry of doing so. Raises `NotUndoable`."""
        if not any(one.id == entry.id for one in self.controls.standing()) or not self.finish():
            raise NotUndoable(f"entry {entry.id}: its calls have ended, and nothing of them is left to undo")
        return next(one for one in reversed(self.controls.journal()) if one.detail.get("undoes") == entry.id)

    # -- what there is in the guest -----------------------------------------------------------------------------------

    def room(self) -> int:
        """Where the code goes. Raises `Unsupported` where this kernel has no room, or cannot be told to do it."""
        profile = self.kernel.profile
        for name in _NEEDED:
            if profile.find_symbol(name) is None:
                raise Unsupported(f"no calls that may sleep in this kernel: {NoSymbol(name)}")
        for names in (_QUEUES, _ALLOCATORS):
            if profile.find_symbol(*names) is None:
                raise Unsupported(f"no calls that may sleep in this kernel: {NoSymbol(' or '.join(names))}")
        for name, why in _OBSTACLES.items():
            if profile.find_symbol(name) is not None:
                raise Unsupported(f"no calls that may sleep in this kernel: {why}")
        return padding(self.kernel, PAGE_SIZE, _OFFSET)

    def _queue(self) -> int:
        return self.kernel.pointer(*_QUEUES)

    def _left(self, room: int) -> Table | None:
        """What an earlier call left. Raises `Conflict` for what is not ours."""
        try:
            left = read_page(self.kernel.space.read(room, PAGE_SIZE))
        except NotOurs as error:
            raise Conflict(f"the room for calls at {room:#x} holds {error}; nothing was changed") from None
        if left is None and not is_padding(self.kernel, room, PAGE_SIZE):
            raise Conflict(f"the room for calls at {room:#x} has no padding before it; nothing was changed")
        return left

    def _progress(self, table: Table) -> tuple[int, int]:
        """Rows done, and rows in all. Raises `Conflict` where that makes no sense."""
        try:
            return table.progress(self.kernel.space.read(table.pages, HEAD_SIZE))
        except NotOurs as error:
            raise Conflict(f"{error}; it stays as it is") from None

    # -- step by step -------------------------------------------------------------------------------------------------

    def _allocate(self, rows: int) -> Table:
        """Memory for so many rows. Raises `ControlError` when the guest has none."""
        order = order_for(rows)
        # No flag at all: neither sleep for memory nor take the last of it.
        pages = self._call(self.kernel.symbol(*_ALLOCATORS), 0, order)
        if not pages:
            raise ControlError(f"the guest has no {PAGE_SIZE << order} bytes of memory to spare; nothing was changed")
        return Table(pages, order)

    def _place(
        self, room: int, table: Table, find: Callable[[], Calls], reason: str, detail: dict[str, Any]
    ) -> int:  # fmt: skip
        """Write code and rows as one change; how many rows."""
        refused: Exception | None = None
        for _ in range(_TRIES):
            try:
                calls = find().first(table.room)
                with self.controls.transaction(reason, kind=KIND, detail=detail, code=True) as change:
                    change.make(self._writes(change, room, table, calls))
                return len(calls.rows)
            except (Conflict, MemoryFault) as error:  # what they are about changed meanwhile
                refused = error
                time.sleep(_POLL)
        raise refused or ControlError(f"{reason}: not done")

    def _writes(self, change: Change, room: int, table: Table, calls: Calls) -> Iterable[Write]:
        rows = table_bytes(self.kernel.struct("work_struct"), room, table, calls)
        code = code_page(room, table, calls)
        yield Write(table.pages, change.read(table.pages, len(rows)), rows)
        yield Write(room, EMPTY[: len(code)], code, code=True)
        for address, value in calls.guards:
            raw = value.to_bytes(8, "little")
            yield Write(address, raw, raw)
        for address in calls.references:
            old = change.read(address, 4)
            count = int.from_bytes(old, "little")
            if not 0 < count < _MOST:
                raise Conflict(f"what is counted at {address:#x} has ended, or is no count: {count:#x}")
            yield Write(address, old, (count + 1).to_bytes(4, "little"))

    def _start(self, queue: int, work: int) -> None:
        self._call("queue_work_on", _FIRST_CPU, queue, work)

    def _complete(self, room: int, table: Table, timeout: float, wanted: int) -> list[int]:
        """Wait for the calls, and take everything out; what the first `wanted` rows returned."""
        deadline = time.monotonic() + timeout
        while True:
            done, every = self._progress(table)
            why = f"{every - done} of {every} calls have not ended in {timeout:g} s; they go on; what stands for them"
            if done == every:
                why = self._take_out(room)
                if not why:
                    break
                why = f"all calls have ended, but {why}; what stands for them"
            if time.monotonic() > deadline:
                raise Unsafe(f"{why} at {room:#x} is taken out by the next call, or by `undo`")
            time.sleep(_POLL)
        raw = self.kernel.space.read(table.pages, table_size(min(wanted, every))) if wanted else b""
        self._free(table)
        return returned(raw)

    def _take_out(self, room: int) -> str:
        """Put back the padding, if nobody can be in the code any more; else why that was not done."""
        raw = self.kernel.space.read(room, PAGE_SIZE)
        table = self._left(room)
        if table is None:
            return ""
        entry = next((one for one in reversed(self.controls.journal()) if _is_of(one, room)), None)
        detail = {"undoes": entry.id} if entry is not None else {}
        reason = "calls ended: their code goes"
        try:
            with self.controls.transaction(reason, kind=UNDO, detail=detail, code=True) as change:
                with borrow(change, clean=False) as vcpu:
                    busy = vcpu.call("work_busy", table.pages) & 0xFFFF_FFFF
                if busy:
                    raise Unsafe("their worker is not through with them")
                change.nobody_in([(room, room + PAGE_SIZE - 1)])
                change.make([Write(room, raw[: table.size], EMPTY[: table.size], code=True)])
        except Unsafe as error:
            return str(error)
        return ""

    def _call(self, function: str | int, *arguments: int) -> int:
        """A function that does not sleep, and takes only locks that are taken with interrupts off."""
        with (
            self.controls.transaction("for calls that may sleep", kind="call", detail={}, code=True) as change,
            borrow(change, clean=False) as vcpu,
        ):
            return vcpu.call(function, *arguments)

    def _free(self, table: Table) -> None:
        self._call("free_pages", table.pages, table.order)


def _is_of(entry: Any, room: int) -> bool:
    return entry.kind == KIND and entry.state == "done" and any(one.address == room for one in entry.writes)
