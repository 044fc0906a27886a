"""A client of QEMU's gdb stub: vCPUs stopped and let go, registers, memory, breakpoints.

Knows gdb's remote protocol as QEMU serves it (GDB manual, Packets; QEMU 7.2: gdbstub.c). How a stub is started and
ended is left to `machine`, what a packet looks like to `gdbpackets`, what registers mean to everybody above.

Connecting stops the guest, and nothing but `cont` or QEMU's monitor makes it run again.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Self

from vmi_inside.drivers.gdbpackets import BadPacket, Decoder, encode
from vmi_inside.drivers.gdbregisters import Register, describe
from vmi_inside.errors import Busy, ControlError, GuestGone, NoMemory, Unsupported

TIMEOUT: Final = 5.0  # seconds for an answer
_CHUNK: Final = 1024  # bytes of memory in a packet: QEMU's are 4096 characters long at the most
_XML_LIMIT: Final = 1 << 18
_VCPU_LIMIT: Final = 4096

#: Kinds of breakpoints, by the number in their packet.
SOFTWARE, HARDWARE, WRITE, READ, ACCESS = range(5)

Registers = dict[str, int]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the guest stopped: the vCPU (from 0), the signal (5 for a breakpoint), and a watched address that was hit."""

    vcpu: int
    signal: int
    watch: int | None = None


class GdbStub:
    """A connection to a stub at the UNIX socket `path`, made before `timeout` is over.

    `on_run` is called before the guest is let run.

    Raises `Busy` when nothing answers, as when the stub serves somebody else, `GuestGone` when it hangs up, and
    `ControlError` when what answers does not speak the protocol.
    """

    def __init__(
        self, path: str, name: str, timeout: float = TIMEOUT, *, layout: tuple[Register, ...] = (),
        on_run: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.name = name
        self._on_run = on_run
        self._timeout = timeout
        self._decoder = Decoder()
        self._ready: list[bytes] = []  # packets that came and were not asked for yet
        self._stops: list[Stop] = []
        self._points: set[tuple[int, int, int]] = set()
        self._current = -1
        self._physical: bool | None = None  # not known: QEMU keeps it from one connection to the next
        self._running = False
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            try:
                self._socket.connect(path)
            except OSError as error:
                raise ControlError(f"{name}: cannot reach QEMU's gdb stub: {error}") from error
            told = self._ask("qSupported:multiprocess+;xmlRegisters=i386")
            if "qXfer:features:read+" not in told or "PacketSize" not in told:
                raise Unsupported(
                    f"{name}: QEMU's gdb stub does not describe its registers; QEMU 2.10 or later is needed"
                )
            #: The stub's names of the vCPUs, in their order.
            self.threads = self._threads()
            #: The registers, in the order of the `g` packet: of one QEMU always the same, and asked for only once.
            self.layout = layout or self._description()
            if layout:
                self._feature("target.xml")  # a stub sets registers only for those who have asked for this
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Breakpoints go first, where the guest is stopped; whether it runs is left as it is."""
        # What fails here: the stub is ended behind us, and with it all that it set.
        with suppress(ControlError, GuestGone):
            self.release()
        self._socket.close()

    # -- registers ----------------------------------------------------------------------------------------------------

    def registers(self, vcpu: int) -> Registers:
        """The integer registers of a vCPU (from 0), by gdb's names (`rip`, `eflags`, `fs_base`, `k_gs_base`, `cr3`)."""
        self._select(vcpu)
        raw = self._hex(self._ask("g"), "registers")
        found: Registers = {}
        at = 0
        for register in self.layout:
            if at + register.size > len(raw):
                break
            if register.size <= 8:
                found[register.name] = int.from_bytes(raw[at : at + register.size], "little")
            at += register.size
        return found

    def set_registers(self, vcpu: int, values: Registers) -> None:
        """Set some registers of a vCPU. Raises `ControlError` for one that there is not, or that cannot be set."""
        self._select(vcpu)
        known = {register.name: register for register in self.layout if register.size <= 8}
        for name, value in values.items():
            register = known.get(name)
            if register is None:
                raise ControlError(f"{self.name}: the vCPU has no register {name!r}")
            data = (value & ((1 << 8 * register.size) - 1)).to_bytes(register.size, "little")
            self._expect_ok(f"P{register.number:x}={data.hex()}", f"set {name}")

    # -- memory -------------------------------------------------------------------------------------------------------

    def read(self, address: int, size: int, *, vcpu: int | None = None) -> bytes:
        """Memory at a guest-physical address; with `vcpu` at a virtual one, as that vCPU sees it. Raises `NoMemory`."""
        parts = []
        with self._view(vcpu):
            for start in range(address, address + size, _CHUNK):
                step = min(_CHUNK, address + size - start)
                answer = self._ask(f"m{start:x},{step:x}")
                if re.fullmatch(r"E[0-9a-f]{2}", answer):
                    raise NoMemory(start, step)
                part = self._hex(answer, "memory")
                if len(part) != step:
                    raise NoMemory(start, step)
                parts.append(part)
        return b"".join(parts)

    def write(self, address: int, data: bytes, *, vcpu: int | None = None) -> None:
        """Write memory, as `read` reads it. QEMU knows of such a write: translated code is translated anew."""
        with self._view(vcpu):
            for start in range(0, len(data), _CHUNK):
                part = data[start : start + _CHUNK]
                if self._ask(f"M{address + start:x},{len(part):x}:{part.hex()}") != "OK":
                    raise NoMemory(address + start, len(part))

    # -- running ------------------------------------------------------------------------------------------------------

    def set(self, kind: int, address: int, size: int = 1) -> None:
        """Set a breakpoint (SOFTWARE, HARDWARE) or watch memory (WRITE, READ, ACCESS), on all vCPUs."""
        self._expect_ok(f"Z{kind},{address:x},{size:x}", f"set a breakpoint at {address:#x}")
        self._points.add((kind, address, size))

    def clear(self, kind: int, address: int, size: int = 1) -> None:
        """Take a breakpoint away."""
        self._points.discard((kind, address, size))
        self._expect_ok(f"z{kind},{address:x},{size:x}", f"take away the breakpoint at {address:#x}")

    def release(self) -> None:
        """Take all breakpoints away. Where there is none, nothing is said to the stub, which would stop the guest."""
        for point in tuple(self._points):
            self.clear(*point)

    def cont(self, vcpus: Iterable[int] | None = None) -> None:
        """Let vCPUs run, the others not: all of them when None. They run until a breakpoint, or `interrupt`."""
        self._stops.clear()
        self._on_run()
        which = None if vcpus is None else sorted(set(vcpus))
        command = "vCont;c" if which is None else "vCont" + "".join(f";c:{self.threads[one]}" for one in which)
        self._send(command.encode())
        self._running = True

    def interrupt(self) -> Stop:
        """Stop all vCPUs."""
        try:
            self._socket.sendall(b"\x03")
        except OSError as error:
            raise self._gone() from error
        stop = self.wait(self._timeout)
        if stop is None:
            raise ControlError(f"{self.name}: QEMU's gdb stub did not stop the guest in {self._timeout:g} s")
        return stop

    def wait(self, timeout: float) -> Stop | None:
        """The next stop, or None when there is none in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not self._stops:
            packet = self._receive(deadline)
            if packet is None:
                return None
            self._sort(packet)
        return self._stops.pop(0)

    # -- the protocol -------------------------------------------------------------------------------------------------

    def _threads(self) -> tuple[str, ...]:
        found: list[str] = []
        answer = self._ask("qfThreadInfo")
        while answer.startswith("m") and len(found) < _VCPU_LIMIT:
            found += answer[1:].split(",")
            answer = self._ask("qsThreadInfo")
        if not found or not all(re.fullmatch(r"p[0-9a-f]+\.[0-9a-f]+", one) for one in found):
            raise ControlError(f"{self.name}: QEMU's gdb stub names its vCPUs {found[:4]}")
        return tuple(found)

    def _description(self) -> tuple[Register, ...]:
        try:
            return describe(self._feature)
        except ValueError as error:
            raise ControlError(f"{self.name}: QEMU's gdb stub {error}") from error

    def _feature(self, file: str) -> str:
        text = bytearray()
        while len(text) < _XML_LIMIT:
            answer = self._ask_bytes(f"qXfer:features:read:{file}:{len(text):x},7f0".encode("ascii", "replace"))
            text += answer[1:]
            if answer[:1] == b"l":
                return text.decode("latin-1")
            if answer[:1] != b"m" or len(answer) == 1:
                break
        raise ControlError(f"{self.name}: QEMU's gdb stub does not describe its registers ({file!r})")

    def _select(self, vcpu: int) -> None:
        if vcpu != self._current:
            self._expect_ok(f"Hg{self.threads[vcpu]}", f"look at vCPU {vcpu}")
            self._current = vcpu

    @contextmanager
    def _view(self, vcpu: int | None) -> Iterator[None]:
        """See memory as a vCPU does, or for as long as the block lasts as the bus does.

        Not for longer: QEMU goes on so for whoever connects next, whose debugger would take physical addresses for
        virtual ones and find zeros for code.
        """
        self._see(vcpu is None)
        try:
            if vcpu is not None:
                self._select(vcpu)
            yield
        finally:
            if self._physical:
                self._see(False)

    def _see(self, physical: bool) -> None:
        if physical != self._physical:
            if self._ask(f"Qqemu.PhyMemMode:{int(physical)}") != "OK" and (physical or self._physical):
                raise Unsupported(
                    f"{self.name}: QEMU's gdb stub has no physical addresses; QEMU 4.1 or later is needed"
                )
            self._physical = physical

    def _expect_ok(self, command: str, what: str) -> None:
        answer = self._ask(command)
        if answer != "OK":
            raise ControlError(f"{self.name}: QEMU's gdb stub cannot {what}: {answer[:40] or 'not supported'}")

    def _hex(self, text: str, what: str) -> bytes:
        try:
            return bytes.fromhex(text.replace("x", "0"))
        except ValueError:
            raise ControlError(f"{self.name}: QEMU's gdb stub answers with no {what}: {text[:40]!r}") from None

    def _ask(self, command: str) -> str:
        return self._ask_bytes(command.encode()).decode("latin-1")

    def _ask_bytes(self, command: bytes) -> bytes:
        if self._running:  # as when an exception came while it was waited for: a running guest answers nothing
            self.interrupt()
        self._send(command)
        deadline = time.monotonic() + self._timeout
        while True:
            packet = self._receive(deadline)
            if packet is None:
                raise self._silent(command)
            # Replies begin with hexadecimal digits or small letters, `OK` or `E`; a stop comes when it likes.
            if not self._sort(packet):
                return packet

    def _sort(self, packet: bytes) -> bool:
        """Put a packet aside that tells of a stop; whether it was one."""
        text = packet.decode("latin-1")
        match = re.match(r"[TS]([0-9a-f]{2})", text)
        if not match:
            return bool(re.match(r"[WXN]", text))
        self._running = False
        self._current = -1  # the stub looks at the vCPU that stopped now
        thread = re.search(r"thread:(p[0-9a-f]+\.[0-9a-f]+);", text)
        watch = re.search(r"watch:([0-9a-f]{1,16});", text)
        known = getattr(self, "threads", ())
        vcpu = known.index(thread[1]) if thread and thread[1] in known else 0
        self._stops.append(Stop(vcpu, int(match[1], 16), int(watch[1], 16) if watch else None))
        del self._stops[:-16]
        return True

    def _send(self, payload: bytes) -> None:
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(encode(payload))
        except TimeoutError as error:
            raise self._silent(payload) from error
        except OSError as error:
            raise self._gone() from error

    def _receive(self, deadline: float) -> bytes | None:
        """The next packet's payload, acknowledged; None when the time is over."""
        while not self._ready:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                self._socket.settimeout(left)
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError as error:
                raise self._gone() from error
            if not data:
                raise self._gone()
            try:
                new = list(self._decoder.feed(data))
            except BadPacket as error:
                raise ControlError(f"{self.name}: what answers is no gdb stub: {error}") from error
            if b"-" in new:
                raise ControlError(f"{self.name}: QEMU's gdb stub did not understand a packet")
            packets = [one[1:] for one in new if one.startswith(b"$")]
            if packets:
                self._ready += packets
                try:
                    self._socket.sendall(b"+" * len(packets))
                except OSError as error:
                    raise self._gone() from error
        return self._ready.pop(0)

    def _gone(self) -> GuestGone:
        return GuestGone(f"{self.name}: QEMU closed the connection to its gdb stub; the guest may be gone")

    def _silent(self, command: bytes) -> ControlError:
        kind: Callable[[str], ControlError] = Busy if not hasattr(self, "threads") else ControlError
        return kind(
            f"{self.name}: QEMU's gdb stub does not answer ({command[:20].decode('latin-1')}); "
            "another debugger may hold it, or somebody has let the guest run meanwhile"
        )
