"""One change to a guest, whole or not at all: compared, journalled, written, verified, inside one pause.

Knows the order of these, and how to go back. Who holds the guest is left to `pausing`, what stands in the journal to
`journal`, where bytes lie to `places`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from typing import Any, Final

from vmi_inside.control.boot import boot_identity
from vmi_inside.control.journal import UNDO, Entry, Journal, Write
from vmi_inside.control.machine import Debugger, Machine
from vmi_inside.control.pausing import Pause, Pausing, uninterrupted
from vmi_inside.control.places import KERNEL, Piece, Spaces, pieces
from vmi_inside.control.rehearsal import Changing, Rehearsal, checked
from vmi_inside.control.sleepers import standing
from vmi_inside.errors import Conflict, ControlError, GuestGone, NotUndoable, Unsafe, VmiError
from vmi_inside.kernel import Kernel
from vmi_inside.memory import WritableMemory

#: The longest of x86's.
_INSTRUCTION: Final = 15


class Change:
    """What a transaction's block works with. Addresses are virtual kernel addresses unless `space` says otherwise."""

    def __init__(
        self, kernel: Kernel, memory: WritableMemory, pausing: Pausing, journal: Journal, entry: Entry
    ) -> None:
        self.kernel = kernel
        #: The journal's entry of this change.
        self.entry = entry
        #: Who holds the guest meanwhile.
        self.pausing = pausing
        self._memory = memory
        self._journal = journal
        self._exits = ExitStack()
        self._guards: list[Callable[[], None]] = []

    @property
    def detail(self) -> dict[str, Any]:
        """What the entry says beside, as JSON has it; what is put here is kept when the change is done."""
        return self.entry.detail

    def note(self, **told: Any) -> None:
        """Put that into the entry's detail at once: it is known also when we die in the middle."""
        self.entry.detail.update(told)
        self._journal.note(self.entry)

    @cached_property
    def debugger(self) -> Debugger:
        """A hold on the vCPUs, taken when first asked for. Raises `Busy` when another debugger has it."""
        return self._exits.enter_context(self.pausing.debugger())

    def run_freely(self) -> None:
        """Raise `Unsafe` when the guest stands still for another's sake, too, and must not be let run."""
        if not self.pausing.free_to_run:
            raise Unsafe("the guest is paused, and its kernel can do nothing meanwhile; let it run first")

    @property
    def machine(self) -> Machine:
        """The machine that is held."""
        return self.pausing.machine

    def hold(self, **told: Any) -> None:
        """Tell whoever comes after us, if we die, what must be let go of.

        `points` are breakpoints, `room` is one of `visit`'s.
        """
        self.pausing.tell(**told)

    def running(self) -> AbstractContextManager[None]:
        """A block in which the guest runs; registers are to be read anew afterwards. Raises `Unsafe`."""
        self.run_freely()
        self.__dict__.pop("registers", None)
        return self.pausing.running()

    def guard(self, free: Callable[[], None]) -> None:
        """Have this called before anything is put back: it raises `Unsafe` where that must not be done."""
        self._guards.append(free)

    @cached_property
    def registers(self) -> tuple[dict[str, int], ...]:
        """The registers of each vCPU as it stands, by gdb's names: rip, rsp, eflags, cr3, gs_base, k_gs_base ..."""
        debugger = self.debugger
        return tuple(debugger.registers(vcpu) for vcpu in range(len(debugger.threads)))

    def read(self, address: int, size: int, space: str = KERNEL) -> bytes:
        """What stands there. Raises `PageFault`, `NoMemory`."""
        return self._read(pieces(self.kernel, space, address, size))

    def write(self, address: int, new: bytes, *, expect: bytes | None = None, space: str = KERNEL) -> None:
        """Write data. Raises `Conflict` when not `expect` stands there, `PageFault`, `NoMemory`: nothing is written."""
        self.apply([(address, new, expect)], space=space)

    def code(self, address: int, new: bytes, *, expect: bytes | None = None) -> None:
        """Write kernel code, so that it takes effect also where QEMU translates code (TCG).

        Raises as `write` does, and `Unsafe` when a vCPU stands between the bytes.
        """
        self.apply([(address, new, expect)], code=True)

    def apply(
        self, writes: Iterable[tuple[int, bytes, bytes | None]], *, code: bool = False, space: str = KERNEL
    ) -> None:
        """Several writes of (address, new, expect) as one: all are compared, then journalled, then made, in order."""
        self._apply(checked(writes, code=code, space=space))

    def make(self, writes: Iterable[Write], *, living: bool = False) -> None:
        """Several writes, of data and of code, as one, made in this order: each says what it expects (`old`).

        With `living` those to what was a process's that has ended are left out; else they are a `Conflict`.
        """
        self._apply(list(writes), living=living)

    @property
    def pause(self) -> Pause:
        """The pause that this change is made in; how long it was is known afterwards."""
        pause = self.pausing.current
        if pause is None:
            raise ControlError("the change is over")
        return pause

    def nobody_in(self, code: Iterable[tuple[int, int]]) -> None:
        """Raise `Unsafe` when a vCPU or a waiting task is in one of these ranges (first and last address) of code."""
        ranges = list(code)
        who = standing(self.kernel, ranges, self.registers) if ranges else ""
        if who:
            raise Unsafe(f"{who}, in code that is about to change; try again")

    def _apply(self, planned: Sequence[Write], *, living: bool = False) -> None:
        """Compare, journal, write, verify. A write whose `old` is empty expects nothing."""
        found: list[tuple[Write, list[Piece]]] = []
        with self.kernel.operation():  # page tables are read once: the guest stands still meanwhile
            spaces = Spaces(self.kernel)
            if living:
                planned = [one for one in planned if spaces.there(one.space)]
            for one in planned:
                where = pieces(self.kernel, one.space, one.address, len(one.new), write=True, spaces=spaces)
                stands = self._read(where)
                if one.old and one.old != stands:
                    raise Conflict(
                        f"{_place(one)} holds {_shown(stands)}, not {_shown(one.old)} as the change expects; "
                        "nothing was written there"
                    )
                found.append((Write(one.address, stands, one.new, one.code, one.space), where))
        for address in [reg["rip"] for reg in self.registers] if any(one.code for one in planned) else []:
            for one in planned:
                if one.code and one.address < address < one.address + len(one.new):
                    raise Unsafe(f"a vCPU stands at {address:#x}, between the bytes of the code to change; try again")
        self._journal.writes(self.entry, (one for one, _ in found))
        for one, where in found:
            self._put(one, where, one.new)

    def _put(self, one: Write, where: Sequence[Piece], data: bytes) -> None:
        for piece in where:
            if one.code:
                self.debugger.write(piece.pa, data[piece.start : piece.end])
            else:
                self._memory.write(piece.pa, data[piece.start : piece.end])
        if self._read(where) != data:
            raise ControlError(f"{_place(one)} does not hold what was written there")

    def _read(self, where: Sequence[Piece]) -> bytes:
        # Known to be readable: whoever made the pieces has looked.
        return b"".join(bytes(self._memory.read(one.pa, one.end - one.start) or b"") for one in where)

    def put_back(self) -> None:
        """Put back what this entry's writes changed, the last first. Raises `ControlError` where bytes are others'.

        What was a process's that has ended is somebody else's by now, and is left alone.
        """
        for free in self._guards:
            free()
        spaces = Spaces(self.kernel)
        for one in reversed(self.entry.writes):
            if not spaces.there(one.space):
                continue
            where = pieces(self.kernel, one.space, one.address, len(one.new), spaces=spaces)
            stands = self._read(where)
            if stands == one.old:
                continue
            # Torn in the middle of the write each byte is still the old or the new one.
            if any(byte not in both for byte, *both in zip(stands, one.old, one.new, strict=True)):
                raise ControlError(
                    f"{_place(one)} holds {_shown(stands)}, which is neither what was there before nor after"
                )
            self._put(one, where, one.old)

    def take_back(self) -> None:
        """Put back all that was written so far, as what was needed for the length of the change only."""
        self.put_back()
        self._journal.taken_back(self.entry)
        self._guards.clear()

    def settle(self, address: int, data: bytes) -> None:
        """Write what the journal need not know of: a word that nothing uses, back to what it held."""
        for one in pieces(self.kernel, KERNEL, address, len(data), write=True):
            self._memory.write(one.pa, data[one.start : one.end])

    def close(self) -> None:
        """Let go of the vCPUs."""
        self._exits.close()


class Transactions:
    """The changes of one guest: made, listed, taken back, and recovered after a controller that died."""

    def __init__(self, kernel: Kernel, memory: WritableMemory, pausing: Pausing) -> None:
        self.kernel = kernel
        self.pausing = pausing
        self.journal = Journal(pausing.store)
        self._memory = memory
        self._boot = boot_identity(kernel)
        self._current: Change | None = None

    @contextmanager
    def change(
        self, reason: str, kind: str, detail: Mapping[str, Any], *, code: bool = False, planned: Iterable[Write] = ()
    ) -> Iterator[Change]:
        """A block whose writes are one change. An exception inside puts everything back, and goes on.

        `code` says that code will be written, or registers read. `planned` are the writes that are going to be made:
        they are journalled before the guest is paused, which makes the pause shorter. They are compared in it.
        """
        if self._current is not None:
            raise ControlError("a change is under way already; one transaction cannot hold another")
        with self.pausing.locked(), ExitStack() as exits:
            entry = self.journal.begin(
                kind, reason, self._boot, detail, command=" ".join(sys.argv[:40])[:400], planned=planned
            )
            exits.callback(self.journal.sync)  # when the guest goes on
            try:
                exits.enter_context(self.pausing.paused(debug=code))
                self.check()
            except BaseException:
                self.journal.end(entry, "put back")
                raise
            change = self._current = Change(self.kernel, self._memory, self.pausing, self.journal, entry)
            try:
                yield change
                with uninterrupted():
                    self.journal.end(entry, "done", sync=False)
            except BaseException:
                with uninterrupted():
                    self._put_back(change)
                raise
            finally:
                self._current = None
                with uninterrupted():
                    change.close()

    def rehearsed(self, reason: str, kind: str, detail: Mapping[str, Any], body: Callable[[Changing], None]) -> Entry:
        """Make a change by `body`, which is done twice: once to know what it would write, and then in the pause.

        What is wrong with it is found before the guest is paused.
        """
        rehearsal = Rehearsal(self.kernel)
        self.check()
        body(rehearsal)
        with self.change(reason, kind, detail, planned=rehearsal.writes, code=rehearsal.code) as change:
            body(change)
        return change.entry

    def undo(self, number: int) -> Entry:
        """Take back one change: exactly what stood there before. Gives the entry of doing so.

        What was a process's that has ended since is somebody else's by now, and is left alone.

        Raises `NotUndoable`, `Conflict` when the bytes are not what the change had written; then nothing is written.
        """
        with self.pausing.locked():
            entry = self.journal.find(number)
            if entry is None:
                raise NotUndoable(f"the journal has no entry {number}")
            if entry.state != "done":
                raise NotUndoable(f"entry {number} cannot be undone: it is {entry.state}")
            if not entry.writes:
                raise NotUndoable(f"entry {number} ({entry.kind}) wrote nothing that could be put back")
            if entry.boot != self._boot:
                raise NotUndoable(f"entry {number} was made before the guest rebooted; nothing of it is left to undo")
            if not self._reachable(entry):
                raise NotUndoable(f"entry {number} changed the memory of a process that has ended since")
            reason, code = f"undo of {number}: {entry.reason}", any(one.code for one in entry.writes)
            back = [Write(one.address, one.new, one.old, one.code, one.space) for one in reversed(entry.writes)]
            with self.change(reason, UNDO, {"undoes": number}, code=code, planned=back) as change:
                # Where more than an instruction goes, nobody may come back to any of it.
                change.nobody_in(
                    (one.address, one.address + len(one.new) - 1)
                    for one in entry.writes
                    if one.code and len(one.new) > _INSTRUCTION
                )
                try:
                    # Bytes that were written twice are gone back on step by step.
                    overlap = any(_overlap(a, b) for at, a in enumerate(back) for b in back[:at])
                    for group in [[one] for one in back] if overlap else [back]:
                        change._apply(group, living=True)
                except Conflict as error:
                    later = [one.id for one in self.standing() if one.id > number and _meet(one, entry)]
                    hint = f"; undo {', '.join(map(str, later))} first" if later else ""
                    raise Conflict(f"entry {number}: {error}{hint}") from error
            return change.entry

    def standing(self) -> list[Entry]:
        """The entries that can be undone, the newest first.

        They are this boot's, done, no undoing themselves, and of no process that has ended.
        """
        return [
            entry for entry in reversed(self.journal.entries())
            if entry.state == "done" and entry.boot == self._boot and entry.writes and entry.kind != UNDO
            and self._reachable(entry)
        ]  # fmt: skip

    def _reachable(self, entry: Entry) -> bool:
        spaces = Spaces(self.kernel)
        return any(spaces.there(space) for space in {one.space for one in entry.writes})

    def recover(self) -> None:
        """Put back what a controller left open when it died. The guest must stand still."""
        for entry in reversed([one for one in self.journal.entries() if one.state == "open"]):
            if entry.boot != self._boot:
                self.journal.end(entry, "put back")  # with that boot its bytes went, too
                continue
            change = Change(self.kernel, self._memory, self.pausing, self.journal, entry)
            try:
                self._put_back(change)
            finally:
                change.close()

    def _put_back(self, change: Change) -> None:
        try:
            change.put_back()
        except VmiError as error:
            change.entry.detail["broken"] = str(error)
            self.journal.end(change.entry, "broken")
            raise ControlError(f"entry {change.entry.id} could not be put back: {error}") from error
        self.journal.end(change.entry, "put back")

    def check(self) -> None:
        """Raise `GuestGone` when another kernel runs by now, or the same one in another boot."""
        if boot_identity(self.kernel) != self._boot:
            raise GuestGone(f"{self.pausing.machine.name}: the guest has rebooted since it was attached; attach again")


def _meet(one: Entry, other: Entry) -> bool:
    return any(_overlap(a, b) for a in one.writes for b in other.writes)


def _overlap(a: Write, b: Write) -> bool:
    return a.space == b.space and a.address < b.address + len(b.new) and b.address < a.address + len(a.new)


def _place(one: Write) -> str:
    return f"{one.space} address {one.address:#x}"


def _shown(data: bytes) -> str:
    return data[:24].hex(" ") + (" ..." if len(data) > 24 else "")
