"""Functions of the guest's kernel called where they may sleep: by one of its own workers, as work of the kernel's.

Knows `work_struct` (include/linux/workqueue.h) and the kernel functions that queue work and tell whether it is done;
and the few instructions, put into padding of the kernel's text for as long as that takes, that a worker runs: they call
one function for each row of a table. What is worth calling is left to others.

    a page of padding        header (64 bytes), code
    pages of the guest's     work_struct; NEXT and END, the rows that are still to do; rows of 64 bytes:
                             six arguments, what was returned, and 8 bytes that nobody looks at

The order: pages are asked for; code and rows are written, as one change; the work is queued; when the kernel says that
it neither waits nor runs, the code is taken out, and the pages are given back. Work that was queued cannot be called
back for sure, so what a controller leaves when it dies is completed, never put back: the next call does, and `undo`.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vmi_inside.control.assemble import Assembler, At
from vmi_inside.control.borrow import borrow
from vmi_inside.control.journal import UNDO, Entry, Write
from vmi_inside.control.padding import PADDING, is_padding, padding
from vmi_inside.control.transaction import Change
from vmi_inside.errors import Conflict, ControlError, MemoryFault, NoSymbol, NotUndoable, Unsafe, Unsupported, VmiError
from vmi_inside.kernel import Kernel
from vmi_inside.types import MASK64, PAGE_SIZE

if TYPE_CHECKING:
    from vmi_inside.control.controls import Controls

#: What the journal calls code and rows that stand in the guest.
KIND: Final = "deferred"
TIMEOUT: Final = 10.0
ARGUMENTS: Final = 6
#: Rows of one go: 16 pages of them.
ROW_LIMIT: Final = 1000
_ROW: Final = 64
_RESULT: Final = 8 * ARGUMENTS
_NEXT, _END, _ROWS_AT = 64, 72, 128
_ORDER_LIMIT: Final = 4
#: One page below the one that stays padding below gates.
_OFFSET: Final = -2 * PAGE_SIZE
_EMPTY: Final = bytes([PADDING]) * PAGE_SIZE
_MAGIC: Final = b"vmi-call"
#: _MAGIC, where the pages are, how many as a power of two, size of the code.
_HEADER: Final = struct.Struct("<8sQII")
_CODE_AT: Final = 64
_QUEUES: Final = ("system_unbound_wq", "system_dfl_wq")  # renamed in 6.17
_ALLOCATORS: Final = ("__get_free_pages", "get_free_pages_noprof")  # renamed in 6.10
_NEEDED: Final = ("queue_work_on", "work_busy", "free_pages", "_text")
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


@dataclass(frozen=True, slots=True)
class Calls:
    """What is to be called: a function, with each row of up to six integers; then `after`, with each row's first.

    `guards` (address, value of 64 bits) must hold at the moment at which `references` (addresses of counts of 32 bits,
    one for each row) are raised, so that what the calls are about lives until they are made. `after` lowers them.
    """

    function: int
    rows: Sequence[Sequence[int]]
    after: int | None = None
    guards: Sequence[tuple[int, int]] = ()
    references: Sequence[int] = ()

    def first(self, count: int) -> Calls:
        """No more than so many rows of them; guards are no fewer."""
        return replace(self, rows=self.rows[:count], references=self.references[:count])


@dataclass(frozen=True, slots=True)
class _Left:
    """What stands in the room: `pages` is where the rows are, 2**`order` pages."""

    pages: int
    order: int


def assemble(origin: int, function: int, after: int | None) -> bytes:
    """The code of a work: rdi is the `work_struct`, which the pages begin with."""
    asm = Assembler(origin)
    asm.plain("endbr64")
    asm.push("rbx")  # the stack is aligned to 16 now, as functions expect
    asm.move("rbx", "rdi")
    asm.label("each")
    asm.load("rax", At("rbx", _NEXT))
    asm.reckon("cmp", "rax", At("rbx", _END))
    asm.jump_if("ae", "done")
    for at, register in enumerate(("rdi", "rsi", "rdx", "rcx", "r8", "r9")):
        asm.load(register, At("rax", 8 * at))
    asm.call(function)
    asm.load("rcx", At("rbx", _NEXT))
    asm.store(At("rcx", _RESULT), "rax")
    if after is not None:
        asm.load("rdi", At("rcx"))
        asm.call(after)
        asm.load("rcx", At("rbx", _NEXT))
    asm.reckon("add", "rcx", _ROW)
    asm.store(At("rbx", _NEXT), "rcx")
    asm.jump("each")
    asm.label("done")
    asm.pop("rbx")
    asm.plain("ret")
    return asm.finish()


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
            pages, order = self._allocate(min(expected, ROW_LIMIT))
            try:
                count = self._place(room, pages, order, find, reason, detail)
            except BaseException:
                with suppress(VmiError):  # what went wrong first is what is told
                    if self._left(room) is None:
                        self._free(pages, order)
                raise
            self._start(queue, pages)
            return self._complete(room, _Left(pages, order), timeout, count)

    def finish(self, timeout: float = TIMEOUT) -> bool:
        """Complete what an earlier controller left, if it did. Raises `Conflict` where something else stands there."""
        with self.controls.transaction_lock():
            room = self.room()
            left = self._left(room)
            if left is None:
                return False
            done, every = self._progress(left.pages, left.order)
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
        work = self.kernel.struct("work_struct")
        if work.size > _NEXT:
            raise Unsupported(f"no calls that may sleep in this kernel: its work_struct has {work.size} bytes")
        return padding(self.kernel, PAGE_SIZE, _OFFSET)

    def _queue(self) -> int:
        return self.kernel.pointer(*_QUEUES)

    def _left(self, room: int) -> _Left | None:
        """What an earlier call left. Raises `Conflict` for what is not ours, or has been tampered with."""
        raw = self.kernel.space.read(room, PAGE_SIZE)
        if raw == _EMPTY:
            if not is_padding(self.kernel, room, PAGE_SIZE):
                raise Conflict(f"the room for calls at {room:#x} has no padding before it; nothing was changed")
            return None
        magic, pages, order, _ = _HEADER.unpack_from(raw)
        if magic != _MAGIC or order > _ORDER_LIMIT or pages % PAGE_SIZE:
            raise Conflict(f"the room for calls at {room:#x} holds something else; nothing was changed")
        return _Left(pages, order)

    def _progress(self, pages: int, order: int) -> tuple[int, int]:
        """Rows done, and rows in all. Raises `Conflict` where that makes no sense."""
        start = pages + _ROWS_AT
        now, end = (self.kernel.space.read_u64(pages + at) for at in (_NEXT, _END))
        if not start <= now <= end <= pages + (PAGE_SIZE << order) or (now - start) % _ROW or (end - start) % _ROW:
            raise Conflict(f"the table of calls at {pages:#x} has been tampered with; nothing was changed")
        return (now - start) // _ROW, (end - start) // _ROW

    # -- step by step -------------------------------------------------------------------------------------------------

    def _allocate(self, rows: int) -> tuple[int, int]:
        """Pages for so many rows, and how many as a power of two. Raises `ControlError` when the guest has none."""
        size = _ROWS_AT + rows * _ROW
        order = next(one for one in range(_ORDER_LIMIT + 1) if PAGE_SIZE << one >= size)
        # No flag at all: neither sleep for memory nor take the last of it.
        pages = self._call(self.kernel.symbol(*_ALLOCATORS), 0, order)
        if not pages:
            raise ControlError(f"the guest has no {PAGE_SIZE << order} bytes of memory to spare; nothing was changed")
        return pages, order

    def _place(
        self, room: int, pages: int, order: int, find: Callable[[], Calls], reason: str, detail: dict[str, Any]
    ) -> int:
        """Write code and rows as one change; how many rows."""
        refused: Exception | None = None
        for _ in range(_TRIES):
            try:
                calls = find().first(((PAGE_SIZE << order) - _ROWS_AT) // _ROW)
                with self.controls.transaction(reason, kind=KIND, detail=detail, code=True) as change:
                    change.make(self._writes(change, room, pages, order, calls))
                return len(calls.rows)
            except (Conflict, MemoryFault) as error:  # what they are about changed meanwhile
                refused = error
                time.sleep(_POLL)
        raise refused or ControlError(f"{reason}: not done")

    def _writes(self, change: Change, room: int, pages: int, order: int, calls: Calls) -> Iterable[Write]:
        code = assemble(room + _CODE_AT, calls.function, calls.after)
        image = _HEADER.pack(_MAGIC, pages, order, len(code)).ljust(_CODE_AT, b"\0") + code
        work = self.kernel.struct("work_struct")
        entry = pages + work.member("entry").offset
        table = bytearray(_ROWS_AT)
        # `data` of 0 says that pool 0 ran it last, which looks through its workers before it takes it (`__queue_work`).
        for at, value in (
            (work.member("entry").offset, entry), (work.member("entry").offset + 8, entry),
            (work.member("func").offset, room + _CODE_AT), (_NEXT, pages + _ROWS_AT),
            (_END, pages + _ROWS_AT + _ROW * len(calls.rows)),
        ):  # fmt: skip
            table[at : at + 8] = value.to_bytes(8, "little")
        for row in calls.rows:
            words = [value & MASK64 for value in (*row, *[0] * (8 - len(row)))]
            table += struct.pack("<8Q", *words)
        yield Write(pages, change.read(pages, len(table)), bytes(table))
        yield Write(room, _EMPTY[: len(image)], image, code=True)
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

    def _complete(self, room: int, left: _Left, timeout: float, wanted: int) -> list[int]:
        """Wait for the calls, and take everything out; what the first `wanted` rows returned."""
        deadline = time.monotonic() + timeout
        while True:
            done, every = self._progress(left.pages, left.order)
            if done == every and self._taken_out(room, left):
                break
            if time.monotonic() > deadline:
                raise Unsafe(
                    f"{every - done} of {every} calls have not ended in {timeout:g} s; they go on, and "
                    f"what stands for them at {room:#x} is taken out by the next call, or by `undo`"
                )
            time.sleep(_POLL)
        raw = self.kernel.space.read(left.pages + _ROWS_AT, _ROW * min(wanted, every)) if wanted else b""
        self._free(left.pages, left.order)
        return [int.from_bytes(raw[at : at + 8], "little") for at in range(_RESULT, len(raw), _ROW)]

    def _taken_out(self, room: int, left: _Left) -> bool:
        """Put back the padding, if nobody can be in the code any more; whether that was done."""
        raw = self.kernel.space.read(room, PAGE_SIZE)
        size = _CODE_AT + _HEADER.unpack_from(raw)[3]
        entry = next((one for one in reversed(self.controls.journal()) if _is_of(one, room)), None)
        detail = {"undoes": entry.id} if entry is not None else {}
        try:
            with self.controls.transaction(
                "calls ended: their code goes", kind=UNDO, detail=detail, code=True
            ) as change:
                with borrow(change, clean=False) as vcpu:
                    busy = vcpu.call("work_busy", left.pages) & 0xFFFF_FFFF
                if busy:
                    raise Unsafe("it waits or runs")
                change.nobody_in([(room, room + PAGE_SIZE - 1)])
                change.make([Write(room, raw[:size], _EMPTY[:size], code=True)])
        except Unsafe:
            return False
        return True

    def _call(self, function: str | int, *arguments: int) -> int:
        """A function that does not sleep, and takes only locks that are taken with interrupts off."""
        with (
            self.controls.transaction("for calls that may sleep", kind="call", detail={}, code=True) as change,
            borrow(change, clean=False) as vcpu,
        ):
            return vcpu.call(function, *arguments)

    def _free(self, pages: int, order: int) -> None:
        self._call("free_pages", pages, order)


def _is_of(entry: Any, room: int) -> bool:
    return entry.kind == KIND and entry.state == "done" and any(one.address == room for one in entry.writes)
