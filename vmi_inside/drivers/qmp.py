"""A QEMU without libvirt, by the UNIX socket of its machine protocol (`-qmp unix:PATH,server=on,wait=off`).

Knows how to reach the socket, which process is at the other end, and what to say of each failure. The only file that
imports `qemu.qmp`, QEMU's own client, which speaks the protocol. Reading the guest's memory is left to `qemu`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Final, Self, TypeVar

from vmi_inside.drivers.machine import QemuMachine
from vmi_inside.drivers.qemu import QemuMemory, open_qemu
from vmi_inside.errors import AttachError, GuestGone, NoSuchDomain, NotRunning, PermissionDenied, Unsupported

T = TypeVar("T")

TIMEOUT: Final = 5.0  # seconds for an answer


@dataclass(frozen=True, slots=True)
class QmpGuest:
    """What a QEMU says of its guest: `status` is QEMU's run state (running, paused, ...), `name` may be empty."""

    socket: str
    name: str
    status: str
    pid: int

    def hmp(self, command: str) -> str:
        """Run one command of the human monitor. The socket is held only meanwhile: it serves one client at a time."""
        with Qmp(self.socket) as monitor:
            return monitor.hmp(command)


class Qmp:
    """A connection to a QMP socket, ready for commands. Use it as a context manager, and briefly.

    Raises `NoSuchDomain` when there is no such socket, `NotRunning` when nobody listens at it, `PermissionDenied`,
    `AttachError` when nothing answers in `timeout` seconds, as when another client holds it, or what answers does not
    speak QMP, `GuestGone` when it hangs up, and `Unsupported` without the package `qemu.qmp`.

    `pid` is the process that made the socket; 0 when it is in a pid namespace that cannot be seen from here.
    """

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout
        self._library = _library()
        self._client = self._library.QMPClient()
        # It would keep every event until somebody takes it, and nobody here does.
        self._client.events.event_filter = lambda _event: False
        with ExitStack() as exits:
            self._socket = exits.enter_context(socket.socket(socket.AF_UNIX))
            self._connect()
            self.pid = _peer(self._socket)
            # The event loop has a thread of its own: the caller's may be running one, as in a notebook.
            self._thread = exits.enter_context(ThreadPoolExecutor(1, "qmp"))
            self._runner = asyncio.Runner()
            exits.callback(lambda: self._thread.submit(self._runner.close).result())
            exits.callback(self._hang_up)
            self._run("qmp_capabilities", lambda: self._client.connect(self._socket))
            self._exits = exits.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and give what it returns. Raises `AttachError` with QEMU's words when it fails."""
        return self._run(command, lambda: self._client.execute(command, arguments))

    def hmp(self, command: str) -> str:
        """Run a command of the human monitor and give its text."""
        return str(self.execute("human-monitor-command", **{"command-line": command})).replace("\r", "")

    def close(self) -> None:
        """Let the next client have the socket."""
        self._exits.close()

    def _connect(self) -> None:
        # Clients that have just left may still fill the queue. The kernel waits for room in it, up to this time
        # (unix(7), unix_stream_connect in net/unix/af_unix.c); not so for a socket with a time-out of Python's.
        wait = struct.pack("ll", *divmod(int(self._timeout * 1e6), 10**6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        try:
            self._socket.connect(self.path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoSuchDomain(f"qmp:{self.path}: no such socket; QEMU makes one with -qmp unix:PATH,...") from error
        except ConnectionRefusedError as error:
            raise NotRunning(f"qmp:{self.path}: nobody listens there; the QEMU that made it has ended") from error
        except PermissionError as error:
            raise PermissionDenied(f"qmp:{self.path}: permission denied; needs write access to it; try sudo") from error
        except BlockingIOError as error:
            raise AttachError(f"qmp:{self.path}: another client holds the socket, and more wait for it") from error
        except OSError as error:
            raise AttachError(f"qmp:{self.path}: {error.strerror or error}") from error

    def _run(self, command: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Have the client do `work`, which ends with the answer to `command`, before the time is out."""

        async def timed() -> Any:
            async with asyncio.timeout(self._timeout):
                return await work()

        try:
            return self._thread.submit(lambda: self._runner.run(timed())).result()
        except TimeoutError as error:
            silence = f"no answer to {command} in {self._timeout:g} s"
            if self._client.greeting is None:
                silence = "there is no greeting; another client holds the socket, or it is not QMP's"
            raise AttachError(f"qmp:{self.path}: {silence}") from error
        except self._library.ExecuteError as error:
            raise AttachError(f"qmp:{self.path}: {command}: {error}") from error
        except self._library.ConnectError as error:
            raise self._broken(error.exc) from error
        except (self._library.ExecInterruptedError, self._library.StateError) as error:
            raise self._broken(self._hang_up()) from error
        except self._library.QMPError as error:  # an answer, but neither a result nor an error
            raise self._broken(error) from error

    def _hang_up(self) -> BaseException | None:
        """End the session, and give what had broken it before, if anything had."""

        async def end() -> BaseException | None:
            ended: list[BaseException | None] = await asyncio.gather(self._client.disconnect(), return_exceptions=True)
            return ended[0]

        return self._thread.submit(lambda: self._runner.run(end())).result()

    def _broken(self, cause: BaseException | None) -> AttachError:
        if cause is None or isinstance(cause, (EOFError, OSError)):
            return GuestGone(f"qmp:{self.path}: QEMU closed the connection; the guest may be gone")
        return AttachError(f"qmp:{self.path}: what answers there does not speak QMP")


class QmpLevers:
    """`machine.Levers` through a QMP socket, which is held only while a command runs."""

    monitor_notice = ""

    def __init__(self, path: str) -> None:
        self._path = path

    def paused(self) -> bool:
        """See `Levers`."""
        with Qmp(self._path) as qmp:
            return _member(self._path, qmp.execute("query-status"), "status", "running", bool) is not True

    def pause(self) -> None:
        """See `Levers`."""
        with Qmp(self._path) as qmp:
            qmp.execute("stop")

    def resume(self, *, ran: bool = True, brief: bool = False) -> None:
        """See `Levers`."""
        with Qmp(self._path) as qmp:
            qmp.execute("cont")

    def hmp(self, command: str) -> str:
        """See `Levers`."""
        with Qmp(self._path) as qmp:
            return qmp.hmp(command)

    def close(self) -> None:
        """See `Levers`: nothing is held."""


def open_machine(guest: QmpGuest) -> QemuMachine:
    """The machine of that guest, to be stopped and looked into. Raises what `Qmp` raises."""
    path = os.path.realpath(guest.socket)
    with Qmp(path) as qmp:
        told = _member(path, qmp.execute("query-uuid"), "uuid", "UUID", str) or ""
    # Without -uuid it is all zeros; then the socket names the guest.
    named = re.fullmatch(r"[0-9a-f-]{36}", told) and set(told) != {"0", "-"}
    identity = told if named else f"qmp-{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}"
    return QemuMachine(guest.name or f"qmp:{path}", identity, guest.pid, QmpLevers(path))


def open_qmp(path: str, timeout: float = TIMEOUT, *, writable: bool = False) -> tuple[QemuMemory, QmpGuest]:
    """The memory of the guest whose QEMU listens at the UNIX socket `path`, and what QEMU says of it.

    The memory is read-only unless `writable`.

    Raises what `Qmp` and `qemu.open_qemu` raise, and `Unsupported` when the socket does not tell the QEMU process.
    """
    if re.match(r"(tcp:|[\w.-]+:\d+$)", path):
        raise Unsupported(f"qmp:{path}: only UNIX sockets tell which process QEMU is; give QEMU -qmp unix:PATH,...")
    with Qmp(path, timeout) as qmp:
        pid = qmp.pid
        if not pid:
            raise Unsupported(f"qmp:{path}: QEMU runs in another pid namespace; run vmi-inside on its host")
        _check_program(path, pid)
        name, status = (_member(path, qmp.execute(f"query-{one}"), one, one, str) or "" for one in ("name", "status"))
        guest = QmpGuest(path, name, status, pid)
        memory = open_qemu(pid, hmp=qmp.hmp, name=f"qmp:{path}", monitor_notice=None, writable=writable)
    return memory, guest


def _member(path: str, answer: object, query: str, name: str, kind: type[T]) -> T | None:
    """A member of the answer to `query-QUERY`, None when it is left out. Raises `AttachError` for another type."""
    if isinstance(answer, dict):
        member = answer.get(name)
        if member is None or isinstance(member, kind):
            return member
    raise AttachError(f"qmp:{path}: the answer to query-{query} is not QEMU's")


def _peer(connection: socket.socket) -> int:
    """The pid of the process that made the socket at the other end, as the kernel knows it (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _library() -> ModuleType:
    try:
        from qemu import qmp
    except ImportError as error:
        raise Unsupported("qmp: targets need QEMU's Python package: pip install 'vmi-inside[qmp]'") from error
    return qmp


def _check_program(path: str, pid: int) -> None:
    """Refuse a socket that a manager made and handed on: its process is not the one with the guest in it."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            program = os.path.basename(os.fsdecode(cmdline.read().split(b"\0")[0]))
    except OSError as error:
        raise GuestGone(f"qmp:{path}: the process that made the socket, {pid}, is gone") from error
    if not re.search(r"qemu|kvm", program):
        raise Unsupported(
            f"qmp:{path}: the socket was made by {program or 'a process'} (pid {pid}), not by QEMU itself; "
            "attach to the domain by its name"
        )
