"""A running QEMU machine, held by its levers: stopped, let go, looked into by a gdb stub that is started at run time.

Knows how a stub is started and ended through QEMU's human monitor, and who else may have one. How the monitor is
reached, and how a machine is stopped, is told by `Levers`, which `qmp` and `domains` give.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, Protocol

from vmi_inside.drivers.gdbregisters import Register
from vmi_inside.drivers.gdbstub import GdbStub
from vmi_inside.errors import Busy, ControlError, Unsupported

_FOLDER: Final = "vmi-inside-gdb-"


class Levers(Protocol):
    """What stops a machine and lets it go. Raises `GuestGone`, `PermissionDenied`, `ControlError`."""

    #: What is to be said when the monitor is used; empty when nothing is.
    monitor_notice: str

    def paused(self) -> bool:
        """Whether the machine stands still."""
        ...

    def pause(self) -> None:
        """Stop all vCPUs; they stand when this returns."""
        ...

    def resume(self, *, ran: bool = True, brief: bool = False) -> None:
        """Let all vCPUs run. `ran` says that a debugger may have let them run, and stopped them, since the pause.

        `brief` says that there is another way, so that an answer need not be waited for long.
        """
        ...

    def hmp(self, command: str) -> str:
        """Run a command of QEMU's human monitor."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class QemuMachine:
    """One QEMU: `identity` names the guest for good (its UUID, mostly), `instance` this run of it."""

    #: QEMU stops when a debugger connects to its stub.
    debugger_stops = True

    def __init__(self, name: str, identity: str, pid: int, levers: Levers) -> None:
        self.name = name
        self.identity = identity
        self.instance = f"{pid}:{_started(pid)}"
        self.pid = pid
        self._levers = levers
        self._layout: tuple[Register, ...] = ()
        self._ran = False  # whether a debugger has let it run since we last did
        self._ready = False  # whether a debugger of ours is there, which may let it run
        #: What is to be said of what was done by now.
        self.notices: list[str] = []

    @property
    def paused(self) -> bool:
        """Whether the machine stands still."""
        return self._levers.paused()

    def pause(self) -> None:
        """Stop all vCPUs; they stand when this returns."""
        self._levers.pause()

    def resume(self) -> None:
        """Let all vCPUs run."""
        self._levers.resume(ran=self._ran, brief=self._ready)
        self._ran = False

    def _runs(self) -> None:
        self._ran = True

    def close(self) -> None:
        """Let go of the levers."""
        self._levers.close()

    @contextmanager
    def debugger(self) -> Iterator[Callable[[], GdbStub]]:
        """QEMU's gdb stub, on a socket that only its user and root can reach, for as long as the block lasts.

        Gives what connects to it: that stops the machine, which had better stand still by then. Raises `Busy` when
        somebody else has a stub.
        """
        with self._socket() as path:
            self._ready = True
            try:
                yield partial(self._connect, path)
            finally:
                self._ready = False

    @contextmanager
    def stub(self) -> Iterator[str]:
        """The same for a debugger of somebody's own: gives the path of the socket."""
        self._ran = True
        with self._socket() as path:
            yield path

    @contextmanager
    def _socket(self) -> Iterator[str]:
        if not self.pid:
            raise Unsupported(f"{self.name}: QEMU's gdb stub cannot be reached from here; run vmi-inside on its host")
        self._free()
        folder = self._folder()
        try:
            path = os.path.join(folder, "s")
            told = self._hmp(f"gdbserver unix:{path},server=on,wait=off")
            if not told.startswith("Waiting for gdb"):
                raise ControlError(f"{self.name}: QEMU does not start its gdb stub: {told.strip()[:200]}")
            try:
                yield path
            finally:
                self._hmp("gdbserver none")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def end_debugger(self) -> None:
        """End a stub of ours that was left behind."""
        self._ran = True
        if _FOLDER in self._stub():
            self._hmp("gdbserver none")
        _sweep(_base())

    def _connect(self, path: str) -> GdbStub:
        stub = GdbStub(path, self.name, layout=self._layout, on_run=self._runs)
        self._layout = stub.layout
        return stub

    def _free(self) -> None:
        """See to it that nobody else's stub is there: of ours, which nobody holds, a dead controller has left it."""
        found = self._stub()
        if not found:
            return
        where = found.removeprefix("disconnected:")
        if _FOLDER in where and found != where:
            self._hmp("gdbserver none")
            return
        state = "a debugger is connected to" if found == where else "somebody has started"
        raise Busy(f"{self.name}: {state} QEMU's gdb stub ({where.partition(',')[0]}); end that one first")

    def _stub(self) -> str:
        """Where QEMU's gdb stub listens or is connected, as `info chardev` says; empty when there is none."""
        found = re.search(r"^gdb: filename=(\S+)", self._hmp("info chardev"), re.M)
        return found[1] if found else ""

    def _hmp(self, command: str) -> str:
        notice = self._levers.monitor_notice
        if notice and notice not in self.notices:
            self.notices.append(notice)
        return self._levers.hmp(command)

    def _folder(self) -> str:
        """A folder that only its owner can enter; the owner is QEMU's user, where that is another one."""
        base = _base()
        _sweep(base)
        folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=base)
        with suppress(OSError), open(f"/proc/{self.pid}/status") as status:
            ids = dict(re.findall(r"^([UG]id):\t(\d+)", status.read(), re.M))
            if int(ids["Uid"]) != os.geteuid():
                os.chown(folder, int(ids["Uid"]), int(ids["Gid"]))
        return folder


def _base() -> str:
    return "/run" if os.access("/run", os.W_OK) else os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()


def _sweep(base: str) -> None:
    """Remove the folders of controllers that were killed."""
    for entry in os.scandir(base):
        if entry.name.startswith(_FOLDER):
            owner = entry.name.removeprefix(_FOLDER).partition("-")[0]
            if not os.path.exists(f"/proc/{owner}"):
                shutil.rmtree(entry.path, ignore_errors=True)


def _started(pid: int) -> str:
    """When a process was started (proc(5), stat, field 22); empty when it cannot be told."""
    with suppress(OSError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[19]
    return ""
