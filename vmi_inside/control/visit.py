"""A vCPU that comes by itself to where functions of the guest's kernel are called, where no debugger can lead it there.

Knows the function that all vCPUs of a Xen guest go through in their interrupts, and the order of things: code of ours
is put into unused room of the kernel's text and a jump to it at that function's entry, the guest runs and is rung for,
one vCPU comes and does what it is told, goes on, and everything is put back. The code is `visit_code`'s; whoever calls
functions does not see which way it was.

`xen_hvm_evtchn_do_upcall`, or `xen_evtchn_do_upcall` since 6.6 (drivers/xen/events/events_base.c), is called by the
handler of Xen's upcall for PV and for PVH and HVM guests alike: interrupts (of a PV guest: events) are off, the CPU is
on its interrupt stack, RCU watches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from vmi_inside.control.borrow import TIMEOUT, preempt_offset
from vmi_inside.control.gates import layout
from vmi_inside.control.gates.entries import find_entry
from vmi_inside.control.gates.holes import spare_words
from vmi_inside.control.gates.standing import Site
from vmi_inside.control.machine import Ringing
from vmi_inside.control.padding import PADDING, is_padding, padding
from vmi_inside.control.pausing import Pausing, uninterrupted
from vmi_inside.control.sleepers import current_offset, standing
from vmi_inside.control.transaction import Change
from vmi_inside.control.visit_code import ANSWER, CODE_AT, COMMAND, GONE, ORDER, Visit, assemble
from vmi_inside.errors import ControlError, NoMember, NoSymbol, Unsafe, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.types import MASK64, PAGE_SIZE

DOORS: Final = ("xen_hvm_evtchn_do_upcall", "xen_evtchn_do_upcall")
#: Seconds: for a vCPU to come; for one to wait for a command; between two rings; between two looks; for all vCPUs to
#: leave the code, and how long the guest runs between two looks whether they have.
PATIENCE: Final = 10.0
_ITS_PATIENCE: Final = 4.0
_RING: Final = 0.3
_LOOK: Final = 0.002
_LEAVING: Final = 15.0
_BREATH: Final = 0.02
#: Where the page for the code is, counted from the gates' room: see `padding`.
_OFFSET: Final = -4 * PAGE_SIZE
#: Ticks a second of a time stamp counter of which the kernel says nothing.
_TICKS: Final = 1 << 31


class Visitor:
    """The vCPU that waits. The guest stands but for the calls. See `borrow.Caller`."""

    def __init__(self, change: Change, visit: Visit, stack: int) -> None:
        self._change = change
        self._kernel = change.kernel
        self._visit = visit
        self._stack = stack
        self._number = 0

    def call(self, function: str | int, *arguments: int, timeout: float = TIMEOUT) -> int:
        """Call a kernel function; gives RAX. Raises `Unsafe` when it has not returned in time, `NoSymbol`.

        A function that does not return keeps its vCPU: it cannot be taken away from there.
        """
        if len(arguments) > 6:
            raise ControlError(f"{len(arguments)} arguments; a kernel function is called with six at the most")
        address = self._kernel.symbol(function) if isinstance(function, str) else function
        if not address:
            raise ControlError("there is no function at address 0")
        with uninterrupted():
            if not self.waits:
                raise Unsafe(f"the vCPU has gone on by itself: this host is too slow; {function} was not called")
            self._tell(address, *(one & MASK64 for one in arguments))
            with self._change.running():
                return self._answer(str(function), timeout)

    @property
    def waits(self) -> bool:
        """Whether it is still there."""
        return self._kernel.space.read_u64(self._visit.word) == self._stack

    def leave(self) -> None:
        """Let it go on, when the guest runs."""
        self._tell(0)

    def _answer(self, function: str, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while True:
            done, value = ANSWER.unpack(self._kernel.space.read(self._stack, ANSWER.size))
            if self._kernel.space.read_u64(self._visit.word) != self._stack:
                raise Unsafe(f"the vCPU has gone on by itself; whether {function} was called is not known")
            if done == self._number:
                return int(value)
            if time.monotonic() > deadline:
                raise Unsafe(f"{function} has not returned in {timeout:g} s; the vCPU that it was called on is in it")
            time.sleep(_LOOK)

    def _tell(self, function: int, *arguments: int) -> None:
        self._number += 1
        order = ORDER.pack(function, *arguments, *(0,) * (6 - len(arguments)))
        page = self._visit.page
        self._change.apply([(page + COMMAND.size, order, None), (page, COMMAND.pack(self._number), None)])


@contextmanager
def visited(change: Change, machine: Ringing, *, clean: bool) -> Iterator[Visitor]:
    """Have a vCPU wait for functions to call. `change` is a transaction that lasts; `clean` as for `borrow`.

    Raises `Unsafe` when none comes, `Unsupported` on kernels that have no such function or no room.
    """
    kernel, pausing = change.kernel, change.pausing
    with change.running():  # it takes a while, and whatever it finds is compared when it is written to
        visit, entry_at, nop = _plan(kernel, clean)
    code = assemble(visit)
    jump = layout.hook(entry_at, visit.page + CODE_AT)
    held = [visit.page, visit.page + PAGE_SIZE - 1, visit.word, visit.empty]
    change.hold(room=held)
    change.guard(lambda: vacate(kernel, pausing, held))
    change.apply([(visit.page, code, bytes([PADDING]) * len(code)), (entry_at, jump, nop)], code=True)
    try:
        visitor = _caught(change, machine, visit)
        try:
            yield visitor
        finally:
            visitor.leave()
    finally:
        with uninterrupted():
            change.take_back()
            change.settle(visit.word, visit.empty.to_bytes(8, "little"))
            change.hold(room=None)


def vacate(kernel: Kernel, pausing: Pausing, held: Sequence[int]) -> None:
    """Let a guest that stands run for moments until no vCPU is in the room. Raises `Unsafe` where one stays.

    `held` is what was told of the room: first and last address, the word, and what it held before.
    """
    start, end, word, empty = map(int, held)
    deadline = time.monotonic() + _LEAVING
    while inside := _inside(kernel, pausing, start, end, word, empty):
        if time.monotonic() > deadline:
            raise Unsafe(f"{inside}: the code at {start:#x} that it came by for cannot be taken out")
        with pausing.running():
            time.sleep(_BREATH)


def _inside(kernel: Kernel, pausing: Pausing, start: int, end: int, word: int, empty: int) -> str:
    if kernel.space.read_u64(word) not in (empty, GONE):
        return "a vCPU waits for a call, or is in a function that was called"
    with pausing.debugger() as debugger:
        registers = [debugger.registers(vcpu) for vcpu in range(len(debugger.threads))]
    return standing(kernel, [(start, end)], registers)


def _caught(change: Change, machine: Ringing, visit: Visit) -> Visitor:
    """The vCPU that has come, and that waited still when the guest was stopped; on a slow host another one is rung for.

    Raises `Unsafe` when none comes in time.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        with change.running():
            stack = _come(change.kernel, machine, visit, deadline)
        visitor = Visitor(change, visit, stack)
        if stack != GONE and visitor.waits:
            return visitor
        change.settle(visit.word, visit.empty.to_bytes(8, "little"))


def _come(kernel: Kernel, machine: Ringing, visit: Visit, deadline: float) -> int:
    """Ring until a vCPU has come; gives where on its stack it answers."""
    rung = time.monotonic() - _RING
    while (stack := kernel.space.read_u64(visit.word)) == visit.empty:
        now = time.monotonic()
        if now > deadline:
            raise Unsafe(f"no vCPU has come to be borrowed in {PATIENCE:g} s; nothing was done")
        if now - rung >= _RING:
            machine.ring()
            rung = now
        time.sleep(_LOOK)
    return stack


def _plan(kernel: Kernel, clean: bool) -> tuple[Visit, int, bytes]:
    """What the code must know, where the jump to it goes, and what stands there."""
    entry = find_entry(kernel, *DOORS)
    if entry is None:
        raise Unsupported(f"no vCPU can be borrowed: this kernel has no {' or '.join(DOORS)}")
    if entry.state != "free":
        raise Unsafe(f"no vCPU can be borrowed: {entry.words()}")
    state, _ = Site(kernel).read()
    used = {rule.counter for rule in state.rules.values()} if state else set()
    found = next(((at, value) for at, value in spare_words(kernel) if at not in used and value != GONE), None)
    if found is None:
        raise Unsupported("no vCPU can be borrowed: this kernel has no spare word to say that one has come")
    page = padding(kernel, PAGE_SIZE, _OFFSET)
    if not is_padding(kernel, page, PAGE_SIZE):
        raise Unsupported(f"no vCPU can be borrowed: what stands at {page:#x} is no padding")
    try:
        visit = Visit(
            page, *found, entry.behind, preempt_offset(kernel), current_offset(kernel),
            kernel.struct("task_struct").member("pid").offset, int(_ITS_PATIENCE * _ticks(kernel)), clean,
        )  # fmt: skip
    except (NoSymbol, NoMember) as error:
        raise Unsupported(f"no vCPU can be borrowed: {error}") from error
    return visit, entry.at, entry.found


def _ticks(kernel: Kernel) -> int:
    """Ticks a second of the time stamp counter, by the kernel's word."""
    try:
        return kernel.number(4, "tsc_khz") * 1000 or _TICKS
    except NoSymbol:
        return _TICKS
