"""What an attached guest can be told to do: the methods that `Guest` has when control was asked for.

Knows which part does what. Nothing is done here itself.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import cached_property
from typing import Any

from vmi_inside.control import credentials, named, places, rlimits, signals, sysctl
from vmi_inside.control.borrow import borrow
from vmi_inside.control.journal import Entry
from vmi_inside.control.machine import Machine
from vmi_inside.control.named import Place
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

    # -- memory -------------------------------------------------------------------------------------------------------

    def place(self, name: str, pid: int | None = None) -> Place:
        """A place by its name: a symbol, `init_uts_ns.name.nodename`, `task_struct.comm` of process `pid`.

        Raises `NoSymbol`, `NoMember`, `ControlError`; see `control.named` for what names there are.
        """
        return named.find_place(self.kernel, name, pid)

    def read_memory(
        self, where: int | Place, size: int | None = None, *, pid: int | None = None, physical: bool = False
    ) -> bytes:
        """What stands at a kernel address, or one of process `pid`, or a physical one, or a place; whole or not at all.

        Needs no control. Raises `PageFault`, `NoMemory`, `ControlError` (no such process).
        """
        at, space = self._address(where, pid, physical)
        if size is None:
            size = where.size if isinstance(where, Place) else 0
        pieces = places.pieces(self.kernel, space, at, size)
        return b"".join(bytes(self.memory.read(one.pa, one.end - one.start) or b"") for one in pieces)

    def write_memory(
        self, where: int | Place, data: bytes, *, expect: bytes | None = None, pid: int | None = None,
        physical: bool = False, code: bool = False, reason: str = "",
    ) -> Entry:  # fmt: skip
        """Write where `read_memory` reads; refused whole when a byte is unmapped.

        `code` is for kernel code. Gives the journal's entry. Raises `Conflict` when not `expect` stands there,
        `PageFault`, `NoMemory`, `Unsafe`, and `ControlError` for more than a place has room for.
        """
        at, space = self._address(where, pid, physical)
        if isinstance(where, Place) and where.size and len(data) > where.size:
            raise ControlError(f"there is room for {where.size} bytes at {at:#x}, not for {len(data)}")
        with self.transaction(reason or f"write of {len(data)} bytes at {at:#x}", kind="write", code=code) as change:
            change.apply([(at, data, expect)], code=code, space=space)
        return change.entry

    def _address(self, where: int | Place, pid: int | None, physical: bool) -> tuple[int, str]:
        if isinstance(where, Place):
            return where.address, where.space
        if pid is not None:
            return where, places.process_space(self.kernel, pid)
        return where, places.PHYSICAL if physical else KERNEL

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
        to = self._targets(pid, force)
        words = ", ".join(f"{one.pid} ({one.name})" for one in to)
        detail = {"signal": signals.name(number), "pids": [one.pid for one in to]}
        with self.transaction(f"{signals.name(number)} to {words}", kind="signal", detail=detail, code=True) as change:
            gone = signals.send(change, to, number)
            change.detail["gone"] = [one.pid for one in gone]
        if gone:
            raise ControlError(f"{', '.join(str(one.pid) for one in gone)} had ended before the signal came")

    def nice(self, pid: int | Iterable[int], value: int, *, force: bool = False) -> None:
        """Set the nice value of all threads of a process, or of several. Raises as `signal` does."""
        to = self._targets(pid, force)
        words = ", ".join(f"{one.pid} ({one.name})" for one in to)
        detail = {"nice": value, "pids": [one.pid for one in to]}
        with self.transaction(f"nice {value} for {words}", kind="nice", detail=detail, code=True) as change:
            signals.set_nice(change, to, value)

    def set_ids(self, pid: int, uid: int | None = None, gid: int | None = None, *, force: bool = False) -> Entry:
        """Make a process another user's, or another group's; see `credentials.set_ids`. `undo` takes it back."""
        [to] = self._targets(pid, force)
        words = ", ".join(f"{name} {value}" for name, value in (("uid", uid), ("gid", gid)) if value is not None)
        with self.transaction(f"{words} for {pid} ({to.name})", kind="ids", detail={"pid": pid}) as change:
            credentials.set_ids(change, to, uid, gid)
        return change.entry

    def drop_capabilities(self, pid: int, drop: Iterable[str] | None = None, *, force: bool = False) -> Entry:
        """Take capabilities away from a process, all when None. `undo` gives them back."""
        [to] = self._targets(pid, force)
        names = None if drop is None else sorted(drop)
        words = "all capabilities" if names is None else ", ".join(names)
        with self.transaction(
            f"{words} taken from {pid} ({to.name})", kind="capabilities", detail={"pid": pid}
        ) as change:
            credentials.drop_capabilities(change, to, names)
        return change.entry

    def set_limit(
        self, pid: int, name: str, soft: int | None = None, hard: int | None = None, *, force: bool = False
    ) -> Entry:
        """Set a limit of a process (`nofile`, `as`, ...; see `rlimits.LIMITS`). `undo` takes it back."""
        [to] = self._targets(pid, force)
        words = ":".join("" if one is None else rlimits.shown(one) for one in (soft, hard))
        with self.transaction(
            f"limit {name}={words} for {pid} ({to.name})", kind="limit", detail={"pid": pid}
        ) as change:
            rlimits.set_limit(change, to, name, soft, hard)
        return change.entry

    def sysctl(self, name: str) -> str:
        """What a setting of the guest's kernel is set to (`kernel.panic`). Needs no control.

        Raises `ControlError` when there is none, `Unsupported` for one that is more than a stored value.
        """
        return sysctl.value(self.kernel, sysctl.find_setting(self.kernel, name))

    def set_sysctl(self, name: str, value: str) -> Entry:
        """Set it, within the kernel's own bounds. `undo` takes it back. Raises as `sysctl` does."""
        setting = sysctl.find_setting(self.kernel, name)
        with self.transaction(f"{name} = {value}", kind="sysctl", detail={"name": name, "value": value}) as change:
            sysctl.set_value(change, setting, value)
        return change.entry

    def _targets(self, pid: int | Iterable[int], force: bool) -> list[signals.Target]:
        self._transactions.check()
        return signals.targets(self.kernel, [pid] if isinstance(pid, int) else pid, force=force)

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
