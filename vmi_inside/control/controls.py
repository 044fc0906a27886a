"""What an attached guest can be told to do: the methods that `Guest` has when control was asked for.

Knows which part does what, and loads it when it is asked for. Nothing is done here itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vmi_inside.errors import ControlError, Unsupported
from vmi_inside.memory import PhysicalMemory, WritableMemory

if TYPE_CHECKING:
    import subprocess

    from vmi_inside.control.journal import Entry, Journal, Write
    from vmi_inside.control.machine import Machine
    from vmi_inside.control.named import Place
    from vmi_inside.control.pausing import Pause, Pausing
    from vmi_inside.control.transaction import Change, Transactions
    from vmi_inside.control.vcpus import Vcpus
    from vmi_inside.kernel import Kernel


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
        from vmi_inside.control.vcpus import Vcpus

        return Vcpus(self._pausing)

    @contextmanager
    def debugging(self) -> Iterator[str]:
        """A block in which a debugger of your own may have the guest: gives the UNIX socket of QEMU's gdb stub.

        The guest stands when it begins; the debugger lets it run and stops it as it likes. It is let go afterwards.
        No other controller has it meanwhile. Raises `Busy` when there is a debugger already, `Unsupported` where there
        is no such stub (Xen).
        """
        from vmi_inside.control.machine import Debuggable

        pausing, machine = self._pausing, self._pausing.machine
        if not isinstance(machine, Debuggable):
            raise Unsupported(f"{machine.name}: a debugger of your own needs QEMU's gdb stub")
        with pausing.paused():
            pausing.tell(stub=True)
            with machine.stub() as path:
                try:
                    yield path
                finally:
                    if not pausing.machine.paused:  # it goes on from where it is held
                        pausing.machine.pause()

    # -- memory -------------------------------------------------------------------------------------------------------

    def place(self, name: str, pid: int | None = None) -> Place:
        """A place by its name: a symbol, `init_uts_ns.name.nodename`, `task_struct.comm` of process `pid`.

        Raises `NoSymbol`, `NoMember`, `ControlError`; see `control.named` for what names there are.
        """
        from vmi_inside.control.named import find_place

        return find_place(self.kernel, name, pid)

    def read_memory(
        self, where: int | Place, size: int | None = None, *, pid: int | None = None, physical: bool = False
    ) -> bytes:
        """What stands at a kernel address, or one of process `pid`, or a physical one, or a place; whole or not at all.

        Needs no control. Raises `PageFault`, `NoMemory`, `ControlError` (no such process).
        """
        from vmi_inside.control.places import pieces

        place = self._place(where, pid, physical)
        found = pieces(self.kernel, place.space, place.address, place.size if size is None else size)
        return b"".join(bytes(self.memory.read(one.pa, one.end - one.start) or b"") for one in found)

    def write_memory(
        self, where: int | Place, data: bytes, *, expect: bytes | None = None, pid: int | None = None,
        physical: bool = False, code: bool = False, reason: str = "",
    ) -> Entry:  # fmt: skip
        """Write where `read_memory` reads; refused whole when a byte is unmapped.

        `code` is for kernel code. Gives the journal's entry. Raises `Conflict` when not `expect` stands there,
        `PageFault`, `NoMemory`, `Unsafe`, and `ControlError` for more than a place has room for.
        """
        place = self._place(where, pid, physical)
        at = place.address
        if place.size and len(data) > place.size:
            raise ControlError(f"there is room for {place.size} bytes at {at:#x}, not for {len(data)}")
        return self._transactions.rehearsed(
            reason or f"write of {len(data)} bytes at {at:#x}", "write", {},
            lambda change: change.apply([(at, data, expect)], code=code, space=place.space),
        )  # fmt: skip

    def _place(self, where: int | Place, pid: int | None, physical: bool) -> Place:
        from vmi_inside.control import places
        from vmi_inside.control.named import Place

        if isinstance(where, Place):
            return where
        if pid is not None:
            return Place(where, space=places.process_space(self.kernel, pid))
        return Place(where, space=places.PHYSICAL if physical else places.KERNEL)

    # -- changes ------------------------------------------------------------------------------------------------------

    def transaction(
        self, reason: str, *, kind: str = "change", detail: Mapping[str, Any] | None = None, code: bool = False,
        planned: Iterable[Write] = (),
    ) -> AbstractContextManager[Change]:  # fmt: skip
        """A block whose writes are one change, made while the guest stands still, whole or not at all.

        `reason` is for people, `kind` one word, `detail` whatever the journal is to keep, as JSON has it. `code` says
        that kernel code will be written, or registers read: what that needs is made ready before the pause. So are
        writes that are `planned`: they get to the journal before it.
        """
        return self._transactions.change(reason, kind, detail or {}, code=code, planned=planned)

    def transaction_lock(self) -> AbstractContextManager[None]:
        """A block in which no other controller changes the guest, which goes on; a transaction may be made inside."""
        return self._pausing.locked()

    def journal(self) -> list[Entry]:
        """Every change that was made to this guest from this account, the oldest first."""
        return self._journal.entries()

    def standing(self) -> list[Entry]:
        """The changes that can be undone, the newest first."""
        return self._transactions.standing()

    def undo(self, number: int) -> Entry:
        """Take one change back: exactly what stood there before. Raises `Conflict`, `NotUndoable`.

        Calls that the guest's kernel has been told to make cannot be called back: they are completed, and their code
        is taken out.
        """
        from vmi_inside.control import deferred

        entry = self._journal.find(number)
        if entry is not None and entry.state == "done" and entry.kind == deferred.KIND:
            return deferred.Deferring(self).undo(entry)
        return self._transactions.undo(number)

    def undo_all(self) -> list[Entry]:
        """Take back all changes of this boot that still stand, the last first. Stops at the first that cannot be."""
        return [self.undo(entry.id) for entry in self.standing()]

    # -- the parts ----------------------------------------------------------------------------------------------------

    @cached_property
    def _pausing(self) -> Pausing:
        if self.machine is None:
            raise Unsupported(
                f"{self.name}: attached read-only; attach with writable=True, or pausing=True, to hold it"
            )
        from vmi_inside.control.pausing import Pausing
        from vmi_inside.control.store import Store

        return Pausing(self.machine, Store(self.machine.identity), self._unfinished, self._recover, self.watch)

    @cached_property
    def _journal(self) -> Journal:
        from vmi_inside.control.journal import Journal

        return Journal(self._pausing.store)

    @cached_property
    def _transactions(self) -> Transactions:
        pausing = self._pausing
        if not isinstance(self.memory, WritableMemory):
            raise Unsupported(f"{self.name}: attached read-only; attach with writable=True to change it")
        from vmi_inside.control.transaction import Transactions

        return Transactions(self.kernel, self.memory, pausing)

    def _unfinished(self) -> bool:
        """Whether a change was begun and not ended. Only who may write can put that right."""
        left = any(entry.state == "open" for entry in self._journal.entries())
        if left and not isinstance(self.memory, WritableMemory):
            raise ControlError(
                f"{self.name}: whoever changed it last was killed in the middle; `vmi-inside undo` puts that right"
            )
        return left

    def _recover(self, told: dict[str, Any]) -> None:
        """Finish what a controller began that died. The guest stands still."""
        from vmi_inside.control.machine import Steering

        if told.get("stub"):
            self._pausing.machine.end_debugger()
        if told.get("room"):
            from vmi_inside.control.visit import vacate

            vacate(self.kernel, self._pausing, told["room"])
        if told.get("points"):
            with self._pausing.debugger() as debugger:
                for point in told["points"]:
                    with suppress(ControlError):  # it was not set yet, or taken away already
                        if isinstance(debugger, Steering):
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
