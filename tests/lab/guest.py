"""A running lab guest, seen by a test: ask it for the truth, attach to it, take it down.

Knows the agent's protocol on the guest's second serial port. How the guest was started is left to `libvirt` and `qemu`.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.lab import LabError
from tests.lab.autopsy import autopsy

if TYPE_CHECKING:
    from vmi_inside.guest import Guest

BOOT_TIMEOUT: Final = 180.0
_STX: Final = b"\x02"
_READY: Final = "lab: ready"  # what the guest's init prints
_FAULTS: Final = ("Oops: ", "Kernel panic")
#: What no guest's CPU has. CMPXCHG16B leaves garbage in the flags in QEMU's translator before 8.0: the virtual-8086 bit
#: among them, when a vCPU is stopped just then, and the next interrupt in the kernel is a double fault. Kernels use it
#: to allocate memory.
WITHOUT: Final = "cx16"


class BootFailed(LabError):
    """A guest did not come up."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a guest looks like to its hypervisor, and what runs in it.

    `workload`: "full", "none", or words as `guest-setup.sh` knows them: "processes=1000,sockets=1000".
    """

    kernel: str = "6.1-cloud"
    memory: int = 256  # MiB
    vcpus: int = 2
    cpu: str = "max"  # or "la57-off", or a QEMU model's name
    machine: str = "q35"  # or "pc"
    backing: str = "anon"  # or "memfd", "file"
    numa: int = 0  # nodes; 0 for no NUMA
    nic: str = ""  # or "virtio", "e1000": a network card, the router 10.0.2.2 behind it
    append: str = ""  # more kernel parameters
    workload: str = "full"

    @property
    def parameters(self) -> str:
        """The kernel's command line."""
        return f"console=ttyS0 panic=-1 loglevel=4 cryptomgr.notests lab_workload={self.workload} {self.append}".strip()


class LabGuest:
    """One guest. `name` is its domain's (or its QEMU's) name, `target` and `uri` what `vmi_inside.attach` takes."""

    def __init__(
        self,
        name: str,
        shape: Shape,
        *,
        target: str,
        uri: str | None,
        pid: int,
        agent: Path,
        console: Path,
        destroy: Callable[[], None],
        domain: Any = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.target = target
        self.uri = uri
        self.pid = pid
        self.domain = domain
        self.console = console
        self._agent = agent
        self._destroy = destroy
        self._silent = False  # did not answer when last asked

    def __repr__(self) -> str:
        return f"<LabGuest {self.name}: {self.shape.kernel}, QEMU {self.pid}>"

    def attach(self, **options: Any) -> Guest:
        """`vmi_inside.attach` on this guest."""
        import vmi_inside

        return vmi_inside.attach(self.target, connect=self.uri, **options)

    def ask(self, command: str, timeout: float = 60.0, *, check: bool = True) -> str:
        """What `sh -c command` prints inside the guest, stdout and stderr; `LabError` when its exit status is not 0."""
        status, output = self._exchange(command.encode(), time.monotonic() + timeout)
        text = output.decode(errors="surrogateescape")
        if check and status:
            raise LabError(f"{self.name}: {command!r} exited with {status}:\n{text}")
        return text

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until the guest has set itself up; `LabError`, with the console's end, when it does not."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not alive(self.pid):
                raise BootFailed(f"{self.name}: QEMU ended while booting; its console said:\n{self.console_tail()}")
            if any(word in self.console_tail(1 << 16) for word in _FAULTS):
                raise BootFailed(f"{self.name}: the kernel faulted while booting; it said:\n{self.console_tail()}")
            if _READY in self.console_tail(1 << 16):
                self.ask("test -e /run/ready", deadline - time.monotonic())
                return
            time.sleep(0.1)
        raise BootFailed(f"{self.name}: not ready after {timeout:.0f} s; its console said:\n{self.console_tail()}")

    def trouble(self) -> str:
        """What has befallen a guest that was ready, with its console's end; empty when it is as it should be."""
        said = self.console_tail(1 << 20)
        if not alive(self.pid):
            what = "its QEMU ended"
        elif any(word in said for word in _FAULTS):
            what = "its kernel faulted"
        elif said.count(_READY) > 1:
            what = "it rebooted"
        elif self._silent and not self._answers():
            what = f"it does not answer;\n{autopsy(self)}"
        else:
            return ""
        return f"{self.name} ({self.shape.kernel}): {what}; its console's end:\n{said[-4000:]}"

    def _answers(self) -> bool:
        try:
            return self.ask("echo yes", timeout=20).strip() == "yes"
        except LabError:
            return False

    def console_tail(self, size: int = 4000) -> str:
        """The end of what the kernel printed."""
        try:
            return self.console.read_bytes()[-size:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def destroy(self) -> None:
        """Take the guest down, at once. Twice does no harm."""
        self._destroy()

    def _exchange(self, command: bytes, deadline: float) -> tuple[int, bytes]:
        token = secrets.token_hex(16).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            self._connect(agent, deadline)
            try:
                seconds = max(1, int(deadline - time.monotonic()))  # the guest then kills what still runs
                agent.settimeout(seconds)
                agent.sendall(_STX + b"%s %d %d\n" % (token, seconds, len(command)) + command)
                received = bytearray()
                wanted = _STX + token + b" "
                while True:
                    agent.settimeout(max(0.1, deadline - time.monotonic()))
                    part = agent.recv(1 << 16)
                    if not part:
                        raise LabError(f"{self.name}: the guest's serial port was closed; did QEMU end?")
                    received += part
                    start = received.find(wanted)  # what an earlier, abandoned command printed comes before it
                    if start < 0:
                        continue
                    header, newline, body = bytes(received[start + len(wanted) :]).partition(b"\n")
                    if newline and len(body) >= int(header.split()[1]):
                        self._silent = False
                        return int(header.split()[0]), body[: int(header.split()[1])]
            except TimeoutError:
                self._silent = True
                raise LabError(f"{self.name}: no answer to {command.decode()!r} in time") from None

    def _connect(self, agent: socket.socket, deadline: float) -> None:
        """QEMU serves one client at a time; others wait in the backlog, and may be refused when it is full."""
        here = os.open(self._agent.parent, os.O_PATH)
        try:
            while True:
                try:
                    agent.connect(f"/proc/self/fd/{here}/{self._agent.name}")  # sun_path has room for 107 bytes only
                    return
                except (BlockingIOError, ConnectionRefusedError, FileNotFoundError) as error:
                    if time.monotonic() > deadline or not alive(self.pid):
                        raise LabError(f"{self.name}: cannot reach the guest's serial port: {error}") from None
                    time.sleep(0.05)
        finally:
            os.close(here)


def alive(pid: int) -> bool:
    """Whether that process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
