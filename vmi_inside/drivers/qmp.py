"""A QEMU without libvirt, by the UNIX socket of its machine protocol (`-qmp unix:PATH,server=on,wait=off`).

Knows QMP (docs/interop/qmp-spec) as far as it is needed: the greeting, commands, the human monitor, and which process
is at the other end. Needs nothing but sockets. Reading the guest's memory is left to `qemu`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from vmi_inside.drivers.qemu import QemuMemory, open_qemu
from vmi_inside.errors import AttachError, GuestGone, NoSuchDomain, NotRunning, PermissionDenied, Unsupported

TIMEOUT: Final = 5.0  # seconds for an answer
_MOST: Final = 64 << 20  # bytes of one message


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

    Raises `NoSuchDomain` when there is no such socket, `NotRunning` when nobody listens at it, `PermissionDenied`, and
    `AttachError` when nothing answers in `timeout` seconds, as when another client holds it.
    """

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._connect()
            if "QMP" not in self._message("there is no greeting; another client holds the socket, or it is not QMP's"):
                raise AttachError(f"qmp:{path}: what answers there does not speak QMP")
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process that made the socket; 0 when it is in a pid namespace that cannot be seen from here."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and give what it returns. Raises `AttachError` with QEMU's words when it fails."""
        self._deadline = time.monotonic() + self._timeout
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            self._socket.sendall(request.encode() + b"\n")
        except OSError as error:
            raise GuestGone(f"qmp:{self.path}: QEMU closed the connection; the guest may be gone") from error
        while True:
            answer = self._message(f"no answer to {command} in {self._timeout:g} s")
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise AttachError(f"qmp:{self.path}: {command}: {answer['error'].get('desc', 'failed')}")

    def hmp(self, command: str) -> str:
        """Run a command of the human monitor and give its text."""
        return str(self.execute("human-monitor-command", **{"command-line": command})).replace("\r", "")

    def close(self) -> None:
        """Let the next client have the socket."""
        self._socket.close()

    def _connect(self) -> None:
        try:
            self._socket.connect(self.path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoSuchDomain(f"qmp:{self.path}: no such socket; QEMU makes one with -qmp unix:PATH,...") from error
        except ConnectionRefusedError as error:
            raise NotRunning(f"qmp:{self.path}: nobody listens there; the QEMU that made it has ended") from error
        except PermissionError as error:
            raise PermissionDenied(f"qmp:{self.path}: permission denied; needs write access to it; try sudo") from error
        except TimeoutError as error:
            raise AttachError(f"qmp:{self.path}: QEMU does not accept connections") from error
        except OSError as error:
            raise AttachError(f"qmp:{self.path}: {error.strerror or error}") from error

    def _message(self, silence: str) -> dict[str, Any]:
        """The next message that is no event."""
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                try:
                    message = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise AttachError(f"qmp:{self.path}: what answers there does not speak QMP") from error
                if isinstance(message, dict) and "event" not in message:
                    return message
                continue
            left = self._deadline - time.monotonic()
            try:
                self._socket.settimeout(max(left, 0.001))
                more = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise AttachError(f"qmp:{self.path}: {silence}") from error
            except OSError as error:
                raise GuestGone(f"qmp:{self.path}: {error.strerror or error}") from error
            if not more:
                raise GuestGone(f"qmp:{self.path}: QEMU closed the connection; the guest may be gone")
            self._rest += more
            if len(self._rest) > _MOST:
                raise AttachError(f"qmp:{self.path}: an answer of more than {_MOST} bytes")


def open_qmp(path: str, timeout: float = TIMEOUT) -> tuple[QemuMemory, QmpGuest]:
    """The memory of the guest whose QEMU listens at the UNIX socket `path`, read-only, and what QEMU says of it.

    Raises what `Qmp` and `qemu.open_qemu` raise, and `Unsupported` when the socket does not tell the QEMU process.
    """
    if re.match(r"(tcp:|[\w.-]+:\d+$)", path):
        raise Unsupported(f"qmp:{path}: only UNIX sockets tell which process QEMU is; give QEMU -qmp unix:PATH,...")
    with Qmp(path, timeout) as qmp:
        pid = qmp.pid
        if not pid:
            raise Unsupported(f"qmp:{path}: QEMU runs in another pid namespace; run vmi-inside on its host")
        _check_program(path, pid)
        guest = QmpGuest(path, qmp.execute("query-name").get("name", ""), qmp.execute("query-status")["status"], pid)
        memory = open_qemu(pid, hmp=qmp.hmp, name=f"qmp:{path}", monitor_notice=None)
    return memory, guest


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
