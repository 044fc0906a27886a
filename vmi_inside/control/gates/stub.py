"""The code of gates: a few instructions for each hooked function, which look at its arguments and ask `judge`.

Knows the C calling convention: a function is entered as if nothing stood before it, all argument registers whole. The
rules and what is asked of them are `judge`'s; where members are, `offsets`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmi_inside.control.assemble import Assembler, At
from vmi_inside.control.gates import layout
from vmi_inside.control.gates.judge import AF_INET, AF_INET6, SIMPLE, SOCK_DGRAM, SOCK_STREAM, Judge
from vmi_inside.control.gates.offsets import Offsets
from vmi_inside.control.gates.operations import LAST_FAMILY, NO_SOCKET, Kind

_SAVED: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_TCP, _TCP_ZEROCOPY_RECEIVE = 6, 35  # include/uapi/linux/tcp.h
_PTRACE_MODE_ATTACH = 2  # include/linux/ptrace.h


@dataclass(frozen=True, slots=True)
class Target:
    """One function to hook: where it goes on behind the jump, and what its arguments are."""

    symbol: str
    behind: int
    kind: Kind
    operation: int


@dataclass(frozen=True, slots=True)
class Code:
    """Machine code for one place: `entry` has the address of each function's stub."""

    raw: bytes
    entry: dict[str, int]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Enumerators that the kernel counts differently from release to release; -1 where it has none."""

    reading_module: int
    loading_module: int


def assemble(base: int, offsets: Offsets, mark: int, targets: tuple[Target, ...], numbers: Numbers) -> Code:
    """The code for an area at `base`; `mark` is the offset of the spare word in task_struct, 0 for none."""
    asm = Assembler(base + layout.CODE_AT)
    Judge(asm, base, offsets, mark).write()
    stubs = _Stubs(asm, offsets, numbers)
    for target in targets:
        stubs.stub(target)
    raw = asm.finish()
    if len(raw) > layout.CODE_LIMIT:
        raise ValueError(f"{len(raw)} bytes of code, room for {layout.CODE_LIMIT}")
    return Code(raw, {target.symbol: asm.address(target.symbol) for target in targets})


class _Stubs:
    def __init__(self, asm: Assembler, offsets: Offsets, numbers: Numbers) -> None:
        self.asm = asm
        self.at = offsets
        self.numbers = numbers

    def stub(self, target: Target) -> None:
        """What the jump at a function's entry leads to."""
        asm, name = self.asm, target.symbol
        asm.align(16)
        asm.label(name)
        asm.push(*_SAVED)
        asm.load_gs("rax", self.at.current)
        asm.move("r9", 0)
        self._look(target.kind, name)
        asm.move("rdx", target.operation)
        asm.call("judge")
        asm.pop(*reversed(_SAVED))
        asm.test("rax")
        asm.jump_if("e", target.behind)
        asm.sign_extend("rax")
        asm.plain("ret")
        asm.label(f"{name}: go on")
        asm.pop(*reversed(_SAVED))
        asm.jump(target.behind)

    def _look(self, kind: Kind, name: str) -> None:
        """What a hook takes from its arguments."""
        go_on = f"{name}: go on"
        asm, at = self.asm, self.at
        if kind in ("task", "tracer", "traced", "signal", "read-module", "load-module"):
            self._look_at_task(kind, go_on)
            return
        if kind == "create":  # family, type, protocol, whether the kernel asks for itself
            asm.test("rcx", 0xFFFF_FFFF)
            asm.jump_if("ne", go_on)
            asm.move("r8", "rdi")
            asm.reckon("and", "r8", 0xFFFF, 4)
            self._clamp(name)
            for family in (AF_INET, AF_INET6):
                asm.reckon("cmp", "r8", family)
                asm.jump_if("e", f"{name}: inet")
            asm.label(f"{name}: strict")
            asm.move("r9", 2)
            asm.jump(f"{name}: seen")
            asm.label(f"{name}: inet")
            asm.reckon("cmp", "rsi", SOCK_STREAM, 4)
            asm.jump_if("e", f"{name}: typed")
            asm.reckon("cmp", "rsi", SOCK_DGRAM, 4)
            asm.jump_if("ne", f"{name}: strict")
            asm.label(f"{name}: typed")
            for protocol in SIMPLE:
                asm.reckon("cmp", "rdx", protocol, 4)
                asm.jump_if("e", f"{name}: seen")
            asm.jump(f"{name}: strict")
            asm.label(f"{name}: seen")
            return
        if kind == "getsockopt":  # a socket, level, option
            asm.reckon("cmp", "rsi", _TCP, 4)
            asm.jump_if("ne", go_on)
            asm.reckon("cmp", "rdx", _TCP_ZEROCOPY_RECEIVE, 4)
            asm.jump_if("ne", go_on)
        if kind == "splice":  # a file
            asm.load("rdi", At("rdi", at.private))
            asm.test("rdi")
            asm.jump_if("e", go_on)
        asm.load("rcx", At("rdi", at.sock))
        asm.test("rcx")
        asm.jump_if("e", go_on)
        asm.load("r8", At("rcx", at.family), 2)
        self._clamp(name)
        asm.push("rax")
        asm.move("rdx", "rsi")
        asm.call("peer")  # what cannot be known, is refused wherever there is a list
        if kind == "socket":  # bind, listen, accept: with a list it is the peer that counts
            asm.reckon("cmp", "r9", 2)
            asm.jump_if("e", f"{name}: looked")
            asm.move("r9", 0)
        elif kind == "connect":
            self._connect(name)
        elif kind == "send":
            self._send(name)
        asm.label(f"{name}: looked")
        asm.pop("rax")

    def _connect(self, name: str) -> None:
        """rdx: the address to connect to; AF_UNSPEC ends a connection."""
        asm = self.asm
        asm.reckon("cmp", "r9", 2)
        asm.jump_if("e", f"{name}: looked")
        asm.move("r9", 0)
        asm.load("rax", At("rdx"), 2)
        asm.test("rax")
        asm.jump_if("e", f"{name}: looked")
        asm.move("rsi", "rdx")
        asm.call("named")

    def _send(self, name: str) -> None:
        """rdx: the message. A stream that is connected goes to its peer; else the message's name counts."""
        asm, at = self.asm, self.at
        asm.reckon("cmp", "r9", 2)
        asm.jump_if("e", f"{name}: looked")
        asm.load("rax", At("rdx", at.name))
        asm.test("rax")
        asm.jump_if("e", f"{name}: looked")
        asm.compare_memory(At("rdx", at.name_size), 0, 4)
        asm.jump_if("e", f"{name}: looked")
        asm.test("r9")
        asm.jump_if("e", f"{name}: by name")
        asm.load("rcx", At("rsp", 8 * len(_SAVED)))  # rdi as it was: the socket
        asm.load("rcx", At("rcx", at.kind), 2)
        asm.reckon("cmp", "rcx", SOCK_STREAM)
        asm.jump_if("e", f"{name}: looked")
        asm.label(f"{name}: by name")
        asm.load("rsi", At("rdx", at.name))
        asm.call("named")

    def _look_at_task(self, kind: Kind, go_on: str) -> None:
        asm, at = self.asm, self.at
        asm.move("r8", NO_SOCKET)
        if kind == "tracer":  # another task, a mode: attaching, or only looking at what /proc shows
            asm.test("rsi", _PTRACE_MODE_ATTACH)
            asm.jump_if("e", go_on)
        elif kind == "traced":  # its parent is to trace the current task
            asm.move("rax", "rdi")
        elif kind == "signal":  # another task; signals to oneself (abort) go on
            asm.load("rcx", At("rdi", at.tgid), 4)
            asm.reckon("cmp", "rcx", At("rax", at.tgid), 4)
            asm.jump_if("e", go_on)
        elif kind == "read-module":  # a file, what it is read for
            asm.reckon("cmp", "rsi", self.numbers.reading_module, 4)
            asm.jump_if("ne", go_on)
        elif kind == "load-module":  # what it is loaded for
            asm.reckon("cmp", "rdi", self.numbers.loading_module, 4)
            asm.jump_if("ne", go_on)

    def _clamp(self, name: str) -> None:
        """Families beyond the last bit are the last."""
        asm = self.asm
        asm.reckon("cmp", "r8", LAST_FAMILY)
        asm.jump_if("be", f"{name}: family")
        asm.move("r8", LAST_FAMILY)
        asm.label(f"{name}: family")
