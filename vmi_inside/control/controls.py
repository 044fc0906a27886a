"""What an attached guest can be told to do: the methods that `Guest` has when control was asked for.

Knows which part does what. Nothing is done here itself.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

from vmi_inside.control import places, signals
from vmi_inside.control.borrow import borrow
from vmi_inside.control.journal import Entry
from vmi_inside.control.machine import Machine
from vmi_inside.control.pausing import Pause, Pausing
from vmi_inside.control.places import KERNEL
from vmi_inside.control.store import Store
from vmi_inside.control.transaction import Change, Transactions
from vmi_inside.control.vcpus import Vcpus
from vmi_inside.errors import ControlError, Unsupported
from vmi_inside.kernel import Kernel
from vmi_inside.memory import PhysicalMemory, WritableMemory


class Controls:
    """The hands on a guest. Everything here needs `attach(..., writable=True)`, but for pausing: `pausing=True`.

    Raises `Unsupported` without, `Busy` when another controller or debugger has the guest, `GuestGone`.
    """

    name: str
    kernel: Kernel
    memory: PhysicalMemory
    #: The machine, where it may be stopped.
    machine: Machine | None = None
    #: Starts the process that lets the guest go when this one dies.
    watch: Callable[[], subprocess.Popen[bytes]] | None = None

    # -- pausing ------------------------------------------------------------------------------------------------------

    def paused(self) -> AbstractContextManager[Pause]:
        """The guest stands still inside this block: `with guest.paused() as pause:`; afterwards see `pause.seconds`.

        Blocks nest. It is let go on every way out, and also when this process is killed; a guest that was found paused
        is left so.
        """
        return self._pausing.paused()

    def pause(self) -> bool:
        """Pause the guest, for good. Gives whether it had been running."""
        with self._pausing.locked():
            running = not self._pausing.machine.paused
            if running:
                self._pausing.machine.pause()
            return running

    def resume(self) -> bool:
        """Let the guest run. Gives whether it had been paused."""
        with self._pausing.locked():
            standing = self._pausing.machine.paused
            if standing:
                self._pausing.machine.resume()
            return standing

    @cached_property
    def vcpus(self) -> Vcpus:
        """The vCPUs: registers, and each paused by itself."""
        return Vcpus(self._pausing)

    @contextmanager
    def debugging(self) -> Iterator[str]:
        """A block in which a debugger of your own may have the guest: gives the UNIX socket of QEMU's gdb stub.

        The guest stands when it begins; the debugger lets it run and stops it as it likes. It is let go afterwards.
        No other controller has it meanwhile. Raises `Busy` when there is a debugger already.
        """
        pausing = self._pausing
        with pausing.paused():
            pausing.tell(stub=True)
            with pausing.machine.stub() as path:
                try:
                    yield path
                finally:
                    if not pausing.machine.paused:  # it goes on from where it is held
                        pausing.machine.pause()

    # -- memory -------------------------------------------------------------------------------------------------------

    def read_memory(self, address: int, size: int, *, pid: int | None = None, physical: bool = False) -> bytes:
        """What stands at a kernel address, or one of process `pid`, or a physical one; whole or not at all.

        Needs no control. Raises `PageFault`, `NoMemory`, `ControlError` (no such process).
        """
        where = places.pieces(self.kernel, self._space(pid, physical), address, size)
        return b"".join(bytes(self.memory.read(one.pa, one.end - one.start) or b"") for one in where)

    def write_memory(
        self, address: int, data: bytes, *, expect: bytes | None = None, pid: int | None = None,
        physical: bool = False, code: bool = False, reason: str = "",
    ) -> Entry:  # fmt: skip
        """Write at a kernel address, or one of process `pid`, or a physical one; refused whole when a byte is unmapped.

        `code` is for kernel code. Gives the journal's entry. Raises `Conflict` when not `expect` stands there,
        `PageFault`, `NoMemory`, `Unsafe`.
        """
        space = self._space(pid, physical)
        with self.transaction(
            reason or f"write of {len(data)} bytes at {address:#x}", kind="write", code=code
        ) as change:
            change.apply([(address, data, expect)], code=code, space=space)
        return change.entry

    def _space(self, pid: int | None, physical: bool) -> str:
        if pid is not None:
            return places.process_space(self.kernel, pid)
        return places.PHYSICAL if physical else KERNEL

    # -- changes ------------------------------------------------------------------------------------------------------

    def transaction(
        self, reason: str, *, kind: str = "change", detail: Mapping[str, Any] | None = None, code: bool = False
    ) -> AbstractContextManager[Change]:
        """A block whose writes are one change, made while the guest stands still, whole or not at all.

        `reason` is for people, `kind` one word, `detail` whatever the journal is to keep, as JSON has it. `code` says
        that kernel code will be written, or registers read: what that needs is made ready before the pause.
        """
        return self._transactions.change(reason, kind, detail or {}, code=code)

    def transaction_lock(self) -> AbstractContextManager[None]:
        """A block in which no other controller changes the guest, which goes on; a transaction may be made inside."""
        return self._pausing.locked()

    def journal(self) -> list[Entry]:
        """Every change that was made to this guest from this account, the oldest first."""
        return self._transactions.journal.entries()

    def standing(self) -> list[Entry]:
        """The changes that can be undone, the newest first."""
        return self._transactions.standing()

    def undo(self, number: int) -> Entry:
        """Take one change back: exactly what stood there before. Raises `Conflict`, `NotUndoable`."""
        return self._transactions.undo(number)

    def undo_all(self) -> list[Entry]:
        """Take back all changes of this boot that still stand, the last first. Stops at the first that cannot be."""
        return [self.undo(entry.id) for entry in self.standing()]

    # -- the guest's own code -----------------------------------------------------------------------------------------

    def call(self, function: str | int, *arguments: int, reason: str = "", clean: bool = True) -> int:
        """Call a function of the guest's kernel, by its symbol or address, on a borrowed vCPU; gives RAX, unsigned.

        It runs in an interrupt: it must not sleep, nor turn interrupts on. With `clean` the vCPU was interrupted where
        no lock is held. Raises `Unsafe` when there is no such moment, or the function does not return; `NoSymbol`.
        """
        words = ", ".join(f"{one:#x}" for one in arguments)
        shown = function if isinstance(function, str) else f"{function:#x}"
        detail = {"function": shown, "arguments": [f"{one:#x}" for one in arguments]}
        with (
            self.transaction(reason or f"{shown}({words})", kind="call", detail=detail, code=True) as change,
            borrow(change, clean=clean) as vcpu,
        ):
            change.detail["returned"] = f"{(value := vcpu.call(function, *arguments)):#x}"
        return value

    def signal(self, pid: int | Iterable[int], number: int = signal.SIGTERM, *, force: bool = False) -> None:
        """Send a signal to a process, or to several, as the guest's kernel does it: with all its effects.

        Raises `ControlError` for a process that is not there or has ended, `Unsafe` for kernel threads and process 1
        unless `force`, and when no vCPU can be borrowed for it.
        """
        to = signals.targets(self.kernel, [pid] if isinstance(pid, int) else pid, force=force)
        words = ", ".join(f"{one.pid} ({one.name})" for one in to)
        detail = {"signal": signals.name(number), "pids": [one.pid for one in to]}
        with self.transaction(f"{signals.name(number)} to {words}", kind="signal", detail=detail, code=True) as change:
            gone = signals.send(change, to, number)
            change.detail["gone"] = [one.pid for one in gone]
        if gone:
            raise ControlError(f"{', '.join(str(one.pid) for one in gone)} had ended before the signal came")

    def nice(self, pid: int | Iterable[int], value: int, *, force: bool = False) -> None:
        """Set the nice value of all threads of a process, or of several. Raises as `signal` does."""
        to = signals.targets(self.kernel, [pid] if isinstance(pid, int) else pid, force=force)
        words = ", ".join(f"{one.pid} ({one.name})" for one in to)
        detail = {"nice": value, "pids": [one.pid for one in to]}
        with self.transaction(f"nice {value} for {words}", kind="nice", detail=detail, code=True) as change:
            signals.set_nice(change, to, value)

    # -- the parts ----------------------------------------------------------------------------------------------------

    @cached_property
    def _pausing(self) -> Pausing:
        if self.machine is None:
            raise Unsupported(
                f"{self.name}: attached read-only; attach with writable=True, or pausing=True, to hold it"
            )
        return Pausing(self.machine, Store(self.machine.identity), self._unfinished, self._recover, self.watch)

    @cached_property
    def _transactions(self) -> Transactions:
        pausing = self._pausing
        if not isinstance(self.memory, WritableMemory):
            raise Unsupported(f"{self.name}: attached read-only; attach with writable=True to change it")
        return Transactions(self.kernel, self.memory, pausing)

    def _unfinished(self) -> bool:
        return isinstance(self.memory, WritableMemory) and self._transactions.unfinished()

    def _recover(self, told: dict[str, Any]) -> None:
        """Finish what a controller began that died. The guest stands still."""
        if told.get("stub"):
            self._pausing.machine.end_debugger()
        if told.get("points"):
            with self._pausing.debugger() as debugger:
                for point in told["points"]:
                    with suppress(ControlError):  # it was not set yet, or taken away already
                        debugger.clear(*map(int, point))
        if isinstance(self.memory, WritableMemory):
            self._transactions.recover()

    def recover(self) -> None:
        """Put right what a controller left behind that died: this happens before every other change, too."""
        with self._pausing.locked():
            pass

    def release_control(self) -> None:
        """Let go of the machine; what was held of it runs."""
        with ExitStack() as exits:
            if self.machine is not None:
                exits.callback(self.machine.close)
            if "_pausing" in self.__dict__:
                exits.callback(self._pausing.close)
            if "vcpus" in self.__dict__:
                exits.callback(self.vcpus.close)
