"""The code of gates: for each hooked function a few instructions that ask the rules, and go on or refuse.

Knows which instructions, and the C calling convention: a function is entered as if nothing stood before it, all
argument registers whole. What the records look like that the code reads is `layout`'s matter; where members are,
`offsets`'.

Each hook looks at its arguments and calls `judge` with

    rax   the task whose doing it is           r9d   what the peer's address is:
    edx   the operation's bit                          0  nothing to hold against a list of networks
    r8d   the socket's family, or 63                   1  in rdi (first 8 bytes), rsi (last 8), IPv4 mapped
                                                       2  not to be known: no list of networks lets it through

`judge` gives 0 or a negative errno in eax. It runs with interrupts off: what it follows from the task (cgroups,
credentials, the leader of the threads) the kernel frees only when every CPU has let it be interrupted (RCU).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmi_inside.control.gates import layout
from vmi_inside.control.gates.assemble import Assembler, At
from vmi_inside.control.gates.layout import Scope
from vmi_inside.control.gates.offsets import Offsets
from vmi_inside.control.gates.operations import LAST_FAMILY, NO_SOCKET, Kind

_SAVED: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
AF_INET, AF_INET6 = 2, 10
SOCK_STREAM, SOCK_DGRAM = 1, 2
#: Protocols whose peer is the one address that the socket knows: IP's default, ICMP, TCP, UDP, ICMPv6.
_SIMPLE: Final = (0, 1, 6, 17, 58)
_TCP, _TCP_ZEROCOPY_RECEIVE = 6, 35  # include/uapi/linux/tcp.h
_PTRACE_MODE_ATTACH = 2  # include/linux/ptrace.h
_PF_KTHREAD = 0x200000
_MAPPED = 0xFFFF_0000  # the middle of ::ffff:0:0/96, as a little-endian number's lower half


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
    code = _Stubs(base, offsets, mark, numbers)
    code.judge()
    code.peer()
    code.named()
    for target in targets:
        code.stub(target)
    raw = code.asm.finish()
    if len(raw) > layout.CODE_LIMIT:
        raise ValueError(f"{len(raw)} bytes of code, room for {layout.CODE_LIMIT}")
    return Code(raw, {target.symbol: code.asm.address(target.symbol) for target in targets})


class _Stubs:
    def __init__(self, base: int, offsets: Offsets, mark: int, numbers: Numbers) -> None:
        self.asm = Assembler(base + layout.CODE_AT)
        self.base = base
        self.at = offsets
        self.mark = mark
        self.numbers = numbers

    def judge(self) -> None:
        """The rules, one after the other; the first that refuses decides."""
        asm, at = self.asm, self.at
        rule = "r10"
        asm.label("judge")
        asm.plain("pushfq")
        asm.plain("cli")
        asm.move(rule, self.base + layout.RULES_AT)
        asm.load("r11", At(None, self.base + layout.COUNT_AT), 4)
        asm.label("each")
        asm.reckon("sub", "r11", 1)
        asm.jump_if("s", "nobody")
        asm.test_memory(At(rule, layout.OPERATIONS), "rdx")
        asm.jump_if("e", "next")
        asm.test_bit(At(rule, layout.FAMILIES), "r8")
        asm.jump_if("ae", "next")
        asm.load("rcx", At(rule, layout.SCOPE), 4)
        for scope in Scope:
            if scope != Scope.MARKED or self.mark:
                asm.reckon("cmp", "rcx", int(scope))
                asm.jump_if("e", scope.name)
        asm.label("next")
        asm.reckon("add", rule, layout.RULE_SIZE)
        asm.jump("each")

        asm.label(Scope.PROCESS.name)
        asm.load("rcx", At(rule, layout.NUMBER), 4)
        asm.reckon("cmp", "rcx", At("rax", at.tgid), 4)
        asm.jump_if("ne", "next")
        asm.load("rcx", At("rax", at.leader))
        asm.load("rcx", At("rcx", at.born))
        asm.reckon("cmp", "rcx", At(rule, layout.FIRST))
        asm.jump_if("ne", "next")
        asm.jump("hit")

        if self.mark:
            asm.label(Scope.MARKED.name)
            asm.load("rcx", At(rule, layout.NUMBER), 4)
            asm.test_memory(At("rax", self.mark), "rcx")
            asm.jump_if("e", "next")
            asm.jump("hit")

        asm.label(Scope.CGROUP.name)
        self._no_kernel_thread()
        asm.push("rdx")
        asm.load("rdx", At("rax", at.css_set))
        asm.load("rdx", At("rdx", at.group))
        asm.load("rcx", At(rule, layout.NUMBER), 4)
        asm.reckon("cmp", "rcx", At("rdx", at.level), 4)
        asm.jump_if("a", "other")  # not so deep
        asm.shift_left("rcx", 3)
        asm.reckon("add", "rcx", "rdx")
        asm.load("rcx", At("rcx", at.ancestors))
        asm.reckon("cmp", "rcx", At(rule, layout.FIRST))
        asm.jump_if("ne", "other")
        if at.ancestor_pointers:
            asm.load("rcx", At("rcx", at.serial))
            asm.reckon("cmp", "rcx", At(rule, layout.SECOND))
            asm.jump_if("ne", "other")
        asm.pop("rdx")
        asm.jump("hit")
        asm.label("other")
        asm.pop("rdx")
        asm.jump("next")

        asm.label(Scope.USER.name)
        self._no_kernel_thread()
        asm.load("rcx", At("rax", at.cred))
        asm.load("rcx", At("rcx", at.uid), 4)
        asm.reckon("cmp", "rcx", At(rule, layout.NUMBER), 4)
        asm.jump_if("e", "hit")
        asm.load("rcx", At("rax", at.cred))
        asm.load("rcx", At("rcx", at.euid), 4)
        asm.reckon("cmp", "rcx", At(rule, layout.NUMBER), 4)
        asm.jump_if("ne", "next")

        asm.label("hit")
        asm.load("rcx", At(rule, layout.ALLOWED), 4)
        asm.test("rcx")
        asm.jump_if("e", "refuse")
        asm.reckon("cmp", "r9", 1)
        asm.jump_if("b", "next")
        asm.jump_if("a", "refuse")
        asm.push("rax", "rdx")
        asm.load("rdx", At(rule, layout.ALLOW))
        asm.label("network")
        for half, register in ((0, "rdi"), (8, "rsi")):
            asm.move("rax", register)
            asm.reckon("and", "rax", At("rdx", 16 + half))
            asm.reckon("cmp", "rax", At("rdx", half))
            asm.jump_if("ne", "no")
        asm.pop("rdx", "rax")
        asm.jump("next")
        asm.label("no")
        asm.reckon("add", "rdx", layout.NETWORK_SIZE)
        asm.reckon("sub", "rcx", 1)
        asm.jump_if("ne", "network")
        asm.pop("rdx", "rax")

        asm.label("refuse")
        asm.load("rcx", At(rule, layout.COUNTER))
        asm.test("rcx")
        asm.jump_if("e", "uncounted")
        asm.count_up(At("rcx"))
        asm.label("uncounted")
        asm.load("rax", At(rule, layout.ERRNO), 4)
        asm.plain("popfq")
        asm.plain("ret")
        asm.label("nobody")
        asm.move("rax", 0)
        asm.plain("popfq")
        asm.plain("ret")

    def peer(self) -> None:
        """rdi: a struct socket, rcx: its sock, r8d: its family; sets r9d, rdi, rsi by the peer. Changes rax."""
        asm, at = self.asm, self.at
        asm.label("peer")
        self._simple()
        asm.reckon("cmp", "r8", AF_INET)
        asm.jump_if("ne", "peer6")
        asm.load("rsi", At("rcx", at.peer), 4)
        asm.test("rsi")
        asm.jump_if("e", "unconnected")
        self._map4()
        asm.label("known")
        asm.move("r9", 1)
        asm.plain("ret")
        asm.label("peer6")
        if at.peer6 < 0:
            asm.jump("strict")
        else:
            asm.reckon("cmp", "r8", AF_INET6)
            asm.jump_if("ne", "strict")
            asm.load("rdi", At("rcx", at.peer6))
            asm.load("rsi", At("rcx", at.peer6 + 8))
            asm.move("rax", "rdi")
            asm.reckon("or", "rax", "rsi")
            asm.jump_if("ne", "known")
        asm.label("unconnected")
        asm.move("r9", 0)
        asm.plain("ret")
        asm.label("strict")
        asm.move("r9", 2)
        asm.plain("ret")

    def named(self) -> None:
        """rsi: a struct sockaddr in the kernel's memory; sets r9d, rdi, rsi by it. Changes rax."""
        asm = self.asm
        asm.label("named")
        asm.load("rax", At("rsi"), 2)
        asm.reckon("cmp", "rax", AF_INET)
        asm.jump_if("ne", "named6")
        asm.load("rsi", At("rsi", 4), 4)  # sockaddr_in.sin_addr
        self._map4()
        asm.move("r9", 1)
        asm.plain("ret")
        asm.label("named6")
        asm.reckon("cmp", "rax", AF_INET6)
        asm.jump_if("ne", "strict")
        asm.load("rdi", At("rsi", 8))  # sockaddr_in6.sin6_addr
        asm.load("rsi", At("rsi", 16))
        asm.move("r9", 1)
        asm.plain("ret")

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
            for protocol in _SIMPLE:
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

    def _simple(self) -> None:
        """Go to `strict` for a socket whose peers its address does not tell. rdi: the socket, rcx: its sock."""
        asm, at = self.asm, self.at
        asm.load("rax", At("rdi", at.kind), 2)
        asm.reckon("cmp", "rax", SOCK_STREAM)
        asm.jump_if("e", "typed")
        asm.reckon("cmp", "rax", SOCK_DGRAM)
        asm.jump_if("ne", "strict")
        asm.label("typed")
        asm.load("rax", At("rcx", at.protocol), 2)
        for protocol in _SIMPLE:
            asm.reckon("cmp", "rax", protocol)
            asm.jump_if("e", "simple")
        asm.jump("strict")
        asm.label("simple")

    def _map4(self) -> None:
        """The IPv4 address in esi becomes ::ffff:a.b.c.d in rdi, rsi. Changes rax."""
        asm = self.asm
        asm.move("rdi", 0)
        asm.shift_left("rsi", 32)
        asm.move("rax", _MAPPED)
        asm.reckon("or", "rsi", "rax")

    def _clamp(self, name: str) -> None:
        """Families beyond the last bit are the last."""
        asm = self.asm
        asm.reckon("cmp", "r8", LAST_FAMILY)
        asm.jump_if("be", f"{name}: family")
        asm.move("r8", LAST_FAMILY)
        asm.label(f"{name}: family")

    def _no_kernel_thread(self) -> None:
        """Kernel threads belong to no container and no user."""
        self.asm.load("rcx", At("rax", self.at.flags), 4)
        self.asm.reckon("and", "rcx", _PF_KTHREAD)
        self.asm.jump_if("ne", "next")
